"""The judge of lesson 01's larger exercise: a factory of penalties to be pickled.

It goes step by step, and each message names its step: the penalties of a model that has
just been made, what may change later, and what comes back from a pickle.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from course_lib.lessons.checks import as_text, close, gradient, reject, require_kind
from course_lib.lessons.exercises import NotYet
from course_lib.lessons.pickles import round_trip

Rule = Mapping[str, float]
Term = Callable[[nn.Module, Rule], Tensor]  # what one layer pays

_BEFORE, _AFTER = {"l1": 0.5, "l2": 0.25}, {"l2": 0.125, "l1": 2.0}
_LIST = "a list of penalties, to be called later"
_WANTED = "l1 * sum |w| + l2 * sum w**2"


def judge(answer: Callable[..., Any]) -> None:
    """Raise NotYet with the first mistake of a function make_penalties."""
    model, rules = _model(1.0), _rules()
    layers = list(model)
    penalties = _made(answer, model, rules)
    reject(
        {
            "Step 1: you changed the model.": list(model) != layers,
            "Step 1: you changed `rules`, which the caller may need.": (
                rules != _rules()
            ),
        }
    )
    _set_weights(model, 1.0)
    _judge_values(penalties, model)
    _judge_gradients(penalties, model)
    _judge_later(answer, penalties, model, rules)
    _judge_pickle(answer, penalties, model)


def _model(start: float) -> nn.Sequential:
    """Return a model with three dense layers; all of its numbers are alike."""
    dense = nn.Linear(2, 2), nn.Linear(2, 1), nn.Linear(1, 2)
    others = nn.Dropout(), nn.LayerNorm(2)
    model = nn.Sequential(*others, dense[0], nn.ReLU(), *dense[1:]).double()
    for parameter in model.parameters():
        nn.init.constant_(parameter, start)
    return model


def _rules() -> list[dict[str, float] | None]:
    return [dict(_BEFORE), None, dict(_AFTER)]


def _dense(model: nn.Sequential) -> list[nn.Linear]:
    return [layer for layer in model if isinstance(layer, nn.Linear)]


def _set_weights(model: nn.Sequential, factor: float) -> None:
    """Give each layer other weights, of both signs, and 9 to all biases."""
    numbers = [[1, -2], [3, -4]], [[5, -6]], [[-7], [8]]
    for layer, weight in zip(_dense(model), numbers, strict=True):
        with torch.no_grad():
            layer.weight.copy_(factor * torch.tensor(weight, dtype=torch.float64))
            layer.bias.fill_(9.0)


def _right(layer: nn.Module, rule: Rule) -> Tensor:
    w = layer.weight
    return rule["l1"] * w.abs().sum() + rule["l2"] * w.square().sum()


def _wanted(model: nn.Sequential) -> list[Tensor]:
    first, _, last = _dense(model)
    return [_right(first, _BEFORE), _right(last, _AFTER)]


# Step 1


def _made(answer: Callable[..., Any], model: nn.Sequential, rules: list[Any]) -> Any:
    """Return the list of two callables, or name what else there is."""
    try:
        penalties = answer(model, rules)
    except TypeError as error:
        if "NoneType" not in str(error) or "not callable" in str(error):
            raise
        raise NotYet(
            "Step 1: an entry of `rules` may be None, and your code looks into it "
            f"({error}). That layer is free; leave it out."
        ) from error
    except AttributeError as error:
        if "weight" not in str(error):
            raise
        raise NotYet(_no_weight(error)) from error
    require_kind(penalties, list | tuple, _LIST, what="Step 1: `make_penalties`")
    _judge_parts(penalties)
    return penalties


def _no_weight(error: AttributeError) -> str:
    return (
        f"Step 1: {error}. `rules` has an entry for each `nn.Linear`, none for the "
        "other layers. Pair it with the dense layers."
    )


def _judge_parts(penalties: Sequence[Any]) -> None:
    for part in penalties:
        require_kind(
            part, object, _LIST, what="Step 1: an entry of the list", verb="is"
        )
        if isinstance(part, Tensor | int | float):
            raise NotYet(
                "Step 1: the list holds numbers, which are stale after one step of "
                "training. Put in something that computes them when it is called."
            )
        if isinstance(part, type):
            raise NotYet(
                f"Step 1: the list holds the class {part.__name__} itself. Call it, "
                "to make an object with a layer and two numbers."
            )
        if not callable(part):
            raise NotYet(
                f"Step 1: the list holds {type(part).__name__}, which can't be "
                "called. An object needs a method `__call__`."
            )
        _judge_signature(part)
    if len(penalties) != 2:
        free = " The free one, None, has none." if len(penalties) > 2 else ""
        raise NotYet(
            f"Step 1: three dense layers, one of them free, gave {len(penalties)} "
            f"penalties; wanted 2.{free}"
        )


def _judge_signature(part: Callable[..., Any]) -> None:
    try:
        inspect.signature(part).bind()
    except TypeError as error:
        raise NotYet(
            f"Step 1: a penalty is called without arguments, as `penalty()`; yours "
            f"can't be ({error}). It keeps its layer and its numbers."
        ) from None
    except ValueError:  # what is written in C may tell nothing
        return


def _values(penalties: Sequence[Callable[[], Any]]) -> list[Tensor]:
    """Call them; each must give one number."""
    try:
        values = [penalty() for penalty in penalties]
    except AttributeError as error:
        if "weight" not in str(error):
            raise
        raise NotYet(_no_weight(error)) from error
    for value in values:
        require_kind(
            value, Tensor | int | float, "one number", what="Step 1: a penalty"
        )
        if isinstance(value, Tensor) and value.numel() != 1:
            raise NotYet(
                f"Step 1: a penalty has the shape {tuple(value.shape)}; wanted one "
                "number. Is a `sum()` missing?"
            )
    return [torch.as_tensor(value).reshape(()) for value in values]


def _judge_values(penalties: Sequence[Callable[[], Any]], model: nn.Sequential) -> None:
    got, wanted = _values(penalties), _wanted(model)
    if _same(got, wanted):
        if not _same(_values(penalties), wanted):
            raise NotYet(
                "Step 1: the second call gives something else. Does a penalty read a "
                "generator, or change what it keeps?"
            )
        return
    texts = [as_text(torch.stack(list(map(_plain, pair)))) for pair in (got, wanted)]
    numbers = f"The penalties are {texts[0]}; wanted {texts[1]}."
    for name, wrong in _slips(model).items():
        if _same(got, wrong):
            raise NotYet(f"Step 1: {name} {numbers}")
    raise NotYet(f"Step 1, {_WANTED} of each layer: {numbers}")


def _plain(value: Tensor) -> Tensor:
    return value.detach().double()


def _same(got: Sequence[Tensor], wanted: Sequence[Tensor]) -> bool:
    return len(got) == len(wanted) and all(map(close, got, wanted))


def _slips(model: nn.Sequential) -> dict[str, list[Tensor]]:
    """Return what each known mistake gives."""
    first, free, last = _dense(model)
    held = _right(last, _AFTER)
    norm = next(layer for layer in model if isinstance(layer, nn.LayerNorm))
    return {
        "every penalty is the last one: layer and numbers are shared. Captured late, "
        "or kept in the class? Give each penalty its own.": [held, held],
        "every penalty looks at the last layer. Give each its own.": [
            _right(last, _BEFORE),
            held,
        ],
        "every penalty has the numbers of the last rule. Give each its own.": [
            _right(first, _AFTER),
            held,
        ],
        "the free layer pays, with the next rule. None keeps the place of its layer: "
        "pair first, leave out afterwards.": [
            _right(first, _BEFORE),
            _right(free, _AFTER),
        ],
        "the `LayerNorm` has a weight, too, and got the first rule. Ask for "
        "`nn.Linear`.": [_right(norm, _BEFORE), _right(free, _AFTER)],
        "the rules are in the wrong order.": [
            _right(first, _AFTER),
            _right(last, _BEFORE),
        ],
        "the weights have moved since the penalties were made, and they did not "
        "notice. Compute inside `__call__`, from the layer itself and not a copy.": (
            _wanted(_model(1.0))
        ),
        **{
            name: [term(first, _BEFORE), term(last, _AFTER)]
            for name, term in _TERMS.items()
        },
    }


_TERMS: dict[str, Term] = {
    "l1 is missing.": lambda m, rule: rule["l2"] * m.weight.square().sum(),
    "l2 is missing.": lambda m, rule: rule["l1"] * m.weight.abs().sum(),
    "l1 and l2 have changed places.": lambda m, rule: (
        rule["l2"] * m.weight.abs().sum() + rule["l1"] * m.weight.square().sum()
    ),
    "l1 belongs to the absolute values: weights of both signs cancel out.": (
        lambda m, rule: (
            rule["l1"] * m.weight.sum() + rule["l2"] * m.weight.square().sum()
        )
    ),
    "l2 belongs to the squares; that is the norm, their root.": lambda m, rule: (
        rule["l1"] * m.weight.abs().sum() + rule["l2"] * m.weight.norm()
    ),
    "l2 belongs to the square of each weight; that squares their sum.": (
        lambda m, rule: (
            rule["l1"] * m.weight.abs().sum() + rule["l2"] * m.weight.sum() ** 2
        )
    ),
    "these are means; wanted sums over the weights.": lambda m, rule: (
        rule["l1"] * m.weight.abs().mean() + rule["l2"] * m.weight.square().mean()
    ),
    "half of the squares; wanted all.": lambda m, rule: (
        rule["l1"] * m.weight.abs().sum() + rule["l2"] / 2 * m.weight.square().sum()
    ),
    "the biases pay, too; wanted the weights only.": lambda m, rule: (
        rule["l1"] * sum(p.abs().sum() for p in m.parameters())
        + rule["l2"] * sum(p.square().sum() for p in m.parameters())
    ),
    "the numbers l1 and l2 are missing.": lambda m, rule: (
        m.weight.abs().sum() + m.weight.square().sum()
    ),
}


def _judge_gradients(
    penalties: Sequence[Callable[[], Any]], model: nn.Sequential, step: str = "Step 1"
) -> None:
    first, _, last = _dense(model)
    pairs = zip((first, last), _values(penalties), _wanted(model), strict=True)
    for layer, got, wanted in pairs:
        if not close(gradient(got, layer.weight), gradient(wanted, layer.weight)):
            raise NotYet(
                f"{step}: the values are right, but no gradient reaches the weights, "
                "so training would never feel them. Do `.item()`, `float()`, "
                "`.detach()`, `.data` or `torch.no_grad()` stand in your code?"
            )


# Step 2


def _judge_later(
    answer: Callable[..., Any],
    penalties: Sequence[Callable[[], Any]],
    model: nn.Sequential,
    rules: list[Any],
) -> None:
    answer(_model(2.0), _rules())
    if not _still(penalties, model):
        raise NotYet(
            "Step 2: `make_penalties` was called for a second model, and the penalties "
            "of the first have changed. Keep layer and numbers in each object, not in "
            "its class and not in a global variable."
        )
    model.insert(0, nn.Dropout())
    if not _still(penalties, model):
        raise NotYet(
            "Step 2: after `model.insert(0, nn.Dropout())` the penalties are lost: "
            "they look for their layer by place or name. Keep the layer itself."
        )
    rules[0]["l1"], rules[2]["l2"] = 8.0, 16.0
    rules.clear()
    if not _still(penalties, model):
        raise NotYet(
            "Step 2: the caller has changed `rules`, and the penalties changed with "
            "it. Keep the numbers, not the list or the dictionary."
        )


def _still(penalties: Sequence[Callable[[], Any]], model: nn.Sequential) -> bool:
    """Whether the penalties can be computed and are right."""
    try:
        return _same(_values(penalties), _wanted(model))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, NotYet):
        return False


# Step 3


def _judge_pickle(
    answer: Callable[..., Any],
    penalties: Sequence[Callable[[], Any]],
    model: nn.Sequential,
) -> None:
    twin, twins = round_trip((model, penalties), answer)
    try:
        come_back = _values(twins)
    except (AttributeError, IndexError, KeyError, TypeError, NotYet) as error:
        raise NotYet(
            f"Step 3: a penalty came back from the pickle without its parts ({error}). "
            "A pickle keeps the attributes of an object; those of its class and global "
            "variables it does not."
        ) from error
    if not _same(come_back, _wanted(model)):
        raise NotYet(
            f"Step 3: the penalties come back from the pickle as "
            f"{as_text(torch.stack([_plain(v) for v in come_back]))}; before it was "
            f"{as_text(torch.stack([_plain(v) for v in _wanted(model)]))}."
        )
    _set_weights(twin, 2.0)
    _set_weights(model, 3.0)
    if _still(twins, model):
        raise NotYet(
            "Step 3: the penalties that came back look at the first model, and not at "
            "that which came back with them. Keep the layer in the object, and not in "
            "a global variable."
        )
    if not _still(twins, twin):
        raise NotYet(
            "Step 3: model and penalties came back from one pickle, but the penalties "
            "do not see that model's weights. Keep the layer itself: what stands in "
            "both is pickled once."
        )
    _judge_gradients(twins, twin, "Step 3, after the pickle")
