"""The training loop of lesson 02, and the loops that learners write instead of it.

`descend` is the oracle of the exercise `train`: it takes its gradients from autograd
one loss at a time, adds those of the penalty in closed form, and needs no optimizer. A
`Slip` changes one thing of it; `SLIPS` names the likely ones.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

Batches = Sequence[tuple[Tensor, Tensor]]

# How the names of parameters end that are no weight of an `nn.Linear`
_BIAS, _NORM, _MATRIX = ("bias",), ("norm.weight",), ("mixes",)
_ALL = _BIAS + _NORM + _MATRIX


def _jump(p: Tensor, by: float) -> Tensor:
    return p - by * p.sign()


@dataclass(frozen=True)
class Slip:
    """One thing that a loop does otherwise; the defaults are the right loop."""

    l1: float = 1.0  # times the coefficient
    l2: float = 1.0
    sign: float = -1.0  # of the step
    euclidean: bool = False
    averages: bool = False  # the squares
    pay: tuple[str, ...] = ()  # others whose names end so
    shrink: tuple[str, ...] = ()
    top_only: bool = False
    tied_pay_twice: bool = False
    tied_shrink_twice: bool = False
    l1_in_loss: bool = False
    by_l1_alone: bool = False
    shrinks: str = "after a step"  # or: before a step, after an epoch
    keeps: float = 0.0  # of what earlier gradients add up to
    batches: str = "all"  # or: first, last
    epochs: int | None = None
    step_after: str = "batch"  # or: epoch
    others_stand: bool = False
    biases_stand: bool = False  # all with one dimension
    sums_samples: bool = False  # in the cross entropy
    decays_later: bool = False  # by what the step has made
    threshold: Callable[[Tensor, float], Tensor] = nn.functional.softshrink


SLIPS = {
    "The loss grows: the step goes along the gradient, not against it": Slip(sign=1.0),
    "That sums over the samples of a batch. Take cross entropy's mean": (
        Slip(sums_samples=True)
    ),
    "Only the weights train. The optimizer needs all parameters of the model; the "
    "penalty alone is for weights": Slip(others_stand=True),
    "What has one dimension, as a bias, does not train. The optimizer needs all "
    "parameters of the model": Slip(biases_stand=True),
    "Only the first batch of an epoch is used": Slip(batches="first"),
    "Only the last batch of an epoch makes a step": Slip(batches="last"),
    "There is one step for all batches of an epoch; wanted one for each batch": (
        Slip(step_after="epoch", keeps=1.0)
    ),
    "The gradients of earlier batches are still in `.grad`. Set them to zero before "
    "each `backward`": Slip(keeps=1.0),
    "The optimizer remembers earlier steps. Plain descent has no momentum": (
        Slip(keeps=0.9)
    ),
    "Only the first epoch trains": Slip(epochs=1),
    "The penalty does not reach the weights: they move as if l2 were 0. Call "
    "`backward` on the sum of both, and keep the penalty's graph": Slip(l2=0.0),
    "The weights decay after the step. The penalty's gradient is that of the weights "
    "before it": Slip(decays_later=True),
    "The weights feel l2 * w, half of the penalty's gradient": Slip(l2=0.5),
    "The weights feel twice the penalty. Add it once": Slip(l2=2.0),
    "The penalty rewards large weights. Add it to the loss": Slip(l2=-1.0),
    "That is the norm. Leave out the root": Slip(euclidean=True),
    "That takes the mean of the squares. Sum them": Slip(averages=True),
    "The biases pay l2, too. Take the `.weight` of each `nn.Linear` alone": (
        Slip(pay=_ALL)
    ),
    "Nothing is shrunk: the weights move as if l1 were 0": Slip(l1=0.0),
    "l1 is part of the loss, so weights jump across zero. Take it out, and shrink "
    "after the step": Slip(l1_in_loss=True, l1=0.0),
    "l1 acts twice: in the loss, and by shrinking. Shrink alone": Slip(l1_in_loss=True),
    "The weights are shrunk by l1. One step of size lr shrinks by lr * l1": (
        Slip(by_l1_alone=True)
    ),
    "Weights jump across zero. One that is smaller than lr * l1 must stop there": (
        Slip(threshold=_jump)
    ),
    "Small weights become 0, large ones keep their size. They lose lr * l1, too": (
        Slip(threshold=nn.functional.hardshrink)
    ),
    "The weights are shrunk before the step. Shrink what the step has made": (
        Slip(shrinks="before a step")
    ),
    "The weights are shrunk once in an epoch. Shrink after each step": (
        Slip(shrinks="after an epoch")
    ),
    "The biases are shrunk, too. Shrink the weights of `nn.Linear` alone": (
        Slip(shrink=_ALL)
    ),
    "The biases pay and are shrunk. Take the `.weight` of each `nn.Linear` alone": (
        Slip(pay=_ALL, shrink=_ALL)
    ),
    "The weight of the `LayerNorm` pays l2. Ask for `nn.Linear`": Slip(pay=_NORM),
    "The weight of the `LayerNorm` is shrunk. Ask for `nn.Linear`": Slip(shrink=_NORM),
    "The weight of the `LayerNorm` pays and is shrunk. Ask for `nn.Linear`": (
        Slip(pay=_NORM, shrink=_NORM)
    ),
    "A matrix that is no layer's weight pays l2. Ask for `nn.Linear`": (
        Slip(pay=_MATRIX)
    ),
    "A matrix that is no layer's weight is shrunk. Ask for `nn.Linear`": (
        Slip(shrink=_MATRIX)
    ),
    "A matrix that is no layer's weight pays and is shrunk. Ask for `nn.Linear`": (
        Slip(pay=_MATRIX, shrink=_MATRIX)
    ),
    "All parameters but the biases pay and are shrunk. Ask for `nn.Linear`": (
        Slip(pay=_NORM + _MATRIX, shrink=_NORM + _MATRIX)
    ),
    "A layer inside an inner `Sequential` is missing. `modules()` goes all the way "
    "down": Slip(top_only=True),
    "The tensor that two layers share pays twice. Count tensors, not layers": (
        Slip(tied_pay_twice=True)
    ),
    "The tensor that two layers share is shrunk twice in a step. Count tensors, not "
    "layers": Slip(tied_shrink_twice=True),
    "The tensor that two layers share pays and is shrunk twice. Count tensors, not "
    "layers": Slip(tied_pay_twice=True, tied_shrink_twice=True),
}


class Setting(NamedTuple):
    """What the loop is given beside the model and the batches."""

    l1: float
    l2: float
    lr: float
    epochs: int


class Run(NamedTuple):
    """What a loop leaves: the parameters by name, and each batch's cross entropies."""

    parameters: dict[str, Tensor]
    losses: list[list[float]]  # an inner list for each epoch


