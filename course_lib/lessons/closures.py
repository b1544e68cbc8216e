"""Exercises of lesson 01, Keep the value a closure saw."""

import inspect
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from course_lib.lessons import live_total, pickled_penalties
from course_lib.lessons.checks import reject, require_kind
from course_lib.lessons.exercises import NotYet, exercise
from course_lib.lessons.late_binding import CASES as CASES
from course_lib.lessons.late_binding import is_late as is_late
from course_lib.lessons.late_binding import ruff_warns as ruff_warns
from course_lib.lessons.pickles import through_pickle as through_pickle

NUMBER = 1


@exercise(
    "How many variables called `i` does one call of `make` have?",
    "A function looks into the cell when it is called, not when it is made.",
    "What is the last value that `i` is given before `make` returns?",
    right="All three share one cell, and it holds 10 by the time they look.",
)
def guess(answer: Any) -> None:
    """A list: what three functions return that share one cell."""
    reject(
        {
            "The values are right; write a list.": answer == (10, 10, 10),
            "That would be early binding: each function would store the value of its "
            "own turn. They store the cell. What is in it when they run?": (
                answer == [0, 1, 2]
            ),
            "Late binding, yes, but read on: `i` changes once more after the loop, "
            "and the functions look only when they are called.": answer == [2, 2, 2],
            "There are three functions, so the answer is a list of three.": (
                answer in (10, [10])
            ),
            f"The call does not return {answer!r}.": answer != [10, 10, 10],
        }
    )


@exercise(
    "Who makes a new variable in Python? Not a loop: a call.",
    "Write a function that takes one `factor` and returns a function of `x`.",
    "`def scaler(factor):` with `return lambda x: factor * x` inside; then call "
    "it once for each factor.",
    right="Each function has a factor of its own.",
)
def scalers(answer: Callable[..., Any]) -> None:
    """A function of factors: one function of x for each of them."""
    factors = [2, 3, 5]
    made = answer(factors)
    require_kind(made, list | tuple, "a list of functions", what="`make_scalers`")
    if not all(callable(scale) for scale in made):
        raise NotYet(
            "`make_scalers` returned numbers; wanted functions, to be called later."
        )
    got = [scale(10) for scale in made]
    if got == [50, 50, 50]:
        raise NotYet(
            "All of them scale by 5, the last factor: the loop variable is captured "
            "late. Give each function a variable of its own."
        )
    if got != [20, 30, 50]:
        raise NotYet(f"For x = 10 they return {got}; wanted [20, 30, 50].")
    _require_closed(made[0])
    factors[:] = [0, 0, 0]
    if [scale(10) for scale in made] != [20, 30, 50]:
        raise NotYet(
            "Your functions read the caller's list at each call: after `factors[:] = "
            "[0, 0, 0]` they return something else. Store the factor, not its place."
        )


def _require_closed(scale: Callable[..., Any]) -> None:
    """Raise NotYet if a caller can pass another factor than 2."""
    why = "quietly replaces the factor"
    if _changes(scale, 20, 10, 7):
        raise NotYet(
            f"The values are right, but `scale(10, 7)` {why}: a default argument is "
            "still an argument. Write a factory."
        )
    for name in list(inspect.signature(scale).parameters)[1:]:
        if _changes(scale, 20, 10, **{name: 7}):
            raise NotYet(
                f"The factor can still be passed: `scale(10, {name}=7)` {why}. Write a "
                "factory."
            )


def _changes(
    function: Callable[..., Any], expected: object, *args: object, **kwargs: object
) -> bool:
    """Whether a call is accepted and gives something else."""
    try:
        return bool(function(*args, **kwargs) != expected)
    except TypeError:
        return False


class _Step(nn.Module):
    """Takes anything and makes a one; remembers both, and how full `seen` was."""

    seen: Sequence[Any] = ()
    made: Tensor | None = None

    def forward(self, given: object) -> Tensor:
        self.given, self.made, self.before = given, torch.ones(1), len(self.seen)
        return self.made


class _Backwards(nn.Sequential):
    """Runs its children from the last to the first."""

    def forward(self, given: object) -> object:
        for step in reversed(list(self)):
            given = step(given)
        return given


