"""What a loss of several passes costs, in steps of a plain one.

The MNIST network of Keras 1.2 at batch 128. A VAT step is a plain step with
`virtual_adversarial_loss` added: one gradient by the inputs and one pass that learns;
with dropout also a clean pass that drops the same units. A BEGAN step is compared with
its passes alone: forward and backward through both players, without optimizer, k,
latents or checks. The ways take turns in random order, and each is compared with the
plain one of its own round. Exits with 1 where a bound is missed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from _networks import mnist_cnn
from _timing import Ways, compare, complain, parse
from torch import Tensor, nn

from course_lib.began import DIGITS
from course_lib.began.run import Run
from course_lib.device import pick_device
from course_lib.losses import absolute_error
from course_lib.vat import virtual_adversarial_loss

BATCH = 128
REUSED = "VAT, the clean logits given"
OWN = "VAT, with dropout"
PASSES, PAPER = "BEGAN's passes alone", "passes of the paper's form"
WHOLE = "BEGAN, `Run.step`"
BOUNDS = {("VAT step", REUSED): 3.2}
BOUNDS[("BEGAN step", WHOLE)] = 1.15


def main() -> int:
    """Measure, print one table, and return 1 where a bound is missed."""
    options, device = parse(__doc__, rounds=15), pick_device()
    return complain(compare(tasks(device), BOUNDS, options.rounds, device))


def tasks(device: torch.device) -> list[tuple[str, Ways, dict[str, str]]]:
    """Return (name, ways, {way: what it is compared with}) of each comparison."""
    return [
        ("VAT step", vat_steps(device), {REUSED: "plain", OWN: "dropout"}),
        ("BEGAN step", began_steps(device), {WHOLE: PASSES, PAPER: PASSES}),
    ]


def vat_steps(device: torch.device) -> Ways:
    images = torch.rand(BATCH, 1, 28, 28).to(device)
    labels = torch.randint(10, (BATCH,)).to(device)
    return {
        "plain": step(mnist_cnn(), images, labels),
        REUSED: step(mnist_cnn(), images, labels, vat=reusing),
        "dropout": step(mnist_cnn(dropout=True), images, labels),
        OWN: step(mnist_cnn(dropout=True), images, labels, vat=anew),
    }


def reusing(model: nn.Module, images: Tensor, logits: Tensor) -> Tensor:
    return virtual_adversarial_loss(model, images, logits=logits)


def anew(model: nn.Module, images: Tensor, logits: Tensor) -> Tensor:
    return virtual_adversarial_loss(model, images)


def step(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    vat: Callable[[nn.Module, Tensor, Tensor], Tensor] | None = None,
) -> Callable[[], None]:
    model = model.to(images.device)
    optimizer = torch.optim.Adam(model.parameters())

    def take() -> None:
        optimizer.zero_grad()
        logits = model(images)
        loss = nn.functional.cross_entropy(logits, labels)
        if vat:
            loss = loss + vat(model, images, logits)
        loss.backward()
        optimizer.step()

    return take


def began_steps(device: torch.device) -> Ways:
    """Return the digits' step, its passes, and those of two separate losses."""
    runs = {name: Run(DIGITS, seed=0, device=device) for name in (PASSES, PAPER)}
    images = torch.rand(DIGITS.batch_size, 1, 8, 8).to(device)
    latents = torch.rand(DIGITS.batch_size, DIGITS.latent).to(device)

    def error(run: Run, pixels: Tensor) -> Tensor:
        return absolute_error(run.discriminator(pixels), pixels).mean()

    def passes() -> None:
        run = runs[PASSES]
        run.optimizer.zero_grad()
        error(run, run.generator(latents)).backward()
        error(run, images).backward()

    def paper() -> None:
        run = runs[PAPER]
        run.optimizer.zero_grad()
        made = run.generator(latents)
        (error(run, images) - run.loss.k * error(run, made.detach())).backward()
        weights = list(run.generator.parameters())
        torch.autograd.grad(error(run, made), weights)

    whole = Run(DIGITS, seed=0, device=device)
    return {PASSES: passes, WHOLE: lambda: whole.step(images), PAPER: paper}


if __name__ == "__main__":
    sys.exit(main())
