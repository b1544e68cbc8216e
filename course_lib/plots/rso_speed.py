"""Pictures of lesson 09."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from course_lib.plots.common import COLORS, bars, finish

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def rates(
    ax: "Axes", speeds: Mapping[str, float], *, xlabel: str, peak: float | None = None
) -> "Axes":
    """Draw measured speeds as bars, and as a line the best that the machine does."""
    bars(ax, speeds, xlabel=xlabel)
    if peak is not None:
        ax.axvline(peak, color=COLORS[5], linestyle="--", linewidth=2)
        ax.set(xlim=(0, 1.1 * max(peak, *speeds.values())))
        style = {"color": COLORS[5], "va": "bottom", "ha": "center"}
        ax.text(peak, 1, "peak", transform=ax.get_xaxis_transform(), **style)
    return ax


def channels(
    ax: "Axes", layers: Mapping[str, Sequence[int]], *, kinds: Sequence[str]
) -> "Axes":
    """Draw each layer as a column of channels, colored by their kind.

    `layers` has the kind of each channel, as a position in `kinds`, which are at most
    three names; the first is drawn empty.
    """
    looks = (("white", "o"), (COLORS[1], "D"), (COLORS[0], "s"))
    for kind, (name, (color, marker)) in enumerate(zip(kinds, looks, strict=False)):
        places = [
            (x, len(column) / 2 - y)
            for x, column in enumerate(layers.values())
            for y, own in enumerate(column)
            if own == kind
        ]
        xs, ys = zip(*places or [(None, None)], strict=True)
        style = {"linestyle": "", "markeredgecolor": "0.4", "markersize": 7}
        ax.plot(xs, ys, marker, label=name, color=color, **style)
    ax.set_xticks(range(len(layers)), list(layers))
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    ax.spines["left"].set_visible(False)
    return finish(ax, legend=False, yticks=[], xlim=(-0.5, len(layers) - 0.5))
