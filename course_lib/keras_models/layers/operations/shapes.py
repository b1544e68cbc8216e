"""What joins, cuts, moves and picks numbers without changing them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from course_lib.keras_models.layers.base import place_of
from course_lib.keras_models.layers.operations.numbers import dtype_of
from course_lib.keras_models.layers.operations.reductions import Axis, axes_of
from course_lib.keras_models.layers.operations.sizes import Sizes

MOST_PARTS = 10_000  # tensors that one operation returns


def concatenate(parts: list[Tensor], *, axis: int = -1) -> Tensor:
    """Join tensors along an axis that they have."""
    return torch.cat(parts, axis)


def stack(parts: list[Tensor], *, axis: int = 0) -> Tensor:
    """Join tensors along a new axis."""
    return torch.stack(parts, axis)


def add_n(parts: list[Tensor]) -> Tensor:
    """Return the sum of the tensors."""
    return sum(parts[1:], parts[0])


def split(x: Tensor, *, indices_or_sections: Any, axis: int = 0) -> tuple[Tensor, ...]:
    """Cut into equal sections, or at indices."""
    if isinstance(indices_or_sections, int):
        return split_sizes(x, num_or_size_splits=indices_or_sections, axis=axis)
    return torch.tensor_split(x, tuple(indices_or_sections), axis)


def split_sizes(
    x: Tensor, *, num_or_size_splits: Any, axis: int = 0, num: Any = None
) -> tuple[Tensor, ...]:
    """Cut into a number of equal parts, or into parts of given sizes; one may be -1."""
    size, sizes = x.shape[axis], num_or_size_splits
    if isinstance(sizes, int):
        if not 1 <= sizes <= MOST_PARTS or size % sizes:
            raise ValueError(f"{size} places don't split into {sizes}")
        sizes = (size // sizes,) * sizes
    elif len(sizes) > MOST_PARTS:
        raise ValueError(f"{len(sizes)} parts are too many")
    elif -1 in sizes:
        rest = size - sum(sizes) - 1
        sizes = tuple(rest if n == -1 else n for n in sizes)
    return x.split(sizes, axis)


def unstack(x: Tensor, *, num: Any = None, axis: int = 0) -> tuple[Tensor, ...]:
    """Cut into single places along an axis, which goes away."""
    if x.shape[axis] > MOST_PARTS:
        raise ValueError(f"{x.shape[axis]} parts are too many")
    return x.unbind(axis)


def reshape(x: Tensor, *, newshape: Any) -> Tensor:
    """Return the same numbers in another shape; one size may be -1 or None."""
    sizes = newshape if isinstance(newshape, list | tuple) else [newshape]
    return x.reshape([-1 if size is None else size for size in sizes])


def batch_flatten(x: Tensor) -> Tensor:
    """(batch, ...) -> (batch, numbers)."""
    return x.reshape(x.shape[0], -1)


def ensure_shape(x: Tensor, *, shape: Any) -> Tensor:
    """Return x.

    Raises:
        ValueError: it has another shape than the file says.
    """
    open_to = [size if n is None else n for n, size in zip(shape, x.shape, strict=True)]
    if open_to != list(x.shape):
        raise ValueError(f"got the shape {tuple(x.shape)}; wanted {shape}")
    return x


def transpose(x: Tensor, *, axes: Any = None) -> Tensor:
    """Reorder the axes, by default to the reverse order."""
    return x.permute(*(axes or range(x.dim())[::-1]))


def expand_dims(x: Tensor, *, axis: Axis) -> Tensor:
    """Add axes of size 1."""
    for place in axes_of(x, axis):
        x = x.unsqueeze(place)
    return x


def squeeze(x: Tensor, *, axis: Axis = None) -> Tensor:
    """Leave out axes of size 1.

    Raises:
        ValueError: an axis is longer; torch would leave it as it is.
    """
    if axis is None or axis == ():
        return x.squeeze()
    for place in axes_of(x, axis):
        if x.shape[place] != 1:
            raise ValueError(f"axis {place} of the shape {tuple(x.shape)} is not 1")
    return x.squeeze(axes_of(x, axis))


def flip(x: Tensor, *, axis: Axis = None) -> Tensor:
    """Turn the order along the axes."""
    return x.flip(axes_of(x, axis))


def roll(x: Tensor, *, shift: Any, axis: Axis = None) -> Tensor:
    """Shift the numbers along the axes; what leaves comes in again."""
    return torch.roll(x, shift, axis)


def repeat(x: Tensor, *, repeats: Any, axis: Axis = None) -> Tensor:
    """Repeat each place, all as often or each by its own count."""
    if isinstance(repeats, int):
        return x.repeat_interleave(repeats, axis)
    if axis is None:
        x, axis = x.reshape(-1), 0
    repeats = tuple(repeats) * (x.shape[axis] if len(repeats) == 1 else 1)
    if len(repeats) != x.shape[axis] or min(repeats, default=0) < 0:
        raise ValueError(f"{len(repeats)} repeats for {x.shape[axis]} places")
    if sum(repeats) > MOST_PARTS * max(len(repeats), 1):
        raise ValueError(f"{sum(repeats)} repeats are too many")
    places = [i for i, count in enumerate(repeats) for _ in range(count)]
    return x.index_select(axis, torch.tensor(places, device=x.device))


def tile(x: Tensor, *, repeats: Any) -> Tensor:
    """Repeat the whole tensor along its axes."""
    return torch.tile(x, axes_of(x, repeats))


def broadcast_to(x: Tensor, *, shape: Any) -> Tensor:
    """Repeat along axes of size 1 until the shape is reached."""
    return x.broadcast_to(shape)


def pad(
    x: Tensor, constant_values: Any = None, *, pad_width: Any, mode: str = "constant"
) -> Tensor:
    """Pad each axis by (before, after): by a number, or by a mirror at the edge."""
    if len(pad_width) != x.dim():
        raise ValueError(f"{len(pad_width)} pairs of pads for {x.dim()} axes")
    if mode.lower() == "constant":
        widths = [n for pair in reversed(pad_width) for n in pair]
        return F.pad(x, widths, value=constant_values or 0.0)
    if mode.lower() not in ("reflect", "symmetric", "edge"):
        raise ValueError(f"pad with mode={mode!r:.40} is not supported")
    for axis, (before, after) in enumerate(pad_width):
        if before or after:
            x = _mirror(x, axis, before, after, mode.lower())
    return x


def _mirror(x: Tensor, axis: int, before: int, after: int, mode: str) -> Tensor:
    size = x.shape[axis]
    if mode == "edge":
        places = torch.arange(-before, size + after, device=x.device)
        return x.index_select(axis, places.clamp(0, size - 1))
    edge = 1 if mode == "reflect" else 0  # the edge itself comes again or not
    if min(before, after) < 0 or max(before, after) > size - edge:
        raise ValueError(f"pads of {before} and {after} for {size} places in a mirror")
    start = x.narrow(axis, edge, before).flip(axis)
    end = x.narrow(axis, size - edge - after, after).flip(axis)
    return torch.cat([start, x, end], axis)


def take(x: Tensor, indices: Any, *, axis: Axis = None, batch_dims: int = 0) -> Tensor:
    """Pick places along an axis; the first `batch_dims` axes go side by side."""
    chosen = torch.as_tensor(indices, device=x.device).long()
    if batch_dims:
        return _take_side_by_side(x, chosen, axis, batch_dims)
    if axis is None:
        x, axis = x.reshape(-1), 0
    axis = place_of(axis, x.dim())
    chosen = torch.where(chosen < 0, chosen + x.shape[axis], chosen)
    taken = x.index_select(axis, chosen.reshape(-1))
    return taken.reshape(*x.shape[:axis], *chosen.shape, *x.shape[axis + 1 :])


def _take_side_by_side(x: Tensor, chosen: Tensor, axis: Axis, count: int) -> Tensor:
    count = place_of(count, chosen.dim() + 1)
    axis = count if axis is None else place_of(axis, x.dim())
    if axis < count or x.shape[:count] != chosen.shape[:count]:
        raise ValueError(f"batch_dims={count} for {x.shape} and indices {chosen.shape}")
    rows = x.movedim(axis, count).flatten(0, count - 1)  # (rows, places, ...)
    index = chosen.reshape(len(rows), -1)
    row = torch.arange(len(rows), device=x.device).unsqueeze(1)
    taken = rows[row, index]  # (rows, chosen, outer, inner)
    taken = taken.movedim(1, axis - count + 1)
    shape = (*x.shape[:axis], *chosen.shape[count:], *x.shape[axis + 1 :])
    return taken.reshape(shape)


def gather(
    x: Tensor, indices: Any, *, axis: Axis = None, batch_dims: int = 0
) -> Tensor:
    """Return tf.gather: along the first axis after the batch where none is given."""
    axis = batch_dims if axis is None else axis
    return take(x, indices, axis=axis, batch_dims=batch_dims)


def gather_nd(x: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    """Pick places by whole coordinates, which lie along the last axis of `indices`."""
    if batch_dims:
        raise ValueError(f"gather_nd with batch_dims={batch_dims} is not supported")
    return x[indices.long().unbind(-1)]


def embedding_lookup(params: Tensor, ids: Any, *, max_norm: Any = None) -> Tensor:
    """Return a row of the table for each number."""
    if max_norm is not None:
        raise ValueError(f"max_norm={max_norm!r:.40} is not supported")
    return take(params, ids, axis=0)


def get_item(x: Tensor, *, key: Any) -> Any:
    """Return x[key]: numbers, slices with any step, Ellipsis and None."""
    keys = key if isinstance(key, tuple) else (key,)
    if not any(isinstance(k, slice) and (k.step or 1) < 0 for k in keys):
        return x[keys]
    # torch knows no steps below 0: turn these axes, then count from the other end.
    places = list(range(x.dim()))
    count = sum(k is not None and k is not Ellipsis for k in keys)
    axis, turned = 0, []
    for k in keys:
        if k is Ellipsis:
            axis += x.dim() - count
        elif k is not None:
            if isinstance(k, slice) and (k.step or 1) < 0:
                k = _turned(k, x.shape[places[axis]])
                # On the meta device torch would import its compiler for a flip.
                x = x if x.is_meta else x.flip(places[axis])
            axis += 1
        turned.append(k)
    return x[tuple(turned)]


def _turned(key: slice, size: int) -> slice:
    """Return the slice that picks the same places from the other end."""
    start, stop, step = key.indices(size)
    return slice(size - 1 - start, size - 1 - stop, -step)


def cut(x: Tensor, *, begin: Any, size: Any) -> Tensor:
    """Return tf.slice: `size` places from `begin` along each axis; -1 is the rest."""
    if not len(begin) == len(size) == x.dim():
        raise ValueError(f"begin={begin} and size={size} for {x.dim()} axes")
    ends = [None if n == -1 else b + n for b, n in zip(begin, size, strict=True)]
    for b, n, whole in zip(begin, size, x.shape, strict=True):
        if b < 0 or n < -1 or b + max(n, 0) > whole:
            raise ValueError(f"begin={begin} and size={size} of {tuple(x.shape)}")
    return x[tuple(map(slice, begin, ends))]


def strided(
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
    """Return tf.strided_slice; bit i of a mask speaks of entry i."""
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
    return get_item(x, key=tuple(keys))


def window(x: Tensor, *, start_indices: Any, shape: Any) -> Tensor:
    """Return Keras 3's slice: `shape` places from `start_indices` on."""
    return cut(x, begin=start_indices, size=shape)


