"""Rules that clip: torch's utilities are the oracle."""

from __future__ import annotations

import math

import pytest
import torch
from test_rules import (
    REALS,
    one_step,
)
from torch import nn
from torch.testing import assert_close

from course_lib.explicit import setup, update
from course_lib.rules import (
    Chain,
    ClipGlobalNorm,
    ClipGrad,
    ClipNorm,
    Descent,
    MixedPrecision,
)


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


def test_clipping():
    got, _ = one_step(ClipGrad(13), [0.0, 0, 0], [1.0, 10, 100])
    assert got == [-1, -10, -13]
    got, _ = one_step(ClipNorm(10), [0.0, 0, 0], [1.0, 10, 100])
    assert math.hypot(*got) == pytest.approx(10)
    got, _ = one_step(ClipNorm(10), [0.0], [0.1])
    assert got == [-0.1]
    got, _ = one_step(ClipNorm(5, 1), [0.0, 0, 0], [1.0, 10, 100])
    assert sum(map(abs, got)) == pytest.approx(5)
