"""The pictures of lesson 01."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from course_lib.closures import captures
from course_lib.closures import cells as cells_of
from course_lib.plots.boxes import connect

Functions = Mapping[str, Callable[..., Any]] | Sequence[Callable[..., Any]]


def cells(ax: Axes, functions: Functions, *, name: str = "f", title: str = "") -> Axes:
    """Draw functions on the left, the cells they captured on the right, and arrows.

    In a list they are called f[0], f[1], ..., or by another name than f.

    A cell that several functions share is drawn once, in another color, with its
    current value. This is the picture of late binding: arrows that meet.
    """
    if not isinstance(functions, Mapping):
        functions = {f"{name}[{i}]": f for i, f in enumerate(functions)}
    found: dict[int, tuple[str, list[int]]] = {}  # text and users of each cell
    for index, function in enumerate(functions.values()):
        values = captures(function)  # refuses what is not a Python function
        for variable, cell in cells_of(function).items():
            text = f"{variable} = {_short(values[variable])}"
            found.setdefault(id(cell), (text, []))[1].append(index)
    connect(ax, [f"{called}()" for called in functions], list(found.values()))
    ax.set_title(title, fontsize=11)
    for x, words in ((0.2, "functions"), (0.8, "their cells now")):
        ax.text(x, -0.02, words, ha="center", va="top", color="0.4")
    return ax


def cells_beside(axes: Sequence[Axes], ways: Mapping[str, Functions]) -> None:
    """Draw the `cells` of lists of functions side by side.

    Each function is called, without arguments; the titles say what they return.
    """
    for ax, (way, functions) in zip(axes, ways.items(), strict=True):
        made = functions.values() if isinstance(functions, Mapping) else functions
        results = [function() for function in made]
        cells(ax, functions, title=f"{way}: they return {results}")


def _short(value: object, length: int = 18) -> str:
    text = getattr(value, "__name__", None) or repr(value)
    return text if len(text) <= length else text[: length - 3] + "..."
