"""ConvLSTM1D to 3D: an LSTM whose products are convolutions."""

from typing import Any

from torch import Tensor

from course_lib.keras_models.layers.base import Shape, require_axes
from course_lib.keras_models.layers.recurrent import LSTM
from course_lib.keras_models.layers.window import CONVOLVE, Window, pad, same_padding
from course_lib.keras_models.registry import keras_layer
from course_lib.keras_models.settings import Settings


@keras_layer("ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D")
class ConvLSTM(LSTM):
    """Gates i, f, c, o of images; the recurrent convolution does not change their size.

    Takes and returns images in the file's order of axes, and works with their channels
    first. Source: Shi et al. 2015; keras/src/layers/rnn/conv_lstm.py at v3.15.1.
    """

    size_key = "filters"
    gate_axis = 1

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.dims = int(settings.spec.kind[-2])
        self.channels_last = settings.channels_last()
        self.window = Window(settings, self.dims)

    def activation_axis(self, settings: Settings) -> int:
        """Return the place of Keras's last axis in a state."""
        order = settings.left.get("data_format", "channels_last")
        return 1 if order == "channels_last" else -1

    def build(self, shape: Shape, *states: Shape) -> None:
        """Make the weights for (batch, steps, ..., channels), or channels first."""
        names = "with the batch, the steps and the channels"
        require_axes(shape, self.dims + 3, names)
        self.add_weights(shape[-1 if self.channels_last else 2], *self.window.kernel)

    def state_shape(self, x: Tensor) -> Shape:
        """Return (batch, filters, ...) for (batch, steps, channels, ...)."""
        window, sizes = self.window, x.shape[3:]
        amounts = map(sum, window.amounts(sizes))
        rows = zip(sizes, amounts, window.reach, window.strides, strict=True)
        places = [(size + more - reach) // step + 1 for size, more, reach, step in rows]
        if min(places) < 1:
            raise ValueError(f"the kernel {window.kernel} is larger than its images")
        return (x.shape[0], self.units, *places)

    def project(self, x: Tensor) -> Tensor:
        """Convolve the images of all steps, with the window's padding and strides."""
        window, convolve = self.window, CONVOLVE[self.dims]
        images = window.pad(x.flatten(0, 1))
        options = window.strides, 0, window.dilation
        y = convolve(images, self.weight_ih, self.bias, *options)
        return y.unflatten(0, x.shape[:2])

    def recur(self, h: Tensor) -> Tensor:
        """Convolve a state; the result has its size."""
        pairs = zip(h.shape[2:], self.window.kernel, strict=True)
        amounts = [same_padding(size, kernel, 1, 1) for size, kernel in pairs]
        return CONVOLVE[self.dims](pad(h, amounts), self.weight_hh)

    def _is_torchs(self) -> bool:
        return False

    def forward(self, x: Tensor, *states: Tensor, mask: Tensor | None = None) -> Any:
        """(batch, steps, ...) -> the last image, or all, and the states if wanted."""
        if not self.channels_last:
            return super().forward(x, *states, mask=mask)
        states = tuple(state.movedim(-1, 1) for state in states)
        result = super().forward(x.movedim(-1, 2), *states, mask=mask)
        y, *end = result if isinstance(result, tuple) else (result,)
        y = y.movedim(2 if self.return_sequences else 1, -1)
        return (y, *(h.movedim(1, -1) for h in end)) if end else y
