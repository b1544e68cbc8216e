"""What lesson 06 looks through: which line changes which place, and its time."""

import time

import pytest
import torch
from torch import nn

from course_lib.lessons.explicit.hidden_state import (
    PLACES,
    make_run,
    race,
    torch_steps,
    watch,
)


def names(model):
    return [type(layer).__name__ for layer in model]


def test_a_run_has_the_layers_that_were_asked_for_and_an_adam_that_holds_them():
    model, adam = make_run()
    linear = ["Linear", "BatchNorm1d", "ReLU", "Dropout", "Linear"]
    assert names(model) == ["Flatten", *linear]
    assert names(make_run(batch_norm=False)[0]) == [
        "Flatten",
        "Linear",
        "ReLU",
        "Dropout",
        "Linear",
    ]
    assert "Dropout" not in names(make_run(dropout=False)[0])
    held = [id(p) for group in adam.param_groups for p in group["params"]]
    assert held == [id(p) for p in model.parameters()]
    assert model.training


def test_two_runs_begin_alike():
    (one, _), (other, _) = make_run(), make_run()
    x = torch.ones(3, 1, 8, 8)
    torch.manual_seed(1)
    first = one(x)
    torch.manual_seed(1)
    assert torch.equal(first, other(x))


def lines_of(model, adam):
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    yield "nothing", None
    yield "forward", (loss := model(x).sum())
    yield "backward", loss.backward()
    yield "step", adam.step()
    yield "zero_grad", adam.zero_grad()


def test_each_line_is_said_to_change_what_it_changes():
    run = make_run()
    changed = dict(watch(lines_of(*run), *run))
    assert changed == {
        "nothing": [],
        "forward": ["buffers", "generator"],
        "backward": [".grad"],
        "step": ["parameters", "optimizer.state"],
        "zero_grad": [".grad"],
    }
    assert {place for places in changed.values() for place in places} == set(PLACES)


def test_the_steps_of_torch_train_copies_and_agree():
    torch.manual_seed(0)
    model, seen = nn.Linear(3, 2), []
    before = {name: p.clone() for name, p in model.named_parameters()}

    def loss(model):
        seen.append(model.weight)
        return model(torch.ones(1, 3)).square().sum()

    steps = torch_steps(model, loss)
    assert list(steps) == ["torch Adam", "torch Adam, fused=True"]
    for step in steps.values():
        step()
    default, fused = seen
    assert default is not fused
    torch.testing.assert_close(default, fused)
    assert not torch.equal(default, before["weight"])
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_a_race_compares_the_fastest_times_with_those_of_the_first():
    pauses = iter([0.5, 0.0, 0.02, 0.04])  # the first round is slow
    ways = {
        "one": lambda: time.sleep(next(pauses)),
        "two": lambda: time.sleep(next(pauses)),
    }
    ratios = race(ways, rounds=2)
    assert ratios["one"] == 1.0
    assert ratios["two"] < 0.5
    assert next(pauses, None) is None


@pytest.mark.parametrize("rounds", [1, 3])
def test_each_way_runs_once_a_round_in_turns(rounds):
    order = []
    ways = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    race(ways, rounds=rounds)
    assert order == ["a", "b"] * rounds
