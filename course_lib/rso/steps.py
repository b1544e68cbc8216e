"""One proposal after another: judge it, write the winner, say whether to stop."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from course_lib.rso import proposals
from course_lib.rso.eager.on_device import OnDevice
from course_lib.rso.eager.plan import State
from course_lib.rso.eager.prefixes import multiply_adds
from course_lib.rso.eager.sweeps import Cached, Referee, Reference, Sweep, Task
from course_lib.rso.interrupts import StopRequest
from course_lib.rso.minibatches import Minibatches
from course_lib.rso.parallel.processes import Processes
from course_lib.rso.precision import Comparison

CLOSE = 6e-6  # see `rounding`; the tests hold that no engine comes above it
SMALL = 2**20  # multiply-adds of a pass up to which close calls are judged twice
PLAIN = 2  # calls before a recording, in which libraries and buffers are set up
SIGNS = torch.tensor([0, 1, -1], dtype=torch.int8)  # of kept, w + dw, w - dw


class SearchError(RuntimeError):
    """A search can't continue; weights and checkpoint are those before the error."""


@dataclass(frozen=True)
class Rules:
    """What all proposals of a cycle are judged by."""

    minibatches: Minibatches
    processes: Processes
    tolerance: float
    cycle: int  # from 1
    comparison: Comparison = field(default_factory=lambda: Comparison("float32"))


def visit(
    rules: Rules,
    step: HostStep | DeviceStep,
    groups: Sequence[range],
    schedule: Sequence[int],
    first: int,
    request: StopRequest,
    advance: Callable[[int], object],
) -> tuple[int, bool]:
    """Judge groups of weights from weight `first` on, until asked to stop.

    Returns the weight that comes next, and whether any process was asked to stop.
    `schedule` has the number of each group's mini-batch; `advance` is called with the
    size of each group that was judged.
    """
    start = next((i for i, g in enumerate(groups) if g[0] >= first), len(groups))
    rules.minibatches.skip(start)
    is_asked = False
    for group, minibatch in zip(groups[start:], schedule[start:], strict=True):
        is_asked = step(group, minibatch, bool(request))
        first = group.stop
        advance(len(group))
        if is_asked:
            break
    if isinstance(step, DeviceStep) and rules.processes.reduce is not None:
        is_asked = rules.processes.any(bool(request))
    return first, is_asked


class HostStep:
    """Judge on the CPU: the losses are read back, and Python picks the winner."""

    def __init__(self, rules: Rules, task: Task, sweep: Sweep) -> None:
        self.rules, self.sweep, self.target = rules, sweep, task.target
        self.flat = task.target.values
        # One list: thousands of short ones would keep Python's garbage collector busy.
        self.values = task.values.flatten().tolist()
        if self.flat.device.type == "cpu" and self.flat.dtype != torch.bfloat16:
            self.flat = self.flat.numpy()  # writes a number ten times as fast
        self.winners = [0] * len(task.values)
        self.referee = Referee(task) if _needs_referee(rules, task, sweep) else None

    def __call__(self, group: Sequence[int], minibatch: int, asked: bool) -> bool:
        """Judge a group of weights; tell whether any process was asked to stop."""
        rules = self.rules
        samples = rules.minibatches.size(minibatch)
        losses = self._losses(group, minibatch, samples)
        losses, is_asked = rules.processes.judged(losses, asked)
        if not math.isfinite(losses[0]):
            raise SearchError(
                f"RSO: the loss is {losses[0]:.4g} on mini-batch {minibatch}, cycle "
                f"{rules.cycle}, {self.target.name!r}; wanted a finite number. No "
                "weight was changed by it. Look at the loss and the scale of the "
                "inputs."
            )
        if self.referee and len(group) == 1:
            exact = functools.partial(self.referee.loss, group[0], minibatch)
            winners = [certain_winner(losses, samples, rules.tolerance, exact)]
        else:
            winners = self._pick(losses, group, samples)
        for weight, winner in zip(group, winners, strict=True):
            self.flat[weight] = self.values[3 * weight + winner]
            self.winners[weight] = winner
            self.sweep.record_decision(weight, winner)
        return is_asked

    def decisions(self) -> Tensor:
        """Return -1, 0 or 1 for each weight; 0 where it was not visited."""
        return SIGNS[self.winners]

    def _losses(self, group: Sequence[int], minibatch: int, samples: int) -> Tensor:
        rules = self.rules

        def pick_first(sums: Tensor) -> int:  # of the group
            three = rules.processes.total(sums[:3].clone()).tolist()
            return proposals.winner(three, samples, rules.tolerance)

        return rules.comparison.losses(
            lambda: self.sweep.losses(group, minibatch), pick_first
        )

    def _pick(
        self, losses: list[float], group: Sequence[int], samples: int
    ) -> list[int]:
        """Return the winner of each weight, alone or, if that is better, together."""
        pick, tolerance = proposals.winner, self.rules.tolerance
        if len(group) == 1:
            return [pick(losses, samples, tolerance)]
        kept, pairs = losses[0], list(zip(losses[1::2], losses[2::2], strict=True))
        winners = [pick((kept, *pair), samples, tolerance) for pair in pairs]
        alone = {i: pairs[i][w - 1] for i, w in enumerate(winners) if w}
        if len(alone) < 2:
            return winners
        best = min(alone, key=alone.__getitem__)
        joint = self.sweep.joint(group, winners).view(1)
        (joint,), _ = self.rules.processes.judged(joint, False)
        if pick((alone[best], joint), samples, tolerance):
            return winners
        return [winner if i == best else 0 for i, winner in enumerate(winners)]


