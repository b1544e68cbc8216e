"""Broken, hostile and unsupported Keras files: one error that says what and where."""

from __future__ import annotations

import io
import json
import shutil
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
from course_lib.keras_models.summary import compare, draw_graph, summary
from course_lib.regularization import penalty

CASES = Path(__file__).parent / "keras_cases"


def dense(name="dense_1", units=2, **rest):
    return {"class_name": "Dense", "config": {"name": name, "units": units, **rest}}


def stack(*layers, version="2.15.0", size=3):
    layers[0]["config"]["batch_input_shape"] = [None, size]
    return {
        "class_name": "Sequential",
        "keras_version": version,
        "config": {"name": "m", "layers": list(layers)},
    }


def graph(*layers, inputs=("x",), outputs=("y",)):
    entries = [
        {
            "class_name": "InputLayer",
            "name": name,
            "config": {"name": name, "batch_input_shape": [None, 3]},
            "inbound_nodes": [],
        }
        for name in inputs
    ]
    for name, feeders in layers:
        node = [[feeder, 0, 0, {}] for feeder in feeders]
        entries.append({**dense(name), "name": name, "inbound_nodes": [node]})
    config = {"name": "g", "layers": entries}
    config["input_layers"] = [[name, 0, 0] for name in inputs]
    config["output_layers"] = [[name, 0, 0] for name in outputs]
    return {"class_name": "Functional", "keras_version": "2.15.0", "config": config}


def refused(source, match, **options):
    with pytest.raises(KerasFormatError, match=match):
        load_keras(source, **options)


# What is not supported is told at once


def test_all_that_is_not_supported_is_told_at_once():
    layers = [
        dense("first", activation="cube"),
        {"class_name": "Lambda", "config": {"name": "code", "function": ["x"]}},
        {"class_name": "Capsule", "config": {"name": "caps"}},
        dense("last", kernel_regularizer={"class_name": "Mine", "config": {}}),
        {
            "class_name": "Conv2D",
            "config": {
                "name": "conv",
                "filters": -1,
                "kernel_size": [3, 3],
                "magic": 7,
            },
        },
    ]
    with pytest.raises(KerasFormatError) as caught:
        load_keras(stack(*layers))
    text = str(caught.value)
    for part in (
        "6 things stand in the way",
        "'first' (Dense): activation='cube' is unknown",
        "'code' (Lambda): it carries Python code, which is never run",
        "replacements={'code'",
        "'caps' (Capsule): this layer is not supported",
        "'last' (Dense): kernel_regularizer: 'Mine' is unknown",
        "'conv' (Conv2D): filters=-1; wanted a whole number >= 1",
        "'conv' (Conv2D): magic=7 is not supported",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ("{", "JSON string can't be read"),
        ("no/such/file.json", "there is no file no/such/file.json"),
        ([], "got list for source"),
        ({}, 'wanted an object with a "name"'),
        ({"class_name": "Dense", "config": {}}, "holds a 'Dense'; wanted a model"),
        (stack(dense(units=None)), "units=None; wanted a whole number"),
        (stack(dense(units=2.5)), "units=2.5"),
        (stack(dense(units=10**12)), "units=1000000000000"),
        (stack({"class_name": "Dense", "config": {"name": "d"}}), "'units' is missing"),
        (stack(dense(), dense()), "two layers are named 'dense_1'"),
        (stack(dense(), size=-3), r"'dense_1_input' has the shape \[None, -3\]"),
        (stack(dense(units=2**16), dense("b", 2**16)), "4,29.* parameters, and no w"),
        (
            stack(dense(dtype="int8_from_float32"), dense("b", dtype="int8_x")),
            r"(?s)the model is quantized.*dtype='int8_x' is not supported.*'b'\. A qua",
        ),
        (graph(("y", ["z"])), "there is no layer 'z'"),
        (graph(("y", ["b"]), ("b", ["y"])), "in a cycle: b, y"),
        (graph(("y", ["x"]), outputs=("z",)), "there is no layer 'z'"),
        (stack(dense(activation={"class_name": ["x"]})), "activation="),
    ],
)
def test_bad_files_name_the_place(source, match):
    refused(source, match)


def test_a_coefficient_in_an_array_of_keras_3():
    array = {"class_name": "__numpy__", "config": {"value": 0.5, "dtype": "float32"}}
    ridge = {"class_name": "L2", "config": {"l2": array}}
    data = stack(dense(kernel_regularizer=ridge))
    model = load_keras(data, weights=[np.ones((3, 2)), np.zeros(2)])
    assert penalty(model).item() == 3.0
    array["config"] = "damaged"
    refused(data, r"kernel_regularizer: has l2=\{.*\}; wanted a number")
    array["config"] = "damaged" * 1000
    refused(data, r"kernel_regularizer: has l2=\{.{59}; wanted a number")


