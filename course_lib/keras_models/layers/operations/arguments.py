"""The arguments of a node: constants of the file, tensors of the call, their text."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from course_lib.keras_models.layers.operations.forms import PARTS, array
from course_lib.keras_models.layers.operations.sizes import Sizes, as_tensor
from course_lib.keras_models.settings import Settings
from course_lib.keras_models.spec import Ref


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
            return array(config.get("value"))
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
    """Replace the `Ref`s by what they stand for; sizes become Python's numbers.

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


def as_argument(value: Any, found: Mapping[Ref, Any], like: Any, name: str = "") -> Any:
    """Replace the `Ref`s by tensors, and move constants to the device of the inputs."""
    if isinstance(value, Ref):
        return as_tensor(found[value])
    if isinstance(value, Tensor):
        floating = value.is_floating_point() and is_floating(like)
        return value.to(like.device, like.dtype if floating else value.dtype)
    if isinstance(value, tuple):
        parts = [as_argument(part, found, like) for part in value]
        parts = [torch.as_tensor(part, device=like.device) for part in parts]
        return parts if name == PARTS else torch.stack(_of_one_dtype(parts))
    return value


def is_floating(x: Any) -> bool:
    """Tell a tensor of floats from all else."""
    return isinstance(x, Tensor) and x.is_floating_point()


def _of_one_dtype(parts: list[Tensor]) -> list[Tensor]:
    dtype = next(filter(is_floating, parts), parts[0]).dtype
    return [part.to(dtype) for part in parts]


def described(function: str, args: tuple, kwargs: Mapping[str, Any]) -> str:
    """Write a call as a program would, with short arguments."""
    parts = [_short(arg) for arg in args]
    parts += [f"{key}={_short(value)}" for key, value in kwargs.items()]
    return f"{function}({', '.join(parts)})"


def _short(value: Any) -> str:
    if isinstance(value, Ref):
        return f"<{value.layer:.60}>"
    if value is Ellipsis:
        return "..."
    if isinstance(value, slice):
        ends = (value.start, value.stop, value.step)
        return ":".join("" if end is None else _short(end) for end in ends)
    if isinstance(value, tuple) and len(repr(value)) > 60:
        with suppress(ValueError):
            value = array(value)
    if isinstance(value, Tensor):
        return f"an array of shape {tuple(value.shape)}"
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_short, value[:20])) + "]"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
