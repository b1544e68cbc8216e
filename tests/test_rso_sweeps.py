"""Sweeps: the paper's loop, its cached form, and what they leave behind."""

import pytest
import torch
from rso_cases import Call, engines, random_split
from torch import nn
from torch.testing import assert_close

from course_lib.rso.eager.network import Network
from course_lib.rso.eager.sweeps import Cached, Reference, Task
from course_lib.rso.losses import cross_entropy
from course_lib.rso.minibatches import Minibatches
from course_lib.rso.modes import search_mode
from course_lib.rso.proposals import generator_of, targets


def squares(outputs, labels):
    return (outputs[:, 0] - labels).square()


def two_weights(engine, values, kind="partition"):
    """y = w0 * x0 + w1 * x1 of one sample, x = (1, 2), label 1; w = (1, 1)."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 1, bias=False)).double()
    nn.init.ones_(model[1].weight)
    inputs = torch.tensor([[[[1.0, 2.0]]]], dtype=torch.float64)
    labels = torch.tensor([1])
    batches = Minibatches(inputs, labels, 1, kind=kind, seed=0)
    batches.schedule(9, generator_of(0))
    network = Network.trace(model, inputs, None)
    (target,) = targets(model)
    values = torch.tensor(values, dtype=torch.float64)
    found = engines(
        Task(model, target, values, None, squares, network), lambda: batches
    )
    return found[engine], target


VALUES = [[1.0, 2.0, 0.0], [1.0, 1.5, 0.5]]
ALL = ["Reference", "Cached", "Incremental"]


@pytest.mark.parametrize("engine", ALL)
@torch.no_grad()
def test_losses_by_hand(engine):
    sweep, target = two_weights(engine, VALUES)
    # y = 3 with w = (1, 1); w0 moves it by +-1, w1 by +-1: loss (y - 1)**2.
    assert sweep.losses([0], 0).tolist() == [4, 9, 1]
    target.values[0] = 0.0
    sweep.record_decision(0, 2)
    assert sweep.losses([1], 0).tolist() == [1, 4, 0]


@pytest.mark.parametrize("engine", ALL)
@torch.no_grad()
def test_decayed_losses_by_hand(engine):
    values = [[0.5, 1.5, -0.5], [0.5, 1.5, -0.5]]
    sweep, target = two_weights(engine, values)
    assert sweep.losses([0], 0).tolist() == [2.25, 6.25, 0.25]  # y = 2.5, 3.5, 1.5
    target.values[0] = 0.5
    sweep.record_decision(0, 0)  # kept, and yet it moved
    assert sweep.losses([1], 0).tolist() == [0.25, 6.25, 2.25]  # y = 1.5, 3.5, -0.5


@pytest.mark.parametrize("engine", ALL)
@torch.no_grad()
def test_joint_losses_by_hand(engine):
    sweep, target = two_weights(engine, VALUES)
    assert sweep.losses([0, 1], 0).tolist() == [4, 9, 1, 9, 1]
    assert sweep.joint([0, 1], [2, 2]).item() == 0  # y = 0 + 1
    assert sweep.joint([0, 1], [1, 2]).item() == 4
    assert sweep.joint([0, 1], [0, 1]).item() == 9
    assert target.values.tolist() == [1, 1]


@pytest.mark.parametrize("engine", ALL)
@torch.no_grad()
def test_decayed_proposals_together_by_hand(engine):
    values = [[0.5, 1.5, -0.5], [0.5, 1.5, -0.5]]
    sweep, _ = two_weights(engine, values)
    # All decay: y = 0.5 + 1; then 2.5 and 0.5 by w0, 3.5 and -0.5 by w1.
    assert sweep.losses([0, 1], 0).tolist() == [0.25, 2.25, 0.25, 6.25, 2.25]
    assert sweep.joint([0, 1], [2, 1]).item() == 2.25  # y = -0.5 + 3


@pytest.mark.parametrize("engine", ALL)
@torch.no_grad()
def test_judging_leaves_the_weights(engine):
    sweep, target = two_weights(engine, VALUES)
    sweep.losses([0], 0)
    sweep.losses([0, 1], 0)
    assert target.values.tolist() == [1, 1]


@pytest.mark.parametrize("engine", [Reference, Cached])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
@torch.no_grad()
def test_an_error_in_the_loss_leaves_the_weights(engine, error):
    sweep, target = two_weights(engine.__name__, VALUES)
    calls = []

    def failing(outputs, labels):
        calls.append(1)
        if len(calls) == 2:
            raise error
        return squares(outputs, labels)

    sweep.task.loss = failing
    with pytest.raises(error):
        sweep.losses([0], 0)
    assert target.values.tolist() == [1, 1]


@pytest.mark.parametrize(("kind", "prefix_runs"), [("partition", 2), ("fresh", 6)])
def test_what_lies_before_the_layer_runs_once_for_each_minibatch(kind, prefix_runs):
    class Counting(nn.Tanh):
        calls = 0

        def forward(self, x):
            Counting.calls += 1
            return super().forward(x)

    Counting.__module__ = "torch.nn.counting"  # torch.fx looks into other modules
    model = nn.Sequential(nn.Flatten(), Counting(), nn.Linear(36, 3)).double()
    split = random_split(8)
    inputs = split.inputs.double()
    with search_mode(model):
        network = Network.trace(model, inputs, None)
        target = targets(model)[0]
        values = target.values[:, None] + torch.tensor([0.0, 0.1, -0.1])
        batches = Minibatches(inputs, split.labels, 4, kind=kind, seed=0)
        batches.schedule(6, generator_of(0))
        sweep = Cached(Task(model, target, values, batches, cross_entropy, network))
        Counting.calls = 0
        for weight in range(6):
            sweep.losses([weight], weight % 2)
    assert Counting.calls == prefix_runs


def test_the_memory_of_cached_is_what_crosses_the_cut():
    model = nn.Sequential(
        *(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 3, 3), nn.Flatten()),
        nn.Linear(12, 3),
    )
    with search_mode(model):
        network = Network.trace(model, torch.randn(3, 1, 6, 6), None)
    numbers = [Cached.numbers_per_sample(network, p) for p in model.parameters()]
    assert numbers == [36, 36, 32, 32, 12, 12]


def test_a_layer_in_place_does_not_change_the_data():
    model = nn.Sequential(Call(lambda x: x.sub_(0.5)), nn.Flatten())
    model.append(nn.Linear(36, 3))
    split = random_split(6)
    kept = split.inputs.clone()
    with search_mode(model):
        network = Network.trace(model, split.inputs, None)
        target = targets(model)[0]
        values = target.values[:, None].expand(-1, 3)

        def dealt():
            return Minibatches(split.inputs, split.labels, 6, kind="partition", seed=0)

        task = Task(model, target, values, None, cross_entropy, network)
        losses = [s.losses([0], 0) for s in engines(task, dealt).values()]
    assert split.inputs.equal(kept)
    assert_close(losses[1:], losses[:1] * 2)
