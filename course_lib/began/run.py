"""The state of a BEGAN run: its networks, its steps, and what a checkpoint holds."""

import math
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from course_lib.began.history import History, Record
from course_lib.began.losses import BEGANLoss, gradients_
from course_lib.began.networks import Config, autoencoder, generator
from course_lib.device import forget_casts
from course_lib.training.finite import FiniteSteps
from course_lib.training.history import TrainingError


class Run:
    """The state of a run: `generator`, `discriminator`, `loss`, `history`, `steps`.

    `train` and `watch` make one and train it. Its weights, batches and latents depend
    on the seed alone, whatever else draws random numbers.
    """

    def __init__(self, config: Config, *, seed: int, device: torch.device) -> None:
        self.config, self.seed, self.device = config, seed, device
        self.steps, self.history = 0, History()
        with torch.random.fork_rng(devices=[]):  # the weights are drawn on the CPU
            torch.default_generator.set_state(stream(seed, 0).get_state())
            self.generator = generator(config).to(device)
            self.discriminator = autoencoder(config).to(device)
        self.loss = BEGANLoss(gamma=config.gamma, lambda_k=config.lambda_k).to(device)
        both = [*self.generator.parameters(), *self.discriminator.parameters()]
        self.optimizer = torch.optim.Adam(both, fused=True)
        self._finite = FiniteSteps(self.optimizer)
        self._random = stream(seed, 1)

    def step(self, images: Tensor) -> Tensor:
        """Update both players, then k and M; return L_real, L_gen and M, shape (3,).

        A GPU is not waited for: after a step that fails there, the steps up to the next
        `check` change nothing.

        Raises:
            TrainingError: as `check` does, on the CPU.
        """
        latents = self._latents(len(images), self._random)
        self.optimizer.param_groups[0]["lr"] = learning_rate(self.config, self.steps)
        self.optimizer.zero_grad()
        players = self.loss, self.generator, self.discriminator
        mixed = self.config.mixed_precision
        errors = gradients_(*players, images, latents, mixed_precision=mixed)
        moved = self.optimizer.param_groups[0]["params"]
        self._finite.note((self.steps, "errors"), errors)
        grads = [p.grad for p in moved if p.grad is not None]
        self._finite.note_gradients((self.steps, "gradients"), grads)
        if self._finite.is_due:
            self.check()
        self.optimizer.step()
        forget_casts()
        if (skips := self._finite.skips) is not None:  # nan leaves k unchanged
            errors = [error.where(skips == 0, math.nan) for error in errors]
        self.loss.update_(*errors)
        self.steps += 1
        return torch.stack([*errors, self.loss.M])

    def check(self) -> None:
        """Look at the steps since the last check; a GPU is waited for.

        Raises:
            TrainingError: an error or a gradient is not finite; the weights and k are
                those before that step.
        """
        for (step, kind), numbers in self._finite.read():
            if all(map(math.isfinite, numbers)):
                continue
            self.steps = step
            found = "a gradient is nan or infinite, though the errors are finite"
            advice = ""
            if kind == "errors":
                real, made = numbers
                found = (
                    f"L_real is {real:.4g} and L_gen {made:.4g}; wanted finite numbers"
                )
                advice = ", or look for nan in the images"
            raise TrainingError(
                f"began: step {step + 1}: {found}. The weights and k are those before "
                f"this step. Lower the learning rate{advice}.",
                self.history,
            )

    @torch.no_grad()
    def samples(self, count: int = 64) -> Tensor:
        """Return generated pixels in [0, 1], from the same latents at each call."""
        latents = self._latents(count, stream(self.seed, 2))
        return self.generator(latents).clamp(0, 1)

    def _latents(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw from U(-1, 1), on the CPU: the same numbers for every device."""
        drawn = torch.rand(count, self.config.latent, generator=generator)
        return (2 * drawn - 1).to(self.device)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a run needs to continue to the same numbers.

        Raises:
            TrainingError: as `check` does.
        """
        self.check()
        parts = {name: getattr(self, name).state_dict() for name in PARTS}
        records = [tuple(record) for record in self.history.records]
        own = {"steps": self.steps, "records": records, "seed": self.seed}
        random = self._random.get_state()
        return {**parts, **own, "random": random, "config": asdict(self.config)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state of a run with the same seed and configuration.

        The number of steps in the configuration may differ: a run can be extended.

        Raises:
            ValueError: the seed or the configuration differs.
        """
        ours = {**asdict(self.config), "seed": self.seed, "steps": None}
        theirs = {**state["config"], "seed": state["seed"], "steps": None}
        for name, value in ours.items():
            if theirs.get(name) != value:
                raise ValueError(
                    f"load_state_dict: the checkpoint's run has {name}="
                    f"{theirs.get(name)!r}, this one {value!r}. Take that value, or "
                    "another file."
                )
        for name in PARTS:
            getattr(self, name).load_state_dict(state[name])
        self._random.set_state(state["random"])
        self.steps = state["steps"]
        self.history.records[:] = [Record(*each) for each in state["records"]]


PARTS = ("generator", "discriminator", "loss", "optimizer")


def stream(seed: int, number: int) -> torch.Generator:
    """Return generator 0 to 3: of weights, latents, samples, order of the images."""
    return torch.Generator().manual_seed(4 * seed + number)


def learning_rate(config: Config, step: int) -> float:
    """Return the rate of a step, counted from 0.

    >>> from course_lib.began import FOLDER_64
    >>> [learning_rate(FOLDER_64, step) for step in (0, 4999, 5000, 10**6)]
    [0.0001, 0.0001, 9e-05, 1e-05]
    """
    rate = config.learning_rate * config.decay ** (step // config.decay_every)
    return max(rate, config.lowest_rate)
