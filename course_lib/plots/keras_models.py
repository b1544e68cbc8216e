"""Pictures of lesson 03."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from torch import Tensor

from course_lib.keras_models.graph.model import KerasModel
from course_lib.keras_models.summary import draw_graph
from course_lib.plots.common import COLORS, heatmap


def panels(
    axes: Sequence[Axes],
    draw: Callable[..., Any],
    groups: Mapping[str, Any],
    *,
    reach: float | None = None,
    **settings: Any,
) -> None:
    """Draw each group on an Axes of its own, with its name as the title.

    Args:
        axes: as many as groups.
        draw: a function of this package: (axes, what it draws, **settings).
        groups: title = what is drawn.
        reach: where all x-axes end.
        settings: the same for all groups.
    """
    for ax, (title, group) in zip(axes, groups.items(), strict=True):
        draw(ax, group, **settings)
        ax.set_title(title, fontsize=11)
        if reach is not None:
            ax.set_xlim(right=reach)


def walk(
    axes: Sequence[Axes], model: KerasModel, layer: str, outputs: Sequence[Tensor]
) -> str:
    """Draw a model's graph with a layer's calls framed, and what each call returned.

    Args:
        axes: one for the graph, and the others for the calls; those left over are
            hidden.
        model: an imported one.
        layer: the name of one of its layers.
        outputs: of all of `model.calls`, (batch, ...); a row is drawn for each sample.

    Returns a description in words.
    """
    graph, *others = axes
    texts, words = draw_graph(graph, model).texts[len(model.input_names) :], []
    for ax in others:
        ax.set_axis_off()
    for call, text, output in zip(model.calls, texts, outputs, strict=False):
        if call.layer == layer:
            text.get_bbox_patch().set(edgecolor="black", linewidth=3)
            ax = heatmap(others[call.number], output.flatten(1))
            ax.set_title(f"{layer}, call {call.number + 1}", fontsize=11)
            ax.set_axis_on()
            given = " and ".join(f"{name} (call {n + 1})" for name, n in call.inputs)
            words.append(f"call {call.number + 1} of {given}")
    return f"{layer}: {'; '.join(words)}."


def strips(
    ax: Axes, rows: Mapping[str, Sequence[str]], groups: Mapping[str, int]
) -> Axes:
    """Draw each row of texts as squares side by side, its name on the left.

    `groups` maps a text to the number of its color; a text without one stays white.
    """
    for y, texts in enumerate(rows.values()):
        for x, text in enumerate(texts):
            color = COLORS[groups[text] % len(COLORS)] if text in groups else None
            _square(ax, x, y, text, color)
    ax.set_yticks(range(len(rows)), list(rows))
    width = max(map(len, rows.values()))
    ax.set(xlim=(-0.6, width - 0.4), ylim=(len(rows) - 0.4, -0.6), xticks=[])
    return _without_axes(ax)


def windows(
    ax: Axes,
    numbers: int,
    kernel: int,
    stride: int,
    pads: Mapping[str, Sequence[int]],
) -> Axes:
    """Draw where a kernel looks along 1, 2, ..., `numbers`, padded with zeros.

    A window holds `kernel` numbers, and the next one begins `stride` further. There
    is a row for each of `pads`: name -> (zeros before, zeros after).
    """
    for y, (before, after) in enumerate(pads.values()):
        for x in range(-before, numbers + after):
            inside = 0 <= x < numbers
            _square(ax, x, 2 * y, str(x + 1) if inside else "0", None, faint=not inside)
        starts = range(-before, numbers + after - kernel + 1, stride)
        for i, start in enumerate(starts):
            low = 2 * y + 0.62 + 0.14 * (i % 3)  # neighbors must not cover each other
            ends = (start - 0.4, start + kernel - 0.6)
            ax.plot(ends, (low, low), color=COLORS[(0, 5, 2)[i % 3]], linewidth=3)
    ax.set_yticks(range(0, 2 * len(pads), 2), list(pads))
    left = max(before for before, _ in pads.values())
    right = max(after for _, after in pads.values())
    ax.set(xlim=(-left - 0.6, numbers + right - 0.4), xticks=[])
    ax.set_ylim(2 * len(pads) - 0.8, -0.6)
    return _without_axes(ax)


def _square(
    ax: Axes, x: float, y: float, text: str, color: str | None, *, faint: bool = False
) -> None:
    style = {"facecolor": (color, 0.35) if color else "white"}
    style["edgecolor"], ink = ("0.75", "0.6") if faint else ("0.3", "black")
    across, down = (-0.46, 0.46, 0.46, -0.46), (-0.46, -0.46, 0.46, 0.46)
    ax.fill([x + step for step in across], [y + step for step in down], **style)
    ax.text(x, y, text, ha="center", va="center", color=ink, parse_math=False)


def _without_axes(ax: Axes) -> Axes:
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_aspect("equal")
    return ax
