"""Claims of lesson 07, Compose rules that can be read."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.claims.core import below, both, claim
from course_lib import data, explicit
from course_lib.device import seed_everything
from course_lib.explicit import adjust, call, freeze, setup, thaw, train
from course_lib.rules import Adam, AdamW, Chain, Descent, Momentum, WeightDecay
from course_lib.trees import Tree

digits = data.load("digits", device="cpu")
STEPS = 120  # four epochs in batches of 48


def batches(epochs: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    order = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        yield from digits.train.batches(48, generator=order)


@dataclass(frozen=True)
class SignDescent:
    """The lesson's rule of its own."""

    eta: float = 0.003

    def init(self, x: Tensor) -> None:
        return None

    def apply(self, state: None, x: Tensor, g: Tensor) -> tuple[None, Tensor]:
        return state, self.eta * g.sign()


class Autoencoder:
    """The lesson's encoder and decoder, with the loss of one seed's start."""

    def __init__(self, seed: int) -> None:
        seed_everything(seed)
        self.model = nn.Sequential()
        encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh())
        self.model.add_module("encoder", encoder)
        self.model.add_module("decoder", nn.Linear(16, 64))
        self.fresh = explicit.parameters(self.model)

    def loss(self, params: Tree, x: Tensor, y: Tensor | None = None) -> Tensor:
        return nn.functional.mse_loss(call(self.model, params, x), x.flatten(1))

    def test_error(self, params: Tree) -> float:
        return self.loss(params, digits.test.inputs).item()


@claim(
    "Test error of the autoencoder after six epochs (1 is a picture of one gray): a "
    "rule of our own, by the sign of the gradient, ends below 0.2, and below Descent.",
    both(
        lambda v: max(v["SignDescent(0.003)"]) < 0.2,
        below("SignDescent(0.003)", "Descent(0.3)"),
    ),
    digits=3,
)
def a_rule_of_our_own(seed: int) -> dict[str, float]:
    auto, errors = Autoencoder(seed), {}
    rules = {
        "Descent(0.3)": Descent(0.3),
        "Momentum(0.3)": Momentum(0.3),
        "Adam(0.01)": Adam(0.01),
        "SignDescent(0.003)": SignDescent(),
    }
    for name, rule in rules.items():
        state = setup(rule, auto.fresh)
        _, params, _ = train(auto.loss, auto.fresh, batches(6, seed), state)
        errors[name] = auto.test_error(params)
    return errors


@claim(
    "Length of the 650 weights of one linear layer after 30 steps on all digits, with "
    "c = 0.42: AdamW's is more than twice that of WeightDecay before Adam.",
    lambda v: all(
        2 * inside < after
        for inside, after in zip(v["in the chain"], v["AdamW"], strict=True)
    ),
)
def decay_after_adam(seed: int) -> dict[str, float]:
    rules = {
        "in the chain": Chain(WeightDecay(0.42), Adam(0.1)),
        "AdamW": AdamW(0.1, decay=0.42),
    }
    return {name: length(rule, seed) for name, rule in rules.items()}