@exercise(
    "`model.named_children()` gives the names and the layers.",
    "Make the hook in a function that takes `name`, so that each has its own.",
    "`def reporter(name):` returns a hook `(module, args, output)` that calls "
    "`seen.append(name)` and returns nothing.",
    right="Each hook has the name of its own layer.",
)
def watch(answer: Callable[..., Any]) -> None:
    """A function of a model: a list that its hooks fill with the children's names."""
    seen = _run_watched(answer, nn.Sequential(_Step(), _Step(), _Step()))
    if seen == ["2", "2", "2"]:
        raise NotYet(
            "Every hook reports the last layer, '2': they share one `name`. Give "
            "each hook its own."
        )
    if seen != ["0", "1", "2"]:
        raise NotYet(f"One forward pass gave {seen}; wanted ['0', '1', '2'].")
    named = _Backwards(OrderedDict([("late", _Step()), ("early", _Step())]))
    seen = _run_watched(answer, named)
    if seen == ["late", "early"]:
        raise NotYet(
            "In a model that runs its child 'early' before its child 'late', your "
            "list says 'late' first. The model knows the names but not the order: "
            "register a hook on each child."
        )
    if seen != ["early", "late"]:
        raise NotYet(
            f"A model with the children 'late' and 'early' gave {seen}. Take the "
            "names from `model.named_children()`; a position is not a name."
        )
    named(torch.ones(1))
    if seen != 2 * ["early", "late"]:
        raise NotYet(
            f"After a second pass the list is {seen}; wanted both names once more at "
            "its end. A hook adds its name each time; nothing sorts or leaves out."
        )


def _run_watched(answer: Callable[..., Any], model: nn.Sequential) -> list[Any]:
    """Let `answer` register its hooks, run the model once, and return `seen`."""
    seen = require_kind(answer(model), list, "the list `seen`", what="`watch`")
    steps = list(model)
    if seen and any(step.made is not None for step in steps):
        raise NotYet(
            "The list is full too early: `watch` has run the model itself. Register "
            "the hooks and return the list; the model runs later."
        )
    if seen:
        raise NotYet(
            "The list is full before the model has run: the names were added when "
            "the hooks were made. Add them inside the hook."
        )
    for step in steps:
        step.seen = seen
    output = model(torch.ones(1))
    run = steps[::-1] if isinstance(model, _Backwards) else steps
    passed_on = [s.given for s in run[1:]] + [output]
    hooked = any(m._forward_hooks or m._forward_pre_hooks for m in (model, *run))
    reject(
        {
            "The model's output changed: a forward hook that returns something "
            "replaces the output. Return nothing.": any(
                taken is not step.made
                for step, taken in zip(run, passed_on, strict=True)
            ),
            "The hooks ran, and `seen` is still empty after a forward pass. Add the "
            "name to it inside the hook.": not seen and hooked,
            "No hook ran: `seen` is still empty after a forward pass. Register one "
            "on each child.": not seen,
            "The first name was there before its layer had run: that is a pre-hook. "
            "Use `register_forward_hook`.": run[0].before > 0,
        }
    )
    return seen


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
    first, second = _crossed()
    if not (_asked(answer, first, second) and _asked(answer, second, first)):
        raise NotYet(
            "The shared cell is second in one function and first in the other. "
            "Compare every cell of f with every cell of g."
        )
    for pair in ((a, abs_of_one), (abs_of_one, a), (abs_of_one, abs_of_one)):
        try:
            answer(*pair)
        except TypeError:
            raise NotYet(
                "A function that captures nothing has `__closure__` None, and your "
                "code fails on it, be it f or g. Treat None as no cells."
            ) from None
        if _asked(answer, *pair):
            raise NotYet(
                "A function that captures nothing shares nothing; wanted False."
            )


def _pair(value: object) -> tuple[Callable[[], object], Callable[[], object]]:
    return (lambda: value), (lambda: value)


def _crossed() -> tuple[Callable[[], object], Callable[[], object]]:
    """Two functions whose cells are (a, both) and (both, c): Python sorts them."""
    a, both, c = 1, 2, 3
    return (lambda: (a, both)), (lambda: (both, c))


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
