"""Rules that follow the gradient or its sign, with and without memory."""

from dataclasses import dataclass

import torch
from torch import Tensor

from course_lib.rules.base import Rule, State, Step, moving_average, real_zeros_like
from course_lib.rules.hyperparameters import number


@dataclass(frozen=True)
class Descent(Rule):
    """Gradient descent: dx = eta * g.

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

    The step size is inside the velocity, as in Flux; torch.optim.SGD applies it
    outside, so the two agree only while eta is constant.

    Args:
        eta: step size, >= 0.
        rho: decay of the velocity, in [0, 1).

    State: the velocity v.

    >>> rule = Momentum(eta=0.1, rho=0.5)
    >>> x, g = torch.tensor([1.0]), torch.tensor([2.0])
    >>> v, step = rule.apply(rule.init(x), x, g)
    >>> x - step
    tensor([0.8000])

    Source: Polyak 1964, doi:10.1016/0041-5553(64)90137-5.
    """

    eta: float = number(0.01)
    rho: float = number(0.9, 0, 1)

    def _init(self, x: Tensor) -> State:
        return torch.zeros_like(x)

    def _apply(self, v: State, x: Tensor, g: Tensor) -> tuple[State, Step]:
        v = self.rho * v + self.eta * g
        return v, v


@dataclass(frozen=True)
class Nesterov(Momentum):
    """Momentum with a look ahead: dx = (1 + rho) * eta * g - rho**2 * v.

    Then v' = rho * v - eta * g.

    Args:
        eta: step size, >= 0.
        rho: decay of the velocity, in [0, 1).

    State: the velocity v, which points downhill.

    Source: Nesterov 1983; form: Sutskever et al. 2013.
    """

    eta: float = number(1e-3)

    def _apply(self, v: State, x: Tensor, g: Tensor) -> tuple[State, Step]:
        dx = (1 + self.rho) * self.eta * g - self.rho**2 * v
        return self.rho * v - self.eta * g, dx


@dataclass(frozen=True)
class Rprop(Rule):
    """Use only signs: each element's step grows while its sign stays, else shrinks.

    An element whose sign flips takes no step once.

    Args:
        eta: first step size, >= 0; from the first step on it is within gamma. To
            adjust eta later changes nothing: the step sizes are in the state.
        ell: (shrink, grow) factors, 0 < shrink < 1 < grow.
        gamma: (smallest, largest) step size.

    State: (step sizes, previous gradients).

    Source: Riedmiller and Braun 1993, doi:10.1109/ICNN.1993.298623.
    """

    eta: float = number(1e-3)
    ell: tuple[float, float] = number((0.5, 1.2))
    gamma: tuple[float, float] = number((1e-6, 50.0))

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
        return torch.full_like(real_zeros_like(x), self.eta), torch.zeros_like(x)

    def _apply(self, state: State, x: Tensor, g: Tensor) -> tuple[State, Step]:
        size, previous = state
        agreement = (g * previous.conj()).real if g.is_complex() else g * previous
        shrink, grow = self.ell
        size = torch.where(agreement > 0, size * grow, size)
        size = torch.where(agreement < 0, size * shrink, size).clamp(*self.gamma)
        g = torch.where(agreement < 0, torch.zeros_like(g), g)
        return (size, g), size * torch.sgn(g)


@dataclass(frozen=True)
class Lion(Rule):
    """Only the sign: dx = eta * sign(beta1 * m + (1 - beta1) * g).

    Then m' = beta2 * m + (1 - beta2) * g. This is the paper's form; in the
    line of the state Optimisers.jl 0.4 has beta2 and 1 - beta2 swapped.

    Args:
        eta: step size, >= 0.
        beta: decay of the momentum in the step and in the state, each in [0, 1).

    State: the momentum m.

    Source: Chen et al. 2023, arXiv 2302.06675.
    """

    eta: float = number(1e-3)
    beta: tuple[float, float] = number((0.9, 0.999), 0, 1)

    def _init(self, x: Tensor) -> State:
        return torch.zeros_like(x)

    def _apply(self, m: State, x: Tensor, g: Tensor) -> tuple[State, Step]:
        dx = self.eta * torch.sgn(moving_average(m, g, self.beta[0]))
        return moving_average(m, g, self.beta[1]), dx
