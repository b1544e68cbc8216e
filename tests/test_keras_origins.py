"""Who wrote the weights: backends, and what files leave out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from test_keras_models import CASES, compare, known
from torch.testing import assert_close

from course_lib.keras_models import KerasFormatError, load_keras
from course_lib.regularization import penalty

BACKEND = CASES / "backend"


def computed(model, path: Path) -> None:
    """Compare with what the original Keras computed."""
    arrays = np.load(path)
    got = model(torch.from_numpy(arrays["x0"])).detach()
    assert_close(got, torch.from_numpy(arrays["y0"]), rtol=1e-5, atol=1e-5)


def json_of(case: str, **changes) -> dict:
    return {**json.loads((CASES / case / "model.json").read_text()), **changes}


def arrays_of(case: str) -> list[np.ndarray]:
    arrays = np.load(CASES / case / "weights.npz")
    return [arrays[name] for name in arrays.files]


# Backends


@pytest.mark.parametrize("written", ["theano", "tensorflow", None])
@pytest.mark.parametrize("weights", ["theano", "tensorflow"])
def test_kernels_are_those_of_the_weights_own_backend(written, weights):
    data = json.loads((BACKEND / "model.json").read_text())
    data.pop("backend")
    if written is not None:
        data["backend"] = written
    model = load_keras(data, weights=BACKEND / f"{weights}.h5")
    computed(model, BACKEND / f"{weights}.io.npz")


@pytest.mark.parametrize("other", ["theano", "tensorflow"])
def test_the_callers_word_overrules_the_file(other):
    data = json.loads((BACKEND / "model.json").read_text())
    weights = BACKEND / f"{other}.h5"
    model = load_keras(data, weights=weights, theano_kernels=other != "theano")
    x = torch.from_numpy(np.load(BACKEND / f"{other}.io.npz")["x0"])
    turned = load_keras(data, weights=weights)
    with torch.no_grad():
        turned.child("c").weight.copy_(turned.child("c").weight.flip(2, 3))
    assert_close(model(x), turned(x))


def test_a_list_of_arrays_is_of_the_jsons_backend():
    case = "2.2.4-th_conv2d_first"
    compare(load_keras(json_of(case), weights=arrays_of(case)), case)
    compare(
        load_keras(
            json_of(case, backend="tensorflow"),
            weights=arrays_of(case),
            theano_kernels=True,
        ),
        case,
    )


def test_without_weights_the_jsons_backend_pads():
    windows = [
        [layer.window.amounts((8, 8)) for layer in model.children()]
        for model in (
            load_keras(json_of("2.2.4-th_pool2d_first")),
            load_keras(json_of("2.2.4-th_pool2d_first", backend="tensorflow")),
        )
    ]
    assert windows[0][0] == [(1, 0), (1, 0)]
    assert windows[1][0] == [(0, 1), (0, 1)]


def test_the_padding_of_keras_1_on_theano_is_asked_for():
    case = "1.2.2-th_pool2d_tf"
    model = load_keras(json_of(case), weights=arrays_of(case))
    inputs, wanted, _ = known(case)
    assert not torch.allclose(model(*inputs)[0], wanted[0], atol=1e-3)


def test_words_for_a_wrong_choice():
    with pytest.raises(KerasFormatError, match="theano_kernels='yes'"):
        load_keras(json_of("2.2.4-th_conv13"), theano_kernels="yes")
    with pytest.raises(KerasFormatError, match="data_format='th'"):
        load_keras(json_of("2.2.4-th_conv13"), data_format="th")


# The dim_ordering that Keras 1 did not write


SILENT = "1.2.2-padcrop"


def test_an_ordering_that_no_layer_tells_is_asked_for():
    with pytest.raises(KerasFormatError, match="data_format=") as raised:
        load_keras(CASES / SILENT / "model.h5")
    for name in ("zeropadding2d_1", "cropping2d_1", "upsampling2d_1"):
        assert f"layer '{name}'" in str(raised.value)


def crop(*orderings: str) -> dict:
    """Return a Cropping2D of Keras 1 behind pools of these orderings."""
    pool = {"pool_size": [1, 1], "strides": [1, 1], "border_mode": "valid"}
    layers = [
        {"class_name": "MaxPooling2D", "config": {**pool, "dim_ordering": ordering}}
        for ordering in orderings
    ]
    cropping = {"class_name": "Cropping2D", "config": {"cropping": [[1, 0], [0, 0]]}}
    layers.append(cropping)
    for number, layer in enumerate(layers):
        layer["config"]["name"] = f"layer_{number}"
    layers[0]["config"]["batch_input_shape"] = [None, 3, 4, 5]
    return {"class_name": "Sequential", "keras_version": "1.2.2", "config": layers}


def test_the_other_layers_tell_where_they_agree():
    x = torch.zeros(1, 3, 4, 5)
    assert load_keras(crop("th", "th"))(x).shape == (1, 3, 3, 5)
    assert load_keras(crop("tf"))(x).shape == (1, 2, 4, 5)
    assert load_keras(crop("tf"), data_format="channels_first")(x).shape[2] == 3
    with pytest.raises(KerasFormatError, match="don't say"):
        load_keras(crop("tf", "th"))
    assert load_keras(crop("tf", "th"), data_format="channels_last")(x).shape[1] == 2


def test_spatial_dropout_drops_along_the_other_layers_channels():
    data = json_of("2.2.4-th_pool2d_first")
    layers = data["config"]["layers"]
    pool = layers[1]
    layers[1] = {
        "name": pool["name"],
        "class_name": "SpatialDropout2D",
        "config": {"name": pool["name"], "rate": 0.5},
        "inbound_nodes": pool["inbound_nodes"],
    }
    model = load_keras(data).train()
    y = model(torch.ones(4, 2, 8, 7))[0]
    assert set(y.mean((2, 3)).flatten().tolist()) <= {0.0, 2.0}


# cuDNN's layouts


def one_layer(kind: str, **settings) -> dict:
    config = {"name": "rnn", "units": 3, "batch_input_shape": [None, 5, 4], **settings}
    return {
        "class_name": "Sequential",
        "keras_version": "2.2.4",
        "config": [{"class_name": kind, "config": config}],
    }


def test_a_gru_of_other_equations_takes_no_weights_of_cudnn():
    weights = CASES / "2.2.4_GRU_of_cudnn_cudnn" / "weights.h5"
    data = json_of("2.2.4_GRU_of_cudnn_plain")
    for layer in data["config"]["layers"]:
        if layer["name"] == "rnn":
            layer["config"]["reset_after"] = False
    with pytest.raises(KerasFormatError, match=r"bias.*\(18,\).*wants \(9,\)"):
        load_keras(data, weights=weights)


def test_a_bias_of_neither_length_is_refused():
    arrays = [np.zeros((4, 12)), np.zeros((3, 12)), np.zeros(36)]
    with pytest.raises(KerasFormatError, match=r"wants \(12,\) or \(24,\)"):
        load_keras(one_layer("LSTM"), weights=arrays)


def test_cudnns_forget_gate_begins_at_one():
    model = load_keras(one_layer("CuDNNLSTM", unit_forget_bias=True))
    wanted = torch.zeros(2, 12)
    wanted[1, 3:6] = 1
    assert_close(model.rnn.bias.detach(), wanted)


def test_the_axes_of_a_constraint_on_cudnn_are_unknown():
    constraint = {"class_name": "MaxNorm", "config": {"max_value": 1.0, "axis": 0}}
    data = one_layer("CuDNNGRU", kernel_constraint=constraint)
    with pytest.raises(KerasFormatError, match="kernel_constraint"):
        load_keras(data)


# Layers as activations


def dense_with(activation) -> dict:
    data = one_layer("Dense", activation=activation)
    data["config"][0]["config"]["batch_input_shape"] = [None, 4]
    return data


@pytest.mark.parametrize(
    ("activation", "words"),
    [
        ({"class_name": "Mine", "config": {}}, "activation='Mine' is unknown"),
        ({"class_name": "PReLU", "config": {}}, "activation='PReLU' is unknown"),
        (
            {"class_name": "LeakyReLU", "config": {"alpha": 0.1, "extra": 2}},
            r"\(LeakyReLU, activation of Dense\): extra=2",
        ),
    ],
)
def test_an_activation_is_blamed_itself(activation, words):
    with pytest.raises(KerasFormatError, match=words):
        load_keras(dense_with(activation))


# Layers of Keras 1, and locally connected ones


STEPS = sorted(path.parent.name for path in CASES.glob("*/after.npz"))


@pytest.mark.parametrize("case", STEPS)
def test_a_step_of_gradient_descent_is_keras_own(case):
    """after.npz has the weights less 0.1 times the gradients that Keras computed.

    They are of the outputs' mean squares and the penalties, of which 1.1 has none here.
    """
    model = load_keras(
        CASES / case / "model.json", weights=CASES / case / "weights.npz"
    )
    inputs, _, _ = known(case)
    cost = sum(y.square().mean() for y in model(*inputs)) + penalty(model)
    cost.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.1 * parameter.grad
    after = load_keras(CASES / case / "model.json", weights=CASES / case / "after.npz")
    assert len(list(model.parameters())) > 5
    for name, parameter in after.named_parameters():
        got = model.get_parameter(name)
        assert_close(got, parameter, rtol=1e-5, atol=1e-5, msg=name)


def old(kind: str, shape: list, **settings) -> dict:
    config = {"name": "layer", "batch_input_shape": [None, *shape], **settings}
    return {
        "class_name": "Sequential",
        "keras_version": "1.2.2",
        "config": [{"class_name": kind, "config": config}],
    }


def test_shared_axes_of_an_s_shaped_relu():
    data = old("SReLU", [4, 5, 2], shared_axes=[1, 2])
    numbers = [[0.1, -0.2], [0.5, -0.5], [-1.0, 0.3], [2.0, 0.0]]
    arrays = [np.array(row, dtype=np.float32).reshape(1, 1, 2) for row in numbers]
    x = torch.linspace(-3, 3, 40).reshape(1, 4, 5, 2)
    y = load_keras(data, weights=arrays)(x).detach()
    for channel, (low, left, width, right) in enumerate(zip(*numbers, strict=True)):
        high = low + abs(width)
        z = x[..., channel]
        wanted = torch.where(z <= low, low + left * (z - low), z)
        wanted = torch.where(z >= high, high + right * (z - high), wanted)
        assert_close(y[..., channel], wanted)


def test_the_gate_of_a_highway_begins_where_it_is_set():
    model = load_keras(old("Highway", [3], transform_bias=-2))
    assert model.layer.bias_carry.tolist() == [-2.0, -2.0, -2.0]
    assert load_keras(old("Highway", [3])).layer.bias_carry.tolist() == [1.0] * 3


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (old("Highway", [3, 4]), r"3 axes; wanted 2, \(batch, features\)"),
        (old("MaxoutDense", [3, 4], output_dim=2), r"3 axes; wanted 2, \(batch, feat"),
        (
            old("LocallyConnected1D", [3, 4], nb_filter=2, filter_length=5),
            "larger than the input",
        ),
        (
            old(
                "LocallyConnected1D",
                [9, 4],
                nb_filter=2,
                filter_length=3,
                border_mode="same",
            ),
            "implementation=1",
        ),
    ],
)
def test_words_for_rare_layers_that_do_not_fit(data, words):
    with pytest.raises(KerasFormatError, match=words):
        load_keras(data)
