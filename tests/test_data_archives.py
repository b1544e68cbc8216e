"""The files of the sets, on a machine that is kept offline."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import os
import pickle
import shutil
import socket
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest

from course_lib.data import archives
from course_lib.data.archives import DataError, locate, present
from course_lib.vision import import_torchvision

IDX = ["train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"]
THINGS = [
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
]


pytestmark = pytest.mark.usefixtures("cache")


def listing(folder: Path) -> dict[str, bytes]:
    """All files below a folder, like the dictionaries that `put` takes."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


# A small MNIST and a small CIFAR-10, in the official formats.

ZEROS, WHITE = np.zeros((2, 28, 28), np.uint8), np.full((2, 28, 28), 255, np.uint8)
TINY = {  # mean 1/2 and deviation 1/2 in train; test is all white
    "train-images-idx3": np.concatenate([ZEROS, WHITE]),
    "train-labels-idx1": np.array([3, 1, 4, 9], np.uint8),
    "t10k-images-idx3": WHITE,
    "t10k-labels-idx1": np.array([0, 9], np.uint8),
}


def idx(array: np.ndarray) -> bytes:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.tobytes()


def small_mnist(patch: pytest.MonkeyPatch, parts=TINY) -> dict[str, bytes]:
    """Teach torchvision and archives.py the small files; return them by path."""
    files = {f"MNIST/raw/{name}-ubyte": idx(parts[name]) for name in IDX}
    sizes = {path: len(content) for path, content in files.items()}
    source = dataclasses.replace(archives.SOURCES["mnist"], unpacked=sizes)
    patch.setitem(archives.SOURCES, "mnist", source)
    files |= {f"{path}.gz": gzip.compress(c, mtime=0) for path, c in files.items()}
    packed = {path: content for path, content in files.items() if "gz" in path}
    md5s = [(Path(p).name, hashlib.md5(c).hexdigest()) for p, c in packed.items()]
    patch.setattr(import_torchvision().datasets.MNIST, "resources", md5s)
    return files


def put(folder: Path, files: dict[str, bytes]) -> None:
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)


@pytest.fixture
def mnist(monkeypatch) -> dict[str, bytes]:
    return small_mnist(monkeypatch)


@pytest.fixture
def unpacked(mnist) -> dict[str, bytes]:
    return {path: content for path, content in mnist.items() if "gz" not in path}


@pytest.fixture
def packed(mnist) -> dict[str, bytes]:
    return {path: content for path, content in mnist.items() if "gz" in path}


class Python2Type:
    """A dtype whose pickle makes NumPy 2.4 warn, as Python 2's own did until 2.4.4."""

    def __reduce__(self):
        return np.dtype, ("u1", 0)  # Python 2 wrote ("u1", 0, 1)


class Python2Array:
    def __init__(self, array: np.ndarray):
        self.state = (1, array.shape, Python2Type(), False, array.tobytes())

    def __reduce__(self):
        rebuild = np.zeros(1).__reduce__()[0]
        return rebuild, (np.ndarray, (0,), b"b"), self.state


def cifar_pixels(batch: int) -> np.ndarray:
    """Two images of 3 * 32 * 32 bytes: red, then green, then blue."""
    random = np.random.default_rng(batch)
    return random.integers(0, 256, (2, 3072), dtype=np.uint8)


def small_cifar(patch: pytest.MonkeyPatch, labels: int = 2) -> bytes:
    """Return a small cifar-10-python.tar.gz, known to torchvision."""
    kind = import_torchvision().datasets.CIFAR10
    contents = {}
    for batch, name in enumerate(archives._CIFAR_FILES[:6]):
        entry = {
            "data": Python2Array(cifar_pixels(batch)),
            "labels": [batch, 9][:labels],
        }
        contents[name] = pickle.dumps(entry, protocol=2)
    contents["batches.meta"] = pickle.dumps({"label_names": THINGS}, protocol=2)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    md5s = [[n, hashlib.md5(content).hexdigest()] for n, content in contents.items()]
    patch.setattr(kind, "train_list", md5s[:5])
    patch.setattr(kind, "test_list", md5s[5:6])
    patch.setattr(kind, "meta", {**kind.meta, "md5": md5s[6][1]})
    patch.setattr(kind, "tgz_md5", hashlib.md5(buffer.getvalue()).hexdigest())
    return buffer.getvalue()


# Files in a root and in the cache


def test_archives_are_unpacked_into_the_cache_only(root, cache, packed, unpacked):
    put(root, packed)
    assert locate("mnist", root, download=False) == cache
    assert listing(root) == packed
    assert listing(cache) == unpacked
    assert [path.name for path in cache.iterdir()] == ["MNIST"]  # no .partial-*


def test_unpacked_files_in_the_root_are_used_as_they_are(root, cache, unpacked):
    put(root, unpacked)
    assert locate("mnist", root, download=False) == root
    assert listing(root) == unpacked
    assert not cache.exists()


