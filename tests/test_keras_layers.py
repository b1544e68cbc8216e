"""What single layers of imported models do besides computing Keras's numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from course_lib.keras_models import KerasFormatError, load_keras
from course_lib.keras_models.layers.images import RANDOM
from course_lib.keras_models.layers.resize import METHODS, resize

CASES = Path(__file__).parent / "keras_cases"


def functional(layers, calls, version="2.15.0", shape=(4,)):
    """A model of one input; `calls` are (layer, what it takes, its arguments)."""
    entries = [
        {
            "class_name": "InputLayer",
            "name": "x",
            "config": {"name": "x", "batch_input_shape": [None, *shape]},
            "inbound_nodes": [],
        }
    ]
    for (name, kind, config), (_, taken, kwargs) in zip(layers, calls, strict=True):
        config = {"name": name, **config}
        nodes = [[[taken, 0, 0, kwargs]]]
        entries.append(
            {"class_name": kind, "name": name, "config": config, "inbound_nodes": nodes}
        )
    config = {
        "name": "model",
        "layers": entries,
        "input_layers": [["x", 0, 0]],
        "output_layers": [[layers[-1][0], 0, 0]],
    }
    return {"class_name": "Functional", "keras_version": version, "config": config}


def single(kind, config, *, version="2.15.0", shape=(4,), **options):
    """A model of one layer."""
    data = functional([("layer", kind, config)], [("layer", "x", {})], version, shape)
    return load_keras(data, **options)


# Random changes of images


@pytest.mark.parametrize("kind", RANDOM)
def test_a_random_change_is_left_out_only_where_keras_leaves_it_out(kind):
    model = single(kind, {"factor": 0.2}, version="3.15.0", shape=(4, 4, 3))
    x = torch.rand(2, 4, 4, 3)
    assert torch.equal(model(x), x)
    with pytest.raises(NotImplementedError, match=rf"'layer' \({kind}\).*Identity"):
        model.train()(x)


def test_a_random_change_trains_with_a_replacement_or_in_eval_mode():
    x = torch.rand(2, 4, 4, 3)
    shape = (4, 4, 3)
    own = single("RandomFlip", {}, shape=shape, replacements={"layer": nn.Identity()})
    assert torch.equal(own.train()(x), x)
    model = single("RandomFlip", {}, shape=shape).train()
    model.layer.eval()
    assert torch.equal(model(x), x)


def test_the_versions_that_crop_elsewhere_are_refused():
    config = {"height": 2, "width": 2}
    with pytest.raises(KerasFormatError, match=r"keras_version='3\.5\.0' is not supp"):
        single("RandomCrop", config, version="3.5.0", shape=(4, 4, 3))


# Resizing


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [(5, 12), (13, 4), (8, 9), (1, 1)])
def test_an_even_image_stays_even_and_the_mean_in_place(method, size):
    even = torch.full((1, 2, 8, 9), 0.25)
    assert_close(resize(even, size, method), torch.full((1, 2, *size), 0.25))
    assert resize(even.to("meta"), size, method).shape == (1, 2, *size)
    # Mirrored images give mirrored results: pixels are counted from their middles.
    x = torch.rand(1, 1, 8, 9)
    if method != "nearest":
        flipped = resize(x.flip(2, 3), size, method).flip(2, 3)
        assert_close(resize(x, size, method), flipped)


def test_with_antialias_bicubic_is_torchs_own():
    x = torch.rand(2, 3, 9, 8)
    wanted = F.interpolate(x, (4, 3), mode="bicubic", antialias=True)
    assert_close(resize(x, (4, 3), "bicubic", antialias=True), wanted)


def test_area_is_the_mean_of_what_a_pixel_covers():
    x = torch.rand(2, 3, 8, 6)
    assert_close(resize(x, (4, 2), "area"), F.avg_pool2d(x, (2, 3)))


# Calls with training=


NORM = ("norm", "BatchNormalization", {"axis": -1, "momentum": 0.5})
DROP = ("drop", "Dropout", {"rate": 0.5})


def test_a_call_with_training_false_keeps_its_statistics():
    data = functional([NORM], [("norm", "x", {"training": False})])
    model = load_keras(data).train()
    before = model.norm.running_mean.clone()
    x = torch.rand(8, 4) + 3
    y = model(x)
    assert torch.equal(model.norm.running_mean, before)
    assert_close(y, x / (1 + 1e-3) ** 0.5)
    assert model.norm.training
    plain = load_keras(functional([NORM], [("norm", "x", {})])).train()
    plain(x)
    assert not torch.equal(plain.norm.running_mean, before)


def test_a_call_with_training_true_drops_also_in_eval_mode():
    data = functional([DROP], [("drop", "x", {"training": True})])
    model = load_keras(data)
    zeros = (model(torch.ones(500, 4)) == 0).float().mean()
    assert 0.4 < zeros < 0.6
    assert not model.drop.training


@pytest.mark.parametrize("case", ["2.15_steps_apart", "3.15_steps_apart"])
def test_a_batch_norm_in_time_distributed_moves_as_in_keras(case):
    """Keras 3 once for each step, tf.keras once for all."""
    arrays = np.load(CASES / case / "io.npz")
    model = load_keras(CASES / case / "m.keras").train()
    with torch.no_grad():
        model(torch.from_numpy(arrays["x0"]))
    (norm,) = (part for part in model.modules() if hasattr(part, "running_mean"))
    assert_close(norm.running_mean, torch.from_numpy(arrays["mean"]))
    assert_close(norm.running_var, torch.from_numpy(arrays["var"]))


def test_calls_in_several_modes_move_the_statistics_in_keras_own_order():
    arrays = np.load(CASES / "2.15_bn_modes" / "io.npz")
    model = load_keras(CASES / "2.15_bn_modes" / "m.keras")
    with torch.no_grad():
        model(torch.from_numpy(arrays["x0"]))
    (norm,) = (part for part in model.modules() if hasattr(part, "running_mean"))
    assert_close(norm.running_mean, torch.from_numpy(arrays["mean"]))
    assert_close(norm.running_var, torch.from_numpy(arrays["var"]))


def test_keras_3_overrides_what_a_call_wrote():
    layer = {"module": "keras.layers", "registered_name": None, "class_name": "Dropout"}
    tensor = {
        "class_name": "__keras_tensor__",
        "config": {
            "shape": [None, 4],
            "dtype": "float32",
            "keras_history": ["x", 0, 0],
        },
    }
    start = {"name": "x", "batch_shape": [None, 4]}
    layers = [
        {**layer, "class_name": "InputLayer", "name": "x", "config": start}
        | {"inbound_nodes": []},
        {**layer, "name": "drop", "config": {"name": "drop", "rate": 0.5}}
        | {"inbound_nodes": [{"args": [tensor], "kwargs": {"training": True}}]},
    ]
    config = {"name": "m", "layers": layers, "input_layers": ["x", 0, 0]}
    config["output_layers"] = ["drop", 0, 0]
    data = {"class_name": "Functional", "module": "keras", "config": config}
    model = load_keras(data, keras_version="3.15.0")
    assert torch.equal(model(torch.ones(9, 4)), torch.ones(9, 4))


# Spectral normalization


def test_training_divides_the_kernel_by_its_spectral_norm():
    inner = {"class_name": "Dense", "config": {"name": "inner", "units": 3}}
    config = {"layer": inner, "power_iterations": 2}
    kernel = np.arange(12.0).reshape(4, 3) - 4
    start = np.array([[1.0, 2.0, -1.0]])
    model = single("SpectralNormalization", config, weights=[kernel, np.ones(3), start])
    x = torch.rand(5, 4)
    assert_close(model(x), x @ torch.from_numpy(kernel).float() + 1)
    u = start
    for _ in range(2):
        v = u @ kernel.T
        v /= np.linalg.norm(v)
        u = v @ kernel
        u /= np.linalg.norm(u)
    normed = kernel / (v @ kernel @ u.T)
    y = model.train()(x)
    assert_close(y.detach(), x @ torch.from_numpy(normed).float() + 1)
    assert_close(model.layer.vector_u, torch.from_numpy(u).float())
    for _ in range(30):
        model(x)
    largest = torch.linalg.matrix_norm(model.layer.layer.weight.detach(), 2)
    assert_close(largest, torch.tensor(1.0))
    model(x).sum().backward()
    assert_close(model.layer.layer.weight.grad, x.sum(0).expand(3, 4))


@pytest.mark.parametrize("version", ["2.15", "3.15"])
def test_both_kinds_of_files_hold_the_vector(version):
    folder = CASES / f"{version}_normalizations"
    found = [load_keras(folder / f).state_dict() for f in ("m.keras", "m_legacy.h5")]
    names = [name for name in found[0] if name.endswith("vector_u")]
    assert len(names) == 4
    for name in names:
        assert_close(found[0][name], found[1][name], rtol=0, atol=0)


def test_spectral_normalization_of_zeros_stays_zero():
    inner = {"class_name": "Dense", "config": {"name": "inner", "units": 3}}
    arrays = [np.zeros((4, 3)), np.zeros(3), np.ones((1, 3))]
    model = single("SpectralNormalization", {"layer": inner}, weights=arrays).train()
    assert torch.equal(model(torch.rand(2, 4)), torch.zeros(2, 3))


def test_stochastic_depth_drops_whole_samples():
    model = single("StochasticDepth", {"drop_path_rate": 0.25}, shape=(3, 2)).train()
    y = model(torch.ones(4000, 3, 2)).flatten(1)
    assert (y == y[:, :1]).all()
    assert y.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert 0.2 < (y[:, 0] == 0).float().mean() < 0.3


# Layers of other packages


@pytest.mark.parametrize(
    ("entry", "package"),
    [
        ({"module": "my_layers", "registered_name": "mine>Dense"}, "my_layers"),
        ({"module": None, "registered_name": "mine>Dense"}, "mine"),
        ({"class_name": "Addons>Dense"}, "Addons"),
        ({"class_name": "QDense"}, "qkeras"),
        ({"class_name": "QActivation"}, "qkeras"),
        ({"class_name": "QConv2DBatchnorm"}, "qkeras"),
        ({"class_name": "PruneLowMagnitude"}, "tfmot"),
    ],
)
def test_a_layer_of_another_package_is_refused_by_its_name(entry, package):
    data = functional([("d", "Dense", {"units": 2})], [("d", "x", {})])
    data["config"]["layers"][1] |= entry
    with pytest.raises(KerasFormatError, match=package):
        load_keras(data)
    model = load_keras(data, replacements={"d": nn.Linear(4, 2)})
    assert model(torch.ones(1, 4)).shape == (1, 2)


# Wrong settings


@pytest.mark.parametrize(
    ("kind", "config", "match"),
    [
        ("GroupNormalization", {"groups": 3}, "4 channels don't make 3 equal groups"),
        ("GroupNormalization", {"groups": 0}, "groups=0; wanted a number above 0"),
        ("LayerNormalization", {"axis": 0}, "axis=0 is the batch"),
        ("EinsumDense", {"equation": "ab", "output_shape": 3}, "equation='ab'; wanted"),
        ("Discretization", {"num_bins": 4}, "boundaries were adapted to data"),
        ("IntegerLookup", {"max_tokens": 4}, "vocabulary was adapted to data"),
        ("CategoryEncoding", {}, "num_tokens=None; wanted a whole number"),
        ("LayerScale", {"init_values": 1, "projection_dim": 3}, "it has 4 channels"),
        ("Reshape", {"target_shape": None}, "target_shape=None; wanted a whole number"),
        ("Conv1D", {"filters": 2, "kernel_size": 2}, "with the batch and the channels"),
        ("LSTM", {"units": 2}, r"2 axes; wanted 3, \(batch, steps, features\)"),
    ],
)
def test_what_cannot_be_right_is_refused(kind, config, match):
    with pytest.raises(KerasFormatError, match=match):
        single(kind, config)


SMALL = {"name": "L2", "config": {"l2": 0.1}}
POSITIVE = {"class_name": "NonNeg", "config": {}}
IMAGES = (6, 6, 2)


@pytest.mark.parametrize(
    ("key", "value"), [("kernel_regularizer", SMALL), ("kernel_constraint", POSITIVE)]
)
def test_a_layer_without_a_plain_kernel_does_not_drop_its_settings(key, value):
    with pytest.raises(KerasFormatError, match=f"{key}=.*is not supported"):
        single("DepthwiseConv2D", {"kernel_size": 3, key: value}, shape=IMAGES)


def test_an_initializer_of_no_kernel_is_ignored():
    config = {"kernel_size": 3, "kernel_initializer": "zeros"}
    assert single("DepthwiseConv2D", config, shape=IMAGES).layer.weight.any()


@pytest.mark.parametrize("key", ["kernel_regularizer", "kernel_constraint"])
def test_a_separable_convolution_ignores_a_kernel_as_keras_does(key):
    mine = {"class_name": "Mine", "config": {}}
    config = {"filters": 2, "kernel_size": 3, key: mine}
    model = single("SeparableConv2D", config, shape=IMAGES)
    assert model(torch.ones(1, *IMAGES)).shape == (1, 4, 4, 2)


def test_null_in_a_shape_stands_for_what_is_left():
    model = single("Reshape", {"target_shape": [None, 2]})
    assert model(torch.ones(1, 4)).shape == (1, 2, 2)


def test_a_lookup_without_a_place_for_unknown_numbers_says_so():
    config = {"vocabulary": [5, 7], "num_oov_indices": 0}
    model = single("IntegerLookup", config, shape=(2,))
    assert model(torch.tensor([[7, 5]])).tolist() == [[1, 0]]
    with pytest.raises(ValueError, match="numbers that its vocabulary lacks"):
        model(torch.tensor([[7, 6]]))


# Layers inside of others, and integers


def inside(kind, inner, **config):
    return {"class_name": kind, "config": {"name": "in", "units": 3, **inner}} | config


@pytest.mark.parametrize(
    ("kind", "config", "frozen"),
    [
        ("TimeDistributed", {"layer": inside("Dense", {"trainable": False})}, "all"),
        ("TimeDistributed", {"layer": inside("Dense", {})}, "none"),
        ("Bidirectional", {"layer": inside("LSTM", {"trainable": False})}, "all"),
        ("RNN", {"cell": inside("LSTMCell", {"trainable": False})}, "all"),
        (
            "Bidirectional",
            {
                "layer": inside("LSTM", {}),
                "backward_layer": inside(
                    "LSTM", {"go_backwards": True, "trainable": False}
                ),
            },
            "backward_layer",
        ),
        (
            "RNN",
            {
                "cell": [
                    inside("LSTMCell", {"trainable": False}),
                    inside("GRUCell", {}),
                ]
            },
            "cells.0",
        ),
    ],
)
def test_a_frozen_layer_inside_another_does_not_train(kind, config, frozen):
    model = single(kind, config, shape=(5, 4))
    trained = {name: p.requires_grad for name, p in model.named_parameters()}
    wanted = {
        name: frozen == "none" or (frozen != "all" and frozen not in name)
        for name in trained
    }
    assert trained == wanted


@pytest.mark.parametrize("case", ["2.15_uint8_crops", "3.15_uint8_images_layers"])
def test_whole_numbers_leave_image_layers_in_keras_own_type(case):
    arrays = np.load(CASES / case / "io.npz")
    got = load_keras(CASES / case / "m.keras")(torch.from_numpy(arrays["x0"]))
    for i, one in enumerate(got):
        assert one.dtype == torch.from_numpy(arrays[f"y{i}"]).dtype
    assert min(one.min() for one in got) == (-200 if case[0] == "2" else 0)


def test_a_stateful_layer_of_tf_keras_goes_on_from_what_it_remembers():
    folder = CASES / "2.15_stateful_given"
    arrays = {k: torch.from_numpy(v) for k, v in np.load(folder / "io.npz").items()}
    model = load_keras(folder / "m.keras")
    with torch.no_grad():
        for wanted in (arrays["y0"], arrays["z0"]):  # the first and the second call
            assert_close(model(arrays["x0"], arrays["x1"]), wanted)
        model.reset_states()
        assert_close(model(arrays["x0"], arrays["x1"]), arrays["y0"])


def test_identity_drops_the_mask_in_tf_keras():
    layers = [
        ("mask", "Masking", {"mask_value": 0.0}),
        ("same", "Identity", {}),
        ("mean", "GlobalAveragePooling1D", {}),
    ]
    calls = [("mask", "x", {}), ("same", "mask", {}), ("mean", "same", {})]
    model = load_keras(functional(layers, calls, shape=(3, 1)))
    assert model(torch.tensor([[[2.0], [4.0], [0.0]]])).item() == 2  # of 3 steps, not 2


def test_stacked_cells_go_on_from_what_they_remember():
    cells = [inside("LSTMCell", {}), inside("GRUCell", {})]
    config = {"cell": cells, "return_sequences": True}
    whole = single("RNN", config, shape=(6, 4))
    parts = single("RNN", {**config, "stateful": True}, shape=(3, 4))
    parts.load_state_dict(whole.state_dict())
    x = torch.randn(2, 6, 4)
    with torch.no_grad():
        got = torch.cat([parts(x[:, :3]), parts(x[:, 3:])], 1)
        assert_close(got, whole(x))


def test_minus_one_group_is_one_for_each_channel():
    x = torch.randn(3, 5, 4)
    got, wanted = (
        single("GroupNormalization", {"groups": groups}, shape=(5, 4))(x)
        for groups in (-1, 4)
    )
    assert_close(got, wanted)
