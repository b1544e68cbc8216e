"""What a Keras model comes in: files, folders, text; what it is not; what it lacks."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import subprocess
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from keras_weights import hdf5_file
from torch.testing import assert_close

from course_lib import __main__ as commands
from course_lib.keras_models import KerasFormatError, load_keras
from course_lib.keras_models.initializers import parse_initializer
from course_lib.keras_models.source import hdf5
from course_lib.keras_models.spec import Version
from course_lib.keras_models.summary import compare

CASES = Path(__file__).parent / "keras_cases"
KERNEL = np.arange(6, dtype=np.float32).reshape(3, 2)
BIAS = np.array([7, 8], dtype=np.float32)
X = torch.tensor([[1.0, 2.0, 3.0]])
Y = torch.tensor([[1 * 0 + 2 * 2 + 3 * 4 + 7.0, 1 * 1 + 2 * 3 + 3 * 5 + 8.0]])


def stack(*layers, version="2.15.0"):
    entries = [
        {"class_name": kind, "config": {"name": name, **config}}
        for kind, name, config in layers
    ]
    entries[0]["config"]["batch_input_shape"] = [None, 3]
    config = {"name": "m", "layers": entries}
    return {"class_name": "Sequential", "keras_version": version, "config": config}


DENSE = stack(("Dense", "dense_1", {"units": 2}))
TEXT = json.dumps(DENSE)


def refused(match, source=DENSE, **options):
    with pytest.raises(KerasFormatError, match=match):
        load_keras(source, **options)


def computes(source, **options):
    assert_close(load_keras(source, **options)(X).detach(), Y)


def whole(path, *, config=TEXT, groups=True):
    """Write a whole-model .h5, by hand."""
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = config
        if groups:
            layer = file.create_group("model_weights/dense_1")
            file["model_weights"].attrs["layer_names"] = ["dense_1"]
            layer.attrs["weight_names"] = ["kernel", "bias"]
            layer["kernel"], layer["bias"] = KERNEL, BIAS
    return path


def saved_by_3(*layers, names=()):
    """Return the bytes of a .weights.h5 of Keras 3: its groups and their arrays."""
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        for group, *arrays in layers:
            inside = file.create_group(f"{group}/vars")
            for i, array in enumerate(arrays):
                inside[str(i)] = array
        for group, name in names:
            file[f"{group}/vars"].attrs["name"] = name
    return stream.getvalue()


def zipped(path, **members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name.replace("__", "."), data)
    return path


# JSON in its many forms


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        f"\ufeff{TEXT}\n\n",
        json.dumps(TEXT),
        json.dumps(json.dumps(TEXT)) + "\n",
        "\ufeff" + json.dumps(TEXT),
        json.dumps({"model_config": DENSE, "backend": "tensorflow"}),
        json.dumps({"model_config": TEXT, "keras_version": "2.15.0"}),
        TEXT.replace('"units": 2', '"units": 2, "unset": [NaN, -Infinity]').replace(
            '"unset": [NaN, -Infinity]', '"seed": NaN'
        ),
    ],
    ids=range(8),
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-32", None])
def test_json_as_people_write_it(tmp_path, text, encoding):
    source = text
    if encoding:
        source = tmp_path / "model.json"
        source.write_bytes(text.encode(encoding))
        computes(source.read_bytes(), weights=[KERNEL, BIAS])
    computes(source, weights=[KERNEL, BIAS])


def test_json_within_json_within_hdf5(tmp_path):
    computes(whole(tmp_path / "m.h5", config=json.dumps(TEXT)))


def test_json_in_json_without_end():
    text = TEXT
    for _ in range(12):
        text = json.dumps(text)
    refused("JSON in a string, more than 8 deep", text)


GET_CONFIG = DENSE["config"]
GRAPH_CONFIG = {**GET_CONFIG, "input_layers": [["x", 0, 0]], "output_layers": []}


@pytest.mark.parametrize(
    ("data", "match"),
    [
        ({"model": DENSE}, "model inside of it under 'model'.*'model'"),
        ({"info": 1, "keras_model": TEXT}, "model inside of it under 'keras_model'"),
        (GET_CONFIG, '"class_name": "Sequential", "config": that'),
        (GRAPH_CONFIG, '"class_name": "Functional", "config": that'),
        (GET_CONFIG["layers"], '"class_name": "Sequential", "config": that list'),
        ([[1], [2]], "a list of 2 parts; wanted the JSON of one model"),
        ({"space": [], "values": {}}, "hyperparameters of a tuner"),
        ({"trial_id": "0", "score": 1}, "hyperparameters of a tuner"),
        ({"date_saved": "x", "keras_version": "3.3.3"}, "metadata.json of a .keras"),
        ({"model_type": "bert"}, "Hugging Face"),
        ({"cells": []}, "is a notebook"),
        ({"loss": [1.0]}, "JSON with 'loss', and no model; wanted an object with"),
    ],
    ids=range(12),
)
def test_json_that_is_no_model(tmp_path, data, match):
    refused(match, json.dumps(data))
    path = tmp_path / "model.json"
    path.write_text(json.dumps(data))
    refused(f"{path.name}.*{match}", path)


def test_what_the_words_advise_works():
    computes({"class_name": "Sequential", "config": GET_CONFIG}, weights=[KERNEL, BIAS])
    layers = GET_CONFIG["layers"]
    computes({"class_name": "Sequential", "config": layers}, weights=[KERNEL, BIAS])


# What is no Keras file


LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
FOREIGN = [
    ("m.h5", b"", "is empty"),
    (
        "m.h5",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
        "git lfs pull",
    ),
    ("m.h5", b"<!DOCTYPE html><html></html>", "a web page"),
    ("m.keras", b"\n\n<HTML lang=en>", "a web page"),
    ("m.json", b'<?xml version="1.0"?>', "a web page"),
    ("m.yaml", b"backend: tensorflow\nclass_name: Model\n", "YAML.*yaml.safe_load"),
    ("m.json", b"class_name: Sequential\nconfig: []", "YAML.*yaml.safe_load"),
    ("m.yml", b"a: 1", "YAML"),
    ("m.tflite", b"\x1c\0\0\0TFL3" + bytes(9), "TensorFlow Lite"),
    ("m.bin", b"\x20\0\0\0TFL3" + bytes(9), "TensorFlow Lite"),
    ("m.onnx", b"\x08\x07\x12\x07pytorch", "ONNX"),
    ("m.h5", b"\x08\x08\x12\x0btf2onnx 1.9\x1a", "ONNX"),
    ("saved_model.pb", b"\x08\x01\x12\x9c", "SavedModel"),
    ("frozen.pb", b"\n\x0f\n\x05input\x12\x0bPlaceholder", "TensorFlow graph"),
    ("m.pt", LEGACY_TORCH, "a PyTorch file"),
    ("m.h5", pickle.dumps({"a": KERNEL}), "a pickle of Python objects.*never done"),
    ("m.pkl", pickle.dumps([1, 2], protocol=2), "a pickle of Python objects"),
    ("m.joblib", b"\x80\x04\x95\0\0joblib.numpy_pickle", "a joblib pickle"),
    ("m.npy", b"\x93NUMPY\x01\0v\0{", "one NumPy array"),
    ("m.h5.gz", b"\x1f\x8b\x08\0", "packed by gzip"),
    ("m.tar", bytes(257) + b"ustar\x0000", "a tar archive"),
    ("m.7z", b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    ("m.safetensors", b"\x40\0\0\0\0\0\0\0" + b'{"a":{}}', "safetensors"),
    ("m.mat", b"MATLAB 5.0 MAT-file", "a MATLAB file"),
    ("model.py", b"from keras import layers", "Python code"),
    ("ck.index", b"\0\0\0\0", "a TensorFlow checkpoint"),
    ("ck.data-00000-of-00001", b"\0\0\0\0", "a TensorFlow checkpoint"),
    ("notes.txt", b"my model", "can't be read"),
    ("m.h5", b"\x89HDF\r\n\x1a\n" + bytes(50), "can't be read"),
]


@pytest.mark.parametrize(
    ("name", "data", "match"),
    FOREIGN,
    ids=[f"{i}-{f[0]}" for i, f in enumerate(FOREIGN)],
)
def test_what_is_no_keras_file_is_named(tmp_path, name, data, match):
    path = tmp_path / name
    path.write_bytes(data)
    refused(f"{name} .*{match}|{match}", path)
    refused(match, weights=path)


class Live:
    """A model of Keras itself."""

    def to_json(self):
        return TEXT

    def get_weights(self):
        return [KERNEL, BIAS]


def test_other_arguments():
    refused(r"got Live for source; .*pass to_json\(\), and weights=get_w", Live())
    computes(Live().to_json(), weights=Live().get_weights())
    refused("got dict for weights; wanted a path or a list", weights={"a": KERNEL})
    refused("got ndarray for weights", weights=KERNEL)
    refused("the text is YAML", "class_name: Sequential\nconfig: []\n")
    refused("the text is a web page", "<html>\n</html>")
    refused("neither the JSON of a model nor a path", "Layer (type)\n=====\n")


def test_json_may_have_any_name(tmp_path):
    path = tmp_path / "model.yaml"
    path.write_text(TEXT)
    computes(path, weights=[KERNEL, BIAS])


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (["saved_model.pb", "variables"], "folder of a TensorFlow SavedModel"),
        (["checkpoint", "ck.index"], "folder of a TensorFlow checkpoint"),
        (["a.txt", "m.h5"], "a folder; it holds 'a.txt', 'm.h5'. Pass one file"),
        ([], "a folder; it holds none"),
    ],
    ids=range(4),
)
def test_folders(tmp_path, names, match):
    for name in names:
        (tmp_path / name).write_text("")
    refused(match, tmp_path)
    refused(match, weights=tmp_path)


def test_the_name_that_a_checkpoint_is_called_by(tmp_path):
    (tmp_path / "ck.index").write_text("")
    refused("ck is a TensorFlow checkpoint", weights=tmp_path / "ck")
    refused("there is no file", weights=tmp_path / "other")


@pytest.mark.parametrize(
    ("members", "match"),
    [
        ({"m/saved_model__pb": ""}, "a zip of a TensorFlow SavedModel"),
        ({"archive/data__pkl": ""}, "a PyTorch file"),
        ({"model__h5": "", "read__me": ""}, "Unpack it, and pass 'model.h5'"),
        ({"a__txt": ""}, "so no .keras file; it holds 'a.txt'"),
    ],
    ids=range(4),
)
def test_other_zips(tmp_path, members, match):
    path = zipped(tmp_path / "m.keras", **members)
    refused(match, path)
    refused(match, weights=path)


def test_arrays_in_place_of_a_model(tmp_path):
    np.savez(tmp_path / "w.npz", KERNEL, BIAS)
    refused("describes no model. Pass the model's JSON as source", tmp_path / "w.npz")
    path = hdf5_file(tmp_path / "w.h5", kernel=KERNEL, bias=BIAS)
    refused("holds weights, but no model_config", path)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["images"] = KERNEL
    refused("no Keras model; it has the groups 'images'", tmp_path / "other.h5")


def test_a_model_in_place_of_weights(tmp_path):
    path = tmp_path / "model.json"
    path.write_text(TEXT)
    refused("model.json is JSON, which .* holds no weights", weights=path)
    path.write_text('{"metadata": {}, "weight_map": {}}')
    refused("max_shard_size", weights=path)
    path = zipped(tmp_path / "m.keras", config__json=TEXT)
    refused("has no model.weights.h5; it holds 'config.json'. Pass", weights=path)


def test_a_quantized_model_is_named_once():
    policy = {"class_name": "QuantizedDTypePolicy"}
    policy["config"] = {"mode": "int8", "source_name": "float32"}
    for dtype in (policy, "int8_from_float32"):
        layers = [("Dense", f"d{i}", {"units": 2, "dtype": dtype}) for i in range(3)]
        refused(r"JSON string: the model is quantized", json.dumps(stack(*layers)))


# A file that should bring weights and does not


def test_a_zip_without_weights_is_never_untrained_in_silence(tmp_path):
    path = zipped(tmp_path / "m.keras", config__json=TEXT, metadata__json="{}")
    refused("has no model.weights.h5; it holds 'config.json', 'metadata.json'", path)
    computes(path, weights=[KERNEL, BIAS])
    np.savez(tmp_path / "w.npz", np.array({"0": KERNEL}, dtype=object))
    data = (tmp_path / "w.npz").read_bytes()
    zipped(path, config__json=TEXT, model__weights__npz=data)
    refused("in model.weights.npz, as pickled Python objects", path)
    refused("in model.weights.npz, as pickled Python objects", weights=path)
    refused("never unpickled", weights=tmp_path / "w.npz")


def test_an_hdf5_file_without_weights(tmp_path):
    computes(whole(tmp_path / "m.h5"))
    path = whole(tmp_path / "none.h5", groups=False)
    refused("holds a model_config, but no model_weights; it has the groups none", path)
    computes(path, weights=[KERNEL, BIAS])
    with h5py.File(path, "r+") as file:
        file.create_group("model_weights").attrs["layer_names"] = []
    refused("neither 'layers' nor layer_names; it has the groups none", path)
    with h5py.File(path, "r+") as file:
        file.create_group("model_weights/dense_1").attrs["weight_names"] = []
        file["model_weights"].attrs["layer_names"] = ["dense_1"]
    refused("has weights for the layers none; the model's .* 'dense_1'", path)


TWO = stack(("Dense", "a", {"units": 3}), ("Dense", "b", {"units": 3}))
SQUARE = np.eye(3, dtype=np.float32)


@pytest.mark.parametrize(
    ("layers", "match"),
    [
        ([("layers/dense", SQUARE, SQUARE[0])], "no arrays for layer 'b'; .*'dense'"),
        (
            [("layers/dense", SQUARE), ("layers/dense_1", SQUARE)],
            "too few arrays: got 1; wanted 2, up to 'a/bias'",
        ),
        ([], "neither 'layers' nor layer_names; it has the groups none"),
        ([("images", SQUARE)], "nor layer_names; it has the groups 'images'"),
        ([("layers", SQUARE)], "no arrays for layer 'a'; the groups there are 'vars'"),
        (
            [(f"layers/dense{n}", SQUARE, SQUARE[0]) for n in ("", "_1", "_2")],
            "arrays for layers that the model does not have: 'dense_2'",
        ),
        (
            [("layers/dense", SQUARE), ("layers/conv2d", SQUARE)],
            "does not have: 'conv2d'; its layers with weights are 'a', 'b'",
        ),
    ],
    ids=range(7),
)
def test_weights_of_fewer_or_more_layers(tmp_path, layers, match):
    path = tmp_path / "m.weights.h5"
    path.write_bytes(saved_by_3(*layers))
    refused(match, TWO, weights=path)


def test_states_of_random_numbers_are_no_layers(tmp_path):
    data = stack(("Dense", "a", {"units": 2}), ("Dropout", "drop", {"rate": 0.5}))
    path = tmp_path / "m.weights.h5"
    seed = ("layers/dropout/seed_generator", np.zeros(2, np.uint32))
    optimizer = ("optimizer", KERNEL)
    path.write_bytes(saved_by_3(("layers/dense", KERNEL, BIAS), seed, optimizer))
    computes(data, weights=path)


def named_groups(path, **layers):
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = list(layers)
        for name, array in layers.items():
            group = file.create_group(name)
            group.attrs["weight_names"] = ["kernel", "bias"]
            group["kernel"], group["bias"] = array, array[0]
    return path


def both(first, second):
    return stack(("Dense", first, {"units": 3}), ("Dense", second, {"units": 3}))


def test_layers_with_other_names(tmp_path):
    """Keras pairs by order: numbers that it counted differ; a user's names may not."""
    path = tmp_path / "w.h5"
    one, two = SQUARE, 2 * SQUARE
    named_groups(path, dense_7=one, dense_8=two)
    model = load_keras(both("dense_1", "dense_2"), weights=path)  # without a warning
    assert_close(model.dense_2.weight.detach(), torch.from_numpy(two))
    model = load_keras(both("dense_8", "dense_9"), weights=path)
    assert_close(model.dense_9.weight.detach(), torch.from_numpy(two))
    with pytest.warns(
        UserWarning, match="in order, as in Keras: 'dense_7' for 'first'"
    ):
        model = load_keras(both("first", "last"), weights=path)
    assert_close(model.last.weight.detach(), torch.from_numpy(two))
    named_groups(path, encoder=one, decoder=two)
    model = load_keras(both("decoder", "encoder"), weights=path)  # all names are there
    assert_close(model.encoder.weight.detach(), torch.from_numpy(one))
    refused("By name and by order 'decoder'", both("decoder", "last"), weights=path)


