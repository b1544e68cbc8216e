"""Masks: what each layer makes of them in each era, and what it computes under one.

Outputs under masks are in keras_cases, whose folders with "mask" in their name the
battery of test_keras_models runs. Here are the rules themselves, training, and errors.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from keras_live_masks import LAYERS, OLD_LAYERS, entry, samples
from torch.testing import assert_close

from course_lib.keras_models import load_keras

CASES = Path(__file__).parent / "keras_cases"


@pytest.mark.parametrize("version", ["2.15", "3.15.1"])
def test_batch_statistics_leave_masked_steps_out(version):
    folder = CASES / f"masked_training_{version}"
    model, io = load_keras(folder / "m.keras").train(), np.load(folder / "io.npz")
    got = model(torch.from_numpy(io["x0"])).detach()
    assert_close(got, torch.from_numpy(io["train"]), rtol=1e-5, atol=1e-6)
    moved = {name.rpartition(".")[2]: tensor for name, tensor in model.named_buffers()}
    for name, key in (("running_mean", "mean"), ("running_var", "var")):
        assert_close(moved[name], torch.from_numpy(io[key]), rtol=1e-5, atol=1e-6)


def normalization(version, *, shape=(4, 2), axis=-1, masked=True, **rest):
    """A masked batch normalization, with momentum 1/2."""
    mask = {"name": "mask", "mask_value": 0.0, "batch_input_shape": [None, *shape]}
    config = {"name": "bn", "axis": axis, "momentum": 0.5, "epsilon": 1e-3, **rest}
    layers = [("BatchNormalization", config)]
    if masked:
        layers.insert(0, ("Masking", mask))
    else:
        config["batch_input_shape"] = [None, *shape]
    return stack(version, *layers)


def stack(version, *layers):
    entries = [{"class_name": kind, "config": config} for kind, config in layers]
    data = {"class_name": "Sequential", "keras_version": version}
    if version >= "3":
        first = entries[0]["config"]
        first["batch_shape"] = first.pop("batch_input_shape")
        for entry in entries:
            entry["module"] = "keras.layers"
    return load_keras({**data, "config": {"name": "m", "layers": entries}})


@pytest.mark.parametrize(
    ("version", "axis", "counted"),
    [
        ("2.11.0", -1, 4),  # the mask came with 2.12.0
        ("2.12.0", -1, 3),
        ("2.15.0", -1, 3),
        ("3.0.5", -1, 3),
        ("3.15.1", -1, 3),
        ("2.2.4", -1, 4),
        ("2.15.0", 1, None),
    ],
)
def test_which_versions_leave_masked_steps_out(version, axis, counted):
    model = normalization(version, axis=axis).train()
    x = torch.tensor([[[1.0, 4.0], [2.0, 6.0], [6.0, 5.0], [0.0, 0.0]]])
    model(x)
    state = model.state_dict()
    if axis == 1:  # each step by itself; the last one counts nothing
        assert_close(state["bn.running_mean"][:3], torch.tensor([1.25, 2.0, 2.75]))
        return
    rows = x[0, :counted]
    assert_close(state["bn.running_mean"], 0.5 * rows.mean(0), rtol=1e-5, atol=1e-6)
    variance = rows.var(0, correction=0)
    if version == "2.2.4":
        variance *= 4 / (4 - 1 - 1e-3)
    assert_close(state["bn.running_var"], 0.5 + 0.5 * variance, rtol=1e-5, atol=1e-6)


def test_the_gradient_goes_through_masked_statistics():
    x = torch.randn(3, 4, 2, dtype=torch.float64)
    x[1, 2:] = 0
    model = normalization("2.15.0").double().train()
    keep = (x != 0).any(-1, keepdim=True)

    def cost(rows):
        return (model(rows) * keep).pow(3).sum()

    def direct(rows):
        counted = rows[keep.squeeze(-1)]
        spread = (counted.var(0, correction=0) + 1e-3).sqrt()
        return (((counted - counted.mean(0)) / spread) ** 3).sum()

    parts = []
    for function in (cost, direct):
        rows = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(function(rows), rows)
        parts.append(gradient)
    # Masking multiplies what it masks by zero, so no gradient comes there.
    assert_close(parts[0], parts[1] * keep)


@pytest.mark.parametrize(
    ("version", "shape", "unbiased"),
    [
        ("2.15.0", (2, 3, 1), True),
        ("2.5.0", (2, 3, 1), True),
        ("2.5.0", (2, 3, 1, 1), False),
        ("2.6.0", (2, 3, 1, 1), True),
        ("2.15.0", (6, 1), False),
        ("3.15.1", (2, 3, 1), False),
        ("2.0.3", (2, 3, 1), False),
        ("2.1.3", (2, 3, 1), True),
        ("2.1.3", (6, 1), False),
    ],
)
def test_the_running_variance_of_images_in_tf_keras(version, shape, unbiased):
    """Measured with 2.5.3, 2.13.1 and 2.15.1: TensorFlow's kernel corrects it."""
    model = normalization(version, shape=shape, masked=False).train()
    x = torch.arange(12.0).view(2, *shape)
    model(x)
    variance = x.var(correction=int(unbiased))
    assert_close(model.bn.running_var, (0.5 + 0.5 * variance).view(1))


