"""The judge of lesson 05's `vat_loss`, and what `vat_term` shares with it.

The oracle takes one sample at a time; `_FAULTS` names its likely mistakes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from course_lib.lessons.checks import (
    close,
    gradient,
    name_mistake,
    require_close,
    require_unchanged,
)
from course_lib.lessons.exercises import NotYet

EPS, XI = 1.5, 0.5
_STAGES = {
    0: "With iterations=0 (the start d itself, made length 1)",
    1: "With one gradient",
    3: "With three gradients",
}


def judge(answer: Callable[..., Tensor]) -> None:
    """Judge the loss after no gradient, one and three."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        layers = nn.Flatten(), nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)
        model = nn.Sequential(*layers).double()
        for parameter in model.parameters():
            parameter.data.mul_(4)
        x, d = torch.randn(2, 4, 1, 2, 3, dtype=torch.float64)
    d = d * torch.arange(1.0, 5.0, dtype=torch.float64)[:, None, None, None]
    for iterations, stage in _STAGES.items():
        setting = model, x, d, EPS, XI, iterations
        kept = 0.7 if iterations == 3 else None  # of an earlier term of the loss
        for parameter in model.parameters():
            parameter.grad = None if kept is None else torch.full_like(parameter, kept)
        given = x.clone(), d.clone()
        got = answer(*setting)
        require_unchanged((x, d), given, "x or d, which belong to the caller")
        _require_left_alone(stage, model, x, d, kept)
        wrong = {name: _vat(*setting, **faults)[0] for name, faults in _FAULTS.items()}
        wanted, log_p, log_q = _vat(*setting)
        require_close(got, wanted.detach(), stage, wrong)
        judge_gradient(got, model, log_p, log_q)


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return KL(p || q) of each sample."""
    return (log_p.exp() * (log_p - log_q)).sum(1)  # (batch,)


def judge_gradient(got: Tensor, model: nn.Module, log_p: Tensor, log_q: Tensor) -> None:
    """Refuse a right value whose gradient is not that of a fixed p."""
    weight = next(model.parameters())
    if not weight.requires_grad:
        raise NotYet(
            "Your code has frozen the model: switch `requires_grad` on again, and run "
            "the last pass after that."
        )

    def by_weight(p: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor | None:
        return gradient((p * (log_p - log_q)).sum(1).mean(), weight)

    p = log_p.exp()
    found = gradient(got, weight)
    if close(found, by_weight(p.detach(), log_p.detach(), log_q)):
        return
    place = "The value is right, but"
    if found is None:
        raise NotYet(
            f"{place} no gradient comes back: both passes are detached. Let it flow "
            "through the second one."
        )
    mistakes = {
        f"{place} a gradient leaks into the target: the clean answer is drawn toward "
        "the disturbed one as well. Detach p": by_weight(p, log_p, log_q),
        f"{place} the wrong pass is detached: the clean answer moves and q stands "
        "still": by_weight(p, log_p, log_q.detach()),
    }
    name_mistake(found, mistakes)
    raise NotYet(
        f"{place} the gradient by the weights is another one than with a fixed p."
    )


def _require_left_alone(
    stage: str, model: nn.Module, x: Tensor, d: Tensor, kept: float | None
) -> None:
    """Refuse a search that changed gradients or what they are taken by."""
    if x.requires_grad or d.requires_grad:
        raise NotYet(
            f"{stage}: x or d has `requires_grad` now, and it belongs to the caller. "
            "Set it for a tensor of your own."
        )
    grads = [p.grad for p in model.parameters()]
    if kept is None and any(grad is not None for grad in grads):
        raise NotYet(
            f"{stage}: your search for d has left gradients in the weights. "
            "`torch.autograd.grad(change, d)` gives the one by d, and stores none."
        )
    if kept is not None and any(g is None or bool((g != kept).any()) for g in grads):
        raise NotYet(
            f"{stage}: the weights held gradients, of another term of the loss, and "
            "your search has changed or cleared them. `torch.autograd.grad(change, d)` "
            "touches none."
        )


def _length(d: Tensor, axes: Sequence[int]) -> Tensor:
    return d.square().sum(axes, keepdim=True).sqrt()


_SHORT = (
    "d is divided by its length along axis {} alone. The length of a sample runs over "
    "all axes but the first: flatten it"
)
_FAULTS: dict[str, dict[str, Any]] = {
    "d is divided by its length over the whole batch. Each sample has its own": {
        "axes": (0, 1, 2, 3)
    },
    **{_SHORT.format(axis): {"axes": (axis,)} for axis in (1, 2, 3)},
    "d is divided by its sum and not by its length": {
        "length": lambda d: d.sum((1, 2, 3), keepdim=True)
    },
    "d is divided by the square of its length": {
        "length": lambda d: _length(d, (1, 2, 3)) ** 2
    },
    "The start d is not of length 1 when you first step along it": {"raw": ["start"]},
    "What a gradient gives is not of length 1 when you step along it": {
        "raw": ["middle", "end"]
    },
    "What a gradient by `xi * d` gives is not of length 1 when you step along it": {
        "raw": ["middle", "end"],
        "scale": 1.0,
    },
    "Nothing was made length 1": {"raw": ["start", "middle", "end"]},
    "The trial step has no xi": {"trial": 1.0},
    "The trial step takes eps and not xi": {"trial": EPS},
    "The last step has no eps": {"last": 1.0},
    "The last step takes xi and not eps": {"last": XI},
    "d goes downhill, toward the *smallest* change": {"turned": True},
    "The last step goes back, along -d": {"last": -EPS},
    "The last step takes eps times xi": {"last": EPS * XI},
    "d is the start. No gradient was taken": {"turns": 0},
    "One gradient was taken, and not `iterations`": {"turns": 1},
    "One gradient is missing": {"turns": 2},
    "In the search p and q are the other way round. The clean answer is p": {
        "flips": ["search"]
    },
    "In the loss p and q are the other way round. The clean answer is p": {
        "flips": ["loss"]
    },
    "p and q are the other way round, both times. The clean answer is p": {
        "flips": ["search", "loss"]
    },
    "The gradient is taken by the d of before it was made length 1. Cut d off after "
    "that, with `detach()`": {"projected": True},
    "The gradient is taken by the d of before it was made length 1, and was not made "
    "length 1 itself": {"projected": True, "raw": ["middle", "end"]},
    "You summed over the batch. Take its mean": {"samples": 1},
    "It is 0, as if both passes saw the same inputs": {"last": 0.0},
}


def _vat(
    model: nn.Module,
    x: Tensor,
    d: Tensor,
    eps: float,
    xi: float,
    iterations: int,
    **faults: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss, log p and log q; a fault makes them those of a mistake."""
    axes = faults.get("axes", (1, 2, 3))
    length = faults.get("length", lambda d: _length(d, axes))
    raw, flips = faults.get("raw", ()), faults.get("flips", ())
    turns = faults.get("turns", iterations)
    log_p = model(x).log_softmax(1)
    d = d if "start" in raw else d / length(d)
    for turn in range(turns):
        slope = _slope(model, x, faults.get("trial", xi) * d, flip="search" in flips)
        slope = slope * faults.get("scale", xi)  # by d, and not by xi * d
        if faults.get("projected"):
            slope = slope - (slope * d).sum((1, 2, 3), keepdim=True) * d
        place = "end" if turn == turns - 1 else "middle"
        d = slope if place in raw else slope / length(slope)
        d = -d if faults.get("turned") else d
    log_q = model(x + faults.get("last", eps) * d).log_softmax(1)
    each = kl(log_q, log_p) if "loss" in flips else kl(log_p, log_q)
    return each.sum() / faults.get("samples", len(x)), log_p, log_q


def _slope(model: nn.Module, x: Tensor, trial: Tensor, *, flip: bool) -> Tensor:
    """Return the gradient of each sample's KL by its step, one sample at a time."""
    rows = []
    for one, step in zip(x, trial.detach(), strict=True):
        step = step.clone().requires_grad_()
        log_p = model(one[None]).log_softmax(1).detach()
        log_q = model((one + step)[None]).log_softmax(1)
        change = kl(log_q, log_p) if flip else kl(log_p, log_q)
        rows += torch.autograd.grad(change.sum(), step)
    return torch.stack(rows)
