"""BEGAN: an autoencoder and a generator, balanced by a loss that remembers.

The discriminator is an autoencoder. It learns to rebuild real images well and generated
ones badly; the generator learns to be rebuilt well. With L_real and L_gen for the two
mean absolute errors, the discriminator minimizes L_real - k * L_gen and the generator
L_gen. After each step k moves so that L_gen approaches gamma * L_real.

Source: Berthelot et al. 2017, arXiv:1703.10717.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from course_lib.losses import absolute_error


class BEGANLoss(nn.Module):
    """The discriminator's loss L_real - k * L_gen, with k and M as its state.

    `forward` takes the k of now; `update_`, called after the optimizers' step, sets
        k = clip(k + lambda_k * (gamma * L_real - L_gen), 0, 1)
        M = L_real + |gamma * L_real - L_gen|, which falls as training converges.
    Both are buffers: they move with the module and are saved in its state_dict. In
    bfloat16 a step of lambda_k is lost beside k, so `.half()` and `.bfloat16()` leave
    both in float32. M is nan before the first update, and after an update by an error
    that is not finite, which leaves k where it was.

    Args:
        gamma: the L_gen / L_real to keep, in [0, 1]; low is sharp, high is diverse.
        lambda_k: how fast k follows, finite and > 0.
        k: where it starts, in [0, 1].

    Raises:
        ValueError: a number out of its range.

    >>> loss = BEGANLoss(gamma=0.5, lambda_k=0.1)
    >>> real, generated = torch.tensor(0.8), torch.tensor(0.2)
    >>> loss(real, generated)
    tensor(0.8000)
    >>> loss.update_(real, generated)
    >>> loss.k, loss.M, loss(real, generated)
    (tensor(0.0200), tensor(1.), tensor(0.7960))
    """

    k: Tensor
    M: Tensor

    def __init__(
        self, *, gamma: float = 0.5, lambda_k: float = 0.001, k: float = 0.0
    ) -> None:
        super().__init__()
        for name, value in (("gamma", gamma), ("k", k)):
            if not (_is_number(value) and 0 <= value <= 1):
                raise ValueError(
                    f"BEGANLoss: got {name}={value!r}; wanted it in [0, 1]."
                )
        if not (_is_number(lambda_k) and 0 < lambda_k < math.inf):
            raise ValueError(
                f"BEGANLoss: got lambda_k={lambda_k!r}; wanted a finite number > 0. "
                "At 0 the balance k would never move."
            )
        self.gamma, self.lambda_k = float(gamma), float(lambda_k)
        dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)
        self.register_buffer("k", torch.tensor(float(k), dtype=dtype))
        self.register_buffer("M", torch.tensor(math.nan, dtype=dtype))

    def forward(self, real: Tensor, generated: Tensor) -> Tensor:
        """Return real - k * generated, from two scalar errors."""
        return real - self.k * generated

    @torch.no_grad()
    def update_(self, real: Tensor, generated: Tensor) -> None:
        """Move k and M by the errors of the step that was just taken.

        Raises:
            ValueError: an error is not a scalar.
        """
        errors = [torch.as_tensor(error).to(self.k) for error in (real, generated)]
        for name, error in zip(("real", "generated"), errors, strict=True):
            if error.dim():
                raise ValueError(
                    f"update_: the {name} error has shape {tuple(error.shape)}; wanted "
                    "a scalar, the mean over the batch."
                )
        imbalance = self.gamma * errors[0] - errors[1]
        moved = (self.k + self.lambda_k * imbalance).clamp_(0, 1)
        self.M.copy_(errors[0] + imbalance.abs())
        self.k.copy_(moved.where(self.M.isfinite(), self.k))  # no wait for a GPU

    def _apply(
        self, fn: Callable[[Tensor], Tensor], recurse: bool = True
    ) -> "BEGANLoss":
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, after in self._buffers.items():
            if after.dtype in _HALVES:  # from what it was, not from its rounding
                self._buffers[name] = _at_least_float32(before[name].to(after.device))
        return self

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        for name, value in self._buffers.items():  # with assign=True, of the file's
            self._buffers[name] = _at_least_float32(value)

    def extra_repr(self) -> str:
        """Return the two constants, for the module's repr."""
        return f"gamma={self.gamma}, lambda_k={self.lambda_k}"


