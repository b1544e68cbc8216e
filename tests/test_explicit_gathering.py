"""What takes a step: ties, sparse gradients, and trees that do not fit."""

from __future__ import annotations

import math

import pytest
import torch
from explicit_cases import numbers, steps
from torch import nn
from torch.func import vmap
from torch.testing import assert_close

from course_lib.explicit import (
    call,
    freeze,
    gradient,
    parameters,
    setup,
    train,
    update,
    update_,
)
from course_lib.rules import (
    Adam,
    Chain,
    ClipGlobalNorm,
    ClipNorm,
    Descent,
    Momentum,
)
from course_lib.trees import map_tree, walk


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


def test_the_state_of_another_lone_tensor_is_refused():
    state, x = setup(Momentum(), torch.ones(1)), torch.ones(2)
    with pytest.raises(ValueError, match=r"shape \(1,\) .*the rule wants .*\(2,\)"):
        update(state, x, x)


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
