"""The network that the benchmarks of losses and of VAT train."""

from __future__ import annotations

from torch import nn


def mnist_cnn(*, dropout: bool = False) -> nn.Sequential:
    """Two 3x3 convolutions without padding, 2x2 max pooling, two linear layers.

    Takes `(batch, 1, 28, 28)`, returns logits `(batch, 10)`. The dropout drops a
    quarter after the pooling and a half of the 128 hidden units.

    Source: examples/mnist_cnn.py of Keras 1.2.
    """
    convs = [nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU()]
    hidden = [nn.Flatten(), nn.Linear(32 * 12 * 12, 128), nn.ReLU()]
    after_pooling, after_hidden = ([nn.Dropout(p)] * dropout for p in (0.25, 0.5))
    return nn.Sequential(
        *convs,
        nn.MaxPool2d(2),
        *after_pooling,
        *hidden,
        *after_hidden,
        nn.Linear(128, 10),
    )
