"""What the pretended GPU refuses and counts, so that the tests on it can be trusted.

Each refusal is a mistake that only a GPU shows: a tensor, a generator or a buffer that
stays on the CPU, NumPy, a file read onto the wrong device, a wait in a loop.
"""

import copy
import io
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from course_lib.data import Split
from course_lib.explicit import call, parameters, setup, update, with_gradient
from course_lib.rso import RSO
from course_lib.rules import Adam
from tests.pretended_gpu import hooks
from tests.pretended_gpu.limits import LIMITS
from tests.pretended_gpu.tensors import waits

pytestmark = pytest.mark.skipif(
    hooks.obstacle is not None or torch.cuda.is_available(),
    reason=f"the GPU is not pretended: {hooks.obstacle or 'there is one'}",
)


def test_numbers_are_those_of_the_cpu(gpu):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    x = torch.randn(5, 3)
    there = copy.deepcopy(model).to(gpu)
    y = there(x.to(gpu))
    assert y.device == gpu
    assert_close(y.cpu(), model(x))
    y.square().sum().backward()
    model(x).square().sum().backward()
    for one, other in zip(there.parameters(), model.parameters(), strict=True):
        assert_close(one.grad.cpu(), other.grad)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("bias", [True, False])
def test_recurrent_layers_are_those_of_the_cpu(gpu, kind, bias):
    torch.manual_seed(0)
    model = kind(3, 4, num_layers=2, bias=bias, bidirectional=True).double()
    x = torch.randn(5, 2, 3).double()
    there = copy.deepcopy(model).to(gpu)
    model(x)[0].square().sum().backward()
    there(x.to(gpu))[0].square().sum().backward()
    for one, other in zip(there.parameters(), model.parameters(), strict=True):
        assert_close(one.grad.cpu(), other.grad)


def test_a_new_tensor_is_made_beside_the_old_one(gpu):
    made = torch.ones(2, device=gpu, dtype=torch.float64).new_tensor([1, 2])
    assert (made.device, made.dtype, made.tolist()) == (gpu, torch.float64, [1.0, 2.0])
    assert made.new_tensor(3, dtype=torch.int64, device="cpu").device.type == "cpu"


def test_ties_stay_on_the_way_to_the_device(gpu):
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    second.weight = first.weight
    moved = nn.Sequential(first, second).to(gpu)
    assert moved[0].weight is moved[1].weight


# What a GPU refuses


def test_a_tensor_left_on_the_cpu_is_refused(gpu):
    with pytest.raises(RuntimeError, match="cuda:0 and cpu"):
        torch.ones(2, device=gpu) + torch.ones(2)
    assert (torch.ones(2, device=gpu) + torch.tensor(1.0)).tolist() == [2, 2]


def test_a_buffer_left_behind_is_refused(gpu):
    layer = nn.BatchNorm1d(2).to(gpu).eval()
    layer.running_mean = torch.zeros(2)
    with pytest.raises(RuntimeError, match="cuda:0 and cpu"):
        layer(torch.ones(3, 2, device=gpu))


def test_a_generator_of_the_cpu_is_refused(gpu):
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(RuntimeError, match="'cuda' device type for generator"):
        torch.rand(2, device=gpu, generator=generator)
    with pytest.raises(RuntimeError, match="'cuda' device type for generator"):
        torch.empty(2, device=gpu).normal_(generator=generator)


def test_numpy_is_refused(gpu):
    with pytest.raises(TypeError, match=r"Use Tensor\.cpu\(\)"):
        torch.ones(2, device=gpu).numpy()


def test_an_index_on_the_device_is_refused_by_a_tensor_on_the_cpu(gpu):
    with pytest.raises(RuntimeError, match="indices should be"):
        torch.ones(3)[torch.tensor([0], device=gpu)]


def test_a_file_comes_back_on_the_device_that_is_asked_for(gpu):
    file = io.BytesIO()
    torch.save({"x": torch.ones(2, device=gpu)}, file)
    for where, wanted in ((None, gpu), ("cpu", torch.device("cpu")), (gpu, gpu)):
        file.seek(0)
        x = torch.load(file, map_location=where, weights_only=True)["x"]
        assert x.device == wanted


# What makes the host wait


@pytest.mark.parametrize(
    ("name", "wait"),
    [
        ("item", lambda x: x.sum().item()),
        ("item", lambda x: float(x.sum())),
        ("item", lambda x: bool(x.sum() > 0)),
        ("tolist", lambda x: x.tolist()),
        ("to the CPU", lambda x: x.cpu()),
        ("nonzero", lambda x: x.nonzero()),
        ("index by a mask", lambda x: x[x > 0]),
    ],
)
def test_a_wait_is_counted_under_its_name(gpu, name, wait):
    x = torch.ones(3, device=gpu)
    waits.clear()
    wait(x)
    assert [key.partition(" at ")[0] for key in waits] == [name]


