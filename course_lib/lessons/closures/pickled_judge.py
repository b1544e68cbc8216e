"""The judge of lesson 01's larger exercise: a factory of penalties to be pickled.

It goes step by step, and each message names its step: the penalties of a model that has
just been made, what may change later, and what comes back from a pickle.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from course_lib.lessons.checks import (
    as_text,
    close,
    gradient,
    reject,
    require_after,
    require_kind,
    settings_of,
    why_not_without_arguments,
)
from course_lib.lessons.closures.pickles import emptied, round_trip, stores_of
from course_lib.lessons.exercises import NotYet

Penalties = Sequence[Callable[[], Any]]

_LIST = "a list of penalties, to be called later"
_BEFORE, _AFTER = {"l1": 0.5, "l2": 0.25}, {"l2": 0.125, "l1": 2.0}


def judge(answer: Callable[..., Any]) -> None:
    """Raise NotYet with the first mistake of a function make_penalties."""
    model, rules = _new_model(1.0), _rules()
    layers, settings = list(model), settings_of(model)
    sizes = {name: len(store) for name, store in stores_of(answer).items()}
    penalties = _made(answer, model, rules)
    reject(
        {
            "Step 1: you changed the model.": list(model) != layers,
            "Step 1: you changed the model. Leave its mode (`train`, `eval`) and its "
            "parameters as they are.": settings_of(model) != settings,
            "Step 1: you changed `rules`, which the caller may need.": (
                rules != _rules()
            ),
        }
    )
    _set_weights(model, 1.0)
    _judge_values(penalties, model)
    _judge_gradients(penalties, model)
    _judge_zeros(answer)
    _judge_later(answer, penalties, model, rules)
    stores = stores_of(answer).items()
    grown = [store for name, store in stores if len(store) != sizes.get(name, 0)]
    _judge_pickle(answer, penalties, model, grown)


def _rules() -> list[dict[str, float] | None]:
    return [dict(_BEFORE), None, dict(_AFTER)]


def _new_model(start: float) -> nn.Sequential:
    """Return a model with three dense layers; all of its numbers are alike."""
    dense = nn.Linear(2, 2), nn.Linear(2, 1), nn.Linear(1, 2)
    others = nn.Dropout(), nn.LayerNorm(2)
    model = nn.Sequential(*others, dense[0], nn.ReLU(), *dense[1:]).double()
    for parameter in model.parameters():
        nn.init.constant_(parameter, start)
    return model


def _dense_of(model: nn.Sequential) -> list[nn.Linear]:
    return [layer for layer in model if isinstance(layer, nn.Linear)]


def _set_weights(model: nn.Sequential, factor: float) -> None:
    """Give each layer other weights, of both signs, and 9 to all biases."""
    numbers = [[1, -2], [3, -4]], [[5, -6]], [[-7], [8]]
    for layer, weight in zip(_dense_of(model), numbers, strict=True):
        with torch.no_grad():
            layer.weight.copy_(factor * torch.tensor(weight, dtype=torch.float64))
            layer.bias.fill_(9.0)


def _cost(w: Tensor, l1: float, l2: float) -> Tensor:
    return l1 * w.abs().sum() + l2 * w.square().sum()


def _wanted_of(model: nn.Sequential) -> list[Tensor]:
    first, _, last = _dense_of(model)
    return [_cost(first.weight, **_BEFORE), _cost(last.weight, **_AFTER)]


# Step 1


def _made(answer: Callable[..., Any], model: nn.Sequential, rules: list[Any]) -> Any:
    """Return the list of two callables, or name what else there is."""
    try:
        penalties = _run(lambda: answer(model, rules))
    except TypeError as error:
        if "NoneType" not in str(error) or "not callable" in str(error):
            raise
        raise NotYet(
            "Step 1: an entry of `rules` may be None, and your code looks into it "
            f"({error}). That layer is free; leave it out."
        ) from error
    require_kind(penalties, list | tuple, _LIST, what="Step 1: `make_penalties`")
    if answer(model, _rules()) is penalties:
        raise NotYet(
            "Step 2: two calls of `make_penalties` returned one list: it is a global "
            "variable or a default argument. Make a new list in each call."
        )
    _judge_parts(penalties)
    return penalties


def _run(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except AttributeError as error:
        if "weight" not in str(error):
            raise
        raise NotYet(
            f"Step 1: {error}. `rules` has an entry for each `nn.Linear`, none for the "
            "other layers. Pair it with the dense layers."
        ) from error


def _judge_parts(penalties: Sequence[Any]) -> None:
    what = "Step 1: an entry of the list"
    for part in penalties:
        require_kind(part, object, _LIST, what=what, verb="is")
        kind = type(part).__name__
        reject(
            {
                "Step 1: the list holds numbers, which are stale after one step of "
                "training. Put in something that computes them when it is called.": (
                    isinstance(part, Tensor | int | float)
                ),
                f"Step 1: the list holds the class {getattr(part, '__name__', kind)} "
                "itself. Call it, to make an object with a layer and two numbers.": (
                    isinstance(part, type)
                ),
                f"Step 1: the list holds {kind}, which can't be called. An object "
                "needs a method `__call__`.": not callable(part),
            }
        )
        if why := why_not_without_arguments(part):
            raise NotYet(
                f"Step 1: a penalty is called without arguments, as `penalty()`; yours "
                f"can't be ({why}). It keeps its layer and its numbers."
            )
    if len(penalties) != 2:
        free = " The free one, None, has none." if len(penalties) > 2 else ""
        raise NotYet(
            f"Step 1: three dense layers, one of them free, gave {len(penalties)} "
            f"penalties; wanted 2.{free}"
        )


def _values(penalties: Penalties) -> list[Tensor]:
    """Call them; each must give one number."""
    values = [_run(penalty) for penalty in penalties]
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


def _judge_values(penalties: Penalties, model: nn.Sequential) -> None:
    got, wanted = _values(penalties), _wanted_of(model)
    if not _same(got, wanted):
        numbers = f"The penalties are {_text(got)}; wanted {_text(wanted)}."
        slips = _slips(model).items()
        reject({f"Step 1: {name} {numbers}": _same(got, slip) for name, slip in slips})
        raise NotYet(f"Step 1, l1 * sum |w| + l2 * sum w**2 of each layer: {numbers}")
    if not _same(_values(penalties), wanted):
        raise NotYet(
            "Step 1: the second call gives something else. Does a penalty read a "
            "generator, or change what it keeps?"
        )
    _set_weights(model, 2.0)
    if not _same(_values(penalties), _wanted_of(model)):
        raise NotYet(
            "Step 1: the weights have moved since the first call, and the second gives "
            "something else than l1 and l2 of the weights now. Compute in each call, "
            "and keep no result."
        )
    _set_weights(model, 1.0)


def _slips(model: nn.Sequential) -> dict[str, list[Tensor]]:
    """Return what each known mistake gives."""
    layers = _dense_of(model)
    first, free, last = (layer.weight for layer in layers)
    old, _, old_last = (layer.weight for layer in _dense_of(_new_model(1.0)))
    norm = next(layer.weight for layer in model if isinstance(layer, nn.LayerNorm))
    all_of = [torch.cat([p.flatten() for p in m.parameters()]) for m in layers]
    found = {
        "every penalty is the last one: layer and numbers are shared. Captured late, "
        "or kept in the class? Give each penalty its own.": (
            [_cost(last, **_AFTER), _cost(last, **_AFTER)]
        ),
        "every penalty looks at the last layer. Give each its own.": (
            [_cost(last, **_BEFORE), _cost(last, **_AFTER)]
        ),
        "every penalty has the numbers of the last rule. Give each its own.": (
            [_cost(first, **_AFTER), _cost(last, **_AFTER)]
        ),
        "the free layer pays, with the next rule. None keeps the place of its layer: "
        "pair first, leave out afterwards.": (
            [_cost(first, **_BEFORE), _cost(free, **_AFTER)]
        ),
        "the `LayerNorm` has a weight, too, and got the first rule. Ask for "
        "`nn.Linear`.": [_cost(norm, **_BEFORE), _cost(free, **_AFTER)],
        "the rules are in the wrong order.": (
            [_cost(first, **_AFTER), _cost(last, **_BEFORE)]
        ),
        "the weights have moved since the penalties were made, and they did not "
        "notice. Compute inside `__call__`, from the layer itself and not a copy.": (
            [_cost(old, **_BEFORE), _cost(old_last, **_AFTER)]
        ),
        "the biases pay, too; wanted the weights only.": (
            [_cost(all_of[0], **_BEFORE), _cost(all_of[-1], **_AFTER)]
        ),
    }
    for name, cost in _WRONG_COSTS.items():
        found[name] = [cost(first, **_BEFORE), cost(last, **_AFTER)]
    return found


_WRONG_COSTS: dict[str, Callable[..., Tensor]] = {
    "l1 is missing.": lambda w, l1, l2: l2 * w.square().sum(),
    "l2 is missing.": lambda w, l1, l2: l1 * w.abs().sum(),
    "l1 and l2 have changed places.": lambda w, l1, l2: _cost(w, l2, l1),
    "l1 belongs to the absolute values: weights of both signs cancel out.": (
        lambda w, l1, l2: l1 * w.sum() + l2 * w.square().sum()
    ),
    "l2 belongs to the squares; that is the norm, their root.": (
        lambda w, l1, l2: l1 * w.abs().sum() + l2 * w.norm()
    ),
    "l2 belongs to the square of each weight; that squares their sum.": (
        lambda w, l1, l2: l1 * w.abs().sum() + l2 * w.sum() ** 2
    ),
    "these are means; wanted sums over the weights.": (
        lambda w, l1, l2: _cost(w, l1, l2) / w.numel()
    ),
    "half of the squares; wanted all.": lambda w, l1, l2: _cost(w, l1, l2 / 2),
    "the numbers l1 and l2 are missing.": lambda w, l1, l2: _cost(w, 1, 1),
}


def _text(values: Sequence[Tensor]) -> str:
    return as_text(torch.stack([value.detach().double() for value in values]))


def _same(got: Sequence[Tensor], wanted: Sequence[Tensor]) -> bool:
    return len(got) == len(wanted) and all(map(close, got, wanted))


def _judge_gradients(
    penalties: Penalties, model: nn.Sequential, step: str = "Step 1"
) -> None:
    first, _, last = _dense_of(model)
    pairs = zip((first, last), _values(penalties), _wanted_of(model), strict=True)
    for layer, got, wanted in pairs:
        if not close(gradient(got, layer.weight), gradient(wanted, layer.weight)):
            raise NotYet(
                f"{step}: the values are right, but no gradient reaches the weights, "
                "so training would never feel them. Do `.item()`, `float()`, "
                "`.detach()`, `.data` or `torch.no_grad()` stand in your code?"
            )


def _judge_zeros(answer: Callable[..., Any]) -> None:
    """Refuse who takes a 0 for a None."""
    model = _new_model(3.0)
    rules = [{"l1": 0.0, "l2": 0.5}, {"l1": 2.0, "l2": 0.0}, {"l1": 0.0, "l2": 0.0}]
    pairs = zip(_dense_of(model), rules, strict=True)
    wanted = [_cost(layer.weight, **rule) for layer, rule in pairs]
    made = answer(model, [dict(rule) for rule in rules])
    if len(made) != len(wanted):
        raise NotYet(
            f"Step 1: three rules, in which l1, l2 or both are 0, gave {len(made)} "
            "penalties; wanted 3. Only None is free."
        )
    if not _same(_values(made), wanted):
        raise NotYet(
            "Step 1: rules in which l1, l2 or both are 0 give wrong penalties. A 0 is "
            "a number as any other; only None is free."
        )


# Step 2


def _judge_later(
    answer: Callable[..., Any],
    penalties: Penalties,
    model: nn.Sequential,
    rules: list[Any],
) -> None:
    wanted = _wanted_of(model)
    others = [None, {"l1": 3.0, "l2": 4.0}, {"l1": 5.0, "l2": 6.0}]

    def change_rules() -> None:
        rules[0]["l1"], rules[2]["l2"] = 8.0, 16.0
        rules.clear()

    changes = {
        "Step 2: `make_penalties` was called for a second model, and the penalties of "
        "the first have changed. Keep layer and numbers in each object, not in its "
        "class and not in a global variable.": lambda: answer(_new_model(2.0), others),
        "Step 2: after `model.insert(0, nn.Dropout())` the penalties are lost: they "
        "look for their layer by place or name. Keep the layer itself.": (
            lambda: model.insert(0, nn.Dropout())
        ),
        "Step 2: after `model.insert(0, nn.Linear(2, 2))` the penalties are lost: they "
        "count the dense layers at each call. Keep the layer itself.": (
            lambda: model.insert(0, nn.Linear(2, 2).double())
        ),
        "Step 2: the caller has changed `rules`, and the penalties changed with it. "
        "Keep the numbers, not the list or the dictionary.": change_rules,
    }
    require_after(changes, lambda: _still(penalties, wanted))
    del model[0]


def _still(penalties: Penalties, wanted: Sequence[Tensor]) -> bool:
    """Whether the penalties can be computed and are right."""
    try:
        return _same(_values(penalties), wanted)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, NotYet):
        return False


# Step 3


def _judge_pickle(
    answer: Callable[..., Any],
    penalties: Penalties,
    model: nn.Sequential,
    grown: Sequence[Any],
) -> None:
    twin, twins = round_trip((model, penalties), answer)
    try:
        with emptied(grown):
            come_back = _values(twins)
    except (AttributeError, IndexError, KeyError, TypeError, NotYet) as error:
        raise NotYet(
            f"Step 3: a penalty came back from the pickle without its parts ({error}). "
            "A pickle keeps the attributes of an object; those of its class and global "
            "variables it does not."
        ) from error
    if not _same(come_back, _wanted_of(model)):
        raise NotYet(
            f"Step 3: the penalties come back from the pickle as {_text(come_back)}; "
            f"before it was {_text(_wanted_of(model))}."
        )
    _set_weights(twin, 2.0)
    _set_weights(model, 3.0)
    if _still(twins, _wanted_of(model)):
        raise NotYet(
            "Step 3: the penalties that came back look at the first model, and not at "
            "that which came back with them. Keep the layer in the object, and not in "
            "a global variable."
        )
    if not _still(twins, _wanted_of(twin)):
        raise NotYet(
            "Step 3: model and penalties came back from one pickle, but the penalties "
            "do not see that model's weights. Keep the layer itself: what stands in "
            "both is pickled once."
        )
    _judge_gradients(twins, twin, "Step 3, after the pickle")
