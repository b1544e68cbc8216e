"""Pictures of lesson 07."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from course_lib.plots.boxes import arrow, box, heights
from course_lib.plots.common import COLORS, finish, line_color

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def arrows(
    ax: "Axes",
    after: Mapping[str, Tensor],
    *,
    before: Mapping[str, Tensor],
    title: str = "",
) -> "Axes":
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


def flow(ax: "Axes", rows: Mapping[str, Sequence[str]]) -> "Axes":
    """Draw each row as values and what is done to them: a value, a step, a value, ...

    The first and every second text after it is a value, in a box; those between stand
    over the arrows.
    """
    for y, (name, texts) in zip(heights(len(rows)), rows.items(), strict=True):
        count = len(texts)
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
