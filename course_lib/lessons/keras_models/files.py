"""The Keras files of lesson 03.

They are dicts with the keys that Keras writes, without those that have their defaults.
"""

from collections.abc import Mapping, Sequence
from typing import Any

File = dict[str, Any]

_L2 = 0.0010000000474974513  # 0.001 as Keras 1 stored it, in float32


def layer(
    kind: str, name: str, *calls: Sequence[tuple[str, int]], **config: Any
) -> File:
    """Return a layer's entry; each call lists (layer, number of its call) as inputs.

    >>> layer("Dense", "look", [("left", 0)], [("right", 0)], units=4)["inbound_nodes"]
    [[['left', 0, 0]], [['right', 0, 0]]]
    """
    entry = {"class_name": kind, "name": name, "config": {"name": name, **config}}
    nodes = [[[*ref, 0] for ref in call] for call in calls]
    return {**entry, "inbound_nodes": nodes}


def sequential(*layers: File, version: str = "2.2.4") -> File:
    """Return the file of a Sequential model."""
    keys = ("class_name", "config")
    config = [{key: entry[key] for key in keys} for entry in layers]
    return {"class_name": "Sequential", "config": config, "keras_version": version}


def functional(*layers: File, output: str, version: str = "2.2.4") -> File:
    """Return the file of a functional model with one output, the first call of one."""
    return {**_graph("model", layers, output), "keras_version": version}


def _graph(name: str, layers: Sequence[File], output: str) -> File:
    inputs = [e["name"] for e in layers if e["class_name"] == "InputLayer"]
    ends = {"input_layers": [[name, 0, 0] for name in inputs]}
    ends["output_layers"] = [[output, 0, 0]]
    config = {"name": name, "layers": list(layers), **ends}
    return {"class_name": "Model", "name": name, "config": config}


def l1l2(l1: float = 0.0, l2: float = 0.0) -> File:
    """Return a regularizer as Keras 2 writes it."""
    return {"class_name": "L1L2", "config": {"l1": l1, "l2": l2}}


def question() -> File:
    """Return the file of the original question, as Keras 1.1.0 wrote it."""
    sizes = {"dense_1": (512, "relu"), "dense_2": (32, "linear")}
    sizes["dense_3"] = (1, "sigmoid")
    costly = [_dense_1(name, *of) for name, of in sizes.items()]
    first = costly[0]["config"]
    first.update(input_dim=4096, input_dtype="float32", batch_input_shape=[None, 4096])
    entries = [costly[0]]
    for number, entry in enumerate(costly[1:], start=1):
        name = f"dropout_{number}"
        entries += [layer("Dropout", name, p=0.6, trainable=True), entry]
    return sequential(*entries, version="1.1.0")


def _dense_1(name: str, units: int, activation: str) -> File:
    free = ("W_constraint", "b_constraint", "b_regularizer", "activity_regularizer")
    return layer(
        "Dense",
        name,
        output_dim=units,
        init="glorot_normal",
        activation=activation,
        W_regularizer={"name": "WeightRegularizer", "l1": 0.0, "l2": _L2},
        input_dim=None,
        bias=True,
        trainable=True,
        **dict.fromkeys(free),
    )


def outspoken(version: str) -> File:
    """Return one Dense layer whose output has a penalty: l1 = 0.001, 6 inputs, 4 units.

    Its words are those of Keras 1 for a version of it, and those of Keras 2 otherwise.
    """
    coefficients = {"l1": 0.001, "l2": 0.0}
    config: File = {"units": 4, "activity_regularizer": l1l2(**coefficients)}
    if version.startswith("1."):
        old = {"name": "ActivityRegularizer", **coefficients}
        config = {"output_dim": 4, "activity_regularizer": old}
    dense = layer("Dense", "dense", batch_input_shape=[None, 6], **config)
    return sequential(dense, version=version)


