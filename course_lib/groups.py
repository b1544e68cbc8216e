"""Several rules in one tree: each applied to its arrays, one global norm for all.

ClipGlobalNorm looks at all arrays at once, also where the rules behind it differ:

    {"encoder": Chain(clip, Adam(1e-4)), "head": Chain(clip, Adam(1e-3))}

So each rule is cut behind its last ClipGlobalNorm. The heads, which must be equal, are
applied to all arrays together, the tails to each group apart.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from course_lib.rules import (
    Chain,
    ClipGlobalNorm,
    MixedPrecision,
    Rule,
    State,
    Step,
    apply_all_of,
)

Steps = tuple[list[State], list[Step]]


@dataclass(frozen=True)
class Group:
    """Arrays that have one rule, with their states and gradients, and a name."""

    rule: Rule
    states: Sequence[State]
    xs: Sequence[Tensor]
    gs: Sequence[Tensor]
    name: str


def apply_groups(place: str, groups: Sequence[Group]) -> list[Steps]:
    """Return the new states and the steps of each group.

    Raises:
        ValueError: the rules up to a ClipGlobalNorm differ, so that it is unclear what
            the norm is of.
    """
    cuts = [_Cut(group) for group in groups] if len(groups) > 1 else []
    clipped = [cut for cut in cuts if cut.head]
    if len(clipped) < 2:
        return [_apply(group) for group in groups]
    first, *others = clipped
    for other in others:
        if other.head != first.head:
            raise ValueError(
                f"{place}: ClipGlobalNorm is one norm for all arrays, but the rules up "
                f"to it are {other.head} for {other.group.name!r} and {first.head} for "
                f"{first.group.name!r}. Give them the same rules up to it, for example "
                "ClipGlobalNorm first in every Chain; ClipNorm looks at each array "
                "alone."
            )
    _apply_heads(clipped)
    return [cut.apply_tail() if cut.head else _apply(cut.group) for cut in cuts]


def _apply(group: Group) -> Steps:
    return apply_all_of(group.rule)(group.states, group.xs, group.gs)


def _apply_heads(cuts: Sequence["_Cut"]) -> None:
    rows = [row for cut in cuts for row in cut.rows]
    states, dxs = Chain(*cuts[0].head).apply_all(
        [row.head for row in rows], [row.x for row in rows], [row.dx for row in rows]
    )
    for row, state, dx in zip(rows, states, dxs, strict=True):
        row.head, row.dx = state, dx


class _Cut:
    """A group whose rule is cut behind its last ClipGlobalNorm.

    A MixedPrecision around both parts gives its copies to them for arrays.
    """

    def __init__(self, group: Group) -> None:
        parts = list(_parts(group.rule))
        clips = [i for i, part in enumerate(parts) if isinstance(part, ClipGlobalNorm)]
        end = clips[-1] + 1 if clips else 0
        around = [i for i in range(end) if isinstance(parts[i], torch.dtype)]
        self.group, self.around = group, around[0] if around else None
        self.dtype = parts.pop(around[0]) if around else None
        self.head, self.tail = parts[: end - len(around)], parts[end - len(around) :]
        rows = zip(group.states, group.xs, group.gs, strict=True) if clips else ()
        self.rows = [self._row(*row) for row in rows]

    def _row(self, state: State, x: Tensor, g: Tensor) -> "_Row":
        states = list(_states(self.group.rule, state))
        if self.around is not None:
            x, g = states.pop(self.around), g.to(self.dtype)
        size = len(self.head)
        return _Row(tuple(states[:size]), tuple(states[size:]), x, g)

    def apply_tail(self) -> Steps:
        """Apply what is behind the norm; return the states and steps of the group."""
        rows = self.rows
        tails, dxs = Chain(*self.tail).apply_all(
            [row.tail for row in rows], [row.x for row in rows], [r.dx for r in rows]
        )
        states = []
        for i, (row, x, tail) in enumerate(
            zip(rows, self.group.xs, tails, strict=True)
        ):
            found = [*row.head, *tail]
            if self.around is not None:
                copy, dxs[i] = MixedPrecision.moved(row.x, x, dxs[i])
                found.insert(self.around, copy)
            states.append(_state(self.group.rule, iter(found)))
        return states, dxs


@dataclass(slots=True)
class _Row:
    """One array on its way: the states of both parts, and its gradient or step."""

    head: State
    tail: State
    x: Tensor
    dx: Step


def _parts(rule: Any) -> Iterator[Any]:
    """Yield the rules in a rule; a dtype stands for the copy of a MixedPrecision."""
    if isinstance(rule, Chain):
        for each in rule.rules:
            yield from _parts(each)
    elif _is_entered(rule):
        yield rule.dtype
        yield from _parts(rule.rule)
    else:
        yield rule


def _is_entered(rule: Any) -> bool:
    """Tell whether it is a MixedPrecision with a ClipGlobalNorm; others stay whole."""
    return isinstance(rule, MixedPrecision) and any(
        isinstance(part, ClipGlobalNorm) for part in _parts(rule.rule)
    )


def _states(rule: Any, state: State) -> Iterator[State]:
    """Yield the state of each part, in their order."""
    if isinstance(rule, Chain):
        for each, own in zip(rule.rules, state, strict=True):
            yield from _states(each, own)
    elif _is_entered(rule):
        yield state[0]
        yield from _states(rule.rule, state[1])
    else:
        yield state


def _state(rule: Any, states: Iterator[State]) -> State:
    """Return the state of the whole rule, from those of its parts."""
    if isinstance(rule, Chain):
        return tuple([_state(each, states) for each in rule.rules])
    if _is_entered(rule):
        return next(states), _state(rule.rule, states)
    return next(states)
