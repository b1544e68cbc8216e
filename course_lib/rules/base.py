"""What all rules share: their base, checks of arrays and states, and arithmetic."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from course_lib.rules.counts import Conditional, Count, TracedCount, number_of
from course_lib.rules.hyperparameters import validate
from course_lib.trees import is_any_transform_active, widened

State = Any  # a tensor, a Count, or tuples of these; () where nothing is stored
States = Sequence[State]
Arrays = Sequence[Tensor]
Step = Tensor | Conditional | None  # None: no step this time
Steps = tuple[list[State], list[Step]]  # the new states and steps of several arrays

# What a rule may raise while it unpacks the state of another rule
STATE_ERRORS = TypeError, ValueError, IndexError, AttributeError


@dataclass(frozen=True)
class Rule:
    """The base of all rules: checks the hyperparameters, and widens half precision.

    A subclass defines `_init(x) -> state` and `_apply(state, x, g) -> (state, dx)`.

    Raises:
        ValueError: a hyperparameter is no number or out of its range.
    """

    _widens_halves = True  # and then rounds their steps

    def __post_init__(self) -> None:
        validate(self)

    def init(self, x: Tensor) -> State:
        """Return the state for an array before its first step."""
        if not isinstance(x, Tensor):
            raise ValueError(
                f"{type(self).__name__}.init: got {type(x).__name__}; wanted a tensor. "
                "For a tree of them, call setup(rule, params)."
            )
        return self._init(widened(x) if self._widens_halves else x)

    def apply(self, state: State, x: Tensor, g: Tensor) -> tuple[State, Step]:
        """Return the new state and the step dx; x and g are unchanged.

        Args:
            state: from `init` or the step before.
            x: the array, of any shape; real, complex, or half precision.
            g: its gradient, of the same shape.

        Raises:
            ValueError: x and g don't fit, or the state is not of this rule.
        """
        _require_fit(self, x, g)
        try:
            wide = (widened(x), widened(g)) if self._widens_halves else (x, g)
            state, dx = self._apply(state, *wide)
        except STATE_ERRORS as error:
            if not has_form_of(self, state, x):
                raise ValueError(
                    f"{type(self).__name__}.apply: the state is not one of {self}. "
                    "Wanted that of its `init` or of the step before."
                ) from error
            raise
        dx = dx.or_zeros() if isinstance(dx, Conditional) else dx
        return state, dx.to(x.dtype) if self._widens_halves and dx is not None else dx

    def apply_all(self, states: States, xs: Arrays, gs: Arrays) -> Steps:
        """Return the new states and the steps of several arrays.

        A rule that has to look at all arrays at once defines its own. A step may be
        wider than its array: x - dx is rounded once, at the end.
        """
        return _apply_each(self, states, xs, gs)

    def _step(self, state: State, x: Tensor, g: Tensor) -> tuple[State, Step]:
        """Apply the rule, without checks, to arrays that are not half precision."""
        state, dx = self._apply(state, x, g)
        if dx is None or isinstance(dx, Conditional) or dx.dtype is x.dtype:
            return state, dx
        return state, dx.to(x.dtype)

    def _init(self, x: Tensor) -> State:
        return ()

    def _apply(self, state: State, x: Tensor, g: Tensor) -> tuple[State, Step]:
        raise NotImplementedError(
            f"{type(self).__name__} defines no _apply(state, x, g) -> (state, dx)."
        )


def apply_all(rule: Any, states: States, xs: Arrays, gs: Arrays) -> Steps:
    """Call `Rule.apply_all`, or do the same for a rule of another class without one."""
    if hasattr(rule, "apply_all"):
        return rule.apply_all(states, xs, gs)
    return _apply_each(rule, states, xs, gs)


def _apply_each(rule: Any, states: States, xs: Arrays, gs: Arrays) -> Steps:
    step = rule._step if getattr(type(rule), "apply", 0) is Rule.apply else rule.apply
    steps = [
        step(state, widened(x), widened(g))
        for state, x, g in zip(states, xs, gs, strict=True)
    ]
    return [state for state, _ in steps], [dx for _, dx in steps]


def is_rule(thing: Any) -> bool:
    """Tell whether it has what a rule needs; the class Adam is no rule, Adam() is."""
    has_both = hasattr(thing, "init") and hasattr(thing, "apply")
    return has_both and not isinstance(thing, type)


def has_form_of(rule: Any, state: State, x: Tensor) -> bool:
    """Tell whether a state has the form that the rule makes for an array like x."""
    return _form(state) == _form(rule.init(x.detach()))


def _form(state: State) -> Any:
    """Return the types of a state's parts, in the tuples that they are in."""
    if isinstance(state, tuple):
        return tuple(map(_form, state))
    if isinstance(state, Tensor):
        return Tensor
    return Count if isinstance(state, TracedCount) else type(state)


def _require_fit(rule: Any, x: Any, g: Any) -> None:
    if (
        (isinstance(x, Tensor) and isinstance(g, Tensor))
        and x.shape == g.shape
        and (x.dtype is g.dtype or x.is_complex() or not g.is_complex())
    ):
        return
    got = [
        f"{t.dtype} of shape {tuple(t.shape)}"
        if isinstance(t, Tensor)
        else type(t).__name__
        for t in (x, g)
    ]
    raise ValueError(
        f"{type(rule).__name__}.apply: got {got[0]} for the array and {got[1]} for "
        "its gradient; wanted two tensors of one shape, both real or the array "
        "complex. For trees, call update(state, params, grads)."
    )


# Arithmetic, for real and complex arrays


def real_zeros_like(x: Tensor) -> Tensor:
    """Return zeros of the shape of x, real ones for a complex array."""
    return torch.zeros_like(x.real if x.is_complex() else x)


def squared_abs(g: Tensor) -> Tensor:
    """Return |g|**2 for each element."""
    return (g * g.conj()).real if g.is_complex() else g * g


def moving_average(average: Tensor, new: Tensor, rate: float) -> Tensor:
    """Return rate * average + (1 - rate) * new."""
    if new.dtype is not average.dtype:
        new = new.to(average.dtype)
    return torch.lerp(average, new, 1 - rate)


def bias_correction(rate: float, t: Any) -> Any:
    """Return 1 - rate**t, the divisor of a moving average that started at 0."""
    return 1 - rate ** number_of(t)


def safe_sqrt(v: Tensor) -> Tensor:
    """Return sqrt(v), with the derivative 0 at 0, where that of sqrt is infinite.

    v is the square of a gradient, and sqrt(v) its size: |g| has the subgradient 0.
    """
    if not (v.requires_grad or is_any_transform_active()):
        return v.sqrt()
    is_zero = v == 0
    return torch.where(is_zero, 0.0, torch.where(is_zero, 1.0, v).sqrt())
