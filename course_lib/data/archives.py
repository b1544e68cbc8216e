"""The files of the data sets that torchvision reads: find, check, unpack, download.

A set is searched in a root folder and then in this user's cache, unpacked or as the
official archives, and downloaded only if neither has it. A root folder is only read,
unless a download goes there. To add a set, add an entry to `SOURCES`.
"""

import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch

# Files of one edition: path below the root -> bytes, or None for "check its md5".
Files = dict[str, int | None]
Root = str | os.PathLike[str] | None


class DataError(RuntimeError):
    """A data set is missing, damaged, or cannot be fetched or stored."""


@dataclass(frozen=True)
class Source:
    """A set's class in torchvision.datasets, and its files in both editions."""

    kind: str
    unpacked: Files
    archives: Files

    def reader(self) -> type:
        """Return the class of torchvision that reads and downloads the set."""
        return getattr(_datasets(), self.kind)


_IDX_BYTES = {
    "train-images-idx3-ubyte": 16 + 60_000 * 28 * 28,
    "train-labels-idx1-ubyte": 8 + 60_000,
    "t10k-images-idx3-ubyte": 16 + 10_000 * 28 * 28,
    "t10k-labels-idx1-ubyte": 8 + 10_000,
}
_CIFAR_FILES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")


def _idx_source(kind: str) -> Source:
    unpacked: Files = {f"{kind}/raw/{file}": n for file, n in _IDX_BYTES.items()}
    return Source(kind, unpacked, {f"{path}.gz": None for path in unpacked})


SOURCES = {
    "mnist": _idx_source("MNIST"),
    "fashion_mnist": _idx_source("FashionMNIST"),
    "cifar10": Source(
        "CIFAR10",
        {f"cifar-10-batches-py/{file}": None for file in _CIFAR_FILES},
        {"cifar-10-python.tar.gz": None},
    ),
}


def _datasets() -> ModuleType:
    from course_lib.vision import import_torchvision

    return import_torchvision().datasets


@contextmanager
def suppress_torchvision_warnings() -> Iterator[None]:
    """Let torchvision compute on the CPU, without two warnings about its own code."""
    with warnings.catch_warnings(), torch.device("cpu"):
        # NumPy 2.4.0 to 2.4.4 on CIFAR-10's pickles, which Python 2 wrote.
        warnings.filterwarnings("ignore", message=r"dtype\(\): align should be")
        # Python 3.12 and 3.13 on tarfile.extractall without a filter.
        warnings.filterwarnings("ignore", message=r".*filter extracted tar archives")
        yield


# Find and check the files: unpacked, then in archives.


def search_path(root: Root) -> list[Path]:
    """Return the folders to search: the root, or else COURSE_DATA; then the cache."""
    given = root or os.environ.get("COURSE_DATA") or cache()
    return list(dict.fromkeys([Path(os.path.expanduser(given)), cache()]))


def cache() -> Path:
    """Return the folder that the course may write to, whether it exists or not."""
    import platformdirs

    return platformdirs.user_cache_path("course_lib")


def present(name: str, root: Root) -> bool:
    """Return whether there is a copy of the set, by names and sizes alone."""
    copies = _copies(SOURCES[name], search_path(root))
    return any(not _faults(home, files, md5s=None) for home, files in copies)


def locate(name: str, root: Root, download: bool) -> Path:
    """Return the folder from which torchvision can read the set.

    A complete copy is preferred to a damaged one, and an unpacked copy to archives,
    which are checked by their md5 and unpacked into the cache.

    Raises:
        DataError: the files are missing or damaged, or the download fails.
    """
    source, folders = SOURCES[name], search_path(root)
    if folders[0].exists() and not folders[0].is_dir():
        raise DataError(
            f"load: the data root {folders[0]} is a file; wanted a folder. Pass "
            "another root, or set the environment variable COURSE_DATA to a folder."
        )
    damaged: set[Path] = set()
    faults: list[str] = []
    for home, files in _copies(source, folders):
        found = _faults(home, files, _md5s(name))
        if not found:
            return home if files is source.unpacked else _unpack(name, home)
        damaged.add(home)
        faults += found
    # Damage in the user's root is an error; files of our cache are replaced.
    if download and damaged <= {cache()}:
        return _download(name, folders)
    if damaged:
        listed = " ".join(faults)
        problem = f"damaged files: {listed} Delete them and download them again."
    else:
        listed = "; ".join(_absence(home, source.archives) for home in folders)
        problem = f"no complete copy found and no download allowed: {listed}."
    raise _error(name, folders, problem)