def test_layers_with_other_names_in_a_file_of_keras_3(tmp_path):
    path = tmp_path / "w.weights.h5"
    arrays = [
        ("layers/dense", SQUARE, SQUARE[0]),
        ("layers/dense_1", SQUARE, SQUARE[0]),
    ]
    names = [("layers/dense", "encoder"), ("layers/dense_1", "decoder")]
    path.write_bytes(saved_by_3(*arrays, names=names))
    load_keras(both("decoder", "encoder"), weights=path)
    refused("By name and by order 'decoder'", both("decoder", "last"), weights=path)
    with pytest.warns(UserWarning, match="'encoder' for 'x', 'decoder' for 'y'"):
        load_keras(both("x", "y"), weights=path)


# Folders and counts


def test_a_folder_that_keras_3_saves(tmp_path):
    with zipfile.ZipFile(CASES / "3.15_seq_mlp_reg" / "m.keras") as archive:
        for name in ("config.json", "metadata.json", "model.weights.h5"):
            (tmp_path / name).write_bytes(archive.read(name))
    assert load_keras(tmp_path).version >= (3, 15)
    found = compare(load_keras(tmp_path), CASES / "3.15_seq_mlp_reg" / "io.npz")
    assert found.error < 1e-5
    assert found.cost < 1e-6
    load_keras(tmp_path / "config.json", weights=tmp_path)
    (tmp_path / "model.weights.h5").unlink()
    refused("has no model.weights.h5; it holds 'config.json'", tmp_path)
    refused("has no model.weights.h5", weights=tmp_path)


