"""Inputs of the layers that a cycle has yet to sweep, from its first passes.

Sweeping a layer changes nothing before it. So with the output first, one pass over a
mini-batch holds for all sweeps of the cycle: each finds its layer's input here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, fx, nn

from course_lib.rso.eager.network import Network


def to_blocks(value: Tensor, lanes: int) -> Tensor:
    """Return `(batch, ...)` as `(blocks, numbers, lanes)`, zeros at the end.

    Blocks are returned unchanged: no layer's input has three axes.
    """
    if value.dim() == 3:
        return value
    flat = F.pad(value.flatten(1), (0, 0, 0, -len(value) % lanes))
    return flat.view(-1, lanes, flat.shape[1]).transpose(1, 2).contiguous()


def from_blocks(value: Tensor, shape: Sequence[int] | None, batch: int) -> Tensor:
    """Return `(blocks, numbers, lanes)` as `(batch, *shape)`; all else unchanged.

    Sequences, `(batch, length, features)`, are never in blocks.
    """
    if shape is None or value.dim() == 1 + len(shape):
        return value
    return value.transpose(1, 2).flatten(0, 1)[:batch].unflatten(1, shape)


RECOMPUTE_COST = 32  # multiply-adds a number, up to which fetching it takes longer


class Prefixes:
    """The inputs of layers that are swept later, for each mini-batch.

    Values that are recomputed as fast as they are fetched are not stored: the output of
    the first convolution is often the largest value of all. Without parameters nothing
    is stored.

    Args:
        network: whose layers.
        parameters: in the order of the sweeps.
        room: numbers that may be stored for each sample; the layers that are swept
            first have precedence.
    """

    def __init__(
        self,
        network: Network | None = None,
        parameters: Sequence[nn.Parameter] = (),
        room: float = math.inf,
    ) -> None:
        self.last: dict[fx.Node, int] = {}  # node -> the last sweep that reads it
        self.sweep = 0
        self.values: dict[int, dict[fx.Node, Tensor]] = {}
        changed: set[fx.Node] = set()
        for number, parameter in enumerate(parameters):
            readers = network.readers(parameter)
            inputs = readers[0].all_input_nodes if len(readers) == 1 else []
            for node in inputs:
                size = math.prod(network.shapes[node] or (math.inf,))
                is_recomputed = multiply_adds(network, node) <= RECOMPUTE_COST * size
                is_new = node not in self.last
                if number and node not in changed and not is_recomputed:
                    if is_new and size > room:
                        continue
                    room -= size if is_new else 0
                    self.last[node] = number
            changed.update(network.after(readers))

    def begin(self, sweep: int) -> None:
        """Delete values that no sweep from this one on reads."""
        self.sweep = sweep
        for values in self.values.values():
            for node in [n for n in values if self.last[n] < sweep]:
                del values[node]

    def known(self, number: int) -> dict[fx.Node, Tensor]:
        """Return the values that are stored for a mini-batch."""
        return dict(self.values.get(number, {}))

    def missing(self, number: int) -> set[fx.Node]:
        """Return the nodes that later sweeps read and that are not stored."""
        wanted = {node for node, last in self.last.items() if last > self.sweep}
        return wanted - self.values.get(number, {}).keys()

    def put(self, number: int, values: dict[fx.Node, Tensor]) -> None:
        """Store values of a mini-batch; their memory must not be written to later."""
        if values:
            self.values.setdefault(number, {}).update(values)


def multiply_adds(network: Network, node: fx.Node) -> int:
    """Return the multiply-adds of all layers between the input and a value."""
    count = 0
    for step in network.needed({node}, {network.nodes[0]}, set()):
        conv, shape = network.conv_of(step), network.shapes[step]
        if conv is not None and shape is not None:
            count += math.prod(shape) * conv.unpooled()[0].numel()
    return count
