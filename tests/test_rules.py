"""Rules against torch.optim, their formulas in plain Python, and a battery for all."""

from __future__ import annotations

import copy
import math
import pickle
import re
from dataclasses import fields
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

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
from course_lib.rules.arithmetic import safe_sqrt
from course_lib.rules.counts import Count
from course_lib.trees import map_tree, walk

# One battery for all rules; a new one joins the list, with an eta that suits a bowl
RULES = [
    Descent(0.1),
    Momentum(0.02),
    Nesterov(0.02),
    RMSProp(0.01),
    RMSProp(0.01, centered=True),
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
    RAdam(0.05),
    OAdam(0.02),
    AdaBelief(0.05),
    Lion(0.005, (0.9, 0.99)),
    Chain(Adam(0.05)),
    Chain(WeightDecay(0.01), Adam(0.05)),
    Chain(SignDecay(0.001), Momentum(0.02)),
    Chain(ClipGrad(0.5), Momentum(0.02)),
    Chain(ClipNorm(1.0), Nesterov(0.02)),
    Chain(ClipGlobalNorm(1.0), Descent(0.1)),
    Chain(WeightDecay(0.001), OAdam(0.02), ClipGrad(0.1)),
    Chain(AccumulateGradients(2), Adam(0.05)),
    Chain(ClipNorm(5.0), Chain(SignDecay(0.001), RMSProp(0.01))),
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


def test_the_list_has_every_rule():
    assert set.union(*map(kinds_in, RULES)) == KINDS


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


# Against torch.optim


def trajectory(rule, x, gradient, steps=30):
    state, path = rule.init(x), []
    for _ in range(steps):
        state, dx = rule.apply(state, x, gradient(x))
        x = x - dx
        path.append(x)
    return torch.stack(path)


def torchs(make, x, gradient, steps=30):
    x, path = x.clone().requires_grad_(), []
    optimizer = make([x])
    for _ in range(steps):
        x.grad = gradient(x.detach()).detach()
        optimizer.step()
        path.append(x.detach().clone())
    return torch.stack(path)


def hilly(x: Tensor) -> Tensor:
    """The slope of a surface with valleys, so that signs change on the way."""
    steep = torch.arange(1.0, 1 + len(x), dtype=x.dtype, device=x.device)
    return steep * x + 3 * torch.sin(4 * x)


EXACT = [
    (Descent(0.03), torch.optim.SGD, {"lr": 0.03}),
    (Momentum(0.03, 0.8), torch.optim.SGD, {"lr": 0.03, "momentum": 0.8}),
    (
        Nesterov(0.03, 0.8),
        torch.optim.SGD,
        {"lr": 0.03, "momentum": 0.8, "nesterov": True},
    ),
    (RMSProp(0.03), torch.optim.RMSprop, {"lr": 0.03, "alpha": 0.9}),
    (
        RMSProp(0.03, centered=True),
        torch.optim.RMSprop,
        {"lr": 0.03, "alpha": 0.9, "centered": True},
    ),
    (Rprop(0.03), torch.optim.Rprop, {"lr": 0.03}),
    (Adam(0.03), torch.optim.Adam, {"lr": 0.03}),
    (
        AdamW(0.03, decay=0.1),
        torch.optim.AdamW,
        {"lr": 0.03, "weight_decay": 0.1},
    ),
    (AdaMax(0.03), torch.optim.Adamax, {"lr": 0.03}),
    (
        AdaGrad(),
        torch.optim.Adagrad,
        {"lr": 0.1, "eps": 1e-8, "initial_accumulator_value": 1e-8},
    ),
    (AdaDelta(0.9), torch.optim.Adadelta, {"lr": 1, "rho": 0.9, "eps": 1e-8}),
    (
        Chain(WeightDecay(0.1), Adam(0.03)),
        torch.optim.Adam,
        {"lr": 0.03, "weight_decay": 0.1},
    ),
    (
        Chain(WeightDecay(0.1), Momentum(0.03)),
        torch.optim.SGD,
        {"lr": 0.03, "momentum": 0.9, "weight_decay": 0.1},
    ),
]


@pytest.mark.parametrize(
    ("rule", "kind", "options"), EXACT, ids=[repr(case[0]) for case in EXACT]
)
def test_thirty_steps_equal_torch(rule, kind, options, device):
    x = torch.linspace(-2, 2, 7, dtype=torch.float64, device=device)
    wanted = torchs(lambda xs: kind(xs, **options), x, hilly)
    tolerance = 5e-11 if kind is torch.optim.Adamax else 1e-12
    assert_close(trajectory(rule, x, hilly), wanted, rtol=0, atol=tolerance)
    state, params = setup(rule, {"x": x}), {"x": x}
    for _ in range(30):  # the fused path, where there is one
        state, params = update(state, params, {"x": hilly(params["x"])})
    assert_close(params["x"], wanted[-1], rtol=0, atol=tolerance)


def test_momentum_is_torchs_only_while_eta_is_constant():
    rule, x = Momentum(0.1), torch.tensor([1.0], dtype=torch.float64)
    v, _ = rule.apply(rule.init(x), x, x)
    slower = Momentum(0.01)
    assert_close(slower.apply(v, x, x)[1], 0.9 * v + 0.01 * x)  # torch: 0.019 * x
    assert_close(0.9 * v + 0.01 * x, 0.1 * x)


# Against the formula in plain Python floats, where torch differs or has none


def by_hand(step, memory, x=1.5, steps=30):
    """The path of one number; step(memory, x, g, t) -> dx writes into memory."""
    path = []
    for t in range(1, steps + 1):
        x -= step(memory, x, slope(x), t)
        path.append(x)
    return path


def slope(x: float) -> float:
    return 2 * x + 3 * math.sin(4 * x)


def average(memory, key, new, rate):
    memory[key] = rate * memory.get(key, 0.0) + (1 - rate) * new
    return memory[key]


def sign(x: float) -> float:
    return (x > 0) - (x < 0)


def adam_step(memory, g, t, eta=0.1, b1=0.9, b2=0.999):
    m, v = average(memory, "m", g, b1), average(memory, "v", g * g, b2)
    return eta * (m / (1 - b1**t)) / (math.sqrt(v / (1 - b2**t)) + 1e-8)


def nadam(memory, x, g, t):
    m, v = average(memory, "m", g, 0.9), average(memory, "v", g * g, 0.999)
    ahead = 0.9 * m / (1 - 0.9 ** (t + 1)) + 0.1 * g / (1 - 0.9**t)
    return 0.1 * ahead / (math.sqrt(v * 0.999 / (1 - 0.999**t)) + 1e-8)


def radam(memory, x, g, t):
    m, v = average(memory, "m", g, 0.9), average(memory, "v", g * g, 0.999)
    last = 2 / (1 - 0.999) - 1
    rho = last - 2 * t * 0.999**t / (1 - 0.999**t)
    if rho <= 4:
        return 0.1 * m / (1 - 0.9**t)
    r = (rho - 4) * (rho - 2) * last / ((last - 4) * (last - 2) * rho)
    scaled = m / (1 - 0.9**t) / (math.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return 0.1 * math.sqrt(r) * scaled


def amsgrad(memory, x, g, t):
    for key in "mvw":
        memory.setdefault(key, 1e-8)
    m, v = average(memory, "m", g, 0.9), average(memory, "v", g * g, 0.999)
    memory["w"] = max(memory["w"], v)
    return 0.1 * m / (math.sqrt(memory["w"]) + 1e-8)


def oadam(memory, x, g, t):
    step = adam_step(memory, g, t, b1=0.5, b2=0.9)
    before, memory["step"] = memory.get("step", 0.0), step
    return 2 * step - before


def adabelief(memory, x, g, t):
    m = average(memory, "m", g, 0.9)
    memory["s"] = average(memory, "s", (g - m) ** 2, 0.999) + 1e-3
    scaled = math.sqrt(memory["s"] / (1 - 0.999**t)) + 1e-3
    return 0.1 * m / (1 - 0.9**t) / scaled


def lion(memory, x, g, t):
    m = memory.get("m", 0.0)
    memory["m"] = 0.95 * m + 0.05 * g
    return 0.1 * sign(0.8 * m + 0.2 * g)


def adamw_uncoupled(memory, x, g, t):
    return adam_step(memory, g, t) + 0.01 * x


def clipped(g, limit):
    return max(-limit, min(limit, g))


FORMULAS = [
    (NAdam(0.1), nadam),
    (RAdam(0.1), radam),
    (AMSGrad(0.1), amsgrad),
    (OAdam(0.1), oadam),
    (AdaBelief(0.1, eps=1e-3), adabelief),
    (Lion(0.1, (0.8, 0.95)), lion),
    (AdamW(0.1, decay=0.01, couple=False), adamw_uncoupled),
    (
        Chain(SignDecay(0.3), Descent(0.1)),
        lambda memory, x, g, t: 0.1 * (g + 0.3 * sign(x)),
    ),
    (
        Chain(ClipGrad(1.0), Descent(0.1)),
        lambda memory, x, g, t: 0.1 * clipped(g, 1.0),
    ),
    (
        Chain(ClipNorm(1.0), Descent(0.1)),
        lambda memory, x, g, t: 0.1 * clipped(g, 1.0),
    ),
]


@pytest.mark.parametrize(
    ("rule", "step"), FORMULAS, ids=[repr(case[0]) for case in FORMULAS]
)
def test_thirty_steps_equal_the_formula(rule, step):
    x = torch.tensor(1.5, dtype=torch.float64)
    got = trajectory(rule, x, lambda x: 2 * x + 3 * torch.sin(4 * x))
    wanted = torch.tensor(by_hand(step, {}), dtype=torch.float64)
    assert_close(got, wanted, rtol=0, atol=1e-10)


def test_radam_divides_from_the_fifth_step_on():
    x, rule = torch.ones((), dtype=torch.float64), RAdam(1.0)
    dxs, state = [], rule.init(x)
    for _ in range(6):
        state, dx = rule.apply(state, x, 100 * x)
        dxs.append(dx.item())
    assert dxs[:4] == pytest.approx([100.0] * 4)  # eta * m^, as wide as the gradient
    assert all(dx < 1 for dx in dxs[4:])


def gradients_of_a_net(dtype=torch.float64):
    torch.manual_seed(0)
    return [torch.randn(s, dtype=dtype) * 9 for s in [(3, 2), (4,), ()]]


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, math.inf])
@pytest.mark.parametrize("omega", [0.5, 1e6])
def test_clip_global_norm_is_torchs(p, omega):
    grads = gradients_of_a_net()
    params = {str(i): torch.zeros_like(g) for i, g in enumerate(grads)}
    state = setup(Chain(ClipGlobalNorm(omega, p), Descent(1.0)), params)
    moved = update(state, params, dict(zip(params, grads, strict=True)))[1]
    theirs = [nn.Parameter(torch.zeros_like(g)) for g in grads]
    for parameter, g in zip(theirs, grads, strict=True):
        parameter.grad = g.clone()
    nn.utils.clip_grad_norm_(theirs, omega, norm_type=p)  # adds 1e-6 to the norm
    for x, parameter in zip(moved.values(), theirs, strict=True):
        assert_close(-x, parameter.grad, rtol=1e-6, atol=0)