def descend(
    model: nn.Module, batches: Batches, setting: Setting, slip: Slip | None = None
) -> Run:
    """Train a copy of the model by the right loop, or with a slip."""
    loop = _Loop(copy.deepcopy(model), setting, slip or Slip())
    chosen = {"all": batches, "first": batches[:1], "last": batches[-1:]}
    epochs = loop.slip.epochs or setting.epochs
    losses = [loop.run_epoch(chosen[loop.slip.batches]) for _ in range(epochs)]
    return Run(loop.named, losses)


class _Loop:
    def __init__(self, model: nn.Module, setting: Setting, slip: Slip) -> None:
        self.model, self.setting, self.slip = model, setting, slip
        self.named = dict(model.named_parameters())
        self.memory = {name: torch.zeros_like(p) for name, p in self.named.items()}
        visited = model.children() if slip.top_only else model.modules()
        self.places = [m.weight for m in visited if isinstance(m, nn.Linear)]

    def run_epoch(self, batches: Batches) -> list[float]:
        losses = []
        for number, (inputs, labels) in enumerate(batches, start=1):
            loss = nn.functional.cross_entropy(self.model(inputs), labels)
            losses.append(loss.item())
            grads = torch.autograd.grad(loss, list(self.named.values()))
            if self.slip.sums_samples:
                grads = [grad * len(labels) for grad in grads]
            is_last = number == len(batches)
            with torch.no_grad():
                if self.slip.shrinks == "before a step":
                    self.shrink()
                self.step(grads, moves=self.slip.step_after == "batch" or is_last)
                if self.slip.shrinks == "after a step" or (
                    self.slip.shrinks == "after an epoch" and is_last
                ):
                    self.shrink()
        return losses

    def step(self, grads: Sequence[Tensor], *, moves: bool) -> None:
        slip = self.slip
        for (name, p), grad in zip(self.named.items(), grads, strict=True):
            memory = self.memory[name]
            pull = 0 if slip.decays_later else self.pull(name, p)
            memory.copy_(slip.keeps * memory + grad + pull)
            stands = slip.others_stand and not self.counts(p)
            stands = stands or (slip.biases_stand and p.dim() == 1)
            if moves and not stands:
                p.add_(memory, alpha=slip.sign * self.setting.lr)
            if slip.decays_later:
                p.sub_(self.setting.lr * self.pull(name, p))
            if moves and slip.step_after == "epoch":
                memory.zero_()

    def pull(self, name: str, p: Tensor) -> Tensor:
        """Return the gradient of the penalty by one parameter."""
        slip, l2 = self.slip, self.setting.l2 * self.slip.l2
        times = self.counts(p) or int(name.endswith(slip.pay))
        times = times if slip.tied_pay_twice else min(times, 1)
        if slip.euclidean:
            direction = p / p.norm().clamp(min=1e-12)
        else:
            direction = 2 * p / (p.numel() if slip.averages else 1)
        pull = times * l2 * direction
        if slip.l1_in_loss:
            pull = pull + min(times, 1) * self.setting.l1 * p.sign()
        return pull

    def shrink(self) -> None:
        slip, by = self.slip, self.setting.l1 * self.slip.l1
        by *= 1 if slip.by_l1_alone else self.setting.lr
        for name, p in self.named.items():
            times = self.counts(p) or int(name.endswith(slip.shrink))
            for _ in range(times if slip.tied_shrink_twice else min(times, 1)):
                p.copy_(slip.threshold(p, by))

    def counts(self, p: Tensor) -> int:
        """Return how many layers hold this tensor as their weight."""
        return sum(p is weight for weight in self.places)