def test_what_stays_on_the_device_waits_for_nothing(gpu):
    x = torch.ones(3, device=gpu)
    waits.clear()
    (torch.where(x > 0, x, -x) @ x).relu().argmax()
    assert not waits


# Loops that must not wait


def steps(gpu, **options):
    """Take three explicit steps; return how often the host has waited."""
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).to(gpu)
    x, y = torch.randn(8, 4).to(gpu), torch.randint(2, (8,)).to(gpu)
    params = parameters(model)
    state = setup(Adam(), params)
    waits.clear()
    for _ in range(3):
        _, grads = with_gradient(
            lambda p: nn.functional.cross_entropy(call(model, p, x), y), params
        )
        state, params = update(state, params, grads, **options)
    return sum(waits.values())


def test_an_explicit_step_waits_only_for_its_check(gpu):
    assert steps(gpu, check=False) == 0
    assert steps(gpu) == 3


def search(device, width=3, **options):
    """Return an RSO over a small network, before its first cycle."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Flatten(), nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU()),
        nn.Linear(width, 2),
    )
    split = Split(torch.randn(16, 1, 2, 2), torch.randint(2, (16,)))
    options = {"cycles": 2, "batch_size": 8, "progress": False} | options
    return RSO(model.to(device), split, device=device, **options)


def waits_of_a_cycle(gpu, width, **options):
    searching = search(gpu, width, **options)
    waits.clear()
    next(searching)
    return sum(waits.values())


@pytest.mark.parametrize("minibatches", ["partition", "fresh"])
@pytest.mark.parametrize(
    ("engine", "a_tensor"), [("reference", 2), ("cached", 2), ("incremental", 3)]
)
def test_a_search_waits_for_no_proposal(gpu, engine, a_tensor, minibatches):
    """Four tensors are searched, then the cycle's losses are read at once."""
    options = {"engine": engine, "minibatches": minibatches}
    for width in (3, 6):
        assert waits_of_a_cycle(gpu, width, **options) == 4 * a_tensor + 1


@pytest.mark.parametrize("at_once", [1, 2])
@pytest.mark.parametrize("minibatches", ["partition", "fresh"])
@pytest.mark.parametrize("engine", ["reference", "cached", "incremental"])
def test_decisions_are_those_of_the_cpu(gpu, engine, minibatches, at_once):
    options = {
        "engine": engine,
        "minibatches": minibatches,
        "proposals_at_once": at_once,
        "compiled": False,
    }
    here, there = search("cpu", **options), search(gpu, **options)
    for _ in range(2):
        next(here)
        next(there)
    assert torch.equal(here.decisions, there.decisions.cpu())


def test_the_limits_are_few_and_each_has_a_reason():
    tests = "".join(p.read_text() for p in Path(__file__).parent.glob("test_*.py"))
    assert len(LIMITS) < 30
    assert all(LIMITS.values())
    assert [name for name in LIMITS if f"def {name}(" not in tests] == []


# Graphs


def recorded(function, pool=None):
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        function()
    graph.replay()  # a recording itself does nothing
    return graph


def test_a_graph_reads_the_memory_that_it_was_recorded_with(gpu):
    x, y = torch.ones(2, device=gpu), torch.zeros(2, device=gpu)
    graph = recorded(lambda: y.copy_((2 * x).unsqueeze_(0)[0] + 1))
    assert y.tolist() == [3.0, 3.0]
    x.fill_(5.0)
    graph.replay()
    assert y.tolist() == [11.0, 11.0]
    y.zero_()
    graph.replay()
    assert y.tolist() == [11.0, 11.0]


def test_a_graph_repeats_numbers_of_the_host(gpu):
    x, number = torch.zeros(2, device=gpu), [1.0]
    graph = recorded(lambda: x.add_(number[0]))
    number[0] = 100.0
    graph.replay()
    assert x.tolist() == [2.0, 2.0]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
        lambda x: x.cpu(),
        lambda x: x.copy_(torch.ones(2)),
        lambda x: x + torch.tensor([1.0, 2.0], device=x.device),
    ],
)
def test_a_recording_refuses_what_waits_or_reads_the_cpu(gpu, function):
    x = torch.ones(2, device=gpu)
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        recorded(lambda: function(x))
