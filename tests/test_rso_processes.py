"""Two real processes decide as one does; a lost one ends the run, and soon."""

import functools
import os
import signal
import subprocess
import sys
import traceback
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from course_lib.__main__ import main
from course_lib.data import Split
from course_lib.models import RSOCifar10CNN, mlp, rso_mnist_cnn, small_cnn
from course_lib.rso import RSO
from course_lib.rso.checkpoints import read
from course_lib.rso.parallel import processes
from course_lib.rso.parallel.processes import LostProcess, Processes

pytestmark = pytest.mark.usefixtures("ctrl_c")


def images(samples, size=8, channels=1):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(samples, channels, size, size, generator=generator)
    labels = torch.randint(4, (samples,), generator=generator)
    return Split(inputs, labels)


def conv_net():
    return small_cnn(classes=4, widths=(2, 3), norm=True)


def perceptron():
    return mlp((64, 3, 4))


def tiny_paper_net():
    return rso_mnist_cnn(width=2, classes=4)


def tiny_residual_net():
    return RSOCifar10CNN(width=1, channels=1, classes=4)


class Centered(nn.Module):
    """Takes the mini-batch's mean away, so that a share is not enough to know it."""

    def forward(self, x):
        return x - x.mean(0)


# name -> (model, samples, arguments); 23 in mini-batches of 7 leaves unequal shares
CASES = {
    "mlp": (perceptron, 40, {"batch_size": 20}),
    "mlp, fresh": (perceptron, 40, {"batch_size": 20, "minibatches": "fresh"}),
    "mlp, reference": (perceptron, 23, {"batch_size": 7, "engine": "reference"}),
    "mlp, cached": (perceptron, 23, {"batch_size": 7, "engine": "cached"}),
    "conv": (conv_net, 40, {"batch_size": 20}),
    "conv, fresh": (conv_net, 40, {"batch_size": 20, "minibatches": "fresh"}),
    "conv, unequal": (conv_net, 23, {"batch_size": 7}),
    "conv, fresh, unequal": (
        conv_net,
        23,
        {"batch_size": 7, "minibatches": "fresh", "order": "random"},
    ),
    "conv, norm and decay": (
        conv_net,
        40,
        {"batch_size": 20, "train_norm": True, "weight_decay": 1e-3},
    ),
    "conv, four at once": (conv_net, 40, {"batch_size": 20, "proposals_at_once": 4}),
    "conv, first process's weights": (
        conv_net,
        40,
        {"batch_size": 20, "initialize": False},
    ),
    "conv, torch alone": (
        conv_net,
        23,
        {"batch_size": 7, "train_norm": True, "compiled": False},
    ),
    "paper": (tiny_paper_net, 24, {"batch_size": 12}),
    "residual": (tiny_residual_net, 24, {"batch_size": 12}),
}


def search_mode(name, model, samples, options, **more):
    torch.manual_seed(dist.get_rank() if dist.is_initialized() else 0)
    split = images(samples)
    search = RSO(model().double(), split, cycles=2, progress=False, **options, **more)
    reports = list(search)
    weights = torch.cat([p.detach().flatten() for p in search.model.parameters()])
    return {
        "decisions": search.decisions,
        "weights": weights,
        "loss": [report.loss for report in reports],
        "accuracy": [report.accuracy for report in reports],
        "engines": {choice.engine for choice in search.choices.values()},
    }


def in_cases(folder):
    rank = dist.get_rank()
    found = {name: search_mode(name, *case) for name, case in CASES.items()}
    torch.save(found, folder / f"{rank}.pt")