@pytest.mark.parametrize("form", ["m_legacy.h5", "m.keras"])
def test_one_process_reads_a_file(monkeypatch, form):
    started = []
    run = subprocess.run

    def counted(*arguments, **options):
        started.append(1)
        return run(*arguments, **options)

    monkeypatch.setattr(hdf5.subprocess, "run", counted)
    load_keras(CASES / "3.15_seq_mlp_reg" / form)
    assert len(started) == 1


# TensorFlow.js


def shards(folder, *arrays, cuts=(), **more):
    """Write model.json and its shards; each array is (name, stored, entries)."""
    data = b"".join(stored.tobytes() for _, stored, _ in arrays)
    ends = [0, *cuts, len(data)]
    paths = [f"group1-shard{i + 1}.bin" for i in range(len(ends) - 1)]
    for path, start, end in zip(paths, ends, ends[1:], strict=False):
        (folder / path).write_bytes(data[start:end])
    weights = [
        {"name": name, "shape": list(stored.shape), **entries}
        for name, stored, entries in arrays
    ]
    for (_, stored, _), about in zip(arrays, weights, strict=True):
        about.setdefault("dtype", stored.dtype.name)
    manifest = [{"paths": paths, "weights": weights}]
    content = {"format": "layers-model", "modelTopology": DENSE}
    content |= {"weightsManifest": manifest, **more}
    (folder / "model.json").write_text(json.dumps(content))
    return folder / "model.json"


