"""What joins, cuts, moves and picks numbers without changing them."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from course_lib.keras_models.layers.operations.reductions import Axis, axes_of
from course_lib.keras_models.layers.operations.row import Row
from course_lib.keras_models.layers.operations.sizes import as_tuple

MOST_PARTS = 10_000  # tensors that one operation returns


# Join and cut


def _append(x: Tensor, y: Tensor, *, axis: Axis = None) -> Tensor:
    return torch.cat([x.flatten(), y.flatten()] if axis is None else [x, y], axis or 0)


def _split(
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


def _split_at(
    x: Tensor, *, indices_or_sections: Any, axis: int = 0
) -> tuple[Tensor, ...]:
    if isinstance(indices_or_sections, int):
        return _split(x, num_or_size_splits=indices_or_sections, axis=axis)
    return torch.tensor_split(x, tuple(indices_or_sections), axis)


def _unstack(x: Tensor, *, num: Any = None, axis: int = 0) -> tuple[Tensor, ...]:
    if x.shape[axis] > MOST_PARTS:
        raise ValueError(f"{x.shape[axis]} parts are too many")
    return x.unbind(axis)


# Axes


def _reshape(x: Tensor, *, newshape: Any) -> Tensor:
    """Return the same numbers in another shape; one size may be -1 or None."""
    return x.reshape([-1 if size is None else size for size in as_tuple(newshape)])


def _ensure_shape(x: Tensor, *, shape: Any) -> Tensor:
    wanted = [size if n is None else n for n, size in zip(shape, x.shape, strict=True)]
    if wanted != list(x.shape):
        raise ValueError(f"got the shape {tuple(x.shape)}; wanted {shape}")
    return x


def _transpose(x: Tensor, *, axes: Any = None) -> Tensor:
    return x.permute(*(axes or range(x.dim())[::-1]))


def _expand_dims(x: Tensor, *, axis: Axis) -> Tensor:
    for place in axes_of(x, axis):
        x = x.unsqueeze(place)
    return x


def _squeeze(x: Tensor, *, axis: Axis = None) -> Tensor:
    if axis is None or axis == ():
        return x.squeeze()
    axes = axes_of(x, axis)
    for place in axes:  # torch would leave a longer axis unchanged
        if x.shape[place] != 1:
            raise ValueError(f"axis {place} of the shape {tuple(x.shape)} is not 1")
    return x.squeeze(axes)


# Repeat and pad


def _repeat(x: Tensor, *, repeats: Any, axis: Axis = None) -> Tensor:
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


def _tile(x: Tensor, *, repeats: Any) -> Tensor:
    return torch.tile(x, as_tuple(repeats))


def _pad(
    x: Tensor, constant_values: Any = None, *, pad_width: Any, mode: str = "constant"
) -> Tensor:
    """Pad each axis by (before, after): by a number, or by a mirror at the edge."""
    mode = mode.lower()
    if len(pad_width) != x.dim():
        raise ValueError(f"{len(pad_width)} pairs of pads for {x.dim()} axes")
    if mode == "constant":
        widths = [n for pair in reversed(pad_width) for n in pair]
        return F.pad(x, widths, value=constant_values or 0.0)
    if mode not in ("reflect", "symmetric", "edge"):
        raise ValueError(f"pad with mode={mode!r:.40} is not supported")
    for axis, (before, after) in enumerate(pad_width):
        if before or after:
            x = _mirror(x, axis, before, after, mode)
    return x


def _mirror(x: Tensor, axis: int, before: int, after: int, mode: str) -> Tensor:
    size = x.shape[axis]
    if mode == "edge":
        places = torch.arange(-before, size + after, device=x.device)
        return x.index_select(axis, places.clamp(0, size - 1))
    edge = 1 if mode == "reflect" else 0  # whether the edge is the mirror's axis
    if min(before, after) < 0 or max(before, after) > size - edge:
        raise ValueError(f"pads of {before} and {after} for {size} places in a mirror")
    start = x.narrow(axis, edge, before).flip(axis)
    end = x.narrow(axis, size - edge - after, after).flip(axis)
    return torch.cat([start, x, end], axis)


ROWS = (
    Row(
        lambda parts, *, axis=-1: torch.cat(parts, axis),
        "Concatenate",
        "concat",
        "ConcatV2 *parts axis",
    ),
    Row(
        lambda parts, *, axis=0: torch.stack(parts, axis),
        "Stack",
        "stack",
        "Pack *parts",
    ),
    Row(lambda parts: sum(parts[1:], parts[0]), "", "math.add_n", "AddN *parts"),
    Row(lambda parts: torch.hstack(parts), "Hstack"),
    Row(lambda parts: torch.vstack(parts), "Vstack"),
    Row(_append, "Append"),
    Row(_split_at, "Split"),
    Row(
        _split,
        "",
        "split",
        "Split axis x num_split=num_or_size_splits,"
        "SplitV x num_or_size_splits axis num_split=num",
    ),
    Row(_unstack, "Unstack", "unstack", "Unpack"),
    Row(_reshape, "Reshape", "reshape shape=newshape", "Reshape"),
    Row(lambda x: x.reshape(-1), "Ravel"),
    Row(lambda x: x.reshape(x.shape[0], -1), "", "keras.backend.batch_flatten"),
    Row(_ensure_shape, "", "ensure_shape"),
    Row(_transpose, "Transpose", "transpose perm=axes", "Transpose x axes"),
    Row(lambda x, *, axis1, axis2: x.swapaxes(axis1, axis2), "Swapaxes"),
    Row(lambda x, *, source, destination: x.movedim(source, destination), "Moveaxis"),
    Row(_expand_dims, "ExpandDims", "expand_dims", "ExpandDims"),
    Row(_squeeze, "Squeeze", "squeeze", "Squeeze squeeze_dims=axis"),
    Row(
        lambda x, *, shape: x.broadcast_to(shape),
        "BroadcastTo",
        "broadcast_to",
        "BroadcastTo",
    ),
    Row(
        lambda x, *, axis=None: x.flip(axes_of(x, axis)),
        "Flip",
        "reverse",
        "ReverseV2 x axis",
    ),
    Row(torch.fliplr, "Fliplr"),
    Row(torch.flipud, "Flipud"),
    Row(lambda x, *, k=1, axes=(0, 1): torch.rot90(x, k, axes), "Rot90"),
    Row(lambda x, *, shift, axis=None: torch.roll(x, shift, axis), "Roll", "roll"),
    Row(_repeat, "Repeat", "repeat"),
    Row(_tile, "Tile", "tile multiples=repeats", "Tile"),
    Row(
        _pad,
        "Pad",
        "pad paddings=pad_width",
        "Pad, MirrorPad, PadV2 x pad_width constant_values",
    ),
)
