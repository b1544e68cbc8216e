"""Which engine sweeps which parameter."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from course_lib.compiler import NoCompiler
from course_lib.rso import memory
from course_lib.rso.eager.incremental import Incremental
from course_lib.rso.eager.network import Network
from course_lib.rso.eager.plan import Plan, Unsuitable
from course_lib.rso.eager.sweeps import Cached, Reference, Task
from course_lib.rso.minibatches import Minibatches
from course_lib.rso.native.lowering import Written
from course_lib.rso.native.program import Unwritten
from course_lib.rso.native.sweep import Compiled
from course_lib.rso.proposals import Target


def incremental(task: Task) -> Compiled | Incremental:
    """Return the fast engine's sweep, in compiled code where that can be."""
    if task.compiled:
        with contextlib.suppress(Unwritten, NoCompiler):
            return Compiled(task)
    return Incremental(task)


COARSE = (torch.bfloat16, torch.float16)  # judged by the model's own operations
SWEEPS = {"reference": Reference, "cached": Cached, "incremental": incremental}


@dataclass(frozen=True)
class Choice:
    """Which engine sweeps a parameter, in compiled code or not, and why not faster."""

    engine: str
    reason: str = ""
    numbers: int = 0  # that it remembers for each sample
    obstacle: str = ""  # to running in compiled code

    @property
    def is_compiled(self) -> bool:
        """Tell whether the sweep runs in compiled code."""
        return self.engine == "incremental" and not self.obstacle


@dataclass(frozen=True)
class Chooser:
    """Choose by what a model allows and what the memory holds.

    network: None where the model can't be traced; `reason` says why.
    minibatches: those that are dealt to this process.
    samples: how many a sweep remembers in this process.
    limit: bytes that it may take; None where nobody can tell.
    obstacle: why nothing is compiled; empty where it can be.
    """

    network: Network | None
    reason: str
    minibatches: Minibatches
    samples: int
    limit: int | None
    obstacle: str = ""

    def choose(self, asked: str, targets: Sequence[Target]) -> dict[str, Choice]:
        """Return each parameter's engine.

        Raises:
            ValueError: the one that was asked for can't take a parameter, or needs more
                memory than there is.
        """
        choices = {target.name: self._choice(asked, target) for target in targets}
        in_vain = [
            f"{name!r}: {choice.reason}"
            for name, choice in choices.items()
            if asked not in ("auto", choice.engine)
        ]
        if in_vain:
            raise ValueError(
                f"RSO: engine={asked!r} can't sweep {'; '.join(in_vain)}. Take "
                "engine='auto', which uses a slower engine there."
            )
        return choices

    def _choice(self, asked: str, target: Target) -> Choice:
        if asked == "reference" or self.network is None:
            return Choice("reference", "" if asked == "reference" else self.reason)
        why = self._too_coarse(target)
        obstacle = self.obstacle if why else ""
        if asked != "cached" and not why:
            try:
                plan = Plan(self.network, target.parameter)
                numbers = plan.numbers_per_sample()
                why = self._lacks_memory(numbers, target)
                if not why:
                    return Choice("incremental", "", numbers, self._obstacle(plan))
            except Unsuitable as error:
                why = str(error)
        numbers = Cached.numbers_per_sample(self.network, target.parameter)
        lack = self._lacks_memory(numbers, target)
        return Choice("reference", lack) if lack else Choice("cached", why, 0, obstacle)

    def _too_coarse(self, target: Target) -> str:
        """Say why sums in another order than the model's won't do."""
        dtype = target.parameter.dtype
        return (
            f"{dtype} rounds so much that other orders of adding decide otherwise"
            * (dtype in COARSE)
        )

    def _obstacle(self, plan: Plan) -> str:
        """Say why a plan can't be compiled; nothing where it can."""
        try:
            if not self.obstacle:
                Written(plan, None, self.minibatches)
        except (Unwritten, NoCompiler) as error:
            return str(error)
        return self.obstacle

    def room(self, choices: dict[str, Choice], item: int) -> float:
        """Return how many numbers of `item` bytes a sample may take beside those."""
        if self.limit is None:
            return math.inf
        numbers = max(choice.numbers for choice in choices.values())
        return self.limit / self.samples / item - numbers

    def _lacks_memory(self, numbers: int, target: Target) -> str:
        needed = numbers * self.samples * target.values.element_size()
        if self.limit is None or needed <= self.limit:
            return ""
        return (
            f"it would remember {memory.shown(needed)}, and "
            f"{memory.shown(self.limit)} are free; take fewer samples, or "
            "minibatches='fresh'"
        )


def find_cross_sample_op(
    model: nn.Module, network: Network | None, inputs: Tensor
) -> str | None:
    """Name an operation whose output for a sample depends on the others, or None.

    Batch norm as the engines know it is passed over: they add up its sums.
    """
    first = slice(len(inputs) // 2)
    if network is None:
        is_same = _agree(model(inputs[first]), model(inputs)[first])
        return None if is_same else type(model).__name__
    whole, part = {network.nodes[0]: inputs}, {network.nodes[0]: inputs[first]}
    for node in network.nodes[1:]:
        whole[node] = network.call(node, whole)
        if network.kind(node) == "norm":
            part[node] = whole[node][first]
            continue
        part[node] = network.call(node, part)
        is_batch = isinstance(whole[node], Tensor) and whole[node].dim() > 0
        is_batch = is_batch and len(whole[node]) == len(inputs)
        if is_batch and not _agree(part[node], whole[node][first]):
            return str(node.target)
    return None


def _agree(x: Tensor, y: Tensor) -> bool:
    slack = 1e-3 * float(y.double().abs().max()) + 1e-6
    return x.shape == y.shape and torch.allclose(x, y, rtol=1e-3, atol=slack)