PLAIN = (("dense_1/kernel", KERNEL, {}), ("dense_1/bias", BIAS, {}))


@pytest.mark.parametrize("cuts", [(), (1,), (8, 24), (3, 3, 30)])
def test_shards(tmp_path, cuts):
    path = shards(tmp_path, *PLAIN, cuts=cuts)
    computes(path)
    computes(DENSE, weights=path)
    computes(path, weights=[KERNEL, BIAS])


def test_arrays_go_by_their_names(tmp_path):
    """JavaScript lists what is trained first, so batch norms are torn apart."""
    data = stack(*(("BatchNormalization", n, {"axis": -1}) for n in ("bn_1", "bn_2")))
    kinds = ("gamma", "beta", "moving_mean", "moving_variance")
    names = [f"bn_{n}/{kind}" for kind in kinds for n in (1, 2)]
    arrays = [(name, np.full(3, i + 1, np.float32), {}) for i, name in enumerate(names)]
    model = load_keras(shards(tmp_path, *arrays, modelTopology=data))
    state = model.state_dict()
    wanted = {"bn_1.weight": 1, "bn_2.weight": 2, "bn_1.bias": 3, "bn_2.bias": 4}
    wanted |= {"bn_1.running_mean": 5, "bn_2.running_var": 8}
    for name, value in wanted.items():
        assert_close(state[name], torch.full((3,), float(value)))


