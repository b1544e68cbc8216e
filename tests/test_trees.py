"""Trees walked, mapped, flattened and rebuilt; numbers are those of Optimisers.jl."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from course_lib.explicit import gradient, parameters
from course_lib.trees import destructure, map_tree, trainables, walk


def numbers(*values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype)


def tied():
    first = numbers(1.0, 2, 3)
    return {"x": first, "y": {"again": first}, "z": numbers(4.0, 5, 6)}


def several_dtypes():
    return {
        "half": numbers(1.0, 2, dtype=torch.float16),
        "single": torch.tensor([[3.0], [4.0]]),
        "double": numbers(5.0),
        "complex": numbers(6 + 1j, dtype=torch.complex64),
        "whole": torch.tensor(7),
    }


# Walking


def test_walk_and_map_go_in_the_order_of_the_dicts():
    tree = {"b": {"d": 1, "c": 2}, "a": 3, "empty": {}}
    assert list(walk(tree)) == [(("b", "d"), 1), (("b", "c"), 2), (("a",), 3)]
    mapped = map_tree(lambda path, leaf: (*path, leaf), tree)
    assert mapped == {
        "b": {"d": ("b", "d", 1), "c": ("b", "c", 2)},
        "a": ("a", 3),
        "empty": {},
    }


def test_trainables_are_distinct_and_named():
    tree = tied()
    found = trainables(tree)
    assert list(found) == ["x", "z"]
    assert found["x"] is tree["x"]
    assert trainables({}) == {}


@pytest.mark.parametrize("function", [trainables, destructure])
def test_what_is_no_tree_of_tensors_is_refused(function):
    name = function.__name__
    with pytest.raises(
        ValueError, match=f"{name}: got a Linear .*parameters\\(model\\)"
    ):
        function(nn.Linear(1, 1))
    with pytest.raises(ValueError, match=f"{name}: got set for params"):
        function({torch.zeros(1)})
    with pytest.raises(ValueError, match=f"{name}: 'a.b' is int; wanted a tensor"):
        function({"a": {"b": 3}})
    with pytest.raises(ValueError, match=f"{name}: 'a' is NoneType; wanted a tensor"):
        function({"a": None})


# Flattening


def test_flat_and_back():
    flat, rebuild = destructure(tied())
    assert flat.tolist() == [1, 2, 3, 4, 5, 6]
    again = rebuild(torch.arange(7.0, 13, dtype=torch.float64))
    assert again["x"].tolist() == [7, 8, 9]
    assert again["z"].tolist() == [10, 11, 12]
    assert again["x"] is again["y"]["again"]


def test_shapes_come_back():
    tree = {"m": torch.arange(6.0).reshape(2, 3).T, "n": torch.tensor(6.0)}
    flat, rebuild = destructure({**tree, "empty": torch.zeros(0, 2), "none": {}})
    again = rebuild(flat)
    assert again["none"] == {}
    assert again["empty"].shape == (0, 2)
    for key, x in tree.items():
        assert torch.equal(again[key], x)
    assert destructure({})[0].shape == (0,)
    assert destructure({})[1](torch.zeros(0)) == {}


def test_each_dtype_comes_back():
    tree = several_dtypes()
    flat, rebuild = destructure(tree)
    assert flat.dtype == torch.complex128
    for key, x in rebuild(flat).items():
        assert x.dtype == tree[key].dtype
        assert torch.equal(x, tree[key])


def test_whole_numbers_stay_out_of_the_vector_and_come_back_exactly():
    tree = {
        "w": numbers(1.0, 1),
        "ids": torch.tensor([123456789, 2**53 + 1]),
        "mask": torch.tensor([True, False]),
        "byte": torch.tensor([255], dtype=torch.uint8),
        "deep": [{"n": torch.tensor(-7, dtype=torch.int32)}],
    }
    flat, rebuild = destructure(tree)
    assert flat.tolist() == [1, 1]
    again = dict(walk(rebuild(3 * flat)))
    assert again["w",].tolist() == [3, 3]
    for path, x in walk(tree):
        assert again[path].dtype == x.dtype
        assert path == ("w",) or torch.equal(again[path], x)
    leaf = flat.requires_grad_()
    (rebuild(leaf)["w"] * rebuild(leaf)["ids"]).sum().backward()
    assert leaf.grad.tolist() == [123456789.0, float(2**53)]
    only, back = destructure({"n": tree["ids"]})
    assert only.shape == (0,)
    assert torch.equal(back(only)["n"], tree["ids"])


def test_keys_with_dots_and_keys_of_any_type():
    x, y, z = numbers(1.0), numbers(2.0, 3), numbers(4.0)
    tree = {"a.b": x, "a": {"b": y}, 1: z, "1": {(2, "t"): x}, None: {"": y}}
    flat, rebuild = destructure(tree)
    assert flat.tolist() == [1, 2, 3, 4]
    again = rebuild(10 * flat)
    assert again["a.b"].tolist() == [10]
    assert again["a"]["b"].tolist() == [20, 30]
    assert again[1].tolist() == [40]
    assert again["1"][2, "t"] is again["a.b"]
    assert again[None][""] is again["a"]["b"]


def test_names_that_collide_are_refused():
    for tree in (
        {"a.b": numbers(1.0), "a": {"b": numbers(2.0)}},
        {1: numbers(1.0), "1": numbers(2.0)},
    ):
        with pytest.raises(ValueError, match=r"trainables: two tensors have the name"):
            trainables(tree)
    shared = numbers(1.0)
    assert list(trainables({"a.b": shared, "a": {"b": shared}})) == ["a.b"]
    assert list(trainables({0: numbers(1.0), "x": [numbers(2.0)]})) == ["0", "x.0"]


@pytest.mark.parametrize(
    ("dtypes", "wide"),
    [
        ((torch.float16, torch.float32), torch.float32),
        ((torch.float16, torch.bfloat16), torch.float32),
        ((torch.bfloat16, torch.float64), torch.float64),
        ((torch.complex64, torch.float64), torch.complex128),
        ((torch.float32, torch.complex64, torch.float16), torch.complex64),
    ],
)
def test_mixed_dtypes_come_back_bit_for_bit(dtypes, wide):
    torch.manual_seed(0)
    tree = [
        torch.randn(7, dtype=torch.complex128).to(d)
        if d.is_complex
        else torch.randn(7).to(d)
        for d in dtypes
    ]
    flat, rebuild = destructure(tree)
    assert flat.dtype == wide
    for x, again in zip(tree, rebuild(flat), strict=True):
        assert again.dtype == x.dtype
        assert torch.equal(again, x)


def test_what_a_model_froze_stays_out_of_the_vector():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    model[0].requires_grad_(False)
    params = parameters(model)
    flat, rebuild = destructure(params)
    assert flat.shape == (3,)
    again = rebuild(flat + 1)
    assert again["0"]["weight"] is params["0"]["weight"]
    assert_close(again["1"]["bias"], params["1"]["bias"] + 1)


@pytest.mark.parametrize(
    ("vector", "match"),
    [
        ([1.0] * 6, r"rebuild: got list; wanted a tensor of shape \(6,\)"),
        (
            torch.zeros(6, dtype=torch.complex64),
            "rebuild: got torch.complex64; wanted re",
        ),
        (torch.zeros(2, 3), r"got shape \(2, 3\)"),
    ],
)
def test_what_is_no_vector_is_refused(vector, match):
    with pytest.raises(ValueError, match=match):
        destructure(tied())[1](vector)


def test_tensors_on_two_devices_are_refused():
    tree = {"a": torch.ones(1), "b": torch.ones(1, device="meta")}
    with pytest.raises(
        ValueError, match="destructure: the tensors lie on cpu and meta"
    ):
        destructure(tree)


def test_the_vector_is_a_copy(device):
    tree = {"x": torch.ones(2, device=device)}
    flat, _ = destructure(tree)
    assert flat.device.type == device.type
    flat += 1
    assert tree["x"].tolist() == [1, 1]


@pytest.mark.parametrize("length", [5, 7, 0])
def test_another_length_is_refused(length):
    _, rebuild = destructure(tied())
    with pytest.raises(ValueError, match=rf"got shape \({length},\); wanted \(6,\)"):
        rebuild(torch.zeros(length))


def test_the_gradient_of_flattening():
    grads = gradient(lambda p: destructure(p)[0][1], tied())
    assert grads["x"].tolist() == [0, 1, 0]
    assert grads["y"]["again"] is None  # the tie is one tensor, in the loss as well
    grads = gradient(lambda p: (destructure(p)[0] ** 2).sum(), tied())
    assert grads["x"].tolist() == [2, 4, 6]
    assert grads["z"].tolist() == [8, 10, 12]


def test_the_gradient_of_rebuilding_a_tie():  # Flux#1826
    shared = numbers(7.0, 7)
    flat, rebuild = destructure({"x": shared, "y": numbers(3.0, 4), "z": shared})
    assert flat.tolist() == [7, 7, 3, 4]

    def slope(loss):
        return gradient(lambda p: loss(rebuild(p["flat"])), {"flat": flat})["flat"]

    both = slope(lambda m: 3 * m["x"].sum() + 13 * m["z"].sum())
    assert both.tolist() == [16, 16, 0, 0]
    each = slope(lambda m: 4 * (m["x"].sum() + m["y"].sum()) + 13 * m["z"].sum())
    assert each.tolist() == [17, 17, 4, 4]
    one = slope(lambda m: m["x"][0] + 2 * m["z"][1])
    assert one.tolist() == [1, 2, 0, 0]


def test_second_derivatives_through_flattening():
    rest = numbers(4.0, 5, 6)

    def inner(v):
        return gradient(lambda p: destructure(p)[0].sum() ** 3, {"v": v, "r": rest})

    got = gradient(lambda p: inner(p["v"])["v"].sum(), {"v": numbers(1.0, 2, 3)})
    assert got["v"].tolist() == [378, 378, 378]


def test_finite_differences_through_rebuild():
    flat, rebuild = destructure(tied())
    assert torch.autograd.gradcheck(
        lambda v: (rebuild(v)["x"] * rebuild(v)["z"]).sin().sum(),
        flat.requires_grad_(),
    )


def test_the_penalty_over_trainables_counts_a_tie_once():
    value = sum((x**2).sum() for x in trainables(tied()).values())
    assert_close(value, numbers(91.0).sum())
    grads = gradient(
        lambda p: sum((x**2).sum() for x in trainables(p).values()), tied()
    )
    assert grads["x"].tolist() == [2, 4, 6]
