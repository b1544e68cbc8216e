"""Pictures of lesson 05."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from course_lib.plots.common import finish, line_color

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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


def spread(ax: "Axes", groups: Mapping[str, Sequence[float]], *, xlabel: str) -> "Axes":
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
