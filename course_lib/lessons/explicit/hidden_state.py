"""What lesson 06 looks through: where a training step leaves its state; its time."""

import copy
from collections.abc import Callable, Iterable, Mapping
from timeit import timeit
from typing import Any

import torch
from torch import Tensor, nn

Snapshot = dict[str, list[Tensor]]

PLACES = ("parameters", ".grad", "optimizer.state", "buffers", "generator")


def make_run(
    batch_norm: bool = True, dropout: bool = True
) -> tuple[nn.Sequential, torch.optim.Adam]:
    """Return a small network for 8x8 images, in train mode, and an Adam that holds it.

    The global generator is seeded: two runs begin alike.
    """
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(64, 16)]
    layers += [nn.BatchNorm1d(16)] if batch_norm else []
    layers += [nn.ReLU(), *([nn.Dropout(0.5)] if dropout else []), nn.Linear(16, 10)]
    model = nn.Sequential(*layers)
    return model, torch.optim.Adam(model.parameters())


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


def torch_steps(
    model: nn.Module, loss: Callable[[nn.Module], Tensor]
) -> dict[str, Callable[[], None]]:
    """Return implicit Adam steps of loss(model), each on a copy of the model."""
    forms = {"torch Adam": {}, "torch Adam, fused=True": {"fused": True}}
    return {name: _torch_step(model, loss, form) for name, form in forms.items()}


def _torch_step(
    model: nn.Module, loss: Callable[[nn.Module], Tensor], form: dict[str, bool]
) -> Callable[[], None]:
    model = copy.deepcopy(model)
    adam = torch.optim.Adam(model.parameters(), **form)

    def step() -> None:
        adam.zero_grad()
        loss(model).backward()
        adam.step()

    return step


def race(
    ways: Mapping[str, Callable[[], object]], rounds: int = 100
) -> dict[str, float]:
    """Return the time of each way over that of the first.

    The ways take turns, and each keeps its fastest time.
    """
    times = [[timeit(way, number=1) for way in ways.values()] for _ in range(rounds)]
    fastest = [min(column) for column in zip(*times, strict=True)]
    return {way: t / fastest[0] for way, t in zip(ways, fastest, strict=True)}
