"""How a weight file lays out each variable: views and flips of the stored tensors.

Most layouts are views of the tensor in the file's own order of axes; the gates of
cuDNN's kernels are decoded first.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from course_lib.keras_models.layers.base import Layer, View, as_it_is
from course_lib.keras_models.layers.conv_lstm import ConvLSTM
from course_lib.keras_models.layers.convolution import Conv, ConvTranspose
from course_lib.keras_models.layers.recurrent import (
    GRU,
    LSTM,
    CuDNNGRU,
    CuDNNLSTM,
    Recurrent,
)
from course_lib.keras_models.weights.origin import Origin

Decode = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Layout:
    """One form of a variable in a file.

    Args:
        view: shows the stored tensor, or a part of it, as `decode` returns it.
        decode: turns the file's array into that; None where it already is.
        shape: of the file's array, where it is not that of the view.
    """

    view: View
    decode: Decode | None = None
    shape: tuple[int, ...] | None = None

    def shape_for(self, tensor: Tensor) -> tuple[int, ...]:
        """Return the shape of the file's array."""
        return self.shape or tuple(self.view(tensor).shape)

    def fill(self, tensor: Tensor, array: Tensor, flipped: tuple[int, ...]) -> None:
        """Copy the file's array into the tensor, reversed along its axes `flipped`."""
        array = array if self.decode is None else self.decode(array)
        target = self.view(tensor)
        if flipped:
            copy = torch.empty_like(tensor)
            self.view(copy).copy_(array)
            array = self.view(copy.flip(flipped))
        target.copy_(array)


@dataclass(frozen=True)
class Part:
    """View some columns."""

    start: int
    count: int

    def __call__(self, tensor: Tensor) -> Tensor:
        """Return the view."""
        return tensor.narrow(-1, self.start, self.count)


@dataclass(frozen=True)
class Chain:
    """View through one view, then through another."""

    first: View
    second: View

    def __call__(self, tensor: Tensor) -> Tensor:
        """Return the view."""
        return self.second(self.first(tensor))


def flipped_axes(module: Layer, name: str, origin: Origin) -> tuple[int, ...]:
    """Return the axes of the stored kernel that Theano has reversed.

    Keras itself turns no depthwise or separable kernel, since its Theano backend does
    (tag 2.2.4), and forgets Conv3DTranspose in preprocess_weights_for_loading.
    """
    if not origin.theano or not name.endswith("kernel"):
        return ()
    if not isinstance(module, Conv | ConvTranspose | ConvLSTM):
        return ()
    return tuple(range(2, module.dims + 2))


def layouts_of(
    module: Layer, name: str, view: View, origin: Origin
) -> tuple[Layout, ...]:
    """Return the layouts of a variable that the writer of the arrays may have used.

    The layouts of one layer's variables belong together: all are the first, or all
    the second; a single one goes with any. What Keras 2 makes of those of Keras 1:
    keras 2.2.4 keras/engine/saving.py#L591; a Convolution1D of 1.0 and of 1.1:
    keras 1.0.8 keras/layers/convolutional.py#L116,
    keras 1.1.0 keras/layers/convolutional.py#L116.
    """
    if isinstance(module, LSTM | GRU) and not isinstance(module, ConvLSTM):
        return _recurrent_layouts(module, name, view)
    is_kernel = name.endswith("kernel") and hasattr(module, "window")
    if not is_kernel or origin.version >= (2, 0):
        return (Layout(view),)
    if module.dims == 1:
        rows = Layout(Chain(view, _flat_row)), Layout(Chain(view, _old_row))
        return rows[::-1] if origin.version < (1, 1) else rows
    if isinstance(module, ConvTranspose):
        view = Chain(view, _swapped)
    return (Layout(view if module.channels_last else Chain(view, _out_in_first)),)


def _out_in_first(kernel: Tensor) -> Tensor:
    """(*kernel, in, out) -> (out, in, *kernel), "th" of Keras 1."""
    return kernel.permute(-1, -2, *range(kernel.dim() - 2))


def _swapped(kernel: Tensor) -> Tensor:
    """(*kernel, out, in) -> (*kernel, in, out)."""
    return kernel.transpose(-1, -2)


def _flat_row(kernel: Tensor) -> Tensor:
    """(length, in, out) -> (length, 1, in, out), Convolution1D of 1.1 and 1.2."""
    return kernel.unsqueeze(1)


def _old_row(kernel: Tensor) -> Tensor:
    """(length, in, out) -> (out, in, length, 1), Convolution1D to 1.0."""
    return kernel.permute(2, 1, 0).unsqueeze(-1)


# cuDNN


def _recurrent_layouts(module: Recurrent, name: str, view: View) -> tuple[Layout, ...]:
    """Return the plain layout and cuDNN's, the layer's first.

    The bias, twice as long, distinguishes them; without one there is no cuDNN.

    Source: keras 2.2.4 keras/engine/saving.py#L811.
    """
    if module.bias is None or (isinstance(module, GRU) and not module.reset_after):
        return (Layout(view),)
    if name == "bias":
        layouts = _bias_layouts(module)
    else:
        layouts = Layout(view), _kernel_layout(module, name)
    is_cudnn = isinstance(module, CuDNNLSTM | CuDNNGRU)
    return layouts[::-1] if is_cudnn else layouts


def _kernel_layout(module: Recurrent, name: str) -> Layout:
    """Return the layout of cuDNN's kernels.

    Side by side stand the gates' blocks (rows, units), whose numbers are those of
    torch's (units, rows) read row by row.
    """
    gates, units = module.gates, module.units
    tensor = module.weight_ih if name == "kernel" else module.weight_hh
    rows = tensor.shape[1]

    def as_blocks(tensor: Tensor) -> Tensor:
        return tensor.view(gates, rows, units).transpose(0, 1)

    def decode(array: Tensor) -> Tensor:
        return array.reshape(rows, gates, units)

    return Layout(as_blocks, decode, (rows, gates * units))


def _bias_layouts(module: Recurrent) -> tuple[Layout, Layout]:
    """Return the plain layout of the bias and cuDNN's, inputs' before states'."""
    count = module.gates * module.units
    if isinstance(module, GRU):
        return Layout(as_it_is), Layout(_flat)
    if isinstance(module, CuDNNLSTM):  # the halves need only have the right sum
        return Layout(as_it_is, _in_halves, (count,)), Layout(_flat)
    return Layout(as_it_is), Layout(as_it_is, _sum_of_halves, (2 * count,))


def _flat(bias: Tensor) -> Tensor:
    return bias.view(-1)


def _in_halves(bias: Tensor) -> Tensor:
    return (bias / 2).expand(2, -1)


def _sum_of_halves(bias: Tensor) -> Tensor:
    return bias.view(2, -1).sum(0)
