"""Data sets as tensors; the only module that reads disk or network for them.

    >>> digits = load("digits", device="cpu")
    >>> digits
    Dataset('digits': 1437 train, 360 test, inputs (1, 8, 8), 10 classes)

`load("digits")` needs no files: they come with scikit-learn. The other sets are
looked for in a root folder and then in this user's cache, and fetched only when
neither has them. A root folder is only read, unless a download goes there.
"""

from __future__ import annotations

import difflib
import importlib.util
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

__all__ = ["NAMES", "DataError", "Dataset", "Split", "available", "load"]

Batch = tuple[Tensor, Tensor]
# Files of one edition: path below the root -> bytes, or None for "check its md5".
Files = dict[str, int | None]


class DataError(RuntimeError):
    """A data set is missing, damaged, or cannot be fetched or stored."""


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """Samples with their labels, all on one device.

    Args:
        inputs: float32 of shape (n, channels, height, width), n >= 1.
        labels: int64 class numbers of shape (n,), on the inputs' device.

    Raises:
        ValueError: another shape or dtype, or the two do not fit together.

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
                "wanted one label for each input, and at least one. Cut both alike."
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

    def to(self, device: str | torch.device) -> Split:
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

        The order is drawn at the call, on the CPU, so that one seed gives one
        order on every device. Unshuffled batches are views of the split.

        Args:
            batch_size: samples in a batch, >= 1; above n gives one batch of n.
            shuffle: visit the samples in a fresh random order.
            generator: on the CPU; None takes torch's global one.
            drop_last: leave out a last batch that is smaller than the others.

        Raises:
            ValueError: batch_size is not such an int, or exceeds n while
                drop_last is set; the generator is not on the CPU.

        >>> split = Split(torch.zeros(5, 1, 8, 8), torch.arange(5))
        >>> [y.tolist() for x, y in split.batches(2, shuffle=False)]
        [[0, 1], [2, 3], [4]]
        """
        size = _check_batch_size(batch_size, len(self), drop_last)
        _check_generator(generator)
        stop = len(self) - len(self) % size if drop_last else len(self)
        if not shuffle:
            starts = range(0, stop, size)
            return (self._pick(slice(i, min(i + size, stop))) for i in starts)
        order = torch.randperm(len(self), generator=generator, device="cpu")
        order = order.to(self.labels.device)[:stop]
        return (self._pick(index) for index in order.split(size))

    def _pick(self, index: slice | Tensor) -> Batch:
        return self.inputs[index], self.labels[index]


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """A named data set: two normalized splits and the way back to pixels.

    Inputs are (pixels - mean) / std. Mean and std are those of the training
    pixels, for each channel, with division by n (population deviation): the
    test split must not influence what we train on.

    Args:
        name: one of `NAMES`, or your own.
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

    def to(self, device: str | torch.device) -> Dataset:
        """Return this data set with all its tensors on `device`."""
        train, test = self.train.to(device), self.test.to(device)
        mean, std = self.mean.to(device), self.std.to(device)
        return Dataset(self.name, train, test, self.classes, mean, std)

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
        std, mean = self.std.to(inputs.device), self.mean.to(inputs.device)
        return inputs * std + mean


def load(
    name: str = "digits",
    *,
    device: str | torch.device | None = None,
    root: str | os.PathLike[str] | None = None,
    download: bool = True,
) -> Dataset:
    """Return a data set whose tensors lie whole on one device.

    Args:
        name: one of `NAMES`.
        device: where the tensors go; None is torch's default device.
        root: folder in torchvision's layout: MNIST/raw, FashionMNIST/raw, or
            cifar-10-batches-py, with the official archives or what they hold.
            None is the environment variable COURSE_DATA, or else the cache.
        download: fetch the set where neither root nor cache has it.

    An archive in root is checked by its md5 and unpacked into the cache. A
    sound copy wins over a damaged one. A damaged file in root is an error; one
    in the cache is replaced.

    Raises:
        ValueError: an unknown name, or a device that cannot be used here.
        DataError: the files are missing or damaged, or cannot be fetched.

    >>> load("digits", device="cpu").train.inputs.shape
    torch.Size([1437, 1, 8, 8])

    Source: digits, doi:10.24432/C50P49; MNIST, LeCun et al. 1998,
    doi:10.1109/5.726791; Fashion-MNIST, arXiv:1708.07747; CIFAR-10, Krizhevsky
    2009, "Learning multiple layers of features from tiny images".
    """
    _check_name("load", name)
    device = _usable_device(device)
    if name == "digits":
        train, test = _read_digits()
        return _assemble(name, train, test, 16, _TEN, device)
    source = _SOURCES[name]
    home = _locate(name, root, download)
    train = _read(name, home, train=True)
    test = _read(name, home, train=False)
    return _assemble(name, train, test, 255, source.classes, device)


def available(name: str, root: str | os.PathLike[str] | None = None) -> bool:
    """Tell whether `load(name, root=root, download=False)` would find its files.

    Looks at names and sizes only: quick, without network, checksums or the
    import of torchvision. False where the root is a file.

    Raises:
        ValueError: an unknown name.

    >>> available("digits")
    True
    """
    _check_name("available", name)
    if name == "digits":
        return importlib.util.find_spec("sklearn") is not None
    source = _SOURCES[name]
    try:
        homes = _homes(root)
    except DataError:
        return False
    return any(
        all(_present(home / path, size) for path, size in files.items())
        for home in homes
        for files in (source.unpacked, source.archives)
    )


# The sets that torchvision reads, and their files.


@dataclass(frozen=True)
class _Source:
    kind: str  # its class in torchvision.datasets
    unpacked: Files
    archives: Files
    classes: tuple[str, ...]


_TEN = tuple("0123456789")
_CLOTHES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_THINGS = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
_IDX_BYTES = {
    "train-images-idx3-ubyte": 16 + 60_000 * 28 * 28,
    "train-labels-idx1-ubyte": 8 + 60_000,
    "t10k-images-idx3-ubyte": 16 + 10_000 * 28 * 28,
    "t10k-labels-idx1-ubyte": 8 + 10_000,
}
_CIFAR_FILES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")


def _idx_source(kind: str, classes: tuple[str, ...]) -> _Source:
    unpacked: Files = {f"{kind}/raw/{file}": n for file, n in _IDX_BYTES.items()}
    return _Source(kind, unpacked, {f"{path}.gz": None for path in unpacked}, classes)


_SOURCES = {
    "mnist": _idx_source("MNIST", _TEN),
    "fashion_mnist": _idx_source("FashionMNIST", _CLOTHES),
    "cifar10": _Source(
        "CIFAR10",
        {f"cifar-10-batches-py/{file}": None for file in _CIFAR_FILES},
        {"cifar-10-python.tar.gz": None},
        _THINGS,
    ),
}

NAMES: tuple[str, ...] = ("digits", *_SOURCES)


def _datasets() -> ModuleType:
    from course_lib.vision import import_torchvision

    return import_torchvision().datasets


def _md5_table(source: _Source) -> dict[str, str]:
    """Return the official md5 of each file by name, from torchvision's tables."""
    kind = getattr(_datasets(), source.kind)
    if source.kind != "CIFAR10":
        return dict(kind.resources)
    meta = (kind.meta["filename"], kind.meta["md5"])
    archive = (kind.filename, kind.tgz_md5)
    return dict([archive, *kind.train_list, *kind.test_list, meta])


