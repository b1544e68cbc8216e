"""Rules against torch.optim, and against their formulas in plain Python."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest
import torch
from test_rules import (
    KINDS,
)
from torch import Tensor
from torch.testing import assert_close

from course_lib.explicit import setup, update
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
    SignDecay,
    WeightDecay,
)

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


# Defaults


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
