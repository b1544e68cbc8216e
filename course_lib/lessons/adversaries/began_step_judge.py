"""The judge of lesson 05's `began_step`: one step of both players, then of k.

The gradients come from `torch.autograd.grad`, one player at a time.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from course_lib.began import BEGANLoss
from course_lib.lessons.checks import (
    close,
    name_mistake,
    require_close,
    require_parts,
    require_unchanged,
    require_written,
)
from course_lib.lessons.exercises import NotYet

GAMMA, LAMBDA, K = 0.5, 0.1, 0.3
RATES = (0.1, 0.2)  # of the generator and the discriminator
OLD = 0.7  # each entry of a gradient that an earlier step has left


def judge(answer: Callable[..., tuple[Tensor, Tensor]]) -> None:
    """Judge two steps of one pair of players."""
    players = _Players()
    for number in (1, 2):
        at = "" if number == 1 else "In a second step with other images: "
        images, z = players.draw(number)
        given = images.clone(), z.clone()
        before = players.weights()
        slopes, errors = _slopes(players, images, z)
        k = players.loss.k.item()
        arguments = players.loss, players.generator, players.discriminator
        got = answer(*arguments, players.optimizers, images, z)
        require_written(got)
        require_unchanged((images, z), given, "the images or z")
        _require_trainable(players)
        steps = map(torch.sub, before, players.weights())
        moved = [step / rate for step, rate in zip(steps, RATES, strict=True)]
        _judge_moves(at, moved, slopes, k, players.loss.k.item())
        _, later = _slopes(players, images, z)
        _judge_k(at, players.loss, k, errors, later)
        _judge_errors(at, got, errors)


def _require_trainable(players: "_Players") -> None:
    for name, player in zip(("generator", "discriminator"), players.both, strict=True):
        if not all(parameter.requires_grad for parameter in player.parameters()):
            raise NotYet(
                f"After your step the {name} is frozen: its `requires_grad` is off."
            )
        if not player.training:
            raise NotYet(
                f"After your step the {name} is in evaluation mode: a dropout layer "
                "would be off in all steps that follow."
            )


class _Players:
    """Two small networks with optimizers, and gradients of some earlier step."""

    def __init__(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.generator = nn.Sequential(nn.Linear(2, 4), nn.Tanh()).double()
            layers = nn.Linear(4, 2), nn.Tanh(), nn.Linear(2, 4)
            self.discriminator = nn.Sequential(*layers).double()
        self.loss = BEGANLoss(gamma=GAMMA, lambda_k=LAMBDA, k=K)
        self.both = self.generator, self.discriminator
        self.optimizers = tuple(
            torch.optim.SGD(player.parameters(), lr=rate)
            for player, rate in zip(self.both, RATES, strict=True)
        )
        for player in self.both:
            for parameter in player.parameters():
                parameter.grad = torch.full_like(parameter, OLD)

    def draw(self, number: int) -> tuple[Tensor, Tensor]:
        random = torch.Generator().manual_seed(number)
        images = torch.rand(5, 4, generator=random, dtype=torch.float64)
        return images, torch.randn(5, 2, generator=random, dtype=torch.float64)

    def weights(self) -> list[Tensor]:
        """Return all weights of each player, as one vector."""
        return [nn.utils.parameters_to_vector(p.parameters()) for p in self.both]


def _slopes(
    players: _Players, images: Tensor, z: Tensor
) -> tuple[dict[str, Tensor], list[float]]:
    """Return the gradients that a step is made of, and L_real and L_gen."""
    generator, discriminator = (list(p.parameters()) for p in players.both)

    def of(error: Tensor, weights: list[nn.Parameter]) -> Tensor:
        grads = torch.autograd.grad(error, weights, retain_graph=True)
        return torch.cat([g.flatten() for g in grads])

    def distance(one: Tensor, other: Tensor) -> Tensor:
        return (one - other).abs().sum() / one.numel()

    made = players.generator(z)
    rebuilt, rebuilt_made = map(players.discriminator, (images, made))
    real, fake = distance(rebuilt, images), distance(rebuilt_made, made)
    slopes = {
        "real": of(real, discriminator),
        "made": of(fake, discriminator),
        "own": of(fake, generator),
        "cut": of(distance(rebuilt_made, made.detach()), generator),
    }
    return slopes, [real.item(), fake.item()]


def _judge_moves(
    at: str, moved: list[Tensor], slopes: dict[str, Tensor], k: float, later: float
) -> None:
    real, made, own = slopes["real"], slopes["made"], slopes["own"]
    discriminator = {
        "did not move": 0 * real,
        "got the gradient of L_gen as well. It should see L_gen times -k, and nothing "
        "else: take each player's own gradient": real + (1 - k) * made,
        "has no k: L_gen is subtracted as a whole": real - made,
        "is trained on real images only: -k * L_gen is missing": real,
        "has +k * L_gen. It rebuilds generated images *badly*": real + k * made,
        "climbs: its step goes the other way": k * made - real,
        "has L_gen - k * L_real in its loss: call `loss(real, generated)`": (
            made - k * real
        ),
        "follows the generator's loss": made,
        "has the new k in its loss already. k moves last": real - later * made,
    }
    generator = {
        "did not move": 0 * own,
        "moved against L_gen. It wants to be rebuilt *well*": -own,
        "follows the discriminator's loss, -k * L_gen": -k * own,
        "got the gradient of the discriminator's loss as well": (1 - k) * own,
        "moved as if the image were a fixed target. In L_gen = |made - rebuilt| both "
        "sides have a gradient": slopes["cut"],
    }
    ratio = RATES[1] / RATES[0]
    wanted = real - k * made
    _judge_move(f"{at}The discriminator", moved[1], wanted, discriminator, 1 / ratio)
    _judge_move(f"{at}The generator", moved[0], own, generator, ratio)


def _judge_move(
    who: str, moved: Tensor, wanted: Tensor, mistakes: dict[str, Tensor], ratio: float
) -> None:
    """Compare one player's step, divided by its rate, with its own gradient."""
    if close(moved, wanted):
        return
    named = mistakes | {
        "was moved by the other one's optimizer": wanted * ratio,
        "moved twice": 2 * wanted,
    }
    name_mistake(moved, {f"{who} {name}": slope for name, slope in named.items()})
    for name, slope in {"": wanted, **named}.items():
        if close(moved, slope + OLD):
            also = f" Besides, it {name}." if name else ""
            raise NotYet(
                f"{who} moved along the sum of its old gradient and the new one. Set "
                f"or clear `.grad` in each step.{also}"
            )
    length = (moved @ wanted / wanted.square().sum()).item()
    if close(moved, length * wanted):
        raise NotYet(
            f"{who} moved along its own gradient, and {length:.2g} times as far as its "
            "optimizer would. Are both errors means?"
        )
    raise NotYet(
        f"{who} moved along another direction than its own gradient at the weights of "
        "before the step. Compute both gradients, then move both."
    )


