"""What a call gives to its layer: tensors, options, a mask and a mode."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from course_lib.keras_models.layers.operations import Operation
from course_lib.keras_models.spec import (
    CallSpec,
    Ref,
    Version,
    is_operation,
    refs_in,
    refusal,
)


class Arguments(NamedTuple):
    """The tensors of a call in order, what else it says, and the mask it is given."""

    refs: list[Ref]
    options: dict[str, Any]
    mask: Any = None


def arguments_of(call: CallSpec, kind: str, module: Any) -> Arguments:
    """Read what a call gives to its module.

    Raises:
        ValueError: an argument that is not supported.
    """
    if is_operation(kind):
        several = call.number and isinstance(module, Operation)
        return Arguments(call.refs, {"call": call.number} if several else {})
    if module.argument_names:
        return _named(call, module)
    kwargs = dict(call.kwargs)
    refs = _by_key(call.args, getattr(module, "input_keys", ()))
    for key in ("inputs", "sequences", "initial_state"):
        refs += refs_in(kwargs.pop(key, None))
    mask = kwargs.pop("mask", None)
    options = _options(module, kwargs)
    constants = [arg for arg in call.args if not refs_in(arg) and arg is not None]
    if constants:
        raise ValueError(f"it is called with {constants[0]!r:.60}")
    return Arguments(refs, options, mask)


def _by_key(args: tuple[Any, ...], keys: tuple[str, ...]) -> list[Ref]:
    """Return the tensors of a call; a model takes a dict by its inputs' names.

    Source: keras v2.15.0 keras/engine/functional.py#L688 and
    keras v3.15.1 keras/src/models/functional.py#L335.
    """
    if len(args) == 1 and isinstance(args[0], Mapping) and {*keys} <= {*args[0]}:
        args = tuple(args[0][key] for key in keys) or args
    return refs_in(list(args))


def _named(call: CallSpec, module: Any) -> Arguments:
    """Return the tensors of a layer that takes them by position or by name."""
    names = module.argument_names
    given = {**dict(zip(names, call.args, strict=False)), **call.kwargs}
    tensors = {}
    for name in names:
        value = given.pop(name, None)
        refs = refs_in(value)
        if value is not None and len(refs) != 1:
            raise ValueError(f"it is called with {name}={value!r:.60}")
        if refs:
            tensors[name] = refs[0]
    options = {**_options(module, given), "names": tuple(tensors)}
    return Arguments(list(tensors.values()), options)


def _options(module: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return what a call says beside its tensors."""
    kwargs.pop("training", None)
    options = {key: kwargs.pop(key, None) for key in module.call_options}
    for key, value in kwargs.items():
        if value not in (None, False, [], {}):
            raise ValueError(
                f"it is called with {key}={value!r:.60}, which is not supported"
            )
    return {key: value for key, value in options.items() if value}


def training_mode(call: CallSpec, version: Version) -> bool | None:
    """Return the mode that a call asks for, which overrides the model's.

    Keras 3 writes a default there, which the mode of the whole model overrides:
    keras v3.15.1 keras/src/models/functional.py#L695, as at v3.3.3.
    """
    mode = call.kwargs.get("training")
    if mode is None or version >= (3, 0):
        return None
    if not isinstance(mode, bool | int):
        raise refusal(
            f"layer {call.layer!r} is called with training={mode!r:.60}; wanted true "
            "or false."
        )
    return bool(mode)
