"""The arithmetic of the fast engine: what torch's own layers do too slowly here.

Images are in channels-last memory, `(batch, height, width, channels)`, and the
candidates of a proposal follow one another along the batch axis.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce as fold
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Reduce = Callable[[Tensor], Tensor]
Pair = tuple[int, int]
Channel = int | Tensor  # `(1,)` where it is a number on the device


def pair(value: int | Pair) -> Pair:
    """Return both numbers of a module's setting."""
    return (value, value) if isinstance(value, int) else tuple(value)


def of_channel(x: Tensor, axis: int, channel: Channel) -> Tensor:
    """Return x at a channel of an axis: a view, or a copy if that is on the device."""
    if isinstance(channel, int):
        return x.select(axis, channel)
    return x.index_select(axis, channel).squeeze(axis)


# Batch norm, each candidate with its own statistics


RawSums = tuple[Tensor, Tensor, int]  # two matrices that hold the sums, and channels


def raw_sums(x: Tensor, candidates: int, before: RawSums | None) -> RawSums:
    """Sum x and x * x over the batch, each candidate's alone, on top of `before`.

    Both are matrix products: with ones, and of x with itself. torch's own pass over
    small images takes longer than the convolution before it.

    Args:
        x: `(candidates * batch, channels, ...)`.
        candidates: how many there are.
        before: what other samples of these candidates gave; it is added to in place.
    """
    channels = x.shape[1]
    rows = (x.permute(0, 2, 3, 1) if x.dim() == 4 else x).contiguous()
    wide = rows.view(candidates, x.shape[0] // candidates, -1)  # (m, batch, pixels * C)
    ones = wide.new_ones(candidates, 1, wide.shape[1])
    if channels > 32:  # all products of two channels cost more than another pass
        pairs = ones, wide * wide
    else:
        tall = rows.view(candidates, -1, channels)
        pairs = tall.transpose(1, 2), tall
    sums, squares = (None, None) if before is None else before[:2]
    return _multiply(ones, wide, sums), _multiply(*pairs, squares), channels


def finished(sums: RawSums) -> tuple[Tensor, Tensor]:
    """Return both sums, `(candidates, channels)`, in float64."""
    first, second, channels = sums
    if channels > 32:
        return _sum_pixels(first, channels), _sum_pixels(second, channels)
    return _sum_pixels(first, channels), second.diagonal(dim1=1, dim2=2).double()


def _multiply(a: Tensor, b: Tensor, onto: Tensor | None) -> Tensor:
    if a.shape[0] == 1:  # torch.bmm of one product is slower than torch.mm
        if onto is None:
            return torch.mm(a[0], b[0]).unsqueeze_(0)
        onto[0].addmm_(a[0], b[0])
        return onto
    return torch.bmm(a, b) if onto is None else onto.baddbmm_(a, b)


def _sum_pixels(sums: Tensor, channels: int) -> Tensor:
    return sums.view(sums.shape[0], -1, channels).sum(1, dtype=torch.float64)


def standardize(x: Tensor, norm: nn.Module, reduce: Reduce | None) -> Tensor:
    """Normalize without gamma and beta: what these are searched on."""
    plain = nn.BatchNorm2d(norm.num_features, eps=norm.eps, affine=False)
    count = x.numel() // x.shape[1]
    sums = finished(raw_sums(x, 1, None))
    scale, shift = affine_of(*sums, count, plain, reduce)
    shape = (1, -1, *[1] * (x.dim() - 2))
    return x * scale.to(x.dtype).view(shape) + shift.to(x.dtype).view(shape)


def affine_of(
    sums: Tensor,
    squares: Tensor,
    count: int,
    norm: nn.Module,
    reduce: Reduce | None,
    channels: slice = slice(None),
) -> tuple[Tensor, Tensor]:
    """Return (scale, shift) with norm(x) = x * scale + shift, `(candidates, channels)`.

    `sums` and `squares` of `channels` are those of this process; `reduce` adds the
    others'.
    """
    if reduce is not None:
        counts = sums.new_full((1, *sums.shape[1:]), count)
        total = reduce(torch.cat([sums, squares, counts]))
        sums, squares = total[: len(sums)], total[len(sums) : -1]
        count = total[-1]
    mean = sums / count
    variance = (squares / count - mean * mean).clamp_min_(0)
    scale = (variance + norm.eps).rsqrt_()
    if norm.weight is not None:
        scale = scale * norm.weight[channels]
    shift = -mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias[channels]


def normalize_plane(
    planes: Tensor, channel: Channel, norm: nn.Module, reduce: Reduce | None
) -> Tensor:
    """Normalize one channel, `(candidates, ...)` in one stretch of memory, in place."""
    flat = planes.view(len(planes), -1)
    count = flat.shape[1]
    if reduce is None:  # two passes over a small plane: exact
        flat -= flat.sum(1, keepdim=True) / count
        variance = torch.linalg.vecdot(flat, flat).div_(count).unsqueeze_(1)
        scale = (variance + norm.eps).rsqrt_()
        if norm.weight is not None:
            scale *= of_channel(norm.weight, 0, channel)
        flat *= scale
        if norm.bias is not None:
            flat += of_channel(norm.bias, 0, channel)
        return planes
    sums = flat.sum(1, keepdim=True, dtype=torch.float64)
    squares = torch.linalg.vecdot(flat, flat).double().unsqueeze(1)
    one = slice(channel, channel + 1)
    scale, shift = affine_of(sums, squares, count, norm, reduce, one)
    torch.addcmul(shift.to(flat.dtype), flat, scale.to(flat.dtype), out=flat)
    return planes


# Pooling


def pooling(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return what pools as `module` does, faster where its blocks don't overlap."""
    size = getattr(module, "output_size", None)
    if isinstance(module, nn.AdaptiveAvgPool2d) and pair(size) == (1, 1):
        return lambda x: x.mean((2, 3), keepdim=True)
    if isinstance(module, nn.AdaptiveMaxPool2d) and pair(size) == (1, 1):
        return _largest
    if isinstance(module, nn.MaxPool2d) and _is_blocks(module):
        blocks = pair(module.kernel_size)
        return lambda x: _max_of_blocks(x, blocks)
    return module


def _largest(x: Tensor) -> Tensor:
    """Return the maximum over all pixels: halves against halves, in long rows."""
    rows = x.permute(0, 2, 3, 1).flatten(1, 2)  # (batch, pixels, channels)
    while rows.shape[1] > 1:
        half = rows.shape[1] // 2
        odd = rows[:, 2 * half :]
        rows = torch.maximum(rows[:, :half], rows[:, half : 2 * half])
        if odd.shape[1]:
            rows[:, :1] = torch.maximum(rows[:, :1], odd)
    return rows.permute(0, 2, 1).unsqueeze(3)


def _is_blocks(module: nn.Module) -> bool:
    stride = module.stride if module.stride is not None else module.kernel_size
    size, dilation = pair(module.kernel_size), pair(getattr(module, "dilation", 1))
    is_plain = pair(module.padding) == (0, 0) and dilation == (1, 1)
    return is_plain and not module.ceil_mode and pair(stride) == size != (1, 1)


def _max_of_blocks(x: Tensor, size: Pair) -> Tensor:
    rows, columns = x.shape[2] // size[0], x.shape[3] // size[1]
    x = x[:, :, : rows * size[0], : columns * size[1]]
    x = fold(torch.maximum, [x[:, :, i :: size[0]] for i in range(size[0])])
    return fold(torch.maximum, [x[:, :, :, i :: size[1]] for i in range(size[1])])


def average_blocks(module: nn.Module | None) -> Pair | None:
    """Return the size of an average pooling over blocks, which a conv can absorb."""
    is_average = isinstance(module, nn.AvgPool2d) and module.divisor_override is None
    return pair(module.kernel_size) if is_average and _is_blocks(module) else None


# Convolution


class FoldedConv:
    """A convolution into which the average pooling after it is folded.

    conv(3x3) then mean of 2x2 blocks is one conv(4x4) of stride 2: 16 multiply-adds
    instead of 36 for each output, and the same numbers up to rounding.

    Args:
        module: a Conv2d with zero padding, or a Linear, seen as a 1x1 convolution.
        pooled: height and width of the pooling's blocks; (1, 1) for none.
    """

    def __init__(self, module: nn.Module, pooled: Pair = (1, 1)) -> None:
        self.module, self.pooled = module, pooled
        is_conv = isinstance(module, nn.Conv2d)
        self.kernel = module.kernel_size if is_conv else (1, 1)
        self.padding = module.padding if is_conv else (0, 0)
        self.dilation = module.dilation if is_conv else (1, 1)
        self.groups = module.groups if is_conv else 1
        self.inner = module.stride if is_conv else (1, 1)
        self.stride = tuple(s * p for s, p in zip(self.inner, pooled, strict=True))

    def weight(self) -> Tensor:
        """Return the kernel of convolution and pooling together."""
        weight = self.unpooled()
        if self.pooled == (1, 1):
            return weight
        reach = [(p - 1) * s for p, s in zip(self.pooled, self.inner, strict=True)]
        shape = [k + r for k, r in zip(weight.shape[2:], reach, strict=True)]
        folded = weight.new_zeros(*weight.shape[:2], *shape)
        for u, v in product(*map(range, self.pooled)):
            y, x = u * self.inner[0], v * self.inner[1]
            folded[:, :, y : y + weight.shape[2], x : x + weight.shape[3]] += weight
        return folded / (self.pooled[0] * self.pooled[1])

    def unpooled(self) -> Tensor:
        """Return the kernel without the pooling."""
        weight = self.module.weight
        return weight if weight.dim() == 4 else weight[:, :, None, None]

    def __call__(self, x: Tensor, weight: Tensor) -> Tensor:
        """Run it on `(batch, channels, height, width)`."""
        x = x if x.dim() == 4 else x[:, :, None, None]
        spaced = self.stride, self.padding, self.dilation
        return F.conv2d(x, weight, self.module.bias, *spaced, self.groups)

    @property
    def can_fold(self) -> bool:
        """Tell whether folding the pooling saves multiply-adds."""
        if self.dilation != (1, 1):
            return False
        sizes = zip(self.kernel, self.pooled, self.inner, strict=True)
        return all(k + (p - 1) * s <= k * p for k, p, s in sizes)

    def phases(self, x: Tensor, size: Pair) -> Tensor:
        """Return the input so that each tap's plane is a contiguous stretch of it.

        x: `(batch, channels, height, width)`; the answer is `(channels, phases,
        rows, columns, batch)`: phase (a, b) holds the pixels at rows a + i * stride,
        columns b + j * stride, averaged over the pooling's blocks. A tap (ky, kx)
        reads one phase from an offset on, up to pixels beyond the edge that are never
        looked at. `size` is that of the output.
        """
        (py, px), (sy, sx) = self.padding, self.stride
        rows, columns = self.padded(size)
        x = batch_last(x)
        phases = x.new_zeros(len(x), sy * sx, rows, columns, x.shape[3])
        for target, channel in zip(phases, x, strict=True):  # so it stays in the cache
            plane = self._averaged(F.pad(channel, (0, 0, px, px, py, py)))
            for a, b in product(range(sy), range(sx)):
                part = plane[a::sy, b::sx][:rows, :columns]
                target[a * sx + b, : part.shape[0], : part.shape[1]] = part
        return phases

    def _averaged(self, x: Tensor) -> Tensor:
        """Return the means over the pooling's blocks, whichever row they start in."""
        for axis in (0, 1):
            count, step = self.pooled[axis], self.inner[axis]
            if count > 1:
                length = x.shape[axis] - (count - 1) * step
                parts = [x.narrow(axis, i * step, length) for i in range(count)]
                x = fold(torch.add, parts).div_(count)
        return x

    def padded(self, size: Pair) -> Pair:
        """Return the rows and columns of a plane in which each tap is a stretch."""
        axes = zip(size, self.kernel, self.dilation, self.stride, strict=True)
        return tuple(n + (k - 1) * d // s for n, k, d, s in axes)

    def places(self, size: Pair) -> list[tuple[int, int]]:
        """Return (phase, offset in pixels) of each tap, in the order of the kernel."""
        columns = self.padded(size)[1]
        found = []
        for y, x in product(*map(range, self.kernel)):
            y, x = y * self.dilation[0], x * self.dilation[1]
            phase = y % self.stride[0] * self.stride[1] + x % self.stride[1]
            found.append((phase, y // self.stride[0] * columns + x // self.stride[1]))
        return found


def batch_last(x: Tensor) -> Tensor:
    """Return `(batch, channels, ...)` as `(channels, height, width, batch)`.

    By way of one transposed matrix, which torch copies block by block.
    """
    x = x if x.dim() == 4 else x[:, :, None, None]
    rows = x.permute(0, 2, 3, 1).contiguous()
    turned = rows.flatten(1).t().contiguous()
    return turned.view(*rows.shape[1:], len(x)).permute(2, 0, 1, 3)


def patches(planes: Tensor, taps: FoldedConv, kernel: Pair, out: Tensor) -> Tensor:
    """Return the columns of one channel for a matrix product: `(taps, rows)`.

    planes: `(candidates, batch, height, width)`; out: `(kh, kw, candidates, batch,
    out height, out width)`, filled and returned.
    """
    (py, px), (sy, sx), (dy, dx) = taps.padding, taps.stride, taps.dilation
    padded = F.pad(planes, (px, px, py, py))
    m, b, row, column = padded.stride()
    strides = (row * dy, column * dx, m, b, row * sy, column * sx)
    return out.copy_(padded.as_strided(out.shape, strides))
