"""Modules as pure functions, and gradients: torch.func and autograd are the oracles."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest
import torch
from torch import nn
from torch.func import functional_call, vmap
from torch.nn.utils import parametrizations, prune
from torch.testing import assert_close

from course_lib.explicit import (
    buffers,
    call,
    destructure,
    gradient,
    load,
    parameters,
    save,
    setup,
    store,
    thaw,
    train,
    trainables,
    update,
    update_,
    with_gradient,
)
from course_lib.regularization import L1L2, penalty, regularize
from course_lib.rules import Adam, Chain, Descent, WeightDecay
from course_lib.trees import dotted, map_tree, walk


class Shared(nn.Module):
    """One submodule under two names, as in this course's autoencoders."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = self.first

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


class Counter(nn.Module):
    """It writes to itself when it runs: an attribute, and a buffer made anew."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.calls = 0
        self.register_buffer("total", torch.zeros(()))
        self.register_buffer("nothing", None)

    def forward(self, x):
        self.calls += 1
        self.last = x
        self.total = self.total + x.sum()
        return self.weight * x


def tied():
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    return model


def pruned():
    layer = prune.l1_unstructured(nn.Linear(3, 3), "weight", 2)
    layer.weight = layer.weight.detach()  # torch can't copy it otherwise
    return layer


class First(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)[0]


MODELS = {
    "linear": lambda: nn.Linear(3, 3),
    "one submodule under two names": Shared,
    "tied": tied,
    "batch norm": lambda: nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)),
    "dropout": lambda: nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)),
    "lstm": lambda: First(nn.LSTM(3, 3)),
    "gru": lambda: First(nn.GRU(3, 3, 2)),
    "weight norm": lambda: parametrizations.weight_norm(nn.Linear(3, 3)),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(3, 3)),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(3, 3)),
    "pruned": pruned,
    "counter": Counter,
    "module list": lambda: nn.Sequential(*nn.ModuleList([nn.Linear(3, 3)] * 3)),
}


@pytest.fixture(params=MODELS)
def model(request, device):
    torch.manual_seed(0)
    return MODELS[request.param]().to(device)


def batch(model):
    torch.manual_seed(1)
    return torch.randn(5, 3, device=next(model.parameters()).device)


def snapshot(model):
    """All that a module holds: which objects stand where, and every bit of them."""
    modules = list(model.modules())
    places = [(m, dict(vars(m))) for m in modules]
    slots = [dict(d) for m in modules for d in (m._parameters, m._buffers)]
    bits = [x.clone() for x in model.state_dict().values()]
    return places, slots, bits


def assert_untouched(model, before):
    places, slots, bits = before
    for module, attributes in places:
        assert vars(module).keys() == attributes.keys()
        assert all(vars(module)[k] is v for k, v in attributes.items())
    dicts = [d for m in model.modules() for d in (m._parameters, m._buffers)]
    for now, then in zip(dicts, slots, strict=True):
        assert now.keys() == then.keys()
        assert all(now[k] is v for k, v in then.items())
    assert all(map(torch.equal, model.state_dict().values(), bits))


def other(params, factor=0.5):
    """Other numbers in the same tree, ties kept."""
    made = {}
    return map_tree(lambda _, x: made.setdefault(id(x), (factor * x).detach()), params)


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


# Gradients


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_the_value_comes_first():
    value, grads = with_gradient(lambda p: (p["x"] ** 2).sum(), {"x": numbers(3.0)})
    assert value == 9
    assert grads["x"].tolist() == [6]
    assert gradient(lambda p: (p["x"] ** 3).sum(), {"x": numbers(2.0)})["x"] == 12


def test_extra_outputs_come_with_the_value_and_hold_no_graph():
    def loss(p):
        y = p["x"] * 2
        return y.sum(), {"y": y, "text": "seen"}, [y]

    (value, extra, rest), grads = with_gradient(loss, {"x": numbers(1.0, 2)})
    assert value == 6
    assert extra["text"] == "seen"
    assert not any(t.requires_grad for t in (value, extra["y"], rest[0]))
    assert grads["x"].tolist() == [2, 2]


def test_what_is_unused_or_whole_has_no_gradient():
    params = {"x": numbers(1.0), "unused": numbers(1.0), "n": torch.tensor(3)}
    params |= {"flag": torch.tensor(True), "deep": {"none": numbers(1.0)}}
    grads = gradient(lambda p: (p["x"] * p["n"]).sum(), params)
    assert grads["x"].tolist() == [3]
    assert grads["unused"] is grads["n"] is grads["flag"] is None
    assert grads["deep"] == {"none": None}
    none = gradient(lambda p: torch.tensor(1.0), params, allow_unused=True)
    assert none["x"] is none["n"] is None
    inside = vmap(lambda s: gradient(lambda p: (s * p["x"] * p["n"]).sum(), params))
    with pytest.raises(ValueError, match="must only return Tensors"):
        inside(numbers(1.0, 2))  # torch: None can't leave vmap
    got = vmap(lambda s: gradient(lambda p: (s * p["x"] * p["n"]).sum(), params)["x"])
    assert got(numbers(1.0, 2)).tolist() == [[3], [6]]


# What the model has frozen


def half_frozen():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.Tanh()))
    model[0].requires_grad_(False)
    model[1][0].bias.requires_grad_(False)
    return model


FROZEN = {("0", "weight"), ("0", "bias"), ("1", "0", "bias")}


def steps(rule, params, model, n=3):
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
    state, moved = steps(rule, params, model)
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
    state, params = steps(Adam(0.5), parameters(model), model)
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


# A loss that trains nothing, or not all that it seems to train


def small():
    torch.manual_seed(0)
    return regularize(nn.Linear(3, 1), weight=L1L2(l2=1.0))


def item(model, p, x):
    return torch.tensor(call(model, p, x).sum().item(), requires_grad=True)


def without_grad(model, p, x):
    with torch.no_grad():
        return call(model, p, x).sum()


NOTHING = {
    "the module itself": lambda model, p, x: model(x).sum(),
    "a penalty": lambda model, p, x: penalty(model),
    "a constant": lambda model, p, x: torch.tensor(1.0),
    "detached": lambda model, p, x: call(model, p, x).detach().sum(),
    "detached before": lambda model, p, x: call(
        model, map_tree(lambda _, w: w.detach(), p), x
    ).sum(),
    "an item": item,
    "argmax": lambda model, p, x: call(model, p, x).argmax().float(),
    "no_grad": without_grad,
    "other parameters": lambda model, p, x: call(model, parameters(model), x).sum(),
    "a copy": lambda model, p, x: copy.deepcopy(model)(x).sum(),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")  # torch's own, in jvp
@pytest.mark.parametrize("transform", ["plain", "vmap", "grad", "gradient", "jvp"])
@pytest.mark.parametrize("name", NOTHING)
def test_a_loss_that_uses_no_parameter_is_refused(name, transform):
    if transform in ("vmap", "grad", "jvp") and name in ("an item", "a copy"):
        pytest.skip("torch refuses .item() there, and new leaves count as used")
    model, x = small(), torch.ones(2, 3)
    params = parameters(model)

    def loss(p, factor):
        return NOTHING[name](model, p, factor * x) * 1.0

    def slope(factor):
        return gradient(lambda p: loss(p, factor), params)["weight"].sum()

    run = {
        "plain": lambda: slope(torch.tensor(2.0)),
        "vmap": lambda: vmap(slope)(torch.ones(2)),
        "grad": lambda: torch.func.grad(slope)(torch.tensor(2.0)),
        "gradient": lambda: gradient(lambda p: slope(p["x"]), {"x": torch.ones(())}),
        "jvp": lambda: torch.func.jvp(slope, (torch.ones(()),), (torch.ones(()),)),
    }[transform]
    match = (
        "with_gradient: the loss uses none of the parameters: 'weight', 'bias' have no "
        r"gradient. In place of model\(x\) write call\(model, params, x\)"
    )
    with pytest.raises(ValueError, match=match):
        run()


def test_train_refuses_it_too_unless_it_may():
    model, x = small(), torch.ones(2, 3)
    params = parameters(model)
    state = setup(Adam(), params)
    with pytest.raises(ValueError, match="the loss uses none of the parameters"):
        train(lambda p, x: model(x).sum(), params, [x], state)

    def some(p, x):
        return call(model, p, x).sum() if x.any() else torch.tensor(0.0)

    batches = [x, 0 * x, x]
    with pytest.raises(ValueError, match="pass allow_unused=True"):
        train(some, params, batches, state)
    _, moved, losses = train(some, params, batches, state, allow_unused=True)
    _, twice, _ = train(some, params, [x, x], state)
    assert losses[1] == 0
    assert_close(moved, twice)


def test_a_constant_is_allowed_where_it_is_said():
    params = {"x": numbers(1.0)}
    for loss in (lambda p: torch.tensor(1.0), lambda p: numbers(1.0).sum()):
        assert gradient(loss, params, allow_unused=True) == {"x": None}
    linear = {"x": numbers(2.0)}  # a slope that no parameter is in
    second = lambda p, **how: gradient(  # noqa: E731
        lambda q: gradient(lambda r: 3 * r["x"].sum(), q)["x"].sum(), p, **how
    )
    with pytest.raises(ValueError, match="the loss uses none"):
        second(linear)
    assert second(linear, allow_unused=True) == {"x": None}


def test_many_names_are_cut_short():
    params = {f"w{i}": numbers(1.0) for i in range(20)}
    with pytest.raises(ValueError, match="'w7' and 12 more have no gradient"):
        gradient(lambda p: torch.tensor(1.0), params)
    named = {"x": numbers(1.0), "n": torch.tensor(3)}
    with pytest.raises(ValueError, match="parameters: 'x' have"):
        gradient(lambda p: torch.tensor(1.0), named)


def test_heads_that_are_not_used_have_no_gradient():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(3, 1), nn.Linear(3, 1)

        def forward(self, x):
            return self.one(x)

    model = Heads()
    grads = gradient(
        lambda p: call(model, p, torch.ones(1, 3)).sum(), parameters(model)
    )
    assert grads["two"] == {"weight": None, "bias": None}
    assert grads["one"]["weight"].tolist() == [[1, 1, 1]]


BESIDE = {
    "penalty": lambda model, p, x: penalty(model),
    "the module": lambda model, p, x: model(x).sum(),
    "a parameter": lambda model, p, x: model.weight[0, 0],
    "a product": lambda model, p, x: (call(model, p, x) * model(x)).sum(),
    "nothing times": lambda model, p, x: 0 * model.bias.sum(),
}


@pytest.mark.parametrize("transform", ["plain", "vmap", "grad", "gradient"])
@pytest.mark.parametrize("name", BESIDE)
def test_a_modules_own_parameters_beside_call_are_refused(name, transform):
    model, x = small(), torch.ones(2, 3)
    params = parameters(model)

    def slope(factor):
        def loss(p):
            return call(model, p, factor * x).sum() + BESIDE[name](model, p, factor * x)

        return gradient(loss, params)["weight"].sum()

    run = {
        "plain": lambda: slope(torch.tensor(2.0)),
        "vmap": lambda: vmap(slope)(torch.ones(2)),
        "grad": lambda: torch.func.grad(slope)(torch.tensor(2.0)),
        "gradient": lambda: gradient(lambda p: slope(p["x"]), {"x": torch.ones(())}),
    }[transform]
    with pytest.raises(
        ValueError,
        match=r"with_gradient: the loss runs a module by `call`, and beside it uses "
        r"its own parameters.*Linear\.(weight|bias).*with substitute\(model, params\)",
    ):
        run()


def test_also_in_a_part_and_in_an_inner_gradient():
    inner = small()
    model, x = nn.Sequential(inner, nn.Tanh()), torch.ones(2, 3)
    params = parameters(model)
    for loss in (
        lambda p: call(model, p, x).sum() + penalty(inner),
        lambda p: call(inner, p["0"], x).sum() + model(x).sum(),
        lambda p: (
            gradient(lambda q: call(model, q, x).sum(), p)["0"]["bias"].sum()
            + model(x).sum()
            + p["0"]["bias"].sum()
        ),
    ):
        with pytest.raises(ValueError, match="beside it uses its own parameters"):
            gradient(loss, params)


def test_what_is_meant_as_a_constant_is_one():
    model, x = small(), torch.ones(2, 3)
    params = map_tree(lambda _, w: w + 1, parameters(model))

    def to_teacher(p):
        with torch.no_grad():
            target = model(x)
        return (call(model, p, x) - target).square().sum()

    wanted = gradient(to_teacher, params)
    detached = gradient(
        lambda p: (call(model, p, x) - model(x).detach()).square().sum(), params
    )
    model.requires_grad_(False)
    still = gradient(lambda p: (call(model, p, x) - model(x)).square().sum(), params)
    assert_close(wanted, detached)
    assert_close(wanted, still)
    assert wanted["bias"].abs() > 0.1


def test_another_network_may_judge_with_its_own_parameters():
    torch.manual_seed(0)
    maker, judge, z = nn.Linear(2, 3), nn.Linear(3, 1), torch.ones(4, 2)
    params = parameters(maker)
    grads = gradient(lambda p: judge(call(maker, p, z)).sum(), params)
    wanted = torch.autograd.grad(judge(maker(z)).sum(), maker.weight)[0]
    assert_close(grads["weight"], wanted)
    assert judge.weight.grad is None
    shares = vmap(
        lambda one: gradient(lambda p: judge(call(maker, p, one)).sum(), params)["bias"]
    )(z)
    assert_close(shares.sum(0), grads["bias"])
    both = parameters(judge)
    grads = gradient(lambda p: call(judge, both, call(maker, p, z)).sum(), params)
    assert_close(grads["weight"], wanted)


def test_parameters_that_are_the_modules_own_are_copied():
    model, x = small(), torch.ones(2, 3)
    own = dict(model.named_parameters())
    grads = gradient(lambda p: call(model, p, x).sum(), own)
    assert grads["bias"].tolist() == [2]
    with pytest.raises(ValueError, match="beside it uses its own parameters"):
        gradient(lambda p: call(model, p, x).sum() + penalty(model), own)


def test_a_skeleton_without_numbers_is_called():
    model, x = small(), torch.ones(2, 3)
    empty = copy.deepcopy(model).to("meta")
    params = parameters(model)
    got = gradient(lambda p: call(empty, p, x).square().sum(), params)
    assert_close(got, gradient(lambda p: call(model, p, x).square().sum(), params))


def test_no_parameters_no_gradients():
    outside = numbers(1.0, 2).requires_grad_()
    value, grads = with_gradient(lambda p: outside.sum(), {"n": torch.tensor(3)})
    assert (value, grads) == (3, {"n": None})
    assert not value.requires_grad
    assert outside.grad is None
    assert gradient(lambda p: outside.sum(), {}) == {}


def test_a_tie_stays_a_tie_in_the_loss():
    shared = numbers(2.0)
    params = {"a": {"w": shared}, "b": {"w": shared}}

    def loss(p):
        assert p["a"]["w"] is p["b"]["w"]
        return (3 * p["a"]["w"] + 7 * p["b"]["w"]).sum()

    grads = gradient(loss, params)
    assert grads["a"]["w"].tolist() == [10]
    assert grads["b"]["w"] is None
    shares = vmap(lambda s: gradient(lambda p: s * loss(p), params)["a"]["w"])
    assert shares(numbers(1.0, 2)).tolist() == [[10], [20]]


@pytest.mark.parametrize(
    ("params", "loss", "match"),
    [
        (nn.Linear(1, 1), None, r"got a Linear for params.*parameters\(model\)"),
        ({numbers(1.0)}, None, "got set for params"),
        ({"a": {"b": 3.0}}, None, "'a.b' is float; wanted a tensor"),
        ({"a": nn.Linear(1, 1)}, None, "'a' is Linear; wanted a tensor"),
        ({"x": numbers(1.0, 2)}, lambda p: p["x"], r"returned \(2,\); wanted a real"),
        ({"x": numbers(1.0)}, lambda p: 3.0, "the loss returned float; wanted"),
        ({"x": numbers(1.0)}, lambda p: None, "the loss returned NoneType; wanted"),
        ({"x": numbers(1.0)}, lambda p: (p["x"], 1), r"the loss returned \(1,\)"),
        (
            {"x": numbers(1.0)},
            lambda p: p["x"].sum() * 1j,
            r"returned \(\); wanted a re",
        ),
    ],
)
def test_bad_losses_and_parameters_are_refused(params, loss, match):
    for function in (gradient, with_gradient):
        with pytest.raises(ValueError, match=f"with_gradient: .*{match}"):
            function(loss, params)


def test_no_grad_does_not_disturb_and_inference_mode_is_refused():
    params = {"x": numbers(3.0)}
    with torch.no_grad():
        assert gradient(lambda p: (p["x"] ** 2).sum(), params)["x"] == 6
    with torch.inference_mode(), pytest.raises(ValueError, match="inference_mode"):
        gradient(lambda p: (p["x"] ** 2).sum(), params)


def test_the_gradient_of_a_gradient():
    def inner(p):
        return gradient(lambda q: (q["x"] ** 3 * p["y"]).sum(), {"x": p["x"]})["x"]

    params = {"x": numbers(2.0), "y": numbers(5.0)}
    grads = gradient(lambda p: inner(p).sum(), params)  # of 3 x**2 y
    assert (grads["x"].item(), grads["y"].item()) == (60, 12)
    third = gradient(
        lambda o: gradient(lambda p: inner(p | {"y": o["y"]}).sum(), o)["x"].sum(),
        params,
    )
    assert (third["x"].item(), third["y"].item()) == (30, 12)


def test_a_penalty_on_the_gradient_trains():
    model, x = (
        nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)),
        torch.ones(2, 3),
    )
    params = parameters(model)

    def loss(p):
        slope = gradient(lambda q: call(model, p, q["x"]).sum(), {"x": x})["x"]
        return slope.square().sum()

    got = gradient(loss, params)
    inputs = x.clone().requires_grad_()
    slope = torch.autograd.grad(model(inputs).sum(), inputs, create_graph=True)[0]
    wanted = torch.autograd.grad(slope.square().sum(), model[0].weight)[0]
    assert_close(got["0"]["weight"], wanted)


def test_nothing_of_a_gradient_is_kept():
    value, grads = with_gradient(lambda p: (p["x"] ** 2).sum(), {"x": numbers(3.0)})
    assert not value.requires_grad
    assert not grads["x"].requires_grad
    params = {"x": numbers(3.0).requires_grad_()}  # as from named_parameters()
    for _ in range(3):
        grads = gradient(lambda p: (p["x"] ** 2).sum(), params)
        params = {"x": params["x"] - 0.1 * grads["x"]}
        assert not grads["x"].requires_grad
        params = {"x": params["x"].detach().requires_grad_()}


def test_an_error_in_the_loss_leaves_no_depth_behind():
    params = {"x": numbers(3.0)}

    def broken(p):
        gradient(lambda q: 1 / 0, p)

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            gradient(broken, params)
        with pytest.raises(ValueError, match="the loss returned"):
            gradient(lambda p: gradient(lambda q: "text", p), params)
    assert not gradient(lambda p: (p["x"] ** 2).sum(), params)["x"].requires_grad


def test_threads_do_not_see_each_other():
    inside, done = threading.Event(), threading.Event()
    seen = []

    def waiting(p):
        inside.set()
        assert done.wait(10)
        return (p["x"] ** 2).sum()

    thread = threading.Thread(
        target=lambda: seen.append(gradient(waiting, {"x": numbers(3.0)})["x"])
    )
    thread.start()
    assert inside.wait(10)
    alone = gradient(lambda p: (p["x"] ** 2).sum(), {"x": numbers(4.0)})["x"]
    done.set()
    thread.join()
    assert not alone.requires_grad
    assert not seen[0].requires_grad
    assert (alone.item(), seen[0].item()) == (8, 6)


@pytest.mark.parametrize("name", ["tied", "one submodule under two names", "linear"])
def test_gradients_for_each_sample(name):
    torch.manual_seed(0)
    model, x = MODELS[name](), torch.randn(4, 3)
    params = parameters(model)

    def loss(p, sample):
        return call(model, p, sample[None]).square().sum()

    def of_one(sample):
        grads = gradient(lambda p: loss(p, sample), params)
        return {dotted(path): g for path, g in walk(grads) if g is not None}

    together = vmap(of_one)(x)
    for i, sample in enumerate(x):
        for key, g in of_one(sample).items():
            assert_close(together[key][i], g)


@pytest.mark.parametrize("name", ["tied", "one submodule under two names", "linear"])
def test_penalties_of_lesson_02(name):
    """A wrapper whose forward is data loss plus penalty, called explicitly."""

    class Objective(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x):
            return self.model(x).square().mean() + penalty(self.model)

    torch.manual_seed(0)
    model = MODELS[name]()
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.Linear):
            where = f"{path}.weight" if path else "weight"
            regularize(model, **{where: L1L2(l1=0.1, l2=0.3)})
    objective, x = Objective(model), torch.randn(4, 3)
    value, grads = with_gradient(lambda p: call(objective, p, x), parameters(objective))
    loss = objective(x)
    assert_close(value, loss.detach())
    loss.backward()
    for name, parameter in objective.named_parameters():
        got = {dotted(path): g for path, g in walk(grads)}[name]
        assert_close(got, parameter.grad)


def test_a_whole_step_compiles_without_a_warning():
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh()), torch.ones(2, 3)
    params = parameters(model)

    def step(state, params, x):
        loss = lambda p: call(model, p, x).square().sum()  # noqa: E731
        value, grads = with_gradient(loss, params)
        return value, *update(state, params, grads)

    compiled = torch.compile(step, backend="eager")
    one = other = (None, setup(Adam(), params), params)
    for _ in range(10):
        one, other = compiled(*one[1:], x), step(*other[1:], x)
    assert torch.equal(one[0], other[0])
    assert torch.equal(one[2]["0"]["weight"], other[2]["0"]["weight"])


@pytest.mark.parametrize("function", [parameters, buffers])
def test_a_dict_is_no_module(function):
    with pytest.raises(ValueError, match=f"{function.__name__}: got dict; wanted an"):
        function({})
    with pytest.raises(ValueError, match=r"call: got dict; wanted an nn\.Module"):
        call({}, {}, 1)


def test_an_autocast_around_a_loop_holds_no_casts():
    """torch holds its casts of leaves until the outermost autocast ends."""
    model, x = nn.Linear(2, 1, bias=False), torch.ones(1, 2)
    params = {"weight": model.weight}
    state = setup(Descent(1.0), params)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(x).dtype == torch.bfloat16
        update_(state, params, {"weight": model.weight.detach().clone()})
        assert model(x).item() == 0
        with torch.no_grad():
            model.weight.fill_(3.0)
        gradient(lambda p: call(model, p, x).float().sum(), params)
        assert model(x).item() == 6
