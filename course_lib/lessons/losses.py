"""Exercises of lesson 04, Build what does not fit the mold.

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
    require_gradient,
    require_kind,
    require_parameters,
    require_unchanged,
)
from course_lib.lessons.exercises import NotYet, exercise

NUMBER = 4


@exercise(
    "A module that stands at one place has one set of weights, however often it "
    "is called.",
    "In `__init__`: `self.encoder = encoder`. In `forward` call it on `first`, "
    "then on `second`.",
    "`return (self.encoder(first) * self.encoder(second)).sum(dim=1)`",
    right="One set of weights, two calls, and the gradients of both add up. `Shared` "
    "and `Siamese` do it for any bundle of layers.",
)
def twins(answer: Callable[[nn.Module], nn.Module]) -> None:
    """A module of one encoder: the dot product of two codes."""
    torch.manual_seed(0)
    encoder = nn.Linear(3, 2, bias=False)
    first, second = torch.randn(4, 3), torch.randn(4, 3)
    model = answer(encoder)
    require_kind(model, nn.Module, "a module", what="`Twins(encoder)`")
    products = model(first, second)
    require_kind(products, Tensor, "a tensor", what="`forward`")
    require_parameters(model, encoder)
    one, other = first @ encoder.weight.T, second @ encoder.weight.T
    _judge_products(products, one.detach(), other.detach())
    wanted = gradient((one * other).sum(), encoder.weight)
    if not close(gradient(products.sum(), encoder.weight), wanted):
        raise NotYet(
            "The values are right, but only a part of the gradient comes back to the "
            "weights. Both calls must train them: no `detach` and no `no_grad`."
        )


def _judge_products(got: Tensor, one: Tensor, other: Tensor) -> None:
    if got.dim() == 0:
        raise NotYet(
            "That is one number for the whole batch. Return one for each pair, shape "
            "(batch,), so that pairs can be weighted."
        )
    if got.shape == (4, 4):
        raise NotYet("You compare each sample with all others. Wanted (batch,) pairs.")
    products = one * other
    mistakes = {
        "The products are not added up. Sum over the features": products,
        "That is the mean of the products; a dot product sums": products.mean(1),
        "You multiply the first code by itself": (one * one).sum(1),
        "You multiply the second code by itself": (other * other).sum(1),
        "That is a squared distance": (one - other).square().sum(1),
    }
    require_close(got, products.sum(1), "The dot products", mistakes)


@exercise(
    "The mean of a sample is taken over all its axes, and over no other sample.",
    "`x.flatten(start_dim=1).mean(dim=1)` has shape (batch,). It must get as many "
    "axes as x has.",
    "`x.mean(dim=tuple(range(1, x.dim())), keepdim=True)`",
    right="Each sample is centered by itself, so its result is the same alone and in "
    "any company.",
)
def center(answer: Callable[[Tensor], Tensor]) -> None:
    """A function of a batch: each sample minus its mean."""
    generator = torch.Generator().manual_seed(0)
    for shape in ((2, 3, 2), (4, 3), (2, 1, 4, 4)):
        x = torch.randn(shape, generator=generator)
        given = x.clone()
        got = answer(given)
        require_kind(got, Tensor, "a tensor", what="`center`")
        require_unchanged([given], [x], "the batch that was given")
        mistakes = {
            "You took one mean over the whole batch": x - x.mean(),
            "You took the mean over the batch axis: each pixel's mean over the "
            "samples. Leave the first axis out": x - x.mean(0),
            "You took the mean over axis 1 alone": x - x.mean(1, keepdim=True),
            "You took the mean over the last axis": x - x.mean(-1, keepdim=True),
            "That is the means. Subtract them": torch.stack([s.mean() for s in x]),
        }
        wanted = torch.stack([sample - sample.mean() for sample in x])
        require_close(got, wanted, f"For a batch of shape {shape}", mistakes)


@exercise(
    "First multiply, then average. By how many numbers does a mean divide?",
    "Broadcasting begins at the last axis. `weights[:, None]` has shape (batch, 1).",
    "`return (losses * weights[:, None]).mean()`",
    right="The losses are weighted one by one and divided by their number. Weights of "
    "2 everywhere double the loss, as in Keras.",
)
def weighted(answer: Callable[[Tensor, Tensor], Tensor]) -> None:
    """A function of (losses, weights): Keras's weighted mean."""
    weights = torch.tensor([1.0, 3.0, 0.0])
    losses = torch.tensor([[1.0, 2, 3], [4, 6, 8], [9, 9, 50]], requires_grad=True)
    each = losses.detach() * weights[:, None]
    by_weights = (
        "You divided by the sum of the weights, as torch's `weight=` does. Keras "
        "divides by the number of losses"
    )
    mistakes = {
        f"{by_weights} spread over the steps": each.sum() / (3 * weights.sum()),
        by_weights: each.sum() / weights.sum(),
        "The weights met the steps and not the samples: broadcasting begins at the "
        "last axis. Give them one more axis, `weights[:, None]`": (
            (losses * weights).mean()
        ),
        "You averaged the losses before the weights came, so they only rescale one "
        "number": losses.mean() * weights.mean(),
        "That is the sum. Divide by the number of losses": each.sum(),
        "You divided by the samples. Each step has a loss: count all": each.sum() / 3,
        "The weights do nothing": losses.mean(),
    }
    got = answer(losses, weights)
    place = "For 3 samples of 3 steps with weights 1, 3, 0"
    require_close(got, each.sum() / 9, place, mistakes)
    require_gradient(got, losses, weights[:, None].expand(3, 3) / 9, "the losses")
    got = answer(losses[:, :2], weights)
    require_close(got, each[:, :2].sum() / 6, "For 3 samples of 2 steps", {})


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