def test_clip_grad_and_clip_norm_are_torchs():
    for g in gradients_of_a_net():
        parameter = nn.Parameter(torch.zeros_like(g))
        parameter.grad = g.clone()
        nn.utils.clip_grad_value_([parameter], 2.5)
        assert torch.equal(ClipGrad(2.5).apply((), g, g)[1], parameter.grad)
        parameter.grad = g.clone()
        nn.utils.clip_grad_norm_([parameter], 2.5)
        assert_close(
            ClipNorm(2.5).apply((), g, g)[1], parameter.grad, rtol=1e-6, atol=0
        )


def test_one_global_norm_for_all_dtypes():
    params = {"a": torch.zeros(1), "b": torch.zeros(1, dtype=torch.float16)}
    grads = {"a": torch.tensor([3.0]), "b": torch.tensor([4.0]).half()}
    rule = Chain(ClipGlobalNorm(1.0), Descent(1.0))
    for each in (rule, Chain(rule), MixedPrecision(rule)):
        moved = update(setup(each, params), params, grads)[1]
        assert_close(moved["a"], torch.tensor([-0.6]))
        assert_close(moved["b"], torch.tensor([-0.8]).half())


@pytest.mark.parametrize("kind", [ClipNorm, ClipGlobalNorm])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_norm_that_is_not_finite_raises(kind, bad):
    g = torch.tensor([1.0, bad])
    with pytest.raises(ValueError, match=f"{kind.__name__}: the gradient's norm is "):
        kind().apply((), g, g)


