"""Trees of every kind, all through: the flat dict of the same tensors is the oracle."""

from __future__ import annotations

import math
from collections import OrderedDict, namedtuple
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import vmap
from torch.testing import assert_close

from course_lib.explicit import (
    Leaf,
    adjust,
    destructure,
    freeze,
    gradient,
    load,
    save,
    setup,
    thaw,
    train,
    trainables,
    update,
    update_,
    with_gradient,
)
from course_lib.rules import Adam, Chain, ClipNorm, Descent, Momentum
from course_lib.trees import dotted, map_tree, walk


class Layer(NamedTuple):
    weight: Tensor
    bias: Tensor


Pair = namedtuple("Pair", "first second")


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def tied_list():
    shared = numbers(1.0, 2)
    return [shared, (shared, numbers(3.0))]


KINDS = {
    "list": lambda: [numbers(1.0, 2), numbers(3.0)],
    "tuple": lambda: (numbers(1.0, 2), numbers(3.0)),
    "named tuple": lambda: Layer(numbers(1.0, 2), numbers(3.0)),
    "one tensor": lambda: numbers(1.0, 2),
    "a scalar": lambda: torch.tensor(2.0, dtype=torch.float64),
    "layers": lambda: [Layer(numbers(1.0), numbers(2.0)), {"w": numbers(3.0, 4)}],
    "dict of lists": lambda: {"a": [numbers(1.0)], "b": ({"c": numbers(2.0)},)},
    "integer keys": lambda: {0: numbers(1.0), 7: {1: numbers(2.0)}},
    "empty parts": lambda: [numbers(1.0), [], (), {}, {"x": ()}],
    "ties": tied_list,
    "ordered": lambda: OrderedDict(b=numbers(1.0), a=[numbers(2.0)]),
    "pairs": lambda: Pair((numbers(1.0),), [Pair(numbers(2.0), numbers(3.0))]),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def flat(tree):
    return {str(path): leaf for path, leaf in walk(tree)}


def shape(tree):
    """The containers alone; a dict subclass comes back as a dict."""
    if isinstance(tree, dict):
        return {key: shape(child) for key, child in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree), [shape(child) for child in tree]
    return "leaf"


def loss(tree):
    return sum((i * leaf.sin()).sum() for i, (_, leaf) in enumerate(walk(tree), 1))


@kinds
def test_steps_and_gradients(kind):
    params = KINDS[kind]()
    value, grads = with_gradient(loss, params)
    plain, slopes = flat(params), with_gradient(loss, flat(params))[1]
    assert value == loss(params)
    assert shape(grads) == shape(params)
    assert_close(flat(grads), slopes, rtol=0, atol=0)
    state, other = setup(Adam(0.1), params), setup(Adam(0.1), plain)
    for _ in range(3):
        state, params = update(state, params, gradient(loss, params))
        other, plain = update(other, plain, gradient(loss, plain))
        assert shape(state) == shape(params) == shape(KINDS[kind]())
    assert_close(flat(params), plain, rtol=0, atol=0)


@kinds
def test_the_loss_gets_the_same_kind(kind):
    params = KINDS[kind]()
    seen = []

    def looked_at(p):
        seen.append((shape(p), type(p)))
        return loss(p)

    gradient(looked_at, params)
    kind_of = dict if isinstance(params, dict) else type(params)
    assert seen == [(shape(params), kind_of)]


@kinds
def test_freeze_thaw_adjust_and_train(kind):
    params = KINDS[kind]()
    state = setup(Momentum(0.1), params)
    frozen = freeze(state)
    assert shape(frozen) == shape(params)
    _, still = update(frozen, params, gradient(loss, params))
    assert all(x is flat(params)[key] for key, x in flat(still).items())
    slow = adjust(thaw(frozen), 0.01)
    assert {leaf.rule for _, leaf in walk(slow)} == {Momentum(0.01)}
    _, moved, losses = train(lambda p, i: loss(p), params, [1, 2], state)
    _, plain, wanted = train(
        lambda p, i: loss(p), flat(params), [1, 2], setup(Momentum(0.1), flat(params))
    )
    assert losses == wanted
    assert_close(flat(moved), plain, rtol=0, atol=0)


@kinds
def test_flattened_and_rebuilt(kind):
    params = KINDS[kind]()
    vector, rebuild = destructure(params)
    again = rebuild(vector)
    assert shape(again) == shape(params)
    assert_close(flat(again), flat(params), rtol=0, atol=0)
    assert torch.equal(vector, destructure(flat(params))[0])
    assert len(trainables(params)) == len({id(leaf) for _, leaf in walk(params)})


@kinds
def test_in_place_or_refused(kind):
    params = KINDS[kind]()
    grads, state = gradient(loss, params), setup(Adam(0.1), params)
    before = {key: leaf.clone() for key, leaf in flat(params).items()}
    _, wanted = update(state, params, grads)
    if kind in ("list", "dict of lists", "integer keys", "empty parts", "ordered"):
        update_(state, params, grads)
        assert_close(flat(params), flat(wanted))
        assert {leaf.state[2] for _, leaf in walk(state)} == {1}
        return
    match = r"update_: the state at '.*' is a (tuple|Layer|Pair|Leaf), which can't be "
    with pytest.raises(ValueError, match=match):
        update_(state, params, grads)
    assert_close(flat(params), before, rtol=0, atol=0)


@kinds
def test_a_state_from_a_file_steps_on(kind, tmp_path):
    params = KINDS[kind]()
    state, params = update(setup(Adam(0.1), params), params, gradient(loss, params))
    if isinstance(state, Leaf):
        with pytest.raises(ValueError, match="save: got a Leaf; wanted a state in"):
            save(tmp_path / "state.npz", state)
        return
    save(tmp_path / "state.npz", state)
    read = load(tmp_path / "state.npz")
    grads = gradient(loss, params)
    assert [path for path, _ in walk(read)] == [path for path, _ in walk(state)]
    read, moved = update(read, params, grads)
    assert shape(moved) == shape(params)
    assert_close(flat(moved), flat(update(state, params, grads)[1]), rtol=0, atol=0)
    if "named" not in kind and kind not in ("layers", "pairs"):
        assert shape(read) == shape(state)


def test_named_tuples_come_back_from_a_file_as_dicts(tmp_path):
    params = [Layer(numbers(1.0), numbers(2.0)), ()]
    save(tmp_path / "state.npz", setup(Adam(), params))
    read = load(tmp_path / "state.npz")
    assert list(read[0]) == ["weight", "bias"]
    assert read[1] == ()


@pytest.mark.parametrize("key", [("a", 1), 1.5, None, b"x"])
def test_a_key_that_no_file_can_hold_is_refused(key, tmp_path):
    state = setup(Adam(), {key: numbers(1.0)})
    with pytest.raises(ValueError, match=r"save: .* is a key of the state; wanted str"):
        save(tmp_path / "state.npz", state)
    assert list(tmp_path.iterdir()) == []


def test_rules_for_the_parts_of_sequences():
    params = [numbers(1.0), (numbers(2.0), {"w": numbers(3.0)})]
    for rules in (
        [Adam(), (Descent(), Momentum())],
        {0: Adam(), 1: [Descent(), Momentum()]},
    ):
        state = setup(rules, params)
        found = state[0], state[1][0], state[1][1]["w"]
        assert [type(leaf.rule) for leaf in found] == [Adam, Descent, Momentum]
        assert isinstance(state[1], tuple)
    layer = Layer(numbers(1.0), numbers(2.0))
    state = setup(Layer(Adam(), Descent()), layer)
    assert isinstance(state.bias.rule, Descent)
    assert setup({"weight": Adam(), "bias": Descent()}, layer) == state
    for rules, match in (
        ([Adam()], "there is no rule for '1'; the rules are for 0. Name one"),
        ([Adam()] * 3, "there are rules for 2; the keys are 0, 1"),
        ([Adam(), [Adam()] * 3], "there are rules for 1.2; the keys are 0, 1"),
    ):
        with pytest.raises(ValueError, match=f"setup: {match}"):
            setup(rules, params)


def test_gradients_as_torch_gives_them():
    params = [numbers(1.0, 2), numbers(3.0)]
    leaves = [x.clone().requires_grad_() for x in params]
    grads = torch.autograd.grad(loss(leaves), leaves)  # a tuple
    _, moved = update(setup(Descent(1.0), params), params, grads)
    assert_close(moved, [x - g for x, g in zip(params, grads, strict=True)])
    assert isinstance(moved, list)


@pytest.mark.parametrize(
    ("params", "grads", "match"),
    [
        (
            [1, 2],
            [1],
            r"at '\(root\)' the gradients have 1 places, which the",
        ),
        ([1, 2], (1, 2, 3), "have 3 places"),
        ([1, 2], {"a": 1}, "the gradients have a, which"),
        ({"a": [1, 2]}, {"a": [1]}, "at 'a' the gradients have 1 places"),
        ([1, (2, 3)], [1, 2], "at '1' the gradients have Tensor"),
        ([1, 2], [1, [2]], "the gradient of '1' is list; wanted a Tensor"),
        (1, [1], r"the gradient of '\(root\)' is list; wanted a Tensor"),
        ([1, 2], 1, r"at '\(root\)' the gradients have Tensor"),
    ],
)
def test_gradients_that_do_not_fit(params, grads, match):
    def tensors(tree):
        return map_tree(lambda _, i: numbers(float(i)), tree)

    params, grads = tensors(params), tensors(grads)
    state = setup(Descent(), params)
    for step in (update, update_):
        with pytest.raises(ValueError, match=f"^{step.__name__}: .*{match}"):
            step(state, params, grads)


def test_states_that_do_not_fit():
    one, two = setup(Descent(), [numbers(1.0)]), [numbers(1.0), numbers(2.0)]
    with pytest.raises(ValueError, match="the state has 0; the parameters have 0, 1"):
        update(one, two, two)
    with pytest.raises(ValueError, match=r"the state of '\(root\)' is list; wanted"):
        update(one, numbers(1.0), numbers(1.0))
    with pytest.raises(ValueError, match="update: got Leaf for state"):
        update(one[0], two, two)
    with pytest.raises(ValueError, match="update: got NoneType for grads"):
        update(setup(Descent(), two), two, None)


@pytest.mark.parametrize("bad", [None, 1.0, "text", {1}, iter([]), Adam()])
def test_what_is_no_tree_is_refused(bad):
    got = type(bad).__name__
    for place, function in {
        "setup": lambda: setup(Adam(), bad),
        "with_gradient": lambda: gradient(loss, bad),
        "destructure": lambda: destructure(bad),
        "trainables": lambda: trainables(bad),
        "update": lambda: update({}, bad, {}),
        "train": lambda: train(loss, bad, [], {}),
    }.items():
        with pytest.raises(ValueError, match=f"{place}: got {got} for params; wanted"):
            function()
    for tree in ([bad], (numbers(1.0), bad), {"a": [bad]}):
        with pytest.raises(ValueError, match=rf"'.*' is {got}; wanted a tensor"):
            gradient(loss, tree)
        with pytest.raises(ValueError, match=rf"setup: '.*' is {got}; wanted a tensor"):
            setup(Adam(), tree)


def test_one_tensor_as_torch_users_write_it():
    x = torch.tensor([1.0, -2.0], requires_grad=True)
    state = setup(Chain(ClipNorm(1.0), Descent(0.5)), x)
    value, g = with_gradient(lambda x: (x**2).sum(), x)
    state, moved = update(state, x, g)
    assert value == 5
    assert_close(g, torch.tensor([2.0, -4.0]))
    assert_close(moved, x.detach() - 0.5 * g / math.sqrt(20))
    assert not moved.requires_grad
    assert update(state, moved, None)[1] is moved
    parameter = nn.Parameter(torch.ones(2))
    assert gradient(lambda x: 3 * x.sum(), parameter).tolist() == [3, 3]
    assert parameter.grad is None
    slope = gradient(lambda x: gradient(lambda y: (y**3).sum(), x).sum(), x)
    assert slope.tolist() == [6, -12]
    rows = vmap(lambda row: gradient(lambda x: (x**2).sum(), row))(torch.eye(2))
    assert rows.tolist() == [[2, 0], [0, 2]]


def test_an_ensemble_of_lists():
    stacked = [torch.arange(6.0).reshape(3, 2), (torch.ones(3),)]

    def step(state, p):
        return update(state, p, gradient(loss, p))

    state = vmap(lambda p: setup(Adam(0.1), p))(stacked)
    for _ in range(2):
        state, stacked = vmap(step)(state, stacked)
    for i in range(3):
        one = [torch.arange(6.0).reshape(3, 2)[i], (torch.ones(3)[i],)]
        memory = setup(Adam(0.1), one)
        for _ in range(2):
            memory, one = step(memory, one)
        assert_close(map_tree(lambda _, w, i=i: w[i], stacked), one)


def test_steps_of_lists_compile():
    torch.compiler.reset()
    params = [torch.ones(2), (torch.ones(1),)]
    compiled = torch.compile(update, backend="eager")
    one = compiled(setup(Adam(), params), params, params)
    assert_close(one[1], update(setup(Adam(), params), params, params)[1])


# At random

leaves = st.integers(1, 3).map(lambda n: torch.linspace(0.5, 1, n, dtype=torch.float64))
keys = st.one_of(st.integers(0, 3), st.sampled_from(["a", "b", "a.b", "", "0"]))
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(keys, inner, max_size=3),
        st.builds(Pair, inner, inner),
    ),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(trees, st.data())
def test_any_tree_steps_as_its_flat_dict(tree, data):
    found = [leaf for _, leaf in walk(tree)]
    if found and data.draw(st.booleans()):  # tie some of one size
        size = len(found[0])
        tree = map_tree(lambda _, x: found[0] if len(x) == size else x, tree)
    slopes = gradient(loss, tree) if found else tree
    wanted = gradient(loss, flat(tree)) if found else {}
    assert_close(flat(slopes), wanted, rtol=0, atol=0)
    state, moved = update(setup(Adam(0.1), tree), tree, slopes)
    plain = flat(tree)
    _, other = update(setup(Adam(0.1), plain), plain, wanted)
    assert shape(moved) == shape(state) == shape(tree)
    assert_close(flat(moved), other, rtol=0, atol=0)
    vector, rebuild = destructure(tree)
    again = rebuild(vector)
    assert shape(again) == shape(tree)
    assert_close(flat(again), flat(tree), rtol=0, atol=0)
    ids = [id(leaf) for _, leaf in walk(tree)]
    assert len({id(leaf) for _, leaf in walk(again)}) == len(set(ids))
    assert [dotted(path) for path, _ in walk(again)] == [
        dotted(path) for path, _ in walk(tree)
    ]
