"""Where a layer's taps read, how its input is laid out, and how weights are packed.

The functions fill in the fields of an operation; structures.hpp says what they mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_lib.rso.eager.kernels import FoldedConv, Pair, pair
from course_lib.rso.native.structures import Op

Shape = tuple[int, int, int]
WINOGRAD = (  # of a kernel of 3: F(4, 3) at the points 0, 1, -1, 2, -2 and infinity
    *((1 / 4, 0, 0), (-1 / 6, -1 / 6, -1 / 6), (-1 / 6, 1 / 6, -1 / 6)),
    *((1 / 24, 1 / 12, 1 / 6), (1 / 24, -1 / 12, 1 / 6), (0, 0, 1)),
)


class UnsupportedOperation(Exception):
    """program.cpp has no such operation; the message says which."""


def arranged(shape: Shape, taps: FoldedConv, image: Pair) -> Shape:
    """Return the shape of a layer's input as its taps read it: phase under phase."""
    rows, columns = taps.padded(image)
    return shape[0], math.prod(taps.stride) * rows, columns


def set_arrangement(op: Op, shape: Shape, taps: FoldedConv, image: Pair) -> None:
    """Say how a layer's input is padded, averaged, and sorted for its taps."""
    (op.top, op.left), (_, height, width) = taps.padding, shape
    is_linear = isinstance(taps.module, nn.Linear)
    op.rows, op.columns = (height, width) if is_linear else taps.padded(image)
    op.padded_height, op.padded_width = height + 2 * op.top, width + 2 * op.left
    op.box_height, op.box_width = taps.pooled
    op.box_row, op.box_column = taps.inner
    op.step_row, op.step_column = taps.stride


def set_layer(op: Op, taps: FoldedConv, image: Pair) -> tuple[list[int], list[int]]:
    """Say how many numbers a layer has; return what its taps read of its input.

    That is where each output pixel starts to read, and how far taps reach from there.
    """
    weight, (rows, columns) = taps.unpooled(), taps.padded(image)
    op.groups, op.inputs = taps.groups, weight.shape[1]
    op.outputs = len(weight) // taps.groups
    op.plane = math.prod(taps.stride) * rows * columns
    start = [y * columns + x for y, x in pixels(image)]
    return start, [phase * rows * columns + at for phase, at in taps.places(image)]


def pixels(size: Pair) -> Iterator[Pair]:
    """Return (row, column) of each pixel."""
    return product(*map(range, size))


def pool_window(module: nn.Module, image: Pair) -> tuple[Pair, Pair]:
    """Return a pooling's size and stride.

    Raises:
        UnsupportedOperation: it pads, dilates, rounds up, or adapts to more than one
            pixel.
    """
    if hasattr(module, "output_size"):
        if pair(module.output_size) != (1, 1):
            raise UnsupportedOperation(f"{module}")
        return image, image
    size = pair(module.kernel_size)
    stride = size if module.stride is None else pair(module.stride)
    is_padded = pair(module.padding) != (0, 0) or module.ceil_mode
    is_dilated = pair(getattr(module, "dilation", 1)) != (1, 1)
    if is_padded or is_dilated or getattr(module, "divisor_override", None):
        raise UnsupportedOperation(f"{module}")
    return size, stride


def packed(weight: Tensor, groups: int, tile: int) -> Tensor:
    """Return weights as a tile reads them: (groups, tiles, inputs, taps, tile)."""
    own = weight.detach().reshape(groups, len(weight) // groups, -1)
    own = F.pad(own, (0, 0, 0, -own.shape[1] % tile))
    tiles = own.view(groups, -1, tile, own.shape[2])
    return tiles.transpose(2, 3).contiguous()


def winograd_pays(taps: FoldedConv, image: Pair) -> bool:
    """Tell whether Winograd's form is clearly cheaper for an output of this size."""
    weight = taps.unpooled()
    is_plain = taps.stride == taps.dilation == taps.pooled == (1, 1)
    if tuple(weight.shape[2:]) != (3, 3) or not is_plain or taps.groups != 1:
        return False
    patches = math.prod(-(-n // 4) for n in image)
    outputs, inputs = weight.shape[:2]
    each = 36 + 144 / outputs + 100 / inputs  # products, and the cost of transforms
    return patches * each < 0.75 * 9 * math.prod(image)


def winograd_weights(weight: Tensor, tile: int) -> Tensor:
    """Return transformed kernels: (36, outputs / tile, inputs, tile)."""
    transform = torch.tensor(WINOGRAD, dtype=torch.float64)
    own = transform @ weight.detach().double() @ transform.t()
    own = F.pad(own.permute(2, 3, 1, 0), (0, -len(weight) % tile))
    tiles = own.flatten(0, 1).unflatten(2, (-1, tile))
    return tiles.transpose(1, 2).contiguous()
