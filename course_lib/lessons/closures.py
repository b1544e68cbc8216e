"""Exercises of lesson 01, and the cases on which it measures ruff's rule B023."""

import inspect
import math
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from course_lib.lessons.exercises import Exercise, NotYet, require_written

NUMBER = 1

# Each makes functions that should return 0, 1, 2 and may not.
CASES = {
    "def in a for loop": """
def make():
    readers = []
    for i in range(3):
        def read():
            return i
        readers.append(read)
    return readers
""",
    "lambda in a for loop": """
def make():
    readers = []
    for i in range(3):
        readers.append(lambda: i)
    return readers
""",
    "list comprehension": """
def make():
    return [lambda: i for i in range(3)]
""",
    "dictionary of lambdas": """
def make():
    table = {}
    for i, name in enumerate("abc"):
        table[name] = lambda: i
    return list(table.values())
""",
    "counter beside the loop": """
def make():
    readers, i = [], 0
    for _ in "abc":
        readers.append(lambda: i)
        i += 1
    return readers
""",
    "variable changed after it": """
def make():
    i = 0
    first = lambda: i
    i = 1
    second = lambda: i
    i = 2
    return [first, second, lambda: i]
""",
    "lazy map": """
def make():
    lazy = []
    for i in range(3):
        lazy.append(map(lambda _: i, "x"))
    return [values.__next__ for values in lazy]
""",
    "generator expression": """
def make():
    lazy = []
    for i in range(3):
        lazy.append(i for _ in "x")
    return [values.__next__ for values in lazy]
""",
    "handed to a helper": """
def add(readers, read):
    readers.append(read)

def make():
    readers = []
    for i in range(3):
        add(readers, lambda: i)
    return readers
""",
    "cured: default argument": """
def make():
    return [lambda i=i: i for i in range(3)]
""",
    "cured: factory": """
def keep(i):
    return lambda: i

def make():
    return [keep(i) for i in range(3)]
""",
    "harmless: called at once": """
def call(function):
    return function()

def make():
    readers = []
    for i in range(3):
        value = call(lambda: i)
        readers.append(lambda value=value: value)
    return readers
""",
}


def is_late(source: str) -> bool:
    """Run a case: True if its functions do not return 0, 1, 2."""
    namespace: dict[str, Any] = {}
    exec(source, namespace)
    return [read() for read in namespace["make"]()] != [0, 1, 2]


def ruff_warns(source: str) -> bool:
    """Let ruff look for B023, a function that does not bind its loop variable.

    Raises:
        RuntimeError: ruff is not installed, or can't read the source.
    """
    flags = ["check", "--isolated", "--quiet", "--select=B023", "-"]
    command = [sys.executable, "-m", "ruff", *flags]
    done = subprocess.run(command, input=source, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"ruff_warns: ruff ended with {done.stderr.strip()}.")
    return done.returncode == 1


# Exercises


def _judge_guess(answer: Any) -> str:
    if answer == (10, 10, 10):
        raise NotYet("The values are right; write a list.")
    if answer == [0, 1, 2]:
        raise NotYet(
            "That would be early binding: each function would keep the value of its "
            "own turn. They keep the cell. What is in it when they run?"
        )
    if answer == [2, 2, 2]:
        raise NotYet(
            "Late binding, yes, but read on: `i` changes once more after the loop, "
            "and the functions look only when they are called."
        )
    if answer in (10, [10]):
        raise NotYet("There are three functions, so the answer is a list of three.")
    if answer != [10, 10, 10]:
        raise NotYet(f"The call does not return {answer!r}.")
    return "All three share one cell, and it holds 10 by the time they look."


guess = Exercise(
    "closures.guess",
    _judge_guess,
    hints=(
        "How many variables called `i` does one call of `make` have?",
        "A function looks into the cell when it is called, not when it is made.",
        "What is the last value that `i` is given before `make` returns?",
    ),
)


def _judge_scalers(make_scalers: Callable[..., Any]) -> str:
    factors = [2, 3, 5]
    made = make_scalers(factors)
    require_written(made)
    if not isinstance(made, list | tuple):
        kind = type(made).__name__
        raise NotYet(f"`make_scalers` returned {kind}; wanted a list of functions.")
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
            "[0, 0, 0]` they return something else. Keep the factor, not its place."
        )
    return "Each function keeps a factor of its own."


