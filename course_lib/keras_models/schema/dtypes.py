"""Types of numbers in a file: which are known, and what an input is cast to.

A policy like "mixed_float16" computes in another type than it stores. Here everything
is computed in float32, in the precision of the weights that the file stores; only a
model whose layers are all of float64 is of float64.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

_FLOATS = ("float", "float16", "bfloat16", "float32", "float64")
_MIXED = ("mixed_float16", "mixed_bfloat16")
_INTEGERS = {
    "bool": torch.bool,
    "uint8": torch.uint8,
    "int8": torch.int8,
    "int16": torch.int16,
    "uint16": torch.int32,  # torch's own uint16 lacks most operations
    "int": torch.int32,
    "int32": torch.int32,
    "uint32": torch.int64,
    "int64": torch.int64,
    "uint64": torch.int64,
}


def type_names(value: Any) -> Iterator[str]:
    """Yield the names in a config's `dtype`: a name, a policy, or a map of policies.

    >>> list(type_names({"class_name": "Policy", "config": {"name": "mixed_float16"}}))
    ['mixed_float16']
    """
    if isinstance(value, Mapping):
        config = value.get("config")
        if not isinstance(config, Mapping):
            yield str(config)
        elif value.get("class_name") == "DTypePolicyMap":
            yield from type_names(config.get("default_policy"))
            policies = config.get("policy_map")
            for policy in policies.values() if isinstance(policies, Mapping) else ():
                yield from type_names(policy)
        else:
            yield str(config.get("name"))
    elif value is not None:
        yield str(value)


def is_known(name: str) -> bool:
    """Tell whether numbers of that type or policy can be read and computed."""
    return name in (*_FLOATS, *_MIXED, *_INTEGERS, "string")


def is_float64(names: set[str]) -> bool:
    """Tell whether all floats of a model are float64.

    >>> is_float64({"float64", "int32"}), is_float64({"float64", "float32"})
    (True, False)
    """
    return names & {*_FLOATS, *_MIXED} == {"float64"}


def has_floats(names: set[str]) -> bool:
    """Tell whether any of these is a type or policy of floats."""
    return bool(names & {*_FLOATS, *_MIXED})


def integer_type(value: Any) -> torch.dtype | None:
    """Return the type of whole numbers that an input declares; None for floats.

    >>> integer_type("int32"), integer_type("float32")
    (torch.int32, None)
    """
    return _INTEGERS.get(value) if isinstance(value, str) else None
