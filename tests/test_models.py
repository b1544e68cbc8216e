"""Shapes and parameter counts by hand arithmetic; sharing, by gradients and names."""

import copy
import pickle
import runpy
from functools import partial

import pytest
import torch
from pins import ROOT
from torch import nn

from course_lib.data import Split
from course_lib.models import (
    Lambda,
    RSOCifar10CNN,
    Shared,
    Siamese,
    mlp,
    rso_mnist_cnn,
    shared_parameters,
    small_cnn,
)
from course_lib.rso import RSO


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


@pytest.mark.parametrize("dropout", [False, True])
def test_mnist_cnn_is_that_of_keras(dropout, device):
    mnist_cnn = runpy.run_path(ROOT / "benchmarks" / "_networks.py")["mnist_cnn"]
    model = mnist_cnn(dropout=dropout).to(device)
    convs = (1 * 9 * 32 + 32) + (32 * 9 * 32 + 32)
    assert numbers_in(model) == convs + (12 * 12 * 32 * 128 + 128) + (128 * 10 + 10)
    rates = [layer.p for layer in model if isinstance(layer, nn.Dropout)]
    assert rates == [0.25, 0.5] * dropout
    assert model(torch.randn(2, 1, 28, 28, device=device)).shape == (2, 10)
    order = [type(layer) for layer in model if not isinstance(layer, nn.Dropout)]
    conv = [nn.Conv2d, nn.ReLU] * 2
    assert order == [*conv, nn.MaxPool2d, nn.Flatten, nn.Linear, nn.ReLU, nn.Linear]


# Lambda


