"""Nodes of plain functions: each entry of the table has a case of the original's."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from course_lib.keras_models import KerasFormatError, load_keras
from course_lib.keras_models.layers.operations import FORMS, sizes
from course_lib.keras_models.layers.operations.forms import form_of
from course_lib.keras_models.layers.operations.sizes import SIZE_OPERATIONS, Sizes
from course_lib.keras_models.layers.operations.table import ROWS

CASES = Path(__file__).parent / "keras_cases"
SIZES = "2.15_tf_sizes"
OPERATION_CASES = sorted(
    path.parent.name
    for pattern in ("2.15_tf_*", "3.15_ops_*")
    for path in CASES.glob(f"{pattern}/model.json")
)
# What is random has its tests below.
RANDOM = {"tf.random.normal", "tf.random.uniform", "tf.nn.dropout"}


def stored_nodes():
    """Yield the kind and the written arguments of every node in the stored cases."""
    for path in CASES.glob("[23]*/model.json"):
        config = json.loads(path.read_text())["config"]
        compared = (path.parent / "io.npz").exists()
        for layer in config["layers"] if compared and isinstance(config, dict) else ():
            written = layer.get("config", {})
            if layer.get("module", "").startswith("keras.src.ops"):
                calls = [node.get("kwargs", {}) for node in layer["inbound_nodes"]]
                yield f"ops.{layer['class_name']}", {*written}.union(*calls)
            elif "node_def" in written:
                node = written["node_def"]
                yield f"tfop.{node['op']}", {*node.get("attr", {})}
            elif "function" in written and layer["class_name"] != "Lambda":
                name = written["function"].removeprefix("compat.v1.")
                yield f"tf.{name}", {*arguments_of(layer["inbound_nodes"])}


def arguments_of(nodes):
    """Return the names that hold a value in tf.keras's form of a call."""
    if isinstance(nodes, dict):
        return {key for key, value in nodes.items() if value is not None}
    if not isinstance(nodes, list):
        return set()
    if nodes and isinstance(nodes[-1], dict):  # [layer, call, tensor, arguments]
        return arguments_of(nodes[-1])
    return set().union(*map(arguments_of, nodes))


def unproven(kinds):
    """Return the entries of the table that no case of the original's proves."""
    return set(kinds) - {kind for kind, _ in stored_nodes()} - RANDOM


def test_every_form_of_the_table_has_a_case():
    assert unproven(FORMS) == set()
    assert unproven({*FORMS, "ops.Planted"}) == {"ops.Planted"}


def test_every_name_is_in_one_row():
    columns = [column for row in ROWS.values() for column in row[1:]]
    assert len(FORMS) == sum(len(column.split(",")) for column in columns if column)


def test_every_renamed_argument_has_a_case():
    seen = {(kind, name) for kind, names in stored_nodes() for name in names}
    renamed = {
        (kind, theirs)
        for kind in FORMS
        for theirs, ours in form_of(kind).names.items()
        if theirs != ours
    }
    assert renamed - seen == set()


def test_every_default_of_a_file_has_a_case_without_the_argument():
    calls = list(stored_nodes())
    for kind in FORMS:
        for name in form_of(kind).defaults:
            assert any(k == kind and name not in names for k, names in calls), kind


def test_every_operation_of_sizes_has_a_case(monkeypatch):
    called = set()
    find = sizes.size_function

    def noted(name, function):
        called.add(name)
        return find(name, function)

    monkeypatch.setattr(
        "course_lib.keras_models.layers.operations.node.size_function", noted
    )
    for case in (SIZES, "2.15_tf_graph_shapes"):
        load_case(case)
    assert {*SIZE_OPERATIONS, *sizes.ARITHMETIC} <= called


# A cast to float64 stays in the model's floats, quotients of sizes are Python's; and
# Keras's backends disagree about the integers of these (all of them fit into int32).
OTHER_WIDTHS = {"cast", "tf.cast", "count_nonzero", "argmax", "argmin", "top_k"}


