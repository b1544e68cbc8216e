"""Adam and its relatives: a moving average of gradients over one of their size."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from course_lib.rules.base import (
    Arrays,
    Rule,
    State,
    States,
    Step,
    bias_correction,
    moving_average,
    real_zeros_like,
    safe_sqrt,
    squared_abs,
)
from course_lib.rules.counts import Count, next_count, number_of
from course_lib.rules.hyperparameters import number


@dataclass(frozen=True)
class Adam(Rule):
    """Mean over root mean square: dx = eta * m^ / (sqrt(v^) + eps).

    m' = beta1 * m + (1 - beta1) * g and v' = beta2 * v + (1 - beta2) * |g|**2.

    Args:
        eta: step size, >= 0.
        beta: decay of the two moments, each in [0, 1).
        eps: added to the divisor, >= 0.

    State: (m, v, t).

    Source: Kingma and Ba 2015, arXiv 1412.6980.
    """

    eta: float = number(1e-3)
    beta: tuple[float, float] = number((0.9, 0.999), 0, 1)
    eps: float = number(1e-8)

    def _init(self, x: Tensor) -> State:
        return torch.zeros_like(x), real_zeros_like(x), Count(0)

    def _moments(self, state: State, g: Tensor) -> tuple[State, Tensor, Tensor]:
        """Return the new state, and both moments without their bias towards 0."""
        (m, v, t), (beta1, beta2) = state, self.beta
        t = next_count(t)
        m, v = moving_average(m, g, beta1), moving_average(v, squared_abs(g), beta2)
        return (m, v, t), m / bias_correction(beta1, t), v / bias_correction(beta2, t)

    def _apply(self, state: State, x: Tensor, g: Tensor) -> tuple[State, Step]:
        state, m, v = self._moments(state, g)
        return state, self.eta * m / (safe_sqrt(v) + self.eps)

    def fused_(self, states: States, xs: Arrays, gs: Arrays) -> list[State]:
        """Step arrays and moments in place by torch's kernel; return new states."""
        ms, vs, ts = (list(part) for part in zip(*states, strict=True))
        ms, vs, gs = map(_contiguous, (ms, vs, gs))  # the kernel doesn't check it
        nexts = {t: Count(t + 1) for t in ts}
        counts = {t: torch.full((), t + 1.0, device=xs[0].device) for t in nexts}
        torch._fused_adam_(
            *(list(xs), gs, ms, vs, [], [counts[t] for t in ts]),
            lr=self.eta,
            beta1=self.beta[0],
            beta2=self.beta[1],
            weight_decay=0.0,
            eps=self.eps,
            amsgrad=False,
            maximize=False,
        )
        return [(m, v, nexts[t]) for m, v, t in zip(ms, vs, ts, strict=True)]

    def fused(
        self, states: States, xs: Arrays, gs: Arrays
    ) -> tuple[list[State], list[Tensor]]:
        """Return new states and arrays; the arguments are not changed."""
        xs = [x.clone() for x in xs]
        states = [(m.clone(), v.clone(), t) for m, v, t in states]
        return self.fused_(states, xs, gs), xs


def has_fused_step(rule: object, x: Tensor) -> bool:
    """Tell whether torch has a kernel for this very rule and array.

    The rule is Adam, no subclass, and the array a dense real one on a CPU or GPU.
    """
    if type(rule) is not Adam or x.dtype not in (torch.float32, torch.float64):
        return False
    return x.is_contiguous() and (x.is_cpu or x.is_cuda)


