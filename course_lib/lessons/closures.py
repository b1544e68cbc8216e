"""Exercises of lesson 01, Keep the value a closure saw."""

import inspect
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from course_lib.lessons import pickled_penalties
from course_lib.lessons.checks import close, gradient, reject, require_kind
from course_lib.lessons.exercises import NotYet, exercise
from course_lib.lessons.late_binding import CASES as CASES
from course_lib.lessons.late_binding import is_late as is_late
from course_lib.lessons.late_binding import ruff_warns as ruff_warns
from course_lib.lessons.pickled_penalties import through_pickle as through_pickle

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


# What `live` computes by hand: the layers' weights are 2 and 3, all biases 7.
_FIRST, _LAST = 4 * 2.0**2, 2 * 3.0**2  # the squares in layers "0" and "2"
_RIGHT = 0.5 * _FIRST + 0.25 * _LAST
_OWN = "Pair each layer with its coefficient, in a list."
_LATE_LAYER = "Every term looks at one layer, the last: it was captured late. " + _OWN
_LATE_NUMBER = "Every term has the last coefficient: it was captured late. " + _OWN
_LATE_PAIR = (
    "All terms are the last one, layer and coefficient: both were late. " + _OWN
)
_ONE_TERM = "Only one layer counts. Is a `return` inside the loop?"
_MISTAKES = {
    0.5 * 4 + 0.25 * 2: "After the weights changed the total stayed the same: it was "
    "computed once, or from copies. Square the layers' own weights inside `total`.",
    0.5 * _FIRST: _ONE_TERM,
    0.25 * _LAST: _ONE_TERM,
    _RIGHT / 2: "These are half of the squares; wanted all.",
    (0.5 + 0.25) * _FIRST: _LATE_LAYER,
    (0.5 + 0.25) * _LAST: _LATE_LAYER,
    0.5 * (_FIRST + _LAST): _LATE_NUMBER,
    0.25 * (_FIRST + _LAST): _LATE_NUMBER,
    2 * 0.5 * _FIRST: _LATE_PAIR,
    2 * 0.25 * _LAST: _LATE_PAIR,
    0.25 * _FIRST + 0.5 * _LAST: "The coefficients are taken in their order, not by "
    "name: here the dictionary names '2' before '0'. Use `model.get_submodule(name)`.",
    0.25 * _FIRST + 0.5 * 2 * 7.0**2: "The coefficients are matched with the "
    "parameters one by one, so one of them is paid for a bias. Go by name.",
    _RIGHT + 0.5 * 2 * 7.0**2 + 0.25 * 7.0**2: "The biases are counted too; wanted "
    "the weights only.",
    0.5 * 4 * 2 + 0.25 * 2 * 3: "These are absolute values. Square the weights.",
    0.5 * 2 + 0.25 * 3: "These are means; wanted sums over each layer's weights.",
    0.5 * 2.0**2 + 0.25 * 3.0**2: "These are means; wanted sums over each layer's "
    "weights, squared.",
    0.5 * (4 * 2.0) ** 2 + 0.25 * (2 * 3.0) ** 2: "That squares each sum; wanted the "
    "sum of squares.",
    _FIRST + _LAST: "The coefficients are missing.",
}