@pytest.mark.parametrize("case", OPERATION_CASES)
def test_types_are_the_originals(case):
    model, arrays = load_case(case), np.load(CASES / case / "io.npz")
    inputs = [torch.from_numpy(arrays[f"x{i}"]) for i in range(len(model.input_names))]
    config = json.loads((CASES / case / "model.json").read_text())["config"]
    for i, (name, got) in enumerate(
        zip((ref[0] for ref in config["output_layers"]), model(*inputs), strict=True)
    ):
        wanted = torch.from_numpy(arrays[f"y{i}"]).dtype
        free = name.rstrip("0123456789").rstrip("_") in OTHER_WIDTHS or case == SIZES
        if free:
            assert got.is_floating_point() == wanted.is_floating_point, name
        else:
            assert got.dtype == wanted, name


# Models made here


def node(function, first, **arguments):
    """Return one layer; `first` is its first argument in the file's form."""
    name = f"tf.{function}"
    kind = "SlicingOpLambda" if "getitem" in function else "TFOpLambda"
    config = {"name": name, "function": function, "dtype": "float32"}

    def leaf(part):
        if isinstance(part, str):
            return [part, 0, 0, arguments]
        if isinstance(part, list):
            return [leaf(inner) for inner in part]
        return ["_CONSTANT_VALUE", -1, part, arguments]

    return {
        "class_name": kind,
        "name": name,
        "config": config,
        "inbound_nodes": [leaf(first)],
    }


def model_of(*layers, shapes=None, **options):
    shapes = shapes or {"x": [None, 4]}
    inputs = [
        {
            "class_name": "InputLayer",
            "name": name,
            "config": {"name": name, "batch_input_shape": shape},
            "inbound_nodes": [],
        }
        for name, shape in shapes.items()
    ]
    config = {
        "name": "m",
        "layers": [*inputs, *layers],
        "input_layers": [[name, 0, 0] for name in shapes],
        "output_layers": [[layers[-1]["name"], 0, 0]],
    }
    data = {"class_name": "Functional", "config": config, "keras_version": "2.15.0"}
    return load_keras(data, **options)


def refused(match, *layers, **options):
    with pytest.raises(KerasFormatError, match=match):
        model_of(*layers, **options)


PREPROCESSED = """
import sys
from course_lib.keras_models import load_keras
load_keras(sys.argv[1])
assert "sympy" not in sys.modules
"""


def test_preprocess_input_is_planned_without_torchs_compiler():
    path = CASES / "2.15_tf_file_preprocess_caffe" / "model.h5"
    subprocess.run([sys.executable, "-c", PREPROCESSED, path], check=True)


# Sizes


def load_case(case):
    return load_keras(CASES / case / "model.json", weights=CASES / case / "weights.npz")


@pytest.mark.parametrize("batch", [1, 5])
def test_sizes_are_those_of_the_batch_that_comes(batch):
    model = model_of(
        node("compat.v1.shape", "x"),
        node("__operators__.getitem", "tf.compat.v1.shape", slice_spec=0),
        node("reshape", "x", shape=[["tf.__operators__.getitem", 0, 0], 2, -1]),
        shapes={"x": [None, 6, 2]},
    )
    assert model(torch.zeros(batch, 6, 2)).shape == (batch, 2, 6)
    assert model.calls[-1].shapes == ((None, 2, 6),)


def test_exports_with_an_open_batch():
    model = load_case(SIZES)
    arrays = np.load(CASES / SIZES / "io.npz")
    inputs = [torch.from_numpy(arrays[f"x{i}"]) for i in range(len(model.input_names))]
    program = torch.export.export(model, tuple(inputs)).module()
    for got, wanted in zip(program(*inputs), model(*inputs), strict=True):
        assert_close(got, wanted)


def test_an_open_batch_stays_open_in_an_exported_program():
    model = model_of(
        node("compat.v1.shape", "x"),
        node("__operators__.getitem", "tf.compat.v1.shape", slice_spec=0),
        node("math.multiply", "tf.__operators__.getitem", y=2),
        node("reshape", "x", shape=[["tf.math.multiply", 0, 0], -1]),
    )
    sizes = {"inputs": ({0: torch.export.Dim("batch", min=2, max=64)},)}
    program = torch.export.export(model, (torch.zeros(3, 4),), dynamic_shapes=sizes)
    assert program.module()(torch.zeros(7, 4)).shape == (14, 2)


