"""How a change of one parameter runs through the network."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from course_lib.rso.eager.kernels import (
    FoldedConv,
    batch_last,
    normalize_plane,
    patches,
    pooling,
    standardize,
)
from course_lib.rso.eager.network import Network
from course_lib.rso.eager.pipeline import Piece, Pipeline
from course_lib.rso.eager.prefixes import Prefixes, from_blocks

SMALL = 64  # pixels of an image up to which a convolution is taken as a matrix
Step = Callable[[Tensor, int, "State"], Tensor]


class Unsuitable(Exception):
    """The incremental engine can't sweep the parameter; the message says why."""


@dataclass
class State:
    """What a mini-batch remembers, in step with all weights before `seen`."""

    labels: Tensor
    inputs: Tensor | None  # phases of the swept layer's input; see FoldedConv.phases
    planes: Tensor  # its output, (channels, rows, columns, batch)
    bases: dict[fx.Node, Tensor]  # what follows it, for all channels
    fixed: dict[fx.Node, Tensor]  # what else the rest needs
    seen: int


class Plan:
    """How a change of one parameter runs through the network.

    `channelwise` are the operations that keep a change within its channel; `dense` the
    convolutions and linear layers that spread it; `source_of` names what the `tail`
    starts from, and which channelwise value each of these reads; `heads` are what comes
    before, from what is known of a mini-batch.
    """

    def __init__(self, network: Network, parameter: nn.Parameter) -> None:
        self.network = network
        self.reader = _only_reader(network, parameter)
        self.module = network.module(self.reader)
        self.is_bias = parameter is self.module.bias
        self.channels = len(parameter)
        ends = [n for n, (conv, _) in network.folded.items() if conv is self.reader]
        self.source = ends[0] if ends else self.reader
        self.conv = network.conv_of(self.source)
        self.channelwise: list[tuple[fx.Node, fx.Node, Step]] = []
        self.dense: dict[fx.Node, Dense] = {}
        self.source_of: dict[fx.Node, fx.Node] = {}
        moving = [n for n in network.after([self.reader]) if n in set(network.steps)]
        if network.output not in moving:
            raise Unsuitable("the output does not depend on it")
        self._sort(moving[moving.index(self.source) + 1 :])
        (self.input,) = self.reader.all_input_nodes
        later = [n for n in moving if n is not self.source]
        used = {n for node in later for n in network.used_by(node)}
        self.fixed = used - set(moving)
        self.tail = Pipeline(
            network, [network.output], self.fixed, sources=self.source_of
        )
        self.wanted = {self.input, self.source, *self.source_of, *self.fixed}
        self.heads: dict[object, Pipeline] = {}
        self.pointwise = {
            n for n, _, _ in self.channelwise if network.kind(n) == "elementwise"
        }
        self.size = self._size(network.shapes[self.source])
        self.places, self.padded = [(0, 0)], self.size
        if self.conv is not None and not self.is_bias:
            self.places = self.conv.places(self.size)
            self.padded = self.conv.padded(self.size)

    @staticmethod
    def _size(shape: tuple[int, ...]) -> tuple[int, int]:
        return shape[1:] if len(shape) == 3 else (1, 1)

    # Sorting the operations, once a sweep

    def _sort(self, steps: list[fx.Node]) -> None:
        """Decide for each step after the source how candidates pass it."""
        narrow = {self.source: False}  # what keeps to the channel -> is it flattened
        whole: set[fx.Node] = set()
        for node in steps:
            used = self.network.used_by(node)
            moving = [n for n in used if n in narrow]
            is_alone = len(moving) == 1 and not whole.intersection(used)
            if is_alone and self._keeps(node, narrow[moving[0]]):
                step, is_flat = self._channel_step(node, moving[0])
                self.channelwise.append((node, moving[0], step))
                narrow[node] = narrow[moving[0]] or is_flat
                continue
            whole.add(node)
            if is_alone and self._spreads(node, narrow[moving[0]]):
                shapes = self.network.shapes
                sizes = self._size(shapes[moving[0]]), self._size(shapes[node])
                taps = self.network.conv_of(node)
                self.dense[node] = Dense(taps, self.channels, *sizes)
                self.source_of[node] = moving[0]
            else:
                self.source_of.update({n: n for n in moving})
        if self.network.output in narrow:
            self.source_of[self.network.output] = self.network.output

    def _keeps(self, node: fx.Node, is_flat: bool) -> bool:
        kind = self.network.kind(node)
        if kind in ("elementwise", "identity"):
            return True
        if kind == "flatten":
            return True
        if is_flat or kind not in ("norm", "pool", "add"):
            return False
        shapes = [self.network.shapes[n] for n in (node, *node.all_input_nodes)]
        if kind == "add":
            return len(node.all_input_nodes) == 2 and len(set(shapes)) == 1
        return (kind == "norm" and len(shapes[0]) != 2) or len(shapes[0]) == 3

    def _spreads(self, node: fx.Node, is_flat: bool) -> bool:
        taps = self.network.conv_of(node)
        if taps is None:
            return False
        if isinstance(taps.module, nn.Linear):
            return len(self.network.shapes[node]) == 1
        return taps.groups == 1 and not is_flat

    def _channel_step(self, node: fx.Node, source: fx.Node) -> tuple[Step, bool]:
        kind, module = self.network.kind(node), self.network.module(node)
        if kind == "norm":
            is_view = self.network.kind(source) in ("identity", "flatten")
            is_shared = is_view or len(source.users) > 1

            def norm(planes: Tensor, channel: int, state: State) -> Tensor:
                own = planes.permute(0, 2, 3, 1)
                if is_shared:
                    own = own.clone(memory_format=torch.contiguous_format)
                reduce = self.network.reduce
                own = normalize_plane(own.contiguous(), channel, module, reduce)
                return own.permute(0, 3, 1, 2)

            return norm, False
        if kind == "pool":
            run = pooling(module)  # each sample stands where a channel would
            return (lambda planes, channel, state: run(planes)), False
        if kind == "add":
            (other,) = (n for n in node.all_input_nodes if n is not source)

            def add(planes: Tensor, channel: int, state: State) -> Tensor:
                own = state.fixed[other][:, channel]
                return planes + own.reshape(planes.shape[1:])

            return add, False
        if kind == "elementwise":
            run = self.network.activation(node)
            return (lambda planes, channel, state: run(planes)), False
        return (lambda p, c, s: p), kind == "flatten"

    # Running them

    def start(
        self,
        minibatch: tuple[Tensor, Tensor],
        seen: int,
        number: int = 0,
        prefixes: Prefixes | None = None,
    ) -> State:
        """Compute what a mini-batch remembers, with the weights as they are."""
        inputs, labels = minibatch
        known = prefixes.known(number) if prefixes else {}
        head = self._head(known, prefixes.missing(number) if prefixes else set())
        shapes = self.network.shapes
        known = {n: from_blocks(v, shapes[n], len(labels)) for n, v in known.items()}
        given = {self.network.nodes[0]: inputs, **known}
        env = head.run(given, labels.shape[0])
        if prefixes:
            more = head.wanted - self.wanted
            prefixes.put(number, {node: _own(env[node]) for node in more})
        phases, planes = self._planes(env, len(labels))
        bases = {
            node: _rows(env[node]) if node in self.dense else _own(env[node])
            for node in self.source_of
        }
        fixed = {node: _own(env[node]) for node in self.fixed}
        return State(labels, phases, planes, bases, fixed, seen)

    def _head(self, known: dict[fx.Node, Tensor], missing: set[fx.Node]) -> Pipeline:
        """Return the steps from what is known to what is wanted, and to `missing`.

        Of that only what lies on the way: nothing is computed for it alone.
        """
        key = frozenset(known), frozenset(missing)
        if key not in self.heads:
            network, given = self.network, {self.network.nodes[0], *known}
            on_the_way = Pipeline(network, self.wanted, given).order
            wanted = self.wanted | missing.intersection(on_the_way)
            self.heads[key] = Pipeline(network, wanted, given, is_live=True)
        return self.heads[key]

    def _planes(self, env: dict, batch: int) -> tuple[Tensor | None, Tensor]:
        out, own = batch_last(env[self.source]), env[self.input]
        planes = out.new_zeros(len(out), *self.padded, batch)
        planes[:, : self.size[0], : self.size[1]] = out
        if self.is_bias:
            return None, planes
        if self.conv is not None:
            return self.conv.phases(own, self.size).flatten(2), planes
        standard = batch_last(standardize(own, self.module, self.network.reduce))
        return standard.reshape(len(planes), 1, -1), planes

    def channel_of(self, value: Tensor, channel: int) -> Tensor:
        """Return the part of a whole value, flattened or not, that is one channel's."""
        if value.dim() == 4:
            return value[:, channel]
        return value.view(len(value), self.channels, -1)[:, channel]

    def inputs_of(self, inputs: Tensor, channel: int) -> Tensor:
        """Return the input planes that feed a channel: `(sources, phases, length)`."""
        if self.conv is None:
            return inputs[channel : channel + 1]
        if self.conv.groups == 1:
            return inputs
        width = len(inputs) // self.conv.groups
        group = channel // (self.channels // self.conv.groups)
        return inputs[group * width : (group + 1) * width]

    def run_channel(
        self, planes: Tensor, channel: int, state: State
    ) -> dict[fx.Node, Tensor]:
        """Take planes of the source through what keeps to the channel.

        planes: `(candidates, rows, columns, batch)`; what is returned has the shape
        `(candidates, batch, height, width)`, with the batch innermost in memory, where
        small images would make short rows. Activations are taken of whole planes, with
        what lies beyond the edge: long rows are faster, and nobody looks there.
        """
        rows, columns = self.size
        inside = (slice(None), slice(rows), slice(columns))
        env = {self.source: planes[inside].permute(0, 3, 1, 2)}
        whole = {self.source: planes}
        for node, source, step in self.channelwise:
            if source in whole and node in self.pointwise:
                whole[node] = step(whole[source], channel, state)
                env[node] = whole[node][inside].permute(0, 3, 1, 2)
            else:
                env[node] = step(env[source], channel, state)
        return env

    def numbers_per_sample(self) -> int:
        """Return how many numbers a mini-batch remembers for each sample."""
        shapes = self.network.shapes
        own = self.channels * self.padded[0] * self.padded[1]
        if not self.is_bias and self.conv is not None:
            sources = shapes[self.input][0]
            phases = self.conv.stride[0] * self.conv.stride[1]
            own += sources * phases * self.padded[0] * self.padded[1]
        elif not self.is_bias:
            own *= 2
        kept = {*self.source_of, *self.fixed}
        return own + sum(math.prod(shapes[n]) for n in kept if shapes[n] is not None)


