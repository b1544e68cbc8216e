"""Damaged and hostile Keras files: a KerasFormatError, or a model; nothing else.

A crash would end this process, a hang would run into the test's time limit, and a file
that asks for gigabytes would be slow; everything else is an exception of another kind.
"""

from __future__ import annotations

import copy
import json
import os
import random
import stat
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from keras_reader import reader
from keras_weights import hdf5_file

from course_lib.keras_models import KerasFormatError, load_keras
from course_lib.keras_models.regularizers import nested_count
from course_lib.keras_models.source import hdf5

CASES = Path(__file__).parent / "keras_cases"
DAMAGED = Path(__file__).parent / "keras_damaged"
MODELS = sorted(CASES.glob("*/model.json"))
FILES = sorted(CASES.glob("*/*.h5"))
KERNEL, BIAS = np.arange(6.0).reshape(3, 2), np.ones(2)
DENSE = {
    "class_name": "Sequential",
    "keras_version": "2.15.0",
    "config": [
        {
            "class_name": "Dense",
            "config": {"name": "dense_1", "units": 2, "batch_input_shape": [None, 3]},
        }
    ],
}


def survives(source, **options):
    """Load what may be damaged; True if a model came out of it."""
    try:
        load_keras(source, **options)
    except KerasFormatError:
        return False
    return True


def refused(match, source=DENSE, **options):
    with pytest.raises(KerasFormatError, match=match):
        load_keras(source, **options)


# HDF5


@pytest.fixture(scope="module")
def quick():
    with reader() as found:
        yield found


@pytest.fixture
def one_reader(monkeypatch, quick):
    """Start one Python for all HDF5 files, of which most are odd or damaged."""
    if os.name != "nt":  # it forks
        monkeypatch.setattr(hdf5, "subprocess", quick)


@pytest.mark.usefixtures("one_reader")
@pytest.mark.parametrize("seed", range(40))
def test_flipped_bytes_of_hdf5(tmp_path, seed):
    rng = random.Random(seed)
    path = rng.choice(FILES)
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 2, 8, 64])):
        # HDF5 keeps its own numbers rather at the beginning.
        at = rng.randrange(min(len(data), rng.choice([96, 2048, len(data)])))
        data[at] = rng.choice([0, 255, rng.randrange(256), data[at] ^ 1])
    damaged = tmp_path / path.name
    damaged.write_bytes(data)
    if "weights" in path.name:
        survives(path.with_name("model.json"), weights=damaged)
    else:
        survives(damaged)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("crashes.h5", "the HDF5 library crashes on it|can't be read"),
        ("hangs.h5", "reading it does not end|can't be read"),
    ],
)
def test_what_libhdf5_crashes_or_hangs_on(name, match):
    """Two of many that were found by flipping bytes, under HDF5 2.0."""
    refused(match, DAMAGED / name)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dtype": ">f4"},
        {"dtype": "f2"},
        {"dtype": "i8"},
        {"chunks": (2, 1)},
        {"chunks": (2, 2), "compression": "gzip", "shuffle": True},
        {"chunks": (1, 2), "compression": "lzf", "fletcher32": True},
    ],
    ids=str,
)
def test_each_form_of_storage_is_read(tmp_path, options):
    path = hdf5_file(tmp_path / "w.h5", kernel={"data": KERNEL, **options}, bias=BIAS)
    state = load_keras(DENSE, weights=path).state_dict()
    assert torch.equal(state["dense_1.weight"].T, torch.from_numpy(KERNEL).float())
    assert torch.equal(state["dense_1.bias"], torch.ones(2))


def test_numbers_never_written_are_the_fill_value(tmp_path):
    empty = {"shape": (3, 2), "dtype": "f4", "fillvalue": 7.0}
    path = hdf5_file(tmp_path / "w.h5", kernel=empty, bias=BIAS)
    weight = load_keras(DENSE, weights=path).state_dict()["dense_1.weight"]
    assert torch.equal(weight, torch.full((2, 3), 7.0))


