"""Open what a caller gives: JSON text, `.json`, `.keras`, `.h5`, `.npz`; trust nothing.

Nothing in a file is run or unpickled. Sizes are checked before anything is expanded,
HDF5 links that leave the file are refused, and so are members of a zip that it does
not need.
"""

import io
import json
import math
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from course_lib.keras_models.spec import KerasFormatError

LARGEST_JSON = 2**27  # bytes; NASNetLarge has 2**20
LARGEST_WEIGHTS = 2**35  # bytes in all arrays of a file
EXPANSION = 1000  # how many times larger than the file its arrays may be
_FLOOR = 2**20  # bytes that every file may hold, however small it is
_ERRORS = (
    OSError,
    KeyError,
    ValueError,
    RuntimeError,
    TypeError,
    EOFError,
    OverflowError,
    NotImplementedError,
    AttributeError,
    RecursionError,
    MemoryError,
    zipfile.BadZipFile,
)


@contextmanager
def reading(place: str) -> Iterator[None]:
    """Turn any error of a broken file into a KerasFormatError that names it."""
    try:
        yield
    except KerasFormatError:
        raise
    except FileNotFoundError:
        raise KerasFormatError(f"load_keras: there is no file {place}.") from None
    except _ERRORS as error:
        text = str(error).split("\n")[0][:200]
        raise KerasFormatError(
            f"load_keras: {place} can't be read ({type(error).__name__}: {text})."
        ) from error


def parse_json(text: str | bytes, place: str) -> Any:
    """Return what a JSON text holds."""
    if len(text) > LARGEST_JSON:
        raise KerasFormatError(
            f"load_keras: {place} has {len(text):,} bytes of JSON; wanted at most "
            f"{LARGEST_JSON:,}."
        )
    with reading(place):
        return json.loads(text)


class Stored:
    """One array that lies in a file; its shape is known before it is read."""

    def __init__(self, source: Any, place: str) -> None:
        self.source, self.place = source, place
        self.shape = tuple(source.shape)
        if np.dtype(source.dtype).kind not in "fiu":
            raise KerasFormatError(
                f"load_keras: {place} holds {source.dtype}; wanted numbers."
            )

    @property
    def bytes(self) -> int:
        """Return its size once read."""
        return math.prod(self.shape) * np.dtype(self.source.dtype).itemsize

    def read(self) -> np.ndarray:
        """Return the numbers, in the machine's own byte order."""
        with reading(self.place):
            array = np.asarray(self.source[()])
            return array.astype(array.dtype.newbyteorder("="), copy=False)


def check_sizes(arrays: list[Stored], size: int, place: str) -> None:
    """Refuse arrays that are far larger than the file in which they lie."""
    total = sum(array.bytes for array in arrays)
    if total > min(LARGEST_WEIGHTS, max(_FLOOR, EXPANSION * size)):
        raise KerasFormatError(
            f"load_keras: the arrays of {place} would take {total:,} bytes, far more "
            f"than the {size:,} of the file. It may be damaged or hostile."
        )


