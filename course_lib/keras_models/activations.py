"""Every named activation, and the two that changed their meaning between eras."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from course_lib.keras_models.spec import Version

Activation = Callable[[Tensor], Tensor]


def linear(x: Tensor) -> Tensor:
    """Return x."""
    return x


def hard_sigmoid_1(x: Tensor) -> Tensor:
    """clip(0.2 x + 0.5, 0, 1), of Keras 0.3 to 2.15.

    >>> hard_sigmoid_1(torch.tensor([-3.0, 1.0]))
    tensor([0.0000, 0.7000])
    """
    return (0.2 * x + 0.5).clamp(0, 1)


def swish(x: Tensor, *, beta: float = 1.0) -> Tensor:
    """X * sigmoid(beta x)."""
    return F.silu(x) if beta == 1 else x * torch.sigmoid(beta * x)


def squareplus(x: Tensor, b: float = 4.0) -> Tensor:
    """(x + sqrt(x**2 + b)) / 2."""
    return (x + torch.sqrt(x * x + b)) / 2


def sparse_plus(x: Tensor) -> Tensor:
    """0 below -1, (x + 1)**2 / 4 up to 1, then x."""
    return torch.where(x <= -1, 0, torch.where(x < 1, (x + 1) ** 2 / 4, x))


def sparse_sigmoid(x: Tensor) -> Tensor:
    """clip((x + 1) / 2, 0, 1)."""
    return ((x + 1) / 2).clamp(0, 1)


def sparsemax(x: Tensor, dim: int = -1) -> Tensor:
    """Keras's sparsemax: max(x - t, 0), with t from the largest numbers.

    With x sorted downwards, s its running sums and k the count of ranks j with
    1 + j x_j > s_j, Keras takes t = (s_1 + ... + s_k - 1) / k where the paper has
    (s_k - 1) / k; so the result sums to 1 only where k is 1.

    Source: keras.ops.sparsemax; Martins and Astudillo 2016, arXiv:1602.02068.
    """
    ordered = x.movedim(dim, -1).sort(dim=-1, descending=True).values
    sums = ordered.cumsum(-1)
    ranks = torch.arange(1, x.shape[dim] + 1, device=x.device, dtype=x.dtype)
    support = 1 + ranks * ordered > sums
    total = torch.where(support, sums, 0).sum(-1, keepdim=True)
    shift = (total - 1) / support.sum(-1, keepdim=True)
    return (x - shift.movedim(-1, dim)).clamp(min=0)


def threshold(x: Tensor, threshold: float = 0.0, default: float = 0.0) -> Tensor:
    """X where x > threshold, else the default."""
    return torch.where(x > threshold, x, default)


def thresholded_relu(x: Tensor, theta: float = 1.0) -> Tensor:
    """X where x > theta, else 0."""
    return threshold(x, theta)


def relu(
    x: Tensor,
    *,
    negative_slope: float = 0.0,
    max_value: float | None = None,
    threshold: float = 0.0,
) -> Tensor:
    """Keras's ReLU: slope * (x - threshold) below, x above, at most `max_value`.

    >>> relu(torch.tensor([-2.0, 1.0, 9.0]), negative_slope=0.5, max_value=6.0)
    tensor([-1.,  1.,  6.])
    """
    if not threshold and not negative_slope:
        return torch.relu(x) if max_value is None else x.clamp(0, max_value)
    above = torch.where(x > threshold, x, negative_slope * (x - threshold))
    return above if max_value is None else above.clamp(max=max_value)


def softmax(axes: tuple[int, ...]) -> Activation:
    """Return the softmax along one axis, or over several together."""
    if len(axes) == 1:
        return partial(F.softmax, dim=axes[0])
    return partial(_softmax_over, dim=axes)


def _softmax_over(x: Tensor, dim: tuple[int, ...]) -> Tensor:
    return torch.exp(x - torch.logsumexp(x, dim, keepdim=True))


def along(function: Activation, axis: int) -> Activation:
    """Return a function of Keras's axes for a tensor with its last one at `axis`.

    >>> softmax = partial(F.softmax, dim=1)
    >>> along(softmax, 1)(torch.zeros(1, 5, 2, 4)).sum(2).mean()
    tensor(1.)
    """
    moves = axis != -1 and isinstance(function, partial) and "dim" in function.keywords
    return partial(_moved, function, axis) if moves else function


def _moved(function: Activation, axis: int, x: Tensor) -> Tensor:
    return function(x.movedim(axis, -1)).movedim(-1, axis)


_POINTWISE: dict[str, Activation] = {
    "linear": linear,
    "relu": torch.relu,
    "relu6": F.relu6,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "elu": F.elu,
    "selu": F.selu,
    "celu": F.celu,
    "exponential": torch.exp,
    "swish": F.silu,
    "silu": F.silu,
    "gelu": F.gelu,
    "mish": F.mish,
    "leaky_relu": partial(F.leaky_relu, negative_slope=0.2),
    "log_sigmoid": F.logsigmoid,
    "hard_silu": F.hardswish,
    "hard_swish": F.hardswish,
    "hard_tanh": F.hardtanh,
    "hard_shrink": F.hardshrink,
    "soft_shrink": F.softshrink,
    "tanh_shrink": F.tanhshrink,
    "squareplus": squareplus,
    "sparse_plus": sparse_plus,
    "sparse_sigmoid": sparse_sigmoid,
    "threshold": threshold,
}
_ALONG_AN_AXIS = {
    "softmax": F.softmax,
    "log_softmax": F.log_softmax,
    "sparsemax": sparsemax,
    "glu": F.glu,
}

# The layers that are a function with numbers: their settings and Keras's defaults.
LAYERS: dict[str, tuple[Activation, dict[str, float | None]]] = {
    "ReLU": (relu, {"negative_slope": 0.0, "threshold": 0.0, "max_value": None}),
    "LeakyReLU": (F.leaky_relu, {"negative_slope": 0.3}),
    "ELU": (F.elu, {"alpha": 1.0}),
    "ThresholdedReLU": (thresholded_relu, {"theta": 1.0}),
}


def activation_names() -> list[str]:
    """Return every name that `named_activation` knows."""
    return sorted([*_POINTWISE, *_ALONG_AN_AXIS, "hard_sigmoid"])


def named_activation(
    name: str, version: Version, axis: int = -1, **options: float
) -> Activation | None:
    """Return an activation by name, as of `version`; None where it is unknown.

    Args:
        name: Keras's name.
        version: hard_sigmoid is clip(0.2 x + 0.5) to 2.15, clip(x / 6 + 0.5) in 3.
        axis: where the last axis of Keras's order lies in the tensor.
        options: settings of the function, for example approximate for gelu.
    """
    if name == "hard_sigmoid":
        # keras v2.15.0 keras/backend.py#L5924
        # keras v3.0.5 keras/activations/activations.py#L355
        return hard_sigmoid_1 if version < (3, 0) else F.hardsigmoid
    if name in _ALONG_AN_AXIS:
        return partial(_ALONG_AN_AXIS[name], dim=axis)
    function = _POINTWISE.get(name)
    return partial(function, **options) if function and options else function
