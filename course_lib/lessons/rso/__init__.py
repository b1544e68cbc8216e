"""Exercises of lesson 08, Train without gradients.

The oracles are hand arithmetic, and torch's own `calculate_gain` and storage addresses;
none of them is the search that the lesson teaches.
"""

import math
from collections.abc import Callable, Sequence
from numbers import Real

import torch
from torch import Tensor, nn

from course_lib.lessons.checks import (
    Mistakes,
    reject,
    require_close,
    require_kind,
    require_unchanged,
)
from course_lib.lessons.exercises import NotYet, exercise
from course_lib.lessons.rso.assign_judge import judge_filled, judge_norm
from course_lib.lessons.rso.visits_judge import Lab, judge

NUMBER = 8


@exercise(
    "A name is not a place. Which methods of a tensor write into it?",
    "`weight.copy_(fresh)` does; torch complains unless gradients are off.",
    "Put `with torch.no_grad():` around `weight.copy_(fresh)`.",
    right="The numbers moved and nothing else did: the same tensors, with memory of "
    "their own, and ready to be trained.",
)
def assign(answer: Callable[[nn.Module, list[Tensor]], object]) -> None:
    """A function of (model, values): the model's parameters filled in place."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2, bias=False))
    parameters = list(model.parameters())
    old = [p.detach().clone() for p in parameters]
    values = [torch.randn(p.shape) for p in parameters]
    wanted = [v.clone() for v in values]
    answer(model, given := list(values))
    if len(given) != len(values):
        raise NotYet("You took tensors out of the list `values`. Leave it as it is.")
    now = list(model.parameters())
    if any(a is not b for a, b in zip(now, parameters, strict=True)):
        raise NotYet(
            "The model has new parameters. Whoever holds the old ones, such as an "
            "optimizer, trains weights that nobody uses. Fill the old ones in place."
        )
    name = "the tensors in `values`, which belong to the caller"
    require_unchanged(values, wanted, name)
    judge_filled(now, old, wanted)
    reject(
        {
            "The model now shares its memory with `values`: who changes `values` later "
            "changes the model. Copy the numbers.": any(
                a.data_ptr() == v.data_ptr() for a, v in zip(now, values, strict=True)
            ),
            "The parameters can't be trained by gradients any more. Do not change "
            "`requires_grad`; `torch.no_grad()` around the copy is enough.": not all(
                p.requires_grad and p.is_leaf for p in now
            ),
            "The parameters have a `.grad` now: the next step of an optimizer would "
            "use it.": any(p.grad is not None for p in now),
            "The model is in eval mode now. Leave its mode as it was.": (
                not all(module.training for module in model.modules())
            ),
            "You put other tensors into the list `values`.": any(
                a is not b for a, b in zip(given, values, strict=True)
            ),
        }
    )
    judge_norm(answer)


# (what it is about, w, dw, losses at w, w + dw and w - dw). All numbers fit float32;
# (w + dw) - dw is not w for the tiny one.
_TINY = 2.0**-60
_CASES = (
    ("only w - dw is better", 1.5, 0.25, (20.0, 30.0, 10.0)),
    ("w - dw is the best", 1.5, 0.25, (30.0, 20.0, 10.0)),
    ("w + dw is the best", 1.5, 0.25, (30.0, 10.0, 20.0)),
    ("staying is the best", _TINY, 0.75, (10.0, 20.0, 30.0)),
    ("w + dw is a little better", 2.5, 0.25, (0.3, 0.2999, 0.31)),
    ("w and w + dw are equal", _TINY, 0.75, (10.0, 10.0, 30.0)),
    ("w and the smaller w + dw are equal", 1.5, -0.25, (10.0, 10.0, 30.0)),
    ("w and w - dw are equal", _TINY, 0.75, (10.0, 30.0, 10.0)),
    ("both candidates are equal, and better", 2.5, -0.25, (30.0, 10.0, 10.0)),
    ("nothing makes a difference", _TINY, 0.75, (10.0, 10.0, 10.0)),
    ("the losses are negative", _TINY, 0.75, (-20.0, -30.0, -10.0)),
    ("all losses are large", _TINY, 0.75, (1e9, 2e9, 3e9)),
)


@exercise(
    "Three candidates, three losses, and the candidate with the least of them.",
    "`min(candidates, key=loss)` finds it. Of several equals it takes the first.",
    "`return min([w, w + dw, w - dw], key=loss)`",
    right="The best of three, and a weight without effect does not wander.",
)
def best(answer: Callable[[Callable[[float], float], float, float], float]) -> None:
    """A function of (loss, w, dw): the best of three weights."""
    for about, w, dw, losses in _CASES:
        candidates = (w, w + dw, w - dw)
        seen: list[float] = []
        got = answer(_table(candidates, losses, seen), w, dw)
        require_kind(got, Real | Tensor, "one number, the winner itself")
        if isinstance(got, Tensor) and got.numel() != 1:
            raise NotYet("You return several numbers; wanted the winner alone.")
        _judge_winner(float(got), f"Where {about}", candidates, losses)
        if len(set(seen)) < 3:
            raise NotYet(
                f"You ask for {len(set(seen))} of the three losses. The one that you "
                "leave out may be the best."
            )


def _table(
    candidates: Sequence[float], losses: Sequence[float], seen: list[float]
) -> Callable[[float], float]:
    def loss(w: float) -> float:
        nearest = min(range(3), key=lambda i: abs(candidates[i] - w))
        if abs(candidates[nearest] - w) > 1e-6:
            raise NotYet(
                f"You ask for the loss at {w:g}; wanted only w, w + dw and w - dw, "
                f"which are {', '.join(f'{c:g}' for c in candidates)} here."
            )
        seen.append(candidates[nearest])
        return losses[nearest]

    return loss


def _judge_winner(
    got: float, place: str, candidates: Sequence[float], losses: Sequence[float]
) -> None:
    w, plus, minus = candidates
    lowest = min(losses)
    winner = candidates[losses.index(lowest)]
    is_tie = losses.count(lowest) > 1
    if got == winner or (is_tie and lowest < losses[0] and got == minus):
        return  # of two equal candidates, either is good
    got_loss = dict(zip(candidates, losses, strict=True)).get(got, lowest)
    reject(
        {
            f"{place}, you move the weight. A tie must keep it, or weights without "
            "effect wander about. Let `w` stand first.": (
                is_tie and lowest == losses[0] and got in (plus, minus)
            ),
            f"{place}, you return {got!r} and not {w!r}. (w + dw) - dw is not always "
            "w: remember w itself.": abs(got - w) < 1e-9 and got != w,
            "You return the best loss; wanted the weight that gives it.": got == lowest,
            f"{place}, you return {got}. That looks like a position; wanted the "
            "weight.": got in (0, 1, 2, -1),
            f"{place}, you keep a change although the loss rose.": (
                got_loss > losses[0]
            ),
            f"{place}, you stay, although a candidate has a lower loss.": got == w,
            f"{place}, you return the second best. Compare all three losses.": (
                got in candidates
            ),
            f"{place}, you return {got!r}; wanted {winner!r}.": True,
        }
    )


@exercise(
    "How many candidates has a weight, and is any of their losses known before?",
    "`p.numel()` counts the numbers in a parameter; `model.parameters()` gives "
    "each parameter once.",
    "3 * cycles * the sum of `p.numel()` over those with `p.requires_grad`.",
    right="48,672 for the network that we train below: batches, cycles and engines "
    "change how long a pass takes, not how many decisions there are.",
)
def passes(answer: Callable[[nn.Module, int], int]) -> None:
    """A function of (model, cycles): how many forward passes RSO makes."""

    def count(
        place: str, cycles: int, wanted: int, mistakes: Mistakes, *layers: nn.Module
    ) -> None:
        got = answer(nn.Sequential(*layers), cycles)
        require_kind(got, Real | Tensor, "a number; `numel()` gives one")
        require_close(got, wanted, place, mistakes)

    dense = nn.Linear(4, 3, bias=False)  # 12 weights
    mistakes = {
        "One pass for each weight can't compare anything": 12,
        "`keep` needs a pass of its own: its old loss was on another mini-batch": 24,
        "You count tensors. Each *number* in them is a weight: `numel()`": 3,
        "You count rows. Each *number* is a weight: `numel()`": 9,
        "You take one more pass. Writing the winner back needs none": 37,
        "Four passes for each weight. Writing the winner back needs none": 48,
    }
    count("For 12 weights in one cycle", 1, 36, mistakes, dense)
    mistakes = {"The cycles are missing": 36, "Two passes for each weight": 12 * 2 * 5}
    count("In five cycles", 5, 180, mistakes, dense)
    mistakes = {"You count a frozen parameter. Ask for `requires_grad`": 108}
    frozen = nn.Linear(3, 2, bias=False).requires_grad_(False)
    count("With a frozen layer", 2, 72, mistakes, dense, frozen)
    mistakes = {"The bias is missing. It is a parameter like any other": 108}
    count("With a layer that has a bias", 2, 120, mistakes, dense, nn.Linear(3, 2))
    mistakes = {"A tensor that stands twice in the model is counted twice": 54}
    square = nn.Linear(3, 3, bias=False)
    count("With one layer at two places", 1, 27, mistakes, square, nn.ReLU(), square)
    zeros = [nn.Linear(3, 3, bias=False) for _ in range(2)]
    for layer in zeros:
        nn.init.zeros_(layer.weight)
    mistakes = {
        "Equal tensors are still two. Only the *same* tensor counts once": 27,
        "You do not reach a layer inside of another module": 0,
    }
    place = "With two layers of equal weights, inside of another module"
    count(place, 1, 54, mistakes, nn.Sequential(*zeros))
    mistakes = {
        "A norm has a weight and a bias, too": 60,
        "Other layers than linear ones have parameters, too": 0,
        "You count buffers. They are no parameters, and nothing searches them": 87,
    }
    norm = nn.BatchNorm2d(2)
    count("With a convolution and a norm", 1, 72, mistakes, nn.Conv2d(1, 2, 3), norm)
    mistakes = {"One weight stands in two layers, and is counted twice": 54}
    zeros[1].weight = zeros[0].weight
    count("With one weight in two layers", 1, 27, mistakes, *zeros)
    half = nn.Linear(3, 2)
    half.weight.requires_grad_(False)
    own = "each parameter has a `requires_grad` of its own"
    mistakes = {
        f"You ask a layer's weight; {own}": 0,
        f"You count a frozen weight; {own}": 24,
    }
    count("With a frozen weight and a free bias", 1, 6, mistakes, half)
    if not zeros[0].weight.requires_grad:
        raise NotYet("Your function has frozen the model. It should only count.")


@exercise(
    "How many numbers of the weight does *one* output use?",
    "Those of the first output are `weight[0]`. How many are they?",
    "`return (2 / weight[0].numel()) ** 0.5`",
    right="One rule for both kinds of layer: two, divided by all that feeds one "
    "output, under the root.",
)
def he(answer: Callable[[Tensor], float]) -> None:
    """A function of a weight: He's standard deviation."""
    layers = {
        "a linear layer, 5 inputs, 7 outputs": (nn.Linear(5, 7), 5),
        "a convolution, 6 to 4 channels, 3 x 5": (nn.Conv2d(6, 4, (3, 5)), 6 * 3 * 5),
        "a convolution in 2 groups": (nn.Conv2d(6, 4, 3, groups=2), 3 * 3 * 3),
    }
    for name, (layer, fan_in) in layers.items():
        weight = layer.weight
        outputs, kernel = len(weight), weight[0, 0].numel()
        mistakes = {
            "The root is missing: 2 / fan-in is the variance": 2 / fan_in,
            "The 2 is missing. ReLU cuts half of the outputs off": 1 / fan_in**0.5,
            "You divide by the whole tensor": (2 / weight.numel()) ** 0.5,
            "You divide by the number of outputs, the fan-out": (2 / outputs) ** 0.5,
            "That is the number of outputs": outputs,
            "That is the fan-out": outputs * kernel,
            "That is the fan-out: outputs times kernel. Which numbers does one "
            "*output* add up?": (2 / (outputs * kernel)) ** 0.5,
            "You count the channels and forget the kernel: each output adds up "
            "height * width numbers of each channel": (2 / weight.shape[1]) ** 0.5,
            "That is the fan-in itself; wanted sqrt(2 / fan-in)": fan_in,
        }
        if weight.dim() > 2:
            side = weight.shape[2]
            square = (2 / (weight.shape[1] * side * side)) ** 0.5
            mistakes["A kernel need not be square: height times width"] = square
        wanted = nn.init.calculate_gain("relu") / math.sqrt(fan_in)
        before = weight.detach().clone()
        require_close(answer(weight), wanted, f"For {name}", mistakes)
        require_unchanged([weight], [before], "the weight. Return the number alone")
        if not weight.requires_grad:
            raise NotYet("You changed `requires_grad` of the weight. Leave it alone.")


