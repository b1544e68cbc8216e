"""Imported Keras models: one battery over what every version of Keras computed.

Each folder of keras_cases holds a model's JSON, its weights in one or more forms, and
io.npz: inputs, and the outputs and penalty that the original Keras of that version
computed from them. A folder without model.json has files that hold the whole model;
options.json, where there is one, has arguments of load_keras.
"""

from __future__ import annotations

import copy
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from keras_reader import reader
from torch import nn
from torch.testing import assert_close

from course_lib.keras_models import KerasFormatError, load_keras
from course_lib.keras_models.constraints import apply_constraints, constrain
from course_lib.keras_models.source import hdf5
from course_lib.lessons.keras_models import question
from course_lib.regularization import penalties, penalty

CASES = Path(__file__).parent / "keras_cases"
COMPUTED = sorted(p.parent.name for p in CASES.glob("[0-9]*/io.npz"))
FORMS = ["weights.npz", "weights.h5", "m.weights.h5", "m.keras", "m_legacy.h5"]
FORMS += ["model.h5"]
WHOLE = ["m.keras", "m_legacy.h5", "model.h5"]
# In 1.1 the activity penalty was computed in the training phase, after dropout.
RANDOM_PENALTY = {"1.1.0_adv"}


@pytest.fixture(scope="module", autouse=True)
def one_reader():
    """Start one Python for all HDF5 files; the files' own tests start one for each."""
    with pytest.MonkeyPatch.context() as patch, reader() as quick:
        if os.name != "nt":  # it forks
            patch.setattr(hdf5, "subprocess", quick)
        yield


def halves(case):
    """The functions of the cases with Lambda layers, which split ten numbers."""
    config = json.loads((CASES / case / "model.json").read_text())["config"]
    layers = config["layers"] if isinstance(config, dict) else config
    names = [layer["name"] for layer in layers if layer["class_name"] == "Lambda"]
    cuts = (lambda x: x[:, :5], lambda x: x[:, 5:])
    return dict(zip(names, cuts, strict=False))


def load(case, form=None, **options):
    """Load a case with its weights in one form, the first that it has by default."""
    folder = CASES / case
    form = form or next(f for f in FORMS if (folder / f).exists())
    if (folder / "options.json").exists():
        options = {**json.loads((folder / "options.json").read_text()), **options}
    if not (folder / "model.json").exists():
        return load_keras(folder / form, **options)
    options.setdefault("replacements", halves(case) if "lambda" in case else None)
    return load_keras(folder / "model.json", weights=folder / form, **options)


def known(case):
    arrays = np.load(CASES / case / "io.npz")
    names = sorted((n for n in arrays if n[1:].isdigit()), key=lambda n: int(n[1:]))
    inputs = [torch.from_numpy(arrays[name]) for name in names if name[0] == "x"]
    outputs = [torch.from_numpy(arrays[name]) for name in names if name[0] == "y"]
    return inputs, outputs, float(arrays.get("reg_loss", 0))


def compare(model, case, device="cpu"):
    inputs, wanted, cost = known(case)
    with torch.no_grad():
        got = model(*(x.to(device) for x in inputs))
        got_cost = float(penalty(model))
    got = got if isinstance(got, tuple) else (got,)
    assert len(got) == len(wanted)
    for one, other in zip(got, wanted, strict=True):
        assert_close(one, other.to(device, one.dtype), rtol=1e-5, atol=1e-5)
    if case not in RANDOM_PENALTY:
        assert got_cost == pytest.approx(cost, rel=1e-6)


FILES = [
    (case, form)
    for case in COMPUTED
    for form in FORMS
    if (CASES / case / form).exists()
]


WITH_JSON = sorted(path.parent.name for path in CASES.glob("*/model.json"))


@pytest.mark.parametrize(("case", "form"), FILES)
def test_computes_what_keras_computed(case, form):
    compare(load(case, form), case)


@pytest.mark.parametrize(
    ("case", "form"),
    [(case, form) for case, form in FILES if form in WHOLE and case in WITH_JSON],
)
def test_a_whole_model_in_one_file(case, form):
    replacements = halves(case) if "lambda" in case else None
    compare(load_keras(CASES / case / form, replacements=replacements), case)


