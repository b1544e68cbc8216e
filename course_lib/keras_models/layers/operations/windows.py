"""Functions of tf.nn that slide a window: pools, convolutions, blocks of pixels."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from course_lib.keras_models.layers.convolution import pad, same_padding

_CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_BACK = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_MEAN = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def _sizes(value: Any, dims: int, first: bool) -> tuple[int, ...]:
    """Return one number for each spatial axis, as TensorFlow's forms all mean."""
    value = 1 if value is None else value
    value = value if isinstance(value, tuple) else (value,)
    if len(value) == dims + 2:  # with the batch and the channels
        others = (value[0], value[1]) if first else (value[0], value[-1])
        if others != (1, 1):
            raise ValueError(f"windows over batch or channels: {value}")
        value = value[2:] if first else value[1:-1]
    value = value * dims if len(value) == 1 else value
    if len(value) != dims or not all(isinstance(n, int) and n > 0 for n in value):
        raise ValueError(f"got {value!r:.60}; wanted {dims} whole numbers above 0")
    return value


def _amounts(
    padding: Any, sizes: Any, kernel: Any, strides: Any, rates: Any, first: bool
) -> list[tuple[int, int]]:
    if isinstance(padding, tuple):  # (before, after) for every axis
        return [tuple(p) for p in (padding[2:] if first else padding[1:-1])]
    if padding not in ("SAME", "VALID", "same", "valid"):
        raise ValueError(f"padding={padding!r:.40}")
    if padding in ("VALID", "valid"):
        return [(0, 0)] * len(kernel)
    return [same_padding(*p) for p in zip(sizes, kernel, strides, rates, strict=True)]


def _is_first(data_format: Any) -> bool:
    return str(data_format).startswith(("NC", "channels_first"))


def _in_torch_order(x: Tensor, first: bool) -> Tensor:
    return x if first else x.movedim(-1, 1)


def _in_file_order(x: Tensor, first: bool) -> Tensor:
    return x if first else x.movedim(1, -1)


def pool(largest: bool) -> Callable:
    """Return max_pool or avg_pool, in any number of dimensions."""

    def apply(
        x: Tensor, *, ksize: Any, strides: Any, padding: Any, data_format: Any = None
    ) -> Tensor:
        dims, first = x.dim() - 2, _is_first(data_format)
        x = _in_torch_order(x, first)
        kernel, steps = _sizes(ksize, dims, first), _sizes(strides, dims, first)
        amounts = _amounts(padding, x.shape[2:], kernel, steps, (1,) * dims, first)
        if largest:
            padded = pad(x, amounts, float("-inf"))
            return _in_file_order(_MAX[dims](padded, kernel, steps), first)
        sums = _MEAN[dims](pad(x, amounts), kernel, steps)
        counted = pad(x.new_ones(1, 1, *x.shape[2:]), amounts)
        return _in_file_order(sums / _MEAN[dims](counted, kernel, steps), first)

    return apply


