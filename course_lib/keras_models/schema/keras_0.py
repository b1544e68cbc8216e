"""Keras 0.3: a flat dict for each layer, in the words of Keras 1.

`{"name": "Dense", "custom_name": "dense", "output_dim": 4, ...}` becomes
`{"class_name": "Dense", "config": {"name": "dense", "output_dim": 4, ...}}`.
"""

from collections.abc import Mapping
from typing import Any

from course_lib.keras_models.spec import refusal


def to_keras_1(data: Any, depth: int = 0) -> dict[str, Any]:
    """Return a model or layer of 0.3 as Keras 1 would have written it.

    >>> to_keras_1({"name": "Dropout", "custom_name": "drop", "p": 0.5})
    {'class_name': 'Dropout', 'config': {'name': 'drop', 'p': 0.5}}
    """
    if not isinstance(data, Mapping) or not isinstance(data.get("name"), str):
        raise refusal(
            f"got {data!r:.60} for a layer of Keras 0.3; wanted an object "
            'with a "name".'
        )
    if depth > 32:
        raise refusal("models are nested more than 32 deep.")
    kind, config = data["name"], dict(data)
    config.pop("name")
    if kind == "Sequential":
        return {"class_name": kind, "config": _unique(_layers(config, depth))}
    if kind == "Graph":
        nodes = config.get("nodes")
        nodes = nodes if isinstance(nodes, Mapping) else {}
        config["nodes"] = {k: to_keras_1(v, depth + 1) for k, v in nodes.items()}
        return {"class_name": kind, "config": config}
    if "custom_name" in config:
        config["name"] = config.pop("custom_name")
    if "layers" in config:  # of a Merge
        config["layers"] = _layers(config, depth)
    if isinstance(config.get("layer"), Mapping):
        config["layer"] = to_keras_1(config["layer"], depth + 1)
    config = {key: config[key] for key in sorted(config, key=lambda key: key != "name")}
    shape = _input_shape(kind, config)
    if shape is not None:
        config["batch_input_shape"] = shape
    return {"class_name": kind, "config": config}


def _input_shape(kind: str, config: dict[str, Any]) -> list[Any] | None:
    """Return the shape of a first layer's input, whichever way it was given."""
    shape = config.pop("input_shape", None)
    if isinstance(shape, list):
        return [None, *shape]
    if kind == "Embedding" or config.get("input_dim") is None:
        return None
    if "input_length" in config:
        return [None, config["input_length"], config["input_dim"]]
    return [None, config["input_dim"]]


def _layers(config: Mapping[str, Any], depth: int) -> list[dict[str, Any]]:
    found = config.get("layers")
    if not isinstance(found, list):
        raise refusal(f"'layers' is {found!r:.60}; wanted a list.")
    return [to_keras_1(layer, depth + 1) for layer in found]


def _unique(layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Number the names, since 0.3 calls every Dense "dense"."""
    taken: dict[str, int] = {}
    for layer in layers:
        if not isinstance(layer["config"], dict):
            continue
        name = str(layer["config"].get("name") or layer["class_name"].lower())
        taken[name] = taken.get(name, 0) + 1
        number = "" if taken[name] == 1 else f"_{taken[name]}"
        layer["config"]["name"] = name + number
    return layers
