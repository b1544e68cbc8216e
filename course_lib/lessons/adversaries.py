"""Exercises of lesson 05, Train against an opponent.

The oracles are sums written out by hand and one sample taken at a time; none of them
is the code that the lesson teaches.
"""

from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from course_lib.began import BEGANLoss
from course_lib.lessons.checks import (
    as_text,
    close,
    gradient,
    reject,
    require_close,
    require_kind,
    require_unchanged,
    require_written,
)
from course_lib.lessons.exercises import NotYet, exercise

NUMBER = 5


# A loss that remembers


@exercise(
    "`state_dict` holds parameters and buffers. An optimizer trains the first kind "
    "only.",
    'In `__init__`: `self.register_buffer("k", torch.tensor(k))`. In `update_` '
    "give it its new value, without a graph.",
    "`with torch.no_grad(): self.k.copy_((self.k + step).clamp(0, 1))`",
    right="A buffer is saved, restored and moved with its module, and no optimizer "
    "trains it. `BEGANLoss` keeps k and M like this.",
)
def remembers(answer: Callable[[float], nn.Module]) -> None:
    """A module with a number k that is saved, and a method that moves it."""
    memory = answer(0.3)
    require_kind(memory, nn.Module, "a module", what="`Memory(0.3)`", verb="is")
    _require_buffer(memory)
    start = "The k of `Memory(0.3)`"
    wrong = {"k starts at the number that it was given": 0.0}
    require_close(_number(memory.k), 0.3, start, wrong, what=start, verb="is")
    moved = {
        "`update_` leaves k where it was": 0.3,
        "k became the step. Add the step to it": 0.2,
        "k moved the wrong way": 0.1,
        "`update_` moves k twice": 0.7,
    }
    step = torch.tensor(0.2, requires_grad=True)
    memory.update_(step)
    require_unchanged([step.detach()], [torch.tensor(0.2)], "the step")
    _require_buffer(memory)
    place = "k = 0.3 after a step of 0.2"
    require_close(_number(memory.k), 0.5, place, moved, what="k", verb="is")
    if memory.k.requires_grad:
        raise NotYet(
            "k hangs on the graph of its step now, and the next k would hang on both. "
            "Take the step without a gradient: `torch.no_grad()` or `step.detach()`."
        )
    later = answer(0.9)
    require_close(_number(later.k), 0.9, "The k of `Memory(0.9)`", wrong, verb="is")
    later.load_state_dict(memory.state_dict())
    if not close(_number(later.k), 0.5):
        raise NotYet(
            f"k was 0.5 when it was saved, and {as_text(later.k)} when it was loaded."
        )
    _judge_later_steps(memory, later)


def _judge_later_steps(memory: nn.Module, later: nn.Module) -> None:
    """Two modules with k = 0.5; one began at 0.3 and the other at 0.9."""
    later.update_(torch.tensor(0.2))
    moved = {"k went on from 0.9, its start, and not from what was loaded": 1.0}
    place = "k = 0.5, loaded, after a step of 0.2"
    require_close(_number(later.k), 0.7, place, moved, what="k", verb="is")
    memory.update_(torch.tensor(-0.1))
    moved = {
        "The step was clipped. Clip k, after the sum": 0.5,
        "k went on from its start": 0.2,
        "Two modules share one k. Each has its own": 0.6,
    }
    place = "k = 0.5 after a step of -0.1"
    require_close(_number(memory.k), 0.4, place, moved, what="k", verb="is")
    for step, end in ((-5.0, 0.0), (5.0, 1.0)):
        memory.update_(torch.tensor(step))
        if not close(_number(memory.k), end):
            raise NotYet(
                f"After a step of {step:g} k is {as_text(memory.k)}; wanted {end:g}. "
                "It stays in [0, 1]: clip it."
            )
    _require_buffer(memory)