def length(rule: object, seed: int) -> float:
    seed_everything(seed)
    linear = nn.Linear(64, 10, dtype=torch.float64)
    params = explicit.parameters(linear)
    batch = digits.train.inputs.flatten(1).double(), digits.train.labels

    def loss(params: Tree, x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(call(linear, params, x), y)

    _, params, _ = train(loss, params, [batch] * 30, setup(rule, params))
    return explicit.destructure(params)[0].norm().item()


@claim(
    "Test error of the autoencoder after six epochs (1 is a picture of one gray): "
    "above 0.16 where the encoder stays random, below 0.16 where both learn.",
    lambda v: min(v["encoder rests"]) > 0.16 > max(v["both learn"]),
    digits=3,
)
def a_random_encoder(seed: int) -> dict[str, float]:
    auto, errors = Autoencoder(seed), {}
    for name, rule in {"encoder rests": Descent(0.0), "both learn": Adam(0.01)}.items():
        state = setup({"encoder": rule, "decoder": Adam(0.01)}, auto.fresh)
        _, params, _ = train(auto.loss, auto.fresh, batches(6, seed), state)
        errors[name] = auto.test_error(params)
    return errors


@claim(
    "Test error with a trained encoder and a fresh decoder: after four epochs it is "
    "lower where the encoder was frozen; four more lower it further, and most where "
    "the encoder is thawed, at a tenth of the step size.",
    both(
        below("frozen, 4 epochs", "not frozen, 4 epochs"),
        below("frozen, 8 epochs", "frozen, 4 epochs"),
        below("thawed for the last 4", "frozen, 8 epochs"),
    ),
    digits=3,
)
def freeze_first(seed: int) -> dict[str, float]:
    auto = Autoencoder(seed)
    state = setup(Adam(0.01), auto.fresh)
    state, trained, _ = train(auto.loss, auto.fresh, batches(6, seed), state)
    start = {"encoder": trained["encoder"], "decoder": auto.fresh["decoder"]}

    def go_on(params: Tree, encoder: Tree, decoder: Tree, order: int):
        state = {"encoder": encoder, "decoder": decoder}
        state, params, _ = train(auto.loss, params, batches(4, order), state)
        return state, params, auto.test_error(params)

    new = setup(Adam(0.01), auto.fresh["decoder"])
    moving, params, moved = go_on(start, state["encoder"], new, seed + 100)
    never = go_on(params, *moving.values(), seed + 200)[2]
    resting, params, first = go_on(start, freeze(state["encoder"]), new, seed + 100)
    still = go_on(params, *resting.values(), seed + 200)[2]
    thawed = adjust(thaw(resting["encoder"]), 0.001)
    last = go_on(params, thawed, resting["decoder"], seed + 200)[2]
    return {
        "not frozen, 4 epochs": moved,
        "frozen, 4 epochs": first,
        "frozen, 8 epochs": still,
        "thawed for the last 4": last,
        "never frozen, 8 epochs": never,
    }


def constant(peak: float) -> Callable[[int], float]:
    return lambda step: peak


def to_zero(peak: float) -> Callable[[int], float]:
    return lambda step: peak * (1 - step / STEPS)


def warm_cosine(peak: float, warmup: int = 20) -> Callable[[int], float]:
    def eta(step: int) -> float:
        if step < warmup:
            return peak * (step + 1) / warmup
        done = (step - warmup) / (STEPS - warmup)
        return peak * (1 + math.cos(math.pi * done)) / 2

    return eta


RUNS = {
    "0.3, constant": constant(0.3),
    "0.3, to zero": to_zero(0.3),
    "1, constant": constant(1.0),
    "1, warm-up and cosine": warm_cosine(1.0),
    "3, constant": constant(3.0),
    "3, to zero": to_zero(3.0),
    "3, cosine alone": warm_cosine(3.0, 0),
    "3, warm-up and cosine": warm_cosine(3.0),
}


@claim(
    "Test error of the autoencoder after 120 steps of Momentum, by step size and "
    "schedule. At 0.3 the constant one ends lower, at 3 the falling one; warm-up and "
    "cosine end lower than the cosine alone at 3, and lowest of all at 1.",
    both(
        below("0.3, constant", "0.3, to zero"),
        below("3, to zero", "3, constant"),
        below("3, warm-up and cosine", "3, cosine alone"),
        *(
            below("1, warm-up and cosine", name)
            for name in RUNS
            if name != "1, warm-up and cosine"
        ),
    ),
    digits=2,
)
def schedules(seed: int) -> dict[str, float]:
    auto, errors = Autoencoder(seed), {}
    for name, schedule in RUNS.items():
        state, order = setup(Momentum(), auto.fresh), batches(4, seed)
        end = train(auto.loss, auto.fresh, order, state, schedule=schedule)
        errors[name] = auto.test_error(end[1])
    return errors