class Hdf5:
    """An open HDF5 file, of which only what lies in it can be reached."""

    def __init__(self, source: Any, size: int, place: str) -> None:
        self.place, self.size = place, size
        with reading(place):
            self.file = h5py.File(source, "r")

    def close(self) -> None:
        """Close the file."""
        self.file.close()

    def get(self, group: Any, name: str) -> Any:
        """Return a member, by a path of hard links alone; None if there is none."""
        for part in name.split("/"):
            if not isinstance(group, h5py.Group) or part in ("", ".", ".."):
                return None
            link = group.get(part, getlink=True)
            if link is None:
                return None
            if not isinstance(link, h5py.HardLink):
                raise KerasFormatError(
                    f"load_keras: {self.place}: {name!r} is a link "
                    f"({type(link).__name__}), which is not followed."
                )
            group = group[part]
        return group

    def array(self, group: Any, name: str) -> Stored:
        """Return an array that lies in the file itself."""
        data = self.get(group, name)
        if not isinstance(data, h5py.Dataset):
            raise KerasFormatError(
                f"load_keras: {self.place}: {name!r} is no array, though the file "
                "lists it as one."
            )
        if data.external or data.is_virtual:
            raise KerasFormatError(
                f"load_keras: {self.place}: the numbers of {name!r} lie in another "
                "file, which is not opened."
            )
        return Stored(data, f"{self.place}: {data.name}")

    def attribute(self, group: Any, name: str) -> Any:
        """Return an attribute, None if there is none; its sizes must agree.

        The library itself would read beyond the end of a damaged one.
        """
        if name not in group.attrs:
            return None
        found = h5py.h5a.open(group.id, name.encode())
        # A string of open length is a reference of 16 bytes in the file.
        each = 16 if found.dtype.kind == "O" else found.get_type().get_size()
        wanted = math.prod(found.shape or ()) * each
        if 0 in (found.shape or ()):
            return np.zeros(0)
        if found.shape is None or found.get_storage_size() != wanted:
            raise KerasFormatError(
                f"load_keras: {self.place}: the attribute {name!r} is damaged."
            )
        if wanted > LARGEST_JSON:
            raise KerasFormatError(
                f"load_keras: {self.place}: the attribute {name!r} has {wanted:,} "
                "bytes."
            )
        return group.attrs[name]

    def strings(self, group: Any, name: str) -> list[str]:
        """Return a list of strings in an attribute, which Keras may have split."""
        whole = self.attribute(group, name)
        if whole is not None:
            return [text_of(value) for value in np.ravel(whole)]
        values, part = [], 0
        while (piece := self.attribute(group, f"{name}{part}")) is not None:
            values += [text_of(value) for value in np.ravel(piece)]
            part += 1
        return values

    def text(self, name: str) -> str | None:
        """Return a string attribute of the root."""
        value = self.attribute(self.file, name)
        return None if value is None else text_of(value)


def text_of(value: Any) -> str:
    """Return a string that HDF5 may have stored as bytes."""
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


@contextmanager
def open_hdf5(source: Any, size: int, place: str) -> Iterator[Hdf5]:
    """Open an HDF5 file, or bytes that are one."""
    opened = Hdf5(source, size, place)
    try:
        with reading(place):
            yield opened
    finally:
        opened.close()


def read_zip(path: Path, names: Mapping[str, int]) -> dict[str, bytes]:
    """Return the named members of a zip, each with at most so many bytes.

    No member is extracted to the disk, so its path can lead nowhere.
    """
    found = {}
    with reading(str(path)), zipfile.ZipFile(path) as archive:
        for name, limit in names.items():
            if name not in archive.namelist():
                continue
            info = archive.getinfo(name)
            most = min(limit, max(_FLOOR, EXPANSION * path.stat().st_size))
            with archive.open(info) as member:
                data = member.read(most + 1) if info.file_size <= most else None
            if data is None or len(data) > most:
                raise KerasFormatError(
                    f"load_keras: {path}: {name} would take {info.file_size:,} bytes; "
                    f"wanted at most {most:,}."
                )
            found[name] = data
    return found


def read_npz(path: Path) -> list[tuple[str, Stored]]:
    """Return the arrays of an `.npz` file in the file's order, without pickle."""
    arrays = []
    with reading(str(path)), zipfile.ZipFile(path) as archive:
        most = min(LARGEST_WEIGHTS, max(_FLOOR, EXPANSION * path.stat().st_size))
        if sum(info.file_size for info in archive.infolist()) > most:
            raise KerasFormatError(
                f"load_keras: the arrays of {path} are far larger than the file."
            )
        for info in archive.infolist():
            with archive.open(info) as member:
                data = io.BytesIO(member.read(info.file_size + 1))
            array = np.lib.format.read_array(data, allow_pickle=False)
            name = info.filename.removesuffix(".npy")
            arrays.append((name, Stored(array, f"{path}: {name}")))
    return arrays


def as_path(source: Any) -> Path | None:
    """Return the path that `source` is, None where it is JSON itself."""
    if isinstance(source, os.PathLike):
        return Path(source)
    if isinstance(source, str) and not source.lstrip("\ufeff \t\r\n").startswith("{"):
        return Path(source)
    return None