@pytest.mark.parametrize(
    "way", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]
)
@pytest.mark.parametrize("case", [SIZES, "2.15_tf_networks"])
def test_copies_compute_the_same(case, way):
    model = load_case(case)
    twin = way(model)
    arrays = np.load(CASES / case / "io.npz")
    inputs = [torch.from_numpy(arrays[f"x{i}"]) for i in range(len(model.input_names))]
    for got, wanted in zip(twin(*inputs), model(*inputs), strict=True):
        assert_close(got, wanted)


def test_a_layer_takes_sizes_as_a_tensor():
    dense = {"name": "d", "units": 1, "kernel_initializer": {"class_name": "Ones"}}
    model = model_of(
        node("compat.v1.shape", "x"),
        node("cast", "tf.compat.v1.shape", dtype="float32"),
        node("expand_dims", "tf.cast", axis=0),
        {
            "class_name": "Dense",
            "name": "d",
            "config": dense,
            "inbound_nodes": [[["tf.expand_dims", 0, 0, {}]]],
        },
    )
    assert model(torch.zeros(3, 4)).item() == 7


def test_sizes_of_whole_numbers_stay_whole():
    assert Sizes((2, 3), "cpu").tensor().dtype == torch.int32
    assert Sizes(2.5, "cpu").tensor().dtype == torch.float32
    with pytest.raises(ValueError, match="too large"):
        Sizes(2**60, "cpu")


def test_moves_to_a_device(device):
    model = load_case(SIZES).to(device)
    arrays = np.load(CASES / SIZES / "io.npz")
    inputs = [torch.from_numpy(arrays[f"x{i}"]) for i in range(len(model.input_names))]
    for i, got in enumerate(model(*(x.to(device) for x in inputs))):
        wanted = torch.from_numpy(arrays[f"y{i}"])
        assert_close(got.cpu(), wanted.to(got.dtype), rtol=1e-5, atol=1e-5)


# Random numbers


def test_normal_numbers_are_new_at_every_call():
    model = model_of(
        node("compat.v1.shape", "x"),
        node("random.normal", "tf.compat.v1.shape", mean=1.0, stddev=2.0, seed=3),
    )
    x = torch.zeros(20_000, 4)
    y = model(x)
    assert y.mean().item() == pytest.approx(1, abs=0.05)
    assert y.std().item() == pytest.approx(2, abs=0.05)
    assert not torch.equal(y, model(x))


def test_uniform_numbers_fill_their_range():
    model = model_of(
        node("compat.v1.shape", "x"),
        node("random.uniform", "tf.compat.v1.shape", minval=-1, maxval=3),
    )
    y = model(torch.zeros(20_000, 4))
    assert y.min().item() == pytest.approx(-1, abs=0.01)
    assert y.max().item() == pytest.approx(3, abs=0.01)
    assert y.var().item() == pytest.approx(16 / 12, abs=0.05)


def test_tf_dropout_drops_in_eval_mode_too():
    model = model_of(node("nn.dropout", "x", rate=0.25))
    y = model(torch.ones(10_000, 4))
    assert (y == 0).float().mean().item() == pytest.approx(0.25, abs=0.02)
    assert y.unique().tolist() == pytest.approx([0, 4 / 3])


# Refusals and replacements


