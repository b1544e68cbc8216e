"""Data sets against files parsed by hand, on a machine that is kept offline."""

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
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from course_lib import data
from course_lib.data import DataError, Dataset, Split, available, load
from course_lib.vision import import_torchvision

OFFICIAL = os.environ.get("COURSE_DATA")
IDX = ["train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"]
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
    ),
]


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    def refuse(*arguments, **options):
        raise OSError("no network in tests")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path) -> Path:
    """An empty cache, and no COURSE_DATA."""
    monkeypatch.setattr(data, "_cache", lambda: tmp_path / "cache")
    monkeypatch.delenv("COURSE_DATA", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def listing(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
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
    """Teach torchvision and course_lib the small files; return them by path."""
    files = {f"MNIST/raw/{name}-ubyte": idx(parts[name]) for name in IDX}
    sizes = {path: len(content) for path, content in files.items()}
    source = dataclasses.replace(data._SOURCES["mnist"], unpacked=sizes)
    patch.setitem(data._SOURCES, "mnist", source)
    files |= {f"{path}.gz": gzip.compress(c, mtime=0) for path, c in files.items()}
    archives = {path: content for path, content in files.items() if "gz" in path}
    md5s = [(Path(p).name, hashlib.md5(c).hexdigest()) for p, c in archives.items()]
    patch.setattr(import_torchvision().datasets.MNIST, "resources", md5s)
    return files


def put(folder: Path, files: dict[str, bytes]) -> None:
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)


@pytest.fixture
def unpacked(monkeypatch) -> dict[str, bytes]:
    return {p: c for p, c in small_mnist(monkeypatch).items() if not p.endswith("gz")}


@pytest.fixture
def archives(monkeypatch) -> dict[str, bytes]:
    return {p: c for p, c in small_mnist(monkeypatch).items() if p.endswith("gz")}


def assert_tiny(dataset: Dataset) -> None:
    assert dataset.mean.item() == dataset.std.item() == 0.5
    labels = [dataset.train.labels.tolist(), dataset.test.labels.tolist()]
    assert labels == [[3, 1, 4, 9], [0, 9]]
    assert dataset.train.inputs[:, 0, 9, 9].tolist() == [-1, -1, 1, 1]
    assert dataset.test.inputs.eq(1).all()


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
    for batch, name in enumerate(data._CIFAR_FILES[:6]):
        entry = {
            "data": Python2Array(cifar_pixels(batch)),
            "labels": [batch, 9][:labels],
        }
        contents[name] = pickle.dumps(entry, protocol=2)
    contents["batches.meta"] = pickle.dumps({"label_names": []}, protocol=2)
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


# Split


def counting(n: int, device: str = "cpu") -> Split:
    """A split whose input i is filled with i and whose label is i."""
    labels = torch.arange(n, device=device)
    inputs = labels.float().reshape(n, 1, 1, 1).repeat(1, 1, 2, 3)
    return Split(inputs, labels)


def order(batches) -> list[int]:
    return torch.cat([labels for _, labels in batches]).tolist()


X, Y = torch.zeros(4, 1, 2, 2), torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("inputs", "labels", "message"),
    [
        (X.double(), Y, r"inputs is float64 of shape \(4, 1, 2, 2\); wanted float32"),
        (X[0], Y, r"inputs is float32 of shape \(1, 2, 2\); wanted"),
        ([[0.0]], Y, "inputs is list; wanted"),
        (X, Y.int(), "labels is int32 .*wanted int64"),
        (X, Y[:, None], r"labels is int64 of shape \(4, 1\); wanted .*\(n,\)"),
        (X, Y[:3], "4 inputs and 3 labels"),
        (X[:0], Y[:0], "0 inputs and 0 labels"),
        (X, Y.to("meta"), "inputs are on cpu, the labels on meta"),
    ],
)
def test_a_split_refuses_tensors_that_do_not_fit(inputs, labels, message):
    with pytest.raises(ValueError, match=f"^Split: .*{message}"):
        Split(inputs, labels)


