"""Claims of lesson 00, Start here."""

from torch import nn, optim

from benchmarks.claims.core import below, both, claim
from course_lib import data
from course_lib.device import seed_everything
from course_lib.models import mlp
from course_lib.training import fit

RATES = (0.001, 0.1, 1.0, 3.0)


@claim(
    "Percent of the digits' test images right after eight epochs of SGD, by the "
    "learning rate: least at 0.001 and 3, most at 1.",
    both(below("0.001", "0.1"), below("3.0", "0.1"), below("0.1", "1.0")),
)
def learning_rate(seed):
    return {str(rate): 100 * accuracy(rate, seed) for rate in RATES}


def accuracy(rate, seed):
    seed_everything(seed)
    model = mlp((64, 32, 10))
    sgd = optim.SGD(model.parameters(), lr=rate)
    settings = {"epochs": 8, "batch_size": 64, "seed": seed, "progress": False}
    loss = nn.functional.cross_entropy
    history = fit(model, data.load("digits"), loss=loss, optimizer=sgd, **settings)
    return history.epochs[-1].test_accuracy
