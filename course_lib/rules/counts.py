"""Numbers of steps inside a rule's state.

In eager code a count is an int. torch.compile builds an int into its code and compiles
again for each value, so a compiled step returns counts in a tensor instead; eager code
takes both.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


class Count(int):
    """A number of steps inside a state: an int, and no leaf of a tree to vmap over."""


class TracedCount:
    """A count from compiled code: a number on the CPU, which int(count) reads."""

    def __init__(self, value: Tensor) -> None:
        self.value = value

    def __index__(self) -> int:  # int() asks it, too
        return int(self.value)

    def __add__(self, other: float) -> float:
        return int(self) + other

    def __eq__(self, other: object) -> bool:
        return int(self) == other

    def __hash__(self) -> int:
        return hash(int(self))

    def __repr__(self) -> str:
        return f"TracedCount({int(self)})"


pytree.register_pytree_node(Count, lambda t: ([], int(t)), lambda _, t: Count(t))
pytree.register_pytree_node(TracedCount, lambda t: ([], t), lambda _, t: t)


def next_count(t: Any) -> Any:
    """Return t + 1: a traced count inside of torch.compile, else a plain one."""
    if not torch.compiler.is_dynamo_compiling():
        return Count(t + 1)
    if isinstance(t, TracedCount):
        return TracedCount(t.value + 1)
    return TracedCount(torch.tensor(t + 1.0, dtype=torch.float64, device="cpu"))


def number_of(t: Any) -> Any:
    """Return a count as an int, or as a float64 tensor in compiled code."""
    return t.value if type(t) is TracedCount else int(t)


class Conditional:
    """A step in compiled code that is taken only where `is_due` turns out True."""

    def __init__(self, dx: Tensor, is_due: Tensor) -> None:
        self.dx, self.is_due = dx, is_due

    def or_zeros(self) -> Tensor:
        """Return the step, or zeros where none is due."""
        return torch.where(self.is_due.to(self.dx.device), self.dx, 0)


def where_due(is_due: Tensor, new: Any, old: Any) -> Any:
    """Return a rule's new state where the step is due, else the old one."""
    if isinstance(new, tuple):
        pairs = zip(new, old, strict=True)
        return tuple([where_due(is_due, one, other) for one, other in pairs])
    if isinstance(new, Count | TracedCount):
        counts = [
            torch.as_tensor(number_of(t), dtype=torch.float64) for t in (new, old)
        ]
        return TracedCount(torch.where(is_due, *counts))
    if isinstance(new, Tensor):
        return torch.where(is_due.to(new.device), new, old)
    return new
