"""What lesson 02 says about training with penalties."""

from functools import cache

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from benchmarks.claims.core import Holds, below, both, claim
from course_lib import data, models
from course_lib.device import seed_everything
from course_lib.regularization import L1L2, penalty, regularize
from course_lib.training import History, fit

SETTINGS = {"loss": nn.functional.cross_entropy, "batch_size": 50}


def within(points: float, one: str, other: str) -> Holds:
    """On every seed, the two ways are less than this apart."""
    return lambda v: all(
        abs(a - b) < points for a, b in zip(v[one], v[other], strict=True)
    )


# Two hundred digits, of which forty have a wrong label


def split(name: str) -> TensorDataset:
    """Return "train" or "test" in float64, as the lesson trains."""
    part = getattr(data.load("digits"), name)
    return TensorDataset(part.inputs.double(), part.labels)


def mislabeled(seed: int) -> tuple[Tensor, Tensor]:
    """Return 200 training digits; the labels of the first 40 are wrong."""
    seed_everything(seed)
    inputs, truth = split("train").tensors
    chosen = torch.randperm(len(truth))[:200]
    labels = truth[chosen]
    labels[:40] = (labels[:40] + torch.randint(1, 10, (40,))) % 10
    return inputs[chosen], labels


@cache
def by_heart(seed: int, l2: float, epochs: int = 60) -> tuple[nn.Module, History]:
    few = TensorDataset(*mislabeled(seed))
    seed_everything(seed)
    model = models.mlp((64, 64, 10)).double()
    for layer in (model[1], model[3]):
        regularize(layer, weight=L1L2(l2=l2))
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    options = {**SETTINGS, "epochs": epochs, "optimizer": sgd, "penalty": penalty}
    return model, fit(model, few, test=split("test"), seed=seed, **options)


@claim(
    "Trained on 200 digits with 40 wrong labels, a network with l2 = 0.02 gets more of "
    "the test digits right than one without, and than one with l2 = 0.1 (% right).",
    both(
        below("no penalty", "l2 = 0.02", by=5),
        below("l2 = 0.1", "l2 = 0.02", by=5),
    ),
)
def l2_holds_back(seed: int) -> dict[str, float]:
    ways = {"no penalty": 0.0, "l2 = 0.02": 0.02, "l2 = 0.1": 0.1}
    runs = {way: by_heart(seed, l2)[1] for way, l2 in ways.items()}
    return {way: 100 * run["test_accuracy"][-1] for way, run in runs.items()}


@claim(
    "Without a penalty the test loss falls and then rises far above its lowest point; "
    "with l2 = 0.02 it ends near its own (test loss).",
    both(
        below("lowest, no penalty", "last, no penalty", by=0.3),
        below("last, l2 = 0.02", "last, no penalty", by=0.2),
        within(0.1, "last, l2 = 0.02", "lowest, l2 = 0.02"),
    ),
    digits=2,
)
def test_loss_turns(seed: int) -> dict[str, float]:
    losses = {
        "no penalty": by_heart(seed, 0.0)[1]["test_loss"],
        "l2 = 0.02": by_heart(seed, 0.02)[1]["test_loss"],
    }
    lowest = {f"lowest, {way}": min(found) for way, found in losses.items()}
    return lowest | {f"last, {way}": found[-1] for way, found in losses.items()}


@claim(
    "Of the 40 wrong labels the network without a penalty repeats nearly all, the one "
    "with l2 = 0.02 less than half (wrong labels repeated).",
    lambda v: min(v["no penalty"]) >= 38 and max(v["l2 = 0.02"]) < 20,
)
def wrong_labels_by_heart(seed: int) -> dict[str, float]:
    inputs, labels = mislabeled(seed)

    def repeated(l2: float) -> float:
        guesses = by_heart(seed, l2)[0](inputs[:40]).argmax(dim=1)
        return float((guesses == labels[:40]).sum())

    return {"no penalty": repeated(0.0), "l2 = 0.02": repeated(0.02)}


