"""The larger exercise of lesson 07: a rule around a rule, judged step by step."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from course_lib.explicit import adjust, setup, update
from course_lib.lessons.checks import (
    close,
    name_mistake,
    reject,
    require_dtype_of,
    require_kind,
    require_parts,
    require_unchanged,
)
from course_lib.lessons.exercises import NotYet
from course_lib.lessons.rules.careful_slips import (
    ETA,
    GRADIENTS,
    RHO,
    SLIPS,
    WARMUP,
    Slip,
    X,
    walk,
)
from course_lib.rules import (
    AccumulateGradients,
    Adam,
    Chain,
    ClipGrad,
    Momentum,
    WeightDecay,
)


def judge_careful(answer: Any) -> None:
    """Judge the class `Careful(rule, warmup)`, from its form to a chain in a tree."""
    first = _form, _start, _steps, _purity, _whole_rest
    for step in (*first, _resting, _any_rule, _dtype, _chain, _adjust):
        step(answer)


def _form(answer: Any) -> None:
    if not isinstance(answer, type):
        kind = type(answer).__name__
        raise NotYet(f"`Careful` is {kind}; wanted the class itself.")
    for name in ("init", "apply"):
        if not hasattr(answer, name):
            raise NotYet(f"`Careful` has no `{name}`. A rule is two functions.")
    if not is_dataclass(answer):
        raise NotYet(
            "`Careful` is no dataclass, so `adjust` can't see what is in it. Write "
            "`@dataclass(frozen=True)` above the class."
        )
    names = [field.name for field in fields(answer)]
    if "rule" not in names:
        raise NotYet(
            f"The fields of `Careful` are {', '.join(names) or 'none'}. The inner rule "
            "should be the field `rule`: there `adjust` looks for it. A field needs a "
            "type: `rule: object`."
        )
    rule = _made(answer)
    try:
        hash(rule)
    except TypeError:
        raise NotYet(
            "`Careful` has no hash, by which `update` gathers the arrays of a rule. "
            "Write `@dataclass(frozen=True)`: what can't change has one."
        ) from None


def _made(answer: Any, rule: Any = None, warmup: int = WARMUP) -> Any:
    """Return the answer's rule around an inner rule, by default momentum."""
    rule = Momentum(ETA, RHO) if rule is None else rule
    try:
        made = answer(rule, warmup)
    except TypeError as error:
        raise NotYet(
            f"`Careful(Momentum(), 4)` raised: {error}. The fields are `rule`, then "
            "`warmup`."
        ) from None
    if getattr(made, "rule", None) is not rule:
        raise NotYet(
            "After `Careful(rule, warmup)` the field `rule` is another thing. The "
            "fields are `rule`, then `warmup`, in this order."
        )
    return made


