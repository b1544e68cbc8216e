"""Layers that keras.applications brings along for its own networks."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from course_lib.keras_models.layers.base import Joining, Layer, Shape
from course_lib.keras_models.layers.core import Noise
from course_lib.keras_models.registry import keras_layer
from course_lib.keras_models.settings import Settings


@keras_layer("LayerScale")
class LayerScale(Layer):
    """A learned factor for each channel.

    Source: keras/src/applications/convnext.py at v3.15.1.
    """

    wants_first = False

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        start = settings.number("init_values")
        self.fill = partial(nn.init.constant_, val=start)
        self.size = settings.integer("projection_dim")

    def build(self, shape: Shape) -> None:
        """Make weight (channels,)."""
        if shape[-1] != self.size and self.size != 1:
            raise ValueError(f"projection_dim={self.size}; it has {shape[-1]} channels")
        self.add("gamma", "weight", (self.size,), initializer=self.fill)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, ..., channels), scaled."""
        return x * self.weight


@keras_layer("StochasticDepth")
def stochastic_depth(settings: Settings) -> Layer:
    """While training, leave out whole samples of a residual path.

    Source: Huang et al., "Deep Networks with Stochastic Depth", 2016.
    """
    rate = settings.rate("drop_path_rate")
    return Noise(settings, partial(_drop_samples, rate=rate))


def _drop_samples(x: Tensor, rate: float) -> Tensor:
    return x * F.dropout(x.new_ones(len(x), *[1] * (x.dim() - 1)), rate)


@keras_layer("CustomScaleLayer")
class CustomScaleLayer(Joining):
    """x + scale * y, of InceptionResNetV2."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.scale = settings.number("scale")

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Add the scaled path to the other."""
        return torch.add(x, y, alpha=self.scale)
