"""Exercises of lesson 01, Keep the value a closure saw."""

import contextlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from course_lib.lessons.checks import reject, require_kind
from course_lib.lessons.closures import live_judge, pickled_judge, watch_judge
from course_lib.lessons.closures.late_binding import CASES as CASES
from course_lib.lessons.closures.late_binding import is_late as is_late
from course_lib.lessons.closures.late_binding import ruff_warns as ruff_warns
from course_lib.lessons.closures.pickles import through_pickle as through_pickle
from course_lib.lessons.exercises import NotYet, exercise

NUMBER = 1

_Scale = Callable[..., Any]
_Pair = tuple[Callable[[], object], Callable[[], object]]

_FACTORS = [2, 3, 5]
_OTHERS = [0.5, -3, 0, 0.5]


@exercise(
    "How many variables called `i` does one call of `make` have?",
    "A function looks into the cell when it is called, not when it is made.",
    "What is the last value that `i` is given before `make` returns?",
    right="All three share one cell, and it holds 10 by the time they look.",
)
def guess(answer: Any) -> None:
    """A list: what three functions return that share one cell."""
    got = _as_list(answer)
    reject(
        {
            "That would be early binding: each function would store the value of its "
            "own turn. They store the cell. What is in it when they run?": (
                got == [0, 1, 2]
            ),
            "Late binding, yes, but read on: `i` changes once more after the loop, "
            "and the functions look only when they are called.": got == [2, 2, 2],
            "There are three functions, so the answer is a list of three.": (
                got in (10, [10])
            ),
            f"The call does not return {answer!r}.": (
                not isinstance(got, list) or got != [10, 10, 10]
            ),
        }
    )


def _as_list(answer: Any) -> Any:
    """Return a tuple, an array or a tensor as a list, and anything else as it is."""
    if isinstance(answer, np.ndarray | Tensor):
        return answer.tolist()
    return list(answer) if isinstance(answer, tuple) else answer


@exercise(
    "Who makes a new variable in Python? Not a loop: a call.",
    "Write a function that takes one `factor` and returns a function of `x`.",
    "`def scaler(factor):` with `return lambda x: factor * x` inside; then call "
    "it once for each factor.",
    right="Each function has a factor of its own.",
)
def scalers(answer: Callable[..., Any]) -> None:
    """A function of factors: one function of x for each of them."""
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


def _made(answer: Callable[..., Any], factors: list[Any]) -> Sequence[_Scale]:
    made = answer(factors)
    require_kind(made, list | tuple, "a list of functions", what="`make_scalers`")
    for part in made:
        wanted = "a function, to be called later"
        require_kind(part, Callable, wanted, what="The list", verb="holds")
    return made


def _judge_values(made: Sequence[_Scale]) -> None:
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


def _require_closed(scale: _Scale) -> None:
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


def _effect(scale: _Scale, *args: object, **kwargs: object) -> str:
    """Return what one argument more does; nothing if it is refused or of no effect."""
    try:
        return "" if scale(*args, **kwargs) == 20 else "quietly replaces the factor"
    except TypeError:
        return ""
    except Exception as error:
        return f"replaces what you keep, and raises {type(error).__name__}"


def _judge_more_calls(made: Sequence[_Scale]) -> None:
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


def _called(made: Sequence[_Scale], x: object) -> list[Any]:
    try:
        return [scale(x) for scale in made]
    except StopIteration:
        raise NotYet(
            "Your functions take the next factor from an iterator at each call, and "
            "it is empty. A factor of its own stays."
        ) from None


@exercise(
    "`model.named_children()` gives the names and the layers.",
    "Make the hook in a function that takes `name`, so that each has its own.",
    "`def reporter(name):` returns a hook `(module, args, output)` that calls "
    "`seen.append(name)` and returns nothing.",
    right="Each hook has the name of its own layer.",
)
def watch(answer: Callable[..., Any]) -> None:
    """A function of a model: a list that its hooks fill with the children's names."""
    watch_judge.judge(answer)