@pytest.mark.parametrize("case", WITH_JSON)
def test_without_weights_the_initializers_serve(case):
    replacements = halves(case) if "lambda" in case else None
    torch.manual_seed(0)
    model = load_keras(CASES / case / "model.json", replacements=replacements)
    for name, tensor in model.state_dict().items():
        assert not tensor.is_meta, name
        assert torch.isfinite(tensor.float()).all(), name


def test_in_double_precision_only_rounding_is_left():
    model = load("1.2.2-tf_k1_seed_mlp").double()
    x = known("1.2.2-tf_k1_seed_mlp")[0][0]
    weights = [w.numpy().astype(np.float64) for w in model.state_dict().values()]
    hidden = x.numpy().astype(np.float64)
    for i, function in enumerate([lambda z: np.maximum(z, 0), lambda z: z]):
        hidden = function(hidden @ weights[2 * i].T + weights[2 * i + 1])
    logits = hidden @ weights[4].T + weights[5]
    wanted = torch.from_numpy(1 / (1 + np.exp(-logits)))
    assert_close(model(x).detach(), wanted, rtol=0, atol=1e-10)


def test_the_lesson_begins_with_the_file_of_the_question():
    assert question() == json.loads((CASES / "seed" / "model.json").read_text())


# A real module


def test_the_state_dict_has_keras_names():
    model = load("3.15_fun_shared")
    assert list(model.state_dict()) == [
        "shared.weight",
        "shared.bias",
        "out.weight",
        "out.bias",
    ]
    nested = load("2.15_k2_nested")
    assert "encoder.dense_4.weight" in nested.state_dict()


def test_names_that_a_module_uses_itself():
    model = load("3.15_names")
    assert "forward.weight" in model.state_dict()
    compare(model, "3.15_names")


@pytest.mark.parametrize(
    "way", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]
)
@pytest.mark.parametrize("case", ["3.15_seq_cnn", "2.0.3_k2_nested", "3.15_fun_ops"])
def test_copies_compute_the_same(case, way):
    twin = way(load(case))
    compare(twin, case)


def test_a_copy_has_weights_of_its_own():
    model = load("3.15_fun_shared")
    twin = copy.deepcopy(model)
    with torch.no_grad():
        next(twin.parameters()).zero_()
    compare(model, "3.15_fun_shared")


@pytest.mark.parametrize("device", ["cuda"], indirect=True)
@pytest.mark.parametrize("case", COMPUTED)
def test_computes_the_same_on_a_gpu(case, device, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    compare(load(case).to(device), case, device)


@pytest.mark.parametrize(
    "case", ["3.15_seq_cnn", "2.15_k2_lstm", "1.1.0-th_k1_cnn_th", "3.15_fun_shared"]
)
def test_exports(case):
    model, (inputs, wanted, _) = load(case), known(case)
    inputs = tuple(x.float() if x.is_floating_point() else x for x in inputs)
    exported = torch.export.export(model, inputs)
    got = exported.module()(*inputs)
    got = got if isinstance(got, tuple) else (got,)
    for one, other in zip(got, wanted, strict=True):
        assert_close(one.detach(), other, rtol=1e-5, atol=1e-5)


def test_trains_and_the_penalty_shrinks():
    model = load("2.15_k2_cnn").train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, before = known("2.15_k2_cnn")[0][0], penalty(model).item()
    for _ in range(20):
        optimizer.zero_grad()
        (model(x).square().mean() + penalty(model)).backward()
        optimizer.step()
    assert penalty(model).item() < 0.95 * before


def test_dropout_only_while_training():
    model = load("1.1.0-tf_k1_seed_mlp")
    x = known("1.1.0-tf_k1_seed_mlp")[0][0]
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))


def test_batch_statistics_move_as_in_keras():
    config = {"name": "bn", "axis": -1, "momentum": 0.9, "epsilon": 1e-3}
    config["batch_input_shape"] = [None, 2]
    model = sequential("2.15.0", ("BatchNormalization", config)).train()
    x = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    model(x)
    moved = model.state_dict()
    # mean: 0.9 * 0 + 0.1 * batch mean; variance: 0.9 * 1 + 0.1 * biased variance
    assert_close(moved["bn.running_mean"], torch.tensor([0.2, 0.4]))
    assert_close(moved["bn.running_var"], torch.tensor([1.0, 1.3]))