def test_a_split_tells_its_size_and_moves():
    split = counting(5)
    assert len(split) == 5
    assert repr(split) == "Split(5 samples, inputs (1, 2, 3), on cpu)"
    moved = split.to("meta")
    assert {moved.inputs.device.type, moved.labels.device.type} == {"meta"}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(
    ("size", "drop_last", "sizes"),
    [
        (3, False, [3, 3, 3, 1]),
        (3, True, [3, 3, 3]),
        (5, True, [5, 5]),
        (10, True, [10]),
        (99, False, [10]),
    ],
)
def test_an_epoch_visits_each_sample_at_most_once(
    device, shuffle, size, drop_last, sizes
):
    split = counting(10, device)
    batches = list(split.batches(size, shuffle=shuffle, drop_last=drop_last))
    assert [len(labels) for _, labels in batches] == sizes
    assert len(set(order(batches))) == sum(sizes)
    for inputs, labels in batches:
        assert inputs.shape == (len(labels), 1, 2, 3)
        assert inputs.device == labels.device == split.labels.device
        assert inputs.eq(labels.reshape(-1, 1, 1, 1)).all()  # still paired


@pytest.mark.parametrize("device", DEVICES)
def test_the_order_is_that_of_randperm_on_the_cpu(device):
    expected = torch.randperm(50, generator=torch.Generator().manual_seed(7)).tolist()
    seeded = torch.Generator().manual_seed(7)
    split = counting(50, device)
    assert order(split.batches(8, generator=seeded)) == expected
    assert order(split.batches(8, generator=seeded)) != expected  # the next epoch
    torch.manual_seed(7)
    assert order(split.batches(8)) == expected


def test_the_default_device_does_not_touch_the_order():
    split = counting(9)
    with torch.device("meta"):
        batches = list(split.batches(2))
    assert sorted(order(batches)) == list(range(9))


def test_unshuffled_batches_are_views_in_order():
    split = counting(7)
    batches = list(split.batches(3, shuffle=False))
    assert order(batches) == list(range(7))
    steps = [inputs.data_ptr() - split.inputs.data_ptr() for inputs, _ in batches]
    assert steps == [0, 3 * 6 * 4, 6 * 6 * 4]  # bytes into the same memory


@pytest.mark.parametrize("size", [0, -1, 2.0, True, "2", None])
def test_a_bad_batch_size_is_refused_at_the_call(size):
    with pytest.raises(ValueError, match=r"batch_size is .*wanted an int >= 1"):
        counting(4).batches(size)


def test_dropping_the_only_batch_is_refused_at_the_call():
    with pytest.raises(ValueError, match="batch_size 5 exceeds the 4 samples"):
        counting(4).batches(5, drop_last=True)


def test_a_generator_elsewhere_is_refused_at_the_call():
    elsewhere = SimpleNamespace(device=torch.device("cuda"))
    with pytest.raises(ValueError, match="generator is on cuda; wanted one on the CPU"):
        counting(4).batches(2, generator=elsewhere)


# digits


def by_hand(images: np.ndarray, labels: np.ndarray) -> list[tuple[bytes, int]]:
    """Images and labels as a sorted list, to compare sets of samples."""
    rows = images.reshape(len(labels), -1).astype(np.uint8)
    return sorted((row.tobytes(), int(y)) for row, y in zip(rows, labels, strict=True))


def raw(dataset: Dataset, split: Split, white: int) -> np.ndarray:
    return (dataset.pixels(split.inputs) * white).round().to(torch.uint8).numpy()


def test_digits_are_those_of_sklearn_in_the_same_proportions():
    from sklearn.datasets import load_digits

    digits, official = load(), load_digits()
    assert (len(digits.train), len(digits.test)) == (1437, 360)
    both = [digits.train, digits.test]
    images = np.concatenate([raw(digits, split, 16) for split in both])
    labels = np.concatenate([split.labels.numpy() for split in both])
    assert by_hand(images, labels) == by_hand(official.images, official.target)
    share = np.bincount(official.target) * 360 / 1797
    assert np.abs(digits.test.labels.bincount().numpy() - share).max() < 1
    assert digits.classes == tuple("0123456789")


