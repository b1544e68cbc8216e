"""A network's plan, written down as programs for `program.cpp`."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from course_lib.rso.eager.kernels import FoldedConv, Pair
from course_lib.rso.eager.network import Network
from course_lib.rso.eager.plan import Plan
from course_lib.rso.eager.prefixes import from_blocks, to_blocks
from course_lib.rso.losses import Loss, cross_entropy, loss_sums
from course_lib.rso.minibatches import Minibatches
from course_lib.rso.native.buffers import Rows
from course_lib.rso.native.program import Program, Unwritten, Value, arranged
from course_lib.rso.native.structures import TAIL, Op, State


@dataclass
class Remembered:
    """A mini-batch's values, in step with the first `seen` moves."""

    labels: Tensor
    values: list[Tensor | None]  # (blocks, numbers, lanes)
    seen: int = 0

    def __post_init__(self) -> None:
        known = [value for value in self.values if value is not None]
        self._labels = known[0]  # which nobody reads
        if self.labels.dim() == 1 and not self.labels.is_floating_point():
            self._labels = to_blocks(self.labels.int()[:, None], known[0].shape[2])
        pointers = [0 if value is None else value.data_ptr() for value in self.values]
        self._values = (ctypes.c_void_p * len(pointers))(*pointers)
        self.pointers = State(
            ctypes.addressof(self._values), self._labels.data_ptr(), len(self.labels)
        )


LIGHT = 32  # weights of a channel: applied anew sooner than what they gave is fetched


