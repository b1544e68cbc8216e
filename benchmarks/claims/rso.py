"""Claims of lesson 08: searches of the digits, one setting changed at a time.

Unless a sentence says otherwise, the numbers are shares of the 360 test digits, in %.
"""

from __future__ import annotations

from functools import partial
from itertools import permutations
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.claims.core import Holds, Series, below, both, claim
from course_lib import data, models
from course_lib.data import Split
from course_lib.rso import RSO

DIGITS = data.load("digits")
ODD = Split(DIGITS.train.inputs, DIGITS.train.labels % 2)
ODD_TEST = Split(DIGITS.test.inputs, DIGITS.test.labels % 2)
linear = partial(nn.Linear, bias=False)


def undecided(*ways: str) -> Holds:
    """On no two of the ways do all seeds agree which is better."""

    def holds(series: Series) -> bool:
        return not any(below(a, b)(series) for a, b in permutations(ways, 2))

    return holds


# The networks of the lesson, in float64


def network(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers).double()


def tiny() -> nn.Sequential:
    pooled = nn.AvgPool2d(2), nn.Flatten()
    return network(*pooled, linear(16, 16), nn.ReLU(), linear(16, 10))


def narrow(bias: bool = False) -> nn.Sequential:
    first, second, third = (
        nn.Linear(*sizes, bias=bias) for sizes in ((64, 12), (12, 6), (6, 10))
    )
    return network(nn.Flatten(), first, nn.ReLU(), second, nn.ReLU(), third)


def conv_net() -> nn.Sequential:
    conv = nn.Conv2d(1, 16, 3, padding=1, bias=False)
    return network(conv, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), linear(256, 10))


def step_net() -> nn.Sequential:
    hidden = linear(16, 32), models.Lambda(torch.sign)
    return network(nn.AvgPool2d(2), nn.Flatten(), *hidden, linear(32, 2))


def mistakes(outputs: Tensor, labels: Tensor) -> Tensor:
    return (outputs.argmax(1) != labels).double()


@torch.no_grad()
def right(model: nn.Module, split: Split = DIGITS.test) -> float:
    """Return the share of right answers, in %."""
    chosen = model(split.inputs.double()).argmax(1)
    return 100 * (chosen == split.labels).double().mean().item()


def searched(
    model: nn.Module,
    seed: int,
    *,
    split: Split = DIGITS.train,
    times: float = 1.0,
    **settings: Any,
) -> float:
    """Search a model; return its share of right test digits."""
    search = RSO(model, split, seed=seed, progress=False, **settings)
    search.sigmas = {name: times * sigma for name, sigma in search.sigmas.items()}
    list(search)
    return right(model, ODD_TEST if split is ODD else DIGITS.test)


def dial(seed: int, **changes: Any) -> float:
    """Search the tiny network for four cycles, with the paper's settings or others."""
    return searched(tiny(), seed, **{"batch_size": 512, "cycles": 4, **changes})


# Where to start


@claim(
    "(w + dw) - dw is not w for more than a quarter and less than half of 10,000 "
    "random pairs. Share in %.",
    lambda v: all(25 < share < 50 for share in v["not w"]),
)
def a_step_taken_back(seed: int) -> dict[str, float]:
    generator = torch.Generator().manual_seed(seed)
    w, dw = torch.randn(2, 10_000, generator=generator)
    return {"not w": 100 * ((w + dw) - dw != w).float().mean().item()}


@claim(
    "Six convolutions with 16 channels: how much of their outputs differs from image "
    "to image, in % (variance over the mean square). It is less with biases drawn by "
    "the rule of the weights than with biases of 0.",
    below("drawn", "zero"),
    digits=0,
)
def biases_hide_images(seed: int) -> dict[str, float]:
    return {
        "zero": varying_share(seed, 0.0),
        "drawn": varying_share(seed, 2**0.5),
    }


@torch.no_grad()
def varying_share(seed: int, deviation: float) -> float:
    torch.manual_seed(seed)
    images = DIGITS.train.inputs[:100]
    for channels in (1, *[16] * 5):
        conv = nn.Conv2d(channels, 16, 3, padding=1)
        nn.init.normal_(conv.weight, std=(2 / conv.weight[0].numel()) ** 0.5)
        nn.init.normal_(conv.bias, std=deviation)
        images = conv(images).relu()
    return 100 * (images.var(0).sum() / images.square().mean(0).sum()).item()