@pytest.mark.parametrize(
    ("layer", "match"),
    [
        (
            node("math.betainc", "x", b=["x", 0, 0], block_size=2),
            r"tf\.math\.betainc\(<x>, b=<x>, block_size=2\): this function is not",
        ),
        (
            node("nn.conv3d", "x", filters=np.ones((2, 3, 4, 5)).tolist()),
            r"tf\.nn\.conv3d\(<x>, filters=an array of shape \(2, 3, 4, 5\)\)",
        ),
        (
            node("foo", "x", spec=[{"start": None, "stop": 2, "step": None}]),
            r"tf\.foo\(<x>, spec=\[:2:\]\)",
        ),
        (node("einsum", "x"), "tf.einsum: tf.keras writes only the first of its arg"),
        (node("__operators__.eq", "x"), r"Build the model with tf\.equal in its place"),
        (node("tile", "x"), r"tf\.tile\(<x>\): the argument 'repeats' is missing"),
        (node("nn.softmax", "x", wide=3), "wide=3 is not supported"),
        (node("cast", "x", dtype="complex64"), "'complex64' is not supported. It is"),
        (
            node("image.resize", "x", size=[2, 2], method="sinc"),
            r"method='sinc'; wanted.*It is tf\.image\.resize\(<x>, size=\[2, 2\], meth",
        ),
        (node("compat.v1.squeeze", "x", axis=1), r"axis 1 of the shape \(2, 4\) is no"),
        (node("split", "x", num_or_size_splits=10**8, axis=1), "don't split"),
        (node("reshape", "x", shape=["a", []]), "does not fit its inputs"),
        (node("tile", "x", multiples=[10**6, 10**6]), "numbers"),
        (node("one_hot", "x", depth=10**12), "does not fit|numbers"),
        (node("nn.bias_add", "x", bias=[1.0, 2.0]), r"a bias of shape \(2,\) for"),
        (node("repeat", "x", repeats=[10**9] * 4, axis=1), "too many"),
        (node("image.resize", "x", size=[2, 2]), "input has 2 axes; wanted 3 or 4"),
        (node("compat.v1.image.resize_images", "x", size=[2, 2]), "2 axes; wanted 4"),
        (node("nn.bias_add", "x", bias=None), r"does not fit.*nn\.bias_add\(<x>, bias"),
        (
            node("compat.v1.image.resize_images", "x", preserve_aspect_ratio=True),
            "preserve_aspect_ratio=True is not supported",
        ),
    ],
    ids=range(20),
)
def test_refusals_name_the_function_and_its_arguments(layer, match):
    refused(match, layer)


OFFSETS = ("offset_height", "offset_width")
FITTED = {"target_height": 2, "target_width": 2}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("image.resize_with_pad", FITTED),
        ("image.resize_with_crop_or_pad", FITTED),
        ("image.crop_to_bounding_box", FITTED | dict.fromkeys(OFFSETS, 0)),
        ("image.pad_to_bounding_box", FITTED | dict.fromkeys(OFFSETS, 0)),
        ("image.central_crop", {"central_fraction": 0.5}),
    ],
)
def test_images_have_three_axes_or_four(name, arguments):
    refused("2 axes; wanted 3 or 4. It is tf", node(name, "x", **arguments))
    shapes = {"x": [None, 2, 2, 2, 2]}
    refused("5 axes; wanted 3 or 4", node(name, "x", **arguments), shapes=shapes)


@pytest.mark.parametrize("name", ["resize_with_pad", "resize_with_crop_or_pad"])
@pytest.mark.parametrize("wrong", [0, -1, None, 2.5])
def test_a_target_of_images_is_two_whole_numbers(name, wrong):
    layer = node(f"image.{name}", "x", target_height=wrong, target_width=2)
    match = r"size=.*; wanted two whole numbers above 0. It is tf\."
    refused(match, layer, shapes={"x": [None, 4, 4, 3]})


def test_one_image_keeps_its_proportions_as_a_batch_does():
    one = node("__operators__.getitem", "x", slice_spec=0)
    options = {"size": [2, 2], "preserve_aspect_ratio": True}
    resized = node("image.resize", "tf.__operators__.getitem", **options)
    shapes = {"x": [None, 6, 3, 1]}
    x = torch.rand(2, 6, 3, 1)
    batch = model_of(node("image.resize", "x", **options), shapes=shapes)(x)
    assert batch.shape == (2, 2, 1, 1)
    assert_close(model_of(one, resized, shapes=shapes)(x), batch[0])


@pytest.mark.parametrize("size", [[2, 2, 2], [2], [0, 2], [2.5, 2], [True, 2], 2])
@pytest.mark.parametrize("name", ["image.resize", "compat.v1.image.resize_images"])
def test_a_size_of_images_is_two_whole_numbers(name, size):
    match = r"size=.*; wanted two whole numbers above 0. It is tf\."
    shapes = {"x": [None, 4, 4, 3]}
    refused(match, node(name, "x", size=size), shapes=shapes)