def test_numbers_of_odd_widths_are_turned_by_the_library(tmp_path):
    path = hdf5_file(tmp_path / "w.h5", bias=BIAS)
    kind = h5py.h5t.NATIVE_INT32.copy()
    kind.set_precision(17)
    kind.set_offset(3)
    with h5py.File(path, "r+") as file:
        group = file["dense_1"]
        group.attrs["weight_names"] = ["kernel", "bias"]
        space = h5py.h5s.create_simple((3, 2))
        data = h5py.h5d.create(group.id, b"kernel", kind, space)
        data.write(space, space, KERNEL.astype("i4"), h5py.h5t.NATIVE_INT32)
    weight = load_keras(DENSE, weights=path).state_dict()["dense_1.weight"]
    assert torch.equal(weight.T, torch.from_numpy(KERNEL).float())


def test_virtual_data_are_not_followed(tmp_path):
    hdf5_file(tmp_path / "other.h5", kernel=KERNEL)
    path = hdf5_file(tmp_path / "w.h5", bias=BIAS)
    layout = h5py.VirtualLayout((3, 2), "f8")
    layout[:] = h5py.VirtualSource(tmp_path / "other.h5", "dense_1/kernel", (3, 2))
    with h5py.File(path, "r+") as file:
        file["dense_1"].create_virtual_dataset("kernel", layout)
        file["dense_1"].attrs["weight_names"] = ["kernel", "bias"]
    refused("lie in another file", weights=path)


def test_a_group_that_holds_itself(tmp_path):
    path = hdf5_file(tmp_path / "w.h5", kernel=KERNEL, bias=BIAS)
    with h5py.File(path, "r+") as file:
        file["dense_1/again"] = file["/"]
    load_keras(DENSE, weights=path)


def test_an_unknown_filter_is_named(tmp_path):
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_chunk((3, 2))
    settings.set_filter(6, h5py.h5z.FLAG_OPTIONAL, (0, 2))  # scale and offset
    path = hdf5_file(tmp_path / "w.h5", bias=BIAS)
    with h5py.File(path, "r+") as file:
        space = h5py.h5s.create_simple((3, 2))
        kind = h5py.h5t.NATIVE_INT32
        h5py.h5d.create(file["dense_1"].id, b"kernel", kind, space, settings)
    refused("is packed by filter 6; wanted one of deflate", weights=path)


def test_text_in_place_of_numbers(tmp_path):
    path = hdf5_file(tmp_path / "w.h5", kernel={"data": ["a", "b"]}, bias=BIAS)
    refused("holds object; wanted numbers", weights=path)


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps open files in their place")
def test_a_file_that_is_replaced_meanwhile(tmp_path, monkeypatch):
    """The numbers are those of the file that was looked at."""
    path = hdf5_file(tmp_path / "w.h5", kernel=KERNEL, bias=BIAS)
    run = subprocess.run

    def slow(*arguments, **options):
        done = run(*arguments, **options)
        (tmp_path / "new").write_bytes(b"\x89HDF" + bytes(9999))
        (tmp_path / "new").replace(path)
        return done

    monkeypatch.setattr(hdf5.subprocess, "run", slow)
    weight = load_keras(DENSE, weights=path).state_dict()["dense_1.weight"]
    assert torch.equal(weight.T, torch.from_numpy(KERNEL).float())


def test_a_child_that_never_answers(tmp_path, monkeypatch):
    path = hdf5_file(tmp_path / "w.h5", kernel=KERNEL, bias=BIAS)
    script = tmp_path / "sleeps.py"
    script.write_text("import time; time.sleep(60)")
    monkeypatch.setattr(hdf5, "_CHILD", script)
    monkeypatch.setattr(hdf5, "PATIENCE", 0.2)
    refused("reading it does not end", weights=path)


def test_the_child_is_quick_and_knows_no_torch(tmp_path):
    path = hdf5_file(tmp_path / "w.h5", kernel=KERNEL, bias=BIAS)
    code = "import sys, {}; assert 'torch' not in sys.modules"
    name = "course_lib/keras_models/source"
    command = [sys.executable, "-c", code.format("hdf5_child")]
    folder = Path(hdf5.__file__).parent
    assert str(folder).endswith(str(Path(name)))
    subprocess.run(command, cwd=folder, check=True)
    start = time.process_time()
    with hdf5.open_hdf5(path, "it") as file:
        assert len(file.objects) == 4
    assert time.process_time() - start < 0.5


def test_without_a_python_to_run(tmp_path, monkeypatch):
    path = hdf5_file(tmp_path / "w.h5", kernel=KERNEL, bias=BIAS)
    monkeypatch.setattr(sys, "executable", "")
    refused("without a Python", weights=path)


# JSON


