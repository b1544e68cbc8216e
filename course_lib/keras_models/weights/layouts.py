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


@dataclass(frozen=True)
class Layout:
    """One form of a variable in a file.

    The view shows the stored tensor, or a part of it, as `decode` returns the array.
    """

    view: View
    decode: Callable[[Tensor], Tensor] = as_it_is
    shape: tuple[int, ...] | None = None  # of the array, where not that of the view

    def shape_for(self, tensor: Tensor) -> tuple[int, ...]:
        """Return the shape of the file's array."""
        return self.shape or tuple(self.view(tensor).shape)

    def fill(self, tensor: Tensor, array: Tensor, flipped: tuple[int, ...]) -> None:
        """Copy the file's array into the tensor, reversed along its axes `flipped`."""
        array, target = self.decode(array), self.view(tensor)
        if flipped:
            copy = torch.empty_like(tensor)
            self.view(copy).copy_(array)
            array = self.view(copy.flip(flipped))
        target.copy_(array)


def chained(first: View, second: View) -> View:
    """View through one view, then through another."""
    return lambda tensor: second(first(tensor))


def flipped_axes(module: Layer, name: str, origin: Origin) -> tuple[int, ...]:
    """Return the axes of the stored kernel that Theano has reversed.

    Keras itself turns no depthwise or separable kernel, since its Theano backend does
    (tag 2.2.4), and forgets Conv3DTranspose in preprocess_weights_for_loading.
    """
    turns = origin.theano and isinstance(module, Conv | ConvTranspose | ConvLSTM)
    return tuple(range(2, module.dims + 2)) if turns and name.endswith("kernel") else ()


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
    if module.dims == 1:  # (length, in, out) -> (length, 1, in, out), of 1.1 and 1.2
        row = Layout(chained(view, lambda kernel: kernel.unsqueeze(1)))
        # (out, in, length, 1), of 1.0
        old = Layout(chained(view, lambda kernel: kernel.permute(2, 1, 0).unsqueeze(3)))
        return (old, row) if origin.version < (1, 1) else (row, old)
    if isinstance(module, ConvTranspose):  # (*kernel, out, in) -> (*kernel, in, out)
        view = chained(view, lambda kernel: kernel.transpose(-1, -2))
    if not module.channels_last:  # (out, in, *kernel), "th" of Keras 1
        view = chained(view, lambda kernel: kernel.movedim((-1, -2), (0, 1)))
    return (Layout(view),)


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
    return Layout(
        lambda tensor: tensor.view(gates, rows, units).transpose(0, 1),
        lambda array: array.reshape(rows, gates, units),
        (rows, gates * units),
    )


def _bias_layouts(module: Recurrent) -> tuple[Layout, Layout]:
    """Return the plain layout of the bias and cuDNN's, inputs' before states'."""
    count, plain = module.gates * module.units, Layout(as_it_is)
    flat = Layout(lambda bias: bias.view(-1))
    if isinstance(module, GRU):
        return plain, flat
    if isinstance(module, CuDNNLSTM):  # the halves need only have the right sum
        return Layout(as_it_is, lambda bias: (bias / 2).expand(2, -1), (count,)), flat
    return plain, Layout(as_it_is, lambda bias: bias.view(2, -1).sum(0), (2 * count,))