def test_a_first_layer_without_a_shape():
    data = stack(dense())
    del data["config"]["layers"][0]["config"]["batch_input_shape"]
    refused(data, "'dense_1', has no batch_input_shape")


def test_shapes_that_do_not_fit_name_the_layer():
    kernel = {"name": "conv", "filters": 2, "kernel_size": [3, 3]}
    data = stack(dense(), {"class_name": "Conv2D", "config": kernel})
    refused(data, r"'conv' \(Conv2D\) does not fit .* \[\(2, 2\)\]: the input has 2 ax")


def test_deep_nesting_is_refused():
    data = stack(dense())
    for i in range(40):
        inner = {**data, "config": {**data["config"], "name": f"m{i}"}}
        data = {**data, "config": {"name": "m", "layers": [inner]}}
    refused(data, "nested more than 32 deep")
    refused('{"a":' * 100_000, "can't be read")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"keras_version": "new"}, "got keras_version='new'; wanted a release"),
        ({"axis_order": "tf"}, "got axis_order='tf'; wanted 'keras' or 'torch'"),
        ({"replacements": {"nobody": torch.relu}}, "'nobody'; there is no such layer"),
        ({"replacements": {"dense_1": 3}}, "=3; wanted a module or a function"),
    ],
)
def test_bad_arguments(options, match):
    refused(stack(dense()), match, **options)


# Weights that don't fit


KERNEL, BIAS = np.ones((3, 2)), np.zeros(2)


@pytest.mark.parametrize(
    ("weights", "match"),
    [
        ([KERNEL], r"too few arrays: got 1; wanted 2, .*'dense_1/bias' has none"),
        ([KERNEL, BIAS, BIAS], "too many arrays: got 3; wanted 2"),
        (
            [KERNEL.T, BIAS],
            r"shape \(2, 3\); 'dense_1/kernel' wants \(3, 2\). It is tr",
        ),
        ([KERNEL, np.zeros(3)], r"'dense_1/bias' wants \(2,\)"),
        ([KERNEL, np.array(["a", "b"])], "holds <U1; wanted numbers"),
        ([KERNEL, None], "holds object; wanted numbers"),
        ("no.h5", "there is no file no.h5"),
    ],
)
def test_weights_that_do_not_fit(weights, match):
    refused(stack(dense()), match, weights=weights)


def test_weights_of_another_model(tmp_path):
    path = CASES / "1.1.0-tf_k1_lstm" / "weights.h5"
    refused(
        CASES / "1.1.0-tf_k1_seed_mlp" / "model.json",
        "'lstm_1'.*'dense_3'",
        weights=path,
    )


# Hostile files


def test_links_and_outside_data_are_not_followed(tmp_path):
    (tmp_path / "secret").write_bytes(bytes(48))
    outside = {
        "shape": (3, 2),
        "dtype": "f8",
        "external": [(str(tmp_path / "secret"), 0, 48)],
    }
    for member, match in (
        (h5py.ExternalLink(str(tmp_path / "other.h5"), "/x"), "link .ExternalLink"),
        (h5py.SoftLink("/dense_1/bias"), "link .SoftLink"),
        (outside, "lie in another file"),
    ):
        path = hdf5_file(tmp_path / "w.h5", kernel=member, bias=BIAS)
        refused(stack(dense()), match, weights=path)


def test_arrays_far_larger_than_their_file_are_not_read(tmp_path):
    bomb = {"shape": (30_000, 20_000), "dtype": "f8", "chunks": (1, 1000)}
    path = hdf5_file(tmp_path / "w.h5", kernel=bomb, bias=np.zeros(20_000))
    data = stack(dense(units=20_000), size=30_000)
    refused(data, "would take .* bytes, far more than the", weights=path)
    with zipfile.ZipFile(tmp_path / "w.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0.npy", bytes(2**24))
    refused(stack(dense()), "0.npy would take 16,777,216", weights=tmp_path / "w.npz")


def test_pickles_are_not_loaded(tmp_path):
    np.savez(tmp_path / "w.npz", np.array([KERNEL, {}], dtype=object))
    refused(stack(dense()), r"holds object", weights=tmp_path / "w.npz")


def test_a_keras_zip_is_never_extracted(tmp_path):
    path = tmp_path / "m.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../escaped", "x")
        archive.writestr("config.json", json.dumps(stack(dense())))
    load_keras(path, weights=[KERNEL, BIAS])
    assert sorted(p.name for p in tmp_path.parent.glob("*escaped*")) == []
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("other.txt", "x")
    refused(path, "a zip without config.json")


