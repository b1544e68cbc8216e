"""A search that was stopped, killed or refused the disk goes on to the same weights."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from torch import nn

from course_lib.data import Split
from course_lib.models import mlp, small_cnn
from course_lib.rso import RSO
from course_lib.rso.checkpoints import read, replacing, write
from course_lib.rso.interrupts import StopRequest, deferred
from course_lib.rso.steps import SearchError

pytestmark = pytest.mark.usefixtures("ctrl_c")
SAMPLES, CYCLES = 30, 3


def split(samples=SAMPLES):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(samples, 1, 8, 8, generator=generator)
    return Split(inputs, torch.randint(4, (samples,), generator=generator))


def conv_net(classes=4):
    return small_cnn(classes=classes, widths=(2, 3), norm=True).double()


def search_of(model=None, data=None, **options):
    options = {"batch_size": 10, "cycles": CYCLES, "progress": False, **options}
    return RSO(model or conv_net(), data or split(), **options)


def weights(search):
    return torch.cat([p.detach().flatten() for p in search.model.parameters()])


class Interrupting:
    """Cross entropy that presses Ctrl-C at some call."""

    def __init__(self, call, times=1):
        self.left, self.times = call, times

    def __call__(self, outputs, labels):
        self.left -= 1
        if self.left == 0:
            for _ in range(self.times):
                signal.raise_signal(signal.SIGINT)
        return nn.functional.cross_entropy(outputs, labels, reduction="none")


KINDS = [
    {"minibatches": "partition"},
    {"minibatches": "fresh"},
    {"minibatches": "fresh", "proposals_at_once": 4},
    {"order": "random", "weight_decay": 1e-3, "train_norm": True},
    {"engine": "reference"},
    {"engine": "cached"},
]


@pytest.mark.parametrize("options", KINDS)
@pytest.mark.parametrize("call", [1, 77, 200])
def test_ctrl_c_stops_between_proposals_and_resumes_the_same(tmp_path, options, call):
    whole = search_of(loss=Interrupting(-1), **options)
    expected = list(whole)
    stopped = search_of(
        loss=Interrupting(call), checkpoint=tmp_path / "c.pt", **options
    )
    with pytest.raises(KeyboardInterrupt, match="RSO: stopped in cycle"):
        list(stopped)
    done = len(stopped.reports)
    assert not stopped.decisions.equal(whole.decisions)  # it did stop on the way
    resumed = search_of(loss=Interrupting(-1), **options)
    resumed.load(tmp_path / "c.pt")
    reports = list(resumed)
    assert [report.cycle for report in reports] == list(range(done + 1, CYCLES + 1))
    assert weights(resumed).equal(weights(whole))
    assert resumed.decisions.equal(whole.decisions)
    for report, other in zip(resumed.reports, expected, strict=True):
        assert report[:5] == other[:5]  # all but the times
        assert report.seconds > 0
        rate = report.proposals / report.seconds
        assert report.proposals_a_second == pytest.approx(rate)


def test_a_stopped_search_goes_on_in_memory_too():
    whole, stopped = search_of(loss=Interrupting(-1)), search_of(loss=Interrupting(50))
    list(whole)
    with pytest.raises(KeyboardInterrupt):
        list(stopped)
    list(stopped)
    assert weights(stopped).equal(weights(whole))


def test_the_time_of_a_cycle_is_counted_over_its_stops(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    class Slow(Interrupting):
        def __call__(self, outputs, labels):
            now[0] += 1.0
            return super().__call__(outputs, labels)

    options = {"cycles": 1, "engine": "reference", "batch_size": SAMPLES}
    search = search_of(loss=Slow(31), checkpoint=tmp_path / "c.pt", **options)
    with pytest.raises(KeyboardInterrupt):
        next(search)
    now[0] += 1e6  # the night
    again = search_of(loss=Slow(-1), **options)
    again.load(tmp_path / "c.pt")
    report = next(again)
    assert report.seconds == 3 * report.proposals
    assert report.proposals_a_second == pytest.approx(1 / 3)


def test_a_second_ctrl_c_stops_at_once(monkeypatch):
    clock = iter([10.0, 10.1, 11.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    request, reached = StopRequest(), []

    def press_thrice():
        with deferred(request):
            for press in (1, 2, 3):  # the second comes too soon to be meant
                signal.raise_signal(signal.SIGINT)
                reached.append(press)

    with pytest.raises(KeyboardInterrupt):
        press_thrice()
    assert reached == [1, 2]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_outside_the_main_thread_signals_are_left_alone():
    seen = []

    def work():
        with deferred(StopRequest()):
            seen.append(signal.getsignal(signal.SIGINT))
        seen.append(len(list(search_of(cycles=1))))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler, 1]


SCRIPT = """
import sys, time, torch
sys.path.insert(0, {tests!r})
from test_rso_checkpoints import search_of
from torch.nn.functional import cross_entropy
def loss(outputs, labels):
    time.sleep(0.002)
    return cross_entropy(outputs, labels, reduction="none")