def _require_buffer(memory: nn.Module) -> None:
    k = getattr(memory, "k", None)
    reject(
        {
            "`Memory(0.3)` has no `k`.": k is None,
            "k is a Python number, and `state_dict` holds tensors only: it would be "
            "lost, as above. Register a buffer.": isinstance(k, Real),
            "k is a parameter: it is saved, and an optimizer would train it as well. "
            "Register a buffer.": isinstance(k, nn.Parameter),
        }
    )
    require_kind(k, Tensor, "a tensor", what="k", verb="is")
    reject(
        {
            "k is a plain attribute. A tensor is saved only if it was registered: "
            '`self.register_buffer("k", ...)`.': "k"
            not in dict(memory.named_buffers()),
            "k is a buffer with `persistent=False`, which `state_dict` leaves out.": "k"
            not in memory.state_dict(),
        }
    )


def _number(k: Tensor) -> Any:
    """Take a tensor of one number for a number."""
    return k.reshape(()) if isinstance(k, Tensor) and k.numel() == 1 else k


@exercise(
    "The loss first: it takes the k that came in.",
    "Compute `imbalance = gamma * real - generated` from detached errors. The new "
    "k and M both follow from it.",
    "`new_k = (k + lambda_k * imbalance).clamp(0, 1)` and "
    "`M = real.detach() + imbalance.abs()`",
    right="The old k in the loss, then the update, clipped to [0, 1], and no graph "
    "that grows from step to step.",
)
def balance(answer: Callable[..., tuple[Tensor, Tensor, Tensor]]) -> None:
    """A function of one BEGAN step: the loss, the new k and M."""
    k = torch.tensor(0.3)
    real, generated = (torch.tensor(n, requires_grad=True) for n in (0.8, 0.5))
    given = real.detach().clone(), generated.detach().clone()
    loss, new, measure = _three(answer(k, real, generated, 0.5, 0.1))
    name = "the tensor `k` in place, which the backward pass of `loss` still needs"
    require_unchanged([k], [torch.tensor(0.3)], name)
    require_unchanged([real.detach(), generated.detach()], given, "the errors")
    mistakes = {
        "The new k is the old one: it is frozen, or its step was clipped and not k": (
            0.3
        ),
        "That is M. It comes third": 0.9,
        "k moved the wrong way. Generated images are rebuilt too badly here": 0.31,
        "That is only the step of k. Add it to k": -0.01,
        "That is only the step of k, clipped. Add it to k before": 0.0,
        "That is the loss. It comes first, and the new k second": 0.65,
        "The factor lambda_k is missing": 0.2,
        "gamma stands at `generated`. It scales `real`": 0.3 + 0.1 * (0.8 - 0.5 * 0.5),
        "gamma is missing": 0.3 + 0.1 * (0.8 - 0.5),
    }
    place = "The new k (gamma * real - generated is -0.1)"
    require_close(new, 0.29, place, mistakes, what="The new k", verb="is")
    mistakes = {
        "The loss has the new k already. It takes the k of before the step": (
            0.8 - 0.29 * 0.5
        ),
        "The sign of the second term is wrong": 0.8 + 0.3 * 0.5,
        "The loss has no term of the generated images": 0.8,
        "The loss has no k": 0.8 - 0.5,
    }
    wanted, what = torch.tensor(0.8 - 0.3 * 0.5), "The loss"
    require_close(loss, wanted, what, mistakes, what=what, verb="is")
    mistakes = {
        "M takes the size of the imbalance, |gamma * real - generated|": 0.7,
        "That is the imbalance alone. M adds it to `real`": 0.1,
        "lambda_k does not belong into M": 0.8 + 0.1 * 0.1,
        "gamma stands at `generated`. It scales `real`": 0.8 + 0.8 - 0.5 * 0.5,
        "gamma is missing": 0.8 + 0.8 - 0.5,
        "M begins with `real`, and not with `generated`": 0.5 + 0.1,
        "M begins with `real`, and not with the loss": 0.65 + 0.1,
        "M begins with `real` alone, without gamma": 0.5 * 0.8 + 0.1,
    }
    require_close(measure, 0.9, "M", mistakes, what="M", verb="is")
    _judge_balance_gradients(loss, new, measure, (real, generated))
    for start, made, end in ((0.01, 0.9, 0.0), (0.99, 0.0, 1.0)):
        errors = torch.tensor(0.8), torch.tensor(made)
        loss, new, measure = _three(answer(torch.tensor(start), *errors, 0.5, 0.1))
        if not close(new, end):
            raise NotYet(
                f"The new k became {float(new):.2f}. It stays in [0, 1]: at its ends "
                "it is clipped."
            )
        place = f"With k = {start}, real = 0.8 and generated = {made}"
        require_close(loss, torch.tensor(0.8 - start * made), f"{place}, the loss", {})
        require_close(measure, 0.8 + abs(0.4 - made), f"{place}, M", {})
    errors = torch.tensor(0.6), torch.tensor(0.2)
    loss, new, measure = _three(answer(torch.tensor(0.2), *errors, 0.7, 0.3))
    place = (
        "With other numbers (k 0.2, real 0.6, generated 0.2, gamma 0.7, lambda_k 0.3)"
    )
    mistakes = {
        "gamma is always 0.5": 0.2 + 0.3 * (0.5 * 0.6 - 0.2),
        "lambda_k is always 0.1": 0.2 + 0.1 * (0.7 * 0.6 - 0.2),
        "gamma and lambda_k are always 0.5 and 0.1": 0.2 + 0.1 * (0.5 * 0.6 - 0.2),
    }
    require_close(new, 0.2 + 0.3 * (0.7 * 0.6 - 0.2), f"{place}, the new k", mistakes)
    require_close(loss, torch.tensor(0.6 - 0.2 * 0.2), f"{place}, the loss", {})
    require_close(measure, 0.6 + (0.7 * 0.6 - 0.2), f"{place}, M", {})


