"""Operations of a network as `program.cpp` runs them.

A value of a mini-batch is cut into blocks of as many samples as a vector has lanes,
`(blocks, channels, height, width, lanes)`. Batch norm's scale and shift, and ReLU, cost
no pass of their own: they wait until the value is read.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_lib import compiler
from course_lib.rso.eager.kernels import FoldedConv, Pair, pair
from course_lib.rso.native.buffers import Bound, Memory, Reduce, Rows, Size
from course_lib.rso.native.structures import (
    AGAIN,
    ANEW,
    KINDS,
    TAIL,
    Job,
    Norm,
    Op,
    Operand,
    State,
    check_sizes,
)

Shape = tuple[int, int, int]
DEFINES = {torch.float32: ("REAL=float",), torch.float64: ("REAL=double", "IS_DOUBLE")}


UNSOUND, STUCK = 2, 3  # what program.cpp answers; 1 where `reduce` failed
_STUCK: list[object] = []  # memory that a thread which hangs may still use


class Unwritten(Exception):
    """program.cpp has no such operation; the message says which."""


@dataclass(frozen=True)
class Value:
    """A value as its readers find it: max(norm(slot), floor).

    ready: the stage from which on it can be read.
    picks: of all channels, the one whose weight is judged.
    """

    slot: int
    shape: Shape
    ready: int = 0
    norm: int = -1
    floor: float = -math.inf
    picks: bool = False

    @property
    def is_plain(self) -> bool:
        """Tell whether the slot holds the value itself."""
        return self.norm < 0 and self.floor == -math.inf and not self.picks

    def operand(self) -> Operand:
        """Return it as program.cpp reads it."""
        return Operand(self.slot, self.norm, self.picks, self.floor)


def library(dtype: torch.dtype) -> ctypes.CDLL:
    """Return `program.cpp`, compiled for a dtype.

    Raises:
        compiler.NoCompiler: this machine can't; the message says why.
        Unwritten: there are only float32 and float64.
    """
    if dtype not in DEFINES:
        raise Unwritten(f"numbers of {dtype}")
    source = Path(__file__).with_name("program.cpp")
    found = compiler.library(source, *DEFINES[dtype])
    check_sizes(found)
    return found


class Program:
    """Operations in stages, written down one by one, then run again and again."""

    def __init__(self, dtype: torch.dtype, reduce: Reduce | None) -> None:
        self.dtype, self.reduce = dtype, reduce
        self.library = library(dtype)
        self.lanes = self.library.lanes()
        self.memories: list[Memory] = []
        self.ops: list[tuple[int, Op]] = []  # (stage, operation)
        self.norms: list[Norm] = []
        self.cheap: dict[int, Callable[[int], Value]] = {}  # write it down once more
        self.kept: list[object] = []  # that pointers go to
        self.live: list[tuple[nn.Module, Callable[[], None]]] = []
        self.bound: Bound | None = None  # its memory, for the largest size so far

    # Writing it down

    def state(self, number: int, shape: Shape) -> Value:
        """Return a value that a mini-batch remembers."""
        slot = self._slot(math.prod(shape), state=number, is_own=False)
        return Value(slot, shape)

    def _slot(self, size: int, **settings: object) -> int:
        self.memories.append(Memory(size, **settings))
        return len(self.memories) - 1

    def _write(
        self, kind: str, value: Value, shape: Shape | None, **settings: object
    ) -> Value:
        """Add an operation on a value; return what it gives, of this shape."""
        other, out = settings.pop("other", None), settings.pop("out", None)
        stage = max(value.ready, settings.pop("stage", 0))
        stage = stage if other is None else max(stage, other.ready)
        if out is None:
            out = -1 if shape is None else self._slot(math.prod(shape))
        for read in (value, *([] if other is None else [other])):
            memory = self.memories[read.slot]
            memory.is_whole |= memory.stage < stage
        if out >= 0:
            self.memories[out].stage = stage
        geometry = dict(zip(("channels", "height", "width"), value.shape, strict=True))
        op = Op(
            kind=KINDS.index(kind),
            out=out,
            input=value.operand(),
            other=Operand(-1, -1, 0, 0.0) if other is None else other.operand(),
            **{"scratch": -1, "norm": -1, **geometry, **settings},
        )
        self.ops.append((stage, op))
        return Value(out, shape or value.shape, stage)

    def plain(self, value: Value, flags: int = 0) -> Value:
        """Return a value whose slot holds it as it is."""
        if value.is_plain:
            return value
        return self._write("copy", value, value.shape, flags=flags)

    def add(self, value: Value, other: Value, flags: int = 0) -> Value:
        """Write the sum of two values down."""
        return self._write("add", value, value.shape, other=other, flags=flags)

    def normalize(
        self,
        value: Value,
        module: nn.Module,
        *,
        picks: bool = False,
        is_plain: bool = False,
        flags: int = 0,
    ) -> Value:
        """Write a batch norm down; `is_plain` leaves gamma and beta out."""
        value = self.plain(value, flags)
        norm = Norm(
            value.shape[0], math.prod(value.shape[1:]), picks=picks, eps=module.eps
        )
        for name, own in (("gamma", module.weight), ("beta", module.bias)):
            if own is not None and not is_plain:
                place = self._copy(module, lambda own=own: own, is_double=True)
                setattr(norm, name, place)
        self.norms.append(norm)
        self._write("stats", value, None, norm=len(self.norms) - 1, flags=flags)
        if value.slot in self.cheap:  # less work than a trip to memory and back
            value = self.cheap[value.slot](value.ready + 1)
        else:
            self.memories[value.slot].is_whole = True
            value = replace(value, ready=value.ready + 1)
        return replace(value, norm=len(self.norms) - 1)

    def pool(self, value: Value, module: nn.Module, flags: int = 0) -> Value:
        """Write a pooling without padding down."""
        image = value.shape[1:]
        size, stride = _window(module, image)
        shape = tuple(
            (n - k) // s + 1 for n, k, s in zip(image, size, stride, strict=True)
        )
        start = [y * stride[0] * image[1] + x * stride[1] for y, x in _pixels(shape)]
        reach = [y * image[1] + x for y, x in _pixels(size)]
        is_max = isinstance(module, (nn.MaxPool2d, nn.AdaptiveMaxPool2d))
        return self._write(
            "max_pool" if is_max else "average_pool",
            value,
            (value.shape[0], *shape),
            flags=flags,
            **self._geometry(start, reach),
        )

    def conv(self, value: Value, taps: FoldedConv, image: Pair) -> Value:
        """Write a convolution or linear layer down; `image` is its output's size."""
        if saves_products(taps, image):
            return self._winograd(value, taps, image)
        settings = self._layer(value, taps, image)
        self._give_scratch(settings, value.shape[0])
        outputs = settings["groups"] * settings["outputs"]
        return self._write("conv", value, (outputs, *image), flags=TAIL, **settings)

    def _winograd(self, value: Value, taps: FoldedConv, image: Pair) -> Value:
        """Write a convolution of 3x3 down, in 36 products for 4x4 outputs."""
        (top, left), outputs = taps.padding, len(taps.unpooled())
        rows, columns = (-(-n // 4) for n in image)
        tile = self.library.tile_patches()
        turned = -(-rows * columns // tile) * value.shape[0] * 36 * tile
        padded = (4 * rows + 2) * (4 * columns + 2)
        settings = {
            **{"top": top, "left": left, "rows": rows, "columns": columns},
            **{"padded_height": 4 * rows + 2, "padded_width": 4 * columns + 2},
            **{"inputs": value.shape[0], "outputs": outputs, "groups": 1},
            **{"pixels": math.prod(image), "taps": 36},
            "scratch": self._slot(padded + turned + outputs * 36 * tile),
            "weights": self._copy(taps.module, lambda: _turned(taps.unpooled())),
            **self._bias(taps),
        }
        return self._write("winograd", value, (outputs, *image), flags=TAIL, **settings)

    def spread(
        self,
        value: Value,
        taps: FoldedConv,
        channels: int,
        image: Pair,
        state: int,
        *,
        is_kept: bool,
    ) -> Value:
        """Write down what a change of one of `channels` gives in the next layer.

        That of the base is the state's value `state`, and the others' lie beside it,
        unless only the state is to be kept up to date.
        """
        settings = self._layer(value, taps, image)
        self._give_scratch(settings, 1)
        settings["channels"] = channels
        shape = (settings["outputs"], *image)

        def written(stage: int, flags: int) -> Value:
            out = self._slot(math.prod(shape), state=state, is_own=not is_kept)
            placed = {"out": out, "stage": stage, "flags": flags}
            return self._write("spread", value, shape, **placed, **settings)

        found = written(0, 0)
        self.cheap[found.slot] = lambda stage: written(stage, AGAIN)
        return found

    def fill(self, value: Value, channels: int, state: int, *, is_kept: bool) -> Value:
        """Write down a whole value of which one channel is replaced."""
        shape = (channels, *value.shape[1:])
        out = self._slot(math.prod(shape), state=state, is_own=not is_kept)
        return self._write("fill", value, shape, out=out, outputs=channels)

    def taps(
        self,
        planes: Value | None,
        inputs: Value | None,
        taps: FoldedConv | None,
        channels: int,
        image: Pair,
        recall: Op | None = None,
    ) -> Value:
        """Write the candidates' planes down: those of `planes`, moved by weights.

        planes: None where row 0 lists all weights of the channel.
        inputs: what the weights multiply, from `arrange`; None stands for ones.
        taps: where the weights belong to a convolution or linear layer.
        recall: how what they multiply is computed from `inputs` instead.
        """
        if taps is None:
            own = self._geometry(list(range(math.prod(image))), [0])
            settings = {"groups": channels, "inputs": 1, "outputs": 1, **own}
            settings["plane"] = math.prod(image)
        else:
            settings = self._taps(taps, image)
        if planes is None:
            settings |= {"flags": ANEW, **self._bias(taps)}
        if recall is not None:
            settings["recall"] = ctypes.addressof(recall)
        settings |= {
            "other": inputs,
            "out": self._slot(math.prod(image), is_whole=True),
        }
        return self._write("taps", planes or inputs, (1, *image), **settings)

    def recall(
        self,
        value: Value,
        affine: Value | None,
        floor: float,
        layers: tuple[FoldedConv, FoldedConv],
        images: tuple[Pair, Pair],
    ) -> Op:
        """Return how `taps` computes a channel of its input, where it has none.

        value: what the layer before reads, from `arrange`.
        affine: scale and shift of each channel, then comes the floor.
        layers: the layer before, and the swept one.
        images: the size of their outputs.
        """
        before, taps = layers
        weight, (height, width) = before.unpooled(), images[0]
        between = Value(-1, (1, height, width))
        settings = self._arrangement(between, taps, images[1])
        padded = settings["padded_height"] * settings["padded_width"]
        plane = math.prod(arranged(between.shape, taps, images[1]))
        settings |= self._taps(before, images[0]) | self._bias(before)
        settings["weights"] = self._copy(before.module, lambda: before.unpooled())
        op = Op(
            kind=KINDS.index("recall"),
            input=value.operand(),
            other=Operand(-1 if affine is None else affine.slot, -1, 0, floor),
            scratch=self._slot(padded + plane),
            **{"channels": len(weight), "height": height, "width": width},
            **settings,
        )
        self.kept.append(op)
        return op

    def arrange(self, value: Value, taps: FoldedConv, image: Pair) -> Value:
        """Write down what the weights of a layer multiply, as its taps read it."""
        settings = self._arrangement(value, taps, image)
        self._give_scratch(settings, 0)
        shape = arranged(value.shape, taps, image)
        settings["plane"] = math.prod(shape[1:])
        return self._write("arrange", value, shape, **settings)

    def loss(self, value: Value) -> None:
        """Write the cross-entropy down."""
        self._write("loss", self.plain(value, TAIL), None, flags=TAIL)

    def keep(self, value: Value, state: int | None = None) -> Value:
        """Put a value where it stays: into the state, or where Python reads it."""
        is_free = value.is_plain and self.memories[value.slot].state < 0
        if not is_free:
            value = self._write("copy", value, value.shape, flags=TAIL)
        memory = self.memories[value.slot]
        memory.is_whole = memory.is_own = state is None
        memory.state = -1 if state is None else state
        return value

    def hold_rows(self, values: Iterable[Value]) -> None:
        """Keep each row's value, not that of the last row alone."""
        for value in values:
            self.memories[value.slot].is_whole = True

    def _layer(self, value: Value, taps: FoldedConv, image: Pair) -> dict:
        """Return the settings of an operation with a layer's weights."""
        arrangement = self._arrangement(value, taps, image)
        settings = {**self._taps(taps, image), **arrangement}
        if not isinstance(taps.module, nn.Linear):
            settings["plane"] |= 1  # odd: planes lie apart in the nearest cache
        settings["weights"] = self._copy(
            taps.module, lambda: self._packed(taps.unpooled(), taps.groups)
        )
        return settings | self._bias(taps)

    def _bias(self, taps: FoldedConv) -> dict[str, int]:
        if taps.module.bias is None:
            return {}
        return {"bias": self._copy(taps.module, lambda: taps.module.bias)}

    def _taps(self, taps: FoldedConv, image: Pair) -> dict[str, int]:
        """Return what a layer's taps read where of its arranged input."""
        weight, (rows, columns) = taps.unpooled(), taps.padded(image)
        start = [y * columns + x for y, x in _pixels(image)]
        reach = [phase * rows * columns + at for phase, at in taps.places(image)]
        return {
            "groups": taps.groups,
            "inputs": weight.shape[1],
            "outputs": len(weight) // taps.groups,
            "plane": math.prod(taps.stride) * rows * columns,
            **self._geometry(start, reach),
        }

    def _arrangement(
        self, value: Value, taps: FoldedConv, image: Pair
    ) -> dict[str, int]:
        """Return how a layer's input is padded, averaged, and sorted for its taps."""
        (top, left), (_, height, width) = taps.padding, value.shape
        is_linear = isinstance(taps.module, nn.Linear)
        rows, columns = (height, width) if is_linear else taps.padded(image)
        boxes = {"height": taps.pooled[0], "width": taps.pooled[1]}
        boxes |= {"row": taps.inner[0], "column": taps.inner[1]}
        return {
            **{"top": top, "left": left, "rows": rows, "columns": columns},
            **{"padded_height": height + 2 * top, "padded_width": width + 2 * left},
            **{f"box_{name}": number for name, number in boxes.items()},
            **{"step_row": taps.stride[0], "step_column": taps.stride[1]},
        }

    def _give_scratch(self, settings: dict, channels: int) -> None:
        """Add memory for one padded channel, and for some arranged ones."""
        padded = settings["padded_height"] * settings["padded_width"]
        plane = settings["plane"] if channels else 0
        settings["scratch"] = self._slot(padded + channels * plane)

    def _copy(
        self, module: nn.Module, read: Callable[[], Tensor], *, is_double: bool = False
    ) -> int:
        """Return where a copy of a module's weights lies, in one stretch of memory."""
        dtype = torch.float64 if is_double else self.dtype
        own = torch.empty(read().shape, dtype=dtype).copy_(read().detach())
        self.kept.append(own)
        self.live.append((module, lambda: own.copy_(read().detach())))
        return own.data_ptr()

    def _packed(self, weight: Tensor, groups: int) -> Tensor:
        """Return weights as a tile reads them: (groups, tiles, inputs, taps, tile)."""
        tile = self.library.tile_outputs()
        own = weight.detach().reshape(groups, len(weight) // groups, -1)
        own = F.pad(own, (0, 0, 0, -own.shape[1] % tile))
        tiles = own.view(groups, -1, tile, own.shape[2])
        return tiles.transpose(2, 3).contiguous()

    def _geometry(self, start: list[int], reach: list[int]) -> dict[str, int]:
        """Return where each output pixel starts to read, and how far taps reach."""
        tables = [torch.tensor(table, dtype=torch.int32) for table in (start, reach)]
        self.kept += tables
        pointers = {"place": tables[0].data_ptr(), "tap": tables[1].data_ptr()}
        return {**pointers, "pixels": len(start), "taps": len(reach)}

    # Running it

    def run(
        self,
        state: State,
        rows: Rows,
        sums: Tensor | None = None,
        before: tuple[Program, Rows] | None = None,
    ) -> None:
        """Run all stages; `sums` receives the loss of each row from the first on.

        before: another program that does its own stages at each block before these.
        """
        both = [] if before is None else [before[0]._taking(before[1], state)]
        both.append(self._taking(rows, state))
        jobs = (Job * len(both))(*(bound.job for bound in both))
        call, given = self.library.run_jobs, [ctypes.byref(state), jobs, len(both)]
        if sums is not None:
            call = self.library.judge
            given.append(ctypes.c_void_p(sums.data_ptr()))
        if failed := call(*given):
            raise self._error(failed, both, [state, jobs, sums])

    def _error(self, failed: int, both: list[Bound], used: list) -> BaseException:
        """Return what went wrong, by the number that program.cpp gave."""
        if failed == UNSOUND:
            return AssertionError("a change of a weight that is not its channel's")
        if failed == STUCK:
            _STUCK.extend([self, *both, *used])  # its memory may be written to for ever
            return RuntimeError(
                "RSO: a thread of the compiled engine does not come back. Start Python "
                "again, with compiled=False, and please report the model."
            )
        return next(bound.error for bound in both if bound.error)

    def _taking(self, rows: Rows, state: State) -> Bound:
        """Return this program's memory, large enough, with the rows' changes in it."""
        count = len(rows.changes) + 1
        blocks, threads = -(-state.batch // self.lanes), torch.get_num_threads()
        known = self.bound.size if self.bound else (0, 0, 0)
        size = (max(count, known[0]), max(blocks, known[1]), threads)
        if size != known:
            self.bound = self._bind(size)
        self.bound.take(rows)
        return self.bound

    def _bind(self, size: Size) -> Bound:
        return Bound(
            self.memories,
            self.ops,
            self.norms,
            dtype=self.dtype,
            lanes=self.lanes,
            reduce=self.reduce,
            size=size,
        )

    def rows_of(self, value: Value, rows: int) -> Tensor:
        """Return a kept value of each row: `(rows, blocks, numbers, lanes)`."""
        return self.memories[value.slot].tensor[:rows].unflatten(2, (-1, self.lanes))

    def refresh(self, module: nn.Module) -> None:
        """Take over the weights that a layer has now."""
        for own, renew in self.live:
            if own is module:
                renew()


TURN = (  # of a kernel of 3: F(4, 3) at the points 0, 1, -1, 2, -2 and infinity
    *((1 / 4, 0, 0), (-1 / 6, -1 / 6, -1 / 6), (-1 / 6, 1 / 6, -1 / 6)),
    *((1 / 24, 1 / 12, 1 / 6), (1 / 24, -1 / 12, 1 / 6), (0, 0, 1)),
)


def saves_products(taps: FoldedConv, image: Pair) -> bool:
    """Tell whether Winograd's way has clearly less to do for an output of this size."""
    weight = taps.unpooled()
    is_plain = taps.stride == taps.dilation == taps.pooled == (1, 1)
    if tuple(weight.shape[2:]) != (3, 3) or not is_plain or taps.groups != 1:
        return False
    patches = math.prod(-(-n // 4) for n in image)
    outputs, inputs = weight.shape[:2]
    each = 36 + 144 / outputs + 100 / inputs  # products, and what turning costs
    return patches * each < 0.75 * 9 * math.prod(image)


def _turned(weight: Tensor) -> Tensor:
    """Return kernels as Winograd's products read them: (36, quartets, inputs, 4)."""
    turn = torch.tensor(TURN, dtype=torch.float64)
    own = turn @ weight.detach().double() @ turn.t()
    own = F.pad(own.permute(2, 3, 1, 0), (0, -len(weight) % 4))
    quartets = own.flatten(0, 1).unflatten(2, (-1, 4))
    return quartets.transpose(1, 2).contiguous()


def _pixels(size: Pair) -> Iterator[Pair]:
    return product(*map(range, size))


def arranged(shape: Shape, taps: FoldedConv, image: Pair) -> Shape:
    """Return the shape of a layer's input as its taps read it: phase under phase."""
    rows, columns = taps.padded(image)
    return shape[0], math.prod(taps.stride) * rows, columns


def _window(module: nn.Module, image: Pair) -> tuple[tuple, tuple]:
    """Return a pooling's size and stride.

    Raises:
        Unwritten: it pads, dilates, rounds up, or adapts to more than one pixel.
    """
    if hasattr(module, "output_size"):
        if pair(module.output_size) != (1, 1):
            raise Unwritten(f"{module}")
        return image, image
    size = pair(module.kernel_size)
    stride = size if module.stride is None else pair(module.stride)
    is_padded = pair(module.padding) != (0, 0) or module.ceil_mode
    is_dilated = pair(getattr(module, "dilation", 1)) != (1, 1)
    if is_padded or is_dilated or getattr(module, "divisor_override", None):
        raise Unwritten(f"{module}")
    return size, stride
