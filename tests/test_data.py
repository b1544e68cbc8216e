"""Data sets against files parsed by hand, on a machine that is kept offline."""

from __future__ import annotations

import gzip
import importlib.util
import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_data_archives import IDX, THINGS, cifar_pixels, put, small_cifar, small_mnist

from course_lib import data
from course_lib.data import DataError, Dataset, Split, archives, available, load

OFFICIAL = os.environ.get("COURSE_DATA")
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
    ),
]


pytestmark = pytest.mark.usefixtures("cache")


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


@pytest.mark.parametrize(
    ("inputs", "labels"),
    [
        (torch.zeros(4, 3), Y),  # a table
        (X, Y.float()),  # a regression
        (X.numpy(), Y),
        (X.long(), Y),  # tokens, or bytes that nobody divided
    ],
)
def test_a_split_names_what_takes_other_data(inputs, labels):
    with pytest.raises(
        ValueError, match=r"of other data .* TensorDataset\(inputs, lab"
    ):
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
    with pytest.raises(ValueError, match=r"got batch_size=.*wanted an int >= 1"):
        counting(4).batches(size)


def test_dropping_the_only_batch_is_refused_at_the_call():
    with pytest.raises(ValueError, match="batch_size 5 exceeds the 4 samples"):
        counting(4).batches(5, drop_last=True)


def test_a_generator_elsewhere_is_refused_at_the_call():
    elsewhere = SimpleNamespace(device=torch.device("cuda"))
    with pytest.raises(ValueError, match="generator is on cuda; wanted one on the CPU"):
        counting(4).batches(2, generator=elsewhere)


# digits


def raw(dataset: Dataset, split: Split, white: int) -> np.ndarray:
    return (dataset.pixels(split.inputs) * white).round().to(torch.uint8).numpy()


def test_digits_are_those_of_sklearn_in_the_same_proportions():
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits, official = load(), load_digits()
    images, labels = official.images, official.target
    options = {"test_size": 360, "stratify": labels, "random_state": 0}
    parts = train_test_split(images, labels, **options)
    found = [raw(digits, split, 16)[:, 0] for split in (digits.train, digits.test)]
    found += [digits.train.labels.numpy(), digits.test.labels.numpy()]
    for part, wanted in zip(found, parts, strict=True):
        np.testing.assert_array_equal(part, wanted)
    share = np.bincount(labels) * 360 / 1797
    assert np.abs(digits.test.labels.bincount().numpy() - share).max() < 1
    assert digits.classes == tuple("0123456789")


def test_digits_need_the_files_of_sklearn_and_not_its_import():
    script = "import sys; from course_lib.data import load; load(); print(*sys.modules)"
    command = [sys.executable, "-c", script]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "torch" in shown.split()
    assert not {"sklearn", "scipy"} & set(shown.split())


def test_digits_whose_file_lies_elsewhere_come_from_sklearn_itself(monkeypatch):
    wanted = load()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for part, same in (("train", wanted.train), ("test", wanted.test)):
        found = getattr(load(), part)
        assert torch.equal(found.inputs, same.inputs)
        assert torch.equal(found.labels, same.labels)


