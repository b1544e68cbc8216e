"""The judge of lesson 01's `watch`: hooks that report the children of a model."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from course_lib.lessons.checks import reject, require_kind, settings_of
from course_lib.lessons.exercises import NotYet


class _Step(nn.Module):
    """Takes anything and makes a one; remembers both, and how full `seen` was."""

    seen: Sequence[Any] = ()
    made: Tensor | None = None

    def forward(self, given: object) -> Tensor:
        self.given, self.made, self.before = given, torch.ones(1), len(self.seen)
        return self.made


class _Nested(_Step):
    """Has a child of its own, and runs it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = _Step()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, given: object) -> Tensor:
        made = super().forward(given)
        self.inner(given)
        return made


class _Backwards(nn.Sequential):
    """Runs its children from the last to the first."""

    def forward(self, given: object) -> object:
        for step in reversed(list(self)):
            given = step(given)
        return given


class _Plain(nn.Module):
    """Has two children, one with a child of its own, and is no Sequential."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = _Nested(), _Step()

    def forward(self, given: object) -> Tensor:
        return self.head(self.stem(given))


def judge(answer: Callable[..., Any]) -> None:
    """Raise NotYet with the first mistake of a function watch."""
    one, two = (_list_of(answer, nn.Sequential(_Step())) for _ in range(2))
    if one is two:
        raise NotYet(
            "Two calls of `watch` returned one list: it is a global variable or a "
            "default argument. Make a new list in each call."
        )
    seen = _run_watched(answer, nn.Sequential(_Step(), _Step(), _Step()))
    if seen == ["2", "2", "2"]:
        raise NotYet(
            "Every hook reports the last layer, '2': they share one `name`. Give "
            "each hook its own."
        )
    if seen != ["0", "1", "2"]:
        raise NotYet(f"One forward pass gave {seen}; wanted ['0', '1', '2'].")
    _judge_names(answer)
    _judge_plain(answer)
    _judge_other_hooks(answer)


def _judge_plain(answer: Callable[..., Any]) -> None:
    try:
        seen = _run_watched(answer, _Plain())
    except (TypeError, AttributeError) as error:
        raise NotYet(
            f"A model that is no `nn.Sequential`: {error}. Every module has "
            "`named_children()`."
        ) from error
    if seen != ["stem", "head"]:
        raise NotYet(
            f"A model whose child 'stem' has a child 'inner' of its own gave {seen}; "
            "wanted ['stem', 'head']. Watch all children of `model`, and nothing "
            "inside of them."
        )


def _judge_names(answer: Callable[..., Any]) -> None:
    named = _Backwards(OrderedDict([("late", _Step()), ("early", _Step())]))
    seen = _run_watched(answer, named)
    if seen == ["late", "early"]:
        raise NotYet(
            "In a model that runs its child 'early' before its child 'late', your "
            "list says 'late' first. The model knows the names but not the order: "
            "register a hook on each child."
        )
    if seen == list("earlylate"):
        raise NotYet(
            "`extend` takes a name apart: the list holds letters. Use `append`."
        )
    if seen != ["early", "late"]:
        raise NotYet(
            f"A model with the children 'late' and 'early', which run in the other "
            f"order, gave {seen}. Take the names from `model.named_children()`; a "
            "position is not a name."
        )
    named(torch.ones(1))
    if seen != 2 * ["early", "late"]:
        raise NotYet(
            f"After a second pass the list is {seen}; wanted both names once more at "
            "its end. A hook adds its name each time; nothing sorts or leaves out."
        )


def _judge_other_hooks(answer: Callable[..., Any]) -> None:
    model, calls = nn.Sequential(_Step(), _Step()), []
    model[0].register_forward_hook(lambda *_: calls.append("called"))
    answer(model)
    if not model[1]._forward_hooks:
        raise NotYet(
            "The names are right, but `watch` has put no forward hook on the children. "
            "Register one on each; a hook for all modules would see every model."
        )
    model(torch.ones(1))
    if not calls:
        raise NotYet(
            "A hook that somebody else had registered is gone. Add yours, and leave "
            "the others."
        )


def _list_of(answer: Callable[..., Any], model: nn.Module) -> list[Any]:
    return require_kind(answer(model), list, "the list `seen`", what="`watch`")


def _run_watched(answer: Callable[..., Any], model: nn.Module) -> list[Any]:
    """Let `answer` register its hooks, run the model once, and return `seen`."""
    settings = settings_of(model)
    seen = _list_of(answer, model)
    steps = list(model.children())
    _judge_before_the_run(seen, model, settings)
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
            "on each child, of any class.": not seen,
            "The `forward` of a layer was replaced. Torch calls a hook by itself: use "
            "`register_forward_hook`.": any("forward" in vars(step) for step in steps),
            "The first name was there before its layer had run: that is a pre-hook. "
            "Use `register_forward_hook`.": run[0].before > 0,
        }
    )
    return seen


def _judge_before_the_run(
    seen: list[Any], model: nn.Module, settings: list[Any]
) -> None:
    strange = [part for part in seen if not isinstance(part, str | int)]
    reject(
        {
            "The list is full too early: `watch` has run the model itself. Register "
            "the hooks and return the list; the model runs later.": any(
                seen and step.made is not None for step in model.children()
            ),
            "The list should be empty before the model has run. It holds "
            f"{type(next(iter(strange), '')).__name__}.": bool(strange),
            "The list is full before the model has run: the names were added when "
            "the hooks were made. Add them inside the hook.": bool(seen),
            "You changed the model. Leave its mode (`train`, `eval`) and its "
            "parameters as they are.": settings_of(model) != settings,
        }
    )
