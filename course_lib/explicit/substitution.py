"""Other tensors in place of a module's own, for the time of a pass.

Each thread knows its substitutions. So a function that is checkpointed inside of one,
and recomputed in backward, when the module has its own tensors again, finds the
substituted ones; and `with_gradient` can ask which modules were run.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.jit import ScriptModule
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
Substitution = tuple[nn.Module, str, Tensors]  # a module; the new dict of that name
_EMPTY: Tree = {}


def substitutions_for(
    model: nn.Module, tree: Tree, kind: str, caller: str = "call"
) -> list[Substitution]:
    """Pair each module with its tensors in the tree; check names and shapes.

    A module under two names is in the list once, with the tensors of its first name.
    """
    name = kind.strip("_")
    require_module(caller, model)
    require_dict(caller, name, tree)
    found: dict[int, Substitution] = {}
    if _match(model, tree, kind, found):
        return list(found.values())
    found, given = {}, {dotted(path): tensor for path, tensor in walk(tree)}
    advice = f"Wanted the tree of {name}(model) for this {type(model).__name__}."
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, ScriptModule):
            raise ValueError(
                f"{caller}: {path or 'the model'!r} is a compiled ScriptModule, which "
                "can't be run with other tensors than its own. Take the module that it "
                "was made from."
            )
        new = dict(getattr(module, kind))
        for key, own in new.items():
            if own is not None:
                full = f"{path}.{key}" if path else key
                if full not in given:
                    raise ValueError(f"{caller}: {name} have no {full!r}. {advice}")
                new[key] = given.pop(full)
                _require_shape(caller, full, new[key], own, advice)
        found.setdefault(id(module), (module, kind, new))
    if given:
        extra = ", ".join(map(repr, given))
        raise ValueError(f"{caller}: {name} have {extra} too many. {advice}")
    return list(found.values())


def _require_shape(
    caller: str, name: str, tensor: Any, own: Tensor, advice: str
) -> None:
    if isinstance(tensor, Tensor) and tensor.shape == own.shape:
        return
    got = type(tensor).__name__
    if isinstance(tensor, Tensor):
        got = f"a tensor of shape {tuple(tensor.shape)}"
    raise ValueError(
        f"{caller}: {name!r} is {got}; the module wants a tensor of shape "
        f"{tuple(own.shape)}. {advice}"
    )


def _match(
    module: nn.Module, tree: Tree, kind: str, found: dict[int, Substitution]
) -> bool:
    """Fill `found` in one quick walk; False where something does not fit."""
    attributes, used = vars(module), 0
    if isinstance(module, ScriptModule):
        return False
    new = dict(attributes[kind])
    for key, own in new.items():
        if own is not None:
            tensor = tree.get(key)
            if not isinstance(tensor, Tensor) or tensor.shape != own.shape:
                return False
            new[key] = tensor
            used += 1
    found.setdefault(id(module), (module, kind, new))
    for name, child in attributes["_modules"].items():
        if child is not None:
            subtree = tree.get(name, _EMPTY)
            used += subtree is not _EMPTY
            if not isinstance(subtree, dict) or not _match(child, subtree, kind, found):
                return False
    return used == len(tree)


def copied(substitutions: Iterable[Substitution]) -> list[Substitution]:
    """Give each distinct tensor a copy that a forward pass may write to."""
    copies: dict[int, Tensor | None] = {id(None): None}
    result = []
    for module, kind, tensors in substitutions:
        for tensor in tensors.values():
            if id(tensor) not in copies:
                copies[id(tensor)] = tensor.clone()
        new = {key: copies[id(tensor)] for key, tensor in tensors.items()}
        result.append((module, kind, new))
    return result


# Scopes

Attributes = list[tuple[nn.Module, dict[str, Any]]]
Originals = tuple[nn.Module, Tensors]  # a module and its own parameters


@dataclass
class _Scope:
    """A block in which modules have substituted tensors."""

    modules: list[nn.Module]
    is_recomputed: bool = False  # in a backward pass, after its end
    attributes: Attributes | None = None  # those at its end, for recomputation


class _ThreadState(threading.local):
    scopes: tuple[_Scope, ...] = ()  # the outermost first
    originals: list[Originals] | None = None  # where `recorded_originals` is open


_thread = _ThreadState()


@contextmanager
def substituted(substitutions: list[Substitution]) -> Iterator[None]:
    """Put the tensors into the modules; at the end restore all attributes.

    Forward passes and hooks write attributes, too.
    """
    modules = [module for module, _, _ in substitutions]
    before = _attributes(modules)
    scope = None if torch.compiler.is_compiling() else _enter(modules, substitutions)
    try:
        for module, kind, tensors in substitutions:
            vars(module)[kind] = tensors
        yield
    finally:
        if scope is not None:
            if scope.is_recomputed:
                scope.attributes = _attributes(dict.fromkeys(modules))
            _thread.scopes = _thread.scopes[:-1]
        _restore(before)


def _enter(modules: list[nn.Module], substitutions: list[Substitution]) -> _Scope:
    if _thread.originals is not None:
        known = {module for scope in _thread.scopes for module in scope.modules}
        _thread.originals += [
            (module, vars(module)["_parameters"])
            for module, kind, _ in substitutions
            if kind == "_parameters" and module not in known
        ]
    scope = _Scope(modules)
    _thread.scopes += (scope,)
    return scope


def _attributes(modules: Iterable[nn.Module]) -> Attributes:
    return [(module, vars(module).copy()) for module in modules]


def _restore(saved: Attributes) -> None:
    for module, before in saved:
        attributes = vars(module)
        attributes.clear()
        attributes.update(before)


@contextmanager
def recorded_originals() -> Iterator[list[Originals]]:
    """Yield a list that gets each module with substituted parameters, and its own."""
    outer, found = _thread.originals, []
    _thread.originals = found
    try:
        yield found
    finally:
        _thread.originals = outer
        if outer is not None:
            outer += found


# Activation checkpointing


def _in_these_scopes(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function such that, called later, it runs in the present scopes."""
    scopes = _thread.scopes
    if not scopes:
        return function
    for scope in scopes:
        scope.is_recomputed = True

    def recompute(*args: Any, **options: Any) -> Any:
        with _reentered(scopes):
            return function(*args, **options)

    return recompute