def _require_closed(scale: Callable[..., Any]) -> None:
    """Raise NotYet if a caller can pass another factor than 2."""
    if _changes(scale, 20, 10, 7):
        raise NotYet(
            "The values are right, but `scale(10, 7)` quietly replaces the factor: a "
            "default argument is still an argument. Write a factory."
        )
    for name in list(inspect.signature(scale).parameters)[1:]:
        if _changes(scale, 20, 10, **{name: 7}):
            raise NotYet(
                f"The factor can still be passed: `scale(10, {name}=7)` quietly "
                "replaces it. Write a factory."
            )


def _changes(
    function: Callable[..., Any], expected: object, *args: object, **kwargs: object
) -> bool:
    """Whether a call is accepted and gives something else."""
    try:
        return bool(function(*args, **kwargs) != expected)
    except TypeError:
        return False


scalers = Exercise(
    "closures.scalers",
    _judge_scalers,
    hints=(
        "Who makes a new variable in Python? Not a loop: a call.",
        "Write a function that takes one `factor` and returns a function of `x`.",
        "`def scaler(factor):` with `return lambda x: factor * x` inside; then call "
        "it once for each factor.",
    ),
)


class _Step(nn.Module):
    """Takes anything and makes a one; remembers both, and how full `seen` was."""

    def forward(self, given: object) -> Tensor:
        self.given, self.made, self.before = given, torch.ones(1), len(self.seen)
        return self.made


class _Backwards(nn.Sequential):
    """Runs its children from the last to the first."""

    def forward(self, given: object) -> object:
        for step in reversed(list(self)):
            given = step(given)
        return given


def _judge_watch(watch: Callable[..., Any]) -> str:
    seen = _run_watched(watch, nn.Sequential(_Step(), _Step(), _Step()))
    if seen == ["2", "2", "2"]:
        raise NotYet(
            "Every hook reports the last layer, '2': they share one `name`. Give "
            "each hook its own."
        )
    if seen != ["0", "1", "2"]:
        raise NotYet(f"One forward pass gave {seen}; wanted ['0', '1', '2'].")
    named = OrderedDict([("late", _Step()), ("early", _Step())])
    seen = _run_watched(watch, _Backwards(named))
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
    return "Each hook kept the name of its own layer."


def _run_watched(watch: Callable[..., Any], model: nn.Sequential) -> list[Any]:
    """Let `watch` register its hooks, run the model once, and return `seen`."""
    seen = watch(model)
    if not isinstance(seen, list):
        raise NotYet(f"`watch` returned {type(seen).__name__}; wanted the list `seen`.")
    if seen:
        raise NotYet(
            "The list is full before the model has run: the names were added when "
            "the hooks were made. Add them inside the hook."
        )
    steps = list(model)
    for step in steps:
        step.seen = seen
    output = model(torch.ones(1))
    run = steps[::-1] if isinstance(model, _Backwards) else steps
    for step, taken in zip(run, [s.given for s in run[1:]] + [output], strict=True):
        if taken is not step.made:
            raise NotYet(
                "The model's output changed: a forward hook that returns something "
                "replaces the output. Return nothing."
            )
    _require_names_after(run, seen, model)
    return seen


def _require_names_after(run: list[Any], seen: list[Any], model: nn.Module) -> None:
    hooked = any(m._forward_hooks or m._forward_pre_hooks for m in (model, *run))
    if not seen and hooked:
        raise NotYet(
            "The hooks ran, and `seen` is still empty after a forward pass. Add the "
            "name to it inside the hook."
        )
    if not seen:
        raise NotYet(
            "No hook ran: `seen` is still empty after a forward pass. Register one "
            "on each child."
        )
    if run[0].before:
        raise NotYet(
            "The first name was there before its layer had run: that is a pre-hook. "
            "Use `register_forward_hook`."
        )


watch = Exercise(
    "closures.watch",
    _judge_watch,
    hints=(
        "`model.named_children()` gives the names and the layers.",
        "Make the hook in a function that takes `name`, so that each has its own.",
        "`def reporter(name):` returns a hook `(module, args, output)` that calls "
        "`seen.append(name)` and returns nothing.",
    ),
)


