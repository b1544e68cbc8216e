"""Pictures of lesson 05."""

from collections.abc import Callable, Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import Tensor

from course_lib.plots.common import Series, finish, line_color


def mosaic(
    ax: Axes,
    pixels: Tensor,
    *,
    columns: int = 8,
    title: str = "",
    framed: Sequence[bool] = (),
) -> Axes:
    """Draw images `(n, channels, height, width)`, in [0, 1], as one picture.

    They fill row after row, two empty pixels between them. One channel is drawn with
    ink dark, three are drawn in color. Where `framed` is true an image gets a frame.
    """
    count, channels, height, width = pixels.shape
    rows = -(-count // columns)
    filled = torch.zeros(rows * columns, channels, height + 2, width + 2)
    filled[:count, :, :-2, :-2] = pixels.detach().cpu()
    grid = filled.reshape(rows, columns, *filled.shape[1:]).permute(0, 3, 1, 4, 2)
    picture = grid.reshape(rows * (height + 2), columns * (width + 2), channels)
    style = {"cmap": "gray_r", "vmin": 0, "vmax": 1, "interpolation": "nearest"}
    ax.imshow(picture[:-2, :-2].squeeze(2).numpy(), **style)
    for i in range(len(framed)):
        if framed[i]:
            corner = i % columns * (width + 2) - 1.2, i // columns * (height + 2) - 1.2
            style = {"edgecolor": line_color(1), "fill": False, "clip_on": False}
            ax.add_patch(Rectangle(corner, width + 1.4, height + 1.4, lw=2, **style))
    ax.set(xticks=[], yticks=[])
    ax.set_title(title, fontsize=11)
    return ax


def shelves(ax: Axes, rows: Mapping[str, Tensor], *, columns: int = 16) -> Axes:
    """Draw a row of images `(n, 1, height, width)` for each name.

    Rows have `columns` places, or as many as the longest needs; a place without an
    image is white.
    """
    height, width = next(iter(rows.values())).shape[2:]
    columns = max(columns, *map(len, rows.values()))
    shown = torch.zeros(len(rows), columns, 1, height, width)
    for row, images in zip(shown, rows.values(), strict=True):
        row[: len(images)] = images.detach().cpu()
    mosaic(ax, shown.flatten(0, 1), columns=columns)
    middles = [(height + 2) * i + (height - 1) / 2 for i in range(len(rows))]
    ax.set_yticks(middles, list(rows))
    return ax


def turning(
    ax: Axes,
    height: Callable[[Tensor], Tensor],
    directions: Sequence[Tensor],
    *,
    reach: float,
) -> Axes:
    """Draw contours of a function of two numbers, and directions from the middle.

    `height` takes (n, 2) to (n,), and is drawn for both numbers from -reach to reach.
    Each direction has length 1; the arrows are numbered, the first one dashed.
    """
    across = torch.linspace(-reach, reach, 81)
    grid = torch.cartesian_prod(across, across)
    heights = height(grid).detach().reshape(81, 81).T  # rows are the second number
    ax.contour(across, across, heights, levels=12, colors="0.75", linewidths=1)
    for i, direction in enumerate(directions):
        tip = (0.8 * reach * direction.detach()).tolist()
        color, dashes = line_color(min(i, 1)), "--" if i == 0 else "-"
        style = {"color": color, "linestyle": dashes, "arrowstyle": "->", "lw": 2}
        ax.annotate("", tip, (0, 0), arrowprops=style | {"shrinkA": 0, "shrinkB": 0})
        ax.annotate(str(i), [1.12 * t for t in tip], color=color, ha="center")
    return finish(
        ax, legend=False, aspect="equal", xlabel="first input", ylabel="second"
    )


def errors(ax: Axes, history: Series) -> Axes:
    """Draw the columns real and generated over the column step, on a log axis.

    `history` is a BEGAN run's: `history["real"]` is a list of numbers.
    """
    for i, (name, label) in enumerate((("real", "L_real"), ("generated", "L_gen"))):
        style = {"color": line_color(i), "linestyle": ("-", "--")[i], "linewidth": 2}
        ax.plot(history["step"], history[name], label=label, **style)
    return finish(ax, xlabel="step", ylabel="error of a pixel", yscale="log")


def balance(
    axes: Sequence[Axes],
    images: Tensor,
    history: Series,
    step: int,
    *,
    gamma: float,
) -> Sequence[Axes]:
    """Draw a BEGAN run after `step` steps: its images, its errors, its k.

    `history` is the whole run's, with a record for each step, from 1 on: the axes have
    room for all of it, so pictures of one run can be laid over each other. The axis of
    the steps is logarithmic. Where L_gen is below gamma * L_real, k rises.
    """
    mosaic(axes[0], images, title=f"step {step}")
    series = {
        f"{gamma} · L_real": [gamma * real for real in history["real"]],
        "L_gen": history["generated"],
        "k": history["k"],
    }
    for i, (name, values) in enumerate(series.items()):
        ax, color = axes[1 + i // 2], line_color(i)
        steps, style = history["step"][:step], {"linewidth": 2 - i % 2, "label": name}
        ax.plot(steps, values[:step], color=color, **style)
        ax.plot(step, values[step - 1], color=color, marker="o")
    across = {"xscale": "log", "xlim": (0.9, 1.1 * len(history["step"]))}
    *errors, ks = (max(values) for values in series.values())
    for ax, top in zip(axes[1:], (max(errors), ks), strict=True):
        finish(ax, ylim=(-0.04 * top, 1.1 * top or 1), xlabel="step", **across)
        ax.legend(loc="upper right", frameon=False)
        ax.xaxis.set_major_formatter("{x:g}")
    return axes


def spread(ax: Axes, groups: Series, *, xlabel: str) -> Axes:
    """Draw each group's numbers as dots in a row of its own, and their mean as a bar.

    The first group is on top. Dots are pale, so that equal ones show.
    """
    for i, (name, numbers) in enumerate(groups.items()):
        color = line_color(i)
        dots = {"color": color, "alpha": 0.5, "markersize": 9, "label": name}
        ax.plot(numbers, [i] * len(numbers), linestyle="", marker="o", **dots)
        mean = sum(numbers) / len(numbers)
        ax.plot([mean, mean], [i - 0.3, i + 0.3], color=color, linewidth=3)
    ax.set_yticks(range(len(groups)), list(groups))
    return finish(ax, legend=False, xlabel=xlabel, ylim=(len(groups) - 0.5, -0.5))
