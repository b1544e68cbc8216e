"""Exercises of lesson 05, Balance two opponents.

The oracles are sums written out by hand and one sample taken at a time; none of them
is the code that the lesson teaches.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from course_lib.lessons.checks import (
    close,
    gradient,
    require_close,
    require_kind,
    require_unchanged,
)
from course_lib.lessons.exercises import NotYet, exercise

NUMBER = 5


@exercise(
    "The loss first: it takes the k that came in.",
    "Compute `imbalance = gamma * real - generated` from detached errors. The new "
    "k and M both follow from it.",
    "`new_k = (k + lambda_k * imbalance).clamp(0, 1)` and "
    "`M = real.detach() + imbalance.abs()`",
    right="The old k in the loss, then the update, clipped to [0, 1], and no graph "
    "that grows from step to step. `BEGANLoss` has k and M as buffers.",
)
def balance(answer: Callable[..., tuple[Tensor, Tensor, Tensor]]) -> None:
    """A function of one BEGAN step: the loss, the new k and M."""
    k = torch.tensor(0.3)
    real, generated = (torch.tensor(n, requires_grad=True) for n in (0.8, 0.5))
    loss, new, measure = _three(answer(k, real, generated, 0.5, 0.1))
    name = "the tensor `k` in place, which the backward pass of `loss` still needs"
    require_unchanged([k], [torch.tensor(0.3)], name)
    mistakes = {
        "k is frozen: the new one is the old one": 0.3,
        "k moved the wrong way. Generated images are rebuilt too badly here": 0.31,
        "That is only the step of k. Add it to k": -0.01,
        "The factor lambda_k is missing": 0.2,
        "gamma stands at `generated`. It scales `real`": 0.3 + 0.1 * (0.8 - 0.5 * 0.5),
        "gamma is missing": 0.3 + 0.1 * (0.8 - 0.5),
    }
    place = "The new k (gamma * real - generated is -0.1)"
    wanted = torch.tensor(0.29)
    require_close(new, wanted, place, mistakes, what="The new k", verb="is")
    mistakes = {
        "The loss has the new k already. It takes the k of before the step": (
            0.8 - 0.29 * 0.5
        ),
        "The sign of the second term is wrong": 0.8 + 0.3 * 0.5,
        "The loss has no term of the generated images": 0.8,
        "The loss has no k": 0.8 - 0.5,
    }
    wanted, what = torch.tensor(0.8 - 0.3 * 0.5), "The loss"
    require_close(loss, wanted, what, mistakes, what=what, verb="is")
    mistakes = {
        "M takes the size of the imbalance, |gamma * real - generated|": 0.7,
        "That is the imbalance alone. M adds it to `real`": 0.1,
    }
    require_close(measure, torch.tensor(0.9), "M", mistakes, what="M", verb="is")
    _judge_balance_gradients(loss, new, measure, (real, generated))
    for start, made, end in ((0.01, 0.9, 0.0), (0.99, 0.0, 1.0)):
        errors = torch.tensor(0.8), torch.tensor(made)
        _, new, _ = _three(answer(torch.tensor(start), *errors, 0.5, 0.1))
        if not close(new, end):
            raise NotYet(
                f"The new k became {new.item():.2f}. It stays in [0, 1]: at its ends "
                "it is clipped."
            )


def _three(got: Any) -> tuple[Tensor, Tensor, Tensor]:
    wanted = "three tensors: the loss, the new k and M"
    require_kind(got, tuple | list, wanted)
    if len(got) != 3:
        raise NotYet(f"Your function returned {len(got)} things; wanted {wanted}.")
    return got


def _judge_balance_gradients(
    loss: Tensor, new: Tensor, measure: Tensor, errors: tuple[Tensor, Tensor]
) -> None:
    if new.requires_grad or measure.requires_grad:
        raise NotYet(
            "The new k or M still hangs on this step's graph; the next step would hang "
            "on it, too, and memory grows. Compute both from detached errors."
        )
    slopes = [gradient(loss, error) for error in errors]
    if not all(map(close, slopes, (1.0, -0.3))):
        raise NotYet(
            "The loss has the right value, but not its gradient: 1 by `real` and "
            "-k by `generated`. Detach for k and M only."
        )


@exercise(
    "Two passes: one on x, which is the target, and one on x + eps * d.",
    "Detach the first pass's logits. `kl_from_logits(target, other)` gives (batch,).",
    "`return kl_from_logits(model(x).detach(), model(x + eps * d)).mean()`",
    right="The answer on x stands fixed, and the answer beside it is drawn to it. "
    "`virtual_adversarial_loss` finds d as well.",
)
def vat_term(answer: Callable[..., Tensor]) -> None:
    """A function of (model, x, d, eps): the adversarial term."""
    torch.manual_seed(0)
    model = nn.Linear(3, 4)
    x, d = torch.randn(5, 3), nn.functional.normalize(torch.randn(5, 3))
    weight = model.weight.detach().clone()
    got = answer(model, x, d, 0.5)
    require_unchanged(
        [model.weight], [weight], "the model, and only outputs are wanted"
    )
    log_p, log_q, far = (model(y).log_softmax(1) for y in (x, x + 0.5 * d, x + d))
    wanted = _kl(log_p, log_q).mean()
    mistakes = {
        "p and q are the other way round. The clean answer is p": (
            _kl(log_q, log_p).mean()
        ),
        "That is the mean over samples and classes. `reduction='mean'` of torch's "
        "`kl_div` counts both; sum over the classes": wanted / 4,
        "You summed over the batch. Take its mean": wanted * len(x),
        "That is the cross-entropy. The KL has the entropy of p taken off": (
            -(log_p.exp() * log_q).sum(1).mean()
        ),
        "The step is d without eps": _kl(log_p, far).mean(),
        "It is 0: both passes saw the same inputs": 0.0,
    }
    require_close(got, wanted, "With eps = 0.5", mistakes)
    _judge_vat_gradient(got, model, log_p, log_q)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(1)  # (batch,)


def _judge_vat_gradient(
    got: Tensor, model: nn.Linear, log_p: Tensor, log_q: Tensor
) -> None:
    def by_weight(p: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor | None:
        return gradient((p * (log_p - log_q)).sum(1).mean(), model.weight)

    p = log_p.exp()
    found = gradient(got, model.weight)
    if close(found, by_weight(p.detach(), log_p.detach(), log_q)):
        return
    if found is None:
        text = (
            "no gradient comes back: both passes are detached. Let it flow through the "
            "second one"
        )
    elif close(found, by_weight(p, log_p, log_q)):
        text = (
            "a gradient leaks into the target: the clean answer is drawn toward the "
            "disturbed one as well. Detach p"
        )
    elif close(found, by_weight(p, log_p, log_q.detach())):
        text = "the wrong pass is detached: the clean answer moves and q stands still"
    else:
        text = "the gradient by the weights is another one than with a fixed p"
    raise NotYet(f"The value is right, but {text}.")