def convolution(
    x: Tensor,
    filters: Tensor,
    *,
    strides: Any = 1,
    padding: Any = "VALID",
    data_format: Any = None,
    dilations: Any = None,
) -> Tensor:
    """Convolve with a kernel (*window, in, out), in any number of dimensions."""
    dims, first = x.dim() - 2, _is_first(data_format)
    x = _in_torch_order(x, first)
    steps, rates = _sizes(strides, dims, first), _sizes(dilations, dims, first)
    kernel = filters.shape[:-2]
    amounts = _amounts(padding, x.shape[2:], kernel, steps, rates, first)
    weight = filters.permute(-1, -2, *range(dims))
    groups = max(x.shape[1] // weight.shape[1], 1)
    y = _CONVOLVE[dims](pad(x, amounts), weight, None, steps, 0, rates, groups)
    return _in_file_order(y, first)


def depthwise_convolution(
    x: Tensor,
    filters: Tensor,
    *,
    strides: Any = 1,
    padding: Any = "VALID",
    data_format: Any = None,
    dilations: Any = None,
) -> Tensor:
    """Convolve each channel by itself: kernel (*window, channels, multiplier)."""
    *window, channels, multiplier = filters.shape
    kernel = filters.reshape(*window, 1, channels * multiplier)
    return convolution(
        x,
        kernel,
        strides=strides,
        padding=padding,
        data_format=data_format,
        dilations=dilations,
    )


def transposed_convolution(
    x: Tensor,
    filters: Tensor,
    *,
    output_shape: Any,
    strides: Any = 1,
    padding: Any = "SAME",
    data_format: Any = None,
    dilations: Any = None,
) -> Tensor:
    """Return what a convolution's gradient gives; the kernel is (*window, out, in)."""
    dims, first = x.dim() - 2, _is_first(data_format)
    x = _in_torch_order(x, first)
    steps, rates = _sizes(strides, dims, first), _sizes(dilations, dims, first)
    kernel = filters.shape[:-2]
    wanted = output_shape[2:] if first else output_shape[1:-1]
    amounts = _amounts(padding, wanted, kernel, steps, rates, first)
    weight = filters.permute(-1, -2, *range(dims))
    y = _BACK[dims](x, weight, None, steps, 0, 0, 1, rates)
    # What is left over at the end belongs to windows that found no place.
    for axis, (size, (before, _)) in enumerate(zip(wanted, amounts, strict=True), 2):
        lacking = max(before + size - y.shape[axis], 0)
        y = F.pad(y, [0, 0] * (y.dim() - 1 - axis) + [0, lacking])
        y = y.narrow(axis, before, size)
    return _in_file_order(y, first)


def keras_pool(largest: bool) -> Callable:
    """Return Keras 3's max_pool or average_pool."""

    def apply(
        x: Tensor,
        *,
        pool_size: Any,
        strides: Any = None,
        padding: str = "valid",
        data_format: Any = None,
    ) -> Tensor:
        options = {"padding": padding, "data_format": data_format}
        steps = pool_size if strides is None else strides
        return pool(largest)(x, ksize=pool_size, strides=steps, **options)

    return apply


def keras_convolution(function: Callable) -> Callable:
    """Give a convolution the arguments of Keras 3's."""

    def apply(
        x: Tensor,
        kernel: Tensor,
        *,
        strides: Any = 1,
        padding: str = "valid",
        data_format: Any = None,
        dilation_rate: Any = 1,
    ) -> Tensor:
        options = {"padding": padding, "data_format": data_format}
        return function(x, kernel, strides=strides, dilations=dilation_rate, **options)

    return apply


def separable_convolution(
    x: Tensor,
    depthwise: Tensor,
    pointwise: Tensor,
    *,
    strides: Any = 1,
    padding: Any = "valid",
    data_format: Any = None,
    dilation_rate: Any = 1,
) -> Tensor:
    """Convolve each channel by itself, then mix the channels."""
    options = {"padding": padding, "data_format": data_format}
    options |= {"strides": strides, "dilations": dilation_rate}
    x = depthwise_convolution(x, depthwise, **options)
    return convolution(x, pointwise, data_format=data_format)


def _block(size: Any, *sizes: int) -> int:
    if not isinstance(size, int) or size < 2 or any(n % size for n in sizes):
        raise ValueError(f"block_size={size!r:.40} for {sizes}")
    return size


def space_to_depth(x: Tensor, *, block_size: int, data_format: Any = None) -> Tensor:
    """(batch, h, w, c) -> (batch, h / n, w / n, n * n * c)."""
    if _is_first(data_format):
        return space_to_depth(x.movedim(1, -1), block_size=block_size).movedim(-1, 1)
    batch, height, width, channels = x.shape
    n = _block(block_size, height, width)
    x = x.reshape(batch, height // n, n, width // n, n, channels)
    return x.movedim(2, 3).reshape(batch, height // n, width // n, n * n * channels)


def depth_to_space(x: Tensor, *, block_size: int, data_format: Any = None) -> Tensor:
    """(batch, h, w, n * n * c) -> (batch, h * n, w * n, c)."""
    if _is_first(data_format):
        return depth_to_space(x.movedim(1, -1), block_size=block_size).movedim(-1, 1)
    batch, height, width, depth = x.shape
    n = _block(block_size)
    channels = depth // _block(n * n, depth)
    x = x.reshape(batch, height, width, n, n, channels)
    return x.movedim(3, 2).reshape(batch, height * n, width * n, channels)


def extract_patches(
    x: Tensor, *, sizes: Any, strides: Any, rates: Any, padding: Any
) -> Tensor:
    """(batch, h, w, c) -> (batch, rows, columns, window * window * c)."""
    kernel, steps = _sizes(sizes, 2, False), _sizes(strides, 2, False)
    rates = _sizes(rates, 2, False)
    amounts = _amounts(padding, x.shape[1:3], kernel, steps, rates, False)
    first = pad(x.movedim(-1, 1), amounts)
    reach = [(k - 1) * r + 1 for k, r in zip(kernel, rates, strict=True)]
    parts = zip(first.shape[2:], reach, steps, strict=True)
    rows, columns = (max((n - r) // s + 1, 0) for n, r, s in parts)
    patches = F.unfold(first, kernel, rates, 0, steps)  # (batch, c * window, places)
    patches = patches.unflatten(1, (x.shape[-1], math.prod(kernel)))
    return patches.transpose(1, 2).flatten(1, 2).mT.unflatten(1, (rows, columns))
