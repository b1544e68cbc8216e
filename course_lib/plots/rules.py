"""Pictures of lesson 07."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise

import torch
from matplotlib.axes import Axes
from torch import Tensor

from course_lib.plots.boxes import arrow, box, heights
from course_lib.plots.common import (
    COLORS,
    Series,
    descent,
    finish,
    images,
    line_color,
    lines,
)


def arrows(
    ax: Axes,
    after: Mapping[str, Tensor],
    *,
    before: Mapping[str, Tensor],
    title: str = "",
) -> Axes:
    """Draw named vectors of two numbers from the origin, and pale what they were."""
    for i, (name, was) in enumerate(before.items()):
        color = line_color(i)
        for tip, style in ((was, {"alpha": 0.3}), (after[name], {})):
            look = {"arrowstyle": "-|>", "color": color, "linewidth": 2.5, **style}
            look |= {"shrinkA": 0, "shrinkB": 0, "mutation_scale": 14}
            ax.annotate("", xy=tip.tolist(), xytext=(0, 0), arrowprops=look)
        ax.annotate(name, was.tolist(), xytext=(4, 4), textcoords="offset points")
    x, y = torch.stack([*before.values(), *after.values()]).T
    ax.set_title(title, fontsize=11)
    limits = {"xlim": _with_zero(x), "ylim": _with_zero(y)}
    return finish(ax, legend=False, aspect="equal", **limits)


def _with_zero(values: Tensor) -> tuple[float, float]:
    """Return limits that hold the values and 0, with a margin."""
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    margin = 0.12 * (high - low or 1.0)
    return low - margin * (low < 0), high + margin


def flow(ax: Axes, rows: Mapping[str, Sequence[str | Tensor]]) -> Axes:
    """Draw each row as values and what is done to them: a value, a step, a value, ...

    The first and every second after it is a value, a text or a vector, in a box; the
    texts between stand over the arrows.
    """
    for y, (name, row) in zip(heights(len(rows)), rows.items(), strict=True):
        texts, count = [_as_text(value) for value in row], len(row)
        values = [
            box(ax, (i + 0.5) / count, y, text, COLORS[0])
            for i, text in enumerate(texts)
            if i % 2 == 0
        ]
        for i, (start, end) in enumerate(pairwise(values)):
            arrow(ax, start, end, "0.4")
            across = (2 * i + 1.5) / count
            ax.text(across, y + 0.11, texts[2 * i + 1], ha="center", fontsize=10)
        ax.text(0, y + 0.21, name, color="0.4")
    ax.set(xlim=(0, 1), ylim=(0, 1))
    ax.axis("off")
    return ax


def _as_text(value: str | Tensor) -> str:
    if isinstance(value, str):
        return value
    return "[" + ", ".join(f"{number:.3g}" for number in value.tolist()) + "]"


def descents(
    axes: Iterable[Axes],
    height: Callable[[Tensor], Tensor],
    paths: Mapping[str, Tensor],
) -> None:
    """Draw each path (steps + 1, 2) on contours of its own, with its name above."""
    for ax, (name, path) in zip(axes, paths.items(), strict=True):
        descent(ax, height, {name: path}, xlim=(-2.4, 2.4), ylim=(-1.3, 1.3))
        ax.set_title(name, fontsize=9)


def lengths(ax: Axes, paths: Mapping[str, Tensor]) -> Axes:
    """Draw how long each path's vector (steps, n) is, over the steps from 1."""
    across = torch.arange(1, 1 + len(next(iter(paths.values()))))
    norms = {name: path.norm(dim=1) for name, path in paths.items()}
    return lines(ax, across, norms, xlabel="step", ylabel="length of the weights")


def phases(ax: Axes, errors: Series) -> Axes:
    """Draw parts of one training, each in its color where the one before has ended."""
    begin = 0
    for i, (name, values) in enumerate(errors.items()):
        steps = range(begin, begin + len(values))
        ax.plot(steps, values, label=name, color=line_color(i), linewidth=1.5)
        begin += len(values)
    return finish(ax, yscale="log", xlabel="step", ylabel="training error")


def cut(ax: Axes, lengths: Mapping[str, Tensor], *, at: int, ylabel: str) -> Axes:
    """Draw a point for each step of named series, and a line before the step `at`."""
    for i, (name, values) in enumerate(lengths.items()):
        style = {"color": line_color(i), "marker": "os^D"[i % 4], "markersize": 4}
        ax.plot(range(len(values)), values, label=name, linewidth=1, **style)
    ax.axvline(at - 0.5, color="0.7", linewidth=1)
    return finish(ax, xlabel="step", ylabel=ylabel)


def image_rows(axes: Sequence[Sequence[Axes]], rows: Mapping[str, Tensor]) -> None:
    """Draw a row of images `(n, 1, height, width)`, in [0, 1], for each name."""
    for line, (name, pixels) in zip(axes, rows.items(), strict=True):
        images(line, pixels, [""] * len(line))
        line[0].set_ylabel(name)
