"""Where each array of a weight file goes, in the order of each era."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn

from course_lib.keras_models.graph.model import KerasModel
from course_lib.keras_models.layers.base import as_it_is
from course_lib.keras_models.layers.recurrent import GRU, LSTM, Recurrent
from course_lib.keras_models.layers.wrappers import Bidirectional, Replacement
from course_lib.keras_models.source.files import Arrays
from course_lib.keras_models.weights.layouts import (
    Layout,
    chained,
    flipped_axes,
    layouts_of,
)
from course_lib.keras_models.weights.origin import KERAS_3, Origin


@dataclass(frozen=True)
class Slot:
    """A variable, or the part of it that one array of the file fills."""

    path: tuple[str, ...]  # the layer's names from the outermost model inwards
    name: str  # the array's, for messages
    module: nn.Module  # that holds the tensor
    attribute: str  # the tensor's name in it
    layouts: tuple[Layout, ...] = field(compare=False)  # see `layouts_of`
    flipped: tuple[int, ...] = ()  # axes of the tensor that Theano has reversed
    side: str = ""  # "forward" or "backward" in a bidirectional layer

    @property
    def tensor(self) -> Tensor:
        """Return what is filled; Keras lists it as trainable where it needs a grad."""
        return getattr(self.module, self.attribute)

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Return the shapes that fit."""
        return [layout.shape_for(self.tensor) for layout in self.layouts]

    @torch.no_grad()
    def fill(self, array: Tensor, layout: int) -> None:
        """Copy an array of this layout."""
        layout = min(layout, len(self.layouts) - 1)
        self.layouts[layout].fill(self.tensor, array, self.flipped)

    def __str__(self) -> str:
        return f"{'/'.join(self.path)}/{self.name}"


def common_layouts(slots: Sequence[Slot], arrays: Arrays) -> list[int] | None:
    """Return the layout of each slot, the same for all slots of a layer.

    None where the arrays don't fit.
    """
    if len(slots) != len(arrays):
        return None
    possible: dict[nn.Module, set[int]] = {}
    for slot, (_, array) in zip(slots, arrays, strict=True):
        known = slot.shapes
        fitting = {i for i, shape in enumerate(known) if shape == array.shape}
        if len(known) == 1 and fitting:
            continue
        possible[slot.module] = possible.get(slot.module, fitting) & fitting
    if not all(possible.values()):
        return None
    return [min(possible.get(slot.module, {0})) for slot in slots]


def slots_of(
    module: Any,
    path: tuple[str, ...],
    origin: Origin = KERAS_3,
    *,
    joined: bool = False,
) -> Iterator[Slot]:
    """Yield the slots of a layer or model, layer by layer in Keras's order.

    `joined` says that an LSTM or GRU of Keras 1 has one array for all its gates
    (consume_less="gpu") though its layer does not say so.
    """
    if isinstance(module, KerasModel):
        for name, child in module._modules.items():
            yield from slots_of(child, (*path, name), origin, joined=joined)
        return
    if isinstance(module, Replacement):
        yield from _replacement(module, path)
        return
    sides = ("forward", "backward") if isinstance(module, Bidirectional) else repeat("")
    for inner, side in zip(module.sublayers(), sides, strict=False):
        for slot in slots_of(inner, path, origin, joined=joined):
            yield replace(slot, side=side or slot.side)
    # keras 1.2.2 keras/layers/recurrent.py#L780
    gated = isinstance(module, LSTM | GRU) and origin.version < (2, 0)
    if gated and not module.joined and not joined:
        yield from _separate_gates(module, path)
        return
    for variable in module.variables.values():
        if variable.stored:
            yield Slot(
                path,
                variable.name,
                module,
                variable.attribute,
                layouts_of(module, variable.name, variable.view, origin),
                flipped_axes(module, variable.name, origin),
            )


def _replacement(module: Replacement, path: tuple[str, ...]) -> Iterator[Slot]:
    """Yield the parameters and buffers of the caller's module, unchanged."""
    if isinstance(module.function, nn.Module):
        for name in module.function.state_dict():
            *parents, attribute = name.split(".")
            owner = module.function.get_submodule(".".join(parents))
            yield Slot(path, name, owner, attribute, (Layout(as_it_is),))


_GATES = {LSTM: ("ifco", "icfo"), GRU: ("zrh", "zrh")}


def _separate_gates(module: Recurrent, path: tuple[str, ...]) -> Iterator[Slot]:
    """Yield W, U and b of each gate, in Keras 1's order: i, c, f, o or z, r, h."""
    stored, listed = _GATES[LSTM if isinstance(module, LSTM) else GRU]
    letters = {"kernel": "W", "recurrent_kernel": "U", "bias": "b"}
    for gate in listed:
        start, count = stored.index(gate) * module.units, module.units
        part = partial(torch.narrow, dim=-1, start=start, length=count)
        for variable in module.variables.values():
            name = f"{letters[variable.name]}_{gate}"
            layouts = (Layout(chained(variable.view, part)),)
            yield Slot(path, name, module, variable.attribute, layouts)
