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
    require_kind,
    settings_of,
    why_not_without_arguments,
)
from course_lib.lessons.closures.pickled_slips import (
    AFTER,
    BEFORE,
    dense_of,
    new_model,
    right_term,
    slips,
    wanted_of,
)
from course_lib.lessons.closures.pickles import emptied, round_trip, stores_of
from course_lib.lessons.exercises import NotYet

_LIST = "a list of penalties, to be called later"
_WANTED = "l1 * sum |w| + l2 * sum w**2"


def judge(answer: Callable[..., Any]) -> None:
    """Raise NotYet with the first mistake of a function make_penalties."""
    model, rules = new_model(1.0), _rules()
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
    return [dict(BEFORE), None, dict(AFTER)]


def _set_weights(model: nn.Sequential, factor: float) -> None:
    """Give each layer other weights, of both signs, and 9 to all biases."""
    numbers = [[1, -2], [3, -4]], [[5, -6]], [[-7], [8]]
    for layer, weight in zip(dense_of(model), numbers, strict=True):
        with torch.no_grad():
            layer.weight.copy_(factor * torch.tensor(weight, dtype=torch.float64))
            layer.bias.fill_(9.0)


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
    if answer(model, _rules()) is penalties:
        raise NotYet(
            "Step 2: two calls of `make_penalties` returned one list: it is a global "
            "variable or a default argument. Make a new list in each call."
        )
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
    got, wanted = _values(penalties), wanted_of(model)
    if _same(got, wanted):
        if not _same(_values(penalties), wanted):
            raise NotYet(
                "Step 1: the second call gives something else. Does a penalty read a "
                "generator, or change what it keeps?"
            )
        _set_weights(model, 2.0)
        if not _same(_values(penalties), wanted_of(model)):
            raise NotYet(
                "Step 1: the weights have moved since the first call, and the second "
                "gives something else than l1 and l2 of the weights now. Compute in "
                "each call, and keep no result."
            )
        _set_weights(model, 1.0)
        return
    texts = [as_text(torch.stack(list(map(_plain, pair)))) for pair in (got, wanted)]
    numbers = f"The penalties are {texts[0]}; wanted {texts[1]}."
    for name, wrong in slips(model).items():
        if _same(got, wrong):
            raise NotYet(f"Step 1: {name} {numbers}")
    raise NotYet(f"Step 1, {_WANTED} of each layer: {numbers}")


def _plain(value: Tensor) -> Tensor:
    return value.detach().double()


def _same(got: Sequence[Tensor], wanted: Sequence[Tensor]) -> bool:
    return len(got) == len(wanted) and all(map(close, got, wanted))


def _judge_gradients(
    penalties: Sequence[Callable[[], Any]], model: nn.Sequential, step: str = "Step 1"
) -> None:
    first, _, last = dense_of(model)
    pairs = zip((first, last), _values(penalties), wanted_of(model), strict=True)
    for layer, got, wanted in pairs:
        if not close(gradient(got, layer.weight), gradient(wanted, layer.weight)):
            raise NotYet(
                f"{step}: the values are right, but no gradient reaches the weights, "
                "so training would never feel them. Do `.item()`, `float()`, "
                "`.detach()`, `.data` or `torch.no_grad()` stand in your code?"
            )


def _judge_zeros(answer: Callable[..., Any]) -> None:
    """Refuse who takes a 0 for a None."""
    model = new_model(3.0)
    rules = [{"l1": 0.0, "l2": 0.5}, {"l1": 2.0, "l2": 0.0}, {"l1": 0.0, "l2": 0.0}]
    wanted = [right_term(m, r) for m, r in zip(dense_of(model), rules, strict=True)]
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
    penalties: Sequence[Callable[[], Any]],
    model: nn.Sequential,
    rules: list[Any],
) -> None:
    answer(new_model(2.0), [None, {"l1": 3.0, "l2": 4.0}, {"l1": 5.0, "l2": 6.0}])
    if not _still(penalties, wanted_of(model)):
        raise NotYet(
            "Step 2: `make_penalties` was called for a second model, and the penalties "
            "of the first have changed. Keep layer and numbers in each object, not in "
            "its class and not in a global variable."
        )
    model.insert(0, nn.Dropout())
    if not _still(penalties, wanted_of(model)):
        raise NotYet(
            "Step 2: after `model.insert(0, nn.Dropout())` the penalties are lost: "
            "they look for their layer by place or name. Keep the layer itself."
        )
    wanted = wanted_of(model)
    model.insert(0, nn.Linear(2, 2).double())
    if not _still(penalties, wanted):
        raise NotYet(
            "Step 2: after `model.insert(0, nn.Linear(2, 2))` the penalties are lost: "
            "they count the dense layers at each call. Keep the layer itself."
        )
    del model[0]
    rules[0]["l1"], rules[2]["l2"] = 8.0, 16.0
    rules.clear()
    if not _still(penalties, wanted_of(model)):
        raise NotYet(
            "Step 2: the caller has changed `rules`, and the penalties changed with "
            "it. Keep the numbers, not the list or the dictionary."
        )


def _still(penalties: Sequence[Callable[[], Any]], wanted: Sequence[Tensor]) -> bool:
    """Whether the penalties can be computed and are right."""
    try:
        return _same(_values(penalties), wanted)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, NotYet):
        return False


# Step 3


def _judge_pickle(
    answer: Callable[..., Any],
    penalties: Sequence[Callable[[], Any]],
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
    if not _same(come_back, wanted_of(model)):
        raise NotYet(
            f"Step 3: the penalties come back from the pickle as "
            f"{as_text(torch.stack([_plain(v) for v in come_back]))}; before it was "
            f"{as_text(torch.stack([_plain(v) for v in wanted_of(model)]))}."
        )
    _set_weights(twin, 2.0)
    _set_weights(model, 3.0)
    if _still(twins, wanted_of(model)):
        raise NotYet(
            "Step 3: the penalties that came back look at the first model, and not at "
            "that which came back with them. Keep the layer in the object, and not in "
            "a global variable."
        )
    if not _still(twins, wanted_of(twin)):
        raise NotYet(
            "Step 3: model and penalties came back from one pickle, but the penalties "
            "do not see that model's weights. Keep the layer itself: what stands in "
            "both is pickled once."
        )
    _judge_gradients(twins, twin, "Step 3, after the pickle")