def test_a_refusal_says_how_a_replacement_is_called():
    shapes = {"x": [None, 4], "z": [None, 4]}
    layer = node("math.betainc", "x", b=["z", 0, 0])
    match = r"replacements=\{'tf.math.betainc': .*called with the tensors \(<x>, <z>\)"
    refused(match, layer, shapes=shapes)
    model = model_of(
        layer, shapes=shapes, replacements={"tf.math.betainc": lambda x, z: x - 2 * z}
    )
    x, z = torch.rand(2, 3, 4).unbind(0)
    assert_close(model(x, z), x - 2 * z)
    model = model_of(layer, shapes=shapes, replacements={"tf.math.betainc": Product()})
    assert_close(model(x, z), x * z)


class Product(nn.Module):
    def forward(self, x, z):
        return x * z


def test_a_replacement_of_a_node_that_takes_sizes():
    model = model_of(
        node("compat.v1.shape", "x"),
        node("foo", "x", size=["tf.compat.v1.shape", 0, 0]),
        replacements={"tf.foo": lambda x, size: x * size[0]},
    )
    assert_close(model(torch.ones(3, 4)), torch.full((3, 4), 3.0))


def test_sizes_that_would_grow_for_ever():
    layers = [node("compat.v1.shape", "x")]
    last = "tf.compat.v1.shape"
    for i in range(20):
        layer = node("math.multiply", last, y=[last, 0, 0])
        layer["name"] = last = f"multiply_{i}"
        layers.append(layer)
    refused("too large", *layers)


GRAPH_OP = {"name": "it", "op": "Mean", "input": ["x", "axis"]}


def graph_op(constants, *refs, **changes):
    config = {"name": "it", "node_def": {**GRAPH_OP, **changes}, "constants": constants}
    return {
        "class_name": "TensorFlowOpLayer",
        "name": "tf_op_layer_it",
        "config": config,
        "inbound_nodes": [[["x", 0, 0, {}], *refs]],
    }


def test_an_op_of_the_graph_with_constants_in_their_places():
    model = model_of(graph_op({"1": [1]}, attr={"keep_dims": {"b": True}}))
    x = torch.rand(3, 4)
    assert_close(model(x), x.mean(1, keepdim=True))
    model = model_of(graph_op({"0": 1.0}, op="Sub"))
    assert_close(model(x), 1 - x)


@pytest.mark.parametrize(
    ("layer", "match"),
    [
        (graph_op({}, op="Betainc"), r"tf\.raw_ops\.Betainc\(<x>\): this op is not"),
        (graph_op({"7": 1}), r"constants at \['7'\] of 2 inputs"),
        (graph_op({}), "1 inputs; wanted 2"),
        (graph_op({"1": 1}, attr={"wide": {"b": True}}), "wide=True is not supported"),
        (graph_op({}, op="Cast", attr={"DstT": {"type": "DT_COMPLEX64"}}), "complex64"),
        (graph_op({}, op="Elu", attr={"m": {"s": "?"}}), r"got '\?' for a text"),
        (graph_op({}, op="Elu", attr={"m": {"i": "9" * 99}}), "for a whole number"),
        (graph_op({}, op="Elu", attr=3), "wanted an op with its attributes"),
        (graph_op({}, op=3), "this layer is not supported"),
    ],
    ids=range(9),
)
def test_refusals_of_ops_of_the_graph(layer, match):
    refused(match, layer)


def test_a_replacement_of_an_op_of_the_graph():
    layer = graph_op({"1": 1}, op="Betainc")
    model = model_of(layer, replacements={"tf_op_layer_it": torch.neg})
    assert_close(model(torch.ones(2, 4)), -torch.ones(2, 4))


def test_ragged_and_sparse_tensors_are_named():
    layer = {"class_name": "InstanceMethod", "name": "input.to_tensor"}
    layer |= {"config": {"name": "input.to_tensor", "attr_name": "to_tensor"}}
    layer["inbound_nodes"] = [["x", 0, 0, {"args": [], "kwargs": {}}]]
    refused("'to_tensor' of a ragged or sparse tensor", layer)