@pytest.mark.parametrize("kind", [ClipNorm, ClipGlobalNorm])
@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, math.inf])
@pytest.mark.parametrize("dtype", REALS, ids=str)
def test_a_norm_beyond_the_dtype_still_clips(kind, p, dtype):
    large = torch.finfo(dtype).max * 0.9
    g = torch.tensor([large, -large, 0.0, large / 2], dtype=dtype)
    unit = g / large
    wanted = unit / torch.linalg.vector_norm(unit, p)
    rule = kind(1.0, p)
    assert_close(rule.apply((), g, g)[1], wanted)
    assert_close(torch.func.vmap(lambda g: rule.apply((), g, g)[1])(g[None])[0], wanted)
    huge = kind(1.7e308, 2.0).apply((), g, g)[1]
    assert_close(huge, g if dtype == torch.float32 else wanted_of(g, 1.7e308))


def wanted_of(g, omega):
    """Shrink g to the 2-norm omega, in units of omega."""
    unit = g / omega
    return unit / torch.linalg.vector_norm(unit) * omega


def test_a_norm_beyond_float32_steps_in_a_tree():
    params, large = {"x": torch.zeros(4)}, {"x": torch.full((4,), 3e38)}
    for kind in (ClipNorm, ClipGlobalNorm):
        state = setup(Chain(kind(1.0), Descent(1.0)), params)
        assert_close(update(state, params, large)[1]["x"], torch.full((4,), -0.5))