@exercise(
    "What may change later: the weights. What may not: the layers, the numbers.",
    "`model.get_submodule(name)` gives the layer of that name.",
    "Pick the layers by name once, outside; square their weights inside.",
    right="Chosen once by name, squared again at each call: only the weights may move.",
)
def live(answer: Callable[..., Any]) -> None:
    """A function of (model, coefficients): a function that returns the penalty."""
    first, last = nn.Linear(2, 2), nn.Linear(2, 1)
    model = nn.Sequential(first, nn.ReLU(), last).double()
    for parameter in model.parameters():
        nn.init.constant_(parameter, 1.0)
    coefficients = {"2": 0.25, "0": 0.5}
    total = answer(model, coefficients)
    _require_function(total)
    for layer, weight in ((first, 2.0), (last, 3.0)):
        nn.init.constant_(layer.weight, weight)
        nn.init.constant_(layer.bias, 7.0)
    _require_total(total, first, last)
    model.insert(0, nn.Dropout())
    if not _same(_now(total), _RIGHT):
        raise NotYet(
            "After `model.insert(0, nn.Dropout())` the total is lost: the names are "
            "looked up at each call, and now they mean other layers. Pick the layers "
            "once, outside `total`."
        )
    coefficients.update({"0": 8.0, "2": 16.0})
    if not _same(_now(total), _RIGHT):
        raise NotYet(
            "The caller has changed `coefficients`, and the total changed with it: "
            "the dictionary is read at each call. Store the numbers themselves."
        )
    deep = nn.Sequential(OrderedDict(stem=nn.Sequential(first, nn.ReLU()), head=last))
    by_name = _of_names(answer, deep, {"head": 0.25, "stem.0": 0.5})
    if _same(by_name, 0.25 * _FIRST + 0.5 * _LAST):
        raise NotYet(
            "With the submodules 'stem.0' and 'head' the coefficients are exchanged: "
            "the names were sorted. Use `model.get_submodule(name)`."
        )
    if not _same(by_name, _RIGHT):
        raise NotYet(
            "Submodules have names such as 'head' and 'stem.0', not only numbers. "
            "`model.get_submodule(name)` finds them all."
        )


def _require_function(total: Any) -> None:
    require_kind(total, object, "the function `total`", what="`make_total`")
    if not callable(total):
        raise NotYet(
            "`make_total` returned a number, which does not change when the weights "
            "do. Return a function that computes it."
        )
    try:
        inspect.signature(total).bind()
    except TypeError:
        raise NotYet(
            "`total` wants arguments; it is called without any, as `total()`. It "
            "knows the model from `make_total`."
        ) from None


def _require_total(total: Callable[[], Any], first: nn.Linear, last: nn.Linear) -> None:
    value = total()
    number = _number(value)
    if number is None:
        require_kind(value, (), "a tensor with one number", what="`total()`")
    for wrong, message in _MISTAKES.items():
        if _same(number, wrong):
            raise NotYet(message)
    if not _same(number, _RIGHT):
        raise NotYet(
            f"With weights 2 in layer '0' and 3 in layer '2' the total is {number:g}; "
            f"wanted {_RIGHT:g} = 0.5 * 4 * 2**2 + 0.25 * 2 * 3**2."
        )
    if not isinstance(value, Tensor) or not value.requires_grad:
        raise NotYet(
            "The total has lost its gradient (`.item()`, `.detach()` or `.data`?), "
            "so training would never feel it. Return a tensor."
        )
    if not _same(_number(total()), _RIGHT):
        raise NotYet(
            "The second call gives another total. Is it read from a generator, which "
            "is empty after the first time, or added to what was there? Keep a list, "
            "and begin each sum at 0."
        )
    for layer, slope in ((first, 2 * 0.5 * 2.0), (last, 2 * 0.25 * 3.0)):
        got = gradient(value, layer.weight)
        if not close(got, torch.full_like(layer.weight, slope)):
            raise NotYet(
                "The total is right. Its gradient is wrong, and that is what training "
                "feels. Leave out `.detach()`, `.data` and `torch.no_grad()`."
            )


def _of_names(
    answer: Callable[..., Any], model: nn.Module, coefficients: dict[str, float]
) -> float | None:
    try:
        return _now(answer(model, coefficients))
    except (AttributeError, KeyError, IndexError, TypeError, ValueError):
        return None


def _now(total: Callable[[], Any]) -> float | None:
    """Return the total, or None if it can't be computed any more."""
    try:
        return _number(total())
    except (AttributeError, KeyError, IndexError, RuntimeError):
        return None


def _same(got: float | None, wanted: float) -> bool:
    """Whether a number is right but for the rounding of a sum."""
    return got is not None and math.isclose(got, wanted, rel_tol=1e-6)


def _number(value: Any) -> float | None:
    if isinstance(value, Tensor):
        return value.item() if value.numel() == 1 else None
    return float(value) if isinstance(value, int | float) else None


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