def _copies(source: Source, folders: list[Path]) -> Iterator[tuple[Path, Files]]:
    for files in (source.unpacked, source.archives):
        for home in folders:
            if not _missing(home, files):
                yield home, files


def _missing(home: Path, files: Files) -> list[str]:
    return [path for path in files if not (home / path).is_file()]


def _absence(home: Path, files: Files) -> str:
    missing = _missing(home, files)
    if len(missing) == len(files):
        return f"{home} has none of the files"
    return f"{home} does not have {', '.join(missing)}"


def _error(name: str, folders: list[Path], problem: str) -> DataError:
    archives = [Path(path) for path in SOURCES[name].archives]
    return DataError(
        f"load({name!r}): {problem} Put the official "
        f"{', '.join(path.name for path in archives)} into "
        f"{folders[0] / archives[0].parent}, or set COURSE_DATA to a folder that has "
        "them in this layout, or use load('digits'), which needs no download."
    )


def _faults(home: Path, files: Files, md5s: dict[str, str] | None) -> list[str]:
    """Describe each damaged file; without md5s, compare sizes only."""
    faults = []
    for file, size in files.items():
        path = home / file
        if size is not None:
            kind, wanted, got = "byte count", size, path.stat().st_size
        elif md5s is not None:
            got = _datasets().utils.calculate_md5(path)
            kind, wanted = "md5", md5s[path.name]
        else:
            continue
        if got != wanted:
            faults.append(f"{path} has {kind} {got}; wanted {wanted}.")
    return faults


def _md5s(name: str) -> dict[str, str]:
    """Return the official md5 of each file by name, from torchvision's tables."""
    kind = SOURCES[name].reader()
    if hasattr(kind, "resources"):  # MNIST and its relatives
        return dict(kind.resources)
    meta = (kind.meta["filename"], kind.meta["md5"])
    return dict(
        [(kind.filename, kind.tgz_md5), *kind.train_list, *kind.test_list, meta]
    )


# Unpack or download them.


def _unpack(name: str, home: Path) -> Path:
    """Unpack the checked archives of `home` into the cache; return the cache."""
    try:
        with _moved_when_complete(cache()) as scratch:
            for archive in SOURCES[name].archives:
                target = (scratch / archive).parent
                target.mkdir(parents=True, exist_ok=True)
                _datasets().utils.extract_archive(home / archive, target)
    except OSError as error:
        raise DataError(
            f"load({name!r}): cannot unpack {home} into the cache {cache()} "
            f"({error}). Make room there, or unpack the archives in place."
        ) from error
    return cache()


def _download(name: str, folders: list[Path]) -> Path:
    """Download the set into the first folder that can be written; return it."""
    home = next((folder for folder in folders if _writable(folder)), None)
    if home is None:
        nowhere = " nor ".join(map(str, folders))
        raise _error(name, folders, f"cannot write to {nowhere}.")
    kind = SOURCES[name].reader()
    try:
        with _moved_when_complete(home) as scratch:
            kind(root=scratch, train=True, download=True)
    except Exception as error:  # URL, socket, HTTP, gzip, tar, checksum, disk
        tried = ", ".join(kind.mirrors if hasattr(kind, "mirrors") else [kind.url])
        problem = f"the download from {tried} failed ({brief(error)})."
        raise _error(name, folders, problem) from error
    return home


def _writable(folder: Path) -> bool:
    try:  # permission bits are silent about a read-only mount
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


@contextmanager
def _moved_when_complete(home: Path) -> Iterator[Path]:
    """Yield a folder whose files then move to `home`, each in one step."""
    home.mkdir(parents=True, exist_ok=True)
    hidden = tempfile.TemporaryDirectory(prefix=".partial-", dir=home)
    with hidden as folder, suppress_torchvision_warnings():
        scratch = Path(folder)
        yield scratch
        for path in filter(Path.is_file, sorted(scratch.rglob("*"))):
            target = home / path.relative_to(scratch)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)


def brief(error: Exception) -> str:
    """Return the class and message of an error on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
