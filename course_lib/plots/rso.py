"""Pictures of lesson 08."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from matplotlib.patches import Rectangle
from torch import Tensor

from course_lib.plots.common import COLORS, curves, descent, finish

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def visit(
    ax: "Axes",
    height: Callable[[Tensor], Tensor],
    path: Tensor,
    j: int,
    dw: float,
    *,
    xlim: tuple[float, float] = (-2, 4),
    ylim: tuple[float, float] = (-2, 3),
    title: str = "",
) -> "Axes":
    """Draw the last visit of a walk over two weights, on contours of `height`.

    path: (visits + 1, 2); the last visit was to weight `j` with the change `dw`. A dot
    stands where the weight was, rings at its two candidates, a star on what was kept.
    """
    path = path.detach().cpu()
    descent(ax, height, {}, xlim=xlim, ylim=ylim)
    was, kept = path[-2:]
    step = torch.zeros(2)
    step[j] = dw
    rings = torch.stack([was + step, was - step])
    ax.plot(*path.T, color="0.4", linewidth=1, zorder=2, label="the walk")
    ax.plot(*rings.T, color="0.4", linewidth=1, linestyle=":", zorder=2)
    style = {"linestyle": "", "marker": "o", "color": COLORS[0], "markersize": 8}
    ax.plot(*was, label="as it was", **style)
    ax.plot(*rings.T, label="w + dw, w - dw", **style, markerfacecolor="white")
    star = {**style, "marker": "*", "color": COLORS[5], "markersize": 15}
    ax.plot(*kept, label="kept", **star)
    ax.set_title(title, fontsize=11)
    return finish(ax)


def feeds(ax: "Axes", weight: Tensor, output: int, *, title: str = "") -> "Axes":
    """Draw a square for each number of a parameter; fill those of one output.

    An output has a row of squares, or of kernels, one for each input channel.
    """
    channels = weight.shape[1] if weight.dim() > 1 else 1
    height, width = weight.shape[2:] if weight.dim() > 2 else (1, 1)
    gap = 0.6 if weight.dim() > 2 else 0.0
    for row in range(len(weight)):
        for number in range(channels * height * width):
            channel, place = divmod(number, height * width)
            corner = (
                channel * (width + gap) + place % width,
                row * (height + gap) + place // width,
            )
            color = COLORS[1] if row == output else "white"
            ax.add_patch(Rectangle(corner, 1, 1, facecolor=color, edgecolor="0.4"))
    across, down = channels * (width + gap), len(weight) * (height + gap)
    ax.set_aspect("equal")
    ax.set_title(title, fontsize=11)
    ax.axis("off")
    ax.set(xlim=(-0.2, across - gap + 0.2), ylim=(down - gap + 0.2, -0.2))
    return ax


def growth(
    ax: "Axes", series: Mapping[str, Sequence[float]], *, xlabel: str, ylabel: str
) -> "Axes":
    """Draw `curves` of numbers that grow or shrink by factors, on a log axis."""
    curves(ax, series, xlabel=xlabel, ylabel=ylabel)
    ax.set_yscale("log")
    return ax


def fractions(
    ax: "Axes", series: Mapping[str, Sequence[float]], *, xlabel: str, ylabel: str
) -> "Axes":
    """Draw `curves` of numbers in [0, 1], with a tick at each step."""
    curves(ax, series, xlabel=xlabel, ylabel=ylabel)
    longest = max(map(len, series.values()))
    ax.set(ylim=(0, 1), xticks=range(1, longest + 1))
    return ax
