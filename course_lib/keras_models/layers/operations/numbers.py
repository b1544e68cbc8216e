"""What treats each number by itself, and what two tensors of numbers make together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from course_lib.keras_models.layers.operations.reductions import Axis

DTYPES = {
    "float16": torch.float16,
    "half": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float": torch.float32,
    "float64": torch.float64,
    "double": torch.float64,
    "bool": torch.bool,
    "int8": torch.int8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
    "uint8": torch.uint8,
    "uint16": torch.uint16,
    "uint32": torch.uint32,
    "uint64": torch.uint64,
}


def dtype_of(name: Any) -> torch.dtype:
    """Return torch's dtype of that name.

    Raises:
        ValueError: there is none.
    """
    if not isinstance(name, str) or name not in DTYPES:
        raise ValueError(f"dtype={name!r:.40} is not supported")
    return DTYPES[name]


def cast(x: Tensor, *, dtype: Any = "float32") -> Tensor:
    """Return the numbers in another dtype; float32 is whatever the model has.

    So a model that was made float64 stays so.
    """
    kind = dtype_of(dtype)
    whole = (torch.float32, torch.float64)
    return x if kind in whole and x.dtype in whole else x.to(kind)


def saturate_cast(x: Tensor, *, dtype: Any) -> Tensor:
    """Return the numbers in another dtype, cut to its range."""
    kind = dtype_of(dtype)
    if not kind.is_floating_point and kind is not torch.bool:
        x = x.clamp(torch.iinfo(kind).min, torch.iinfo(kind).max)
    return x.to(kind)


def filled(number: float) -> Callable:
    """Return zeros_like or ones_like."""

    def like(x: Tensor, *, dtype: Any = None) -> Tensor:
        return torch.full_like(x, number, dtype=dtype_of(dtype) if dtype else None)

    return like


def tensors(function: Callable) -> Callable:
    """Let a function of tensors take numbers as well."""

    def call(x: Any, y: Any) -> Tensor:
        like = x if isinstance(x, Tensor) else y
        return function(
            *(v if isinstance(v, Tensor) else like.new_tensor(v) for v in (x, y))
        )

    return call


def full_like(x: Tensor, fill_value: Any, *, dtype: Any = None) -> Tensor:
    """Return a tensor of the shape of x that holds one number."""
    return filled(1)(x, dtype=dtype) * fill_value


maximum = tensors(torch.maximum)
minimum = tensors(torch.minimum)


def true_divide(x: Any, y: Any) -> Tensor:
    """Return x / y; TensorFlow divides whole numbers in float64."""
    both = [v for v in (x, y) if isinstance(v, Tensor)]
    if not any(v.is_floating_point() for v in both):
        x = x.double() if isinstance(x, Tensor) else x
        y = y.double() if isinstance(y, Tensor) else y
    return x / y


def divide_no_nan(x: Any, y: Any) -> Tensor:
    """Return x / y, and 0 where y is 0."""
    return torch.where(y == 0, 0, x / torch.where(y == 0, 1, y))


def multiply_no_nan(x: Any, y: Any) -> Tensor:
    """Return x * y, and 0 where y is 0, even if x is nan."""
    return torch.where(y == 0, 0, x * y)


def clip(x: Tensor, x_min: Any, x_max: Any) -> Tensor:
    """Return x, cut to the range."""
    if isinstance(x_min, Tensor) or isinstance(x_max, Tensor):
        return minimum(maximum(x, x_min), x_max)
    return x.clamp(x_min, x_max)


def clip_by_value(x: Tensor, clip_value_min: Any, clip_value_max: Any) -> Tensor:
    """Return x, cut to the range; the lower end holds if it is above the upper one."""
    return maximum(minimum(x, clip_value_max), clip_value_min)


def where(condition: Tensor, x: Any = None, y: Any = None) -> Tensor:
    """Return x where the condition holds, else y."""
    if x is None or y is None:
        raise ValueError("where without x and y is not supported")
    return torch.where(condition.bool(), x, y)


def nan_to_num(
    x: Tensor, *, nan: float = 0.0, posinf: Any = None, neginf: Any = None
) -> Tensor:
    """Return x with numbers in the place of nan and infinities."""
    return x.nan_to_num(nan, posinf, neginf)


def gelu(x: Tensor, *, approximate: bool = True) -> Tensor:
    """Return x times the normal distribution's share below x, or tanh's form of it."""
    return F.gelu(x, approximate="tanh" if approximate else "none")


def crelu(x: Tensor, *, axis: int = -1) -> Tensor:
    """Return relu(x) and relu(-x) side by side."""
    return torch.relu(torch.cat([x, -x], axis))


def bias_add(x: Tensor, bias: Tensor, *, data_format: Any = None) -> Tensor:
    """Add a number to each channel."""
    first = str(data_format).startswith("NC")
    if tuple(bias.shape) != (x.shape[1 if first else -1],):
        raise ValueError(f"a bias of shape {tuple(bias.shape)} for {tuple(x.shape)}")
    if x.is_meta:  # a sum would import torch's compiler, which takes a second
        return x
    if first:
        return x + bias.reshape(-1, *[1] * (x.dim() - 2))
    return x + bias


def matmul(
    a: Tensor,
    b: Tensor,
    *,
    transpose_a: bool = False,
    transpose_b: bool = False,
    adjoint_a: bool = False,
    adjoint_b: bool = False,
    output_type: Any = None,
) -> Tensor:
    """Return the products of the matrices in the last two axes."""
    a = a.mT if transpose_a or adjoint_a else a
    b = b.mT if transpose_b or adjoint_b else b
    return a @ b


def tensordot(a: Tensor, b: Tensor, *, axes: Any) -> Tensor:
    """Return the sums over axes of a and of b, or over the last and first few."""
    if isinstance(axes, tuple):
        axes = [list(part) if isinstance(part, tuple) else [part] for part in axes]
    return torch.tensordot(a, b, dims=axes)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Return numpy's dot: the last axis of a with the last but one of b."""
    if b.dim() < 2:
        return a @ b if b.dim() else a * b
    return torch.tensordot(a, b, dims=[[-1], [-2]])


