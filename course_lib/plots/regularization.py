"""Pictures of lesson 02."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from torch import Tensor

from course_lib.plots.common import COLORS, Series, curves, finish, lines, tiles


def histogram(ax: Axes, tensors: Mapping[str, Tensor], *, bins: int = 61) -> Axes:
    """Draw the histograms of several tensors over one common range, log counts."""
    flat = {name: t.detach().flatten().cpu().float() for name, t in tensors.items()}
    reach = max(float(values.abs().max()) for values in flat.values()) or 1.0
    edges = torch.linspace(-reach, reach, bins + 1)
    for i, (name, values) in enumerate(flat.items()):
        counts = torch.histogram(values, edges).hist
        style = {"color": COLORS[i % len(COLORS)], "linestyle": ("-", "--", ":")[i % 3]}
        ax.stairs(counts, edges, label=name, linewidth=1.8, **style)
    return finish(ax, yscale="log", xlabel="weight", ylabel="how many")


def valley(
    ax: Axes,
    side: Tensor,
    heights: Tensor,
    points: Mapping[str, Sequence[float]],
    *,
    title: str = "",
) -> Axes:
    """Draw contours of a function of two weights, and named points on them.

    `side` (n,) has the values of either weight and `heights` (n, n) those of the
    function, a row for each first weight. `points` are (first, second) by name.
    """
    ax.contour(side, side, heights.T, levels=14, colors="0.75", linewidths=1)
    ax.axhline(0, color="0.4", linewidth=1)
    ax.axvline(0, color="0.4", linewidth=1)
    for i, (name, (first, second)) in enumerate(points.items()):
        style = {"color": COLORS[(0, 5)[i % 2]], "marker": "o*"[i % 2]}
        style |= {"markersize": (8, 15)[i % 2], "linestyle": ""}
        ax.plot(first, second, label=name, **style)
    ax.set_title(title, fontsize=11, pad=26)
    place = {"loc": "lower center", "bbox_to_anchor": (0.5, 1), "ncols": 2}
    ax.legend(**place, frameon=False, columnspacing=1, handletextpad=0.2)
    labels = {"xlabel": "first weight", "ylabel": "second weight"}
    return finish(ax, legend=False, aspect="equal", **labels)


def histories(axes: Sequence[Axes], runs: Mapping[str, Any]) -> None:
    """Draw each training's History on an Axes; the last one has the legend."""
    for ax, (title, history) in zip(axes, runs.items(), strict=True):
        history.plot(ax)
        _name_panel(ax, title, is_last=ax is axes[-1])


def line_panels(
    axes: Sequence[Axes],
    across: Tensor,
    panels: Mapping[str, Mapping[str, Tensor]],
    *,
    xlabel: str,
    ylabel: str,
) -> None:
    """Draw lines as in `lines`, under a title on each Axes; the last has a legend."""
    for ax, (title, series) in zip(axes, panels.items(), strict=True):
        lines(ax, across, series, xlabel=xlabel, ylabel=ylabel)
        _name_panel(ax, title, is_last=ax is axes[-1])


def _name_panel(ax: Axes, title: str, *, is_last: bool) -> None:
    ax.set_title(title, fontsize=11)
    if not is_last:
        ax.get_legend().remove()
    if not ax.get_subplotspec().is_first_col():
        ax.set_ylabel("")


def curves_beside(ax: Axes, series: Series, *, xlabel: str, ylabel: str) -> Axes:
    """Draw curves as in `curves`, with the legend on their right."""
    curves(ax, series, xlabel=xlabel, ylabel=ylabel)
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


def hidden_units(
    axes: Sequence[Axes], weights: Mapping[str, Tensor], shape: tuple[int, int]
) -> None:
    """Draw each weight's units as images on an Axes, and histograms on the last one."""
    *above, last = axes
    for ax, (title, weight) in zip(above, weights.items(), strict=True):
        tiles(ax, weight, shape, reach=0.6)
        ax.set_title(title, fontsize=11)
    histogram(last, weights)
    last.set(xlim=(-1, 1), ylim=(0.7, 1100))
    if len(weights) == 1:  # its title says all
        last.get_legend().remove()
