"""What the checks of all lessons say alike: about kinds, numbers and gradients.

Each function raises `NotYet` with the name of a mistake, or returns.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from course_lib.lessons.exercises import NotYet

Mistakes = Mapping[str, Any]  # the name of a mistake, and what it gives


def reject(mistakes: Mapping[str, bool]) -> None:
    """Name the first mistake that was made.

    >>> reject({"That is a sum.": False, "That is a mean.": True})
    Traceback (most recent call last):
    ...
    course_lib.lessons.exercises.NotYet: That is a mean.
    """
    for name, was_made in mistakes.items():
        if was_made:
            raise NotYet(name)


def require_written(value: Any) -> None:
    """Refuse the `...` that a starter returns."""
    if value is ...:
        raise NotYet("There is still a `...` in your code. Replace it with your own.")


def require_kind(
    got: Any,
    kind: Any,
    wanted: str,
    *,
    what: str = "Your function",
    verb: str = "returned",
) -> Any:
    """Return the answer if it is of this kind; a part of it has the verb "is"."""
    require_written(got)
    if got is None:
        hint = " Is a `return` missing?" if verb == "returned" else ""
        raise NotYet(f"{what} {verb} None; wanted {wanted}.{hint}")
    is_stray_bool = isinstance(got, bool) and kind not in (bool, object)
    if is_stray_bool or not isinstance(got, kind):
        raise NotYet(f"{what} {verb} {type(got).__name__}; wanted {wanted}.")
    return got


def require_unchanged(
    given: Sequence[Tensor], before: Sequence[Tensor], name: str
) -> None:
    """Refuse a function that has changed the tensors that it was given."""
    if not all(map(torch.equal, given, before)):
        raise NotYet(
            f"You changed {name}. Make new tensors: no `+=`, `-=` or `*=`, and no "
            "methods that end in `_`."
        )


def require_dtype_of(
    given: Tensor, got: Tensor, what: str, *, or_wider: bool = False
) -> None:
    """Refuse another dtype than that of the tensor that was given."""
    is_wider = torch.promote_types(got.dtype, given.dtype) == got.dtype
    if got.dtype != given.dtype and not (or_wider and is_wider):
        raise NotYet(
            f"{what} is of {got.dtype}; wanted {given.dtype}, as what you were given. "
            "Compute with these tensors themselves."
        )


def require_parameters(model: nn.Module, *given: nn.Module) -> None:
    """Refuse a module that does not train exactly the modules that it was given."""
    given_parameters = [p for part in given for p in part.parameters()]
    found = {id(parameter) for parameter in model.parameters()}
    wanted = {id(parameter) for parameter in given_parameters}
    reject(
        {
            "The module has no parameters: an optimizer would train nothing, and "
            "`state_dict` is empty. After `super().__init__()`, set what it was given "
            "as attributes; a list, a dict or a lambda hides a module.": not found,
            f"The module has {len(found)} parameters, {len(wanted)} were given: it has "
            "copies, or weights of its own. Copies start equal and differ after the "
            "first step, and a penalty counts each. Call the same module twice.": (
                len(found) > len(wanted)
            ),
            "The module does not train the parameters that it was given. Use the "
            "modules themselves, not copies, and all of them.": found != wanted,
            "Your code has frozen the weights that it was given: `requires_grad` is "
            "False, and nothing trains them.": (
                not all(p.requires_grad for p in given_parameters)
            ),
        }
    )


def why_not_without_arguments(function: Callable[..., Any]) -> str:
    """Return why a call without arguments would fail; nothing where it would not.

    >>> why_not_without_arguments(lambda x: x)
    "missing a required argument: 'x'"
    """
    try:
        inspect.signature(function).bind()
    except TypeError as error:
        return str(error)
    except ValueError:  # what is written in C may tell nothing
        pass
    return ""


def settings_of(model: nn.Module) -> list[Any]:
    """Return what a function that only looks at a model leaves as it is.

    >>> before = settings_of(nn.Linear(1, 1))
    >>> before == settings_of(nn.Linear(1, 1).eval())
    False
    """
    modes = [module.training for module in model.modules()]
    return modes + [(p.dtype, p.requires_grad) for p in model.parameters()]


def close(got: Any, wanted: Tensor | float, *, within: float = 1e-5) -> bool:
    """Tell whether the answer has the wanted shape and numbers.

    >>> half = torch.tensor(0.5)
    >>> close(half.double(), half), close(half[None], half), close(0.5, 0.5)
    (True, False, True)
    """
    if not isinstance(got, Tensor | Real):
        return False
    got, wanted = _as_tensor(got), torch.as_tensor(wanted)
    return got.shape == wanted.shape and torch.allclose(
        got.detach().double(), wanted.detach().double(), rtol=within, atol=within
    )


def _as_tensor(value: Tensor | Real) -> Tensor:
    is_plain = isinstance(value, Tensor | int | float)
    return torch.as_tensor(value if is_plain else float(value))


def as_text(value: Any) -> str:
    """Return a number, or the first seven.

    >>> as_text(torch.tensor(2 / 3)), as_text(torch.arange(9.0))
    ('0.667', '[0, 1, 2, 3, 4, 5, 6, ...]')
    """
    value = _as_tensor(value)
    numbers = [number + 0.0 for number in value.flatten().tolist()]
    texts = [f"{n:.3g}" if abs(n) < 1000 else f"{n:g}" for n in numbers[:7]]
    if value.dim() == 0:
        return texts[0]
    shape = f" of shape {tuple(value.shape)}" if value.dim() > 1 else ""
    return f"[{', '.join(texts)}{', ...' * (len(numbers) > 7)}]{shape}"


def require_close(
    got: Any,
    wanted: Any,
    place: str,
    mistakes: Mistakes,
    *,
    same: Callable[[Any, Any], bool] = close,
    text: Callable[[Any], str] = as_text,
    what: str = "Your function",
    verb: str = "returned",
) -> None:
    """Accept the wanted numbers; name the mistake that gives the ones we got."""
    if isinstance(wanted, Tensor):
        require_kind(got, Tensor, "a tensor", what=what, verb=verb)
    else:
        require_kind(got, Real | Tensor, "a number", what=what, verb=verb)
    if same(got, wanted):
        return
    numbers = f"{place}: got {text(got)}, wanted {text(wanted)}."
    if text(got) == text(wanted) and close(got, wanted, within=0.01):
        numbers = f"{place}: got nearly {text(wanted)}, but not to five digits."
    for name, wrong in mistakes.items():
        if same(got, wrong):
            raise NotYet(f"{name}. {numbers}")
    if _differs_in_shape(got, wanted):
        raise NotYet(
            f"{place}: the numbers are right, but not their shape. Got "
            f"{tuple(got.shape)}, wanted {tuple(wanted.shape)}."
        )
    raise NotYet(numbers)


def _differs_in_shape(got: Any, wanted: Any) -> bool:
    if not (isinstance(got, Tensor) and isinstance(wanted, Tensor)):
        return False
    return got.shape != wanted.shape and close(got.flatten(), wanted.flatten())


def require_scalar(got: Any, wanted: float, place: str, mistakes: Mistakes) -> None:
    """Compare one number, which must be a tensor: a Python number has no gradient."""
    if isinstance(got, int | float):
        raise NotYet(
            f"{place}: got a Python number. It has the value but no gradient; return "
            "the tensor itself, without `.item()` or `float()`."
        )
    require_kind(got, Tensor, "a tensor")
    if got.numel() != 1:
        raise NotYet(
            f"{place}: got a tensor of shape {tuple(got.shape)}; wanted one number. Is "
            "a `sum()` missing?"
        )
    require_close(got.reshape(()), wanted, place, mistakes)


def gradient(value: Tensor, of: Tensor) -> Tensor | None:
    """Return the gradient of `value` by `of`, None where there is none."""
    if not (value.requires_grad and of.requires_grad):
        return None
    try:
        return torch.autograd.grad(value, of, allow_unused=True, retain_graph=True)[0]
    except RuntimeError as error:
        for words, name in _SPOILED.items():
            if words in str(error):
                raise NotYet(f"The value is right, but {name}.") from error
        raise


_SPOILED = {
    "backward through the graph a second time": (
        "your code has called `backward` already, and the graph is gone. Return the "
        "loss; who trains goes back through it"
    ),
    "modified by an inplace operation": (
        "no gradient can be computed: a tensor that the way back needs was changed in "
        "place. Make new tensors: no `+=`, and no methods that end in `_`"
    ),
}


def require_gradient(value: Tensor, of: Tensor, wanted: Tensor, name: str) -> None:
    """Refuse a right value that does not train `of`, whose name is given."""
    if not close(gradient(value, of), wanted):
        raise NotYet(
            f"The value is right, but its gradient does not reach {name}. Do "
            "`.item()`, `float()`, `.detach()`, `.data` or `torch.no_grad()` stand in "
            "your code?"
        )


def require_after(
    changes: Mapping[str, Callable[[], object]], is_right: Callable[[], bool]
) -> None:
    """Make one change after the other; name the first that the answer can't bear."""
    for name, change in changes.items():
        change()
        if not is_right():
            raise NotYet(name)


def require_parts(
    got: Any, number: int, wanted: str, *, what: str = "Your function"
) -> Any:
    """Return the answer if it is a tuple or a list of so many things."""
    require_kind(got, tuple | list, wanted, what=what)
    if len(got) != number:
        raise NotYet(f"{what} returned {len(got)} things; wanted {wanted}.")
    return got


def name_mistake(
    got: Any, mistakes: Mistakes, *, same: Callable[[Any, Any], bool] = close
) -> None:
    """Name the first mistake that gives what we got.

    >>> name_mistake(3.0, {"That is a mean": 2.0, "That is a sum": 3.0})
    Traceback (most recent call last):
    ...
    course_lib.lessons.exercises.NotYet: That is a sum.
    """
    reject({f"{name}.": same(got, wrong) for name, wrong in mistakes.items()})
