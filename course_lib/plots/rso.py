"""Pictures of lesson 08."""

from collections.abc import Callable, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import Tensor

from course_lib.plots.common import COLORS, Series, curves, descent, finish


def visit(
    ax: Axes,
    height: Callable[[Tensor], Tensor],
    tries: Sequence[Tensor],
    winners: Sequence[int],
    *,
    xlim: tuple[float, float] = (-2, 4.7),
    ylim: tuple[float, float] = (-2, 3),
    title: str = "",
) -> Axes:
    """Draw the last visit of a walk over two weights, on contours of `height`.

    For each visit `tries` has three points (3, 2), and `winners` the one that was kept:
    the number of its row, 0, 1 or -1. A star stands on what the last visit kept, two
    crosses on what it refused, small ones on what was refused before it. The legend
    says how high they are.
    """
    points = torch.stack(list(tries)).detach().cpu()  # (visits, 3, 2)
    lost = torch.ones(points.shape[:2], dtype=torch.bool)
    kept = torch.arange(len(points)), torch.tensor(winners)
    lost[kept] = False
    refused = points[lost].view(-1, 2, 2)
    descent(ax, height, {}, xlim=xlim, ylim=ylim)
    path = torch.cat([points[:1, 0], points[kept]])
    ax.plot(*path.T, color="0.3", linewidth=1.2, zorder=2, label="the walk")
    ax.plot(*points[-1, 1:].T, color="0.3", linewidth=1, linestyle=":", zorder=2)
    heights = [f"{h:.2f}" for h in height(torch.stack([path[-1], *refused[-1]]))]
    star = {"marker": "*", "color": COLORS[5], "markersize": 15, "zorder": 3}
    ax.plot(*path[-1], linestyle="", label=f"kept: {heights[0]}", **star)
    cross = {"marker": "x", "linestyle": ""}
    now = {**cross, "color": COLORS[0], "markersize": 9, "markeredgewidth": 2.5}
    ax.plot(*refused[-1].T, label=f"refused: {' and '.join(heights[1:])}", **now)
    before = {**cross, "color": "0.5", "markersize": 5, "zorder": 2}
    ax.plot(*refused[:-1].flatten(0, 1).T, label="refused before", **before)
    finish(ax, legend=False)
    ax.set_title(title, fontsize=11)
    ax.legend(loc="upper left", framealpha=0.9, edgecolor="none")
    return ax


def feeds(ax: Axes, weight: Tensor, output: int, *, title: str = "") -> Axes:
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


def growth(ax: Axes, series: Series, *, xlabel: str, ylabel: str) -> Axes:
    """Draw `curves` of numbers that grow or shrink by factors, on a log axis."""
    curves(ax, series, xlabel=xlabel, ylabel=ylabel)
    ax.set_yscale("log")
    return ax


def fractions(ax: Axes, series: Series, *, xlabel: str, ylabel: str) -> Axes:
    """Draw `curves` of numbers in [0, 1], with a tick at each step."""
    curves(ax, series, xlabel=xlabel, ylabel=ylabel)
    longest = max(map(len, series.values()))
    ax.set(ylim=(0, 1), xticks=range(1, longest + 1))
    return ax
