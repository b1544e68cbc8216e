"""The exercises of lesson 06, Rules that compose.

Each judge computes the wanted numbers anew, by the formula, and tries the likely
mistakes by name before it says "something else".
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import permutations
from typing import Any

import torch
from torch import Tensor

from course_lib.explicit import Leaf, setup
from course_lib.lessons.exercises import (
    Exercise,
    Mistakes,
    NotYet,
    close,
    require_close,
    require_written,
)
from course_lib.rules import Chain, Momentum

NUMBER = 6

# nesterov

Update = Callable[[Tensor, Tensor, Tensor, float, float], Any]


def _judge_nesterov(answer: Update) -> str:
    v, x, g = torch.tensor([1.0, -2.0]), torch.tensor([3.0, 4.0]), torch.ones(2)
    given = v.clone(), x.clone(), g.clone()
    got = answer(*given, 0.1, 0.5)
    require_written(got)
    if not (isinstance(got, tuple | list) and len(got) == 2):
        raise NotYet("Return two things, `(new v, dx)`.")
    if not all(map(torch.equal, given, (v, x, g))):
        raise NotYet(
            "Your function changed a tensor that it was given. Compute new ones: no "
            "`+=`, `-=` or `*=`, and no methods that end in `_`."
        )
    new, dx = got
    _require_velocity(new, dx, v, g)
    _require_step(dx, v, x, g)
    return (
        "`course_lib.rules.Nesterov` does the same in one formula: "
        "(1 + rho) * eta * g - rho**2 * v."
    )


def _require_velocity(new: Any, dx: Any, v: Tensor, g: Tensor) -> None:
    wanted = 0.5 * v - 0.1 * g
    if close(new, wanted):
        return
    if close(dx, wanted):
        raise NotYet("The two are in the wrong order: return the new v first, then dx.")
    if close(new, 0.5 * v + 0.1 * g):
        raise NotYet(
            "Your velocity is rho * v + eta * g, which is `Momentum`'s and points "
            "uphill. Nesterov's takes eta * g off."
        )
    if close(new, v):
        raise NotYet("You return the old velocity, so the rule remembers nothing new.")
    raise NotYet(
        f"The new v is {_text(new)}; wanted rho * v - eta * g, {_text(wanted)}."
    )


def _require_step(dx: Any, v: Tensor, x: Tensor, g: Tensor) -> None:
    new = 0.5 * v - 0.1 * g
    wanted = 0.1 * g - 0.5 * new
    mistakes = (
        (-wanted, "dx has the wrong sign. The caller computes x - dx, so a minus "
                  "stands before all that x' adds"),
        (x - wanted, "That is the new x. Return the step alone; the caller takes it"),
        (-new, "That is -v', a step by the new velocity alone. The look ahead is "
               "missing, or it uses the old velocity"),
        (-0.5 * new, "The step by this gradient, eta * g, is missing from dx"),
    )  # fmt: skip
    _require_close(dx, wanted, "dx", mistakes)


# in_order

_STEPS = ("mean", "clip", "decay", "momentum")
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


def _judge_in_order(answer: Any) -> str:
    if not (hasattr(answer, "init") and hasattr(answer, "apply")):
        raise NotYet(
            f"`chain` is {type(answer).__name__}; wanted a rule: Chain(..., ...)."
        )
    got = _drive(answer)
    if not isinstance(answer, Chain) and not isinstance(got, Tensor):
        raise NotYet("That is one rule. Chain(first, second, ...) holds several.")
    if close(got, _by_hand(_STEPS)):
        return (
            "Mean, clip, decay, momentum. The chain reads as the sentence does, and "
            "nobody has to know what an optimizer does inside."
        )
    for what, text in _near_misses():
        if close(got, what):
            raise NotYet(f"{text}.")
    raise NotYet(
        f"After six gradients x is {_text(got)}; wanted {_text(_by_hand(_STEPS))}. "
        "Compare your rules and their numbers with the sentence, word by word."
    )


_DATA = torch.tensor(
    [[4.0, 0.3], [-1.0, 0.2], [0.2, -3.0], [0.4, 0.5], [2.0, 2.0], [-0.5, 3.0]]
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


def _near_misses() -> list[tuple[Tensor, str]]:
    def without(name: str) -> list[str]:
        return [step for step in _STEPS if step != name]

    found = [
        (_by_hand(_STEPS, decay=0.05), "The decay is half of what the penalty pulls. "
         "The derivative of 0.05 * x**2 is 0.1 * x"),
        (_by_hand(_STEPS, rho=0.9), "The order is right, but rho is still 0.9, the "
         "value that Momentum has by itself"),
        (_by_hand(without("mean")), "The mean of two gradients is missing"),
        (_by_hand(without("clip")), "Nothing is clipped"),
        (_by_hand(without("decay")), "The penalty is missing"),
        (_by_hand(without("momentum")), "The momentum is missing, so the gradient "
         "itself is the step"),
    ]  # fmt: skip
    for order in permutations(_STEPS):
        for (first, second), text in _PAIRS.items():
            if order.index(first) < order.index(second):
                found.append((_by_hand(order), text))
                break
    return found


# freeze_part


def _judge_freeze_part(answer: Callable[[Any, str], Any]) -> str:
    for name, other in (("encoder", "decoder"), ("decoder", "encoder")):
        _judge_one_branch(answer, name, other)
    return (
        "The branch is frozen with its memory, the other one is shared, and whoever "
        "holds the old state sees no change."
    )


def _judge_one_branch(answer: Callable[[Any, str], Any], name: str, other: str) -> None:
    params = {"encoder": {"weight": torch.ones(2)}, "decoder": {"bias": torch.ones(1)}}
    state = _with_memory(setup(Momentum(0.01), params))
    given = {key: dict(branch) for key, branch in state.items()}
    got = answer(given, name)
    require_written(got)
    if got is None:
        raise NotYet("Your function returned nothing. Return the new state.")
    if _leaves(given) != _leaves(state):
        raise NotYet(
            "The state that was given has changed. Build a new dictionary: "
            "`{**state, ...}`."
        )
    if not isinstance(got, Mapping) or set(got) != set(state):
        raise NotYet(
            "Your function returned the branch alone, or another tree. Return the "
            f"whole state, with the branches {', '.join(state)}."
        )
    (mine,), (theirs,) = got[name].values(), got[other].values()
    (was,) = state[name].values()
    _require_frozen(mine, was, name)
    if theirs.frozen:
        raise NotYet(f"The branch {other!r} is frozen too; only {name!r} should be.")


def _leaves(state: Any) -> dict[tuple[str, str], int]:
    """Return which objects stand where: a leaf that was replaced has another id."""
    return {(k, p): id(leaf) for k, part in state.items() for p, leaf in part.items()}


def _with_memory(state: Any) -> Any:
    def filled(leaf: Leaf) -> Leaf:
        return Leaf(leaf.rule, leaf.state + 0.5)

    return {
        key: {part: filled(leaf) for part, leaf in branch.items()}
        for key, branch in state.items()
    }


def _require_frozen(got: Leaf, was: Leaf, name: str) -> None:
    if not close(got.state, was.state):
        raise NotYet(
            "The branch has lost its memory: the velocity is another. Freeze the "
            "state that you were given, rather than set up a new one."
        )
    if not got.frozen and got.rule != was.rule:
        raise NotYet(
            f"The branch {name!r} has another rule, {got.rule}, but it is not frozen: "
            "its memory would go on changing. Use `freeze`."
        )
    if not got.frozen:
        raise NotYet(f"The branch {name!r} is not frozen.")


# warm_cosine

Schedule = Callable[[int], float]


def _judge_warm_cosine(answer: Callable[[float, int, int], Schedule]) -> str:
    for setting in ((0.2, 4, 20), (1.0, 10, 110)):
        eta = answer(*setting)
        require_written(eta)
        if not callable(eta):
            raise NotYet(
                f"`warm_cosine` returned {type(eta).__name__}; wanted a function of "
                "the step. Define one inside, and return it."
            )
        got = [eta(step) for step in range(setting[2] + 1)]
        require_written(got[0])
        numbers = torch.tensor([float(value) for value in got], dtype=torch.float64)
        _require_schedule(numbers, *setting)
    return (
        "Up in equal parts, down along a cosine. `train(..., schedule=...)` takes it "
        "as it is."
    )


def _require_schedule(got: Tensor, peak: float, warmup: int, total: int) -> None:
    s = torch.arange(total + 1, dtype=torch.float64)
    done = (s - warmup) / (total - warmup)
    rise, fall = peak * (s + 1) / warmup, _cosine(peak, done)

    def joined(first: Tensor, second: Tensor) -> Tensor:
        return torch.where(s < warmup, first, second)

    wanted = joined(rise, fall)
    mistakes = (
        (joined(peak * s / warmup, fall), "The first step has eta = 0 and is wasted. "
         "Step `warmup - 1` should have the peak: count from 1 with `step + 1`"),
        (joined(rise, _cosine(peak, s / total)), "The cosine starts at step 0, so eta "
         "jumps down after the warm-up. Count its steps from `warmup` on"),
        (joined(rise, _cosine(peak, (s - warmup) / total)), "The cosine is stretched "
         "over `total` steps and does not reach 0. It has `total - warmup` steps"),
        (fall, "There is no warm-up"),
        (joined(rise, peak * (1 - done)), "That falls on a straight line. The cosine "
         "is flat at both ends"),
        (joined(rise, peak * torch.cos(math.pi * done / 2)), "That is a quarter of a "
         "cosine wave: it is steep at the end. Half a wave goes from 1 to -1; add 1 "
         "and halve"),
        (joined(rise, peak * torch.cos(math.pi * done)), "eta becomes negative. The "
         "cosine goes from 1 to -1: add 1 and halve"),
        (joined(rise, 2 * fall), "After the warm-up eta is twice the peak. Halve "
         "1 + cos"),
        (wanted / peak, "It runs from 0 to 1. Multiply by `peak`"),
        (joined(rise, _cosine(peak, done / math.pi)), "The cosine has hardly begun at "
         "the end. `math.cos` counts in radians: half a wave is `math.pi`"),
    )  # fmt: skip
    for wrong, text in mistakes:
        if close(got, wrong) and not close(got, wanted):
            raise NotYet(f"{text}.")
    for step in s.long().tolist():
        if not close(got[step], wanted[step]):
            raise NotYet(
                f"With peak {peak}, warmup {warmup} and total {total}, step {step} has "
                f"eta {got[step]:.3g}; wanted {wanted[step]:.3g}."
            )


def _cosine(peak: float, done: Tensor) -> Tensor:
    return peak * (1 + torch.cos(math.pi * done)) / 2


# accumulate


def _judge_accumulate(answer: Callable[[Any, Any], Any]) -> str:
    x = torch.tensor([[1.0, 0.0], [3.0, 2.0], [-1.0, 4.0], [5.0, -7.0], [2.0, 2.0]])
    w = torch.zeros(2)
    for sizes in ([4, 1], [1, 1, 3], [2, 2]):
        used = x[: sum(sizes)]
        grads = [_slope(w, piece) for piece in used.split(sizes)]
        given = [g.clone() for g in grads]
        got = answer(given, list(sizes))
        require_written(got)
        if not all(map(torch.equal, grads, given)):
            raise NotYet(
                "Your function changed the gradients that it was given. Compute new "
                "ones: no `+=` or `*=` on a gradient."
            )
        _require_mean(got, _slope(w, used), grads, sizes)
    return (
        "Pieces of any size now give the gradient of the whole. `AccumulateGradients` "
        "takes the plain mean, so it wants equal pieces."
    )


def _slope(w: Tensor, samples: Tensor) -> Tensor:
    """Return the gradient of the mean of |w - sample|**2 over the samples, by hand."""
    return 2 * (w - samples.mean(dim=0))


def _require_mean(
    got: Any, wanted: Tensor, grads: Sequence[Tensor], sizes: Sequence[int]
) -> None:
    summed = sum(grads)
    weighted = sum(g * n for g, n in zip(grads, sizes, strict=True))
    mistakes = (
        (summed, "That is the sum of the pieces' gradients. Each is a mean already; "
         "their sum grows with the number of pieces"),
        (summed / len(grads), "That is the plain mean: a piece of 1 counts as much as "
         "one of 4. Weigh each gradient by its size"),
        (weighted, "That is the gradient of the summed loss. Divide by the number of "
         "all samples"),
        (weighted / len(grads), "You divide by the number of pieces. Divide by the "
         "number of all samples"),
        (summed / sum(sizes), "Each gradient is divided by all samples, but was a "
         "mean. Multiply it by its size first"),
        (grads[-1], "That is the last piece alone"),
    )  # fmt: skip
    _require_close(got, wanted, f"With sizes {list(sizes)}", mistakes)


# Small helpers


def _require_close(got: Any, wanted: Tensor, place: str, mistakes: Mistakes) -> None:
    if not isinstance(got, Tensor):
        raise NotYet(f"{place}: got {type(got).__name__}; wanted a tensor.")
    require_close(got, wanted, place, mistakes, text=_text)


def _text(value: Any) -> str:
    if not isinstance(value, Tensor):
        return repr(value)
    return str([float(f"{number:.3g}") for number in value.flatten().tolist()])


nesterov = Exercise(
    "rules.nesterov",
    _judge_nesterov,
    (
        "Two lines: first the new velocity, then dx from it.",
        "x' = x - dx, and x' = x + rho * v' - eta * g. So dx = ...",
        "`v = rho * v - eta * g`, then `return v, eta * g - rho * v`.",
    ),
)
in_order = Exercise(
    "rules.in_order",
    _judge_in_order,
    (
        "Four rules in one `Chain`, in the order of the sentence.",
        "`rules.ClipGrad(1.0)` cuts elements. Which decay is the gradient of "
        "0.05 * x**2?",
        "`Chain(rules.AccumulateGradients(2), rules.ClipGrad(1.0), "
        "WeightDecay(0.1), Momentum(eta=0.1, rho=0.5))`",
    ),
)
freeze_part = Exercise(
    "rules.freeze_part",
    _judge_freeze_part,
    (
        "`freeze` takes a branch and returns a new one.",
        "A new dictionary that shares the other branches: `{**state, ...}`.",
        "`return {**state, name: freeze(state[name])}`",
    ),
)
warm_cosine = Exercise(
    "rules.warm_cosine",
    _judge_warm_cosine,
    (
        "Return a function of the step, with two cases: before `warmup`, and after.",
        "Rising: `peak * (step + 1) / warmup`. Falling: let `done` go from 0 at "
        "`warmup` to 1 at `total`.",
        "`done = (step - warmup) / (total - warmup)`, then "
        "`peak * (1 + math.cos(math.pi * done)) / 2`.",
    ),
)
accumulate = Exercise(
    "rules.accumulate",
    _judge_accumulate,
    (
        "Each gradient is a mean. How do you get the sum over its samples back?",
        "Gradient times size is a sum. Add these, and divide by all samples.",
        "`return sum(g * n for g, n in zip(grads, sizes)) / sum(sizes)`",
    ),
)