@claim(
    "While the network learns the wrong labels, its sum of squared weights grows to "
    "more than four times itself; with l2 = 0.02 it stays near the start (sum of "
    "squares).",
    both(
        lambda v: min(v["no penalty"]) > 4 * max(v["at the start"]),
        within(5, "l2 = 0.02", "at the start"),
    ),
    digits=0,
)
def weights_grow(seed: int) -> dict[str, float]:
    seed_everything(seed)
    start = models.mlp((64, 64, 10))
    ways = {"no penalty": by_heart(seed, 0.0)[0], "l2 = 0.02": by_heart(seed, 0.02)[0]}
    return {way: _squares(m) for way, m in {"at the start": start, **ways}.items()}


def _squares(model: nn.Module) -> float:
    return sum(model[i].weight.square().sum().item() for i in (1, 3))


# All digits, and what l1 does to the first layer


@cache
def first_layer(
    seed: int, l1: float = 0.0, l2: float = 0.0, shrinks: bool = False
) -> tuple[Tensor, float]:
    """Return the first layer's weights and the accuracy; `shrinks` is a step for l1."""
    seed_everything(seed)
    model = models.mlp((64, 16, 10)).double()
    in_loss = L1L2(l1=0.0 if shrinks else l1, l2=l2)
    regularize(model[1], weight=in_loss)
    sgd, weight = torch.optim.SGD(model.parameters(), lr=0.1), model[1].weight.data
    if shrinks:
        softshrink = nn.functional.softshrink
        sgd.register_step_post_hook(
            lambda *_: weight.copy_(softshrink(weight, 0.1 * l1))
        )
    options = {**SETTINGS, "epochs": 20, "optimizer": sgd, "penalty": penalty}
    history = fit(model, split("train"), test=split("test"), seed=seed, **options)
    return weight, 100 * history["test_accuracy"][-1]


@claim(
    "l1 = 0.003 on the first layer leaves the accuracy within two points of that "
    "without a penalty; l1 = 0.1 costs more than ten (% right).",
    both(
        within(2, "l1 = 0.003", "no penalty"),
        within(2, "a step for l1 = 0.003", "no penalty"),
        below("l1 = 0.1", "no penalty", by=10),
    ),
)
def l1_costs_little(seed: int) -> dict[str, float]:
    return {
        "no penalty": first_layer(seed)[1],
        "l2 = 0.01": first_layer(seed, l2=0.01)[1],
        "l1 = 0.003": first_layer(seed, l1=0.003)[1],
        "a step for l1 = 0.003": first_layer(seed, l1=0.003, shrinks=True)[1],
        "l1 = 0.1": first_layer(seed, l1=0.1)[1],
    }


@claim(
    "l1 = 0.003 brings more than half of the first layer's weights below 0.01, l2 = "
    "0.01 less than a fifth (% of the weights).",
    lambda v: min(v["l1 = 0.003"]) > 50 and max(v["no penalty"] + v["l2 = 0.01"]) < 20,
)
def l1_gathers_weights(seed: int) -> dict[str, float]:
    def small(weight: Tensor) -> float:
        return 100 * (weight.abs() < 0.01).float().mean().item()

    return {
        "no penalty": small(first_layer(seed)[0]),
        "l2 = 0.01": small(first_layer(seed, l2=0.01)[0]),
        "l1 = 0.003": small(first_layer(seed, l1=0.003)[0]),
    }


@claim(
    "With l1 in the loss no weight is exactly zero; with a shrinking step of the same "
    "size more than 5 in 100 are (% of the weights).",
    lambda v: max(v["in the loss"]) == 0 and min(v["a step of its own"]) > 5,
)
def zeros_want_a_step(seed: int) -> dict[str, float]:
    def zero(weight: Tensor) -> float:
        return 100 * (weight == 0).float().mean().item()

    return {
        "in the loss": zero(first_layer(seed, l1=0.003)[0]),
        "a step of its own": zero(first_layer(seed, l1=0.003, shrinks=True)[0]),
    }
