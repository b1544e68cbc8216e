"""The imported model: a module that walks through the calls of its layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from course_lib.keras_models.graph.plan import Planner, module_name
from course_lib.keras_models.graph.walk import Call, Plan, Walk, call_step
from course_lib.keras_models.layers.base import MaskRule
from course_lib.keras_models.layers.core import Embedding
from course_lib.keras_models.schema.dtypes import integer_type
from course_lib.keras_models.spec import ModelSpec


class KerasModel(nn.Module):
    """A model that was loaded from a Keras file.

    Its children bear the names of the Keras layers, and so does its state_dict. It
    takes one tensor for each input, by position, as a list, or by name, and returns a
    tensor, or a tuple where the Keras model has several outputs. Inputs and outputs
    that are a dict in Keras stand in the order of the sorted keys, as `model.inputs`.

    Attributes:
        input_names, output_names: names in the order of inputs and outputs.
        input_shapes: what each input looks like; None where a size is open.
        calls: each layer's calls, in the order of the walk, with their shapes.
        version: the Keras version whose meaning the model has.
    """

    wants_first = False
    makes_mask = ends_mask = uses_mask = False
    passes_mask = uses_masks = True  # by the rules of the layers inside
    argument_names = call_options = ()
    takes_masks_off = False

    def __init__(
        self,
        spec: ModelSpec,
        layers: Mapping[str, nn.Module | None],
        axis_order: str = "keras",
    ) -> None:
        super().__init__()
        self.keras_name, self.keras_class = spec.name, spec.kind
        self.version = spec.version
        self.input_names = tuple(ref.layer for ref in spec.inputs)
        self.input_keys = spec.input_keys or self.input_names
        self.output_names = spec.output_names
        self.axis_order = axis_order
        self._unmasked = (False,) * len(self.input_names)
        self.calls: tuple[Call, ...] = ()
        # One walk for each choice of inputs that have a mask.
        self.walks: dict[tuple[bool, ...], Walk] = {}
        self._spec: ModelSpec | None = spec
        for name, layer in layers.items():
            # The name may be that of a method, which add_module would refuse.
            self._modules[module_name(name)] = layer
        self.register_buffer("_like", torch.empty(0), persistent=False)
        self.input_shapes = spec.input_shapes
        self.input_types = tuple(
            integer_type(spec.layers[name].config.get("dtype"))
            for name in self.input_names
        )
        users = ([self.child(c.layer) for c in spec.users_of(r)] for r in spec.inputs)
        self.looked_up = tuple(
            all(isinstance(user, Embedding) for user in each) for each in users
        )

    def extra_repr(self) -> str:
        """Name the model and its era."""
        return f"{self.keras_name!r}, Keras {self.version}"

    def child(self, name: str) -> Any:
        """Return the layer of that Keras name."""
        return self._modules[module_name(name)]

    def settle(self, first: bool, ranks: tuple[int, ...]) -> None:
        """Take Keras's order, as a layer of another model."""

    def build(self, *shapes: tuple[int, ...]) -> None:
        """Make all variables on the meta device and plan the walk.

        `shapes` are those of the inputs, where another model calls this one.
        """
        self._shapes = list(shapes)
        plan = self._planned(self._unmasked)
        self.walks[self._unmasked], self.calls, self.first_inputs = plan
        if not shapes:
            for module in self.modules():
                if isinstance(module, KerasModel):
                    module._spec = None

    def _planned(self, masked: tuple[bool, ...]) -> Plan:
        assert self._spec is not None
        names = [name for name in self._spec.layers if name not in self.input_names]
        return Planner(
            self._spec,
            {name: self.child(name) for name in names},
            self._shapes,
            masked,
            self.axis_order,
            is_built=bool(self.walks),
        ).plan()

    def walk_for(self, masked: tuple[bool, ...]) -> Walk:
        """Return the walk for inputs of which those have a mask."""
        if masked not in self.walks:
            self.walks[masked] = self._planned(masked).walk
        return self.walks[masked]

    def mask_after(self, masked: tuple[bool, ...]) -> MaskRule:
        """Say which mask the first output has, for a layer that wraps this model."""
        mask = self.walk_for(masked).masks[0]
        return self._first_mask if isinstance(mask, int) else mask

    def _first_mask(self, *inputs: Tensor, masks: tuple[Tensor | None, ...]) -> Tensor:
        return self(*inputs, masks=masks)[len(self.output_names)]

    def reset_states(self) -> None:
        """Let every stateful layer forget what it remembers between calls."""
        for module in self.modules():
            if module is not self and hasattr(module, "reset_states"):
                module.reset_states()

    def forward(self, *inputs: Any, **named: Any) -> Tensor | tuple[Tensor, ...]:
        """Walk through the calls.

        Another model that calls this one passes `masks`, a tuple of one for each input
        or None, and gets the outputs' masks after the outputs.

        Raises:
            ValueError: too many or too few inputs, an unknown name, a wrong shape.
        """
        masks = named.pop("masks") if _are_masks(named.get("masks")) else None
        found = self._unmasked
        if masks is not None:
            found = tuple(mask is not None for mask in masks)
        walk = self.walk_for(found)
        values: list[Any] = [*[None] * walk.slots, self._like]  # at LIKE
        count = len(found)
        values[:count] = self._bind(inputs, named)
        if masks is not None:
            values[count : count + sum(found)] = [m for m in masks if m is not None]
        modules = self._modules
        for step in walk.steps:
            call = step.function if step.layer is None else modules[step.layer]
            result = call_step(call, step, values)
            outputs = step.outputs
            if len(outputs) == 1 and not isinstance(result, tuple):
                values[outputs[0]] = result
            else:
                for place, part in zip(outputs, result, strict=True):
                    values[place] = part
            for place in step.free:
                values[place] = None
        places = walk.outputs if masks is None else (*walk.outputs, *walk.kept_masks)
        results = tuple(values[place] for place in places)
        return results[0] if len(results) == 1 else results

    def _bind(self, inputs: tuple, named: Mapping[str, Any]) -> list[Tensor]:
        names = self.input_names
        if len(inputs) == 1 and isinstance(inputs[0], Mapping) and not named:
            inputs, named = (), self._by_name(inputs[0])
        elif len(inputs) == 1 and isinstance(inputs[0], list | tuple):
            inputs = tuple(inputs[0])
        if named:
            rest = names[len(inputs) :]
            if {*named} != {*rest}:
                raise ValueError(
                    f"{self.keras_name}: got inputs named {sorted(named)}; wanted "
                    f"{list(rest)}."
                )
            inputs = (*inputs, *(named[name] for name in rest))
        if len(inputs) != len(names):
            raise ValueError(
                f"{self.keras_name}: got {len(inputs)} inputs; wanted {len(names)}: "
                f"{', '.join(names)}."
            )
        return [self._checked(i, x) for i, x in enumerate(inputs)]

    def _by_name(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Name a dict's inputs after the layers, where it has the model's keys."""
        if {*inputs} != {*self.input_keys}:
            return inputs
        return {
            name: inputs[key]
            for name, key in zip(self.input_names, self.input_keys, strict=True)
        }

    def _checked(self, i: int, x: Any) -> Tensor:
        """Return input number i as a tensor of the model's dtype."""
        like = self._like
        if not isinstance(x, Tensor):
            x = torch.as_tensor(np.asarray(x), device=like.device)
        wanted_type = self.input_types[i] or like.dtype
        # Whole numbers, too large for floats, may be rows of a table.
        stays_whole = self.looked_up[i] and not x.is_floating_point()
        if x.dtype != wanted_type and not (x.is_meta or stays_whole):
            x = x.to(wanted_type)
        wanted = self.input_shapes[i]
        if self.first_inputs[i]:
            wanted = (wanted[0], wanted[-1], *wanted[1:-1])
        if x.shape[1:] == wanted[1:]:
            return x
        if len(x.shape) != len(wanted) or any(
            n is not None and size != n
            for n, size in zip(wanted[1:], x.shape[1:], strict=False)
        ):
            raise ValueError(
                f"{self.keras_name}: input {self.input_names[i]!r} has shape "
                f"{tuple(x.shape)}; wanted {wanted} with None for any size"
                f"{', channels first' if self.first_inputs[i] else ''}."
            )
        return x


def _are_masks(value: Any) -> bool:
    """Tell masks from an input that happens to be called so."""
    return type(value) is tuple and all(
        mask is None or (isinstance(mask, Tensor) and mask.dtype == torch.bool)
        for mask in value
    )