@pytest.mark.parametrize("kind", ["BatchNormalization", "LayerNormalization"])
@pytest.mark.parametrize(
    ("left_out", "kept"), [("scale", "bias"), ("center", "weight")]
)
def test_a_normalization_without_its_scale_or_center(kind, left_out, kept):
    config = {"name": "norm", "batch_input_shape": [None, 2], left_out: False}
    model = sequential("2.15.0", (kind, config))
    assert [name for name, _ in model.named_parameters()] == [f"norm.{kept}"]
    assert torch.isfinite(model(torch.tensor([[1.0, 2.0]]))).all()


def test_frozen_layers_do_not_train():
    model = load("3.15_frozen")
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {
        "fz.weight",
        "fz.bias",
        *(n for n in model.state_dict() if "normalization" in n and "running" not in n),
    }
    x = known("3.15_frozen")[0][0]
    assert_close(model.train()(x), model.eval()(x))  # also its batch statistics


def test_shared_layers_are_one_module():
    model = load("3.15_fun_shared")
    calls = [call for call in model.calls if call.layer == "shared"]
    assert [call.number for call in calls] == [0, 1]
    assert len(list(model.parameters())) == 4


def test_a_layer_can_be_exchanged():
    model = load("1.1.0-tf_k1_seed_mlp")
    model.dense_3 = nn.Linear(8, 4)
    assert model(torch.zeros(2, 64)).shape == (2, 4)


# Inputs and outputs


def test_inputs_by_name_list_and_array():
    model = load("3.15_fun_shared")
    (a, b), wanted, _ = known("3.15_fun_shared")
    ways = [
        model(a, b),
        model([a, b]),
        model(b=b, a=a),
        model(a, b=b),
        model({"b": b, "a": a}),
        model(a.numpy(), b.numpy()),
    ]
    for got in ways:
        assert_close(got[0].detach(), wanted[0], rtol=1e-5, atol=1e-5)
    assert model.input_names == ("a", "b")
    assert model.output_names == ("out", "shared")


@pytest.mark.parametrize(
    ("give", "match"),
    [
        (lambda m: m(torch.zeros(1, 10)), "got 1 inputs; wanted 2: a, b"),
        (lambda m: m(a=torch.zeros(1, 10)), r"inputs named \['a'\]; wanted \['a', 'b'"),
        (lambda m: m(torch.zeros(1, 10), a=0, b=0), r"\['a', 'b'\]; wanted \['b'\]"),
        (lambda m: m(torch.zeros(1, 10), torch.zeros(1, 9)), r"'b' has shape \(1, 9\)"),
    ],
)
def test_wrong_inputs_are_named(give, match):
    with pytest.raises(ValueError, match=match):
        give(load("3.15_fun_shared"))


@pytest.mark.parametrize(
    "case", ["3.15_seq_cnn", "1.1.0-tf_k1_cnn_tf", "3.15_resc", "2.15_conv2d_1"]
)
def test_channels_first_at_the_boundary(case):
    model, (inputs, wanted, _) = load(case, axis_order="torch"), known(case)
    got = model(inputs[0].movedim(-1, 1)).detach()
    if wanted[0].dim() == 4:
        got = got.movedim(1, -1)
    assert_close(got, wanted[0], rtol=1e-5, atol=1e-5)


def test_files_with_channels_first_stay_so():
    model = load("1.1.0-th_k1_cnn_th", axis_order="torch")
    compare(model, "1.1.0-th_k1_cnn_th")


def test_sequences_through_convolutions_are_channels_first_too():
    model = load("2.0.3_c1", axis_order="torch")
    inputs, wanted, _ = known("2.0.3_c1")
    got = model(inputs[0].movedim(-1, 1)).detach()
    assert_close(got, wanted[0], rtol=1e-5, atol=1e-5)


