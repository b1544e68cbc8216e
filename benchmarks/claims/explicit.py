"""The claims of lesson 06, Carry the state in your own hands."""

import torch
from torch import Tensor, nn
from torch.func import vmap

from benchmarks.claims.core import below, both, claim
from course_lib import data, explicit, models
from course_lib.device import seed_everything
from course_lib.explicit import call, gradient, parameters, setup, train
from course_lib.rules import Adam, Momentum
from course_lib.trees import Tree, map_tree, walk

cross_entropy = nn.functional.cross_entropy
digits = data.load("digits", device="cpu")


def accuracy(model: nn.Module, params: Tree) -> float:
    """Return how many percent of the test digits are named rightly."""
    outputs = call(model, params, digits.test.inputs)
    return 100 * (outputs.argmax(dim=1) == digits.test.labels).float().mean().item()


@claim(
    "Five epochs in batches of 48 get more of the test digits right than five in one "
    "batch of all 1,437, which take 5 steps and not 150, and more than five in batches "
    "of 4 (percent; mlp 64-16-10, Momentum(0.1)).",
    both(below("all 1,437", "48"), below("4", "48")),
)
def batches_of_48_learn_sooner(seed: int) -> dict[str, float]:
    sizes = {"4": 4, "48": 48, "all 1,437": 1437}
    return {name: in_batches(seed, size) for name, size in sizes.items()}


def in_batches(seed: int, size: int) -> float:
    generator = seed_everything(seed)
    model = models.mlp((64, 16, 10))
    params = parameters(model)
    state = setup(Momentum(0.1), params)
    for _ in range(5):
        batches = digits.train.batches(size, generator=generator)
        state, params, _ = train(loss_of(model), params, batches, state)
    return accuracy(model, params)


def loss_of(model: nn.Module):
    return lambda p, x, y: cross_entropy(call(model, p, x), y)


@claim(
    "200 digits, three labels in ten drawn at random, 40 epochs: with dropout 0.5 the "
    "network gets more of the test digits right, and fewer of them again while dropout "
    "is left on (percent; mlp 64-128-10, Adam(0.003), batches of 32).",
    both(below("no dropout", "dropout"), below("left on", "dropout")),
)
def dropout_resists_wrong_labels(seed: int) -> dict[str, float]:
    plain, plain_params = with_wrong_labels(seed, 0.0)
    model, params = with_wrong_labels(seed, 0.5)
    return {
        "no dropout": accuracy(plain.eval(), plain_params),
        "dropout": accuracy(model.eval(), params),
        "left on": accuracy(model.train(), params),
    }


def with_wrong_labels(seed: int, dropout: float) -> tuple[nn.Module, Tree]:
    generator = seed_everything(seed)
    model = models.mlp((64, 128, 10), dropout=dropout)
    params = parameters(model)
    chosen = torch.randperm(len(digits.train), generator=generator)[:200]
    x, y = digits.train.inputs[chosen], digits.train.labels[chosen]
    y[:60] = torch.randint(10, (60,), generator=generator)
    state = setup(Adam(0.003), params)
    for _ in range(40):
        order = torch.randperm(200, generator=generator).split(32)
        batches = [(x[part], y[part]) for part in order]
        state, params, _ = train(loss_of(model), params, batches, state)
    return model, params


@claim(
    "Halfway between two trained networks the loss is above that of either (cross "
    "entropy of the 256 digits that both were trained on; mlp 64-16-10, 60 steps of "
    "Momentum(0.1)).",
    both(below("first", "halfway", by=0.2), below("second", "halfway", by=0.2)),
    digits=2,
)
def halfway_is_no_network(seed: int) -> dict[str, float]:
    x, y = digits.train.inputs[:256], digits.train.labels[:256]
    model, first = trained(seed)
    _, second = trained(100 + seed)
    other = dict(walk(second))
    half = map_tree(lambda path, a: (a + other[path]) / 2, first)
    pairs = {"first": first, "halfway": half, "second": second}
    return {name: loss_of(model)(params, x, y).item() for name, params in pairs.items()}


def trained(seed: int) -> tuple[nn.Module, Tree]:
    seed_everything(seed)
    model = models.mlp((64, 16, 10))
    params = parameters(model)
    batch = digits.train.inputs[:256], digits.train.labels[:256]
    state = setup(Momentum(0.1), params)
    return model, train(loss_of(model), params, [batch] * 60, state)[1]


@claim(
    "Of 256 gradients, one for each digit, the 26 longest have more than half of the "
    "sum of all lengths (percent; the networks of halfway-is-no-network).",
    below("the others", "26 longest"),
    digits=0,
)
def few_digits_pull(seed: int) -> dict[str, float]:
    x, y = digits.train.inputs[:256], digits.train.labels[:256]
    model, params = trained(seed)

    def of_one(image: Tensor, label: Tensor) -> Tree:
        return gradient(lambda p: loss_of(model)(p, image[None], label[None]), params)

    grads = explicit.trainables(vmap(of_one)(x, y)).values()
    lengths = sum(g.flatten(1).square().sum(1) for g in grads).sqrt()
    share = 100 * (lengths.topk(26).values.sum() / lengths.sum()).item()
    return {"26 longest": share, "the others": 100 - share}