class Dense:
    """A convolution or linear layer whose input changes in one channel.

    A convolution of a small image is a matrix from all its pixels to all outputs: more
    multiply-adds than taps, and no columns to fill, which takes longer.
    """

    def __init__(
        self,
        taps: FoldedConv,
        channels: int,
        image: tuple[int, int],
        size: tuple[int, int],
    ) -> None:
        self.conv, self.size = taps, size
        weight = taps.weight()  # (outputs, inputs, kernel height, kernel width)
        self.is_linear = isinstance(taps.module, nn.Linear)
        self.kernel = weight.shape[2:]
        pixels = math.prod(image)
        entries = channels * pixels * math.prod(size) * len(weight)
        is_small = pixels <= SMALL and entries <= SMALL**4
        self.is_whole = self.is_linear or is_small
        if self.is_whole and not self.is_linear:
            self.matrix = self._unrolled(weight, image)  # (inputs, pixels, all outputs)
        else:
            matrix = weight.reshape(len(weight), channels, -1).permute(1, 2, 0)
            self.matrix = matrix.contiguous()  # (inputs, taps, outputs)

    def _unrolled(self, weight: Tensor, image: tuple[int, int]) -> Tensor:
        """Return what each pixel of an input alone gives at all outputs."""
        outputs, inputs = weight.shape[:2]
        pixels = math.prod(image)
        one = torch.eye(pixels, dtype=weight.dtype, device=weight.device)
        kernels = weight.transpose(0, 1).reshape(-1, 1, *self.kernel)
        taps = self.conv
        given = F.conv2d(
            one.view(pixels, 1, *image),
            kernels,
            stride=taps.stride,
            padding=taps.padding,
            dilation=taps.dilation,
        )
        given = given.view(pixels, inputs, outputs, -1).permute(1, 0, 3, 2)
        return given.reshape(inputs, pixels, -1)

    def add_(
        self, base: Tensor, change: Tensor, channel: int, buffer: Callable
    ) -> None:
        """Mend `base`, `(pixels, outputs)`, by a change `(1, batch, height, width)`."""
        columns = self._columns(self._batch_first(change, buffer), buffer)
        base.view(-1, self.matrix.shape[2]).addmm_(columns[0], self.matrix[channel])

    def source(
        self, base: Tensor, planes: Tensor, first: int, channel: int, buffer: Callable
    ) -> Callable[[Piece, Tensor], None]:
        """Return what fills in candidates' outputs; planes[0] is what made `base`."""
        change = self._batch_first(planes[1:] - planes[:1], buffer)
        base = base.view(-1, self.matrix.shape[2])
        pixels = base.shape[0] // planes.shape[1]  # rows of `base` for each sample
        weights = self.matrix[channel]

        def fill(piece: Piece, out: Tensor) -> None:
            rows = slice(piece.samples.start * pixels, piece.samples.stop * pixels)
            out = out if self.is_linear else out.permute(0, 2, 3, 1)
            out = out.reshape(piece.count, -1, base.shape[1])
            low = piece.candidates.start - (1 - first)  # among the changes
            if low < 0:
                out[0] = base[rows]
                out, low = out[1:], 0
            if out.shape[0]:
                own = change[low : low + out.shape[0], piece.samples]
                columns = self._columns(own, buffer)
                if out.shape[0] == 1:
                    torch.addmm(base[rows], columns[0], weights, out=out[0])
                else:
                    expanded = weights.expand(out.shape[0], -1, -1)
                    torch.baddbmm(base[rows].expand_as(out), columns, expanded, out=out)

        return fill

    def _batch_first(self, change: Tensor, buffer: Callable) -> Tensor:
        """Return a change whose memory has the batch in front, as images need it.

        A matrix of all pixels takes `(candidates, batch, pixels)`, in whatever memory.
        """
        memory = change.permute(0, 2, 3, 1).flatten(1, 2)  # (candidates, pixels, batch)
        if self.is_whole:
            return memory.transpose(1, 2)
        out = buffer("batch first", change.shape, change)
        for own, plane in zip(out.flatten(2), memory, strict=True):
            own.copy_(plane.t())  # a transposed matrix, which torch copies by blocks
        return out

    def _columns(self, change: Tensor, buffer: Callable) -> Tensor:
        """Return `(candidates, rows, taps)`."""
        if self.is_whole:
            return change
        shape = (*self.kernel, *change.shape[:2], *self.size)
        columns = patches(
            change, self.conv, self.kernel, buffer("columns", shape, change)
        )
        return columns.view(self.matrix.shape[1], change.shape[0], -1).permute(1, 2, 0)