def test_digits_are_normalized_by_the_population_of_the_training_pixels():
    digits = load("digits", device="cpu")
    pixels = raw(digits, digits.train, 16).astype(np.float64) / 16
    assert digits.mean.item() == pytest.approx(pixels.mean(), rel=1e-6)
    # The sample deviation is larger by 5e-6, that of all 1797 digits by 7e-4.
    assert digits.std.item() == pytest.approx(pixels.std(), rel=1e-6)
    expected = (pixels - pixels.mean()) / pixels.std()
    np.testing.assert_allclose(digits.train.inputs.numpy(), expected, atol=1e-6)
    assert digits.mean.shape == digits.std.shape == (1, 1, 1)
    assert digits.mean.dtype == digits.std.dtype == torch.float32


def test_digits_are_the_same_at_each_load():
    assert torch.equal(load().test.inputs, load().test.inputs)


def test_a_data_set_prints_in_a_line():
    expected = "Dataset('digits': 1437 train, 360 test, inputs (1, 8, 8), 10 classes)"
    assert repr(load()) == expected


@pytest.mark.parametrize("device", [*DEVICES, "meta"])
def test_a_data_set_lies_on_one_device(device):
    with torch.device(device):
        implicit = load()
        on_cpu = load(device="cpu")  # whatever the default is
    for dataset in (implicit, load(device=device), load(device="cpu").to(device)):
        splits = (dataset.train, dataset.test)
        tensors = [t for split in splits for t in (split.inputs, split.labels)]
        kinds = {t.device.type for t in (*tensors, dataset.mean, dataset.std)}
        assert kinds == {device}
    assert torch.equal(on_cpu.train.inputs, load(device="cpu").train.inputs)


@pytest.mark.parametrize("shape", [(8, 8), (3, 8, 8), (2, 3, 8, 8)])
def test_pixels_want_the_channels_of_the_set(shape):
    with pytest.raises(ValueError, match=r"pixels: .*wants \(\.\.\., 1, height, width"):
        load().pixels(torch.zeros(shape))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("MNITS", "wanted one of digits, mnist, .*Did you mean 'mnist'"),
        ("cifar-10", "Did you mean 'cifar10'"),
        (3, "called 3; wanted one of"),
    ],
)
@pytest.mark.parametrize("function", [load, available])
def test_an_unknown_name_is_answered_with_the_names(function, name, message):
    with pytest.raises(ValueError, match=f"^{function.__name__}: .*{message}"):
        function(name)


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_an_unusable_device_is_named(device):
    with pytest.raises(ValueError, match=f"'{device}' cannot be used here.*'cpu'"):
        load(device=device)


# The official files


@pytest.fixture(scope="module")
def official_cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("official")


@pytest.mark.skipif(OFFICIAL is None, reason="COURSE_DATA names no folder of archives")
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_official_files_give_the_pixels_parsed_by_hand(
    monkeypatch, official_cache, name
):
    if not available(name, OFFICIAL):
        pytest.skip(f"COURSE_DATA has no {name}")
    monkeypatch.setattr(data, "_cache", lambda: official_cache)
    dataset = load(name, root=OFFICIAL, device="cpu", download=False)
    kind = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}[name]
    folder = Path(OFFICIAL, kind, "raw")
    if not (folder / "train-images-idx3-ubyte.gz").is_file():
        pytest.skip(f"{folder} has no archives to parse")
    packed = [(folder / f"{part}-ubyte.gz").read_bytes() for part in IDX]
    parts = [np.frombuffer(gzip.decompress(content), np.uint8) for content in packed]
    train = parts[0][16:].reshape(60_000, 1, 28, 28)
    test = parts[2][16:].reshape(10_000, 1, 28, 28)
    some = Split(dataset.train.inputs[::50], dataset.train.labels[::50])
    assert np.array_equal(raw(dataset, some, 255), train[::50])
    assert np.array_equal(raw(dataset, dataset.test, 255), test)
    assert np.array_equal(dataset.train.labels.numpy(), parts[1][8:])
    assert np.array_equal(dataset.test.labels.numpy(), parts[3][8:])
    assert dataset.mean.item() == pytest.approx(train.mean() / 255, rel=1e-6)
    assert dataset.std.item() == pytest.approx(train.std() / 255, rel=1e-6)


# Files in a root and in the cache


def test_archives_are_unpacked_into_the_cache_only(root, cache, archives):
    put(root, archives)
    before = listing(root)
    assert_tiny(load("mnist", root=root, download=False))
    assert listing(root) == before
    files = [path for path in cache.rglob("*") if path.is_file()]
    assert sorted(path.name for path in files) == sorted(f"{n}-ubyte" for n in IDX)
    assert [path.name for path in cache.iterdir()] == ["MNIST"]  # no .partial-*


