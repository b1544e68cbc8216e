"""Pictures that several lessons use: each function draws on a given Axes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from torch import Tensor

# Okabe and Ito's palette: distinct with every common form of color blindness.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")

Series = Mapping[str, Sequence[float]]  # numbers by name


def curves(ax: Axes, series: Series, *, xlabel: str, ylabel: str) -> Axes:
    """Draw one line for each named series over 1, 2, 3, ..., with a legend.

    Past 20 points few of them have a marker, and the first line is wide, so that it
    shows under a second one that covers it.
    """
    for i, (name, values) in enumerate(series.items()):
        steps = range(1, len(values) + 1)
        style = {"color": COLORS[i % len(COLORS)], "marker": "os^Dvx"[i % len(COLORS)]}
        (line,) = ax.plot(steps, values, label=name, markersize=4, **style)
        if len(values) > 20:
            line.set(markevery=len(values) // 10, linewidth=4 if i == 0 else 1.5)
    return finish(ax, xlabel=xlabel, ylabel=ylabel)


def lines(
    ax: Axes,
    across: Tensor,
    series: Mapping[str, Tensor],
    *,
    xlabel: str,
    ylabel: str,
    title: str = "",
) -> Axes:
    """Draw named lines over `across`, which differ in color and in dashes."""
    for i, (name, values) in enumerate(series.items()):
        style = {"color": line_color(i), "linestyle": ("-", "--", ":", "-.")[i % 4]}
        ax.plot(across, values.detach().cpu(), label=name, linewidth=2, **style)
    ax.set_title(title, fontsize=11)
    return finish(ax, xlabel=xlabel, ylabel=ylabel)


def races(
    ax: Axes, runs: Mapping[str, Mapping[float, float]], *, xlabel: str, ylabel: str
) -> Axes:
    """Draw runs with x-values of their own, {name: {x: y}}, on a logarithmic axis."""
    for i, (name, points) in enumerate(runs.items()):
        style = {"color": line_color(i), "marker": "os^D"[i % 4]}
        xs, ys = list(points), list(points.values())
        every = max(len(xs) // 10, 1)  # few markers on a long line
        ax.plot(xs, ys, label=name, markersize=4, markevery=every, **style)
    return finish(ax, xscale="log", xlabel=xlabel, ylabel=ylabel)


def bars(ax: Axes, lengths: Mapping[str, float], *, xlabel: str) -> Axes:
    """Draw a horizontal bar for each name, the first on top, from zero."""
    ax.barh(list(lengths), list(lengths.values()), color=COLORS[0], height=0.6)
    ax.invert_yaxis()
    return finish(ax, legend=False, xlabel=xlabel, xlim=(0, None))


def images(axes: Sequence[Axes], pixels: Tensor, titles: Sequence[str]) -> None:
    """Draw gray images `(n, 1, height, width)`, in [0, 1], one on each Axes."""
    for ax, image, title in zip(axes, pixels, titles, strict=True):
        ax.imshow(image[0].cpu().numpy(), cmap="gray_r", vmin=0, vmax=1)
        ax.set(xticks=[], yticks=[], title=title)


def heatmap(ax: Axes, matrix: Tensor, *, reach: float | None = None) -> Axes:
    """Draw a matrix in blue (negative), white (zero) and red (positive).

    `reach` is the magnitude of the full color; by default the largest |entry|. The
    map is for looking, so it has no ticks; put the meaning into the title.
    """
    matrix = matrix.detach().cpu().numpy()
    reach = reach or max(float(abs(matrix).max()), 1e-12)
    ax.imshow(matrix, cmap="RdBu_r", vmin=-reach, vmax=reach, interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    return ax


def tiles(
    ax: Axes,
    weight: Tensor,
    shape: tuple[int, int],
    *,
    columns: int = 8,
    reach: float | None = None,
) -> Axes:
    """Draw each row of `weight` (units, height * width) as a small heatmap.

    Colors as in `heatmap`; gray lines part the units.
    """
    height, width = shape
    rows = -(-len(weight) // columns)
    filled = weight.detach().cpu().new_zeros(rows * columns, height * width)
    filled[: len(weight)] = weight.detach().cpu()
    grid = filled.reshape(rows, columns, height, width).transpose(1, 2)
    heatmap(ax, grid.reshape(rows * height, columns * width), reach=reach)
    for i in range(1, rows):
        ax.axhline(i * height - 0.5, color="0.6", linewidth=1)
    for i in range(1, columns):
        ax.axvline(i * width - 0.5, color="0.6", linewidth=1)
    return ax


def descent(
    ax: Axes,
    height: Callable[[Tensor], Tensor],
    paths: Mapping[str, Tensor],
    *,
    xlim: tuple[float, float],
    ylim: tuple[float, float],
) -> Axes:
    """Draw contours of a function of two numbers, and paths that descend on it.

    `height` takes (n, m, 2) to (n, m). Equal shares of the area lie between two
    contours, so a flat valley shows as well as its walls. A path, (steps + 1, 2), ends
    in a star, and is cut where it is far outside of the picture.
    """
    across, up = torch.linspace(*xlim, 161), torch.linspace(*ylim, 121)
    grid = torch.stack(torch.meshgrid(across, up, indexing="xy"), dim=-1)
    heights = height(grid)  # (121, 161)
    levels = heights.flatten().quantile(torch.linspace(0, 1, 15)[1:-1]).unique()
    ax.contour(across, up, heights, levels=levels, colors="0.75", linewidths=1)
    for i, (name, path) in enumerate(paths.items()):
        near = path.detach().abs().amax(dim=1) < 100 * max(map(abs, (*xlim, *ylim)))
        path = path.detach()[: int(near.long().cumprod(0).sum())].cpu()
        style = {"color": line_color(i), "linewidth": 1.5}
        ax.plot(*path.T, marker="o", markersize=3, label=name, **style)
        ax.plot(*path[-1], marker="*", markersize=13, color=style["color"])
    labels = {"xlabel": "first weight", "ylabel": "second weight"}
    return finish(ax, legend=False, xlim=xlim, ylim=ylim, **labels)


def line_color(number: int) -> str:
    """Return one of the four colors that differ most."""
    return COLORS[(0, 5, 2, 1)[number % 4]]


def finish(ax: Axes, *, legend: bool = True, **settings: Any) -> Axes:
    """Set labels and limits, hide the upper and the right edge; return the Axes."""
    ax.set(**settings)
    ax.spines[["top", "right"]].set_visible(False)
    if legend:
        ax.legend(frameon=False)
    return ax
