"""A model as a list of operations: what they are, and what can't be written down."""

import operator

import pytest
import torch
import torch.nn.functional as F
from rso_cases import Call
from torch import nn
from torch.testing import assert_close

from course_lib.rso.eager.network import Each, Network, NotTraceable
from course_lib.rso.modes import search_mode


def traced(model, shape=(2, 6, 6), samples=8):
    torch.manual_seed(0)
    with search_mode(model):
        return Network.trace(model, torch.randn(samples, *shape), None)


def kinds(model, **options):
    network = traced(model, **options)
    return [network.kind(node) for node in network.nodes[1:]]


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        (nn.Conv2d(2, 2, 3), "conv"),
        (nn.Conv2d(2, 2, 3, padding="same"), "unknown"),
        (nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"), "unknown"),
        (nn.ConvTranspose2d(2, 2, 3), "unknown"),
        (nn.BatchNorm2d(2), "norm"),
        (nn.GroupNorm(1, 2), "unknown"),
        (nn.ReLU(), "elementwise"),
        (nn.ReLU(inplace=True), "elementwise"),
        (nn.PReLU(), "unknown"),
        (nn.Softmax(1), "unknown"),
        (nn.MaxPool2d(2), "pool"),
        (nn.AdaptiveAvgPool2d(1), "pool"),
        (nn.Dropout(), "identity"),
        (nn.Flatten(), "flatten"),
        (nn.Flatten(2), "unknown"),
        (Call(torch.relu), "elementwise"),
        (Call(lambda x: F.elu(x, alpha=2.0)), "elementwise"),
        (Call(lambda x: x.tanh()), "elementwise"),
        (Call(lambda x: torch.flatten(x, 1)), "flatten"),
        (Call(lambda x: x.flatten(1)), "flatten"),
        (Call(lambda x: x.mean((2, 3))), "unknown"),
        (Call(lambda x: x + x), "add"),
        (Call(lambda x: torch.add(x, x)), "add"),
        (Call(lambda x: torch.add(x, x, alpha=2)), "unknown"),
        (Call(lambda x: x + 1), "unknown"),
    ],
)
def test_kinds(layer, kind):
    assert kinds(nn.Sequential(layer)) == [kind]


def test_a_value_that_is_no_batch_of_samples_is_unknown():
    # 8 channels: as many as there are samples
    model = Call(lambda x: torch.relu(torch.relu(x.mean((2, 3))).mean(0)))
    assert kinds(model, shape=(8, 2, 2)) == ["unknown", "elementwise"] + ["unknown"] * 2
    assert kinds(nn.Sequential(nn.Flatten(2), nn.BatchNorm1d(2)))[1] == "unknown"


def test_an_average_pool_is_folded_into_the_convolution_before_it():
    conv = nn.Conv2d(2, 2, 3, padding=1)
    network = traced(nn.Sequential(conv, nn.AvgPool2d(2), nn.ReLU()))
    assert len(network.folded) == 1
    assert [network.kind(n) for n in network.steps[1:]] == ["conv", "elementwise"]
    assert network.used_by(network.steps[1]) == [network.nodes[0]]


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Conv2d(2, 2, 3), nn.MaxPool2d(2)),
        nn.Sequential(nn.Conv2d(2, 2, 3), nn.ReLU(), nn.AvgPool2d(2)),
        nn.Sequential(nn.Conv2d(2, 2, 3, dilation=2), nn.AvgPool2d(2)),
        nn.Sequential(nn.AvgPool2d(2)),
    ],
)
def test_what_is_not_folded(model):
    assert not traced(model).folded


def test_a_convolution_with_two_readers_is_not_folded():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.pool = nn.Conv2d(2, 2, 3), nn.AvgPool2d(2)

        def forward(self, x):
            y = self.conv(x)
            return self.pool(y).mean((2, 3)) + y.mean((2, 3))

    assert not traced(Twice()).folded


# What overwrites its input


def test_layers_in_place_are_run_out_of_place_and_stay_as_they_were():
    layer = nn.ReLU(inplace=True)
    network = traced(nn.Sequential(nn.Conv2d(2, 2, 3), layer))
    conv, relu = network.nodes[1:]
    before = -torch.ones(2, 2)
    assert network.call(relu, {conv: before}).equal(torch.zeros(2, 2))
    assert before.equal(-torch.ones(2, 2))
    assert layer.inplace is True


@pytest.mark.parametrize(
    "function",
    [
        lambda x: (x * 1).relu_(),
        lambda x: F.relu(x * 1, inplace=True),
        lambda x: F.relu(x * 1, True),
        lambda x: torch.relu_(x * 1),
        lambda x: operator.imul(x * 1, 2),
    ],
)
def test_functions_that_overwrite_get_a_copy(function):
    network = traced(Call(function))
    source, end = network.nodes[1:]
    value = -torch.ones(3, 2)
    network.call(end, {source: value})
    assert value.equal(-torch.ones(3, 2))


def reads_what_was_overwritten(x):
    y = x * 1
    return y.relu_() + y


def adds_in_place(x):
    y = z = x * 1
    y += x
    return y + z


class Preactivation(nn.Sequential):
    def forward(self, x):
        y = self[0](x)
        return self[1](y) + y


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (Call(reads_what_was_overwritten), "other numbers"),
        (Call(adds_in_place), "other numbers"),
        (Preactivation(nn.Conv2d(2, 2, 3), nn.ReLU(inplace=True)), "other numbers"),
        (Call(lambda x: x if x.sum() > 0 else -x), "can't follow"),
        (Call(lambda x: (x, x)), "more than one tensor"),
        (nn.Bilinear(2, 2, 2), "more than one input"),
    ],
)
def test_what_can_not_be_written_down(model, match):
    with pytest.raises(NotTraceable, match=match):
        traced(model)


# Candidates, one by one


def test_what_mixes_samples_is_run_for_each_candidate():
    network = traced(Call(lambda x: x - x.mean(0)), shape=(3,))
    start, mean, difference = network.nodes
    x = torch.randn(10, 3)
    means = network.one_by_one(mean, {start: x}, 5)
    assert isinstance(means, Each)
    assert_close(list(means), [x[:5].mean(0), x[5:].mean(0)])
    got = network.one_by_one(difference, {start: x, mean: means}, 5)
    assert_close(got, torch.cat([x[:5] - means[0], x[5:] - means[1]]))


def test_a_value_that_is_one_for_all_candidates():
    network = traced(Call(lambda x: x * 2 - x.mean(0)), shape=(3,))
    start, double, mean, difference = network.nodes
    x, doubled = torch.randn(5, 3), torch.randn(10, 3)
    once = network.one_by_one(mean, {start: x}, 5)
    assert len(once) == 1
    got = network.one_by_one(difference, {double: doubled, mean: once}, 5)
    assert_close(got, doubled - x.mean(0))


class Scaled(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(3, 3), nn.ReLU())
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return self[1](self[0](x)) * self.scale


def test_parameters_of_a_node():
    model = Scaled()
    network = traced(model, shape=(3,))
    read = {node.name: network.parameters_of(node) for node in network.nodes}
    assert [len(parameters) for parameters in read.values()] == [0, 2, 0, 1, 0]
    assert read["scale"][0] is model.scale
