"""Keras models in PyTorch: `load_keras` reads the files of every era.

The way of a file: `source` opens it, `schema` translates its era to the neutral spec of
`spec`, `graph` makes the modules of `layers` and plans their calls, and `weights` fills
them. `settings` reads a layer's config; `summary` shows and checks a model.

`keras TAG PATH#LLINE` in a comment is the line of Keras that justifies a branch on the
version: https://github.com/keras-team/keras/blob/TAG/PATH#LLINE.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Literal

import numpy as np
import torch

from course_lib.keras_models.graph.make import build_model, make_model
from course_lib.keras_models.graph.model import KerasModel
from course_lib.keras_models.graph.penalties import attach_penalties
from course_lib.keras_models.schema.read import read_spec
from course_lib.keras_models.source.files import reading
from course_lib.keras_models.source.opening import open_source, open_weights
from course_lib.keras_models.spec import KerasFormatError, Problems, refusal
from course_lib.keras_models.weights.fill import fill_model
from course_lib.keras_models.weights.origin import Origin

__all__ = ["KerasFormatError", "load_keras"]

Source = str | bytes | os.PathLike[str] | Mapping[str, Any]
Weights = str | os.PathLike[str] | Sequence[np.ndarray | torch.Tensor]


def load_keras(
    source: Source,
    *,
    weights: Weights | None = None,
    keras_version: str | None = None,
    replacements: Mapping[str, Callable[..., Any]] | None = None,
    theano_kernels: bool | None = None,
    data_format: Literal["channels_last", "channels_first"] | None = None,
    axis_order: Literal["keras", "torch"] = "keras",
) -> KerasModel:
    """Load a Keras model, of 0.3 to 3.x, as a module that computes the same.

    The module is in eval mode; `model.train()` turns on dropout and batch statistics.
    Layers that change images at random, RandomFlip and its kin, raise an error there.
    Its layers carry their regularizers, so `course_lib.regularization.penalty(model)`
    is what that Keras version added to the loss. Constraints are stored and applied by
    `course_lib.keras_models.constraints.constrain(model, optimizer)`. Frozen layers
    don't require gradients.

    It computes in float32, also where the file says float16, bfloat16 or a mixed
    policy, whose weights are float32; in float64 where all layers are of it. An input
    is cast to the type that the file declares, as in Keras: images of uint8 to floats,
    and floats to whole numbers where it says int32.

    Nothing in a file is run: a Lambda's code needs a replacement. HDF5 files are read
    by a separate process, which a damaged one may crash.

    Where backends of one Keras differ, the documented meaning counts: average pooling
    with "same" leaves the padding out, as on TensorFlow and JAX, though Keras 3 counts
    it on torch; a masked layer with `go_backwards` reverses its mask along the steps,
    though 1.1 on TensorFlow reversed it along the batch. PReLU of 1.2 did not write its
    `shared_axes`: if its slopes don't fit, add them to the JSON.

    Args:
        source: a path to `.json`, `.keras` or a whole-model `.h5`, or to the
            `model.json` of a TensorFlow.js layers model; JSON; or a dict.
        weights: a path to `.h5`, `.weights.h5`, `.keras`, `.npz` or a `model.json`
            with its shards, or a list of arrays as Keras's `get_weights()` returns
            them. Without it, those of the source file; for JSON alone, the model's
            initializers with torch's generator.
        keras_version: which meaning the file has, for example `"1.0.0"`; needed only
            where the file does not say and its form does not show it.
        replacements: layer name = a module or function in its place. It is called
            with one tensor for each input, in Keras's order of axes. A mask ends at a
            Lambda's; elsewhere its attribute `supports_masking` says whether one
            passes, and is asked for where a later layer needs to know.
        theano_kernels: the weights were trained on Theano (True) or elsewhere (False).
            Theano turns the kernels of convolutions by 180 degrees, and its padding for
            "same" differs from TensorFlow's; both belong together. A file of weights of
            Keras 2 says so itself, and None goes by it, or where it does not say by the
            JSON's backend. No file of Keras 1 records it: None means TensorFlow there.
        data_format: where the channels lie in layers that don't say so. Keras 1 did not
            write it for ZeroPadding2D, Cropping2D and UpSampling2D; needed only where
            no other layer shows it; an error then asks for it.
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
    replacements = {} if replacements is None else replacements
    _check_arguments(
        source, weights, replacements, theano_kernels, data_format, axis_order
    )
    with ExitStack() as stack:
        opened = open_source(source, stack)
        with reading(opened.place):
            problems = Problems(opened.place)
            spec = read_spec(opened.data, problems, keras_version, data_format)
            model = make_model(spec, problems, replacements, axis_order)
            problems.check()
            build_model(model, is_float64=spec.is_float64)
            arrays = weights
            if weights is None:
                arrays = opened.weights()
            elif isinstance(weights, str | os.PathLike):
                arrays = open_weights(weights, stack)
            origin = Origin.of_model(spec, theano_kernels)
            fill_model(model, arrays, origin)
            attach_penalties(model)
    return model


def _check_arguments(
    source: Any,
    weights: Any,
    replacements: Any,
    theano_kernels: Any,
    data_format: Any,
    axis_order: Any,
) -> None:
    hint = ""
    if hasattr(source, "to_json") and hasattr(source, "get_weights"):
        hint = ". Of a Keras model, pass to_json(), and weights=get_weights()"
    text = f"a path, a JSON string or a dict{hint}"
    _check_type("source", source, (str, bytes, os.PathLike, Mapping), text)
    types = (str, os.PathLike, list, tuple, type(None))
    _check_type("weights", weights, types, "a path or a list of arrays")
    _check(
        "axis_order", axis_order, axis_order in ("keras", "torch"), "'keras' or 'torch'"
    )
    text = "a dict of layers' names and what takes their places"
    _check_type("replacements", replacements, (Mapping,), text)
    for name, function in replacements.items():
        place = f"replacements[{name!r}]"
        _check(place, function, callable(function), "a module or a function")
    known = isinstance(theano_kernels, bool | None)
    _check("theano_kernels", theano_kernels, known, "True, False or None")
    formats = ("channels_last", "channels_first")
    known = data_format is None or data_format in formats
    _check("data_format", data_format, known, " or ".join(map(repr, formats)))


def _check(name: str, got: Any, is_good: bool, wanted: str) -> None:
    if not is_good:
        raise refusal(f"got {name}={got!r:.60}; wanted {wanted}.")


def _check_type(name: str, got: Any, types: tuple[type, ...], wanted: str) -> None:
    if not isinstance(got, types):
        kind = type(got).__name__
        raise refusal(f"got {kind} for {name}; wanted {wanted}.")
