"""The plan of a model's walk: which layer is called when, with which tensors.

Tensors are in Keras's order of axes, except between layers that want the channels of
a channels-last file at axis 1: there they stay so, and only where the order matters
(Flatten, Reshape, the model's inputs and outputs) is a permuted view put in between.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from course_lib.keras_models.layers.base import channels_to_first, channels_to_last
from course_lib.keras_models.layers.merging import Concatenate, merge_mask
from course_lib.keras_models.layers.operations import Operation
from course_lib.keras_models.layers.operations.sizes import Sizes, as_tensor
from course_lib.keras_models.spec import (
    CallSpec,
    KerasFormatError,
    ModelSpec,
    Ref,
    is_operation,
    refs_in,
)

LARGEST_TENSOR = 2**34  # numbers in one tensor of a small batch
_BATCH, _LENGTH = 2, 240  # what stands for an unknown batch and length


def module_name(name: str) -> str:
    """Return the name of a layer's child module, which may hold no point."""
    return name.replace(".", "_")


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


class Value(NamedTuple):
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


class Planner:
    """Builds the layers of one `KerasModel` along a walk with meta tensors."""

    def __init__(self, model: Any, spec: ModelSpec, shapes: list) -> None:
        self.model, self.spec = model, spec
        self.count = 0
        self.steps: list[Step] = []
        self.values: dict[Ref, Value] = {}
        self.moved: dict[int, Value] = {}
        self.calls: list[tuple[CallSpec, list[Value]]] = []
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
            self.values[ref] = Value(tensor, self.first_inputs[i], self.place())
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
        refs = refs_in([*call.args, call.kwargs])
        shapes = [self.values[r].shape for r in refs if r in self.values]
        text = str(error).split("\n")[0]
        module = self.model.child(call.layer)
        if isinstance(module, Operation):
            text = f"{text.removesuffix('.')}. It is {module.describe(call.number)}."
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
        if not isinstance(module, Operation):
            inputs = [self._as_tensor(value) for value in inputs]
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
        name = module_name(call.layer)
        self.steps.append(Step(name, None, taken, places, mask, options))
        new_mask = self._mask_after(module, inputs)
        first = inputs[0].first
        made = []
        for number, (tensor, place) in enumerate(zip(results, places, strict=True)):
            if tensor.numel() > LARGEST_TENSOR:
                raise ValueError(f"it returns {tensor.numel():.1e} numbers")
            kept = first and tensor.dim() == inputs[0].tensor.dim()
            value = Value(tensor, kept, place, new_mask)
            self.values[Ref(call.layer, call.number, number)] = value
            made.append(value)
        self.calls.append((call, made))

    def _arguments(
        self, call: CallSpec
    ) -> tuple[list[Ref], dict[str, Any], Ref | None]:
        """Return a call's tensors in order, its options, and its mask if given."""
        if is_operation(self.spec.layers[call.layer].kind):
            several = call.number and isinstance(
                self.model.child(call.layer), Operation
            )
            options = {"call": call.number} if several else {}
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

    def _value(self, ref: Ref, call: CallSpec) -> Value:
        if ref not in self.values:
            raise KerasFormatError(
                f"load_keras: layer {call.layer!r} takes output {ref.tensor} of "
                f"{ref.layer!r}, which has no such output."
            )
        return self.values[ref]

    def _in_order(self, value: Value, first: bool | None) -> Value:
        """Return the value in the order that a layer wants, moved only once."""
        if first is None or first == value.first or value.tensor.dim() < 3:
            return value
        if value.place not in self.moved:
            move = channels_to_first if first else channels_to_last
            place = self.place()
            self.steps.append(Step(None, move, (value.place,), (place,), None, {}))
            moved = Value(move(value.tensor), first, place, value.mask)
            self.moved[value.place] = moved
            self.moved[place] = value
        return self.moved[value.place]

    def _as_tensor(self, value: Value) -> Value:
        """Return a tensor where the value is what tf.shape gives."""
        if not isinstance(value.tensor, Sizes):
            return value
        place = self.place()
        self.steps.append(Step(None, as_tensor, (value.place,), (place,), None, {}))
        return Value(as_tensor(value.tensor), False, place)

    # Masks

    def _check_mask(self, module: Any, inputs: list[Value]) -> None:
        arrives = any(value.mask == -1 for value in inputs) and module.uses_mask
        enters = any(value.mask is not None for value in inputs) and isinstance(
            module, type(self.model)
        )
        if arrives or (
            enters and any(getattr(m, "uses_mask", False) for m in module.modules())
        ):
            raise ValueError(
                "a mask reaches it through a merge or a nested model, which is not "
                "supported; pass the model without masking"
            )

    def _mask_after(self, module: Any, inputs: list[Value]) -> int | None:
        """Plan the mask of what a layer returns; its place, or -1 for unsupported."""
        if isinstance(module, type(self.model)):
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
            value = self._as_tensor(self.values[ref])
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

    def _other_shapes(self) -> dict[int, Value]:
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