def first_half(x):
    return x[:, : x.shape[1] // 2]


def test_a_lambda_is_its_function(device):
    x = torch.randn(4, 10, device=device, requires_grad=True)
    model = nn.Sequential(Lambda(first_half), nn.Linear(5, 2).to(device))
    torch.testing.assert_close(model[0](x), x[:, :5])
    model(x).sum().backward()
    assert x.grad.ne(0).any(dim=0).tolist() == [True] * 5 + [False] * 5
    halves = Lambda(lambda x: (x[:, :5], x[:, 5:]))(x)
    torch.testing.assert_close(torch.cat(halves, dim=1), x)
    torch.testing.assert_close(Lambda(torch.add)(x, x), 2 * x)


def test_a_slice_that_forgets_the_batch_is_refused():
    for function in (lambda x: x[:5], lambda x: x.mean(), lambda x: (x, x[:1])):
        with pytest.raises(
            ValueError,
            match=r"^Lambda\(lambda x: \.\.\.\): the input has shape \(8, 10\), the "
            r"output is shape \(.*wanted a tensor \(8, \.\.\.\).*x\[:, :5\]",
        ):
            Lambda(function)(torch.zeros(8, 10))
    with pytest.raises(ValueError, match="the output is list; wanted a tensor"):
        Lambda(torch.Tensor.tolist)(torch.zeros(8, 10))


@pytest.mark.parametrize(
    ("function", "shown"),
    [
        (first_half, "Lambda(first_half)"),
        (torch.tanh, "Lambda(tanh)"),
        (lambda x, y: x, "Lambda(lambda x, y: ...)"),
        (partial(torch.flatten, start_dim=1), "Lambda(partial(flatten, start_dim=1))"),
        (partial(torch.add, 1), "Lambda(partial(add, 1))"),
    ],
)
def test_a_lambda_says_what_it_does(function, shown):
    assert repr(Lambda(function)) == shown
    assert repr(Lambda(function, name="halve")) == "Lambda(halve)"


def test_a_lambda_is_pickled_where_its_function_is():
    x = torch.randn(4, 10)
    for function in (first_half, torch.tanh, partial(torch.flatten, start_dim=1)):
        for restore in (lambda m: pickle.loads(pickle.dumps(m)), copy.deepcopy):
            again = restore(Lambda(function, name="f"))
            torch.testing.assert_close(again(x), function(x))
            assert repr(again) == "Lambda(f)"
    with pytest.raises((pickle.PicklingError, AttributeError)):
        pickle.dumps(Lambda(lambda x: x))
    assert not Lambda(first_half).state_dict()


@pytest.mark.parametrize(
    ("function", "message"),
    [(nn.Linear(1, 1), "got a Linear; .* A module is used as it is"), (3, "got a int")],
)
def test_a_lambda_wants_a_function(function, message):
    with pytest.raises(ValueError, match=message):
        Lambda(function)


# Sharing


def test_a_shared_bundle_has_one_set_of_weights_and_adds_up_gradients(device):
    shared = Shared(mlp((4, 3, 2))).to(device)
    inputs = [torch.randn(n, 4, device=device) for n in (5, 7, 6)]
    outputs = shared(*inputs)
    assert numbers_in(shared) == 4 * 3 + 3 + 3 * 2 + 2
    assert len(shared.state_dict()) == 4
    for x, output in zip(inputs, outputs, strict=True):
        torch.testing.assert_close(output, shared.bundle(x))

    weight = shared.bundle[1].weight
    alone = [
        torch.autograd.grad(shared.bundle(x).square().sum(), weight)[0] for x in inputs
    ]
    sum(output.square().sum() for output in outputs).backward()
    torch.testing.assert_close(weight.grad, sum(alone))
    with torch.no_grad():
        weight.zero_()
    assert all(len(output.unique(dim=0)) == 1 for output in shared(*inputs))


def test_each_call_of_a_shared_bundle_is_normalized_by_itself():
    shared = Shared(nn.BatchNorm1d(3))
    for output in shared(torch.randn(9, 3), 100 + torch.randn(9, 3)):
        torch.testing.assert_close(
            output.mean(dim=0), torch.zeros(3), atol=1e-4, rtol=0
        )


def test_shared_parameters_tell_sharing_from_copies():
    layer = nn.Linear(4, 4)
    by_accident = nn.Sequential(*[layer] * 3)
    assert shared_parameters(by_accident) == {
        "0.weight": ["1.weight", "2.weight"],
        "0.bias": ["1.bias", "2.bias"],
    }
    apart = nn.Sequential(*(copy.deepcopy(layer) for _ in range(3)))
    assert shared_parameters(apart) == {}
    apart[2].weight = apart[0].weight  # tied by hand, another bias
    assert shared_parameters(apart) == {"0.weight": ["2.weight"]}
    assert shared_parameters(copy.deepcopy(by_accident)).keys() == {
        "0.weight",
        "0.bias",
    }


def test_a_siamese_network_measures_distances(device):
    model = Siamese(mlp((4, 8, 2))).to(device)
    first, second = torch.randn(2, 5, 4, device=device)
    distance = model(first, second)
    codes = [model.encoder.bundle(x) for x in (first, second)]
    wanted = (codes[0] - codes[1]).square().sum(dim=1).sqrt()
    torch.testing.assert_close(distance, wanted)
    torch.testing.assert_close(model(second, first), distance)
    assert numbers_in(model) == 4 * 8 + 8 + 8 * 2 + 2

    same = model(first, first)
    same.sum().backward()
    assert same.eq(0).all()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_a_siamese_network_learns_to_tell_pairs():
    torch.manual_seed(0)
    model = Siamese(mlp((2, 16, 2)))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    classes, other = torch.randint(2, (2, 200))
    first, second = (torch.randn(200, 2) + 3 * c[:, None] for c in (classes, other))
    differ = (classes != other).float()
    for _ in range(200):
        optimizer.zero_grad()
        distance = model(first, second)
        missing = (2 - distance).clamp(min=0)  # pairs that differ belong 2 apart
        ((1 - differ) * distance.square() + differ * missing.square()).mean().backward()
        optimizer.step()
    right = (model(first, second) > 1).float() == differ
    assert right.float().mean() > 0.9


# The networks of the RSO paper. Its authors' code gives layers, order and sizes.


def searched_and_norm_numbers(model):
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    own = sum(map(numbers_in, norms))
    return numbers_in(model) - own, own


def test_small_cnn_with_norm_has_it_in_place_of_biases():
    layer = [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d]
    model = small_cnn(norm=True)
    assert kinds(model) == [*layer, *layer, nn.Flatten, nn.Linear]
    assert searched_and_norm_numbers(model) == (9 * 8 + 72 * 16 + 64 * 10 + 10, 48)


@pytest.mark.parametrize("pooling", ["max", "average"])
def test_the_papers_mnist_network(pooling):
    model = rso_mnist_cnn(pooling=pooling)
    assert searched_and_norm_numbers(model) == (11_824, 192)
    layer = [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    pooled = [nn.Conv2d, nn.AvgPool2d, nn.BatchNorm2d, nn.ReLU]
    whole = {"max": nn.AdaptiveMaxPool2d, "average": nn.AdaptiveAvgPool2d}[pooling]
    last = [nn.Conv2d, nn.BatchNorm2d, whole, nn.Flatten, nn.Linear]
    assert kinds(model) == [*layer, *pooled, *layer, *pooled, *layer, *last]
    biased = [m for m in model if getattr(m, "bias", None) is not None]
    assert kinds(biased) == [nn.BatchNorm2d] * 6
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_rso_networks_of_other_widths():
    slim = rso_mnist_cnn(width=3, channels=2, classes=5)
    assert searched_and_norm_numbers(slim) == (9 * (2 * 3 + 5 * 9) + 15, 6 * 6)
    slim = RSOCifar10CNN(width=2, channels=1, classes=5)
    weights = 9 * (1 * 2 + 2 * 4 + 2 * 4 + 5 * 16) + 2 * 4 + 4 * 5
    assert searched_and_norm_numbers(slim) == (weights, 3 * 4 + 6 * 8 + 8)


def written_out(model, x):
    """Run the CIFAR-10 network as the recurrence of its docstring says."""
    norms = [model.norms[i] for i in range(9)]
    outputs = []
    for i in range(9):
        y = model.convs[i](torch.relu(outputs[-1]) if outputs else x)
        if i in (2, 6, 8):
            y = y + outputs[i - 2]
        if i == 4:
            y = y + model.widen[1](model.widen[0](outputs[2]))
        if i in (2, 4):
            y = nn.functional.avg_pool2d(y, 2)
        outputs.append(norms[i](y))
    pooled = {nn.AdaptiveMaxPool2d: outputs[-1].amax, nn.AdaptiveAvgPool2d: None}
    top = pooled[type(model.pool)] or outputs[-1].mean
    return top((2, 3)) @ model.linear.weight.T


@pytest.mark.parametrize("pooling", ["max", "average"])
def test_the_papers_cifar10_network(pooling):
    model = RSOCifar10CNN(pooling=pooling)
    assert searched_and_norm_numbers(model) == (56_560, 544)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert model(x).shape == (2, 10)
    torch.testing.assert_close(model(x), written_out(model, x))


@pytest.mark.parametrize("make", [rso_mnist_cnn, RSOCifar10CNN])
def test_rso_networks_refuse_other_poolings_and_sizes(make):
    with pytest.raises(ValueError, match="got pooling='median'; wanted 'max'"):
        make(pooling="median")
    with pytest.raises(ValueError, match="and 0 is not one"):
        make(width=0)


@pytest.mark.parametrize("make", [rso_mnist_cnn, RSOCifar10CNN])
def test_the_fast_engine_takes_every_weight_of_the_papers_networks(make):
    model = make()
    channels = next(model.parameters()).shape[1]
    data = Split(torch.randn(4, channels, 28, 28), torch.arange(4))
    options = {"batch_size": 2, "cycles": 1, "train_norm": True, "progress": False}
    search = RSO(model, data, engine="incremental", **options)
    assert len(search.choices) == len(list(model.parameters()))
    assert {choice.engine for choice in search.choices.values()} == {"incremental"}
    assert len(search.decisions) == numbers_in(model)
