"""Trees walked, mapped, flattened and rebuilt; numbers are those of Optimisers.jl."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from course_lib.explicit import gradient
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
