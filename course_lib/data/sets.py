"""Data sets as tensors, normalized, each whole on one device.

`load("digits")` needs no files: they come with scikit-learn. `archives` finds the files
of the other sets.
"""

import dataclasses
import difflib
import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from course_lib.checks import require_ints
from course_lib.data import archives
from course_lib.data.archives import DataError, Root

Batch = tuple[Tensor, Tensor]
NAMES: tuple[str, ...] = ("digits", *archives.SOURCES)


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """Images with their classes, all on one device.

    For other data give `training.fit` a TensorDataset or a DataLoader.

    Args:
        inputs: float32 of shape (n, channels, height, width), n >= 1.
        labels: int64 class numbers of shape (n,), on the inputs' device.

    Raises:
        ValueError: another shape or dtype, lengths or devices that differ.

    >>> Split(torch.zeros(3, 1, 8, 8), torch.tensor([0, 1, 2]))
    Split(3 samples, inputs (1, 8, 8), on cpu)
    """

    inputs: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        wanted = "float32 of shape (n, channels, height, width)"
        _check_tensor("inputs", self.inputs, torch.float32, 4, wanted)
        _check_tensor("labels", self.labels, torch.int64, 1, "int64 of shape (n,)")
        if not 1 <= len(self.inputs) == len(self.labels):
            raise ValueError(
                f"Split: got {len(self.inputs)} inputs and {len(self.labels)} labels; "
                "wanted one label for each input, and at least one."
            )
        if self.inputs.device != self.labels.device:
            raise ValueError(
                f"Split: the inputs are on {self.inputs.device}, the labels on "
                f"{self.labels.device}. Move both to one device."
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        shape = tuple(self.inputs.shape[1:])
        return f"Split({len(self)} samples, inputs {shape}, on {self.inputs.device})"

    def to(self, device: str | torch.device) -> "Split":
        """Return this split with its tensors on `device`."""
        return Split(self.inputs.to(device), self.labels.to(device))

    def batches(
        self,
        batch_size: int,
        *,
        shuffle: bool = True,
        generator: torch.Generator | None = None,
        drop_last: bool = False,
    ) -> Iterator[Batch]:
        """Return an iterator over one epoch of (inputs, labels).

        The order is drawn at the call, on the CPU: one seed gives one order on every
        device. Unshuffled batches are views of the split.

        Args:
            batch_size: samples in a batch, >= 1; above n gives one batch of n.
            shuffle: visit the samples in a new random order.
            generator: on the CPU; None takes torch's global one.
            drop_last: skip a last batch that is smaller than the others.

        Raises:
            ValueError: batch_size is not such an int, or exceeds n while
                drop_last is set; the generator is not on the CPU.

        >>> split = Split(torch.zeros(5, 1, 8, 8), torch.arange(5))
        >>> [y.tolist() for x, y in split.batches(2, shuffle=False)]
        [[0, 1], [2, 3], [4]]
        """
        tensors = self.inputs, self.labels
        return epoch_batches(tensors, batch_size, shuffle, generator, drop_last)


def epoch_batches(
    tensors: Sequence[Tensor],
    batch_size: int,
    shuffle: bool,
    generator: torch.Generator | None,
    drop_last: bool,
) -> Iterator[tuple[Tensor, ...]]:
    """Return an iterator over one epoch's batches of tensors of one length.

    Arguments and errors are those of `Split.batches`.
    """
    require_ints("batches", batch_size=batch_size)
    samples = len(tensors[0])
    if drop_last and batch_size > samples:
        raise ValueError(
            f"batches: batch_size {batch_size} exceeds the {samples} samples, so "
            "drop_last would leave no batch. Take a smaller batch_size, or "
            "drop_last=False."
        )
    if generator is not None and generator.device.type != "cpu":
        raise ValueError(
            f"batches: the generator is on {generator.device}; wanted one on the CPU, "
            "so that every device sees the same order. Use torch.Generator()."
        )
    stop = samples - samples % batch_size if drop_last else samples
    if shuffle:
        order = torch.randperm(samples, generator=generator, device="cpu")[:stop]
        devices = {tensor.device for tensor in tensors}  # indices on a CPU fit all
        order = order.to(devices.pop() if len(devices) == 1 else "cpu")
        chosen = order.split(batch_size)
    else:
        starts = range(0, stop, batch_size)
        chosen = (slice(start, start + batch_size) for start in starts)
    return (tuple([tensor[index] for tensor in tensors]) for index in chosen)


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """A named data set: two normalized splits, which `pixels` turns into pixels again.

    Inputs are (pixels - mean) / std, with the mean and the population deviation
    (division by n) of each channel of the training pixels: the test split must not
    influence the training.

    Args:
        name: one of `NAMES`, or another.
        train, test: the splits, on one device.
        classes: the name of each label.
        mean, std: float32 of shape (channels, 1, 1), in units of pixels in [0, 1].
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    mean: Tensor
    std: Tensor

    def __repr__(self) -> str:
        return (
            f"Dataset({self.name!r}: {len(self.train)} train, {len(self.test)} test, "
            f"inputs {tuple(self.train.inputs.shape[1:])}, {len(self.classes)} classes)"
        )

    def to(self, device: str | torch.device) -> "Dataset":
        """Return this data set with all its tensors on `device`."""
        names = ("train", "test", "mean", "std")
        moved = {name: getattr(self, name).to(device) for name in names}
        return dataclasses.replace(self, **moved)

    def pixels(self, inputs: Tensor) -> Tensor:
        """Undo the normalization: inputs * std + mean, up to rounding.

        Args:
            inputs: shape (..., channels, height, width), on any device.

        Raises:
            ValueError: the number of channels is not this data set's.

        >>> digits = load("digits", device="cpu")
        >>> (digits.pixels(digits.test.inputs[0]) * 16).round().int()[0, 0, :5]
        tensor([ 0,  0,  2, 13, 16], dtype=torch.int32)
        """
        channels = len(self.mean)
        if inputs.dim() < 3 or inputs.shape[-3] != channels:
            raise ValueError(
                f"pixels: the inputs have shape {tuple(inputs.shape)}; {self.name!r} "
                f"wants (..., {channels}, height, width). Keep the channel dimension."
            )
        return inputs * self.std.to(inputs.device) + self.mean.to(inputs.device)


def load(
    name: str = "digits",
    *,
    device: str | torch.device | None = None,
    root: Root = None,
    download: bool = True,
) -> Dataset:
    """Return a data set with all its tensors on one device.

    Args:
        name: one of `NAMES`.
        device: where the tensors go; None is torch's default device.
        root: folder in torchvision's layout: MNIST/raw, FashionMNIST/raw, or
            cifar-10-batches-py, with the official archives or their content.
            None is the environment variable COURSE_DATA, or else the cache.
        download: download the set if neither root nor cache has it.

    An archive in root is checked by its md5 and unpacked into the cache. A
    damaged file in root is an error; one in the cache is replaced.

    Raises:
        ValueError: an unknown name, or a device that cannot be used here.
        DataError: the files are missing or damaged, or the download fails.

    >>> load("digits", device="cpu")
    Dataset('digits': 1437 train, 360 test, inputs (1, 8, 8), 10 classes)

    Source: digits, doi:10.24432/C50P49; MNIST, LeCun et al. 1998,
    doi:10.1109/5.726791; Fashion-MNIST, arXiv:1708.07747; CIFAR-10, Krizhevsky
    2009, "Learning multiple layers of features from tiny images".
    """
    _check_name("load", name)
    device = _usable_device(device)
    if name == "digits":
        train, test = _read_digits()
        classes, white = tuple("0123456789"), 16
    else:
        home = archives.locate(name, root, download)
        train, classes = _read(name, home, train=True)
        test, _ = _read(name, home, train=False)
        white = 255
    mean, std = (moment.to(device) for moment in _moments(train[0], white))
    splits = (_normalize(batch, white, mean, std) for batch in (train, test))
    return Dataset(name, *splits, classes, mean, std)


def available(name: str, root: Root = None) -> bool:
    """Return whether `load(name, root=root, download=False)` would find its files.

    Compares names and sizes only: without network, checksums or the import of
    torchvision. False if the root is a file.

    Raises:
        ValueError: an unknown name.
    """
    _check_name("available", name)
    if name == "digits":
        return importlib.util.find_spec("sklearn") is not None
    return archives.present(name, root)


# Read the files and normalize.


def _read_digits() -> tuple[Batch, Batch]:
    """Return the digits as scikit-learn's `train_test_split` deals them.

    It was called with test_size=360, stratify=labels and random_state=0; the order of
    the samples, first those for training, is stored beside this file.
    """
    order = np.load(Path(__file__).with_name("digits_order.npy"))
    samples = torch.from_numpy(_digits()[order])
    pixels, labels = samples[:, :64].reshape(-1, 1, 8, 8), samples[:, 64].long()
    train_x, test_x = pixels.split([1437, 360])
    train_y, test_y = labels.split([1437, 360])
    return (train_x, train_y), (test_x, test_y)


def _digits() -> np.ndarray:
    """Return uint8 (1797, 65): 64 pixels and the class, in scikit-learn's order.

    From its file: to import scikit-learn takes nearly as long as to import torch.
    """
    found = importlib.util.find_spec("sklearn")
    for folder in (found and found.submodule_search_locations) or ():
        path = Path(folder, "datasets", "data", "digits.csv.gz")
        if path.is_file():
            try:
                return np.loadtxt(path, dtype="uint8", delimiter=",").reshape(1797, 65)
            except Exception as error:  # a damaged file can fail in any way
                raise DataError(
                    f"load('digits'): cannot read {path} ({archives.brief(error)}). "
                    "Remove scikit-learn and install it again."
                ) from error
    from sklearn.datasets import load_digits

    return np.column_stack(load_digits(return_X_y=True)).astype("uint8")


def _read(name: str, home: Path, *, train: bool) -> tuple[Batch, tuple[str, ...]]:
    """Return uint8 pixels (n, channels, height, width), int64 labels, and classes."""
    try:
        with archives.suppress_torchvision_warnings():
            part = archives.SOURCES[name].reader()(root=home, train=train)
            pixels = torch.as_tensor(part.data)  # (n, h, w) or (n, h, w, channels)
            labels = torch.as_tensor(part.targets, dtype=torch.int64)
        # MNIST's are "0 - zero" and so on; we need the first part.
        classes = tuple(each.partition(" - ")[0] for each in part.classes)
        _check_labels(labels, len(pixels), len(classes))
    except Exception as error:  # a damaged file can fail in any way
        raise DataError(
            f"load({name!r}): cannot read the {'train' if train else 'test'} files in "
            f"{(home / next(iter(archives.SOURCES[name].unpacked))).parent} "
            f"({archives.brief(error)}). Delete them and download them again."
        ) from error
    pixels = pixels.reshape(*pixels.shape[:3], -1)  # (n, h, w, channels)
    return (in_order(pixels.permute(0, 3, 1, 2)), labels), classes


def _moments(pixels: Tensor, white: int) -> tuple[Tensor, Tensor]:
    """Return mean and population deviation of pixels / white, each (channels, 1, 1).

    Counting the 256 values of a byte is exact and needs no float copy.
    """
    counts = [channel.flatten().bincount(minlength=256) for channel in pixels.unbind(1)]
    share = torch.stack(counts).double() / pixels[:, 0].numel()  # (channels, 256)
    values = torch.arange(256, dtype=torch.float64, device="cpu") / white
    mean = share @ values  # (channels,)
    variance = (share * (values - mean[:, None]).square()).sum(1)
    return mean.float()[:, None, None], variance.sqrt().float()[:, None, None]


def _normalize(batch: Batch, white: int, mean: Tensor, std: Tensor) -> Split:
    pixels, labels = batch
    inputs = pixels.to(mean.device).to(torch.float32)  # bytes move faster than floats
    inputs.div_(white).sub_(mean).div_(std)
    return Split(inputs, labels.to(mean.device))


# Check the arguments.


def _check_name(place: str, name: str) -> None:
    if name in NAMES:
        return
    close = difflib.get_close_matches(str(name).lower(), NAMES, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    wanted = f"wanted one of {', '.join(NAMES)}.{hint}"
    raise ValueError(f"{place}: no data set is called {name!r}; {wanted}")


def _usable_device(device: str | torch.device | None) -> torch.device:
    try:
        chosen = torch.get_default_device() if device is None else torch.device(device)
        return torch.empty(0, device=chosen).device
    except (AssertionError, RuntimeError) as error:
        raise ValueError(
            f"load: the device {str(device)!r} cannot be used here "
            f"({str(error).splitlines()[0]}). Try device='cpu'."
        ) from error


def _check_tensor(
    name: str, value: Tensor, dtype: torch.dtype, dims: int, wanted: str
) -> None:
    got = type(value).__name__
    if isinstance(value, Tensor):
        got = f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
        if value.dtype == dtype and value.dim() == dims:
            return
    raise ValueError(
        f"Split: {name} is {got}; wanted {wanted}. Convert it first; of other data "
        "than images and classes give fit a TensorDataset(inputs, labels) or a "
        "DataLoader."
    )


def _check_labels(labels: Tensor, samples: int, classes: int) -> None:
    if len(labels) != samples:
        raise ValueError(f"got {len(labels)} labels; wanted {samples}, one an image")
    low, high = labels.aminmax()
    if low < 0 or high >= classes:
        raise ValueError(f"got labels from {low} to {high}; wanted 0 to {classes - 1}")


def in_order(x: Tensor) -> Tensor:
    """Return the tensor with the default strides of its shape, copied if necessary.

    Images of one channel are both channels-first and channels-last, and torch decides
    by their strides. In channels-last memory its batch norm on a CPU adds up value by
    value in float32: over 1,000 images of MNIST its output was off by 1e-2, and by 1e-6
    in channels-first memory.
    """
    return x.contiguous().flatten().view(x.shape)
