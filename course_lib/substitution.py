"""Other tensors in a module for a while: lent to it, and taken back.

While they are lent, this thread knows of it. So a function that is checkpointed then,
and runs once more in backward, when the module has its own tensors back, finds the lent
ones again; and `course_lib.pure.gradient` can ask which modules were run.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import checkpoint

from course_lib.trees import (
    Tree,
    dotted,
    is_transforming,
    require_dict,
    require_module,
    walk,
)

Tensors = dict[str, Tensor | None]
Loan = tuple[nn.Module, str, Tensors]  # a module; what stands in for which dict


def loans_of(
    model: nn.Module, tree: Tree, kind: str, caller: str = "call"
) -> list[Loan]:
    """Pair each module with its tensors in the tree; complain of names and shapes.

    A module under two names stands there once, with the tensors of its first name.
    """
    what = kind.strip("_")
    require_module(caller, model)
    require_dict(caller, what, tree)
    loans: dict[int, Loan] = {}
    if _pair(model, tree, kind, loans):
        return list(loans.values())
    loans, given = {}, {dotted(path): tensor for path, tensor in walk(tree)}
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, _Scripted):
            raise ValueError(
                f"{caller}: {path or 'the model'!r} is a compiled ScriptModule, which "
                "can't be run with other tensors than its own. Take the module that it "
                "was made from."
            )
        mine: Tensors = {}
        for key, own in getattr(module, kind).items():
            name = f"{path}.{key}" if path else key
            mine[key] = own
            if own is None:
                continue
            if name not in given:
                raise ValueError(
                    f"{caller}: {what} have no {name!r}. {_advice(model, what)}"
                )
            tensor = mine[key] = given.pop(name)
            if not isinstance(tensor, Tensor) or tensor.shape != own.shape:
                got = type(tensor).__name__
                if isinstance(tensor, Tensor):
                    got = f"a tensor of shape {tuple(tensor.shape)}"
                raise ValueError(
                    f"{caller}: {name!r} is {got}; the module wants a tensor of shape "
                    f"{tuple(own.shape)}. {_advice(model, what)}"
                )
        loans.setdefault(id(module), (module, kind, mine))
    if given:
        names = ", ".join(map(repr, given))
        raise ValueError(
            f"{caller}: {what} have {names} too many. {_advice(model, what)}"
        )
    return list(loans.values())


def _pair(module: nn.Module, tree: Tree, kind: str, loans: dict[int, Loan]) -> bool:
    """Fill the loans in one quick walk; False where something does not fit."""
    attributes, used = vars(module), 0
    if isinstance(module, _Scripted):
        return False
    mine = dict(attributes[kind])
    for key, own in mine.items():
        if own is not None:
            tensor = tree.get(key)
            if not isinstance(tensor, Tensor) or tensor.shape != own.shape:
                return False
            mine[key] = tensor
            used += 1
    loans.setdefault(id(module), (module, kind, mine))
    for name, child in attributes["_modules"].items():
        if child is not None:
            subtree = tree.get(name, _EMPTY)
            used += subtree is not _EMPTY
            if not isinstance(subtree, dict) or not _pair(child, subtree, kind, loans):
                return False
    return used == len(tree)


_EMPTY: Tree = {}
_Scripted = torch.jit.ScriptModule


def _advice(model: nn.Module, what: str) -> str:
    return f"Wanted the tree of {what}(model) for this {type(model).__name__}."


def copied(loans: Iterable[Loan]) -> list[Loan]:
    """Give each distinct tensor a copy that a forward pass may write to."""
    copies: dict[int, Tensor | None] = {id(None): None}
    made = []
    for module, kind, tensors in loans:
        for tensor in tensors.values():
            if id(tensor) not in copies:
                copies[id(tensor)] = tensor.clone()
        mine = {key: copies[id(tensor)] for key, tensor in tensors.items()}
        made.append((module, kind, mine))
    return made


# Lending

Attributes = list[tuple[nn.Module, dict[str, Any]]]
Own = tuple[nn.Module, Tensors]  # a module and the parameters that are its own


class _Lending:
    """Which modules have other tensors, inside of which other lending."""

    def __init__(self, modules: list[nn.Module], outer: "_Lending | None") -> None:
        self.modules, self.outer = modules, outer
        self.is_needed = False  # again, after its end
        self.attributes: Attributes | None = None  # those at its end, where needed

    def all(self) -> list["_Lending"]:
        """Return the lendings around this one and itself, the outermost first."""
        return [*(self.outer.all() if self.outer else []), self]


class _Here(threading.local):
    """What is going on in this thread."""

    lending: _Lending | None = None
    own: list[Own] | None = None  # what was replaced since `owners_noted` began


_here = _Here()


@contextmanager
def lent(loans: list[Loan]) -> Iterator[None]:
    """Put the tensors into the modules; then give all attributes back, come what may.

    Forward passes and hooks write attributes, too.
    """
    modules = [module for module, _, _ in loans]
    own = _attributes(modules)
    lending = None if torch.compiler.is_compiling() else _begin(modules, loans)
    try:
        for module, kind, tensors in loans:
            vars(module)[kind] = tensors
        yield
    finally:
        if lending is not None:
            if lending.is_needed:
                lending.attributes = _attributes(dict.fromkeys(modules))
            _here.lending = lending.outer
        _put_back(own)


def _begin(modules: list[nn.Module], loans: list[Loan]) -> _Lending:
    outer = _here.lending
    if _here.own is not None:
        around = {m for each in (outer.all() if outer else ()) for m in each.modules}
        _here.own += [
            (module, vars(module)["_parameters"])
            for module, kind, _ in loans
            if kind == "_parameters" and module not in around
        ]
    _here.lending = _Lending(modules, outer)
    return _here.lending


def _attributes(modules: Iterable[nn.Module]) -> Attributes:
    return [(module, vars(module).copy()) for module in modules]


def _put_back(own: Attributes) -> None:
    for module, before in own:
        attributes = vars(module)
        attributes.clear()
        attributes.update(before)


@contextmanager
def owners_noted() -> Iterator[list[Own]]:
    """Yield a list that gets each module that is lent to, with its own parameters."""
    outer, found = _here.own, []
    _here.own = found
    try:
        yield found
    finally:
        _here.own = outer
        if outer is not None:
            outer += found


# Activation checkpointing


def _again(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function such that, run later, it finds what is lent now."""
    lending = _here.lending
    if lending is None:
        return function
    for each in lending.all():
        each.is_needed = True

    def recompute(*args: Any, **options: Any) -> Any:
        with _lent_again(lending):
            return function(*args, **options)

    return recompute