def certain_winner(
    losses: Sequence[float],
    samples: int,
    tolerance: float,
    exact: Callable[[int], float],
) -> int:
    """Return `proposals.winner` of [kept, w + dw, w - dw], whatever rounding does.

    Two losses are compared again, as `exact` gives them, if one is so near to the bar
    that the other sets that rounding may decide. A candidate that gives exactly the
    loss of the unchanged weight has no effect.
    """
    near, best = rounding(losses[0], samples), 0
    known: dict[int, float] = {}
    for number in (1, 2):
        gap = losses[number] - losses[best] + tolerance * (abs(losses[0]) + samples)
        has_effect = best or losses[number] != losses[0]
        if abs(gap) < near and has_effect:
            known |= {n: exact(n) for n in {0, best, number} - known.keys()}
            bar = known[best] - tolerance * (abs(known[0]) + samples)
            gap = known[number] - bar
        if gap < 0:
            best = number
    return best


def rounding(loss: float, samples: int) -> float:
    """Return by how much engines may differ in a difference of float32 losses.

    Each sample's loss is rounded on its own, so the error of a sum of them grows with
    the root of their number.
    """
    return CLOSE * (abs(loss) + samples) / math.sqrt(samples)


def _needs_referee(rules: Rules, task: Task, sweep: Sweep) -> bool:
    """Tell whether the paper's loop decides where an engine's rounding might.

    In float32, of one process, and where a pass is so small that it costs little.
    """
    is_exact = type(sweep) in (Reference, Cached)  # the model's own operations
    is_single = rules.processes.reduce is None and rules.comparison.name == "float32"
    if is_exact or not is_single or task.values.dtype != torch.float32:
        return False
    each = multiply_adds(task.network, task.network.output)
    return each * task.minibatches.batch_size <= SMALL


