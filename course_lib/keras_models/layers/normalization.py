"""Normalizations: by batch as each era computes it, by sample, and by adapted data."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from course_lib.keras_models.layers.base import (
    Layer,
    Shape,
    open_sizes,
    place_of,
    weight_options,
)
from course_lib.keras_models.layers.core import numbers
from course_lib.keras_models.registry import keras_layer
from course_lib.keras_models.settings import Settings


class Affine(Layer):
    """What multiplies by gamma and adds beta, of which a file may leave out each."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.has_gamma = settings.flag("scale", True)
        self.has_beta = settings.flag("center", True)
        self.gamma = weight_options(settings, "gamma", "ones")
        self.beta = weight_options(settings, "beta", "zeros")

    def add_affine(self, size: Shape) -> None:
        """Make weight and bias, or None."""
        self.add_if(self.has_gamma, "gamma", "weight", size, **self.gamma)
        self.add_if(self.has_beta, "beta", "bias", size, **self.beta)


class ChannelNormalization(Affine):
    """What normalizes along one axis: `axis`, which is `place` in the input's order."""

    def settle(self, first: bool, ranks: tuple[int, ...]) -> None:
        """Take channels first where the last axis is normalized, as torch does."""
        axis = place_of(self.axis, ranks[0])
        self.wants_first = ranks[0] > 2 and axis == ranks[0] - 1
        self.place = 1 if self.wants_first else axis


