"""A program's memory, and its structures as program.cpp reads them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from course_lib.rso.native.structures import (
    REDUCE,
    Job,
    Norm,
    Op,
    Operations,
    RowChanges,
    Slot,
)

Reduce = Callable[[Tensor], Tensor]
Size = tuple[int, int, int]  # rows, blocks and threads


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


class ProgramBuffers:
    """Memory for so many rows, blocks and threads, with all pointers in place.

    Args:
        memories: one for each slot; their tensors are set.
        ops: (stage, operation) of each.
        norms: their pointers are set.
        dtype: of the values.
        lanes: samples of a block.
        reduce: sums a tensor over all processes, or None.
        size: rows, blocks and threads.
    """

    def __init__(
        self,
        memories: Sequence[Memory],
        ops: Sequence[tuple[int, Op]],
        norms: Sequence[Norm],
        *,
        dtype: torch.dtype,
        lanes: int,
        reduce: Reduce | None,
        size: Size,
    ) -> None:
        self.dtype, self.lanes, self.reduce, self.size = dtype, lanes, reduce, size
        self.numbers: list[Tensor] = []
        self.affines: list[Tensor] = []  # scale and shift of each norm's channels
        self.error: BaseException | None = None  # that `reduce` ended with
        rows, blocks, threads = size
        slots = (Slot * len(memories))(*map(self._slot, memories))
        ordered = sorted(ops, key=lambda pair: pair[0])
        stages = [number for number, _ in ordered]
        ends = [i for i in range(1, len(stages)) if stages[i] != stages[i - 1]]
        starts = (ctypes.c_int * (len(ends) + 2))(0, *ends, len(ordered))
        for norm in norms:
            norm.parts = self._numbers(rows * blocks * norm.channels * 2)
            norm.affine = self._numbers(rows * norm.channels * 2, dtype)
            self.affines.append(self.numbers[-1])
        self.arrays = (  # alive as long as the pointers
            slots,
            (Op * len(ordered))(*(op for _, op in ordered)),
            starts,
            (Norm * len(norms))(*norms),
        )
        widest = max((norm.channels for norm in norms), default=0)
        self.operations = Operations(
            *map(ctypes.addressof, self.arrays),
            len(ends) + 1,
            threads,
            self._reducer(),
            self._numbers(rows * widest * 2 + 1),
            self._numbers(rows * blocks),
        )
        self._reserve(4 * rows)

    @property
    def job(self) -> Job:
        """What program.cpp is to do, valid until the next rows are taken."""
        return Job(ctypes.addressof(self.operations), ctypes.addressof(self.rows))

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
