"""The paper's loop, and the authors' faster form of it: two of the three engines.

A sweep visits one parameter's weights. `losses(chosen, number)` judges the proposals
`chosen` on mini-batch `number`; it returns the sums of the loss, in float64, with all
of them kept, then with each at w + dw and at w - dw.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, fx, nn

from course_lib.rso.eager.network import Network
from course_lib.rso.eager.prefixes import Prefixes
from course_lib.rso.losses import Loss, loss_sum
from course_lib.rso.minibatches import Minibatches
from course_lib.rso.proposals import Target

Change = float | Tensor  # of a weight


@dataclass
class Task:
    """What each engine is given for a sweep.

    values: `(weights, 3)`: what each weight may become: kept (decayed), w + dw, w - dw.
    """

    model: nn.Module
    target: Target
    values: Tensor
    minibatches: Minibatches
    loss: Loss
    network: Network | None = None
    prefixes: Prefixes = field(default_factory=Prefixes)  # of all sweeps of the cycle
    compiled: bool = True  # where it can be


class Sweep(Protocol):
    """What an engine makes of a task."""

    def losses(self, chosen: Sequence[int], number: int) -> Tensor:
        """Judge the chosen proposals, which belong to one channel; see this module."""

    def joint(self, chosen: Sequence[int], winners: Sequence[int]) -> Tensor:
        """Judge the winners of the last call together, on its mini-batch."""

    def record_decision(self, weight: int, winner: int | Tensor) -> None:
        """Take note of what a weight has become: `task.values[weight, winner]`."""


def candidate_changes(
    steps: Sequence[Sequence[Change]], chosen: Sequence[int], *, decays: bool
) -> list[list[tuple[int, Change]]]:
    """Return the changes of weights in each row that `Sweep.losses` judges.

    Where weights decay, the first row is that of all kept; else it has no changes and
    is left out.

    steps: by how much each weight moves: kept, w + dw, w - dw.
    """
    kept = [(weight, steps[weight][0]) for weight in chosen]
    rows = [kept] if decays else []
    for i, weight in enumerate(chosen):
        others = kept[:i] + kept[i + 1 :] if decays else []
        rows += [[*others, (weight, steps[weight][k])] for k in (1, 2)]
    return rows


class Reference:
    """The paper's loop: a full forward pass for each candidate."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.flat = task.target.values

    def losses(self, chosen: Sequence[int], number: int) -> Tensor:
        """Judge the chosen proposals; the weights are restored."""
        self.judge = judge = self._judge(number)
        with _restored(self.flat, chosen) as rows:
            kept, *moved = self.task.values[rows].unbind(1)
            self.flat[rows] = kept
            sums = [judge()]
            for i, weight in enumerate(chosen):
                for value in moved:
                    self.flat[weight] = value[i]
                    sums.append(judge())
                self.flat[weight] = kept[i]
        return torch.stack(sums)

    def joint(self, chosen: Sequence[int], winners: Sequence[int]) -> Tensor:
        """Judge the winners of the last call together, on its mini-batch."""
        with _restored(self.flat, chosen):
            for weight, winner in zip(chosen, winners, strict=True):
                self.flat[weight] = self.task.values[weight, winner]
            return self.judge()

    def record_decision(self, weight: int, winner: int | Tensor) -> None:
        """Do nothing: nothing is stored that depends on the weight."""

    def _judge(self, number: int) -> Callable[[], Tensor]:
        task = self.task
        inputs, labels = task.minibatches.take(number)
        return lambda: loss_sum(  # in-place layers would change the inputs
            task.loss, task.model(inputs.clone()), labels
        )


class Cached(Reference):
    """The authors' scheme: what lies before the parameter is computed once a sweep.

    Then each candidate runs from that layer to the end. With fresh mini-batches the
    part before it runs once for each proposal.
    """

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        parts = _cut(task.network, task.target.parameter)
        self.prefix, self.suffix, self.frontier = parts
        self.known: dict[int, tuple[dict[fx.Node, Tensor], Tensor]] = {}

    @staticmethod
    def numbers_per_sample(network: Network, parameter: nn.Parameter) -> int:
        """Return how many numbers a mini-batch remembers for each sample."""
        shapes = (network.shapes[n] for n in _cut(network, parameter)[2])
        return sum(math.prod(shape) for shape in shapes if shape is not None)

    def _judge(self, number: int) -> Callable[[], Tensor]:
        return functools.partial(self._finish, *self._before(number))

    def _before(self, number: int) -> tuple[dict[fx.Node, Tensor], Tensor]:
        if number in self.known:
            return self.known[number]
        inputs, labels = self.task.minibatches.take(number)
        env = {self.prefix[0]: inputs}
        for node in self.prefix[1:]:
            env[node] = self.task.network.call(node, env)
        found = {n: env[n] for n in env if n in self.frontier}, labels
        if len(self.task.minibatches):
            self.known[number] = found
        return found

    def _finish(self, fixed: dict[fx.Node, Tensor], labels: Tensor) -> Tensor:
        env, network = dict(fixed), self.task.network
        for node in self.suffix:
            env[node] = network.call(node, env)
        return loss_sum(self.task.loss, env[network.output], labels)


class Referee(Cached):
    """Judges single candidates again, where another engine's rounding might decide."""

    def loss(self, weight: int, number: int, candidate: int) -> float:
        """Return the loss of `task.values[weight, candidate]` on a mini-batch."""
        judge = self._judge(number)
        with _restored(self.flat, [weight]):
            self.flat[weight] = self.task.values[weight, candidate]
            return judge().item()


def _cut(
    network: Network, parameter: nn.Parameter
) -> tuple[list[fx.Node], list[fx.Node], set[fx.Node]]:
    """Return (nodes before a parameter, nodes from it on, what crosses the cut)."""
    suffix = network.after(network.readers(parameter))
    inside = set(suffix)
    prefix = [n for n in network.nodes if n not in inside]
    used = {n for node in suffix for n in node.all_input_nodes}
    return prefix, suffix, (used | {network.output}) - inside


@contextlib.contextmanager
def _restored(flat: Tensor, chosen: Sequence[int]) -> Iterator[Tensor]:
    """Yield the index of the chosen entries, which are restored at the end.

    It is a tensor of that device, for a list would be copied there each time.
    """
    rows = torch.tensor(chosen, device=flat.device)
    old = flat[rows]
    try:
        yield rows
    finally:
        flat[rows] = old
