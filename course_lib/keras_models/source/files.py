"""Open what a caller gives: JSON text, `.json`, zips; trust nothing.

Nothing in a file is run or unpickled. Sizes are checked before anything is expanded,
and no member of a zip is written to a path.
"""

import json
import math
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from course_lib.keras_models.source.foreign import HEAD, refuse_foreign, refuse_missing
from course_lib.keras_models.spec import KerasFormatError, refusal

LARGEST_JSON = 2**27  # bytes; NASNetLarge has 2**20
LARGEST_WEIGHTS = 2**35  # bytes in all arrays of a file
EXPANSION = 1000  # how many times larger than the file its arrays may be
_FLOOR = 2**20  # bytes that every file may hold, however small it is


@contextmanager
def reading(place: str) -> Iterator[None]:
    """Turn any error of a broken file into a KerasFormatError that names it."""
    try:
        yield
    except (KerasFormatError, Warning):  # a warning that the caller made an error
        raise
    except FileNotFoundError:
        raise refusal(f"there is no file {place}.") from None
    except Exception as error:  # a file is not to be trusted in any way
        text = str(error).split("\n")[0][:200]
        raise refusal(
            f"{place} can't be read ({type(error).__name__}: {text})."
        ) from error


def parse_json(text: str | bytes, place: str) -> Any:
    """Return what a JSON text holds."""
    if len(text) > LARGEST_JSON:
        raise refusal(
            f"{place} has {len(text):,} bytes of JSON; wanted at most {LARGEST_JSON:,}."
        )
    with reading(place):
        if not isinstance(text, str):
            text = text.decode(json.detect_encoding(text), "surrogatepass")
        return json.loads(text.lstrip("\ufeff"))


@dataclass(frozen=True)
class Stored:
    """One array whose shape is known before it is read."""

    shape: tuple[int, ...]
    dtype: np.dtype
    place: str  # for messages
    load: Callable[[], np.ndarray]

    def __post_init__(self) -> None:
        if self.dtype.kind not in "fiu" or self.dtype.itemsize > 8:
            raise refusal(
                f"{self.place} holds {self.dtype}; wanted numbers of at most 8 bytes."
            )

    @property
    def bytes(self) -> int:
        """Return its size once read."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> np.ndarray:
        """Return the numbers, in the machine's own byte order."""
        with reading(self.place):
            return self.load().astype(self.dtype.newbyteorder("="), copy=False)


Arrays = list[tuple[str, Stored]]


@dataclass(frozen=True)
class NamedArrays:
    """Arrays with names, of a file that has no groups."""

    arrays: Arrays
    place: str  # for messages
    ordered: bool = False  # as Keras's `get_weights()` orders them


def most_bytes(size: int) -> int:
    """Return how many bytes a file of this size may expand to."""
    return min(LARGEST_WEIGHTS, max(_FLOOR, EXPANSION * size))


def check_sizes(arrays: Iterable[tuple[str, Stored]], size: int, place: str) -> None:
    """Refuse arrays that are far larger than the file in which they lie."""
    total = sum(array.bytes for _, array in arrays)
    if total > most_bytes(size):
        raise refusal(
            f"the arrays of {place} would take {total:,} bytes, far more than the "
            f"{size:,} of the file. It may be damaged or hostile."
        )


class Zip:
    """A zip file, of which single members are read and none is written to its path."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = path.stat().st_size
        self.archive = zipfile.ZipFile(path)
        self.names = self.archive.namelist()

    @contextmanager
    def member(self, name: str, limit: int) -> Iterator[tuple[BinaryIO, int]]:
        """Open a member of at most `limit` bytes; yield it and its size."""
        info = self.archive.getinfo(name)
        most = min(limit, most_bytes(self.size))
        reason = None
        if self.names.count(name) > 1:
            reason = "is there twice"
        elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            reason = (
                f"is packed by method {info.compress_type}; wanted stored or deflated"
            )
        elif info.file_size > most:
            reason = f"would take {info.file_size:,} bytes; wanted at most {most:,}"
        if reason:
            raise refusal(f"{self.path}: {name} {reason}.")
        with self.archive.open(info) as stream:
            yield stream, info.file_size

    def json(self, name: str) -> Any:
        """Return what a member of JSON holds."""
        with self.member(name, LARGEST_JSON) as (stream, size):
            return parse_json(stream.read(size), f"{self.path}: {name}")

    @contextmanager
    def unpacked(self, name: str) -> Iterator[BinaryIO]:
        """Yield a nameless file of the disk with a member's bytes."""
        with tempfile.TemporaryFile(buffering=0) as copy:
            with self.member(name, LARGEST_WEIGHTS) as (stream, _):
                shutil.copyfileobj(stream, copy, 2**20)
            yield copy

    def array(self, name: str) -> Stored:
        """Return a member of `.npy`, of which the head is read, without pickle."""
        place = f"{self.path}: {name.removesuffix('.npy')}"
        with self.member(name, LARGEST_WEIGHTS) as (stream, size):
            version = np.lib.format.read_magic(stream)
            head = _HEADS.get(version)
            if head is None:
                raise refusal(f"{place} is of npy's version {version}; wanted 1 or 2.")
            shape, _, dtype = head(stream)
        if dtype.hasobject or min(shape, default=0) < 0:
            raise refusal(
                f"{place} holds {dtype}{shape}; wanted numbers, for Python objects are "
                "never unpickled."
            )
        if math.prod(shape) * dtype.itemsize > size:
            raise refusal(f"{place} has the shape {shape}, but only {size:,} bytes.")
        return Stored(shape, dtype, place, lambda: self._npy(name))

    def _npy(self, name: str) -> np.ndarray:
        with self.member(name, LARGEST_WEIGHTS) as (stream, _):
            return np.lib.format.read_array(stream, allow_pickle=False)


_HEADS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


@contextmanager
def open_zip(path: Path) -> Iterator[Zip]:
    """Open a `.keras` or `.npz` file."""
    with reading(str(path)):
        opened = Zip(path)
        with opened.archive:
            yield opened


def npz_arrays(archive: Zip) -> Arrays:
    """Return the arrays of an `.npz` file in the file's order."""
    arrays = [(n.removesuffix(".npy"), archive.array(n)) for n in archive.names]
    check_sizes(arrays, archive.size, str(archive.path))
    return arrays


def as_path(source: Any) -> Path | None:
    """Return the path that `source` is, None where it is JSON itself."""
    is_path = isinstance(source, os.PathLike)
    is_path = is_path or (isinstance(source, str) and not _JSON_START.match(source))
    return Path(source) if is_path else None


# An object, a list of objects, or either as text in JSON.
_JSON_START = re.compile(r'\ufeff?\s*["\\]*\s*(\{|\[\s*[\]{\[])')


def kind_of(path: Path) -> str:
    """Return "folder", "zip", "hdf5" or "json", by a file's first bytes.

    Raises:
        KerasFormatError: a file that no Keras reads; what it is instead.
    """
    with reading(str(path)):
        if path.is_dir():
            return "folder"
        if not path.exists():
            refuse_missing(path)
        with open(path, "rb") as stream:
            start = stream.read(HEAD)
    if start.startswith(b"PK"):
        return "zip"
    if start.startswith(b"\x89HDF"):
        return "hdf5"
    refuse_foreign(path, start)
    return "json"