def _three(got: Any) -> tuple[Tensor, Tensor, Tensor]:
    wanted = "three numbers: the loss, the new k and M"
    require_kind(got, tuple | list, wanted)
    if len(got) != 3:
        raise NotYet(f"Your function returned {len(got)} things; wanted {wanted}.")
    return got


def _judge_balance_gradients(
    loss: Tensor, new: Any, measure: Any, errors: tuple[Tensor, Tensor]
) -> None:
    if any(isinstance(n, Tensor) and n.requires_grad for n in (new, measure)):
        raise NotYet(
            "The new k or M still hangs on this step's graph; the next step would hang "
            "on it, too, and memory grows. Compute both from detached errors."
        )
    slopes = [gradient(loss, error) for error in errors]
    if not all(map(close, slopes, (1.0, -0.3))):
        raise NotYet(
            "The loss has the right value, but not its gradient: 1 by `real` and "
            "-k by `generated`. Detach for k and M only."
        )


# One step, two players

GAMMA, LAMBDA, K = 0.5, 0.1, 0.3
RATES = (0.1, 0.2)  # of the generator and the discriminator
OLD = 0.7  # each entry of a gradient that an earlier step has left


@exercise(
    "Both errors first, from the same weights: L_real from the images, L_gen from "
    "`generator(z)`. Then each player's gradient, then both steps, then k.",
    "`torch.autograd.grad(error, list(player.parameters()), retain_graph=True)` gives "
    "one player's gradient and touches nothing else. Store it in `weight.grad`.",
    "The generator's error is L_gen, the discriminator's is `loss(real, generated)`. "
    "At the end: both `optimizer.step()`, `loss.update_(real, generated)`, and return "
    "both errors detached.",
    right="Each player follows its own loss, from the same weights, and k moves last. "
    "`course_lib.began.Run.step` does the same with one pass less.",
)
def began_step(answer: Callable[..., tuple[Tensor, Tensor]]) -> None:
    """A step of BEGAN: both players, then k; returns L_real and L_gen."""
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
        moved = [
            (old - new) / rate
            for old, new, rate in zip(before, players.weights(), RATES, strict=True)
        ]
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
    for name, slope in named.items():
        if close(moved, slope):
            raise NotYet(f"{who} {name}.")
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
    real, made = errors
    named = {
        "k did not move. Call `loss.update_` after both steps": k,
        "`loss.update_` takes L_real first, then L_gen": k
        + LAMBDA * (GAMMA * made - real),
        "k was moved by errors that were taken after the step. Take those of before": k
        + LAMBDA * (GAMMA * later[0] - later[1]),
        "k moved twice in one step": k + 2 * LAMBDA * (GAMMA * real - made),
    }
    wanted = k + LAMBDA * (GAMMA * real - made)
    what = f"{at}The new k"
    require_close(loss.k, torch.tensor(wanted), what, named, what="k", verb="is")


