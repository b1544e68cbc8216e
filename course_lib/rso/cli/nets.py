"""The networks that the command can search, by name or from a user's file."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from course_lib.data.sets import Dataset
from course_lib.models import RSOCifar10CNN, rso_mnist_cnn, small_cnn


def build(name: str, dataset: Dataset) -> nn.Module:
    """Return a network for the images and classes of a data set.

    Args:
        name: "small": two convolutions with batch norm and a linear layer; "paper":
            the paper's MNIST network for gray images, that for CIFAR-10 for color;
            "PATH.py:NAME": a module in a file, or a function that returns one. **The
            file's code is run**, so take only what you trust.
        dataset: the one to classify.

    Raises:
        ValueError: none of these, or nothing in the file that is a network.
    """
    channels, size = dataset.train.inputs.shape[1:3]
    classes = len(dataset.classes)
    if name == "small":
        return small_cnn(size, channels, classes, norm=True)
    if name == "paper":
        paper = rso_mnist_cnn if channels == 1 else RSOCifar10CNN
        return paper(channels=channels, classes=classes)
    path, colon, member = name.rpartition(":")
    if not colon or not path.endswith(".py"):
        raise ValueError(
            f"rso: got the network {name!r}; wanted 'small', 'paper' or PATH.py:NAME."
        )
    return _from_file(Path(path), member)


def _from_file(path: Path, member: str) -> nn.Module:
    if not path.is_file():
        raise ValueError(f"rso: there is no file {path} to take a network from.")
    spec = importlib.util.spec_from_file_location(f"rso_net_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    _run(path, lambda: spec.loader.exec_module(module))
    if not hasattr(module, member):
        names = [name for name in vars(module) if not name.startswith("_")]
        raise ValueError(
            f"rso: {path} has no {member!r}; it has {', '.join(names) or 'nothing'}."
        )
    network = getattr(module, member)
    if not isinstance(network, nn.Module):
        network = _run(path, network)
    if not isinstance(network, nn.Module):
        raise ValueError(
            f"rso: {member!r} of {path} gave a {type(network).__name__}; wanted an "
            "nn.Module, or a function without arguments that returns one."
        )
    return network


def _run(path: Path, code: Callable[[], Any]) -> Any:
    try:
        return code()
    except Exception as error:  # a user's code: anything can happen
        kind = type(error).__name__
        raise ValueError(f"rso: {path} failed: {kind}: {error}") from error