def take_along_axis(x: Tensor, indices: Tensor, *, axis: Axis = None) -> Tensor:
    """Pick one place for each index, side by side."""
    if axis is None:
        x, indices, axis = x.reshape(-1), indices.reshape(-1), 0
    chosen = indices.long()
    return x.take_along_dim(
        torch.where(chosen < 0, chosen + x.shape[axis], chosen), axis
    )


def append(x: Tensor, y: Tensor, *, axis: Axis = None) -> Tensor:
    """Join two tensors, flat ones where no axis is given."""
    return torch.cat([x.flatten(), y.flatten()] if axis is None else [x, y], axis or 0)


def diff(x: Tensor, *, n: int = 1, axis: int = -1) -> Tensor:
    """Return what each place has more than the one before, n times."""
    return torch.diff(x, n, axis)


def multi_hot(
    x: Tensor,
    *,
    num_classes: int,
    axis: int = -1,
    dtype: Any = None,
    sparse: Any = None,
) -> Tensor:
    """Return 1 at all places that the numbers along the last axis name, else 0."""
    return one_hot(x, num_classes=num_classes, axis=axis).amax(-2 if x.dim() > 1 else 0)


def one_hot(
    x: Tensor,
    *,
    num_classes: int,
    axis: int = -1,
    dtype: Any = None,
    sparse: Any = None,
) -> Tensor:
    """Return 1 at the place that each number names, else 0."""
    classes = torch.arange(num_classes, device=x.device)
    encoded = (x.unsqueeze(-1) == classes).to(dtype_of(dtype or "float32"))
    return encoded.movedim(-1, axis)


