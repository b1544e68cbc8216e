"""A battery for all rules: a new one joins the table."""

from __future__ import annotations

import copy
import math
import pickle
import re
from dataclasses import fields

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from course_lib import rules
from course_lib.explicit import load, save, setup, update, update_
from course_lib.rules import (
    AccumulateGradients,
    AdaBelief,
    AdaDelta,
    AdaGrad,
    Adam,
    AdaMax,
    AdamW,
    AMSGrad,
    Chain,
    ClipGlobalNorm,
    ClipGrad,
    ClipNorm,
    Descent,
    Lion,
    MixedPrecision,
    Momentum,
    NAdam,
    Nesterov,
    OAdam,
    RAdam,
    RMSProp,
    Rprop,
    Rule,
    SignDecay,
    WeightDecay,
)
from course_lib.rules.base import safe_sqrt
from course_lib.trees import map_tree, walk

# One battery for all rules; a new one joins the list, with an eta that suits a bowl
RULES = [
    Descent(0.1),
    Momentum(0.02),
    Nesterov(0.02),
    RMSProp(0.02),
    RMSProp(0.02, centered=True),
    Rprop(0.01),
    AdaGrad(0.5),
    AdaDelta(0.9, 1e-3),
    Adam(0.05),
    AdamW(0.05),
    AdamW(0.05, decay=0.01),
    AdamW(0.05, decay=0.001, couple=False),
    AdaMax(0.05),
    AMSGrad(0.05),
    NAdam(0.05),
    RAdam(0.1),
    OAdam(0.03),
    AdaBelief(0.05),
    Lion(0.03, (0.5, 0.97)),
    Chain(Adam(0.05)),
    Chain(WeightDecay(0.01), Adam(0.05)),
    Chain(SignDecay(0.001), Momentum(0.02)),
    Chain(ClipGrad(0.5), Momentum(0.02)),
    Chain(ClipNorm(1.0), Nesterov(0.02)),
    Chain(ClipGlobalNorm(1.0), Descent(0.1)),
    Chain(WeightDecay(0.001), OAdam(0.03), ClipGrad(0.1)),
    Chain(AccumulateGradients(2), Adam(0.05)),
    Chain(ClipNorm(5.0), Chain(SignDecay(0.001), RMSProp(0.02))),
    MixedPrecision(Adam(0.05), torch.float64),
    MixedPrecision(Chain(ClipGlobalNorm(1.0), Descent(0.1)), torch.float64),
]


KINDS = set(Rule.__subclasses__()) | {
    below for kind in Rule.__subclasses__() for below in kind.__subclasses__()
}


def kinds_in(rule) -> set[type]:
    inner = rule.rules if isinstance(rule, Chain) else [getattr(rule, "rule", None)]
    return {type(rule)}.union(*(kinds_in(each) for each in inner if each is not None))


HALVES = [torch.float16, torch.bfloat16]


REALS = [torch.float32, torch.float64]


every_rule = pytest.mark.parametrize("rule", RULES, ids=repr)


def test_the_table_and_the_package_have_every_rule():
    assert set.union(*map(kinds_in, RULES)) == KINDS
    assert {getattr(rules, name) for name in rules.__all__} == KINDS | {Rule}


@pytest.mark.parametrize(
    "kind", sorted(KINDS, key=repr), ids=lambda kind: kind.__name__
)
def test_every_rule_documents_its_parameters_and_its_state(kind):
    described = re.search(r"\n    Args:\n(.*?)(\n\n|\Z)", kind.__doc__, re.DOTALL)[1]
    names = re.findall(r"^ {8}\*?(\w+(?:, \w+)*): ", described, re.MULTILINE)
    assert {*", ".join(names).split(", ")} == {f.name for f in fields(kind)}
    has_state = kind is Chain or kind().init(ONES) != ()
    assert ("\n    State: " in kind.__doc__) == has_state


def flat(tree) -> list[Tensor]:
    """All tensors of a tree or state, in order."""
    return [x for x in torch.utils._pytree.tree_leaves(tree) if isinstance(x, Tensor)]


def tree(seed=0, dtype=torch.float64, device="cpu"):
    torch.manual_seed(seed)
    made = {"a": {"w": torch.randn(3, 2), "b": torch.randn(())}, "c": torch.randn(4)}
    return map_tree(lambda path, x: x.to(device, dtype), made)


def run(rule, params, steps=5, step=update, state=None):
    """Steps down a bowl of sum |x|**2, all slopes of a size that clips."""
    state = setup(rule, params) if state is None else state
    for _ in range(steps):
        grads = map_tree(lambda path, x: 2 * x, params)
        state, params = step(state, params, grads)
    return state, params