@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
def test_empty_and_zero_arrays_have_the_norm_zero(p):
    for g in (torch.zeros(0), torch.zeros(3)):
        assert torch.equal(ClipNorm(0.0, p).apply((), g, g)[1], g)


# The numbers of the tests of Optimisers.jl and Flux


def one_step(rule, x, g, state=None):
    params = {"x": torch.tensor(x, dtype=torch.float64)}
    state = setup(rule, params) if state is None else state
    g = torch.tensor(g, dtype=torch.float64)
    state, moved = update(state, params, {"x": g})
    return moved["x"].tolist(), state


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [
        (WeightDecay(0.1), [1 - 0.1 - 1, 10 - 1 - 2, 100 - 10 - 3]),
        (ClipGrad(2), [0, 8, 98]),
        (Chain(ClipGrad(2), WeightDecay(0.1)), [-0.1, 7, 88]),
        (Chain(Chain(ClipGrad(2), WeightDecay(0.1))), [-0.1, 7, 88]),
        (Chain(WeightDecay(0.1), ClipGrad(2)), [-0.1, 8, 98]),
        (Chain(Descent(0.1)), [0.9, 9.8, 99.7]),
        (Chain(), [0, 8, 97]),
    ],
    ids=repr,
)
def test_the_order_of_a_chain(rule, wanted):
    got, _ = one_step(rule, [1.0, 10, 100], [1.0, 2, 3])
    assert got == pytest.approx(wanted, abs=1e-12)


