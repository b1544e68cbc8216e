"""Explicit steps and loops: whole models against torch.optim, ties, and bad input."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.func import vmap
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from course_lib.explicit import (
    NonFiniteLoss,
    adjust,
    call,
    destructure,
    freeze,
    gradient,
    load,
    parameters,
    save,
    setup,
    store,
    train,
    trainables,
    update,
    update_,
    with_gradient,
)
from course_lib.rules import (
    AccumulateGradients,
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

mse = nn.functional.mse_loss


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def net(seed=0, device="cpu", *, tie=False):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    if tie:
        model[2].weight = model[0].weight
    return model.to(device)


def batches(n=10, device="cpu"):
    torch.manual_seed(1)
    return [
        tuple(torch.randn(5, 3, dtype=torch.float64, device=device) for _ in "xy")
        for _ in range(n)
    ]


def in_place(state, params, grads):
    update_(state, params, grads)
    return state, params


steps = pytest.mark.parametrize("step", [update, in_place], ids=["pure", "in place"])

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


@pytest.mark.parametrize("rule", [Descent(0.1), Adam(0.1), Chain(Momentum())], ids=repr)
@steps
def test_gradients_of_a_tie_are_summed(rule, step):
    shared, other = numbers(1.0, 2), numbers(3.0, 4)
    params = {"a": shared, "b": {"c": other, "again": shared}}
    grads = {
        "a": numbers(3.0, 3),
        "b": {"c": numbers(5.0, 5), "again": numbers(7.0, 7)},
    }
    state = setup(rule, params)
    alone = {"a": shared.clone()}
    for _ in range(3):
        state, params = step(state, params, grads)
        assert params["a"] is params["b"]["again"]
        assert state["a"] is state["b"]["again"]
    assert grads["a"].tolist() == [3, 3]
    memory = setup(rule, alone)
    for _ in range(3):
        memory, alone = update(memory, alone, {"a": numbers(10.0, 10)})
    assert_close(params["a"], alone["a"])


def backward_of_a_tie(sparse=False):
    torch.manual_seed(0)
    inside, outside = nn.Embedding(4, 3, sparse=sparse), nn.Linear(3, 4, bias=False)
    outside.weight = inside.weight
    model = nn.Sequential(inside, outside)
    x = torch.tensor([1])
    (inside(x) if sparse else model(x)).square().sum().backward()
    return model, inside.weight.grad


@steps
@pytest.mark.parametrize(
    "given",
    [
        lambda g: ({"weight": g}, {"weight": g}),
        lambda g: ({"weight": g}, {"weight": g.detach()}),
        lambda g: ({"weight": g[:]}, {"weight": g.view_as(g)}),
        lambda g: ({"weight": g}, {"weight": None}),
        lambda g: ({}, {"weight": g}),
        lambda g: ({"weight": g / 4}, {"weight": 3 * g / 4}),
    ],
)
def test_a_whole_gradient_at_both_places_of_a_tie_counts_once(given, step):
    model, whole = backward_of_a_tie()
    params = parameters(model)
    first, second = given(whole)
    before = params["0"]["weight"].clone()
    grads = {"0": first, "1": second}
    _, moved = step(setup(Descent(1.0), params), params, grads)
    assert_close(before - moved["0"]["weight"], whole)


def test_a_gradient_at_some_of_three_places():
    shared, one, two = numbers(1.0), numbers(3.0), numbers(5.0)
    params = dict.fromkeys("abc", shared)
    state = setup(Descent(1.0), params)
    equal = numbers(3.0)  # equal, and yet another one
    for places, total in (
        ((one, one, two), 8),
        ((one, two, one), 8),
        ((two, one, one), 8),
        ((one, one, one), 3),
        ((None, one, one), 3),
        ((one, equal, two), 11),
    ):
        grads = dict(zip("abc", places, strict=True))
        assert update(state, params, grads)[1]["a"].item() == 1 - total
    assert one.item() == 3


def test_parts_of_one_array_are_gradients_of_their_own():
    both, shared = numbers(3.0, 5), numbers(1.0)
    params = {"a": shared, "b": shared}
    grads = {"a": both[:1], "b": both[1:]}
    assert update(setup(Descent(1.0), params), params, grads)[1]["a"].item() == -7


def test_a_tie_under_vmap_sums_what_each_place_has():
    def step(g, h):
        shared = numbers(1.0)
        params = {"a": shared, "b": shared}
        return update(setup(Descent(1.0), params), params, {"a": g, "b": h})[1]["a"]

    got = vmap(step)(numbers(1.0, 2)[:, None], numbers(10.0, 20)[:, None])
    assert got.tolist() == [[-10], [-21]]
    assert vmap(lambda g: step(g, g))(numbers(1.0, 2)[:, None]).tolist() == [[0], [-1]]


# Sparse gradients


def sparse(rows, values):
    """Return a gradient of shape (3, 1)."""
    values = torch.tensor(values, dtype=torch.float32)[:, None]
    return torch.sparse_coo_tensor([rows], values, (3, 1), check_invariants=True)


def embedding(rows=(1, 3, 1)):
    torch.manual_seed(0)
    model = nn.Embedding(5, 3, sparse=True)
    return model, torch.tensor(rows)


@steps
@pytest.mark.parametrize("check", [True, False])
def test_descent_takes_a_sparse_gradient_as_torch_does(check, step):
    model, rows = embedding()
    params = parameters(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    state = setup(Descent(0.1), params)
    for _ in range(3):
        grads = gradient(lambda p: call(model, p, rows).square().sum(), params)
        assert grads["weight"].is_sparse
        if step is update:
            state, params = update(state, params, grads, check=check)
        else:
            update_(state, params, grads, check=check)
    for _ in range(3):
        optimizer.zero_grad()
        model(rows).square().sum().backward()
        optimizer.step()
    assert_close(params, parameters(model))
    assert not params["weight"].is_sparse


@pytest.mark.parametrize("step", [update, update_])
@pytest.mark.parametrize(
    "rule",
    [Adam(), Momentum(), Chain(ClipNorm(1.0), Descent()), ClipGlobalNorm(1.0)],
    ids=repr,
)
@pytest.mark.parametrize("check", [True, False])
def test_other_rules_refuse_a_sparse_gradient(check, rule, step):
    model, rows = embedding()
    params = parameters(model)
    before, state = params["weight"].clone(), setup(rule, params)
    grads = gradient(lambda p: call(model, p, rows).sum(), params)
    match = (
        rf"^{step.__name__}: the gradient of 'weight' is sparse; call \.to_dense\(\)"
    )
    with pytest.raises(ValueError, match=match):
        step(state, params, grads, check=check)
    assert torch.equal(params["weight"], before)
    counts = torch.eye(5)[rows].sum(0)[:, None].expand(5, 3)
    dense = {"weight": grads["weight"].to_dense()}
    wanted = update(state, params, {"weight": counts.clone()})
    assert_close(update(state, params, dense)[1], wanted[1])
    assert update(freeze(state), params, grads)[1]["weight"] is params["weight"]
    with pytest.raises(ValueError, match="update: the gradient of 'weight' is sparse"):
        train(lambda p, x: call(model, p, x).sum(), params, [rows], state)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_other_layouts_are_refused_too():
    params = {"w": torch.ones(2, 2)}
    with pytest.raises(ValueError, match="gradient of 'w' is sparse"):
        update(setup(Descent(), params), params, {"w": torch.eye(2).to_sparse_csr()})
    with pytest.raises(
        ValueError, match=r"setup: the parameter 'w' is sparse; .*dense"
    ):
        setup(Descent(), {"w": torch.eye(2).to_sparse()})


def test_a_sparse_gradient_that_is_not_finite_is_refused():
    params = {"w": torch.ones(3, 1), "b": torch.ones(1)}
    state, nan = setup(Descent(), params), torch.tensor([math.nan])
    for values in ((1, math.nan, 1), (1, math.inf, -math.inf), (1, 3e38, 3e38)):
        grads = {"w": sparse((0, 2, 2), values), "b": params["b"]}
        with pytest.raises(ValueError, match="update: the gradient of 'w' is not fin"):
            update(state, params, grads)
    with pytest.raises(ValueError, match="update: the gradient of 'b' is not fin"):
        update(state, params, {"w": sparse((0, 2, 2), (1.0, 1.0, 1.0)), "b": nan})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_sparse_gradients_of_other_dtypes(dtype):
    params = {"w": torch.ones(3, 1, dtype=dtype)}
    grads = {"w": sparse((1, 1), (2.0, 3.0)).to(dtype)}
    moved = update(setup(Descent(0.5), params), params, grads)[1]["w"]
    assert moved.dtype == dtype
    assert moved[:, 0].tolist() == [1, -1.5, 1]


@pytest.mark.parametrize("order", [False, True])
def test_sparse_and_dense_gradients_of_a_tie_are_summed(order):
    shared, dense = torch.ones(3, 1), torch.full((3, 1), 2.0)
    rows = sparse((1, 1), (3.0, 4.0))
    params = {"a": shared, "b": shared}
    both = (dense, rows) if order else (rows, dense)
    wanted = torch.tensor([[-1.0], [-8.0], [-1.0]])
    for pair, result in (
        (both, wanted),
        ((rows, rows), torch.tensor([[1.0], [-6.0], [1.0]])),
        ((rows, rows.clone()), torch.tensor([[1.0], [-13.0], [1.0]])),
    ):
        grads = dict(zip("ab", pair, strict=True))
        moved = update(setup(Descent(1.0), params), params, grads)[1]
        assert_close(moved["a"], result)


def test_the_sparse_grad_of_a_tie_counts_once():
    model, whole = backward_of_a_tie(sparse=True)
    params = parameters(model)
    assert whole.is_sparse
    grads = {"0": {"weight": whole}, "1": {"weight": model[1].weight.grad}}
    _, moved = update(setup(Descent(1.0), params), params, grads)
    assert_close(params["0"]["weight"] - moved["0"]["weight"], whole.to_dense())


def test_a_tie_with_one_gradient():
    shared = numbers(1.0)
    params = {"a": shared, "b": {"w": shared}}
    state = setup(Descent(0.1), params)
    for grads in (
        {"a": numbers(3.0)},
        {"b": {"w": numbers(3.0)}},
        {"a": None, "b": {"w": numbers(3.0)}},
        {"a": numbers(3.0), "b": None},
    ):
        assert_close(update(state, params, grads)[1]["a"], numbers(0.7))


@steps
def test_no_gradient_no_step(step):
    params = {"a": {"x": numbers(1.0), "y": numbers(1.0)}, "b": {"z": numbers(1.0)}}
    for grads in ({}, {"a": None}, {"a": {}}, {"a": {"x": None}, "b": {"z": None}}):
        state = setup(Adam(), params)
        kept = state["a"]["x"]
        state, moved = step(state, params, grads)
        assert moved["a"]["x"] is params["a"]["x"]
        assert params["a"]["x"].item() == 1
        assert state["a"]["x"] is kept
    state, moved = step(setup(Descent(), params), params, {"a": {"x": numbers(1.0)}})
    assert moved["a"]["x"].item() == 0.9
    assert moved["b"]["z"].item() == 1


def test_a_rule_for_each_part():
    model = net()
    params, (x, y) = parameters(model), batches(1)[0]
    state = setup({"0": Descent(0.1), "2": Chain(ClipNorm(0.1), Descent(1.0))}, params)
    grads = gradient(lambda p: mse(call(model, p, x), y), params)
    _, moved = update(state, params, grads)
    assert_close(moved["0"]["bias"], params["0"]["bias"] - 0.1 * grads["0"]["bias"])
    assert (moved["2"]["weight"] - params["2"]["weight"]).norm().item() < 0.1001


def test_accumulated_small_batches_are_one_large():
    model, data = net(), batches(4)
    params = parameters(model)

    def loss(p, x, y):
        return mse(call(model, p, x), y)

    state = setup(Chain(AccumulateGradients(4), Adam(0.1)), params)
    _, small, _ = train(loss, params, data, state)
    large = [tuple(map(torch.cat, zip(*data, strict=True)))]
    _, once, _ = train(loss, params, large, setup(Adam(0.1), params))
    assert_close(small, once)


@pytest.mark.parametrize("tie", [False, True])
def test_l2_three_ways(tie):  # Flux
    model = net(tie=tie)
    params = parameters(model)

    def plain(p, x, y):
        return mse(call(model, p, x), y)

    def explicit(p, x, y):
        squares = [(p["0"]["bias"] ** 2).sum() + (p["2"]["bias"] ** 2).sum()]
        squares += [(p["0"]["weight"] ** 2).sum()]
        squares += [] if tie else [(p["2"]["weight"] ** 2).sum()]
        return plain(p, x, y) + 0.33 * sum(squares) / 2

    def over_trainables(p, x, y):
        l2 = sum((w**2).sum() for w in trainables(p).values()) / 2
        return plain(p, x, y) + 0.33 * l2

    adam, decayed = Adam(0.1), Chain(WeightDecay(0.33), Adam(0.1))
    results = [
        train(loss, params, batches(), setup(rule, params))[1]
        for loss, rule in ((explicit, adam), (over_trainables, adam), (plain, decayed))
    ]
    assert_close(results[0], results[1])
    assert_close(results[0], results[2])


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


# Bad input: an error with the path, and nothing half-updated


def good():
    params = {
        "fc": {"weight": torch.ones(2, 3), "bias": torch.ones(2)},
        "z": torch.ones(1),
    }
    params["z2"] = params["z"]
    return setup(Adam(0.1), params), params, map_tree(lambda _, x: x.clone(), params)


def put(tree, name, leaf):
    *folders, last = name.split(".")
    for folder in folders:
        tree = tree[folder]
    tree[last] = leaf


def changed(which, name, leaf):
    def change(*trees):
        put(trees[which], name, leaf)

    return change


def rule_of(rule, place="z2"):
    def change(state, params, grads):
        state[place] = setup(rule, {"z": params["z"]})["z"]

    return change


def drop(which, name):
    return lambda *trees: trees[which].pop(name)


STATE, PARAMS, GRADS = range(3)
BAD = [
    (
        changed(GRADS, "fc.weight", torch.ones(3, 2)),
        r"gradient of 'fc.weight' has shape \(3, 2\).* the parameter has shape \(2, 3\)"
        r".*Take gradients with respect to these params",
    ),
    (
        changed(GRADS, "fc.bias", torch.ones(2, dtype=torch.float64)),
        r"'fc.bias' has shape \(2,\), torch.float64 .* torch.float32 on cpu",
    ),
    (changed(GRADS, "fc.bias", torch.ones(2).half()), "torch.float16 .* torch.float32"),
    (changed(GRADS, "z2", torch.ones(1, dtype=torch.int64)), "'z2' .*torch.int64"),
    (changed(GRADS, "fc.bias", torch.ones(2, device="meta")), "float32 on meta; the"),
    (
        changed(GRADS, "fc.bias", torch.tensor([1.0, math.nan])),
        "'fc.bias' is not finite",
    ),
    (changed(GRADS, "z", torch.tensor([math.inf])), "'z' is not finite. Nothing was"),
    (
        changed(GRADS, "fc.bias", 1.0),
        "the gradient of 'fc.bias' is float; wanted a Ten",
    ),
    (changed(GRADS, "fc.bias", {"x": torch.ones(2)}), "gradient of 'fc.bias' is dict"),
    (changed(GRADS, "fc", torch.ones(2)), "at 'fc' the gradients have Tensor"),
    (changed(GRADS, "fc", nn.Linear(3, 2)), "at 'fc' the gradients have Linear"),
    (changed(GRADS, "extra", torch.ones(1)), r"at '\(root\)' the gradients have extra"),
    (changed(GRADS, "fc.extra", None), "at 'fc' the gradients have extra, which the"),
    (drop(STATE, "fc"), r"at '\(root\)' the state has z, z2; .* Call setup"),
    (changed(STATE, "more", None), r"at '\(root\)' the state has fc, z, z2, more"),
    (changed(STATE, "z", None), "the state of 'z' is NoneType; wanted a Leaf"),
    (changed(STATE, "fc", torch.ones(2)), "at 'fc' the state has tensor"),
    (
        changed(STATE, "fc.bias", setup(Adam(), {"x": torch.ones(1)})["x"]),
        "of 'fc.bias'",
    ),
    (
        changed(STATE, "fc.bias", setup(Adam(), {"x": torch.ones(2).double()})["x"]),
        "state of 'fc.bias' is torch.float64 .* wants torch.float32",
    ),
    (
        changed(STATE, "fc.bias", setup(Momentum(), {"x": torch.ones(1)})["x"]),
        r"state of 'fc.bias' is .*shape \(1,\) .*the rule wants .*shape \(2,\)",
    ),
    (
        changed(
            STATE,
            "fc.bias",
            setup(Chain(Adam()), {"x": torch.ones(2, device="meta")})["x"],
        ),
        "state of 'fc.bias' is .* on meta; .* on cpu",
    ),
    (rule_of(Descent()), "'z' and 'z2' are one tied tensor, but have the rules Adam"),
    (changed(PARAMS, "z", 1.0), "the parameter of 'z' is float; wanted a Tensor"),
    (drop(PARAMS, "fc"), r"at '\(root\)' the state has fc, z, z2; the parameters"),
]


@pytest.mark.parametrize("step", [update, update_])
@pytest.mark.parametrize(("change", "match"), BAD, ids=[match for _, match in BAD])
def test_what_does_not_fit_is_refused_before_anything_is_written(step, change, match):
    state, params, grads = good()
    change(state, params, grads)
    leaves = dict(walk(state))
    tensors = [x for _, x in (*walk(params), *walk(grads))]
    tensors += torch.utils._pytree.tree_leaves(state)
    tensors = [x for x in tensors if isinstance(x, torch.Tensor) and not x.is_meta]
    before = [x.clone() for x in tensors]
    with pytest.raises(ValueError, match=rf"^{step.__name__}: .*{match}"):
        step(state, params, grads)
    assert all(
        a.equal(b) or a.isnan().any() for a, b in zip(tensors, before, strict=True)
    )
    assert dict(walk(state)).keys() == leaves.keys()
    assert all(dict(walk(state))[path] is leaf for path, leaf in leaves.items())


@pytest.mark.parametrize("step", [update, update_])
def test_a_model_is_no_tree(step):
    state, params, grads = good()
    for trees, what in (
        ((state, nn.Linear(1, 1), grads), "params"),
        ((state, params, nn.Linear(1, 1)), "grads"),
        ((nn.Linear(1, 1), params, grads), "state"),
    ):
        match = rf"^{step.__name__}: got a Linear for {what}; .*parameters\(model\)"
        with pytest.raises(ValueError, match=match):
            step(*trees)
    with pytest.raises(ValueError, match=rf"^{step.__name__}: got NoneType for grads"):
        step(state, params, None)
    with pytest.raises(ValueError, match=rf"^{step.__name__}: got Adam for state"):
        step(Adam(), params, grads)


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


# The loop


def valley(p, x):
    return ((p["x"] - x) ** 2).sum()


def test_train_is_the_loop_by_hand():
    params = {"x": numbers(1.0, -2)}
    data = [numbers(float(i), 0) for i in range(5)]  # single tensors are batches
    state, moved, losses = train(valley, params, data, setup(Adam(0.1), params))
    wanted, by_hand, values = setup(Adam(0.1), params), params, []
    for x in data:
        value, grads = with_gradient(lambda p, x=x: valley(p, x), by_hand)
        wanted, by_hand = update(wanted, by_hand, grads)
        values.append(value.item())
    assert losses == values
    assert_close(moved, by_hand, rtol=0, atol=0)
    assert state["x"].state[2] == 5
    assert params["x"].tolist() == [1, -2]


def test_batches_of_every_kind():
    params = {"x": numbers(1.0)}
    x = numbers(1.0, 2, 3)[:, None]

    def run(data, loss=lambda p, x, y: (p["x"] * x - y).sum()):
        return train(loss, params, data, setup(Descent(), params))[2]

    pairs = [(row, 2 * row) for row in x]
    wanted = run(pairs)
    assert run(pair for pair in pairs) == wanted
    assert run(list(map(list, pairs))) == wanted
    assert run(DataLoader(TensorDataset(x, 2 * x), batch_size=1)) == wanted
    assert run([]) == []
    assert len(run(iter(x), valley)) == 3
    assert run([{"x": 2.0}], lambda p, batch: p["x"].sum() * batch["x"]) == [2.0]


def poisoned(p, i):
    return (math.nan if i == 51 else 1.0) * p["x"].sum()


def test_a_loss_that_is_not_finite_stops_the_run():  # Flux
    params, seen = {"x": torch.zeros(1)}, []

    def loss(p, i):
        seen.append(i)
        return poisoned(p, i)

    with pytest.raises(NonFiniteLoss, match="the loss of batch 50 is nan") as caught:
        train(loss, params, range(1, 101), setup(Descent(0.1), params))
    assert len(seen) == 51
    state, moved = caught.value.args[1]
    assert_close(moved["x"], torch.tensor([-5.0]))
    assert params["x"].item() == 0
    update(state, moved, params)
    assert isinstance(caught.value, ArithmeticError)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_or_it_is_left_out_with_a_warning(bad):
    params, stepped = {"x": torch.zeros(1)}, []
    with pytest.warns(
        UserWarning, match="loss of batch 1 is .*; it is skipped"
    ) as seen:
        _, moved, losses = train(
            lambda p, factor: factor * (1 + p["x"].sum()),
            params,
            [1.0, bad, 1.0],
            setup(Descent(0.1), params),
            on_nonfinite="skip",
            on_step=lambda step, value: stepped.append(step),
        )
    assert len(seen) == 1
    assert seen[0].filename == __file__
    assert_close(moved["x"], torch.tensor([-0.2]))
    assert not math.isfinite(losses[1])
    assert stepped == [0, 2]


def test_another_word_for_on_nonfinite_is_refused():
    params = {"x": torch.zeros(1)}
    with pytest.raises(ValueError, match="on_nonfinite='ignore'; wanted 'raise' or"):
        train(poisoned, params, [1], setup(Descent(), params), on_nonfinite="ignore")


def test_a_schedule_sets_eta_before_each_step():
    params = {"x": numbers(0.0)}
    state, moved, _ = train(
        lambda p, _: p["x"].sum(),
        params,
        range(3),
        setup(Descent(7.0), params),
        schedule=lambda step: [1.0, 0.1, None][step],
    )
    assert moved["x"].item() == pytest.approx(-1.2)
    assert state["x"].rule == Descent(0.1)


def test_on_step_sees_the_whole_value_and_may_stop():
    params, seen = {"x": numbers(3.0)}, []

    def on_step(step, value):
        seen.append((step, value))
        return step == 1

    _, _, losses = train(
        lambda p, x: (valley(p, x), "extra"),
        params,
        iter([numbers(0.0)] * 9),
        setup(Descent(), params),
        on_step=on_step,
    )
    assert len(losses) == 2
    assert [step for step, _ in seen] == [0, 1]
    assert seen[0][1] == (numbers(9.0)[0], "extra")


def test_an_error_of_the_loss_or_of_update_comes_through():
    params = {"x": numbers(0.0)}
    state = setup(Descent(), params)
    with pytest.raises(ZeroDivisionError):
        train(lambda p, x: 1 / 0, params, [1], state)
    with pytest.raises(ValueError, match="update: the gradient of 'x' is not finite"):
        train(lambda p, x: p["x"].sqrt().sum(), params, [1], state)
    with pytest.raises(ValueError, match=r"adjust: .* has no 'eta'"):
        train(valley, params, [1.0], setup(Chain(), params), schedule=lambda step: 1.0)


def test_a_run_continues_from_files(tmp_path):
    model, data = net(tie=True), batches(6)
    params = parameters(model)

    def loss(p, x, y):
        return mse(call(model, p, x), y)

    state = setup(Chain(ClipGlobalNorm(1.0), Adam(0.1)), params)
    _, straight, whole = train(loss, params, data, state)
    state, half, first = train(loss, params, data[:3], state)
    save(tmp_path / "state.npz", state)
    read = load(tmp_path / "state.npz")
    assert read["0"]["weight"] is read["2"]["weight"]
    _, rest, second = train(loss, half, data[3:], read)
    assert_close(rest, straight, rtol=0, atol=0)
    assert first + second == whole


def test_frozen_and_adjusted_parts_in_a_loop():
    model, data = net(), batches(4)
    params = parameters(model)
    state = setup(Adam(0.1), params)
    state["0"] = freeze(state["0"])
    state["2"] = adjust(state["2"], 0.2)
    state, moved, _ = train(
        lambda p, x, y: mse(call(model, p, x), y), params, data, state
    )
    assert moved["0"]["weight"] is params["0"]["weight"]
    assert state["0"]["weight"].state[2] == 0
    assert state["2"]["weight"].state[2] == 4
    assert not torch.equal(moved["2"]["weight"], params["2"]["weight"])


def test_train_refuses_a_model_even_without_batches():
    with pytest.raises(ValueError, match="train: got a Linear for params"):
        train(mse, torch.nn.Linear(1, 1), [], {})