def in_place(state, params, grads):
    update_(state, params, grads)
    return state, params


def one_step(rule, x, g, state=None):
    params = {"x": torch.tensor(x, dtype=torch.float64)}
    state = setup(rule, params) if state is None else state
    g = torch.tensor(g, dtype=torch.float64)
    state, moved = update(state, params, {"x": g})
    return moved["x"].tolist(), state


# The battery


@every_rule
def test_it_converges_on_a_bowl(rule, device):
    params = tree(device=device)
    start = max(x.abs().max().item() for x in flat(params))
    _, params = run(rule, params, 150)
    assert max(x.abs().max().item() for x in flat(params)) < min(0.1, start / 10)


@every_rule
def test_arrays_are_independent(rule):
    if ClipGlobalNorm in kinds_in(rule):
        pytest.skip("one norm for all is what it is for")
    both, alone = tree(), {"c": tree()["c"]}
    _, both = run(rule, both, 10)
    _, alone = run(rule, alone, 10)
    assert torch.equal(both["c"], alone["c"])


@every_rule
@pytest.mark.parametrize(
    "dtype", [*HALVES, *REALS, torch.complex64, torch.complex128], ids=str
)
def test_dtype_shape_and_device_stay(rule, dtype, device):
    if isinstance(rule, MixedPrecision) and dtype.is_complex:
        rule = MixedPrecision(rule.rule, torch.complex128)
    params = {
        "x": torch.ones(2, 3).to(device, dtype),
        "number": torch.ones(()).to(device, dtype),
        "empty": torch.ones(0).to(device, dtype),
    }
    kind = [(x.shape, x.dtype, x.device) for x in params.values()]
    for step in (update, in_place):
        state, moved = run(rule, {**params}, 3, step)
        assert [(x.shape, x.dtype, x.device) for x in moved.values()] == kind
        assert all(bool(x.isfinite().all()) for x in flat((moved, state)))
    assert moved["x"].real.max() < 1


@every_rule
def test_a_complex_array_on_the_real_line_walks_like_a_real_one(rule):
    if isinstance(rule, MixedPrecision):
        pytest.skip("its copy has one dtype")
    real = tree()
    imaginary = map_tree(lambda path, x: x.to(torch.complex128), real)
    _, real = run(rule, real, 8)
    _, imaginary = run(rule, imaginary, 8)
    for one, other in zip(flat(real), flat(imaginary), strict=True):
        assert_close(other, one.to(torch.complex128), rtol=0, atol=1e-12)


@every_rule
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_update_leaves_its_arguments_as_they_are(rule, dtype):
    params = tree(dtype=dtype)
    state, params = run(rule, params, 2)
    grads = map_tree(lambda path, x: 2 * x, params)
    given = (state, params, grads)
    before = [x.clone() for x in flat(given)]
    leaves = [leaf for _, leaf in walk(state)]
    update(*given)
    assert all(torch.equal(x, y) for x, y in zip(flat(given), before, strict=True))
    assert all(x is y for (_, x), y in zip(walk(state), leaves, strict=True))


@every_rule
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_in_place_and_by_hand_are_the_same(rule, dtype):
    params = tree(dtype=dtype)
    state, moved = run(rule, params, 7)
    held = map_tree(lambda path, x: x.clone(), params)
    memory, same = run(rule, held, 7, in_place)
    assert same is held
    for one, other in zip(flat((moved, state)), flat((held, memory)), strict=True):
        assert torch.equal(one, other)
    if ClipGlobalNorm in kinds_in(rule):
        return
    for path, x in walk(params):  # x - dx, by the rule alone
        memory = rule.init(x)
        for _ in range(7):
            memory, dx = rule.apply(memory, x, 2 * x)
            x = x if dx is None else (x - dx).to(dtype)
        stepped = dict(walk(moved))[path]
        assert_close(stepped, x, rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-14)


@every_rule
def test_vmap_equals_a_loop(rule):
    trees = [tree(seed) for seed in range(3)]
    stacked = {
        "a": {k: torch.stack([t["a"][k] for t in trees]) for k in "wb"},
        "c": torch.stack([t["c"] for t in trees]),
    }
    state = torch.func.vmap(lambda p: setup(rule, p))(stacked)
    for _ in range(5):
        grads = map_tree(lambda path, x: 2 * x, stacked)
        state, stacked = torch.func.vmap(update)(state, stacked, grads)
    for i, each in enumerate(trees):
        _, moved = run(rule, each, 5)
        for got, wanted in zip(flat(stacked), flat(moved), strict=True):
            assert_close(got[i], wanted, rtol=0, atol=1e-12)