@contextmanager
def _lent_again(lending: _Lending) -> Iterator[None]:
    """Give the modules what they had at the end of their lendings, unless they have it.

    A recomputation may write to buffers; it gets copies, for the pass itself wrote.
    """
    ended = [each.attributes for each in lending.all() if each.attributes is not None]
    own = _attributes({module: None for each in ended for module, _ in each})
    outer, _here.lending = _here.lending, lending
    try:
        for attributes in ended:
            _put_back(attributes)
            buffers = ((m, "_buffers", each["_buffers"]) for m, each in attributes)
            for module, kind, tensors in copied(buffers):
                vars(module)[kind] = tensors
        yield
    finally:
        _here.lending = outer
        _put_back(own)


def _bind_checkpoints() -> None:
    """Let what torch's two kinds of checkpoint run again pass through `_again`.

    Nothing changes for a function that is checkpointed while no tensor is lent. torch
    offers no hook here: `context_fn` is an argument of the caller's, and the reentrant
    kind has none. See torch/utils/checkpoint.py, `checkpoint`.
    """
    generator = checkpoint._checkpoint_without_reentrant_generator
    reentrant = checkpoint.CheckpointFunction

    @wraps(generator)
    def with_lent(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        if _here.own is not None and is_transforming():
            raise ValueError(
                "with_gradient: the loss uses activation checkpointing, which torch "
                "can't do inside of torch.func's transforms, vmap for one. Switch it "
                "off there."
            )
        return generator(_again(function), *args, **options)

    def apply(kind: type, function: Any, *args: Any) -> Any:
        if _here.own is not None and torch.is_grad_enabled():
            raise ValueError(
                "with_gradient: the loss uses activation checkpointing with "
                "use_reentrant=True, which gives gradients to .backward() only. "
                "Write use_reentrant=False."
            )
        return super(reentrant, kind).apply(_again(function), *args)

    checkpoint._checkpoint_without_reentrant_generator = with_lent
    reentrant.apply = classmethod(apply)


_bind_checkpoints()
