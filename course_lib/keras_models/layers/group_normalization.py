"""Normalizations that need no batch: by group, to length 1, by root mean square."""

import torch
from torch import Tensor
from torch.nn import functional as F

from course_lib.keras_models.layers.base import Layer, Shape, place_of
from course_lib.keras_models.layers.normalization import (
    ChannelNormalization,
    add_affine,
    affine,
)
from course_lib.keras_models.registry import keras_layer
from course_lib.keras_models.settings import Settings


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
        self.affine = affine(settings)
        # keras v2.14.0 keras/layers/normalization/group_normalization.py#L169
        self.uses_mask = (2, 14) <= settings.version < (3, 0)

    def build(self, shape: Shape) -> None:
        """Make weight and bias, one number a channel."""
        count = shape[place_of(self.axis, len(shape))]
        self.groups = count if self.groups == -1 else self.groups
        if count % self.groups:
            raise ValueError(f"{count} channels don't make {self.groups} equal groups")
        add_affine(self, (count,))

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

    wants_first = False
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

    wants_first = False

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
        self.add("scale", "weight", size, initializer=torch.nn.init.ones_)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize each sample."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.epsilon)