def _judge_k(
    at: str, loss: BEGANLoss, k: float, errors: list[float], later: list[float]
) -> None:
    def moved(real: float, made: float, times: int = 1) -> float:
        return k + times * LAMBDA * (GAMMA * real - made)

    named = {
        "k did not move. Call `loss.update_` after both steps": k,
        "`loss.update_` takes L_real first, then L_gen": moved(*reversed(errors)),
        "k was moved by errors that were taken after the step. Take those of before": (
            moved(*later)
        ),
        "k moved twice in one step": moved(*errors, times=2),
    }
    wanted, what = torch.tensor(moved(*errors)), f"{at}The new k"
    require_close(loss.k, wanted, what, named, what="k", verb="is")


def _judge_errors(at: str, got: Any, errors: list[float]) -> None:
    require_parts(got, 2, "two numbers, L_real and L_gen")
    if close(got[0], errors[1]) and close(got[1], errors[0]):
        raise NotYet(f"{at}You returned L_gen first. L_real comes first.")
    for name, number, error in zip(("L_real", "L_gen"), got, errors, strict=True):
        place = f"{at}{name}, from before the step"
        require_close(number, error, place, {}, what=name, verb="is")
        if isinstance(number, Tensor) and number.requires_grad:
            raise NotYet(
                f"The {name} that you return still hangs on the graph of this step. "
                "Who keeps it for a plot keeps the graph, too: detach it."
            )
