"""What tf.shape gives: Python's whole numbers, so that a batch's size may stay open.

A tensor of sizes could not be read on the meta device, nor while a model is exported.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

LARGEST_SIZE = 2**53  # a number above comes from a damaged file


class NoSizesError(ValueError):
    """The answer is no row of numbers; tensors of the sizes must do."""


class Sizes:
    """A number, or a row of numbers, that follows from the shape of a tensor.

    Args:
        value: a number or a tuple of them.
        device: where the tensor lies whose shape it was.

    >>> Sizes((2, 3), "cpu").tensor()
    tensor([2, 3], dtype=torch.int32)
    """

    is_meta = False

    def __init__(self, value: Any, device: Any) -> None:
        self.value, self.device = value, device
        for number in value if isinstance(value, tuple) else (value,):
            if type(number) is int and abs(number) > LARGEST_SIZE:
                raise ValueError(f"a size of {number:.1e} is too large")

    @property
    def shape(self) -> tuple[int, ...]:
        """Return () for a number, (count,) for a row."""
        return (len(self.value),) if isinstance(self.value, tuple) else ()

    def dim(self) -> int:
        """Return the number of axes."""
        return len(self.shape)

    def numel(self) -> int:
        """Return how many numbers it holds."""
        return math.prod(self.shape)

    def tensor(self) -> Tensor:
        """Return a tensor of int32, or of float32 where a number is no whole one."""
        if not isinstance(self.value, tuple):
            return self._scalar(self.value)
        if not self.value:
            return torch.empty(0, dtype=torch.int32, device=self.device)
        return torch.stack([self._scalar(number) for number in self.value])

    def _scalar(self, number: Any) -> Tensor:
        kind = torch.int32
        if isinstance(number, float | torch.SymFloat):
            kind = torch.float32
        elif isinstance(number, bool | torch.SymBool):
            kind = torch.bool
        return torch.scalar_tensor(number, dtype=kind, device=self.device)


def as_tensor(value: Any) -> Any:
    """Return a tensor where `value` is `Sizes`, else the value."""
    return value.tensor() if isinstance(value, Sizes) else value


def _each(function: Callable) -> Callable:
    """Apply a function of numbers to rows too, number by number."""

    def apply(*values: Any) -> Any:
        counts = {len(v) for v in values if isinstance(v, tuple)} - {1}
        if not any(isinstance(v, tuple) for v in values):
            return function(*values)
        if len(counts) > 1:
            raise ValueError(f"rows of {sorted(counts)} sizes don't fit together")
        count = counts.pop() if counts else 1
        rows = [v if isinstance(v, tuple) else (v,) for v in values]
        rows = [row * count if len(row) == 1 else row for row in rows]
        return tuple(map(function, *rows))

    return apply


def _get_item(x: Any, key: Any) -> Any:
    key = key[0] if isinstance(key, tuple) and len(key) == 1 else key
    if not isinstance(x, tuple) or not isinstance(key, int | slice):
        raise NoSizesError
    return x[key]


def _row(value: Any) -> tuple:
    return value if isinstance(value, tuple) else (value,)


def _concatenate(parts: tuple, axis: int = 0) -> tuple:
    if any(isinstance(n, tuple) for part in parts for n in _row(part)):
        raise NoSizesError
    return sum((_row(part) for part in parts), ())


def _stack(parts: tuple, axis: int = 0) -> tuple:
    if any(isinstance(part, tuple) for part in parts):
        raise NoSizesError
    return parts


def _take(x: Any, indices: Any, axis: Any = None, batch_dims: int = 0) -> Any:
    if not isinstance(x, tuple) or not all(isinstance(i, int) for i in _row(indices)):
        raise NoSizesError
    return tuple(x[i] for i in indices) if isinstance(indices, tuple) else x[indices]


def _whole(function: Callable) -> Callable:
    def reduce(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
        found = function(_row(x))
        return (found,) if keepdims else found

    return reduce


def _same(x: Any, **_: Any) -> Any:
    return x


def _cast(x: Any, dtype: str = "float32") -> Any:
    if dtype.startswith(("int", "uint")):
        return _each(lambda n: n if isinstance(n, int | torch.SymInt) else int(n))(x)
    if dtype.startswith(("float", "bfloat", "half", "double")):
        return _each(lambda n: n * 1.0)(x)
    raise NoSizesError


def _unstack(x: Any, num: Any = None, axis: int = 0) -> list:
    return list(x)


def _slice(x: Any, begin: Any, size: Any) -> Any:
    start, count = _row(begin)[0], _row(size)[0]
    return x[start:] if count == -1 else x[start : start + count]


def _strided(x: Any, begin: Any, end: Any, strides: Any = None, **masks: int) -> Any:
    if not isinstance(x, tuple) or len(begin) != 1 or masks.get("new_axis_mask"):
        raise NoSizesError
    if masks.get("shrink_axis_mask"):
        return x[begin[0]]
    first = None if masks.get("begin_mask") else begin[0]
    last = None if masks.get("end_mask") else end[0]
    return x[first : last : strides[0] if strides else None]


def _reshape(x: Any, newshape: Any) -> Any:
    newshape = _row(newshape)
    if len(newshape) > 1 or (not newshape and len(_row(x)) > 1):
        raise NoSizesError
    return _row(x) if newshape else _row(x)[0]


def _expand_dims(x: Any, axis: Any) -> tuple:
    if isinstance(x, tuple):
        raise NoSizesError
    return (x,)


def _squeeze(x: Any, axis: Any = None) -> Any:
    return x[0] if isinstance(x, tuple) and len(x) == 1 else x


# The operations that can answer by numbers, under the names of the table.
SIZE_OPERATIONS: dict[str, Callable] = {
    "Add": _each(operator.add),
    "Subtract": _each(operator.sub),
    "Multiply": _each(operator.mul),
    "FloorDivide": _each(operator.floordiv),
    "Mod": _each(operator.mod),
    "TrueDivide": _each(operator.truediv),
    "math.truediv": _each(operator.truediv),
    "Maximum": _each(lambda x, y: x if x >= y else y),
    "Minimum": _each(lambda x, y: x if x <= y else y),
    "Negative": _each(operator.neg),
    "Greater": _each(operator.gt),
    "GreaterEqual": _each(operator.ge),
    "Less": _each(operator.lt),
    "LessEqual": _each(operator.le),
    "Equal": _each(operator.eq),
    "NotEqual": _each(operator.ne),
    "Where": _each(lambda condition, x, y: x if condition else y),
    "OnesLike": _each(lambda n: 1),
    "ZerosLike": _each(lambda n: 0),
    "Identity": _same,
    "StopGradient": _same,
    "Cast": _cast,
    "GetItem": _get_item,
    "Take": _take,
    "gather": _take,
    "slice": _slice,
    "strided_slice": _strided,
    "Concatenate": _concatenate,
    "Stack": _stack,
    "Unstack": _unstack,
    "Prod": _whole(math.prod),
    "Sum": _whole(sum),
    "Max": _whole(max),
    "Min": _whole(min),
    "Reshape": _reshape,
    "ExpandDims": _expand_dims,
    "Squeeze": _squeeze,
}
