"""Shapes and parameter counts by hand arithmetic."""

import pytest
import torch
from torch import nn

from course_lib.models import mlp, small_cnn


def kinds(model):
    return [type(layer) for layer in model]


def numbers_in(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_mlp_flattens_and_puts_relu_between_its_layers():
    assert kinds(mlp((4, 3, 2))) == [nn.Flatten, nn.Linear, nn.ReLU, nn.Linear]
    assert kinds(mlp((4, 2))) == [nn.Flatten, nn.Linear]


@pytest.mark.parametrize(
    ("sizes", "count"),
    [
        ((64, 10), 64 * 10 + 10),
        ((64, 32, 10), 64 * 32 + 32 + 32 * 10 + 10),
        ((4, 5, 6, 7), 4 * 5 + 5 + 5 * 6 + 6 + 6 * 7 + 7),
    ],
)
def test_mlp_has_a_weight_for_each_pair_and_a_bias_for_each_unit(sizes, count):
    assert numbers_in(mlp(sizes)) == count


def test_mlp_takes_images_and_returns_logits(device):
    images = torch.randn(5, 1, 8, 8, device=device)
    logits = mlp().to(device)(images)
    assert logits.shape == (5, 10)
    assert mlp([64, 3]).to(device)(images).shape == (5, 3)


def test_mlp_is_the_formula():
    model, x = mlp((4, 3, 2)), torch.randn(5, 4)
    w1, b1, w2, b2 = model.parameters()
    expected = (x @ w1.T + b1).clamp(min=0) @ w2.T + b2
    torch.testing.assert_close(model(x), expected)


def test_dropout_follows_each_hidden_relu_and_nothing_else():
    hidden = [nn.Linear, nn.ReLU, nn.Dropout]
    model = mlp((4, 3, 3, 2), dropout=0.25)
    assert kinds(model) == [nn.Flatten, *hidden, *hidden, nn.Linear]
    assert [layer.p for layer in model if isinstance(layer, nn.Dropout)] == [0.25] * 2


def test_small_cnn_pools_after_each_convolution():
    block = [nn.Conv2d, nn.ReLU, nn.MaxPool2d]
    assert kinds(small_cnn()) == [*block, *block, nn.Flatten, nn.Linear]
    assert kinds(small_cnn(widths=(3,))) == [*block, nn.Flatten, nn.Linear]


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, (1 * 9 * 8 + 8) + (8 * 9 * 16 + 16) + (16 * 2 * 2 * 10 + 10)),
        (
            {"size": 9, "channels": 3, "classes": 2, "widths": [5]},  # 9 halves to 4
            (3 * 9 * 5 + 5) + (5 * 4 * 4 * 2 + 2),
        ),
    ],
)
def test_small_cnn_has_as_many_numbers_as_counted_by_hand(options, count):
    assert numbers_in(small_cnn(**options)) == count


@pytest.mark.parametrize("size", [8, 9, 28])
def test_small_cnn_keeps_the_size_until_it_pools(size, device):
    model = small_cnn(size, channels=3, classes=7).to(device)
    images = torch.randn(2, 3, size, size, device=device)
    assert model[0](images).shape == (2, 8, size, size)
    assert model[:3](images).shape == (2, 8, size // 2, size // 2)
    assert model(images).shape == (2, 7)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mlp(()), r"mlp: got no sizes; wanted at least one"),
        (lambda: mlp((4,)), r"mlp: got sizes=\(4,\); wanted .* for example mlp\("),
        (lambda: mlp((4, 0)), r"got sizes=\(4, 0\); wanted .* and 0 is not one\."),
        (lambda: mlp((4, 2.0)), r"got sizes=\(4, 2\.0\); .* and 2\.0 is not one\."),
        (lambda: mlp((True, 2)), "and True is not one"),
        (lambda: mlp(dropout=1), r"mlp: got dropout=1; wanted .* in \[0, 1\)"),
        (lambda: mlp(dropout=-0.1), r"mlp: got dropout=-0\.1"),
        (lambda: small_cnn(widths=()), r"small_cnn: got no widths"),
        (lambda: small_cnn(widths=(8, -1)), r"got widths=\(8, -1\); .* -1 is not one"),
        (lambda: small_cnn(channels=0), r"got size, channels, classes=\(8, 0, 10\)"),
        (lambda: small_cnn(3), "images of 3x3 vanish after 2 poolings. Take fewer"),
    ],
)
def test_sizes_that_make_no_network_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_one_number_is_no_sequence_of_sizes():
    with pytest.raises(ValueError, match="got sizes=64; wanted a sequence"):
        mlp(64)
    with pytest.raises(ValueError, match="got widths=8; wanted a sequence"):
        small_cnn(widths=8)