NUMBERS = [0, -1, 3.5, 2**31, 10**400, -(10**9), float("nan"), float("inf"), 1e300]
STRANGE = [None, True, "", "x", "relu", [], {}, [[]], [None], {"class_name": "L2"}]
STRANGE += [["dense_1", 0, 0], ["dense_1", 10**6, -1], "\ud800", "a/b", ".."]


def places(data):
    """Yield (container, key) of every value in nested JSON."""
    waiting = [data]
    while waiting:
        part = waiting.pop()
        pairs = part.items() if isinstance(part, dict) else enumerate(part)
        for key, value in pairs:
            yield part, key
            if isinstance(value, dict | list):
                waiting.append(value)


def mutate(data, rng):
    """Drop, exchange, repeat or swap one value."""
    found = list(places(data)) or [({"config": 0}, "config")]
    part, key = rng.choice(found)
    way = rng.randrange(6)
    if way == 0:
        del part[key]
    elif way == 1:
        part[key] = rng.choice(NUMBERS)
    elif way == 2:
        part[key] = copy.deepcopy(rng.choice(STRANGE))
    elif way == 3:
        other, place = rng.choice(found)
        part[key] = copy.deepcopy(other[place])
    elif way == 4 and isinstance(part, list):
        part.insert(key, copy.deepcopy(part[key]))
    elif isinstance(part, dict):
        part[rng.choice(["units", "name", "layer", "config", "new"])] = part[key]


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.sampled_from(MODELS), st.randoms(use_true_random=False))
def test_mutated_json(path, rng):
    data = json.loads(path.read_text())
    for _ in range(rng.choice([1, 1, 2, 4])):
        mutate(data, rng)
    survives(data, weights=[np.zeros((3, 2), np.float32)])


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(st.sampled_from(MODELS), st.randoms(use_true_random=False))
def test_flipped_characters_of_json(path, rng):
    text = list(path.read_text())
    for _ in range(rng.choice([1, 2, 8])):
        text[rng.randrange(len(text))] = rng.choice('0123456789-nule[]{}":,.t\\')
    survives("{" + "".join(text)[1:], weights=[])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["class_name", "config", "name"]), inner)
    ),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(JSON)
def test_any_json_as_a_part(value):
    survives({"class_name": "Sequential", "config": value})
    survives({"class_name": "Model", "config": {"name": "m", "layers": value}})
    data = copy.deepcopy(DENSE)
    data["config"][0]["config"]["activation"] = value
    data["config"][0]["config"]["W_regularizer"] = value
    survives(data)


def test_a_cycle_of_python_objects_is_no_json():
    data = copy.deepcopy(DENSE)
    data["config"].append({"class_name": "Sequential", "config": data["config"]})
    refused("the dict can't be read .*Circular", data)


def one(kind, **config):
    config |= {"name": "it", "batch_input_shape": [None, 4, 3]}
    layer = {"class_name": kind, "config": config}
    return {"class_name": "Sequential", "keras_version": "2.15.0", "config": [layer]}


HUGE = {"class_name": "VarianceScaling", "config": {"scale": 1e300, "mode": "fan_in"}}
HUGE["config"]["distribution"] = "uniform"
BRANCH = {"class_name": "Sequential", "config": []}


@pytest.mark.parametrize(
    ("data", "match"),
    [
        ({"class_name": "Sequential", "config": {"class_name": []}}, "wanted a list"),
        (one("LayerNormalization", axis=[9]), "axis=9; the input has 3 axes"),
        (one("Dense", units=2, kernel_initializer=HUGE), "can't be read"),
        (one("Dense", units=2, kernel_regularizer={"name": []}), "unhashable"),
        (one("Dropout", rate=0.5, noise_shape=2.5), "noise_shape=2.5"),
        (one("Merge", mode="sum", layers=[BRANCH]), "a branch of it has no layers"),
        (one("Softmax", axis=9), "axis=9; the input has 3 axes"),
        (one("BatchNormalization", axis=9), "axis=9; the input has 3 axes"),
        (one("PReLU", shared_axes=[9]), r"shared_axes=\[9\]; wanted axes from 1 to 2"),
        (one("SReLU", shared_axes=[9]), r"shared_axes=\[9\]; wanted axes from 1 to 2"),
    ],
    ids=range(10),
)
def test_what_fuzzing_found(data, match):
    refused(match, data)


