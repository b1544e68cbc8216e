"""Pictures for the lessons: each function draws on a given Axes and returns it."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from course_lib import closures
from course_lib.closures import captures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Text

# Okabe and Ito's palette: told apart with every common form of color blindness.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")


def curves(
    ax: "Axes", series: Mapping[str, Sequence[float]], *, xlabel: str, ylabel: str
) -> "Axes":
    """Draw one line for each named series over 1, 2, 3, ..., with a legend.

    Past 20 points few of them have a marker, and the first line is wide, so that it
    shows under a second one that covers it.
    """
    markers = "os^Dvx"
    for i, (name, values) in enumerate(series.items()):
        steps = range(1, len(values) + 1)
        style = {"color": COLORS[i % len(COLORS)], "marker": markers[i % len(markers)]}
        (line,) = ax.plot(steps, values, label=name, markersize=4, **style)
        if len(values) > 20:
            line.set(markevery=len(values) // 10, linewidth=4 if i == 0 else 1.5)
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
    matrix = matrix.detach().cpu().numpy()
    reach = reach or max(float(abs(matrix).max()), 1e-12)
    ax.imshow(matrix, cmap="RdBu_r", vmin=-reach, vmax=reach, interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    return ax


def images(axes: Sequence["Axes"], pixels: Tensor, titles: Sequence[str]) -> None:
    """Draw gray images `(n, 1, height, width)`, in [0, 1], one on each Axes."""
    for ax, image, title in zip(axes, pixels, titles, strict=True):
        ax.imshow(image[0].cpu().numpy(), cmap="gray_r", vmin=0, vmax=1)
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
    for x, words in ((0.2, "functions"), (0.8, "their cells now")):
        ax.text(x, -0.02, words, ha="center", va="top", color="0.4")
    ax.axis("off")
    return ax


def _distinct_cells(
    functions: Mapping[str, Callable[..., Any]],
) -> list[tuple[str, str, list[int]]]:
    """Return (name, value as text, indices of the functions) for each distinct cell."""
    found: dict[int, tuple[str, str, list[int]]] = {}
    for index, function in enumerate(functions.values()):
        values = captures(function)  # refuses what is not a Python function
        for name, cell in closures.cells(function).items():
            text = _short(values[name])
            found.setdefault(id(cell), (name, text, []))[2].append(index)
    return list(found.values())


def _short(value: object, length: int = 18) -> str:
    text = getattr(value, "__name__", None) or repr(value)
    return text if len(text) <= length else text[: length - 3] + "..."


def _heights(count: int) -> list[float]:
    return [1 - (i + 0.5) / count for i in range(count)]


def _box(ax: "Axes", x: float, y: float, text: str, color: str) -> "Text":
    style = {"boxstyle": "round,pad=0.45", "facecolor": "white", "linewidth": 1.8}
    place = {"ha": "center", "va": "center", "family": "monospace", "fontsize": 11}
    style["edgecolor"] = color
    return ax.text(x, y, text, **place, parse_math=False, bbox=style)


def _arrow(ax: "Axes", start: "Text", end: "Text", color: str) -> None:
    """Draw an arrow between two boxes, from edge to edge."""
    style = {"arrowstyle": "->", "color": color, "linewidth": 1.5}
    boxes = {"patchA": start.get_bbox_patch(), "patchB": end.get_bbox_patch()}
    ends = {"xytext": start.get_position(), "xy": end.get_position()}
    ax.annotate("", **ends, arrowprops={**style, **boxes})


def _plain(ax: "Axes") -> "Axes":
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def owners(
    ax: "Axes",
    layers: Sequence[str],
    prices: Mapping[str, int],
    *,
    wrong: Sequence[str] = (),
) -> "Axes":
    """Draw a model's layers in a row, and from each price an arrow to its layer.

    Args:
        ax: where to draw.
        layers: what stands in each box, in the model's order.
        prices: text of a coefficient -> position of the layer that it points at.
        wrong: the prices that point at a wrong layer; drawn in another color.
    """
    across = [(i + 0.5) / len(layers) for i in range(len(layers))]
    placed = zip(across, layers, strict=True)
    boxes = [_box(ax, x, 0.8, name, "0.4") for x, name in placed]
    for i, (text, position) in enumerate(prices.items()):
        color = COLORS[5] if text in wrong else COLORS[0]
        price = _box(ax, (i + 0.5) / len(prices), 0.15, text, color)
        _arrow(ax, price, boxes[position], color)
    ax.set(xlim=(0, 1), ylim=(-0.1, 1))
    ax.axis("off")
    return ax


def tiles(
    ax: "Axes",
    weight: Tensor,
    shape: tuple[int, int],
    *,
    columns: int = 8,
    reach: float | None = None,
) -> "Axes":
    """Draw each row of `weight` (units, height * width) as a small heatmap.

    Colors as in `heatmap`; gray lines part the units.
    """
    height, width = shape
    rows = -(-len(weight) // columns)
    filled = weight.detach().cpu().new_zeros(rows * columns, height * width)
    filled[: len(weight)] = weight.detach().cpu()
    grid = filled.reshape(rows, columns, height, width).transpose(1, 2)
    heatmap(ax, grid.reshape(rows * height, columns * width), reach=reach)
    for i in range(1, rows):
        ax.axhline(i * height - 0.5, color="0.6", linewidth=1)
    for i in range(1, columns):
        ax.axvline(i * width - 0.5, color="0.6", linewidth=1)
    return ax


def valley(
    ax: "Axes",
    side: Tensor,
    heights: Tensor,
    points: Mapping[str, Sequence[float]],
    *,
    title: str = "",
) -> "Axes":
    """Draw contours of a function of two weights, and named points on them.

    Args:
        ax: where to draw.
        side: the values of either weight, shape (n,).
        heights: the function, shape (n, n): row = first weight, column = second.
        points: name -> (first weight, second weight).
        title: what stands above the names of the points.
    """
    ax.contour(side, side, heights.T, levels=14, colors="0.75", linewidths=1)
    ax.axhline(0, color="0.4", linewidth=1)
    ax.axvline(0, color="0.4", linewidth=1)
    for i, (name, (first, second)) in enumerate(points.items()):
        style = {"color": COLORS[(0, 5)[i % 2]], "marker": "o*"[i % 2]}
        ax.plot(first, second, linestyle="", markersize=(8, 15)[i % 2], label=name)
        ax.lines[-1].set(**style)
    ax.set(xlabel="first weight", ylabel="second weight", aspect="equal")
    ax.set_title(title, fontsize=11, pad=26)
    place = {"loc": "lower center", "bbox_to_anchor": (0.5, 1), "ncols": 2}
    ax.legend(**place, frameon=False, columnspacing=1, handletextpad=0.2)
    return _plain(ax)


def lines(
    ax: "Axes",
    across: Tensor,
    series: Mapping[str, Tensor],
    *,
    xlabel: str,
    ylabel: str,
    title: str = "",
) -> "Axes":
    """Draw named lines over `across`, told apart by color and by dashes."""
    dashes = ("-", "--", ":", "-.")
    for i, (name, values) in enumerate(series.items()):
        style = {"color": COLORS[(0, 5, 2, 1)[i % 4]], "linestyle": dashes[i % 4]}
        ax.plot(across, values.detach().cpu(), label=name, linewidth=2, **style)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.set_title(title, fontsize=11)
    ax.legend(frameon=False)
    return _plain(ax)


def bars(ax: "Axes", lengths: Mapping[str, float], *, xlabel: str) -> "Axes":
    """Draw a horizontal bar for each name, the first on top, from zero."""
    ax.barh(list(lengths), list(lengths.values()), color=COLORS[0], height=0.6)
    ax.invert_yaxis()
    ax.set(xlabel=xlabel, xlim=(0, None))
    return _plain(ax)


def touched(
    ax: "Axes", places: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]
) -> "Axes":
    """Draw a table: a row for each line of code, a square where it changed a place.

    Args:
        ax: where to draw.
        places: the columns' names.
        rows: (line of code, the places that it changed), from the top.
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