@exercise(
    "Which part of the way is done at `cycle`? It is 0 at first and 1 at last.",
    "`cycle / (cycles - 1)`; look out for a single cycle. From there it is a line "
    "from 1 to `final`.",
    "`return sigma * (1 - (1 - final) * done)`",
    right="A line from sigma to final * sigma, both ends included.",
)
def anneal(answer: Callable[[float, int, int, float], float]) -> None:
    """A function of (sigma, cycle, cycles, final): the sigma of the cycle."""
    place = "cycle of 5, with sigma = 1 and final = 0.1"
    first, middle, last = (answer(1.0, cycle, 5, 0.1) for cycle in (0, 2, 4))
    mistakes = {
        "The last cycle still has 0.28 of sigma. You divide by `cycles`, as the "
        "authors' code does; between 5 cycles there are 4 steps": 0.28,
        "That grows from 0.1 to 1. Sigma should fall": 1.0,
        "You end at 0; wanted final * sigma in the last cycle": 0.0,
    }
    require_close(last, 0.1, f"In the last {place}", mistakes)
    mistakes = {"The first cycle is already smaller. `cycle` counts from 0": 0.82}
    require_close(first, 1.0, f"In the first {place}", mistakes)
    mistakes = {
        "That is a geometric fall: each cycle divides by the same number. Wanted a "
        "line, which is at 0.55 in the middle": 0.1**0.5
    }
    require_close(middle, 0.55, f"In the middle {place}", mistakes)
    for cycle in (1, 3):
        place = f"Sigma falls in a line. In cycle {cycle}, counted from 0, of 5"
        require_close(answer(1.0, cycle, 5, 0.1), 1 - 0.9 * cycle / 4, place, {})
    require_close(answer(1.0, 1, 2, 0.1), 0.1, "In the last cycle of 2", {})
    place = "With sigma = 2 all values should double. In the middle"
    mistakes = {"You end at `final` itself; wanted final * sigma": 1.05}
    require_close(answer(2.0, 2, 5, 0.1), 1.1, place, mistakes)
    place = "With final = 0.5 the middle is 0.75. Is a 0.1 or 0.9 fixed? There"
    require_close(answer(1.0, 2, 5, 0.5), 0.75, place, {})
    place = "With final = 0, which ends at 0. In the last cycle of 5"
    require_close(answer(1.0, 4, 5, 0.0), 0.0, place, {})
    try:
        alone = answer(1.0, 0, 1, 0.1)
    except ZeroDivisionError:
        raise NotYet(
            "With a single cycle you divide by zero. There is no line then; use sigma."
        ) from None
    require_close(alone, 1.0, "In a single cycle, which has sigma itself", {})