torch.set_num_threads(1)
search = search_of(loss=loss, checkpoint={path!r})
for report in search:
    print(report.cycle, flush=True)
"""


@pytest.mark.parametrize(("number", "code"), [("SIGINT", 1), ("SIGKILL", -9)])
def test_a_killed_process_is_resumed_to_the_same_weights(tmp_path, number, code):
    number, path = getattr(signal, number), tmp_path / "c.pt"
    script = SCRIPT.format(tests=os.path.dirname(__file__), path=str(path))
    child = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdout.readline() == b"1\n"
    time.sleep(0.1)  # some proposals into the second cycle
    child.send_signal(number)
    _, errors = child.communicate(timeout=60)
    assert child.returncode in (code, -number)
    state = read(path)
    assert state["cycle"] == 1
    assert (state["place"] == [0, 0]) == (number == signal.SIGKILL)
    assert (b"KeyboardInterrupt" in errors) == (number == signal.SIGINT)
    whole, resumed = (search_of(loss=Interrupting(-1)) for _ in range(2))
    list(whole)
    resumed.load(path)
    list(resumed)
    assert weights(resumed).equal(weights(whole))
    assert resumed.decisions.equal(whole.decisions)


def after_one_cycle(path, **options):
    search = search_of(checkpoint=path, **options)
    next(search)
    return search


@contextlib.contextmanager
def room_for(count):
    """Let no file grow beyond so many bytes: the nearest thing to a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)


@pytest.mark.parametrize("room", [1000, 100_000, 399_990])  # within torch.save, or at
def test_no_room_at_any_point_is_an_oserror(tmp_path, room):  # the file's end
    with room_for(room), pytest.raises(OSError, match="could not be written"):
        write(tmp_path / "c.pt", {"weights": torch.zeros(100_000)})
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_said_and_the_last_checkpoint_stays(tmp_path):
    path = tmp_path / "c.pt"
    search = after_one_cycle(path)
    before = path.read_bytes()
    with room_for(1000), pytest.raises(OSError, match=r"c\.pt could not be written \("):
        next(search)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["c.pt"]  # no half file beside it
    next(search)  # there is room again, and the search is what it was
    whole = search_of()
    list(whole)
    assert weights(search).equal(weights(whole))


def test_a_folder_that_is_a_file_can_not_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="choose another folder"):
        write(tmp_path / "file" / "c.pt", {})
    with pytest.raises(OSError, match="could not be written"):
        after_one_cycle(tmp_path / "file" / "c.pt")


def test_an_error_on_the_way_leaves_the_old_file(tmp_path):
    (tmp_path / "a").write_bytes(b"old")

    def fail():
        with replacing(tmp_path / "a", "it") as stream:
            stream.write(b"new")
            raise KeyError("ours")

    with pytest.raises(KeyError):
        fail()
    assert (tmp_path / "a").read_bytes() == b"old"
    with replacing(tmp_path / "a", "it") as stream:
        stream.write(b"new")
        assert (tmp_path / "a").read_bytes() == b"old"  # until the end
    assert (tmp_path / "a").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a"]