def test_a_read_only_root_will_do(root, cache, packed):
    put(root, packed)
    (root / "MNIST/raw").chmod(0o555)
    root.chmod(0o555)
    assert locate("mnist", root, download=True) == cache
    assert listing(root) == packed  # also where the user may write anywhere


def test_the_second_time_the_cache_alone_will_do(root, cache, packed):
    put(root, packed)
    locate("mnist", root, download=False)
    shutil.rmtree(root)
    assert locate("mnist", None, download=False) == cache


def test_archives_in_the_cache_do_too(cache, packed, unpacked):
    put(cache, packed)
    assert locate("mnist", None, download=False) == cache
    assert listing(cache) == packed | unpacked


def test_the_argument_goes_before_course_data(monkeypatch, root, tmp_path, unpacked):
    put(root, unpacked)
    monkeypatch.setenv("COURSE_DATA", str(root))
    assert locate("mnist", None, download=False) == root
    with pytest.raises(DataError, match="elsewhere has none of the files"):
        locate("mnist", tmp_path / "elsewhere", download=False)


def test_a_home_directory_may_be_short(monkeypatch, root, unpacked):
    monkeypatch.setenv("HOME", str(root.parent))
    monkeypatch.setenv("USERPROFILE", str(root.parent))
    put(root, unpacked)
    assert locate("mnist", "~/root", download=False) == root


def test_missing_files_are_named_with_the_remedy(root, cache, packed):
    last = packed.popitem()[0]
    put(root, packed)
    message = (
        f"{root} does not have {last}; {cache} has none of the files. Put the official "
        f"train-images.*into {root}/MNIST/raw, or set COURSE_DATA .*load\\('digits'\\)"
    )
    with pytest.raises(DataError, match=message):
        locate("mnist", root, download=False)


def test_a_root_that_is_a_file_is_refused(root):
    (root / "file").touch()
    with pytest.raises(DataError, match="file is a file; wanted a folder"):
        locate("mnist", root / "file", download=True)
    assert not present("mnist", root / "file")


def test_present_tells_what_locate_would_find(root, cache, packed, unpacked):
    assert not present("mnist", root)
    put(root, dict.fromkeys(packed, b""))  # it does not read them
    assert present("mnist", root)
    assert not present("mnist", None)
    put(cache, unpacked)
    assert present("mnist", None)
    (cache / "MNIST/raw/t10k-labels-idx1-ubyte").write_bytes(b"cut")
    assert not present("mnist", None)


# Damage


def test_a_corrupt_archive_is_named_with_its_md5(root, cache, packed):
    path = "MNIST/raw/t10k-labels-idx1-ubyte.gz"
    good, bad = packed[path], packed[path][:-1] + b"?"
    put(root, {**packed, path: bad})
    got, wanted = (hashlib.md5(content).hexdigest() for content in (bad, good))
    message = f"{path} has md5 {got}; wanted {wanted}. Delete them and download"
    with pytest.raises(DataError, match=message):
        locate("mnist", root, download=True)  # nor does a download hide it
    assert not cache.exists()


def test_a_truncated_file_is_named_with_its_size(root, unpacked):
    path = "MNIST/raw/train-images-idx3-ubyte"
    put(root, {**unpacked, path: unpacked[path][:-5]})
    size = len(unpacked[path])
    message = f"{path} has byte count {size - 5}; wanted {size}"
    with pytest.raises(DataError, match=message):
        locate("mnist", root, download=True)


def test_a_truncated_file_in_the_cache_is_repaired(root, cache, packed, unpacked):
    put(root, packed)
    locate("mnist", root, download=False)
    images = cache / "MNIST/raw/train-images-idx3-ubyte"
    for damage in (lambda: images.write_bytes(b"cut short"), images.unlink):
        damage()
        assert locate("mnist", root, download=False) == cache
        assert listing(cache) == unpacked


def test_a_truncated_cifar_archive_is_named(monkeypatch, root):
    put(root, {"cifar-10-python.tar.gz": small_cifar(monkeypatch)[:-9]})
    with pytest.raises(DataError, match=r"python\.tar\.gz has md5 .*; wanted"):
        locate("cifar10", root, download=True)


def test_damaged_cifar_batches_are_named_or_repaired(monkeypatch, root, cache):
    archive = {"cifar-10-python.tar.gz": small_cifar(monkeypatch)}
    put(cache, archive)
    locate("cifar10", None, download=False)
    shutil.copytree(cache / "cifar-10-batches-py", root / "cifar-10-batches-py")
    shutil.rmtree(cache)
    put(root, {"cifar-10-batches-py/data_batch_3": b"cut short"})
    with pytest.raises(DataError, match=r"data_batch_3 has md5 .*; wanted"):
        locate("cifar10", root, download=False)
    put(root, archive)
    assert locate("cifar10", root, download=False) == cache
    assert locate("cifar10", None, download=False) == cache  # the batches are sound


# Unpacking


def test_a_cache_that_cannot_be_written_is_named(root, cache, packed):
    put(root, packed)
    cache.touch()  # a file where the folder should be
    with pytest.raises(DataError, match=f"cannot unpack {root} into the cache {cache}"):
        locate("mnist", root, download=True)