def test_names_that_tell_no_layer(tmp_path):
    renamed = [(f"x{i}", array, {}) for i, (_, array, _) in enumerate(PLAIN)]
    computes(shards(tmp_path, *renamed))  # there is one order alone
    data = stack(*(("BatchNormalization", n, {"axis": -1}) for n in ("bn_1", "bn_2")))
    arrays = [(f"x{i}", np.full(3, i, np.float32), {}) for i in range(8)]
    path = shards(tmp_path, *arrays, modelTopology=data)
    refused("such as 'x0', are not those of layers, and they fit in several", path)


def test_names_that_tell_nothing_of_an_lstm(tmp_path):
    data = stack(("LSTM", "lstm", {"units": 2}))
    data["config"]["layers"][0]["config"]["batch_input_shape"] = [None, 4, 3]
    shapes = enumerate([(3, 8), (2, 8), (8,)])  # one order alone
    arrays = [(f"x{i}", np.full(shape, i, np.float32), {}) for i, shape in shapes]
    lstm = load_keras(shards(tmp_path, *arrays, modelTopology=data)).lstm
    for i, weight in enumerate([lstm.weight_ih, lstm.weight_hh, lstm.bias]):
        assert_close(weight.detach(), torch.full_like(weight, i))


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_numbers_packed_into_bytes(tmp_path, dtype):
    whole_numbers = np.array([[0, 1], [2, 3], [200, 255]], dtype)
    packed = {"quantization": {"dtype": dtype, "scale": 0.5, "min": -3.0}}
    packed["dtype"] = "float32"
    path = shards(tmp_path, ("dense_1/kernel", whole_numbers, packed), PLAIN[1])
    weight = load_keras(path).dense_1.weight.detach()
    wanted = torch.tensor([[-3.0, -2.5], [-2.0, -1.5], [97.0, 124.5]])
    assert_close(weight.T, wanted, rtol=0, atol=0)