def trace(x: Tensor, *, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Tensor:
    """Return the sums of the diagonals."""
    return x.diagonal(offset, axis1, axis2).sum(-1)


def binary_crossentropy(
    target: Tensor, output: Tensor, *, from_logits: bool = False
) -> Tensor:
    """Return the cross-entropy of each number, which is a probability or a logit."""
    if from_logits:
        return F.binary_cross_entropy_with_logits(output, target, reduction="none")
    return F.binary_cross_entropy(
        output.clamp(1e-7, 1 - 1e-7), target, reduction="none"
    )


def einsum(*operands: Tensor, subscripts: str) -> Tensor:
    """Return the sums of products that the letters tell."""
    return torch.einsum(subscripts, *operands)


def band_part(x: Tensor, *, num_lower: int, num_upper: int) -> Tensor:
    """Return the matrices with 0 outside of a band; below 0 all is in it."""
    x = x if num_lower < 0 else x.triu(-num_lower)
    return x if num_upper < 0 else x.tril(num_upper)


def diagonal(x: Tensor, *, k: int = 0) -> Tensor:
    """Return the diagonals of the matrices."""
    return x.diagonal(k, -2, -1)


def local_response_normalization(
    x: Tensor,
    *,
    depth_radius: int = 5,
    bias: float = 1,
    alpha: float = 1,
    beta: float = 0.5,
) -> Tensor:
    """Return x / (bias + alpha * squares of the neighboring channels) ** beta."""
    width = 2 * depth_radius + 1
    first = x.movedim(-1, 1)
    return F.local_response_norm(first, width, alpha * width, beta, bias).movedim(1, -1)


# Random at every call, in eval mode too, as TensorFlow's functions are.


def normal(
    *, shape: Any, mean: Any = 0.0, stddev: Any = 1.0, dtype: Any = None, device: Any
) -> Tensor:
    """Return normal random numbers."""
    return torch.randn(_row(shape), device=device) * stddev + mean


def uniform(
    *, shape: Any, minval: Any = 0, maxval: Any = None, dtype: Any = None, device: Any
) -> Tensor:
    """Return random numbers that are alike everywhere in the range."""
    high = 1 if maxval is None else maxval
    return torch.rand(_row(shape), device=device) * (high - minval) + minval


def _row(value: Axis) -> tuple:
    return value if isinstance(value, tuple) else (value,)


def dropout(x: Tensor, *, rate: float, noise_shape: Any = None) -> Tensor:
    """Drop numbers, outside of training as well."""
    if noise_shape is None:
        return F.dropout(x, rate)
    pairs = zip(noise_shape, x.shape, strict=True)
    shape = [size if n is None else n for n, size in pairs]
    return x * F.dropout(x.new_ones(shape), rate)
