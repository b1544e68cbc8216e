"""An operation node as a layer: one function, and the constants of its calls."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from course_lib.keras_models.layers.base import Layer
from course_lib.keras_models.layers.operations.arguments import (
    as_argument,
    as_setting,
    constant,
    described,
    is_floating,
)
from course_lib.keras_models.layers.operations.forms import (
    LOST,
    Form,
    form_of,
    signature_of,
)
from course_lib.keras_models.layers.operations.graph_ops import attributes_of, inputs_of
from course_lib.keras_models.layers.operations.sizes import (
    NoSizesError,
    Sizes,
    size_function,
)
from course_lib.keras_models.layers.operations.table import ELEMENTWISE, ROWS
from course_lib.keras_models.settings import Settings
from course_lib.keras_models.spec import CallSpec, Ref, refs_in

# The family of a node's kind: what it calls a function, and what precedes its name.
_FAMILIES = {
    "ops": ("operation", ""),
    "tf": ("function", "tf."),
    "tfop": ("op", "tf.raw_ops."),
}


class Operation(Layer):
    """One operation; each of its calls has constants of its own among the arguments."""

    def __init__(self, settings: Settings, calls: list[CallSpec]) -> None:
        super().__init__(settings)
        self.kind = settings.spec.kind
        self.family, _, name = self.kind.partition(".")
        self.noun, prefix = _FAMILIES[self.family]
        self.function = prefix + name
        self.refs = [refs_in([*call.args, call.kwargs]) for call in calls]
        self.texts: list[str] = []
        self.calls: list[dict[str, Any]] = []
        written = [self._written(settings, call) for call in calls]
        for arguments in written:
            if arguments is not None:
                self._bind(settings, *arguments)
        settings.left = {}
        form = form_of(self.kind)
        self.row = form.row if form else ""
        alone = self.row in ELEMENTWISE and all(map(_has_one_tensor, self.calls))
        self.wants_first = None if alone else False

    def _written(self, settings: Settings, call: CallSpec) -> tuple | None:
        """Return the arguments of a call as the file has them."""
        args, kwargs = call.args, {**call.kwargs, **settings.left}
        if self.family == "tfop":
            try:
                args = inputs_of(call.args, settings.left.get("constants"))
                kwargs = attributes_of(settings.left.get("node_def"))
            except ValueError as error:
                self._refuse(settings, str(error))
                return None
        args, kwargs = constant(args, settings), constant(kwargs, settings)
        self.texts.append(described(self.function, args, kwargs))
        return args, kwargs

    def _bind(self, settings: Settings, args: tuple, kwargs: dict[str, Any]) -> None:
        form = form_of(self.kind)
        if self.kind in LOST:
            settings.problem(
                f"{self.function}: tf.keras writes only the first of its arguments, so "
                "nothing says what is computed. Build the model with "
                f"{LOST[self.kind]} in its place."
            )
        elif form is None:
            self._refuse(settings, f"this {self.noun} is not supported")
        else:
            kwargs |= self._dtype(settings, form)
            try:
                self.calls.append(form.bind(args, kwargs))
            except ValueError as error:
                self._refuse(settings, str(error))

    def _dtype(self, settings: Settings, form: Form) -> dict[str, Any]:
        """Return an operation's own dtype, which Keras 3 writes as a layer's."""
        dtype = settings.spec.config.get("dtype")
        takes = "dtype" in signature_of(ROWS[form.row].function).settings
        own = takes and self.family == "ops" and dtype is not None
        return {"dtype": constant(dtype, settings)} if own else {}

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
        bound, function = self.calls[call], ROWS[self.row].function
        signature = signature_of(function)
        if all(isinstance(x, Sizes) for x in inputs):
            with suppress(NoSizesError):
                return self._of_sizes(bound, found, inputs[0].device)
        like = next(filter(is_floating, inputs), inputs[0])
        values = {}
        for name, value in bound.items():
            if name in signature.settings:
                values[name] = as_setting(value, found, arrays=name == "key")
            else:
                values[name] = as_argument(value, found, like, name)
        if inputs[0].is_meta and self.row in ELEMENTWISE:
            return _of_shapes(self.row, values)
        if signature.makes:
            values["device"] = inputs[0].device
        return _apply(self.row, values)

    def _of_sizes(self, bound: Mapping[str, Any], found: Any, device: Any) -> Any:
        values = {name: as_setting(value, found) for name, value in bound.items()}
        row = ROWS[self.row]
        tensors = [
            values.pop(name)
            for name in signature_of(row.function).tensors
            if name in values
        ]
        result = size_function(row.name, row.function)(*tensors, **values)
        if isinstance(result, list):
            return tuple(Sizes(part, device) for part in result)
        return Sizes(result, device)


def _apply(row: str, values: dict[str, Any]) -> Any:
    """Call a row's function; those of torch itself take their tensor by place."""
    function = ROWS[row].function
    first = [values.pop(n) for n in signature_of(function).tensors[:1] if n in values]
    return function(*first, **values)


def _of_shapes(row: str, values: dict[str, Any]) -> Tensor:
    """Return what a function of each number returns, of meta tensors.

    torch itself would import its compiler to say the same, which takes a second; so one
    number of each tensor stands for all.
    """
    tensors = [value for value in values.values() if isinstance(value, Tensor)]
    shape = torch.broadcast_shapes(*(x.shape for x in tensors))
    ones = {
        name: torch.ones([1] * value.dim(), dtype=value.dtype)
        for name, value in values.items()
        if isinstance(value, Tensor)
    }
    dtype = _apply(row, values | ones).dtype
    return torch.empty(shape, dtype=dtype, device="meta")


def _has_one_tensor(bound: Mapping[str, Any]) -> bool:
    """Tell whether one tensor meets nothing but numbers."""
    rest = [value for value in bound.values() if not isinstance(value, Ref)]
    plain = all(value is None or isinstance(value, int | float | str) for value in rest)
    return plain and len(bound) == len(rest) + 1