def _judge_errors(at: str, got: Any, errors: list[float]) -> None:
    wanted = "two numbers, L_real and L_gen"
    require_kind(got, tuple | list, wanted)
    if len(got) != 2:
        raise NotYet(f"Your function returned {len(got)} things; wanted {wanted}.")
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


# The worst direction


@exercise(
    "Two numbers for each sample: the KL after a step ahead, and after a step back.",
    "`kl_from_logits(model(x), model(x + step))` has the shape (batch,). Compare it "
    "with the one of `x - step`, sample by sample.",
    "`torch.where((ahead > behind)[:, None, None, None], step, -step)`",
    right="Each sample has its own side. Close to x both change the answer alike, at a "
    "distance of eps they don't.",
)
def worse_side(answer: Callable[..., Tensor]) -> None:
    """A function of (model, x, step): step or -step for each sample."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(45)  # where KL(q || p) would choose other sides
        model = nn.Sequential(nn.Flatten(), nn.Linear(6, 3))
        x, step = 4 * torch.randn(2, 60, 1, 2, 3)
    given = x.clone(), step.clone()
    got = require_kind(answer(model, x, step), Tensor, "a tensor")
    require_unchanged((x, step), given, "x or step")
    reject(
        {
            "You returned one number for each sample; wanted the step itself, shaped "
            "as x.": got.shape == x.shape[:1],
            "You returned the image after the step. Return the step alone.": (
                close(got, x + step) or close(got, x - step)
            ),
        }
    )
    p, ahead, behind = (model(y).log_softmax(1) for y in (x, x + step, x - step))
    worse = _kl(p, ahead) > _kl(p, behind)
    flipped = _kl(ahead, p) > _kl(behind, p)
    wanted = _on_side(step, worse)
    wrong = {
        "Each step is on the side that changes the answer *less*": -wanted,
        "All samples have the side that they came with. Each has its own": step,
        "All samples were turned to the other side. Each has its own": -step,
        "You compare KL(q || p). The answer on x is p, and comes first": (
            _on_side(step, flipped)
        ),
    }
    for name, steps in wrong.items():
        if close(got, steps):
            raise NotYet(f"{name}.")
    if close(got, x + wanted):
        raise NotYet("You returned the image after the step. Return the step alone.")
    if got.shape != x.shape:
        raise NotYet(
            f"You returned numbers of shape {tuple(got.shape)}; wanted `step` or "
            f"`-step` for each sample, of shape {tuple(x.shape)}."
        )
    if not close(got.abs(), step.abs()):
        raise NotYet(
            "You returned other numbers than those of `step`. Each sample gets its own "
            "step as it is, or with the other sign: no 0, no other length."
        )
    missed = int((got != wanted).flatten(1).any(1).sum())
    if missed:
        raise NotYet(
            f"{missed} of {len(x)} samples have the wrong side. Compare the KL from "
            "the answer on x to the answer on `x + step`, and on `x - step`."
        )


def _on_side(step: Tensor, ahead: Tensor) -> Tensor:
    pairs = zip(step, ahead.tolist(), strict=True)
    return torch.stack([one if keep else -one for one, keep in pairs])


@exercise(
    "Two passes: one on x, which is the target, and one on x + eps * d.",
    "Detach the first pass's logits. `kl_from_logits(target, other)` gives (batch,).",
    "`return kl_from_logits(model(x).detach(), model(x + eps * d)).mean()`",
    right="The answer on x stands fixed, and the answer beside it is drawn to it.",
)
def vat_term(answer: Callable[..., Tensor]) -> None:
    """A function of (model, x, d, eps): the adversarial term."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Linear(3, 4)
        model.weight.data.mul_(3)
        x, d = torch.randn(5, 3), nn.functional.normalize(torch.randn(5, 3))
    given = x.clone(), d.clone()
    weight, eps = model.weight.detach().clone(), 1.5
    got = answer(model, x, d, eps)
    require_unchanged(
        [model.weight], [weight], "the model, and only outputs are wanted"
    )
    require_unchanged((x, d), given, "x or d, which belong to the caller")
    log_p, log_q, far = (model(y).log_softmax(1) for y in (x, x + eps * d, x + d))
    back, square = (model(x + r * d).log_softmax(1) for r in (-eps, eps**2))
    beside = model(eps * d).log_softmax(1)
    wanted = _kl(log_p, log_q).mean()
    mistakes = {
        "p and q are the other way round. The clean answer is p": (
            _kl(log_q, log_p).mean()
        ),
        "That is one number for each sample. Take their mean": _kl(log_p, log_q),
        "That is the mean over samples and classes. `reduction='mean'` of torch's "
        "`kl_div` counts both; sum over the classes": wanted / 4,
        "You summed over the batch. Take its mean": wanted * len(x),
        "That is the cross-entropy. The KL has the entropy of p taken off": (
            -(log_p.exp() * log_q).sum(1).mean()
        ),
        "The step is d without eps": _kl(log_p, far).mean(),
        "eps stands in front of the KL. It scales d": eps * _kl(log_p, far).mean(),
        "The step is eps * eps * d": _kl(log_p, square).mean(),
        "q is the answer on eps * d alone. Add x": _kl(log_p, beside).mean(),
        "That is the largest KL of the batch. Take the mean": _kl(log_p, log_q).max(),
        "`kl_from_logits` takes logits, and you gave it probabilities": _kl(
            *(log.exp().log_softmax(1) for log in (log_p, log_q))
        ).mean(),
        "The step goes back, along -d": _kl(log_p, back).mean(),
        "The sign is wrong: the loss would ask for other answers": -wanted,
        "It is 0, as if both passes saw the same inputs": 0.0,
    }
    require_close(got, wanted, "With eps = 1.5", mistakes)
    _judge_vat_gradient(got, model, log_p, log_q)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(1)  # (batch,)


