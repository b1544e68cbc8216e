"""Dense layers that only Keras 1 had: MaxoutDense and Highway."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from course_lib.keras_models.layers.base import (
    Shape,
    Weighted,
    apply,
    as_it_is,
    kernel_view,
    require_axes,
)
from course_lib.keras_models.registry import keras_layer
from course_lib.keras_models.settings import Settings


@keras_layer("MaxoutDense")
class MaxoutDense(Weighted):
    """max over k of (x W_k + b_k); the weights are (k, in, out), as in Keras.

    Source: Goodfellow et al. 2013, arXiv:1302.4389.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.units = settings.integer("units")
        self.features = settings.integer("nb_feature", 4)

    def build(self, shape: Shape) -> None:
        """Make weight (features, in, out) and bias (features, out)."""
        require_axes(shape, 2, "(batch, features)")
        size = (self.features, shape[1], self.units)
        self.add("kernel", "weight", size, **self.kernel)
        self.add_bias(self.features, self.units)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in) -> (batch, out)."""
        if x.is_meta:
            return x.new_empty(len(x), self.units)
        y = torch.einsum("bi,kio->bko", x, self.weight)
        return (y if self.bias is None else y + self.bias).amax(1)


@keras_layer("Highway")
class Highway(Weighted):
    """t act(x W + b) + (1 - t) x, with the gate t = sigmoid(x W_carry + b_carry).

    Source: Srivastava et al. 2015, arXiv:1505.00387.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        # keras 1.2.0 keras/layers/core.py: "transform_bias"; 1.2.2 has ones
        self.start = settings.number("transform_bias", 1.0)

    def build(self, shape: Shape) -> None:
        """Make the kernels (in, in) and biases of the layer and of its gate."""
        require_axes(shape, 2, "(batch, features)")
        width = shape[1]
        gate = {"initializer": self.kernel["initializer"]}
        start = {"initializer": partial(nn.init.constant_, val=self.start)}
        square, bias = ((width, width), kernel_view), ((width,), as_it_is)
        arrays = [
            ("kernel", "weight", *square, True, self.kernel),
            ("kernel_carry", "weight_carry", *square, True, gate),
            ("bias", "bias", *bias, self.use_bias, self.bias_options),
            ("bias_carry", "bias_carry", *bias, self.use_bias, start),
        ]
        if self.keras_version < (1, 2):  # keras 1.1.0 keras/layers/core.py#L1004
            arrays.sort(key=lambda array: array[0].endswith("carry"))
        for name, attribute, size, view, wanted, options in arrays:
            self.add_if(wanted, name, attribute, size, view, **options)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in) -> (batch, in)."""
        if x.is_meta:
            return x
        gate = torch.sigmoid(F.linear(x, self.weight_carry, self.bias_carry))
        y = apply(self.activation, F.linear(x, self.weight, self.bias))
        return gate * y + (1 - gate) * x
