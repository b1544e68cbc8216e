"""The arguments of a node: constants of the file, bound to a function's parameters."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from course_lib.keras_models.layers.operations.sizes import Sizes, as_tensor
from course_lib.keras_models.layers.operations.table import OPERATIONS
from course_lib.keras_models.settings import Settings
from course_lib.keras_models.spec import Ref

PARTS = "parts"  # the parameter that takes a list of tensors


class Signature(NamedTuple):
    """What an operation takes.

    Args:
        tensors: its positional parameters, which are tensors.
        settings: its keyword parameters.
        required: those of both that have no default.
        several: the parameter that takes all tensors, `*operands`.
        by_name: False for a function of torch itself.
        device: whether it makes a tensor, and so wants to know where.
    """

    tensors: tuple[str, ...]
    settings: tuple[str, ...]
    required: frozenset[str]
    several: str | None = None
    by_name: bool = True
    device: bool = False


@cache
def signature_of(kind: str) -> Signature:
    """Return what the operation takes."""
    try:
        parameters = inspect.signature(OPERATIONS[kind]).parameters.values()
    except ValueError:  # a function of torch itself, which says nothing
        names = ("x", "y") if kind in ("Matmul",) else ("x",)
        return Signature(names, (), frozenset(names), by_name=False)
    tensors = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    if "inplace" in tensors:  # torch's own way to write over its input
        tensors.remove("inplace")
    settings = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    several = [p.name for p in parameters if p.kind is p.VAR_POSITIONAL]
    required = {p.name for p in parameters if p.default is p.empty} - set(several)
    device = "device" in settings
    return Signature(
        tuple(tensors),
        tuple(name for name in settings if name != "device"),
        frozenset(required - {"device"}),
        several[0] if several else None,
        device=device,
    )


def bind(kind: str, args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameter = value for one call of an operation.

    Raises:
        ValueError: too many, too few, unknown or double arguments.
    """
    signature = signature_of(kind)
    names = (*signature.tensors, *signature.settings)
    if signature.several:
        bound = {signature.several: args}
    elif len(args) > len(names):
        raise ValueError(f"{len(args)} arguments; wanted at most {len(names)}")
    else:
        bound = dict(zip(names, args, strict=False))
    for name, value in kwargs.items():
        if name not in names:
            raise ValueError(f"{name}={value!r:.60} is not supported")
        if name in bound:
            raise ValueError(f"{name!r} is given twice")
        bound[name] = value
    lacking = sorted(signature.required - set(bound))
    if lacking:
        raise ValueError(f"the argument {lacking[0]!r} is missing")
    for name in bound.keys() & {*signature.tensors}:
        bound[name] = _with_tensors(bound[name], top=name == PARTS)
    return bound


def _with_tensors(value: Any, *, top: bool = False) -> Any:
    """Turn lists of numbers into tensors; a list that holds tensors stays a list."""
    if isinstance(value, Ref) or not isinstance(value, tuple):
        return value
    if top or _holds_refs(value):
        return tuple(_with_tensors(part) for part in value)
    return _array(value)


def _holds_refs(value: Any) -> bool:
    if isinstance(value, Ref):
        return True
    return isinstance(value, tuple) and any(map(_holds_refs, value))


