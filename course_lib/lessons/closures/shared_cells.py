"""The judge of lesson 01's `shares`: do two functions have a cell in common?"""

from collections.abc import Callable
from typing import Any

import numpy as np

from course_lib.lessons.checks import require_kind
from course_lib.lessons.exercises import NotYet

Pair = tuple[Callable[[], object], Callable[[], object]]


def judge(answer: Callable[..., Any]) -> None:
    """Raise NotYet with the first mistake of a function shares_cell."""
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
    first, second = _crossed()
    if not (_asked(answer, first, second) and _asked(answer, second, first)):
        raise NotYet(
            "The shared cell is second in one function and first in the other. "
            "Compare every cell of f with every cell of g."
        )
    for (f, g), case in {
        _pair(None): "These two share a cell that holds None; wanted True. What is in "
        "it does not matter.",
        _one_of_two(): "One function has one cell, the other has two, and one is "
        "shared; wanted True. Their numbers may differ.",
        _both_of_two(): "These two share both of their cells; wanted True. At least "
        "one is enough.",
    }.items():
        if not (_asked(answer, f, g) and _asked(answer, g, f)):
            raise NotYet(case)
    _judge_without_cells(answer, a)


def _judge_without_cells(answer: Callable[..., Any], a: Callable[[], object]) -> None:
    for pair in ((a, abs_of_one), (abs_of_one, a), (abs_of_one, abs_of_one)):
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


def _pair(value: object) -> Pair:
    return (lambda: value), (lambda: value)


def _crossed() -> Pair:
    """Two functions whose cells are (a, both) and (both, c): Python sorts them."""
    a, both, c = 1, 2, 3
    return (lambda: (a, both)), (lambda: (both, c))


def _one_of_two() -> Pair:
    own, both = 1, 2
    return (lambda: both), (lambda: (own, both))


def _both_of_two() -> Pair:
    one, two = 1, 2
    return (lambda: (one, two)), (lambda: (two, one))


def abs_of_one() -> int:
    """Return 1; a function that captures nothing, for the exercise on cells."""
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
