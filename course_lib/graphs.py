"""Whether a step is part of something that is differentiated, as in meta-learning.

A step asks at each call: recording costs time and memory, and a loop that trains must
not tie each step to all the steps before.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import (
    TransformType,
    get_interpreter_stack,
    get_unwrapped,
)
from torch.utils import _pytree as pytree

from course_lib.counts import Count
from course_lib.pure import is_in_gradient
from course_lib.trees import is_forward, is_tracked, is_transformed, is_transforming

Tensors = list[Tensor]
_DERIVATIVES = TransformType.Grad, TransformType.Jvp


def is_recorded(x: Tensor) -> bool:
    """Tell whether derivatives with respect to the array x go on through a step of it.

    They do where x was computed from what requires a gradient, and inside `gradient`
    and torch.func. A leaf that requires one, such as an nn.Parameter, is what a program
    trains as a rule: it is stepped without a graph, as torch.optim does.
    """
    if is_in_derivative():
        return True
    return torch.is_grad_enabled() and _is_attached(x)


def is_any_recorded(xs: Tensors, states: Sequence[Any], gs: Tensors) -> bool:
    """Tell whether a step of these arrays is differentiated."""
    if is_in_derivative():
        return True
    if not torch.is_grad_enabled():
        return False
    if is_transforming():  # vmap's own tensors don't tell
        tensors = pytree.tree_leaves([states, gs])
        return any(map(is_tracked, tensors)) or any(map(_is_attached, xs))
    if torch._C._any_requires_grad(gs) or _any_requires_grad(states):
        return True
    return torch._C._any_requires_grad(xs) and any(map(_is_attached, xs))


def is_in_derivative() -> bool:
    """Tell whether we are inside `gradient`, torch.func.grad or a forward mode."""
    if is_forward():
        return True
    if not is_transforming():
        return is_in_gradient() and torch.is_grad_enabled()
    return any(each.key() in _DERIVATIVES for each in get_interpreter_stack())


def _is_attached(x: Tensor) -> bool:
    while not x.requires_grad and is_transformed(x):
        x = get_unwrapped(x)
    return x.requires_grad and not x.is_leaf


def _any_requires_grad(states: Sequence[Any]) -> bool:
    """Look at all states at once, for there may be thousands."""
    parts: list[Any] = []
    for state in states:
        if type(state) is tuple:
            parts += state
        else:
            parts.append(state)
    tensors = [part for part in parts if type(part) is Tensor]
    others = [p for p in parts if type(p) is not Tensor and type(p) is not Count]
    if others:  # tuples in tuples, for one
        others = [
            part for part in pytree.tree_leaves(others) if isinstance(part, Tensor)
        ]
    return torch._C._any_requires_grad(tensors + others)
