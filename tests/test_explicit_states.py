"""States: one leaf for each tensor, frozen, thawed and adjusted; nothing in place."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from course_lib.explicit import (
    Leaf,
    adjust,
    freeze,
    parameters,
    setup,
    thaw,
    update,
)
from course_lib.rules import (
    AccumulateGradients,
    Adam,
    AdamW,
    AMSGrad,
    Chain,
    ClipGrad,
    Descent,
    Lion,
    MixedPrecision,
    Momentum,
    RMSProp,
    Rprop,
    WeightDecay,
)


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def two_parts():
    return {"x": numbers(1.0, 2.0), "y": {"z": numbers(3.0, 4.0)}}


def slopes(factor=1):
    return {"x": factor * numbers(1.0, 10), "y": {"z": factor * numbers(100.0, 1000)}}


# Setup


def test_a_state_mirrors_the_parameters():
    state = setup(Momentum(), two_parts())
    assert isinstance(state["x"], Leaf)
    assert isinstance(state["y"]["z"], Leaf)
    assert state["x"].state.tolist() == [0, 0]
    assert not state["x"].frozen
    with pytest.raises(FrozenInstanceError):
        state["x"].frozen = True


def test_a_tie_has_one_leaf():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    state = setup(Adam(), parameters(model))
    assert state["0"]["weight"] is state["1"]["weight"]
    assert state["0"]["bias"] is not state["1"]["bias"]


def test_a_rule_for_each_subtree():
    params = {"encoder": two_parts(), "decoder": {"w": numbers(1.0)}}
    rules = {"encoder": {"x": Adam(), "y": Descent()}, "decoder": Momentum()}
    state = setup(rules, params)
    kinds = (state["encoder"]["x"], state["encoder"]["y"]["z"], state["decoder"]["w"])
    assert [type(leaf.rule) for leaf in kinds] == [Adam, Descent, Momentum]


def by_name(path, tensor):
    if path[-1] == "x":
        return Adam(0.5)
    return Momentum(0.1) if tensor.dim() == 1 else Descent()


class Labels:
    def __call__(self, path, tensor):
        return by_name(path, tensor)


@pytest.mark.parametrize(
    "function",
    [by_name, Labels(), partial(by_name)],
    ids=["function", "object", "partial"],
)
def test_a_function_names_the_rule_of_each_tensor(function):
    params = {**two_parts(), 0: torch.ones(1, 1)}
    state = setup(function, params)
    leaves = state["x"], state["y"]["z"], state[0]
    assert [leaf.rule for leaf in leaves] == [Adam(0.5), Momentum(0.1), Descent()]
    inner = setup({"x": Descent(), "y": function, 0: function}, params)
    assert inner["x"].rule == Descent()
    assert inner["y"]["z"].rule == Momentum(0.1)
    moved = update(state, params, {**slopes(), 0: None})[1]
    assert_close(moved["y"]["z"], params["y"]["z"] - 0.1 * slopes()["y"]["z"])


def test_a_function_sees_each_path_and_tensor():
    params, seen = {"encoder": two_parts(), "b": numbers(1.0)}, []

    def rule(path, tensor):
        seen.append((path, tensor))
        return Descent()

    setup(rule, params)
    assert [path for path, _ in seen] == [
        ("encoder", "x"),
        ("encoder", "y", "z"),
        ("b",),
    ]
    assert seen[2][1] is params["b"]


def test_weight_decay_without_the_biases_is_torchs():
    model = nn.Linear(3, 2).double()
    params, x = parameters(model), torch.ones(4, 3).double()
    state = setup(lambda path, _: AdamW(0.1, decay=0.1 * ("bias" not in path)), params)
    optimizer = torch.optim.AdamW(
        [
            {"params": [model.weight], "weight_decay": 0.1},
            {"params": [model.bias], "weight_decay": 0.0},
        ],
        lr=0.1,
    )
    for _ in range(5):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        grads = {name: p.grad for name, p in model.named_parameters()}
        state, params = update(state, params, grads)
        optimizer.step()
    assert_close(params, parameters(model), rtol=0, atol=1e-12)


def test_setup_does_not_hold_on_to_the_graph():
    leaf = setup(MixedPrecision(), {"x": torch.ones(2, requires_grad=True)})["x"]
    assert not leaf.state[0].requires_grad


SHARED = torch.zeros(1)


@pytest.mark.parametrize(
    ("rule", "params", "match"),
    [
        (
            Adam(),
            nn.Linear(1, 1),
            r"setup: got a Linear for params.*parameters\(model\)",
        ),
        (Adam(), {torch.zeros(1)}, "setup: got set for params"),
        (Adam(), {"a": {"b": 1.0}}, "setup: 'a.b' is float; wanted a tensor"),
        (Adam(), {"a": None}, "setup: 'a' is NoneType; wanted a tensor"),
        (Adam, {"a": torch.zeros(1)}, "the rule for 'a' is <class .*wanted one of"),
        (0.1, {"a": torch.zeros(1)}, r"the rule for 'a' is 0.1; .*Adam\(1e-3\)"),
        (torch.optim.Adam, {"a": torch.zeros(1)}, "the rule for 'a' is <class"),
        ({"b": Adam()}, {"a": torch.zeros(1)}, "there are rules for b; the keys are a"),
        (
            {"a": Adam()},
            {"a": torch.zeros(1), "b": torch.zeros(1)},
            "there is no rule for 'b'; the rules are for a",
        ),
        (
            {"a": {"typo": Adam(), "b": Adam()}},
            {"a": {"b": torch.zeros(1)}},
            "there are rules for a.typo; the keys are b",
        ),
        ({"a": {"b": Adam()}}, {"a": torch.zeros(1)}, "the rule for 'a' is {"),
        (lambda path: Adam(), {"a": torch.zeros(1)}, r"does not take \(path, tensor\)"),
        (
            lambda path, x: None,
            {"a": torch.zeros(1)},
            "the rule for 'a' is None; wanted",
        ),
        (lambda path, x: Adam, {"a": torch.zeros(1)}, "the rule for 'a' is <class"),
        (lambda path, x: "decay", {"a": torch.zeros(1)}, "the rule for 'a' is 'decay'"),
        (
            lambda path, x: Adam(0.1 * len(path)),
            {"a": SHARED, "b": {"c": SHARED}},
            "'a' and 'b.c' are one tied tensor, but have the rules",
        ),
        (nn.Linear(1, 1), {"a": torch.zeros(1)}, r"the rule for 'a' is Linear\("),
        ({2: Adam()}, {0: torch.zeros(1)}, "there are rules for 2; the keys are 0"),
        (
            {0: Adam()},
            {0: torch.zeros(1), 1: torch.zeros(1)},
            "there is no rule for '1'; the rules are for 0",
        ),
        (
            {"a": Adam(), "b": Descent()},
            {"a": SHARED, "b": SHARED},
            "'a' and 'b' are one tied tensor, but have the rules Adam.* and Descent",
        ),
    ],
)
def test_bad_arguments_of_setup(rule, params, match):
    with pytest.raises(ValueError, match=match):
        setup(rule, params)


# Freeze and thaw, with the numbers of the tests of Optimisers.jl


def test_freeze_and_thaw():
    params, state = two_parts(), setup(Descent(0.1), two_parts())
    state["y"] = freeze(state["y"])
    state, params = update(state, params, slopes())
    assert_close(params["x"], numbers(0.9, 1.0))
    assert params["y"]["z"].tolist() == [3, 4]
    state, params = update(thaw(state), params, slopes(2))
    assert_close(params["x"], numbers(0.7, -1))
    assert_close(params["y"]["z"], numbers(-17, -196))


def test_a_frozen_subtree_is_not_touched_at_all():
    params = two_parts()
    state, params = update(setup(Adam(), params), params, slopes())
    state["y"] = freeze(state["y"])
    later, moved = update(state, params, slopes())
    assert moved["y"]["z"] is params["y"]["z"]
    assert later["y"]["z"] is state["y"]["z"]
    assert moved["x"] is not params["x"]


def test_freeze_gives_a_new_state():
    state = setup(Descent(), two_parts())
    frozen = freeze(state)
    assert frozen["x"].frozen
    assert frozen["y"]["z"].frozen
    assert not state["x"].frozen
    assert freeze(state["x"]).frozen  # a leaf is the smallest subtree
    assert not thaw(freeze(state["x"])).frozen


@pytest.mark.parametrize("first", [True, False])
def test_a_tie_that_is_frozen_at_one_place_is_frozen(first):
    shared = numbers(1.0)
    params = {"a": {"w": shared}, "b": {"w": shared}}
    state = setup(Descent(), params)
    place = "a" if first else "b"
    state[place] = freeze(state[place])
    for grads in (
        params,
        {"a": {"w": shared}},
        {"b": {"w": shared}},
        {"a": {"w": None}, "b": {"w": shared}},
    ):
        assert update(state, params, grads)[1]["a"]["w"] is shared


# Adjust


def test_adjust_keeps_the_velocity():
    params = {"x": numbers(0.0, 0, 0)}
    g = {"x": numbers(1.0, 10, 100)}
    state, once = update(setup(Momentum(0.1, 0.9), params), params, g)
    assert_close(once["x"], numbers(-0.1, -1, -10))
    faster = adjust(state, 0.2)
    assert state["x"].rule.eta == 0.1
    _, twice = update(faster, once, g)
    assert_close(once["x"] - twice["x"], numbers(0.29, 2.9, 29))


def test_adjust_by_name_and_in_a_subtree():
    state = setup(Adam(), two_parts())
    state["y"] = adjust(state["y"], 0.5, beta=(0.8, 0.9))
    assert state["x"].rule == Adam()
    assert state["y"]["z"].rule == Adam(0.5, (0.8, 0.9))
    assert adjust(state["x"], eps=1e-3).rule == Adam(eps=1e-3)
    assert adjust(state) == state
    assert adjust(state, None)["x"].rule == Adam()


def test_adjust_reaches_into_rules_of_rules():
    rule = Chain(ClipGrad(1.0), WeightDecay(0.1), Momentum(0.1))
    wanted = Chain(ClipGrad(2.0), WeightDecay(0.1), Momentum(0.3))
    state = setup(rule, {"x": numbers(1.0)})
    assert adjust(state, 0.3, delta=2.0)["x"].rule == wanted
    around = setup(MixedPrecision(Chain(rule, Adam())), {"x": numbers(1.0)})
    got = adjust(around, 0.3, delta=2.0)["x"].rule
    assert got == MixedPrecision(Chain(wanted, Adam(0.3)))
    waiting = setup(Chain(AccumulateGradients(2), Adam()), {"x": numbers(1.0)})
    assert adjust(waiting, n=3)["x"].rule.rules[0].n == 3


@pytest.mark.parametrize("cast", [np.float32, np.float64, np.array])
def test_adjust_takes_numpy_s_numbers(cast):
    state = setup(Chain(ClipGrad(1.0), Momentum()), two_parts())
    state["y"] = adjust(state["y"], cast(0.25), delta=cast(2.0))
    rule = state["y"]["z"].rule
    assert rule == Chain(ClipGrad(2.0), Momentum(0.25))
    assert type(rule.rules[1].eta) is float
    assert state["x"].rule == Chain(ClipGrad(1.0), Momentum())
    state = setup(Chain(AccumulateGradients(2), Adam()), two_parts())
    assert adjust(state, n=np.int64(3))["x"].rule.rules[0].n == 3
    with pytest.raises(ValueError, match=r"RMSProp.* wants one of another form"):
        adjust(setup(RMSProp(), two_parts()), centered=np.bool_(True))
    with pytest.raises(ValueError, match=r"Chain: a rule stands after|has no 'rules'"):
        adjust(setup(Chain(), two_parts()), rules=(MixedPrecision(), Adam()))


def test_adjust_keeps_ties_and_frost():
    shared = numbers(1.0)
    state = adjust(freeze(setup(Adam(), {"a": shared, "b": shared})), 0.5)
    assert state["a"] is state["b"]
    assert state["a"].frozen


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"rho": 0.5}, r"adjust: Adam\(.*\) of 'x' has no 'rho'. Adjust the subtree"),
        ({"rules": ()}, "has no 'rules'"),
        ({"eta": -1.0}, r"Adam: got eta=-1.0; wanted a number in \[0, inf\)"),
        ({"eta": "fast"}, "Adam: got eta='fast'"),
        ({"beta": 0.9}, "Adam: got beta=0.9; wanted a tuple of two numbers"),
    ],
)
def test_bad_adjustments_are_refused(change, match):
    state = setup(Adam(), {"x": numbers(1.0)})
    with pytest.raises(ValueError, match=match):
        adjust(state, **change)
    assert state["x"].rule == Adam()


@pytest.mark.parametrize(
    ("rule", "change"),
    [
        (RMSProp(), {"centered": True}),
        (RMSProp(centered=True), {"centered": False}),
        (Chain(ClipGrad(), RMSProp()), {"eta": 0.1, "centered": True}),
        (MixedPrecision(Momentum()), {"dtype": torch.float64}),
        (MixedPrecision(RMSProp()), {"centered": True}),
    ],
    ids=repr,
)
def test_what_the_state_cannot_follow_is_refused(rule, change):
    params = {"a": {"x": numbers(1.0).float()}}
    state, params = update(setup(rule, params), params, params)
    match = r"adjust: 'a.x' has the state of .*; .* wants one of another form. Call set"
    with pytest.raises(ValueError, match=match):
        adjust(state, **change)


@pytest.mark.parametrize("rule", [AdamW(0.1, decay=0.1), AMSGrad(), Rprop(), Lion()])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.complex64])
def test_an_adjusted_state_steps_on(rule, dtype):
    params = {"x": torch.ones(2, dtype=dtype)}
    state, params = update(setup(rule, params), params, params)
    adjusted = adjust(state, 1)  # an int is looked at, and nothing is found
    assert adjusted["x"].state is state["x"].state
    assert adjusted["x"].rule == replace(rule, eta=1)
    update(adjusted, params, params)
    if isinstance(rule, AdamW):
        apart = update(adjust(state, couple=False), params, params)[1]["x"]
        assert not torch.equal(apart, update(state, params, params)[1]["x"])


def test_fewer_gradients_than_were_taken_are_a_mean_of_all():
    params = {"x": numbers(0.0)}
    state = setup(Chain(AccumulateGradients(9), Descent(1.0)), params)
    for g in (1.0, 2.0, 3.0):
        state, params = update(state, params, {"x": numbers(g)})
    _, params = update(adjust(state, n=2), params, {"x": numbers(6.0)})
    assert params["x"].item() == -3.0


@pytest.mark.parametrize("function", [freeze, thaw, adjust])
def test_what_is_no_state_is_refused(function):
    name = function.__name__
    with pytest.raises(ValueError, match=f"{name}: 'y.z' is Tensor; wanted a state"):
        function({"y": {"z": torch.zeros(1)}})
    for bad in (nn.Linear(1, 1), iter([setup(Adam(), {})]), None):
        got = type(bad).__name__
        with pytest.raises(ValueError, match=f"{name}: got {got}; wanted a state"):
            function(bad)
