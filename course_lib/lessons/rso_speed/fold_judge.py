"""The check of lesson 09's `fold`: the shape of the kernel, and its numbers.

Each function raises `NotYet` with the name of a mistake, or returns.
"""

import torch.nn.functional as F
from torch import Tensor

from course_lib.lessons.checks import reject, require_kind
from course_lib.lessons.exercises import NotYet


def judge_kernel(got: object, weight: Tensor, size: int) -> None:
    """Refuse a kernel of another size."""
    require_kind(got, Tensor, "the new kernel")
    *front, height, width = weight.shape
    wanted = (*front, height + size - 1, width + size - 1)
    if tuple(got.shape) == wanted:
        return
    shape = f"Your kernel has the shape {tuple(got.shape)}; for {tuple(weight.shape)}"
    mistakes = {
        "Your kernel has the old size. The kernel reaches over all outputs of a block, "
        "so it grows by size - 1.": got.shape == weight.shape,
        "Your kernel grows by one. That is right for blocks of 2 x 2 alone; in general "
        "it grows by size - 1.": (
            size != 2 and tuple(got.shape) == (*front, height + 1, width + 1)
        ),
        "Your kernel grows by size; wanted size - 1.": (
            tuple(got.shape) == (*front, height + size, width + size)
        ),
        "Your kernel grows on both sides of each axis. The zeros of both sides are "
        "size - 1 in all.": (
            tuple(got.shape) == (*front, height + 2 * size - 2, width + 2 * size - 2)
        ),
    }
    wanted_shape = f"{shape} and size {size} wanted {wanted}."
    reject({f"{name} {wanted_shape}": made for name, made in mistakes.items()})
    raise NotYet(wanted_shape)


def fold_mistakes(weight: Tensor, size: int) -> dict[str, Tensor]:
    """Return mistakes by name, and the kernel that each of them gives."""
    last = size - 1

    def shifted(*corners: tuple[int, int]) -> Tensor:
        return sum(F.pad(weight, (x, last - x, y, last - y)) for y, x in corners)

    places = range(size)
    right = shifted(*[(y, x) for y in places for x in places])
    return {
        "You add all places. A mean divides by size * size": right,
        "You divide by size; a block has size * size pixels": right / size,
        "You divide by 4; a block has size * size pixels": right / 4,
        "You shift along the diagonal only. A block has more places than that": (
            shifted(*zip(places, places, strict=True)) / size
        ),
        "You shift along the rows only": shifted(*[(0, x) for x in places]) / size,
        "You shift along the columns only": shifted(*[(y, 0) for y in places]) / size,
        "You pad with zeros and take no mean: that leaves out all pixels of a block "
        "but one": shifted((0, 0)),
        "Your kernel is upside down. torch's convolution does not flip it": (
            right.flip(2, 3) / size**2
        ),
    }
