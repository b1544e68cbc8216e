"""Operations of a network as `program.cpp` runs them.

A value of a mini-batch is cut into blocks of as many samples as a vector has lanes,
`(blocks, channels, height, width, lanes)`. Batch norm's scale and shift, and ReLU, need
no pass of their own: they are applied where the value is read.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from course_lib import compiler
from course_lib.rso.native.buffers import Memory, ProgramBuffers, Reduce, Rows
from course_lib.rso.native.geometry import Shape, UnsupportedOperation
from course_lib.rso.native.structures import (
    BAD_CHANGE,
    KINDS,
    SCORED_ONLY,
    STUCK,
    Job,
    Norm,
    Op,
    Operand,
    State,
    check_sizes,
)

DEFINES = {torch.float32: ("REAL=float",), torch.float64: ("REAL=double", "IS_DOUBLE")}
_STUCK: list[object] = []  # memory that a thread which hangs may still use


@dataclass(frozen=True)
class Value:
    """A value as its readers find it: max(norm(slot), floor).

    ready: the stage from which on it can be read.
    one_channel: of all channels, only that of the changed weights is read.
    """

    slot: int
    shape: Shape
    ready: int = 0
    norm: int = -1
    floor: float = -math.inf
    one_channel: bool = False

    @property
    def is_plain(self) -> bool:
        """Tell whether the slot holds the value itself."""
        return self.norm < 0 and self.floor == -math.inf and not self.one_channel

    def operand(self) -> Operand:
        """Return it as program.cpp reads it."""
        return Operand(self.slot, self.norm, self.one_channel, self.floor)


def library(dtype: torch.dtype) -> ctypes.CDLL:
    """Return `program.cpp`, compiled for a dtype.

    Raises:
        compiler.NoCompiler: this machine can't; the message says why.
        UnsupportedOperation: there are only float32 and float64.
    """
    if dtype not in DEFINES:
        raise UnsupportedOperation(f"numbers of {dtype}")
    source = Path(__file__).with_name("program.cpp")
    found = compiler.library(source, *DEFINES[dtype])
    check_sizes(found)
    return found


class Program:
    """Operations in stages, added one by one, then run again and again."""

    def __init__(self, dtype: torch.dtype, reduce: Reduce | None) -> None:
        self.dtype, self.reduce = dtype, reduce
        self.library = library(dtype)
        self.lanes = self.library.lanes()
        self.memories: list[Memory] = []
        self.ops: list[tuple[int, Op]] = []  # (stage, operation)
        self.norms: list[Norm] = []
        self.recompute: dict[int, Callable[[int], Value]] = {}  # adds it once more
        self.pointed_to: list[object] = []
        self.copies: list[tuple[nn.Module, Callable[[], None]]] = []
        self.buffers: ProgramBuffers | None = None  # for the largest size so far

    # Adding operations

    def state(self, number: int, shape: Shape) -> Value:
        """Return a value that is stored of a mini-batch."""
        return Value(self.slot(math.prod(shape), state=number, is_own=False), shape)

    def slot(self, size: int, **settings: object) -> int:
        """Return a new slot; the settings are those of Memory."""
        self.memories.append(Memory(size, **settings))
        return len(self.memories) - 1

    def add_op(
        self,
        kind: str,
        value: Value,
        shape: Shape | None,
        op: Op | None = None,
        *,
        other: Value | None = None,
        out: int | None = None,
        stage: int = 0,
        flags: int = 0,
    ) -> Value:
        """Add an operation on a value; return its result, of this shape."""
        op = new_op() if op is None else op
        reads = [value] if other is None else [value, other]
        stage = max(stage, *(read.ready for read in reads))
        for read in reads:
            memory = self.memories[read.slot]
            memory.is_whole |= memory.stage < stage
        if out is None:
            out = -1 if shape is None else self.slot(math.prod(shape))
        if out >= 0:
            self.memories[out].stage = stage
        op.kind, op.out, op.flags = KINDS.index(kind), out, flags
        op.channels, op.height, op.width = value.shape
        op.input = value.operand()
        op.other = Operand(-1, -1, 0, 0.0) if other is None else other.operand()
        self.ops.append((stage, op))
        return Value(out, shape or value.shape, stage)

    def plain(self, value: Value, flags: int = 0) -> Value:
        """Return a value whose slot holds the value itself."""
        if value.is_plain:
            return value
        return self.add_op("copy", value, value.shape, flags=flags)

    def store(self, value: Value, state: int | None = None) -> Value:
        """Put a value into the state, or where Python reads it."""
        is_free = value.is_plain and self.memories[value.slot].state < 0
        if not is_free:
            value = self.add_op("copy", value, value.shape, flags=SCORED_ONLY)
        memory = self.memories[value.slot]
        memory.is_whole = memory.is_own = state is None
        memory.state = -1 if state is None else state
        return value

    def store_rows(self, values: Iterable[Value]) -> None:
        """Store each row's value, not that of the last row alone."""
        for value in values:
            self.memories[value.slot].is_whole = True

    def copy(
        self,
        module: nn.Module,
        read: Callable[[], Tensor],
        dtype: torch.dtype | None = None,
    ) -> int:
        """Return where a contiguous copy of a module's weights lies."""
        own = torch.empty(read().shape, dtype=dtype or self.dtype)
        own.copy_(read().detach())
        self.pointed_to.append(own)
        self.copies.append((module, lambda: own.copy_(read().detach())))
        return own.data_ptr()

    def set_tables(self, op: Op, start: list[int], reach: list[int]) -> None:
        """Say where each output pixel starts to read, and how far taps reach."""
        tables = [torch.tensor(table, dtype=torch.int32) for table in (start, reach)]
        self.pointed_to += tables
        op.place, op.tap = (table.data_ptr() for table in tables)
        op.pixels, op.taps = len(start), len(reach)

    # Running them

    def run(
        self,
        state: State,
        rows: Rows,
        sums: Tensor | None = None,
        before: tuple[Program, Rows] | None = None,
    ) -> None:
        """Run all stages; `sums` receives the loss of each row from the first on.

        before: another program that runs its own stages at each block before these.
        """
        runs = [] if before is None else [before[0]._prepared(before[1], state)]
        runs.append(self._prepared(rows, state))
        jobs = (Job * len(runs))(*(buffers.job for buffers in runs))
        pointer = ctypes.c_void_p(None if sums is None else sums.data_ptr())
        failure = self.library.run_jobs(ctypes.byref(state), jobs, len(runs), pointer)
        if failure:
            raise self._error(failure, runs, [state, jobs, sums])

    def _error(
        self, failure: int, runs: list[ProgramBuffers], used: list
    ) -> BaseException:
        if failure == BAD_CHANGE:
            return AssertionError("a change of a weight that is not its channel's")
        if failure == STUCK:
            _STUCK.extend([self, *runs, *used])  # its memory may be written to for ever
            return RuntimeError(
                "RSO: a thread of the compiled engine does not come back. Start Python "
                "again, with compiled=False, and please report the model."
            )
        return next(buffers.error for buffers in runs if buffers.error)

    def _prepared(self, rows: Rows, state: State) -> ProgramBuffers:
        """Return this program's memory, large enough, with the rows' changes in it."""
        count = len(rows.changes) + 1
        blocks, threads = -(-state.batch // self.lanes), torch.get_num_threads()
        known = self.buffers.size if self.buffers else (0, 0, 0)
        size = (max(count, known[0]), max(blocks, known[1]), threads)
        if size != known:
            self.buffers = ProgramBuffers(
                self.memories,
                self.ops,
                self.norms,
                dtype=self.dtype,
                lanes=self.lanes,
                reduce=self.reduce,
                size=size,
            )
        self.buffers.take(rows)
        return self.buffers

    def rows_of(self, value: Value, rows: int) -> Tensor:
        """Return a stored value of each row: `(rows, blocks, numbers, lanes)`."""
        return self.memories[value.slot].tensor[:rows].unflatten(2, (-1, self.lanes))

    def refresh(self, module: nn.Module) -> None:
        """Copy the weights that a layer has now."""
        for owner, copy in self.copies:
            if owner is module:
                copy()


def new_op() -> Op:
    """Return an operation without scratch and norm."""
    return Op(scratch=-1, norm=-1)
