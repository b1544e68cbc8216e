"""A check for lesson 07: of a chain that should do what a sentence says."""

from collections.abc import Callable, Iterator, Sequence
from itertools import permutations
from typing import Any

import torch
from torch import Tensor

from course_lib.lessons.checks import as_text, close, require_unchanged
from course_lib.lessons.exercises import NotYet

_STEPS = ("mean", "clip", "decay", "momentum")
_MISSING = {
    "mean": "The mean of two gradients is missing",
    "clip": "Nothing is clipped, or only to the limit that ClipGrad has by itself, 10",
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
}
_X = torch.tensor([5.0, -20.0])
_DATA = torch.tensor(
    [[4.0, 0.3], [-1.0, 0.2], [0.2, -3.0], [0.4, 0.5], [2.0, 2.0], [-0.5, 3.0]]
)
_LARGE_X = torch.tensor([600.0, -3000.0])
_LARGE = torch.tensor(  # whose means are small again
    [[90.0, -45.0], [-88.4, 46.6], [70, 80], [-71.8, -81.4], [33, 60], [-32.6, -58.4]]
)


def judge_order(answer: Any) -> None:
    """Drive the rule through six gradients, through large ones, then two arrays."""
    _judge_kind(answer)
    (got,), wanted = _drive(answer, [_X], [_DATA]), _by_hand()
    if not close(got, wanted):
        for wrong, text in _near_misses():
            if close(got, wrong):
                raise NotYet(f"{text}.")
        raise NotYet(
            f"After six gradients x is {as_text(got)}; wanted {as_text(wanted)}. "
            "Compare your rules and their numbers with the sentence, word by word."
        )
    (got,) = _drive(answer, [_LARGE_X], [_LARGE])
    wanted = _by_hand(x=_LARGE_X, data=_LARGE)
    if not close(got, wanted):
        raise NotYet(
            "Small numbers come out right. With weights of 600 and -3000 and gradients "
            f"of up to 90, x ends at {as_text(got)}; wanted {as_text(wanted)}. Is "
            "something else cut than the mean: one gradient, the decay, the step?"
        )
    got = _drive(answer, [_X, _LARGE_X], [_DATA, _LARGE])
    if not (close(got[0], _by_hand()) and close(got[1], wanted)):
        raise NotYet(
            "One array comes out right, two do not: a rule of yours remembers in "
            "itself, where both arrays write. Return what it remembers as the state."
        )


def _judge_kind(answer: Any) -> None:
    kind = type(answer).__name__
    if isinstance(answer, type):
        raise NotYet(f"`chain` is the class {answer.__name__}; wanted Chain(..., ...).")
    if isinstance(answer, tuple) and len(answer) == 1:
        raise NotYet("`chain` is a tuple: a comma stands after the last parenthesis.")
    if not (hasattr(answer, "init") and hasattr(answer, "apply")):
        raise NotYet(f"`chain` is {kind}; wanted a rule: Chain(..., ...).")


def _drive(rule: Any, starts: Sequence[Tensor], rows: Sequence[Tensor]) -> list[Tensor]:
    """Return where each array ends; the arrays take their steps in turn."""
    xs, states = list(starts), [rule.init(x.clone()) for x in starts]
    for gs in zip(*rows, strict=True):
        for i, g in enumerate(gs):
            given = xs[i].clone(), g.clone()
            states[i], dx = rule.apply(states[i], *given)
            if xs[i].isfinite().all():  # no NaN is equal to itself
                require_unchanged(given, (xs[i], g), "x or g")
            xs[i] = xs[i] if dx is None else xs[i] - dx
    return xs


def _by_hand(
    order: Sequence[str] = _STEPS,
    *,
    decay: float = 0.1,
    eta: float = 0.1,
    rho: float = 0.5,
    n: int = 2,
    clip: Callable[[Tensor], Tensor] = lambda g: g.clamp(-1, 1),
    x: Tensor = _X,
    data: Tensor = _DATA,
) -> Tensor:
    """Return x after the gradients, by plain arithmetic, in any order of the steps."""
    v, total, count = 0.0, 0.0, 0
    for g in data:
        for step in order:
            if step == "mean":
                total, count = total + g, count + 1
                if count % n:
                    break
                g, total = total / n, 0.0
            elif step == "clip":
                g = clip(g)
            elif step == "decay":
                g = g + decay * x
            else:
                v = rho * v + eta * g
                g = v
        else:
            x = x - g
    return x


_OTHER_ARGUMENTS: dict[str, dict[str, Any]] = {
    "The decay is half of what the penalty pulls. The derivative of 0.05 * x**2 is "
    "0.1 * x": {"decay": 0.05},
    "The order is right, but rho is still 0.9, the value that Momentum has by itself": {
        "rho": 0.9
    },
    "The order is right, but eta is still 0.01, the value that Momentum has by "
    "itself": {"eta": 0.01},
    "The order is right, but eta and rho have changed places": {"eta": 0.5, "rho": 0.1},
    "The last rule remembers nothing, as `Descent` does; wanted momentum": {"rho": 0.0},
    "The mean is of four gradients, the number that AccumulateGradients has by "
    "itself": {"n": 4},
    "The whole array is made shorter. The sentence cuts each element: `ClipGrad`": {
        "clip": lambda g: g / max(1.0, g.norm().item())
    },
    "There are two clips, and the second cuts the decay": {
        "order": ("mean", "clip", "decay", "clip", "momentum")
    },
}


def _near_misses() -> Iterator[tuple[Tensor, str]]:
    for text, arguments in _OTHER_ARGUMENTS.items():
        yield _by_hand(**arguments), text
    for name, text in _MISSING.items():
        yield _by_hand([step for step in _STEPS if step != name]), text
    for order in permutations(_STEPS):
        for (first, second), text in _PAIRS.items():
            if order.index(first) < order.index(second):
                yield _by_hand(order), text
                break
