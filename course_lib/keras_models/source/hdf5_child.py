"""Read an HDF5 file in a separate process and write down what it holds.

libhdf5 trusts a file's own numbers: a damaged one can crash it or keep it busy for
ever. `hdf5` runs this script, which needs h5py and numpy alone, and reads its answer.

    python -I -S hdf5_child.py BYTES FOLDER... <file >answer

The answer is the numbers that do not lie in the file as they are (at most BYTES of
them), JSON, and the length of that JSON in 8 bytes. The JSON lists all objects, the
root first: groups with members by their place in the list, and arrays with their place
in the file or in the answer. FOLDERs are where h5py and numpy are installed.
"""

import json
import math
import sys
from typing import Any, BinaryIO

if __name__ == "__main__":
    sys.path.extend(sys.argv[2:])

import h5py
import numpy as np

SECONDS = 3  # of computing, and one more for each 8 MiB
MEMORY = 2**32  # bytes of addresses
_PIECE = 2**26  # bytes that are copied at once
_MOST = 2**27  # bytes in one attribute
_FILTERS = {1: "deflate", 2: "shuffle", 3: "fletcher32", 32000: "lzf"}
_PLAIN = "fiu"  # kinds of numbers


class Refusal(Exception):
    """What is wrong with the file, in words."""


def main() -> int:
    """Read standard input; return 0, or 1 with the reason on standard error."""
    # h5py reads through a Python file: no lock, and no path that may lead elsewhere.
    source = open(0, "rb", closefd=False)  # noqa: SIM115
    size = source.seek(0, 2)
    limit(SECONDS + size // 2**23)
    answer = open(1, "wb", closefd=False)  # noqa: SIM115
    try:
        with h5py.File(source, "r") as file:
            objects = Walk(file, int(sys.argv[1]), answer).objects
    except Exception as error:  # whatever it is, the parent has to know
        kind = "" if isinstance(error, Refusal) else f"{type(error).__name__}: "
        sys.stderr.write(f"{kind}{' '.join(str(error).split())[:300]}")
        return 1
    text = json.dumps(objects).encode()
    answer.write(text + len(text).to_bytes(8, "little"))
    answer.flush()
    return 0


def limit(seconds: int) -> None:
    """Bound this process where the system can; elsewhere the parent's clock does."""
    try:
        import resource
    except ImportError:  # Windows
        return
    used = math.ceil(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]))
    bounds = {"CPU": used + seconds, "AS": MEMORY, "CORE": 0}
    for name, most in bounds.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(kind)[1]
        try:
            soft = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.setrlimit(kind, (soft, hard))
        except (OSError, ValueError):  # macOS bounds no addresses
            continue


class Walk:
    """Describes every object that hard links lead to from the root, each once."""

    def __init__(self, file: h5py.File, most: int, answer: BinaryIO) -> None:
        self.most, self.answer = most, answer
        self.copied = 0
        self.found: list[Any] = [file]
        self.places = {file.id: 0}
        self.objects: list[dict[str, Any]] = []
        while len(self.objects) < len(self.found):
            self.objects.append(self.describe(self.found[len(self.objects)]))

    def describe(self, item: Any) -> dict[str, Any]:
        """Return a group's members or an array's place, and the attributes."""
        attributes = {name: attribute(item, name) for name in item.attrs}
        about: dict[str, Any] = {"attributes": attributes}
        if isinstance(item, h5py.Group):
            about["members"] = {name: self.member(item, name) for name in item}
        elif isinstance(item, h5py.Dataset):
            about |= {"shape": item.shape, "dtype": item.dtype.str}
            about |= self.numbers(item)
        return about

    def member(self, group: h5py.Group, name: str) -> int | str:
        """Return the place of a member in the list, or the name of its link's kind."""
        link = group.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            return type(link).__name__
        item = group[name]
        if item.id not in self.places:
            self.places[item.id] = len(self.found)
            self.found.append(item)
        return self.places[item.id]

    def numbers(self, data: h5py.Dataset) -> dict[str, Any]:
        """Tell where an array's numbers lie, copied into the answer if need be."""
        if data.external or data.is_virtual:
            return {"elsewhere": True}
        if data.dtype.kind not in _PLAIN or data.shape is None:
            return {}
        at = data.id.get_offset() if data.chunks is None else None
        # Numbers of odd widths are not numpy's; only the library can turn them.
        same = data.id.get_type().equal(h5py.h5t.py_create(data.dtype))
        if at is not None and same:
            return {"at": at}
        at, self.copied = self.copied, self.copied + data.nbytes
        if self.copied > self.most:
            raise Refusal(
                f"its arrays would take {self.copied:,} bytes, far more than the "
                "file has"
            )
        self.copy(data)
        return {"at": at, "copied": True}

    def copy(self, data: h5py.Dataset) -> None:
        """Append an array's numbers to the answer, some rows at a time."""
        settings = data.id.get_create_plist()
        for i in range(settings.get_nfilters()):
            code = settings.get_filter(i)[0]
            if code not in _FILTERS:
                known = ", ".join(_FILTERS.values())
                raise Refusal(
                    f"{data.name!r} is packed by filter {code}; wanted one of {known}"
                )
        chunks = data.chunks or (1,)
        if math.prod(chunks) * data.dtype.itemsize > MEMORY // 4:
            raise Refusal(f"{data.name!r} has chunks of {chunks} numbers")
        if data.size and not data.shape:
            self.answer.write(data[()].tobytes())
        elif data.size:
            rows = max(chunks[0], _PIECE // (data.nbytes // len(data)))
            for start in range(0, len(data), rows):
                self.answer.write(data[start : start + rows].tobytes())


def attribute(item: Any, name: str) -> Any:
    """Return text, numbers, or a list of them, None if empty; its sizes must agree.

    The library itself would read beyond the end of a damaged one.
    """
    found = h5py.h5a.open(item.id, name.encode())
    if found.shape is None:
        return None
    # A string of open length is a reference of 16 bytes in the file.
    each = 16 if found.dtype.kind == "O" else found.get_type().get_size()
    wanted = math.prod(found.shape) * each
    if wanted == 0:
        return []
    if found.get_storage_size() != wanted or wanted > _MOST:
        raise Refusal(f"the attribute {name!r} of {item.name!r} is damaged")
    return plain(item.attrs[name])


def plain(value: Any) -> Any:
    """Return a value as JSON has it; None for what no Keras writes."""
    if isinstance(value, np.ndarray):
        return [plain(part) for part in value.ravel()]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if isinstance(value, str | int | float) else None


if __name__ == "__main__":
    sys.exit(main())