def test_clipping():
    got, _ = one_step(ClipGrad(13), [0.0, 0, 0], [1.0, 10, 100])
    assert got == [-1, -10, -13]
    got, _ = one_step(ClipNorm(10), [0.0, 0, 0], [1.0, 10, 100])
    assert math.hypot(*got) == pytest.approx(10)
    got, _ = one_step(ClipNorm(10), [0.0], [0.1])
    assert got == [-0.1]
    got, _ = one_step(ClipNorm(5, 1), [0.0, 0, 0], [1.0, 10, 100])
    assert sum(map(abs, got)) == pytest.approx(5)


def test_accumulated_gradients_step_once_by_their_mean():
    x = torch.rand(5, dtype=torch.float64)
    params, grads = {"x": x}, [torch.rand(5, dtype=torch.float64) for _ in range(4)]
    state, path = setup(Chain(AccumulateGradients(3), Descent(0.01)), params), []
    for g in grads:
        state, params = update(state, params, {"x": g})
        path.append(params["x"])
    assert torch.equal(path[0], x)
    assert torch.equal(path[1], x)
    assert_close(path[2], x - 0.01 * sum(grads[:3]) / 3)
    assert torch.equal(path[3], path[2])


def test_rules_behind_an_accumulator_rest_with_it():
    params = {"x": torch.ones(2)}
    state = setup(Chain(AccumulateGradients(2), Adam()), params)
    counts = []
    for _ in range(5):
        state, params = update(state, params, {"x": torch.ones(2)})
        counts.append(state["x"].state[1][2])
    assert counts == [0, 1, 1, 2, 2]


def test_float16_steps_stay_finite():  # Optimisers.jl#167
    x = torch.tensor([0.579, -0.729, 0.5493], dtype=torch.float16)
    g = torch.tensor([-0.001497, 0.0001875, -0.013176], dtype=torch.float16)
    moved = update(setup(Adam(1e-4), {"x": x}), {"x": x}, {"x": g})[1]["x"]
    assert_close(moved, x + 1e-4 * torch.tensor([1, -1, 1]).half())


@pytest.mark.parametrize(
    "rule",
    [
        AdaDelta(0.9, 1e-5),
        *(kind(0.01) for kind in (Descent, Momentum, Nesterov, AdaGrad, RMSProp)),
        *(kind(0.01) for kind in (Adam, AdamW, NAdam, RAdam, OAdam, AdaBelief)),
    ],
    ids=repr,
)
def test_a_complex_weight_learns_to_conjugate(rule):  # Flux#1776
    params = {"w": torch.zeros(1, dtype=torch.complex128)}
    x = torch.tensor([1 + 1j], dtype=torch.complex128)
    state, losses = setup(rule, params), []
    for _ in range(9):
        error = params["w"] * x - x.conj()
        losses.append((error.abs() ** 2).sum().item())
        state, params = update(state, params, {"w": 2 * error * x.conj()})
    assert losses[0] == pytest.approx(2.0)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 1.9


# The battery


@every_rule
def test_it_converges_on_a_bowl(rule, device):
    params = tree(device=device)
    start = max(x.abs().max().item() for x in flat(params))
    _, params = run(rule, params, 600)
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


def test_a_chain_does_not_round_between_its_rules():
    x = torch.ones(1, dtype=torch.float16)
    rule = Chain(Descent(2.0**-14), Descent(2.0**-14), Descent(2.0**26))
    dx = rule.apply(rule.init(x), x, x)[1]
    assert dx.dtype == torch.float16
    assert dx.item() == 0.25  # 2**-28, halfway, would be 0 in float16


