"""The picture of lesson 06."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from course_lib.plots.common import COLORS

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def touched(
    ax: "Axes", places: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]
) -> "Axes":
    """Draw a table: a row for each line of code, a square where it changed a place.

    The columns are `places`; each row is (line of code, the places that it changed).
    """
    for y, (_, changed) in enumerate(rows):
        for x, place in enumerate(places):
            if place in changed:
                ax.plot(x, y, marker="s", markersize=15, color=COLORS[5])
            else:
                ax.plot(x, y, marker="o", markersize=3, color="0.75")
    ax.set_xticks(range(len(places)), places)
    ax.set_yticks(range(len(rows)), [code for code, _ in rows], family="monospace")
    ax.set(xlim=(-0.6, len(places) - 0.4), ylim=(len(rows) - 0.4, -0.6))
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return ax