@contextmanager
def _reentered(scopes: tuple[_Scope, ...]) -> Iterator[None]:
    """Give the modules the attributes that they had at the end of their scopes.

    A recomputation may write to buffers; it gets copies, because the pass itself wrote.
    """
    ended = [scope.attributes for scope in scopes if scope.attributes is not None]
    before = _attributes({module: None for each in ended for module, _ in each})
    outer, _thread.scopes = _thread.scopes, scopes
    try:
        for attributes in ended:
            _restore(attributes)
            buffers = ((m, "_buffers", each["_buffers"]) for m, each in attributes)
            for module, kind, tensors in copied(buffers):
                vars(module)[kind] = tensors
        yield
    finally:
        _thread.scopes = outer
        _restore(before)


def _patch_checkpoints() -> None:
    """Let both kinds of torch's checkpoints recompute in the scope of their pass.

    Nothing changes for a function that is checkpointed outside of a scope. torch has
    no hook for this: `context_fn` is an argument of its caller, and the reentrant kind
    has none. See `checkpoint` and `CheckpointFunction` in
    https://github.com/pytorch/pytorch/blob/v2.9.0/torch/utils/checkpoint.py.
    """
    generator = checkpoint._checkpoint_without_reentrant_generator
    reentrant = checkpoint.CheckpointFunction

    @wraps(generator)
    def in_scope(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        if _thread.originals is not None and is_transforming():
            raise ValueError(
                "with_gradient: the loss uses activation checkpointing, which torch "
                "can't do inside of torch.func's transforms, vmap for one. Switch it "
                "off there."
            )
        return generator(_in_these_scopes(function), *args, **options)

    def apply(kind: type, function: Any, *args: Any) -> Any:
        if _thread.originals is not None and torch.is_grad_enabled():
            raise ValueError(
                "with_gradient: the loss uses activation checkpointing with "
                "use_reentrant=True, which gives gradients to .backward() only. "
                "Write use_reentrant=False."
            )
        return super(reentrant, kind).apply(_in_these_scopes(function), *args)

    checkpoint._checkpoint_without_reentrant_generator = in_scope
    reentrant.apply = classmethod(apply)


_patch_checkpoints()
