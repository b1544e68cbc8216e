"""Pictures of lesson 04."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from matplotlib.axes import Axes
from torch import Tensor

from course_lib.plots.boxes import arrow, box, connect, heights
from course_lib.plots.common import bars, line_color


def sharing(ax: Axes, places: Mapping[str, Tensor], *, title: str = "") -> Axes:
    """Draw the places of a model on the left, their tensors on the right, and arrows.

    A tensor that stands at several places is drawn once, in another color.
    """
    found: dict[int, tuple[str, list[int]]] = {}  # shape and places of each tensor
    for i, tensor in enumerate(places.values()):
        shape = " x ".join(map(str, tensor.shape))
        found.setdefault(id(tensor), (shape, []))[1].append(i)
    ax.set_title(title, fontsize=11)
    return connect(ax, list(places), list(found.values()))


def entries(
    ax: Axes,
    texts: Sequence[Sequence[str]],
    values: Tensor,
    *,
    counts: Tensor | None = None,
    title: str = "",
) -> Axes:
    """Draw a table of short texts, each on a color that is darker for a larger value.

    Where `counts`, bools of the same shape (rows, columns), is False, the field is
    hatched and its text gray.
    """
    values = values.detach().cpu().double()
    counts = torch.ones_like(values, dtype=torch.bool) if counts is None else counts
    shown = values.where(counts.cpu(), 0).numpy()
    reach = max(float(shown.max()), 1e-12)
    ax.imshow(shown, cmap="Blues", vmin=0, vmax=1.6 * reach, aspect="auto")
    for i, row in enumerate(texts):
        for j, text in enumerate(row):
            if not counts[i, j]:
                across, down = (j - 0.5, j + 0.5), (i - 0.5, i + 0.5)
                xs, ys = [*across, *across[::-1]], [down[0]] * 2 + [down[1]] * 2
                ax.fill(xs, ys, facecolor="0.95", edgecolor="0.75", hatch="///")
            color = "black" if counts[i, j] else "0.4"
            ax.text(j, i, text, ha="center", va="center", color=color, parse_math=False)
    ax.set(xticks=[], yticks=[])
    ax.set_title(title, fontsize=11)
    return ax


def shares(ax: Axes, found: Mapping[str, float], *, xlabel: str) -> Axes:
    """Draw a bar for each share in [0, 1] on an axis that is always whole."""
    bars(ax, found, xlabel=xlabel).set_xlim(0, 1)
    for i, value in enumerate(found.values()):
        ax.text(value + 0.01, i, f"{value:.1f}", va="center")
    return ax


def fork(ax: Axes, stem: Sequence[str], ends: Sequence[str]) -> Axes:
    """Draw parts in a row, the last of which leads to several ends."""
    places = [(i + 0.5) / (len(stem) + 1) for i in range(len(stem) + 1)]
    parts = [
        box(ax, x, 0.5, name, "0.4") for x, name in zip(places, stem, strict=False)
    ]
    for start, end in pairwise(parts):
        arrow(ax, start, end, "0.4")
    for i, (y, name) in enumerate(zip(heights(len(ends)), ends, strict=True)):
        color = line_color(i)
        arrow(ax, parts[-1], box(ax, places[-1], y, name, color), color)
    ax.set(xlim=(0, 1), ylim=(0, 1))
    ax.axis("off")
    return ax
