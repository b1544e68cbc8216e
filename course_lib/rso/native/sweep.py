"""The incremental sweep in compiled code: the same steps without torch.

`program.cpp` takes a block of samples through all operations between two batch norms,
so no value travels to memory and back in between, and one call judges a proposal.
Operations that it does not have are left to `Incremental`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from torch import Tensor

from course_lib.rso.eager.plan import Plan
from course_lib.rso.eager.sweeps import Task, candidate_changes
from course_lib.rso.native.lowering import LoweredPlan, StoredValues
from course_lib.rso.native.program import Rows

Changes = list[tuple[int, float]]


class Compiled:
    """Sweep one parameter by one-channel updates, in compiled code.

    Raises:
        Unsuitable: the parameter is read twice, or by an operation of another kind.
        UnsupportedOperation: program.cpp has no such operation.
        NoCompiler: it can't be compiled here.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.plan = Plan(task.network, task.target.parameter)
        self.lowered = LoweredPlan(self.plan, task.loss, task.minibatches)
        self.values = task.values.flatten().tolist()  # three of each weight
        self.steps = (task.values - task.target.values[:, None]).tolist()
        self.decays = any(step[0] for step in self.steps)
        self.per_channel = len(self.steps) // self.plan.channels
        self.start = task.target.values.tolist()  # the weights before the sweep
        self.weights = list(self.start)
        self.moves: Changes = []  # in the order of the weights
        self.states: dict[int, StoredValues] = {}

    def losses(self, chosen: Sequence[int], number: int) -> Tensor:
        """Judge the chosen proposals, which belong to one channel."""
        rows = candidate_changes(self.steps, chosen, decays=self.decays)
        self.now = self._state(number)
        channel = chosen[0] // self.per_channel
        return self._judge(channel, rows, *self._catch_up(self.now, channel))

    def joint(self, chosen: Sequence[int], winners: Sequence[int]) -> Tensor:
        """Judge the winners of the last call together, on its mini-batch."""
        pairs = zip(chosen, winners, strict=True)
        row = [(weight, self.steps[weight][winner]) for weight, winner in pairs]
        return self._judge(chosen[0] // self.per_channel, [row], [])[-1]

    def record_decision(self, weight: int, winner: int) -> None:
        """Record a change until each mini-batch has seen it."""
        if change := self.steps[weight][winner]:
            self.moves.append((weight, change))
            self.weights[weight] = self.values[3 * weight + winner]

    def _judge(
        self,
        channel: int,
        rows: list[Changes],
        unseen: Changes,
        moved: Rows | None = None,
    ) -> Tensor:
        """Return the loss sums with nothing changed, then with each row's changes.

        Where weights decay, nothing changed is no candidate and has no sum. `unseen`
        are changes of this channel that the mini-batch has not seen yet, and `moved`
        those of the channel before.
        """
        base = 1 if unseen else 0
        rows = [unseen, *rows] if unseen else rows
        own = self._own(channel, unseen)
        asked = Rows(channel, rows, base, base + self.decays, own)
        return self.lowered.judge(self.now, asked, self.task.loss, moved)

    def _state(self, number: int) -> StoredValues:
        """Return a mini-batch's stored values, computed where it is new."""
        if number in self.states:
            return self.states[number]
        dealt, prefixes = self.task.minibatches, self.task.prefixes
        known, missing = prefixes.known(number), prefixes.missing(number)
        state, more = self.lowered.start(
            dealt.take(number), known, missing, reuse_memory=not len(dealt)
        )
        state.seen = len(self.moves)
        prefixes.put(number, more)
        if len(dealt):  # which are fixed
            self.states[number] = state
        return state

    def _catch_up(
        self, state: StoredValues, channel: int
    ) -> tuple[Changes, Rows | None]:
        """Return the moves since the last visit: in this channel, and in another.

        Those of all other channels but the last one are stored here.
        """
        news, state.seen = self.moves[state.seen :], len(self.moves)
        own, others = [], []
        for moved, changes in groupby(news, lambda move: move[0] // self.per_channel):
            changes = list(changes)
            if moved == channel:
                own = changes
            else:
                rows = Rows(moved, [changes], 1, own=self._own(moved, changes))
                others.append(rows)
        for rows in others[:-1]:
            self.lowered.update.run(state.pointers, rows)
        return own, others[-1] if others else None

    def _own(self, channel: int, unseen: Changes) -> Changes:
        """Return a channel's weights as a mini-batch knows them, if it needs them."""
        if not self.lowered.is_light:
            return []
        first = channel * self.per_channel
        own = dict(enumerate(self.weights[first : first + self.per_channel], first))
        own |= {weight: self.start[weight] for weight, _ in unseen}
        return list(own.items())
