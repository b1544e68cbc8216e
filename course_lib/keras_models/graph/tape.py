"""The steps of a walk while they are planned, and the places that tensors get."""

from typing import Any

import torch

from course_lib.keras_models.graph.walk import (
    LIKE,
    MakeMask,
    Mask,
    MaskPlaces,
    Step,
    Value,
    Walk,
    to_type_of,
)


class Tape:
    """Records steps; each tensor or mask that a step returns has its place."""

    def __init__(self) -> None:
        self.count = 0
        self.steps: list[Step] = []
        self.mask_shapes: dict[int, tuple[int, ...]] = {}

    def place(self) -> int:
        """Return the next free place in the list of tensors."""
        self.count += 1
        return self.count - 1

    def new_mask(self, shape: tuple[int, ...]) -> int:
        """Return the place of a new mask of that shape."""
        place = self.place()
        self.mask_shapes[place] = shape
        return place

    def apply(self, function: Any, value: Value, **changes: Any) -> Value:
        """Record a function of one tensor; return the value with what it returns."""
        place = self.place()
        self.steps.append(Step(None, function, (value.place,), (place,), None, {}))
        changed = {"tensor": function(value.tensor), "place": place, **changes}
        return value._replace(**changed)

    def to_own_type(self, value: Value) -> Value:
        """Record that floats are cast to the model's type, whichever it has then."""
        place = self.place()
        places = (value.place, LIKE)
        self.steps.append(Step(None, to_type_of, places, (place,), None, {}))
        tensor = to_type_of(value.tensor, torch.empty(0))
        return value._replace(tensor=tensor, place=place)

    def make_mask(
        self, rule: Any, inputs: list[Value], masks: MaskPlaces, shape: tuple[int, ...]
    ) -> int:
        """Record a rule that makes a mask; return the mask's place."""
        place = self.new_mask(shape)
        taken = tuple(value.place for value in inputs)
        function = MakeMask(rule, shape)
        self.steps.append(Step(None, function, taken, (place,), masks, {}))
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
        self.steps = kept[::-1]
        return Walk(self.steps, self.count, outputs, masks, shapes)
