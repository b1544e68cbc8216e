"""Proposals: what is searched, the first weights, sigma, samplers, and who wins."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from course_lib.rso.proposals import (
    SAMPLERS,
    annealed,
    base_sigma,
    generator_of,
    initialize,
    targets,
    winner,
    winner_on_device,
)

# Which weights


def norm_net():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 3)
    )


def test_targets_are_all_weights_but_those_of_norms():
    assert [t.name for t in targets(norm_net())] == [
        *("0.weight", "0.bias", "3.weight", "3.bias")
    ]
    names = [t.name for t in targets(norm_net(), train_norm=True)]
    assert names[2:4] == ["1.weight", "1.bias"]


@pytest.mark.parametrize(
    "norm",
    [
        *(nn.GroupNorm(2, 4), nn.LayerNorm(4), nn.RMSNorm(4)),
        *(nn.BatchNorm3d(4), nn.InstanceNorm2d(4, affine=True)),
    ],
)
def test_every_norm_layer_is_one(norm):
    with pytest.raises(ValueError, match=r"no trainable weight.*train_norm=True"):
        targets(norm)
    found = targets(norm, train_norm=True)
    assert all(target.is_norm for target in found)
    initialize(found, 0)
    assert [t.values.unique().tolist() for t in found] == [[1.0], [0.0]][: len(found)]


def test_a_frozen_weight_is_left_out_and_a_shared_one_stands_once():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    model[2].weight = model[0].weight
    model[1].requires_grad_(False)
    assert [t.name for t in targets(model)] == ["0.weight", "0.bias", "2.bias"]


def test_values_share_the_memory_of_the_parameter_in_row_major_order():
    model = nn.Linear(3, 2)
    target = targets(model)[0]
    target.values[4] = 7.0
    assert model.weight[1, 1] == 7
    assert (target.kind, target.channels) == ("weight", 2)


def test_a_lone_number_can_be_searched():
    model = nn.Module()
    model.scale = nn.Parameter(torch.tensor(2.0))
    (target,) = targets(model)
    assert (target.channels, target.values.tolist()) == (1, [2.0])


@pytest.mark.parametrize(
    ("model", "fan_ins"),
    [
        (nn.Conv2d(4, 6, (3, 2), groups=2), [12, 12]),
        (nn.Linear(5, 3), [5, 5]),
        (nn.Conv1d(2, 3, 5, bias=False), [10]),
    ],
)
def test_fan_in_counts_the_inputs_of_one_output(model, fan_ins):
    assert [target.fan_in for target in targets(model)] == fan_ins


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (nn.ReLU(), "RSO: ReLU has no trainable weight. Pass a model with parameters"),
        (nn.Linear(1, 1).requires_grad_(False), "Linear has no trainable weight"),
        (nn.BatchNorm2d(2), "no trainable weight.*only with train_norm=True"),
        (
            nn.Conv2d(2, 2, 3).to(memory_format=torch.channels_last),
            r"'weight' is torch.float32 with strides .*wanted contiguous",
        ),
    ],
)
def test_what_can_not_be_searched(model, match):
    with pytest.raises(ValueError, match=match):
        targets(model)


# The first weights


def test_he_initialization():
    model = nn.Sequential(nn.Conv2d(8, 40, 5), nn.Flatten(), nn.Linear(300, 50))
    initialize(targets(model), 0)
    for layer, fan_in in ((model[0], 200), (model[2], 300)):
        weights, sigma = layer.weight.detach(), math.sqrt(2 / fan_in)
        count = weights.numel()
        assert abs(weights.mean()) < 4 * sigma / math.sqrt(count)
        assert weights.std() == pytest.approx(sigma, rel=4 / math.sqrt(2 * count))
        inside = (weights.abs() < sigma).double().mean()  # of a normal one: 0.683
        assert inside == pytest.approx(0.683, abs=4 * math.sqrt(0.22 / count))
        assert not layer.bias.any()


def test_initialization_depends_on_seed_and_name_alone():
    first, again, other = nn.Linear(3, 2), nn.Linear(3, 2), nn.Linear(3, 2)
    for model, seed in ((first, 5), (again, 5), (other, 6)):
        initialize(targets(model), seed)
        torch.rand(1)  # torch's own generator plays no part
    assert first.weight.equal(again.weight)
    assert not first.weight.equal(other.weight)
    two = nn.Sequential(nn.Linear(3, 2), nn.Linear(3, 2))
    initialize(targets(two), 5)
    assert not two[0].weight.equal(two[1].weight)


def test_vectors_that_are_no_bias_stay():
    model = nn.PReLU(3)
    initialize(targets(model), 0)
    assert model.weight.tolist() == [0.25] * 3


# Sigma


def test_sigma_is_measured_or_computed():
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    weight, bias = targets(model)
    assert base_sigma(weight, "measured") == pytest.approx(math.sqrt(5 / 3))
    assert base_sigma(weight, "analytic") == 1
    assert base_sigma(bias, "measured") == 1  # sqrt(2 / 2): it starts at zero
    norm = targets(nn.BatchNorm1d(3), train_norm=True)
    assert [base_sigma(t, how) for t in norm for how in ("measured", "analytic")] == [
        0.167
    ] * 4


def test_sigma_of_weights_that_are_all_alike_is_computed():
    model = nn.Linear(8, 1, bias=False)
    nn.init.constant_(model.weight, 3.0)
    assert base_sigma(targets(model)[0], "measured") == 0.5
    single = nn.Linear(1, 1, bias=False)  # no deviation at all
    assert base_sigma(targets(single)[0], "measured") == math.sqrt(2)


def test_annealing_by_hand():
    steps = [annealed(2.0, cycle, 10, 0.1) for cycle in range(10)]
    assert steps == pytest.approx([2 - 0.2 * cycle for cycle in range(10)])
    assert steps[-1] == pytest.approx(0.2)
    assert annealed(2.0, 0, 1, 0.1) == 2
    assert annealed(2.0, 3, 5, 1.0) == 2


# Samplers


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_have_deviation_one(name):
    drawn = SAMPLERS[name].draw(20_000, torch.Generator().manual_seed(0))
    assert drawn.dtype == torch.float64
    assert drawn.square().mean() == pytest.approx(1, abs=0.03)
    if name != "fixed":
        assert drawn.mean() == pytest.approx(0, abs=0.03)
    if name == "uniform":
        assert drawn.abs().max() <= math.sqrt(3)
        assert drawn.abs().max() > 1.7


def test_generators_differ_by_each_word():
    words = [(0, 0, "a"), (1, 0, "a"), (0, 1, "a"), (0, 0, "b")]
    first = [torch.rand(1, generator=generator_of(*word)).item() for word in words]
    assert len(set(first)) == len(words)
    again = [torch.rand(1, generator=generator_of(*word)).item() for word in words]
    assert first == again


# Who wins

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("losses", "wanted"),
    [
        ([2.0, 1.0, 3.0], 1),
        ([2.0, 3.0, 1.0], 2),
        ([2.0, 2.0, 2.0], 0),  # ties keep the weight
        ([2.0, 1.0, 1.0], 1),  # and the first candidate
        ([2.0, 1.0, 1.0 - 1e-8], 1),
        ([2.0, 2.0 - 1e-8, 3.0], 0),
        ([2.0, 1.5, 1.0], 2),
        ([2.0, NAN, 1.0], 2),
        ([2.0, 1.0, NAN], 1),
        ([2.0, NAN, NAN], 0),
        ([2.0, INF, INF], 0),
        ([2.0, -INF, 1.0], 1),
        ([NAN, 1.0, 0.5], 0),
        ([0.0, 0.0, -1.0], 2),
    ],
)
def test_the_least_loss_wins_if_it_is_less_than_rounding(losses, wanted, device):
    assert winner(losses, 2, 1e-6) == wanted
    on_device = torch.tensor(losses, dtype=torch.float64, device=device)
    assert winner_on_device(on_device, 2, 1e-6).item() == wanted


def test_the_slack_grows_with_samples_and_loss():
    assert winner([0.0, -1e-3, 0.0], 10, 1e-4) == 0  # slack: 1e-4 * (0 + 10)
    assert winner([0.0, -1.1e-3, 0.0], 10, 1e-4) == 1
    assert winner([90.0, 90.0 - 9e-3, 91.0], 10, 1e-4) == 0  # 1e-4 * (90 + 10)
    assert winner([90.0, 90.0 - 1.1e-2, 91.0], 10, 1e-4) == 1


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    losses=st.lists(
        st.sampled_from([NAN, INF, 0.0, 1.0, 1.0 + 1e-7, 1.0 - 1e-7, 2.0]),
        min_size=3,
        max_size=3,
    ),
    samples=st.integers(1, 5),
    tolerance=st.sampled_from([0.0, 1e-12, 1e-7, 1e-6]),
)
def test_both_forms_pick_the_same_winner(losses, samples, tolerance):
    wanted = winner(losses, samples, tolerance)
    got = winner_on_device(
        torch.tensor(losses, dtype=torch.float64), samples, tolerance
    )
    assert got.item() == wanted


def test_winner_of_many_candidates():
    assert winner([3.0, 2.0, 4.0, 1.0, 5.0], 1, 1e-6) == 3
