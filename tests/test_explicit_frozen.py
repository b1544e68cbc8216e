"""Parameters that a model has frozen: torch.optim is the oracle."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from explicit_cases import tied
from torch import nn
from torch.nn.utils import parametrizations
from torch.testing import assert_close

from course_lib.explicit import (
    call,
    destructure,
    gradient,
    load,
    parameters,
    save,
    setup,
    store,
    thaw,
    update,
)
from course_lib.rules import (
    Adam,
    Chain,
    Descent,
    WeightDecay,
)
from course_lib.trees import map_tree, walk


def half_frozen():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.Tanh()))
    model[0].requires_grad_(False)
    model[1][0].bias.requires_grad_(False)
    return model


FROZEN = {("0", "weight"), ("0", "bias"), ("1", "0", "bias")}


def stepped(rule, params, model, n=3):
    state, x = setup(rule, params), torch.ones(2, 2)
    for _ in range(n):
        grads = gradient(lambda p: call(model, p, x).square().sum(), params)
        state, params = update(state, params, grads)
    return state, params


@pytest.mark.parametrize(
    "rule", [Descent(0.5), Adam(0.5), Chain(WeightDecay(0.5), Adam(0.5))], ids=repr
)
def test_what_requires_no_grad_is_not_moved_as_with_torch(rule):
    model = half_frozen()
    params = parameters(model)
    state, moved = stepped(rule, params, model)
    assert {path for path, leaf in walk(state) if leaf.frozen} == FROZEN
    for path, x in walk(moved):
        assert torch.equal(x, dict(walk(params))[path]) == (path in FROZEN)
    if rule == Adam(0.5):
        optimizer = torch.optim.Adam(model.parameters(), 0.5)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.ones(2, 2)).square().sum().backward()
            optimizer.step()
        assert_close(moved, parameters(model), rtol=0, atol=1e-6)


def test_the_modules_own_parameters_are_frozen_where_it_froze_them():
    model = half_frozen()
    named = dict(model.named_parameters())  # as torch.func's users have them
    listed = list(model.parameters())
    for params in (named, listed, tuple(listed)):
        found = [leaf.frozen for _, leaf in walk(setup(Descent(), params))]
        assert found == [not p.requires_grad for p in model.parameters()]
        assert destructure(params)[0].shape == (4,)
    free = {"a": torch.ones(2), "b": torch.ones(2, requires_grad=True)}
    assert not any(leaf.frozen for _, leaf in walk(setup(Descent(), free)))


def test_thaw_frees_what_the_model_froze():
    model = half_frozen()
    params = parameters(model)
    twin = copy.deepcopy(model).requires_grad_(True)
    state, x = setup(Descent(0.5), params), torch.ones(2, 2)
    state = {"0": thaw(state["0"]), "1": state["1"]}
    grads = gradient(lambda p: call(model, p, x).square().sum(), params)
    _, moved = update(state, params, grads)
    twin(x).square().sum().backward()
    wanted = params["0"]["weight"] - 0.5 * twin[0].weight.grad
    assert_close(moved["0"]["weight"], wanted)
    assert moved["1"]["0"]["bias"] is params["1"]["0"]["bias"]
    store(model, moved)
    assert_close(model[0].weight.detach(), wanted)
    assert not model[0].weight.requires_grad


def test_frozen_and_tied():
    model = tied()
    model[0].weight.requires_grad_(False)
    params = parameters(model)
    state = setup(Adam(), params)
    assert state["0"]["weight"] is state["2"]["weight"]
    assert state["0"]["weight"].frozen
    assert not state["0"]["bias"].frozen


def test_frozen_in_files_copies_and_other_dtypes(tmp_path):
    model = half_frozen()
    state, params = stepped(Adam(0.5), parameters(model), model)
    save(tmp_path / "state.npz", state)
    read = load(tmp_path / "state.npz")
    assert {path for path, leaf in walk(read) if leaf.frozen} == FROZEN
    torch.save(params, tmp_path / "params.pt")
    for again in (
        torch.load(tmp_path / "params.pt"),
        copy.deepcopy(params),
        pickle.loads(pickle.dumps(params)),
        parameters(model.to(torch.float64)),
        parameters(copy.deepcopy(model)),
        map_tree(lambda _, x: x.cpu(), params),
    ):
        found = {path for path, leaf in walk(setup(Adam(), again)) if leaf.frozen}
        assert found == FROZEN


def test_a_model_that_is_frozen_as_a_whole_is_warned_of():
    model = nn.Linear(2, 1).requires_grad_(False)
    params = parameters(model)
    with pytest.warns(UserWarning, match=r"setup: every parameter is frozen.*thaw\("):
        state = setup(Adam(), params)
    grads = gradient(lambda p: call(model, p, torch.ones(1, 2)).sum(), params)
    assert update(state, params, grads)[1]["weight"] is params["weight"]
    assert update(thaw(state), params, grads)[1]["weight"] is not params["weight"]


def test_parametrized_and_whole_numbers():
    model = parametrizations.weight_norm(nn.Linear(3, 3))
    model.parametrizations.weight.original0.requires_grad_(False)
    model.ids = nn.Parameter(torch.arange(3), requires_grad=False)
    params = parameters(model)
    x = torch.ones(2, 3)
    grads = gradient(lambda p: call(model, p, x).square().sum(), params)
    _, moved = update(setup(Descent(0.1), params), params, grads)
    old, new = (t["parametrizations"]["weight"] for t in (params, moved))
    assert new["original0"] is old["original0"]
    assert not torch.equal(new["original1"], old["original1"])
    assert moved["ids"].tolist() == [0, 1, 2]