def _contiguous(tensors: Arrays) -> list[Tensor]:
    """Return them contiguous; the gradient of x.sum() is one number in memory."""
    return [t if t.is_contiguous() else t.contiguous() for t in tensors]


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam whose weight decay does not pass through the moments.

    dx = eta * (adam + decay * x), or with couple=False, dx = eta * adam + decay * x,
    where eta does not scale the decay.

    Args:
        eta, beta, eps: as in `Adam`.
        decay: lambda, >= 0; torch.optim.AdamW's default is 0.01, this one's 0.
        couple: scale the decay by eta, as torch does and the paper does not.

    State: (m, v, t).

    Source: Loshchilov and Hutter 2019, arXiv 1711.05101.
    """

    decay: float = number(0.0)
    couple: bool = True

    def _apply(self, state: State, x: Tensor, g: Tensor) -> tuple[State, Step]:
        state, dx = super()._apply(state, x, g)
        return state, dx + (self.eta if self.couple else 1.0) * self.decay * x


@dataclass(frozen=True)
class AdaMax(Adam):
    """Adam that divides by the largest gradient: u' = max(beta2 * u, |g|).

    dx = eta * m^ / (u' + eps).

    Args:
        eta, eps: as in `Adam`.
        beta: decay of m and of u, each in [0, 1).

    State: (m, u, t).

    Source: Kingma and Ba 2015, section 7.1.
    """

    def _apply(self, state: State, x: Tensor, g: Tensor) -> tuple[State, Step]:
        (m, u, t), (beta1, beta2) = state, self.beta
        t = next_count(t)
        m, u = moving_average(m, g, beta1), torch.maximum(beta2 * u, g.abs())
        return (m, u, t), self.eta / bias_correction(beta1, t) * m / (u + self.eps)


@dataclass(frozen=True)
class AMSGrad(Adam):
    """Adam that never forgets a large gradient: w' = max(w, v').

    dx = eta * m' / (sqrt(w') + eps), without the correction of the bias; all three
    start at eps. torch's amsgrad=True corrects the bias and starts at 0.

    Args:
        eta: step size, >= 0.
        beta: decay of the two moments, each in [0, 1).
        eps: start of the state, and added to the divisor, >= 0.

    State: (m, v, w).

    Source: Reddi et al. 2018, arXiv 1904.09237.
    """

    def _init(self, x: Tensor) -> State:
        start = torch.full_like(real_zeros_like(x), self.eps)
        return torch.full_like(x, self.eps), start, start

    def _apply(self, state: State, x: Tensor, g: Tensor) -> tuple[State, Step]:
        (m, v, w), (beta1, beta2) = state, self.beta
        m, v = moving_average(m, g, beta1), moving_average(v, squared_abs(g), beta2)
        w = torch.maximum(w, v)
        return (m, v, w), self.eta * m / (safe_sqrt(w) + self.eps)


@dataclass(frozen=True)
class NAdam(Adam):
    """Adam with Nesterov's look ahead, with constant beta1.

    dx = eta * (beta1 * m' / (1 - beta1**(t + 1)) + (1 - beta1) * g / (1 - beta1**t))
    / (sqrt(beta2 * v' / (1 - beta2**t)) + eps). torch.optim.NAdam also decays beta1.

    Args:
        eta, beta, eps: as in `Adam`.

    State: (m, v, t).

    Source: Dozat 2016, openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ.
    """

    def _apply(self, state: State, x: Tensor, g: Tensor) -> tuple[State, Step]:
        (m, v, t), _, v_hat = self._moments(state, g)
        beta1, beta2 = self.beta
        ahead = beta1 * m / bias_correction(beta1, next_count(t))
        ahead = ahead + (1 - beta1) * g / bias_correction(beta1, t)
        return (m, v, t), self.eta * ahead / (safe_sqrt(beta2 * v_hat) + self.eps)


@dataclass(frozen=True)
class RAdam(Adam):
    """Adam that divides only once the variance of its divisor is small enough.

    With R = 2 / (1 - beta2) - 1 and rho = R - 2 * t * beta2**t / (1 - beta2**t): while
    rho <= 4, dx = eta * m^; after that Adam's step times
    sqrt((rho - 4) (rho - 2) R / ((R - 4) (R - 2) rho)).
    torch.optim.RAdam waits until rho > 5.

    Args:
        eta, beta, eps: as in `Adam`.

    State: (m, v, t).

    Source: Liu et al. 2020, arXiv 1908.03265.
    """

    def _apply(self, state: State, x: Tensor, g: Tensor) -> tuple[State, Step]:
        state, m, v = self._moments(state, g)
        beta2, t = self.beta[1], number_of(state[2])
        last = 2 / (1 - beta2) - 1
        rho = last - 2 * t * beta2**t / bias_correction(beta2, t)
        above, below = (rho - 4) * (rho - 2) * last, (last - 4) * (last - 2) * rho
        if isinstance(rho, Tensor):  # compiled code, which does not know the number
            factor = (above / below).clamp(min=0).sqrt()
            divided = self.eta * factor * m / (safe_sqrt(v) + self.eps)
            return state, torch.where(rho.to(m.device) <= 4, self.eta * m, divided)
        if rho <= 4:
            return state, self.eta * m
        factor = math.sqrt(above / below)
        return state, self.eta * factor * m / (safe_sqrt(v) + self.eps)


@dataclass(frozen=True)
class OAdam(Adam):
    """Optimistic Adam, for games: dx = 2 * step - the previous step.

    `step` is Adam's. It dampens the circling of two players that descend in turn.

    Args:
        eta, beta, eps: as in `Adam`.

    State: (Adam's state, the previous step).

    Source: Daskalakis et al. 2018, arXiv 1711.00141.
    """

    beta: tuple[float, float] = number((0.5, 0.9), 0, 1)

    def _init(self, x: Tensor) -> State:
        return super()._init(x), torch.zeros_like(x)

    def _apply(self, state: State, x: Tensor, g: Tensor) -> tuple[State, Step]:
        adam, previous = state
        adam, step = super()._apply(adam, x, g)
        return (adam, step), 2 * step - previous


@dataclass(frozen=True)
class AdaBelief(Adam):
    """Adam that divides by the distance of g from its moving average.

    dx = eta * m^ / (sqrt(s^) + eps), s' = beta2 * s + (1 - beta2) * |g - m'|**2 + eps.

    Args:
        eta: step size, >= 0.
        beta: decay of m and of s, each in [0, 1).
        eps: added to s in each step and to the divisor, >= 0.

    State: (m, s, t).

    Source: Zhuang et al. 2020, arXiv 2010.07468.
    """

    eps: float = number(1e-16)

    def _apply(self, state: State, x: Tensor, g: Tensor) -> tuple[State, Step]:
        (m, s, t), (beta1, beta2) = state, self.beta
        t, m = next_count(t), moving_average(m, g, beta1)
        s = moving_average(s, squared_abs(g - m), beta2) + self.eps
        m_hat, s_hat = m / bias_correction(beta1, t), s / bias_correction(beta2, t)
        return (m, s, t), self.eta * m_hat / (safe_sqrt(s_hat) + self.eps)
