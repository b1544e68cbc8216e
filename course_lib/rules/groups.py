"""Several rules in one tree: each is applied to its arrays, with one global norm.

ClipGlobalNorm takes the norm of all arrays, also where the rules after it differ:

    {"encoder": Chain(clip, Adam(1e-4)), "head": Chain(clip, Adam(1e-3))}

So each rule is split after its last ClipGlobalNorm. The heads, which must be equal, are
applied to all arrays together, the tails to each group separately.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from course_lib.rules.base import Arrays, Rule, State, States, Step, Steps, apply_all
from course_lib.rules.clipping import ClipGlobalNorm
from course_lib.rules.composing import Chain, MixedPrecision


@dataclass(frozen=True)
class Group:
    """Arrays that have one rule, with their states and gradients, and a name."""

    rule: Rule
    states: States
    xs: Arrays
    gs: Arrays
    name: str

    def apply(self) -> Steps:
        """Return the new states and the steps."""
        return apply_all(self.rule, self.states, self.xs, self.gs)


def apply_groups(caller: str, groups: Sequence[Group]) -> list[Steps]:
    """Return the new states and the steps of each group.

    Raises:
        ValueError: the rules up to a ClipGlobalNorm differ, so that it is unclear what
            the norm is of.
    """
    splits = [_SplitGroup(group) for group in groups] if len(groups) > 1 else []
    clipped = [split for split in splits if split.head]
    if len(clipped) < 2:
        return [group.apply() for group in groups]
    first, *others = clipped
    for other in others:
        if other.head != first.head:
            raise ValueError(
                f"{caller}: ClipGlobalNorm is one norm for all arrays, but the rules "
                f"up to it are {other.head} for {other.group.name!r} and {first.head} "
                f"for {first.group.name!r}. Give them the same rules up to it, for "
                "example ClipGlobalNorm first in every Chain; ClipNorm takes the norm "
                "of each array."
            )
    _apply_heads(clipped)
    return [
        split.apply_tail() if split.head else split.group.apply() for split in splits
    ]


def _apply_heads(splits: Sequence["_SplitGroup"]) -> None:
    rows = [row for split in splits for row in split.rows]
    states, dxs = Chain(*splits[0].head).apply_all(
        [row.head for row in rows], [row.x for row in rows], [row.dx for row in rows]
    )
    for row, state, dx in zip(rows, states, dxs, strict=True):
        row.head, row.dx = state, dx


@dataclass(slots=True)
class _Row:
    """One array: the states of head and tail, and its gradient, later its step."""

    head: State
    tail: State
    x: Tensor
    dx: Step


class _SplitGroup:
    """A group whose rule is split after its last ClipGlobalNorm.

    Where a MixedPrecision encloses both parts, they step its copies.
    """

    def __init__(self, group: Group) -> None:
        parts = [part for part, _ in _split(group.rule, group.states[0])]
        clips = [i for i, part in enumerate(parts) if isinstance(part, ClipGlobalNorm)]
        end = clips[-1] + 1 if clips else 0
        copies = [i for i in range(end) if isinstance(parts[i], torch.dtype)]
        self.group, self.copy = group, copies[0] if copies else None
        self.dtype = parts.pop(copies[0]) if copies else None
        self.head, self.tail = parts[: end - len(copies)], parts[end - len(copies) :]
        rows = zip(group.states, group.xs, group.gs, strict=True) if clips else ()
        self.rows = [self._row(*row) for row in rows]

    def _row(self, state: State, x: Tensor, g: Tensor) -> _Row:
        states = [part for _, part in _split(self.group.rule, state)]
        if self.copy is not None:
            x, g = states.pop(self.copy), g.to(self.dtype)
        size = len(self.head)
        return _Row(tuple(states[:size]), tuple(states[size:]), x, g)

    def apply_tail(self) -> Steps:
        """Apply the rules after the norm; return the states and steps of the group."""
        rows = self.rows
        tails, dxs = Chain(*self.tail).apply_all(
            [row.tail for row in rows], [row.x for row in rows], [r.dx for r in rows]
        )
        states = []
        for i, (row, x) in enumerate(zip(rows, self.group.xs, strict=True)):
            parts = [*row.head, *tails[i]]
            if self.copy is not None:
                copy, dxs[i] = MixedPrecision.moved(row.x, x, dxs[i])
                parts.insert(self.copy, copy)
            states.append(_joined(self.group.rule, iter(parts)))
        return states, dxs


def _is_split(rule: Any) -> bool:
    """Tell whether it is a MixedPrecision with a ClipGlobalNorm, to be taken apart."""
    return isinstance(rule, MixedPrecision) and _has_clip(rule.rule)


def _has_clip(rule: Any) -> bool:
    if isinstance(rule, Chain):
        return any(map(_has_clip, rule.rules))
    return isinstance(rule, ClipGlobalNorm)


def _split(rule: Any, state: State) -> Iterator[tuple[Any, State]]:
    """Yield each rule in a rule, with its state.

    A MixedPrecision around a ClipGlobalNorm yields (its dtype, its copy) first.
    """
    if isinstance(rule, Chain):
        for each, part in zip(rule.rules, state, strict=True):
            yield from _split(each, part)
    elif _is_split(rule):
        yield rule.dtype, state[0]
        yield from _split(rule.rule, state[1])
    else:
        yield rule, state


def _joined(rule: Any, states: Iterator[State]) -> State:
    """Return the state of the whole rule, from those of its parts."""
    if isinstance(rule, Chain):
        return tuple([_joined(each, states) for each in rule.rules])
    if _is_split(rule):
        return next(states), _joined(rule.rule, states)
    return next(states)
