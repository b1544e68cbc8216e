"""Pictures of lesson 09."""

from collections.abc import Mapping, Sequence
from math import isnan

from matplotlib.axes import Axes

from course_lib.plots.common import COLORS, Series, bars, finish, races


def rates(
    ax: Axes,
    speeds: Mapping[str, float],
    *,
    xlabel: str,
    peak: float | None = None,
    title: str = "",
) -> Axes:
    """Draw speeds as bars with their numbers, and the machine's best as a line."""
    bars(ax, speeds, xlabel=xlabel)
    labels = [f"{n:,.0f}" if n >= 100 else f"{n:.3g}" for n in speeds.values()]
    ax.bar_label(ax.containers[-1], labels, padding=3)
    ax.set(xlim=(0, 1.2 * max(peak or 0, *speeds.values())), title=title)
    if peak is not None:
        ax.axvline(peak, color=COLORS[5], linestyle="--", linewidth=2)
        style = {"color": COLORS[5], "va": "bottom", "ha": "center"}
        ax.text(peak, 1, "peak", transform=ax.get_xaxis_transform(), **style)
    return ax


def gains(ax: Axes, factors: Series, *, kinds: Sequence[str], xlabel: str) -> Axes:
    """Draw two bars for each name, one a kind, with their numbers; NaN draws none."""
    looks = ({"color": COLORS[1], "hatch": "//"}, {"color": COLORS[0]})
    for kind, (name, look) in enumerate(zip(kinds, looks, strict=True)):
        found = {
            y: f[kind] for y, f in enumerate(factors.values()) if not isnan(f[kind])
        }
        places = [y + 0.4 * kind - 0.2 for y in found]
        drawn = ax.barh(places, list(found.values()), 0.38, label=name, **look)
        ax.bar_label(drawn, fmt="%.1f", padding=3)
    ax.set_yticks(range(len(factors)), list(factors))
    ax.invert_yaxis()
    ax.set_xlim(0, 1.15 * max(n for pair in factors.values() for n in pair if n == n))
    return finish(ax, xlabel=xlabel)


def channels(
    ax: Axes,
    layers: Mapping[str, Sequence[int]],
    *,
    kinds: Sequence[str],
    title: str = "",
    legend: bool = True,
) -> Axes:
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
    if legend:
        ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    ax.spines["left"].set_visible(False)
    limits = {"yticks": [], "xlim": (-0.5, len(layers) - 0.5)}
    return finish(ax, legend=False, title=title, **limits)


def sweeps(
    axes: Sequence[Axes], sizes: Mapping[str, int], *, swept: str
) -> Sequence[Axes]:
    """Draw what a visit computes in three ways, one on each Axes.

    In full, as the paper's loop does; without the layers before the swept one; and with
    one channel of the swept layer, which moves every channel of the next.

    Args:
        axes: three.
        sizes: the channels of each layer, in order.
        swept: the layer whose weight is tried.
    """
    at = list(sizes).index(swept)
    remembered, moves, in_full = range(3)
    columns = {
        "everything": [in_full] * len(sizes),
        "prefix kept": [remembered] * at + [in_full] * (len(sizes) - at),
        "one channel": [remembered] * at + [moves] * 2 + [in_full] * len(sizes),
    }
    names = ("remembered", "moves", "in full")
    for ax, (way, kinds) in zip(axes, columns.items(), strict=True):
        pairs = zip(sizes.items(), kinds, strict=False)
        layers = {name: [kind] * count for (name, count), kind in pairs}
        if way == "one channel":
            layers[swept][1:] = [remembered] * (sizes[swept] - 1)
        last = ax is axes[-1]
        channels(ax, layers, kinds=names, title=way, legend=last)
    return axes


def claims(
    ax: Axes,
    runs: Mapping[str, Mapping[int, float]],
    claimed: Mapping[int, float],
    *,
    ylim: tuple[float, float],
) -> Axes:
    """Draw measured runs, {name: {cycle: percent}}, and as stars what is claimed."""
    ax.plot(*zip(*claimed.items(), strict=True), "k*", markersize=12, label="claimed")
    races(ax, runs, xlabel="cycle", ylabel="test images right (%)")
    limits = {"xlim": (0, 1.04 * max(claimed)), "ylim": ylim}
    ax.legend(frameon=False, loc="lower right")
    return finish(ax, legend=False, xscale="linear", **limits)