def one_hot_between(
    x: Tensor,
    on_value: Any = 1.0,
    off_value: Any = 0.0,
    *,
    depth: int,
    axis: int | None = -1,
    dtype: Any = None,
) -> Tensor:
    """Return tf.one_hot: `on_value` and `off_value` in place of 1 and 0."""
    encoded = one_hot(x, num_classes=depth, axis=-1 if axis is None else axis)
    on, off = (
        v if v is not None else d for v, d in ((on_value, 1.0), (off_value, 0.0))
    )
    if isinstance(on, Tensor) or isinstance(off, Tensor):
        raise ValueError("on_value and off_value are wanted as numbers")
    return encoded * (on - off) + off


# From shapes alone; `device` is where the tensor lies that the shape came from.


def shape(x: Tensor, *, out_type: Any = None) -> Sizes:
    """Return the sizes of x."""
    return Sizes(tuple(x.shape), x.device)


def size(x: Tensor, *, out_type: Any = None) -> Sizes:
    """Return how many numbers x has."""
    return Sizes(math.prod(x.shape), x.device)


def rank(x: Tensor) -> Sizes:
    """Return how many axes x has."""
    return Sizes(x.dim(), x.device)


def fill(*, dims: Any, value: Any, device: Any = None) -> Tensor:
    """Return a tensor of one number."""
    if isinstance(value, tuple | str):
        raise ValueError(f"got {value!r:.40} as the number to fill with")
    kind = torch.int32 if isinstance(value, int) else None
    kind = torch.bool if isinstance(value, bool) else kind
    return torch.full(_row(dims), value, dtype=kind, device=device)


def arange(
    *, start: Any, limit: Any = None, delta: Any = 1, dtype: Any = None, device: Any
) -> Tensor:
    """Return tf.range: start, start + delta, ... below `limit`."""
    if limit is None:
        start, limit = 0, start
    kind = None if isinstance(start + limit + delta, float) else torch.int32
    if dtype is not None:
        kind = {"float32": torch.float32, "int64": torch.int64}.get(dtype, torch.int32)
    return torch.arange(start, limit, delta, dtype=kind, device=device)


def eye(
    *,
    num_rows: int,
    num_columns: Any = None,
    batch_shape: Any = None,
    dtype: Any = None,
    device: Any = None,
) -> Tensor:
    """Return ones on the diagonal, zeros elsewhere."""
    made = torch.eye(num_rows, num_columns or num_rows, device=device)
    return made.expand(*_row(batch_shape or ()), *made.shape)


def _row(value: Any) -> tuple:
    return value if isinstance(value, tuple) else (value,)