@every_rule
def test_it_continues_from_a_file(rule, tmp_path):
    state, params = run(rule, tree(dtype=torch.float32), 3)
    save(tmp_path / "state.npz", state)
    read = load(tmp_path / "state.npz")
    assert [leaf.rule for _, leaf in walk(read)] == [rule] * 3
    straight = run(rule, params, 3, state=state)
    further = run(rule, params, 3, state=read)
    for one, other in zip(flat(straight), flat(further), strict=True):
        assert torch.equal(one, other)


@every_rule
def test_it_is_a_value(rule):
    again = copy.deepcopy(rule)
    assert again == rule
    assert hash(again) == hash(rule)
    assert repr(again) == repr(rule)
    assert eval(repr(rule), {**globals(), "torch": torch}) == rule
    assert pickle.loads(pickle.dumps(rule)) == rule
    assert sum(each == rule for each in RULES) == 1
    with pytest.raises(AttributeError):  # FrozenInstanceError
        rule.eta = 3


@pytest.mark.parametrize(
    "rule", [r for r in RULES if not isinstance(r, MixedPrecision)], ids=repr
)
def test_half_precision_is_stepped_in_float32(rule):
    """One step of a half is the step of the same numbers in float32, rounded."""
    x = torch.tensor([0.5, -3.0, 0.01], dtype=torch.bfloat16)
    g = torch.tensor([1e-3, 200.0, -0.3], dtype=torch.bfloat16)
    half, single = {"x": x}, {"x": x.float()}
    state_half, state_single = setup(rule, half), setup(rule, single)
    state_half, half = update(state_half, half, {"x": g})
    state_single, single = update(state_single, single, {"x": g.float()})
    assert_close(half["x"], single["x"].bfloat16())
    for one, other in zip(flat(state_half), flat(state_single), strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one, other)


def test_fused_and_plain_steps_are_the_same_for_any_layout(device):
    torch.manual_seed(0)
    layouts = {
        "dense": torch.randn(4, 3),
        "transposed": torch.randn(3, 4).T,
        "one number": torch.randn(1, 1).expand(4, 3),
        "strided": torch.randn(4, 6)[:, ::2],
    }
    for dtype in (torch.float32, torch.float64):
        for g in (layout.to(device, dtype) for layout in layouts.values()):
            for x in (torch.ones(4, 3), torch.ones(3, 4).T):
                x = x.to(device, dtype)
                rule, params = Adam(0.1), {"x": x}
                fused, plain = setup(rule, params), rule.init(x)
                for step in (update, in_place):
                    moved = {"x": x.clone()}
                    state, moved = step({**fused}, moved, {"x": g})
                    wanted, dx = rule.apply(plain, x, g)
                    assert_close(moved["x"], x - dx)
                    assert_close(state["x"].state[:2], wanted[:2])


# Derivatives of a step, where a root is taken of 0


@every_rule
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # in torch
def test_no_derivative_is_nan_where_gradients_are_zero(rule):
    x = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)

    def moved(g):
        state, at = rule.init(x), x
        for _ in range(3):
            state, dx = rule.apply(state, at, g)
            at = at if dx is None else at - dx
        return at.sum()

    for g in (torch.tensor([0.0, 1.0, -3.0]).double(), torch.zeros(3).double()):
        watched = g.clone().requires_grad_()
        slopes = torch.autograd.grad(moved(watched), watched)[0]
        assert slopes.isfinite().all()
        assert_close(torch.func.grad(moved)(g), slopes)
        assert_close(torch.func.vmap(torch.func.grad(moved))(g[None])[0], slopes)
        assert torch.func.hessian(moved)(g).isfinite().all()


@pytest.mark.parametrize("dtype", REALS, ids=str)
def test_a_differentiable_root_is_sqrt_to_the_bit(dtype):
    info = torch.finfo(dtype)
    edges = [
        0.0,
        -0.0,
        1.0,
        -1.0,
        math.inf,
        math.nan,
        info.tiny,
        info.tiny / 8,
        info.max,
    ]
    v = torch.cat([torch.tensor(edges, dtype=dtype), torch.rand(999, dtype=dtype)])
    for got in (safe_sqrt(v.clone().requires_grad_()), torch.func.vmap(safe_sqrt)(v)):
        assert torch.equal(got.detach().nan_to_num(7), v.sqrt().nan_to_num(7))