def test_mixed_precision_adds_small_steps_up():
    x = torch.ones(1, dtype=torch.bfloat16)
    g = torch.ones(1, dtype=torch.bfloat16)
    plain, mixed = {"x": x}, {"x": x}
    lost = setup(Descent(1e-3), plain)
    kept = setup(MixedPrecision(Descent(1e-3)), mixed)
    for _ in range(100):
        lost, plain = update(lost, plain, {"x": g})
        kept, mixed = update(kept, mixed, {"x": g})
    assert plain["x"].item() == 1.0
    assert_close(kept["x"].state[0], torch.tensor([0.9]))
    assert torch.equal(mixed["x"], kept["x"].state[0].bfloat16())


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


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [  # in a first step the averages are the gradient: dx = eta * g / (|g| + eps)
        (Adam(0.1, eps=0.5), 0.1 / 0.5),
        (AdamW(0.1, eps=0.5, decay=0.3), 0.1 / 0.5),
        (AdaMax(0.1, eps=0.5), 0.1 / 0.5),
        (RMSProp(0.1, eps=0.5), 0.1 / 0.5),
        (RMSProp(0.1, eps=0.5, centered=True), 0.1 / 0.5),
        (NAdam(0.1, eps=0.5), 0.1 * (0.9 * 0.1 / 0.19 + 1) / 0.5),
        (RAdam(0.1, eps=0.5), 0.1),
        (OAdam(0.1, eps=0.5), 0.2 / 0.5),
        (AdaDelta(0.9, eps=0.5), 1.0),
        (AdaGrad(0.1, eps=0.25), 0.1 / 0.75),
        (Chain(ClipNorm(1.0), Adam(0.1, eps=0.5)), 0.1 / 0.5),
        (Chain(ClipGlobalNorm(0.0), Descent(0.1)), 0.1),
    ],
    ids=repr,
)
def test_the_derivative_at_zero_is_the_formula_s(rule, wanted):
    zero = torch.zeros((), dtype=torch.float64)
    slope = torch.func.grad(lambda g: rule.apply(rule.init(g), zero + 2, g)[1])(zero)
    assert_close(slope.item(), wanted)


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


# Hyperparameters


def test_defaults_are_flux_s():
    defaults = {
        Descent: (0.1,),
        Momentum: (0.01, 0.9),
        Nesterov: (1e-3, 0.9),
        RMSProp: (1e-3, 0.9, 1e-8, False),
        Rprop: (1e-3, (0.5, 1.2), (1e-6, 50.0)),
        AdaGrad: (0.1, 1e-8),
        AdaDelta: (0.9, 1e-8),
        Adam: (1e-3, (0.9, 0.999), 1e-8),
        AdamW: (1e-3, (0.9, 0.999), 1e-8, 0.0, True),
        AdaMax: (1e-3, (0.9, 0.999), 1e-8),
        AMSGrad: (1e-3, (0.9, 0.999), 1e-8),
        NAdam: (1e-3, (0.9, 0.999), 1e-8),
        RAdam: (1e-3, (0.9, 0.999), 1e-8),
        OAdam: (1e-3, (0.5, 0.9), 1e-8),
        AdaBelief: (1e-3, (0.9, 0.999), 1e-16),
        Lion: (1e-3, (0.9, 0.999)),
        WeightDecay: (5e-4,),
        SignDecay: (1e-3,),
        ClipGrad: (10.0,),
        ClipNorm: (10.0, 2.0),
        ClipGlobalNorm: (10.0, 2.0),
        AccumulateGradients: (4,),
        MixedPrecision: (Adam(), torch.float32),
    }
    for kind, values in defaults.items():
        assert tuple(getattr(kind(), f.name) for f in fields(kind)) == values
    assert defaults.keys() == KINDS - {Chain}


NUMBERS = [
    (kind, f.name, f.metadata)
    for kind in sorted(KINDS, key=lambda kind: kind.__name__)
    for f in fields(kind)
    if "low" in f.metadata
]


