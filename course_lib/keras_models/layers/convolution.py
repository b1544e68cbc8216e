"""Convolutions of one, two and three dimensions: plain, depthwise, separable, back.

Kernels are stored as torch wants them; a view shows them as (*kernel, in, out).
"""

from functools import partial

from torch import Tensor

from course_lib.keras_models.layers.base import (
    Shape,
    Weighted,
    apply,
    kernel_view,
    require_axes,
    weight_options,
)
from course_lib.keras_models.layers.window import (
    CONVOLVE,
    CONVOLVE_BACK,
    Window,
    fit,
    same_padding,
)
from course_lib.keras_models.registry import keras_layer
from course_lib.keras_models.settings import Settings


def _depthwise_view(weight: Tensor, multiplier: int) -> Tensor:
    """View (channels * multiplier, 1, *kernel) as (*kernel, channels, multiplier)."""
    parts = weight.view(-1, multiplier, *weight.shape[2:])
    return parts.permute(*range(2, parts.dim()), 0, 1)


class Convolution(Weighted):
    """What every convolution has: a window, a bias, an activation."""

    def __init__(self, settings: Settings) -> None:
        first = settings.left.get("data_format") == "channels_first"
        super().__init__(settings, axis=-1 if first else 1)
        self.dims = int(settings.spec.kind.removesuffix("Transpose")[-2])
        self.channels_last = settings.channels_last()
        self.wants_first = self.channels_last
        self.window = Window(settings, self.dims)
        if max(self.window.strides) > 1 and max(self.window.dilation) > 1:
            text = "has strides and dilation above 1, which Keras refuses"
            settings.problem(text)

    def channels(self, shape: Shape) -> int:
        """Return the number of input channels; `shape` is in Keras's order."""
        require_axes(shape, self.dims + 2, "with the batch and the channels")
        return shape[-1 if self.channels_last else 1]

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve (batch, channels, ...) with the window's padding."""
        window, padding = self.window, self.window.symmetric
        if padding is None:
            x, padding = window.pad(x), 0
        return CONVOLVE[self.dims](
            x, weight, bias, window.strides, padding, window.dilation, self.groups
        )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, ...) -> (batch, filters, ...)."""
        return apply(self.activation, self.convolve(x, self.weight, self.bias))


@keras_layer("Conv1D", "Conv2D", "Conv3D")
class Conv(Convolution):
    """Conv1D, Conv2D and Conv3D."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.filters = settings.integer("filters")
        self.groups = settings.integer("groups", 1)
        # keras 1.1.0 keras/backend/theano_backend.py#L1199 pads as TensorFlow does
        self.window.theano_differs = self.dims < 3 or settings.version >= (1, 2)
        settings.only("lora_rank", None)

    def build(self, shape: Shape) -> None:
        """Make weight (filters, channels / groups, *kernel) and bias."""
        channels = self.channels(shape)
        if channels % self.groups or self.filters % self.groups:
            raise ValueError(
                f"groups={self.groups} divides not both {channels} channels and "
                f"{self.filters} filters"
            )
        size = (self.filters, channels // self.groups, *self.window.kernel)
        self.add("kernel", "weight", size, kernel_view, **self.kernel)
        self.add_bias(self.filters)


@keras_layer("DepthwiseConv1D", "DepthwiseConv2D")
class DepthwiseConv(Convolution):
    """DepthwiseConv1D and DepthwiseConv2D: each channel has filters of its own."""

    kernel_name = "depthwise"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.multiplier = settings.integer("depth_multiplier", 1)
        settings.only("groups", 1)
        settings.ignore("kernel_initializer")

    def build(self, shape: Shape) -> None:
        """Make weight (channels * multiplier, 1, *kernel) and bias."""
        self.add_bias(self.add_depthwise(shape, "weight"))

    def add_depthwise(self, shape: Shape, attribute: str) -> int:
        """Make the kernel, and return how many channels come out."""
        self.groups = self.channels(shape)
        count = self.groups * self.multiplier
        size = (count, 1, *self.window.kernel)
        view = partial(_depthwise_view, multiplier=self.multiplier)
        self.add("depthwise_kernel", attribute, size, view, **self.kernel)
        return count


@keras_layer("SeparableConv1D", "SeparableConv2D")
class SeparableConv(DepthwiseConv):
    """SeparableConv1D and SeparableConv2D: depthwise, then across channels."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.filters = settings.integer("filters")
        # separable_conv2d of keras/backend/theano_backend.py, tag 2.2.4, asks the
        # pointwise kernel, which is never even, whether to cut.
        self.window.cuts = False
        self.pointwise_options = weight_options(settings, "pointwise")
        # Fields of Conv, which Keras does not use here.
        settings.ignore("kernel_regularizer", "kernel_constraint")

    def build(self, shape: Shape) -> None:
        """Make depthwise (channels * multiplier, 1, *kernel), pointwise and bias."""
        between = self.add_depthwise(shape, "depthwise")
        size = (self.filters, between, *[1] * self.dims)
        options = self.pointwise_options
        self.add("pointwise_kernel", "pointwise", size, kernel_view, **options)
        self.add_bias(self.filters)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, ...) -> (batch, filters, ...)."""
        x = self.convolve(x, self.depthwise, None)
        y = CONVOLVE[self.dims](x, self.pointwise, self.bias)
        return apply(self.activation, y)


@keras_layer("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose")
class ConvTranspose(Convolution):
    """Conv1DTranspose to Conv3DTranspose: the gradient of a convolution.

    The output has size * stride places for "same", and max(kernel - stride, 0) more
    for "valid", unless `output_padding` (or, in 1.x, `output_shape`) says otherwise.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.filters = settings.integer("filters")
        self.extra = self._sizes(settings, "output_padding", least=0)
        self.places = self._sizes(settings, "output_places", least=1)
        settings.only("groups", 1)

    def _sizes(self, settings: Settings, key: str, least: int) -> Shape | None:
        if settings.left.get(key) is None:
            return settings.left.pop(key, None)
        return settings.integers(key, self.dims, least=least)

    def build(self, shape: Shape) -> None:
        """Make weight (channels, filters, *kernel) and bias."""
        size = (self.channels(shape), self.filters, *self.window.kernel)
        # Keras's kernel is (*kernel, out, in), so the same view serves.
        self.add("kernel", "weight", size, kernel_view, **self.kernel)
        self.add_bias(self.filters)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, ...) -> (batch, filters, ...)."""
        strides, dilation = self.window.strides, self.window.dilation
        y = CONVOLVE_BACK[self.dims](x, self.weight, None, strides, 0, 0, 1, dilation)
        y = fit(y, [self._place(i, size) for i, size in enumerate(x.shape[2:])])
        if self.bias is not None:
            y = y + self.bias.view(-1, *[1] * self.dims)
        return apply(self.activation, y)

    def _place(self, i: int, size: int) -> tuple[int, int]:
        """Return how many places are cut before, and how many are returned."""
        window = self.window
        stride, reach = window.strides[i], window.reach[i]
        if self.places is not None:
            wanted = self.places[i]
        elif self.extra is not None:
            padding = reach // 2 if window.mode == "same" else 0
            wanted = (size - 1) * stride + reach - 2 * padding + self.extra[i]
        elif window.mode == "same":
            wanted = size * stride
        else:
            wanted = size * stride + max(reach - stride, 0)
        if window.mode != "same":
            return 0, wanted
        if window.on_theano:  # conv2d_transpose of theano_backend.py, tag 2.2.4
            if window.kernel[i] % 2 == 0:  # cut as if it were no gradient
                wanted = -(-size // stride)
            return window.margins[i], wanted
        before, _ = same_padding(wanted, window.kernel[i], stride, window.dilation[i])
        return before, wanted
