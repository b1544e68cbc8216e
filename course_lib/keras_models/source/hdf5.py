"""HDF5 files, which are not trusted: a separate process reads them.

`hdf5_child` walks the file under limits of time and memory and says where each array
lies. Here those bytes are read, of the file that is open already, and nothing else:
no damage that could crash or stop libhdf5 reaches this process.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from course_lib.keras_models.source.files import (
    Stored,
    check_sizes,
    most_bytes,
    parse_json,
    reading,
)
from course_lib.keras_models.spec import KerasFormatError, refusal

PATIENCE = 60  # seconds of the clock, and one more for each 4 MiB
_CHILD = Path(__file__).with_name("hdf5_child.py")
# What a Python needs to start; above all, nothing that makes libhdf5 load plugins.
_PASSED = ("PATH", "SYSTEMROOT", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
_SET = {"HDF5_PLUGIN_PRELOAD": "::", "OPENBLAS_NUM_THREADS": "1"}

Group = dict[str, Any]


class Hdf5:
    """What lies in an HDF5 file; arrays are read when they are asked for."""

    def __init__(self, stream: BinaryIO, copies: BinaryIO, place: str) -> None:
        self.stream, self.copies, self.place = stream, copies, place
        self.size = stream.seek(0, os.SEEK_END)
        self.objects = _described(stream, copies, self.size, place)
        self.root: Group = self.objects[0]

    def get(self, group: Group | None, name: str) -> Group | None:
        """Return a member, by a path of hard links alone; None if there is none."""
        for part in name.split("/"):
            found = (group or {}).get("members", {}).get(part)
            if isinstance(found, str):
                raise refusal(
                    f"{self.place}: {name!r} is a link ({found}), which is not "
                    "followed."
                )
            group = None if found is None else self.objects[found]
        return group

    def add_group(self, group: Group, name: str) -> Group:
        """Add an empty group, here and not in the file; return it."""
        members = group.setdefault("members", {})
        members[name] = len(self.objects)
        self.objects.append({"attributes": {}, "members": {}})
        return self.objects[-1]

    def array(self, group: Group, name: str) -> Stored:
        """Return an array that lies in the file itself."""
        data = self.get(group, name)
        place = f"{self.place}: {name!r}"
        if data is None or "dtype" not in data:
            raise refusal(f"{place} is no array, though the file lists it as one.")
        if "elsewhere" in data:
            raise refusal(
                f"the numbers of {place} lie in another file, which is not opened."
            )
        stream = self.copies if "copied" in data else self.stream
        shape, dtype = tuple(data["shape"] or ()), np.dtype(data["dtype"])
        return Stored(
            shape, dtype, place, lambda: _numbers(stream, data["at"], shape, dtype)
        )

    def check_sizes(self, arrays: Iterable[tuple[str, Stored]]) -> None:
        """Refuse arrays that are far larger than the file."""
        check_sizes(arrays, self.size, self.place)

    def strings(self, group: Group, name: str) -> list[str]:
        """Return a list of strings in an attribute, which Keras may have split."""
        found = group["attributes"]
        if name in found:
            return _strings(found[name])
        values, part = [], 0
        while f"{name}{part}" in found:
            values += _strings(found[f"{name}{part}"])
            part += 1
        return values

    def text(self, group: Group, name: str) -> str | None:
        """Return an attribute that is one string, None if there is none."""
        return next(iter(_strings(group["attributes"].get(name))), None)

    def count(self, group: Group, name: str) -> int:
        """Return an attribute that says how many members there are."""
        found = group["attributes"].get(name)
        if isinstance(found, int) and 0 <= found <= 100_000:
            return found
        raise refusal(f"{self.place} has {name}={found!r:.60}; wanted a count.")


def _strings(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [part for part in values if isinstance(part, str)]


@contextmanager
def open_hdf5(source: Path | BinaryIO, place: str) -> Iterator[Hdf5]:
    """Open an HDF5 file by its path, or one that is open already."""
    with reading(place), ExitStack() as stack:
        if isinstance(source, Path):
            # Unbuffered: the child moves the position that both share.
            source = stack.enter_context(open(source, "rb", buffering=0))
        copies = stack.enter_context(tempfile.TemporaryFile(buffering=0))
        yield Hdf5(source, copies, place)


def _numbers(
    stream: BinaryIO, at: int, shape: tuple[int, ...], dtype: np.dtype
) -> np.ndarray:
    """Read the bytes of one array."""
    array = np.empty(shape, dtype)
    left = memoryview(array.reshape(-1).view(np.uint8))
    stream.seek(at)
    while left:
        count = stream.readinto(left)
        if not count:
            raise EOFError("the file ends within an array")
        left = left[count:]
    return array


def _described(
    stream: BinaryIO, copies: BinaryIO, size: int, place: str
) -> list[dict[str, Any]]:
    """Let the child read the file; return its objects."""
    if not sys.executable or getattr(sys, "frozen", False):
        raise refusal(
            f"{place} can't be read here, without a Python to run in a separate "
            "process. Save the weights as .npz with numpy.savez."
        )
    needed = ("h5py", "numpy")
    folders = {str(Path(find_spec(name).origin).parents[1]) for name in needed}
    command = [sys.executable, "-I", "-S", str(_CHILD), str(most_bytes(size))]
    passed = {name: os.environ[name] for name in _PASSED if name in os.environ}
    try:
        done = subprocess.run(
            [*command, *folders],
            stdin=stream,
            stdout=copies,
            stderr=subprocess.PIPE,
            env=passed | _SET,
            timeout=PATIENCE + size // 2**22,
        )
    except subprocess.TimeoutExpired:
        raise _damaged(place, "reading it does not end") from None
    if done.returncode == 0:
        return _answer(copies, place)
    if done.returncode == 1:
        reason = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        raise _damaged(place, "".join(reason)[:500])
    if done.returncode == -getattr(signal, "SIGXCPU", 0):
        raise _damaged(place, "reading it does not end")
    raise _damaged(place, f"the HDF5 library crashes on it ({done.returncode})")


def _damaged(place: str, text: str) -> KerasFormatError:
    return refusal(f"{place} can't be read: {text}.")


def _answer(copies: BinaryIO, place: str) -> list[dict[str, Any]]:
    """Return the JSON at the end of the child's answer."""
    end = copies.seek(-8, os.SEEK_END)
    length = int.from_bytes(copies.read(8), "little")
    copies.seek(end - length)
    return parse_json(copies.read(length), f"the list of {place}")
