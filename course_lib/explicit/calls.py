"""A module as a pure function of its parameters.

torch.func has the same; here a module under two names stays whole, and buffers are
never written without the caller's knowledge.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from course_lib.explicit.substitution import (
    Substitution,
    copied,
    substituted,
    substitutions_for,
)
from course_lib.trees import Tree, insert, mark_frozen, require_module


def parameters(model: nn.Module) -> Tree:
    """Return a copy of the model's parameters as a tree; tied ones are one tensor.

    The copy of a parameter that the model froze, with `requires_grad_(False)`, is
    marked: `setup` gives it a frozen state, which `thaw` frees, and `destructure`
    leaves it out of the vector. It has a gradient all the same; the state says which
    tensors take a step. What is computed from such a copy, `.to(device)` too, has no
    mark: move the model first, or `freeze` the state.
    """
    require_module("parameters", model)
    return _copy(model.named_parameters(remove_duplicate=False), is_marking=True)


def buffers(model: nn.Module) -> Tree:
    """Return a copy of the model's buffers as a tree, for example running means."""
    require_module("buffers", model)
    return _copy(model.named_buffers(remove_duplicate=False))


def _copy(named: Iterable[tuple[str, Tensor]], *, is_marking: bool = False) -> Tree:
    tree: Tree = {}
    copies: dict[int, Tensor] = {}
    for name, tensor in named:
        if id(tensor) not in copies:
            copies[id(tensor)] = tensor.detach().clone()
            if is_marking and not tensor.requires_grad:
                mark_frozen(copies[id(tensor)])
        insert(tree, name, copies[id(tensor)])
    return tree


def call(
    model: nn.Module,
    params: Tree,
    /,
    *inputs: Any,
    buffers: Tree | None = None,
    **options: Any,
) -> Any:
    """Return model(*inputs) with these parameters; the module is unchanged.

    Args:
        model: gives the architecture and the mode (train or eval), no numbers.
        params: every parameter of the model, as `parameters(model)`.
        *inputs: the module's arguments. Threads must not share a module.
        **options: its arguments by name.
        buffers: every buffer. Then (output, new buffers) is returned, and the tree
            itself is not changed. Without it the module's own buffers are read, and
            what the forward pass would write to them is dropped. Where the module's
            forward has an argument of that name, pass it by position, or use
            `substitute`.

    Activation checkpointing (torch.utils.checkpoint) finds these parameters again in
    backward; within `gradient` only with use_reentrant=False.

    Raises:
        ValueError: keys that are missing or too many, or wrong shapes; with names.
    """
    substitutions = substitutions_for(model, params, "_parameters")
    if buffers is not None:
        substitutions += copied(substitutions_for(model, buffers, "_buffers"))
    else:
        substitutions += _copied_buffers(substitutions)
    with substituted(substitutions):
        output = model(*inputs, **options)
        if buffers is None:
            return output
        new: Tree = {}
        for name, tensor in model.named_buffers(remove_duplicate=False):
            insert(new, name, tensor.detach())
        return output, new


@contextmanager
def substitute(model: nn.Module, params: Tree) -> Iterator[nn.Module]:
    """Put these parameters into the module inside the block, as `call` does for a pass.

    For functions that take the module itself, such as a penalty. Yields the model.
    Afterwards the module is as before; what was written to its buffers is dropped.

    Raises:
        ValueError: keys that are missing or too many, or wrong shapes; with names.

    >>> from course_lib.explicit import gradient
    >>> from course_lib.regularization import L1L2, penalty, regularize
    >>> model = regularize(nn.Linear(2, 1, bias=False), weight=L1L2(l2=1.0))
    >>> def loss(p):
    ...     with substitute(model, p):
    ...         return model(torch.zeros(1, 2)).sum() + penalty(model)
    >>> gradient(loss, {"weight": torch.tensor([[3.0, 4.0]])})
    {'weight': tensor([[6., 8.]])}
    """
    substitutions = substitutions_for(model, params, "_parameters", "substitute")
    substitutions += _copied_buffers(substitutions)
    with substituted(substitutions):
        yield model


def _copied_buffers(substitutions: list[Substitution]) -> list[Substitution]:
    modules = [module for module, _, _ in substitutions]
    return copied((m, "_buffers", m._buffers) for m in modules if m._buffers)


@torch.no_grad()
def store(model: nn.Module, params: Tree, buffers: Tree | None = None) -> None:
    """Copy trees back into the module, all or nothing.

    Raises:
        ValueError: names or shapes do not fit, or a number can't be cast to the
            module's dtype.
    """
    substitutions = substitutions_for(model, params, "_parameters", "store")
    if buffers is not None:
        substitutions += substitutions_for(model, buffers, "_buffers", "store")
    pairs = [
        (key, getattr(module, kind)[key], tensor)
        for module, kind, tensors in substitutions
        for key, tensor in tensors.items()
        if tensor is not None
    ]
    for key, target, tensor in pairs:
        if tensor.is_meta or not torch.can_cast(tensor.dtype, target.dtype):
            raise ValueError(
                f"store: {key!r} is {tensor.dtype} on {tensor.device}; the module "
                f"wants numbers that fit into {target.dtype}."
            )
    for _, target, tensor in pairs:
        target.copy_(tensor)
