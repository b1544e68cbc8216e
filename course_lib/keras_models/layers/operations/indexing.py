"""What picks numbers by their places: indices, slices, one-hot rows."""

from typing import Any

import torch
from torch import Tensor

from course_lib.keras_models.layers.base import place_of
from course_lib.keras_models.layers.operations.numbers import dtype_of
from course_lib.keras_models.layers.operations.reductions import Axis
from course_lib.keras_models.layers.operations.row import Row


def _take(x: Tensor, indices: Any, *, axis: Axis = None) -> Tensor:
    """Pick places along an axis, of the flat tensor where none is given."""
    if axis is None:
        x, axis = x.reshape(-1), 0
    return _gather(x, indices, axis=axis)


def _gather(
    x: Tensor, indices: Any, *, axis: Axis = None, batch_dims: int = 0
) -> Tensor:
    """Return tf.gather: the places of each entry of the first `batch_dims` axes.

    They are picked along the first axis after these where none is given.
    """
    chosen = torch.as_tensor(indices, device=x.device).long()
    count = place_of(batch_dims, chosen.dim() + 1)
    axis = count if axis is None else place_of(axis, x.dim())
    if axis < count or x.shape[:count] != chosen.shape[:count]:
        raise ValueError(f"batch_dims={count} for {x.shape} and indices {chosen.shape}")
    chosen = torch.where(chosen < 0, chosen + x.shape[axis], chosen)
    shape = (*x.shape[:axis], *chosen.shape[count:], *x.shape[axis + 1 :])
    if not count:
        return x.index_select(axis, chosen.reshape(-1)).reshape(shape)
    rows = x.movedim(axis, count).flatten(0, count - 1)  # (rows, places, ...)
    index = chosen.reshape(len(rows), -1)
    row = torch.arange(len(rows), device=x.device).unsqueeze(1)
    taken = rows[row, index].movedim(1, axis - count + 1)
    return taken.reshape(shape)


def _take_along_axis(x: Tensor, indices: Tensor, *, axis: int) -> Tensor:
    chosen = indices.long()
    chosen = torch.where(chosen < 0, chosen + x.shape[axis], chosen)
    return x.take_along_dim(chosen, axis)


def _get_item(x: Tensor, *, key: Any) -> Any:
    """Return x[key]: numbers, slices with any step, Ellipsis and None."""
    keys = key if isinstance(key, tuple) else (key,)
    if not any(map(_steps_back, keys)):
        return x[keys]
    # torch has no steps below 0: flip these axes, then count from the other end.
    axis, new = 0, []
    taken = sum(k is not None and k is not Ellipsis for k in keys)
    for k in keys:
        if _steps_back(k):
            start, stop, step = k.indices(x.shape[axis])
            last = x.shape[axis] - 1
            k = slice(last - start, last - stop, -step)
            # On the meta device torch would import its compiler for a flip.
            x = x if x.is_meta else x.flip(axis)
        new.append(k)
        if k is not None:
            axis += x.dim() - taken if k is Ellipsis else 1
    return x[tuple(new)]


def _steps_back(key: Any) -> bool:
    return isinstance(key, slice) and (key.step or 1) < 0


def _cut(x: Tensor, *, begin: Any, size: Any) -> Tensor:
    """Return `size` places from `begin` along each axis; -1 is the rest."""
    if not len(begin) == len(size) == x.dim():
        raise ValueError(f"begin={begin} and size={size} for {x.dim()} axes")
    ends = [None if n == -1 else b + n for b, n in zip(begin, size, strict=True)]
    for b, n, whole in zip(begin, size, x.shape, strict=True):
        if b < 0 or n < -1 or b + max(n, 0) > whole:
            raise ValueError(f"begin={begin} and size={size} of {tuple(x.shape)}")
    return x[tuple(map(slice, begin, ends))]


def _strided(
    x: Tensor,
    *,
    begin: Any,
    end: Any,
    strides: Any = None,
    begin_mask: int = 0,
    end_mask: int = 0,
    ellipsis_mask: int = 0,
    new_axis_mask: int = 0,
    shrink_axis_mask: int = 0,
) -> Tensor:
    """Return tf.strided_slice; bit i of a mask is for entry i."""
    keys: list[Any] = []
    for i, start in enumerate(begin):
        bit = 1 << i
        if ellipsis_mask & bit:
            keys.append(Ellipsis)
        elif new_axis_mask & bit:
            keys.append(None)
        elif shrink_axis_mask & bit:
            keys.append(start)
        else:
            first = None if begin_mask & bit else start
            last = None if end_mask & bit else end[i]
            keys.append(slice(first, last, strides[i] if strides else None))
    return _get_item(x, key=tuple(keys))


def _one_hot(
    x: Tensor,
    on_value: Any = None,
    off_value: Any = None,
    *,
    depth: int,
    axis: int | None = -1,
    dtype: Any = None,
) -> Tensor:
    """Return `on_value` at the place that each number names, else `off_value`."""
    if isinstance(on_value, Tensor) or isinstance(off_value, Tensor):
        raise ValueError("on_value and off_value are wanted as numbers")
    on, off = 1 if on_value is None else on_value, off_value or 0
    named = x.unsqueeze(-1) == torch.arange(depth, device=x.device)
    encoded = torch.where(named, on, off).to(dtype_of(dtype or "float32"))
    return encoded.movedim(-1, -1 if axis is None else axis)


def _multi_hot(x: Tensor, *, depth: int, axis: int = -1, dtype: Any = None) -> Tensor:
    """Return 1 at all places that the numbers along the last axis name, else 0."""
    encoded = _one_hot(x, depth=depth, axis=axis, dtype=dtype)
    return encoded.amax(-2 if x.dim() > 1 else 0)


ROWS = (
    Row(_cut, "Slice shape=size", "slice", "Slice"),
    Row(_strided, "", "strided_slice", "StridedSlice x begin end strides"),
    Row(_get_item, "GetItem", "__operators__.getitem slice_spec=key"),
    Row(_take, "Take"),
    Row(
        _gather,
        "",
        "gather, nn.embedding_lookup ids=indices",
        "GatherV2 x indices axis",
    ),
    Row(lambda x, indices: x[indices.long().unbind(-1)], "", "gather_nd"),
    Row(_take_along_axis, "TakeAlongAxis"),
    Row(lambda x, *, n=1, axis=-1: torch.diff(x, n, axis), "Diff"),
    Row(
        _one_hot,
        "OneHot num_classes=depth",
        "one_hot",
        "OneHot x depth on_value off_value",
    ),
    Row(_multi_hot, "MultiHot num_classes=depth"),
)