def descent(
    ax: "Axes",
    height: Callable[[Tensor], Tensor],
    paths: Mapping[str, Tensor],
    *,
    xlim: tuple[float, float],
    ylim: tuple[float, float],
) -> "Axes":
    """Draw contours of a function of two numbers, and paths that descend on it.

    Equal shares of the area lie between two contours, so a flat valley shows as well
    as its walls. A path ends in a star, and is cut where it has left the
    picture by far.

    Args:
        ax: where to draw.
        height: (n, m, 2) -> (n, m).
        paths: name -> points, shape (steps + 1, 2).
        xlim: the first number's range.
        ylim: the second's.
    """
    across, up = torch.linspace(*xlim, 161), torch.linspace(*ylim, 121)
    grid = torch.stack(torch.meshgrid(across, up, indexing="xy"), dim=-1)
    heights = height(grid)  # (121, 161)
    levels = heights.flatten().quantile(torch.linspace(0, 1, 15)[1:-1]).unique()
    ax.contour(across, up, heights, levels=levels, colors="0.75", linewidths=1)
    for i, (name, path) in enumerate(paths.items()):
        near = path.detach().abs().amax(dim=1) < 100 * max(map(abs, (*xlim, *ylim)))
        path = path.detach()[: int(near.long().cumprod(0).sum())].cpu()
        style = {"color": COLORS[(0, 5, 2, 1)[i % 4]], "linewidth": 1.5}
        ax.plot(*path.T, marker="o", markersize=3, label=name, **style)
        ax.plot(*path[-1], marker="*", markersize=13, color=style["color"])
    ax.set(xlim=xlim, ylim=ylim, xlabel="first weight", ylabel="second weight")
    return _plain(ax)


