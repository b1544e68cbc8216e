"""Texts in boxes, and arrows between them."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.text import Text

from course_lib.plots.common import COLORS


def owners(
    ax: Axes,
    layers: Sequence[str],
    prices: Mapping[str, int],
    *,
    wrong: Sequence[str] = (),
) -> Axes:
    """Draw a model's layers in a row, and from each price an arrow to its layer.

    `prices` maps the text of a coefficient to the position of the layer that it points
    at. Those in `wrong` point at a wrong layer and have another color.
    """
    boxes = [
        box(ax, (i + 0.5) / len(layers), 0.8, name, "0.4")
        for i, name in enumerate(layers)
    ]
    for i, (text, position) in enumerate(prices.items()):
        color = COLORS[5] if text in wrong else COLORS[0]
        price = box(ax, (i + 0.5) / len(prices), 0.15, text, color)
        arrow(ax, price, boxes[position], color)
    ax.set(xlim=(0, 1), ylim=(-0.1, 1))
    ax.axis("off")
    return ax


def connect(
    ax: Axes, lefts: Sequence[str], rights: Sequence[tuple[str, Sequence[int]]]
) -> Axes:
    """Draw boxes on the left and on the right, and arrows from left to right.

    Each right box comes with the positions of the left ones that lead to it, and has
    another color if there are several.
    """
    starts = [
        box(ax, 0.2, y, text, "0.4")
        for y, text in zip(heights(len(lefts)), lefts, strict=True)
    ]
    for y, (text, users) in zip(heights(len(rights)), rights, strict=True):
        color = COLORS[5] if len(users) > 1 else COLORS[0]
        end = box(ax, 0.8, y, text, color)
        for user in users:
            arrow(ax, starts[user], end, color)
    ax.set(xlim=(0, 1), ylim=(0, 1))
    ax.axis("off")
    return ax


def heights(count: int) -> list[float]:
    """Return equal distances from the top down, in [0, 1]."""
    return [1 - (i + 0.5) / count for i in range(count)]


def box(ax: Axes, x: float, y: float, text: str, color: str) -> Text:
    """Draw a text in a box with an edge of this color."""
    style = {"boxstyle": "round,pad=0.45", "facecolor": "white", "linewidth": 1.8}
    place = {"ha": "center", "va": "center", "family": "monospace", "fontsize": 11}
    style["edgecolor"] = color
    return ax.text(x, y, text, **place, parse_math=False, bbox=style)


def arrow(ax: Axes, start: Text, end: Text, color: str) -> None:
    """Draw an arrow between two boxes, from edge to edge."""
    style = {"arrowstyle": "->", "color": color, "linewidth": 1.5}
    boxes = {"patchA": start.get_bbox_patch(), "patchB": end.get_bbox_patch()}
    ends = {"xytext": start.get_position(), "xy": end.get_position()}
    ax.annotate("", **ends, arrowprops={**style, **boxes})
