"""The rule of lesson 07's larger exercise, and what learners write instead of it.

`walk` is the oracle: momentum by plain arithmetic, a mask, a warm-up. A `Slip` changes
one thing of it; `SLIPS` names the likely ones.
"""

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

    mask: str = "agrees"  # or: none, inverted, differs, whole, ...
    share: str = "of the step"  # or: none, from 0, one late, unbounded, ...
    masks_memory: bool = False
    scales_memory: bool = False
    scales_gradient: bool = False
    forgets: bool = False
    lengthens: bool = False
    gives: str = "step"  # or: new x, minus


SLIPS = {
    "Nothing rests. Where dx and g have different signs, dx should be 0": (
        Slip(mask="none")
    ),
    "The wrong elements rest: those where dx and g agree should move": (
        Slip(mask="inverted")
    ),
    "The wrong elements rest: where dx and g have the same sign, dx should stay": (
        Slip(mask="differs")
    ),
    "The whole array rests or moves. Decide for each element: no `sum`, `all` or "
    "`any`": Slip(mask="whole"),
    "An element with the gradient 0 still moves. Only dx * g > 0 agrees": (
        Slip(mask="with zero")
    ),
    "An element with the gradient 0 still moves, if its dx is negative. Compare signs "
    "with `dx * g > 0`": Slip(mask="not both positive"),
    "dx has lost its size: multiply the inner step by the mask, not by a sign": (
        Slip(mask="of the signs")
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
    "There is no warm-up": Slip(share="none"),
    "The first step is scaled by 0. It should have 1 / warmup: count from 1": (
        Slip(share="from 0")
    ),
    "The first step has 2 / warmup; wanted 1 / warmup": Slip(share="early"),
    "Each step is scaled by 1 / warmup: the count that is returned does not grow": (
        Slip(share="stuck")
    ),
    "After the warm-up the steps go on growing. The share is at most 1": (
        Slip(share="unbounded")
    ),
    "The share falls. It should rise from 1 / warmup to 1": Slip(share="falling"),
    "The first steps are whole and the later ones small: `max` where `min` should be": (
        Slip(share="at least 1")
    ),
    "The steps that remain are lengthened, as in the paper. Leave that out": (
        Slip(lengthens=True)
    ),
    "That is the new x. Return the step alone; the caller takes it": (
        Slip(gives="new x")
    ),
    "dx has the wrong sign; the caller computes x - dx": Slip(gives="minus"),
}


def _share(kind: str, t: int, warmup: int) -> float:
    """Return what step t, counted from 1, is multiplied by."""
    return {
        "of the step": min(1.0, t / warmup),
        "none": 1.0,
        "from 0": min(1.0, (t - 1) / warmup),
        "early": min(1.0, (t + 1) / warmup),
        "stuck": 1 / warmup,
        "unbounded": t / warmup,
        "falling": max(0.0, 1 - (t - 1) / warmup),
        "at least 1": max(1.0, t / warmup),
    }[kind]


def mask(kind: str, dx: Tensor, g: Tensor) -> Tensor:
    """Return dx, and 0 where an element rests."""
    agrees = {
        "none": torch.ones_like(dx) > 0,
        "inverted": dx * g <= 0,
        "differs": dx * g < 0,
        "whole": ((dx * g).sum() > 0).expand_as(dx),
        "with zero": dx * g >= 0,
        "not both positive": (dx > 0) == (g > 0),
    }.get(kind, dx * g > 0)
    return torch.where(agrees, dx.sign() if kind == "of the signs" else dx, 0.0)


def walk(slip: Slip, gs: Tensor, seen: Tensor | None = None) -> list[Tensor]:
    """Return dx of each step of momentum with a mask and a warm-up.

    The mask asks the gradients that the outer rule has seen, by default `gs`.
    """
    v, steps = torch.zeros_like(X), []
    pairs = zip(gs, gs if seen is None else seen, strict=True)
    for t, (g, outer) in enumerate(pairs, start=1):
        share = _share(slip.share, t, WARMUP)
        old = torch.zeros_like(X) if slip.forgets else v
        v = RHO * old + ETA * (share * g if slip.scales_gradient else g)
        masked = mask(slip.mask, v, outer)
        dx = masked * (1.0 if slip.scales_gradient else share)
        if slip.masks_memory or slip.scales_memory:
            v = masked if slip.masks_memory else v
            v = share * v if slip.scales_memory else v
        if slip.lengthens:
            dx = dx / (masked != 0).double().mean().clamp(min=1e-8).float()
        steps.append({"new x": X - dx, "minus": -dx}.get(slip.gives, dx))
    return steps
