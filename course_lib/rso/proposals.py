"""Which weights are searched, how far a proposal reaches, and which one wins.

Every random number of a search is drawn here, on the CPU, from the seed, the cycle and
the parameter's name alone. So all engines, devices and processes see the same ones, and
a search can be continued anywhere.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

Sampler = Callable[[int, torch.Generator], Tensor]  # (count, generator) -> numbers


class NamedSampler(NamedTuple):
    """Numbers of deviation 1, in float64."""

    meaning: str  # for the documentation of RSO and the command
    draw: Sampler


SAMPLERS = {  # an entry here is all that a new one needs
    "normal": NamedSampler(
        "a normal distribution",
        lambda n, g: torch.randn(n, generator=g, dtype=torch.float64),
    ),
    "uniform": NamedSampler(
        "a uniform one of the same deviation",
        lambda n, g: (
            math.sqrt(3) * (2 * torch.rand(n, generator=g, dtype=torch.float64) - 1)
        ),
    ),
    "fixed": NamedSampler(
        "sigma alone", lambda n, g: torch.ones(n, dtype=torch.float64)
    ),
}


def describe_samplers() -> str:
    """Return all names and meanings, for the documentation of RSO and the command."""
    return ", ".join(f'"{name}" ({s.meaning})' for name, s in SAMPLERS.items())


NORM_SIGMA = 0.167  # of gamma and beta, in the authors' code
_NORMS = (_BatchNorm, _InstanceNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


@dataclass(frozen=True, eq=False)
class Target:
    """A parameter whose weights are searched one after another, in row-major order."""

    name: str
    module: nn.Module
    parameter: nn.Parameter
    fan_in: int  # inputs that feed one output; of a bias, those of its layer
    is_norm: bool

    @property
    def kind(self) -> str:
        """Return its name in its module: `"weight"`, `"bias"`."""
        return self.name.rpartition(".")[2]

    @property
    def channels(self) -> int:
        """Return its first length; a channel's weights lie side by side."""
        return len(self.parameter) if self.parameter.dim() else 1

    @property
    def values(self) -> Tensor:
        """Return the weights as one flat vector that shares their memory."""
        return self.parameter.detach().view(-1)


def targets(model: nn.Module, *, train_norm: bool = False) -> list[Target]:
    """Return what can be searched, in the order in which the model registers it.

    Frozen parameters are left out, a shared one is listed once, and those of norm
    layers are included only with `train_norm`.

    Raises:
        ValueError: nothing is left, or a parameter that is no dense float tensor.
    """
    found: dict[int, Target] = {}
    for prefix, module in model.named_modules():
        is_norm = isinstance(module, _NORMS)
        if is_norm and not train_norm:
            continue
        for kind, parameter in module.named_parameters(recurse=False):
            name = f"{prefix}.{kind}" if prefix else kind
            if parameter.requires_grad and id(parameter) not in found:
                _require_searchable(name, parameter)
                fan_in = _fan_in(module, parameter)
                found[id(parameter)] = Target(name, module, parameter, fan_in, is_norm)
    if not found:
        raise ValueError(
            f"RSO: {type(model).__name__} has no trainable weight. Pass a model with "
            "parameters that require a gradient; those of norm layers are searched "
            "only with train_norm=True."
        )
    return list(found.values())


def _require_searchable(name: str, parameter: nn.Parameter) -> None:
    if not parameter.is_floating_point() or not parameter.is_contiguous():
        raise ValueError(
            f"RSO: {name!r} is {parameter.dtype} with strides {parameter.stride()}; "
            "wanted contiguous floating-point numbers. Convert the model first."
        )


def _fan_in(module: nn.Module, parameter: nn.Parameter) -> int:
    weight = getattr(module, "weight", None)
    shaped = parameter if parameter.dim() > 1 else weight
    if isinstance(shaped, Tensor) and shaped.dim() > 1:
        return shaped[0].numel()
    return parameter.numel()