def test_halves(tmp_path):
    for entries in (
        {"quantization": {"dtype": "float16", "original_dtype": "float32"}},
        {"quantization": {"dtype": "float16"}, "dtype": "float32"},
        {"dtype": "float16"},
    ):
        entries.setdefault("dtype", "float32")
        half = ("dense_1/kernel", KERNEL.astype(np.float16), entries)
        computes(shards(tmp_path, half, PLAIN[1]))


@pytest.mark.parametrize(
    "topology",
    [
        {"keras_version": "2.15.0", "backend": "tensorflow", "model_config": DENSE},
        {**DENSE, "keras_version": "tfjs-layers 4.2.0", "backend": "tensor_flow.js"},
        {"model_config": TEXT, "keras_version": "2.1.6"},
        {
            "class_name": "Sequential",
            "keras_version": "1.2.2",
            "config": [
                {
                    "class_name": "Dense",
                    "config": {
                        "name": "dense_1",
                        "output_dim": 2,
                        "bias": True,
                        "batch_input_shape": [None, 3],
                    },
                }
            ],
        },
    ],
    ids=range(4),
)
def test_topologies(tmp_path, topology):
    computes(shards(tmp_path, *PLAIN, modelTopology=topology))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"format": "graph-model"}, "a graph model of TensorFlow.js"),
        ({"modelTopology": {"node": []}}, "a graph model of TensorFlow.js"),
        ({"modelTopology": None}, "modelTopology=None; wanted a model"),
        ({"weightsManifest": None}, "'weightsManifest' .* is None; wanted a list"),
        ({"weightsManifest": [3]}, "'paths' .* is None; wanted a list"),
        ({"weightsManifest": []}, "too few arrays: got 0; wanted 2"),
    ],
    ids=range(6),
)
def test_other_models_of_tensorflow_js(tmp_path, change, match):
    refused(match, shards(tmp_path, *PLAIN, **change))


@pytest.mark.parametrize(
    "name", ["../s", "/etc/passwd", "a/../../s", "C:\\s", "https://x/s", "s\0", 3, None]
)
def test_shards_elsewhere_are_not_read(tmp_path, name):
    path = shards(tmp_path, *PLAIN)
    data = json.loads(path.read_text())
    data["weightsManifest"][0]["paths"] = [name]
    path.write_text(json.dumps(data))
    refused("wanted a name in the folder of the model.json", path)