_HALVES = (torch.float16, torch.bfloat16)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in _HALVES else x


def _is_number(value: object) -> bool:
    is_one = isinstance(value, Tensor) and value.numel() == 1
    return is_one or (isinstance(value, Real) and not isinstance(value, bool))


def gradients_(
    loss: BEGANLoss,
    generator: nn.Module,
    discriminator: nn.Module,
    images: Tensor,
    latents: Tensor,
    *,
    mixed_precision: bool = False,
) -> tuple[Tensor, Tensor]:
    """Add to each player the gradient of its own loss; return (L_real, L_gen).

    One pass over the generated images serves both players: backward through L_gen gives
    the generator its gradient, and the discriminator one that lacks the factor -k. It
    is multiplied by it, and the gradient of L_real is added. The paper's two losses,
    each with a pass of its own, have the same gradients.

    Args:
        loss: its k is read, and not changed.
        generator: latents -> images.
        discriminator: images -> images; its gradients must be None or zero.
        images: real pixels `(batch, channels, height, width)`.
        latents: `(batch, latent)`.
        mixed_precision: see Config.

    Raises:
        ValueError: the generator's images differ in shape from the real ones, or the
            reconstructions from their images; the discriminator has gradients.
    """
    _require_no_gradients(discriminator)
    mixed = torch.autocast(images.device.type, torch.bfloat16, enabled=mixed_precision)
    with mixed:
        made = generator(latents)
        _require_shape(made, images)
        generated = absolute_error(discriminator(made), made).mean()
    generated.backward()
    grads = [p.grad for p in discriminator.parameters() if p.grad is not None]
    torch._foreach_mul_(grads, -loss.k)
    with mixed:
        real = absolute_error(discriminator(images), images).mean()
    real.backward()
    return real.detach(), generated.detach()


def _require_no_gradients(discriminator: nn.Module) -> None:
    for name, parameter in discriminator.named_parameters():
        if parameter.grad is not None and parameter.grad.any():
            raise ValueError(
                f"gradients_: the discriminator's {name!r} has a gradient, which would "
                "be multiplied by -k. Call optimizer.zero_grad() before."
            )


def _require_shape(made: Tensor, images: Tensor) -> None:
    if made.shape != images.shape:
        raise ValueError(
            f"gradients_: the generator made images of shape {tuple(made.shape)}; the "
            f"real ones have {tuple(images.shape)}. Use one size, and as many latents "
            "as images."
        )


@dataclass(frozen=True)
class Config:
    """What a run is made of, but for its images; `dataclasses.replace` changes one.

    Args:
        size: height and width of the images, a multiple of 2**(len(widths) - 1).
        channels: 1 for gray images, 3 for color.
        latent: numbers in z, and in the autoencoder's code.
        widths: channels of the encoder's convolutions; each further one halves the
            image. The first is also the decoders' width.
        steps: updates of both players in the whole run.
        batch_size: real images in a step, and as many generated ones.
        gamma, lambda_k: see BEGANLoss.
        learning_rate: Adam's, at the start.
        decay: factor on the learning rate after each `decay_every` steps, in (0, 1].
        decay_every: in steps.
        lowest_rate: where the decay of the learning rate ends.
        mixed_precision: compute in bfloat16 where torch.autocast holds it safe. Its
            range is float32's, so no loss scaling is needed.

    Raises:
        ValueError: a number out of its range.
    """

    size: int
    channels: int
    latent: int
    widths: tuple[int, ...]
    steps: int
    batch_size: int = 16
    gamma: float = 0.5
    lambda_k: float = 0.001
    learning_rate: float = 1e-4
    decay: float = 0.9
    decay_every: int = 5000
    lowest_rate: float = 1e-5
    mixed_precision: bool = False

    def __post_init__(self) -> None:
        BEGANLoss(gamma=self.gamma, lambda_k=self.lambda_k)  # refuses wrong ones
        if not isinstance(self.widths, tuple | list):
            raise ValueError(
                f"Config: got widths={self.widths!r}; wanted a tuple of ints."
            )
        names = ("size", "channels", "latent", "steps", "batch_size", "decay_every")
        counts = {name: getattr(self, name) for name in names}
        counts |= {f"widths[{i}]": width for i, width in enumerate(self.widths)}
        for name, count in counts.items():
            _require_count("Config", name, count)
        parts = 2 ** (len(self.widths) - 1)
        if not self.widths or self.size % parts:
            raise ValueError(
                f"Config: got size={self.size} and {len(self.widths)} widths; wanted "
                "at least one width, and a size that can be halved for each further "
                "one. Take fewer widths, or another size."
            )
        rates = self.lowest_rate, self.learning_rate
        are_numbers = all(map(_is_number, (*rates, self.decay)))
        if not (
            are_numbers and 0 < rates[0] <= rates[1] < math.inf and 0 < self.decay <= 1
        ):
            raise ValueError(
                f"Config: got learning_rate={rates[1]!r}, "
                f"lowest_rate={rates[0]!r} and decay={self.decay!r}; wanted 0 < "
                "lowest_rate <= learning_rate and a decay in (0, 1]."
            )


