"""Pictures for the lessons: each function draws on a given Axes and returns it."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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
    flat = {name: tensor.detach().flatten().cpu() for name, tensor in tensors.items()}
    reach = max(float(values.abs().max()) for values in flat.values())
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
    """Draw gray images `(n, 1, height, width)` of pixels in [0, 1], one on each Axes."""
    for ax, image, title in zip(axes, pixels, titles, strict=True):
        ax.imshow(image[0].cpu(), cmap="gray_r", vmin=0, vmax=1)
        ax.set(xticks=[], yticks=[], title=title)


def cells(ax: "Axes", functions: Mapping[str, Callable[..., Any]]) -> "Axes":
    """Draw functions on the left, the cells they captured on the right, and arrows.

    A cell that several functions share is drawn once, in another color; its value is
    the value of now. This is the picture of late binding: arrows that meet.
    """
    boxes = _distinct_cells(functions)
    left, right = _heights(len(functions)), _heights(len(boxes))
    for y, name in zip(left, functions, strict=True):
        _box(ax, 0.2, y, f"{name}()", "#EEEEEE")
    for y, (name, text, users) in zip(right, boxes, strict=True):
        color = COLORS[5] if len(users) > 1 else COLORS[0]
        _box(ax, 0.8, y, f"{name} = {text}", "white", edge=color)
        for user in users:
            ends = {"xy": (0.63, y), "xytext": (0.34, left[user])}
            ax.annotate("", **ends, arrowprops={"arrowstyle": "->", "color": color})
    ax.set(xlim=(0, 1), ylim=(0, 1))
    ax.set_title("functions               their cells now", fontsize=11)
    ax.axis("off")
    return ax


def _distinct_cells(
    functions: Mapping[str, Callable[..., Any]],
) -> list[tuple[str, str, list[int]]]:
    """Return (name, value as text, indices of the functions) for each distinct cell."""
    found: dict[int, tuple[str, str, list[int]]] = {}
    for index, function in enumerate(functions.values()):
        names = function.__code__.co_freevars
        for name, cell in zip(names, function.__closure__ or (), strict=True):
            try:
                text = _short(cell.cell_contents)
            except ValueError:
                text = "<unset>"
            found.setdefault(id(cell), (name, text, []))[2].append(index)
    return list(found.values())


def _short(value: object, length: int = 18) -> str:
    text = getattr(value, "__name__", None) or repr(value)
    return text if len(text) <= length else text[: length - 3] + "..."


def _heights(count: int) -> list[float]:
    return [1 - (i + 0.5) / count for i in range(count)]


def _box(
    ax: "Axes", x: float, y: float, text: str, color: str, *, edge: str = "0.4"
) -> None:
    style = {"boxstyle": "round,pad=0.45", "facecolor": color, "edgecolor": edge}
    place = {"ha": "center", "va": "center", "family": "monospace", "fontsize": 11}
    ax.text(x, y, text, **place, bbox={**style, "linewidth": 1.8})


def _plain(ax: "Axes") -> "Axes":
    ax.spines[["top", "right"]].set_visible(False)
    return ax