def pair(version: str) -> File:
    """Return one model in the words of Keras 1 or 2: a nested model is called twice.

    Its one Dense layer has 6 inputs, 4 units and l2 = 0.01 on its weights. The file
    does not say which version wrote it.
    """
    old = version.startswith("1.")
    config: File = {"units": 4, "kernel_regularizer": l1l2(l2=0.01)}
    if old:
        weight = {"name": "WeightRegularizer", "l1": 0.0, "l2": 0.01}
        config = {"output_dim": 4, "W_regularizer": weight}
    half = layer("InputLayer", "half", batch_input_shape=[None, 6])
    inner = _graph(
        "twin", [half, layer("Dense", "dense", [("half", 0)], **config)], "dense"
    )
    inner["inbound_nodes"] = [[["left", 0, 0]], [["right", 0, 0]]]
    sides = [
        layer("InputLayer", n, batch_input_shape=[None, 6]) for n in ("left", "right")
    ]
    both = [("twin", 1), ("twin", 2)]  # 0 is its own construction
    total = (
        layer("Merge", "sum", both, mode="sum") if old else layer("Add", "sum", both)
    )
    return _graph("pair", [*sides, inner, total], "sum")


def halves(*, shared: bool) -> File:
    """Return a network that cuts a digit in two and looks at both halves alike.

    With `shared` one layer is called twice; otherwise each half has a layer of its own.
    """
    left, right = [("left", 0)], [("right", 0)]
    size = {"units": 12, "activation": "relu", "kernel_regularizer": l1l2(l2=0.002)}
    looks = [layer("Dense", "look", [("flat", 0)], [("flat", 1)], **size)]
    both = [("look", 0), ("look", 1)]
    if not shared:
        names = ("look_left", "look_right")
        looks = [layer("Dense", n, [("flat", i)], **size) for i, n in enumerate(names)]
        both = [(name, 0) for name in names]
    return functional(
        layer("InputLayer", "digit", batch_input_shape=[None, 8, 8, 1]),
        layer("Cropping2D", "left", [("digit", 0)], cropping=[[0, 0], [0, 4]]),
        layer("Cropping2D", "right", [("digit", 0)], cropping=[[0, 0], [4, 0]]),
        layer("Flatten", "flat", left, right),
        *looks,
        layer("Concatenate", "both", both),
        layer("Dense", "scores", [("both", 0)], units=10),
        output="scores",
    )


def convnet() -> File:
    """Return a small convolutional network for the digits, as Keras 2 writes it."""
    size = {"filters": 4, "kernel_size": [3, 3], "padding": "same"}
    start = {"batch_input_shape": [None, 8, 8, 1], "data_format": "channels_last"}
    return sequential(
        layer("Conv2D", "look", **size, **start, activation="relu"),
        layer("Flatten", "flatten"),
        layer("Dense", "scores", units=10),
    )


def dense(*, l2: float) -> File:
    """Return a network of two Dense layers for the digits, both regularized."""
    cost = {"kernel_regularizer": l1l2(l2=l2)}
    return sequential(
        layer("Flatten", "flat", batch_input_shape=[None, 8, 8, 1]),
        layer("Dense", "hidden", units=64, activation="relu", **cost),
        layer("Dense", "scores", units=10, **cost),
    )


def regularized(coefficients: Mapping[str, tuple[float, float] | None]) -> File:
    """Return a Keras 1.1 file with a Dropout after each Dense layer."""
    entries: list[File] = []
    for name, of in coefficients.items():
        entry = _dense_1(name, 3, "linear")
        found = of and {"name": "WeightRegularizer", "l1": of[0], "l2": of[1]}
        entry["config"]["W_regularizer"] = found
        entries += [entry, layer("Dropout", f"dropout_{name}", p=0.5)]
    entries[0]["config"].update(input_dim=3, batch_input_shape=[None, 3])
    return sequential(*entries, version="1.1.0")
