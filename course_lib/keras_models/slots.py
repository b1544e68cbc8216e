"""Where each array of a weight file goes, in the order and layout of each era.

A `Slot` shows a variable, or the part of it that one array of the file fills, as a
view in the file's own layout. Copying an array into that view is all that is left to
do, and the view's shape is the shape that the file must have.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from course_lib.keras_models.graph import KerasModel
from course_lib.keras_models.layers.base import Layer
from course_lib.keras_models.layers.convolution import Conv, ConvTranspose
from course_lib.keras_models.layers.recurrent import GRU, LSTM, Recurrent
from course_lib.keras_models.layers.wrappers import Replacement

View = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Slot:
    """One array of the file.

    Args:
        path: the layer's names from the outermost model inwards.
        name: the array's name, for messages.
        module: the module that holds the tensor.
        attribute: the tensor's name in it.
        views: show the tensor as the file has it; several where an era had several.
        trainable: whether Keras lists it among the trainable weights.
        flip: axes of the array to reverse, for kernels of Theano.
    """

    path: tuple[str, ...]
    name: str
    module: nn.Module
    attribute: str
    views: tuple[View, ...]
    trainable: bool
    flip: tuple[int, ...] = ()

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Return the shapes that fit."""
        tensor = getattr(self.module, self.attribute)
        return [tuple(view(tensor).shape) for view in self.views]

    def fill(self, array: Tensor) -> None:
        """Copy an array of one of these shapes."""
        tensor = getattr(self.module, self.attribute)
        with torch.no_grad():
            for view in self.views:
                target = view(tensor)
                if target.shape == array.shape:
                    target.copy_(array.flip(self.flip) if self.flip else array)
                    return

    def __str__(self) -> str:
        return f"{'/'.join(self.path)}/{self.name}"


def slots_of(
    module: Any, path: tuple[str, ...], *, flipped: bool = False
) -> Iterator[Slot]:
    """Yield the slots of a layer or model, layer by layer in Keras's order."""
    if isinstance(module, KerasModel):
        for name, child in module._modules.items():
            yield from slots_of(child, (*path, name), flipped=flipped)
        return
    if isinstance(module, Replacement):
        yield from _replacement(module, path)
        return
    for inner in module.sublayers():
        yield from slots_of(inner, path, flipped=flipped)
    gated = isinstance(module, LSTM | GRU) and module.keras_version < (2, 0)
    if gated and not module.joined:
        yield from _separate_gates(module, path)
        return
    for variable in module.variables.values():
        if not variable.stored:
            continue
        tensor = getattr(module, variable.attribute)
        views, flip = _layouts(module, variable.name, variable.view, flipped)
        yield Slot(
            path,
            variable.name,
            module,
            variable.attribute,
            views,
            tensor.requires_grad,
            flip,
        )


def _replacement(module: Replacement, path: tuple[str, ...]) -> Iterator[Slot]:
    """Yield the parameters and buffers of the caller's own module, as they are."""
    if isinstance(module.function, nn.Module):
        for name, tensor in module.function.state_dict(keep_vars=True).items():
            *parents, attribute = name.split(".")
            owner = module.function.get_submodule(".".join(parents))
            same: tuple[View, ...] = (lambda tensor: tensor,)
            yield Slot(path, name, owner, attribute, same, tensor.requires_grad)


_GATES = {LSTM: ("ifco", "icfo"), GRU: ("zrh", "zrh")}


def _separate_gates(module: Recurrent, path: tuple[str, ...]) -> Iterator[Slot]:
    """Yield W, U and b of each gate, in Keras 1's order: i, c, f, o or z, r, h."""
    stored, listed = _GATES[LSTM if isinstance(module, LSTM) else GRU]
    units = module.units
    letters = {"kernel": "W", "recurrent_kernel": "U", "bias": "b"}
    for gate in listed:
        part = _Part(stored.index(gate) * units, units)
        for variable in module.variables.values():
            name = f"{letters[variable.name]}_{gate}"
            tensor = getattr(module, variable.attribute)
            views = (_Chain(variable.view, part),)
            trainable = tensor.requires_grad
            yield Slot(path, name, module, variable.attribute, views, trainable)


@dataclass(frozen=True)
class _Part:
    """View some columns."""

    start: int
    count: int

    def __call__(self, tensor: Tensor) -> Tensor:
        return tensor.narrow(-1, self.start, self.count)


@dataclass(frozen=True)
class _Chain:
    """View through one view, then through another."""

    first: View
    second: View

    def __call__(self, tensor: Tensor) -> Tensor:
        return self.second(self.first(tensor))


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


def _layouts(
    module: Layer, name: str, view: View, flipped: bool
) -> tuple[tuple[View, ...], tuple[int, ...]]:
    """Return the views of a variable as its era stored it, and the axes to flip."""
    if not name.endswith("kernel") or not hasattr(module, "window"):
        return (view,), ()
    old = module.keras_version < (2, 0)
    flips = flipped and isinstance(module, Conv | ConvTranspose)
    spatial = tuple(range(module.dims))
    if not old:
        return (view,), spatial if flips else ()
    if module.dims == 1:
        layouts = [_Chain(view, _flat_row), _Chain(view, _old_row)]
        if module.keras_version < (1, 1):
            return tuple(layouts[::-1]), (2,) if flips else ()
        return tuple(layouts), (0,) if flips else ()
    if isinstance(module, ConvTranspose):
        view = _Chain(view, _swapped)
    if module.channels_last:
        return (view,), spatial if flips else ()
    places = tuple(axis + 2 for axis in spatial)
    return (_Chain(view, _out_in_first),), places if flips else ()
