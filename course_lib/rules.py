"""Optimization rules as values: each is two functions, `init` and `apply`.

A rule holds hyperparameters and nothing else; it can't change. `init(x)` makes the
state for one array, `apply(state, x, g)` returns a new state and the step `dx`, and the
new array is x - dx. `course_lib.explicit` maps a rule over all arrays of a model.

The rules stand in order of rising complexity. In the formulas, g is the gradient, t
counts the steps from 1, and m^ = m / (1 - beta1**t), v^ = v / (1 - beta2**t).

Forms and defaults are those of Optimisers.jl 0.4 (Flux's rules) unless a docstring says
otherwise. Half-precision arrays are stepped in float32; |g|**2 is g times its
conjugate, so complex arrays work.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from course_lib import fused
from course_lib.counts import (
    Conditional,
    Count,
    TracedCount,
    chosen,
    next_of,
    number_of,
)
from course_lib.hyperparameters import betas, number, pair, plain, settle
from course_lib.trees import is_tracked, is_transformed, is_watching

State = Any  # a tensor, a Count, or tuples of these; () where nothing is remembered
Step = Tensor | Conditional | None  # None: no step this time


@dataclass(frozen=True)
class Rule:
    """The base of all rules: checks the hyperparameters, and widens half precision.

    A subclass defines `_init(x) -> state` and `_apply(state, x, g) -> (state, dx)`.

    Raises:
        ValueError: a hyperparameter is no number or out of its range.
    """

    def __post_init__(self) -> None:
        settle(self)

    def init(self, x: Tensor) -> State:
        """Return the state for an array before its first step."""
        _require_tensor(self, x)
        return self._init(_wide(x))

    def apply(self, state: State, x: Tensor, g: Tensor) -> tuple[State, Step]:
        """Return the new state and the step dx; x and g are left as they are.

        Args:
            state: from `init` or the step before.
            x: the array, of any shape; real, complex, or half precision.
            g: its gradient, of the same shape.

        Raises:
            ValueError: x and g don't fit, or the state is not of this rule.
        """
        _require_fit(self, x, g)
        try:
            state, dx = self._apply(state, _wide(x), _wide(g))
        except _MISFITS:
            _require_own(self, state, x)
            raise
        dx = dx.settled() if isinstance(dx, Conditional) else dx
        return state, None if dx is None else dx.to(x.dtype)

    def apply_all(
        self, states: Sequence[State], xs: Sequence[Tensor], gs: Sequence[Tensor]
    ) -> tuple[list[State], list[Step]]:
        """Apply the rule to several arrays; one that looks at all at once overrides.

        A step may be wider than its array: x - dx is rounded once, at the end.
        """
        is_own = getattr(type(self), "apply", None) is Rule.apply
        step = self._step if is_own else self.apply
        steps = [
            step(state, _wide(x), _wide(g))
            for state, x, g in zip(states, xs, gs, strict=True)
        ]
        return [state for state, _ in steps], [dx for _, dx in steps]

    def _step(self, state: State, x: Tensor, g: Tensor) -> tuple[State, Step]:
        """Apply the rule to arrays that fit and are wide, with no look at them."""
        state, dx = self._apply(state, x, g)
        return state, dx if dx is None or dx.dtype is x.dtype else dx.to(x.dtype)

    def _init(self, x: Tensor) -> State:
        return ()

    def _apply(self, state: State, x: Tensor, g: Tensor) -> tuple[State, Step]:
        raise NotImplementedError(
            f"{type(self).__name__} defines no _apply(state, x, g) -> (state, dx)."
        )


# Steps without and with memory


@dataclass(frozen=True)
class Descent(Rule):
    """Follow the slope: dx = eta * g.

    Args:
        eta: step size, >= 0.

    >>> Descent(0.1).apply((), torch.tensor([1.0]), torch.tensor([2.0]))
    ((), tensor([0.2000]))
    """

    eta: float = number(0.1)

    def _apply(self, state: State, x: Tensor, g: Tensor) -> tuple[State, Step]:
        return state, self.eta * g


@dataclass(frozen=True)
class Momentum(Rule):
    """Descend with memory: v' = rho * v + eta * g, dx = v'.

    The step size sits inside the velocity, as in Flux; torch.optim.SGD applies it
    outside, so the two agree only while eta is constant.

    Args:
        eta: step size, >= 0.
        rho: fraction of the old velocity that is kept, in [0, 1).

    State: the velocity v.

    >>> rule = Momentum(eta=0.1, rho=0.5)
    >>> x, g = torch.tensor([1.0]), torch.tensor([2.0])
    >>> v, step = rule.apply(rule.init(x), x, g)
    >>> x - step
    tensor([0.8000])

    Source: Polyak 1964, doi:10.1016/0041-5553(64)90137-5.
    """

    eta: float = number(0.01)
    rho: float = number(0.9, 0, 1, below=True)

    def _init(self, x: Tensor) -> State:
        return torch.zeros_like(x)

    def _apply(self, v: State, x: Tensor, g: Tensor) -> tuple[State, Step]:
        v = self.rho * v + self.eta * g
        return v, v


@dataclass(frozen=True)
class Nesterov(Rule):
    """Momentum with a look ahead: dx = (1 + rho) * eta * g - rho**2 * v.

    Then v' = rho * v - eta * g.

    Args:
        eta: step size, >= 0.
        rho: fraction of the old velocity that is kept, in [0, 1).

    State: the velocity v, which points downhill.

    Source: Nesterov 1983; form: Sutskever et al. 2013.
    """

    eta: float = number(1e-3)
    rho: float = number(0.9, 0, 1, below=True)

    def _init(self, x: Tensor) -> State:
        return torch.zeros_like(x)

    def _apply(self, v: State, x: Tensor, g: Tensor) -> tuple[State, Step]:
        dx = (1 + self.rho) * self.eta * g - self.rho**2 * v
        return self.rho * v - self.eta * g, dx


# Steps of a size for each element


@dataclass(frozen=True)
class RMSProp(Rule):
    """Divide by the recent size of the gradient: q' = rho * q + (1 - rho) * |g|**2.

    dx = eta * g / (sqrt(q') + eps). Centered, the mean gradient l is taken off first:
    sqrt(q' - |l'|**2).

    Args:
        eta: step size, >= 0.
        rho: decay of the averages, in [0, 1).
        eps: added to the divisor, >= 0.
        centered: divide by the deviation rather than the root mean square.

    State: (q, l), where l is () unless centered.

    Source: Hinton 2012, lecture 6e; centered: Graves 2013, arXiv 1308.0850.
    """

    eta: float = number(1e-3)
    rho: float = number(0.9, 0, 1, below=True)
    eps: float = number(1e-8)
    centered: bool = False

    def _init(self, x: Tensor) -> State:
        return _zeros_real(x), torch.zeros_like(x) if self.centered else ()

    def _apply(self, state: State, x: Tensor, g: Tensor) -> tuple[State, Step]:
        q, mean = state
        q = _decay(q, _abs2(g), self.rho)
        spread = q
        if self.centered:
            mean = _decay(mean, g, self.rho)
            spread = (q - _abs2(mean)).clamp(min=0)
        return (q, mean), self.eta * g / (root(spread) + self.eps)


@dataclass(frozen=True)
class Rprop(Rule):
    """Look only at signs: each element's step grows while its sign stays, else shrinks.

    An element whose sign flips rests for one step.

    Args:
        eta: first step size, >= 0; from the first step on it is within gamma. To
            adjust eta later changes nothing: the sizes in the state go their own way.
        ell: (shrink, grow) factors, 0 < shrink < 1 < grow.
        gamma: (smallest, largest) step size.

    State: (step sizes, gradients before).

    Source: Riedmiller and Braun 1993, doi:10.1109/ICNN.1993.298623.
    """

    eta: float = number(1e-3)
    ell: tuple[float, float] = pair(0.5, 1.2)
    gamma: tuple[float, float] = pair(1e-6, 50.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.ell[0] < 1 < self.ell[1]:
            raise ValueError(
                f"Rprop: got ell={self.ell}; wanted 0 < shrink < 1 < grow."
            )
        if not 0 < self.gamma[0] <= self.gamma[1]:
            raise ValueError(
                f"Rprop: got gamma={self.gamma}; wanted 0 < smallest <= largest."
            )

    def _init(self, x: Tensor) -> State:
        return torch.full_like(_zeros_real(x), self.eta), torch.zeros_like(x)

    def _apply(self, state: State, x: Tensor, g: Tensor) -> tuple[State, Step]:
        size, before = state
        agree = (g * before.conj()).real if g.is_complex() else g * before
        shrink, grow = self.ell
        size = torch.where(agree > 0, size * grow, size)
        size = torch.where(agree < 0, size * shrink, size).clamp(*self.gamma)
        g = torch.where(agree < 0, torch.zeros_like(g), g)
        return (size, g), size * torch.sgn(g)


@dataclass(frozen=True)
class AdaGrad(Rule):
    """Divide by the size of all gradients so far: a' = a + |g|**2, a = eps at first.

    dx = eta * g / (sqrt(a') + eps).

    Source: Duchi et al. 2011, jmlr.org/papers/v12/duchi11a.html.
    """

    eta: float = number(0.1)
    eps: float = number(1e-8)

    def _init(self, x: Tensor) -> State:
        return torch.full_like(_zeros_real(x), self.eps)

    def _apply(self, a: State, x: Tensor, g: Tensor) -> tuple[State, Step]:
        a = a + _abs2(g)
        return a, self.eta * g / (root(a) + self.eps)


@dataclass(frozen=True)
class AdaDelta(Rule):
    """Without a step size: dx = g * sqrt(D + eps) / sqrt(a' + eps).

    a' = rho * a + (1 - rho) * |g|**2 and D' = rho * D + (1 - rho) * |dx|**2.

    Source: Zeiler 2012, arXiv 1212.5701.
    """

    rho: float = number(0.9, 0, 1, below=True)
    eps: float = number(1e-8)

    def _init(self, x: Tensor) -> State:
        return _zeros_real(x), _zeros_real(x)

    def _apply(self, state: State, x: Tensor, g: Tensor) -> tuple[State, Step]:
        a, d = state
        a = _decay(a, _abs2(g), self.rho)
        dx = g * root(d + self.eps) / root(a + self.eps)
        return (a, _decay(d, _abs2(dx), self.rho)), dx


# Moments: Adam and its relatives


@dataclass(frozen=True)
class Adam(Rule):
    """Mean over deviation: dx = eta * m^ / (sqrt(v^) + eps).

    m' = beta1 * m + (1 - beta1) * g and v' = beta2 * v + (1 - beta2) * |g|**2.

    Args:
        eta: step size, >= 0.
        beta: decay of the two moments, each in [0, 1).
        eps: added to the divisor, >= 0.

    State: (m, v, t).

    Source: Kingma and Ba 2015, arXiv 1412.6980.
    """

    eta: float = number(1e-3)
    beta: tuple[float, float] = betas(0.9, 0.999)
    eps: float = number(1e-8)

    def _init(self, x: Tensor) -> State:
        return torch.zeros_like(x), _zeros_real(x), Count(0)

    def _moments(self, state: State, g: Tensor) -> tuple[State, Tensor, Tensor]:
        """Return the new state, and both moments without their bias towards 0."""
        m, v, t = state
        t = next_of(t)
        m, v = _decay(m, g, self.beta[0]), _decay(v, _abs2(g), self.beta[1])
        first, second = self.beta
        return (m, v, t), m / _lack(first, t), v / _lack(second, t)

    def _apply(self, state: State, x: Tensor, g: Tensor) -> tuple[State, Step]:
        state, m, v = self._moments(state, g)
        return state, self.eta * m / (root(v) + self.eps)

    def fused_(
        self,
        states: Sequence[State],
        xs: Sequence[Tensor],
        gs: Sequence[Tensor],
    ) -> list[State]:
        """Step arrays and moments in place by torch's kernel; return new states."""
        ms, vs, ts = (list(part) for part in zip(*states, strict=True))
        ms, vs, gs = _dense(ms), _dense(vs), _dense(gs)  # the kernel takes it on trust
        nexts = {t: Count(t + 1) for t in ts}
        counts = {t: torch.full((), t + 1.0, device=xs[0].device) for t in nexts}
        torch._fused_adam_(
            list(xs),
            gs,
            ms,
            vs,
            [],
            [counts[t] for t in ts],
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
        self, states: Sequence[State], xs: Sequence[Tensor], gs: Sequence[Tensor]
    ) -> tuple[list[State], list[Tensor], bool | None]:
        """Return new states and arrays, and whether all gradients are finite.

        The arguments stay as they are. None: it was no less work to look apart.
        """
        if not fused.takes(xs):
            xs = [x.clone() for x in xs]
            states = [(m.clone(), v.clone(), t) for m, v, t in states]
            return self.fused_(states, xs, gs), xs, None
        ms, vs, ts = (list(part) for part in zip(*states, strict=True))
        counts = [Count(t + 1) for t in ts]
        options = {"eta": self.eta, "beta": self.beta, "eps": self.eps}
        arrays = map(_dense, (xs, gs, ms, vs))
        xs, ms, vs, is_finite = fused.adam(*arrays, counts, **options)
        return list(zip(ms, vs, counts, strict=True)), xs, is_finite


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam whose weight decay does not pass through the moments.

    dx = eta * (adam + decay * x), or with couple=False, dx = eta * adam + decay * x,
    where eta does not scale the decay.

    Args:
        eta, beta, eps: as in Adam.
        decay: lambda, >= 0; torch.optim.AdamW's default is 0.01, this one's 0.
        couple: scale the decay by eta, as torch does and the paper does not.

    Source: Loshchilov and Hutter 2019, arXiv 1711.05101.
    """

    decay: float = number(0.0)
    couple: bool = True

    def _apply(self, state: State, x: Tensor, g: Tensor) -> tuple[State, Step]:
        state, dx = super()._apply(state, x, g)
        return state, dx + (self.eta if self.couple else 1.0) * self.decay * x


@dataclass(frozen=True)
class AdaMax(Adam):
    """Adam with the largest gradient for the deviation: u' = max(beta2 * u, |g|).

    dx = eta * m^ / (u' + eps).

    State: (m, u, t).

    Source: Kingma and Ba 2015, section 7.1.
    """

    def _apply(self, state: State, x: Tensor, g: Tensor) -> tuple[State, Step]:
        m, u, t = state
        t = next_of(t)
        m, u = _decay(m, g, self.beta[0]), torch.maximum(self.beta[1] * u, g.abs())
        return (m, u, t), self.eta / _lack(self.beta[0], t) * m / (u + self.eps)


@dataclass(frozen=True)
class AMSGrad(Rule):
    """Adam that never forgets a large deviation: w' = max(w, v').

    dx = eta * m' / (sqrt(w') + eps), without the correction of the bias; all three
    start at eps. torch's amsgrad=True corrects the bias and starts at 0.

    State: (m, v, w).

    Source: Reddi et al. 2018, arXiv 1904.09237.
    """

    eta: float = number(1e-3)
    beta: tuple[float, float] = betas(0.9, 0.999)
    eps: float = number(1e-8)

    def _init(self, x: Tensor) -> State:
        start = torch.full_like(_zeros_real(x), self.eps)
        return torch.full_like(x, self.eps), start, start

    def _apply(self, state: State, x: Tensor, g: Tensor) -> tuple[State, Step]:
        m, v, w = state
        m, v = _decay(m, g, self.beta[0]), _decay(v, _abs2(g), self.beta[1])
        w = torch.maximum(w, v)
        return (m, v, w), self.eta * m / (root(w) + self.eps)


@dataclass(frozen=True)
class NAdam(Adam):
    """Adam with Nesterov's look ahead, with constant beta1.

    dx = eta * (beta1 * m' / (1 - beta1**(t + 1)) + (1 - beta1) * g / (1 - beta1**t))
    / (sqrt(beta2 * v' / (1 - beta2**t)) + eps). torch.optim.NAdam also decays beta1.

    Source: Dozat 2016, openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ.
    """

    def _apply(self, state: State, x: Tensor, g: Tensor) -> tuple[State, Step]:
        (m, v, t), _, v_hat = self._moments(state, g)
        first, second = self.beta
        ahead = first * m / _lack(first, next_of(t)) + (1 - first) * g / _lack(first, t)
        return (m, v, t), self.eta * ahead / (root(second * v_hat) + self.eps)


@dataclass(frozen=True)
class RAdam(Adam):
    """Adam that divides only once the deviation can be trusted.

    With R = 2 / (1 - beta2) - 1 and rho = R - 2 * t * beta2**t / (1 - beta2**t): while
    rho <= 4, dx = eta * m^; after that Adam's step times
    sqrt((rho - 4) (rho - 2) R / ((R - 4) (R - 2) rho)).
    torch.optim.RAdam waits until rho > 5.

    Source: Liu et al. 2020, arXiv 1908.03265.
    """

    def _apply(self, state: State, x: Tensor, g: Tensor) -> tuple[State, Step]:
        state, m, v = self._moments(state, g)
        last, second, t = 2 / (1 - self.beta[1]) - 1, self.beta[1], number_of(state[2])
        rho = last - 2 * t * second**t / _lack(second, t)
        above, below = (rho - 4) * (rho - 2) * last, (last - 4) * (last - 2) * rho
        if isinstance(rho, Tensor):  # compiled, and not known: both ways at once
            trust = (above / below).clamp(min=0).sqrt()
            divided = self.eta * trust * m / (root(v) + self.eps)
            return state, torch.where(rho.to(m.device) <= 4, self.eta * m, divided)
        if rho <= 4:
            return state, self.eta * m
        return state, self.eta * math.sqrt(above / below) * m / (root(v) + self.eps)


@dataclass(frozen=True)
class OAdam(Adam):
    """Optimistic Adam, for games: dx = 2 * step - the step before.

    `step` is Adam's. It dampens the circling of two players that descend in turn.

    State: (Adam's state, the step before).

    Source: Daskalakis et al. 2018, arXiv 1711.00141.
    """

    beta: tuple[float, float] = betas(0.5, 0.9)

    def _init(self, x: Tensor) -> State:
        return super()._init(x), torch.zeros_like(x)

    def _apply(self, state: State, x: Tensor, g: Tensor) -> tuple[State, Step]:
        adam, before = state
        adam, step = super()._apply(adam, x, g)
        return (adam, step), 2 * step - before


@dataclass(frozen=True)
class AdaBelief(Adam):
    """Adam that divides by the surprise, how far g lies from its mean.

    s' = beta2 * s + (1 - beta2) * |g - m'|**2 + eps.

    dx = eta * m^ / (sqrt(s^) + eps).

    State: (m, s, t).

    Source: Zhuang et al. 2020, arXiv 2010.07468.
    """

    eps: float = number(1e-16)

    def _apply(self, state: State, x: Tensor, g: Tensor) -> tuple[State, Step]:
        m, s, t = state
        t = next_of(t)
        m = _decay(m, g, self.beta[0])
        s = _decay(s, _abs2(g - m), self.beta[1]) + self.eps
        m_hat, s_hat = m / _lack(self.beta[0], t), s / _lack(self.beta[1], t)
        return (m, s, t), self.eta * m_hat / (root(s_hat) + self.eps)


@dataclass(frozen=True)
class Lion(Rule):
    """Only the sign: dx = eta * sign(beta1 * m + (1 - beta1) * g).

    Then m' = beta2 * m + (1 - beta2) * g. This is the paper's form; Optimisers.jl has
    the two betas swapped.

    State: m.

    Source: Chen et al. 2023, arXiv 2302.06675.
    """

    eta: float = number(1e-3)
    beta: tuple[float, float] = betas(0.9, 0.999)

    def _init(self, x: Tensor) -> State:
        return torch.zeros_like(x)

    def _apply(self, m: State, x: Tensor, g: Tensor) -> tuple[State, Step]:
        dx = self.eta * torch.sgn(_decay(m, g, self.beta[0]))
        return _decay(m, g, self.beta[1]), dx


# Gradients on their way to a rule: these stand in a Chain


@dataclass(frozen=True)
class WeightDecay(Rule):
    """Pull towards zero: dx = g + decay * x, the gradient of decay / 2 * sum |x|**2.

    Keras's l2=c is WeightDecay(2 * c).

    >>> step = WeightDecay(0.1).apply((), torch.tensor([2.0]), torch.tensor([1.0]))
    >>> step[1]
    tensor([1.2000])
    """

    decay: float = number(5e-4)

    def _apply(self, state: State, x: Tensor, g: Tensor) -> tuple[State, Step]:
        return state, g + self.decay * x


@dataclass(frozen=True)
class SignDecay(Rule):
    """Pull towards zero evenly: dx = g + decay * sign(x); Keras's l1=c is decay=c."""

    decay: float = number(1e-3)

    def _apply(self, state: State, x: Tensor, g: Tensor) -> tuple[State, Step]:
        return state, g + self.decay * torch.sgn(x)


@dataclass(frozen=True)
class ClipGrad(Rule):
    """Clamp each element to [-delta, delta]; a complex one's two parts each."""

    delta: float = number(10.0)

    def _apply(self, state: State, x: Tensor, g: Tensor) -> tuple[State, Step]:
        if g.is_complex():
            parts = torch.view_as_real(g).clamp(-self.delta, self.delta)
            return state, torch.view_as_complex(parts)
        return state, g.clamp(-self.delta, self.delta)


@dataclass(frozen=True)
class ClipNorm(Rule):
    """Shrink each array whose p-norm exceeds omega to that norm.

    torch.nn.utils.clip_grad_norm_ looks at all arrays together: `ClipGlobalNorm`.

    Args:
        omega: the largest norm, >= 0.
        p: which norm, >= 1; math.inf is the largest element.

    Raises:
        ValueError: the norm is not finite (when applied).
    """

    omega: float = number(10.0)
    p: float = number(2.0, 1)

    def _apply(self, state: State, x: Tensor, g: Tensor) -> tuple[State, Step]:
        return state, self._clipped([g])[0]

    def _clipped(self, gs: Sequence[Tensor]) -> list[Tensor]:
        norm = _norm(gs, self.p)
        if not is_traced(norm):
            if norm.isfinite():
                return _times(gs, self._factor(norm))
            return self._clipped_overflow(gs, norm)
        # Not known yet whether it overflows: both ways, and one is chosen.
        is_finite, plain = norm.isfinite(), _times(gs, self._factor(norm))
        pairs = zip(plain, self._clipped_overflow(gs, norm), strict=True)
        return [torch.where(is_finite.to(a.device), a, b) for a, b in pairs]

    def _factor(self, norm: Tensor) -> Tensor:
        is_long = norm > self.omega  # a divisor 0 would spoil derivatives
        return torch.where(is_long, self.omega / torch.where(is_long, norm, 1.0), 1.0)

    def _clipped_overflow(self, gs: Sequence[Tensor], norm: Tensor) -> list[Tensor]:
        """Clip large gradients, whose norm is beyond the dtype, as multiples of one."""
        scale = _norm(gs, math.inf).detach()
        if not is_traced(scale) and not scale.isfinite():
            raise ValueError(
                f"{type(self).__name__}: the gradient's norm is {norm.item()}; wanted "
                "a finite one. Look for nan or inf in the loss."
            )
        scale = torch.where(scale > 0, scale, 1.0)
        units = [g / scale.to(g.device) for g in gs]
        norm = _norm(units, self.p)
        norm = torch.where(norm > 0, norm, 1.0)
        return _times(units, torch.minimum(scale, self.omega / norm))


@dataclass(frozen=True)
class ClipGlobalNorm(ClipNorm):
    """Shrink all arrays by one factor if their common p-norm exceeds omega.

    Like torch.nn.utils.clip_grad_norm_. "All" are the arrays of a tree that have this
    rule, frozen ones and those without a gradient left out. They may have other rules
    behind it; what stands before it must be the same for all. Applied to one array
    alone it is ClipNorm.
    """

    def apply_all(
        self, states: Sequence[State], xs: Sequence[Tensor], gs: Sequence[Tensor]
    ) -> tuple[list[State], list[Step]]:
        """Return each gradient times one factor."""
        return list(states), self._clipped([_wide(g) for g in gs])


# Rules made of rules


@dataclass(frozen=True, init=False)
class Chain(Rule):
    """Rules one after another: the step of each is the gradient of the next.

    >>> rule = Chain(ClipGrad(1.0), Descent(0.1))
    >>> x, g = torch.tensor([1.0]), torch.tensor([5.0])
    >>> rule.apply(rule.init(x), x, g)[1]
    tensor([0.1000])

    State: a tuple of the rules' states. Where a rule gives no step, the rules after it
    rest and keep their states.
    """

    rules: tuple[Rule, ...]

    def __init__(self, *rules: Rule) -> None:
        for rule in rules:
            if not is_rule(rule):
                raise ValueError(
                    f"Chain: got {rule!r}; wanted rules, for example "
                    "Chain(ClipGrad(1.0), Adam())."
                )
        for rule in _unchained(rules)[:-1]:
            if isinstance(rule, MixedPrecision):
                raise ValueError(
                    "Chain: a rule stands after MixedPrecision; its step would part "
                    "the array from its precise copy. Wanted MixedPrecision last, or "
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

    def apply_all(
        self, states: Sequence[State], xs: Sequence[Tensor], gs: Sequence[Tensor]
    ) -> tuple[list[State], list[Step]]:
        """Apply one rule to all arrays, then the next."""
        table, dxs = [list(state) for state in states], list(gs)
        for place, rule in enumerate(self.rules):
            moving = [i for i, dx in enumerate(dxs) if dx is not None]
            if not moving:
                break
            new, steps = apply_conditional(
                rule,
                [table[i][place] for i in moving],
                [xs[i] for i in moving],
                [dxs[i] for i in moving],
            )
            for i, state, dx in zip(moving, new, steps, strict=True):
                table[i][place], dxs[i] = state, dx
        return [tuple(row) for row in table], dxs


@dataclass(frozen=True)
class AccumulateGradients(Rule):
    """Take n gradients, then pass on their mean; no step in between.

    Where n is adjusted to less than it holds, the next one ends the round.

    State: (sum of the gradients, how many).

    >>> rule = AccumulateGradients(2)
    >>> x, g = torch.tensor([1.0]), torch.tensor([2.0])
    >>> state, step = rule.apply(rule.init(x), x, g)
    >>> rule.apply(state, x, 2 * g)[1]
    tensor([3.])
    """

    n: int = 4

    def __post_init__(self) -> None:
        n = plain(self.n)
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise ValueError(
                f"AccumulateGradients: got n={self.n!r}; wanted an int >= 1."
            )
        object.__setattr__(self, "n", n)

    def _init(self, x: Tensor) -> State:
        return torch.zeros_like(x), Count(0)

    def _apply(self, state: State, x: Tensor, g: Tensor) -> tuple[State, Step]:
        total, count = state[0] + g, next_of(state[1])
        number = number_of(count)
        if isinstance(number, Tensor):  # compiled, and not known
            is_due, start = number >= self.n, (torch.zeros_like(total), Count(0))
            state = chosen(is_due, start, (total, count))
            return state, Conditional(total / number, is_due)
        if number < self.n:
            return (total, count), None
        return (torch.zeros_like(total), Count(0)), total / number

    def _step(self, state: State, x: Tensor, g: Tensor) -> tuple[State, Step]:
        return self._apply(state, x, g)  # a step that may be conditional


@dataclass(frozen=True)
class MixedPrecision(Rule):
    """Keep a precise copy of each array, step that, and round the array from it.

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

    def __post_init__(self) -> None:
        if not is_rule(self.rule):
            raise ValueError(
                f"MixedPrecision: got rule={self.rule!r}; wanted a rule, for example "
                "Adam()."
            )
        if any(isinstance(each, MixedPrecision) for each in _unchained([self.rule])):
            raise ValueError(
                "MixedPrecision: got one inside of one; wanted one precise copy of "
                "each array. Leave the inner one out."
            )
        is_dtype = isinstance(self.dtype, torch.dtype)
        if not (is_dtype and (self.dtype.is_floating_point or self.dtype.is_complex)):
            raise ValueError(
                f"MixedPrecision: got dtype={self.dtype!r}; wanted a floating-point "
                "one, for example torch.float32."
            )

    def init(self, x: Tensor) -> State:
        """Return (the copy, the rule's state)."""
        _require_tensor(self, x)
        if x.is_complex() != self.dtype.is_complex:
            raise ValueError(
                f"MixedPrecision: got an array of {x.dtype}; its copy would be of "
                f"{self.dtype}. Wanted both real or both complex: pass another dtype."
            )
        master = x.to(self.dtype, copy=True)
        return master, self.rule.init(master)

    def apply(self, state: State, x: Tensor, g: Tensor) -> tuple[State, Step]:
        """Step the copy; dx leads from x to the copy."""
        _require_fit(self, x, g)
        try:
            (state,), (dx,) = self.apply_all([state], [x], [g])
        except _MISFITS:
            _require_own(self, state, x)
            raise
        return state, dx.settled() if isinstance(dx, Conditional) else dx

    def apply_all(
        self, states: Sequence[State], xs: Sequence[Tensor], gs: Sequence[Tensor]
    ) -> tuple[list[State], list[Step]]:
        """Step the copies, all in one call of the rule."""
        masters, inner = (list(part) for part in zip(*states, strict=True))
        for master, x in zip(masters, xs, strict=True):
            if torch.is_grad_enabled() and is_tracked(x) and not is_tracked(master):
                raise ValueError(
                    "MixedPrecision: the array is differentiated, but its copy in the "
                    "state has no graph, and the step would lose the derivative. Call "
                    "setup for these params inside of what is differentiated; a leaf "
                    "that requires a gradient, as params.view_as(params)."
                )
        inner, dxs = apply_all_of(self.rule)(
            inner, masters, [g.to(self.dtype) for g in gs]
        )
        moved = [
            self.moved(m, x, dx) for m, x, dx in zip(masters, xs, dxs, strict=True)
        ]
        masters = [master for master, _ in moved]
        return list(zip(masters, inner, strict=True)), [dx for _, dx in moved]

    @staticmethod
    def moved(copy: Tensor, x: Tensor, dx: Step) -> tuple[Tensor, Step]:
        """Return the copy one step on, and the step that leads from x to it."""
        if dx is None:
            return copy, None
        if isinstance(dx, Conditional):
            copy, step = MixedPrecision.moved(copy, x, dx.settled())
            return copy, Conditional(step, dx.is_due)
        copy = (copy - dx).to(copy.dtype)
        return copy, x.to(copy.dtype) - copy


# Small helpers


def is_rule(thing: Any) -> bool:
    """Tell whether it has what a rule needs; the class Adam is no rule, Adam() is."""
    has_both = hasattr(thing, "init") and hasattr(thing, "apply")
    return has_both and not isinstance(thing, type)


def apply_all_of(rule: Any) -> Any:
    """Return the rule's apply_all; one of the reader's own may have only `apply`."""
    own = getattr(rule, "apply_all", None)
    return own or (lambda states, xs, gs: Rule.apply_all(rule, states, xs, gs))


def apply_conditional(
    rule: Any, states: Sequence[State], xs: Sequence[Tensor], gs: Sequence[Step]
) -> tuple[list[State], list[Step]]:
    """Apply the rule; where a gradient is conditional, so are state and step."""
    if not torch.compiler.is_dynamo_compiling():
        return apply_all_of(rule)(states, xs, gs)
    plain = [g.dx if isinstance(g, Conditional) else g for g in gs]
    new, dxs = apply_all_of(rule)(states, xs, plain)
    for i, g in enumerate(gs):
        if isinstance(g, Conditional):
            new[i] = chosen(g.is_due, new[i], states[i])
            is_due, dx = g.is_due, dxs[i]
            if isinstance(dx, Conditional):
                is_due, dx = is_due & dx.is_due, dx.dx
            dxs[i] = None if dx is None else Conditional(dx, is_due)
    return new, dxs


def _unchained(rules: Sequence[Any]) -> list[Any]:
    """Return the rules, with those of a Chain among them in its place."""
    found: list[Any] = []
    for rule in rules:
        found += _unchained(rule.rules) if isinstance(rule, Chain) else [rule]
    return found


def _norm(gs: Sequence[Tensor], p: float) -> Tensor:
    """Return the p-norm of all arrays together."""
    norm_of = _norm_of
    if is_watching() or any(g.requires_grad for g in gs):
        norm_of = _watched_norm_of
    norms = [norm_of(g, p) for g in gs]
    home = norms[0].device
    return norm_of(torch.stack([each.to(home) for each in norms]), p)


def _norm_of(g: Tensor, p: float) -> Tensor:
    # Of an empty array torch knows no largest element; its 2-norm is 0.
    return torch.linalg.vector_norm(g, p if g.numel() else 2)


def _watched_norm_of(g: Tensor, p: float) -> Tensor:
    is_zero = (g == 0).all()  # where torch's second derivative is nan
    norm = _norm_of(torch.where(is_zero, 1.0, g), p)
    return torch.where(is_zero, 0.0, norm)


def _times(gs: Sequence[Tensor], factor: Tensor) -> list[Tensor]:
    return [(g * factor.to(g.device)).to(g.dtype) for g in gs]


def root(v: Tensor) -> Tensor:
    """Return sqrt(v), with the derivative 0 at 0, where that of sqrt is infinite.

    v is the square of a gradient, and sqrt(v) its size: |g| has 0 for a subgradient.
    """
    if not (v.requires_grad or is_watching()):
        return v.sqrt()
    is_zero = v == 0
    return torch.where(is_zero, 0.0, torch.where(is_zero, 1.0, v).sqrt())


def form_of(state: State) -> Any:
    """Return which kinds of things, in which tuples, a state is made of."""
    if isinstance(state, tuple):
        return tuple(map(form_of, state))
    if isinstance(state, Tensor):
        return Tensor
    return Count if isinstance(state, TracedCount) else type(state)


_MISFITS = TypeError, ValueError, IndexError, AttributeError  # of a state taken apart


def _require_own(rule: Any, state: State, x: Tensor) -> None:
    """Refuse a state that the rule did not make, once a step with it has failed."""
    if form_of(state) != form_of(rule.init(x)):
        raise ValueError(
            f"{type(rule).__name__}.apply: the state is not one of {rule}. Wanted that "
            "of its `init` or of the step before."
        )


def _require_tensor(rule: Any, x: Any) -> None:
    if not isinstance(x, Tensor):
        raise ValueError(
            f"{type(rule).__name__}.init: got {type(x).__name__}; wanted a tensor. For "
            "a tree of them, call setup(rule, params)."
        )


def _require_fit(rule: Any, x: Any, g: Any) -> None:
    are_tensors = isinstance(x, Tensor) and isinstance(g, Tensor)
    if (
        are_tensors
        and x.shape == g.shape
        and (x.dtype is g.dtype or x.is_complex() or not g.is_complex())
    ):
        return
    kinds = [
        f"{t.dtype} of shape {tuple(t.shape)}"
        if isinstance(t, Tensor)
        else type(t).__name__
        for t in (x, g)
    ]
    raise ValueError(
        f"{type(rule).__name__}.apply: got {kinds[0]} for the array and {kinds[1]} for "
        "its gradient; wanted two tensors of one shape, both real or the array "
        "complex. For trees, call update(state, params, grads)."
    )


def _decay(average: Tensor, new: Tensor, rate: float) -> Tensor:
    """Return rate * average + (1 - rate) * new."""
    if new.dtype is not average.dtype:
        new = new.to(average.dtype)
    return torch.lerp(average, new, 1 - rate)


def _lack(rate: float, t: Any) -> Any:
    """Return 1 - rate**t, what an average that started at 0 lacks after t steps."""
    return 1 - rate ** number_of(t)


def _dense(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return them contiguous; the gradient of x.sum() is one number in memory."""
    return [t if t.is_contiguous() else t.contiguous() for t in tensors]


def _abs2(g: Tensor) -> Tensor:
    return (g * g.conj()).real if g.is_complex() else g * g


def _zeros_real(x: Tensor) -> Tensor:
    return torch.zeros_like(x.real) if x.is_complex() else torch.zeros_like(x)


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def is_traced(x: Tensor) -> bool:
    """Tell whether a transform or a compiler is looking, so that x has no value yet."""
    return torch.compiler.is_compiling() or is_transformed(x)


def has_fused(rule: Any) -> bool:
    """Tell whether torch has a kernel for this very rule: Adam, and no subclass."""
    return type(rule) is Adam


def is_fusible(x: Tensor) -> bool:
    """Tell whether torch's fused kernels take this array."""
    is_plain = x.dtype in (torch.float32, torch.float64) and x.is_contiguous()
    return is_plain and (x.is_cpu or x.is_cuda)
