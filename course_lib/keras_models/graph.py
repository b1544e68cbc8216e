"""The imported model: a module that walks through the calls of its layers.

Tensors are in Keras's order of axes, except between layers that want the channels of
a channels-last file at axis 1: there they stay so, and only where the order matters
(Flatten, Reshape, the model's inputs and outputs) is a permuted view put in between.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from course_lib.keras_models.kinds import Maker
from course_lib.keras_models.layers.base import (
    Layer,
    channels_to_first,
    channels_to_last,
)
from course_lib.keras_models.layers.merging import Concatenate, merge_mask
from course_lib.keras_models.layers.wrappers import Bidirectional
from course_lib.keras_models.regularizers import (
    activity,
    counts_backward,
    counts_frozen,
    counts_nested_calls,
    counts_wrapped_activity,
    times,
)
from course_lib.keras_models.spec import (
    CallSpec,
    KerasFormatError,
    ModelSpec,
    Ref,
    refs_in,
)
from course_lib.regularization import regularize

LARGEST_TENSOR = 2**34  # numbers in one tensor of a small batch
_BATCH, _LENGTH = 2, 240  # what stands for an unknown batch and length


class Step(NamedTuple):
    """One step of the walk: call a layer, or move channels, or take a mask.

    `inputs`, `outputs`, `mask` and `free` are places in the list of tensors.
    """

    layer: str | None
    function: Any
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    mask: int | None
    options: dict[str, Any]
    free: tuple[int, ...] = ()


@dataclass(frozen=True)
class Call:
    """What one call of a layer returned, for tables and diagrams.

    Args:
        layer: the layer's name.
        number: 0 for its first call.
        inputs: (layer, call) of what it was given.
        shapes: of the outputs in Keras's order; None where a size is open.
    """

    layer: str
    number: int
    inputs: tuple[tuple[str, int], ...]
    shapes: tuple[tuple[int | None, ...], ...]


class KerasModel(nn.Module):
    """A model that was loaded from a Keras file.

    Its children bear the names of the Keras layers, and so does its state_dict. It
    takes one tensor for each input, by position, as a list, or by name, and returns a
    tensor, or a tuple where the Keras model has several outputs.

    Attributes:
        input_names, output_names: names in the order of inputs and outputs.
        input_shapes: what each input looks like; None where a size is open.
        calls: each layer's calls, in the order of the walk, with their shapes.
        version: the Keras version whose meaning the model has.
    """

    wants_first = False
    makes_mask = uses_mask = passes_mask = False

    def __init__(self, spec: ModelSpec, maker: Maker, axis_order: str = "keras"):
        super().__init__()
        self.keras_name, self.keras_class = spec.name, spec.kind
        self.version = spec.version
        self.input_names = tuple(ref.layer for ref in spec.inputs)
        self.output_names = spec.output_names
        self.axis_order = axis_order
        self.calls: tuple[Call, ...] = ()
        self.steps: list[Step] = []
        self._spec: ModelSpec | None = spec
        by_layer: dict[str, list[CallSpec]] = {}
        for call in spec.calls:
            by_layer.setdefault(call.layer, []).append(call)
        for name, layer in spec.layers.items():
            if name in self.input_names:
                continue
            calls = sorted(by_layer.get(name, []), key=lambda call: call.number)
            # The name may be that of a method, which add_module would refuse.
            self._modules[name.replace(".", "_")] = maker.make(layer, calls)
        self.register_buffer("_like", torch.empty(0), persistent=False)
        self.input_shapes = tuple(
            _shape(name, spec.layers[name].config, maker) for name in self.input_names
        )

    def extra_repr(self) -> str:
        """Name the model and its era."""
        return f"{self.keras_name!r}, Keras {self.version}"

    def child(self, name: str) -> Any:
        """Return the layer of that Keras name."""
        return self._modules[name.replace(".", "_")]

    def settle(self, first: bool, ranks: tuple[int, ...]) -> bool | None:
        """Take Keras's order, as a layer of another model."""
        return False

    def build(self, *shapes: tuple[int, ...]) -> None:
        """Make all variables on the meta device and plan the walk."""
        assert self._spec is not None
        planner = _Planner(self, self._spec, list(shapes))
        self.steps, self.calls = planner.plan()
        self.slots = planner.count
        self.first_inputs = planner.first_inputs
        self.output_slots = planner.output_slots
        self.masked = planner.masked
        self._spec = None

    def reset_states(self) -> None:
        """Let every stateful layer forget what it remembers between calls."""
        for module in self.modules():
            if module is not self and hasattr(module, "reset_states"):
                module.reset_states()

    def forward(self, *inputs: Any, **named: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Walk through the calls.

        Raises:
            ValueError: too many or too few inputs, an unknown name, a wrong shape.
        """
        values: list[Any] = [None] * self.slots
        values[: len(self.input_names)] = self._bind(inputs, named)
        modules = self._modules
        for layer, function, places, outputs, mask, options, free in self.steps:
            call = function if layer is None else modules[layer]
            tensors = [values[place] for place in places]
            if mask is not None:
                result = call(*tensors, mask=values[mask], **options)
            else:
                result = call(*tensors, **options)
            if len(outputs) == 1 and not isinstance(result, tuple):
                values[outputs[0]] = result
            else:
                for place, part in zip(outputs, result, strict=True):
                    values[place] = part
            for place in free:
                values[place] = None
        results = tuple(values[place] for place in self.output_slots)
        return results[0] if len(results) == 1 else results

    def _bind(self, inputs: tuple, named: Mapping[str, Any]) -> list[Tensor]:
        names = self.input_names
        if len(inputs) == 1 and isinstance(inputs[0], Mapping) and not named:
            inputs, named = (), inputs[0]
        elif len(inputs) == 1 and isinstance(inputs[0], list | tuple):
            inputs = tuple(inputs[0])
        if named:
            unknown = sorted(set(named) - set(names))
            lacking = [name for name in names[len(inputs) :] if name not in named]
            if unknown or lacking:
                raise ValueError(
                    f"{self.keras_name}: got inputs named {sorted(named)}; wanted "
                    f"{list(names[len(inputs) :])}."
                )
            inputs = (*inputs, *(named[name] for name in names[len(inputs) :]))
        if len(inputs) != len(names):
            raise ValueError(
                f"{self.keras_name}: got {len(inputs)} inputs; wanted {len(names)}: "
                f"{', '.join(names)}."
            )
        return [self._checked(i, x) for i, x in enumerate(inputs)]

    def _checked(self, i: int, x: Any) -> Tensor:
        """Return input number i as a tensor of the model's dtype."""
        like = self._like
        if not isinstance(x, Tensor):
            x = torch.as_tensor(np.asarray(x), device=like.device)
        if x.is_floating_point() and x.dtype != like.dtype:
            x = x.to(like.dtype)
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

    def attach_regularizers(self, repeat: int = 1) -> None:
        """Give each layer its penalties, as often as this Keras version counts them."""
        counted = counts_nested_calls(self.version)
        for name, module in self._modules.items():
            if isinstance(module, KerasModel):
                calls = sum(_module_name(call.layer) == name for call in self.calls)
                module.attach_regularizers(repeat * (max(calls, 1) if counted else 1))
            elif isinstance(module, Layer):
                _attach(module, repeat)


def _attach(layer: Layer, repeat: int) -> None:
    by_parameter = {}
    for variable in layer.variables.values():
        parameter = getattr(layer, variable.attribute)
        counts = parameter.requires_grad or counts_frozen(layer.keras_version)
        if variable.regularizer is not None and counts:
            by_parameter[variable.attribute] = times(variable.regularizer, repeat)
    penalty = layer.activity and activity(layer.activity, layer.keras_version)
    regularize(layer, activity=penalty, **by_parameter)
    inners = layer.sublayers()
    if isinstance(layer, Bidirectional) and not counts_backward(layer.keras_version):
        inners = inners[:1]
    for inner in inners:
        if isinstance(inner, KerasModel):
            inner.attach_regularizers(repeat)
            continue
        if not counts_wrapped_activity(layer.keras_version):
            inner.activity = None
        _attach(inner, repeat)


def _module_name(name: str) -> str:
    return name.replace(".", "_")


class _Value(NamedTuple):
    """A tensor of the plan: a meta tensor, its order, its place, its mask's place."""

    tensor: Tensor
    first: bool
    place: int
    mask: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape in Keras's order."""
        sizes = tuple(self.tensor.shape)
        return (sizes[0], *sizes[2:], sizes[1]) if self.first else sizes


class _Planner:
    """Builds the layers of one model along a walk with meta tensors."""

    def __init__(self, model: KerasModel, spec: ModelSpec, shapes: list) -> None:
        self.model, self.spec = model, spec
        self.count = 0
        self.steps: list[Step] = []
        self.values: dict[Ref, _Value] = {}
        self.moved: dict[int, _Value] = {}
        self.calls: list[tuple[CallSpec, list[_Value]]] = []
        self.built: set[str] = set()
        self.given = shapes
        self.masked = False

    def place(self) -> int:
        """Return the next free place in the list of tensors."""
        self.count += 1
        return self.count - 1

    def plan(self) -> tuple[list[Step], tuple[Call, ...]]:
        """Return the steps and the calls."""
        self.first_inputs = self._first_inputs()
        for i, ref in enumerate(self.spec.inputs):
            sizes = self.given[i] if self.given else self._sizes(i)
            if self.first_inputs[i]:
                sizes = (sizes[0], sizes[-1], *sizes[1:-1])
            tensor = torch.empty(sizes, device="meta")
            self.values[ref] = _Value(tensor, self.first_inputs[i], self.place())
        for call in self.spec.calls:
            try:
                self._call(call)
            except KerasFormatError:
                raise
            except (
                ArithmeticError,
                IndexError,
                LookupError,
                RuntimeError,
                TypeError,
                ValueError,
                NotImplementedError,
            ) as error:
                raise self._failure(call, error) from error
        self._make_outputs()
        self._drop_unused()
        return self._freed(), self._described()

    def _first_inputs(self) -> tuple[bool, ...]:
        """Tell which inputs come with channels first, by the wish of the caller."""
        names = self.model.input_names
        if self.model.axis_order == "keras" or self.given:
            return (False,) * len(names)
        self.file_is_first = any(
            getattr(module, "channels_last", True) is False
            for module in self.model.modules()
        )
        return tuple(map(self._comes_first, self.spec.inputs))

    def _comes_first(self, ref: Ref) -> bool:
        i = self.spec.inputs.index(ref)
        rank = len(self.model.input_shapes[i])
        if rank != 3 or self.file_is_first:
            return rank > 3 and not self.file_is_first
        users = [call for call in self.spec.calls if ref in refs_in(list(call.args))]
        return any(self.model.child(call.layer).wants_first for call in users)

    def _sizes(self, i: int) -> tuple[int, ...]:
        shape = self.model.input_shapes[i]
        batch = _BATCH if shape[0] is None else shape[0]
        return (batch, *(_LENGTH if size is None else size for size in shape[1:]))

    def _failure(self, call: CallSpec, error: Exception) -> KerasFormatError:
        layer = self.spec.layers[call.layer]
        shapes = [self.values[r].shape for r in refs_in(list(call.args))]
        text = str(error).split("\n")[0]
        return KerasFormatError(
            f"load_keras: layer {call.layer!r} ({layer.source}) does not fit its "
            f"inputs of shapes {shapes}: {text}"
        )

    def _call(self, call: CallSpec) -> None:
        module = self.model.child(call.layer)
        refs, options, given_mask = self._arguments(call)
        inputs = [self._value(ref, call) for ref in refs]
        if not inputs:
            raise ValueError("it is called without any tensor")
        if call.layer not in self.built:
            module.build(*(value.shape for value in inputs))
            first = any(value.first for value in inputs)
            module.settle(first, tuple(value.tensor.dim() for value in inputs))
            self.built.add(call.layer)
        order = module.wants_first
        inputs = [self._in_order(value, order) for value in inputs]
        mask = inputs[0].mask if module.uses_mask else None
        if module.uses_mask and given_mask is not None:
            mask = self._value(given_mask, call).place
        else:
            self._check_mask(module, inputs)
        tensors = [value.tensor for value in inputs]
        if mask is not None:
            steps = tensors[0].new_empty(tensors[0].shape[:2], dtype=torch.bool)
            result = module(*tensors, mask=steps, **options)
        else:
            result = module(*tensors, **options)
        results = result if isinstance(result, tuple) else (result,)
        places = tuple(self.place() for _ in results)
        taken = tuple(value.place for value in inputs)
        name = _module_name(call.layer)
        self.steps.append(Step(name, None, taken, places, mask, options))
        new_mask = self._mask_after(module, inputs)
        first = inputs[0].first
        made = []
        for number, (tensor, place) in enumerate(zip(results, places, strict=True)):
            if tensor.numel() > LARGEST_TENSOR:
                raise ValueError(f"it returns {tensor.numel():.1e} numbers")
            kept = first and tensor.dim() == inputs[0].tensor.dim()
            value = _Value(tensor, kept, place, new_mask)
            self.values[Ref(call.layer, call.number, number)] = value
            made.append(value)
        self.calls.append((call, made))

    def _arguments(
        self, call: CallSpec
    ) -> tuple[list[Ref], dict[str, Any], Ref | None]:
        """Return a call's tensors in order, its options, and its mask if given."""
        if self.spec.layers[call.layer].kind.startswith("ops."):
            options = {"call": call.number} if call.number else {}
            return refs_in([*call.args, call.kwargs]), options, None
        kwargs = dict(call.kwargs)
        refs = refs_in(list(call.args))
        for key in ("inputs", "sequences", "initial_state"):
            refs += refs_in(kwargs.pop(key, None))
        mask = kwargs.pop("mask", None)
        for key, value in kwargs.items():
            if value not in (None, False, [], {}):
                raise ValueError(
                    f"it is called with {key}={value!r:.60}, which is not supported"
                )
        constants = [arg for arg in call.args if not refs_in(arg) and arg is not None]
        if constants:
            raise ValueError(f"it is called with {constants[0]!r:.60}")
        return refs, {}, mask if isinstance(mask, Ref) else None

    def _value(self, ref: Ref, call: CallSpec) -> _Value:
        if ref not in self.values:
            raise KerasFormatError(
                f"load_keras: layer {call.layer!r} takes output {ref.tensor} of "
                f"{ref.layer!r}, which has no such output."
            )
        return self.values[ref]

    def _in_order(self, value: _Value, first: bool | None) -> _Value:
        """Return the value in the order that a layer wants, moved only once."""
        if first is None or first == value.first or value.tensor.dim() < 3:
            return value
        if value.place not in self.moved:
            move = channels_to_first if first else channels_to_last
            place = self.place()
            self.steps.append(Step(None, move, (value.place,), (place,), None, {}))
            moved = _Value(move(value.tensor), first, place, value.mask)
            self.moved[value.place] = moved
            self.moved[place] = value
        return self.moved[value.place]

    # Masks

    def _check_mask(self, module: Any, inputs: list[_Value]) -> None:
        arrives = any(value.mask == -1 for value in inputs) and module.uses_mask
        enters = any(value.mask is not None for value in inputs) and isinstance(
            module, KerasModel
        )
        if arrives or (
            enters and any(getattr(m, "uses_mask", False) for m in module.modules())
        ):
            raise ValueError(
                "a mask reaches it through a merge or a nested model, which is not "
                "supported; pass the model without masking"
            )

    def _mask_after(self, module: Any, inputs: list[_Value]) -> int | None:
        """Plan the mask of what a layer returns; its place, or -1 for unsupported."""
        if isinstance(module, KerasModel):
            return -1 if module.masked else None
        if module.makes_mask:
            place = self.place()
            taken = (inputs[0].place,)
            self.steps.append(Step(None, module.mask, taken, (place,), None, {}))
            return place
        masks = [value.mask for value in inputs]
        if not module.passes_mask or all(mask is None for mask in masks):
            return None
        if len(inputs) == 1:
            return masks[0]
        along_time = isinstance(module, Concatenate) and module.place == 1
        if -1 in masks or along_time:
            return -1
        known = tuple(dict.fromkeys(mask for mask in masks if mask is not None))
        if len(known) == 1:
            return known[0]
        place = self.place()
        self.steps.append(Step(None, merge_mask, known, (place,), None, {}))
        return place

    # The end

    def _make_outputs(self) -> None:
        places = []
        for ref in self.spec.outputs:
            if ref not in self.values:
                raise KerasFormatError(
                    f"load_keras: the model returns output {ref.tensor} of "
                    f"{ref.layer!r}, which has no such output."
                )
            value = self.values[ref]
            self.masked |= value.mask is not None
            first = False
            if self.model.axis_order == "torch" and not self.given:
                first = value.first or (
                    value.tensor.dim() > 3 and not self.file_is_first
                )
            places.append(self._in_order(value, first).place)
        self.output_slots = tuple(places)

    def _drop_unused(self) -> None:
        """Leave out masks and moves that nobody takes."""
        needed = set(self.output_slots)
        kept = []
        for step in reversed(self.steps):
            if step.layer is not None or needed & set(step.outputs):
                kept.append(step)
                needed.update(step.inputs)
                needed.update(() if step.mask is None else (step.mask,))
        self.steps = kept[::-1]

    def _freed(self) -> list[Step]:
        """Note after which step a tensor is no longer needed."""
        seen = set(self.output_slots)
        steps = []
        for step in reversed(self.steps):
            used = {*step.inputs, *step.outputs}
            used.update(() if step.mask is None else (step.mask,))
            steps.append(step._replace(free=tuple(sorted(used - seen))))
            seen |= used
        return steps[::-1]

    def _described(self) -> tuple[Call, ...]:
        open_sizes = [None in shape[1:] for shape in self.model.input_shapes]
        other = self._other_shapes() if any(open_sizes) and not self.given else {}
        described = []
        for call, values in self.calls:
            inputs = tuple(
                (ref.layer, ref.call) for ref in refs_in([*call.args, call.kwargs])
            )
            shapes = tuple(
                _open(value.shape, other.get(value.place, value).shape)
                for value in values
            )
            described.append(Call(call.layer, call.number, inputs, shapes))
        return tuple(described)

    def _other_shapes(self) -> dict[int, _Value]:
        """Walk again with another length, to see which sizes follow from it."""
        tensors: dict[int, Tensor] = {}
        for i in range(len(self.spec.inputs)):
            shape = self.model.input_shapes[i]
            pairs = zip(shape, self._sizes(i), strict=True)
            sizes = [2 * size if n is None else size for n, size in pairs]
            if self.first_inputs[i]:
                sizes = [sizes[0], sizes[-1], *sizes[1:-1]]
            tensors[i] = torch.empty(sizes, device="meta")
        try:
            for step in self.steps:
                function = step.function or self.model._modules[step.layer]
                given = [tensors[place] for place in step.inputs]
                options = dict(step.options)
                if step.mask is not None:
                    options["mask"] = tensors[step.mask]
                result = function(*given, **options)
                results = result if isinstance(result, tuple) else (result,)
                tensors.update(zip(step.outputs, results, strict=True))
        except (RuntimeError, ValueError, IndexError):
            return {}  # a layer needs the very length; no size is told as open
        values = (value for _, made in self.calls for value in made)
        return {v.place: v._replace(tensor=tensors[v.place]) for v in values}


def _open(shape: tuple[int, ...], other: tuple[int, ...]) -> tuple[int | None, ...]:
    pairs = zip(shape[1:], other[1:], strict=False)
    return (None, *(size if size == twin else None for size, twin in pairs))


def _shape(
    name: str, config: Mapping[str, Any], maker: Maker
) -> tuple[int | None, ...]:
    """Return the shape of an input, with None for each open size."""
    shape = config.get("shape")
    good = isinstance(shape, list | tuple) and shape
    good = good and all(n is None or (type(n) is int and n > 0) for n in shape)
    if good and len(shape) <= 8 and math.prod(n or 1 for n in shape) < LARGEST_TENSOR:
        return tuple(shape)
    maker.problems.add(
        f"input {name!r} has the shape {shape!r:.80}; wanted at most 8 whole numbers "
        "above 0, with null for an open size"
    )
    return (None, 1)
