"""The judge of lesson 01's `live`: a total that follows the weights, nothing else."""

import inspect
import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from course_lib.lessons.checks import close, gradient, require_kind
from course_lib.lessons.exercises import NotYet

# By hand: the layers' weights are 2 and 3, all biases 7.
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


def judge(answer: Callable[..., Any]) -> None:
    """Raise NotYet with the first mistake of a function make_total."""
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