def in_process(work, rank, count, folder, timeout, arguments):
    """What a child runs: join, work, leave its last words in a file."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # see `ctrl_c`
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=count,
        timeout=timedelta(seconds=timeout),
    )
    try:
        work(folder, *arguments)
        words = "done"
    except BaseException as error:
        words = "".join(traceback.format_exception_only(error))
    (folder / f"words_{rank}").write_text(words)
    os._exit(0)  # a broken group would wait for what is gone


@functools.cache
def _context():
    """How processes are started: from one that has imported torch, where there is."""
    if "forkserver" not in mp.get_all_start_methods():
        return mp.get_context("spawn")
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "torch.distributed", "course_lib.rso"])
    return context


def together(work, folder, *arguments, count=2, timeout=60.0):
    """Run `work(folder, *arguments)` in processes of one group; yield them started."""
    started = [
        _context().Process(
            target=in_process, args=(work, rank, count, folder, timeout, arguments)
        )
        for rank in range(count)
    ]
    for process in started:
        process.start()
    return started


def wait(started, seconds=120):
    for process in started:
        process.join(seconds)
        assert not process.is_alive(), "a process hangs"


def words(folder, rank):
    return (folder / f"words_{rank}").read_text()


@pytest.fixture(scope="module", autouse=True)
def hanging(tmp_path_factory):
    """Two processes, one of which hangs; the other waits for it beside all tests."""
    if not hasattr(signal, "SIGSTOP"):
        yield None
        return
    folder = tmp_path_factory.mktemp("hanging")
    started = together(in_strike, folder, signal.SIGSTOP, 1, timeout=15.0)
    yield folder, started
    for process in started:
        process.kill()


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """What two processes found for each case."""
    folder = tmp_path_factory.mktemp("pair")
    wait(together(in_cases, folder))
    assert [words(folder, rank) for rank in (0, 1)] == ["done", "done"]
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_decide_as_one(pair, name):
    alone = search_mode(name, *CASES[name])
    assert alone["decisions"].ne(0).any()
    for found in (each[name] for each in pair):
        assert found["engines"] == alone["engines"]
        assert found["decisions"].equal(alone["decisions"])
        assert found["weights"].equal(alone["weights"])
        assert found["loss"] == pytest.approx(alone["loss"], rel=1e-9)
        assert found["accuracy"] == alone["accuracy"]


def in_refusals(folder):
    rank = dist.get_rank()
    split = images(12)
    cases = {
        "few": (perceptron(), {"batch_size": 1}),
        "norm": (conv_net(), {"batch_size": 6, "engine": "cached"}),
        "mixing": (nn.Sequential(Centered(), perceptron()), {"batch_size": 6}),
        "seeds": (perceptron(), {"batch_size": 6, "seed": rank}),
    }
    found = {}
    for name, (model, options) in cases.items():
        with pytest.raises(ValueError, match="RSO") as caught:
            RSO(model, split, cycles=1, progress=False, **options)
        found[name] = str(caught.value)
    torch.save(found, folder / f"{rank}.pt")


def test_what_shares_can_not_do_is_refused_in_all_processes(tmp_path):
    wait(together(in_refusals, tmp_path))
    assert [words(tmp_path, rank) for rank in (0, 1)] == ["done", "done"]
    for found in (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)):
        assert "2 processes for mini-batches of 1 samples" in found["few"]
        assert "2 batch norms need the sums of all processes" in found["norm"]
        assert "depends on the others" in found["mixing"]
        assert "process 1 has seed=1, process 0 0" in found["seeds"]


class Striking:
    """Cross entropy that, in one process, sends a signal to itself at a call."""

    def __init__(self, number, rank, call):
        self.number, self.rank, self.left = number, rank, call

    def __call__(self, outputs, labels):
        self.left -= 1
        if self.left == 0 and dist.is_initialized() and dist.get_rank() == self.rank:
            os.kill(os.getpid(), self.number)
        return nn.functional.cross_entropy(outputs, labels)


# The mlp has 211 weights: a cycle calls the loss three times for each, then once for
# each of two mini-batches. The strike comes at proposal 100 of cycle 2.
MLP = {"batch_size": 20, "engine": "reference", "minibatches": "fresh"}
IN_CYCLE_2 = 3 * 211 + 2 + 300


def in_strike(folder, number, rank):
    loss = Striking(number, rank, IN_CYCLE_2)
    checkpoint = folder / "checkpoint.pt"
    search_mode("", perceptron, 40, MLP, loss=loss, checkpoint=checkpoint)


def finished(checkpoint):
    """Go on from a checkpoint in this process; return the search and its reports."""
    loss = Striking(0, -1, 0)
    model = perceptron().double()
    search = RSO(model, images(40), cycles=2, progress=False, loss=loss, **MLP)
    search.load(checkpoint)
    return search, list(search)


@pytest.fixture(scope="module")
def undisturbed():
    return search_mode("", perceptron, 40, MLP, loss=Striking(0, -1, 0))


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_run_and_leaves_the_checkpoint(
    tmp_path, undisturbed, victim
):
    started = together(in_strike, tmp_path, signal.SIGKILL, victim)
    wait(started)
    assert started[victim].exitcode == -signal.SIGKILL
    said = words(tmp_path, 1 - victim)
    lost = "course_lib.rso.parallel.processes.LostProcess"
    assert said.startswith(f"{lost}: RSO: process")
    assert "checkpoint is intact" in said
    search, reports = finished(tmp_path / "checkpoint.pt")
    assert [report.cycle for report in reports] == [2]
    assert search.decisions.equal(undisturbed["decisions"])


def test_ctrl_c_in_one_process_stops_all_at_the_same_proposal(tmp_path, undisturbed):
    wait(together(in_strike, tmp_path, signal.SIGINT, 1))
    assert [words(tmp_path, rank)[:17] for rank in (0, 1)] == ["KeyboardInterrupt"] * 2
    state = read(tmp_path / "checkpoint.pt")
    # Asked in proposal 100, both stop after the next one. Output first: 4 biases and
    # 12 weights of the last layer, 3 biases of the first, then its weights.
    assert state["cycle"] == 1
    assert state["place"] == [3, 101 - 4 - 12 - 3]
    search, reports = finished(tmp_path / "checkpoint.pt")
    assert [report.cycle for report in reports] == [2]
    assert search.decisions.equal(undisturbed["decisions"])


@pytest.fixture
def launched(monkeypatch):
    """As process 1 of 2 that torchrun started; what it joins is kept in a list."""
    joined = []
    for name, value in (("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(dist, "is_torchelastic_launched", lambda: True)
    monkeypatch.setattr(
        dist, "init_process_group", lambda *a, **options: joined.append((*a, options))
    )
    monkeypatch.setattr(processes, "pick_device", torch.device)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    return joined


def test_processes_join_by_gloo_on_cpus_and_by_nccl_on_gpus(launched, monkeypatch):
    assert processes.start("cpu", timeout=7) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert processes.start("cuda") == torch.device("cuda:1")
    assert launched == [
        ("gloo", {"timeout": timedelta(seconds=7)}),
        ("cpu:gloo,cuda:nccl", {"timeout": timedelta(seconds=processes.TIMEOUT)}),
    ]


def test_more_processes_than_gpus(launched, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="2 processes and 1 GPUs"):
        processes.start("cuda")
    assert launched == []


def test_one_process_is_no_group():
    own = Processes.current()
    assert own == Processes((0, 1), None)
    losses = torch.tensor([1.0, 2.0])
    assert own.judged(losses, True) == ([1.0, 2.0], True)
    assert own.total(losses) is losses
    assert own.gather("a") == ["a"]


def test_other_errors_pass_the_guard():
    own = Processes((0, 2), torch.neg)
    with pytest.raises(RuntimeError, match="ours"), own.guarded():
        raise RuntimeError("ours")
    with pytest.raises(LostProcess, match="lost another one"), own.guarded():
        raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed")


def test_torchrun_runs_the_command_on_two_processes(tmp_path, capsys):
    options = ["--data", "digits", "--cycles", "1", "--batch-size", "1437"]
    options += ["--net", f"{net_file(tmp_path)}:net", "--device", "cpu"]
    command = ["rso", *options, "--out"]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [sys.executable, *launch, "-m", "course_lib", *command, tmp_path / "two"],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Stored in") == 1
    assert main([*command, str(tmp_path / "one")]) == 0
    assert capsys.readouterr().out.count("Stored in") == 1
    one, two = (read(tmp_path / name / "checkpoint.pt") for name in ("one", "two"))
    assert two["decisions"].equal(one["decisions"])
    settings = (tmp_path / "two" / "settings.json").read_text()
    assert '"processes": 2' in settings


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="no SIGSTOP here")
def test_a_process_that_hangs_is_given_up(hanging):
    folder, started = hanging
    wait(started[:1])
    assert "LostProcess" in words(folder, 0)
    assert read(folder / "checkpoint.pt")["cycle"] == 1


def net_file(folder: Path) -> Path:
    path = folder / "net.py"
    path.write_text(
        "from course_lib.models import mlp\n"
        "def net():\n    return mlp((64, 2, 10)).double()\n"
    )
    return path