def test_unpacked_files_in_the_root_are_used_as_they_are(root, cache, unpacked):
    put(root, unpacked)
    before = listing(root)
    assert_tiny(load("mnist", root=root, download=False))
    assert listing(root) == before
    assert not cache.exists()


def test_a_read_only_root_will_do(root, cache, archives):
    put(root, archives)
    (root / "MNIST/raw").chmod(0o555)
    root.chmod(0o555)
    before = listing(root)
    assert_tiny(load("mnist", root=root))
    assert listing(root) == before  # also where the user may write anywhere


def test_the_second_load_needs_the_cache_alone(root, cache, archives):
    put(root, archives)
    load("mnist", root=root, download=False)
    shutil.rmtree(root)
    assert_tiny(load("mnist", download=False))


def test_archives_in_the_cache_do_too(cache, archives):
    put(cache, archives)
    assert_tiny(load("mnist", download=False))


def test_the_argument_goes_before_course_data(monkeypatch, root, tmp_path, unpacked):
    put(root, unpacked)
    monkeypatch.setenv("COURSE_DATA", str(root))
    assert_tiny(load("mnist", download=False))
    with pytest.raises(DataError, match="elsewhere has none of the files"):
        load("mnist", root=tmp_path / "elsewhere", download=False)


def test_a_corrupt_archive_is_named_with_its_md5(root, cache, archives):
    path = "MNIST/raw/t10k-labels-idx1-ubyte.gz"
    good, bad = archives[path], archives[path][:-1] + b"?"
    put(root, {**archives, path: bad})
    got, wanted = (hashlib.md5(content).hexdigest() for content in (bad, good))
    message = f"{path} has md5 {got}; wanted {wanted}. Delete them and fetch"
    with pytest.raises(DataError, match=message):
        load("mnist", root=root)  # nor does a download hide it
    assert not cache.exists()


def test_a_truncated_file_is_named_with_its_size(root, unpacked):
    path = "MNIST/raw/train-images-idx3-ubyte"
    put(root, {**unpacked, path: unpacked[path][:-5]})
    size = len(unpacked[path])
    with pytest.raises(
        DataError, match=f"{path} has byte count {size - 5}; wanted {size}"
    ):
        load("mnist", root=root)


def test_a_truncated_file_in_the_cache_is_repaired(root, cache, archives):
    put(root, archives)
    load("mnist", root=root, download=False)
    (cache / "MNIST/raw/train-images-idx3-ubyte").write_bytes(b"cut short")
    assert_tiny(load("mnist", root=root, download=False))
    (cache / "MNIST/raw/train-images-idx3-ubyte").unlink()
    assert_tiny(load("mnist", root=root, download=False))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("train-images-idx3", {7: 9}, "cannot read the train files in .*MNIST/raw"),
        ("t10k-labels-idx1", {8: 200}, "labels from 9 to 200; wanted 0 to 9"),
    ],
)
def test_damage_of_the_right_size_is_found(root, unpacked, name, change, message):
    path = f"MNIST/raw/{name}-ubyte"
    content = bytearray(unpacked[path])
    for position, value in change.items():
        content[position] = value
    put(root, {**unpacked, path: bytes(content)})
    with pytest.raises(DataError, match=f"{message}.*Delete them"):
        load("mnist", root=root)


def test_missing_files_are_named_with_the_remedy(root, cache, archives):
    last = archives.popitem()[0]
    put(root, archives)
    message = (
        f"{root} lacks {last}; {cache} has none of the files. Put the official "
        f"train-images.*into {root}/MNIST/raw, or set COURSE_DATA .*load\\('digits'\\)"
    )
    with pytest.raises(DataError, match=message):
        load("mnist", root=root, download=False)


def test_a_root_that_is_a_file_is_refused(root):
    (root / "file").touch()
    with pytest.raises(DataError, match="file is a file; wanted a folder"):
        load("mnist", root=root / "file")
    assert not available("mnist", root / "file")