class Trap:
    """Makes a folder where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def damage(kind, path):
    whole = path.read_bytes()
    if kind == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "garbage":
        path.write_bytes(bytes(range(256)) * 8)
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "foreign":
        torch.save(conv_net().state_dict(), path)
    elif kind == "pickle":
        torch.save({"format": 1, "model": Trap(path.with_name("sprung"))}, path)
    elif kind == "folder":
        path.unlink()
        path.mkdir()


@pytest.mark.parametrize(
    "kind", ["truncated", "garbage", "empty", "foreign", "pickle", "folder"]
)
def test_what_is_no_checkpoint_is_refused(tmp_path, kind):
    path = tmp_path / "c.pt"
    after_one_cycle(path)
    damage(kind, path)
    search = search_of()
    before = weights(search)
    with pytest.raises(ValueError, match=r"c\.pt is not a checkpoint of a search"):
        search.load(path)
    assert weights(search).equal(before)
    assert os.listdir(tmp_path) == ["c.pt"]  # the trap did not spring


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"there is no checkpoint .*none\.pt"):
        search_of().load(tmp_path / "none.pt")


OTHERS = {
    "model": (lambda: search_of(mlp((64, 4)).double()), "only one of the two has"),
    "shape": (lambda: search_of(conv_net(5)), r"'\d\.weight' has shape \(4, 12\)"),
    "dtype": (lambda: search_of(conv_net().float()), "float64, there and"),
    "seed": (lambda: search_of(seed=1), "made with seed=0, this search has 1"),
    "cycles": (lambda: search_of(cycles=4), "made with cycles=3"),
    "batch": (lambda: search_of(batch_size=9), "made with batch_size=10"),
    "kind": (lambda: search_of(minibatches="fresh"), "minibatches='partition'"),
    "at once": (lambda: search_of(proposals_at_once=2), "proposals_at_once=1"),
    "samples": (lambda: search_of(data=split(31)), "made with "),
    "labels": (
        lambda: search_of(data=Split(split().inputs, split().labels.flip(0))),
        "made with labels=",
    ),
    "norm": (lambda: search_of(train_norm=True), "made with train_norm=False"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_checkpoint_of_another_search_is_refused(tmp_path, name):
    after_one_cycle(tmp_path / "c.pt")
    make, message = OTHERS[name]
    search = make()
    before = weights(search)
    with pytest.raises(ValueError, match=message):
        search.load(tmp_path / "c.pt")
    assert weights(search).equal(before)
    assert search.cycle == 0
    assert search.reports == []


def test_a_checkpoint_of_another_tolerance_is_refused():
    """RSO had it as an argument once; with another one, other candidates win."""
    state = search_of().state_dict()
    state["settings"]["tolerance"] = 0.1
    with pytest.raises(ValueError, match=r"made with tolerance=0\.1, this search has"):
        search_of().load_state_dict(state)


def test_a_checkpoint_with_a_bad_report_changes_nothing():
    search = search_of()
    next(search)
    state = search.state_dict() | {"reports": [[1]]}
    fresh = search_of()
    before = weights(fresh)
    with pytest.raises(ValueError, match="contradicts itself"):
        fresh.load_state_dict(state)
    assert (fresh.cycle, fresh.reports) == (0, [])
    assert weights(fresh).equal(before)


CONTRADICTIONS = {
    "cycle": 9,
    "place": [0],
    "sigmas": {},
    "reports": [],
    "decisions": torch.zeros(3, dtype=torch.int8),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_state_that_contradicts_itself_is_refused(name):
    search = after_one_cycle(None)
    state = {**search.state_dict(), name: CONTRADICTIONS[name]}
    with pytest.raises(ValueError, match="contradicts itself"):
        search_of().load_state_dict(state)
    with pytest.raises(ValueError, match="not what state_dict"):
        search_of().load_state_dict({**state, "format": 2})


def test_engines_resume_each_other(tmp_path):
    after_one_cycle(tmp_path / "c.pt", engine="reference")
    whole, resumed = search_of(), search_of(engine="incremental")
    list(whole)
    resumed.load(tmp_path / "c.pt")
    list(resumed)
    assert resumed.decisions.equal(whole.decisions)


def test_a_loss_that_is_not_finite_keeps_weights_and_checkpoint(tmp_path):
    path, calls = tmp_path / "c.pt", []

    def loss(outputs, labels):
        calls.append(None)
        losses = nn.functional.cross_entropy(outputs, labels, reduction="none")
        return losses * (float("nan") if len(calls) > 1000 else 1.0)

    search = search_of(mlp((64, 3, 4)).double(), loss=loss, checkpoint=path)
    with pytest.raises(SearchError, match=r"the loss is nan on mini-batch \d, cycle"):
        list(search)
    assert read(path)["cycle"] == search.cycle
    assert weights(search).isfinite().all()


def test_the_bar_shows_rate_and_time_left_and_can_be_hidden(monkeypatch, capsys):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    list(search_of(cycles=2, progress=True))
    shown = capsys.readouterr().err
    assert "cycle 1 of 2" in shown
    assert "proposals/s" in shown
    assert "<" in shown  # time that has gone < time left
    monkeypatch.setenv("TQDM_DISABLE", "1")
    list(search_of(cycles=1, progress=True))
    assert capsys.readouterr().err == ""
