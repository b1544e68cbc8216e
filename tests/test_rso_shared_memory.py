"""Processes add up in memory that they share: right, alike, and never for ever."""

import ctypes
import mmap
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from test_rso_processes import together, wait, words

from course_lib import compiler
from course_lib.rso.parallel import processes, shared_memory
from course_lib.rso.parallel.processes import Processes
from course_lib.rso.parallel.shared_memory import (
    CAPACITY,
    LINE,
    PeerLost,
    SharedMemoryReducer,
)

if not shared_memory._can_compile():
    pytest.skip("no C++ compiler here: gloo adds up", allow_module_level=True)


def number(rank, turn, count):
    """What a process has at a turn: of all sizes, so that the order of a sum shows."""
    generator = torch.Generator().manual_seed(1000 * turn + rank)
    x = torch.randn(count, generator=generator, dtype=torch.float64)
    return x * 10.0 ** torch.randint(-8, 8, (count,), generator=generator)


def summed(turn, count, size):
    total = torch.zeros(count, dtype=torch.float64)
    for rank in range(size):
        total += number(rank, turn, count)
    return total


# Threads of this process, each with a reducer of its own


def reducers(count, timeout=20.0):
    """Return a reducer for each of `count` threads, all on the same memory."""
    memory = mmap.mmap(-1, count * (LINE + 2 * CAPACITY * 8))
    pids = [os.getpid()] * count
    return [SharedMemoryReducer(memory, rank, pids, timeout) for rank in range(count)]


