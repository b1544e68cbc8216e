"""Several rules in one tree: one global norm over all of them, or a refusal."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import vmap
from torch.testing import assert_close

from course_lib.explicit import adjust, freeze, load, save, setup, update, update_
from course_lib.rules import (
    AccumulateGradients,
    Adam,
    Chain,
    ClipGlobalNorm,
    ClipGrad,
    ClipNorm,
    Descent,
    MixedPrecision,
    Momentum,
    RMSProp,
    WeightDecay,
)

CLIP = ClipGlobalNorm(1.0)


def in_place(state, params, grads):
    params = {key: x.clone() for key, x in params.items()}
    update_(state, params, grads)
    return state, params


steps = pytest.mark.parametrize("step", [update, in_place], ids=["pure", "in place"])


@steps
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Chain(CLIP, Descent(1.0)), Chain(CLIP, Descent(2.0))),
        (Chain(Chain(CLIP), Descent(1.0)), Chain(CLIP, Chain(Descent(2.0)))),
        (CLIP, Chain(CLIP, Descent(2.0))),
        (Chain(CLIP, MixedPrecision(Descent(1.0))), Chain(CLIP, Descent(2.0))),
        (MixedPrecision(Chain(CLIP, Descent(1.0))), Chain(CLIP, Descent(2.0))),
        (MixedPrecision(CLIP), MixedPrecision(Chain(CLIP, Descent(2.0)))),
        (
            MixedPrecision(Chain(CLIP, Descent(1.0)), torch.float64),
            Chain(Chain(), Chain(CLIP), Descent(2.0)),
        ),
    ],
    ids=repr,
)
def test_one_norm_over_several_rules(first, second, step):
    params = {"a": torch.zeros(1), "b": torch.zeros(1)}
    grads = {"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}
    state, moved = step(setup({"a": first, "b": second}, params), params, grads)
    assert_close(moved, {"a": torch.tensor([-0.6]), "b": torch.tensor([-1.6])})
    moved = step(state, moved, grads)[1]  # from the states that came back
    assert_close(moved, {"a": torch.tensor([-1.2]), "b": torch.tensor([-3.2])})


@pytest.mark.parametrize("p", [1.0, 2.0, float("inf")])
def test_twenty_steps_of_three_rules_are_torchs(p, tmp_path):
    """clip_grad_norm_ over everything, then an optimizer of its own for each part."""
    torch.manual_seed(0)
    params = {key: torch.randn(3, 2, dtype=torch.float64) for key in "abcd"}
    clip = ClipGlobalNorm(0.5, p)
    rules = {
        "a": Chain(clip, Adam(0.1)),
        "b": Chain(Chain(clip), WeightDecay(0.1), Momentum(0.02)),
        "c": MixedPrecision(Chain(clip, RMSProp(0.01)), torch.float64),
        "d": Descent(0.1),  # without a clip: as it is, and no part of the norm
    }
    theirs = {key: nn.Parameter(x.clone()) for key, x in params.items()}
    optimizers = [
        torch.optim.Adam([theirs["a"]], 0.1),
        torch.optim.SGD([theirs["b"]], 0.02, 0.9, weight_decay=0.1),
        torch.optim.RMSprop([theirs["c"]], 0.01, 0.9),
        torch.optim.SGD([theirs["d"]], 0.1),
    ]
    state = setup(rules, params)
    for i in range(20):
        grads = {key: torch.randn_like(x) for key, x in params.items()}
        for key, parameter in theirs.items():
            parameter.grad = grads[key].clone()
        nn.utils.clip_grad_norm_([theirs[key] for key in "abc"], 0.5, norm_type=p)
        for optimizer in optimizers:
            optimizer.step()
        state, params = update(state, params, grads)
        if i == 10:  # the states are those that each rule makes
            save(tmp_path / "state.npz", state)
            state = load(tmp_path / "state.npz")
    assert_close(params, {k: x.data for k, x in theirs.items()}, rtol=1e-5, atol=1e-6)


def test_frozen_arrays_and_those_without_a_gradient_are_no_part_of_the_norm():
    rules = {
        key: Chain(CLIP, Descent(eta))
        for key, eta in zip("abc", (1.0, 2.0, 3.0), strict=True)
    }
    params = {key: torch.zeros(1) for key in "abc"}
    grads = {"a": torch.tensor([3.0]), "b": torch.tensor([4.0]), "c": None}
    state = setup(rules, params)
    assert_close(update(state, params, grads)[1]["a"], torch.tensor([-0.6]))
    state["b"] = freeze(state["b"])
    assert_close(update(state, params, grads)[1]["a"], torch.tensor([-1.0]))


def test_a_tie_counts_once():
    shared = torch.zeros(1)
    params = {"a": shared, "b": {"again": shared, "c": torch.zeros(1)}}
    rule, other = Chain(CLIP, Descent(1.0)), Chain(CLIP, Descent(2.0))
    state = setup({"a": rule, "b": {"again": rule, "c": other}}, params)
    grads = {"a": torch.tensor([3.0]), "b": {"c": torch.tensor([4.0])}}
    moved = update(state, params, grads)[1]
    assert_close(moved["a"], torch.tensor([-0.6]))
    assert_close(moved["b"]["c"], torch.tensor([-1.6]))


def test_arrays_that_wait_keep_their_states():
    rules = {
        key: Chain(AccumulateGradients(2), CLIP, Momentum(eta))
        for key, eta in (("a", 1.0), ("b", 2.0))
    }
    params = {key: torch.zeros(1) for key in rules}
    grads = {"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}
    state, moved = update(setup(rules, params), params, grads)
    assert moved["a"] is params["a"]
    state, moved = update(state, moved, grads)
    assert_close(moved, {"a": torch.tensor([-0.6]), "b": torch.tensor([-1.6])})
    assert state["b"].state[2].item() == pytest.approx(1.6)
    only = {"a": torch.tensor([3.0]), "b": None}
    state, moved = update(*update(state, moved, grads), only)
    assert_close(moved["a"], torch.tensor([-0.6 - 0.54 - 1.0]))  # the norm of a alone


def test_vmap_takes_one_norm_for_each_sample():
    rules = {"a": Chain(CLIP, Descent(1.0)), "b": Chain(CLIP, Descent(2.0))}
    params = {"a": torch.zeros(2, 1), "b": torch.zeros(2, 1)}
    grads = {"a": torch.tensor([[3.0], [0.3]]), "b": torch.tensor([[4.0], [0.4]])}
    state = vmap(lambda p: setup(rules, p))(params)
    moved = vmap(update)(state, params, grads)[1]
    assert_close(moved["a"], torch.tensor([[-0.6], [-0.3]]))
    assert_close(moved["b"], torch.tensor([[-1.6], [-0.8]]))


@steps
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Chain(CLIP, Descent(1.0)), Chain(Descent(0.5), CLIP)),
        (Chain(WeightDecay(0.1), CLIP), Chain(WeightDecay(0.2), CLIP)),
        (Chain(CLIP, Adam()), Chain(ClipGlobalNorm(2.0), Adam())),
        (Chain(CLIP, Adam()), Chain(ClipGlobalNorm(1.0, 1.0), Adam())),
        (Chain(CLIP, Adam()), Chain(CLIP, Descent(), CLIP)),
        (Chain(CLIP, Adam()), MixedPrecision(Chain(ClipGrad(), CLIP, Adam()))),
    ],
    ids=repr,
)
def test_it_is_unclear_what_the_norm_is_of(first, second, step):
    params = {"a": torch.zeros(1), "b": torch.zeros(1)}
    state = setup({"a": first, "b": second}, params)
    match = r"^update_?: ClipGlobalNorm is one .* for 'b' and .* for 'a'. Give them the"
    with pytest.raises(ValueError, match=match):
        step(state, params, {"a": torch.ones(1), "b": torch.ones(1)})
    moved = step(state, params, {"a": torch.ones(1), "b": None})[1]
    assert moved["a"].item() != 0


def test_to_adjust_a_part_makes_two_clips_which_is_noticed():
    params = {"a": torch.zeros(1), "b": torch.zeros(1)}
    state = setup(Chain(CLIP, Descent(1.0)), params)
    state["a"] = adjust(state["a"], 0.5)
    moved = update(state, params, {"a": torch.tensor([3.0]), "b": torch.tensor([4.0])})
    assert_close(moved[1], {"a": torch.tensor([-0.3]), "b": torch.tensor([-0.8])})
    state["a"] = adjust(state["a"], omega=2.0)
    with pytest.raises(ValueError, match=r"omega=1.0.* for 'b' and .*omega=2.0"):
        update(state, params, params)


def test_clip_norm_looks_at_each_array_alone():
    rules = {
        key: Chain(ClipNorm(1.0), Descent(eta))
        for key, eta in zip("ab", (1, 2), strict=True)
    }
    params = {"a": torch.zeros(1), "b": torch.zeros(1)}
    grads = {"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}
    moved = update(setup(rules, params), params, grads)[1]
    assert_close(moved, {"a": torch.tensor([-1.0]), "b": torch.tensor([-2.0])})
