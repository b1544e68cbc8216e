"""Numbers of a rule: dataclass fields with a range, checked when a rule is made.

numpy's numbers and arrays of one number are converted to Python's.
"""

import math
import numbers
from dataclasses import Field, field, fields
from typing import Any

import numpy as np
from torch import Tensor


def number(
    default: float | tuple[float, float],
    low: float = 0.0,
    high: float = math.inf,
    *,
    closed: bool = False,
) -> Any:
    """Return a dataclass field for a number, or two, in [low, high), or [low, high]."""
    return field(default=default, metadata={"low": low, "high": high, "closed": closed})


def validate(rule: Any) -> None:
    """Check a new rule's numbers and flags, and convert them to Python's.

    Raises:
        ValueError: one is no number, out of its range, or neither True nor False.
    """
    for spec in fields(rule):
        given = getattr(rule, spec.name)
        if "low" in spec.metadata:
            value = tuple(map(plain, given)) if type(given) is tuple else plain(given)
            _require_range(type(rule).__name__, spec, value, given)
        elif isinstance(spec.default, bool):
            value = bool(given) if isinstance(given, np.bool_) else given
            if not isinstance(value, bool):
                raise ValueError(
                    f"{type(rule).__name__}: got {spec.name}={given!r}; wanted True "
                    "or False."
                )
        else:
            continue
        object.__setattr__(rule, spec.name, value)  # the rule is frozen


def plain(value: Any) -> Any:
    """Return a number of numpy's as Python's; anything else unchanged."""
    if type(value) in (int, float, bool):
        return value
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else value


def _require_range(rule: str, spec: "Field[Any]", value: Any, given: Any) -> None:
    is_pair = isinstance(spec.default, tuple)
    values = value if is_pair else (value,)
    has_size = isinstance(values, tuple) and len(values) == 1 + is_pair
    if has_size and all(_is_in_range(each, **spec.metadata) for each in values):
        return
    wanted = "a tuple of two numbers" if is_pair else "a number"
    end = "]" if spec.metadata["closed"] else ")"
    raise ValueError(
        f"{rule}: got {spec.name}={given!r}; wanted {wanted} in "
        f"[{spec.metadata['low']:g}, {spec.metadata['high']:g}{end}.{_advice(given)}"
    )


def _is_in_range(value: Any, low: float, high: float, closed: bool) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return low <= value < high or (closed and value == high)


def _advice(given: Any) -> str:
    if isinstance(given, Tensor):
        return (
            " A rule holds no tensors: pass tensor.item(), or multiply the gradients "
            "by the tensor to learn a step size."
        )
    if isinstance(given, list) and len(given) == 2:
        return f" Pass {tuple(given)!r}."
    return ""