def arrows(
    ax: "Axes",
    after: Mapping[str, Tensor],
    *,
    before: Mapping[str, Tensor],
    title: str = "",
) -> "Axes":
    """Draw named vectors of two numbers from the origin, and pale what they were."""
    for i, (name, was) in enumerate(before.items()):
        color = COLORS[(0, 5, 2, 1)[i % 4]]
        for tip, style in ((was, {"alpha": 0.3}), (after[name], {})):
            look = {"arrowstyle": "-|>", "color": color, "linewidth": 2.5, **style}
            look |= {"shrinkA": 0, "shrinkB": 0, "mutation_scale": 14}
            ax.annotate("", xy=tip.tolist(), xytext=(0, 0), arrowprops=look)
        ax.annotate(name, was.tolist(), xytext=(4, 4), textcoords="offset points")
    x, y = torch.stack([*before.values(), *after.values()]).T
    ax.set(xlim=_with_zero(x), ylim=_with_zero(y), aspect="equal")
    ax.set_title(title, fontsize=11)
    return _plain(ax)


def _with_zero(values: Tensor) -> tuple[float, float]:
    """Return limits that hold the values and 0, with a margin."""
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    margin = 0.12 * (high - low or 1.0)
    return low - margin * (low < 0), high + margin


def flow(ax: "Axes", rows: Mapping[str, Sequence[str]]) -> "Axes":
    """Draw each row as values and what is done to them: a value, a step, a value, ...

    The first and every second text after it is a value, in a box; those between stand
    over the arrows.
    """
    for y, (name, texts) in zip(_heights(len(rows)), rows.items(), strict=True):
        count = len(texts)
        values = [
            _box(ax, (i + 0.5) / count, y, text, COLORS[0])
            for i, text in enumerate(texts)
            if i % 2 == 0
        ]
        for i, (start, end) in enumerate(pairwise(values)):
            _arrow(ax, start, end, "0.4")
            across = (2 * i + 1.5) / count
            ax.text(across, y + 0.11, texts[2 * i + 1], ha="center", fontsize=10)
        ax.text(0, y + 0.21, name, color="0.4")
    ax.set(xlim=(0, 1), ylim=(0, 1))
    ax.axis("off")
    return ax


