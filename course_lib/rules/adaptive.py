"""Rules that divide each element's step by the recent size of its gradient."""

from dataclasses import dataclass

import torch
from torch import Tensor

from course_lib.rules.base import (
    Rule,
    State,
    Step,
    moving_average,
    real_zeros_like,
    safe_sqrt,
    squared_abs,
)
from course_lib.rules.hyperparameters import number


@dataclass(frozen=True)
class RMSProp(Rule):
    """Divide by the root mean square: q' = rho * q + (1 - rho) * |g|**2.

    dx = eta * g / (sqrt(q') + eps). Centered, the divisor is sqrt(q' - |l'|**2) + eps,
    where l is the moving average of g.

    Args:
        eta: step size, >= 0.
        rho: decay of the averages, in [0, 1).
        eps: added to the divisor, >= 0.
        centered: divide by the standard deviation, not by the root mean square.

    State: (q, l), where l is () unless centered.

    Source: Hinton 2012, lecture 6e; centered: Graves 2013, arXiv 1308.0850.
    """

    eta: float = number(1e-3)
    rho: float = number(0.9, 0, 1)
    eps: float = number(1e-8)
    centered: bool = False

    def _init(self, x: Tensor) -> State:
        return real_zeros_like(x), torch.zeros_like(x) if self.centered else ()

    def _apply(self, state: State, x: Tensor, g: Tensor) -> tuple[State, Step]:
        q, mean = state
        q = moving_average(q, squared_abs(g), self.rho)
        variance = q
        if self.centered:
            mean = moving_average(mean, g, self.rho)
            variance = (q - squared_abs(mean)).clamp(min=0)
        return (q, mean), self.eta * g / (safe_sqrt(variance) + self.eps)


@dataclass(frozen=True)
class AdaGrad(Rule):
    """Divide by the size of all gradients so far: a' = a + |g|**2, a = eps at first.

    dx = eta * g / (sqrt(a') + eps).

    Args:
        eta: step size, >= 0.
        eps: start of the sum, and added to the divisor, >= 0.

    State: the sum a.

    Source: Duchi et al. 2011, jmlr.org/papers/v12/duchi11a.html.
    """

    eta: float = number(0.1)
    eps: float = number(1e-8)

    def _init(self, x: Tensor) -> State:
        return torch.full_like(real_zeros_like(x), self.eps)

    def _apply(self, a: State, x: Tensor, g: Tensor) -> tuple[State, Step]:
        a = a + squared_abs(g)
        return a, self.eta * g / (safe_sqrt(a) + self.eps)


@dataclass(frozen=True)
class AdaDelta(Rule):
    """Without a step size: dx = g * sqrt(D + eps) / sqrt(a' + eps).

    a' = rho * a + (1 - rho) * |g|**2 and D' = rho * D + (1 - rho) * |dx|**2.

    Args:
        rho: decay of the averages, in [0, 1).
        eps: added inside both roots, >= 0; it sets the size of the first steps.

    State: (a, D).

    Source: Zeiler 2012, arXiv 1212.5701.
    """

    rho: float = number(0.9, 0, 1)
    eps: float = number(1e-8)

    def _init(self, x: Tensor) -> State:
        return real_zeros_like(x), real_zeros_like(x)

    def _apply(self, state: State, x: Tensor, g: Tensor) -> tuple[State, Step]:
        a, d = state
        a = moving_average(a, squared_abs(g), self.rho)
        dx = g * safe_sqrt(d + self.eps) / safe_sqrt(a + self.eps)
        return (a, moving_average(d, squared_abs(dx), self.rho)), dx