@pytest.mark.parametrize(
    ("kind", "name", "metadata"),
    NUMBERS,
    ids=[f"{k.__name__}.{n}" for k, n, _ in NUMBERS],
)
def test_numbers_out_of_range_are_refused(kind, name, metadata):
    bad = [-0.1, math.nan, -math.inf, True, "0.1", None, 1j, [0.1], torch.ones(())]
    bad += [] if metadata["closed"] or metadata.get("pair") else [metadata["high"]]
    bad += [] if name == "p" else [math.inf]
    if metadata.get("pair"):
        bad = [(0.5, x) for x in bad] + [(x, 0.5) for x in bad]
        bad += [0.5, (0.5,), (0.5, 0.6, 0.7), (), "ab", None, [0.5, 1.2]]
    for value in bad:
        with pytest.raises(ValueError, match=rf"^{kind.__name__}: got {name}="):
            kind(**{name: value})


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (
            lambda: Adam(beta=(0.9, 1.0)),
            r"got beta=\(0.9, 1.0\); wanted a tuple of two",
        ),
        (lambda: Momentum(rho=1), r"Momentum: got rho=1; wanted a number in \[0, 1\)"),
        (lambda: ClipNorm(p=0.5), r"got p=0.5; wanted a number in \[1, inf\]"),
        (lambda: Rprop(ell=(1.2, 0.5)), "wanted 0 < shrink < 1 < grow"),
        (lambda: Rprop(gamma=(1.0, 0.5)), "wanted 0 < smallest <= largest"),
        (lambda: Rprop(gamma=(0.0, 0.5)), "wanted 0 < smallest <= largest"),
        (lambda: RMSProp(centered="no"), "got centered='no'; wanted True or False"),
        (lambda: AdamW(couple=1), "got couple=1; wanted True or False"),
        (lambda: AccumulateGradients(0), "got n=0; wanted an int >= 1"),
        (lambda: AccumulateGradients(True), "got n=True; wanted an int >= 1"),
        (lambda: AccumulateGradients(2.0), "got n=2.0; wanted an int >= 1"),
        (lambda: Chain(Adam), "Chain: got <class .*Adam'>; wanted rules"),
        (lambda: Chain([Adam()]), "Chain: got .*; wanted rules"),
        (lambda: MixedPrecision(Adam), "MixedPrecision: got rule=<class"),
        (lambda: MixedPrecision(3), "got rule=3; wanted a rule"),
        (lambda: MixedPrecision(Adam(), torch.int64), "got dtype=torch.int64; wanted"),
        (lambda: MixedPrecision(Adam(), "float32"), "got dtype='float32'; wanted"),
    ],
)
def test_bad_hyperparameters_are_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_good_edges_are_taken():
    ClipNorm(0, math.inf), Descent(0), Momentum(1, 0), Adam(beta=(0, 0)), Chain()
    assert isinstance(Adam().init(torch.ones(1))[2], Count)


@pytest.mark.parametrize(
    "cast", [np.float16, np.float32, np.float64, np.longdouble, np.array, Fraction]
)
def test_numbers_of_numpy_are_held_as_python_s(cast):
    rule = Adam(cast(0.25), (cast(0.5), 0.75), eps=cast(1.0))
    assert rule == Adam(0.25, (0.5, 0.75), eps=1.0)
    for value in (rule.eta, *rule.beta, rule.eps):
        assert type(value) is float
    assert repr(rule) == repr(Adam(0.25, (0.5, 0.75), eps=1.0))
    assert hash(rule) == hash(Adam(0.25, (0.5, 0.75), eps=1.0))


def test_a_float32_is_its_own_value():
    assert Adam(np.float32(1e-3)).eta == float(np.float32(1e-3))


@pytest.mark.parametrize("cast", [np.int64, np.int8, np.uint16, np.array])
def test_whole_numbers_and_flags_of_numpy(cast):
    rule = AccumulateGradients(cast(3))
    assert type(rule.n) is int
    assert rule == AccumulateGradients(3)
    assert type(Descent(cast(1)).eta) is int
    assert RMSProp(centered=np.bool_(True)) == RMSProp(centered=True)


