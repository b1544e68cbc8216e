"""Layers that spread a change of one channel over all outputs."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_lib.rso.eager.kernels import Channel, FoldedConv, of_channel, patches
from course_lib.rso.eager.pipeline import Piece

SMALL = 64  # pixels of an image up to which a convolution is taken as a matrix


class Dense:
    """A convolution or linear layer whose input changes in one channel.

    On a small image it is one matrix from all pixels to all outputs: that takes more
    multiply-adds, but no patches have to be copied, which takes longer.
    """

    def __init__(
        self,
        conv: FoldedConv,
        channels: int,
        image: tuple[int, int],
        size: tuple[int, int],
    ) -> None:
        self.conv, self.size = conv, size
        weight = conv.weight()  # (outputs, inputs, kernel height, kernel width)
        self.is_linear = isinstance(conv.module, nn.Linear)
        self.kernel = weight.shape[2:]
        pixels = math.prod(image)
        entries = channels * pixels * math.prod(size) * len(weight)
        is_small = pixels <= SMALL and entries <= SMALL**4
        self.is_whole = self.is_linear or is_small
        if self.is_whole and not self.is_linear:
            self.matrix = self._unrolled(weight, image)  # (inputs, pixels, all outputs)
        else:
            matrix = weight.reshape(len(weight), channels, -1).permute(1, 2, 0)
            self.matrix = matrix.contiguous()  # (inputs, taps, outputs)

    def _unrolled(self, weight: Tensor, image: tuple[int, int]) -> Tensor:
        """Return the outputs of each input pixel that is 1 where all others are 0."""
        outputs, inputs = weight.shape[:2]
        pixels = math.prod(image)
        one = torch.eye(pixels, dtype=weight.dtype, device=weight.device)
        kernels = weight.transpose(0, 1).reshape(-1, 1, *self.kernel)
        conv = self.conv
        given = F.conv2d(
            one.view(pixels, 1, *image),
            kernels,
            stride=conv.stride,
            padding=conv.padding,
            dilation=conv.dilation,
        )
        given = given.view(pixels, inputs, outputs, -1).permute(1, 0, 3, 2)
        return given.reshape(inputs, pixels, -1)

    def add_(
        self, base: Tensor, change: Tensor, channel: Channel, buffer: Callable
    ) -> None:
        """Update `base`, `(pixels, outputs)`, by `(1, batch, height, width)`."""
        columns = self._columns(self._batch_first(change, buffer), buffer)
        weights = of_channel(self.matrix, 0, channel)
        base.view(-1, self.matrix.shape[2]).addmm_(columns[0], weights)

    def source(
        self,
        base: Tensor,
        planes: Tensor,
        first: int,
        channel: Channel,
        buffer: Callable,
    ) -> Callable[[Piece, Tensor], None]:
        """Return what writes candidates' outputs; `base` is that of planes[0]."""
        change = self._batch_first(planes[1:] - planes[:1], buffer)
        base = base.view(-1, self.matrix.shape[2])
        pixels = base.shape[0] // planes.shape[1]  # rows of `base` for each sample
        weights = of_channel(self.matrix, 0, channel)

        def fill(piece: Piece, out: Tensor) -> None:
            rows = slice(piece.samples.start * pixels, piece.samples.stop * pixels)
            out = out if self.is_linear else out.permute(0, 2, 3, 1)
            out = out.reshape(piece.count, -1, base.shape[1])
            low = piece.candidates.start - (1 - first)  # among the changes
            if low < 0:
                out[0] = base[rows]
                out, low = out[1:], 0
            if out.shape[0]:
                part = change[low : low + out.shape[0], piece.samples]
                columns = self._columns(part, buffer)
                if out.shape[0] == 1:
                    torch.addmm(base[rows], columns[0], weights, out=out[0])
                else:
                    expanded = weights.expand(out.shape[0], -1, -1)
                    torch.baddbmm(base[rows].expand_as(out), columns, expanded, out=out)

        return fill

    def _batch_first(self, change: Tensor, buffer: Callable) -> Tensor:
        """Return a change whose memory has the batch in front, as images need it.

        A matrix of all pixels takes `(candidates, batch, pixels)` in any layout.
        """
        memory = change.permute(0, 2, 3, 1).flatten(1, 2)  # (candidates, pixels, batch)
        if self.is_whole:
            return memory.transpose(1, 2)
        out = buffer("batch first", change.shape, change)
        for target, plane in zip(out.flatten(2), memory, strict=True):
            target.copy_(plane.t())  # a transposed matrix, which torch copies by blocks
        return out

    def _columns(self, change: Tensor, buffer: Callable) -> Tensor:
        """Return `(candidates, rows, taps)`."""
        if self.is_whole:
            return change
        shape = (*self.kernel, *change.shape[:2], *self.size)
        columns = patches(
            change, self.conv, self.kernel, buffer("columns", shape, change)
        )
        return columns.view(self.matrix.shape[1], change.shape[0], -1).permute(1, 2, 0)
