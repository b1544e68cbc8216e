"""What is judged on the host and on a device comes to the same decisions."""

import signal
from functools import partial
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rso_cases import random_split, side_by_side
from torch import nn

from course_lib import data
from course_lib.data import Split
from course_lib.models import rso_mnist_cnn, small_cnn
from course_lib.rso import RSO, SearchError, proposals, steps
from course_lib.rso import search as searches
from course_lib.rso.eager.incremental import Incremental
from course_lib.rso.eager.sweeps import Task
from course_lib.rso.minibatches import Minibatches
from course_lib.rso.native.sweep import Compiled
from course_lib.rso.parallel.processes import Processes
from course_lib.rso.steps import DeviceStep, HostStep, Rules

pytestmark = pytest.mark.usefixtures("ctrl_c")


def split():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(30, 1, 8, 8, generator=generator)
    return Split(inputs, torch.randint(4, (30,), generator=generator))


def search_of(**options):
    model = small_cnn(classes=4, widths=(2, 3), norm=True).double()
    options = {"batch_size": 10, "cycles": 2, "progress": False, **options}
    return RSO(model, split(), **options)


@pytest.fixture
def on_device(monkeypatch):
    """Take the GPU's way of judging, wherever the weights are."""
    monkeypatch.setattr(steps, "HostStep", DeviceStep)


@pytest.mark.parametrize("engine", ["reference", "cached"])
@pytest.mark.parametrize("options", [{}, {"weight_decay": 1e-3}])
def test_host_and_device_decide_alike(monkeypatch, engine, options):
    host = search_of(engine=engine, **options)
    list(host)
    monkeypatch.setattr(steps, "HostStep", DeviceStep)
    device = search_of(engine=engine, **options)
    list(device)
    assert device.decisions.equal(host.decisions)
    assert {-1, 0, 1} >= set(device.decisions.tolist()) > {0}
    ours, theirs = device.model.state_dict(), host.model.state_dict()
    assert all(ours[name].equal(theirs[name]) for name in theirs)


@pytest.mark.parametrize("engine", ["reference", "cached", "incremental"])
def test_each_device_decides_as_the_cpu_does(device, engine):
    ours, theirs = search_of(engine=engine, device=device), search_of(engine=engine)
    list(ours)
    list(theirs)
    assert ours.decisions.equal(theirs.decisions)


def test_on_a_device_ctrl_c_and_resuming(on_device, tmp_path):
    calls = []

    def loss(outputs, labels):
        calls.append(None)
        if len(calls) == 60:
            signal.raise_signal(signal.SIGINT)
        return nn.functional.cross_entropy(outputs, labels, reduction="none")

    options = {"loss": loss, "engine": "cached"}
    stopped = search_of(**options, checkpoint=tmp_path / "c.pt")
    with pytest.raises(KeyboardInterrupt):
        list(stopped)
    assert stopped.decisions.ne(0).any()
    whole, resumed = search_of(**options), search_of(**options)
    list(whole)
    resumed.load(tmp_path / "c.pt")
    list(resumed)
    assert resumed.decisions.equal(whole.decisions)


def test_on_a_device_a_loss_that_is_not_finite_is_found_at_the_sweeps_end(on_device):
    search = search_of(
        loss=lambda outputs, labels: outputs.sum() * float("inf"), engine="cached"
    )
    with pytest.raises(SearchError, match="was not finite in cycle 1, '9"):
        next(search)


class Told:
    """A sweep that answers what it was told, and remembers what it hears."""

    def __init__(self, losses, together):
        self.answer, self.together = losses, together
        self.heard = []

    def losses(self, chosen, number):
        return torch.tensor(self.answer, dtype=torch.float64)

    def joint(self, chosen, winners):
        self.asked = list(winners)
        return torch.tensor(self.together, dtype=torch.float64)

    def record_decision(self, weight, winner):
        self.heard.append((weight, winner))


def host_step(sweep, weights=3):
    data = split()
    minibatches = Minibatches(data.inputs, data.labels, 10, kind="partition", seed=0)
    layer = nn.Linear(weights, 1, bias=False).double()
    target = searches.proposals.targets(layer)[0]
    kept = target.values.clone()
    values = torch.stack([kept, kept + 1, kept - 1], dim=1)
    task = Task(layer, target, values, minibatches, loss=None)
    return HostStep(Rules(minibatches, Processes(), 1e-12, 1), task, sweep), values


@pytest.mark.parametrize(
    ("losses", "together", "winners"),
    [
        # kept, then + and - of each of three weights
        ([9.0, 8.0, 10.0, 9.5, 7.0, 9.0, 9.0], 6.0, [1, 2, 0]),  # better together
        ([9.0, 8.0, 10.0, 9.5, 7.0, 9.0, 9.0], 7.0, [0, 2, 0]),  # not better: the best
        ([9.0, 8.0, 10.0, 9.5, 9.5, 9.0, 9.0], -1.0, [1, 0, 0]),  # one alone
        ([9.0, 9.5, 10.0, 9.5, 9.5, 9.0, 9.0], -1.0, [0, 0, 0]),  # none
    ],
)
def test_weights_that_are_judged_together(losses, together, winners):
    sweep = Told(losses, together)
    step, values = host_step(sweep)
    assert step(range(3), 0, asked=True) is True
    assert sweep.heard == list(enumerate(winners))
    signs = [(0, 1, -1)[winner] for winner in winners]
    assert step.decisions().tolist() == signs
    expected = [values[i, winner].item() for i, winner in enumerate(winners)]
    assert step.flat.tolist() == expected
    if sum(winner > 0 for winner in winners) > 1 or together == 7.0:
        assert sweep.asked == [1, 2, 0]