def test_replacements_that_are_no_dict():
    refused("got list for replacements; wanted a dict", replacements=[1])
    refused("got list for replacements; wanted a dict", replacements=[])


def test_lists_of_several_lengths_in_place_of_an_array():
    ragged = [[1.0, 2.0], [3.0], [4.0]]
    refused("array 0 of weights is no table of numbers", weights=[ragged, BIAS])


@pytest.mark.parametrize("key", ["input_layers", "output_layers"])
@pytest.mark.parametrize("value", [[["x", 0]], 5, [], [["x", 0, 0], 5]])
def test_ends_that_are_none_are_named_by_their_key(key, value):
    layer = {"class_name": "InputLayer", "name": "x", "inbound_nodes": []}
    layer["config"] = {"name": "x", "batch_input_shape": [None, 4]}
    ends = {"input_layers": [["x", 0, 0]], "output_layers": [["x", 0, 0]]}
    data = {"class_name": "Model", "config": {"layers": [layer], **ends, key: value}}
    refused(f"got {key}=.*; wanted .layer, node, tensor", data)
    data["config"][key] = [["y", 0, 0]]
    refused(f"there is no layer 'y', which {key} refers to", data)


def test_so_many_nested_calls_that_counting_would_not_end():
    with pytest.raises(ValueError, match="nested models are called"):
        nested_count((2,) * 40)


# Zips


def zipped(path, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", json.dumps(DENSE))
        for name, data in members.items():
            archive.writestr(name.replace("__", "."), data)
    return path


@pytest.mark.parametrize("seed", range(60))
def test_flipped_bytes_of_zips(tmp_path, seed):
    rng = random.Random(seed)
    np.savez_compressed(tmp_path / "w.npz", kernel=KERNEL, bias=BIAS)
    kind = rng.choice(["w.npz", "m.keras"])
    path = tmp_path / kind
    if kind == "m.keras":
        zipped(path, metadata__json="{}")
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 2, 8])):
        data[rng.randrange(len(data))] = rng.randrange(256)
    path.write_bytes(data)
    if kind == "w.npz":
        survives(DENSE, weights=path)
    else:
        survives(path)


def test_a_bomb_of_json(tmp_path):
    path = zipped(tmp_path / "m.keras", metadata__json=b" " * 2**25)
    refused("metadata.json would take 33,554,432 bytes", path)


def test_a_member_that_is_there_twice(tmp_path):
    path = zipped(tmp_path / "m.keras")
    with (
        zipfile.ZipFile(path, "a") as archive,
        pytest.warns(UserWarning, match="Duplicate"),
    ):
        archive.writestr("config.json", "{}")
    refused("config.json is there twice", path)


def test_a_symbolic_link_is_only_its_text(tmp_path):
    (tmp_path / "secret.json").write_text(json.dumps(DENSE))
    path = tmp_path / "m.keras"
    with zipfile.ZipFile(path, "w") as archive:
        link = zipfile.ZipInfo("config.json")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, str(tmp_path / "secret.json"))
    refused("config.json can't be read", path)


def test_a_packing_that_may_ask_for_gigabytes(tmp_path):
    path = tmp_path / "m.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("config.json", json.dumps(DENSE))
    refused("packed by method 14; wanted stored or deflated", path)


# Every other form


def tensorflow_js(folder):
    """Write a model of TensorFlow.js with two shards and packed numbers."""
    (folder / "s1").write_bytes(KERNEL.astype("u1").tobytes())
    (folder / "s2").write_bytes(BIAS.astype("f4").tobytes())
    packed = {"dtype": "uint8", "scale": 0.5, "min": -1.0}
    weights = [
        {"name": "dense_1/kernel", "shape": [3, 2], "dtype": "float32"},
        {"name": "dense_1/bias", "shape": [2], "dtype": "float32"},
    ]
    weights[0]["quantization"] = packed
    manifest = [{"paths": ["s1", "s2"], "weights": weights}]
    return {"modelTopology": copy.deepcopy(DENSE), "weightsManifest": manifest}


@pytest.mark.parametrize("seed", range(200))
def test_mutated_models_of_tensorflow_js(tmp_path, seed):
    rng = random.Random(seed)
    data = tensorflow_js(tmp_path)
    for _ in range(rng.choice([0, 1, 1, 2, 4])):
        mutate(data, rng)
    text = json.dumps(data)
    if seed % 4 == 0:
        i = rng.randrange(len(text))
        text = text[:i] + rng.choice('0-9"[]{}:,.eE\\') + text[i + 1 :]
    if seed % 5 == 0:
        with open(tmp_path / "s1", "r+b") as file:
            file.truncate(rng.randrange(6))
    path = tmp_path / "model.json"
    path.write_text(text)
    survives(path)
    survives(DENSE, weights=path)


