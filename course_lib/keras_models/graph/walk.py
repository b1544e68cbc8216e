"""A walk through a model: its steps, values and masks, and the tape that records it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from course_lib.keras_models.spec import Shape
from course_lib.modes import restored_modes

LIKE = -1  # the place of a tensor of the model's type


class Step(NamedTuple):
    """One step of the walk: call a layer, or move channels, or make a mask.

    `inputs`, `outputs`, `masks` and `free` are places in the list of tensors. A call
    that was made with `training=` sets the layer's mode.
    """

    layer: str | None
    function: Any
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    masks: MaskPlaces
    options: dict[str, Any]
    free: tuple[int, ...] = ()
    training: bool | None = None

    @property
    def used(self) -> tuple[int, ...]:
        """Return the places that are read."""
        masks = self.masks if isinstance(self.masks, tuple) else (self.masks,)
        return (*self.inputs, *(place for place in masks if place is not None))


# Of a planned tensor: its mask's place; None for no mask; why it can't be known.
Mask = int | str | None
# No mask; the one that a layer takes as mask=; or one for each input, for masks=.
MaskPlaces = int | tuple[int | None, ...] | None


def call_step(
    function: Callable[..., Any], step: Step, values: Any
) -> Tensor | tuple[Tensor, ...]:
    """Call what a step calls, with the tensors at the step's places."""
    if step.training is not None:
        function = partial(_call_in_mode, function, step.training)
    tensors = [values[place] for place in step.inputs]
    masks = step.masks
    if masks is None:
        return function(*tensors, **step.options)
    if isinstance(masks, int):
        return function(*tensors, mask=values[masks], **step.options)
    found = tuple(None if place is None else values[place] for place in masks)
    return function(*tensors, masks=found, **step.options)


def _call_in_mode(module: nn.Module, mode: bool, *inputs: Any, **options: Any) -> Any:
    """Call a module in train or eval mode, and leave it in the modes it had."""
    with restored_modes(module.modules()):
        module.train(mode)
        return module(*inputs, **options)


@dataclass(frozen=True)
class MakeMask:
    """A rule that makes a mask; of meta tensors, an empty one of the planned shape.

    torch would import its compiler to compare meta tensors, which takes seconds.
    """

    rule: Callable[..., Tensor]
    shape: tuple[int, ...]

    def __call__(self, *inputs: Tensor, **options: Any) -> Tensor:
        """Return the mask."""
        if inputs[0].is_meta:
            return empty_mask(self.shape)
        return self.rule(*inputs, **options)


def empty_mask(shape: tuple[int, ...]) -> Tensor:
    """Return a mask of which only the shape matters."""
    return torch.empty(shape, dtype=torch.bool, device="meta")


def to_type_of(x: Tensor, like: Tensor) -> Tensor:
    """Return floats of whatever type in that of `like`, whole numbers unchanged."""
    return x.to(like.dtype) if x.is_floating_point() else x


class Walk(NamedTuple):
    """A model's steps, for inputs of which certain ones are masked."""

    steps: list[Step]  # in the order in which they run
    slots: int  # how many tensors they pass on
    outputs: tuple[int, ...]  # the places of the model's outputs
    masks: tuple[Mask, ...]  # of the outputs
    mask_shapes: tuple[tuple[int, ...], ...]  # of those that there are, as planned

    @property
    def kept_masks(self) -> tuple[int, ...]:
        """Return the places of the masks that there are."""
        return tuple(place for place in self.masks if isinstance(place, int))


@dataclass(frozen=True)
class Call:
    """What one call of a layer returned, for tables and diagrams."""

    layer: str
    number: int  # 0 for its first call
    inputs: tuple[tuple[str, int], ...]  # layer and call of what it was given
    shapes: tuple[Shape, ...]  # of the outputs in Keras's order


class Value(NamedTuple):
    """A tensor of the plan: a meta tensor, its order, its place, its mask."""

    tensor: Tensor
    first: bool
    place: int
    mask: Mask = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape in Keras's order."""
        sizes = tuple(self.tensor.shape)
        return (sizes[0], *sizes[2:], sizes[1]) if self.first else sizes


class Tape:
    """Records the steps of a walk; each tensor or mask they return has its place."""

    def __init__(self) -> None:
        self.count = 0
        self.steps: list[Step] = []
        self.mask_shapes: dict[int, tuple[int, ...]] = {}

    def place(self) -> int:
        """Return the next free place in the list of tensors."""
        self.count += 1
        return self.count - 1

    def record(
        self, function: Any, inputs: tuple[int, ...], masks: MaskPlaces = None
    ) -> int:
        """Record a function of the tensors at these places; return its result's."""
        place = self.place()
        self.steps.append(Step(None, function, inputs, (place,), masks, {}))
        return place

    def apply(self, function: Any, value: Value, **changes: Any) -> Value:
        """Record a function of one tensor; return the value with what it returns."""
        place = self.record(function, (value.place,))
        tensor = function(value.tensor)
        return value._replace(tensor=tensor, place=place, **changes)

    def to_own_type(self, value: Value) -> Value:
        """Record that floats are cast to the model's type, whichever it has then."""
        place = self.record(to_type_of, (value.place, LIKE))
        tensor = to_type_of(value.tensor, torch.empty(0))
        return value._replace(tensor=tensor, place=place)

    def make_mask(
        self, rule: Any, inputs: list[Value], masks: MaskPlaces, shape: tuple[int, ...]
    ) -> int:
        """Record a rule that makes a mask; return the mask's place."""
        taken = tuple(value.place for value in inputs)
        place = self.record(MakeMask(rule, shape), taken, masks)
        self.mask_shapes[place] = shape
        return place

    def finish(self, outputs: tuple[int, ...], masks: tuple[Mask, ...]) -> Walk:
        """Return the walk; steps without use are left out, unused tensors are freed."""
        known = [mask for mask in masks if isinstance(mask, int)]
        shapes = tuple(self.mask_shapes[mask] for mask in known)
        needed = {*outputs, *known, LIKE}
        kept = []
        for step in reversed(self.steps):
            if step.layer is None and not needed & {*step.outputs}:
                continue
            used = {*step.used, *step.outputs}
            kept.append(step._replace(free=tuple(sorted(used - needed))))
            needed |= used
        return Walk(kept[::-1], self.count, outputs, masks, shapes)


class Plan(NamedTuple):
    """A walk, the calls it makes, and which inputs come with channels first."""

    walk: Walk
    calls: tuple[Call, ...]
    first_inputs: tuple[bool, ...]


@runtime_checkable
class Nested(Protocol):
    """A model inside of another one; its planner takes it as a Layer but for this."""

    output_names: tuple[str, ...]

    def walk_for(self, masked: tuple[bool, ...]) -> Walk:
        """Return the walk for inputs of which those have a mask."""
