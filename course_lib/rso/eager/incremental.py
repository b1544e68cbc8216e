"""The fast engine: one weight touches one channel, so one channel is recomputed.

While a layer is swept, what lies before it is fixed. A weight of channel c moves the
pre-activation of c by dw times one shifted plane of the input; pooling, batch norm and
activation keep to the channel; the next layer's output moves by a one-channel
convolution. From there on the candidates run to the end side by side.

The values of a mini-batch are stored and updated when it is visited again: by the
changes since, which lie in one stretch of weights, for a sweep goes row by row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from course_lib.rso.eager.kernels import Channel
from course_lib.rso.eager.pipeline import Piece, Source
from course_lib.rso.eager.plan import Plan, State
from course_lib.rso.eager.sweeps import Task, candidate_changes
from course_lib.rso.losses import loss_sums


class Incremental:
    """Sweep one parameter by one-channel updates.

    Raises:
        Unsuitable: the parameter is read twice, or by an operation of another kind.
    """

    def __init__(self, task: Task) -> None:
        self.task, self.network = task, task.network
        self.plan = Plan(task.network, task.target.parameter)
        weights = task.target.values
        self.deltas = task.values - weights[:, None]
        self.on_host = weights.device.type == "cpu"
        self.steps = self.deltas.tolist() if self.on_host else self.deltas
        self.decays = bool(self.deltas[:, 0].any())
        self.applied = torch.zeros_like(weights)
        self.has_moved = [False] * len(weights)
        self.moves: dict[int, float] = {}  # entries of `applied` as Python numbers
        self.states: dict[int, State] = {}
        self.buffers: dict[object, Tensor] = {}
        self.per_channel = len(weights) // self.plan.channels

    def losses(self, chosen: Sequence[int], number: int) -> Tensor:
        """Judge the chosen proposals, which belong to one channel."""
        first = chosen[0]
        rows = candidate_changes(self.steps, chosen, decays=self.decays)
        self.state = state = self._state(number, first)
        channel = first // self.per_channel
        unseen = self._catch_up(state, first, channel)
        return self._judge(state, channel, rows, unseen)

    def joint(self, chosen: Sequence[int], winners: Sequence[int]) -> Tensor:
        """Judge the winners of the last call together, on its mini-batch."""
        pairs = zip(chosen, winners, strict=True)
        row = [(weight, self.steps[weight][winner]) for weight, winner in pairs]
        return self._judge(self.state, chosen[0] // self.per_channel, [row], None)[-1]

    def record_decision(self, weight: int, winner: int | Tensor) -> None:
        """Store a change for the mini-batches, whose values it updates later."""
        if isinstance(winner, int):
            if winner or self.decays:
                self.moves[weight] = move = self.steps[weight][winner]
                self.applied[weight] = move
                self.has_moved[weight] = True
        else:
            self.applied[weight] = self.deltas[weight].gather(0, winner.view(1))[0]
            self.has_moved[weight] = True

    # The stored values of a mini-batch

    def _state(self, number: int, weight: int) -> State:
        if number in self.states:
            return self.states[number]
        dealt = self.task.minibatches
        state = self.plan.start(
            dealt.take(number), number, self.task.prefixes, seen=weight
        )
        if len(dealt):  # which are fixed
            self.states[number] = state
        return state

    def _catch_up(self, state: State, weight: int, current: int) -> range | None:
        """Update the channels that moved since the last visit, except `current`.

        Returns the weights of `current` whose changes `_judge` has to add.
        """
        size, unseen = self.per_channel, None
        if any(self.has_moved[state.seen : weight]):
            for channel in range(state.seen // size, (weight - 1) // size + 1):
                start = max(state.seen, channel * size)
                moved = range(start, min(weight, (channel + 1) * size))
                if any(self.has_moved[moved.start : moved.stop]):
                    if channel == current:
                        unseen = moved
                    else:
                        self._update(state, channel, moved)
        state.seen = weight
        return unseen

    def _update(self, state: State, channel: int, moved: range) -> None:
        """Update one channel, and what follows from it, to the weights of now."""
        both = self._buffer("update", (2, *state.planes.shape[1:]), state.planes)
        both[0] = state.planes[channel]
        self._advance(state, channel, moved)
        both[1] = state.planes[channel]
        self._update_bases(state, channel, self.plan.run_channel(both, channel, state))

    def _update_bases(
        self, state: State, channel: Channel, ends: dict[fx.Node, Tensor]
    ) -> None:
        """Update what follows; of `ends`, row 0 is the old value and row 1 the new."""
        for node, base in state.bases.items():
            planes = ends[self.plan.source_of[node]]
            dense = self.plan.dense.get(node)
            if dense is None:
                self.plan.put(base, channel, planes[1])
            else:
                dense.add_(base, planes[1:2] - planes[:1], channel, self._buffer)

    def _advance(self, state: State, channel: int, moved: range) -> None:
        """Add the changes of some weights to a plane: a few matrix products."""
        plane = state.planes[channel].view(-1)
        if state.inputs is None:
            plane += self.applied[moved.start]
            return
        taps, first = self.plan.places, channel * self.per_channel
        is_known = self.on_host and self.moves
        if is_known and len(moved) <= len(taps):  # too few for a matrix product
            for weight in filter(self.moves.get, moved):
                _add(plane, self._tap(state, weight), self.moves[weight], plane)
            return
        change = self.applied[first : first + self.per_channel].view(-1, len(taps))
        inputs = self.plan.inputs_of(state.inputs, channel)
        batch = state.labels.shape[0]
        for tap, (phase, offset) in enumerate(taps):
            low = -((tap + first - moved.start) // len(taps))
            high = -((tap + first - moved.stop) // len(taps))
            if low < high:
                rows = inputs[low:high, phase, offset * batch :]
                end = plane[: rows.shape[1]]
                torch.addmv(end, rows.t(), change[low:high, tap], out=end)

    # Candidates

    def _judge(
        self,
        state: State,
        channel: int,
        rows: list[list[tuple[int, float | Tensor]]],
        unseen: range | None,
    ) -> Tensor:
        """Return the loss sums with nothing changed, then with each row's changes.

        Where weights decay, the first sum is left out: no candidate is unchanged.
        `unseen` are weights of this channel whose changes it does not have yet.
        """
        now = 0 if unseen is None else 1  # the row with nothing changed
        count = now + 1 + len(rows)
        plane = state.planes[channel]
        planes = self._buffer("planes", (count, *plane.shape), plane)
        if unseen is not None:
            planes[0] = plane
            self._advance(state, channel, unseen)
        planes[now] = plane
        flat, plane = planes.view(count, -1), plane.view(-1)
        for row, changes in enumerate(rows, start=now + 1):
            before = plane
            for weight, change in changes:
                _add(before, self._tap(state, weight), change, flat[row])
                before = flat[row]
        ends = self.plan.run_channel(planes, channel, state)
        if unseen is not None:
            self._update_bases(state, channel, ends)
            ends = {node: value[1:] for node, value in ends.items()}
        return self._finish(state, channel, ends, count - now)

    def _finish(
        self, state: State, channel: Channel, ends: dict[fx.Node, Tensor], rows: int
    ) -> Tensor:
        """Run the candidates to the end; row 0 of `ends` has nothing changed."""
        first = 1 if self.decays else 0
        sources = {
            node: self._source(
                node, base, ends[self.plan.source_of[node]], first, channel
            )
            for node, base in state.bases.items()
        }
        outputs = self.plan.tail.run(
            state.fixed, state.labels.shape[0], rows - first, sources, state.planes
        )[self.network.output]
        return loss_sums(self.task.loss, outputs, state.labels)

    def _source(
        self, node: fx.Node, base: Tensor, planes: Tensor, first: int, channel: Channel
    ) -> Source:
        """Return what fills in the candidates' values of a node, piece by piece."""
        dense = self.plan.dense.get(node)
        if dense is not None:
            return dense.source(base, planes, first, channel, self._buffer)

        def fill(piece: Piece, out: Tensor) -> None:
            part = planes[first:][piece.candidates, piece.samples]
            for whole in out.split(piece.batch):
                whole.copy_(base[piece.samples])
            self.plan.put(out, channel, part)

        return fill

    def _tap(self, state: State, weight: int) -> Tensor | None:
        """Return the plane that a weight multiplies; None where it is all ones."""
        if state.inputs is None:
            return None
        channel, within = divmod(weight, self.per_channel)
        source, tap = divmod(within, len(self.plan.places))
        phase, offset = self.plan.places[tap]
        start = offset * state.labels.shape[0]
        return self.plan.inputs_of(state.inputs, channel)[source, phase, start:]

    def _buffer(self, name: object, shape: Sequence[int], like: Tensor) -> Tensor:
        """Return the same memory at each call: mapping new memory takes longer."""
        key = name, *shape
        if key not in self.buffers:
            self.buffers[key] = like.new_empty(shape)
        return self.buffers[key]


def _add(
    before: Tensor, tap: Tensor | None, change: float | Tensor, out: Tensor
) -> None:
    if tap is None:
        torch.add(before, change, out=out)
        return
    length = tap.shape[0]
    if isinstance(change, float):
        torch.add(before[:length], tap, alpha=change, out=out[:length])
    else:
        torch.addcmul(before[:length], tap, change, out=out[:length])
