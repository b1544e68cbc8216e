"""Exercises of lesson 05, Train against an opponent.

The oracles are sums written out by hand and one sample taken at a time; none of them
is the code that the lesson teaches. The two larger exercises are judged in
`began_step_judge` and `vat_judge`.
"""

from collections.abc import Callable
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from course_lib.lessons.adversaries import began_step_judge, vat_judge
from course_lib.lessons.adversaries.vat_judge import judge_gradient, kl
from course_lib.lessons.checks import (
    as_text,
    close,
    gradient,
    name_mistake,
    reject,
    require_close,
    require_kind,
    require_parts,
    require_unchanged,
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
    if "k" not in dict(memory.named_buffers()):
        raise NotYet(
            "k is a plain attribute. A tensor is saved only if it was registered: "
            '`self.register_buffer("k", ...)`.'
        )
    if "k" not in memory.state_dict():
        raise NotYet(
            "k is a buffer with `persistent=False`, which `state_dict` leaves out."
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
    return require_parts(got, 3, "three numbers: the loss, the new k and M")


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
    began_step_judge.judge(answer)


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
    if got.shape == x.shape[:1]:
        raise NotYet(
            "You returned one number for each sample; wanted the step itself, shaped "
            "as x."
        )
    p, ahead, behind = (model(y).log_softmax(1) for y in (x, x + step, x - step))
    worse = kl(p, ahead) > kl(p, behind)
    flipped = kl(ahead, p) > kl(behind, p)
    wanted = _on_side(step, worse)
    mistakes = {
        "Each step is on the side that changes the answer *less*": -wanted,
        "All samples have the side that they came with. Each has its own": step,
        "All samples were turned to the other side. Each has its own": -step,
        "You compare KL(q || p). The answer on x is p, and comes first": (
            _on_side(step, flipped)
        ),
    }
    name_mistake(got, mistakes)
    if any(close(got, x + moved) for moved in (step, -step, wanted)):
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
    wanted = kl(log_p, log_q).mean()
    mistakes = {
        "p and q are the other way round. The clean answer is p": (
            kl(log_q, log_p).mean()
        ),
        "That is one number for each sample. Take their mean": kl(log_p, log_q),
        "That is the mean over samples and classes. `reduction='mean'` of torch's "
        "`kl_div` counts both; sum over the classes": wanted / 4,
        "You summed over the batch. Take its mean": wanted * len(x),
        "That is the cross-entropy. The KL has the entropy of p taken off": (
            -(log_p.exp() * log_q).sum(1).mean()
        ),
        "The step is d without eps": kl(log_p, far).mean(),
        "eps stands in front of the KL. It scales d": eps * kl(log_p, far).mean(),
        "The step is eps * eps * d": kl(log_p, square).mean(),
        "q is the answer on eps * d alone. Add x": kl(log_p, beside).mean(),
        "That is the largest KL of the batch. Take the mean": kl(log_p, log_q).max(),
        "`kl_from_logits` takes logits, and you gave it probabilities": kl(
            *(log.exp().log_softmax(1) for log in (log_p, log_q))
        ).mean(),
        "The step goes back, along -d": kl(log_p, back).mean(),
        "The sign is wrong: the loss would ask for other answers": -wanted,
        "It is 0, as if both passes saw the same inputs": 0.0,
    }
    require_close(got, wanted, "With eps = 1.5", mistakes)
    judge_gradient(got, model, log_p, log_q)


# Virtual adversarial training, whole


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
    vat_judge.judge(answer)