def side_by_side(work, count, **options):
    """Run work(reducer) in threads; return what each gives, or raises."""
    found = [None] * count

    def run(rank, reducer):
        try:
            found[rank] = work(reducer)
        except Exception as error:
            found[rank] = error

    threads = [
        threading.Thread(target=run, args=pair, daemon=True)
        for pair in enumerate(reducers(count, **options))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a thread hangs"
    return found


@pytest.mark.parametrize("size", [1, 2, 3])
def test_sums_are_the_same_to_the_last_bit(size):
    lengths = (1, 7, 0, CAPACITY, 513)

    def work(reducer):
        return [
            reducer.sum_(number(reducer.rank, turn, lengths[turn % 5]))
            for turn in range(15)
        ]

    for found in side_by_side(work, size):
        for turn, total in enumerate(found):
            assert total.equal(summed(turn, lengths[turn % 5], size)), turn


def test_turn_after_turn():
    """A process that is ahead never writes what another has yet to read."""

    def work(reducer):
        numbers, wrong = torch.empty(3, dtype=torch.float64), 0
        for turn in range(1000):
            numbers.fill_(turn * (reducer.rank + 1))
            wrong += int((reducer.sum_(numbers) != 3 * turn).any())
        return wrong

    assert side_by_side(work, 2) == [0, 0]


def test_a_process_that_does_not_come_is_given_up():
    first, _ = reducers(2, timeout=0.7)
    numbers = torch.ones(2, dtype=torch.float64)
    start = time.monotonic()
    with pytest.raises(PeerLost, match="no answer for 1 s"):
        first.sum_(numbers)
    assert 0.7 <= time.monotonic() - start < 5
    assert numbers.tolist() == [1.0, 1.0]


def test_a_process_that_comes_late_is_awaited(monkeypatch):
    monkeypatch.setattr(shared_memory, "LIVENESS_CHECK_SECONDS", 0.01)

    def work(reducer):
        time.sleep(0.2 * reducer.rank)
        return reducer.sum_(number(reducer.rank, 0, 5))

    for found in side_by_side(work, 2):
        assert found.equal(summed(0, 5, 2))


def test_which_tensors_it_takes():
    (reducer,) = reducers(1)
    fitting = torch.zeros(CAPACITY, dtype=torch.float64)
    assert reducer.supports(fitting)
    assert reducer.supports(fitting.view(2, -1))
    assert not reducer.supports(torch.zeros(CAPACITY + 1, dtype=torch.float64))
    assert not reducer.supports(fitting.float())
    assert not reducer.supports(fitting[::2])
    assert not reducer.supports(fitting.to("meta"))


# Whether there is a reducer


def gathered(*others):
    """Return a gather of this process and others, which see what it sees."""
    return lambda value: [value, *(other(value) for other in others)]


def same(value):
    return value


def files():
    """Watch the files that reducers are made of."""
    made, original = [], shared_memory._new_file

    def new_file(size):
        made.append(original(size))
        return made[-1]

    return made, new_file


def test_a_board_leaves_no_file(monkeypatch):
    made, new_file = files()
    monkeypatch.setattr(shared_memory, "_new_file", new_file)
    reducer = SharedMemoryReducer.create(0, gathered(same), 20.0)
    assert len(reducer.memory) == 2 * (LINE + 2 * CAPACITY * 8)
    assert reducer.pids == [os.getpid()] * 2
    assert len(made) == 1
    assert not os.path.exists(made[0])
    if os.path.isdir("/dev/shm"):
        assert made[0].startswith("/dev/shm/")


def elsewhere(value):
    is_machine = isinstance(value, tuple)
    return ("another machine", *value[1:]) if is_machine else value


def another_boot(value):
    is_machine = isinstance(value, tuple)
    return (value[0], "", *value[2:]) if is_machine else value


def without_compiler(value):
    return (*value[:3], False) if isinstance(value, tuple) else value


def without_memory(value):
    return False if isinstance(value, bool) else value


@pytest.mark.parametrize(
    "other", [elsewhere, another_boot, without_compiler, without_memory]
)
def test_all_have_a_board_or_none(other, monkeypatch):
    made, new_file = files()
    monkeypatch.setattr(shared_memory, "_new_file", new_file)
    assert SharedMemoryReducer.create(0, gathered(same, other), 20.0) is None
    assert not any(map(os.path.exists, made))


def test_no_room_for_the_memory(monkeypatch):
    monkeypatch.setattr(shared_memory, "_new_file", lambda size: None)
    assert SharedMemoryReducer.create(0, gathered(same), 20.0) is None


def test_an_error_on_the_way_leaves_no_file(monkeypatch):
    made, new_file = files()
    monkeypatch.setattr(shared_memory, "_new_file", new_file)

    def gather(value):
        if isinstance(value, bool):
            raise RuntimeError("lost")
        return [value]

    with pytest.raises(RuntimeError, match="lost"):
        SharedMemoryReducer.create(0, gather, 20.0)
    assert len(made) == 1
    assert not os.path.exists(made[0])


def test_a_file_in_another_folder(monkeypatch, tmp_path):
    """Where the system has no memory for files, or none that is free."""
    make = shared_memory.tempfile.mkstemp

    def mkstemp(prefix, dir):
        if dir is not None:
            raise FileNotFoundError(dir)
        return make(prefix=prefix, dir=tmp_path)

    monkeypatch.setattr(shared_memory.tempfile, "mkstemp", mkstemp)
    path = Path(shared_memory._new_file(10))
    assert path.parent == tmp_path
    assert path.read_bytes() == bytes(10)
    assert shared_memory._mapped(str(path), 20) is None  # too short
    assert shared_memory._mapped(str(path), 10)[:] == bytes(10)


def test_windows_goes_without(monkeypatch):
    """To ask whether a process is alive would send it Ctrl-C there."""
    assert shared_memory._can_compile()
    monkeypatch.setattr(shared_memory.sys, "platform", "win32")
    assert not shared_memory._can_compile()


def test_who_is_alive():
    assert shared_memory._is_alive(os.getpid())
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert shared_memory._is_alive(child.pid)
    child.stdin.close()
    if sys.platform.startswith("linux"):  # it has ended; its number is not free yet
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert not shared_memory._is_alive(child.pid)
    child.wait()
    assert not shared_memory._is_alive(child.pid)


# Real processes


def in_sums(folder):
    rank, size = dist.get_rank(), dist.get_world_size()
    reduce = Processes.current().reduce
    reducer = processes._reducers[dist.group.WORLD]
    assert reducer is not None
    assert reducer.timeout == 60.0
    assert Processes.current().reduce is reduce
    assert processes._reducers == {dist.group.WORLD: reducer}
    for turn in range(300):
        total = reduce(number(rank, turn, 50))
        assert total.equal(summed(turn, 50, size)), turn
    one = torch.empty(1, dtype=torch.float64)
    many = 10_000 if size == 2 else 1000
    for turn in range(many):
        assert reduce(one.fill_(turn)).item() == size * turn
    turns = reducer.turn
    assert turns == 300 + many
    for tensor in (
        torch.ones(CAPACITY + 1, dtype=torch.float64),
        torch.ones(3, dtype=torch.float32),
        torch.ones(3, dtype=torch.int64),
    ):
        assert reduce(tensor).eq(size).all()
    assert reducer.turn == turns  # gloo took those
    assert reduce(torch.ones(CAPACITY, dtype=torch.float64)).eq(size).all()
    assert reducer.turn == turns + 1


@pytest.mark.parametrize("count", [2, 3])
def test_processes_add_up(tmp_path, count):
    wait(together(in_sums, tmp_path, count=count))
    assert [words(tmp_path, rank) for rank in range(count)] == ["done"] * count


def in_one_without_compiler(folder):
    if dist.get_rank() == 1:
        os.environ[compiler.SWITCH] = ""
        compiler._libraries.clear()
    reduce = Processes.current().reduce
    assert processes._reducers == {dist.group.WORLD: None}
    assert reduce(torch.ones(3, dtype=torch.float64)).eq(2).all()


def test_one_process_without_a_compiler(tmp_path):
    wait(together(in_one_without_compiler, tmp_path))
    assert [words(tmp_path, rank) for rank in (0, 1)] == ["done", "done"]


def in_loss(folder, number):
    """Process 1 sends itself a signal; process 0 says how long it took to notice."""
    own = Processes.current()
    processes._reducers[dist.group.WORLD].timeout = 3.0
    one = torch.ones(1, dtype=torch.float64)
    for _ in range(10):
        own.total(one.clone())
    if dist.get_rank() == 1:
        os.kill(os.getpid(), number)
    start = time.monotonic()
    try:
        with own.guarded():
            own.total(one)
    finally:
        (folder / "seconds").write_text(str(time.monotonic() - start))


def test_a_killed_process_is_missed_soon(tmp_path):
    started = together(in_loss, tmp_path, signal.SIGKILL)
    wait(started)
    assert "LostProcess" in words(tmp_path, 0)
    assert "process 1 has ended" in words(tmp_path, 0)
    assert float((tmp_path / "seconds").read_text()) < 2.5  # and not its timeout


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="no SIGSTOP here")
def test_a_hanging_process_is_given_up(tmp_path):
    started = together(in_loss, tmp_path, signal.SIGSTOP)
    try:
        wait(started[:1])
        assert "no answer for 3 s" in words(tmp_path, 0)
        assert 3 <= float((tmp_path / "seconds").read_text()) < 9
    finally:
        started[1].kill()


def test_a_line_is_as_python_thinks():
    """The pages start behind a line for each process."""
    first, second = reducers(2)
    thread = threading.Thread(
        target=second.sum_, args=(torch.full((1,), 5.0, dtype=torch.float64),)
    )
    thread.start()
    first.sum_(torch.full((1,), 3.0, dtype=torch.float64))
    thread.join()
    pages = (ctypes.c_double * (4 * CAPACITY)).from_buffer(first.memory, 2 * LINE)
    assert [pages[2 * CAPACITY], pages[3 * CAPACITY]] == [3.0, 5.0]  # turn 1
    assert not any(pages[: 2 * CAPACITY])
