"""Whether a step is part of a graph that is differentiated, as in meta-learning.

Each step asks: recording costs time and memory, and in a training loop no step may
hold the graphs of all the steps before.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType, get_interpreter_stack
from torch.utils import _pytree as pytree

from course_lib.explicit.gradients import is_in_gradient
from course_lib.rules.counts import Count
from course_lib.trees import is_attached, is_forward, is_tracked, is_transforming

Tensors = list[Tensor]
_DERIVATIVES = TransformType.Grad, TransformType.Jvp


def is_recorded(states: Sequence[Any], xs: Tensors, gs: Tensors) -> bool:
    """Tell whether a step of these arrays is differentiated.

    It is where an x was computed from what requires a gradient, where states or
    gradients require one, and inside `gradient` and torch.func. A leaf x that requires
    one, such as an nn.Parameter, is usually trained: it is stepped without a graph, as
    torch.optim does.
    """
    if _is_in_derivative():
        return True
    if not torch.is_grad_enabled():
        return False
    if is_transforming():  # vmap's tensors don't say it themselves
        tensors = pytree.tree_leaves([states, gs])
        return any(map(is_tracked, tensors)) or any(map(is_attached, xs))
    if torch._C._any_requires_grad(gs) or _any_requires_grad(states):
        return True
    return torch._C._any_requires_grad(xs) and any(map(is_attached, xs))


def _is_in_derivative() -> bool:
    """Tell whether we are inside `gradient`, torch.func.grad or a forward mode."""
    if is_forward():
        return True
    if not is_transforming():
        return is_in_gradient() and torch.is_grad_enabled()
    return any(each.key() in _DERIVATIVES for each in get_interpreter_stack())


def _any_requires_grad(states: Sequence[Any]) -> bool:
    """Check all states in one call of torch, for there may be thousands."""
    parts: list[Any] = []
    for state in states:
        if type(state) is tuple:
            parts += state
        else:
            parts.append(state)
    tensors = [part for part in parts if type(part) is Tensor]
    others = [p for p in parts if type(p) is not Tensor and type(p) is not Count]
    if others:  # tuples in tuples, for one
        tensors += [x for x in pytree.tree_leaves(others) if isinstance(x, Tensor)]
    return torch._C._any_requires_grad(tensors)