@pytest.mark.parametrize("failure", [OSError, KeyboardInterrupt])
def test_an_unpacking_cut_short_leaves_nothing(
    monkeypatch, root, cache, packed, failure
):
    def extract(archive, folder):
        (folder / archive.stem).write_bytes(b"half")
        raise failure("no space left")

    put(root, packed)
    utils = import_torchvision().datasets.utils
    monkeypatch.setattr(utils, "extract_archive", extract)
    wanted = DataError if failure is OSError else failure
    with pytest.raises(wanted, match="no space left"):
        locate("mnist", root, download=True)
    assert list(cache.iterdir()) == []


def test_no_file_appears_before_it_is_whole(monkeypatch, root, cache, packed):
    def refuse(source, target):
        raise OSError("in the way")

    put(root, packed)
    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(DataError, match="in the way"):
        locate("mnist", root, download=True)
    assert listing(cache) == {}


@pytest.mark.parametrize("function", ["extract_archive", "replace"])
def test_another_process_may_unpack_meanwhile(
    monkeypatch, root, cache, packed, unpacked, function
):
    """It does all of its work at the third step of ours."""
    put(root, packed)
    owner = os if function == "replace" else import_torchvision().datasets.utils
    original, steps = getattr(owner, function), []

    def step(*arguments):
        steps.append(arguments)
        if len(steps) == 3:
            assert locate("mnist", root, download=False) == cache
            assert listing(cache).items() >= unpacked.items()
        original(*arguments)

    monkeypatch.setattr(owner, function, step)
    assert locate("mnist", root, download=False) == cache
    assert len(steps) == 8  # four each
    assert listing(cache) == unpacked


# Downloads


@pytest.fixture
def mirror(monkeypatch, mnist) -> list[Path]:
    """Let torchvision's download write the small MNIST instead; note the roots."""
    calls = []

    def download(dataset):
        calls.append(Path(dataset.root))
        put(Path(dataset.root), mnist)

    monkeypatch.setattr(import_torchvision().datasets.MNIST, "download", download)
    return calls


def test_a_download_goes_into_the_root_once(root, cache, mirror, mnist):
    for _ in range(2):
        assert locate("mnist", root / "new", download=True) == root / "new"
    assert [folder.parent for folder in mirror] == [root / "new"]
    assert listing(root / "new") == mnist
    assert [path.name for path in (root / "new").iterdir()] == ["MNIST"]
    assert not cache.exists()


def test_a_download_goes_into_the_cache_where_the_root_is_read_only(
    monkeypatch, root, cache, mirror, mnist
):
    monkeypatch.setattr(archives, "_writable", lambda folder: folder != root)
    assert locate("mnist", root, download=True) == cache
    assert list(root.iterdir()) == []
    assert listing(cache) == mnist


def test_a_download_that_can_go_nowhere_is_refused(root, cache, mirror):
    cache.touch()  # files where the folders should be
    (root / "file").touch()
    with pytest.raises(DataError, match=r"cannot write to .*below nor .*cache"):
        locate("mnist", root / "file" / "below", download=True)
    assert mirror == []


def test_no_download_hides_damage_in_the_root(root, mirror, unpacked):
    put(root, dict.fromkeys(unpacked, b"cut"))
    with pytest.raises(DataError, match="has byte count 3; wanted"):
        locate("mnist", root, download=True)
    assert mirror == []


def test_a_download_replaces_damage_in_the_cache(cache, mirror, mnist, unpacked):
    put(cache, dict.fromkeys(unpacked, b"cut"))
    with pytest.raises(DataError, match="has byte count 3; wanted"):
        locate("mnist", None, download=False)
    assert locate("mnist", None, download=True) == cache
    assert listing(cache) == mnist


@pytest.mark.parametrize("name", list(archives.SOURCES))
def test_offline_the_error_names_what_was_tried(monkeypatch, root, name):
    def refuse(*arguments, **options):
        raise OSError("no network\nin tests")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    message = (
        r"download from http.* failed \(.*Error: .*\)\. "
        r"Put the official .*load\('digits'\)"
    )
    with pytest.raises(DataError, match=message):
        locate(name, root, download=True)
    assert list(root.iterdir()) == []


@pytest.mark.parametrize("failure", [KeyboardInterrupt, ConnectionResetError, EOFError])
def test_a_download_cut_short_leaves_nothing(monkeypatch, root, failure):
    def download(dataset):
        put(Path(dataset.root), {"MNIST/raw/train-images-idx3-ubyte.gz": b"half"})
        raise failure("cut\nshort")

    monkeypatch.setattr(import_torchvision().datasets.MNIST, "download", download)
    interrupted = failure is KeyboardInterrupt
    wanted = (failure, "cut\nshort") if interrupted else (DataError, "cut short")
    with pytest.raises(wanted[0], match=wanted[1]):
        locate("mnist", root, download=True)
    assert list(root.iterdir()) == []