@torch.no_grad()
def initialize(chosen: Sequence[Target], seed: int) -> None:
    """Draw weights from N(0, sqrt(2 / fan_in)); biases become 0, a norm's gamma 1.

    Other vectors and numbers, such as a PReLU's slope, do not change.

    Source: He et al. 2015, arXiv:1502.01852; step 2 of algorithm 1 of RSO.
    """
    for target in chosen:
        if target.is_norm or target.parameter.dim() < 2:
            if target.kind == "bias":
                target.values.fill_(0.0)
            elif target.is_norm:
                target.values.fill_(1.0)
            continue
        generator = generator_of(seed, "initialize", target.name)
        drawn = SAMPLERS["normal"].draw(target.values.numel(), generator)
        target.values.copy_(math.sqrt(2 / target.fan_in) * drawn)


def base_sigma(target: Target, how: str) -> float:
    """Return a proposal's standard deviation before annealing.

    "measured" is the deviation of the layer's weights, "analytic" sqrt(2 / fan_in).
    A bias, which starts at 0, always takes sqrt(2 / fan_in), and gamma and beta the
    0.167 of the authors' code.
    """
    if target.is_norm:
        return NORM_SIGMA
    measured = float(target.values.double().std()) if target.values.numel() > 1 else 0.0
    if how == "measured" and target.parameter.dim() > 1 and measured > 0:
        return measured
    return math.sqrt(2 / target.fan_in)


def annealed(sigma: float, cycle: int, cycles: int, final: float) -> float:
    """Fall linearly from sigma in cycle 0 to final * sigma in the last.

    >>> [round(annealed(1.0, c, 4, 0.1), 2) for c in range(4)]
    [1.0, 0.7, 0.4, 0.1]
    """
    done = cycle / (cycles - 1) if cycles > 1 else 0.0
    return sigma * (1 - (1 - final) * done)


def ordered(chosen: list[Target], order: str, seed: int, cycle: int) -> list[Target]:
    """Return parameters "output_first", "input_first" or in "random" order."""
    if order == "output_first":
        return chosen[::-1]
    if order == "random":
        generator = generator_of(seed, "order", cycle)
        shuffled = torch.randperm(len(chosen), generator=generator)
        return [chosen[i] for i in shuffled.tolist()]
    return chosen


def candidates(
    target: Target, drawn: Tensor, sigma: float, weight_decay: float
) -> Tensor:
    """Return what each weight may become, `(weights, 3)`: kept, w + dw, w - dw.

    drawn: a number of deviation 1 for each weight; dw is sigma times that.
    """
    old = target.values
    dw = (sigma * drawn).to(old.device, old.dtype)
    kept = old * (1 - weight_decay)
    return torch.stack([kept, kept + dw, kept - dw], dim=1)


def groups(target: Target, size: int) -> list[range]:
    """Return the weights that are judged together: up to `size` of one channel."""
    count = target.values.numel()
    channel = count // target.channels
    return [
        range(i, min(i + size, start + channel))
        for start in range(0, count, channel)
        for i in range(start, start + channel, size)
    ]


def generator_of(seed: int, *words: object) -> torch.Generator:
    """Return a CPU generator that depends on the seed and the words alone."""
    text = " ".join(map(str, (seed, *words)))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def winner(losses: Sequence[float], samples: int, tolerance: float) -> int:
    """Return which of [kept, w + dw, w - dw, ...] has the least loss.

    A candidate wins only where it is lower by more than rounding could make it: by
    tolerance * (mean loss + 1) * samples. Ties keep the weight, and among candidates
    the first; so a weight without effect never moves, on any engine.

    >>> winner([2.0, 1.0, 3.0], 1, 1e-12)
    1
    >>> winner([1.0, 1.0, 1.0 - 1e-16], 1, 1e-12)
    0
    """
    slack = tolerance * (abs(losses[0]) + samples)
    best, bar = 0, losses[0] - slack
    for number, loss in enumerate(losses[1:], start=1):
        if loss < bar:
            best, bar = number, loss - slack
    return best


def winner_on_device(losses: Tensor, samples: int, tolerance: float) -> Tensor:
    """Return `winner` of three losses as a tensor, without waiting for the device."""
    kept, plus, minus = losses
    slack = tolerance * (kept.abs() + samples)
    has_plus = plus < kept - slack
    bar = torch.where(has_plus, plus, kept)
    return torch.where(minus < bar - slack, 2, has_plus.long())