def _array(value: Any) -> Tensor:
    try:
        return torch.tensor(value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{value!r:.60} is no table of numbers") from error


def constant(value: Any, settings: Settings) -> Any:
    """Turn serialized slices and arrays into themselves, at every depth."""
    if isinstance(value, Ref) or not isinstance(value, Mapping | list | tuple):
        return value
    if isinstance(value, list | tuple):
        return tuple(constant(part, settings) for part in value)
    kind, config = value.get("class_name"), value.get("config")
    if not isinstance(config, Mapping):
        config = {}
    if kind == "__slice__":
        ends = [config.get(key) for key in ("start", "stop", "step")]
        return slice(*(e if isinstance(e, int | Ref) else None for e in ends))
    if kind == "__ellipsis__":
        return Ellipsis
    if kind in ("__numpy__", "__tensor__"):
        try:
            return _array(config.get("value"))
        except ValueError:
            settings.problem("holds an array that is no table of numbers")
            return None
    if kind == "DTypePolicy":
        return config.get("name")
    if kind is None:
        return {str(key): constant(part, settings) for key, part in value.items()}
    settings.problem(f"has the argument {kind!r:.60}, which is unknown here")
    return None


def as_setting(value: Any, found: Mapping[Ref, Any], *, arrays: bool = False) -> Any:
    """Put in what the `Ref`s stand for; sizes become Python's numbers.

    Args:
        value: what the file has.
        found: the inputs.
        arrays: whether constant arrays stay tensors, as an index may be.

    Raises:
        ValueError: a tensor in the place of a number.
    """
    if isinstance(value, Ref):
        value = found[value]
        if isinstance(value, Tensor):
            raise ValueError(
                "a tensor stands where a number is wanted; it is known only when the "
                "model runs, which is not supported"
            )
    if isinstance(value, Sizes):
        return value.value
    if isinstance(value, Tensor):
        return value if arrays else _tuples(value.tolist())
    if isinstance(value, slice):
        ends = (value.start, value.stop, value.step)
        return slice(*(as_setting(end, found) for end in ends))
    if isinstance(value, tuple):
        return tuple(as_setting(part, found, arrays=arrays) for part in value)
    return value


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def filled(value: Any, found: Mapping[Ref, Any], like: Any, name: str = "") -> Any:
    """Put in what the `Ref`s stand for, and constants on the device of the inputs."""
    if isinstance(value, Ref):
        return as_tensor(found[value])
    if isinstance(value, Tensor):
        floating = value.is_floating_point() and isinstance(like, Tensor)
        floating = floating and like.is_floating_point()
        return value.to(like.device, like.dtype if floating else value.dtype)
    if isinstance(value, tuple):
        parts = [filled(part, found, like) for part in value]
        parts = [torch.as_tensor(part, device=like.device) for part in parts]
        return parts if name == PARTS else torch.stack(_of_one_dtype(parts))
    return value


def _of_one_dtype(parts: list[Tensor]) -> list[Tensor]:
    floating = [part for part in parts if part.is_floating_point()]
    kind = (floating or parts)[0].dtype
    return [part.to(kind) for part in parts]


def described(function: str, args: tuple, kwargs: Mapping[str, Any]) -> str:
    """Write a call as a program would, with short arguments."""
    parts = [_short(arg) for arg in args]
    parts += [f"{key}={_short(value)}" for key, value in kwargs.items()]
    return f"{function}({', '.join(parts)})"


def _short(value: Any) -> str:
    if isinstance(value, Ref):
        return f"<{value.layer:.60}>"
    if isinstance(value, Mapping):
        kind, config = value.get("class_name"), value.get("config")
        if kind == "__ellipsis__":
            return "..."
        if kind == "__slice__" and isinstance(config, Mapping):
            return ":".join(_end(config.get(k)) for k in ("start", "stop", "step"))
        if kind in ("__numpy__", "__tensor__") and isinstance(config, Mapping):
            value = config.get("value")
    if isinstance(value, list | tuple):
        if len(repr(value)) > 60 and _only_numbers(value):
            return f"an array of shape {_shape(value)}"
        return "[" + ", ".join(map(_short, value[:20])) + "]"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _only_numbers(value: Any) -> bool:
    if isinstance(value, list | tuple) and not isinstance(value, Ref):
        return all(map(_only_numbers, value))
    return isinstance(value, int | float)


def _end(value: Any) -> str:
    return "" if value is None else _short(value)


def _shape(value: Any) -> tuple[int, ...]:
    shape = []
    while isinstance(value, list | tuple):
        shape.append(len(value))
        value = value[0] if value else None
    return tuple(shape)