def _require_count(place: str, name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{place}: got {name}={value!r}; wanted an int >= 1.")


# The defaults are for long runs. Here k must follow within a minute, and with gamma at
# 0.5 the generator tends to settle on one image for every z.
DIGITS = Config(
    size=8,
    channels=1,
    latent=32,
    widths=(16, 32),
    steps=2400,
    gamma=0.8,
    lambda_k=0.2,
    learning_rate=6e-4,
    decay_every=300,
    lowest_rate=1e-4,
)
FOLDER_64 = Config(
    size=64,
    channels=3,
    latent=64,
    widths=(128, 256, 384, 512),
    steps=200_000,
    mixed_precision=True,
)


def generator(config: Config) -> nn.Sequential:
    """Return the decoder z `(batch, latent)` -> `(batch, channels, size, size)`.

    The last convolution is linear, so a pixel may lie outside [0, 1].

    >>> sum(p.numel() for p in generator(FOLDER_64).parameters())
    1716611
    """
    width, doublings = config.widths[0], len(config.widths) - 1
    small = config.size >> doublings
    layers: list[nn.Module] = [nn.Linear(config.latent, width * small**2)]
    layers.append(nn.Unflatten(1, (width, small, small)))
    for _ in range(doublings):
        layers += [*_conv(width, width), *_conv(width, width)]
        layers.append(nn.Upsample(scale_factor=2))
    layers += [*_conv(width, width), *_conv(width, width)]
    layers.append(nn.Conv2d(width, config.channels, 3, padding=1))
    return _initialized(nn.Sequential(*layers))


def autoencoder(config: Config) -> nn.Sequential:
    """Return the discriminator: an encoder to `(batch, latent)`, then a decoder.

    >>> [sum(p.numel() for p in part.parameters()) for part in autoencoder(FOLDER_64)]
    [9476032, 1716611]
    """
    widths = config.widths
    layers = _conv(config.channels, widths[0])
    for before, after in pairwise(widths):
        layers += [*_conv(before, before), *_conv(before, after, stride=2)]
    layers += [*_conv(widths[-1], widths[-1]), nn.Flatten()]
    small = config.size >> (len(widths) - 1)
    encoder = nn.Sequential(*layers, nn.Linear(widths[-1] * small**2, config.latent))
    return nn.Sequential(_initialized(encoder), generator(config))


def _conv(before: int, after: int, *, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(before, after, 3, stride=stride, padding=1), nn.ELU()]


def _initialized(network: nn.Sequential) -> nn.Sequential:
    """Start as in Keras: Glorot's uniform weights, no bias.

    torch's own start shrinks a signal by about sqrt(3) a layer. The first images would
    hardly depend on z, and the generator would stay at one image for all.
    """
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        else:
            nn.init.xavier_uniform_(parameter)
    return network
