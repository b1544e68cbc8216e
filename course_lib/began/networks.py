"""The two networks of BEGAN, and the configuration of a run."""

import math
from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from course_lib.began.losses import BEGANLoss, is_number
from course_lib.checks import require_ints


@dataclass(frozen=True)
class Config:
    """All settings of a run; `dataclasses.replace` changes one.

    Args:
        size: height and width of the images, a multiple of 2**(len(widths) - 1).
        channels: 1 for gray images, 3 for color.
        latent: numbers in z, and in the autoencoder's code.
        widths: channels of the encoder's convolutions; each after the first halves the
            image. The first is also the decoders' width.
        steps: updates of both players in the whole run.
        batch_size: real images in a step; as many are generated.
        gamma, lambda_k: see BEGANLoss.
        learning_rate: Adam's, at the start.
        decay: factor on the learning rate after each `decay_every` steps, in (0, 1].
        decay_every: in steps.
        lowest_rate: the learning rate never decays below it.
        mixed_precision: compute in bfloat16 where torch.autocast finds it safe. Its
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
        BEGANLoss(gamma=self.gamma, lambda_k=self.lambda_k)  # checks both
        if not isinstance(self.widths, tuple | list):
            raise ValueError(
                f"Config: got widths={self.widths!r}; wanted a tuple of ints."
            )
        names = ("size", "channels", "latent", "steps", "batch_size", "decay_every")
        counts = {name: getattr(self, name) for name in names}
        counts |= {f"widths[{i}]": width for i, width in enumerate(self.widths)}
        require_ints("Config", **counts)
        if not self.widths or self.size % 2 ** (len(self.widths) - 1):
            raise ValueError(
                f"Config: got size={self.size} and {len(self.widths)} widths; wanted "
                "at least one width, and a size that can be halved for each further "
                "one. Take fewer widths, or another size."
            )
        low, high, decay = self.lowest_rate, self.learning_rate, self.decay
        are_numbers = all(map(is_number, (low, high, decay)))
        if not (are_numbers and 0 < low <= high < math.inf and 0 < decay <= 1):
            raise ValueError(
                f"Config: got learning_rate={high!r}, lowest_rate={low!r} and "
                f"decay={decay!r}; wanted 0 < lowest_rate <= learning_rate and a decay "
                "in (0, 1]."
            )


# The defaults are for long runs. Here k must adapt within a minute, and with gamma at
# 0.5 the generator tends to make one image for every z.
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
    for number in range(doublings + 1):
        layers += [nn.Upsample(scale_factor=2)] if number else []
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
    """Initialize as Keras does: Glorot's uniform weights, biases of 0.

    torch's default shrinks a signal by about sqrt(3) in each layer. The first images
    would hardly depend on z, and the generator would make one image for every z.
    """
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        else:
            nn.init.xavier_uniform_(parameter)
    return network
