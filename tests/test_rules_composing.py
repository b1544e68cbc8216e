"""Chains, accumulated gradients and precise copies."""

from __future__ import annotations

import pytest
import torch
from test_rules import (
    flat,
    in_place,
    one_step,
)
from torch.testing import assert_close

from course_lib.explicit import setup, update
from course_lib.rules import (
    AccumulateGradients,
    Adam,
    Chain,
    ClipGrad,
    Descent,
    MixedPrecision,
    WeightDecay,
)


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
