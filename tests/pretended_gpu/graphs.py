"""CUDA graphs on the pretended device: operations recorded once, and done again.

A real GPU does nothing while a graph is recorded; this one does the operations then,
and leaves them out at the first replay. What a recording refuses it refuses, too: to
wait for the device, and to read memory of the CPU.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves

from tests.pretended_gpu import tensors

Call = tuple[Callable, tuple, dict, Any]  # a kernel, its arguments, what it returned


class CUDAGraph:
    """Repeat calls with the same arguments; what they return lies where it lay."""

    replays = 0  # of all graphs, since the pretended GPU was entered

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.is_new = True

    def pool(self) -> tuple[int, int]:
        return 0, 1

    def replay(self) -> None:
        CUDAGraph.replays += 1
        if self.is_new:
            self.is_new = False
            return
        with _disable_current_modes():
            for kernel, args, kwargs, before in self.calls:
                after = kernel(*args, **kwargs)
                for old, new in _fresh(args, kwargs, before, after):
                    old.copy_(new)


def _fresh(args: tuple, kwargs: dict, before: Any, after: Any) -> Iterator[tuple]:
    """Yield what a call has allocated: neither views nor what it wrote in place."""
    given = {_memory(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
    for old, new in zip(tree_leaves(before), tree_leaves(after), strict=True):
        if isinstance(old, Tensor) and _memory(old) not in given:
            yield old, new


def _memory(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


@contextmanager
def graph(recorded: CUDAGraph, pool: tuple[int, int] | None = None) -> Iterator[None]:
    """Record what is called inside, as torch.cuda.graph."""

    def record(call: Call, is_allowed: bool) -> None:
        if not is_allowed:
            raise RuntimeError(
                "CUDA error: operation not permitted when stream is capturing "
                f"({call[0]})"
            )
        recorded.calls.append(call)

    tensors.recorder = record
    try:
        yield
    finally:
        tensors.recorder = None
