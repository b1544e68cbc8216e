"""Pooling, global pooling, zero padding, cropping and upsampling."""

from typing import Any

import torch
from torch import Tensor

from course_lib.keras_models.layers.base import Layer, require_axes
from course_lib.keras_models.layers.resize import METHODS, resize, resize_corners
from course_lib.keras_models.layers.window import MAX_POOL, MEAN_POOL, Window, pad
from course_lib.keras_models.registry import keras_layer
from course_lib.keras_models.settings import Settings


class Spatial(Layer):
    """A layer over (batch, channels, ...) without variables."""

    def __init__(self, settings: Settings, dims: int | None = None) -> None:
        super().__init__(settings)
        self.dims = dims or int(settings.spec.kind[-2])
        self.channels_last = settings.channels_last()
        self.wants_first = self.channels_last

    def build(self, shape: tuple[int, ...]) -> None:
        """Check the number of axes."""
        require_axes(shape, self.dims + 2, "with the batch and the channels")


@keras_layer(
    "MaxPooling1D",
    "MaxPooling2D",
    "MaxPooling3D",
    "AveragePooling1D",
    "AveragePooling2D",
    "AveragePooling3D",
)
class Pooling(Spatial):
    """MaxPooling and AveragePooling in 1D to 3D.

    Padding never counts in a mean, but for Keras 2.0.4 to 2.1.4 on Theano, where it
    counts as zeros in one and two dimensions.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.window = Window(settings, self.dims, pool=True)
        self.takes_max = settings.spec.kind.startswith("Max")
        # keras 2.0.9 keras/backend/theano_backend.py#L2113
        once = (2, 0, 4) <= settings.version < (2, 1, 5)
        self.theano_counts_padding = once and self.dims < 3
        # keras 2.0.9 keras/backend/theano_backend.py#L2145, up to 2.1.5: `padding` is
        # no longer "same" where it asks whether to cut
        once = (2, 0) <= settings.version < (2, 1, 6)
        self.window.cuts = self.dims < 3 or not once

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, ...) -> fewer places."""
        window, padding = self.window, self.window.symmetric
        if padding is not None and self._is_torchs(padding):
            return self._pool(x, padding)
        if self.takes_max:
            return self._pool(window.pad(x, float("-inf")))
        means = self._pool(window.pad(x))
        if self._counts_padding:
            return means
        return means / self._pool(window.pad(x.new_ones(1, 1, *x.shape[2:])))

    @property
    def _counts_padding(self) -> bool:
        return self.theano_counts_padding and self.window.on_theano

    def _is_torchs(self, padding: tuple[int, ...]) -> bool:
        """Tell whether torch pads so far."""
        pairs = zip(padding, self.window.kernel, strict=True)
        return all(2 * places <= kernel for places, kernel in pairs)

    def _pool(self, x: Tensor, padding: Any = 0) -> Tensor:
        window = self.window
        if self.takes_max:
            return MAX_POOL[self.dims](x, window.kernel, window.strides, padding)
        counts = self._counts_padding
        mean = MEAN_POOL[self.dims]
        return mean(x, window.kernel, window.strides, padding, False, counts)


@keras_layer(
    "GlobalMaxPooling1D",
    "GlobalMaxPooling2D",
    "GlobalMaxPooling3D",
    "GlobalAveragePooling1D",
    "GlobalAveragePooling2D",
    "GlobalAveragePooling3D",
)
class GlobalPooling(Spatial):
    """GlobalMaxPooling and GlobalAveragePooling: (batch, channels)."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.takes_max = "Max" in settings.spec.kind
        self.keepdims = settings.flag("keepdims", False)
        average = not self.takes_max and self.dims == 1
        # keras 2.2.4 keras/layers/pooling.py#L541, new in 2.2.3
        self.uses_mask = average and settings.version >= (2, 2, 3)
        # A sequence is masked along its steps, and so stays in Keras's order.
        self.axes = tuple(range(2, self.dims + 2))
        if average:
            self.wants_first = False
            self.axes = (1,) if self.channels_last else (2,)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the maximum or mean over all places (that the mask counts)."""
        if x.is_meta:  # see apply
            sizes = [1 if i in self.axes else size for i, size in enumerate(x.shape)]
            means = x.new_empty(sizes)
            return means if self.keepdims else means.squeeze(self.axes)
        if self.takes_max:
            return x.amax(self.axes, self.keepdims)
        if mask is None:
            return x.mean(self.axes, self.keepdims)
        weight = mask.to(x.dtype).unsqueeze(2 if self.channels_last else 1)
        total = (x * weight).sum(self.axes, self.keepdims)
        return total / weight.sum(self.axes, self.keepdims)


@keras_layer("ZeroPadding1D", "ZeroPadding2D", "ZeroPadding3D")
class ZeroPadding(Spatial):
    """ZeroPadding1D to 3D: zeros before and after each axis."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.amounts = pairs(settings, "padding", self.dims)

    def forward(self, x: Tensor) -> Tensor:
        """Return the padded x."""
        return pad(x, self.amounts)


@keras_layer("Cropping1D", "Cropping2D", "Cropping3D")
class Cropping(Spatial):
    """Cropping1D to 3D: places cut off before and after each axis."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.amounts = pairs(settings, "cropping", self.dims)

    def forward(self, x: Tensor) -> Tensor:
        """Return the rest of x."""
        for axis, (before, after) in enumerate(self.amounts, start=2):
            left = x.shape[axis] - before - after
            if left < 1:
                raise ValueError(f"cropping leaves nothing of axis {axis}")
            x = x.narrow(axis, before, left)
        return x


def pairs(settings: Settings, key: str, dims: int) -> list[tuple[int, int]]:
    """Read 1, (1, 2) or ((0, 1), (2, 2)): the same, by axis, or by side as well.

    In one dimension, (1, 2) is before and after.
    """
    value = settings.take(key, 1)
    if not isinstance(value, list | tuple):
        value = [value] * dims
    elif dims == 1:
        value = [value]
    if len(value) != dims:
        settings.problem(f"{key}={value!r:.60}; wanted {dims} entries")
        return [(0, 0)] * dims
    result = []
    for part in value:
        settings.left[key] = part
        before, after = settings.integers(key, 2, least=0)
        result.append((before, after))
    return result


@keras_layer("UpSampling1D", "UpSampling2D", "UpSampling3D")
class UpSampling(Spatial):
    """UpSampling1D to 3D: each place repeated, or images made larger by `resize`.

    tf.keras and Keras 3 interpolate between the middles of the places, Keras 2.2 and
    2.3 between their corners. Between whole numbers lie floats, as on TensorFlow and
    JAX; Keras 3 on torch rounds them.
    """

    makes_floats = True

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.factors = settings.integers("size", self.dims, 2)
        # keras 2.2.4 keras/backend/tensorflow_backend.py#L2020
        self.from_corners = not settings.version.is_new
        methods = ("nearest", "bilinear") if self.from_corners else METHODS
        self.method = settings.choice("interpolation", methods, "nearest")
        if self.dims != 2 and self.method != "nearest":
            settings.unsupported("interpolation", self.method)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, ...) -> more places."""
        if self.method == "nearest":
            for axis, factor in enumerate(self.factors, start=2):
                x = x.repeat_interleave(factor, axis) if factor > 1 else x
            return x
        x = x if x.is_floating_point() else x.to(torch.get_default_dtype())
        pairs = zip(x.shape[2:], self.factors, strict=True)
        rows, columns = (size * factor for size, factor in pairs)
        if self.from_corners:
            return resize_corners(x, (rows, columns), align=False)
        return resize(x, (rows, columns), self.method)
