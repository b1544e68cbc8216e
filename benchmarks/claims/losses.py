"""Claims of lesson 04, Build what does not fit the mold."""

from functools import cache

import torch
from torch import optim
from torch.nn.functional import cross_entropy

from benchmarks.claims.core import below, both, claim
from course_lib import data
from course_lib.device import seed_everything
from course_lib.losses import reduce
from course_lib.models import mlp
from course_lib.training import fit


def early(weights, outputs, labels):
    return (weights * cross_entropy(outputs, labels)).mean()


def in_time(weights, outputs, labels):
    each = cross_entropy(outputs, labels, reduction="none")
    return reduce(each, weights=weights)


@claim(
    "Percent of the 35 test eights found by a network that saw five eights, each with "
    "a weight of 20, and of 1: many only if the weights meet one loss for each sample.",
    both(
        below("averaged too early, 20", "weighted in time, 20", by=30),
        below("weighted in time, 1", "weighted in time, 20", by=30),
    ),
)
def rare_eights(seed):
    return {
        "weighted in time, 1": right(in_time, 1, seed)[0],
        "averaged too early, 20": right(early, 20, seed)[0],
        "weighted in time, 20": right(in_time, 20, seed)[0],
    }


@claim(
    "Percent of the other nine digits' test images right, when each of the five eights "
    "has a weight of 1, and of 100: a large weight has a price.",
    below("100", "1"),
)
def price_of_a_weight(seed):
    return {str(weight): right(in_time, weight, seed)[1] for weight in (1, 100)}


@cache
def right(way, weight, seed):
    """Return the percentages right of the eights and of the other digits."""
    digits = data.load("digits")
    x, y = digits.train.inputs, digits.train.labels
    kept = (y != 8) | ((y == 8).cumsum(0) <= 5)
    seed_everything(seed)
    model = mlp((64, 32, 10))

    def loss(outputs, labels):
        return way(torch.where(labels == 8, float(weight), 1.0), outputs, labels)

    adam = optim.Adam(model.parameters(), lr=0.003)
    settings = {"epochs": 8, "batch_size": 64, "seed": seed, "progress": False}
    fit(model, data.Split(x[kept], y[kept]), loss=loss, optimizer=adam, **settings)
    is_right = model(digits.test.inputs).argmax(1) == digits.test.labels
    is_eight = digits.test.labels == 8
    return [
        100 * is_right[part].float().mean().item() for part in (is_eight, ~is_eight)
    ]
