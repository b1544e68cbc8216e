"""Types of numbers: policies, inputs of other types, and models of float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from course_lib.keras_models import KerasFormatError, load_keras

CASES = Path(__file__).parent / "keras_cases"
HALF = ["mixed_float16_2.15", "mixed_bfloat16_3.15.1", "float16_2.15"]


def load(case):
    files = ("m.keras", "model.h5")
    model = load_keras(next(p for f in files if (p := CASES / case / f).exists()))
    arrays = np.load(CASES / case / "io.npz")
    return model, torch.from_numpy(arrays["x0"]), torch.from_numpy(arrays["y0"])


@pytest.mark.parametrize("case", HALF)
def test_half_precision_is_computed_in_float32(case):
    """Keras computed in halves, so its own numbers are off by about 1e-3."""
    model, x, wanted = load(case)
    got = model(x).detach()
    assert got.dtype == torch.float32
    assert_close(got, wanted.float(), rtol=1e-2, atol=1e-2)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_a_model_of_float64_is_one():
    model, x, wanted = load("2.15_float64")
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    x = x.float()  # its InputLayer is of float32
    assert_close(model(x).detach(), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", [torch.uint8, torch.int64, torch.bool, torch.float64])
def test_images_of_any_type_are_floats_inside(kind):
    model, x, _ = load("3.15.1_uint8_images")
    x = (x > 99).to(kind)
    assert_close(model(x), model(x.float()))
    doubled = model.double()(x)
    assert doubled.dtype == torch.float64
    assert_close(doubled.float(), model.float()(x), rtol=1e-5, atol=1e-5)


def test_floats_are_cut_for_an_input_of_whole_numbers():
    model, x, _ = load("2.15_int_dense")
    assert_close(model(x), model(x.floor()), rtol=0, atol=0)
    assert_close(model(x), model(x.to(torch.int32)), rtol=0, atol=0)


def test_a_type_that_is_unknown_is_reported_once_for_the_layer_of_the_file():
    layer = {"name": "d", "units": 2, "dtype": "odd", "batch_input_shape": [None, 1]}
    layers = [{"class_name": "Dense", "config": layer}]
    data = {"class_name": "Sequential", "keras_version": "2.15.0", "config": layers}
    with pytest.raises(KerasFormatError, match="here of layer 'd'") as caught:
        load_keras(data)
    assert str(caught.value).count("dtype='odd'") == 1


def divided(kind, *behind, **options):
    """A model that divides an input of that type by 2."""
    entries = [
        ("x", "InputLayer", {"batch_input_shape": [None, 3], "dtype": kind}, []),
        ("half", "TFOpLambda", {"function": "math.truediv"}, [["x", 0, 0, {"y": 2}]]),
        *behind,
    ]
    layers = [
        {"name": n, "class_name": c, "config": {"name": n, **f}, "inbound_nodes": b}
        for n, c, f, b in entries
    ]
    config = {"name": "m", "layers": layers, "input_layers": [["x", 0, 0]]}
    config["output_layers"] = [[layers[-1]["name"], 0, 0]]
    data = {"class_name": "Functional", "keras_version": "2.15.0", "config": config}
    return load_keras(data, **options)


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        *((small, torch.float32) for small in ("uint8", "int8", "int16")),
        *((large, torch.float64) for large in ("int32", "int64", "uint32")),
    ],
)
def test_whole_numbers_are_divided_in_tensorflows_type(kind, wanted):
    y = divided(kind)(torch.tensor([[1, 2, 3]]))
    assert y.dtype == wanted
    assert y.tolist() == [[0.5, 1.0, 1.5]]


BEHIND = [
    ("d", "Dense", {"units": 1}, [[["half", 0, 0, {}]]]),
    ("d", "Activation", {"activation": "relu"}, [[["half", 0, 0, {}]]]),
]


@pytest.mark.parametrize("layer", BEHIND, ids=["Dense", "Activation"])
@pytest.mark.parametrize("kind", ["uint8", "int32"])
def test_layers_take_quotients_in_the_models_type(kind, layer):
    """As tf.keras 2.15 does: its layers return float32 here."""
    model = divided(kind, layer)
    x = torch.tensor([[1, 2, 3]])
    assert model(x).dtype == torch.float32
    doubled = model.double()(x)
    assert doubled.dtype == torch.float64
    assert_close(model.float()(x), doubled.float())


def test_halves_too_go_on_in_the_models_type():
    cast = (
        "c",
        "TFOpLambda",
        {"function": "cast"},
        [["half", 0, 0, {"dtype": "half"}]],
    )
    dense = ("d", "Dense", {"units": 1}, [[["c", 0, 0, {}]]])
    weights = [np.ones((3, 1)), np.zeros(1)]
    model = divided("float32", cast, dense, weights=weights)
    for own in (torch.float32, torch.float64):
        y = model.to(own)(torch.tensor([[1.0, 2.0, 3.0]]))
        assert (y.dtype, y.item()) == (own, 3.0)


@pytest.mark.parametrize(
    ("version", "wanted"),
    [("2.2.4", [0, 5, 10, 10]), ("2.15.0", [0, 2.5, 7.5, 10])],
)
def test_between_whole_numbers_lie_floats(version, wanted):
    config = {"size": [1, 2], "interpolation": "bilinear"}
    images = torch.tensor([[[[0], [10]]]], dtype=torch.uint8)
    y = of_images("UpSampling2D", config, version)(images)
    assert y.dtype == torch.float32
    assert y.flatten().tolist() == wanted
    config["interpolation"] = "nearest"
    y = of_images("UpSampling2D", config, version)(images)
    assert (y.dtype, y.flatten().tolist()) == (torch.uint8, [0, 0, 10, 10])


def of_images(kind, config, version, *behind):
    """A model of images of uint8, one by two pixels."""
    first = {"batch_input_shape": [None, 1, 2, 1], "dtype": "uint8"}
    layers = [("InputLayer", first), (kind, config), *behind]
    entries = [
        {"class_name": name, "config": {"name": f"l{i}", **settings}}
        for i, (name, settings) in enumerate(layers)
    ]
    config = {"name": "m", "layers": entries}
    data = {"class_name": "Sequential", "keras_version": version, "config": config}
    return load_keras(data)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("UpSampling2D", {"interpolation": "bilinear"}),
        ("Resizing", {"height": 2, "width": 2}),
        ("CenterCrop", {"height": 1, "width": 1}),
        ("RandomFlip", {}),
    ],
)
def test_floats_of_images_go_on_in_the_models_type(kind, config):
    model = of_images(kind, config, "2.15.0", ("Dense", {"units": 1}))
    images = torch.tensor([[[[0], [10]]]], dtype=torch.uint8)
    y = model(images)
    doubled = model.double()(images)
    assert (y.dtype, doubled.dtype) == (torch.float32, torch.float64)
    assert_close(y, doubled.float())


def test_rows_of_a_table_are_not_rounded_in_halves():
    """2049 is no number of float16, and so would be another row."""
    layer = {"name": "e", "input_dim": 2100, "output_dim": 1}
    layer["batch_input_shape"] = [None, 1]
    layers = [{"class_name": "Embedding", "config": layer}]
    table = np.arange(2100.0)[:, None] % 7
    data = {"class_name": "Sequential", "keras_version": "2.15.0", "config": layers}
    model = load_keras(data, weights=[table]).half()
    assert model(torch.tensor([[2049]])).item() == 2049 % 7