def test_a_nan_of_the_host_changes_nothing():
    step, values = host_step(Told([float("nan"), 1.0, 2.0], 0.0))
    with pytest.raises(SearchError, match="the loss is nan on mini-batch 1, cycle 1"):
        step(range(1), 1, asked=False)
    assert step.flat.tolist() == values[:, 0].tolist()
    assert step.decisions().tolist() == [0, 0, 0]


# Close calls


@pytest.mark.parametrize("samples", [1, 10, 100, 256])
@pytest.mark.parametrize(
    ("losses", "expected"),  # in slacks beside the mean loss 1, and that of its bar
    [
        ([0, 5000, 9000], False),
        ([0, 0, 0], False),  # without any effect
        ([0, -0.999, 9000], True),
        ([0, -1.001, 9000], True),
        ([0, 9000, -0.999], True),
        ([0, 9000, -1.001], True),
        ([0, -5000, -5000.999], True),  # which of the two is better
        ([0, -5000, -5001.001], True),
        ([0, 5000, 5001], False),  # neither wins
        ([0, -9, -5000], False),
    ],
)
def test_which_calls_are_close(losses, expected, samples):
    slack = 1e-6 * 2 * samples
    sums = [samples + slack * each for each in losses]
    assert is_close(sums, samples, 1e-6) is expected


def is_close(losses, samples, tolerance):
    """Tell whether two of the losses were asked for again, and give the same winner."""
    asked = []

    def exact(number):
        asked.append(number)
        return losses[number]

    found = steps.certain_winner(losses, samples, tolerance, exact)
    assert found == proposals.winner(losses, samples, tolerance)
    assert len(asked) == len(set(asked)) != 1
    return bool(asked)


def test_a_call_is_close_only_where_rounding_can_decide_it():
    losses = [100.0, 100.0 + 1e-5, 300.0]  # of 100 samples, a slack above the bar
    assert not is_close(losses, 100, 1e-6)
    assert is_close([loss / 10 for loss in losses], 10, 1e-6)


@given(st.lists(st.integers(-3, 3), min_size=6, max_size=6))
def test_rounding_decides_nothing_about_a_winner(numbers):
    """Losses off by less than half of what is close give the exact ones' winner."""
    wanted = [100 + number / 2 * 2e-4 for number in numbers[:3]]
    off = [number / 3 * 0.24 * steps.rounding(100, 100) for number in numbers[3:]]
    losses = [a + b for a, b in zip(wanted, off, strict=True)]
    if losses[0] in losses[1:]:  # means to have no effect
        return
    found = steps.certain_winner(losses, 100, 1e-6, wanted.__getitem__)
    assert found == proposals.winner(wanted, 100, 1e-6)


def narrow(depth=5, width=6):
    """Layers with batch norms behind each other enlarge a rounding most."""
    widths = [64, *[width] * depth]
    layers = [
        layer
        for ins, outs in pairwise(widths)
        for layer in (nn.Linear(ins, outs), nn.BatchNorm1d(outs), nn.ReLU())
    ]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(width, 10))


@pytest.mark.parametrize("batch_size", [8, 64])
@pytest.mark.parametrize("make", [narrow, partial(rso_mnist_cnn, width=2)])
def test_no_engine_is_off_by_more_than_a_close_call(make, batch_size):
    torch.manual_seed(0)
    train = data.load("digits", device="cpu").train
    few = Split(train.inputs[: 2 * batch_size], train.labels[: 2 * batch_size])
    options = {"dtype": torch.float32, "batch_size": batch_size}
    for name, _, samples, wanted, found in side_by_side(make(), few, **options):
        allowed = steps.rounding(wanted[0].item(), samples)
        for engine, losses in found.items():
            off = (losses - losses[0]) - (wanted - wanted[0])
            assert off.abs().max() < allowed, (engine, name)


@pytest.mark.parametrize("batch_size", [10, 256])
@pytest.mark.parametrize("compiled", [True, False])
def test_rounding_of_a_small_search_decides_nothing(monkeypatch, compiled, batch_size):
    """Losses pushed over the bar, by half a close call, lead to the same weights."""
    found = []

    def rounded(judge):
        def losses(*given):
            sums = judge(*given)
            kept = sums[0].item()
            push = 0.49 * steps.rounding(kept, batch_size)
            bar = kept - 1e-6 * (kept + batch_size)
            pushed = torch.where(sums < bar, sums + push, sums - push)
            return torch.where(sums == sums[0], sums, pushed)

        return losses

    for engine in (Compiled, Incremental):
        own = rounded(engine.losses)
        monkeypatch.setattr(engine, "losses", own)
    for engine in ("reference", "auto"):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Flatten(), nn.Linear(36, 9), nn.ReLU(), nn.Linear(9, 3)
        )
        options = {"batch_size": batch_size, "cycles": 5, "progress": False}
        search = RSO(
            model,
            random_split(2 * batch_size),
            engine=engine,
            compiled=compiled,
            **options,
        )
        list(search)
        found.append((search.decisions, model.state_dict()))
    (wanted, weights), (got, ours) = found
    assert wanted.equal(got)
    assert all(weights[name].equal(ours[name]) for name in weights)
