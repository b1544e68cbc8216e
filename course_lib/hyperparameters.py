"""Numbers of a rule: fields with a range, checked and made plain when a rule is made.

numpy's numbers and arrays of one number are taken, and held as Python's.
"""

import math
import numbers
from dataclasses import Field, field, fields
from typing import Any

import numpy as np
import torch


def number(
    default: float, low: float = 0.0, high: float = math.inf, *, below: bool = False
) -> Any:
    """Return a dataclass field for a number in [low, high]; `below` excludes high."""
    return field(default=default, metadata={"low": low, "high": high, "below": below})


def pair(first: float, second: float, high: float = math.inf) -> Any:
    """Return a dataclass field for two numbers, each in [0, high)."""
    metadata = {"low": 0.0, "high": high, "below": True, "pair": True}
    return field(default=(first, second), metadata=metadata)


def betas(first: float, second: float) -> Any:
    """Return a dataclass field for two decay rates, each in [0, 1)."""
    return pair(first, second, 1.0)


def settle(rule: Any) -> None:
    """Make a new rule's numbers and flags plain Python ones.

    Raises:
        ValueError: one is no number, out of its range, or neither True nor False.
    """
    for spec in fields(rule):
        given = getattr(rule, spec.name)
        if "low" in spec.metadata:
            value = _numbers(given) if spec.metadata.get("pair") else plain(given)
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
        if value is not given:
            object.__setattr__(rule, spec.name, value)  # the rule is frozen


def plain(value: Any) -> Any:
    """Return a number of numpy's as Python's; anything else as it is."""
    if type(value) in (int, float):  # as a rule
        return value
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if isinstance(value, bool):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else value


def _numbers(values: Any) -> Any:
    if not isinstance(values, tuple):
        return values
    made = tuple(map(plain, values))
    return values if all(map(_is, made, values)) else made


def _is(one: object, other: object) -> bool:
    return one is other


def _require_range(rule: str, spec: "Field[Any]", value: Any, given: Any) -> None:
    low, high, below = (spec.metadata[key] for key in ("low", "high", "below"))
    is_pair = spec.metadata.get("pair", False)
    values = value if is_pair else (value,)
    is_right = isinstance(values, tuple) and len(values) == (2 if is_pair else 1)
    for each in values if is_right else ():
        is_number = isinstance(each, int | float) and not isinstance(each, bool)
        is_right &= (
            is_number and low <= each and (each < high if below else each <= high)
        )
        is_right = bool(is_right and (each == math.inf) <= (spec.name == "p"))
    if not is_right:
        closing = ")" if below or high == math.inf else "]"
        what = "a tuple of two numbers" if is_pair else "a number"
        raise ValueError(
            f"{rule}: got {spec.name}={given!r}; wanted {what} in [{low:g}, "
            f"{high:g}{closing}.{_advice(given)}"
        )


def _advice(given: Any) -> str:
    if isinstance(given, torch.Tensor):
        return (
            " A rule holds no tensors: pass tensor.item(), or multiply the gradients "
            "by the tensor to learn a step size."
        )
    if isinstance(given, list):
        return f" Pass {tuple(given)!r}." if len(given) == 2 else ""
    return ""
