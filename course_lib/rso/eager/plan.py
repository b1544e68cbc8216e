"""How a change of one parameter runs through the network."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from course_lib.rso.eager.dense import Dense
from course_lib.rso.eager.kernels import (
    Channel,
    batch_last,
    normalize_plane,
    of_channel,
    pooling,
    standardize,
)
from course_lib.rso.eager.network import Network
from course_lib.rso.eager.pipeline import Pipeline
from course_lib.rso.eager.prefixes import Prefixes, from_blocks

Step = Callable[[Tensor, Channel, "State"], Tensor]


class Unsuitable(Exception):
    """The incremental engine can't sweep the parameter; the message says why."""


@dataclass
class State:
    """The stored values of a mini-batch, current for all weights before `seen`."""

    labels: Tensor
    inputs: Tensor | None  # phases of the swept layer's input; see FoldedConv.phases
    planes: Tensor  # its output, (channels, rows, columns, batch)
    bases: dict[fx.Node, Tensor]  # what follows it, for all channels
    fixed: dict[fx.Node, Tensor]  # other values that the tail reads
    seen: int


class Plan:
    """How a change of one parameter runs through the network.

    `channelwise` are the operations that keep a change within its channel, `dense` the
    convolutions and linear layers that spread it. `source_of` maps the nodes that the
    `tail` starts from to the channelwise value that each of them reads. `heads` compute
    what comes before from the values that are stored for a mini-batch.

    Raises:
        Unsuitable: the parameter is read twice, or by an operation of another kind.
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
        """Decide for each step after the source how it is run for candidates."""
        narrow = {self.source: False}  # value of one channel -> is it flattened
        whole: set[fx.Node] = set()
        for node in steps:
            used = self.network.used_by(node)
            moving = [n for n in used if n in narrow]
            is_alone = len(moving) == 1 and not whole.intersection(used)
            if is_alone and self._keeps(node, narrow[moving[0]]):
                step = self._channel_step(node, moving[0])
                self.channelwise.append((node, moving[0], step))
                is_flat = self.network.kind(node) == "flatten"
                narrow[node] = narrow[moving[0]] or is_flat
                continue
            whole.add(node)
            if is_alone and self._spreads(node, narrow[moving[0]]):
                shapes = self.network.shapes
                sizes = self._size(shapes[moving[0]]), self._size(shapes[node])
                conv = self.network.conv_of(node)
                self.dense[node] = Dense(conv, self.channels, *sizes)
                self.source_of[node] = moving[0]
            else:
                self.source_of.update({n: n for n in moving})
        if self.network.output in narrow:
            self.source_of[self.network.output] = self.network.output

    def _keeps(self, node: fx.Node, is_flat: bool) -> bool:
        kind = self.network.kind(node)
        if kind in ("elementwise", "identity", "flatten"):
            return True
        if is_flat or kind not in ("norm", "pool", "add"):
            return False
        shapes = [self.network.shapes[n] for n in (node, *node.all_input_nodes)]
        if kind == "add":
            return len(node.all_input_nodes) == 2 and len(set(shapes)) == 1
        return (kind == "norm" and len(shapes[0]) != 2) or len(shapes[0]) == 3

    def _spreads(self, node: fx.Node, is_flat: bool) -> bool:
        conv = self.network.conv_of(node)
        if conv is None:
            return False
        if isinstance(conv.module, nn.Linear):
            return len(self.network.shapes[node]) == 1
        return conv.groups == 1 and not is_flat

    def _channel_step(self, node: fx.Node, source: fx.Node) -> Step:
        kind, module = self.network.kind(node), self.network.module(node)
        if kind == "norm":
            is_view = self.network.kind(source) in ("identity", "flatten")
            is_shared = is_view or len(source.users) > 1
            return self._channel_norm(module, is_shared=is_shared)
        if kind == "add":
            (other,) = (n for n in node.all_input_nodes if n is not source)

            def add(planes: Tensor, channel: Channel, state: State) -> Tensor:
                fixed = of_channel(state.fixed[other], 1, channel)
                return planes + fixed.reshape(planes.shape[1:])

            return add
        if kind in ("pool", "elementwise"):  # pools take the samples for channels
            is_pool = kind == "pool"
            run = pooling(module) if is_pool else self.network.activation(node)
            return lambda planes, channel, state: run(planes)
        return lambda planes, channel, state: planes

    def _channel_norm(self, module: nn.Module, *, is_shared: bool) -> Step:
        def norm(planes: Tensor, channel: Channel, state: State) -> Tensor:
            rows = planes.permute(0, 2, 3, 1)
            if is_shared:
                rows = rows.clone(memory_format=torch.contiguous_format)
            reduce = self.network.reduce
            rows = normalize_plane(rows.contiguous(), channel, module, reduce)
            return rows.permute(0, 3, 1, 2)

        return norm

    # Running them

    def start(
        self,
        minibatch: tuple[Tensor, Tensor],
        number: int,
        prefixes: Prefixes,
        seen: int,
    ) -> State:
        """Compute the values to store for a mini-batch, with the weights of now."""
        inputs, labels = minibatch
        known = prefixes.known(number)
        head = self._head(known, prefixes.missing(number))
        shapes = self.network.shapes
        known = {n: from_blocks(v, shapes[n], len(labels)) for n, v in known.items()}
        given = {self.network.nodes[0]: inputs, **known}
        env = head.run(given, labels.shape[0])
        more = head.wanted - self.wanted
        prefixes.put(number, {node: _copied(env[node]) for node in more})
        phases, planes = self._planes(env, len(labels))
        bases = {
            node: _rows(env[node]) if node in self.dense else _copied(env[node])
            for node in self.source_of
        }
        fixed = {node: _copied(env[node]) for node in self.fixed}
        return State(labels, phases, planes, bases, fixed, seen)

    def _head(self, known: dict[fx.Node, Tensor], missing: set[fx.Node]) -> Pipeline:
        """Return the steps from what is known to what is wanted, and to `missing`.

        Nodes of `missing` that are not on this way are left out.
        """
        key = frozenset(known), frozenset(missing)
        if key not in self.heads:
            network, given = self.network, {self.network.nodes[0], *known}
            on_the_way = Pipeline(network, self.wanted, given).order
            wanted = self.wanted | missing.intersection(on_the_way)
            self.heads[key] = Pipeline(network, wanted, given, is_live=True)
        return self.heads[key]

    def _planes(self, env: dict, batch: int) -> tuple[Tensor | None, Tensor]:
        out, inputs = batch_last(env[self.source]), env[self.input]
        planes = out.new_zeros(len(out), *self.padded, batch)
        planes[:, : self.size[0], : self.size[1]] = out
        if self.is_bias:
            return None, planes
        if self.conv is not None:
            return self.conv.phases(inputs, self.size).flatten(2), planes
        standard = batch_last(standardize(inputs, self.module, self.network.reduce))
        return standard.reshape(len(planes), 1, -1), planes

    def put(self, value: Tensor, channel: Channel, planes: Tensor) -> None:
        """Write one channel of a whole value, which may be flattened."""
        if value.dim() != 4:
            value = value.view(len(value), self.channels, -1)
        planes = planes.reshape(len(value), 1, *value.shape[2:])
        if isinstance(channel, int):
            value[:, channel : channel + 1] = planes
        else:
            value.index_copy_(1, channel, planes)

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
        self, planes: Tensor, channel: Channel, state: State
    ) -> dict[fx.Node, Tensor]:
        """Run the channelwise operations on planes of the source.

        planes: `(candidates, rows, columns, batch)`. The values that are returned have
        the shape `(candidates, batch, height, width)`, with the batch innermost in
        memory, for rows of small images would be short. Activations are computed for
        whole planes, padding included: long rows are faster.
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
        """Return how many numbers are stored for each sample of a mini-batch."""
        shapes = self.network.shapes
        count = self.channels * self.padded[0] * self.padded[1]
        if not self.is_bias and self.conv is not None:
            sources = shapes[self.input][0]
            phases = self.conv.stride[0] * self.conv.stride[1]
            count += sources * phases * self.padded[0] * self.padded[1]
        elif not self.is_bias:
            count *= 2
        kept = {*self.source_of, *self.fixed}
        return count + sum(math.prod(shapes[n]) for n in kept if shapes[n] is not None)


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


def _copied(x: Any) -> Any:
    """Return a copy of a tensor, of images in channels-last memory."""
    if not isinstance(x, Tensor):
        return x
    layout = torch.channels_last if x.dim() == 4 else torch.contiguous_format
    return x.clone(memory_format=layout)


def _rows(x: Tensor) -> Tensor:
    """Return a copy as `(pixels, channels)`."""
    rows = x.permute(0, 2, 3, 1) if x.dim() == 4 else x
    return rows.reshape(-1, x.shape[1]).clone()
