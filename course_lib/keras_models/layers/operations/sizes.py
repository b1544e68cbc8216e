"""What tf.shape returns: numbers of Python, so that the size of a batch may stay open.

A tensor of sizes could not be read on the meta device, nor while a model is exported.
"""

import math
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
        device: that of the tensor with this shape.

    >>> Sizes((2, 3), "cpu").tensor()
    tensor([2, 3], dtype=torch.int32)
    """

    is_meta = False

    def __init__(self, value: Any, device: Any) -> None:
        self.value, self.device = value, device
        for number in as_tuple(value):
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
        """Return a tensor of int32, or of float32 for a number that is not whole."""
        if not isinstance(self.value, tuple):
            return self._scalar(self.value)
        if not self.value:
            return torch.empty(0, dtype=torch.int32, device=self.device)
        return torch.stack([self._scalar(number) for number in self.value])

    def _scalar(self, number: Any) -> Tensor:
        dtype = torch.int32
        if isinstance(number, float | torch.SymFloat):
            dtype = torch.float32
        elif isinstance(number, bool | torch.SymBool):
            dtype = torch.bool
        return torch.scalar_tensor(number, dtype=dtype, device=self.device)


def as_tensor(value: Any) -> Any:
    """Return a tensor where `value` is `Sizes`, else the value."""
    return value.tensor() if isinstance(value, Sizes) else value


def as_tuple(value: Any) -> tuple:
    """Return a list or tuple as a tuple, anything else as a tuple of one."""
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _each(function: Callable) -> Callable:
    """Apply a function of numbers to rows too, number by number."""

    def apply(*values: Any) -> Any:
        if not any(isinstance(v, tuple) for v in values):
            return function(*values)
        rows = [as_tuple(v) for v in values]
        counts = {len(row) for row in rows} - {1}
        if len(counts) > 1:
            raise ValueError(f"rows of {sorted(counts)} sizes don't fit together")
        count = counts.pop() if counts else 1
        return tuple(map(function, *(r * count if len(r) == 1 else r for r in rows)))

    return apply


def _check(known: bool) -> None:
    if not known:
        raise NoSizesError


def _get_item(x: Any, key: Any) -> Any:
    key = key[0] if isinstance(key, tuple) and len(key) == 1 else key
    _check(isinstance(x, tuple) and isinstance(key, int | slice))
    return x[key]


def _concatenate(parts: tuple, axis: int = 0) -> tuple:
    numbers = sum(map(as_tuple, parts), ())
    _check(not any(isinstance(number, tuple) for number in numbers))
    return numbers


def _stack(parts: tuple, axis: int = 0) -> tuple:
    _check(not any(isinstance(part, tuple) for part in parts))
    return parts


def _gather(x: Any, indices: Any, axis: Any = None, batch_dims: int = 0) -> Any:
    whole = all(isinstance(i, int) for i in as_tuple(indices))
    _check(isinstance(x, tuple) and whole)
    return tuple(x[i] for i in indices) if isinstance(indices, tuple) else x[indices]


def _whole(function: Callable) -> Callable:
    def reduce(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
        found = function(as_tuple(x))
        return (found,) if keepdims else found

    return reduce


def _cast(x: Any, dtype: str = "float32") -> Any:
    if dtype.startswith(("int", "uint")):
        return _each(lambda n: n if isinstance(n, int | torch.SymInt) else int(n))(x)
    if dtype.startswith(("float", "bfloat", "half", "double")):
        return _each(lambda n: n * 1.0)(x)
    raise NoSizesError


def _slice(x: Any, begin: Any, size: Any) -> Any:
    start, count = as_tuple(begin)[0], as_tuple(size)[0]
    return x[start:] if count == -1 else x[start : start + count]


def _strided(x: Any, begin: Any, end: Any, strides: Any = None, **masks: int) -> Any:
    row = isinstance(x, tuple) and len(begin) == 1
    _check(row and not masks.get("new_axis_mask"))
    if masks.get("shrink_axis_mask"):
        return x[begin[0]]
    first = None if masks.get("begin_mask") else begin[0]
    last = None if masks.get("end_mask") else end[0]
    return x[first : last : strides[0] if strides else None]


def _reshape(x: Any, newshape: Any) -> Any:
    newshape = as_tuple(newshape)
    _check(len(newshape) == 1 or (not newshape and len(as_tuple(x)) == 1))
    return as_tuple(x) if newshape else as_tuple(x)[0]


def _expand_dims(x: Any, axis: Any) -> tuple:
    _check(not isinstance(x, tuple))
    return (x,)


def _squeeze(x: Any, axis: Any = None) -> Any:
    return x[0] if isinstance(x, tuple) and len(x) == 1 else x


# The operations that can answer by numbers, under the names of the table. For the
# first ones the table's own function does, number by number.
ARITHMETIC = (
    *("Add", "Subtract", "Multiply", "FloorDivide", "Mod"),
    *("Greater", "GreaterEqual", "Less", "LessEqual", "Equal", "NotEqual"),
)
SIZE_OPERATIONS: dict[str, Callable] = {
    "Maximum": _each(lambda x, y: x if x >= y else y),
    "Minimum": _each(lambda x, y: x if x <= y else y),
    "math.truediv": _each(lambda x, y: x / y),
    "Negative": _each(lambda n: -n),
    "Where": _each(lambda condition, x, y: x if condition else y),
    "OnesLike": _each(lambda n: 1),
    "ZerosLike": _each(lambda n: 0),
    "Copy": lambda x: x,
    "StopGradient": lambda x: x,
    "Cast": _cast,
    "GetItem": _get_item,
    "gather": _gather,
    "Slice": _slice,
    "strided_slice": _strided,
    "Concatenate": _concatenate,
    "Stack": _stack,
    "Unstack": lambda x, num=None, axis=0: list(x),
    "Prod": _whole(math.prod),
    "Sum": _whole(sum),
    "Max": _whole(max),
    "Min": _whole(min),
    "Reshape": _reshape,
    "ExpandDims": _expand_dims,
    "Squeeze": _squeeze,
}


def size_function(name: str, function: Callable) -> Callable:
    """Return what computes with numbers what a row of the table does with tensors.

    Raises:
        NoSizesError: nothing does.
    """
    _check(name in ARITHMETIC or name in SIZE_OPERATIONS)
    return SIZE_OPERATIONS.get(name) or _each(function)
