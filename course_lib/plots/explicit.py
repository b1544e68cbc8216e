"""Pictures of lesson 06."""

from collections.abc import Mapping, Sequence

import torch
from matplotlib.axes import Axes
from torch import Tensor

from course_lib.plots.common import COLORS, images, lines

Rows = Sequence[tuple[str, Sequence[str]]]


def swings(ax: Axes, paths: Mapping[str, Tensor]) -> Axes:
    """Draw the way of w in [-1, 1] over the steps, with the legend above it."""
    steps = torch.arange(len(next(iter(paths.values()))))
    lines(ax, steps, paths, xlabel="step", ylabel="w")
    ax.set_ylim(-1.2, 2)
    return ax


def touched(ax: Axes, places: Sequence[str], groups: Mapping[str, Rows]) -> Axes:
    """Draw a table: a row for each line of code, a square where it changed a place.

    The columns are `places`. A group has its name above its rows; each row is (line of
    code, the places that it changed).
    """
    labels: list[str] = []
    for name, rows in groups.items():
        labels.append(rf"$\bf{{{name}}}$")
        for code, changed in rows:
            for x, place in enumerate(places):
                if place in changed:
                    style = {"marker": "s", "markersize": 15, "color": COLORS[5]}
                else:
                    style = {"marker": "o", "markersize": 3, "color": "0.75"}
                ax.plot(x, len(labels), **style)
            labels.append(code)
    ax.set_xticks(range(len(places)), places)
    ax.set_yticks(range(len(labels)), labels, family="monospace")
    ax.set(xlim=(-0.6, len(places) - 0.4), ylim=(len(labels) - 0.4, -0.6))
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return ax


def units(ax: Axes, rows: Mapping[str, Tensor]) -> Axes:
    """Draw a named row of squares for each vector: white for 0, the darker the more."""
    values = torch.stack([row.detach().cpu() for row in rows.values()])
    top = max(float(values.max()), 1e-12)
    mesh = {"cmap": "Blues", "vmin": 0, "vmax": 1.3 * top}
    ax.pcolormesh(values.numpy(), edgecolors="0.6", linewidth=0.8, **mesh)
    ax.set_yticks([i + 0.5 for i in range(len(rows))], list(rows))
    ax.set(xticks=[], ylim=(len(rows), 0), aspect="equal")
    ax.tick_params(length=0)
    return ax


def extremes(axes: Sequence[Axes], pixels: Tensor, values: Tensor) -> str:
    """Draw the images of the smallest values, then those of the largest, with titles.

    Half of the Axes are for either. Images are `(n, 1, height, width)`, in [0, 1], and
    values positive. Returns what one sees, in words.
    """
    order, half = values.argsort(), len(axes) // 2
    shown = torch.cat([order[:half], order[-half:]])
    titles = [f"{value:.0e}" if value < 0.1 else f"{value:.1f}" for value in values]
    images(axes, pixels[shown], [titles[i] for i in shown])
    power = int((values[order[-half]] / values[order[half - 1]]).log10())
    return (
        f"{half} images with the smallest values and {half} with the largest, which "
        f"are more than {10**power:,} times as large."
    )
