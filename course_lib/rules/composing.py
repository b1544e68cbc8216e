"""Rules made of rules: in a row, after several gradients, and on a precise copy."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from course_lib.checks import require_ints
from course_lib.rules.adam import Adam
from course_lib.rules.base import (
    Arrays,
    Rule,
    State,
    States,
    Step,
    Steps,
    apply_all,
    is_rule,
)
from course_lib.rules.counts import Conditional, Count, next_count, number_of, where_due
from course_lib.rules.hyperparameters import plain
from course_lib.trees import is_tracked


@dataclass(frozen=True, init=False)
class Chain(Rule):
    """Rules one after another: the step of each is the gradient of the next.

    Args:
        *rules: in the order in which they are applied.

    State: a tuple of the rules' states. Where a rule gives no step, the rules after it
    are not applied and their states do not change.

    >>> from course_lib.rules import ClipGrad, Descent
    >>> rule = Chain(ClipGrad(1.0), Descent(0.1))
    >>> x, g = torch.tensor([1.0]), torch.tensor([5.0])
    >>> rule.apply(rule.init(x), x, g)[1]
    tensor([0.1000])
    """

    rules: tuple[Rule, ...]

    def __init__(self, *rules: Rule) -> None:
        for rule in rules:
            if not is_rule(rule):
                raise ValueError(
                    f"Chain: got {rule!r}; wanted rules, for example "
                    "Chain(ClipGrad(1.0), Adam())."
                )
        if any(isinstance(rule, MixedPrecision) for rule in _flattened(rules)[:-1]):
            raise ValueError(
                "Chain: a rule stands after MixedPrecision; after its step the array "
                "would differ from its precise copy. Wanted MixedPrecision last, or "
                "around the whole chain: MixedPrecision(Chain(...))."
            )
        object.__setattr__(self, "rules", rules)

    def __repr__(self) -> str:
        return f"Chain({', '.join(map(repr, self.rules))})"

    def _init(self, x: Tensor) -> State:
        return tuple(rule.init(x) for rule in self.rules)

    def _apply(self, state: State, x: Tensor, g: Tensor) -> tuple[State, Step]:
        states, dxs = self.apply_all([state], [x], [g])
        return states[0], dxs[0]

    def apply_all(self, states: States, xs: Arrays, gs: Arrays) -> Steps:
        """Apply one rule to all arrays, then the next."""
        table, dxs = [list(state) for state in states], list(gs)
        for position, rule in enumerate(self.rules):
            moving = [i for i, dx in enumerate(dxs) if dx is not None]
            if not moving:
                break
            new, steps = _apply_conditional(
                rule,
                [table[i][position] for i in moving],
                [xs[i] for i in moving],
                [dxs[i] for i in moving],
            )
            for i, state, dx in zip(moving, new, steps, strict=True):
                table[i][position], dxs[i] = state, dx
        return [tuple(row) for row in table], dxs


def _flattened(rules: Sequence[Any]) -> list[Any]:
    """Return the rules, each Chain among them replaced by its members."""
    found: list[Any] = []
    for rule in rules:
        found += _flattened(rule.rules) if isinstance(rule, Chain) else [rule]
    return found


def _apply_conditional(
    rule: Any, states: States, xs: Arrays, gs: Sequence[Step]
) -> Steps:
    """Apply the rule; where a gradient is conditional, so are state and step."""
    if not torch.compiler.is_dynamo_compiling():
        return apply_all(rule, states, xs, gs)
    values = [g.dx if isinstance(g, Conditional) else g for g in gs]
    new, dxs = apply_all(rule, states, xs, values)
    for i, g in enumerate(gs):
        if isinstance(g, Conditional):
            new[i] = where_due(g.is_due, new[i], states[i])
            is_due, dx = g.is_due, dxs[i]
            if isinstance(dx, Conditional):
                is_due, dx = is_due & dx.is_due, dx.dx
            dxs[i] = None if dx is None else Conditional(dx, is_due)
    return new, dxs


@dataclass(frozen=True)
class AccumulateGradients(Rule):
    """Sum n gradients, then pass on their mean; no step in between.

    Args:
        n: how many, >= 1. Where it is adjusted to less than the state has summed, the
            next gradient ends the round.

    State: (sum of the gradients, how many).

    >>> rule = AccumulateGradients(2)
    >>> x, g = torch.tensor([1.0]), torch.tensor([2.0])
    >>> state, step = rule.apply(rule.init(x), x, g)
    >>> rule.apply(state, x, 2 * g)[1]
    tensor([3.])
    """

    n: int = 4

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", plain(self.n))  # the rule is frozen
        require_ints("AccumulateGradients", n=self.n)

    def _init(self, x: Tensor) -> State:
        return torch.zeros_like(x), Count(0)

    def _apply(self, state: State, x: Tensor, g: Tensor) -> tuple[State, Step]:
        total, count = state[0] + g, next_count(state[1])
        number = number_of(count)
        if isinstance(number, Tensor):  # compiled code, which does not know the number
            is_due, start = number >= self.n, (torch.zeros_like(total), Count(0))
            state = where_due(is_due, start, (total, count))
            return state, Conditional(total / number, is_due)
        if number < self.n:
            return (total, count), None
        return (torch.zeros_like(total), Count(0)), total / number


@dataclass(frozen=True)
class MixedPrecision(Rule):
    """Store a precise copy of each array, step that, and round the array from it.

    Small steps that vanish in half precision add up in the copy.

    Args:
        rule: what steps the copy.
        dtype: of the copy and of the rule's state.

    State: (the copy, the rule's state). dx has the copy's dtype: x - dx, rounded to
    x's dtype, is the rounded copy.

    Source: Micikevicius et al. 2018, arXiv 1710.03740.
    """

    rule: Rule = field(default_factory=Adam)
    dtype: torch.dtype = torch.float32

    _widens_halves = False

    def __post_init__(self) -> None:
        if not is_rule(self.rule):
            raise ValueError(
                f"MixedPrecision: got rule={self.rule!r}; wanted a rule, for example "
                "Adam()."
            )
        if any(isinstance(each, MixedPrecision) for each in _flattened([self.rule])):
            raise ValueError(
                "MixedPrecision: got one inside of one; wanted one precise copy of "
                "each array. Remove the inner one."
            )
        is_dtype = isinstance(self.dtype, torch.dtype)
        if not (is_dtype and (self.dtype.is_floating_point or self.dtype.is_complex)):
            raise ValueError(
                f"MixedPrecision: got dtype={self.dtype!r}; wanted a floating-point "
                "one, for example torch.float32."
            )

    def _init(self, x: Tensor) -> State:
        if x.is_complex() != self.dtype.is_complex:
            raise ValueError(
                f"MixedPrecision: got an array of {x.dtype}; its copy would be of "
                f"{self.dtype}. Wanted both real or both complex: pass another dtype."
            )
        copy = x.to(self.dtype, copy=True)
        return copy, self.rule.init(copy)

    def _apply(self, state: State, x: Tensor, g: Tensor) -> tuple[State, Step]:
        (state,), (dx,) = self.apply_all([state], [x], [g])
        return state, dx

    def apply_all(self, states: States, xs: Arrays, gs: Arrays) -> Steps:
        """Step the copies, all in one call of the rule."""
        copies, inner = (list(part) for part in zip(*states, strict=True))
        for copy, x in zip(copies, xs, strict=True):
            if torch.is_grad_enabled() and is_tracked(x) and not is_tracked(copy):
                raise ValueError(
                    "MixedPrecision: the array is differentiated, but its copy in the "
                    "state has no graph, and the step would lose the derivative. Call "
                    "setup for these params inside the function that is "
                    "differentiated; for a leaf that requires a gradient, pass "
                    "params.view_as(params)."
                )
        gs = [g.to(self.dtype) for g in gs]
        inner, dxs = apply_all(self.rule, inner, copies, gs)
        moved = [
            self.moved(copy, x, dx) for copy, x, dx in zip(copies, xs, dxs, strict=True)
        ]
        copies = [copy for copy, _ in moved]
        return list(zip(copies, inner, strict=True)), [dx for _, dx in moved]

    @staticmethod
    def moved(copy: Tensor, x: Tensor, dx: Step) -> tuple[Tensor, Step]:
        """Return the copy after its step dx, and the step that leads from x to it."""
        if dx is None:
            return copy, None
        if isinstance(dx, Conditional):
            copy, step = MixedPrecision.moved(copy, x, dx.or_zeros())
            return copy, Conditional(step, dx.is_due)
        copy = (copy - dx).to(copy.dtype)
        return copy, x.to(copy.dtype) - copy
