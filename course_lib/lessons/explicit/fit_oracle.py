"""What a right `fit` of lesson 06 gives: by `backward` and torch.optim.SGD."""

import copy
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from course_lib.trees import Tree

Batches = Sequence[tuple[Tensor, Tensor]]


class Epoch(NamedTuple):
    """What is true after an epoch."""

    layer: nn.Linear
    velocity: Tensor  # of the weight, times the step size
    losses: list[float]
    accuracy: float

    @property
    def weight(self) -> Tensor:
        """The weight of the layer."""
        return self.layer.weight.detach()


def by_torch(
    given: Tree,
    batches: Batches,
    test: tuple[Tensor, Tensor],
    epochs: int = 1,
    *,
    keeps_velocity: str = "always",
) -> list[Epoch]:
    """Train by `backward`; velocity is kept "always", "in an epoch" or "never"."""
    layer = nn.Linear(3, 2)
    layer.load_state_dict(given["0"])
    found = []
    sgd = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    for _ in range(epochs):
        losses = []
        if keeps_velocity != "always":
            sgd.state.clear()
        for x, y in batches:
            loss = nn.functional.cross_entropy(layer(x), y)
            losses.append(loss.item())
            if math.isfinite(losses[-1]):
                if keeps_velocity == "never":
                    sgd.state.clear()
                sgd.zero_grad()
                loss.backward()
                sgd.step()
        velocity = 0.1 * sgd.state[layer.weight]["momentum_buffer"]
        now = copy.deepcopy(layer)
        found.append(Epoch(now, velocity, losses, accuracy(now, test)))
    return found


@torch.no_grad()
def accuracy(layer: nn.Module, test: tuple[Tensor, Tensor]) -> float:
    """Return the share of the test samples that the layer names rightly."""
    return (layer(test[0]).argmax(1) == test[1]).double().mean().item()


class Watched(nn.Sequential):
    """Notes at each call whether it sees the test, and whether it is in train mode."""

    def __init__(self, note: Callable[[bool, bool], None], *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.note = note

    def forward(self, x: Tensor) -> Tensor:
        """Note, then run the layers."""
        self.note(bool((x[:, 0] < 0).all()), self.training)
        return super().forward(x)