def _judge_shares(shares_cell: Callable[..., Any]) -> str:
    (a, b), (c, _) = _pair(1), _pair(1)
    if _asked(shares_cell, a, b) is not True:
        raise NotYet(
            "Two functions made in one call share the cell of `value`; your answer "
            "for them is not True."
        )
    if _asked(shares_cell, a, c):
        raise NotYet(
            "These two come from different calls: same name, same value, but two "
            "cells. Compare the cells with `is`, not names or contents."
        )
    first, second = _crossed()
    if not (_asked(shares_cell, first, second) and _asked(shares_cell, second, first)):
        raise NotYet(
            "The shared cell is second in one function and first in the other. "
            "Compare every cell of f with every cell of g."
        )
    for pair in ((a, abs_of_one), (abs_of_one, a), (abs_of_one, abs_of_one)):
        if _fails(shares_cell, *pair):
            raise NotYet(
                "A function that captures nothing has `__closure__` None, and your "
                "code fails on it, be it f or g. Treat None as no cells."
            )
        if _asked(shares_cell, *pair):
            raise NotYet(
                "A function that captures nothing shares nothing; wanted False."
            )
    return "Cells are compared as objects: same cell, same fate."


def _pair(value: object) -> tuple[Callable[[], object], Callable[[], object]]:
    return (lambda: value), (lambda: value)


def _crossed() -> tuple[Callable[[], object], Callable[[], object]]:
    """Two functions whose cells are (a, both) and (both, c): Python sorts them."""
    a, both, c = 1, 2, 3
    return (lambda: (a, both)), (lambda: (both, c))


def _asked(shares_cell: Callable[..., Any], f: object, g: object) -> bool:
    """Return the answer, which must be a bool."""
    try:
        answer = shares_cell(f, g)
    except TypeError as error:
        if "unhashable" in str(error):
            raise NotYet(
                "A cell can't be put into a set or be a key: it has no hash. Compare "
                "two cells with `is`, or collect their `id`s."
            ) from None
        raise
    require_written(answer)
    if not isinstance(answer, bool):
        kind = type(answer).__name__
        kind = (
            "None" if answer is None else f"{'an' if kind[0] in 'aei' else 'a'} {kind}"
        )
        raise NotYet(f"Your answer is {kind}; wanted True or False.")
    return answer


def abs_of_one() -> int:
    """Return 1; a function that captures nothing, for the exercise on cells."""
    return 1


def _fails(function: Callable[..., Any], *args: object) -> bool:
    try:
        function(*args)
    except TypeError:
        return True
    return False


shares = Exercise(
    "closures.shares",
    _judge_shares,
    hints=(
        "The cells of a function are in the tuple `f.__closure__`.",
        "Two cells with the same name and content can be different cells: use `is`.",
        "`any(x is y for x in f.__closure__ or () for y in g.__closure__ or ())`",
    ),
)


# What `_judge_live` computes by hand: the layers' weights are 2 and 3, all biases 7.
_SQUARES = {"0": 4 * 2.0**2, "2": 2 * 3.0**2}
_EARLIER = 0.5 * 4 + 0.25 * 2  # when all parameters are 1
_RIGHT = 0.5 * _SQUARES["0"] + 0.25 * _SQUARES["2"]
_LATE_LAYER = "Every term looks at one layer, the last: the layer was captured late. "
_LATE_NUMBER = "Every term has the last coefficient: it was captured late. "
_OWN = "Keep each layer with its coefficient, in a list of pairs."
_MISTAKES = {
    _EARLIER: "After the weights changed the total stayed the same: it was computed "
    "once. Square them inside `total`.",
    (0.5 + 0.25) * _SQUARES["0"]: _LATE_LAYER + _OWN,
    (0.5 + 0.25) * _SQUARES["2"]: _LATE_LAYER + _OWN,
    0.5 * (_SQUARES["0"] + _SQUARES["2"]): _LATE_NUMBER + _OWN,
    0.25 * (_SQUARES["0"] + _SQUARES["2"]): _LATE_NUMBER + _OWN,
    2 * 0.5 * _SQUARES["0"]: "All terms are the last one, layer and coefficient: both "
    "were captured late. " + _OWN,
    2 * 0.25 * _SQUARES["2"]: "All terms are the last one, layer and coefficient: both "
    "were captured late. " + _OWN,
    0.25 * _SQUARES["0"] + 0.5 * _SQUARES["2"]: "The coefficients are taken in their "
    "order, not by name: here the dictionary names '2' before '0'. Use "
    "`model.get_submodule(name)`.",
    0.25 * _SQUARES["0"] + 0.5 * 2 * 7.0**2: "The coefficients are matched with the "
    "parameters one by one, so one of them is paid for a bias. Go by name.",
    _RIGHT + 0.5 * 2 * 7.0**2 + 0.25 * 7.0**2: "The biases are counted too; wanted "
    "the weights only.",
    0.5 * 4 * 2 + 0.25 * 2 * 3: "These are absolute values. Square the weights.",
    0.5 * 2 + 0.25 * 3: "These are means; wanted sums over each layer's weights.",
    0.5 * 2.0**2 + 0.25 * 3.0**2: "These are means; wanted sums over each layer's "
    "weights, squared.",
    0.5 * (4 * 2.0) ** 2 + 0.25 * (2 * 3.0) ** 2: "That squares each sum; wanted the "
    "sum of squares.",
    _SQUARES["0"] + _SQUARES["2"]: "The coefficients are missing.",
}


