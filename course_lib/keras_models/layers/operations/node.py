"""An operation node as a layer: one function, and the constants of its calls."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from course_lib.keras_models.layers.base import Layer
from course_lib.keras_models.layers.operations import graph_ops, tensorflow
from course_lib.keras_models.layers.operations.arguments import (
    as_setting,
    bind,
    constant,
    described,
    filled,
    signature_of,
)
from course_lib.keras_models.layers.operations.sizes import (
    SIZE_OPERATIONS,
    NoSizesError,
    Sizes,
)
from course_lib.keras_models.layers.operations.table import (
    ARITHMETIC,
    BINARY,
    OPERATIONS,
    POINTWISE,
)
from course_lib.keras_models.settings import Settings
from course_lib.keras_models.spec import CallSpec, Ref, refs_in


class Operation(Layer):
    """One operation; each of its calls has constants of its own among the arguments."""

    takes_sizes = True

    def __init__(self, settings: Settings, calls: list[CallSpec]) -> None:
        super().__init__(settings)
        self.refs = [refs_in([*call.args, call.kwargs]) for call in calls]
        self.function = settings.spec.kind.removeprefix("ops.")
        self.texts = [
            described(self.function, c.args, {**c.kwargs, **settings.left})
            for c in calls
        ]
        self.kind, self.calls = self.function, []
        if settings.spec.kind.startswith("tfop."):
            self._read_graph_op(settings, calls)
        elif settings.spec.kind.startswith("tf."):
            self._read_tensorflow(settings, calls)
        else:
            self._read_keras(settings, calls)
        settings.left = {}
        alone = all(map(_is_scalar, self.calls))
        self.wants_first = (
            None if alone and self.kind in (*POINTWISE, *BINARY) else False
        )

    def _read_keras(self, settings: Settings, calls: list[CallSpec]) -> None:
        options = {key: constant(v, settings) for key, v in settings.left.items()}
        if self.kind not in OPERATIONS:
            self._refuse(settings, "this operation is not supported")
            return
        signature = signature_of(self.kind)
        dtype = settings.spec.config.get("dtype")
        if "dtype" in signature.settings and dtype is not None:
            # Elsewhere a dtype is the layer's own.
            options["dtype"] = constant(dtype, settings)
        known = (*signature.tensors, *signature.settings)
        for key in [key for key in options if key not in known]:
            value = options.pop(key)
            if value not in (None, False, (), {}):
                settings.unsupported(key, value)
        for call in calls:
            kwargs = {**constant(call.kwargs, settings), **options}
            self._bind(settings, constant(call.args, settings), kwargs)

    def _read_tensorflow(self, settings: Settings, calls: list[CallSpec]) -> None:
        name = self.function.removeprefix("tf.")
        entry = tensorflow.translation(name)
        if name in tensorflow.LOST:
            settings.problem(
                f"{self.function}: tf.keras writes only the first of its arguments, so "
                "nothing says what is computed. Build the model with "
                f"{tensorflow.LOST[name]} in its place."
            )
            return
        if entry is None:
            self._refuse(settings, "this function is not supported")
            return
        self.kind = entry.kind
        required = signature_of(self.kind).required
        for call in calls:
            kwargs, unknown = tensorflow.translated(entry, call.kwargs, required)
            if unknown:
                self._refuse(settings, f"{', '.join(unknown)} is not supported")
            args, kwargs = constant((call.args, [kwargs]), settings)
            self._bind(settings, args, kwargs[0])

    def _read_graph_op(self, settings: Settings, calls: list[CallSpec]) -> None:
        op = self.function.removeprefix("tfop.")
        self.function, kind = f"tf.raw_ops.{op}", graph_ops.kind_of(op)
        self.kind, self.texts = kind or op, []
        for call in calls:
            try:
                constants = settings.left.get("constants")
                inputs = graph_ops.inputs_of(call.args, constants)
                attributes = graph_ops.attributes_of(settings.left.get("node_def"))
            except ValueError as error:
                self._refuse(settings, str(error))
                continue
            self.texts.append(described(self.function, tuple(inputs), attributes))
            if kind is None:
                self._refuse(settings, "this op is not supported")
                continue
            try:
                args, kwargs = graph_ops.arguments(op, inputs, attributes)
            except ValueError as error:
                self._refuse(settings, str(error))
                continue
            args, kwargs = constant(args, settings), constant(kwargs, settings)
            self._bind(settings, args, kwargs)

    def _bind(self, settings: Settings, args: Any, kwargs: Any) -> None:
        try:
            self.calls.append(bind(self.kind, args, kwargs))
        except ValueError as error:
            self._refuse(settings, str(error))

    def _refuse(self, settings: Settings, text: str) -> None:
        """Say what is called with what, and how a replacement is called."""
        call = "; ".join(dict.fromkeys(self.texts)) or self.function
        layers = ", ".join(f"<{ref.layer:.60}>" for ref in (self.refs or [[]])[0])
        settings.problem(
            f"{call}: {text}. Pass replacements={{{self.keras_name!r}: a module or "
            f"function}}; it is called with the tensors ({layers})."
        )

    def describe(self, call: int) -> str:
        """Return the call as a program would write it."""
        return self.texts[call]

    def forward(self, *inputs: Any, call: int = 0) -> Any:
        """Apply the function; `inputs` take the places of the tensors in the call."""
        found = dict(zip(self.refs[call], inputs, strict=True))
        bound, signature = self.calls[call], signature_of(self.kind)
        if self.kind in SIZE_OPERATIONS and all(isinstance(x, Sizes) for x in inputs):
            with suppress(NoSizesError):
                return _of_sizes(self.kind, bound, found, inputs[0].device)
        like = next((x for x in inputs if _is_floating(x)), inputs[0])
        values = {}
        for name, value in bound.items():
            if name in signature.settings:
                values[name] = as_setting(value, found, arrays=name == "key")
            else:
                values[name] = filled(value, found, like, name)
        if inputs[0].is_meta and self.kind in ARITHMETIC:
            return _of_shapes(self.kind, values)
        if signature.device:
            values["device"] = inputs[0].device
        if signature.several:
            operands = [filled(v, found, like) for v in bound[signature.several]]
            del values[signature.several]
            return OPERATIONS[self.kind](*operands, **values)
        if not signature.by_name:
            return OPERATIONS[self.kind](*values.values())
        return OPERATIONS[self.kind](**values)


def _of_sizes(
    kind: str, bound: Mapping[str, Any], found: Mapping[Ref, Any], device: Any
) -> Any:
    """Compute with sizes alone."""
    values = {name: as_setting(value, found) for name, value in bound.items()}
    tensors = [
        values.pop(name) for name in signature_of(kind).tensors if name in values
    ]
    result = SIZE_OPERATIONS[kind](*tensors, **values)
    if isinstance(result, list):
        return tuple(Sizes(part, device) for part in result)
    return Sizes(result, device)


def _of_shapes(kind: str, values: Mapping[str, Any]) -> Tensor:
    """Return what a function of each number returns, of meta tensors.

    torch itself would import its compiler to tell the same, which takes a second.
    """
    tensors = [value for value in values.values() if isinstance(value, Tensor)]
    shape = torch.broadcast_shapes(*(x.shape for x in tensors))
    dtype = tensors[0].dtype
    for x in tensors[1:]:
        dtype = torch.promote_types(dtype, x.dtype)
    if not dtype.is_floating_point and kind not in ("Add", "Subtract", "Multiply"):
        dtype = torch.float32
    return torch.empty(shape, dtype=dtype, device="meta")


def _is_floating(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def _is_scalar(bound: Mapping[str, Any]) -> bool:
    """Tell whether one tensor meets nothing but numbers."""
    refs = [value for value in bound.values() if isinstance(value, Ref)]
    rest = [value for value in bound.values() if not isinstance(value, Ref)]
    numbers = all(
        value is None or isinstance(value, int | float | str) for value in rest
    )
    return len(refs) == 1 and numbers