@pytest.mark.parametrize("form", ["m.keras", "m_legacy.h5", "model.json"])
def test_cut_off_files(tmp_path, form):
    data = (CASES / "3.15_seq_mlp_reg" / form).read_bytes()
    for part in (0, 1, 9, len(data) // 2, len(data) - 1):
        path = tmp_path / form
        path.write_bytes(data[:part])
        with pytest.raises(KerasFormatError):
            load_keras(path)


def test_lambda_code_is_never_run(tmp_path, monkeypatch):
    import marshal

    monkeypatch.setattr(marshal, "loads", lambda *_: pytest.fail("it was unmarshalled"))
    refused(CASES / "1.1.0-tf_k1_lambda" / "model.json", "2 things stand in the way")


# The table, the picture, the command


def test_summary():
    text = summary(load_keras(CASES / "1.2.2-tf_k1_container" / "model.json"))
    rows = [line.split("  ") for line in text.splitlines()]
    rows = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    assert rows[0] == ["layer", "type", "shape", "parameters", "regularizer", "calls"]
    assert ["shared_layers", "Container", "(None, 4)", "59", "2"] in rows
    # 1.2 counts a nested model's penalty once for each call
    assert ["dense_5", "Dense", "(None, 5)", "35", "weight: l2=0.02", "1"] in rows
    assert rows[-1] == ["59 parameters, 59 of them trained"]


def test_open_sizes_are_none():
    conv = {"name": "c", "filters": 4, "kernel_size": [3, 3]}
    data = stack({"class_name": "Conv2D", "config": conv})
    data["config"]["layers"][0]["config"]["batch_input_shape"] = [None, None, 9, 3]
    assert load_keras(data).calls[0].shapes == ((None, None, 7, 4),)


def test_open_sizes_of_large_volumes():
    """The longer input, which shows what is open, would make too many numbers."""
    config = {"name": "c", "filters": 64, "kernel_size": 3, "padding": "same"}
    data = stack({"class_name": "Conv3D", "config": config})
    config["batch_input_shape"] = [None, None, None, None, 1]
    assert load_keras(data).calls[0].shapes == ((None, None, None, None, 64),)


def test_all_tensors_are_made_on_the_default_device():
    with torch.device("meta"):
        model = load_keras(stack(dense()))
    tensors = [*model.parameters(), *model.buffers()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


def test_as_many_outputs_as_an_open_size_says():
    config = {"keras_history": ["x", 0, 0]}
    tensor = {"class_name": "__keras_tensor__", "config": config}
    node = {"args": [tensor], "kwargs": {}}
    data = graph(outputs=("u",))
    data["keras_version"] = "3.15.1"
    data["config"]["layers"][0]["config"]["batch_input_shape"] = [None, None, 3]
    unstack = {"class_name": "Unstack", "module": "keras.src.ops.core", "name": "u"}
    unstack |= {"config": {"name": "u", "axis": 1}, "inbound_nodes": [node]}
    data["config"]["layers"].append(unstack)
    assert load_keras(data).calls[0].shapes[0] == (None, 3)


def test_the_picture_has_a_box_for_each_call():
    from matplotlib.figure import Figure

    model = load_keras(CASES / "3.15_fun_shared" / "model.json")
    ax = draw_graph(Figure().subplots(), model)
    texts = [text.get_text() for text in ax.texts if text.get_text()]
    assert texts.count("shared\ncall 1") == texts.count("shared\ncall 2") == 1
    assert len(texts) == len(model.calls) + 2


def test_check_finds_a_difference(tmp_path):
    folder = CASES / "3.15_seq_mlp_reg"
    model = load_keras(folder / "m.keras")
    found = compare(model, folder / "io.npz")
    assert found.error < 1e-5
    assert found.cost < 1e-6
    with torch.no_grad():
        model.dense_2.bias += 1
    assert compare(model, folder / "io.npz").error > 1e-2
    np.savez(tmp_path / "no.npz", y0=np.zeros(1))
    with pytest.raises(KerasFormatError, match="has 0 inputs x0"):
        compare(model, tmp_path / "no.npz")


def test_the_command(tmp_path, capsys):
    folder, saved = CASES / "1.1.0-tf_k1_lstm", tmp_path / "m.pt"
    arguments = ["keras", str(folder / "model.json"), "--weights"]
    arguments += [str(folder / "weights.h5")]
    more = ["--summary", "--check", str(folder / "io.npz"), "--save", str(saved)]
    assert commands.main([*arguments, *more]) == 0
    out = capsys.readouterr().out
    assert "lstm_1" in out
    assert "It computes what Keras computed." in out
    assert "lstm_1.weight_hh" in torch.load(saved, weights_only=True)
    other = CASES / "1.2.2-tf_k1_lstm" / "model.json"
    assert commands.main(["keras", str(other), *arguments[2:], *more[1:3]]) == 1
    assert "It differs from Keras." in capsys.readouterr().out
    assert commands.main(["keras", "nothing.json"]) == 1
    assert "there is no file nothing.json" in capsys.readouterr().err
    assert commands.main(["keras", str(folder / "model.json")]) == 0
    assert "parameters" in capsys.readouterr().out


def test_weights_that_can_not_be_saved_leave_the_old_file(tmp_path, full_disk, capsys):
    folder, saved = CASES / "1.1.0-tf_k1_lstm", tmp_path / "m.pt"
    saved.write_bytes(b"old")
    command = ["keras", str(folder / "model.json"), "--weights"]
    command += [str(folder / "weights.h5"), "--save", str(saved)]
    assert commands.main(command) == 1
    place = f"keras: {saved} can't be written (No space left on device). "
    assert capsys.readouterr().err.startswith(place)
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt"]
    assert saved.read_bytes() == b"old"


def test_bytes_of_a_file_may_lie_anywhere(tmp_path):
    """A name with spaces and a path object are paths; text with a brace is JSON."""
    path = tmp_path / "my model.json"
    shutil.copy(CASES / "seed" / "model.json", path)
    assert load_keras(str(path)).input_names == load_keras(path).input_names
    text = io.StringIO(path.read_text()).getvalue()
    assert load_keras("\n" + text).input_names == ("dense_1_input",)


# Bidirectional layers of which one half is frozen: Keras writes what trains first


def half_frozen(version, config):
    """A model of one bidirectional layer; its six arrays, forward ones first."""
    inner = {"units": 2, "name": "lstm", **config}
    twin = {**inner, "go_backwards": True, "trainable": True, "name": "twin"}
    layer = {
        "name": "bi",
        "batch_input_shape": [None, 3, 2],
        "layer": {"class_name": "LSTM", "config": inner},
        "backward_layer": {"class_name": "LSTM", "config": twin},
    }
    data = {
        "class_name": "Sequential",
        "keras_version": version,
        "config": [{"class_name": "Bidirectional", "config": layer}],
    }
    shapes = [(2, 8), (2, 8), (8,)] * 2
    rng = np.random.default_rng(0)
    return data, [rng.normal(size=shape) for shape in shapes]


def assert_halves(model, arrays):
    for half, (kernel, recurrent, bias) in (
        (model.bi.forward_layer, arrays[:3]),
        (model.bi.backward_layer, arrays[3:]),
    ):
        tensors = half.weight_ih.t(), half.weight_hh.t(), half.bias
        for got, wanted in zip(tensors, (kernel, recurrent, bias), strict=True):
            assert_close(got.detach(), torch.tensor(wanted, dtype=torch.float32))


NAMES = ("kernel:0", "recurrent_kernel:0", "bias:0")
PLACES = {  # as Keras 2.2.4, tf.keras 2.15 and Keras 3.15 wrote them
    "2.2.4": ("bi_2/forward_lstm_1", "bi_2/backward_lstm_1"),
    "2.15.0": ("bi/forward_lstm/lstm_cell", "bi/backward_lstm/lstm_cell"),
    "3.15.1": ("bi/forward_lstm/lstm_cell", "bi/lstm_3/lstm_cell"),
}


@pytest.mark.parametrize(
    ("version", "trainable"),
    [("2.2.4", True), ("2.15.0", True), ("2.15.0", False), ("3.15.1", False)],
)
def test_a_half_frozen_layer_is_read_by_the_names_of_its_arrays(
    tmp_path, version, trainable
):
    """Who freezes a half after it was made leaves no trace in a config of Keras 2."""
    data, arrays = half_frozen(version, {"trainable": trainable})
    forward, backward = PLACES[version]
    names = [f"{place}/{name}" for place in (backward, forward) for name in NAMES]
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file.attrs["layer_names"] = ["bi"]
        group = file.create_group("bi")
        group.attrs["weight_names"] = names
        for name, array in zip(names, arrays[3:] + arrays[:3], strict=True):
            group[name] = array
    assert_halves(load_keras(data, weights=tmp_path / "w.h5"), arrays)


def test_a_half_frozen_layer_comes_last_in_lists_of_tf_keras_alone():
    """As get_weights() of tf.keras 2.5 and 2.15 and of Keras 3.15 returns them."""
    data, arrays = half_frozen("2.15.0", {"trainable": False})
    assert_halves(load_keras(data, weights=arrays[3:] + arrays[:3]), arrays)
    data, arrays = half_frozen("3.15.1", {"trainable": False})
    assert_halves(load_keras(data, weights=arrays), arrays)
    data, arrays = half_frozen("2.15.0", {"trainable": True})
    assert_halves(load_keras(data, weights=arrays), arrays)