def _only_reader(network: Network, parameter: nn.Parameter) -> fx.Node:
    readers = network.readers(parameter)
    if len(readers) != 1:
        raise Unsuitable(f"{len(readers)} operations read it; wanted one")
    (reader,) = readers
    kind, module = network.kind(reader), network.module(reader)
    if kind in ("conv", "linear", "norm") and not _is_own(module, parameter):
        raise Unsuitable(f"it is neither weight nor bias of {reader.target!r}")
    if kind not in ("conv", "linear", "norm"):
        name = type(module).__name__ if module is not None else str(reader.target)
        if type(module) is nn.Conv2d:
            name = f"a Conv2d with {_odd_padding(module)}"
        raise Unsuitable(f"it belongs to {name}, not to a conv, linear or batch norm")
    wanted = (1,) if kind == "linear" else (1, 3)
    if len(network.shapes[reader]) not in wanted:
        raise Unsuitable(f"{reader.target!r} works on sequences")
    return reader


def _odd_padding(conv: nn.Conv2d) -> str:
    """Say what the engines' convolutions don't do; they pad zeros, given in numbers."""
    if conv.padding_mode != "zeros":
        return f"padding_mode={conv.padding_mode!r}"
    if isinstance(conv.padding, str):
        size = tuple(
            (k - 1) * d // 2
            for k, d in zip(conv.kernel_size, conv.dilation, strict=True)
        )
        return f"padding={conv.padding!r} instead of numbers such as {size}"
    return "values that are no batch of samples"


def _is_own(module: nn.Module, parameter: nn.Parameter) -> bool:
    return parameter is module.weight or parameter is module.bias


def _own(x: Any) -> Any:
    """Return a copy of a tensor, of images in channels-last memory."""
    if not isinstance(x, Tensor):
        return x
    is_image = x.dim() == 4
    layout = torch.channels_last if is_image else torch.contiguous_format
    return x.clone(memory_format=layout)


def _rows(x: Tensor) -> Tensor:
    """Return `(pixels, channels)` in memory of its own."""
    rows = x.permute(0, 2, 3, 1) if x.dim() == 4 else x
    return rows.reshape(-1, x.shape[1]).clone()
