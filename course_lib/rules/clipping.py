"""Rules that limit gradients; they go before others in a Chain."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from course_lib.rules.base import Arrays, Rule, State, States, Step, Steps
from course_lib.rules.hyperparameters import number
from course_lib.trees import is_any_transform_active, is_transformed, widened


@dataclass(frozen=True)
class ClipGrad(Rule):
    """Clamp each element to [-delta, delta]; a complex one's two parts each.

    Args:
        delta: the largest element, >= 0.
    """

    delta: float = number(10.0)

    def _apply(self, state: State, x: Tensor, g: Tensor) -> tuple[State, Step]:
        if g.is_complex():
            parts = torch.view_as_real(g).clamp(-self.delta, self.delta)
            return state, torch.view_as_complex(parts)
        return state, g.clamp(-self.delta, self.delta)


@dataclass(frozen=True)
class ClipNorm(Rule):
    """Shrink each array whose p-norm exceeds omega to that norm.

    torch.nn.utils.clip_grad_norm_ takes one norm of all arrays: `ClipGlobalNorm`.

    Args:
        omega: the largest norm, >= 0.
        p: which norm, >= 1; math.inf is the largest element.

    Raises:
        ValueError: the norm is not finite (when applied).
    """

    omega: float = number(10.0)
    p: float = number(2.0, 1, closed=True)

    def _apply(self, state: State, x: Tensor, g: Tensor) -> tuple[State, Step]:
        return state, self._clipped([g])[0]

    def _clipped(self, gs: Arrays) -> list[Tensor]:
        norm = _norm(gs, self.p)
        if not _has_no_value(norm):
            if norm.isfinite():
                return _scaled(gs, self._factor(norm))
            return self._clipped_overflow(gs, norm)
        # Whether it overflows is not known yet: compute both and select.
        is_finite, plain = norm.isfinite(), _scaled(gs, self._factor(norm))
        pairs = zip(plain, self._clipped_overflow(gs, norm), strict=True)
        return [torch.where(is_finite.to(a.device), a, b) for a, b in pairs]

    def _factor(self, norm: Tensor) -> Tensor:
        is_long = norm > self.omega  # a divisor 0 would spoil derivatives
        return torch.where(is_long, self.omega / torch.where(is_long, norm, 1.0), 1.0)

    def _clipped_overflow(self, gs: Arrays, norm: Tensor) -> list[Tensor]:
        """Clip gradients whose norm is beyond the dtype, in units of their largest."""
        scale = _norm(gs, math.inf).detach()
        if not _has_no_value(scale) and not scale.isfinite():
            raise ValueError(
                f"{type(self).__name__}: the gradient's norm is {norm.item()}; wanted "
                "a finite one. Look for nan or inf in the loss."
            )
        scale = torch.where(scale > 0, scale, 1.0)
        units = [g / scale.to(g.device) for g in gs]
        norm = _norm(units, self.p)
        norm = torch.where(norm > 0, norm, 1.0)
        return _scaled(units, torch.minimum(scale, self.omega / norm))


@dataclass(frozen=True)
class ClipGlobalNorm(ClipNorm):
    """Shrink all arrays by one factor if their common p-norm exceeds omega.

    Like torch.nn.utils.clip_grad_norm_. "All" are the arrays of a tree that have this
    rule, without frozen ones and those that have no gradient. Different rules may
    follow it; those before it must be the same for all. Applied to one array it is
    ClipNorm.

    Args:
        omega, p: as in `ClipNorm`, of all arrays together.
    """

    def apply_all(self, states: States, xs: Arrays, gs: Arrays) -> Steps:
        """Return each gradient times one factor."""
        return list(states), self._clipped([widened(g) for g in gs])


def _norm(gs: Arrays, p: float) -> Tensor:
    """Return the p-norm of all arrays together."""
    norm_of = _norm_of
    if is_any_transform_active() or any(g.requires_grad for g in gs):
        norm_of = _differentiable_norm_of
    norms = [norm_of(g, p) for g in gs]
    device = norms[0].device
    return norm_of(torch.stack([norm.to(device) for norm in norms]), p)


def _norm_of(g: Tensor, p: float) -> Tensor:
    # torch refuses the largest element of an empty array; its 2-norm is 0.
    return torch.linalg.vector_norm(g, p if g.numel() else 2)


def _differentiable_norm_of(g: Tensor, p: float) -> Tensor:
    # torch's second derivative is nan at 0: github.com/pytorch/functorch/issues/1097.
    is_zero = (g == 0).all()
    norm = _norm_of(torch.where(is_zero, 1.0, g), p)
    return torch.where(is_zero, 0.0, norm)


def _scaled(gs: Arrays, factor: Tensor) -> list[Tensor]:
    return [(g * factor.to(g.device)).to(g.dtype) for g in gs]


def _has_no_value(x: Tensor) -> bool:
    """Tell whether a transform or a compiler traces x, which has no numbers yet."""
    return torch.compiler.is_compiling() or is_transformed(x)