@pytest.mark.parametrize(
    "bad",
    [
        np.float32("nan"),
        np.float64(-1),
        np.bool_(True),
        np.array([0.1]),
        Decimal("0.1"),
    ],
    ids=repr,
)
def test_what_is_no_number_in_the_range_is_refused_as_it_was_given(bad):
    with pytest.raises(ValueError, match=rf"Adam: got eta={re.escape(repr(bad))}; wan"):
        Adam(bad)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Adam(torch.tensor(0.1)), r"tensor\(0.1.*; pass|no tensors: pass"),
        (lambda: Adam(beta=[0.9, 0.99]), r"wanted a tuple .*Pass \(0.9, 0.99\)"),
        (lambda: AccumulateGradients(np.float64(2)), "wanted an int >= 1"),
        (lambda: RMSProp(centered=np.int64(1)), "wanted True or False"),
    ],
)
def test_advice_for_what_is_almost_a_number(make, match):
    with pytest.raises(ValueError, match=match):
        make()


# The copy of MixedPrecision


@pytest.mark.parametrize(
    "make",
    [
        lambda: Chain(MixedPrecision(), ClipGrad()),
        lambda: Chain(Chain(MixedPrecision()), ClipGrad()),
        lambda: Chain(Chain(ClipGrad(), MixedPrecision()), Chain(Chain(), Descent())),
        lambda: Chain(MixedPrecision(), MixedPrecision()),
        lambda: Chain(MixedPrecision(), AccumulateGradients(2)),
    ],
)
def test_nothing_may_stand_behind_mixed_precision(make):
    with pytest.raises(
        ValueError, match=r"Chain: a rule stands after MixedPrecision.*"
    ):
        make()


def test_one_copy_is_enough():
    for inner in (MixedPrecision(), Chain(ClipGrad(), Chain(MixedPrecision()))):
        with pytest.raises(ValueError, match="MixedPrecision: got one inside of one"):
            MixedPrecision(inner)


@pytest.mark.parametrize(
    "rule",
    [
        Chain(MixedPrecision(Adam(1e-2)), Chain()),
        Chain(ClipGrad(1e-3), Chain(WeightDecay(0.1), MixedPrecision(Adam(1e-2)))),
        Chain(AccumulateGradients(2), MixedPrecision(Adam(1e-2))),
        MixedPrecision(Chain(AccumulateGradients(2), Adam(1e-2), ClipGrad(1e-3))),
    ],
    ids=repr,
)
@pytest.mark.parametrize("step", [update, in_place])
def test_the_array_is_its_rounded_copy(rule, step):
    params = {"x": torch.ones(3).half()}
    state = setup(rule, params)
    for i in range(6):
        state, params = step(state, params, {"x": (i + torch.ones(3)).half()})
        found = [x for x in flat(state["x"]) if x.dtype == torch.float32]
        copies = [x for x in found if torch.equal(x.half(), params["x"])]
        assert copies
    assert params["x"].max() < 1


@pytest.mark.parametrize(
    ("dtype", "copy"),
    [(torch.complex64, torch.float32), (torch.float32, torch.complex64)],
)
def test_a_copy_of_the_other_kind_is_refused(dtype, copy):
    params = {"x": torch.ones(2, dtype=dtype)}
    with pytest.raises(
        ValueError, match=f"MixedPrecision: got an array of {dtype}; its"
    ):
        setup(MixedPrecision(Descent(), copy), params)


def test_a_copy_keeps_its_dtype():
    params = {"x": torch.ones(2).half()}
    state = setup(MixedPrecision(Descent(), torch.float16), params)
    state, params = update(state, params, params)
    assert state["x"].state[0].dtype == torch.float16


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


def test_a_rule_of_ones_own_joins():
    params = {"x": torch.tensor([1.0, -1.0])}
    for rule in (Lookahead(), Chain(ClipGrad(1.0), Lookahead())):
        moved = update(setup(rule, params), params, params)[1]
        assert moved["x"].tolist() == [0.75, -0.75]
