"""Dense, Embedding, dropout, noise and the layers that reshape."""

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from course_lib.keras_models.activations import linear
from course_lib.keras_models.layers.base import (
    Function,
    Layer,
    Pointwise,
    Shape,
    Weighted,
    apply,
    kernel_view,
    open_sizes,
    weight_options,
)
from course_lib.keras_models.registry import keras_layer
from course_lib.keras_models.settings import Settings


@keras_layer("Dense")
class Dense(Weighted):
    """activation(x @ kernel + bias); the kernel is stored as torch does, (out, in)."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        old = settings.version < (2, 0)  # keras 2.0.3 keras/layers/core.py#L817
        self.passes_mask = not old or self.keras_class == "TimeDistributedDense"
        self.units = settings.integer("units")
        settings.only("lora_rank", None)

    def build(self, shape: Shape) -> None:
        """Make weight (units, features) and bias (units,)."""
        self.add(
            "kernel", "weight", (self.units, shape[-1]), kernel_view, **self.kernel
        )
        self.add_bias(self.units)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to the last axis: (batch, ..., features) -> (batch, ..., units)."""
        if x.is_meta:  # see apply
            wide = x.new_empty(*x.shape[:-1], self.units)
            return apply(self.activation, wide)
        x = x if x.is_floating_point() else x.to(self.weight.dtype)
        return apply(self.activation, F.linear(x, self.weight, self.bias))


@keras_layer("Embedding")
class Embedding(Layer):
    """A row of a table for each whole number."""

    ends_mask = True

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.sizes = settings.integer("input_dim"), settings.integer("output_dim")
        self.options = weight_options(settings, "embeddings", "uniform")
        self.makes_mask = settings.flag("mask_zero", False)
        self.rate = settings.rate("dropout", 0.0)  # of whole rows, in 1.x
        settings.ignore("input_length")
        settings.only("lora_rank", None)

    def build(self, shape: Shape) -> None:
        """Make the table."""
        self.add("embeddings", "weight", self.sizes, **self.options)

    def mask(self, x: Tensor) -> Tensor:
        """Tell where the numbers are not the padding 0."""
        return x != 0

    def forward(self, x: Tensor) -> Tensor:
        """(batch, steps) -> (batch, steps, units)."""
        table = self.weight
        if self.rate and self.training:
            table = table * F.dropout(table.new_ones(len(table), 1), self.rate)
        return F.embedding(x.long(), table)


@keras_layer("Dropout")
class Dropout(Layer):
    """Drop numbers while training; along the axes of `broadcast` together."""

    passes_mask = returns_input = True

    def __init__(self, settings: Settings, spatial: int = 0) -> None:
        super().__init__(settings)
        self.rate = settings.rate()
        self.noise_shape = open_sizes(settings, "noise_shape", None)
        self.wants_first = False if self.noise_shape else None
        self.spatial = spatial
        if spatial:
            self.wants_first = settings.channels_last()

    def forward(self, x: Tensor) -> Tensor:
        """Return x, with numbers dropped while training."""
        if not self.training or not self.rate:
            return x
        if self.spatial:
            shape = (*x.shape[:2], *[1] * self.spatial)
        elif self.noise_shape:
            sizes = zip(self.noise_shape, x.shape, strict=True)
            shape = tuple(n if n == 1 else size for n, size in sizes)
        else:
            return F.dropout(x, self.rate)
        return x * F.dropout(x.new_ones(shape), self.rate)


class Noise(Function):
    """A layer that changes its input only while training."""

    wants_first = None
    passes_mask = returns_input = True

    def forward(self, x: Tensor) -> Tensor:
        """Return x, changed while training."""
        return self.function(x) if self.training else x


@keras_layer("GaussianNoise")
def gaussian_noise(settings: Settings) -> Layer:
    """Add normal noise while training."""
    deviation = settings.number("stddev", low=0.0)
    return Noise(settings, partial(_add_noise, deviation=deviation))


def _add_noise(x: Tensor, deviation: float) -> Tensor:
    return x + deviation * torch.randn_like(x)


@keras_layer("GaussianDropout")
def gaussian_dropout(settings: Settings) -> Layer:
    """Multiply by normal noise around 1 while training."""
    rate = settings.rate()
    deviation = math.sqrt(rate / (1 - rate))
    return Noise(settings, partial(_multiply_noise, deviation=deviation))


def _multiply_noise(x: Tensor, deviation: float) -> Tensor:
    return x * (1 + deviation * torch.randn_like(x))


@keras_layer("StochasticDepth")
def stochastic_depth(settings: Settings) -> Layer:
    """While training, leave out whole samples of a residual path.

    Source: Huang et al., "Deep Networks with Stochastic Depth", 2016.
    """
    return Noise(settings, partial(_drop_samples, rate=settings.rate("drop_path_rate")))


def _drop_samples(x: Tensor, rate: float) -> Tensor:
    return x * F.dropout(x.new_ones(len(x), *[1] * (x.dim() - 1)), rate)


@keras_layer("AlphaDropout")
def alpha_dropout(settings: Settings) -> Layer:
    """Dropout that preserves mean and variance after SELU."""
    settings.only("noise_shape", None)
    return Noise(settings, partial(F.alpha_dropout, p=settings.rate(), training=True))


