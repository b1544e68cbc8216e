"""The judges of lesson 04's two means: with weights, and with a mask.

The oracles are sums written out by hand; each example is made so that no two mistakes
give the same number.
"""

from collections.abc import Callable
from numbers import Real

import torch
from torch import Tensor

from course_lib.lessons.checks import (
    as_text,
    close,
    require_close,
    require_gradient,
    require_kind,
    require_unchanged,
)
from course_lib.lessons.exercises import NotYet

_Example = tuple[list[float], list[list[float]]]  # weights, losses

_SQUARE = [1.0, 4, 0], [[1.0, 2, 3], [4, 6, 8], [9, 9, 50]]  # steps as many as samples
_OBLONG = (
    ([1.0, 4, 0, 0.5, 0], [[4.0, 1], [3, 9], [2, 10], [7, 7], [50, 6]]),
    ([3.0, 0.5], [[4.0, 1, 7, 2, 5], [3, 9, 8, 0, 6]]),
)


def judge_weighted(answer: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Judge the weighted mean of Keras 3."""
    got, losses, weights = _weigh(answer, _SQUARE)
    if close(got, (losses * weights).mean()) or close(got, (losses * weights).sum()):
        raise NotYet(
            "For 3 samples of 3 steps the weights met the steps and not the samples: "
            "broadcasting begins at the last axis. Give them one more axis, "
            "`weights[:, None]`."
        )
    for example in (*_OBLONG, _SQUARE):
        got, losses, weights = _weigh(answer, example)
        place = f"For {len(losses)} samples of {losses.shape[1]} steps with weights "
        place += ", ".join(f"{number:g}" for number in example[0])
        mistakes = _weighted_mistakes(losses.detach(), weights)
        wanted = mistakes.pop("sum") / losses.numel()
        require_close(got, wanted, place, mistakes)
        by_hand = weights[:, None].expand_as(losses) / losses.numel()
        require_gradient(got, losses, by_hand, "the losses")


def _weigh(answer: Callable[..., Tensor], example: _Example) -> tuple[Tensor, ...]:
    """Return the answer, the losses and the weights, which it must not change."""
    weights, losses = map(torch.tensor, example)
    losses.requires_grad_()
    given = losses.detach().clone(), weights.clone()
    got = answer(losses, weights)
    require_unchanged([losses.detach(), weights], given, "what was given")
    return got, losses, weights


def _weighted_mistakes(losses: Tensor, weights: Tensor) -> dict[str, Tensor]:
    rows = [row * weight for row, weight in zip(losses, weights, strict=True)]
    total, (samples, steps) = torch.cat(rows).sum(), losses.shape
    count = (weights != 0).sum()
    by_weights = (
        "You divided by the sum of the weights, as torch's `weight=` does. Keras 3 "
        "divides by the number of losses"
    )
    return {
        "sum": total,
        "You averaged the losses before the weights came, so they only scale one "
        "number": losses.mean() * weights.mean(),
        f"{by_weights} (the weights spread over the steps)": (
            total / (steps * weights.sum())
        ),
        by_weights: total / weights.sum(),
        "You divided by the weights that are not 0, as Keras 2.0.3 did. Keras 3 "
        "divides by the number of losses": total / (steps * count),
        "You divided by the number of weights that are not 0. Keras 3 divides by the "
        "number of losses, all of them": total / count,
        "That is the sum. Divide by the number of losses": total,
        "You divided by the number of samples. Each step has a loss: count all": (
            total / samples
        ),
        "You divided by the number of steps. Each sample has losses: count all": (
            total / steps
        ),
        "The weights do nothing": losses.mean(),
        "A weight only decides which samples count. Multiply by it": (
            losses[weights > 0].mean()
        ),
        "You return one number for each sample. Average them, too": torch.stack(
            [row.mean() for row in rows]
        ),
        "You return one number for each loss. Average them": torch.stack(rows),
    }


def judge_masked(answer: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Judge the mean over the steps that count."""
    counts = torch.tensor([[True, True, False, False], [True] * 4, [False] * 4])
    losses = torch.tensor([[1.0, 7, 9, 8], [2, 5, 4, 11], [7, 3, 3, 20]])
    losses.requires_grad_()
    given = losses.detach().clone(), counts.clone()
    got = answer(losses, counts)
    require_kind(got, Tensor, "a tensor", what="`masked`")
    require_unchanged([losses.detach(), counts], given, "what was given")
    place = "For 6 steps that count, of 12, with the sum 30"
    if close(got.isnan(), True):
        raise NotYet(
            f"{place}: got nan, wanted 5. No step of the last sequence counts, so its "
            "own mean is 0 / 0. Average all steps at once."
        )
    require_close(got, torch.tensor(5.0), place, _masked_mistakes(losses.detach()))
    require_gradient(got, losses, counts / 6, "the losses")
    _judge_holes(answer)


def _masked_mistakes(losses: Tensor) -> dict[str, Tensor | float]:
    first, second = losses[0, :2], losses[1]
    averages = first.mean() + second.mean()
    return {
        "That is one number for each sequence. Wanted one for all steps": torch.stack(
            [first.sum() / 4, second.sum() / 4, torch.tensor(0.0)]
        ),
        "That is one number for each sequence. Average all their steps": torch.stack(
            [first.mean(), second.mean(), torch.tensor(0.0)]
        ),
        "That is the mean of the first sequence alone": first.mean(),
        "You added 1 to the number of steps that count": 30 / 7,
        "Padding counts in the number: you divided by all steps": 30 / 12,
        "You divided by the number of sequences": 30 / 3,
        "You divided by the length": 30 / 4,
        "That is the sum": 30.0,
        "The mask does nothing": losses.mean(),
        "Padding counts in the sum: mask it there, too": losses.sum() / 6,
        "The mask is turned around: those are the steps that do not count": (
            (losses.sum() - 30) / 6
        ),
        "You averaged each sequence first, so a step of a short one weighs more": (
            averages / 2
        ),
        "You averaged each sequence first, and the empty one counts as 0": (
            averages / 3
        ),
    }


def _judge_holes(answer: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Padding that is no number, a single step, no step, and a nan that counts."""
    nan, inf = float("nan"), float("inf")
    counts = torch.tensor([[True, True, False], [True, False, False]])
    holes = torch.tensor([[2.0, 4, nan], [6, inf, -inf]], requires_grad=True)
    got = answer(holes, counts)
    what = "With nan and infinity in the padding"
    require_kind(got, Tensor, "a tensor", what="`masked`")
    if close(got.isfinite(), False):
        raise NotYet(
            f"{what}: got {as_text(got.detach())}, wanted 4. 0 * nan is nan, so "
            "a factor hides nothing. Replace, with `where`."
        )
    require_close(got, torch.tensor(4.0), what, {})
    require_gradient(got, holes, counts / 3, "the losses, where padding is nan,")
    one = answer(torch.tensor([[5.0, 7.0]]), torch.tensor([[False, True]]))
    require_close(one, torch.tensor(7.0), "With a single step that counts", {})
    empty = answer(torch.tensor([[5.0, nan]]), torch.tensor([[False, False]]))
    require_kind(empty, Tensor | Real, "a number", what="`masked` of no steps")
    if not close(empty, 0.0):
        raise NotYet(
            f"If no step counts: got {as_text(empty)}, wanted 0. A mean over nothing "
            "is 0 / 0. Divide by at least 1."
        )
    for number, name, rest in (
        (nan, "A nan", "not what is nan"),
        (inf, "Infinity", "and nothing else"),
    ):
        seen = answer(torch.tensor([[number, 1.0], [2.0, 3.0]]), counts[:, :2])
        if torch.as_tensor(seen).isfinite().all():
            raise NotYet(
                f"{name} in a step that counts is hidden: the result is "
                f"{as_text(seen)}. Replace what the mask names, {rest}."
            )
    low = answer(torch.tensor([[-4.0, 1.0], [-2.0, 3.0]]), counts[:, :2])
    place = "With losses below 0 (log of a large number)"
    require_close(low, torch.tensor(-5 / 3), place, {})
