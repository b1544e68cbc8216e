"""What joins the numbers along some axes: sums, extremes, norms, running sums, ranks.

In these modules a function's positional arguments are tensors, or numbers where one
tensor meets them; its keywords are settings.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from course_lib.keras_models import activations
from course_lib.keras_models.layers.operations.numbers import as_floats
from course_lib.keras_models.layers.operations.row import Row
from course_lib.keras_models.layers.operations.sizes import as_tuple

Axis = Any
Axes = tuple[int, ...]


def axes_of(x: Tensor, axis: Axis) -> Axes:
    """Return the axes as a tuple; None stands for all."""
    return tuple(range(x.dim())) if axis is None else as_tuple(axis)


def _reduced(function: Callable) -> Callable:
    """Give a function of (x, axes, keepdims) the arguments of a reduction."""

    def reduce(
        x: Tensor,
        *,
        axis: Axis = None,
        keepdims: bool = False,
        initial: Any = None,
        dtype: Any = None,
    ) -> Tensor:
        if initial is not None:
            raise ValueError(f"initial={initial!r:.40} is not supported")
        if axis == ():  # torch takes no axes for all of them
            return x
        return function(x, axes_of(x, axis), bool(keepdims))

    return reduce


def _prod(x: Tensor, axes: Axes, keepdims: bool) -> Tensor:
    for place in sorted((a % x.dim() for a in axes), reverse=True):
        x = x.prod(place, keepdim=keepdims)
    return x


def _mean(x: Tensor, axes: Axes, keepdims: bool) -> Tensor:
    return as_floats(x).mean(axes, keepdims)


def _truncated_mean(x: Tensor, axes: Axes, keepdims: bool) -> Tensor:
    """Return TensorFlow's mean, which is a whole number for whole numbers."""
    if x.is_floating_point():
        return x.mean(axes, keepdims)
    total = x.sum(axes, keepdims, dtype=torch.int64)
    count = x.numel() // max(total.numel(), 1)
    return total.div(count, rounding_mode="trunc").to(x.dtype)


def _variance(x: Tensor, axes: Axes, keepdims: bool) -> Tensor:
    return as_floats(x).var(axes, correction=0, keepdim=keepdims)


def _extreme(function: Callable) -> Callable:
    """Give argmax or argmin the arguments of Keras 3 and TensorFlow."""

    def place(
        x: Tensor, *, axis: Axis = None, keepdims: bool = False, output_type: Any = None
    ) -> Tensor:
        found = function(x, axis, bool(keepdims))
        return found.int() if output_type == "int32" else found

    return place


def _quantile(
    x: Tensor, q: Any, *, axis: Axis = None, method: Any = None, keepdims: bool = False
) -> Tensor:
    """Return the number below which the share q of the numbers lies.

    A node of Keras does not use its `method` (keras v3.15.1
    keras/src/ops/numpy.py#L7046, as all since 3.0.0), so this is always linear.
    """
    axes = sorted(place % x.dim() for place in axes_of(x, axis))
    if isinstance(q, Tensor) and q.dim():
        raise ValueError("several quantiles at once are not supported")
    flat = as_floats(x).movedim(axes, tuple(range(-len(axes), 0)))
    found = flat.flatten(-len(axes)).quantile(q, -1)
    for place in axes if keepdims else []:
        found = found.unsqueeze(place)
    return found


def _moments(
    x: Tensor, *, axes: Axis, keepdims: bool = False, synchronized: bool = False
) -> tuple[Tensor, Tensor]:
    places = axes_of(x, axes)
    return _mean(x, places, bool(keepdims)), _variance(x, places, bool(keepdims))


def _norm(
    x: Tensor, *, ord: Any = None, axis: Axis = None, keepdims: bool = False
) -> Tensor:
    """Return the norm of vectors, by default the Euclidean one."""
    axes = axes_of(x, axis)
    euclidean = ord is None or ord in ("euclidean", "fro") or (ord == 2 and x.dim() < 2)
    if len(axes) > 1 and axis is not None and not euclidean:
        raise ValueError(f"the norm of a matrix with ord={ord!r:.20} is not supported")
    order = 2 if euclidean else float(ord)
    return torch.linalg.vector_norm(x, order, axes, bool(keepdims))


def _l2_normalize(x: Tensor, *, axis: Axis = None, epsilon: float = 1e-12) -> Tensor:
    total = x.square().sum(axes_of(x, axis), keepdim=True)
    return x * total.clamp(min=epsilon).rsqrt()


def _clip_by_norm(x: Tensor, clip_norm: Any, *, axes: Axis = None) -> Tensor:
    """Return x, shortened where its norm along the axes is above `clip_norm`."""
    length = torch.linalg.vector_norm(x, 2, axes_of(x, axes), True)
    return x * clip_norm / length.clamp(min=clip_norm)


def _running(function: Callable) -> Callable:
    """Give a running sum or product the arguments of Keras 3 and TensorFlow."""

    def accumulate(
        x: Tensor,
        *,
        axis: int | None = None,
        exclusive: bool = False,
        reverse: bool = False,
        dtype: Any = None,
    ) -> Tensor:
        if axis is None:
            x, axis = x.reshape(-1), 0
        x = x.flip(axis) if reverse else x
        if exclusive:  # each place without itself: shifted, behind the neutral number
            neutral = torch.ones_like if function is torch.cumprod else torch.zeros_like
            before = x.narrow(axis, 0, x.shape[axis] - 1)
            x = torch.cat([neutral(x.narrow(axis, 0, 1)), before], axis)
        found = function(x, axis)
        return found.flip(axis) if reverse else found

    return accumulate


