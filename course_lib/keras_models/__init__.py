"""Keras models in PyTorch: `load_keras` reads the files of every era.

The way of a file: `files` opens it, `schema` translates its era to the neutral spec of
`spec`, `kinds` and `layers` make modules, `graph` builds them along their calls, and
`weights` fills them.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from course_lib.keras_models.files import (
    LARGEST_JSON,
    Zip,
    as_path,
    kind_of,
    open_zip,
    parse_json,
    reading,
)
from course_lib.keras_models.graph import KerasModel
from course_lib.keras_models.hdf5 import Hdf5, open_hdf5
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

    It computes in float32, also where the file says float16, bfloat16 or a mixed
    policy, whose weights are float32; in float64 where all layers are of it. An input
    is cast to the type that the file declares, as in Keras: images of uint8 to floats,
    and floats to whole numbers where it says int32.

    Nothing in a file is run: a Lambda's code needs a replacement. HDF5 files are read
    by a process of its own, which a damaged one may crash.

    Where one Keras computed several things, it is taken at its word: average pooling
    with "same" leaves the padding out, as on TensorFlow and JAX, though Keras 3 counts
    it on torch; a masked layer with `go_backwards` turns its mask along the steps,
    though 1.1 on TensorFlow turned it along the batch. PReLU of 1.2 did not write its
    `shared_axes`: if its slopes don't fit, add them to the JSON.

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
    with reading(place):
        spec = read_spec(data, problems, keras_version)
        maker = Maker(spec.version, problems, replacements or {}, KerasModel)
        model = KerasModel(spec, maker, axis_order)
        maker.check_replacements()
        problems.check()
        model.eval()
        with torch.no_grad():
            model.build()
        if spec.is_float64:
            model.double()
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
        with reading("the dict"):  # a cycle in it ends here, and tuples become lists
            return json.loads(json.dumps(source)), "the dict", None
    path = as_path(source)
    if path is None:
        return parse_json(source, "the JSON string"), "the JSON string", None
    kind = kind_of(path)
    if kind == "zip":
        with open_zip(path) as archive:
            data, has_weights = _from_zip(archive)
    elif kind == "hdf5":
        with open_hdf5(path, str(path)) as file:
            data, has_weights = _from_hdf5(file)
    else:
        data, has_weights = _from_text(path), False
    return data, str(path), path if has_weights else None


def _from_text(path: Path) -> Any:
    with reading(str(path)):
        if path.stat().st_size > LARGEST_JSON:
            raise KerasFormatError(f"load_keras: {path} is too large for JSON.")
        return parse_json(path.read_bytes(), str(path))


def _from_zip(archive: Zip) -> tuple[Any, bool]:
    """Return the JSON of a `.keras` file and whether it holds weights."""
    if "config.json" not in archive:
        raise KerasFormatError(
            f"load_keras: {archive.path} is a zip without config.json."
        )
    data = archive.json("config.json")
    if "metadata.json" in archive and isinstance(data, dict):
        about = archive.json("metadata.json")
        if isinstance(about, dict):
            data.setdefault("keras_version", about.get("keras_version"))
    return data, "model.weights.h5" in archive


def _from_hdf5(file: Hdf5) -> tuple[Any, bool]:
    """Return the JSON of a whole-model `.h5` file and whether it holds weights."""
    config = file.text(file.root, "model_config")
    if config is None:
        raise KerasFormatError(
            f"load_keras: {file.place} holds weights, but no model_config. Give the "
            "model's JSON as source, and this file as weights."
        )
    data = parse_json(config, f"{file.place}: model_config")
    if isinstance(data, dict):
        for key in ("keras_version", "backend"):
            found = file.text(file.root, key)
            if found is not None:
                data.setdefault(key, found)
    return data, file.get(file.root, "model_weights") is not None


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
