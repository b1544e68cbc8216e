"""The judge of lesson 01's `live`: a total that follows the weights, nothing else."""

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from course_lib.lessons.checks import (
    close,
    gradient,
    require_after,
    require_kind,
    settings_of,
    why_not_without_arguments,
)
from course_lib.lessons.exercises import NotYet

# By hand, for these weights; all biases are 7.
_WEIGHTS = {"0": [[1.0, 2.0], [3.0, -1.0]], "2": [[-3.0, 2.0]]}
_FIRST, _LAST = 15.0, 13.0  # the sums of their squares
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
    _RIGHT / 2: "These are half of the squares, or a mean over the layers; wanted the "
    "sum of all.",
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
    0.5 * 7 + 0.25 * 5: "These are absolute values. Square the weights.",
    0.5 * 7 / 4 + 0.25 * 5 / 2: "These are means; wanted sums over each layer's "
    "weights.",
    0.5 * _FIRST / 4 + 0.25 * _LAST / 2: "These are means; wanted sums over each "
    "layer's weights, squared.",
    0.5 * 5.0**2 + 0.25 * (-1.0) ** 2: "That squares each sum; wanted the sum of "
    "squares.",
    _FIRST + _LAST: "The coefficients are missing.",
}


def judge(answer: Callable[..., Any]) -> None:
    """Raise NotYet with the first mistake of a function make_total."""
    first, last = nn.Linear(2, 2), nn.Linear(2, 1)
    model = nn.Sequential(first, nn.ReLU(), last).double()
    for parameter in model.parameters():
        nn.init.constant_(parameter, 1.0)
    coefficients = {"2": 0.25, "0": 0.5}
    settings = settings_of(model)
    total = answer(model, coefficients)
    _require_function(total)
    if settings_of(model) != settings:
        raise NotYet(
            "You changed the model. Leave its mode (`train`, `eval`) and its "
            "parameters as they are."
        )
    if coefficients != {"2": 0.25, "0": 0.5}:
        raise NotYet("You changed `coefficients`, which the caller may need.")
    _set_weights(first, last)
    _require_total(total, first, last)
    _require_live(total, first, last)
    _judge_later(answer, total, model, coefficients)
    _judge_names(answer, first, last)


def _set_weights(first: nn.Linear, last: nn.Linear) -> None:
    for layer, weight in zip((first, last), _WEIGHTS.values(), strict=True):
        with torch.no_grad():
            layer.weight.copy_(torch.tensor(weight))
            layer.bias.fill_(7.0)


def _require_live(total: Callable[[], Any], first: nn.Linear, last: nn.Linear) -> None:
    """Refuse a total that keeps what it computed first."""
    first.weight.grad = torch.ones_like(first.weight)
    total()
    if first.weight.grad is None or not first.weight.grad.all():
        raise NotYet(
            "`total()` has changed the gradients of the model: no `zero_grad` and no "
            "`backward`. Those belong to the training loop."
        )
    with torch.no_grad():
        for layer in (first, last):
            layer.weight.mul_(2.0)
    if not _same(_now(total), 4 * _RIGHT):
        raise NotYet(
            "After one more step of training the total is wrong: it keeps what its "
            "first call computed. Square the weights in each call."
        )
    _set_weights(first, last)


def _judge_later(
    answer: Callable[..., Any],
    total: Callable[[], Any],
    model: nn.Sequential,
    coefficients: dict[str, float],
) -> None:
    """Change all that may change, between two calls and before the first one."""
    not_called_yet = answer(model, coefficients)
    changes = {
        "`make_total` was called again with other coefficients, and the first total "
        "changed with it. Keep layers and numbers in a list of its own: not in a "
        "global variable, not in the model.": (
            lambda: answer(model, {"2": 0.5, "0": 0.5})
        ),
        "After `model.insert(0, nn.Dropout())` the total is lost: the names are looked "
        "up at each call, and now they mean other layers. Pick the layers once, "
        "outside `total`.": lambda: model.insert(0, nn.Dropout()),
        "The caller has changed `coefficients`, and the total changed with it: the "
        "dictionary is read at each call. Store the numbers themselves.": (
            lambda: coefficients.update({"0": 8.0, "2": 16.0})
        ),
    }
    require_after(changes, lambda: _same(_now(total), _RIGHT))
    if not _same(_now(not_called_yet), _RIGHT):
        raise NotYet(
            "Model and `coefficients` changed before `total` was called for the first "
            "time, and it is wrong: layers and numbers are picked by its first call. "
            "Pick them outside, in a list; a generator would wait."
        )


