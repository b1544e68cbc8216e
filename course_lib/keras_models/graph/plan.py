"""The plan of a model's walk: which layer is called when, with which tensors.

Tensors are in Keras's order of axes, except between layers that want the channels of
a channels-last file at axis 1: there they stay so, and only where the order matters
(Flatten, Reshape, the model's inputs and outputs) is a permuted view put in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from course_lib.keras_models.graph import masks as mask_rules
from course_lib.keras_models.graph.arguments import arguments_of, training_mode
from course_lib.keras_models.graph.order import in_run_order
from course_lib.keras_models.graph.walk import (
    Call,
    Mask,
    Nested,
    Plan,
    Step,
    Tape,
    Value,
    call_step,
    empty_mask,
)
from course_lib.keras_models.layers.base import (
    Layer,
    channels_to_first,
    channels_to_last,
)
from course_lib.keras_models.layers.operations import Operation
from course_lib.keras_models.layers.operations.sizes import Sizes, as_tensor
from course_lib.keras_models.spec import (
    LARGEST_TENSOR,
    CallSpec,
    KerasFormatError,
    ModelSpec,
    Ref,
    is_operation,
    refusal,
)

_BATCH, _LENGTH = 2, 240  # what stands for an unknown batch and length
_MISFITS = (ArithmeticError, AttributeError, LookupError)
_MISFITS += (RuntimeError, TypeError, ValueError)


def module_name(name: str) -> str:
    """Return the name of a layer's child module, which may hold no point."""
    return name.replace(".", "_")


