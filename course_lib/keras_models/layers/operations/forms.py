"""How each kind of file writes an operation, and how its arguments are bound to it.

`FORMS` has an entry for every kind of node: `"ops.Sum"` of Keras 3,
`"tf.math.reduce_sum"` of tf.keras, `"tfop.Sum"` of TensorFlow's graph.
"""

import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from functools import cache, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from course_lib.keras_models.layers.operations.table import ROWS
from course_lib.keras_models.spec import Ref

PARTS = "parts"  # the parameter that takes a list of tensors
# Arguments that change no number, or none of real ones.
_IGNORED = {
    *("name", "use_cudnn_on_gpu", "validate_indices", "partition_strategy"),
    *("conjugate", "a_is_sparse", "b_is_sparse", "seed", "message", "dtype_hint"),
    *("optimize", "layout", "sparse", "ragged"),
    # attributes of the graph's ops; those of types begin with T or _
    *("N", "Index", "SrcT", "out_type", "index_type", "incompatible_shape_error"),
}
# Functions whose other tensors no file of tf.keras holds, and what to write instead.
LOST = {
    "tf.einsum": "tf.linalg.matmul or tf.tensordot",
    "tf.meshgrid": "tf.tile",
    "tf.__operators__.eq": "tf.equal",
    "tf.__operators__.ne": "tf.not_equal",
}


class Signature(NamedTuple):
    """What a function takes.

    Args:
        tensors: its positional parameters, which are tensors.
        settings: its keyword-only parameters.
        required: those of both that have no default.
        makes: whether it makes a tensor, and so takes the device.
    """

    tensors: tuple[str, ...]
    settings: tuple[str, ...]
    required: tuple[str, ...]
    makes: bool


@cache
def signature_of(function: Callable) -> Signature:
    """Return what the function takes."""
    try:
        parameters = dict(inspect.signature(function).parameters)
    except ValueError:  # a function of torch itself, with one tensor
        return Signature(("x",), (), ("x",), False)
    parameters.pop("inplace", None)  # torch's own way to write over its input
    makes = parameters.pop("device", None) is not None
    rows = parameters.values()
    tensors = tuple(p.name for p in rows if p.kind is p.POSITIONAL_OR_KEYWORD)
    settings = tuple(p.name for p in rows if p.kind is p.KEYWORD_ONLY)
    required = tuple(p.name for p in rows if p.default is p.empty)
    return Signature(tensors, settings, required, makes)


class Form(NamedTuple):
    """An operation as one kind of file writes it.

    Args:
        row: its name in `ROWS`.
        order: the parameters that the positional arguments are.
        exact: whether there must be as many of these.
        names: the file's name of an argument = the function's.
        defaults: the file's defaults where they differ from the function's.
        keeps_none: whether None is a value, not the absence of one.
    """

    row: str
    order: tuple[str, ...]
    exact: bool
    names: Mapping[str, str]
    defaults: Mapping[str, Any]
    keeps_none: bool

    def bind(self, args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return parameter = value for one call.

        Raises:
            ValueError: too many, too few, unknown or double arguments.
        """
        bound = {**self.defaults, **self._positional(args)}
        signature = signature_of(ROWS[self.row].function)
        for key, value in kwargs.items():
            name = self.names.get(key)
            if name is None:
                empty = not isinstance(value, Tensor) and not value
                if key not in _IGNORED and not empty:
                    raise ValueError(f"{key}={value!r:.60} is not supported")
            elif name in self.order[: len(args)]:
                raise ValueError(f"{key!r} is given twice")
            elif self.keeps_none or value is not None or name in signature.required:
                bound[name] = value
        missing = [name for name in signature.required if name not in bound]
        if missing:
            raise ValueError(f"the argument {missing[0]!r} is missing")
        for name in bound.keys() & {*signature.tensors}:
            bound[name] = _with_tensors(bound[name], top=name == PARTS)
        return bound

    def _positional(self, args: tuple) -> dict[str, Any]:
        order = self.order
        if order and order[0].startswith("*"):
            count = len(args) - len(order) + 1
            args, order = (args[:count], *args[count:]), (PARTS, *order[1:])
        if self.exact and len(args) != len(order):
            raise ValueError(f"{len(args)} inputs; wanted {len(order)}")
        if len(args) > len(order):
            raise ValueError(f"{len(args)} arguments; wanted at most {len(order)}")
        return dict(zip(order, args, strict=False))


def _written() -> Iterator[tuple[str, tuple[str, str]]]:
    """Yield ("tf.math.abs", (name of the row, the words after the name))."""
    for row in ROWS.values():
        columns = {"ops": row.keras, "tf": row.tensorflow, "tfop": row.graph}
        for family, column in columns.items():
            for part in column.split(",") if column else ():
                name, _, words = part.strip().partition(" ")
                yield f"{family}.{name}", (row.name, words)


FORMS: dict[str, tuple[str, str]] = dict(_written())


@lru_cache(1024)  # kinds come from files
def form_of(kind: str) -> Form | None:
    """Return the form of a node's kind, None where it is not supported.

    >>> form_of("tf.compat.v1.transpose").names
    {'axes': 'axes', 'perm': 'axes'}
    """
    family, _, name = kind.partition(".")
    kind = f"{family}.{name.removeprefix('compat.v1.')}" if family == "tf" else kind
    if kind not in FORMS:
        return None
    row, words = FORMS[kind]
    inputs, names, defaults = [], {}, {}
    for word in words.split():
        theirs, equals, ours = word.partition("=")
        if not equals:
            inputs.append(word)
        elif theirs.endswith(":"):
            defaults[theirs[:-1]] = json.loads(ours)
        else:
            names[theirs] = ours
    signature = signature_of(ROWS[row].function)
    order = (*signature.tensors, *signature.settings)
    if family == "tfop" and not inputs:
        inputs = signature.required
    first = {"ops": 0, "tf": 1, "tfop": len(inputs)}[family]  # known by place alone
    named = [p for p in order if p not in (inputs or order)[:first]]
    names = {p: p for p in named} | names
    order = tuple(inputs) or order
    return Form(row, order, bool(inputs), names, defaults, family == "ops")


def _with_tensors(value: Any, *, top: bool = False) -> Any:
    """Turn lists of numbers into tensors; a list that holds tensors stays a list."""
    if isinstance(value, Ref) or not isinstance(value, tuple):
        return value
    if top or _holds_refs(value):
        return tuple(_with_tensors(part) for part in value)
    return array(value)


def _holds_refs(value: Any) -> bool:
    if isinstance(value, Ref):
        return True
    return isinstance(value, tuple) and any(map(_holds_refs, value))


def array(value: Any) -> Tensor:
    """Return a tensor of the numbers.

    Raises:
        ValueError: it is no table of numbers.
    """
    try:
        return torch.tensor(value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{value!r:.60} is no table of numbers") from error