@every_rule
@pytest.mark.parametrize("dtype", REALS, ids=str)
def test_a_step_is_the_same_to_the_bit_with_a_graph_and_without(rule, dtype):
    x = torch.tensor([1.0, -2.0, 0.0, 1e-20], dtype=dtype)
    results = []
    for watch in (False, True):
        state, at = rule.init(x), x
        for _ in range(5):
            g = (2 * at).detach().requires_grad_(watch)
            state, dx = rule.apply(state, at, g)
            at = at if dx is None else (at - dx).to(dtype)
        results.append(at.detach())
    assert torch.equal(*results)


def test_a_rule_compiles_as_it_is():
    @torch.compile(backend="eager")
    def step(rule, memory, x, g):
        return rule.apply(memory, x, g)

    x = torch.tensor([1.0, -2.0])
    for rule in (Momentum(), Adam(), NAdam(), AdaMax(), Chain(ClipNorm(1.0), RAdam())):
        compiled, plain = rule.init(x), rule.init(x)
        for _ in range(3):
            compiled, got = step(rule, compiled, x, 2 * x)
            plain, wanted = rule.apply(plain, x, 2 * x)
            assert torch.equal(got, wanted)


# What does not fit


ONES = torch.ones(2)


@pytest.mark.parametrize(
    "rule", [Descent(), Adam(), Chain(ClipNorm()), MixedPrecision()], ids=repr
)
@pytest.mark.parametrize(
    ("x", "g", "match"),
    [
        (ONES, None, "got torch.float32 of shape (2,) for the array and NoneType for"),
        (ONES, 1.0, "and float for its gradient; wanted two tensors of one shape"),
        (ONES, torch.ones(1), "and torch.float32 of shape (1,) for its gradient"),
        (ONES, 1j * ONES, "and torch.complex64 of shape (2,) for its gradient"),
        (np.ones(2), ONES, "got ndarray for the array"),
        ({"x": ONES}, {"x": ONES}, "For trees, call update(state, params, grads)"),
    ],
)
def test_arrays_that_do_not_fit(rule, x, g, match):
    with pytest.raises(ValueError, match=f"{type(rule).__name__}.apply: .*") as caught:
        rule.apply(rule.init(ONES), x, g)
    assert match in str(caught.value)


@pytest.mark.parametrize(
    "rule", [r for r in RULES if r.init(ONES) not in ((), ((), ()))], ids=repr
)
@pytest.mark.parametrize("state", [None, "x", (None,) * 3, (None,) * 4], ids=repr)
def test_a_state_of_another_rule_is_named(rule, state):
    with pytest.raises(ValueError, match=r"\.apply: the state is not one of .* `init`"):
        rule.apply(state, ONES, ONES)


def test_init_wants_a_tensor():
    for rule in (Adam(), MixedPrecision(), Chain()):
        for bad in (3, None, "x", {"x": ONES}):
            with pytest.raises(ValueError, match=r"\.init: got .*; wanted a tensor"):
                rule.init(bad)


def test_a_rule_without_a_step():
    with pytest.raises(NotImplementedError, match=r"Rule defines no _apply\(state, x"):
        Rule().apply((), ONES, ONES)


# A rule of the reader's own


class Lookahead:
    """Not a Rule: it has `init` and `apply` and nothing else."""

    def init(self, x):
        return ()

    def apply(self, state, x, g):
        return state, g.sign() * 0.25


def test_a_rule_of_the_reader_joins():
    params = {"x": torch.tensor([1.0, -1.0])}
    for rule in (Lookahead(), Chain(ClipGrad(1.0), Lookahead())):
        moved = update(setup(rule, params), params, params)[1]
        assert moved["x"].tolist() == [0.75, -0.75]


def test_a_rule_of_the_reader_may_look_at_all_arrays_and_leave_the_rest_to_the_base():
    class LargestFirst(Descent):
        def apply_all(self, states, xs, gs):
            largest = max(g.abs().max() for g in gs)
            return super().apply_all(states, xs, [g / largest for g in gs])

    params = {"x": torch.tensor([4.0]), "y": torch.tensor([-2.0]).half()}
    for rule in (LargestFirst(0.5), Chain(LargestFirst(0.5))):
        moved = update(setup(rule, params), params, params)[1]
        assert [moved["x"].item(), moved["y"].item()] == [3.5, -1.75]
    states, steps = Momentum(0.5).apply_all([ONES], [ONES], [ONES])
    state, step = Momentum(0.5).apply(ONES, ONES, ONES)
    assert_close([*states, *steps], [state, step])