@dataclass(frozen=True)
class _Remembering:
    """A rule whose first memory is not zero."""

    def init(self, x: Tensor) -> Tensor:
        return 3 * x

    def apply(self, m: Tensor, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        return m + g, ETA * g


def _start(answer: Any) -> None:
    got = _made(answer, _Remembering()).init(X.clone())
    wanted = "the pair (memory of the inner rule, 0)"
    require_kind(got, tuple | list | Tensor, wanted, what="`init`")
    reject(
        {
            "`init` returns the inner memory alone; wanted the pair (memory, 0).": (
                close(got, 3 * X)
            ),
            f"`init` returned a tensor; wanted {wanted}.": isinstance(got, Tensor),
        }
    )
    require_parts(got, 2, wanted, what="`init`")
    reject(
        {
            "`init` has the pair in the other order: memory first, then the count.": (
                close(got[1], 3 * X)
            ),
            "The first memory is not the inner rule's: ask `self.rule.init(x)`.": (
                not close(got[0], 3 * X)
            ),
        }
    )
    _require_count(got[1], 0, "`init`")


def _require_count(got: Any, wanted: int, place: str) -> None:
    try:
        number = float(got)
    except (TypeError, ValueError):
        kind = type(got).__name__
        raise NotYet(
            f"{place}: the second of the pair is {kind}; wanted the count of steps."
        ) from None
    if number != wanted:
        raise NotYet(f"{place}: the count is {number:g}; wanted {wanted}.")


def _applied(rule: Any, state: Any, x: Tensor, g: Tensor) -> tuple[Any, Any]:
    """Call `apply`, and refuse what is no (state, dx)."""
    given = x.clone(), g.clone()
    try:
        got = rule.apply(state, *given)
    except (AttributeError, TypeError) as error:
        if "cannot assign to field" not in str(error):
            raise
        raise NotYet(
            f"Your rule wrote to itself: {error}. One rule serves all arrays; what "
            "it remembers of one goes into the state that `apply` returns."
        ) from None
    require_unchanged(given, (x, g), "x or g")
    wanted = "(state, dx), where the state is a pair again"
    if isinstance(got, tuple | list) and len(got) == 3:
        raise NotYet("`apply` returned 3 things. The state is *one* pair: (memory, t).")
    new, dx = require_parts(got, 2, wanted, what="`apply`")
    if isinstance(dx, tuple | list):
        raise NotYet("`apply` has them in the other order: the state first, then dx.")
    if not isinstance(new, tuple | list) or len(new) != 2:
        raise NotYet(
            f"The state that `apply` returned is {type(new).__name__}; wanted the pair "
            "(memory of the inner rule, count), as `init` gives it."
        )
    return new, dx


def _steps(answer: Any) -> None:
    rule = _made(answer)
    state, got, counts = rule.init(X), [], []
    for g in GRADIENTS:
        state, dx = _applied(rule, state, X, g)
        require_kind(dx, Tensor, "a tensor", what="dx", verb="is")
        if dx.shape != X.shape:
            raise NotYet(f"dx has shape {tuple(dx.shape)}; wanted {tuple(X.shape)}.")
        got.append(dx.clone())
        counts.append(state[1])
    wanted = walk(Slip(), GRADIENTS)
    if not _same(got, wanted):
        slips = {text: walk(slip, GRADIENTS) for text, slip in SLIPS.items()}
        name_mistake(got, slips, same=_same)
        step = next(i for i in range(len(got)) if not close(got[i], wanted[i]))
        raise NotYet(
            f"With Momentum({ETA}, {RHO}) inside and warmup {WARMUP}, step {step + 1} "
            f"has dx = {_text(got[step])}; wanted {_text(wanted[step])}. Before that "
            "all is right."
        )
    for number, count in enumerate(counts, start=1):
        _require_count(count, number, f"After step {number}")


def _same(got: Sequence[Any], wanted: Sequence[Tensor]) -> bool:
    return all(map(close, got, wanted))


def _text(x: Tensor) -> str:
    return str([round(number + 0.0, 4) for number in x.flatten().tolist()])


def _purity(answer: Any) -> None:
    rule = _made(answer)
    first, _ = _applied(rule, rule.init(X), X, GRADIENTS[0])
    memory = first[0].clone()
    once = _applied(rule, first, X, GRADIENTS[1])[1]
    _applied(rule, rule.init(-X), -X, 7 * GRADIENTS[2])  # another array
    again = _applied(rule, first, X, GRADIENTS[1])[1]
    reject(
        {
            "`apply` changed the memory that it was given. Make new tensors.": (
                not close(first[0], memory)
            ),
            "The same state gives two different steps, so something is remembered "
            "outside of it. One rule serves all arrays: keep nothing but settings in "
            "`self` or in the class.": (
                not close(again, once) or not close(once, walk(Slip(), GRADIENTS)[1])
            ),
        }
    )


def _whole_rest(answer: Any) -> None:
    """At the second step all that moves would move uphill."""
    rule, ones = _made(answer), torch.ones_like(X)
    state, _ = _applied(rule, rule.init(X), X, ones)
    state, dx = _applied(rule, state, X, -ETA * ones)
    kind = "a tensor of zeros where each element rests"
    require_kind(dx, Tensor, kind, what="dx", verb="is")
    state, dx = _applied(rule, state, X, ones)
    v = RHO * (RHO * ETA - ETA * ETA) + ETA
    if close(state[1], 2) or not close(dx, 3 / WARMUP * v * ones):
        raise NotYet(
            "A step in which each element rests is a step, too: count it, and keep "
            "the new memory."
        )
    state, _ = _applied(rule, _with_count(state, 9_997), X, ones)
    _require_count(state[1], 10_001, "One step after ten thousand")


def _with_count(state: Any, more: int) -> Any:
    """Return a pair of the same kind, with a count that is larger."""
    pair = state[0], state[1] + more
    return type(state)(*pair) if hasattr(state, "_fields") else type(state)(pair)


@dataclass(frozen=True)
class _Hidden:
    """A rule around a rule, for who asks which class the inner rule is of."""

    rule: Any

    def init(self, x: Tensor) -> Any:
        return self.rule.init(x)

    def apply(self, state: Any, x: Tensor, g: Tensor) -> Any:
        return self.rule.apply(state, x, g)


def _resting(answer: Any) -> None:
    for hide in False, True:
        inner = Chain(AccumulateGradients(2), Momentum(ETA, RHO))
        _judge_resting(_made(answer, _Hidden(inner) if hide else inner))


def _judge_resting(rule: Any) -> None:
    means = GRADIENTS.reshape(3, 2, *X.shape).mean(dim=1)
    wanted = walk(Slip(), means, GRADIENTS[1::2])
    state = rule.init(X)
    for i, g in enumerate(GRADIENTS):
        try:
            state, dx = _applied(rule, state, X, g)
        except (TypeError, AttributeError, RuntimeError) as error:
            raise NotYet(
                "The inner rule gave no step, None, and your code stopped with "
                f"{type(error).__name__}: {str(error).splitlines()[0]}. Pass None on."
            ) from None
        place = f"With AccumulateGradients(2) inside, after gradient {i + 1}"
        if i % 2 == 0:
            reject(
                {
                    "The inner rule gave no step, None, and you made one of it. Rules "
                    "after yours would step, too. Pass None on.": dx is not None,
                    f"{place}: the inner rule gave no step, and you counted one.": (
                        close(state[1], i // 2 + 1)
                    ),
                }
            )
        elif dx is None:
            raise NotYet(
                f"{place}: dx is None; wanted a step. The inner rule remembers, also "
                "when it does not step: return its new memory with the None."
            )
        elif not close(dx, wanted[i // 2]):
            raise NotYet(
                f"{place}: dx is {_text(dx)}; wanted {_text(wanted[i // 2])}, where "
                "only real steps are counted."
            )
        _require_count(state[1], (i + 1) // 2, place)


def _any_rule(answer: Any) -> None:
    """Adam's memory is a tuple; and a warm-up of one step is none."""
    adam = Adam(0.1)
    rule = _made(answer, adam, 1)
    state, memory = rule.init(X), adam.init(X)
    for t, g in enumerate(GRADIENTS, start=1):
        state, dx = _applied(rule, state, X, g)
        memory, inner = adam.apply(memory, X, g)
        whole = inner * (inner * g > 0)
        if not close(dx, whole):
            if close(dx, min(1.0, t / WARMUP) * whole):
                raise NotYet(
                    f"With warmup 1 the warm-up takes {WARMUP} steps, as with warmup "
                    f"{WARMUP}. Ask `self.warmup`."
                )
            raise NotYet(
                "With Adam inside and warmup 1 (no warm-up) the steps are wrong. Does "
                "your code expect the inner rule to be Momentum?"
            )


def _dtype(answer: Any) -> None:
    rule = _made(answer)
    for x, g in (X, GRADIENTS[0]), (X.double(), GRADIENTS[0].double()):
        require_dtype_of(x, _applied(rule, rule.init(x), x, g)[1], "dx")


def _chain(answer: Any) -> None:
    rule = _made(answer)
    chain = Chain(WeightDecay(0.1), rule, ClipGrad(0.1))
    params = {"a": X, "b": {"c": 2 * X[0]}}
    state = setup(chain, params)
    x, v = X, torch.zeros_like(X)
    for t, g in enumerate(GRADIENTS, start=1):
        state, params = update(state, params, {"a": g, "b": {"c": -g[0]}})
        decayed = g + 0.1 * x
        v = RHO * v + ETA * decayed
        step = min(1.0, t / WARMUP) * v * (v * decayed > 0)
        x = x - step.clamp(-0.1, 0.1)
        if not close(params["a"], x):
            raise NotYet(
                "In Chain(WeightDecay(0.1), Careful(...), ClipGrad(0.1)), in a tree of "
                f"two arrays, step {t} leads to {_text(params['a'])}; wanted "
                f"{_text(x)}. The gradient of your rule is the g that it is given."
            )


def _adjust(answer: Any) -> None:
    params = {"x": X}
    rule = _made(answer, warmup=1)
    state, params = update(setup(rule, params), params, {"x": GRADIENTS[0]})
    state = adjust(state, 3 * ETA)
    _, moved = update(state, params, {"x": GRADIENTS[0]})
    v = RHO * ETA * GRADIENTS[0] + 3 * ETA * GRADIENTS[0]
    if not close(params["x"] - moved["x"], v):
        raise NotYet(
            "After `adjust(state, 0.3)` the step is not that of the new eta. Ask "
            "`self.rule` in `apply`; nothing else knows the new settings."
        )