def test_shards_that_are_missing_or_cut_off(tmp_path):
    path = shards(tmp_path, *PLAIN, cuts=(16,))
    last = tmp_path / "group1-shard2.bin"
    content = last.read_bytes()
    last.write_bytes(content[:-1])
    refused("bytes 24 to 32 of .*; there are 31. The download may not be", path)
    last.write_bytes(content + b"0")
    refused("hold 33 bytes; the manifest describes 32", path)
    last.unlink()
    refused("group1-shard2.bin', but there is no such file beside it", path)
    last.mkdir()
    refused("no such file beside it", path)
    refused("whose weights lie in files beside it. Pass the path", path.read_text())
    computes(path.read_text(), weights=[KERNEL, BIAS])


@pytest.mark.parametrize(
    ("entries", "match"),
    [
        ({"shape": [-3, -2]}, r"shape=\[-3, -2\]; wanted whole numbers"),
        ({"shape": [10**9, 10**9]}, "The download may not be complete"),
        ({"shape": [2, 3]}, r"wants \(3, 2\). It is transposed"),
        ({"shape": "x"}, "wanted whole numbers"),
        ({"dtype": "string"}, "dtype='string'; wanted one of float32"),
        ({"dtype": []}, "wanted one of float32"),
        ({"name": 3}, "has the name 3; wanted text"),
        ({"quantization": {"dtype": "uint8"}}, 'wanted numbers "scale" and "min"'),
        ({"quantization": {"dtype": "uint8", "scale": np.inf, "min": 0}}, "wanted num"),
        ({"quantization": {"dtype": "int9", "scale": 1, "min": 0}}, "dtype='int9'"),
    ],
    ids=range(10),
)
def test_a_bad_manifest(tmp_path, entries, match):
    refused(match, shards(tmp_path, ("dense_1/kernel", KERNEL, entries), PLAIN[1]))


# Initializers


SCALED = ["glorot", "he", "lecun"]
NAMES = [f"{n}_{kind}" for n in SCALED for kind in ("uniform", "normal")]
NAMES += [f"{n.title()}{k}" for n in SCALED for k in ("Uniform", "Normal", "NormalV2")]
NAMES += [
    "Zeros",
    "ZerosV2",
    "zero",
    "zeros",
    "zeros_initializer",
    "Ones",
    "one",
    "ones",
]
NAMES += ["Constant", "ConstantV2", "constant", "constant_initializer", "uniform"]
NAMES += [
    "RandomNormal",
    "RandomUniformV2",
    "random_uniform",
    "random_normal",
    "normal",
]
NAMES += ["TruncatedNormal", "truncated_normal", "VarianceScaling", "variance_scaling"]
NAMES += ["Orthogonal", "OrthogonalV2", "OrthogonalInitializer", "orthogonal"]
NAMES += ["orthogonal_initializer", "Identity", "IdentityInitializer", "IdentityV2"]
NAMES += ["identity", "keras.initializers>HeNormal", "glorot_uniformV2"]


@pytest.mark.parametrize("name", NAMES)
def test_every_name_of_an_initializer(name):
    """Those of ALL_OBJECTS in Keras 2.0.3 to 3.15 and tf.keras 2.5 to 2.15."""
    for version in ("2.0.3", "2.13.1", "3.3.3"):
        for value in (name, {"class_name": name, "config": {}}):
            fill = parse_initializer(value, Version.parse(version))
            assert torch.isfinite(fill(torch.full((3, 3), torch.nan))).all()


def test_two_names_of_one_initializer_fill_alike():
    for one, other in (("Orthogonal", "OrthogonalInitializer"), ("one", "OnesV2")):
        torch.manual_seed(0)
        first = parse_initializer(one, Version.parse("3.6"))(torch.empty(4, 4))
        torch.manual_seed(0)
        second = parse_initializer(other, Version.parse("3.6"))(torch.empty(4, 4))
        assert torch.equal(first, second)
    q = parse_initializer("OrthogonalInitializer", Version.parse("3.6"))
    q = q(torch.empty(4, 4))
    assert_close(q @ q.T, torch.eye(4))


def test_an_unknown_initializer_matters_only_without_weights():
    own = {"class_name": "Mine", "config": {"x": 1}, "registered_name": "Pack>Mine"}
    options = {"units": 2, "kernel_initializer": own, "bias_initializer": "svd"}
    data = stack(("Dense", "dense_1", options))
    computes(data, weights=[KERNEL, BIAS])
    refused(
        r"'dense_1' \(Dense\): kernel_initializer: 'Pack>Mine' is not Keras's own; "
        r"without weights= it is needed. .*bias_initializer: 'svd'",
        data,
    )