def mosaic(ax: "Axes", pixels: Tensor, *, columns: int = 8, title: str = "") -> "Axes":
    """Draw images `(n, channels, height, width)`, in [0, 1], as one picture.

    They fill row after row, two empty pixels between them. One channel is drawn with
    ink dark, three are drawn in color.
    """
    count, channels, height, width = pixels.shape
    rows = -(-count // columns)
    filled = torch.zeros(rows * columns, channels, height + 2, width + 2)
    filled[:count, :, :-2, :-2] = pixels.detach().cpu()
    grid = filled.reshape(rows, columns, *filled.shape[1:]).permute(0, 3, 1, 4, 2)
    picture = grid.reshape(rows * (height + 2), columns * (width + 2), channels)
    style = {"cmap": "gray_r", "vmin": 0, "vmax": 1, "interpolation": "nearest"}
    ax.imshow(picture[:-2, :-2].squeeze(2).numpy(), **style)
    ax.set(xticks=[], yticks=[])
    ax.set_title(title, fontsize=11)
    return ax


def three(ax: "Axes", tries: Tensor, winner: int) -> "Axes":
    """Draw a weight pair as it was and its two candidates; a star marks the winner.

    Args:
        ax: where to draw.
        tries: kept, at + dw and at - dw, shape (3, 2).
        winner: which was kept: 0, 1 or -1.
    """
    tries = tries.detach().cpu()
    ax.plot(*tries[1:].T, color="0.4", linewidth=1, zorder=2)
    style = {"linestyle": "", "marker": "o", "color": COLORS[0], "markersize": 9}
    ax.plot(*tries[:1].T, label="as it was", **style)
    ax.plot(*tries[1:].T, label="w + dw, w - dw", **style, markerfacecolor="white")
    star = {**style, "marker": "*", "color": COLORS[5], "markersize": 17}
    ax.plot(*tries[winner : winner + 1 or None].T, label="kept", **star)
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return _plain(ax)


def races(
    ax: "Axes", runs: Mapping[str, Mapping[float, float]], *, xlabel: str, ylabel: str
) -> "Axes":
    """Draw runs with x-values of their own, {name: {x: y}}, on a logarithmic axis."""
    for i, (name, points) in enumerate(runs.items()):
        style = {"color": COLORS[(0, 5, 2, 1)[i % 4]], "marker": "os^D"[i % 4]}
        xs, ys = list(points), list(points.values())
        every = max(len(xs) // 10, 1)  # few markers on a long line
        ax.plot(xs, ys, label=name, markersize=4, markevery=every, **style)
    ax.set(xscale="log", xlabel=xlabel, ylabel=ylabel)
    ax.legend(frameon=False)
    return _plain(ax)


def sharing(ax: "Axes", places: Mapping[str, Tensor]) -> "Axes":
    """Draw the places of a model on the left, their tensors on the right, and arrows.

    A tensor that stands at several places is drawn once, in another color.
    """
    users: dict[int, list[str]] = {}
    for name, tensor in places.items():
        users.setdefault(id(tensor), []).append(name)
    lefts = {
        name: _box(ax, 0.2, y, name, "0.4")
        for y, name in zip(_heights(len(places)), places, strict=True)
    }
    for y, names in zip(_heights(len(users)), users.values(), strict=True):
        color = COLORS[5] if len(names) > 1 else COLORS[0]
        shape = " x ".join(map(str, places[names[0]].shape))
        tensor = _box(ax, 0.8, y, shape, color)
        for name in names:
            _arrow(ax, lefts[name], tensor, color)
    ax.set(xlim=(0, 1), ylim=(0, 1))
    ax.axis("off")
    return ax


def spread(ax: "Axes", groups: Mapping[str, Sequence[float]], *, xlabel: str) -> "Axes":
    """Draw each group's numbers as dots in a row of its own, and their mean as a bar.

    The first group is on top. Dots are pale, so that equal ones show.
    """
    for i, (name, numbers) in enumerate(groups.items()):
        color = COLORS[(0, 5, 2, 1)[i % 4]]
        dots = {"color": color, "alpha": 0.5, "markersize": 9, "label": name}
        ax.plot(numbers, [i] * len(numbers), linestyle="", marker="o", **dots)
        mean = sum(numbers) / len(numbers)
        ax.plot([mean, mean], [i - 0.3, i + 0.3], color=color, linewidth=3)
    ax.set_yticks(range(len(groups)), list(groups))
    ax.set(xlabel=xlabel, ylim=(len(groups) - 0.5, -0.5))
    return _plain(ax)


def strips(
    ax: "Axes", rows: Mapping[str, Sequence[str]], groups: Mapping[str, int]
) -> "Axes":
    """Draw each row of texts as squares side by side, its name on the left.

    Args:
        ax: where to draw.
        rows: name -> what stands in the squares.
        groups: text -> number of its color; a text without one stays white.
    """
    for y, texts in enumerate(rows.values()):
        for x, text in enumerate(texts):
            color = COLORS[groups[text] % len(COLORS)] if text in groups else None
            _square(ax, x, y, text, color)
    ax.set_yticks(range(len(rows)), list(rows))
    width = max(map(len, rows.values()))
    ax.set(xlim=(-0.6, width - 0.4), ylim=(len(rows) - 0.4, -0.6), xticks=[])
    return _bare(ax)


def windows(
    ax: "Axes",
    numbers: int,
    kernel: int,
    stride: int,
    pads: Mapping[str, Sequence[int]],
) -> "Axes":
    """Draw where a kernel looks along 1, 2, ..., `numbers`, padded with zeros.

    Args:
        ax: where to draw.
        numbers: how many there are before padding.
        kernel: numbers in a window.
        stride: from one window to the next.
        pads: name -> (zeros before, zeros after), a row for each.
    """
    for y, (before, after) in enumerate(pads.values()):
        for x in range(-before, numbers + after):
            inside = 0 <= x < numbers
            _square(ax, x, 2 * y, str(x + 1) if inside else "0", None, faint=not inside)
        starts = range(-before, numbers + after - kernel + 1, stride)
        for i, start in enumerate(starts):
            low = 2 * y + 0.62 + 0.14 * (i % 3)  # neighbors must not cover each other
            ends = (start - 0.4, start + kernel - 0.6)
            ax.plot(ends, (low, low), color=COLORS[(0, 5, 2)[i % 3]], linewidth=3)
    ax.set_yticks(range(0, 2 * len(pads), 2), list(pads))
    left = max(before for before, _ in pads.values())
    right = max(after for _, after in pads.values())
    ax.set(xlim=(-left - 0.6, numbers + right - 0.4), xticks=[])
    ax.set_ylim(2 * len(pads) - 0.8, -0.6)
    return _bare(ax)


def _square(
    ax: "Axes", x: float, y: float, text: str, color: str | None, *, faint: bool = False
) -> None:
    style = {"facecolor": (color, 0.35) if color else "white"}
    style["edgecolor"], ink = ("0.75", "0.6") if faint else ("0.3", "black")
    across, down = (-0.46, 0.46, 0.46, -0.46), (-0.46, -0.46, 0.46, 0.46)
    ax.fill([x + step for step in across], [y + step for step in down], **style)
    ax.text(x, y, text, ha="center", va="center", color=ink, parse_math=False)


def _bare(ax: "Axes") -> "Axes":
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_aspect("equal")
    return ax


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

    Args:
        ax: where to draw.
        layers: name -> the kind of each channel, as a position in `kinds`.
        kinds: their names, at most three; the first is drawn empty.
    """
    looks = (("white", "o"), (COLORS[1], "D"), (COLORS[0], "s"))
    for kind, (name, (color, marker)) in enumerate(zip(kinds, looks, strict=False)):
        places = [
            (x, len(column) / 2 - y)
            for x, column in enumerate(layers.values())
            for y, own in enumerate(column)
            if own == kind
        ]
        style = {"linestyle": "", "markeredgecolor": "0.4", "markersize": 7}
        ax.plot(
            *zip(*places or [(None, None)], strict=True),
            marker,
            label=name,
            color=color,
            **style,
        )
    ax.set_xticks(range(len(layers)), list(layers))
    ax.set(yticks=[], xlim=(-0.5, len(layers) - 0.5))
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    ax.spines["left"].set_visible(False)
    return _plain(ax)
