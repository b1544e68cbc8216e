"""The picture of lesson 00."""

from matplotlib.axes import Axes

from course_lib.plots.common import Series, curves


def losses(ax: Axes, series: Series, *, title: str = "") -> Axes:
    """Draw losses over the epochs on a scale from 0 to 3.2, so that runs compare.

    A loss above the scale leaves the picture at its top.
    """
    curves(ax, series, xlabel="epoch", ylabel="loss")
    ax.set_ylim(0, 3.2)
    ax.set_title(title, fontsize=11)
    return ax
