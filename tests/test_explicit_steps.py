"""Explicit steps: whole models against torch.optim."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from explicit_cases import batches, in_place, mse, net, numbers, steps
from torch.func import vmap
from torch.testing import assert_close

from course_lib.explicit import (
    call,
    destructure,
    freeze,
    gradient,
    parameters,
    setup,
    store,
    update,
    update_,
)
from course_lib.rules import (
    Adam,
    Chain,
    ClipGlobalNorm,
    ClipNorm,
    Descent,
    MixedPrecision,
    Momentum,
    Nesterov,
    RMSProp,
    WeightDecay,
)
from course_lib.trees import map_tree, walk

# Whole models


@steps
@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize(
    ("rule", "make"),
    [
        (Descent(0.1), lambda p: torch.optim.SGD(p, 0.1)),
        (Nesterov(0.1), lambda p: torch.optim.SGD(p, 0.1, 0.9, nesterov=True)),
        (Adam(0.1), lambda p: torch.optim.Adam(p, 0.1)),
        (
            Chain(WeightDecay(0.1), RMSProp(0.1)),
            lambda p: torch.optim.RMSprop(p, 0.1, 0.9, weight_decay=0.1),
        ),
    ],
    ids=["Descent", "Nesterov", "Adam", "WeightDecay, RMSProp"],
)
def test_a_model_trains_as_with_torch(rule, make, tie, step, device):
    model = net(device=device, tie=tie)
    params = parameters(model)
    state, before = setup(rule, params), [p.clone() for p in model.parameters()]
    for x, y in batches(device=device):
        grads = gradient(lambda p, x=x, y=y: mse(call(model, p, x), y), params)
        state, params = step(state, params, grads)
    assert all(map(torch.equal, model.parameters(), before))
    twin = copy.deepcopy(model)
    optimizer = make(twin.parameters())
    for x, y in batches(device=device):
        optimizer.zero_grad()
        mse(twin(x), y).backward()
        optimizer.step()
    assert_close(params, parameters(twin), rtol=0, atol=1e-12)
    store(model, params)
    assert_close(model(x), twin(x))
    if tie:
        assert params["0"]["weight"] is params["2"]["weight"]
        assert state["0"]["weight"] is state["2"]["weight"]


@steps
def test_very_basics(step):  # Optimisers.jl
    params = {"m": numbers(1.0, 2.0)}
    given = params["m"]
    state = setup(Descent(0.1), params)
    state, moved = step(state, params, {"m": numbers(25.0, 33.0)})
    assert_close(moved["m"], numbers(1.0, 2) - 0.1 * numbers(25.0, 33))
    assert (moved["m"] is given) == (step is in_place)
    assert given.tolist() == [1, 2] or step is in_place


def test_a_rule_for_each_part():
    model = net()
    params, (x, y) = parameters(model), batches(1)[0]
    state = setup({"0": Descent(0.1), "2": Chain(ClipNorm(0.1), Descent(1.0))}, params)
    grads = gradient(lambda p: mse(call(model, p, x), y), params)
    _, moved = update(state, params, grads)
    assert_close(moved["0"]["bias"], params["0"]["bias"] - 0.1 * grads["0"]["bias"])
    assert (moved["2"]["weight"] - params["2"]["weight"]).norm().item() < 0.1001


def test_an_ensemble_trains_in_one_call():
    model, (x, y) = net(), batches(1)[0]
    trees = [parameters(net(seed)) for seed in range(3)]
    stacked = map_tree(
        lambda path, _: torch.stack([dict(walk(t))[path] for t in trees]), trees[0]
    )
    rule = Chain(ClipGlobalNorm(0.5), Adam(0.1))

    def step(state, p):
        grads = gradient(lambda q: mse(call(model, q, x), y), p)
        return update(state, p, grads)

    state = vmap(lambda p: setup(rule, p))(stacked)
    alone = [(setup(rule, p), p) for p in trees]
    for _ in range(4):
        state, stacked = vmap(step)(state, stacked)
        alone = [step(*each) for each in alone]
    for i, (_, each) in enumerate(alone):
        assert_close(map_tree(lambda _, w, i=i: w[i], stacked), each)


def test_flat_parameters_train_as_well():
    model, (x, y) = net(tie=True), batches(1)[0]
    flat, rebuild = destructure(parameters(model))
    grads = gradient(lambda p: mse(call(model, rebuild(p["v"]), x), y), {"v": flat})
    _, moved = update(setup(Adam(), {"v": flat}), {"v": flat}, grads)
    params = parameters(model)
    grads = gradient(lambda p: mse(call(model, p, x), y), params)
    _, wanted = update(setup(Adam(), params), params, grads)
    assert_close(rebuild(moved["v"]), wanted)


def test_parameters_that_require_grad_are_stepped_without_a_graph():
    params = {"x": numbers(1.0).requires_grad_()}
    state, moved = update(setup(Adam(), params), params, {"x": numbers(1.0)})
    assert not moved["x"].requires_grad
    assert not state["x"].state[0].requires_grad
    update_(setup(Adam(), params), params, {"x": numbers(1.0)})
    assert params["x"].item() == pytest.approx(0.999)


@pytest.mark.parametrize("rule", [Adam(), Momentum(), Chain(ClipNorm(1.0), Adam())])
def test_steps_compile_once(rule):
    torch.compiler.reset()  # what other tests compiled
    params = {"x": torch.ones(2), "y": {"z": torch.ones(1)}}
    compiled = torch.compile(update, backend="eager")
    one = other = setup(rule, params), params
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(10):
            one, other = compiled(*one, one[1]), update(*other, other[1])
    assert_close(one[1], other[1], rtol=0, atol=0)
    held = map_tree(lambda _, x: x.clone(), params)
    torch.compile(update_, backend="eager")(setup(rule, held), held, params)
    assert_close(held, update(setup(rule, params), params, params)[1])


@pytest.mark.parametrize("step", [update, update_])
def test_an_error_inside_a_rule_leaves_the_others_as_they_were(step):
    params = {"a": torch.ones(2), "b": torch.ones(2), "c": torch.ones(2).half()}
    rules = {"a": Adam(), "b": Chain(ClipNorm(1.0), Descent()), "c": MixedPrecision()}
    state = setup(rules, params)
    grads = params | {"b": torch.tensor([1.0, math.nan])}
    held = {k: v.clone() for k, v in params.items()}
    with pytest.raises(ValueError, match="ClipNorm: the gradient's norm is nan"):
        step(state, params, grads, check=False)
    assert_close(params, held)
    assert state["a"].state[2] == 0


def test_check_false_takes_what_comes():
    params = {"x": numbers(1.0, 2)}
    bad = {"x": numbers(math.nan, 1)}
    _, moved = update(setup(Descent(1.0), params), params, bad, check=False)
    assert moved["x"].isnan().tolist() == [True, False]
    update_(setup(Descent(1.0), params), params, bad, check=False)
    assert params["x"].isnan().tolist() == [True, False]


def test_a_frozen_tensor_may_have_any_gradient_that_fits():
    params = {"x": numbers(1.0)}
    state = freeze(setup(Descent(), params))
    assert update(state, params, {"x": numbers(math.nan)})[1]["x"] is params["x"]


def test_large_gradients_are_finite():
    for dtype, large in ((torch.float16, 6e4), (torch.float32, 3e38)):
        params = {"x": torch.ones(300, dtype=dtype)}
        grads = {"x": torch.full((300,), large, dtype=dtype)}  # their norm overflows
        moved = update(setup(Chain(), params), params, grads)[1]["x"]
        assert_close(moved, params["x"] - grads["x"])


# Large arrays, which torch's fused kernel steps


def test_thirty_steps_of_a_large_tensor_are_those_of_torch():
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(260, 260, dtype=torch.float64, generator=generator)
    theirs = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.Adam([theirs], lr=1e-2)
    params = {"x": start.clone()}
    state = setup(Adam(1e-2), params)
    for _ in range(30):
        grad = torch.randn(260, 260, dtype=torch.float64, generator=generator)
        theirs.grad = grad.t()  # columns stand together in memory
        optimizer.step()
        state, params = update(state, params, {"x": grad.t()})
    torch.testing.assert_close(params["x"], theirs.data, rtol=0, atol=1e-12)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [0, 7, 2**16 - 1])
def test_a_gradient_that_is_not_finite_is_named_and_goes_through_unchecked(bad, place):
    params = {"x": torch.ones(2**16), "y": torch.ones(2**16)}
    grads = {name: torch.zeros(2**16) for name in params}
    grads["y"][place] = bad
    state = setup(Adam(), params)
    with pytest.raises(ValueError, match="update: the gradient of 'y' is not finite"):
        update(state, params, grads)
    _, new = update(state, params, grads, check=False)
    assert new["x"].isfinite().all()
    assert new["y"].isnan().nonzero().tolist() == [[place]]
    grads["y"][place] = 3e38  # its square overflows; it is finite
    update(state, params, grads)
