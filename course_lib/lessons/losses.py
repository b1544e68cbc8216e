"""Exercises of lesson 04, Build what does not fit the mold.

The oracles are sums written out by hand and one sample taken at a time; none of them
is the code that the lesson teaches.
"""

from collections.abc import Callable

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
