"""The judge of lesson 01's `scalers`: each function has a factor of its own."""

import contextlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch

from course_lib.lessons.checks import require_kind
from course_lib.lessons.exercises import NotYet

Scale = Callable[..., Any]

_FACTORS = [2, 3, 5]
_OTHERS = [0.5, -3, 0, 0.5]


def judge(answer: Callable[..., Any]) -> None:
    """Raise NotYet with the first mistake of a function make_scalers."""
    factors = list(_FACTORS)
    made = _made(answer, factors)
    if made is answer(list(_FACTORS)):
        raise NotYet(
            "Two calls of `make_scalers` returned one list: it is a global variable or "
            "a default argument, and grows. Make a new list in each call."
        )
    _judge_values(made)
    if factors != _FACTORS:
        raise NotYet("You changed `factors`, which the caller may need.")
    _require_closed(made[0])
    _judge_more_calls(made)
    factors[:] = [0, 0, 0]
    if _called(made, 10) != [20, 30, 50]:
        raise NotYet(
            "Your functions read the caller's list at each call: after `factors[:] = "
            "[0, 0, 0]` they return something else. Store the factor, not its place."
        )
    _judge_other_factors(answer)
    if _called(made, 10) != [20, 30, 50]:
        raise NotYet(
            "`make_scalers` was called with other factors, and the functions of the "
            "first call have changed. Keep nothing in a global variable or a class."
        )


def _made(answer: Callable[..., Any], factors: list[Any]) -> Sequence[Scale]:
    made = answer(factors)
    require_kind(made, list | tuple, "a list of functions", what="`make_scalers`")
    for part in made:
        wanted = "a function, to be called later"
        require_kind(part, Callable, wanted, what="The list", verb="holds")
    return made


def _judge_values(made: Sequence[Scale]) -> None:
    got = _called(made, 10)
    if got == [50, 50, 50]:
        raise NotYet(
            "All of them scale by 5, the last factor: the loop variable is captured "
            "late. Give each function a variable of its own."
        )
    if got and all(map(callable, got)):
        raise NotYet(
            "`scale(10)` returns a function: the list holds the factory itself. Call "
            "it with the factor."
        )
    if got != [20, 30, 50]:
        raise NotYet(f"For x = 10 they return {got}; wanted [20, 30, 50].")


def _require_closed(scale: Scale) -> None:
    """Raise NotYet if a caller can pass another factor than 2."""
    if why := _effect(scale, 10, 7):
        raise NotYet(
            f"The values are right, but `scale(10, 7)` {why}: a default argument is "
            "still an argument. Write a factory."
        )
    for name in [*list(inspect.signature(scale).parameters)[1:], "factor"]:
        if why := _effect(scale, 10, **{name: 7}):
            raise NotYet(
                f"The factor can still be passed: `scale(10, {name}=7)` {why}. Write a "
                "factory."
            )


def _effect(scale: Scale, *args: object, **kwargs: object) -> str:
    """Return what one argument more does; nothing if it is refused or of no effect."""
    try:
        return "" if scale(*args, **kwargs) == 20 else "quietly replaces the factor"
    except TypeError:
        return ""
    except Exception as error:
        return f"replaces what you keep, and raises {type(error).__name__}"


def _judge_more_calls(made: Sequence[Scale]) -> None:
    got = _called(made[::-1], 4)
    if got != [20, 12, 8]:
        raise NotYet(
            f"Called once more, from the last to the first and with x = 4, they return "
            f"{got}; wanted [20, 12, 8]. A call leaves something behind: does it move "
            "an iterator, change its factor, or keep its first result? Or does it "
            "ignore x?"
        )
    x = torch.ones(2)
    with contextlib.suppress(Exception):  # tensors are not asked for
        made[0](x)
    if x.tolist() != [1, 1]:
        raise NotYet(
            "`scale(x)` changes a tensor x in place. Return a new one: `factor * x`, "
            "without `*=`."
        )


def _judge_other_factors(answer: Callable[..., Any]) -> None:
    got = _called(_made(answer, list(_OTHERS)), 3)
    if got != [1.5, -9, 0, 1.5]:
        raise NotYet(
            f"For the factors {_OTHERS} and x = 3 they return {got}; wanted [1.5, -9, "
            "0, 1.5]. A factor may be a fraction, negative, 0, or there twice: take "
            "them as they are, in their order."
        )


def _called(made: Sequence[Scale], x: object) -> list[Any]:
    try:
        return [scale(x) for scale in made]
    except StopIteration:
        raise NotYet(
            "Your functions take the next factor from an iterator at each call, and "
            "it is empty. A factor of its own stays."
        ) from None
