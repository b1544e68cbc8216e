"""Tensors made from a shape, on the `device` of the tensor that has it."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from course_lib.keras_models.layers.operations.numbers import dtype_of
from course_lib.keras_models.layers.operations.row import Row
from course_lib.keras_models.layers.operations.sizes import Sizes, as_tuple


def _fill(*, dims: Any, value: Any, device: Any = None) -> Tensor:
    if isinstance(value, tuple | str):
        raise ValueError(f"got {value!r:.40} as the number to fill with")
    integer = torch.bool if isinstance(value, bool) else torch.int32
    dtype = integer if isinstance(value, int) else None
    return torch.full(as_tuple(dims), value, dtype=dtype, device=device)


def _full_of(number: float) -> Callable:
    def make(*, shape: Any, dtype: Any = None, device: Any) -> Tensor:
        made = _fill(dims=shape, value=number, device=device)
        return made.to(dtype_of(dtype or "float32"))

    return make


def _arange(
    *, start: Any, limit: Any = None, delta: Any = 1, dtype: Any = None, device: Any
) -> Tensor:
    """Return tf.range: start, start + delta, ... below `limit`."""
    if limit is None:
        start, limit = 0, start
    integers = not isinstance(start + limit + delta, float)
    new = torch.int32 if integers else None
    new = new if dtype is None else dtype_of(dtype)
    return torch.arange(start, limit, delta, dtype=new, device=device)


def _eye(
    *,
    num_rows: int,
    num_columns: Any = None,
    batch_shape: Any = None,
    dtype: Any = None,
    device: Any = None,
) -> Tensor:
    made = torch.eye(num_rows, num_columns or num_rows, device=device)
    return made.expand(*as_tuple(batch_shape or ()), *made.shape)


# Random at every call, in eval mode too, as TensorFlow's functions are.


def _normal(
    *, shape: Any, mean: Any = 0.0, stddev: Any = 1.0, dtype: Any = None, device: Any
) -> Tensor:
    return torch.randn(as_tuple(shape), device=device) * stddev + mean


def _uniform(
    *, shape: Any, minval: Any = 0, maxval: Any = None, dtype: Any = None, device: Any
) -> Tensor:
    high = 1 if maxval is None else maxval
    return torch.rand(as_tuple(shape), device=device) * (high - minval) + minval


def _dropout(x: Tensor, *, rate: float, noise_shape: Any = None) -> Tensor:
    """Drop numbers, outside of training as well."""
    if noise_shape is None:
        return F.dropout(x, rate)
    pairs = zip(noise_shape, x.shape, strict=True)
    shape = [size if n is None else n for n, size in pairs]
    return x * F.dropout(x.new_ones(shape), rate)


ROWS = (
    Row(lambda x: Sizes(tuple(x.shape), x.device), "", "shape", "Shape"),
    Row(lambda x: Sizes(math.prod(x.shape), x.device), "", "size", "Size"),
    Row(lambda x: Sizes(x.dim(), x.device), "", "rank", "Rank"),
    Row(_fill, "", "fill", "Fill"),
    Row(_full_of(0.0), "", "zeros"),
    Row(_full_of(1.0), "", "ones"),
    Row(_arange, "", "range", "Range start limit delta"),
    Row(_eye, "", "eye"),
    Row(_normal, "", "random.normal"),
    Row(_uniform, "", "random.uniform"),
    Row(_dropout, "", "nn.dropout"),
)
