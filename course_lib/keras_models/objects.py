"""The objects in a layer's config: their class, their package, their numbers.

The message of a ValueError here completes a sentence.
"""

from collections.abc import Mapping
from typing import Any

_KERAS = ("keras", "tf_keras", "tensorflow", "builtins")


def with_package(data: Mapping[str, Any], source: str) -> str:
    """Return "package>class" for a class that is not Keras's own.

    It may bear the name of one: keras.saving.register_keras_serializable("mine") on a
    class L2 writes class_name "L2", module null and registered_name "mine>L2".
    Source: `serialize_keras_object`, keras/src/saving/serialization_lib.py at v3.15.1.

    >>> with_package({"module": None, "registered_name": "mine>L2"}, "L2")
    'mine>L2'
    """
    module, registered = data.get("module"), data.get("registered_name")
    if isinstance(module, str) and module.partition(".")[0] not in _KERAS:
        return f"{module}>{source}"
    if module is None and isinstance(registered, str) and ">" in registered:
        return registered
    return source


def check_package(value: Any) -> None:
    """Raise ValueError if a regularizer, activation or the like is not Keras's own."""
    if isinstance(value, Mapping):
        name = str(value.get("class_name"))
        found = with_package(value, name)
        if found != name:
            raise ValueError(f"{found!r:.60} is not Keras's own")


def class_and_config(value: Any) -> tuple[Any, Mapping[str, Any]]:
    """Return the class name and settings of an object, as any era writes them."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{value!r:.60} is unknown here")
    name = value.get("class_name", value.get("name"))
    config = value.get("config", value)
    if not isinstance(config, Mapping):
        raise ValueError(f"{name!r} has no config")
    return name, config


def unwrapped(value: Any) -> Any:
    """Return a number that Keras 3 wrote as a scalar array, and all else unchanged."""
    config = value.get("config") if isinstance(value, Mapping) else None
    return config.get("value") if isinstance(config, Mapping) else value


def number_in(config: Mapping[str, Any], *keys: str, default: float) -> float:
    """Return a number of a config, under the first key that it has."""
    found = next((unwrapped(config[key]) for key in keys if key in config), default)
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise ValueError(f"has {keys[0]}={found!r:.60}; wanted a number")
    return float(found)
