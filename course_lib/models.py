"""The small networks that the lessons use, as plain `nn.Sequential`s."""

from collections.abc import Sequence
from itertools import pairwise

from torch import nn


def mlp(sizes: Sequence[int] = (64, 32, 10), *, dropout: float = 0.0) -> nn.Sequential:
    """Fully connected layers of the given sizes, ReLU between them.

    Inputs of any shape `(batch, ...)` are flattened to `(batch, sizes[0])`; the
    outputs `(batch, sizes[-1])` are logits.

    Args:
        sizes: input, hidden and output widths; at least two positive ints.
        dropout: probability in [0, 1) of dropping each hidden unit; 0 adds no layer.

    Raises:
        ValueError: fewer than two sizes, a size below 1, a dropout out of range.

    >>> [tuple(p.shape) for p in mlp((64, 32, 10)).parameters()]
    [(32, 64), (32,), (10, 32), (10,)]
    """
    _check_positive("mlp", "sizes", sizes)
    if len(sizes) < 2:
        raise ValueError(
            f"mlp: got sizes={tuple(sizes)}; wanted at least an input and an output "
            "width, for example mlp((64, 10))."
        )
    if not 0 <= dropout < 1:
        raise ValueError(f"mlp: got dropout={dropout}; wanted a number in [0, 1).")
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise(sizes[:-1]):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
        layers += [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))


def small_cnn(
    size: int = 8,
    channels: int = 1,
    classes: int = 10,
    *,
    widths: Sequence[int] = (8, 16),
) -> nn.Sequential:
    """A 3x3 convolution, ReLU and 2x2 max pooling for each width, then a linear layer.

    Takes `(batch, channels, size, size)`, returns logits `(batch, classes)`.

    Args:
        size: height and width of the images; at least 2 for each pooling.
        channels: input channels, 1 for gray images.
        classes: number of logits.
        widths: output channels of the convolutions.

    Raises:
        ValueError: a number below 1, or images too small for the poolings.

    >>> sum(p.numel() for p in small_cnn().parameters())
    1898
    """
    _check_positive("small_cnn", "widths", widths)
    _check_positive("small_cnn", "size, channels, classes", (size, channels, classes))
    left = size // 2 ** len(widths)  # height and width after the last pooling
    if left < 1:
        raise ValueError(
            f"small_cnn: images of {size}x{size} vanish after {len(widths)} poolings. "
            "Take fewer widths or larger images."
        )
    layers: list[nn.Module] = []
    for before, after in zip((channels, *widths[:-1]), widths, strict=True):
        conv = nn.Conv2d(before, after, kernel_size=3, padding=1)
        layers += [conv, nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(widths[-1] * left * left, classes)
    )


def _check_positive(place: str, name: str, numbers: Sequence[int]) -> None:
    if not isinstance(numbers, Sequence):
        raise ValueError(
            f"{place}: got {name}={numbers!r}; wanted a sequence of whole numbers, "
            "for example (64, 32, 10)."
        )
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ValueError(
                f"{place}: got {name}={tuple(numbers)}; wanted whole numbers of at "
                f"least 1, and {number!r} is not one."
            )
    if not numbers:
        raise ValueError(f"{place}: got no {name}; wanted at least one number.")