@exercise(
    "The cells of a function are in the tuple `f.__closure__`.",
    "Two cells with the same name and content can be different cells: use `is`.",
    "`any(x is y for x in f.__closure__ or () for y in g.__closure__ or ())`",
    right="Cells are compared as objects: same cell, same fate.",
)
def shares(answer: Callable[..., Any]) -> None:
    """A function of (f, g): whether they share a cell."""
    (a, b), (c, _) = _pair(1), _pair(1)
    if _asked(answer, a, b) is not True:
        raise NotYet(
            "Two functions made in one call share the cell of `value`; your answer "
            "for them is not True."
        )
    if _asked(answer, a, c):
        raise NotYet(
            "These two come from different calls: same name, same value, but two "
            "cells. Compare the cells with `is`, not names or contents."
        )
    if (a(), b(), c()) != (1, 1, 1):
        raise NotYet(
            "Since your function ran, a cell holds something else. Look at the cells, "
            "and leave in them what they hold."
        )
    for case, (f, g) in _sharing().items():
        if not (_asked(answer, f, g) and _asked(answer, g, f)):
            raise NotYet(case)
    for pair in (a, _without_cells), (_without_cells, a), (_without_cells,) * 2:
        try:
            shares = _asked(answer, *pair)
        except TypeError:
            raise NotYet(
                "A function that captures nothing has `__closure__` None, and your "
                "code fails on it, be it f or g. Treat None as no cells."
            ) from None
        if shares:
            raise NotYet(
                "A function that captures nothing shares nothing; wanted False."
            )


def _pair(value: object) -> _Pair:
    return (lambda: value), (lambda: value)


def _sharing() -> dict[str, _Pair]:
    """Pairs that share a cell; Python sorts the cells of a function by name."""
    a, b, c = 1, 2, 3
    return {
        "The shared cell is second in one function and first in the other. Compare "
        "every cell of f with every cell of g.": (lambda: (a, b), lambda: (b, c)),
        "These two share a cell that holds None; wanted True. What is in it does not "
        "matter.": _pair(None),
        "One function has one cell, the other has two, and one is shared; wanted True. "
        "Their numbers may differ.": (lambda: a, lambda: (a, b)),
        "These two share both of their cells; wanted True. At least one is enough.": (
            lambda: (a, b),
            lambda: (b, a),
        ),
    }


def _without_cells() -> int:
    return 1


def _asked(answer: Callable[..., Any], f: object, g: object) -> bool:
    """Return the answer for two functions, which must be a bool."""
    try:
        got = answer(f, g)
    except TypeError as error:
        if "unhashable" in str(error):
            raise NotYet(
                "A cell can't be put into a set or be a key: it has no hash. Compare "
                "two cells with `is`, or collect their `id`s."
            ) from None
        raise
    got = bool(got) if isinstance(got, np.bool_) else got
    return require_kind(got, bool, "True or False")


@exercise(
    "What may change later: the weights. What may not: the layers, the numbers.",
    "`model.get_submodule(name)` gives the layer of that name.",
    "Pick the layers by name once, outside; square their weights inside.",
    right="Chosen once by name, squared again at each call: only the weights may move.",
)
def live(answer: Callable[..., Any]) -> None:
    """A function of (model, coefficients): a function that returns the penalty."""
    live_judge.judge(answer)


@exercise(
    "A pickle keeps an object's attributes, and finds its class by name.",
    "A class `Penalty` with a layer, an l1 and an l2 computes in `__call__`.",
    "List the dense layers, pair them with `rules` by `zip`, and make a `Penalty` for "
    "each pair whose rule is not None.",
    right="Each penalty keeps its own layer and numbers as data, and data can travel.",
)
def pickled(answer: Callable[..., Any]) -> None:
    """A function of (model, rules): a list of penalties that survive a pickle."""
    pickled_judge.judge(answer)
