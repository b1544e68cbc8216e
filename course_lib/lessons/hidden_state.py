"""What lesson 06 looks through: where a training step leaves its state."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

Snapshot = dict[str, list[Tensor]]

PLACES = ("parameters", ".grad", "optimizer.state", "buffers", "generator")


def watch(
    step: Iterable[tuple[str, Any]],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> list[tuple[str, list[str]]]:
    """Run a step line by line; return (line, the PLACES that it changed).

    Args:
        step: yields (line of code, anything) each time a line has run.
        model: whose parameters, gradients and buffers are compared.
        optimizer: whose state is.
    """
    rows, before = [], _snapshot(model, optimizer)
    for code, _ in step:
        now = _snapshot(model, optimizer)
        rows.append((code, [p for p in PLACES if not _equal(now[p], before[p])]))
        before = now
    return rows


def _snapshot(model: nn.Module, optimizer: torch.optim.Optimizer) -> Snapshot:
    parameters = list(model.parameters())
    slots = [slot for slots in optimizer.state.values() for slot in slots.values()]
    grads = [p.grad for p in parameters if p.grad is not None]
    found = parameters, grads, slots, list(model.buffers()), [torch.get_rng_state()]
    copies = [[t.detach().clone() for t in tensors] for tensors in found]
    return dict(zip(PLACES, copies, strict=True))


def _equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


def depth(node: Any) -> int:
    """Return how many nodes deep autograd's graph is behind a tensor's `grad_fn`.

    >>> x = torch.ones(1, requires_grad=True)
    >>> depth((2 * x + 1).grad_fn)  # x itself, times, plus
    3
    """
    if node is None:
        return 0
    return 1 + max((depth(parent) for parent, _ in node.next_functions), default=0)
