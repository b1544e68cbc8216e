"""Rules that pull the parameters towards zero; they go before others in a Chain."""

from dataclasses import dataclass

import torch
from torch import Tensor

from course_lib.rules.base import Rule, State, Step
from course_lib.rules.hyperparameters import number


@dataclass(frozen=True)
class WeightDecay(Rule):
    """Pull towards zero: dx = g + decay * x, the gradient of decay / 2 * sum |x|**2.

    Keras's l2=c is WeightDecay(2 * c).

    Args:
        decay: factor of x, >= 0.

    >>> step = WeightDecay(0.1).apply((), torch.tensor([2.0]), torch.tensor([1.0]))
    >>> step[1]
    tensor([1.2000])
    """

    decay: float = number(5e-4)

    def _apply(self, state: State, x: Tensor, g: Tensor) -> tuple[State, Step]:
        return state, g + self.decay * x


@dataclass(frozen=True)
class SignDecay(Rule):
    """Pull towards zero evenly: dx = g + decay * sign(x); Keras's l1=c is decay=c.

    Args:
        decay: factor of the sign, >= 0.
    """

    decay: float = number(1e-3)

    def _apply(self, state: State, x: Tensor, g: Tensor) -> tuple[State, Step]:
        return state, g + self.decay * torch.sgn(x)
