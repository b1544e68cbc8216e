"""Keras models in PyTorch: `load_keras` reads the files of every era.

The way of a file: `files` opens it, `schema` translates its era to the neutral spec of
`spec`, `kinds` and `layers` make modules, `graph` builds them along their calls, and
`weights` fills them.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from course_lib.keras_models.files import (
    LARGEST_JSON,
    as_path,
    open_hdf5,
    parse_json,
    read_zip,
    reading,
)
from course_lib.keras_models.graph import KerasModel
from course_lib.keras_models.kinds import Maker
from course_lib.keras_models.schema import read_spec
from course_lib.keras_models.spec import KerasFormatError, Problems
from course_lib.keras_models.weights import initialize_rest, load_weights

__all__ = ["KerasFormatError", "load_keras"]

Source = str | os.PathLike[str] | Mapping[str, Any]
Weights = str | os.PathLike[str] | Sequence[np.ndarray | torch.Tensor]


def load_keras(
    source: Source,
    *,
    weights: Weights | None = None,
    keras_version: str | None = None,
    replacements: Mapping[str, Callable[..., Any]] | None = None,
    theano_kernels: bool = False,
    axis_order: Literal["keras", "torch"] = "keras",
) -> KerasModel:
    """Load a Keras model, of 0.3 to 3.x, as a module that computes the same.

    The module is in eval mode; `model.train()` turns on dropout and batch statistics.
    Its layers carry their regularizers, so `course_lib.regularization.penalty(model)`
    is what that Keras version added to the loss. Constraints are kept and applied by
    `course_lib.keras_models.constraints.constrain(model, optimizer)`. Frozen layers
    don't require gradients.

    Nothing in a file is run: a Lambda's code needs a replacement.

    Args:
        source: a path to `.json`, `.keras` or a whole-model `.h5`; JSON; or a dict.
        weights: a path to `.h5`, `.weights.h5`, `.keras` or `.npz`, or a list of
            arrays as Keras's `get_weights()` returns them. Without it, those of the
            source file, or else the file's initializers with torch's generator.
        keras_version: which meaning the file has, for example `"1.0.0"`; needed only
            where the file does not say and its form does not show it.
        replacements: layer name = a module or function in its place. It is called
            with one tensor for each input, in Keras's order of axes.
        theano_kernels: the convolution kernels were trained on Theano, which turns
            them by 180 degrees; no file of Keras 1 records it.
        axis_order: `"keras"`, the file's own order at inputs and outputs; or
            `"torch"`, channels first: images and volumes (batch, channels, ...), and
            sequences that go through convolutions (batch, channels, steps).

    Raises:
        KerasFormatError: what is wrong with the file, or all layers and settings that
            are not supported, at once.

    >>> layers = [
    ...     {"class_name": "Dense", "config": {
    ...         "name": "dense_1", "output_dim": 2, "activation": "relu",
    ...         "batch_input_shape": [None, 3], "W_regularizer": {
    ...             "name": "WeightRegularizer", "l1": 0.0, "l2": 0.5}}},
    ... ]
    >>> model = load_keras(
    ...     {"class_name": "Sequential", "keras_version": "1.1.0", "config": layers},
    ...     weights=[np.ones((3, 2)), np.zeros(2)],
    ... )
    >>> model(torch.ones(1, 3))
    tensor([[3., 3.]], grad_fn=<ReluBackward0>)
    >>> from course_lib.regularization import penalty
    >>> penalty(model)
    tensor(3., grad_fn=<AddBackward0>)
    >>> list(model.state_dict())
    ['dense_1.weight', 'dense_1.bias']
    """
    _check_arguments(source, axis_order, replacements)
    data, place, found = _open(source)
    problems = Problems(place)
    try:
        spec = read_spec(data, problems, keras_version)
        maker = Maker(spec.version, problems, replacements or {}, KerasModel)
        model = KerasModel(spec, maker, axis_order)
    except RecursionError:
        raise KerasFormatError(f"load_keras: {place} is nested too deep.") from None
    maker.check_replacements()
    problems.check()
    model.eval()
    with torch.no_grad(), reading(place):
        model.build()
    _freeze(model, spec)
    weights = found if weights is None else weights
    if weights is not None:
        theano = spec.backend == "theano" and spec.version >= (2, 0)
        load_weights(model, weights, flipped=theano_kernels or theano)
    initialize_rest(model)
    model.attach_regularizers()
    return model


def _check_arguments(source: Any, axis_order: Any, replacements: Any) -> None:
    if not isinstance(source, str | os.PathLike | Mapping):
        raise KerasFormatError(
            f"load_keras: got {type(source).__name__} for source; wanted a path, a "
            "JSON string or a dict."
        )
    if axis_order not in ("keras", "torch"):
        raise KerasFormatError(
            f"load_keras: got axis_order={axis_order!r}; wanted 'keras' or 'torch'."
        )
    for name, function in (replacements or {}).items():
        if not callable(function):
            raise KerasFormatError(
                f"load_keras: got replacements[{name!r}]={function!r:.60}; wanted a "
                "module or a function."
            )


def _open(source: Source) -> tuple[Any, str, Any]:
    """Return (the model's JSON, a name for messages, the weights beside it)."""
    if isinstance(source, Mapping):
        return source, "the dict", None
    path = as_path(source)
    if path is None:
        return parse_json(source, "the JSON string"), "the JSON string", None
    with reading(str(path)), open(path, "rb") as stream:
        start = stream.read(8)
    if start.startswith(b"PK"):
        return _open_keras(path)
    if start.startswith(b"\x89HDF"):
        return _open_hdf5(path)
    with reading(str(path)):
        if path.stat().st_size > LARGEST_JSON:
            raise KerasFormatError(f"load_keras: {path} is too large for JSON.")
        text = path.read_bytes()
    return parse_json(text, str(path)), str(path), None


def _open_keras(path: Path) -> tuple[Any, str, Any]:
    names = {"config.json": LARGEST_JSON, "metadata.json": LARGEST_JSON}
    members = read_zip(path, {**names, "model.weights.h5": 2**35})
    if "config.json" not in members:
        raise KerasFormatError(f"load_keras: {path} is a zip without config.json.")
    data = parse_json(members["config.json"], f"{path}: config.json")
    if "metadata.json" in members and isinstance(data, dict):
        about = parse_json(members["metadata.json"], f"{path}: metadata.json")
        if isinstance(about, dict) and "keras_version" not in data:
            data["keras_version"] = about.get("keras_version")
    return data, str(path), members.get("model.weights.h5")


def _open_hdf5(path: Path) -> tuple[Any, str, Any]:
    with open_hdf5(path, path.stat().st_size, str(path)) as file:
        config = file.text("model_config")
        if config is None:
            raise KerasFormatError(
                f"load_keras: {path} holds weights, but no model_config. Give the "
                "model's JSON as source, and this file as weights."
            )
        data = parse_json(config, f"{path}: model_config")
        if isinstance(data, dict):
            for key in ("keras_version", "backend"):
                found = file.text(key)
                if found is not None:
                    data.setdefault(key, found)
        has_weights = file.get(file.file, "model_weights") is not None
    return data, str(path), path if has_weights else None


def _freeze(model: nn.Module, spec: Any) -> None:
    """Take the frozen layers out of training."""
    for name, layer in spec.layers.items():
        if name in model.input_names:
            continue
        child = model.child(name)
        if layer.model is not None and isinstance(child, KerasModel):
            _freeze(child, layer.model)
        if not layer.trainable:
            child.requires_grad_(False)