# Find the files: unpacked, then in archives, then on the network.


def _locate(name: str, root: str | os.PathLike[str] | None, download: bool) -> Path:
    """Return the folder from which torchvision can read the set."""
    source, homes = _SOURCES[name], _homes(root)
    faults: dict[Path, list[str]] = {home: [] for home in homes}
    for files in (source.unpacked, source.archives):
        for home in homes:
            if _missing(home, files):
                continue
            found = _faults(home, files, _md5_table(source))
            if not found:
                return home if files is source.unpacked else _unpack(name, home)
            faults[home] += found
    # What a user put into the root is the user's to mend; the cache is ours.
    if download and not any(faults[home] for home in homes if home != _cache()):
        return _download(name, homes)
    damaged = [fault for found in faults.values() for fault in found]
    raise DataError(_not_found(name, homes, damaged))


def _homes(root: str | os.PathLike[str] | None) -> list[Path]:
    """Return the folders to look in: the root, then the cache."""
    given = root or os.environ.get("COURSE_DATA") or _cache()
    home = Path(given).expanduser()
    if home.exists() and not home.is_dir():
        raise DataError(
            f"load: the data root {home} is a file; wanted a folder. Pass another "
            "root, or set the environment variable COURSE_DATA to a folder."
        )
    return list(dict.fromkeys([home, _cache()]))


def _cache() -> Path:
    import platformdirs

    return platformdirs.user_cache_path("course_lib")


