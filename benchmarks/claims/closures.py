"""Claims of lesson 01, Keep the value a closure saw."""

from torch import nn, optim

from benchmarks.claims.core import below, both, claim
from course_lib import data
from course_lib.device import seed_everything
from course_lib.models import mlp
from course_lib.regularization import L1L2, penalty, regularize


@claim(
    "The penalty of the weights after sixty steps on two hundred digits: it grows, "
    "and grows further where a number was added to the loss and no function of the "
    "weights.",
    both(below("before", "a function"), below("a function", "a number")),
    digits=3,
)
def number_holds_nothing(seed):
    ways = {"a number": False, "a function": True}
    found = {"before": penalty(new_net(seed)).item()}
    return found | {name: after_training(seed, live) for name, live in ways.items()}


def new_net(seed):
    seed_everything(seed)
    net = mlp((64, 32, 10))
    regularize(net[1], weight=L1L2(l2=0.01))
    return net


def after_training(seed, live):
    digits = data.load("digits").train
    inputs, labels = digits.inputs[:200], digits.labels[:200]
    net = new_net(seed)
    optimizer = optim.SGD(net.parameters(), lr=0.5)
    number = penalty(net).detach()
    for _ in range(60):
        optimizer.zero_grad()
        cost = penalty(net) if live else number
        (nn.functional.cross_entropy(net(inputs), labels) + cost).backward()
        optimizer.step()
    return penalty(net).item()
