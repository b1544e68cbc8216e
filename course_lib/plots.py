"""Pictures for the lessons: each function draws on a given Axes and returns it."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from course_lib.closures import captures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Text

# Okabe and Ito's palette: told apart with every common form of color blindness.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")


def curves(
    ax: "Axes", series: Mapping[str, Sequence[float]], *, xlabel: str, ylabel: str
) -> "Axes":
    """Draw one line for each named series over 1, 2, 3, ...; name it at its end."""
    markers = "os^Dvx"
    for i, (name, values) in enumerate(series.items()):
        steps = range(1, len(values) + 1)
        style = {"color": COLORS[i % len(COLORS)], "marker": markers[i % len(markers)]}
        ax.plot(steps, values, label=name, markersize=4, **style)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.legend(frameon=False)
    return _plain(ax)


def histogram(ax: "Axes", tensors: Mapping[str, Tensor], *, bins: int = 61) -> "Axes":
    """Draw the histograms of several tensors over one common range, log counts."""
    flat = {name: t.detach().flatten().cpu().float() for name, t in tensors.items()}
    reach = max(float(values.abs().max()) for values in flat.values()) or 1.0
    edges = torch.linspace(-reach, reach, bins + 1)
    for i, (name, values) in enumerate(flat.items()):
        counts = torch.histogram(values, edges).hist
        ax.stairs(
            counts,
            edges,
            label=name,
            color=COLORS[i % len(COLORS)],
            linewidth=1.8,
            linestyle=("-", "--", ":")[i % 3],
        )
    ax.set(yscale="log", xlabel="weight", ylabel="how many")
    ax.legend(frameon=False)
    return _plain(ax)


def heatmap(ax: "Axes", matrix: Tensor, *, reach: float | None = None) -> "Axes":
    """Draw a matrix in blue (negative), white (zero) and red (positive).

    `reach` is the magnitude of the full color; by default the largest |entry|. The
    map is for looking, so it has no ticks; put the meaning into the title.
    """
    matrix = matrix.detach().cpu()
    reach = reach or max(float(matrix.abs().max()), 1e-12)
    ax.imshow(matrix, cmap="RdBu_r", vmin=-reach, vmax=reach, interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    return ax


def images(axes: Sequence["Axes"], pixels: Tensor, titles: Sequence[str]) -> None:
    """Draw gray images `(n, 1, height, width)`, in [0, 1], one on each Axes."""
    for ax, image, title in zip(axes, pixels, titles, strict=True):
        ax.imshow(image[0].cpu(), cmap="gray_r", vmin=0, vmax=1)
        ax.set(xticks=[], yticks=[], title=title)


def cells(ax: "Axes", functions: Mapping[str, Callable[..., Any]]) -> "Axes":
    """Draw functions on the left, the cells they captured on the right, and arrows.

    A cell that several functions share is drawn once, in another color; its value is
    the value of now. This is the picture of late binding: arrows that meet.
    """
    found = _distinct_cells(functions)
    lefts = [
        _box(ax, 0.2, y, f"{name}()", "0.4")
        for y, name in zip(_heights(len(functions)), functions, strict=True)
    ]
    for y, (name, text, users) in zip(_heights(len(found)), found, strict=True):
        color = COLORS[5] if len(users) > 1 else COLORS[0]
        cell = _box(ax, 0.8, y, f"{name} = {text}", color)
        for user in users:
            _arrow(ax, lefts[user], cell, color)
    ax.set(xlim=(0, 1), ylim=(0, 1))
    ax.text(0.2, 1.02, "functions", ha="center")
    ax.text(0.8, 1.02, "their cells now", ha="center")
    ax.axis("off")
    return ax


def _distinct_cells(
    functions: Mapping[str, Callable[..., Any]],
) -> list[tuple[str, str, list[int]]]:
    """Return (name, value as text, indices of the functions) for each distinct cell."""
    found: dict[int, tuple[str, str, list[int]]] = {}
    for index, function in enumerate(functions.values()):
        values = captures(function)  # refuses what is not a Python function
        cells = function.__closure__ or ()
        for cell, (name, value) in zip(cells, values.items(), strict=True):
            found.setdefault(id(cell), (name, _short(value), []))[2].append(index)
    return list(found.values())


def _short(value: object, length: int = 18) -> str:
    text = getattr(value, "__name__", None) or repr(value)
    return text if len(text) <= length else text[: length - 3] + "..."


def _heights(count: int) -> list[float]:
    return [1 - (i + 0.5) / count for i in range(count)]


def _box(ax: "Axes", x: float, y: float, text: str, color: str) -> "Text":
    style = {"boxstyle": "round,pad=0.45", "facecolor": "white", "linewidth": 1.8}
    place = {"ha": "center", "va": "center", "family": "monospace", "fontsize": 11}
    return ax.text(x, y, text, **place, bbox={**style, "edgecolor": color})


def _arrow(ax: "Axes", start: "Text", end: "Text", color: str) -> None:
    """Draw an arrow between two boxes, from edge to edge."""
    style = {"arrowstyle": "->", "color": color, "linewidth": 1.5}
    boxes = {"patchA": start.get_bbox_patch(), "patchB": end.get_bbox_patch()}
    ends = {"xytext": start.get_position(), "xy": end.get_position()}
    ax.annotate("", **ends, arrowprops={**style, **boxes})


def _plain(ax: "Axes") -> "Axes":
    ax.spines[["top", "right"]].set_visible(False)
    return ax
