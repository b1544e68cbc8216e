"""The plan of a model's walk: which layer is called when, with which tensors.

Tensors are in Keras's order of axes, except between layers that want the channels of
a channels-last file at axis 1: there they stay so, and only where the order matters
(Flatten, Reshape, the model's inputs and outputs) is a permuted view put in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from course_lib.keras_models.graph.order import in_run_order
from course_lib.keras_models.graph.walk import (
    Call,
    MakeMask,
    MaskPlaces,
    Step,
    Value,
    Walk,
    call_step,
    empty_mask,
)
from course_lib.keras_models.layers.base import channels_to_first, channels_to_last
from course_lib.keras_models.layers.operations import Operation
from course_lib.keras_models.layers.operations.sizes import Sizes, as_tensor
from course_lib.keras_models.spec import (
    LARGEST_TENSOR,
    CallSpec,
    KerasFormatError,
    ModelSpec,
    Ref,
    is_operation,
    refs_in,
)

_BATCH, _LENGTH = 2, 240  # what stands for an unknown batch and length
Mask = int | str | None  # as in Value


def module_name(name: str) -> str:
    """Return the name of a layer's child module, which may hold no point."""
    return name.replace(".", "_")


class Planner:
    """Builds the layers of one `KerasModel` along a walk with meta tensors.

    Args:
        model: its layers are built at their first call, unless a walk was planned.
        spec: its calls.
        shapes: of its inputs, where another model calls it.
        masked: which of its inputs have a mask.
    """

    def __init__(
        self,
        model: Any,
        spec: ModelSpec,
        shapes: list[tuple[int, ...]],
        masked: tuple[bool, ...],
    ) -> None:
        self.model, self.spec = model, spec
        self.input_masked = masked
        self.count = 0
        self.steps: list[Step] = []
        self.values: dict[Ref, Value] = {}
        self.moved: dict[int, Value] = {}
        self.origins: dict[int, int] = {}  # the very tensor that a call returned
        self.calls: list[tuple[CallSpec, list[Value]]] = []
        self.built: set[str] = set(spec.layers) if model.walks else set()
        self.given = shapes
        self.mask_shapes: dict[int, tuple[int, ...]] = {}

    def place(self) -> int:
        """Return the next free place in the list of tensors."""
        self.count += 1
        return self.count - 1

    def plan(self) -> tuple[Walk, tuple[Call, ...]]:
        """Return the walk and the calls."""
        self.first_inputs = self._first_inputs()
        for i, ref in enumerate(self.spec.inputs):
            sizes = self.given[i] if self.given else self._sizes(i)
            if self.first_inputs[i]:
                sizes = (sizes[0], sizes[-1], *sizes[1:-1])
            tensor = torch.empty(sizes, device="meta")
            self.values[ref] = Value(tensor, self.first_inputs[i], self.place())
        for ref, masked in zip(self.spec.inputs, self.input_masked, strict=True):
            if masked:
                shape = self.values[ref].shape[:-1]
                mask = self._new_mask(shape)
                self.values[ref] = self.values[ref]._replace(mask=mask)
        calls: Iterable[CallSpec] = self.spec.calls
        takes_off = any(module.takes_masks_off for module in self.model.children())
        # Two modes of one batch norm: which call moves its statistics first?
        if takes_off or any(self._training(call) is not None for call in calls):
            calls = in_run_order(self.spec)
        for call in calls:
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
        outputs, masks = self._outputs()
        shapes = tuple(self.mask_shapes[m] for m in masks if isinstance(m, int))
        needed = {*outputs, *(m for m in masks if isinstance(m, int))}
        self._drop_unused(needed)
        walk = Walk(self._freed(needed), self.count, outputs, masks, shapes)
        return walk, self._described()

    def _new_mask(self, shape: tuple[int, ...]) -> int:
        """Return the place of a new mask of that shape."""
        place = self.place()
        self.mask_shapes[place] = shape
        return place

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
        refs, options, given = self._arguments(call)
        inputs = [self._value(ref, call) for ref in refs]
        if not inputs:
            raise ValueError("it is called without any tensor")
        if call.layer not in self.built:
            names = {key: options[key] for key in ("names",) if key in options}
            module.build(*(value.shape for value in inputs), **names)
            first = any(value.first for value in inputs)
            module.settle(first, tuple(value.tensor.dim() for value in inputs))
            self.built.add(call.layer)
        order = module.wants_first
        if not isinstance(module, Operation):
            inputs = [self._widened(self._as_tensor(value)) for value in inputs]
        inputs = [self._in_order(value, order) for value in inputs]
        masks, masks_after = self._masks(call, module, inputs, given)
        is_model = isinstance(module, type(self.model))
        given_masks = self._passed_masks(module, masks, is_model)
        name = module_name(call.layer)
        taken = tuple(value.place for value in inputs)
        mode = self._training(call)
        step = Step(name, None, taken, (), given_masks, options, training=mode)
        tensors = {value.place: value.tensor for value in inputs}
        tensors |= {m: empty_mask(self.mask_shapes[m]) for m in _known(masks)}
        result = call_step(module, step, tensors)
        results = result if isinstance(result, tuple) else (result,)
        places = tuple(self.place() for _ in results)
        self.steps.append(step._replace(outputs=places))
        if is_model:
            count = len(module.output_names)
            new_masks = self._nested_masks(module, masks, places[count:])
            results, places = results[:count], places[:count]
        elif is_operation(self.spec.layers[call.layer].kind):
            new_masks = []  # what a plain function returns has no mask
        else:
            shape = self._shape_after(results[0], inputs[0])[:-1]
            mask = self._mask_after(module, inputs, masks_after, shape)
            new_masks = [mask] * module.masked_outputs
        new_masks += [None] * (len(results) - len(new_masks))
        if not is_model and module.returns_input:
            self.origins[places[0]] = self.origins.get(taken[0], taken[0])
        made = []
        for number, (tensor, place) in enumerate(zip(results, places, strict=True)):
            if tensor.numel() > LARGEST_TENSOR:
                raise ValueError(f"it returns {tensor.numel():.1e} numbers")
            kept = inputs[0].first and tensor.dim() == inputs[0].tensor.dim()
            value = Value(tensor, kept, place, new_masks[number])
            self.values[Ref(call.layer, call.number, number)] = value
            made.append(value)
        self.calls.append((call, made))
        if module.takes_masks_off:
            self._take_masks_off(inputs)

    def _shape_after(self, tensor: Tensor, first: Value) -> tuple[int, ...]:
        kept = first.first and tensor.dim() == first.tensor.dim()
        return Value(tensor, kept, 0).shape

    def _arguments(self, call: CallSpec) -> tuple[list[Ref], dict[str, Any], Any]:
        """Return a call's tensors in order, its options, and its masks if given."""
        if is_operation(self.spec.layers[call.layer].kind):
            several = call.number and isinstance(
                self.model.child(call.layer), Operation
            )
            options = {"call": call.number} if several else {}
            return refs_in([*call.args, call.kwargs]), options, None
        module = self.model.child(call.layer)
        kwargs = dict(call.kwargs)
        if module.argument_names:
            return self._named_arguments(call, module)
        refs = self._by_key(module, call.args)
        for key in ("inputs", "sequences", "initial_state"):
            refs += refs_in(kwargs.pop(key, None))
        mask = kwargs.pop("mask", None)
        options = self._options(module, kwargs)
        constants = [arg for arg in call.args if not refs_in(arg) and arg is not None]
        if constants:
            raise ValueError(f"it is called with {constants[0]!r:.60}")
        return refs, options, mask

    def _by_key(self, module: Any, args: tuple[Any, ...]) -> list[Ref]:
        """Return the tensors of a call; a model takes a dict by its inputs' names.

        Source: `_flatten_to_reference_inputs`, keras/engine/functional.py at v2.15.0,
        and `_standardize_inputs`, keras/src/models/functional.py at v3.15.1.
        """
        keys = getattr(module, "input_keys", ())
        if len(args) == 1 and isinstance(args[0], Mapping) and set(keys) <= {*args[0]}:
            args = tuple(args[0][key] for key in keys) or args
        return refs_in(list(args))

    def _named_arguments(
        self, call: CallSpec, module: Any
    ) -> tuple[list[Ref], dict[str, Any], Any]:
        """Return the tensors of a layer that takes them by position or by name."""
        names = module.argument_names
        given = {**dict(zip(names, call.args, strict=False)), **call.kwargs}
        found = {name: given.pop(name, None) for name in names}
        tensors = {name: refs_in(value) for name, value in found.items()}
        for name, value in found.items():
            if value is not None and len(tensors[name]) != 1:
                raise ValueError(f"it is called with {name}={value!r:.60}")
        options = self._options(module, given)
        options["names"] = tuple(name for name in names if tensors[name])
        return [tensors[name][0] for name in options["names"]], options, None

    def _options(self, module: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return what a call says beside its tensors."""
        kwargs.pop("training", None)
        options = {key: kwargs.pop(key, None) for key in module.call_options}
        for key, value in kwargs.items():
            if value not in (None, False, [], {}):
                raise ValueError(
                    f"it is called with {key}={value!r:.60}, which is not supported"
                )
        return {key: value for key, value in options.items() if value}

    def _training(self, call: CallSpec) -> bool | None:
        """Return the mode that a call asks for, whatever the model's own is.

        Keras 3 writes a default there, which the mode of the whole model overrides:
        keras/src/models/functional.py, operation_fn, at v3.3.3 and v3.15.1.
        """
        mode = call.kwargs.get("training")
        if mode is None or self.spec.version >= (3, 0):
            return None
        if not isinstance(mode, bool | int):
            raise KerasFormatError(
                f"load_keras: layer {call.layer!r} is called with "
                f"training={mode!r:.60}; wanted true or false."
            )
        return bool(mode)

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

    def _take_masks_off(self, inputs: list[Value]) -> None:
        """Let later calls find these tensors without masks, also behind a dropout."""
        bare = {self.origins.get(value.place, value.place) for value in inputs}
        for ref, value in self.values.items():
            if self.origins.get(value.place, value.place) in bare:
                self.values[ref] = value._replace(mask=None)

    def _widened(self, value: Value) -> Value:
        """Return halves, which a cast made, as the floats that layers compute with."""
        if value.tensor.dtype not in (torch.float16, torch.bfloat16):
            return value
        place = self.place()
        self.steps.append(
            Step(None, torch.Tensor.float, (value.place,), (place,), None, {})
        )
        return value._replace(tensor=value.tensor.float(), place=place)

    # Masks

    def _masks(
        self, call: CallSpec, module: Any, inputs: list[Value], given: Any
    ) -> tuple[list[Mask], list[Mask]]:
        """Return the inputs' masks for the call, and those that say what leaves it.

        A mask that the file gives to the call goes before the input's own; in tf.keras
        a list of them does so also where it has None (`_get_input_masks`,
        keras/src/engine/base_layer.py at v2.15.0). What leaves the layer follows the
        given one in tf.keras and since 3.11 (`Layer.__call__`,
        keras/src/layers/layer.py at v3.10.0 and v3.11.0).
        """
        own = [value.mask for value in inputs]
        self._refuse(module, own)
        parts = given if isinstance(given, list) else [given]
        whole = isinstance(given, list) and self.spec.version.tf
        masks = [None] * len(own) if whole else list(own)
        for i, part in enumerate(parts[: len(masks)]):
            if isinstance(part, Ref):
                value = self._value(part, call)
                masks[i] = value.place
                self.mask_shapes[value.place] = value.shape
        version = self.spec.version
        return masks, masks if version.tf or version >= (3, 11) else own

    def _refuse(self, module: Any, masks: list[Mask]) -> None:
        version = self.spec.version
        kinds = ("passes_mask", "makes_mask", "ends_mask", "uses_mask", "uses_masks")
        drops = version.tf or version >= (3, 0)
        if drops or masks[0] is None or any(getattr(module, kind) for kind in kinds):
            return
        raise ValueError(
            f"a mask reaches it, and Keras {version} refuses such a call. If another "
            "version made the file, name it: keras_version=..."
        )

    def _passed_masks(
        self, module: Any, masks: list[Mask], is_model: bool
    ) -> MaskPlaces:
        """Return the places of the masks that a module is called with."""
        found: MaskPlaces = None
        wanted: list[Mask] = []
        if is_model:
            walk = module.walk_for(tuple(mask is not None for mask in masks))
            wanted = masks
            if any(mask is not None for mask in masks) or walk.kept_masks:
                found = tuple(masks)
        elif module.uses_masks and any(mask is not None for mask in masks):
            wanted, found = masks, tuple(masks)
        elif module.uses_mask:
            wanted, found = masks[:1], masks[0]
        for mask in wanted:
            if isinstance(mask, str):
                raise ValueError(mask)
        return found

    def _nested_masks(
        self, module: Any, masks: list[Mask], places: tuple[int, ...]
    ) -> list[Mask]:
        """Return the masks of a nested model's outputs; `places` are the known ones."""
        walk = module.walk_for(tuple(mask is not None for mask in masks))
        self.mask_shapes |= dict(zip(places, walk.mask_shapes, strict=False))
        queue = iter(places)
        return [next(queue, None) if isinstance(m, int) else m for m in walk.masks]

    def _mask_after(
        self,
        module: Any,
        inputs: list[Value],
        masks: list[Mask],
        shape: tuple[int, ...],
    ) -> Mask:
        """Plan the mask of what a layer returns."""
        if module.makes_mask:
            taken = (inputs[0].place,)
            return self._mask_step(module.mask, taken, None, shape)
        rule = module.mask_after(tuple(mask is not None for mask in masks))
        if rule is None or isinstance(rule, str):
            return rule
        if isinstance(rule, int):
            return masks[rule]
        unknown = [mask for mask in masks if isinstance(mask, str)]
        if unknown:
            return unknown[0]
        taken = tuple(value.place for value in inputs)
        return self._mask_step(rule, taken, tuple(masks), shape)

    def _mask_step(
        self, rule: Any, taken: tuple[int, ...], masks: MaskPlaces, shape: Any
    ) -> int:
        place = self._new_mask(shape)
        function = MakeMask(rule, shape)
        self.steps.append(Step(None, function, taken, (place,), masks, {}))
        return place

    # The end

    def _outputs(self) -> tuple[tuple[int, ...], tuple[Mask, ...]]:
        """Return the places of the outputs and of their masks."""
        places, masks = [], []
        for ref in self.spec.outputs:
            if ref not in self.values:
                raise KerasFormatError(
                    f"load_keras: the model returns output {ref.tensor} of "
                    f"{ref.layer!r}, which has no such output."
                )
            value = self._as_tensor(self.values[ref])
            first = False
            if self.model.axis_order == "torch" and not self.given:
                first = value.first or (
                    value.tensor.dim() > 3 and not self.file_is_first
                )
            places.append(self._in_order(value, first).place)
            masks.append(value.mask if self.given else None)
        return tuple(places), tuple(masks)

    def _drop_unused(self, needed: set[int]) -> None:
        """Leave out masks and moves that nobody takes."""
        needed = set(needed)
        kept = []
        for step in reversed(self.steps):
            if step.layer is not None or needed & set(step.outputs):
                kept.append(step)
                needed.update(step.used)
        self.steps = kept[::-1]

    def _freed(self, needed: set[int]) -> list[Step]:
        """Note after which step a tensor is no longer needed."""
        seen = set(needed)
        steps = []
        for step in reversed(self.steps):
            used = {*step.used, *step.outputs}
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
                result = call_step(function, step, tensors)
                results = result if isinstance(result, tuple) else (result,)
                tensors.update(zip(step.outputs, results, strict=True))
        except (RuntimeError, ValueError, IndexError):
            return {}  # a layer needs the very length; no size is told as open
        values = (value for _, made in self.calls for value in made)
        return {v.place: v._replace(tensor=tensors[v.place]) for v in values}


def _known(masks: list[Mask]) -> list[int]:
    return [mask for mask in masks if isinstance(mask, int)]


def _open(shape: tuple[int, ...], other: tuple[int, ...]) -> tuple[int | None, ...]:
    pairs = zip(shape[1:], other[1:], strict=False)
    return (None, *(size if size == twin else None for size, twin in pairs))
