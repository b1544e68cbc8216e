"""Activation, and the layers that are activations."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from course_lib.keras_models.layers.base import (
    Layer,
    Pointwise,
    Shape,
    apply,
    open_sizes,
    place_of,
    weight_options,
)
from course_lib.keras_models.registry import keras_layer
from course_lib.keras_models.settings import Settings


@keras_layer("Softmax")
class Softmax(Pointwise):
    """Softmax; since tf.keras 2.4, numbers that a mask of x's shape excludes get 0.

    Keras can't apply the usual mask of (batch, steps), one axis shorter than x. Where
    all of an axis is left out, its shares are equal, and since 3.10 they are 0.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, settings.activation_layer())
        # keras v2.13.1 keras/layers/activation/softmax.py#L88
        self.uses_mask = settings.version >= (2, 4)

    def build(self, shape: Shape) -> None:
        """Check that the input has the axes."""
        axes = self.function.keywords["dim"]
        for axis in axes if isinstance(axes, tuple) else (axes,):
            place_of(axis, len(shape))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return shares whose sum is 1 along the axis."""
        if mask is None:
            return apply(self.function, x)
        if mask.dim() != x.dim():
            raise ValueError(
                f"its mask has {mask.dim()} axes and its input {x.dim()}. Keras can't "
                "apply this mask either"
            )
        shares = apply(self.function, x + (~mask).to(x.dtype) * -1e9)
        # keras v3.10.0 keras/src/layers/activations/softmax.py#L72
        return shares if self.keras_version < (3, 10) else shares * mask


@keras_layer("Activation", "ReLU", "LeakyReLU", "ELU", "ThresholdedReLU")
def activation_layer(settings: Settings) -> Layer:
    """Apply a function to each number."""
    return Pointwise(settings, settings.activation_layer())


class Shaped(Layer):
    """An activation with learned numbers for each place of its input.

    They keep Keras's axis order; shared axes have length 1. `arrays` has their
    attributes, and for each its name and options in `add`.
    """

    passes_mask = True
    arrays: dict[str, tuple[str, dict[str, Any]]]

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.shared = open_sizes(settings, "shared_axes", None)

    def build(self, shape: Shape) -> None:
        """Make the learned numbers."""
        sizes = list(shape[1:])
        for axis in self.shared:
            if not -len(sizes) <= axis - 1 < len(sizes):
                raise ValueError(
                    f"shared_axes={list(self.shared)}; wanted axes from 1 to "
                    f"{len(sizes)}, since the input has {len(shape)} with the batch"
                )
            sizes[axis - 1] = 1
        for attribute, (name, options) in self.arrays.items():
            self.add(name, attribute, tuple(sizes), **options)

    def settle(self, first: bool, ranks: tuple[int, ...]) -> None:
        """Take either order."""
        self.wants_first = first

    def placed(self, numbers: Tensor) -> Tensor:
        """Return learned numbers in the order of the input."""
        return numbers.movedim(-1, 0) if self.wants_first else numbers


@keras_layer("PReLU")
class PReLU(Shaped):
    """X above zero, a learned slope times x below; one slope for each place."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        slope = weight_options(settings, "alpha", "zeros")
        self.arrays = {"weight": ("alpha", slope)}

    def forward(self, x: Tensor) -> Tensor:
        """Return max(x, 0) + slope * min(x, 0)."""
        if x.is_meta:
            return x
        return torch.relu(x) - self.placed(self.weight) * torch.relu(-x)


@keras_layer("ParametricSoftplus")
class ParametricSoftplus(Shaped):
    """alpha * log(1 + exp(beta x)), of Keras 1."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.arrays = {}
        for name, default in (("alpha", 0.2), ("beta", 5.0)):
            value = settings.number(f"{name}_init", default)
            start = partial(nn.init.constant_, val=value)
            self.arrays[name] = f"{name}s", {"initializer": start}

    def forward(self, x: Tensor) -> Tensor:
        """Return softplus(beta x) * alpha."""
        if x.is_meta:
            return x
        return F.softplus(self.placed(self.beta) * x) * self.placed(self.alpha)


@keras_layer("SReLU")
class SReLU(Shaped):
    """S-shaped: slope a_left below t_left, 1, and a_right above t_left + |t_right|.

    On Theano, values from a negative a_left are cut to t_left + |t_right|.

    Source: Jin et al. 2015, arXiv:1512.07030; SReLU of
    keras/layers/advanced_activations.py and relu of the backends, tag 1.2.2.
    """

    on_theano = False

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        defaults = {
            "t_left": "zeros",
            "a_left": "glorot_uniform",
            "t_right": "glorot_uniform",
            "a_right": "ones",
        }
        self.arrays = {
            name: (name, {"initializer": settings.initializer(f"{name}_init", default)})
            for name, default in defaults.items()
        }

    def forward(self, x: Tensor) -> Tensor:
        """Return the three pieces' sum."""
        if x.is_meta:
            return x
        low, left = self.placed(self.t_left), self.placed(self.a_left)
        width = self.placed(self.t_right).abs()
        below = left * torch.relu(low - x)
        middle = torch.minimum(torch.relu(x - low), width)
        if self.on_theano:
            middle, below = torch.minimum(middle - below, width), 0
        above = self.placed(self.a_right) * torch.relu(x - low - width)
        return low + middle - below + above