def _labs() -> dict[str, Lab]:
    """Return the steps in which a cycle is checked, each with one thing more."""
    conv, grouped = nn.Conv2d(2, 3, 2), nn.Conv2d(2, 4, 2, groups=2, bias=False)
    others = nn.BatchNorm2d(4), nn.PReLU(), nn.MaxPool2d(2), nn.Flatten()
    layers = {
        "1, one output of three inputs": ([nn.Linear(3, 1, bias=False)], [0.5]),
        "2, a linear layer with biases": ([nn.Linear(3, 4)], [0.5]),
        "3, a convolution": ([nn.Conv2d(2, 3, (2, 3))], [0.5]),
        "4, two layers": (
            [conv, nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)],
            [0.5, 0.0, 0.0, 0.25],
        ),
        "5, a network with a norm": (
            [grouped, *others, nn.Linear(4, 2)],
            [0.5, 0.75, 0.75, 0.0, 0.0, 0.25],
        ),
    }
    return {
        f"Step {name}": Lab(
            nn.Sequential(*parts),
            sigmas,
            (4, 3) if isinstance(parts[0], nn.Linear) else (4, 2, 3, 3),
            sign=-1 if name.startswith("3") else 1,
        )
        for name, (parts, sigmas) in layers.items()
    }


@exercise(
    "Four loops, one in the other: layers, outputs, the weights of an output, "
    "candidates.",
    "`layer.weight` is one row for each output, for `nn.Linear` and `nn.Conv2d` "
    "alike; `row.view(-1)` is that row as a vector, in the same memory.",
    "For each weight: `w, dw = flat[j].item(), draw(sigma)`, a mini-batch from "
    "`take()`, three losses with `flat[j]` set, and at last the best of the three.",
    right="A whole cycle: every weight of both kinds of layer, output first, each with "
    "a mini-batch and a step of its own.",
)
def cycle(answer: Callable[..., object]) -> None:
    """A function of (model, sigmas, draw, take, loss): one cycle of RSO."""
    for step, lab in _labs().items():
        try:
            judge(lab, answer)
        except NotYet as mistake:
            raise NotYet(f"{step}: {mistake}") from None
