"""Exercises of lesson 07, Compose rules that can be read.

Each judge computes the wanted numbers again, by the formula, and tries the likely
mistakes by name before it says "something else".
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import permutations
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from course_lib.lessons.careful_rule import judge_careful
from course_lib.lessons.checks import (
    as_text,
    close,
    reject,
    require_close,
    require_kind,
    require_unchanged,
)
from course_lib.lessons.exercises import NotYet, exercise
from course_lib.lessons.freezing import judge_freezing
from course_lib.rules import Chain

NUMBER = 7

Update = Callable[[Tensor, Tensor, Tensor, float, float], Any]
Schedule = Callable[[int], float]


@exercise(
    "Two lines: first the new velocity, then dx from it.",
    "x' = x - dx, and x' = x + rho * v' - eta * g. So dx = ...",
    "`v = rho * v - eta * g`, then `return v, eta * g - rho * v`.",
    right="`course_lib.rules.Nesterov` does the same in one formula: (1 + rho) * eta * "
    "g - rho**2 * v.",
)
def nesterov(answer: Update) -> None:
    """A function of (v, x, g, eta, rho): the new velocity and dx."""
    v, x = torch.tensor([1.0, -2.0]), torch.tensor([3.0, 4.0])
    g = torch.tensor([2.0, -0.5])
    given = v.clone(), x.clone(), g.clone()
    got = answer(*given, 0.1, 0.5)
    require_kind(got, tuple | list, "two things, `(new v, dx)`")
    if len(got) != 2:
        raise NotYet("Return two things, `(new v, dx)`.")
    require_unchanged(given, (v, x, g), "a tensor that you were given")
    new, dx = got
    _require_velocity(new, dx, v, g)
    _require_step(dx, v, x, g)


def _require_velocity(new: Any, dx: Any, v: Tensor, g: Tensor) -> None:
    wanted = 0.5 * v - 0.1 * g
    if close(dx, wanted) and not close(new, wanted):
        raise NotYet("The two are in the wrong order: return the new v first, then dx.")
    mistakes = {
        "Your velocity is rho * v + eta * g, which is `Momentum`'s and points uphill. "
        "Nesterov's takes eta * g off": 0.5 * v + 0.1 * g,
        "You return the old velocity, so the rule remembers nothing new": v,
        "The gradient has lost its eta": 0.5 * v - g,
    }
    place = "The new v, rho * v - eta * g"
    require_close(new, wanted, place, mistakes, what="The new v", verb="is")


def _require_step(dx: Any, v: Tensor, x: Tensor, g: Tensor) -> None:
    new = 0.5 * v - 0.1 * g
    wanted = 0.1 * g - 0.5 * new
    mistakes = {
        "dx has the wrong sign. The caller computes x - dx, so a minus stands before "
        "all that x' adds": -wanted,
        "That is the new x. Return the step alone; the caller takes it": x - wanted,
        "That is -v', a step by the new velocity alone. The look ahead is missing, or "
        "it uses the old velocity": -new,
        "rho * v' has the wrong sign in dx: the caller computes x - dx": (
            0.1 * g + 0.5 * new
        ),
        "The step by this gradient, eta * g, is missing from dx": -0.5 * new,
    }
    require_close(dx, wanted, "dx", mistakes, what="dx", verb="is")


_STEPS = ("mean", "clip", "decay", "momentum")
_MISSING = {
    "mean": "The mean of two gradients is missing",
    "clip": "Nothing is clipped",
    "decay": "The penalty is missing",
    "momentum": "The momentum is missing, so the gradient itself is the step",
}
_PAIRS = {
    ("clip", "mean"): "Each gradient is clipped before the mean is taken. The sentence "
    "cuts the mean",
    ("decay", "clip"): "The decay is cut together with the data. It should come after "
    "the clip, uncut",
    ("momentum", "clip"): "The clip comes after the momentum, and cuts the step rather "
    "than the gradient",
    ("momentum", "decay"): "The decay comes after the momentum, so neither eta nor the "
    "velocity knows of it",
    ("momentum", "mean"): "The momentum comes before the mean, and gathers every "
    "single gradient",
}
_DATA = torch.tensor(
    [[4.0, 0.3], [-1.0, 0.2], [0.2, -3.0], [0.4, 0.5], [2.0, 2.0], [-0.5, 3.0]]
)


@exercise(
    "Four rules in one `Chain`, in the order of the sentence.",
    "`rules.ClipGrad(1.0)` cuts elements. Which decay is the gradient of 0.05 * x**2?",
    "`Chain(rules.AccumulateGradients(2), rules.ClipGrad(1.0), "
    "WeightDecay(0.1), Momentum(eta=0.1, rho=0.5))`",
    right="Mean, clip, decay, momentum. The chain reads as the sentence does, and "
    "nobody has to know what an optimizer does inside.",
)
def in_order(answer: Any) -> None:
    """A rule: mean, clip, decay and momentum in this order."""
    if not (hasattr(answer, "init") and hasattr(answer, "apply")):
        raise NotYet(
            f"`chain` is {type(answer).__name__}; wanted a rule: Chain(..., ...)."
        )
    got = _drive(answer)
    if not isinstance(answer, Chain) and not isinstance(got, Tensor):
        raise NotYet("That is one rule. Chain(first, second, ...) holds several.")
    if close(got, _by_hand(_STEPS)):
        return
    for wrong, text in _near_misses():
        if close(got, wrong):
            raise NotYet(f"{text}.")
    raise NotYet(
        f"After six gradients x is {as_text(got)}; wanted {as_text(_by_hand(_STEPS))}. "
        "Compare your rules and their numbers with the sentence, word by word."
    )


def _drive(rule: Any) -> Tensor:
    x = torch.tensor([5.0, -20.0])
    state = rule.init(x)
    for g in _DATA:
        state, dx = rule.apply(state, x, g)
        x = x if dx is None else x - dx
    return x


def _by_hand(
    order: Sequence[str], decay: float = 0.1, rho: float = 0.5, n: int = 2
) -> Tensor:
    """Return x after six gradients, by plain arithmetic, in any order of the steps."""
    x, v, total, count = torch.tensor([5.0, -20.0]), 0.0, 0.0, 0
    for g in _DATA:
        for step in order:
            if step == "mean":
                total, count = total + g, count + 1
                if count % n:
                    break
                g, total = total / n, 0.0
            elif step == "clip":
                g = g.clamp(-1, 1)
            elif step == "decay":
                g = g + decay * x
            else:
                v = rho * v + 0.1 * g
                g = v
        else:
            x = x - g
    return x


def _near_misses() -> Iterator[tuple[Tensor, str]]:
    yield (
        _by_hand(_STEPS, decay=0.05),
        "The decay is half of what the penalty pulls. The derivative of 0.05 * x**2 is "
        "0.1 * x",
    )
    yield (
        _by_hand(_STEPS, rho=0.9),
        "The order is right, but rho is still 0.9, the value that Momentum has by "
        "itself",
    )
    for name, text in _MISSING.items():
        yield _by_hand([step for step in _STEPS if step != name]), text
    for order in permutations(_STEPS):
        for (first, second), text in _PAIRS.items():
            if order.index(first) < order.index(second):
                yield _by_hand(order), text
                break


@exercise(
    "`freeze` takes a branch and returns a new one.",
    "A new dictionary that shares the other branches: `{**state, ...}`.",
    "`return {**state, name: freeze(state[name])}`",
    right="The branch is frozen with its memory, the other one is shared, and whoever "
    "holds the old state sees no change.",
)
def freeze_part(answer: Callable[[Any, str], Any]) -> None:
    """A function of (state, name): the state with one frozen branch."""
    for name in ("encoder", "decoder"):
        judge_freezing(lambda state, name=name: answer(state, name), name)


@exercise(
    "Return a function of the step, with two cases: before `warmup`, and after.",
    "Rising: `peak * (step + 1) / warmup`. Falling: let `done` go from 0 at "
    "`warmup` to 1 at `total`.",
    "`done = (step - warmup) / (total - warmup)`, then "
    "`peak * (1 + math.cos(math.pi * done)) / 2`.",
    right="Up in equal parts, down along a cosine. `train(..., schedule=...)` takes "
    "the function itself.",
)
def warm_cosine(answer: Callable[[float, int, int], Schedule]) -> None:
    """A function of (peak, warmup, total): a schedule."""
    for setting in ((0.2, 4, 20), (1.0, 10, 110)):
        eta = answer(*setting)
        require_kind(
            eta,
            Callable,
            "a function of the step, defined inside",
            what="`warm_cosine`",
        )
        got = [eta(step) for step in range(setting[2] + 1)]
        for value in got:
            require_kind(value, Real | Tensor, "a number", what="Your schedule")
        if any(isinstance(value, Tensor) for value in got):
            raise NotYet(
                "Your schedule gives a tensor, which `train` refuses, for a rule holds "
                "no tensors. Compute with `math`, or take `.item()` at the end."
            )
        numbers = torch.tensor([float(value) for value in got], dtype=torch.float64)
        _require_schedule(numbers, *setting)


def _require_schedule(got: Tensor, peak: float, warmup: int, total: int) -> None:
    s = torch.arange(total + 1, dtype=torch.float64)
    done = (s - warmup) / (total - warmup)
    rise, fall = peak * (s + 1) / warmup, _cosine(peak, done)

    def joined(second: Tensor, first: Tensor = rise) -> Tensor:
        return torch.where(s < warmup, first, second)

    wanted = joined(fall)
    wave = torch.cos(math.pi * done)
    mistakes = {
        "The first step has eta = 0 and is wasted. Step `warmup - 1` should have the "
        "peak: count from 1 with `step + 1`": joined(fall, peak * s / warmup),
        "The cosine starts at step 0, so eta jumps down after the warm-up. Count its "
        "steps from `warmup` on": joined(_cosine(peak, s / total)),
        "The cosine is stretched over `total` steps and does not reach 0. It has "
        "`total - warmup` steps": joined(_cosine(peak, (s - warmup) / total)),
        "There is no warm-up": fall,
        "Step `warmup` has more than the peak. It belongs to the cosine: use `<`": (
            torch.where(s <= warmup, rise, fall)
        ),
        "After the warm-up eta rises from 0. The cosine falls: 1 + cos": (
            joined(peak - fall)
        ),
        "That is a whole wave: eta rises again. Half a wave is `math.pi`": (
            joined(_cosine(peak, 2 * done))
        ),
        "That falls on a straight line. The cosine is flat at both ends": (
            joined(peak * (1 - done))
        ),
        "That is a quarter of a cosine wave: it is steep at the end. Half a wave goes "
        "from 1 to -1; add 1 and halve": joined(peak * torch.cos(math.pi * done / 2)),
        "eta becomes negative. The cosine goes from 1 to -1: add 1 and halve": (
            joined(peak * wave)
        ),
        "After the warm-up eta is twice the peak. Halve 1 + cos": joined(2 * fall),
        "It runs from 0 to 1. Multiply by `peak`": wanted / peak,
        "The cosine has hardly begun at the end. `math.cos` counts in radians: half a "
        "wave is `math.pi`": joined(_cosine(peak, done / math.pi)),
    }
    if close(got, wanted):
        return
    reject({f"{text}.": close(got, wrong) for text, wrong in mistakes.items()})
    step = next(i for i in range(total + 1) if not close(got[i], wanted[i]))
    raise NotYet(
        f"With peak {peak}, warmup {warmup} and total {total}, step {step} has "
        f"eta {got[step]:.3g}; wanted {wanted[step]:.3g}."
    )


def _cosine(peak: float, done: Tensor) -> Tensor:
    return peak * (1 + torch.cos(math.pi * done)) / 2


@exercise(
    "Each gradient is a mean. How do you get the sum over its samples back?",
    "Gradient times size is a sum. Add these, and divide by all samples.",
    "`return sum(g * n for g, n in zip(grads, sizes)) / sum(sizes)`",
    right="Pieces of any size now give the gradient of the whole. "
    "`AccumulateGradients` takes the plain mean, so it wants equal pieces.",
)
def accumulate(answer: Callable[[Any, Any], Any]) -> None:
    """A function of (gradients, sizes): the gradient of the whole batch."""
    x = torch.tensor([[1.0, 0.0], [3.0, 2.0], [-1.0, 4.0], [5.0, -7.0], [2.0, 2.0]])
    for sizes in ([4, 1], [1, 1, 3], [2, 2]):
        used = x[: sum(sizes)]
        grads = [_slope(piece) for piece in used.split(sizes)]
        given = [g.clone() for g in grads]
        got = answer(given, list(sizes))
        require_unchanged(given, grads, "a gradient that you were given")
        summed = sum(grads)
        weighted = sum(g * n for g, n in zip(grads, sizes, strict=True))
        mistakes = {
            "That is the sum of the pieces' gradients. Each is a mean already; their "
            "sum grows with the number of pieces": summed,
            "That is the plain mean: a piece of 1 counts as much as one of 4. Weigh "
            "each gradient by its size": summed / len(grads),
            "That is the gradient of the summed loss. Divide by the number of all "
            "samples": weighted,
            "You divide by the number of pieces. Divide by the number of all samples": (
                weighted / len(grads)
            ),
            "Each gradient is divided by all samples, but was a mean. Multiply it by "
            "its size first": summed / sum(sizes),
            "That is the last piece alone": grads[-1],
            "That is the first piece alone": grads[0],
            "The first piece is the only one. Is the `return` inside of the loop?": (
                grads[0] * sizes[0] / sum(sizes)
            ),
        }
        require_close(got, _slope(used), f"With sizes {sizes}", mistakes)


def _slope(samples: Tensor) -> Tensor:
    """Return the gradient of the mean of |w - sample|**2 at w = 0, by hand."""
    return -2 * samples.mean(dim=0)


@exercise(
    "`apply` unpacks its state, asks `self.rule.apply(memory, x, g)`, and packs a new "
    "pair. First let it return the inner step as it is.",
    "`dx * g > 0` tells which elements agree. Multiply dx by it, and by "
    "`min(1, (count + 1) / self.warmup)`; a new tensor each time.",
    "With `if dx is None:` return `(memory, count), None` before you compute with dx. "
    "Otherwise the new state is `(memory, count + 1)`.",
    right="It has the two functions, so it stands wherever a rule of the library does: "
    "around Adam, inside of a chain, in a tree, under `adjust`.",
)
def careful(answer: Any) -> None:
    """A class, Careful(rule, warmup): a rule around another rule."""
    judge_careful(answer)