@keras_layer("SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D")
def spatial_dropout(settings: Settings) -> Layer:
    """SpatialDropout1D, 2D and 3D: whole channels are dropped."""
    return Dropout(settings, spatial=int(settings.spec.kind[-2]))


@keras_layer("InputLayer")
@keras_layer("Identity", since=(3, 0))
def identity(settings: Settings) -> Layer:
    """Return the input, with its mask.

    keras v3.0.5 keras/layers/core/identity.py#L18.
    """
    settings.ignore("optional", "shape")
    return Pointwise(settings, linear)


@keras_layer("Identity", until=(3, 0))
def unmasked_identity(settings: Settings) -> Layer:
    """Pass on the numbers, without their mask.

    It has no `supports_masking`: keras v2.15.0 keras/layers/core/identity.py#L26.
    """
    layer = identity(settings)
    layer.passes_mask = False
    return layer


@keras_layer("ActivityRegularization")
def activity_regularization(settings: Settings) -> Layer:
    """ActivityRegularization: a penalty of its input."""
    l1, l2 = settings.number("l1", 0.0), settings.number("l2", 0.0)
    settings.left["activity_regularizer"] = {"name": "L1L2", "l1": l1, "l2": l2}
    settings.activity = settings.regularizer("activity_regularizer")
    return Pointwise(settings, linear)


@keras_layer("Flatten")
def flatten(settings: Settings) -> Layer:
    """(batch, ...) -> (batch, numbers), in Keras's order: channels change fastest.

    With `data_format="channels_first"`, Keras 2.2 and later flatten as if the
    channels came last; 1.x takes the numbers in their own order.
    """
    return Function(settings, partial(_flatten, moves=not settings.channels_last()))


def _flatten(x: Tensor, moves: bool) -> Tensor:
    x = x.movedim(1, -1) if moves and x.dim() > 2 else x
    return x.reshape(x.shape[0], -1)


@keras_layer("Reshape")
def reshape(settings: Settings) -> Layer:
    """(batch, ...) -> (batch, *target_shape); one of them may be -1."""
    shape = open_sizes(settings, "target_shape")
    return Function(settings, partial(_reshape, shape=shape))


def _reshape(x: Tensor, shape: Shape) -> Tensor:
    return x.reshape(x.shape[0], *shape)


@keras_layer("Permute")
def permute(settings: Settings) -> Layer:
    """Reorder the axes; they count from 1, since 0 is the batch."""
    dims = settings.list_of_integers("dims")
    if sorted(dims) != list(range(1, len(dims) + 1)):
        settings.problem(f"dims={list(dims)}; wanted each axis once, from 1")
    return Function(settings, partial(torch.permute, dims=(0, *dims)))


@keras_layer("RepeatVector")
def repeat_vector(settings: Settings) -> Layer:
    """(batch, features) -> (batch, n, features)."""
    return Function(settings, partial(_repeat, n=settings.integer("n")))


def _repeat(x: Tensor, n: int) -> Tensor:
    return x.unsqueeze(1).expand(-1, n, -1)


@keras_layer("Masking")
class Masking(Layer):
    """Zero the time steps in which every feature is `mask_value`; later layers skip."""

    makes_mask = True

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.value = settings.number("mask_value", 0.0)

    def mask(self, x: Tensor) -> Tensor:
        """Tell which steps count: (batch, steps, features) -> (batch, steps)."""
        return (x != self.value).any(-1)

    def forward(self, x: Tensor) -> Tensor:
        """Return x with the masked steps zeroed."""
        return x * self.mask(x).unsqueeze(-1)


@keras_layer("Rescaling")
class Rescaling(Layer):
    """X * scale + offset; both are numbers, or one for each channel."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        # keras v3.0.5 keras/layers/preprocessing/rescaling.py#L38
        self.passes_mask = settings.version >= (3, 0)
        settings.left.setdefault("offset", 0.0)
        self.given = {name: numbers(settings, name) for name in ("scale", "offset")}

    def build(self, shape: Shape) -> None:
        """Make the constants."""
        for name, given in self.given.items():
            value = torch.tensor(given)
            constant = {"stored": False, "value": value.numpy()}
            self.add(name, name, tuple(value.shape), trainable=False, **constant)

    def forward(self, x: Tensor) -> Tensor:
        """Return x * scale + offset."""
        return x * self.scale + self.offset


@keras_layer("LayerScale")
class LayerScale(Layer):
    """A learned factor for each channel.

    Source: keras/src/applications/convnext.py at v3.15.1.
    """

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


def numbers(settings: Settings, key: str) -> list[float] | float:
    """Read a number, or a list of them, also where Keras 3 writes it as an array."""
    value = settings.left.get(key)
    if isinstance(value, dict) and isinstance(value.get("config"), dict):
        value = value["config"].get("value")  # an array of Keras 3
    if not isinstance(value, list):
        return settings.number(key)
    settings.ignore(key)
    good = [v for v in value if isinstance(v, int | float) and abs(v) < 1e30]
    if len(good) != len(value) or not value:
        settings.problem(f"{key}={value!r:.60}; wanted numbers")
    return [float(v) for v in good]
