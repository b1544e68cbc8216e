"""The picture of lesson 01."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from course_lib.closures import captures
from course_lib.closures import cells as cells_of
from course_lib.plots.boxes import connect

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def cells(ax: "Axes", functions: Mapping[str, Callable[..., Any]]) -> "Axes":
    """Draw functions on the left, the cells they captured on the right, and arrows.

    A cell that several functions share is drawn once, in another color, with its
    current value. This is the picture of late binding: arrows that meet.
    """
    found: dict[int, tuple[str, list[int]]] = {}  # text and users of each cell
    for index, function in enumerate(functions.values()):
        values = captures(function)  # refuses what is not a Python function
        for name, cell in cells_of(function).items():
            text = f"{name} = {_short(values[name])}"
            found.setdefault(id(cell), (text, []))[1].append(index)
    connect(ax, [f"{name}()" for name in functions], list(found.values()))
    for x, words in ((0.2, "functions"), (0.8, "their cells now")):
        ax.text(x, -0.02, words, ha="center", va="top", color="0.4")
    return ax


def _short(value: object, length: int = 18) -> str:
    text = getattr(value, "__name__", None) or repr(value)
    return text if len(text) <= length else text[: length - 3] + "..."
