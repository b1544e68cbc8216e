"""What lesson 03 says about training."""

import torch
from torch import nn

from benchmarks.claims.core import Holds, below, both, claim
from course_lib import data
from course_lib.device import seed_everything
from course_lib.keras_models import load_keras
from course_lib.lessons import keras_models as lesson
from course_lib.regularization import penalty
from course_lib.training import History, evaluate, fit

LOSS = nn.functional.cross_entropy


@claim(
    "With 60 wrong labels among 300, the file with its regularizers learns fewer of "
    "them and is right more often on the test images than without, in %; without, the "
    "test accuracy falls from its peak by more than 5.",
    both(
        below("wrong labels learned, with", "wrong labels learned, without", by=50),
        below("test, without", "test, with", by=5),
        below("test, without", "peak, without", by=5),
    ),
)
def dropped_regularizers(seed: int) -> dict[str, float]:
    """Train on 300 digits of which 60 have the label of another digit."""
    found = {}
    for way, (learned, history) in _both_ways(seed, wrong=60).items():
        found[f"wrong labels learned, {way}"] = 100 * learned
        found[f"test, {way}"] = 100 * history["test_accuracy"][-1]
        found[f"peak, {way}"] = 100 * max(history["test_accuracy"])
    return found


def within(one: str, other: str, by: float) -> Holds:
    """On every seed, the two differ by less than that."""
    return lambda v: all(abs(a - b) < by for a, b in zip(v[one], v[other], strict=True))


@claim(
    "With right labels alone, the test accuracies with and without the regularizers "
    "differ by less than 5, in %.",
    within("test, with", "test, without", by=5),
)
def clean_labels(seed: int) -> dict[str, float]:
    """Train on the same 300 digits with their right labels."""
    return {
        f"test, {way}": 100 * history["test_accuracy"][-1]
        for way, (_, history) in _both_ways(seed, wrong=0).items()
    }


def _both_ways(seed: int, wrong: int) -> dict[str, tuple[float, History]]:
    """Return the share of the first 60 labels learned, and the history, both ways."""
    dataset = lesson.mislabeled(data.load("digits"), wrong, seed=seed)
    first = data.Split(dataset.train.inputs[:60], dataset.train.labels[:60])
    seed_everything(seed)
    whole = load_keras(lesson.dense(l2=0.02), axis_order="torch")
    hidden, scores = nn.Linear(64, 64), nn.Linear(64, 10)
    plain = nn.Sequential(nn.Flatten(), hidden, nn.ReLU(), scores)
    _copy_weights(whole, plain)
    found = {}
    for way, model in {"with": whole, "without": plain}.items():
        history = _train(model, dataset, seed, epochs=60, lr=0.3)
        found[way] = evaluate(model, first, loss=LOSS)[1], history
    return found


def _copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Give the parameters of one model to another, in their order."""
    pairs = zip(target.state_dict(), source.state_dict().values(), strict=True)
    target.load_state_dict(dict(pairs))


@claim(
    "A trained Keras network, its weights copied into a torch network that flattens "
    "channels first, is right in less than a quarter of the test images, in %.",
    both(below("copied", "imported", by=70), lambda v: max(v["copied"]) < 25),
)
def flatten_order(seed: int) -> dict[str, float]:
    """Train with the weights in Keras's order, and copy them as they are."""
    digits = data.load("digits")
    seed_everything(seed)
    imported = load_keras(lesson.convnet(), axis_order="torch")
    _train(imported, digits, seed, epochs=10, lr=0.1)
    convolution = nn.Conv2d(1, 4, 3, padding=1)
    copied = nn.Sequential(convolution, nn.ReLU(), nn.Flatten(), nn.Linear(256, 10))
    _copy_weights(imported, copied)
    return {
        name: 100 * evaluate(model, digits.test, loss=LOSS)[1]
        for name, model in {"imported": imported, "copied": copied}.items()
    }


def _train(
    model: nn.Module, dataset: data.Dataset, seed: int, *, epochs: int, lr: float
) -> History:
    sgd = torch.optim.SGD(model.parameters(), lr=lr)
    return fit(
        model,
        dataset,
        loss=LOSS,
        optimizer=sgd,
        penalty=penalty,
        epochs=epochs,
        batch_size=50,
        seed=seed,
    )