class BatchNormalization(ChannelNormalization):
    """gamma * (x - mean) / sqrt(variance + epsilon) + beta along one axis.

    While training, the moving variance takes the batch's own variance, which Keras
    does not correct by n / (n - 1) as torch does; TensorFlow's kernel for images does.
    Keras 2.1.4 to 2.3 corrects both by n / (n - 1 - epsilon). A frozen layer of
    tf.keras 2 and Keras 3 uses the moving statistics also while training. Since 2.12 a
    mask leaves its steps out of the batch's statistics, except of images.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.passes_mask = settings.version >= (1, 0)  # keras 1.0.8, see below
        axes = settings.list_of_integers("axis", -1)
        if len(axes) != 1:
            settings.unsupported("axis", axes)
        self.axis = axes[0] if axes else -1
        # keras 1.0.8 keras/layers/normalization.py#L59
        old = (1, 0) <= settings.version < (1, 0, 7)
        self.momentum = settings.number("momentum", 0.9 if old else 0.99)
        self.epsilon = settings.number("epsilon", epsilon(settings), low=0.0)
        self.starts = {
            "mean": settings.initializer("moving_mean_initializer", "zeros"),
            "variance": settings.initializer("moving_variance_initializer", "ones"),
        }
        version = settings.version
        # keras v3.0.5 keras/layers/normalization/batch_normalization.py#L219
        self.always_moving = version.is_new and not settings.spec.trainable
        # keras v2.13.1, the same file: `mask` of `call`, new in 2.12
        self.uses_mask = version >= (2, 12)
        # keras 2.1.4 keras/layers/normalization.py#L189, also after the fused kernel
        self.corrects = version >= (2, 1, 4) and not version.is_new
        # keras v3.0.5, the same file, #L320: the sum of weights is above 0
        self.added = 1e-7 if version >= (3, 0) else 0.0
        settings.only("virtual_batch_size", None)
        settings.only("renorm", False, None)
        settings.ignore("fused", "synchronized", "renorm_clipping", "renorm_momentum")
        settings.ignore("mode")

    def build(self, shape: Shape) -> None:
        """Make weight, bias, running_mean and running_var, one number a channel."""
        size = (shape[place_of(self.axis, len(shape))],)
        self.add_affine(size)
        for name, attribute in (("mean", "running_mean"), ("variance", "running_var")):
            options = {"trainable": False, "initializer": self.starts[name]}
            self.add(f"moving_{name}", attribute, size, **options)

    def settle(self, first: bool, ranks: tuple[int, ...]) -> None:
        """Take the order as above, and note whether TensorFlow's kernel computes."""
        self.is_fused = self._is_fused(place_of(self.axis, ranks[0]), ranks[0])
        super().settle(first, ranks)

    def _is_fused(self, axis: int, rank: int) -> bool:
        """Tell whether TensorFlow's kernel computes it, which corrects the variance."""
        version = self.keras_version
        if not version.is_new and version >= (2, 1, 3):
            # keras 2.1.3 keras/backend/tensorflow_backend.py#L1817, on a CPU
            return rank == 4 and axis == 3
        if not version.tf or self.keras_class == "SyncBatchNormalization":
            return False
        # keras v2.13.1 keras/layers/normalization/batch_normalization.py#L366
        ranks = (4, 5) if version >= (2, 6) else (4,)
        return rank in ranks and axis in (1, rank - 1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalize; in training by the batch, and move the statistics."""
        if x.is_meta:  # torch would import its compiler to tell the same shape
            return x
        moving = not self.training or self.always_moving
        if mask is not None and not moving and not self.is_fused:
            return self._normalize_masked(x, mask)
        if self.place == 1:
            return self._normalize(x)
        return self._normalize(x.movedim(self.place, 1)).movedim(1, self.place)

    def _normalize(self, x: Tensor) -> Tensor:
        mean, variance = self.running_mean, self.running_var
        moves = self.training and not self.always_moving
        if moves or torch.is_grad_enabled():
            # autograd stores them for backward, and this or a later call moves them
            mean, variance = mean.clone(), variance.clone()
        options = (self.weight, self.bias, moves, 1 - self.momentum, self.epsilon)
        y = F.batch_norm(x, mean, variance, *options)
        if moves:
            self._move(mean, variance, x.numel() // x.shape[1])
        return y

    @torch.no_grad()
    def _move(self, mean: Tensor, variance: Tensor, n: int) -> None:
        """Take torch's statistics, whose batch variance has the factor n / (n - 1)."""
        share = 1.0 if self.is_fused else 1 - 1 / n
        if self.corrects:
            share *= n / (n - 1 - self.epsilon)
        self.running_mean.copy_(mean)
        self.running_var.mul_(self.momentum * (1 - share)).add_(variance, alpha=share)

    def _normalize_masked(self, x: Tensor, mask: Tensor) -> Tensor:
        """Normalize by the steps that count; the mask is (batch, steps)."""
        counts = mask.unsqueeze(1 if self.wants_first else -1).expand_as(x)
        axes = tuple(axis for axis in range(x.dim()) if axis != self.place)
        number = counts.sum(axes) + self.added
        shape = [1] * x.dim()
        shape[self.place] = -1
        mean = x.where(counts, 0).sum(axes) / number
        centered = x - mean.view(shape)
        variance = centered.where(counts, 0).square().sum(axes) / number
        with torch.no_grad():
            self.running_mean.lerp_(mean, 1 - self.momentum)
            self.running_var.lerp_(variance, 1 - self.momentum)
        y = centered * torch.rsqrt(variance + self.epsilon).view(shape)
        y = y if self.weight is None else y * self.weight.view(shape)
        return y if self.bias is None else y + self.bias.view(shape)


def epsilon(settings: Settings) -> float:
    """Return the epsilon of an era's batch normalization, where a file has none.

    keras 1.1.0 keras/layers/normalization.py#L63, keras 1.2.2 the same file #L67.
    """
    if settings.version < (1, 0, 7):
        return 1e-6
    return 1e-5 if settings.version < (1, 2) else 1e-3


class DeviationNormalization(BatchNormalization):
    """Batch normalization of 0.3 and 1.0: by a moving standard deviation.

    (x - mean) / (deviation + epsilon), where a batch's deviation is
    sqrt(mean((x - mean)**2) + epsilon).
    """

    def _normalize(self, x: Tensor) -> Tensor:
        shape = (-1, *[1] * (x.dim() - 2))
        mean, deviation = self.running_mean, self.running_var
        if self.training:
            axes = (0, *range(2, x.dim()))
            mean = x.mean(axes)
            spread = (x - mean.view(shape)).square().mean(axes)
            deviation = torch.sqrt(spread + self.epsilon)
            with torch.no_grad():
                self.running_mean.lerp_(mean, 1 - self.momentum)
                self.running_var.lerp_(deviation, 1 - self.momentum)
        y = (x - mean.view(shape)) / (deviation.view(shape) + self.epsilon)
        return self.weight.view(shape) * y + self.bias.view(shape)


class SampleNormalization(BatchNormalization):
    """Mode 1 of 1.x: each sample by its own mean and deviation along the last axis."""

    def settle(self, first: bool, ranks: tuple[int, ...]) -> None:
        """Stay in Keras's order."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize along the last axis; epsilon enters twice, as in Keras 1."""
        # keras 1.0.8 keras/layers/normalization.py#L149
        inner = self.epsilon if self.keras_version >= (1, 0, 5) else 0.0
        mean = x.mean(-1, keepdim=True)
        deviation = torch.sqrt(x.var(-1, correction=0, keepdim=True) + inner)
        return self.weight * (x - mean) / (deviation + self.epsilon) + self.bias


class BatchOnlyNormalization(BatchNormalization):
    """Mode 2 of 1.x: by the batch's own statistics, also when not training."""

    def _normalize(self, x: Tensor) -> Tensor:
        options = (self.weight, self.bias, True, 0.0, self.epsilon)
        return F.batch_norm(x, None, None, *options)


@keras_layer("BatchNormalization")
def batch_normalization(settings: Settings) -> Layer:
    """BatchNormalization, by era and mode."""
    mode = settings.left.get("mode", 0)
    if mode in (1, 2) and not isinstance(mode, bool):
        return (SampleNormalization if mode == 1 else BatchOnlyNormalization)(settings)
    if mode != 0:
        settings.unsupported("mode", mode)
    # keras 1.0.8 keras/layers/normalization.py#L104
    if settings.version < (1, 0, 5):
        return DeviationNormalization(settings)
    return BatchNormalization(settings)


@keras_layer("LayerNormalization")
class LayerNormalization(Affine):
    """gamma * (x - mean) / sqrt(variance + epsilon) + beta over axes of each sample."""

    passes_mask = True

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.axes = settings.list_of_integers("axis", -1)
        self.epsilon = settings.number("epsilon", 1e-3, low=0.0)
        settings.only("rms_scaling", False)

    def build(self, shape: Shape) -> None:
        """Make weight and bias, in the shape of the normalized axes."""
        rank = len(shape)
        self.axes = tuple(sorted(place_of(axis, rank) for axis in self.axes))
        if 0 in self.axes and (self.has_gamma or self.has_beta):
            raise ValueError("axis=0 is the batch, which has no gamma and beta")
        self.add_affine(tuple(shape[axis] for axis in self.axes))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize each sample."""
        size = tuple(x.shape[axis] for axis in self.axes)
        last = tuple(range(x.dim() - len(size), x.dim()))
        moved = x if self.axes == last else x.movedim(self.axes, last)
        y = F.layer_norm(moved, size, self.weight, self.bias, self.epsilon)
        return y if moved is x else y.movedim(last, self.axes)


@keras_layer("GroupNormalization")
class GroupNormalization(ChannelNormalization):
    """gamma * (x - mean) / sqrt(variance + epsilon) + beta over groups of channels.

    `groups` = -1 makes each channel a group of its own.
    Source: Wu & He, "Group Normalization", 2018.
    """

    passes_mask = True

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.groups = settings.integer("groups", 32, least=-1)
        if self.groups == 0:
            settings.problem("groups=0; wanted a number above 0, or -1")
        self.axis = settings.integer("axis", -1, least=-8)
        self.epsilon = settings.number("epsilon", 1e-3, low=0.0)
        # keras v2.14.0 keras/layers/normalization/group_normalization.py#L169
        self.uses_mask = (2, 14) <= settings.version < (3, 0)

    def build(self, shape: Shape) -> None:
        """Make weight and bias, one number a channel."""
        count = shape[place_of(self.axis, len(shape))]
        self.groups = count if self.groups == -1 else self.groups
        if count % self.groups:
            raise ValueError(f"{count} channels don't make {self.groups} equal groups")
        self.add_affine((count,))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalize each group of each sample."""
        if mask is not None:  # tf.broadcast_to(mask, tf.shape(x)) fails there
            raise ValueError("a mask reaches it, and Keras 2 can't normalize under one")
        if x.is_meta:  # see base.apply
            return x
        y = F.group_norm(
            x.movedim(self.place, 1), self.groups, self.weight, self.bias, self.epsilon
        )
        return y.movedim(1, self.place)


@keras_layer("UnitNormalization")
class UnitNormalization(Layer):
    """x / sqrt(max(sum(x**2), least)): length 1 along some axes.

    `least` is 1e-12, and 1e-24 since Keras 3 takes its own ops.normalize.
    """

    passes_mask = True

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.axes = settings.list_of_integers("axis", -1)
        # keras v3.6.0 keras/src/layers/normalization/unit_normalization.py#L43
        self.least = 1e-24 if settings.version >= (3, 6) else 1e-12

    def forward(self, x: Tensor) -> Tensor:
        """Scale."""
        squares = x.square().sum(self.axes, keepdim=True)
        return x * squares.clamp(min=self.least).rsqrt()


@keras_layer("RMSNormalization")
class RMSNormalization(Layer):
    """scale * x / sqrt(mean(x**2) + epsilon) along the last axes.

    Source: Zhang & Sennrich, "Root Mean Square Layer Normalization", 2019.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.axes = settings.list_of_integers("axis", -1)
        self.epsilon = settings.number("epsilon", 1e-6, low=0.0)

    def build(self, shape: Shape) -> None:
        """Make weight, in the shape of the normalized axes."""
        rank, count = len(shape), len(self.axes)
        places = sorted(place_of(axis, rank) for axis in self.axes)
        if places != list(range(rank - count, rank)):
            raise ValueError(f"axis={self.axes}; wanted the last ones")
        size = shape[rank - count :]
        self.add("scale", "weight", size, initializer=nn.init.ones_)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize each sample."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.epsilon)


@keras_layer("Normalization")
class Normalization(Layer):
    """(x - mean) / sqrt(variance), with statistics that were adapted to data."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        # keras v3.0.5 keras/layers/preprocessing/normalization.py#L118
        self.passes_mask = settings.version >= (3, 0)
        settings.left.setdefault("axis", -1)
        self.axes = open_sizes(settings, "axis", None)
        self.invert = settings.flag("invert", False)
        keys = ("mean", "variance")
        has_both = all(settings.left.get(key) is not None for key in keys)
        self.given = {key: numbers(settings, key) for key in keys} if has_both else {}
        settings.ignore("count")

    def build(self, shape: Shape) -> None:
        """Make mean and variance, one number for each place along the axes."""
        rank = len(shape)
        places = sorted(place_of(axis, rank) for axis in self.axes)
        size = tuple(shape[axis] for axis in places)
        self.wide = tuple(n if i in places else 1 for i, n in enumerate(shape))[1:]
        for name, start in (("mean", nn.init.zeros_), ("variance", nn.init.ones_)):
            options: dict[str, Any] = {"initializer": start}
            if self.given:
                value = torch.tensor(self.given[name]).expand(self.wide).reshape(size)
                options = {"stored": False, "value": value.numpy()}
            self.add(name, name, size, trainable=False, **options)
        if not self.given:
            self.add("count", "count", (), trainable=False, initializer=nn.init.ones_)

    def forward(self, x: Tensor) -> Tensor:
        """Return x with mean 0 and variance 1, or back."""
        mean = self.mean.view(self.wide)
        deviation = self.variance.view(self.wide).sqrt().clamp(min=1e-7)
        return x * deviation + mean if self.invert else (x - mean) / deviation
