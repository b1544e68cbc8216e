"""Exercises of lesson 01, Keep the value a closure saw."""

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from course_lib.lessons.checks import reject
from course_lib.lessons.closures import (
    live_total,
    own_factors,
    pickled_penalties,
    shared_cells,
    watched_children,
)
from course_lib.lessons.closures.late_binding import CASES as CASES
from course_lib.lessons.closures.late_binding import is_late as is_late
from course_lib.lessons.closures.late_binding import ruff_warns as ruff_warns
from course_lib.lessons.closures.pickles import through_pickle as through_pickle
from course_lib.lessons.exercises import exercise

NUMBER = 1


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
    own_factors.judge(answer)


@exercise(
    "`model.named_children()` gives the names and the layers.",
    "Make the hook in a function that takes `name`, so that each has its own.",
    "`def reporter(name):` returns a hook `(module, args, output)` that calls "
    "`seen.append(name)` and returns nothing.",
    right="Each hook has the name of its own layer.",
)
def watch(answer: Callable[..., Any]) -> None:
    """A function of a model: a list that its hooks fill with the children's names."""
    watched_children.judge(answer)


@exercise(
    "The cells of a function are in the tuple `f.__closure__`.",
    "Two cells with the same name and content can be different cells: use `is`.",
    "`any(x is y for x in f.__closure__ or () for y in g.__closure__ or ())`",
    right="Cells are compared as objects: same cell, same fate.",
)
def shares(answer: Callable[..., Any]) -> None:
    """A function of (f, g): whether they share a cell."""
    shared_cells.judge(answer)


@exercise(
    "What may change later: the weights. What may not: the layers, the numbers.",
    "`model.get_submodule(name)` gives the layer of that name.",
    "Pick the layers by name once, outside; square their weights inside.",
    right="Chosen once by name, squared again at each call: only the weights may move.",
)
def live(answer: Callable[..., Any]) -> None:
    """A function of (model, coefficients): a function that returns the penalty."""
    live_total.judge(answer)


@exercise(
    "A pickle keeps an object's attributes, and finds its class by name.",
    "A class `Penalty` with a layer, an l1 and an l2 computes in `__call__`.",
    "List the dense layers, pair them with `rules` by `zip`, and make a `Penalty` for "
    "each pair whose rule is not None.",
    right="Each penalty keeps its own layer and numbers as data, and data can travel.",
)
def pickled(answer: Callable[..., Any]) -> None:
    """A function of (model, rules): a list of penalties that survive a pickle."""
    pickled_penalties.judge(answer)
