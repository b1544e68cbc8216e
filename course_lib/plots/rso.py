"""The picture of lesson 08."""

from typing import TYPE_CHECKING

from torch import Tensor

from course_lib.plots.common import COLORS, finish

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def three(ax: "Axes", tries: Tensor, winner: int) -> "Axes":
    """Draw a weight pair as it was and its two candidates; a star marks the winner.

    `tries` (3, 2) are w, w + dw and w - dw; `winner` is 0, 1 or -1.
    """
    tries = tries.detach().cpu()
    ax.plot(*tries[1:].T, color="0.4", linewidth=1, zorder=2)
    style = {"linestyle": "", "marker": "o", "color": COLORS[0], "markersize": 9}
    ax.plot(*tries[:1].T, label="as it was", **style)
    ax.plot(*tries[1:].T, label="w + dw, w - dw", **style, markerfacecolor="white")
    star = {**style, "marker": "*", "color": COLORS[5], "markersize": 17}
    ax.plot(*tries[winner : winner + 1 or None].T, label="kept", **star)
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return finish(ax, legend=False)
