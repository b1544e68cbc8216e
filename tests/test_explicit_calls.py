"""Modules as pure functions: torch.func and autograd are the oracles."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from explicit_cases import MODELS, assert_untouched, batch, other, snapshot, tied
from torch import nn
from torch.func import functional_call, vmap
from torch.testing import assert_close

from course_lib.explicit import (
    buffers,
    call,
    parameters,
    store,
    trainables,
    with_gradient,
)
from course_lib.trees import dotted, map_tree, walk


@pytest.fixture(params=MODELS)
def model(request, device):
    torch.manual_seed(0)
    return MODELS[request.param]().to(device)


# Parameters and buffers


def test_parameters_are_a_copy_that_mirrors_the_module(model):
    tree = parameters(model)
    own = dict(model.named_parameters(remove_duplicate=False))
    assert [dotted(path) for path, _ in walk(tree)] == list(own)
    for path, x in walk(tree):
        assert torch.equal(x, own[dotted(path)])
        assert not x.requires_grad
        assert x.data_ptr() != own[dotted(path)].data_ptr()
    assert len(trainables(tree)) == len(list(model.parameters()))


def test_buffers_are_a_copy():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3))
    tree = buffers(model)
    assert list(tree["0"]) == ["running_mean", "running_var", "num_batches_tracked"]
    tree["0"]["running_mean"] += 1
    assert model[0].running_mean.tolist() == [0, 0, 0]
    assert buffers(nn.Linear(1, 1)) == {}


# Calling


def test_a_call_is_the_module_with_these_parameters(model):
    x, params = batch(model), parameters(model)
    twin = copy.deepcopy(model)
    store(twin, other(params))
    before = snapshot(model)
    torch.manual_seed(2)
    got = call(model, other(params), x)
    assert_untouched(model, before)
    torch.manual_seed(2)
    assert_close(got, twin(x))
    copy.deepcopy(model)


def test_with_buffers_the_new_ones_come_back(model):
    x, params, given = batch(model), parameters(model), buffers(model)
    twin = copy.deepcopy(model)
    held, before = map_tree(lambda _, b: b.clone(), given), snapshot(model)
    torch.manual_seed(2)
    got, new = call(model, params, x, buffers=given)
    assert_untouched(model, before)
    torch.manual_seed(2)
    assert_close(got, twin(x))
    assert_close(new, buffers(twin))
    assert_close(given, held)  # the caller's tree stays as it is


def test_gradients_are_autograds(model):
    x, params = batch(model), parameters(model)
    torch.manual_seed(2)
    value, grads = with_gradient(lambda p: call(model, p, x).square().sum(), params)
    twin = copy.deepcopy(model)
    torch.manual_seed(2)
    loss = twin(x).square().sum()
    loss.backward()
    assert_close(value, loss.detach())
    wanted = {name: parameter.grad for name, parameter in twin.named_parameters()}
    got = {dotted(path): g for path, g in walk(grads) if g is not None}
    assert_close(got, {name: g for name, g in wanted.items() if g is not None})
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", ["one submodule under two names", "lstm", "counter"])
def test_the_module_is_whole_after_an_error(name):
    model = MODELS[name]()
    before = snapshot(model)
    for bad in (torch.randn(2, 7), None):
        with pytest.raises((RuntimeError, TypeError, AttributeError)):
            call(model, other(parameters(model)), bad, buffers=buffers(model))
        assert_untouched(model, before)
    pickle.loads(pickle.dumps(model))


def test_interrupts_restore_too():
    class Interrupted(nn.Linear):
        def forward(self, x):
            raise KeyboardInterrupt

    model = Interrupted(2, 2)
    before = snapshot(model)
    with pytest.raises(KeyboardInterrupt):
        call(model, parameters(model), None)
    assert_untouched(model, before)


def test_tied_buffers_and_absent_ones_keep_their_places():
    class Sums(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("here", torch.zeros(1))
            self.register_buffer("nothing", None)
            self.inner = nn.Module()
            self.inner.register_buffer("there", self.here)

        def forward(self, x):
            self.here.add_(x)
            return self.inner.there + x, self.nothing

    model = Sums()
    before = snapshot(model)
    for given, got in ((None, 6), (buffers(model), 6)):
        out = call(model, {}, 3.0, buffers=given)
        assert (out[0] if given is None else out[0][0])[0] == got
        assert given is None or out[1]["inner"]["there"] == out[1]["here"] == 3
        assert_untouched(model, before)


def test_the_mode_is_the_modules():
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.BatchNorm1d(3))
    params, x = parameters(model), torch.randn(8, 3)
    _, new = call(model, params, x, buffers=buffers(model))
    assert new["2"]["num_batches_tracked"] == 1
    model.eval()
    got, new = call(model, params, x, buffers=buffers(model))
    assert new["2"]["num_batches_tracked"] == 0
    assert torch.equal(got, model(x))
    assert not model.training


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_a_compiled_module_is_refused_for_it_would_take_its_own_tensors():
    linear = nn.Linear(2, 2)
    model = nn.Sequential(torch.jit.script(linear))
    params = {"0": parameters(linear)}
    with pytest.raises(ValueError, match="call: '0' is a compiled ScriptModule"):
        call(model, params, torch.ones(1, 2))


def test_a_call_takes_what_forward_takes():
    class Affine(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(torch.ones(()))

        def forward(self, x, *rest, scale=1.0, model=0, params=0):
            return {"y": self.a * x * scale + sum(rest)}, model

    affine = Affine()
    out, _ = call(affine, {"a": torch.tensor(2.0)}, 3.0, 10.0, scale=4.0)
    assert out["y"] == 34


def test_a_call_equals_functional_call(model):
    x, params = batch(model), other(parameters(model))
    named = {dotted(path): tensor for path, tensor in walk(params)}
    torch.manual_seed(2)
    got = call(model.eval(), params, x)
    torch.manual_seed(2)
    assert_close(got, functional_call(model, named, (x,), tie_weights=False))


def test_two_models_from_one_function():
    model, x = tied(), torch.randn(4, 3)
    a, b = parameters(model), other(parameters(model), 2.0)
    assert not torch.allclose(call(model, a, x), call(model, b, x))
    assert torch.equal(call(model, a, x), model(x))


def test_an_ensemble_by_vmap():
    torch.manual_seed(0)
    model, x = (
        nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)),
        torch.ones(2, 3),
    )
    trees = [other(parameters(model), factor) for factor in (0.5, 1.0, 2.0)]
    stacked = map_tree(
        lambda path, _: torch.stack([dict(walk(t))[path] for t in trees]), trees[0]
    )
    got = vmap(lambda p: call(model, p, x))(stacked)
    for each, params in zip(got, trees, strict=True):
        assert_close(each, call(model, params, x))


def test_a_call_compiles_to_one_graph():
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh()), torch.randn(2, 3)
    params = other(parameters(model))
    compiled = torch.compile(lambda p, x: call(model, p, x), backend="eager")
    before = snapshot(model)
    for _ in range(2):
        assert torch.equal(compiled(params, x), call(model, params, x))
    assert_untouched(model, before)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda p: p.pop("bias"), "call: parameters have no 'bias'. Wanted the tree"),
        (lambda p: p.update(extra=p["bias"]), "parameters have 'extra' too many"),
        (
            lambda p: p.update(weight=torch.zeros(2)),
            r"'weight' is a tensor of shape \(2,\); the module wants .*\(2, 3\)",
        ),
        (lambda p: p.update(weight=3.0), "'weight' is float; the module wants"),
        (lambda p: p.update(weight=None), "'weight' is NoneType; the module wants"),
        (
            lambda p: p.update(weight={"x": p["weight"]}),
            "parameters have no 'weight'",
        ),
    ],
)
@pytest.mark.parametrize("function", [call, store])
def test_trees_that_do_not_fit_are_refused(function, change, match):
    model = nn.Linear(3, 2)
    params, before = parameters(model), snapshot(model)
    params["weight"] += 1
    change(params)
    match = match.replace("call", function.__name__)
    with pytest.raises(ValueError, match=match):
        function(model, params, *([torch.ones(1, 3)] if function is call else []))
    assert_untouched(model, before)


def test_bad_buffers_are_refused():
    model, x = nn.BatchNorm1d(3), torch.ones(2, 3)
    params = parameters(model)
    for bad, match in (
        ({}, "call: buffers have no 'running_mean'"),
        (model, "call: got a BatchNorm1d for buffers"),
        (buffers(model) | {"running_var": 3}, "'running_var' is int; the module"),
        (buffers(model) | {"more": torch.ones(1)}, "buffers have 'more' too many"),
    ):
        with pytest.raises(ValueError, match=match):
            call(model, params, x, buffers=bad)
    with pytest.raises(ValueError, match="call: got a BatchNorm1d for parameters"):
        call(model, model, x)


# Storing


def test_store_puts_both_back(model):
    tree, given = other(parameters(model)), buffers(model)
    own = list(model.parameters())
    given = map_tree(lambda _, b: b + 1, given)
    store(model, tree, given)
    assert_close(parameters(model), tree)
    assert_close(buffers(model), given)
    assert all(a is b for a, b in zip(model.parameters(), own, strict=True))
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("params", "given", "match"),
    [
        ({}, {"running_mean": torch.ones(3)}, "store: buffers have no 'running_var'"),
        ({"bias": torch.ones(3, device="meta")}, None, "store: 'bias' is .* on meta"),
        (
            {"bias": torch.ones(3, dtype=torch.complex64)},
            None,
            "store: 'bias' is torch.complex64 .* fit into torch.float32",
        ),
    ],
)
def test_store_all_or_nothing(params, given, match):
    model = nn.BatchNorm1d(3)
    before = snapshot(model)
    changed = map_tree(lambda _, x: x + 1, parameters(model)) | params
    with pytest.raises(ValueError, match=match):
        store(model, changed, given)
    assert_untouched(model, before)


def test_store_rounds_to_the_modules_dtype():
    model = nn.Linear(1, 1).half()
    store(model, {"weight": torch.tensor([[1 / 3]]), "bias": torch.zeros(1).double()})
    assert model.weight.dtype == torch.float16
    assert model.weight.item() == pytest.approx(1 / 3, abs=1e-3)


@pytest.mark.parametrize("function", [parameters, buffers])
def test_a_dict_is_no_module(function):
    with pytest.raises(ValueError, match=f"{function.__name__}: got dict; wanted an"):
        function({})
    with pytest.raises(ValueError, match=r"call: got dict; wanted an nn\.Module"):
        call({}, {}, 1)
