"""A GPU repeats one recorded proposal for all weights, and decides as the CPU does."""

import itertools

import pytest
import torch
from rso_cases import Sum, random_split
from torch import nn

from course_lib.rso import RSO, engines, search, steps
from course_lib.rso.eager.on_device import OnDevice
from course_lib.rso.steps import PLAIN, DeviceStep, HostStep, RecordedStep, Recordings
from tests.pretended_gpu.graphs import CUDAGraph
from tests.pretended_gpu.tensors import operations

NETS = {
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 3)),
    "few weights": lambda: nn.Sequential(
        nn.AvgPool2d(3), nn.Flatten(), nn.Linear(4, 3)
    ),
    "batch norm": lambda: nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.AvgPool2d(2), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(5, 3)),
    ),
    "strides and holes": lambda: nn.Sequential(
        *(nn.Conv2d(1, 4, 3, stride=2, padding=2), nn.Tanh()),
        *(nn.Conv2d(4, 3, 2, dilation=2), nn.MaxPool2d(2), nn.Flatten(), nn.ReLU()),
        nn.Linear(3, 3),
    ),
    "groups": lambda: nn.Sequential(
        *(nn.Conv2d(1, 4, (2, 3)), nn.ReLU(), nn.Conv2d(4, 6, 3, groups=2)),
        *(nn.SiLU(), nn.Conv2d(6, 6, 2, groups=6), nn.Flatten(), nn.Linear(12, 3)),
    ),
    "a shortcut": lambda: nn.Sequential(
        *(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU()),
        *(Sum(nn.Conv2d(3, 3, 3, padding=1, bias=False)), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3)),
    ),
}


def search_of(net, device="cpu", **options):
    torch.manual_seed(0)
    options = {"batch_size": 7, "cycles": 2, "progress": False, **options}
    model = NETS[net]().double()
    return RSO(model, random_split(), device=device, compiled=False, **options)


@pytest.fixture
def kinds(monkeypatch):
    """Return a list that gets the class of each step that is made."""
    found, make = [], search.step_of

    def step_of(*args, **options):
        found.append(make(*args, **options))
        return found[-1]

    monkeypatch.setattr(search, "step_of", step_of)
    return found


@pytest.mark.parametrize(
    ("net", "decay"), [*((net, 0.0) for net in NETS), ("batch norm", 1e-3)]
)
def test_a_recorded_proposal_serves_all_weights(device, kinds, net, decay):
    options = {"weight_decay": decay, "engine": "incremental"}
    here, there = search_of(net, **options), search_of(net, device, **options)
    next(here)
    next(there)
    assert there.decisions.equal(here.decisions)
    assert {-1, 1} <= set(here.decisions.tolist())
    if device.type == "cuda":
        recorded = [k for k in kinds if type(k) is RecordedStep]
        assert any(k.recordings.graphs for k in recorded)
        assert all(k.recordings.graphs for k in recorded if len(k.values) > 50)


@pytest.mark.parametrize("net", NETS)
def test_what_is_recorded_is_right_without_a_recording(monkeypatch, net):
    wanted = search_of(net, weight_decay=1e-3)
    next(wanted)
    made = []

    def step_of(rules, task, sweep, **_):
        kind = RecordedStep if sweep.is_repeatable else DeviceStep
        made.append(kind)
        return kind(rules, task, sweep)

    monkeypatch.setattr(search, "step_of", step_of)
    monkeypatch.setattr(engines, "Incremental", OnDevice)
    got = search_of(net, weight_decay=1e-3, engine="incremental")
    next(got)
    assert got.decisions.equal(wanted.decisions)
    assert RecordedStep in made


@pytest.mark.parametrize("window", [1, 4])
def test_weights_beyond_the_window_are_updated_before(device, monkeypatch, window):
    prepare, starts = OnDevice.prepare, []

    def short(self, number, weight):
        self.window, self.before = window, self.before[:window]
        state, start = prepare(self, number, weight)
        starts.append(weight - start)
        return state, start

    monkeypatch.setattr(OnDevice, "prepare", short)
    here, there = search_of("groups"), search_of("groups", device)
    next(here)
    next(there)
    assert there.decisions.equal(here.decisions)
    assert max(starts, default=window) == window


def test_the_host_starts_three_operations_a_proposal(device, kinds):
    if device.type == "cpu":
        pytest.skip("a CPU records nothing")
    searching = search_of("linear", device)
    next(searching)
    step = next(k for k in kinds if type(k) is RecordedStep)
    assert len(step.recordings.graphs) == 3  # one of each mini-batch
    step.sweep.states[0].seen = 20
    operations.clear()
    before = CUDAGraph.replays
    step(range(20, 21), 0, False)
    assert CUDAGraph.replays == before + 1
    assert sum(operations.values()) <= 2  # which weight, and where its window begins


@pytest.mark.parametrize(
    "options",
    [
        {"minibatches": "fresh"},
        {"engine": "cached"},
        {"precision": "bf16"},
        {"loss": lambda outputs, labels: outputs.square().mean(1)},
    ],
)
def test_what_can_not_be_recorded_is_judged_plainly(device, kinds, options):
    if options.get("precision"):
        options = {**options, "cycles": 1}
        torch.manual_seed(0)
        searching = RSO(
            NETS["few weights"](),
            random_split(),
            batch_size=7,
            device=device,
            **options,
        )
    else:
        searching = search_of("few weights", device, **options)
    next(searching)
    plain = HostStep if device.type == "cpu" else DeviceStep
    assert {type(step) for step in kinds} == {plain}


def test_several_weights_at_once_are_judged_on_the_host(device, kinds):
    next(search_of("few weights", device, proposals_at_once=2))
    assert {type(step) for step in kinds} == {HostStep}


def test_a_function_is_recorded_at_its_third_call(device):
    x, calls = torch.zeros(2, device=device), itertools.count()

    def add():
        next(calls)
        x.add_(1)

    recordings = Recordings(x.device)
    for _ in range(6):
        recordings.run("add", add)
    assert x.tolist() == [6.0, 6.0]
    assert next(calls) == (6 if device.type == "cpu" else PLAIN + 1)


def test_a_loss_that_is_not_finite_is_found_at_the_end_of_a_sweep(device):
    searching = search_of("linear", device)
    with torch.no_grad():
        searching.minibatches.inputs[3] = torch.inf
    with pytest.raises(steps.SearchError, match="finite"):
        next(searching)
