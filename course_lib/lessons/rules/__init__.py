"""Exercises of lesson 07, Compose rules that can be read.

Each judge computes the wanted numbers again, by the formula, and tries the likely
mistakes by name before it says "something else".
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from course_lib.lessons.checks import (
    close,
    require_close,
    require_dtype_of,
    require_kind,
    require_unchanged,
)
from course_lib.lessons.exercises import NotYet, exercise
from course_lib.lessons.rules.careful_judge import judge_careful
from course_lib.lessons.rules.freeze_judge import judge_freezing
from course_lib.lessons.rules.order_judge import judge_order
from course_lib.lessons.rules.schedule_judge import judge_schedule

NUMBER = 7

Update = Callable[[Tensor, Tensor, Tensor, float, float], Any]

_MATRIX = torch.tensor([[70.3, -1.77, 0.0], [12.9, -41.1, 5.013]], dtype=torch.float64)
_CALLS = (  # of nesterov: v, x, g, eta, rho
    (*torch.tensor([[1.0, -2.0], [3.0, 4.0], [2.0, -0.5]]), 0.1, 0.5),
    (_MATRIX, 2 - _MATRIX, _MATRIX.flip(1).cos(), 0.013, 0.7),
    (torch.tensor(2.0), torch.tensor(1.0), torch.tensor(-3.0), 0.3, 0.9),
)


@exercise(
    "Two lines: first the new velocity, then dx from it.",
    "x' = x - dx, and x' = x + rho * v' - eta * g. So dx = ...",
    "`v = rho * v - eta * g`, then `return v, eta * g - rho * v`.",
    right="`course_lib.rules.Nesterov` does the same in one formula: (1 + rho) * eta * "
    "g - rho**2 * v.",
)
def nesterov(answer: Update) -> None:
    """A function of (v, x, g, eta, rho): the new velocity and dx."""
    for v, x, g, eta, rho in _CALLS:
        given = v.clone(), x.clone(), g.clone()
        got = _called(answer, *given, eta, rho)
        require_kind(got, tuple | list, "two things, `(new v, dx)`")
        if len(got) != 2:
            raise NotYet("Return two things, `(new v, dx)`.")
        require_unchanged(given, (v, x, g), "a tensor that you were given")
        _require_velocity(*got, v, g, eta, rho)
        _require_step(got[1], v, x, g, eta, rho)
        for part, name in zip(got, ("The new v", "dx"), strict=True):
            require_dtype_of(g, part, name)


def _called(answer: Callable[..., Any], *given: Any) -> Any:
    """Call the answer; it has to take one number and a matrix, too."""
    try:
        return answer(*given)
    except Exception as error:
        first = given[0] if isinstance(given[0], Tensor) else given[0][0]
        if first.dim() == 1:  # where it runs with nothing, it raises
            raise
        text = "\n".join(map(str, error.args)).partition("\n")[0]
        raise NotYet(
            f"With vectors it runs. With tensors of shape {tuple(first.shape)} it "
            f"raised {type(error).__name__}: {text}. Compute with whole tensors, which "
            "may have any shape."
        ) from None


def _require_velocity(
    new: Any, dx: Any, v: Tensor, g: Tensor, eta: float, rho: float
) -> None:
    wanted = rho * v - eta * g
    if close(dx, wanted) and not close(new, wanted):
        raise NotYet("The two are in the wrong order: return the new v first, then dx.")
    fixed = "whatever the caller gives. Use the argument"
    mistakes = {
        "Your velocity is rho * v + eta * g, which is `Momentum`'s and points uphill. "
        "Nesterov's takes eta * g off": rho * v + eta * g,
        "You return the old velocity, so the rule remembers nothing new": v,
        "The gradient has lost its eta": rho * v - g,
        f"Your eta is 0.1 {fixed}": rho * v - 0.1 * g,
        f"Your eta is 0.01 {fixed}": rho * v - 0.01 * g,
        f"Your rho is 0.5 {fixed}": 0.5 * v - eta * g,
        f"Your rho is 0.9 {fixed}": 0.9 * v - eta * g,
        "eta and rho are 0.1 and 0.5 whatever the caller gives. Use the arguments": (
            0.5 * v - 0.1 * g
        ),
    }
    place = "The new v, rho * v - eta * g"
    require_close(new, wanted, place, mistakes, what="The new v", verb="is")


def _require_step(
    dx: Any, v: Tensor, x: Tensor, g: Tensor, eta: float, rho: float
) -> None:
    new = rho * v - eta * g
    wanted = eta * g - rho * new
    mistakes = {
        "dx has the wrong sign. The caller computes x - dx, so a minus stands before "
        "all that x' adds": -wanted,
        "That is the new x. Return the step alone; the caller takes it": x - wanted,
        "That is -v', a step by the new velocity alone. The look ahead is missing, or "
        "it uses the old velocity": -new,
        "rho * v' has the wrong sign in dx: the caller computes x - dx": (
            eta * g + rho * new
        ),
        "The step by this gradient, eta * g, is missing from dx": -rho * new,
    }
    require_close(dx, wanted, "dx", mistakes, what="dx", verb="is")


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
    judge_order(answer)


@exercise(
    "`freeze` takes a branch and returns a new one.",
    "A new dictionary that shares the other branches: `{**state, ...}`.",
    "`return {**state, name: freeze(state[name])}`",
    right="The branch is frozen with its memory, the others are as they were, and "
    "whoever holds the old state sees no change.",
)
def freeze_part(answer: Callable[[Any, str], Any]) -> None:
    """A function of (state, name): the state with one frozen branch."""
    judge_freezing(answer)


@exercise(
    "Return a function of the step, with two cases: before `warmup`, and after.",
    "Rising: `peak * (step + 1) / warmup`. Falling: let `done` go from 0 at "
    "`warmup` to 1 at `total`.",
    "`done = (step - warmup) / (total - warmup)`, then "
    "`peak * (1 + math.cos(math.pi * done)) / 2`.",
    right="Up in equal parts, down along a cosine. `train(..., schedule=...)` takes "
    "the function itself.",
)
def warm_cosine(answer: Callable[[float, int, int], Any]) -> None:
    """A function of (peak, warmup, total): a schedule."""
    judge_schedule(answer)


_ROWS = torch.tensor([[1.0, 0.0], [3.0, 2.0], [-1.0, 4.0], [5.0, -7.0], [2.0, 2.0]])
_CUBE = torch.arange(42.0, dtype=torch.float64).cos().reshape(7, 3, 2)
_PIECES = (  # samples, and how they are cut
    (_ROWS, [4, 1]),
    (_ROWS, [1, 1, 3]),
    (_ROWS, [2, 2]),
    (_ROWS, [3]),
    (_CUBE, [2, 4, 1]),
)


@exercise(
    "Each gradient is a mean. How do you get the sum over its samples back?",
    "Gradient times size is a sum. Add these, and divide by all samples.",
    "`return sum(g * n for g, n in zip(grads, sizes)) / sum(sizes)`",
    right="Pieces of any size now give the gradient of the whole. "
    "`AccumulateGradients` takes the plain mean, so it wants equal pieces.",
)
def accumulate(answer: Callable[[Any, Any], Any]) -> None:
    """A function of (gradients, sizes): the gradient of the whole batch."""
    for x, sizes in _PIECES:
        used = x[: sum(sizes)]
        grads = [_slope(piece) for piece in used.split(sizes)]
        given = [g.clone() for g in grads]
        lists = list(given), list(sizes)
        got = _called(answer, *lists)
        if lists[1] != sizes or list(map(id, lists[0])) != list(map(id, given)):
            raise NotYet(
                "You changed a list that you were given. Make new ones: no `pop`, no "
                "`append`, and nothing like `sizes[i] = ...`."
            )
        require_unchanged(given, grads, "a gradient that you were given")
        shape = f" and gradients of shape {tuple(x.shape[1:])}" if x.dim() > 2 else ""
        place = f"With sizes {sizes}{shape}"
        require_close(got, _slope(used), place, _mistakes(grads, sizes))
        require_dtype_of(grads[0], got, "Your result", or_wider=True)


def _mistakes(grads: list[Tensor], sizes: list[int]) -> dict[str, Tensor]:
    """Return what the likely mistakes of `accumulate` give."""
    summed = sum(grads)
    weighted = sum(g * n for g, n in zip(grads, sizes, strict=True))
    return {
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
        "The first piece is the only one: the `return` stands inside of the loop": (
            grads[0] * sizes[0] / sum(sizes)
        ),
        "The last piece is the only one: use `total = total + ...` in the loop": (
            grads[-1] * sizes[-1] / sum(sizes)
        ),
        "You sum over the elements of the gradient, too. It keeps its shape": (
            (weighted / sum(sizes)).sum()
        ),
        "Only the last piece has a weight of its own. Weigh each by its size": (
            (sum(grads[:-1]) + grads[-1] * sizes[-1] / sizes[0])
            / (len(sizes) - 1 + sizes[-1] / sizes[0])
        ),
    }


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
