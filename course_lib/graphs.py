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

from course_lib.pure import is_in_gradient
from course_lib.trees import is_forward, is_tracked, is_transformed, is_transforming

Tensors = Sequence[Tensor]
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
    if not _any_requires_grad([*xs, *gs, *states]):  # as a rule
        return False
    return any(map(_is_attached, xs)) or _any_requires_grad([*gs, *states])


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


def _any_requires_grad(parts: Sequence[Any]) -> bool:
    """Tell whether any tensor requires a gradient, of these and in tuples of them."""
    if torch._C._any_requires_grad(*parts):  # looks one tuple deep, 10 times as fast
        return True
    tuples = (part for part in parts if type(part) is tuple)
    deep = [each for part in tuples for each in part if type(each) is tuple]
    return bool(deep) and _any_requires_grad(deep)