def _missing(home: Path, files: Files) -> list[str]:
    return [path for path in files if not (home / path).is_file()]


def _present(path: Path, size: int | None) -> bool:
    return path.is_file() and size in (None, path.stat().st_size)


def _faults(home: Path, files: Files, md5s: dict[str, str]) -> list[str]:
    """Say what is wrong with each damaged one of the files."""
    found = (_fault(home / file, size, md5s) for file, size in files.items())
    return [fault for fault in found if fault]


def _fault(path: Path, size: int | None, md5s: dict[str, str]) -> str | None:
    if size is None:
        what, wanted = "md5", md5s[path.name]
        got = _datasets().utils.calculate_md5(path)
    else:
        what, wanted, got = "byte count", size, path.stat().st_size
    return None if got == wanted else f"{path} has {what} {got}; wanted {wanted}."


def _not_found(name: str, homes: list[Path], faults: list[str]) -> str:
    if faults:
        return (
            f"load({name!r}): damaged files: {' '.join(faults)} Delete them and "
            f"fetch them again. {_remedy(name, homes)}"
        )
    lacks = "; ".join(_lacks(home, _SOURCES[name].archives) for home in homes)
    return (
        f"load({name!r}): no complete copy found and no download allowed: {lacks}. "
        f"{_remedy(name, homes)}"
    )


def _lacks(home: Path, files: Files) -> str:
    missing = _missing(home, files)
    if len(missing) == len(files):
        return f"{home} has none of the files"
    return f"{home} lacks {', '.join(missing)}"


def _remedy(name: str, homes: list[Path]) -> str:
    archives = [Path(path) for path in _SOURCES[name].archives]
    return (
        f"Put the official {', '.join(path.name for path in archives)} into "
        f"{homes[0] / archives[0].parent}, or set COURSE_DATA to a folder that has "
        "them in this layout, or use load('digits'), which needs no download."
    )


def _brief(error: Exception) -> str:
    """Return the kind and text of an error on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _unpack(name: str, home: Path) -> Path:
    """Unpack the checked archives of `home` into the cache; return the cache."""
    try:
        with _scratch(_cache()) as scratch, _torchvision_habits():
            for archive in _SOURCES[name].archives:
                target = (scratch / archive).parent
                target.mkdir(parents=True, exist_ok=True)
                _datasets().utils.extract_archive(home / archive, target)
            _move(scratch, _cache())
    except OSError as error:
        raise DataError(
            f"load({name!r}): cannot unpack {home} into the cache {_cache()} "
            f"({error}). Make room there, or unpack the archives in place."
        ) from error
    return _cache()


def _download(name: str, homes: list[Path]) -> Path:
    """Fetch the set into the first folder that can be written; return it."""
    home = next((home for home in homes if _writable(home)), None)
    if home is None:
        folders = " nor ".join(str(home) for home in homes)
        raise DataError(
            f"load({name!r}): cannot write to {folders}. {_remedy(name, homes)}"
        )
    kind = getattr(_datasets(), _SOURCES[name].kind)
    try:
        with _scratch(home) as scratch, _torchvision_habits():
            kind(root=scratch, train=True, download=True)
            _move(scratch, home)
    except Exception as error:  # URL, socket, HTTP, gzip, tar, checksum, disk
        tried = ", ".join(getattr(kind, "mirrors", None) or [kind.url])
        raise DataError(
            f"load({name!r}): the download from {tried} failed "
            f"({_brief(error)}). {_remedy(name, homes)}"
        ) from error
    return home


def _writable(folder: Path) -> bool:
    # Permission bits say nothing of a read-only mount: try it.
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """Yield a new folder inside `folder`, removed at the end whatever happens."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder) as scratch:
        yield Path(scratch)


def _move(scratch: Path, home: Path) -> None:
    # Each file appears whole or not at all, whoever else does the same.
    for path in sorted(scratch.rglob("*")):
        if path.is_file():
            target = home / path.relative_to(scratch)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)


# Read them.


def _read_digits() -> tuple[Batch, Batch]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(
        images.reshape(-1, 1, 8, 8).astype("uint8"),
        labels.astype("int64"),
        test_size=360,
        stratify=labels,
        random_state=0,
    )
    train_x, test_x, train_y, test_y = (torch.from_numpy(part) for part in parts)
    return (train_x, train_y), (test_x, test_y)


