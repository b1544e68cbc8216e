"""Operations of a network as `program.cpp` runs them.

A value of a mini-batch is cut into blocks of as many samples as a vector has lanes,
`(blocks, channels, height, width, lanes)`. Batch norm's scale and shift, and ReLU, need
no pass of their own: they are applied where the value is read.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from course_lib import compiler
from course_lib.rso.native.geometry import Shape, UnsupportedOperation
from course_lib.rso.native.structures import (
    BAD_CHANGE,
    KINDS,
    REDUCE,
    SCORED_ONLY,
    STUCK,
    Norm,
    Op,
    Operand,
    Operations,
    RowChanges,
    Slot,
    State,
    check_sizes,
)

DEFINES = {torch.float32: ("REAL=float",), torch.float64: ("REAL=double", "IS_DOUBLE")}
Reduce = Callable[[Tensor], Tensor]
Size = tuple[int, int, int]  # rows, blocks and threads
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


@dataclass
class Rows:
    """Which weights change by how much in each row.

    Row 0 is what is stored of the mini-batch. With base 1, row 1 is what is to be
    stored from now on, and the other rows change that.
    """

    channel: int
    changes: list[list[tuple[int, float]]]  # of each row from 1 on
    base: int = 0
    first_row: int = 0  # the first that has a loss
    own: list[tuple[int, float]] = field(default_factory=list)  # the weights of row 0


@dataclass
class Memory:
    """A slot: vectors of a block, and who needs to find them."""

    size: int
    state: int = -1
    is_own: bool = True  # has memory beside the state's
    is_whole: bool = False  # read in a later stage, or by Python
    stage: int = 0
    tensor: Tensor | None = None


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
        addresses = (ctypes.addressof(buffers.operations) for buffers in runs)
        programs = (ctypes.c_void_p * len(runs))(*addresses)
        pointer = ctypes.c_void_p(None if sums is None else sums.data_ptr())
        failure = self.library.run_programs(
            ctypes.byref(state), programs, len(runs), pointer
        )
        if failure:
            raise self._error(failure, runs, [state, programs, sums])

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
            self.buffers = ProgramBuffers(self, size)
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


class ProgramBuffers:
    """A program's memory for so many rows, blocks and threads, pointers in place."""

    def __init__(self, program: Program, size: Size) -> None:
        self.dtype, self.lanes, self.size = program.dtype, program.lanes, size
        self.reduce = program.reduce
        self.numbers: list[Tensor] = []
        self.affines: list[Tensor] = []  # scale and shift of each norm's channels
        self.error: BaseException | None = None  # that `reduce` ended with
        rows, blocks, threads = size
        slots = (Slot * len(program.memories))(*map(self._slot, program.memories))
        ordered = sorted(program.ops, key=lambda pair: pair[0])
        stages = [number for number, _ in ordered]
        ends = [i for i in range(1, len(stages)) if stages[i] != stages[i - 1]]
        starts = (ctypes.c_int * (len(ends) + 2))(0, *ends, len(ordered))
        for norm in program.norms:
            norm.parts = self._numbers(rows * blocks * norm.channels * 2)
            norm.affine = self._numbers(rows * norm.channels * 2, self.dtype)
            self.affines.append(self.numbers[-1])
        self.arrays = (  # alive as long as the pointers
            slots,
            (Op * len(ordered))(*(op for _, op in ordered)),
            starts,
            (Norm * len(program.norms))(*program.norms),
        )
        widest = max((norm.channels for norm in program.norms), default=0)
        self.operations = Operations(
            *map(ctypes.addressof, self.arrays),
            len(ends) + 1,
            threads,
            self._reducer(),
            self._numbers(rows * widest * 2 + 1),
            self._numbers(rows * blocks),
        )
        self._reserve(4 * rows)

    def take(self, rows: Rows) -> None:
        """Write the rows' changes where program.cpp reads them."""
        lists = [rows.own, *rows.changes]
        if (needed := sum(map(len, lists))) > len(self.weights):
            self._reserve(2 * needed)
        start = 0
        for row, changes in enumerate(lists, start=1):
            for weight, change in changes:
                self.weights[start], self.changes[start] = weight, change
                start += 1
            self.starts[row] = start
        own = self.rows
        own.channel, own.base, own.first_row = rows.channel, rows.base, rows.first_row
        own.rows = len(lists)

    def _reserve(self, changes: int) -> None:
        self.starts = (ctypes.c_int * (self.size[0] + 1))()
        self.weights = (ctypes.c_int * changes)()
        self.changes = (ctypes.c_double * changes)()
        pointers = map(ctypes.addressof, (self.starts, self.weights, self.changes))
        self.rows = RowChanges(0, 0, 0, 0, *pointers)
        self.operations.rows = ctypes.addressof(self.rows)

    def _numbers(self, count: int, dtype: torch.dtype = torch.float64) -> int:
        self.numbers.append(torch.zeros(count, dtype=dtype))
        return self.numbers[-1].data_ptr()

    def _slot(self, memory: Memory) -> Slot:
        """Allocate a value: for all rows and blocks, or for each thread alone."""
        rows, blocks, threads = self.size
        slot = Slot(state=memory.state, state_block=memory.size)
        if not memory.is_own:
            return slot
        if memory.is_whole:
            shape = (rows, blocks, memory.size * self.lanes)
            slot.row, slot.block = blocks * memory.size, memory.size
        else:
            shape = (threads, memory.size * self.lanes)
            slot.thread = memory.size
        memory.tensor = torch.zeros(shape, dtype=self.dtype)
        slot.data = memory.tensor.data_ptr()
        return slot

    def _reducer(self) -> ctypes._CFuncPtr:
        """Return `reduce` as program.cpp calls it."""
        if self.reduce is None:
            return REDUCE()

        def call(pointer: object, count: int) -> int:
            try:
                address = ctypes.cast(pointer, ctypes.c_void_p).value
                memory = (ctypes.c_double * count).from_address(address)
                numbers = torch.frombuffer(memory, dtype=torch.float64)
                numbers.copy_(self.reduce(numbers.clone()))
            except BaseException as error:  # it can't pass through C++
                self.error = error
                return 1
            return 0

        return REDUCE(call)


def new_op() -> Op:
    """Return an operation without scratch and norm."""
    return Op(scratch=-1, norm=-1)