def _judge_vat_gradient(
    got: Tensor, model: nn.Module, log_p: Tensor, log_q: Tensor
) -> None:
    weight = next(model.parameters())
    if not weight.requires_grad:
        raise NotYet(
            "Your code has frozen the model: switch `requires_grad` on again, and run "
            "the last pass after that."
        )

    def by_weight(p: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor | None:
        return gradient((p * (log_p - log_q)).sum(1).mean(), weight)

    p = log_p.exp()
    found = gradient(got, weight)
    if close(found, by_weight(p.detach(), log_p.detach(), log_q)):
        return
    if found is None:
        text = (
            "no gradient comes back: both passes are detached. Let it flow through the "
            "second one"
        )
    elif close(found, by_weight(p, log_p, log_q)):
        text = (
            "a gradient leaks into the target: the clean answer is drawn toward the "
            "disturbed one as well. Detach p"
        )
    elif close(found, by_weight(p, log_p, log_q.detach())):
        text = "the wrong pass is detached: the clean answer moves and q stands still"
    else:
        text = "the gradient by the weights is another one than with a fixed p"
    raise NotYet(f"The value is right, but {text}.")


# Virtual adversarial training, whole

EPS, XI = 1.5, 0.5
_STAGES = {
    0: "With iterations=0 (the start d itself, made length 1)",
    1: "With one gradient",
    3: "With three gradients",
}


@exercise(
    "The target once, detached. Then `iterations` times: a step of xi along d, the KL "
    "there, its gradient by d. At the end a step of eps along the d that you have.",
    "Every d that you step along has length 1 in each sample: flatten it to (batch, "
    "-1), divide, and view it as before. Start each turn with `d.requires_grad_()` on "
    "a d that is cut off from its past.",
    "`change = kl_from_logits(target, model(x + xi * d)).sum()`, then "
    "`(d,) = torch.autograd.grad(change, d)`, then its length.",
    right="The whole of virtual adversarial training. The library's "
    "`virtual_adversarial_loss` adds what real models need: running statistics that "
    "stay, and one dropout for all passes.",
)
def vat_loss(answer: Callable[..., Tensor]) -> None:
    """A function of (model, x, d, eps, xi, iterations): power iteration and term."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        layers = nn.Flatten(), nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)
        model = nn.Sequential(*layers).double()
        for parameter in model.parameters():
            parameter.data.mul_(4)
        x, d = torch.randn(2, 4, 1, 2, 3, dtype=torch.float64)
    d = d * torch.arange(1.0, 5.0, dtype=torch.float64)[:, None, None, None]
    for iterations, stage in _STAGES.items():
        setting = model, x, d, EPS, XI, iterations
        kept = OLD if iterations == 3 else None  # of an earlier term of the loss
        for parameter in model.parameters():
            parameter.grad = None if kept is None else torch.full_like(parameter, kept)
        given = x.clone(), d.clone()
        got = answer(*setting)
        require_unchanged((x, d), given, "x or d, which belong to the caller")
        _require_left_alone(stage, model, x, d, kept)
        wrong = {name: _vat(*setting, **faults)[0] for name, faults in _FAULTS.items()}
        wanted, log_p, log_q = _vat(*setting)
        require_close(got, wanted.detach(), stage, wrong)
        _judge_vat_gradient(got, model, log_p, log_q)


def _require_left_alone(
    stage: str, model: nn.Module, x: Tensor, d: Tensor, kept: float | None
) -> None:
    """Refuse a search that changed gradients or what they are taken by."""
    if x.requires_grad or d.requires_grad:
        raise NotYet(
            f"{stage}: x or d has `requires_grad` now, and it belongs to the caller. "
            "Set it for a tensor of your own."
        )
    grads = [p.grad for p in model.parameters()]
    if kept is None and any(grad is not None for grad in grads):
        raise NotYet(
            f"{stage}: your search for d has left gradients in the weights. "
            "`torch.autograd.grad(change, d)` gives the one by d, and stores none."
        )
    if kept is not None and any(g is None or bool((g != kept).any()) for g in grads):
        raise NotYet(
            f"{stage}: the weights held gradients, of another term of the loss, and "
            "your search has changed or cleared them. `torch.autograd.grad(change, d)` "
            "touches none."
        )


def _length(d: Tensor, axes: Sequence[int]) -> Tensor:
    return d.square().sum(axes, keepdim=True).sqrt()


_SHORT = (
    "d is divided by its length along axis {} alone. The length of a sample runs over "
    "all axes but the first: flatten it"
)
_FAULTS: dict[str, dict[str, Any]] = {
    "d is divided by its length over the whole batch. Each sample has its own": {
        "length": lambda d: _length(d, (0, 1, 2, 3))
    },
    _SHORT.format(1): {"length": lambda d: _length(d, (1,))},
    _SHORT.format(2): {"length": lambda d: _length(d, (2,))},
    _SHORT.format(3): {"length": lambda d: _length(d, (3,))},
    "d is divided by its sum and not by its length": {
        "length": lambda d: d.sum((1, 2, 3), keepdim=True)
    },
    "d is divided by the square of its length": {
        "length": lambda d: _length(d, (1, 2, 3)) ** 2
    },
    "The start d is not of length 1 when you first step along it": {"raw": ["start"]},
    "What a gradient gives is not of length 1 when you step along it": {
        "raw": ["middle", "end"]
    },
    "What a gradient by `xi * d` gives is not of length 1 when you step along it": {
        "raw": ["middle", "end"],
        "scale": 1.0,
    },
    "Nothing was made length 1": {"raw": ["start", "middle", "end"]},
    "The trial step has no xi": {"trial": 1.0},
    "The trial step takes eps and not xi": {"trial": EPS},
    "The trial step leaves out d, where the gradient is 0": {"trial": 0.0},
    "The last step has no eps": {"last": 1.0},
    "The last step takes xi and not eps": {"last": XI},
    "d goes downhill, toward the *smallest* change": {"turned": True},
    "The last step goes back, along -d": {"last": -EPS},
    "The last step takes eps times xi": {"last": EPS * XI},
    "d is the start. No gradient was taken": {"turns": 0},
    "One gradient was taken, and not `iterations`": {"turns": 1},
    "One gradient is missing": {"turns": 2},
    "In the search p and q are the other way round. The clean answer is p": {
        "flips": ["search"]
    },
    "In the loss p and q are the other way round. The clean answer is p": {
        "flips": ["loss"]
    },
    "p and q are the other way round, both times. The clean answer is p": {
        "flips": ["search", "loss"]
    },
    "The gradient is taken by the d of before it was made length 1. Cut d off after "
    "that, with `detach()`": {"projected": True},
    "The gradient is taken by the d of before it was made length 1, and was not made "
    "length 1 itself": {"projected": True, "raw": ["middle", "end"]},
    "You summed over the batch. Take its mean": {"samples": 1},
    "It is 0, as if both passes saw the same inputs": {"last": 0.0},
}


def _vat(
    model: nn.Module,
    x: Tensor,
    d: Tensor,
    eps: float,
    xi: float,
    iterations: int,
    **faults: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss, log p and log q; a fault makes them those of a mistake."""
    length = faults.get("length", lambda d: _length(d, (1, 2, 3)))
    raw, flips = faults.get("raw", ()), faults.get("flips", ())
    turns = faults.get("turns", iterations)
    log_p = model(x).log_softmax(1)
    d = d if "start" in raw else d / length(d)
    for turn in range(turns):
        slope = _slope(model, x, faults.get("trial", xi) * d, flip="search" in flips)
        slope = slope * faults.get("scale", xi)  # by d, and not by xi * d
        if faults.get("projected"):
            slope = slope - (slope * d).sum((1, 2, 3), keepdim=True) * d
        place = "end" if turn == turns - 1 else "middle"
        d = slope if place in raw else slope / length(slope)
        d = -d if faults.get("turned") else d
    log_q = model(x + faults.get("last", eps) * d).log_softmax(1)
    each = _kl(log_q, log_p) if "loss" in flips else _kl(log_p, log_q)
    return each.sum() / faults.get("samples", len(x)), log_p, log_q


def _slope(model: nn.Module, x: Tensor, trial: Tensor, *, flip: bool) -> Tensor:
    """Return the gradient of each sample's KL by its step, one sample at a time."""
    rows = []
    for one, step in zip(x, trial.detach(), strict=True):
        step = step.clone().requires_grad_()
        log_p = model(one[None]).log_softmax(1).detach()
        log_q = model((one + step)[None]).log_softmax(1)
        change = _kl(log_q, log_p) if flip else _kl(log_p, log_q)
        rows += torch.autograd.grad(change.sum(), step)
    return torch.stack(rows)
