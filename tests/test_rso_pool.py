"""The compiled engine's threads: all blocks are run once, and no wait is endless."""

import ctypes
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from course_lib import compiler
from course_lib.rso.native import operations, program, structures
from course_lib.rso.native.program import Rows
from course_lib.rso.native.structures import State

FOLDER = Path(program.__file__).parent
SOURCE = """
#include "%s"

/* Count how often each block is run; `stuck` never ends. */
extern "C" int run(long blocks, int threads, unsigned char *counts, long stuck)
{
    return Pool::of_process().run(blocks, threads, [=](long block, int thread) {
        if (block == stuck && thread)
            for (;;)
                usleep(1000);
        if (stuck >= 0 && !thread)
            usleep(1000); /* so that the others get some */
        __atomic_fetch_add(counts + block, 1, __ATOMIC_RELAXED);
    });
}
"""

try:
    program.library(torch.float32)
except compiler.NoCompiler as error:
    pytest.skip(f"nothing to test: {error}", allow_module_level=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The pool alone, with a patience of a second."""
    folder = tmp_path_factory.mktemp("pool")
    source = folder / "pool.cpp"
    source.write_text(SOURCE % (FOLDER / "pool.hpp"))
    options = [*compiler.FLAGS, "-DPATIENCE=1"]
    compiler._compile(compiler._compiler(), options, source, folder / "pool.so")
    return folder / "pool.so"


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("blocks", [0, 1, 2, 7, 0xFFFF, 2**16, 2**20, 2**21 + 5])
def test_each_block_is_run_once(made, blocks, threads):
    run = ctypes.CDLL(str(made)).run
    for _ in range(3):
        counts = (ctypes.c_ubyte * blocks)()
        assert run(ctypes.c_long(blocks), threads, counts, ctypes.c_long(-1)) == 1
        assert bytes(counts) == bytes([1]) * blocks


def test_a_thread_that_does_not_come_back_is_noticed(made):
    """Not in this process: the thread stays."""
    code = f"""
        import ctypes, time
        run = ctypes.CDLL({str(made)!r}).run
        counts = (ctypes.c_ubyte * 64)()
        start = time.monotonic()
        print(run(ctypes.c_long(64), 2, counts, ctypes.c_long(40)))
        print(time.monotonic() - start < 20, sum(counts))
        print(run(ctypes.c_long(64), 2, counts, ctypes.c_long(-1)))
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    said = subprocess.run(command, capture_output=True, timeout=60, check=True).stdout
    assert said.split() == [b"0", b"True", b"63", b"0"]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="for Linux")
def test_a_forked_process_has_threads_of_its_own(made):
    code = f"""
        import ctypes, os
        run = ctypes.CDLL({str(made)!r}).run
        def count(blocks):  # `stuck` beyond all blocks: thread 0 takes its time
            counts = (ctypes.c_ubyte * blocks)()
            last = ctypes.c_long(blocks)
            return run(ctypes.c_long(blocks), 2, counts, last), sum(counts)
        def threads():
            return len(os.listdir("/proc/self/task"))
        count(100)
        child = os.fork()
        if child == 0:
            print(*count(100), threads(), flush=True)
            os._exit(0)
        os.waitpid(child, 0)
        print(*count(100), threads())
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    said = subprocess.run(command, capture_output=True, timeout=60, check=True).stdout
    assert said.split() == [b"1", b"100", b"2"] * 2


# What a program is given


def test_a_change_outside_of_the_channel_is_refused():
    """It once made the loop over a channel's taps go on for ever."""
    run = program.Program(torch.float32, None)
    state = run.state(0, (2, 1, 1))
    operations.perturb(run, state, None, None, 2, (1, 1))
    memory = torch.zeros(1, 2, run.lanes)
    values = (ctypes.c_void_p * 1)(memory.data_ptr())
    given = State(ctypes.addressof(values), memory.data_ptr(), 1)
    run.run(given, Rows(1, [[(1, 0.5)]]))
    for weight in (0, 2, -1):
        with pytest.raises(AssertionError, match="not its channel's"):
            run.run(given, Rows(1, [[(weight, 0.5)]]))


def test_a_stuck_thread_ends_the_search_in_words(monkeypatch):
    run = program.Program(torch.float32, None)
    monkeypatch.setattr(program, "_STUCK", [])
    error = run._error(structures.STUCK, [], [torch.zeros(3)])
    assert isinstance(error, RuntimeError)
    assert "compiled=False" in str(error)
    assert run in program._STUCK  # its memory outlives the error
