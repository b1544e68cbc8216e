"""What `python -m course_lib keras` does: show, check or save an imported model."""

import argparse
import sys

import torch

from course_lib.files import replacing
from course_lib.keras_models import KerasFormatError, load_keras
from course_lib.keras_models.graph.model import KerasModel
from course_lib.keras_models.summary import compare, summary


def run(arguments: argparse.Namespace) -> int:
    """Load the file that `arguments` name; return the exit status."""
    try:
        model = load_keras(
            arguments.model,
            weights=arguments.weights,
            keras_version=arguments.keras_version,
            theano_kernels=arguments.theano_kernels,
            data_format=arguments.data_format,
        )
        if arguments.summary or not (arguments.check or arguments.save):
            print(summary(model))
        status = _check(model, arguments.check) if arguments.check else 0
        if arguments.save:
            _save(model, arguments.save)
    except (KerasFormatError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return status


def _save(model: KerasModel, path: str) -> None:
    try:
        with replacing(path) as stream:
            torch.save(model.state_dict(), stream)
    except OSError as error:
        raise OSError(
            f"keras: {path} can't be written ({error.strerror or error}). Name a file "
            "in a folder that is there and your own."
        ) from error
    print(f"The state_dict is in {path}.")


def _check(model: KerasModel, path: str) -> int:
    found = compare(model, path)
    print(
        f"largest difference of an output: {found.error:.2e}, where the outputs reach "
        f"{found.size:.2e}"
    )
    if found.cost is not None:
        print(f"relative difference of the penalty: {found.cost:.2e}")
    good = found.agrees
    print("It computes what Keras computed." if good else "It differs from Keras.")
    return 0 if good else 1
