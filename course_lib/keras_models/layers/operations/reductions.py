"""What joins the numbers along some axes: sums, extremes, norms, running sums, ranks.

In these modules a function's positional arguments are tensors, or numbers where one
tensor meets them; its keywords are settings.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Axis = Any


def axes_of(x: Tensor, axis: Axis) -> tuple[int, ...]:
    """Return the axes as a tuple; None stands for all."""
    if axis is None:
        return tuple(range(x.dim()))
    return tuple(axis) if isinstance(axis, list | tuple) else (axis,)


def reduced(function: Callable) -> Callable:
    """Give a function of (x, axes, keepdims) the arguments of a reduction."""

    def reduce(
        x: Tensor, *, axis: Axis = None, keepdims: bool = False, initial: Any = None
    ) -> Tensor:
        if initial is not None:
            raise ValueError(f"initial={initial!r} is not supported")
        if axis == ():  # torch takes no axes for all of them
            return x
        return function(x, axes_of(x, axis), bool(keepdims))

    return reduce


def prod(x: Tensor, axes: tuple[int, ...], keepdims: bool) -> Tensor:
    """Return the product along the axes."""
    for place in sorted((a % x.dim() for a in axes), reverse=True):
        x = x.prod(place, keepdim=keepdims)
    return x


def whole_mean(x: Tensor, axes: tuple[int, ...], keepdims: bool) -> Tensor:
    """Return the mean, which TensorFlow cuts to a whole number for whole numbers."""
    if x.is_floating_point():
        return x.mean(axes, keepdims)
    total = x.sum(axes, keepdims, dtype=torch.int64)
    count = x.numel() // max(total.numel(), 1)
    return total.div(count, rounding_mode="trunc").to(x.dtype)


def place_of_extreme(function: Callable, default: Axis = None) -> Callable:
    """Return argmax or argmin; along `default` where no axis is given."""

    def at(
        x: Tensor, *, axis: Axis = None, keepdims: bool = False, output_type: Any = None
    ) -> Tensor:
        found = function(x, default if axis is None else axis, bool(keepdims))
        return found.int() if output_type == "int32" else found

    return at


def average(x: Tensor, weights: Any = None, *, axis: Axis = None) -> Tensor:
    """Return the plain mean."""
    if weights is not None:
        raise ValueError("average with weights is not supported")
    return x.mean(axes_of(x, axis))


def variance(x: Tensor, axes: tuple[int, ...], keepdims: bool) -> Tensor:
    """Return the variance over the whole population."""
    return x.var(axes, correction=0, keepdim=keepdims)


def deviation(x: Tensor, axes: tuple[int, ...], keepdims: bool) -> Tensor:
    """Return the standard deviation over the whole population."""
    return variance(x, axes, keepdims).sqrt()


def median(x: Tensor, axes: tuple[int, ...], keepdims: bool) -> Tensor:
    """Return the median; of an even count the mean of both middle numbers."""
    return quantile(x, 0.5, axis=axes, keepdims=keepdims)


def quantile(
    x: Tensor,
    q: Any,
    *,
    axis: Axis = None,
    method: str = "linear",
    keepdims: bool = False,
) -> Tensor:
    """Return the number below which the share q of the numbers lies."""
    axes = sorted(place % x.dim() for place in axes_of(x, axis))
    if isinstance(q, Tensor) and q.dim():
        raise ValueError("several quantiles at once are not supported")
    flat = x.movedim(axes, tuple(range(-len(axes), 0))).flatten(-len(axes))
    found = flat.quantile(q, -1, interpolation=method)
    for place in axes if keepdims else []:
        found = found.unsqueeze(place)
    return found


def moments(
    x: Tensor, *, axes: Axis, keepdims: bool = False, synchronized: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the mean and the variance."""
    places = axes_of(x, axes)
    return x.mean(places, bool(keepdims)), variance(x, places, bool(keepdims))