@pytest.mark.parametrize(
    "content",
    [b"", b"text", gzip.compress(b"1,2,3\n", mtime=0)],
    ids=["empty", "text", "short"],
)
def test_a_damaged_file_of_digits_is_named(monkeypatch, tmp_path, content):
    path = tmp_path / "datasets" / "data" / "digits.csv.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    found = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    with pytest.raises(DataError, match=r"digits\.csv\.gz \(.*install it again"):
        load()


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


PUBLISHED = {  # mean and deviation of the training pixels, as often quoted
    "mnist": ("MNIST", 0.1307, 0.3081),
    "fashion_mnist": ("FashionMNIST", 0.2860, 0.3530),
}


@pytest.mark.skipif(OFFICIAL is None, reason="COURSE_DATA names no folder of archives")
@pytest.mark.parametrize("name", PUBLISHED)
def test_official_files_give_the_pixels_parsed_by_hand(name):
    kind, mean, std = PUBLISHED[name]
    folder = Path(OFFICIAL, kind, "raw")
    if not (folder / "train-images-idx3-ubyte.gz").is_file():
        pytest.skip(f"{folder} has no archives to parse")
    dataset = load(name, root=OFFICIAL, device="cpu", download=False)
    packed = [(folder / f"{part}-ubyte.gz").read_bytes() for part in IDX]
    parts = [np.frombuffer(gzip.decompress(content), np.uint8) for content in packed]
    train = parts[0][16:].reshape(60_000, 1, 28, 28)
    test = parts[2][16:].reshape(10_000, 1, 28, 28)
    for split, images in [(dataset.train, train), (dataset.test, test)]:
        some = Split(split.inputs[::50], split.labels[::50])
        assert np.array_equal(raw(dataset, some, 255), images[::50])
    assert np.array_equal(dataset.train.labels.numpy(), parts[1][8:])
    assert np.array_equal(dataset.test.labels.numpy(), parts[3][8:])
    assert dataset.mean.item() == pytest.approx(mean, abs=5e-5)
    assert dataset.std.item() == pytest.approx(std, abs=5e-5)


# Small files in the official formats


def test_a_small_mnist_is_normalized_with_its_labels(monkeypatch, root):
    put(root, small_mnist(monkeypatch))
    assert available("mnist", root)
    dataset = load("mnist", root=root, download=False)
    assert dataset.mean.item() == dataset.std.item() == 0.5
    labels = [dataset.train.labels.tolist(), dataset.test.labels.tolist()]
    assert labels == [[3, 1, 4, 9], [0, 9]]
    assert dataset.train.inputs[:, 0, 9, 9].tolist() == [-1, -1, 1, 1]
    assert dataset.test.inputs.eq(1).all()
    assert dataset.train.inputs.stride() == (784, 784, 28, 1)  # not channels-last
    with torch.device("meta"):  # whatever the default is
        again = load("mnist", root=root, device="cpu", download=False)
    assert torch.equal(again.train.inputs, dataset.train.inputs)
    assert dataset.classes == tuple("0123456789")


def test_cifar_has_its_colors_and_labels_in_order(monkeypatch, root, cache):
    put(root, {"cifar-10-python.tar.gz": small_cifar(monkeypatch)})
    dataset = load("cifar10", root=root, download=False)
    assert [path.name for path in root.iterdir()] == ["cifar-10-python.tar.gz"]
    assert [path.name for path in cache.iterdir()] == ["cifar-10-batches-py"]
    pixels = np.concatenate([cifar_pixels(batch) for batch in range(5)])
    pixels = pixels.reshape(10, 3, 32, 32)
    assert np.array_equal(raw(dataset, dataset.train, 255), pixels)
    assert dataset.train.labels.tolist() == [0, 9, 1, 9, 2, 9, 3, 9, 4, 9]
    assert dataset.test.labels.tolist() == [5, 9]
    means, deviations = pixels.mean((0, 2, 3)) / 255, pixels.std((0, 2, 3)) / 255
    np.testing.assert_allclose(dataset.mean.numpy()[:, 0, 0], means, rtol=1e-6)
    np.testing.assert_allclose(dataset.std.numpy()[:, 0, 0], deviations, rtol=1e-6)
    assert dataset.classes == tuple(THINGS)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("train-images-idx3", {7: 9}, "cannot read the train files in .*MNIST/raw"),
        ("t10k-labels-idx1", {8: 200}, "labels from 9 to 200; wanted 0 to 9"),
    ],
)
def test_damage_of_the_right_size_is_found(monkeypatch, root, name, change, message):
    files = small_mnist(monkeypatch)
    content = bytearray(files[f"MNIST/raw/{name}-ubyte"])
    for position, value in change.items():
        content[position] = value
    put(root, {**files, f"MNIST/raw/{name}-ubyte": bytes(content)})
    with pytest.raises(DataError, match=f"{message}.*Delete them"):
        load("mnist", root=root)


def test_a_wrong_number_of_labels_is_told(monkeypatch, root):
    put(root, {"cifar-10-python.tar.gz": small_cifar(monkeypatch, labels=1)})
    with pytest.raises(DataError, match=r"train files .*got 5 labels; wanted 10"):
        load("cifar10", root=root)


def test_data_that_are_not_here_are_told(root):
    assert not available("mnist", root)
    with pytest.raises(DataError, match=r"^load\('mnist'\): no complete copy found"):
        load("mnist", root=root, download=False)


def test_the_import_and_a_look_at_the_files_are_light(monkeypatch, root):
    for name in ["sklearn", "torchvision", *sys.modules]:
        if name.partition(".")[0] in ("sklearn", "torchvision"):
            monkeypatch.setitem(sys.modules, name, None)  # to import it would fail
    runpy.run_path(archives.__file__)
    assert not runpy.run_path(data.__file__)["available"]("mnist", root)
