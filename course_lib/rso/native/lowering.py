"""A sweep's plan, lowered to programs for `program.cpp`."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, fx

from course_lib.rso.eager.kernels import FoldedConv, Pair
from course_lib.rso.eager.plan import Plan
from course_lib.rso.eager.prefixes import from_blocks, to_blocks
from course_lib.rso.losses import Loss, cross_entropy, loss_sums
from course_lib.rso.minibatches import Minibatches
from course_lib.rso.native import operations
from course_lib.rso.native.geometry import Shape, UnsupportedOperation, arranged
from course_lib.rso.native.program import Program, Rows, Value
from course_lib.rso.native.structures import Op, State


@dataclass
class StoredValues:
    """A mini-batch's values, which include the first `seen` moves."""

    labels: Tensor
    values: list[Tensor | None]  # (blocks, numbers, lanes)
    seen: int = 0

    def __post_init__(self) -> None:
        known = [value for value in self.values if value is not None]
        self._labels = known[0]  # never read
        if self.labels.dim() == 1 and not self.labels.is_floating_point():
            self._labels = to_blocks(self.labels.int()[:, None], known[0].shape[2])
        pointers = [0 if value is None else value.data_ptr() for value in self.values]
        self._values = (ctypes.c_void_p * len(pointers))(*pointers)
        self.pointers = State(
            ctypes.addressof(self._values), self._labels.data_ptr(), len(self.labels)
        )


LIGHT = 32  # weights of a channel: applied again sooner than results are fetched