@pytest.mark.parametrize(
    ("shape", "ratio"), [((2, 3, 1), 1.1901909), ((6, 1), 1.0910083), ((1,), 2.0020018)]
)
@pytest.mark.parametrize("version", ["2.1.4", "2.3.1"])
def test_the_running_variance_of_keras_2_1_4_to_2_3(version, shape, ratio):
    """Measured with 2.3.1 on TensorFlow: what moves it, over the batch's variance."""
    model = normalization(version, shape=shape, masked=False).train()
    x = torch.arange(2.0 * np.prod(shape)).view(2, *shape)
    model(x)
    moved = 0.5 + 0.5 * ratio * x.var(correction=0)
    assert_close(model.bn.running_var, moved.view(1))


def test_the_gradient_goes_through_a_layer_that_is_called_in_both_modes():
    start = normalization("2.15.0", masked=False)
    x = torch.randn(5, 4, 2)
    gradients = []
    for is_one_layer in (True, False):
        model, rows = copy.deepcopy(start), x.clone().requires_grad_()
        other = model if is_one_layer else copy.deepcopy(start)
        (model.eval()(rows) * other.train()(rows)).sum().backward()
        gradients.append(rows.grad)
    assert_close(gradients[0], gradients[1])


# What layers make of masks, as Keras itself says: masks.json of keras_live_masks

ROWS = {
    version: {row[0]: row for row in rows}
    for version, rows in (("1", OLD_LAYERS), ("2", LAYERS), ("3", LAYERS))
}
TABLE = [
    (label, version, wanted)
    for label, row in json.loads((CASES / "masks.json").read_text()).items()
    for wanted, versions in row.items()
    for version in versions
    if (label, version) != ("RandomCrop", "3.6.0")  # this version is not supported
]


def nodes(kind, taken):
    """One call of a layer, in the words of Keras 2."""
    if kind in ("MultiHeadAttention", "GroupQueryAttention"):
        query, value = taken
        return [[[query, 0, 0, {"value": [value, 0, 0]}]]]
    return [[[name, 0, 0, {}] for name in taken]] if taken else []


def written(kind, name, config, taken=()):
    config = {"name": name, **config}
    calls = {"inbound_nodes": nodes(kind, taken), "module": "keras.layers"}
    return {"class_name": kind, "name": name, "config": config, **calls}


def a_model(version, name, layers, inputs, last, call=0):
    config = {"name": name, "layers": layers, "output_layers": [[last, call, 0]]}
    config["input_layers"] = [[name, 0, 0] for name in inputs]
    kind = "Model" if version < "2.4" else "Functional"
    return {"class_name": kind, "config": config, "keras_version": version}


def in_a_model(version, row, *, masked):
    """A layer in a model, which masks its inputs and which another model calls."""
    _, kind, rank, masks, config = row
    names = [f"x{i}" for i in range(len(masks))]
    shape = {"batch_input_shape": [None, *[4] * (rank - 2), 3]}
    starts = [written("InputLayer", name, shape) for name in names]
    layers, ends = list(starts), list(names)
    for i, mask in enumerate(masks):
        if masked and mask == "1":
            ends[i] = f"masked_{i}"
            layers.append(written("Masking", ends[i], {"mask_value": 0.0}, [names[i]]))
    layers.append(written(kind, "layer", config, ends))
    inner = a_model(version, "inner", layers, names, "layer")
    layers = [*starts, {**inner, "name": "inner", "inbound_nodes": nodes("", names)}]
    call = int(version < "3")  # call 0 made the model itself
    model = a_model(version, "outer", layers, names, "inner", call)
    # Keras 1 left its order of axes out of some layers' configs.
    options = {"data_format": "channels_last"} if version < "2" else {}
    return load_keras(model, **options)


def found(version, row):
    """The table's entry for our layer."""
    torch.manual_seed(0)
    _, _, rank, masks, _ = row
    arrays = [torch.from_numpy(x) for x in samples(rank, masks)]
    bare = in_a_model(version, row, masked=False)
    try:
        model = in_a_model(version, row, masked=True)
        model.load_state_dict(bare.state_dict())
        with torch.no_grad():
            got = model.inner(*arrays, masks=(None,) * len(masks))
    except ValueError:  # KerasFormatError is one, too
        return "raises"
    y, mask = got if isinstance(got, tuple) else (got, None)
    mask = None if mask is None else mask.numpy()
    given = (arrays[0] != 0).any(-1).numpy() if masks[0] == "1" else None
    changed = not torch.allclose(y, bare(*arrays), atol=1e-5)
    return entry(mask, given, changed)


@pytest.mark.parametrize(("label", "version", "wanted"), TABLE)
def test_what_a_layer_makes_of_masks(label, version, wanted):
    assert found(version, ROWS[version[0]][label]) == wanted