def test_a_cache_that_cannot_be_written_is_named(root, cache, archives):
    put(root, archives)
    cache.touch()  # a file where the folder should be
    with pytest.raises(DataError, match=f"cannot unpack {root} into the cache {cache}"):
        load("mnist", root=root)


def test_available_tells_what_load_would_find(root, cache, unpacked):
    archives = {f"{path}.gz": b"" for path in unpacked}  # it does not read them
    assert available("digits")
    assert not available("mnist", root)
    put(root, archives)
    assert available("mnist", root)
    assert not available("mnist")
    put(cache, unpacked)
    assert available("mnist")
    (cache / "MNIST/raw/t10k-labels-idx1-ubyte").write_bytes(b"cut")
    assert not available("mnist")


@pytest.mark.parametrize("failure", [OSError, KeyboardInterrupt])
def test_an_unpacking_cut_short_leaves_nothing(
    monkeypatch, root, cache, archives, failure
):
    def extract(archive, folder):
        (folder / archive.stem).write_bytes(b"half")
        raise failure("no space left")

    put(root, archives)
    utils = import_torchvision().datasets.utils
    monkeypatch.setattr(utils, "extract_archive", extract)
    wanted = DataError if failure is OSError else failure
    with pytest.raises(wanted, match="no space left"):
        load("mnist", root=root)
    assert listing(cache) == {}


# Two processes at once


def race(number: int, root: Path, cache: Path) -> None:
    """Load the small MNIST into new caches, each time when both are ready."""
    small_mnist(pytest.MonkeyPatch())
    for turn in range(8):
        data._cache = lambda turn=turn: cache / str(turn)
        (root / f"ready-{turn}-{number}").touch()
        while len(list(root.glob(f"ready-{turn}-*"))) < 2:
            time.sleep(0.0001)
        assert_tiny(load("mnist", root=root, download=False))


