"""The incremental engine on a GPU: each weight takes the same operations.

Which weight is judged, and which have moved since its mini-batch was last visited, are
numbers on the device. So no argument of an operation depends on them, and a CUDA graph
of one proposal repeats it for all others: one call of the host in place of a hundred.
"""

from __future__ import annotations

import torch
from torch import Tensor

from course_lib.rso.eager.incremental import Incremental
from course_lib.rso.eager.plan import State
from course_lib.rso.eager.sweeps import Task
from course_lib.rso.losses import LOSSES

WINDOW = 3  # visits of all mini-batches; nineteen gaps of twenty are no longer


class OnDevice(Incremental):
    """An incremental sweep that can judge a weight whose number is on the device.

    Its moved weights are those of a window before it, in the same channel. `prepare`
    updates, one operation at a time, what lies further back.
    """

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.is_repeatable = self._is_repeatable()
        if self.is_repeatable:
            weights = self.applied
            self.window = min(self.per_channel, WINDOW * len(task.minibatches))
            self.before = torch.arange(self.window, device=weights.device)
            self.starts = torch.tensor(self._starts(), device=weights.device)
            self.pixels = self.plan.padded[0] * self.plan.padded[1]
            self.reach = max(offset for _, offset in self.plan.places)

    def _is_repeatable(self) -> bool:
        """Tell whether many weights of a channel move one stored plane of a mini-batch.

        What torch.fx calls unknown, and a user's loss, may ask for a value.
        """
        plan, tail = self.plan, self.plan.tail
        kinds = map(self.network.kind, tail.order)
        return (
            plan.conv is not None
            and self.per_channel > 1
            and len(self.task.minibatches) > 0
            and self.task.loss in LOSSES.values()
            and "unknown" not in kinds
        )

    def _starts(self) -> list[int]:
        """Return where the plane that each weight multiplies begins, in pixels."""
        plan = self.plan
        rows, columns = plan.padded
        sy, sx = plan.conv.stride
        taps, groups = len(plan.places), plan.conv.groups
        found = []
        for weight in range(len(self.applied)):
            channel, within = divmod(weight, self.per_channel)
            source, tap = divmod(within, taps)
            source += channel // (plan.channels // groups) * (self.per_channel // taps)
            phase, offset = plan.places[tap]
            found.append((source * sy * sx + phase) * rows * columns + offset)
        return found

    def prepare(self, number: int, weight: int) -> tuple[State, int]:
        """Return a mini-batch's values, and the first weight of its window."""
        state, size = self._state(number, weight), self.per_channel
        own = weight // size * size
        start = max(state.seen, own, weight - self.window)
        while state.seen < start:
            channel = state.seen // size
            stop = min(start, (channel + 1) * size)
            self._update(state, channel, range(state.seen, stop))
            state.seen = stop
        state.seen = weight
        return state, start

    def losses_at(self, state: State, weight: Tensor, start: Tensor) -> Tensor:
        """Judge a weight; both arguments are `(1,)` whole numbers on the device.

        The weights from `start` on have moved since the mini-batch was last visited.
        """
        channel = weight // self.per_channel
        deltas = self.deltas.index_select(0, weight)[0]
        deltas = deltas if self.decays else deltas[1:]
        planes = state.planes.flatten(1)
        rows = self._buffer(
            "planes", (2 + len(deltas), *state.planes.shape[1:]), planes
        )
        flat = rows.view(len(rows), -1)
        flat.copy_(planes.index_select(0, channel).expand_as(flat))
        moved = (start + self.before).clamp_(max=weight)  # which has not moved yet
        taps = self._taps(state, torch.cat([moved, weight]))
        changes = self.applied.index_select(0, moved)
        inside = flat[:, : taps.shape[1]]
        inside[1:] += changes @ taps[:-1]
        inside[2:].addr_(deltas, taps[-1])
        planes.index_copy_(0, channel, flat[1:2])
        ends = self.plan.run_channel(rows, channel, state)
        self._update_bases(state, channel, ends)
        ends = {node: value[1:] for node, value in ends.items()}
        return self._finish(state, channel, ends, len(rows) - 1)

    def _taps(self, state: State, weights: Tensor) -> Tensor:
        """Return the planes that weights multiply, `(weights, pixels and samples)`.

        Without the last pixels, which no output reads.
        """
        batch = state.labels.shape[0]
        length = (self.pixels - self.reach) * batch
        flat = state.inputs.view(-1)
        count = (len(flat) - length) // batch + 1
        windows = flat.as_strided((count, length), (batch, 1))
        return windows.index_select(0, self.starts.index_select(0, weights))

    def record_winner(self, weight: Tensor, winner: Tensor) -> None:
        """Store a change, as `record_decision` does; both are numbers on the device."""
        deltas = self.deltas.index_select(0, weight)
        self.applied.index_copy_(0, weight, deltas.gather(1, winner.view(1, 1))[0])