@claim(
    "Three linear layers with biases, three cycles: on nine of ten seeds fewer are "
    "right if biases are drawn and moved by the rule of the weights, sqrt(2 / 1), than "
    "if they start at 0 and move as their layer does.",
    lambda v: sum(map(float.__lt__, v["as weights"], v["from 0"])) == 9,
    seeds=10,
)
def biases_as_weights(seed: int) -> dict[str, float]:
    return {
        "from 0": with_biases(seed, as_weights=False),
        "as weights": with_biases(seed, as_weights=True),
    }


def with_biases(seed: int, *, as_weights: bool) -> float:
    model = narrow(bias=True)
    settings = {"batch_size": 360, "cycles": 3, "seed": seed, "progress": False}
    search = RSO(model, DIGITS.train, **settings)
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if as_weights and name.endswith("bias"):
            search.sigmas[name] = 2**0.5
            nn.init.normal_(parameter, std=search.sigmas[name])
    list(search)
    return right(model)


STARTS = {
    "sqrt(2 / fan-in)": lambda w: (2 / w[0].numel()) ** 0.5,
    "sqrt(2 / all)": lambda w: (2 / w.numel()) ** 0.5,
    "outputs": len,
}


@claim(
    "Three linear layers, three cycles: most are right from weights of deviation "
    "sqrt(2 / fan-in), fewer from sqrt(2 / numbers of the tensor), the fewest from the "
    "number of outputs.",
    both(below("sqrt(2 / all)", "sqrt(2 / fan-in)"), below("outputs", "sqrt(2 / all)")),
)
def starts(seed: int) -> dict[str, float]:
    found = {}
    for name, deviation in STARTS.items():
        model = narrow()
        torch.manual_seed(seed)
        for weight in model.parameters():
            nn.init.normal_(weight, std=deviation(weight))
        settings = {"batch_size": 256, "cycles": 3, "initialize": False}
        found[name] = searched(model, seed, **settings)
    return found


@claim(
    "Three linear layers, three cycles: fewer are right if the sigma of a layer is the "
    "deviation of all weights up to it than if it is that of its own.",
    below("piled up", "own"),
)
def piled_up_sigma(seed: int) -> dict[str, float]:
    found = {}
    for name in ("own", "piled up"):
        model, seen = narrow(), []
        settings = {"batch_size": 256, "cycles": 3, "seed": seed, "progress": False}
        search = RSO(model, DIGITS.train, **settings)
        for key, weight in model.named_parameters():
            seen.append(weight.detach().flatten())
            if name == "piled up":
                search.sigmas[key] = torch.cat(seen).std().item()
        list(search)
        found[name] = right(model)
    return found


# The dials


@claim(
    "A tiny network, four cycles: fewer are right with the paper's annealing, to a "
    "tenth of sigma, than with the same sigma to the end.",
    below("annealed", "constant"),
)
def annealing_in_four_cycles(seed: int) -> dict[str, float]:
    return {"annealed": dial(seed), "constant": dial(seed, final_sigma=1.0)}


@claim(
    "A tiny network, thirty-two cycles: more are right with the paper's annealing "
    "than with the same sigma to the end.",
    below("constant", "annealed"),
)
def annealing_in_many_cycles(seed: int) -> dict[str, float]:
    return {
        "annealed": dial(seed, cycles=32),
        "constant": dial(seed, cycles=32, final_sigma=1.0),
    }


@claim(
    "A tiny network, four cycles: a tenth of the paper's sigma is too small, and three "
    "times as much is better than the paper's.",
    both(below("0.1", "1"), below("1", "3")),
)
def sigma_times(seed: int) -> dict[str, float]:
    return {f"{times:g}": dial(seed, times=times) for times in (0.1, 1.0, 3.0, 10.0)}


@claim(
    "A tiny network, four cycles: the larger the mini-batches, the more are right.",
    both(below("8", "32"), below("32", "128"), below("128", "512")),
)
def minibatch_sizes(seed: int) -> dict[str, float]:
    return {f"{size}": dial(seed, batch_size=size) for size in (8, 32, 128, 512)}


@claim(
    "A tiny network, four cycles: the seeds do not agree which order of the layers is "
    "the best.",
    undecided("output first", "input first", "random"),
)
def order_of_layers(seed: int) -> dict[str, float]:
    orders = ("output_first", "input_first", "random")
    return {order.replace("_", " "): dial(seed, order=order) for order in orders}


