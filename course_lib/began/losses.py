"""The losses of BEGAN: an autoencoder and a generator, kept in balance by k.

The discriminator is an autoencoder. It learns to rebuild real images well and generated
ones badly; the generator learns to be rebuilt well. With L_real and L_gen for the two
mean absolute errors, the discriminator minimizes L_real - k * L_gen and the generator
L_gen. After each step k moves so that L_gen approaches gamma * L_real.

Source: Berthelot et al. 2017, arXiv:1703.10717.
"""

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from course_lib.losses import absolute_error
from course_lib.trees import widened


class BEGANLoss(nn.Module):
    """The discriminator's loss L_real - k * L_gen, with k and M as its state.

    `forward` uses the current k; `update_`, called after the optimizers' step, sets
        k = clip(k + lambda_k * (gamma * L_real - L_gen), 0, 1)
        M = L_real + |gamma * L_real - L_gen|, which falls as training converges.
    Both are buffers: they move with the module and are saved in its state_dict. In
    bfloat16 a step of lambda_k would be rounded away, so `.half()` and `.bfloat16()`
    leave both in float32. M is nan before the first update, and after an update by an
    error that is not finite, which leaves k unchanged.

    Args:
        gamma: the target of L_gen / L_real, in [0, 1]; low is sharp, high is diverse.
        lambda_k: the step size of k, finite and > 0.
        k: its first value, in [0, 1].

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
            if not (is_number(value) and 0 <= value <= 1):
                raise ValueError(
                    f"BEGANLoss: got {name}={value!r}; wanted it in [0, 1]."
                )
        if not (is_number(lambda_k) and 0 < lambda_k < math.inf):
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
        """Update k and M from the two scalar errors of the last step.

        Raises:
            ValueError: an error is not a scalar.
        """
        real, generated = (torch.as_tensor(e).to(self.k) for e in (real, generated))
        for name, error in (("real", real), ("generated", generated)):
            if error.dim():
                raise ValueError(
                    f"update_: the {name} error has shape {tuple(error.shape)}; wanted "
                    "a scalar, the mean over the batch."
                )
        imbalance = self.gamma * real - generated
        moved = (self.k + self.lambda_k * imbalance).clamp_(0, 1)
        self.M.copy_(real + imbalance.abs())
        self.k.copy_(moved.where(self.M.isfinite(), self.k))  # no wait for a GPU

    def _apply(
        self, fn: Callable[[Tensor], Tensor], recurse: bool = True
    ) -> "BEGANLoss":
        def in_float32(x: Tensor) -> Tensor:
            y = fn(x)
            is_half = y.dtype in (torch.float16, torch.bfloat16)
            return widened(x.to(y.device)) if is_half else y

        return super()._apply(in_float32, recurse)

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        for name, value in self._buffers.items():  # the file's dtype if assign=True
            dtype = torch.promote_types(value.dtype, torch.float32)  # k may be an int
            self._buffers[name] = value.to(dtype)

    def extra_repr(self) -> str:
        """Return the two constants, for the module's repr."""
        return f"gamma={self.gamma}, lambda_k={self.lambda_k}"


def is_number(value: object) -> bool:
    """Return whether it is one real number, or a tensor that holds one."""
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
    the generator its gradient; the discriminator's is then multiplied by -k, and the
    gradient of L_real is added. The gradients equal those of the paper's two losses.

    Args:
        loss: its k is read, not changed.
        generator: latents -> images.
        discriminator: images -> images; its gradients must be None or zero.
        images: real pixels `(batch, channels, height, width)`.
        latents: `(batch, latent)`.
        mixed_precision: see Config.

    Raises:
        ValueError: the generator's images differ in shape from the real ones, or the
            reconstructions from their images; the discriminator has gradients.
    """
    for name, parameter in discriminator.named_parameters():
        if parameter.grad is not None and parameter.grad.any():
            raise ValueError(
                f"gradients_: the discriminator's {name!r} has a gradient, which would "
                "be multiplied by -k. Call optimizer.zero_grad() before."
            )
    mixed = torch.autocast(images.device.type, torch.bfloat16, enabled=mixed_precision)
    with mixed:
        made = generator(latents)
        if made.shape != images.shape:
            raise ValueError(
                f"gradients_: the generator made images of shape {tuple(made.shape)}; "
                f"the real ones have {tuple(images.shape)}. Use one size, and as many "
                "latents as images."
            )
        generated = absolute_error(discriminator(made), made).mean()
    generated.backward()
    grads = [p.grad for p in discriminator.parameters() if p.grad is not None]
    torch._foreach_mul_(grads, -loss.k)
    with mixed:
        real = absolute_error(discriminator(images), images).mean()
    real.backward()
    return real.detach(), generated.detach()
