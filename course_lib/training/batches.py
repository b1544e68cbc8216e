"""Batches of inputs and targets, made from any data that a user trains on."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import TensorDataset

from course_lib.data.sets import Dataset, Split, epoch_batches

Source = Split | TensorDataset | Iterable[Any]


@dataclass(slots=True)
class Batch:
    """The arguments of model(*inputs) and loss(outputs, targets)."""

    inputs: tuple[Tensor, ...]  # at least one
    targets: Any  # a tensor, or the last part of the data's batch
    size: int  # samples: the length of the (first) target


def batches(
    place: str,
    data: Source,
    device: torch.device | None,
    *,
    batch_size: int | None,
    shuffle: bool,
    generator: torch.Generator | None = None,
    drop_last: bool = False,
) -> Iterator[Batch]:
    """Yield the batches of one epoch of what `require_source` accepts.

    They go to the device; None leaves them where they are. The place begins the error
    messages. The options are those of `Split.batches`, and ignored for an iterable of
    batches.

    Raises:
        ValueError: a batch that is no (inputs, targets), or no batch.
    """
    if is_tensors(data):
        is_split = isinstance(data, Split)
        tensors = (data.inputs, data.labels) if is_split else data.tensors
        data = epoch_batches(tensors, batch_size, shuffle, generator, drop_last)
    number = 0
    for number, batch in enumerate(data, start=1):
        yield _read(f"{place}: batch {number}", batch, device)
    if not number:
        raise ValueError(
            f"{place}: the data gave no batch. Is it empty, used up after one pass, or "
            "smaller than a batch whose rest is dropped?"
        )


def is_tensors(data: object) -> bool:
    """Return whether the data is tensors, so that we draw the batches."""
    return isinstance(data, Split | TensorDataset)


def device_of(model: nn.Module) -> torch.device | None:
    """Return the device of the model's first parameter or buffer; None without any."""
    first = next(itertools.chain(model.parameters(), model.buffers()), None)
    return None if first is None else first.device


def require_source(place: str, data: object) -> None:
    """Raise ValueError unless `data` can give batches in each epoch."""
    if isinstance(data, TensorDataset) and not len(data.tensors[0]):
        raise ValueError(f"{place}: got a TensorDataset without samples; wanted one.")
    if is_tensors(data):
        return
    advice = _advice(data)
    if advice:
        more = "a Dataset, " if place == "fit" else ""  # whose test split it tests on
        raise ValueError(
            f"{place}: got data of type {type(data).__name__}; wanted {more}a Split, a "
            "TensorDataset, or batches (inputs, labels) such as a DataLoader gives. "
            f"{advice}"
        )


def _advice(data: object) -> str:
    """Return what to do with data that gives no batches, or nothing."""
    if isinstance(data, Dataset):
        return "Pass one of its splits: data.test, or data.train."
    if isinstance(data, Iterator):
        return "An iterator is used up after one epoch: pass list(...) of it."
    if isinstance(data, TorchDataset):
        return "Wrap it: DataLoader(data, batch_size=32, shuffle=True)."
    parts = data if isinstance(data, tuple | list) else ()
    if any(isinstance(part, Tensor | np.ndarray) for part in (data, *parts)):
        return (
            "Wrap the tensors: TensorDataset(inputs, labels); torch.from_numpy makes "
            "tensors of NumPy's arrays."
        )
    is_iterable = isinstance(data, Iterable) and not isinstance(data, str | Mapping)
    kinds = tuple | list | Mapping  # `_read` explains what is wrong with a Mapping
    if is_iterable and all(isinstance(part, kinds) for part in parts):
        return ""
    return "course_lib.data.load() gives a Dataset, of two Splits."


def _read(place: str, batch: Any, device: torch.device | None) -> Batch:
    if not isinstance(batch, tuple | list) or len(batch) < 2:
        got = f"{len(batch)} part" if isinstance(batch, tuple | list) else _kind(batch)
        raise ValueError(
            f"{place} is of {got}; wanted (inputs, labels), or several inputs and then "
            "the labels. A collate_fn of the DataLoader can make them of other things; "
            "an autoencoder's labels are its inputs: TensorDataset(x, x)."
        )
    *inputs, targets = batch
    if len(inputs) == 1 and isinstance(inputs[0], tuple | list):
        (inputs,) = inputs
    for part in inputs:
        if not isinstance(part, Tensor) or not part.dim():
            raise ValueError(
                f"{place} has inputs of {_kind(part)}; wanted tensors (batch, ...). "
                "torch.from_numpy makes tensors of NumPy's arrays, a collate_fn of "
                "dicts."
            )
    size = len(_first_axis(targets, inputs[0]))
    if not size:
        raise ValueError(f"{place} has no samples; wanted at least one.")
    return Batch(tuple(_moved(inputs, device)), _moved(targets, device), size)


def _kind(value: object) -> str:
    shape = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else ""
    return f"type {type(value).__name__}{shape}"


def _first_axis(targets: Any, inputs: Tensor) -> Tensor:
    """Return the first target, or else the inputs: both are as long as the batch."""
    while isinstance(targets, tuple | list) and targets:
        targets = targets[0]
    return targets if isinstance(targets, Tensor) and targets.dim() else inputs


def _moved(value: Any, device: torch.device | None) -> Any:
    if isinstance(value, Tensor):
        stays = device is None or value.device == device
        return value if stays else value.to(device, non_blocking=True)
    if isinstance(value, tuple | list):
        return [_moved(part, device) for part in value]
    return value