def _read(name: str, home: Path, *, train: bool) -> Batch:
    """Return uint8 pixels (n, channels, height, width) and int64 labels (n,)."""
    source = _SOURCES[name]
    try:
        with _torchvision_habits():
            kind = getattr(_datasets(), source.kind)
            part = kind(root=home, train=train, download=False)
            pixels = torch.as_tensor(part.data)  # (n, h, w) or (n, h, w, channels)
            labels = torch.as_tensor(part.targets, dtype=torch.int64)
        _check_labels(labels, len(pixels), len(source.classes))
    except Exception as error:  # a damaged file can fail in any way
        raise DataError(
            f"load({name!r}): cannot read the {'train' if train else 'test'} files in "
            f"{(home / next(iter(source.unpacked))).parent} "
            f"({_brief(error)}). Delete them and fetch them again."
        ) from error
    if pixels.dim() == 3:
        pixels = pixels.unsqueeze(-1)
    return pixels.permute(0, 3, 1, 2).contiguous(), labels


@contextmanager
def _torchvision_habits() -> Iterator[None]:
    """Let torchvision work on the CPU, without two warnings about its own ways."""
    with warnings.catch_warnings(), torch.device("cpu"):
        # NumPy 2.4.0 to 2.4.4 on CIFAR-10's pickles, which Python 2 wrote.
        warnings.filterwarnings("ignore", message=r"dtype\(\): align should be")
        # Python 3.12 and 3.13 on tarfile.extractall without a filter.
        warnings.filterwarnings("ignore", message=r".*filter extracted tar archives")
        yield


def _assemble(
    name: str,
    train: Batch,
    test: Batch,
    white: int,
    classes: tuple[str, ...],
    device: torch.device,
) -> Dataset:
    """Normalize both splits by the training pixels; `white` is the largest value."""
    mean, std = (moment.to(device) for moment in _moments(train[0], white))

    def split(pixels: Tensor, labels: Tensor) -> Split:
        inputs = pixels.to(device).to(torch.float32)  # move bytes, then widen
        inputs.div_(white).sub_(mean).div_(std)
        return Split(inputs, labels.to(device))

    return Dataset(name, split(*train), split(*test), classes, mean, std)


def _moments(pixels: Tensor, white: int) -> tuple[Tensor, Tensor]:
    """Return mean and population deviation of pixels / white, each (channels, 1, 1).

    Bytes take 256 values, so counting them is exact and needs no float copy.
    """
    counts = [channel.flatten().bincount(minlength=256) for channel in pixels.unbind(1)]
    share = torch.stack(counts).double() / pixels[:, 0].numel()  # (channels, 256)
    values = torch.arange(256, dtype=torch.float64, device="cpu") / white
    mean = share @ values  # (channels,)
    variance = (share * (values - mean[:, None]).square()).sum(1)
    return mean.float()[:, None, None], variance.sqrt().float()[:, None, None]


# Check the arguments.


def _check_name(place: str, name: str) -> None:
    if name in NAMES:
        return
    close = difflib.get_close_matches(str(name).lower(), NAMES, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(
        f"{place}: no data set is called {name!r}; "
        f"wanted one of {', '.join(NAMES)}.{hint}"
    )


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
    if not isinstance(value, Tensor):
        got = type(value).__name__
    elif value.dtype == dtype and value.dim() == dims:
        return
    else:
        got = f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
    raise ValueError(f"Split: {name} is {got}; wanted {wanted}. Convert it first.")


def _check_batch_size(size: int, samples: int, drop_last: bool) -> int:
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ValueError(
            f"batches: batch_size is {size!r}; wanted an int >= 1, such as 32."
        )
    if drop_last and size > samples:
        raise ValueError(
            f"batches: batch_size {size} exceeds the {samples} samples, so drop_last "
            "would leave no batch. Take a smaller batch_size, or drop_last=False."
        )
    return size


def _check_generator(generator: torch.Generator | None) -> None:
    if generator is not None and generator.device.type != "cpu":
        raise ValueError(
            f"batches: the generator is on {generator.device}; wanted one on the CPU, "
            "so that every device sees the same order. Use torch.Generator()."
        )


def _check_labels(labels: Tensor, samples: int, classes: int) -> None:
    if len(labels) != samples:
        raise ValueError(f"got {len(labels)} labels; wanted {samples}, one an image")
    if labels.min() < 0 or labels.max() >= classes:
        got = f"{labels.min()} to {labels.max()}"
        raise ValueError(f"got labels from {got}; wanted 0 to {classes - 1}")
