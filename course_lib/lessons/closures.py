"""Exercises of lesson 01, and the cases on which it measures ruff's rule B023."""

import subprocess
import sys
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
    scalers = list(make_scalers([2, 3, 5]))
    if not all(callable(scale) for scale in scalers):
        raise NotYet(
            "`make_scalers` returned numbers; wanted functions, to be called later."
        )
    got = [scale(10) for scale in scalers]
    if got == [50, 50, 50]:
        raise NotYet(
            "All of them scale by 5, the last factor: the loop variable is captured "
            "late. Give each function a variable of its own."
        )
    if got != [20, 30, 50]:
        raise NotYet(f"For x = 10 they return {got}; wanted [20, 30, 50].")
    if _accepts(scalers[0], 10, 7):
        raise NotYet(
            "The values are right, but `scale(10, 7)` quietly replaces the factor: a "
            "default argument is still an argument. Write a factory."
        )
    return "Each call of your factory makes a new cell, so each function has its own."


def _accepts(function: Callable[..., Any], *args: object) -> bool:
    try:
        function(*args)
    except TypeError:
        return False
    return True


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


def _judge_watch(watch: Callable[..., Any]) -> str:
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
    inputs = torch.ones(1, 3)
    expected = model(inputs)
    seen = watch(model)
    if not isinstance(seen, list):
        raise NotYet(f"`watch` returned {type(seen).__name__}; wanted the list `seen`.")
    if seen:
        raise NotYet(
            "The list is full before the model has run: the names were added when "
            "the hooks were made. Add them inside the hook."
        )
    if not torch.equal(model(inputs), expected):
        raise NotYet(
            "The model's output changed: a forward hook that returns something "
            "replaces the output. Return nothing."
        )
    if seen == ["2", "2", "2"]:
        raise NotYet(
            "Every hook reports the last layer, '2': they share one `name`. Give "
            "each hook its own."
        )
    if seen != ["0", "1", "2"]:
        raise NotYet(f"One forward pass gave {seen}; wanted ['0', '1', '2'].")
    return "Each hook kept the name of its own layer."


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
    def pair(value: object) -> tuple[Callable[[], object], Callable[[], object]]:
        return (lambda: value), (lambda: value)

    (a, b), (c, _) = pair(1), pair(1)
    require_written(shares_cell(a, b))
    if shares_cell(a, b) is not True:
        raise NotYet(
            "Two functions made in one call share the cell of `value`; your answer "
            "for them is not True."
        )
    if shares_cell(a, c) is not False:
        raise NotYet(
            "These two come from different calls: same name, same value, but two "
            "cells. Compare the cells with `is`, not names or contents."
        )
    if _fails(shares_cell, a, abs_of_one):
        raise NotYet(
            "A function that captures nothing has `__closure__` None, and your code "
            "fails on it. Treat None as no cells."
        )
    if shares_cell(a, abs_of_one) is not False:
        raise NotYet("A function that captures nothing shares nothing; wanted False.")
    return "Cells are compared as objects: same cell, same fate."


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


def _judge_live(make_total: Callable[..., Any]) -> str:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)).double()
    coefficients = {"0": 0.5, "2": 0.25}
    total = make_total(model, coefficients)
    if not callable(total):
        raise NotYet(
            "`make_total` returned a number, which stays as it is while the weights "
            "move. Return a function that computes it."
        )
    _fill(model, 1.0)
    value = total(model)
    require_written(value)
    if not isinstance(value, Tensor) or not value.requires_grad:
        raise NotYet(
            "The total has lost its gradient (`.item()`, `.detach()` or `.data`?), "
            "so training would never feel it. Keep it a tensor."
        )
    expected = 0.5 * 4 + 0.25 * 2  # ones: four weights, and two
    if value.item() == (0.5 + 0.25) * 2:
        raise NotYet(
            "Every term looks at the last layer: the layer was captured late. Sum "
            "inside one function, or keep each layer with its coefficient."
        )
    if value.item() != expected:
        raise NotYet(
            f"With all parameters 1 the total is {value.item():g}; wanted "
            f"{expected:g} = 0.5 * 4 + 0.25 * 2 (weights only, squared)."
        )
    _fill(model, 2.0)
    after = total(model).item()
    if after == expected:
        raise NotYet(
            "After the weights changed the total stayed the same: it was computed "
            "once. Compute it inside the function."
        )
    if after != 4 * expected:
        raise NotYet(
            f"Weights twice as large cost {after / expected:g} times as much; a "
            "squared penalty costs 4 times as much. Square the weights."
        )
    return "Your total looks at the weights of now, layer by layer, at each call."


def _fill(model: nn.Module, value: float) -> None:
    for parameter in model.parameters():
        nn.init.constant_(parameter, value)


live = Exercise(
    "closures.live",
    _judge_live,
    hints=(
        "Return a function of `m`; everything that depends on weights goes inside.",
        "One function can loop over `coefficients.items()` when it is called.",
        "`sum(c * m.get_submodule(name).weight.square().sum() for name, c in "
        "coefficients.items())` inside `total(m)`.",
    ),
)
