"""The rule of lesson 07's larger exercise, and what learners write instead of it.

`walk` is the oracle: momentum by plain arithmetic, a mask, a warm-up. A `Slip` changes
one thing of it; `SLIPS` names the likely ones.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

ETA, RHO, WARMUP = 0.1, 0.5, 4
X = torch.tensor([[5.0, -2.0], [3.0, 1.0]])
GRADIENTS = torch.tensor(
    [
        [[1.0, 1.0], [-1.0, 2.0]],
        [[1.0, -0.2], [-1.0, 0.0]],
        [[-0.3, -0.4], [0.4, -0.4]],
        [[2.0, 0.5], [-0.1, 1.0]],
        [[0.1, -1.0], [2.0, 1.0]],
        [[1.0, 0.0], [-0.3, 0.0]],
    ]
)


@dataclass(frozen=True)
class Slip:
    """One thing that a rule does otherwise; the defaults are right."""

    mask: Callable[[Tensor, Tensor], Tensor] = lambda dx, g: dx * (dx * g > 0)
    share: Callable[[int], float] = lambda t: min(1.0, t / WARMUP)  # t counts from 1
    masks_memory: bool = False
    scales_memory: bool = False
    scales_gradient: bool = False
    forgets: bool = False
    lengthens: bool = False
    gives: Callable[[Tensor], Tensor] = lambda dx: dx


SLIPS = {
    "Nothing rests. Where dx and g have different signs, dx should be 0": Slip(
        mask=lambda dx, g: dx
    ),
    "The wrong elements rest: those where dx and g agree should move": Slip(
        mask=lambda dx, g: dx * (dx * g <= 0)
    ),
    "The wrong elements rest: where dx and g have the same sign, dx should stay": Slip(
        mask=lambda dx, g: dx * (dx * g < 0)
    ),
    "The whole array rests or moves. Decide for each element: no `sum`, `all` or "
    "`any`": Slip(mask=lambda dx, g: dx * ((dx * g).sum() > 0)),
    "An element with the gradient 0 still moves. Only dx * g > 0 agrees": Slip(
        mask=lambda dx, g: dx * (dx * g >= 0)
    ),
    "An element with the gradient 0 still moves, if its dx is negative. Compare signs "
    "with `dx * g > 0`": Slip(mask=lambda dx, g: dx * ((dx > 0) == (g > 0))),
    "dx has lost its size: multiply the inner step by the mask, not by a sign": Slip(
        mask=lambda dx, g: dx.sign() * (dx * g > 0)
    ),
    "The memory of the inner rule has been masked, too. The inner dx may be the very "
    "tensor that it remembers, so make a new one: no `dx *= ...`, no `dx[...] = 0`": (
        Slip(masks_memory=True)
    ),
    "The memory of the inner rule has been scaled, too. The inner dx may be the very "
    "tensor that it remembers, so make a new one: no `dx *= ...`": (
        Slip(scales_memory=True)
    ),
    "The memory of the inner rule has been masked and scaled. The inner dx may be the "
    "very tensor that it remembers, so make a new one: no `dx *= ...`": (
        Slip(masks_memory=True, scales_memory=True)
    ),
    "The gradient is scaled. Give the inner rule g as it is, and scale its step": (
        Slip(scales_gradient=True)
    ),
    "The inner rule starts at its first memory in each step. Return the memory that "
    "its `apply` gives": Slip(forgets=True),
    "There is no warm-up": Slip(share=lambda t: 1.0),
    "The first step is scaled by 0. It should have 1 / warmup: count from 1": Slip(
        share=lambda t: min(1.0, (t - 1) / WARMUP)
    ),
    "The first step has 2 / warmup; wanted 1 / warmup": Slip(
        share=lambda t: min(1.0, (t + 1) / WARMUP)
    ),
    "Each step is scaled by 1 / warmup: the count that is returned does not grow": Slip(
        share=lambda t: 1 / WARMUP
    ),
    "After the warm-up the steps go on growing. The share is at most 1": Slip(
        share=lambda t: t / WARMUP
    ),
    "The share falls. It should rise from 1 / warmup to 1": Slip(
        share=lambda t: max(0.0, 1 - (t - 1) / WARMUP)
    ),
    "The first steps are whole and the later ones small: `max` where `min` should be": (
        Slip(share=lambda t: max(1.0, t / WARMUP))
    ),
    "The steps that remain are lengthened, as in the paper. Leave that out": (
        Slip(lengthens=True)
    ),
    "That is the new x. Return the step alone; the caller takes it": Slip(
        gives=lambda dx: X - dx
    ),
    "dx has the wrong sign; the caller computes x - dx": Slip(gives=lambda dx: -dx),
}


def walk(slip: Slip, gs: Tensor, seen: Tensor | None = None) -> list[Tensor]:
    """Return dx of each step of momentum with a mask and a warm-up.

    The mask asks the gradients that the outer rule has seen, by default `gs`.
    """
    v, steps = torch.zeros_like(X), []
    pairs = zip(gs, gs if seen is None else seen, strict=True)
    for t, (g, outer) in enumerate(pairs, start=1):
        share = slip.share(t)
        old = torch.zeros_like(X) if slip.forgets else v
        v = RHO * old + ETA * (share * g if slip.scales_gradient else g)
        masked = slip.mask(v, outer)
        dx = masked * (1.0 if slip.scales_gradient else share)
        v = masked if slip.masks_memory else v
        v = share * v if slip.scales_memory else v
        if slip.lengthens:
            dx = dx / (masked != 0).double().mean().clamp(min=1e-8).float()
        steps.append(slip.gives(dx))
    return steps