class LoweredPlan:
    """A plan as programs: to start a mini-batch, to judge rows, to update its values.

    Each stored value has a number, by (role, node): the input of the swept layer, its
    planes, the bases of what follows, what else is read, and values that were given or
    that later sweeps want. Planes of a light layer are computed again; so is its input,
    if a light layer computes that from the images: these and its norm's scales and
    shifts are stored instead.

    Raises:
        UnsupportedOperation: program.cpp has no such operation.
        NoCompiler: it can't be compiled here.
    """

    def __init__(self, plan: Plan, loss: Loss | None, minibatches: Minibatches) -> None:
        inputs = minibatches.inputs
        if inputs.device.type != "cpu":
            raise UnsupportedOperation("a device of another kind than the CPU")
        self.plan, self.network, self.dtype = plan, plan.network, inputs.dtype
        self.is_light = not plan.is_bias and _is_light(plan.conv)
        self.before = LayerBefore.find(plan)
        self.numbers: dict[tuple[str, fx.Node], int] = {}
        self.heads: dict[object, Head] = {}
        self.judging = Program(self.dtype, self.network.reduce)
        self.lanes = self.judging.lanes
        output = self._build_judging()
        self.outputs: Value | None = None
        shape = self.network.shapes[self.network.output]
        if loss is cross_entropy and _are_classes(minibatches.labels, shape):
            operations.loss(self.judging, output)
        else:
            self.outputs = self.judging.store(output)
        self.update = Program(self.dtype, self.network.reduce)
        self._add_spread(self.update, self._add_channel(self.update), only_state=True)
        self.head(frozenset(), frozenset())
        self.memory: dict[object, Tensor] = {}

    # Building the programs

    def _shape(self, node: fx.Node) -> Shape:
        shape = self.network.shapes[node]
        if shape is None or len(shape) not in (1, 3):
            raise UnsupportedOperation(f"a value of shape {shape}")
        return shape if len(shape) == 3 else (*shape, 1, 1)

    def _shape_of(self, role: str, node: fx.Node) -> Shape:
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

    def _add_channel(self, program: Program) -> dict[fx.Node, Value]:
        """Add the operations that stay within the changed channel."""
        plan, network = self.plan, self.network
        inputs = recompute = None
        if self.before is not None:
            inputs, recompute = self._add_recompute(program)
        elif not plan.is_bias:
            role = "inputs" if plan.conv is not None else "standardized"
            inputs = self._state(program, role, plan.input)
        planes, taps = None, None if plan.is_bias else plan.conv
        if not self.is_light:
            planes = self._state(program, "planes", plan.source)
        moved = operations.perturb(
            program, planes, inputs, taps, plan.channels, self._image, recompute
        )
        found = {plan.source: moved}
        for node, source, _ in plan.channelwise:
            value, module = found[source], network.module(node)
            kind = network.kind(node)
            if kind == "norm":
                value = operations.normalize(program, value, module, one_channel=True)
            elif kind == "pool":
                value = operations.pool(program, value, module)
            elif kind == "add":
                (other,) = (n for n in node.all_input_nodes if n is not source)
                other = self._state(program, "fixed", other)
                other = replace(other, shape=value.shape, one_channel=True)
                value = program.add_op("add", value, value.shape, other=other)
            elif kind != "flatten":
                value = operations.unchanged(network, node, value)
            found[node] = value
        for value in found.values():  # each row's change is from row 0
            program.memories[value.slot].is_whole = True
        return found

    def _add_recompute(self, program: Program) -> tuple[Value, Op]:
        # how a channel of the swept layer's input is computed again
        before, own, affine = self.before, self.plan.input, None
        images = self._state(program, "images", self.network.nodes[0])
        if before.is_normed:
            affine = self._state(program, "affine", own)
        layers = before.taps, self.plan.conv
        sizes = self._shape(own)[1:], self._image
        return images, operations.recompute_input(
            program, images, affine, before.floor, layers, sizes
        )

    def _add_spread(
        self, program: Program, found: dict[fx.Node, Value], *, only_state: bool
    ) -> dict[fx.Node, Value]:
        """Add the steps that spread the channel's change to all channels.

        They update the state's values; those of candidates lie beside them, unless
        `only_state`.
        """
        values, plan, channels = {}, self.plan, self.plan.channels
        if not self.is_light:
            planes = self._number("planes", plan.source)
            operations.fill(
                program, found[plan.source], channels, planes, only_state=True
            )
        for node, source in self.plan.source_of.items():
            value, state = found[source], self._number("base", node)
            if node in self.plan.dense:
                taps, image = self.network.conv_of(node), self._shape(node)[1:]
                values[node] = operations.spread(
                    program, value, taps, channels, image, state, only_state=only_state
                )
            else:
                value = operations.fill(
                    program, value, channels, state, only_state=only_state
                )
                values[node] = replace(value, shape=self._shape(node))
        return values

    def _build_judging(self) -> Value:
        program, network = self.judging, self.network
        found = self._add_channel(program)
        values = self._add_spread(program, found, only_state=False)
        for node in self.plan.fixed:
            values[node] = self._state(program, "fixed", node)
        for node in self.plan.tail.order:
            if node not in values:
                values[node] = operations.add_step(program, network, node, values)
        return values[network.output]

    def head(self, known: frozenset[fx.Node], missing: frozenset[fx.Node]) -> Head:
        """Return the program that computes a mini-batch's values from the known ones.

        Values that are `missing` are computed too where they lie on the way.
        """
        if (known, missing) not in self.heads:
            self.heads[known, missing] = self._build_head(known, missing)
        return self.heads[known, missing]

    def _build_head(self, known: frozenset, missing: frozenset) -> Head:
        network, plan = self.network, self.plan
        program = Program(self.dtype, network.reduce)
        given = {network.nodes[0], *known}
        taken = [key for key in self.numbers if key[0] == "fixed" and key[1] in given]
        asked = [key for key in self.numbers if key[0] != "value" and key not in taken]
        nodes = {node for _, node in asked}
        more = missing.intersection(network.needed(nodes, given, set()))
        steps = network.needed(nodes | more, given, set())
        used = {n for step in steps for n in network.used_by(step)} | nodes
        values = {n: self._state(program, "value", n) for n in used & given}
        for node in steps:
            values[node] = operations.add_step(program, network, node, values)
        norm = -1
        for key in asked:
            role, node = key
            value = values[node]
            if role == "affine":
                norm = value.norm
                continue
            if role == "inputs":
                value = operations.arrange(program, value, plan.conv, self._image)
            if role == "images":
                image = self._shape(self.before.source)[1:]
                value = operations.arrange(program, value, self.before.taps, image)
            if role == "standardized":
                value = operations.normalize(program, value, plan.module, is_plain=True)
            program.store(value, self.numbers[key])
        for node in more:
            program.store(values[node], self._number("value", node))
        inputs = [*taken, *(("value", node) for node in used & given)]
        outputs = [*asked, *(("value", node) for node in more)]
        return Head(program, inputs, outputs, norm)

    # Running them

    def start(
        self,
        dealt: tuple[Tensor, Tensor],
        known: dict[fx.Node, Tensor],
        missing: set[fx.Node],
        *,
        reuse_memory: bool = False,
    ) -> tuple[StoredValues, dict[fx.Node, Tensor]]:
        """Compute a mini-batch's stored values, and those that later sweeps want.

        reuse_memory: for the next mini-batch.
        """
        inputs, labels = dealt
        if self.before is not None:
            known = {n: value for n, value in known.items() if n is not self.plan.input}
        head = self.head(frozenset(known), frozenset(missing))
        head.program.refresh(self.plan.module)
        blocks = -(-len(labels) // self.lanes)
        values: list[Tensor | None] = [None] * len(self.numbers)
        given = {self.network.nodes[0]: inputs, **known}
        for node in {node for _, node in head.inputs}:
            given[node] = to_blocks(given[node], self.lanes)
        for key in head.inputs:
            values[self.numbers[key]] = given[key[1]]
        for key in head.outputs:
            values[self.numbers[key]] = self._memory(key, blocks, reuse_memory)
        state = StoredValues(labels, values)
        head.program.run(state.pointers, Rows(0, []))
        if head.norm >= 0:
            affine = values[self.numbers["affine", self.plan.input]]
            own = head.program.buffers.affines[head.norm][: affine.shape[1]]
            affine.copy_(own[:, None])
        return state, {
            node: values[self.numbers[role, node]]
            for role, node in head.outputs
            if role in ("fixed", "value") and node in missing
        }

    def _memory(self, key: tuple[str, fx.Node], blocks: int, reuse: bool) -> Tensor:
        if (key, blocks) in self.memory:
            return self.memory[key, blocks]
        size = math.prod(self._shape_of(*key))
        memory = torch.empty(blocks, size, self.lanes, dtype=self.dtype)
        if reuse:
            self.memory[key, blocks] = memory
        return memory

    def judge(
        self, now: StoredValues, rows: Rows, loss: Loss, moved: Rows | None
    ) -> Tensor:
        """Return the loss sums of the rows from `rows.first_row` on.

        moved: changes of another channel that are stored before.
        """
        before = None if moved is None else (self.update, moved)
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
class LayerBefore:
    """A light layer that computes the swept layer's input from the images.

    source: its step; an optional norm and ReLU follow it.
    """

    source: fx.Node
    taps: FoldedConv
    is_normed: bool
    floor: float

    @classmethod
    def find(cls, plan: Plan) -> LayerBefore | None:
        """Return the layer before that of a plan, if it is light enough."""
        network, node = plan.network, plan.input
        if plan.is_bias or plan.conv is None:
            return None
        floor, is_normed = -math.inf, False
        while (kind := network.kind(node)) in ("identity", "elementwise"):
            if kind == "elementwise":
                if not operations.is_relu(network, node):
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
    """A program that starts a mini-batch, and the keys of its inputs and outputs."""

    program: Program
    inputs: list[tuple[str, fx.Node]]
    outputs: list[tuple[str, fx.Node]]
    norm: int  # whose scales and shifts are stored, or -1


def _are_classes(labels: Tensor, shape: tuple[int, ...]) -> bool:
    """Tell whether labels are indices of logits, as program.cpp reads them."""
    if labels.dim() != 1 or labels.dtype != torch.int64 or len(shape) != 1:
        return False
    return int(labels.min()) >= 0 and int(labels.max()) < shape[0]
