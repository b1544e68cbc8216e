"""Functions of tf.nn that slide a window: pools, convolutions, blocks of pixels."""

import inspect
import math
from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from course_lib.keras_models.layers.base import channels_to_first, channels_to_last
from course_lib.keras_models.layers.operations.row import Row
from course_lib.keras_models.layers.window import (
    CONVOLVE,
    CONVOLVE_BACK,
    MAX_POOL,
    MEAN_POOL,
    Amounts,
    fit,
    pad,
    same_padding,
)


class WindowArguments(NamedTuple):
    """How a window moves, as Keras and TensorFlow say it; None is their default."""

    strides: Any = None
    padding: Any = "VALID"
    dilations: Any = None
    data_format: Any = None

    @property
    def first(self) -> bool:
        """Tell whether the channels are axis 1."""
        return str(self.data_format).startswith(("NC", "channels_first"))

    def spatial(self, value: Any) -> Any:
        """Return the entries of the spatial axes."""
        return value[2:] if self.first else value[1:-1]

    def sizes(self, value: Any, dims: int) -> tuple[int, ...]:
        """Return one number for each spatial axis, as TensorFlow's forms all mean."""
        value = 1 if value is None else value
        value = value if isinstance(value, tuple) else (value,)
        if len(value) == dims + 2:  # with the batch and the channels
            if value[0] != 1 or value[1 if self.first else -1] != 1:
                raise ValueError(f"windows over batch or channels: {value}")
            value = self.spatial(value)
        value = value * dims if len(value) == 1 else value
        if len(value) != dims or not all(isinstance(n, int) and n > 0 for n in value):
            raise ValueError(f"got {value!r:.60}; wanted {dims} whole numbers above 0")
        return value

    def steps(self, dims: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return strides and dilations."""
        return self.sizes(self.strides, dims), self.sizes(self.dilations, dims)

    def amounts(self, sizes: Any, kernel: Any) -> Amounts:
        """Return how much is padded (before, after) each spatial axis."""
        if isinstance(self.padding, tuple):  # (before, after) for every axis
            return [tuple(pair) for pair in self.spatial(self.padding)]
        if self.padding in ("VALID", "valid"):
            return [(0, 0)] * len(kernel)
        if self.padding not in ("SAME", "same"):
            raise ValueError(f"padding={self.padding!r:.40}")
        rows = zip(sizes, kernel, *self.steps(len(kernel)), strict=True)
        return [same_padding(*row) for row in rows]


def _sliding(function: Callable) -> Callable:
    """Let a function of tensors and a `window` take its fields instead.

    The function gets its first tensor, and returns one, with the channels at axis 1.
    """

    @wraps(function)
    def apply(x: Tensor, *tensors: Tensor, **settings: Any) -> Tensor:
        given = [name for name in WindowArguments._fields if name in settings]
        window = WindowArguments(**{name: settings.pop(name) for name in given})
        if window.first:
            return function(x, *tensors, window=window, **settings)
        y = function(channels_to_first(x), *tensors, window=window, **settings)
        return channels_to_last(y)

    parameters = dict(inspect.signature(function).parameters)
    del parameters["window"]
    for name, field in inspect.signature(WindowArguments).parameters.items():
        parameters[name] = field.replace(kind=field.KEYWORD_ONLY)
    apply.__signature__ = inspect.Signature([*parameters.values()])
    return apply


@_sliding
def _max_pool(x: Tensor, *, ksize: Any, window: WindowArguments) -> Tensor:
    return _pool(x, ksize, window, MAX_POOL, float("-inf"))


@_sliding
def _average_pool(x: Tensor, *, ksize: Any, window: WindowArguments) -> Tensor:
    """Return the mean of each window; what is padded does not count."""
    counted = _pool(x.new_ones(1, 1, *x.shape[2:]), ksize, window, MEAN_POOL, 0.0)
    return _pool(x, ksize, window, MEAN_POOL, 0.0) / counted


def _pool(
    x: Tensor,
    ksize: Any,
    window: WindowArguments,
    functions: dict[int, Callable],
    value: float,
) -> Tensor:
    dims = x.dim() - 2
    if window.strides is None:
        window = window._replace(strides=ksize)
    kernel, (strides, _) = window.sizes(ksize, dims), window.steps(dims)
    padded = pad(x, window.amounts(x.shape[2:], kernel), value)
    return functions[dims](padded, kernel, strides)


@_sliding
def _convolution(x: Tensor, filters: Tensor, *, window: WindowArguments) -> Tensor:
    """Convolve with a kernel (*window, in, out), in any number of dimensions."""
    dims = x.dim() - 2
    x = pad(x, window.amounts(x.shape[2:], filters.shape[:-2]))
    weight = filters.permute(-1, -2, *range(dims))
    groups = max(x.shape[1] // weight.shape[1], 1)
    strides, rates = window.steps(dims)
    return CONVOLVE[dims](x, weight, None, strides, 0, rates, groups)


def _by_channel(filters: Tensor) -> Tensor:
    """Return a depthwise kernel as one of a convolution in groups."""
    *window, channels, multiplier = filters.shape
    return filters.reshape(*window, 1, channels * multiplier)


@_sliding
def _depthwise_convolution(
    x: Tensor, filters: Tensor, *, window: WindowArguments
) -> Tensor:
    """Convolve each channel by itself: kernel (*window, channels, multiplier)."""
    return _convolution.__wrapped__(x, _by_channel(filters), window=window)


@_sliding
def _separable_convolution(
    x: Tensor, depthwise: Tensor, pointwise: Tensor, *, window: WindowArguments
) -> Tensor:
    """Convolve each channel by itself, then mix the channels."""
    x = _convolution.__wrapped__(x, _by_channel(depthwise), window=window)
    return _convolution.__wrapped__(x, pointwise, window=WindowArguments())


@_sliding
def _transposed_convolution(
    x: Tensor, filters: Tensor, *, output_shape: Any, window: WindowArguments
) -> Tensor:
    """Return what a convolution's gradient gives; the kernel is (*window, out, in)."""
    dims, wanted = x.dim() - 2, window.spatial(output_shape)
    amounts = window.amounts(wanted, filters.shape[:-2])
    weight = filters.permute(-1, -2, *range(dims))
    strides, rates = window.steps(dims)
    y = CONVOLVE_BACK[dims](x, weight, None, strides, 0, 0, 1, rates)
    # What is left over at the end belongs to windows that found no place.
    pairs = zip(amounts, wanted, strict=True)
    return fit(y, [(before, size) for (before, _), size in pairs])


@_sliding
def _extract_patches(x: Tensor, *, sizes: Any, window: WindowArguments) -> Tensor:
    """(batch, channels, h, w) -> (batch, window * window * channels, rows, columns)."""
    kernel, (strides, rates) = window.sizes(sizes, 2), window.steps(2)
    padded = pad(x, window.amounts(x.shape[2:], kernel))
    reach = [(k - 1) * r + 1 for k, r in zip(kernel, rates, strict=True)]
    parts = zip(padded.shape[2:], reach, strides, strict=True)
    places = [max((n - r) // s + 1, 0) for n, r, s in parts]
    patches = F.unfold(padded, kernel, rates, 0, strides)
    patches = patches.unflatten(1, (x.shape[1], math.prod(kernel))).transpose(1, 2)
    return patches.flatten(1, 2).unflatten(2, places)


def _block(size: Any, window: WindowArguments, *sizes: int) -> int:
    if window.data_format == "channels_first":
        # keras v3.15.1 keras/src/backend/torch/nn.py#L1654 puts the channels before the
        # block, keras v3.15.1 keras/src/backend/tensorflow/nn.py#L1955 the block first
        raise ValueError("channels_first is not supported: Keras's backends differ")
    if not isinstance(size, int) or size < 2 or any(n % size for n in sizes):
        raise ValueError(f"block_size={size!r:.40} for {sizes}")
    return size


@_sliding
def _space_to_depth(x: Tensor, *, block_size: int, window: WindowArguments) -> Tensor:
    """(batch, c, h, w) -> (batch, n * n * c, h / n, w / n)."""
    n = _block(block_size, window, *x.shape[2:])
    batch, channels, height, width = x.shape
    x = x.reshape(batch, channels, height // n, n, width // n, n)
    return x.permute(0, 3, 5, 1, 2, 4).flatten(1, 3)


@_sliding
def _depth_to_space(x: Tensor, *, block_size: int, window: WindowArguments) -> Tensor:
    """(batch, n * n * c, h, w) -> (batch, c, h * n, w * n)."""
    n = _block(block_size, window)
    channels = x.shape[1] // _block(n * n, window, x.shape[1])
    x = x.unflatten(1, (n, n, channels))
    return x.permute(0, 3, 4, 1, 5, 2).flatten(4, 5).flatten(2, 3)


@_sliding
def _bias_add(x: Tensor, bias: Tensor, *, window: WindowArguments) -> Tensor:
    if tuple(bias.shape) != (x.shape[1],):
        raise ValueError(f"a bias of shape {tuple(bias.shape)} for {tuple(x.shape)}")
    if x.is_meta:  # a sum would import torch's compiler, which takes a second
        return x
    return x + bias.reshape(-1, *[1] * (x.dim() - 2))


def _local_response_normalization(
    x: Tensor, *, depth_radius: int, bias: float, alpha: float, beta: float
) -> Tensor:
    """Return x / (bias + alpha * squares of the neighboring channels) ** beta."""
    width = 2 * depth_radius + 1
    first = x.movedim(-1, 1)
    return F.local_response_norm(first, width, alpha * width, beta, bias).movedim(1, -1)


_POOLS = "nn.{0}_pool, nn.{0}_pool1d, nn.{0}_pool2d"
_CONVOLUTIONS = (
    "nn.conv1d stride=strides, nn.conv2d filter=filters,"
    "nn.convolution filter=filters dilation_rate=dilations"
)
ROWS = (
    Row(_max_pool, "MaxPool pool_size=ksize", _POOLS.format("max"), "MaxPool x"),
    Row(
        _average_pool, "AveragePool pool_size=ksize", _POOLS.format("avg"), "AvgPool x"
    ),
    Row(_convolution, "Conv dilation_rate=dilations", _CONVOLUTIONS, "Conv2D"),
    Row(
        _depthwise_convolution,
        "DepthwiseConv dilation_rate=dilations",
        "nn.depthwise_conv2d filter=filters rate=dilations",
    ),
    Row(_separable_convolution, "SeparableConv dilation_rate=dilations"),
    Row(_transposed_convolution, "", 'nn.conv2d_transpose padding:="SAME"'),
    Row(_space_to_depth, "SpaceToDepth", "nn.space_to_depth", "SpaceToDepth x"),
    Row(_depth_to_space, "DepthToSpace", "nn.depth_to_space", "DepthToSpace x"),
    Row(_extract_patches, "", "image.extract_patches rates=dilations"),
    Row(_bias_add, "", "nn.bias_add", "BiasAdd"),
    Row(lambda x, *, axis=-1: torch.relu(torch.cat([x, -x], axis)), "", "nn.crelu"),
    Row(_local_response_normalization, "", "nn.local_response_normalization"),
)