class Planner:
    """Builds the layers of one model along a walk with meta tensors.

    `shapes` are those of the inputs where another model calls this one, `masked` says
    which inputs have a mask, `is_built` that another plan has built the layers.
    """

    def __init__(
        self,
        spec: ModelSpec,
        layers: Mapping[str, Layer | Nested],
        shapes: list[tuple[int, ...]],
        masked: tuple[bool, ...],
        axis_order: str,
        *,
        is_built: bool,
    ) -> None:
        self.spec, self.layers = spec, layers
        self.given, self.masked = shapes, masked
        self.to_torch = axis_order == "torch" and not shapes
        self.file_is_first = self.to_torch and any(
            getattr(part, "channels_last", True) is False
            for layer in layers.values()
            for part in layer.modules()
        )
        self.is_built = is_built
        self.built: set[str] = {*spec.layers} if is_built else set()
        self.tape = Tape()
        self.values: dict[Ref, Value] = {}
        self.moved: dict[int, Value] = {}
        self.computed: set[int] = set()  # of any type of floats
        self.cast: dict[int, Value] = {}  # those in the model's type
        self.origins: dict[int, int] = {}  # the very tensor that a call returned
        self.calls: list[tuple[CallSpec, list[Value]]] = []

    def plan(self) -> Plan:
        """Return the walk, the calls, and which inputs come with channels first."""
        firsts = tuple(map(self._comes_first, self.spec.inputs))
        sizes = self.given or [self._sizes(i, 1) for i in range(len(firsts))]
        for ref, first, size in zip(self.spec.inputs, firsts, sizes, strict=True):
            tensor = _empty(size, first)
            self.values[ref] = Value(tensor, first, self.tape.place())
        for ref, masked in zip(self.spec.inputs, self.masked, strict=True):
            if masked:
                mask, value = self.tape.place(), self.values[ref]
                self.tape.mask_shapes[mask] = value.shape[:-1]
                self.values[ref] = value._replace(mask=mask)
        for call in self._calls():
            try:
                self._call(call)
            except KerasFormatError:
                raise
            except _MISFITS as error:
                raise self._failure(call, error) from error
        walk = self.tape.finish(*self._outputs())
        return Plan(walk, self._described(), firsts)

    def _calls(self) -> Iterable[CallSpec]:
        """Return the calls, in Keras's order where one changes what later ones see.

        That is where masks are taken off, or where two modes of one batch norm ask
        which call moves its statistics first.
        """
        modes = (training_mode(call, self.spec.version) for call in self.spec.calls)
        matters = any(layer.takes_masks_off for layer in self.layers.values())
        matters = matters or any(mode is not None for mode in modes)
        return in_run_order(self.spec) if matters else self.spec.calls

    def _comes_first(self, ref: Ref) -> bool:
        """Tell whether an input comes with channels first, as the caller wishes."""
        if not self.to_torch or self.file_is_first:
            return False
        rank = len(self.spec.input_shapes[self.spec.inputs.index(ref)])
        users = self.spec.users_of(ref) if rank == 3 else []
        return rank > 3 or any(self.layers[call.layer].wants_first for call in users)

    def _sizes(self, i: int, times: int) -> tuple[int, ...]:
        """Return sizes of input i, with `times` a number for each open one."""
        batch, *sizes = self.spec.input_shapes[i]
        sizes = [times * _LENGTH if size is None else size for size in sizes]
        return (times * _BATCH if batch is None else batch, *sizes)

    def _failure(self, call: CallSpec, error: Exception) -> KerasFormatError:
        shapes = [self.values[r].shape for r in call.refs if r in self.values]
        text = str(error).split("\n")[0]
        module = self.layers[call.layer]
        if isinstance(module, Operation):
            text = f"{text.removesuffix('.')}. It is {module.describe(call.number)}."
        return refusal(
            f"layer {call.layer!r} ({self.spec.layers[call.layer].source}) does not "
            f"fit its inputs of shapes {shapes}: {text}"
        )

    def _call(self, call: CallSpec) -> None:
        """Build a layer where it is new, and record a call of it."""
        module, kind = self.layers[call.layer], self.spec.layers[call.layer].kind
        refs, options, given = arguments_of(call, kind, module)
        inputs = [self._value(ref, f"layer {call.layer!r} takes") for ref in refs]
        if not inputs:
            raise ValueError("it is called without any tensor")
        self._build(call.layer, inputs, options)
        inputs = [self._prepared(value, module) for value in inputs]
        mask_rules.check_mask_allowed(module, inputs[0].mask, self.spec.version)
        masks, masks_after = mask_rules.masks_of_call(
            inputs,
            self._given_masks(given, call.layer),
            isinstance(given, list),
            self.spec.version,
        )
        results = self._record(call, inputs, masks, options)
        new_masks: list[Mask] = []
        if isinstance(module, Nested):
            count = len(module.output_names)  # masks follow the outputs
            behind = tuple(value.place for value in results[count:])
            new_masks = mask_rules.masks_of_model(self.tape, module, masks, behind)
            results = results[:count]
        elif not is_operation(kind):  # what a plain function returns has no mask
            mask = mask_rules.mask_of_result(
                self.tape, module, inputs, masks_after, results[0].shape[:-1]
            )
            new_masks = [mask] * module.masked_outputs
            if module.makes_floats:
                self.computed |= {value.place for value in results}
            if module.returns_input:
                self.origins[results[0].place] = self._origin(inputs[0])
        else:
            self.computed |= {value.place for value in results}
        new_masks += [None] * len(results)
        made = [v._replace(mask=m) for v, m in zip(results, new_masks, strict=False)]
        for number, value in enumerate(made):
            self.values[Ref(call.layer, call.number, number)] = value
        self.calls.append((call, made))
        if module.takes_masks_off:
            self._take_masks_off(inputs)

    def _record(
        self,
        call: CallSpec,
        inputs: list[Value],
        masks: list[Mask],
        options: dict[str, Any],
    ) -> list[Value]:
        """Run a call on the meta device, record its step, and return its results."""
        module = self.layers[call.layer]
        step = Step(
            module_name(call.layer),
            None,
            tuple(value.place for value in inputs),
            (),
            mask_rules.places_for(module, masks),
            options,
            training=training_mode(call, self.spec.version),
        )
        tensors = {value.place: value.tensor for value in inputs}
        shapes = self.tape.mask_shapes
        tensors |= {m: empty_mask(shapes[m]) for m in masks if isinstance(m, int)}
        result = call_step(module, step, tensors)
        results = result if isinstance(result, tuple) else (result,)
        places = tuple(self.tape.place() for _ in results)
        self.tape.steps.append(step._replace(outputs=places))
        return [
            self._result(tensor, inputs[0], place)
            for tensor, place in zip(results, places, strict=True)
        ]

    def _build(self, name: str, inputs: list[Value], options: dict[str, Any]) -> None:
        if name in self.built:
            return
        module = self.layers[name]
        names = {key: options[key] for key in ("names",) if key in options}
        module.build(*(value.shape for value in inputs), **names)
        first = any(value.first for value in inputs)
        module.settle(first, tuple(value.tensor.dim() for value in inputs))
        self.built.add(name)

    def _value(self, ref: Ref, who: str) -> Value:
        if ref not in self.values:
            raise refusal(
                f"{who} output {ref.tensor} of {ref.layer!r}, which has no such output."
            )
        return self.values[ref]

    def _result(self, tensor: Tensor, first_input: Value, place: int) -> Value:
        if tensor.numel() > LARGEST_TENSOR and not self.is_built:  # see _twins
            raise ValueError(f"it returns {tensor.numel():.1e} numbers")
        same_rank = tensor.dim() == first_input.tensor.dim()
        return Value(tensor, first_input.first and same_rank, place)

    def _given_masks(self, given: Any, layer: str) -> list[Value | None]:
        found = []
        for part in given if isinstance(given, list) else [given]:
            value = None
            if isinstance(part, Ref):
                value = self._value(part, f"layer {layer!r} takes")
                self.tape.mask_shapes[value.place] = value.shape
            found.append(value)
        return found

    def _prepared(self, value: Value, module: Layer | Nested) -> Value:
        """Return a value as the module takes it: its type and its order of axes.

        Keras's layers cast floats to the model's type. Plain functions compute in
        others, and layers that make floats of whole numbers.
        Source: keras v2.15.0 keras/engine/base_layer.py#L2750.
        """
        if value.place in self.computed and not isinstance(module, Operation):
            if value.place not in self.cast:
                new = self.tape.to_own_type(self._as_tensor(value))
                self.cast[value.place] = new
                self.origins[new.place] = self._origin(value)
            value = self.cast[value.place]._replace(mask=value.mask)
        return self._in_order(value, module.wants_first)

    def _as_tensor(self, value: Value) -> Value:
        """Return a tensor where the value is what tf.shape gives."""
        if not isinstance(value.tensor, Sizes):
            return value
        return self.tape.apply(as_tensor, value, first=False, mask=None)

    def _in_order(self, value: Value, first: bool | None) -> Value:
        """Return the value in the order that a layer wants, moved only once."""
        if first is None or first == value.first or value.tensor.dim() < 3:
            return value
        if value.place not in self.moved:
            move = channels_to_first if first else channels_to_last
            moved = self.tape.apply(move, value, first=first)
            self.moved[value.place], self.moved[moved.place] = moved, value
        return self.moved[value.place]

    def _take_masks_off(self, inputs: list[Value]) -> None:
        """Let later calls find these tensors without masks, also behind a dropout."""
        taken = {self._origin(value) for value in inputs}
        for ref, value in self.values.items():
            if self._origin(value) in taken:
                self.values[ref] = value._replace(mask=None)

    def _origin(self, value: Value) -> int:
        return self.origins.get(value.place, value.place)

    def _outputs(self) -> tuple[tuple[int, ...], tuple[Mask, ...]]:
        """Return the places of the outputs and of their masks."""
        places, masks = [], []
        for ref in self.spec.outputs:
            value = self._as_tensor(self._value(ref, "the model returns"))
            is_image = value.tensor.dim() > 3 and not self.file_is_first
            first = self.to_torch and (value.first or is_image)
            places.append(self._in_order(value, first).place)
            masks.append(value.mask if self.given else None)
        return tuple(places), tuple(masks)

    # Shapes, for tables and diagrams

    def _described(self) -> tuple[Call, ...]:
        """Return the calls with the shapes of their outputs, open sizes as None."""
        described = []
        for (call, values), twins in zip(self.calls, self._twins(), strict=True):
            if len(twins) != len(values):  # one for each step, say
                twins = values
            pairs = zip(values, twins, strict=True)
            shapes = tuple(_open(value.shape, twin.shape) for value, twin in pairs)
            parents = tuple(call.parents)
            described.append(Call(call.layer, call.number, parents, shapes))
        return tuple(described)

    def _twins(self) -> list[list[Value]]:
        """Plan with another length, to see which sizes of outputs follow from it."""
        plan = self
        if not self.given and any(None in s[1:] for s in self.spec.input_shapes):
            sizes = [self._sizes(i, 2) for i in range(len(self.spec.inputs))]
            other = Planner(
                self.spec, self.layers, sizes, self.masked, "keras", is_built=True
            )
            with suppress(KerasFormatError):  # a layer needs the very length
                other.plan()
                plan = other
        return [values for _, values in plan.calls]


def _empty(sizes: tuple[int, ...], first: bool) -> Tensor:
    """Return a meta tensor of sizes in Keras's order."""
    sizes = (sizes[0], sizes[-1], *sizes[1:-1]) if first else sizes
    return torch.empty(sizes, device="meta")


def _open(shape: tuple[int, ...], other: tuple[int, ...]) -> tuple[int | None, ...]:
    pairs = zip(shape[1:], other[1:], strict=False)
    return (None, *(size if size == twin else None for size, twin in pairs))