class Written:
    """A plan as programs: to start a mini-batch, to judge rows, to mend its values.

    What a mini-batch remembers has a number for each key: the input of the swept layer,
    its planes, the bases of what follows, what else is read, and values of nodes that
    were given or that later sweeps would like. Planes of a light layer are computed
    anew; so is its input, if a light layer computes that from the images: these and its
    norm's scales and shifts are remembered instead.

    Raises:
        Unwritten: program.cpp has no such operation.
        NoCompiler: it can't be compiled here.
    """

    def __init__(self, plan: Plan, loss: Loss | None, minibatches: Minibatches) -> None:
        inputs = minibatches.inputs
        if inputs.device.type != "cpu":
            raise Unwritten("a device of another kind than the CPU")
        self.plan, self.network, self.dtype = plan, plan.network, inputs.dtype
        self.is_light = not plan.is_bias and _is_light(plan.conv)
        self.before = Before.find(plan)
        self.numbers: dict[tuple[str, fx.Node], int] = {}
        self.heads: dict[object, Head] = {}
        self.judging = self._program()
        self.lanes = self.judging.lanes
        output = self._write_judging()
        self.outputs: Value | None = None
        shape = self.network.shapes[self.network.output]
        if loss is cross_entropy and _are_classes(minibatches.labels, shape):
            self.judging.loss(output)
        else:
            self.outputs = self.judging.keep(output)
        self.mend = self._write_mend()
        self.head(frozenset(), frozenset())
        self.memory: dict[object, Tensor] = {}

    # Writing it down

    def _program(self) -> Program:
        return Program(self.dtype, self.network.reduce)

    def _shape(self, node: fx.Node) -> tuple[int, int, int]:
        shape = self.network.shapes[node]
        if shape is None or len(shape) not in (1, 3):
            raise Unwritten(f"a value of shape {shape}")
        return shape if len(shape) == 3 else (*shape, 1, 1)

    def _shape_of(self, role: str, node: fx.Node) -> tuple[int, int, int]:
        shape = self._shape(node)
        if role == "affine":
            return (2 * shape[0], 1, 1)
        if role == "images":
            before = self.before
            return arranged(shape, before.taps, self._shape(before.source)[1:])
        if role != "inputs":
            return shape
        return arranged(shape, self.plan.conv, self._image)

    @property
    def _image(self) -> Pair:
        """The height and width of the swept layer's planes."""
        return self._shape(self.plan.source)[1:]

    def _state(self, program: Program, role: str, node: fx.Node) -> Value:
        return program.state(self._number(role, node), self._shape_of(role, node))

    def _number(self, role: str, node: fx.Node) -> int:
        return self.numbers.setdefault((role, node), len(self.numbers))

    def _write_channel(self, program: Program) -> dict[fx.Node, Value]:
        """Write down what keeps to the channel whose weights are judged."""
        plan, network = self.plan, self.network
        inputs = recall = None
        if self.before is not None:
            inputs, recall = self._write_recall(program)
        elif not plan.is_bias:
            role = "inputs" if plan.conv is not None else "standardized"
            inputs = self._state(program, role, plan.input)
        planes, taps = None, None if plan.is_bias else plan.conv
        if not self.is_light:
            planes = self._state(program, "planes", plan.source)
        moved = program.taps(planes, inputs, taps, plan.channels, self._image, recall)
        found = {plan.source: moved}
        for node, source, _ in plan.channelwise:
            value, module = found[source], network.module(node)
            kind = network.kind(node)
            if kind == "norm":
                value = program.normalize(value, module, picks=True)
            elif kind == "pool":
                value = program.pool(value, module)
            elif kind == "add":
                (other,) = (n for n in node.all_input_nodes if n is not source)
                other = self._state(program, "fixed", other)
                other = replace(other, shape=value.shape, picks=True)
                value = program.add(value, other)
            elif kind != "flatten":
                value = unchanged(network, node, value)
            found[node] = value
        program.hold_rows(found.values())  # each row's change is from row 0
        return found

    def _write_recall(self, program: Program) -> tuple[Value, Op]:
        """Write down how a channel of the swept layer's input is computed anew."""
        before, own, affine = self.before, self.plan.input, None
        images = self._state(program, "images", self.network.nodes[0])
        if before.is_normed:
            affine = self._state(program, "affine", own)
        layers = before.taps, self.plan.conv
        sizes = self._shape(own)[1:], self._image
        return images, program.recall(images, affine, before.floor, layers, sizes)

    def _write_spread(
        self, program: Program, found: dict[fx.Node, Value], *, is_kept: bool
    ) -> dict[fx.Node, Value]:
        """Write down how the channel's change reaches the steps that spread it.

        What the state remembers is brought up to date; the candidates' values have
        memory beside it, unless it `is_kept` alone.
        """
        values, plan, channels = {}, self.plan, self.plan.channels
        if not self.is_light:
            planes = self._number("planes", plan.source)
            program.fill(found[plan.source], channels, planes, is_kept=True)
        for node, source in self.plan.source_of.items():
            value, state = found[source], self._number("base", node)
            if node in self.plan.dense:
                taps, image = self.network.conv_of(node), self._shape(node)[1:]
                values[node] = program.spread(
                    value, taps, channels, image, state, is_kept=is_kept
                )
            else:
                value = program.fill(value, channels, state, is_kept=is_kept)
                values[node] = replace(value, shape=self._shape(node))
        return values

    def _write_judging(self) -> Value:
        program, network = self.judging, self.network
        found = self._write_channel(program)
        values = self._write_spread(program, found, is_kept=False)
        for node in self.plan.fixed:
            values[node] = self._state(program, "fixed", node)
        for node in self.plan.tail.order:
            if node not in values:
                values[node] = write(program, network, node, values)
        return values[network.output]

    def _write_mend(self) -> Program:
        program = self._program()
        self._write_spread(program, self._write_channel(program), is_kept=True)
        return program

    def head(self, known: frozenset[fx.Node], missing: frozenset[fx.Node]) -> Head:
        """Return what computes the values of a mini-batch from those that are known.

        Those that are `missing` are computed too where they lie on the way.
        """
        if (known, missing) not in self.heads:
            self.heads[known, missing] = self._write_head(known, missing)
        return self.heads[known, missing]

    def _write_head(self, known: frozenset, missing: frozenset) -> Head:
        network, plan, program = self.network, self.plan, self._program()
        given = {network.nodes[0], *known}
        asked = [key for key in self.numbers if key[0] != "value"]
        taken = [key for key in asked if key[0] == "fixed" and key[1] in given]
        asked = [key for key in asked if key not in taken]
        nodes = {node for _, node in asked}
        more = missing.intersection(network.needed(nodes, given, set()))
        steps = network.needed(nodes | more, given, set())
        used = {n for step in steps for n in network.used_by(step)} | nodes
        values = {n: self._state(program, "value", n) for n in used & given}
        for node in steps:
            values[node] = write(program, network, node, values)
        norm = -1
        for key in asked:
            role, node = key
            value = values[node]
            if role == "affine":
                norm = value.norm
                continue
            if role == "inputs":
                value = program.arrange(value, plan.conv, self._image)
            if role == "images":
                image = self._shape(self.before.source)[1:]
                value = program.arrange(value, self.before.taps, image)
            if role == "standardized":
                value = program.normalize(value, plan.module, is_plain=True)
            program.keep(value, self.numbers[key])
        for node in more:
            program.keep(values[node], self._number("value", node))
        return Head(program, used & given, taken, asked, more, norm)

    # Running it

    def start(
        self,
        dealt: tuple[Tensor, Tensor],
        known: dict[fx.Node, Tensor],
        missing: set[fx.Node],
        *,
        is_kept: bool = True,
    ) -> tuple[Remembered, dict[fx.Node, Tensor]]:
        """Compute what a mini-batch remembers, and what later sweeps would like.

        The memory is used again for the next mini-batch, unless it is kept.
        """
        inputs, labels = dealt
        if self.before is not None:
            known = {n: value for n, value in known.items() if n is not self.plan.input}
        head = self.head(frozenset(known), frozenset(missing))
        head.program.refresh(self.plan.module)
        blocks = -(-len(labels) // self.lanes)
        values: list[Tensor | None] = [None] * len(self.numbers)
        given = {self.network.nodes[0]: inputs, **known}
        for node in {*head.given, *(node for _, node in head.taken)}:
            given[node] = to_blocks(given[node], self.lanes)
        for node in head.given:
            values[self.numbers["value", node]] = given[node]
        for key in head.taken:
            values[self.numbers[key]] = given[key[1]]
        new = [*head.asked, *(("value", node) for node in head.more)]
        for key in new:
            values[self.numbers[key]] = self._memory(key, blocks, is_kept)
        state = Remembered(labels, values)
        head.program.run(state.pointers, Rows(0, []))
        if head.norm >= 0:
            affine = values[self.numbers["affine", self.plan.input]]
            own = head.program.bound.affines[head.norm][: affine.shape[1]]
            affine.copy_(own[:, None])
        own = [key for key in self.numbers if key[0] == "fixed" and key[1] in missing]
        later = [*own, *(("value", node) for node in head.more)]
        return state, {key[1]: values[self.numbers[key]] for key in later}

    def _memory(self, key: tuple[str, fx.Node], blocks: int, is_kept: bool) -> Tensor:
        if (key, blocks) in self.memory:
            return self.memory[key, blocks]
        size = math.prod(self._shape_of(*key))
        memory = torch.empty(blocks, size, self.lanes, dtype=self.dtype)
        if not is_kept:
            self.memory[key, blocks] = memory
        return memory

    def judge(
        self, now: Remembered, rows: Rows, loss: Loss, moved: Rows | None
    ) -> Tensor:
        """Return the loss sums of the rows from `rows.first_row` on.

        moved: how another channel is mended before.
        """
        before = None if moved is None else (self.mend, moved)
        if self.outputs is None:
            count = len(rows.changes) + 1 - rows.first_row
            sums = torch.empty(count, dtype=torch.float64)
            self.judging.run(now.pointers, rows, sums, before)
            return sums
        self.judging.run(now.pointers, rows, None, before)
        whole = self.judging.rows_of(self.outputs, len(rows.changes) + 1)
        shape, batch = self.network.shapes[self.network.output], len(now.labels)
        outputs = [from_blocks(row, shape, batch) for row in whole[rows.first_row :]]
        return loss_sums(loss, torch.cat(outputs), now.labels)


@dataclass(frozen=True)
class Before:
    """A light layer that computes the swept layer's input from the images.

    source: its step; a norm, if there is one, and ReLU come after it.
    """

    source: fx.Node
    taps: FoldedConv
    is_normed: bool
    floor: float

    @classmethod
    def find(cls, plan: Plan) -> Before | None:
        """Return the layer before that of a plan, if it is light enough."""
        network, node = plan.network, plan.input
        if plan.is_bias or plan.conv is None:
            return None
        floor, is_normed = -math.inf, False
        while (kind := network.kind(node)) in ("identity", "elementwise"):
            if kind == "elementwise":
                if not _is_relu(network, node):
                    return None
                floor = 0.0
            (node,) = network.used_by(node)
        if network.kind(node) == "norm":
            is_normed, (node,) = True, network.used_by(node)
        taps = network.conv_of(node) if network.kind(node) == "conv" else None
        is_first = taps is not None and network.used_by(node) == network.nodes[:1]
        if not is_first or taps.groups > 1 or not _is_light(taps):
            return None
        return cls(node, taps, is_normed, floor)


def _is_light(taps: FoldedConv | None) -> bool:
    """Tell whether a channel's weights are few."""
    return taps is not None and taps.unpooled()[0].numel() <= LIGHT


class Head(NamedTuple):
    """A program that starts a mini-batch, and which values it takes and gives."""

    program: Program
    given: set[fx.Node]
    taken: list[tuple[str, fx.Node]]  # that are given as they are remembered
    asked: list[tuple[str, fx.Node]]
    more: set[fx.Node]
    norm: int  # whose scales and shifts are remembered, or -1


def _are_classes(labels: Tensor, shape: tuple[int, ...]) -> bool:
    """Tell whether labels are numbers of logits, as program.cpp takes them."""
    if labels.dim() != 1 or labels.dtype != torch.int64 or len(shape) != 1:
        return False
    return int(labels.min()) >= 0 and int(labels.max()) < shape[0]


def write(
    program: Program, network: Network, node: fx.Node, values: dict[fx.Node, Value]
) -> Value:
    """Write one step of a network down, for all channels.

    Raises:
        Unwritten: program.cpp has no such operation.
    """
    kind, module = network.kind(node), network.module(node)
    given = [values[used] for used in network.used_by(node)]
    shape = network.shapes[node]
    if not given:
        raise Unwritten(f"{node.target!r}, which reads no value")
    if kind in ("conv", "linear"):
        if kind == "linear" and len(shape) != 1:
            raise Unwritten("a linear layer of sequences")
        image = (1, 1) if kind == "linear" else shape[1:]
        return program.conv(given[0], network.conv_of(node), image)
    if kind == "norm":
        return program.normalize(given[0], module, flags=TAIL)
    if kind == "pool" and len(shape) == 3:
        return program.pool(given[0], module, TAIL)
    if kind == "flatten":
        value = program.plain(given[0], TAIL)
        return replace(value, shape=(math.prod(value.shape), 1, 1))
    if kind == "add" and len({value.shape for value in given}) == 1:
        return program.add(given[0], given[-1], TAIL)
    return unchanged(network, node, given[0])


def unchanged(network: Network, node: fx.Node, value: Value) -> Value:
    """Return what a step gives that needs no pass: identity, ReLU.

    Raises:
        Unwritten: it needs one, and program.cpp has none for it.
    """
    kind = network.kind(node)
    if kind == "identity":
        return value
    if kind == "elementwise" and _is_relu(network, node):
        return replace(value, floor=0.0)
    name = getattr(node.target, "__name__", node.target)
    raise Unwritten(f"{network.module(node) or name}")


def _is_relu(network: Network, node: fx.Node) -> bool:
    module = network.module(node)
    if module is not None:
        return type(module) is nn.ReLU
    return node.target in (torch.relu, F.relu, "relu")