def test_stateful_layers_remember_until_reset():
    model = load("1.2.2_stateful")
    x, wanted = known("1.2.2_stateful")[0][0], known("1.2.2_stateful")[1][0]
    first, second = model(x), model(x)
    assert_close(first.detach(), wanted, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(first, second)
    model.reset_states()
    assert_close(model(x), first)


# Kernels, constraints, replacements, versions


def test_kernels_of_theano_are_turned(tmp_path):
    case = "1.1.0-th_k1_cnn_th"
    arrays = dict(np.load(CASES / case / "weights.npz"))
    turned = {k: v[:, :, ::-1, ::-1] if v.ndim == 4 else v for k, v in arrays.items()}
    np.savez(tmp_path / "turned.npz", **turned)
    path = CASES / case / "model.json"
    weights = tmp_path / "turned.npz"
    compare(load_keras(path, weights=weights, theano_kernels=True), case)
    plain = load_keras(path, weights=weights)
    inputs, wanted, _ = known(case)
    assert not torch.allclose(plain(*inputs), wanted[0], atol=1e-3)


def test_constraints_are_applied_on_request():
    config = dense(
        2,
        kernel_constraint={
            "class_name": "MaxNorm",
            "config": {"max_value": 1.0, "axis": 0},
        },
        bias_constraint={"class_name": "NonNeg", "config": {}},
    )
    weights = [np.array([[3.0, 0.1], [4.0, 0.2]]), np.array([-1.0, 2.0])]
    model = sequential("2.15.0", ("Dense", config), weights=weights)
    assert model.dense_1.weight[0].norm() == 5  # not before it is asked for
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    handle = constrain(model, optimizer)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert_close(model.dense_1.weight[0].detach(), torch.tensor([0.6, 0.8]))
    assert_close(model.dense_1.weight[1].detach(), torch.tensor([0.1, 0.2]))
    assert model.dense_1.bias.tolist() == [0.0, 2.0]
    handle.remove()
    apply_constraints(model)


def test_a_replacement_may_be_a_module_with_weights():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(2))

        def forward(self, x):
            return self.scale * x

    layers = [("Dense", dense(2)), ("Custom", {"name": "own"})]
    arrays = [np.eye(2), np.zeros(2), np.array([2.0, 3.0])]
    model = sequential("2.15.0", *layers, weights=arrays, replacements={"own": Scale()})
    assert_close(model(torch.ones(1, 2)).detach(), torch.tensor([[2.0, 3.0]]))


def test_the_version_decides_what_a_penalty_means():
    cost = {"name": "ActivityRegularizer", "l1": 1.0, "l2": 0.0}
    config = {"name": "dense_1", "output_dim": 1, "batch_input_shape": [None, 1]}
    config |= {"activity_regularizer": cost, "init": "one"}
    x = torch.tensor([[1.0], [2.0], [3.0]])
    for version, wanted in (("1.0.0", 2.0), ("1.1.0", 6.0)):
        model = sequential(version, ("Dense", config), weights=[[[1.0]], [0.0]])
        model(x)
        assert penalty(model).item() == wanted
    again = sequential(
        None, ("Dense", config), weights=[[[1.0]], [0.0]], keras_version="1.1.0"
    )
    again(x)
    assert list(penalties(again).values()) == [torch.tensor(6.0)]


@pytest.mark.parametrize(
    ("version", "wanted"), [("1.2.2", 0.7), ("2.15.0", 0.7), ("3.15.1", 2 / 3)]
)
def test_hard_sigmoid_of_each_era(version, wanted):
    old = version < "2"
    config = {"name": "a", "activation": "hard_sigmoid"}
    key = "batch_shape" if version > "3" else "batch_input_shape"
    source = "Activation"
    model = sequential(version, (source, {**config, key: [None, 1]}))
    assert model(torch.ones(1, 1)).item() == pytest.approx(wanted), old


def test_batch_norm_of_keras_1_0_divides_by_a_deviation():
    config = {"name": "bn", "epsilon": 1e-6, "mode": 0, "axis": -1, "momentum": 0.9}
    config["batch_input_shape"] = [None, 1]
    arrays = [np.ones(1), np.zeros(1), np.zeros(1), np.full(1, 4.0)]
    for version, wanted in (("1.0.0", 2.0), ("1.1.0", 4.0)):
        model = sequential(version, ("BatchNormalization", config), weights=arrays)
        assert model(torch.full((1, 1), 8.0)).item() == pytest.approx(wanted, rel=1e-5)


# Helpers for models made here


def dense(units, size=2, **rest):
    return {
        "name": "dense_1",
        "units": units,
        "activation": "linear",
        "batch_input_shape": [None, size],
        **rest,
    }


def sequential(version, *layers, **options):
    entries = [{"class_name": kind, "config": config} for kind, config in layers]
    data = {"class_name": "Sequential", "config": entries}
    if version:
        data["keras_version"] = version
    if version and version > "3":
        for entry in entries:
            entry["module"] = "keras.layers"
        data["config"] = {"name": "m", "layers": entries}
    return load_keras(data, **options)


def test_errors_are_value_errors():
    assert issubclass(KerasFormatError, ValueError)