class DeviceStep:
    """Judge on a GPU: nothing is read back before `decisions`."""

    def __init__(self, rules: Rules, task: Task, sweep: Sweep) -> None:
        self.rules, self.sweep, self.target = rules, sweep, task.target
        self.flat, self.values = task.target.values, task.values
        device = self.values.device
        self.winners = torch.zeros(len(self.values), dtype=torch.int64, device=device)
        self.is_finite = torch.ones((), dtype=torch.bool, device=device)

    def __call__(self, group: Sequence[int], minibatch: int, asked: bool) -> bool:
        """Judge a weight; tell whether to stop here, if this process is the only one.

        Several would have to wait for each other to agree on that.
        """
        (weight,), rules = group, self.rules
        samples = rules.minibatches.size(minibatch)

        def pick(sums: Tensor) -> Tensor:
            return proposals.winner_on_device(sums, samples, rules.tolerance)

        losses = rules.comparison.losses(
            lambda: rules.processes.total(self.sweep.losses(group, minibatch)), pick
        )
        winner = pick(losses)
        self.is_finite &= losses[0].isfinite()
        self.flat[weight] = self.values[weight].gather(0, winner.view(1))[0]
        self.winners[weight] = winner
        self.sweep.record_decision(weight, winner)
        return asked and rules.processes.reduce is None

    def decisions(self) -> Tensor:
        """Return -1, 0 or 1 for each weight; 0 where it was not visited.

        Raises:
            SearchError: a loss was not finite.
        """
        if not bool(self.is_finite):
            raise SearchError(
                f"RSO: a loss was not finite in cycle {self.rules.cycle}, "
                f"{self.target.name!r}. Look at the loss and the scale of the inputs."
            )
        return SIGNS[self.winners.cpu()]


class Recordings:
    """Record each function at its third call, and repeat the recording from then on.

    To start an operation takes the host some microseconds, often more than the GPU
    needs to do it; a CUDA graph starts all operations of a function at once.

    A function works on the same tensors in each call, sends the device the same
    operations with the same arguments, and never waits for a value. On a CPU it is
    called each time.
    """

    def __init__(self, device: torch.device) -> None:
        self.is_recording = device.type == "cuda"
        self.calls: dict[Hashable, int] = {}
        self.graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}

    def run(self, key: Hashable, function: Callable[[], None]) -> None:
        """Call the function of this key, or repeat it."""
        if key not in self.graphs:
            self.calls[key] = self.calls.get(key, 0) + 1
            if not self.is_recording or self.calls[key] <= PLAIN:
                function()
                return
            self.graphs[key] = self._record(function)  # nothing runs yet
        self.graphs[key].replay()

    def _record(self, function: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """Record a call; all share the memory of what lives only inside of one."""
        first = next(iter(self.graphs.values()), None)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=first.pool() if first else None):
            function()
        return graph


class RecordedStep(DeviceStep):
    """Judge on a GPU that repeats one recorded proposal of each mini-batch."""

    def __init__(self, rules: Rules, task: Task, sweep: OnDevice) -> None:
        super().__init__(rules, task, sweep)
        self.recordings = Recordings(self.values.device)
        self.weight, self.start = self.winners.new_zeros(2, 1)

    def __call__(self, group: Sequence[int], minibatch: int, asked: bool) -> bool:
        """Judge a weight; tell whether to stop here."""
        (weight,) = group
        state, start = self.sweep.prepare(minibatch, weight)
        self.weight.fill_(weight)
        self.start.fill_(start)
        self.recordings.run(minibatch, lambda: self._judge(state, minibatch))
        return asked

    def _judge(self, state: State, minibatch: int) -> None:
        """Judge the weight that the device has the number of, and write the winner."""
        samples, at = self.rules.minibatches.size(minibatch), self.weight
        losses = self.sweep.losses_at(state, at, self.start)
        winner = proposals.winner_on_device(losses, samples, self.rules.tolerance)
        self.is_finite &= losses[0].isfinite()
        values = self.values.index_select(0, at).gather(1, winner.view(1, 1))
        self.flat.index_copy_(0, at, values[0])
        self.winners.index_copy_(0, at, winner.view(1))
        self.sweep.record_winner(at, winner)


def step_of(
    rules: Rules, task: Task, sweep: Sweep, *, at_once: int = 1
) -> HostStep | DeviceStep:
    """Return what judges a sweep's proposals where its weights are."""
    if task.values.device.type == "cpu" or at_once > 1:
        return HostStep(rules, task, sweep)
    is_alone = rules.processes.reduce is None and rules.comparison.name == "float32"
    if is_alone and isinstance(sweep, OnDevice) and sweep.is_repeatable:
        return RecordedStep(rules, task, sweep)
    return DeviceStep(rules, task, sweep)
