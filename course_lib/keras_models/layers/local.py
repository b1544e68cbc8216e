"""Locally connected layers: convolutions whose every place has a kernel of its own."""

import math

import torch
from torch import Tensor

from course_lib.keras_models.layers.base import Shape, Weighted, apply, require_axes
from course_lib.keras_models.registry import keras_layer
from course_lib.keras_models.settings import Settings

_LONGEST = 2**20  # places along an axis, far more than have kernels of their own


@keras_layer("LocallyConnected1D", "LocallyConnected2D")
class LocallyConnected(Weighted):
    """LocallyConnected1D and LocallyConnected2D, in Keras's own order of axes.

    The setting `implementation` says how Keras stores the kernel: 1, for each place of
    the output (numbers seen, filters); 2, from every number of the input to every one
    of the output, of which only the connected ones count; 3, only these, in a row. As
    penalties and initializers see that array, it is stored here in the same form.

    Source: keras/layers/locally_connected, tag v2.15.0; for 1,
    keras/layers/local.py, tag 1.2.2.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.dims = int(settings.spec.kind[-2])
        self.channels_last = settings.channels_last()
        self.filters = settings.integer("filters")
        self.kernel_size = settings.integers("kernel_size", self.dims)
        self.strides = settings.integers("strides", self.dims, 1)
        modes = ("valid", "same")
        self.same = settings.choice("padding", modes, "valid") == "same"
        self.implementation = settings.integer("implementation", 1)
        if self.implementation > 3 or (self.same and self.implementation == 1):
            settings.problem(f"implementation={self.implementation} does not fit")
        self.indices: Tensor | None = None  # (outputs, inputs) that are connected

    def build(self, shape: Shape) -> None:
        """Make the kernel and the bias (*places, filters)."""
        require_axes(shape, self.dims + 2, "with the batch and the channels")
        self.channels = shape[-1 if self.channels_last else 1]
        self.sizes = shape[1:-1] if self.channels_last else shape[2:]
        self.places = tuple(map(self._places, range(self.dims)))
        if min(self.places) < 1:
            raise ValueError("the kernel is larger than the input")
        self.add("kernel", "weight", self._kernel_shape(), **self.kernel)
        self.add_bias(*self.places, self.filters)

    def _places(self, axis: int) -> int:
        size, stride = self.sizes[axis], self.strides[axis]
        return -(-(size if self.same else size - self.kernel_size[axis] + 1) // stride)

    def _kernel_shape(self) -> Shape:
        if self.implementation == 1:
            seen = math.prod(self.kernel_size) * self.channels
            return (math.prod(self.places), seen, self.filters)
        if self.implementation == 2:
            return (
                *self._ordered(self.sizes, self.channels),
                *self._ordered(self.places, self.filters),
            )
        seen = math.prod(map(self._pairs, range(self.dims)))
        return (seen * self.channels * self.filters,)

    def _pairs(self, axis: int) -> int:
        """Count the pairs of an output along an axis and an input that it sees."""
        count = self.places[axis]
        if not self.same:
            return count * self.kernel_size[axis]
        if count > _LONGEST:
            raise ValueError(f"it has {count} places; wanted at most {_LONGEST}")
        return sum(len(self._seen(axis, place)) for place in range(count))

    def _ordered(self, places: tuple[int, ...], channels: int) -> Shape:
        return (*places, channels) if self.channels_last else (channels, *places)

    def _seen(self, axis: int, place: int) -> range:
        """Return the inputs that a place of the output sees along an axis.

        Source: conv_connected_inputs of keras/utils/conv_utils.py, tag v2.15.0.
        """
        kernel = self.kernel_size[axis]
        start = place * self.strides[axis] - (kernel // 2 if self.same else 0)
        return range(max(start, 0), min(start + kernel, self.sizes[axis]))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, *sizes, channels) -> (batch, *places, filters), or channels first."""
        size = (len(x), *self._ordered(self.places, self.filters))
        if x.is_meta:
            return apply(self.activation, x.new_empty(size))
        y = self._patches(x) if self.implementation == 1 else self._connected(x)
        y = y.reshape(size)
        if self.bias is not None:
            # channels_first too: Keras reshapes it there and does not move its axes.
            y = y + self.bias.reshape(size[1:])
        return apply(self.activation, y)

    def _patches(self, x: Tensor) -> Tensor:
        """Multiply the inputs that each place sees by its kernel."""
        first = 1 if self.channels_last else 2
        for axis, (kernel, stride) in enumerate(
            zip(self.kernel_size, self.strides, strict=True)
        ):
            x = x.unfold(axis + first, kernel, stride)
        if self.channels_last:  # (batch, *places, channels, *kernel)
            x = x.movedim(first + self.dims, -1)
        else:  # (batch, channels, *places, *kernel)
            x = x.movedim(1, self.dims + 1)
        x = x.reshape(len(x), len(self.weight), -1)
        y = torch.einsum("bps,psf->bpf", x, self.weight)
        return y if self.channels_last else y.transpose(1, 2)

    def _connected(self, x: Tensor) -> Tensor:
        """Add each connected input, times its weight, to its output."""
        if self.indices is None:
            self.indices = self._connections()
        outputs, inputs = self.indices.to(x.device)
        weight = self.weight
        count = math.prod(self.places) * self.filters
        if self.implementation == 2:
            weight = weight.reshape(-1, count)[inputs, outputs]
        parts = x.flatten(1)[:, inputs] * weight
        return parts.new_zeros(len(x), count).index_add(1, outputs, parts)

    def _connections(self) -> Tensor:
        """Return (2, connections): the outputs in order, and the inputs they see."""
        pairs = [
            torch.tensor(
                [
                    (place, seen)
                    for place in range(self.places[axis])
                    for seen in self._seen(axis, place)
                ]
            )
            for axis in range(self.dims)
        ]
        channels = torch.cartesian_prod(
            torch.arange(self.filters), torch.arange(self.channels)
        )
        pairs.insert(self.dims if self.channels_last else 0, channels)
        sizes = self._ordered(self.places, self.filters)
        ends = self._ordered(self.sizes, self.channels)
        outputs, inputs = torch.zeros(1, 1).long(), torch.zeros(1, 1).long()
        for pair, size, end in zip(pairs, sizes, ends, strict=True):
            outputs = (outputs.reshape(-1, 1) * size) + pair[:, 0]
            inputs = (inputs.reshape(-1, 1) * end) + pair[:, 1]
        outputs, inputs = outputs.flatten(), inputs.flatten()
        order = torch.argsort(outputs * math.prod(ends) + inputs)
        return torch.stack([outputs[order], inputs[order]])