def test_two_processes_may_unpack_at_once(root, cache, archives):
    put(root, archives)
    script = (
        "import sys; sys.path[:0] = sys.argv[1:3]; from pathlib import Path; "
        "import test_data; test_data.race(sys.argv[3], *map(Path, sys.argv[4:]))"
    )
    folders = [Path(__file__).parent, Path(data.__file__).parents[1]]
    both = [
        subprocess.Popen(
            [sys.executable, "-c", script, *folders, str(number), root, cache],
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    errors = [process.communicate(timeout=60)[1] for process in both]
    assert errors == ["", ""]
    assert all(process.returncode == 0 for process in both)


# Downloads


@pytest.fixture
def mirror(monkeypatch):
    """Let torchvision's download write the small MNIST instead; count the calls."""
    files = small_mnist(monkeypatch)
    calls = []

    def download(dataset):
        calls.append(Path(dataset.root))
        put(Path(dataset.root), files)

    kind = import_torchvision().datasets.MNIST
    monkeypatch.setattr(kind, "download", download)
    return calls


def test_a_download_goes_into_the_root_once(root, cache, mirror):
    assert_tiny(load("mnist", root=root / "new"))
    assert_tiny(load("mnist", root=root / "new"))
    assert len(mirror) == 1
    assert mirror[0].parent == root / "new"
    assert len(list((root / "new/MNIST/raw").iterdir())) == 8
    assert [path.name for path in (root / "new").iterdir()] == ["MNIST"]
    assert not cache.exists()


def test_a_download_goes_into_the_cache_where_the_root_is_read_only(
    monkeypatch, root, cache, mirror
):
    monkeypatch.setattr(data, "_writable", lambda folder: folder != root)
    assert_tiny(load("mnist", root=root))
    assert listing(root) == {}
    assert (cache / "MNIST").is_dir()


def test_a_download_that_can_go_nowhere_is_refused(root, cache, mirror):
    cache.touch()  # files where the folders should be
    (root / "file").touch()
    with pytest.raises(DataError, match=r"cannot write to .*below nor .*cache"):
        load("mnist", root=root / "file" / "below")
    assert mirror == []


def test_no_download_hides_damage_in_the_root(root, mirror):
    put(root, dict.fromkeys(data._SOURCES["mnist"].unpacked, b"cut"))
    with pytest.raises(DataError, match="has byte count 3; wanted"):
        load("mnist", root=root)
    assert mirror == []


def test_a_download_replaces_damage_in_the_cache(cache, mirror):
    put(cache, dict.fromkeys(data._SOURCES["mnist"].unpacked, b"cut"))
    with pytest.raises(DataError, match="has byte count 3; wanted"):
        load("mnist", download=False)
    assert_tiny(load("mnist"))
    assert len(mirror) == 1


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_offline_the_error_names_what_was_tried(root, name):
    message = r"download from http.* failed .*Put the official .*load\('digits'\)"
    with pytest.raises(DataError, match=message):
        load(name, root=root)
    assert listing(root) == {}


@pytest.mark.parametrize("failure", [KeyboardInterrupt, ConnectionResetError, EOFError])
def test_a_download_cut_short_leaves_nothing(monkeypatch, root, failure):
    def download(dataset):
        put(Path(dataset.root), {"MNIST/raw/train-images-idx3-ubyte.gz": b"half"})
        raise failure("cut short")

    monkeypatch.setattr(import_torchvision().datasets.MNIST, "download", download)
    wanted = failure if failure is KeyboardInterrupt else DataError
    with pytest.raises(wanted, match="cut short"):
        load("mnist", root=root)
    assert listing(root) == {}


# CIFAR-10


def test_cifar_has_its_colors_and_labels_in_order(monkeypatch, root, cache):
    put(root, {"cifar-10-python.tar.gz": small_cifar(monkeypatch)})
    before = listing(root)
    dataset = load("cifar10", root=root, download=False)
    assert listing(root) == before
    assert [path.name for path in cache.iterdir()] == ["cifar-10-batches-py"]
    pixels = np.concatenate([cifar_pixels(batch) for batch in range(5)])
    pixels = pixels.reshape(10, 3, 32, 32)
    assert np.array_equal(raw(dataset, dataset.train, 255), pixels)
    assert dataset.train.labels.tolist() == [0, 9, 1, 9, 2, 9, 3, 9, 4, 9]
    assert dataset.test.labels.tolist() == [5, 9]
    means, deviations = pixels.mean((0, 2, 3)) / 255, pixels.std((0, 2, 3)) / 255
    np.testing.assert_allclose(dataset.mean.numpy()[:, 0, 0], means, rtol=1e-6)
    np.testing.assert_allclose(dataset.std.numpy()[:, 0, 0], deviations, rtol=1e-6)
    assert dataset.classes[:3] == ("airplane", "automobile", "bird")


def test_cifar_classes_are_the_official_ones():
    kinds = import_torchvision().datasets
    fashion = data._SOURCES["fashion_mnist"].classes
    assert fashion == tuple(kinds.FashionMNIST.classes)
    assert len(data._SOURCES["cifar10"].classes) == 10


def test_a_truncated_cifar_archive_is_named(monkeypatch, root):
    put(root, {"cifar-10-python.tar.gz": small_cifar(monkeypatch)[:-9]})
    with pytest.raises(DataError, match=r"python\.tar\.gz has md5 .*; wanted"):
        load("cifar10", root=root)


def test_damaged_cifar_batches_are_named_or_repaired(monkeypatch, root, cache):
    archive = {"cifar-10-python.tar.gz": small_cifar(monkeypatch)}
    put(cache, archive)
    load("cifar10", download=False)
    shutil.copytree(cache / "cifar-10-batches-py", root / "cifar-10-batches-py")
    shutil.rmtree(cache)
    put(root, {"cifar-10-batches-py/data_batch_3": b"cut short"})
    with pytest.raises(DataError, match=r"data_batch_3 has md5 .*; wanted"):
        load("cifar10", root=root, download=False)
    put(root, archive)
    assert len(load("cifar10", root=root, download=False).train) == 10


def test_a_wrong_number_of_labels_is_told(monkeypatch, root):
    put(root, {"cifar-10-python.tar.gz": small_cifar(monkeypatch, labels=1)})
    with pytest.raises(DataError, match=r"train files .*got 5 labels; wanted 10"):
        load("cifar10", root=root)


# The import


def test_the_import_and_a_look_at_the_files_are_light(root):
    script = (
        "import sys; from course_lib import data; data.available('mnist', sys.argv[1]);"
        "print({'sklearn', 'torchvision'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, str(root)],
        env={**os.environ, "PYTHONPATH": str(Path(data.__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("set()\n", "")
