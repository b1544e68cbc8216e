"""Activation, and the layers that are activations."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from course_lib.keras_models import activations
from course_lib.keras_models.activations import Activation
from course_lib.keras_models.layers.base import (
    Layer,
    Pointwise,
    Shape,
    apply,
    weight_options,
)
from course_lib.keras_models.settings import Settings


def activation(settings: Settings) -> Layer:
    """Activation: a function by name."""
    return Pointwise(settings, settings.activation(default=""))


def _relu(settings: Settings) -> Activation:
    options = {
        "negative_slope": settings.number("negative_slope", 0.0),
        "threshold": settings.number("threshold", 0.0),
    }
    if settings.left.get("max_value") is not None:
        options["max_value"] = settings.number("max_value")
    settings.ignore("max_value")
    return partial(activations.relu, **options)


def _leaky_relu(settings: Settings) -> Activation:
    return partial(F.leaky_relu, negative_slope=settings.number("negative_slope", 0.3))


def _elu(settings: Settings) -> Activation:
    return partial(F.elu, alpha=settings.number("alpha", 1.0))


def _thresholded_relu(settings: Settings) -> Activation:
    return partial(activations.threshold, threshold=settings.number("theta", 1.0))


def _softmax(settings: Settings) -> Activation:
    axes = settings.list_of_integers("axis", -1)
    if len(axes) == 1:
        return partial(F.softmax, dim=axes[0])
    return partial(_softmax_over, dim=axes)


def _softmax_over(x: Tensor, dim: tuple[int, ...]) -> Tensor:
    return torch.exp(x - torch.logsumexp(x, dim, keepdim=True))


ACTIVATION_LAYERS: dict[str, Callable[[Settings], Activation]] = {
    "ReLU": _relu,
    "LeakyReLU": _leaky_relu,
    "ELU": _elu,
    "ThresholdedReLU": _thresholded_relu,
    "Softmax": _softmax,
}


class Softmax(Pointwise):
    """Softmax; since tf.keras 2.4 what a mask of x's own shape leaves out gets 0.

    Keras can't apply the usual mask of (batch, steps), one axis shorter than x.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, _softmax(settings))
        version = settings.version
        self.uses_mask = version >= (2, 4) and (version.tf or version >= (3, 0))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return shares whose sum is 1 along the axis."""
        if mask is None:
            return apply(self.function, x)
        if mask.dim() != x.dim():
            raise ValueError(
                f"its mask has {mask.dim()} axes and its input {x.dim()}. Keras can't "
                "apply this mask either"
            )
        return apply(self.function, x + (~mask).to(x.dtype) * -1e9)


def activation_layer(settings: Settings) -> Layer:
    """ReLU, LeakyReLU, ELU, ThresholdedReLU, Softmax."""
    if settings.spec.kind == "Softmax":
        return Softmax(settings)
    return Pointwise(settings, ACTIVATION_LAYERS[settings.spec.kind](settings))


class PReLU(Layer):
    """X above zero, a learned slope times x below; one slope for each place.

    The slopes keep Keras's axis order; shared axes have length 1.
    """

    passes_mask = True

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.options = weight_options(settings, "alpha", "zeros")
        shared = settings.take("shared_axes", None)
        shared = [] if shared is None else shared
        settings.left["shared_axes"] = shared
        self.shared = settings.list_of_integers("shared_axes")

    def build(self, shape: Shape) -> None:
        """Make the slopes."""
        sizes = list(shape[1:])
        for axis in self.shared:
            sizes[axis - 1] = 1
        self.add("alpha", "weight", tuple(sizes), **self.options)

    def settle(self, first: bool, ranks: tuple[int, ...]) -> bool | None:
        """Take either order."""
        self.wants_first = first
        return first

    def forward(self, x: Tensor) -> Tensor:
        """Return max(x, 0) + slope * min(x, 0)."""
        if x.is_meta:
            return x
        slope = self.weight.movedim(-1, 0) if self.wants_first else self.weight
        return torch.relu(x) - slope * torch.relu(-x)
