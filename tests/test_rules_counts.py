"""Rules under torch.compile: one or two graphs, whatever the count of the step."""

from __future__ import annotations

import copy

import pytest
import torch
from test_rules import RULES
from torch.testing import assert_close

from course_lib.explicit import Leaf, adjust, load, save, setup, update, update_
from course_lib.rules import (
    AccumulateGradients,
    AdaBelief,
    Adam,
    AdamW,
    Chain,
    ClipGlobalNorm,
    MixedPrecision,
    NAdam,
    RAdam,
)
from course_lib.rules.counts import Count, TracedCount

NESTED = [
    Chain(Chain(AccumulateGradients(2), Adam(0.1)), AccumulateGradients(3), RAdam(0.1)),
    Chain(
        AccumulateGradients(3),
        ClipGlobalNorm(1.0),
        MixedPrecision(Chain(RAdam(0.1), AdamW(0.1)), torch.float64),
    ),
    MixedPrecision(Chain(AccumulateGradients(3), NAdam(0.1)), torch.float64),
    Chain(AccumulateGradients(12), AdaBelief(0.1)),
]


def compiled(rule, **options):
    torch.compiler.reset()  # what other tests compiled
    return torch.compile(
        lambda state, x, g: rule.apply(state, x, g),
        backend="eager",
        fullgraph=True,
        **options,
    )


def after(rule, step, steps=13):
    """Return the state and the array after steps, no recompiling after the second."""
    x = torch.tensor([1.0, -2.0, 0.3])
    state = rule.init(x)
    for i in range(steps):
        with torch._dynamo.config.patch(error_on_recompile=i > 1):
            state, dx = step(state, x, 2 * x)
        x = x if dx is None else x - dx
    return state, x


@pytest.mark.parametrize("rule", RULES + NESTED, ids=repr)
def test_changing_counts_compile_once_or_twice(rule):
    state, x = after(rule, compiled(rule, dynamic=False))
    plain, wanted = after(rule, rule.apply)
    assert torch.equal(x, wanted)
    for _ in range(13):  # eager code goes on from what compiled code returns
        state, dx = rule.apply(state, x, 2 * x)
        plain, same = rule.apply(plain, x, 2 * x)
        assert (dx is None) == (same is None)
        assert dx is None or torch.equal(dx, same)


@pytest.mark.parametrize("options", [{}, {"dynamic": True}], ids=str)
def test_whatever_is_asked_of_shapes(options):
    for rule in (Adam(0.1), NESTED[1]):
        _, x = after(rule, compiled(rule, **options))
        assert torch.equal(x, after(rule, rule.apply)[1])


def test_a_rule_compiles_inside_a_loop():
    rule = Chain(AccumulateGradients(2), Adam(0.1))

    @torch.compile(backend="eager", fullgraph=True)
    def two_steps(state, x):
        for _ in range(2):
            state, dx = rule.apply(state, x, 2 * x)
            x = x - dx
        return state, x

    torch.compiler.reset()
    _, x = two_steps(rule.init(torch.ones(2)), torch.ones(2))
    plain, y = rule.init(torch.ones(2)), torch.ones(2)
    for _ in range(2):
        plain, dx = rule.apply(plain, y, 2 * y)
        y = y if dx is None else y - dx
    assert torch.equal(x, y)


@pytest.fixture
def traced():
    """A state of Adam after three compiled steps."""
    state, _ = after(Adam(0.1), compiled(Adam(0.1)), 3)
    assert isinstance(state[2], TracedCount)
    return state


def test_a_traced_count_is_a_number(traced):
    count = traced[2]
    assert int(count) == count == 3 == count + 0
    assert count != 4
    assert {count: 1}[3] == 1
    assert repr(count) == "TracedCount(3)"
    assert copy.deepcopy(count) == 3
    assert list(range(5))[count] == 3


@pytest.mark.parametrize("step", [update, update_])
def test_explicit_steps_and_files_go_on_from_it(traced, step, tmp_path):
    x = torch.ones(3)
    plain = (traced[0], traced[1], Count(3))
    results = []
    for memory in (traced, plain):
        state, params = {"x": Leaf(Adam(0.1), memory)}, {"x": x.clone()}
        state = adjust(state, 0.2, eps=1)  # an int: it looks whether the state fits
        save(tmp_path / "state.npz", state)
        assert load(tmp_path / "state.npz")["x"].state[2] == Count(3)
        memory = tuple(m.clone() if torch.is_tensor(m) else m for m in memory)
        state = {"x": Leaf(Adam(0.2, eps=1.0), memory)}
        made = step(state, params, {"x": torch.full((3,), 2.0)})
        state, params = (state, params) if made is None else made
        assert type(state["x"].state[2]) is Count
        m, v, count = state["x"].state
        results.append((params["x"], m, v, int(count)))
    assert_close(*results, rtol=0, atol=0)


def test_a_whole_update_and_a_compiled_rule_take_turns(traced):
    params = {"x": torch.ones(3)}
    state = setup(Adam(0.1), params)
    step = compiled(Adam(0.1))
    for _ in range(2):
        memory, dx = step(state["x"].state, params["x"], params["x"])
        params = {"x": params["x"] - dx}
        state = {"x": Leaf(Adam(0.1), memory)}
        state, params = update(state, params, params)
    assert state["x"].state[2] == 4