# The check


def outputs(path, y, **more):
    np.savez(path, x0=X.numpy(), y0=np.asarray(y), **more)
    return path


@pytest.mark.parametrize(
    ("scale", "off", "agrees"),
    [
        (33.0, 6e-5, True),  # rounding of float32 at 990
        (33.0, 0.1, False),
        (1.0, 1e-5, True),
        (1.0, 1e-3, False),
        (1e-6, 1e-6, False),  # absolute, it looks like rounding
        (1e-6, 1e-9, True),
        (1.0, np.nan, False),
        (1.0, np.inf, False),
    ],
)
def test_a_difference_counts_by_the_outputs_size(tmp_path, scale, off, agrees):
    model = load_keras(DENSE, weights=[scale * KERNEL, scale * BIAS])
    y = model(X).detach().numpy().copy()
    y[0, 1] += off
    assert compare(model, outputs(tmp_path / "io.npz", y)).agrees is agrees


def test_a_nan_of_the_model_is_a_difference(tmp_path):
    model = load_keras(DENSE, weights=[KERNEL, np.array([np.nan, 8])])
    found = compare(model, outputs(tmp_path / "io.npz", Y))
    assert found.error == np.inf
    assert not found.agrees
    assert found.cost is None
    both_nan = outputs(tmp_path / "io.npz", [[np.nan, Y[0, 1]]])
    assert compare(model, both_nan).agrees


def test_outputs_in_half_precision_are_compared_as_such(tmp_path):
    model = load_keras(DENSE, weights=[KERNEL / 3, BIAS])
    y = model(X).detach().numpy()
    path = tmp_path / "io.npz"
    assert compare(model, outputs(path, y.astype(np.float16))).agrees
    assert not compare(model, outputs(path, (1.1 * y).astype(np.float16))).agrees


def test_the_penalty_is_compared(tmp_path):
    ridge = {"class_name": "L2", "config": {"l2": 0.5}}
    layer = ("Dense", "dense_1", {"units": 2, "kernel_regularizer": ridge})
    model = load_keras(stack(layer), weights=[KERNEL, BIAS])
    cost = 0.5 * (KERNEL**2).sum()
    path = tmp_path / "io.npz"
    assert compare(model, outputs(path, Y, reg_loss=cost)).agrees
    assert not compare(model, outputs(path, Y, reg_loss=1.001 * cost)).agrees
    assert not compare(model, outputs(path, Y, reg_loss=np.nan)).agrees


def test_the_command_accepts_rounding(tmp_path, capsys):
    path = tmp_path / "m.h5"
    shutil.copy(whole(path), tmp_path / "copy.h5")
    big = outputs(tmp_path / "io.npz", Y.numpy() * (1 + 1e-6))
    assert commands.main(["keras", str(path), "--check", str(big)]) == 0
    assert "where the outputs reach 3.00e+01" in capsys.readouterr().out
    wrong = outputs(tmp_path / "io.npz", Y.numpy() + 1)
    assert commands.main(["keras", str(path), "--check", str(wrong)]) == 1


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("kernel_regularizer", "L2"),
        ("activity_regularizer", "L1"),
        ("bias_constraint", "NonNeg"),
        ("activation", "LeakyReLU"),
    ],
)
@pytest.mark.parametrize("module", [None, "mine.parts"])
def test_a_class_of_a_package_is_not_keras_own_of_that_name(key, name, module):
    own = {"class_name": name, "module": module, "registered_name": f"mine>{name}"}
    config = {"name": "d", "units": 2, key: own | {"config": {}}}
    data = {
        "class_name": "Sequential",
        "keras_version": "3.15.1",
        "config": [
            {"class_name": "InputLayer", "config": {"batch_shape": [None, 3]}},
            {"class_name": "Dense", "config": config},
        ],
    }
    with pytest.raises(KerasFormatError, match=f"'d'.*{key}.*>{name}.*replacements"):
        load_keras(data)


def test_a_dict_of_inputs_by_its_keys():
    model = load_keras(CASES / "3.15.1_dict_inputs" / "m.keras")
    x = {"zz": torch.randn(2, 4), "aa": torch.randn(2, 3)}
    assert model.input_names == ("aa", "zz")
    assert model.output_names == ("p", "q")
    assert_close(model(x), model(x["aa"], x["zz"]))