def norm(
    x: Tensor, *, ord: Any = None, axis: Axis = None, keepdims: bool = False
) -> Tensor:
    """Return the norm of vectors, by default the Euclidean one."""
    axes = axes_of(x, axis)
    euclidean = ord is None or ord in ("euclidean", "fro") or (ord == 2 and x.dim() < 2)
    if len(axes) > 1 and axis is not None and not euclidean:
        raise ValueError(f"the norm of a matrix with ord={ord!r:.20} is not supported")
    order = 2 if euclidean else float(ord)
    return torch.linalg.vector_norm(x, order, axes, bool(keepdims))


def normalize(
    x: Tensor, *, axis: Axis = -1, order: Any = 2, epsilon: Any = None
) -> Tensor:
    """Return x / max(norm, sqrt(epsilon)), Keras 3's normalize."""
    # Keras bounds the squared sum, torch the norm itself.
    return F.normalize(x, order, axis, (epsilon or 1e-7) ** 0.5)


def l2_normalize(
    x: Tensor, *, axis: Axis = None, epsilon: float = 1e-12, dim: Axis = None
) -> Tensor:
    """Return x / sqrt(max(sum(x**2), epsilon)), tf.math.l2_normalize."""
    axis = dim if axis is None else axis
    total = x.square().sum(axes_of(x, axis), keepdim=True)
    return x * total.clamp(min=epsilon).rsqrt()


def running(function: Callable) -> Callable:
    """Give a running sum or product TensorFlow's arguments."""

    def accumulate(
        x: Tensor,
        *,
        axis: int | None = 0,
        exclusive: bool = False,
        reverse: bool = False,
        dtype: Any = None,
    ) -> Tensor:
        if axis is None:
            x, axis = x.reshape(-1), 0
        x = x.flip(axis) if reverse else x
        found = function(x, axis)
        if exclusive:
            neutral = function(torch.zeros_like(x.narrow(axis, 0, 1)), axis)
            neutral = neutral + (1 if function is torch.cumprod else 0)
            found = torch.cat([neutral, found.narrow(axis, 0, x.shape[axis] - 1)], axis)
        return found.flip(axis) if reverse else found

    return accumulate


def count_nonzero(
    x: Tensor, *, axis: Axis = None, keepdims: bool = False, dtype: Any = None
) -> Tensor:
    """Return how many numbers are not 0."""
    return (x != 0).sum(axes_of(x, axis), bool(keepdims))


def top_k(
    x: Tensor, *, k: int = 1, sorted: bool = True, index_type: Any = None
) -> tuple[Tensor, Tensor]:
    """Return the k largest numbers along the last axis, and their places."""
    values, places = x.sort(dim=-1, descending=True, stable=True)
    return values[..., :k], places[..., :k].int()


def _descends(direction: Any) -> bool:
    if direction not in ("ASCENDING", "DESCENDING"):
        raise ValueError(f"direction={direction!r:.40}")
    return direction == "DESCENDING"


def sort(x: Tensor, *, axis: int = -1, direction: str = "ASCENDING") -> Tensor:
    """Return the numbers in order along an axis."""
    return x.sort(dim=axis, descending=_descends(direction)).values


def argsort(
    x: Tensor, *, axis: int = -1, direction: str = "ASCENDING", stable: bool = False
) -> Tensor:
    """Return the places of the numbers in order; the first of equal ones first."""
    places = x.argsort(dim=axis, descending=_descends(direction), stable=True)
    return places.int()


def along(function: Callable) -> Callable:
    """Give softmax and its kin an axis."""

    def apply(x: Tensor, *, axis: int | None = -1) -> Tensor:
        return function(x, dim=-1 if axis is None else axis)

    return apply


def softmax_cross_entropy(labels: Tensor, logits: Tensor, *, axis: int = -1) -> Tensor:
    """Return -sum(labels * log_softmax(logits)) along the axis."""
    return -(labels * F.log_softmax(logits, axis)).sum(axis)


def sigmoid_cross_entropy(labels: Tensor, logits: Tensor) -> Tensor:
    """Return the cross-entropy of each number with sigmoid(logits)."""
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="none")


def clip_by_norm(x: Tensor, clip_norm: Any, *, axes: Axis = None) -> Tensor:
    """Return x, shortened where its norm along the axes is above `clip_norm`."""
    length = torch.linalg.vector_norm(x, 2, axes_of(x, axes), True)
    return x * clip_norm / length.clamp(min=clip_norm)