def test_a_manifest_that_asks_for_gigabytes(tmp_path):
    data = tensorflow_js(tmp_path)
    weights = data["weightsManifest"][0]["weights"]
    weights[0]["shape"] = [2**31, 2**31]
    path = tmp_path / "model.json"
    path.write_text(json.dumps(data))
    refused("The download may not be complete", path)
    paths = data["weightsManifest"][0]["paths"]
    paths *= 60_000
    path.write_text(json.dumps(data))
    refused("wanted a list", path)


STARTS = [b"", b"PK\x03\x04", b"PK\x05\x06", b"\x89HDF\r\n\x1a\n", b"\x08\x01\x12"]
STARTS += [
    b"\x80\x04",
    b"{",
    b'"{',
    b"[",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"class_name: ",
]
STARTS += [b"<html", b"\x93NUMPY\x01\0", b'"{\\"class_name\\"']


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.sampled_from(STARTS), st.binary(max_size=60), st.booleans())
def test_any_bytes(tmp_path_factory, start, rest, as_text):
    path = tmp_path_factory.getbasetemp() / "any.h5"
    path.write_bytes(start + rest)
    if start.startswith(b"\x89HDF"):
        return  # a process for each; flipped bytes are tried above
    survives(path)
    survives(DENSE, weights=path)
    survives(start + rest)
    if as_text:
        survives("{" + (start + rest).decode("latin-1"), weights=[KERNEL, BIAS])


NAMES = ["layers", "dense", "_layer_checkpoint_dependencies", "vars", "0", "1", ""]


@pytest.mark.usefixtures("one_reader")
@pytest.mark.parametrize("seed", range(25))
def test_odd_groups_of_windows(tmp_path, seed):
    """Names joined by backslashes, in any order, over arrays and over the root."""
    rng = random.Random(seed)
    path = tmp_path / "w.h5"
    with h5py.File(path, "w") as file:
        for _ in range(8):
            name = "\\".join(rng.choices(NAMES, k=rng.choice([1, 2, 3, 4])))
            if name and name not in file:
                if rng.random() < 0.5:
                    file[name] = rng.choice([KERNEL, BIAS])
                elif rng.random() < 0.5:
                    file[name] = file["/"]
                else:
                    file.create_group(f"{name}/vars")["0"] = KERNEL
    survives(DENSE, weights=path)


# NPZ


def npy(shape, dtype="<f8", data=b"", version=(1, 0)):
    """Return a member of .npz by hand: magic, version, length and a Python dict."""
    head = repr({"descr": dtype, "fortran_order": False, "shape": shape}).ljust(117)
    length = len(head).to_bytes(2 if version == (1, 0) else 4, "little")
    return b"\x93NUMPY" + bytes(version) + length + head.encode() + data


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (npy((10**12,)), "has the shape .*, but only 127 bytes"),
        (npy((-3, -2), data=bytes(48)), r"holds float64\(-3, -2\)"),
        (npy((3, 2), "|O", b"\x80\x04."), "holds object"),
        (npy((3, 2), "<f16", bytes(96)), "wanted numbers of at most 8 bytes"),
        (npy((3, 2), data=bytes(48), version=(3, 0)), "npy's version"),
        (npy((3, 2), data=bytes(47)), "expected 48 bytes"),
        (b"\x93NUMPY\x01\x00\xff\xff{", "can't be read"),
        (b"not npy", "can't be read"),
    ],
    ids=range(8),
)
def test_heads_of_npy(tmp_path, data, match):
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
        archive.writestr("kernel.npy", data)
        archive.writestr("bias.npy", npy((2,), data=bytes(16)))
    refused(match, weights=tmp_path / "w.npz")


def test_npz_in_either_order_of_memory(tmp_path):
    np.savez(tmp_path / "w.npz", a=np.asfortranarray(KERNEL), b=BIAS)
    state = load_keras(DENSE, weights=tmp_path / "w.npz").state_dict()
    assert torch.equal(state["dense_1.weight"].T, torch.from_numpy(KERNEL).float())