@claim(
    "A tiny network, four cycles, mini-batches of 479: the seeds do not agree if three "
    "fixed ones or fresh ones are better.",
    undecided("partition", "fresh"),
)
def fresh_or_partition(seed: int) -> dict[str, float]:
    return {
        kind: dial(seed, batch_size=479, minibatches=kind)
        for kind in ("partition", "fresh")
    }


# A convolution, and SGD


@claim(
    "A convolution and a linear layer, six cycles, mini-batches of 360: more than 95 % "
    "are right on every seed, and more after six cycles than after one.",
    both(lambda v: min(v["6 cycles"]) > 95, below("1 cycle", "6 cycles")),
)
def digits_by_search(seed: int) -> dict[str, float]:
    model, found = conv_net(), []
    settings = {"batch_size": 360, "cycles": 6, "seed": seed, "progress": False}
    for _ in RSO(model, DIGITS.train, **settings):
        found.append(right(model))
    return {"1 cycle": found[0], "6 cycles": found[-1]}


@claim(
    "The same network: the forward passes to 95 % right, SGD's step counted as three. "
    "RSO needs more than a hundred times as many.",
    lambda v: all(a > 100 * b for a, b in zip(v["RSO"], v["SGD"], strict=True)),
    digits=0,
)
def passes_to_95(seed: int) -> dict[str, float]:
    return {"RSO": passes_of_search(seed), "SGD": passes_of_sgd(seed)}


def passes_of_search(seed: int) -> float:
    model = conv_net()
    count = sum(weight.numel() for weight in model.parameters())
    settings = {"batch_size": 360, "cycles": 6, "seed": seed, "progress": False}
    for report in RSO(model, DIGITS.train, **settings):
        if right(model) >= 95:
            return 3 * count * report.cycle
    return float("inf")


def passes_of_sgd(seed: int) -> float:
    model = conv_net()
    settings = {"batch_size": 360, "cycles": 1, "seed": seed, "progress": False}
    minibatches = RSO(model, DIGITS.train, **settings).minibatches
    sgd = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step in range(1000):
        inputs, labels = minibatches.take(step % len(minibatches))
        sgd.zero_grad()
        cross_entropy(model(inputs), labels).backward()
        sgd.step()
        if right(model) >= 95:
            return 3 * (step + 1)
    return float("inf")


# Steps, and the number of mistakes

SEARCH = {"split": ODD, "cycles": 6, "batch_size": 512}


@claim(
    "Odd or even, hidden units that are steps: most are right where RSO searches all "
    "weights by cross-entropy; fewer where it searches them by mistakes, or where SGD "
    "trains the last layer alone.",
    both(below("RSO, mistakes", "RSO, loss"), below("SGD, last layer", "RSO, loss")),
)
def steps_without_gradients(seed: int) -> dict[str, float]:
    return {
        "SGD, last layer": sgd_on_the_last_layer(seed),
        "RSO, mistakes": searched(step_net(), seed, loss=mistakes, **SEARCH),
        "RSO, loss": searched(step_net(), seed, **SEARCH),
    }


def sgd_on_the_last_layer(seed: int) -> float:
    model = step_net()
    RSO(model, ODD, seed=seed, batch_size=512, cycles=1, progress=False)  # its start
    sgd = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(300):
        sgd.zero_grad()
        cross_entropy(model(ODD.inputs.double()), ODD.labels).backward()
        sgd.step()
    return right(model, ODD_TEST)


@claim(
    "Odd or even by mistakes: if all training digits judge, fewer test digits are "
    "right than if mini-batches of 512 do; on the training digits the seeds do not "
    "agree. In the last cycle fewer changes are accepted, in %.",
    both(
        below("test, all", "test, 512"),
        undecided("training, all", "training, 512"),
        below("accepted, all", "accepted, 512"),
    ),
)
def exact_judge(seed: int) -> dict[str, float]:
    found = {}
    for name, size in (("512", 512), ("all", len(ODD))):
        model = step_net()
        settings = {"loss": mistakes, "cycles": 6, "seed": seed, "progress": False}
        *_, last = RSO(model, ODD, batch_size=size, **settings)
        found[f"training, {name}"] = right(model, ODD)
        found[f"test, {name}"] = right(model, ODD_TEST)
        found[f"accepted, {name}"] = 100 * last.accepted
    return found
