"""Nodes of TensorFlow's graph: the NodeDef as JSON, and the inputs that are constants.

tf.keras wrote a TensorFlowOpLayer for each in TensorFlow 2.0 to 2.3.
"""

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from course_lib.keras_models.spec import Ref

_TYPES = {"float": "float32", "half": "float16", "double": "float64"}


def inputs_of(refs: tuple[Ref, ...], constants: Any) -> tuple[Any, ...]:
    """Return the op's inputs: the constants in their places, tensors in the others.

    Raises:
        ValueError: a constant at a place that does not exist.
    """
    constants = constants if isinstance(constants, Mapping) else {}
    count = len(refs) + len(constants)
    fixed = {str(place): value for place, value in constants.items()}
    if set(fixed) - set(map(str, range(count))):
        raise ValueError(f"constants at {sorted(fixed)!r:.60} of {count} inputs")
    waiting = iter(refs)
    places = map(str, range(count))
    return tuple(fixed[i] if i in fixed else next(waiting) for i in places)


def attributes_of(node: Any) -> dict[str, Any]:
    """Return the NodeDef's attributes as Python's values, without those of types.

    Raises:
        ValueError: what is no NodeDef.
    """
    found = node.get("attr", {}) if isinstance(node, Mapping) else None
    if not isinstance(found, Mapping):
        raise ValueError(f"node_def={node!r:.60}; wanted an op with its attributes")
    names = [name for name in map(str, found) if not name.startswith(("T", "_"))]
    return {name: _value(found[name]) for name in names}


def _value(value: Any) -> Any:
    """Read an AttrValue: {"i": "2"}, {"b": true}, {"s": base64}, {"list": ...}."""
    if not isinstance(value, Mapping) or len(value) != 1:
        return None
    kind, inner = next(iter(value.items()))
    if kind == "list":
        rows = inner.items() if isinstance(inner, Mapping) else ()
        rows = [(k, row) for k, row in rows if isinstance(row, list)]
        return tuple(_value({k: one}) for k, row in rows for one in row)
    if kind == "i":
        if not isinstance(inner, str | int) or len(str(inner)) > 20:
            raise ValueError(f"got {inner!r:.40} for a whole number")
        return int(inner)
    if kind == "s":
        return _text(inner)
    if kind == "type":
        name = str(inner).removeprefix("DT_").lower()
        return _TYPES.get(name, name)
    return inner if isinstance(inner, bool | int | float) else None


def _text(value: Any) -> str:
    try:
        return base64.b64decode(str(value), validate=True).decode("ascii")
    except (binascii.Error, UnicodeError) as error:
        raise ValueError(f"got {value!r:.40} for a text") from error