def _top_k(
    x: Tensor, *, k: int = 1, sorted: bool = True, index_type: Any = None
) -> tuple[Tensor, Tensor]:
    """Return the k largest numbers along the last axis, and their places."""
    values, places = _sorted(x, -1, "DESCENDING")
    return values[..., :k], places[..., :k].int()


def _sorted(x: Tensor, axis: int, direction: str) -> tuple[Tensor, Tensor]:
    if direction not in ("ASCENDING", "DESCENDING"):
        raise ValueError(f"direction={direction!r:.40}")
    return x.sort(dim=axis, descending=direction == "DESCENDING", stable=True)


def _sort(x: Tensor, *, axis: int = -1, direction: str = "ASCENDING") -> Tensor:
    return _sorted(x, axis, direction)[0]


def _argsort(
    x: Tensor, *, axis: int = -1, direction: str = "ASCENDING", stable: bool = False
) -> Tensor:
    """Return the places of the numbers in order; the first of equal ones first."""
    return _sorted(x, axis, direction)[1].int()


def _along(function: Callable) -> Callable:
    """Give softmax and similar functions an axis."""

    def apply(x: Tensor, *, axis: int | None = -1) -> Tensor:
        return function(x, dim=-1 if axis is None else axis)

    return apply


def _softmax_cross_entropy(labels: Tensor, logits: Tensor, *, axis: int = -1) -> Tensor:
    return -(labels * F.log_softmax(logits, axis)).sum(axis)


_AXES = "x axis keep_dims=keepdims"
ROWS = (
    Row(_reduced(torch.sum), "Sum", "math.reduce_sum", f"Sum {_AXES}"),
    Row(_reduced(_mean), "Mean, Average"),
    Row(_reduced(_truncated_mean), "", "math.reduce_mean", f"Mean {_AXES}"),
    Row(_reduced(torch.amax), "Max, Amax", "math.reduce_max", f"Max {_AXES}"),
    Row(_reduced(torch.amin), "Min, Amin", "math.reduce_min", f"Min {_AXES}"),
    Row(_reduced(_prod), "Prod", "math.reduce_prod", f"Prod {_AXES}"),
    Row(_reduced(_variance), "Var", "math.reduce_variance"),
    Row(_reduced(lambda x, a, k: _variance(x, a, k).sqrt()), "Std", "math.reduce_std"),
    Row(_reduced(torch.any), "Any", "math.reduce_any", f"Any {_AXES}"),
    Row(_reduced(torch.all), "All", "math.reduce_all", f"All {_AXES}"),
    Row(_reduced(torch.logsumexp), "Logsumexp", "math.reduce_logsumexp"),
    Row(_reduced(lambda x, a, k: _quantile(x, 0.5, axis=a, keepdims=k)), "Median"),
    Row(_reduced(lambda x, a, k: x.amax(a, k) - x.amin(a, k)), "Ptp"),
    Row(_reduced(torch.nansum), "Nansum"),
    Row(_reduced(torch.nanmean), "Nanmean"),
    Row(_quantile, "Quantile"),
    Row(_moments, "Moments"),
    Row(
        _reduced(lambda x, a, k: (x != 0).sum(a, k)),
        "CountNonzero",
        "math.count_nonzero",
    ),
    Row(lambda x: (x == 0).float().mean(), "", "math.zero_fraction"),
    Row(lambda x: x.square().sum() / 2, "", "nn.l2_loss", "L2Loss"),
    Row(_extreme(torch.argmax), "Argmax", "math.argmax axis:=0", "ArgMax x axis"),
    Row(_extreme(torch.argmin), "Argmin", "math.argmin axis:=0"),
    Row(_norm, "Norm", "norm, math.reduce_euclidean_norm"),
    Row(
        lambda x, *, axis=-1, order=2, epsilon=None: F.normalize(
            x, order, axis, epsilon or 1e-7
        ),
        "Normalize",
    ),
    Row(_l2_normalize, "", "math.l2_normalize dim=axis"),
    Row(_clip_by_norm, "", "clip_by_norm"),
    Row(_running(torch.cumsum), "Cumsum", "math.cumsum axis:=0", "Cumsum x axis"),
    Row(_running(torch.cumprod), "Cumprod", "math.cumprod axis:=0"),
    Row(_sort, "Sort", "sort"),
    Row(_argsort, "Argsort", "argsort"),
    Row(_top_k, "TopK", "math.top_k"),
    Row(_along(F.softmax), "Softmax", "nn.softmax", "Softmax"),
    Row(_along(F.log_softmax), "LogSoftmax", "nn.log_softmax", "LogSoftmax"),
    Row(_along(activations.sparsemax), "Sparsemax"),
    Row(_along(F.glu), "Glu"),
    Row(_softmax_cross_entropy, "", "nn.softmax_cross_entropy_with_logits_v2"),
)