def _judge_names(answer: Callable[..., Any], first: nn.Linear, last: nn.Linear) -> None:
    header, tail, table = nn.Linear(1, 1), nn.Linear(1, 1), nn.Embedding(2, 1)
    for layer in (header, tail, table):
        nn.init.constant_(layer.weight, 5.0)
    stem = nn.Sequential(first, nn.ReLU())
    parts = {"stem": stem, "head": last, "header": header, "tail": nn.Sequential(tail)}
    deep = nn.Sequential(OrderedDict(parts)).double()
    by_name = _of_names(answer, deep, {"head": 0.25, "stem.0": 0.5})
    if _same(by_name, 0.25 * _FIRST + 0.5 * _LAST):
        raise NotYet(
            "With the submodules 'stem.0' and 'head' the coefficients are exchanged: "
            "the names were sorted. Use `model.get_submodule(name)`."
        )
    if _same(by_name, _RIGHT + 0.25 * 5.0**2):
        raise NotYet(
            "The submodule 'header' has no coefficient, and it pays that of 'head': "
            "only a part of the name was compared. Use `model.get_submodule(name)`."
        )
    if not _same(by_name, _RIGHT):
        raise NotYet(
            "Submodules have names such as 'head' and 'stem.0', not only numbers, and "
            "'tail.0' is another. `model.get_submodule(name)` finds them all."
        )
    tables = nn.Sequential(OrderedDict(table=table)).double()
    if not _same(_of_names(answer, tables, {"table": 0.5}), 0.5 * 2 * 5.0**2):
        raise NotYet(
            "An `nn.Embedding` has a coefficient, and its weight was not squared and "
            "added up. Any layer with a weight may have one: ask for its name, not "
            "for its class."
        )
    plain = nn.Sequential(first, last)
    alike = _of_names(answer, plain, {"0": 0.5, "1": 0.5})
    if not _same(alike, 0.5 * (_FIRST + _LAST)):
        raise NotYet(
            "Two layers with the same coefficient, and the total is wrong. Is the "
            "coefficient a key of a dictionary? Make pairs, in a list."
        )


def _require_function(total: Any) -> None:
    if _number(total) is not None:
        raise NotYet(
            "`make_total` returned a number, which does not change when the weights "
            "do. Return a function that computes it."
        )
    require_kind(total, Callable, "the function `total`", what="`make_total`")
    if why_not_without_arguments(total):
        raise NotYet(
            "`total` wants arguments; it is called without any, as `total()`. It "
            "knows the model from `make_total`."
        )


def _require_total(total: Callable[[], Any], first: nn.Linear, last: nn.Linear) -> None:
    value = total()
    number = _number(value)
    if isinstance(value, Tensor) and number is None:
        raise NotYet(
            f"`total()` returned a tensor of shape {tuple(value.shape)}; wanted one "
            "number. Is a `sum` missing?"
        )
    if number is None:
        require_kind(value, (), "a tensor with one number", what="`total()`")
    for wrong, message in _MISTAKES.items():
        if _same(number, wrong):
            raise NotYet(message)
    if not _same(number, _RIGHT):
        raise NotYet(
            f"With the weights {_WEIGHTS} the total is {number:g}; wanted {_RIGHT:g} = "
            f"0.5 * {_FIRST:g} + 0.25 * {_LAST:g}."
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
    for layer, slope in ((first, 2 * 0.5), (last, 2 * 0.25)):
        if not close(gradient(value, layer.weight), slope * layer.weight):
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