def _judge_live(make_total: Callable[..., Any]) -> str:
    first, last = nn.Linear(2, 2), nn.Linear(2, 1)
    model = nn.Sequential(first, nn.ReLU(), last).double()
    _fill(model, 1.0)
    coefficients = {"2": 0.25, "0": 0.5}
    total = make_total(model, coefficients)
    _require_function(total)
    _fill(model, 7.0)
    nn.init.constant_(first.weight, 2.0)
    nn.init.constant_(last.weight, 3.0)
    _require_total(total)
    model.insert(0, nn.Dropout())
    if _now(total) != _RIGHT:
        raise NotYet(
            "After `model.insert(0, nn.Dropout())` the total is lost: the names are "
            "looked up at each call, and now they mean other layers. Pick the layers "
            "once, outside `total`."
        )
    coefficients.update({"0": 8.0, "2": 16.0})
    if _now(total) != _RIGHT:
        raise NotYet(
            "The caller has changed `coefficients`, and the total changed with it: "
            "the dictionary is read at each call. Keep the numbers themselves."
        )
    return "Chosen once by name, squared anew at each call: weights move, nothing else."


def _require_function(total: Any) -> None:
    require_written(total)
    if total is None:
        raise NotYet("`make_total` returned None. End it with `return total`.")
    if not callable(total):
        raise NotYet(
            "`make_total` returned a number, which stays as it is while the weights "
            "move. Return a function that computes it."
        )
    try:
        inspect.signature(total).bind()
    except TypeError:
        raise NotYet(
            "`total` wants arguments; it is called without any, as `total()`. It "
            "knows the model from `make_total`."
        ) from None


def _require_total(total: Callable[[], Any]) -> None:
    value = total()
    require_written(value)
    number = _number(value)
    if number is None:
        kind = type(value).__name__
        raise NotYet(f"`total()` returned {kind}; wanted a tensor with one number.")
    for wrong, message in _MISTAKES.items():
        if math.isclose(number, wrong):
            raise NotYet(message)
    if number != _RIGHT:
        raise NotYet(
            f"With weights 2 in layer '0' and 3 in layer '2' the total is {number:g}; "
            f"wanted {_RIGHT:g} = 0.5 * 4 * 2**2 + 0.25 * 2 * 3**2."
        )
    if not isinstance(value, Tensor) or not value.requires_grad:
        raise NotYet(
            "The total has lost its gradient (`.item()`, `.detach()` or `.data`?), "
            "so training would never feel it. Keep it a tensor."
        )
    if _number(total()) != _RIGHT:
        raise NotYet(
            "The second call gives another total. Is it read from a generator, which "
            "is empty after the first time? Make it a list."
        )


def _now(total: Callable[[], Any]) -> float | None:
    """Return the total, or None if it can't be computed any more."""
    try:
        return _number(total())
    except (AttributeError, KeyError, IndexError, RuntimeError):
        return None


def _number(value: Any) -> float | None:
    if isinstance(value, Tensor):
        return value.item() if value.numel() == 1 else None
    return float(value) if isinstance(value, int | float) else None


def _fill(model: nn.Module, value: float) -> None:
    for parameter in model.parameters():
        nn.init.constant_(parameter, value)


live = Exercise(
    "closures.live",
    _judge_live,
    hints=(
        "What may change later: the weights. What may not: the layers, the numbers.",
        "`model.get_submodule(name)` gives the layer of that name.",
        "Pick the layers by name once, outside; square their weights inside.",
    ),
)
