"""Modes: what a search switches off and puts back; statistics; repeatable passes."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from course_lib.data import Split
from course_lib.rso import refresh_norm_statistics
from course_lib.rso.losses import cross_entropy, loss_sum, loss_sums
from course_lib.rso.modes import require_repeatable, search_mode


def net():
    return nn.Sequential(
        nn.Conv2d(1, 3, 3),
        nn.BatchNorm2d(3, momentum=0.3),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(48, 2),
    )


def state_of(model):
    modes = [(m.training, getattr(m, "inplace", None)) for m in model.modules()]
    tensors = {k: v.clone() for k, v in model.state_dict().items()}
    wants = [p.requires_grad for p in model.parameters()]
    buffers = [id(b) for b in model.buffers()]
    return modes, wants, buffers, tensors


def assert_same_state(model, before):
    now = state_of(model)
    assert now[:3] == before[:3]
    assert_close(now[3], before[3], rtol=0, atol=0)


# search_mode


def test_a_searched_model_uses_batch_statistics_and_no_dropout():
    torch.manual_seed(0)
    model, x = net(), torch.randn(5, 1, 6, 6)
    with search_mode(model):
        got = model(x)
        assert not got.requires_grad
    conv, norm, linear = model[0], model[1], model[5]
    hidden = F.batch_norm(conv(x), None, None, norm.weight, norm.bias, training=True)
    assert_close(got, linear(hidden.relu().flatten(1)))


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_a_searched_model_is_put_back(error):
    model = net()
    model[5].eval()
    model[0].weight.requires_grad_(False)
    model[1].running_mean.fill_(3.0)
    before = state_of(model)
    try:
        with search_mode(model):
            assert not any(m.training for m in model.modules())
            model(torch.randn(4, 1, 6, 6))
            if error:
                raise error
    except (ValueError, KeyboardInterrupt):
        assert error is not None
    assert_same_state(model, before)
    assert torch.is_grad_enabled()


def test_norms_without_running_statistics_stay_so():
    model = nn.BatchNorm2d(2, track_running_stats=False)
    with search_mode(model):
        model(torch.randn(3, 2, 2, 2))
    assert model.running_mean is None
    assert model.training


# Running statistics


def test_refreshed_statistics_are_those_of_one_batch():
    torch.manual_seed(0)
    model = nn.Sequential(net(), nn.BatchNorm1d(2))
    split = Split(torch.randn(12, 1, 6, 6), torch.zeros(12).long())
    before = state_of(model)
    refresh_norm_statistics(model, split, samples=9)
    norm = model[0][1]
    hidden = model[0][0](split.inputs[:9])
    assert_close(norm.running_mean, hidden.mean((0, 2, 3)).detach())
    assert_close(norm.running_var, hidden.var((0, 2, 3)).detach())
    assert norm.momentum == 0.3
    assert state_of(model)[:3] == before[:3]
    weights = dict(model.named_parameters())
    assert_close({k: before[3][k] for k in weights}, {**weights}, rtol=0, atol=0)
    normalized = F.batch_norm(hidden, None, None, training=True).relu()
    assert_close(  # no dropout; the next norm sees what this one gives with the batch
        model[1].running_mean, model[0][5](normalized.flatten(1)).mean(0).detach()
    )


def test_refreshing_takes_the_data_to_the_model(device):
    model = nn.Sequential(nn.ReLU(inplace=True), nn.BatchNorm2d(1)).to(device).double()
    inputs = torch.randn(4, 1, 2, 2)
    split = Split(inputs.clone(), torch.zeros(4).long())
    refresh_norm_statistics(model, split)
    assert model[1].running_mean.item() == pytest.approx(inputs.relu().mean().item())
    assert split.inputs.equal(inputs)


def test_refreshing_puts_a_model_back_after_an_error():
    model = net()
    modes = [m.training for m in model.modules()]
    with pytest.raises(RuntimeError):
        refresh_norm_statistics(
            model, Split(torch.randn(4, 2, 6, 6), torch.zeros(4).long())
        )
    assert [m.training for m in model.modules()] == modes
    assert model[1].momentum == 0.3


def test_refreshing_needs_two_samples():
    split = Split(torch.randn(4, 1, 6, 6), torch.zeros(4).long())
    with pytest.raises(ValueError, match="got samples=1; wanted at least 2"):
        refresh_norm_statistics(net(), split, samples=1)


# Repeatable passes


class Noise(nn.Module):
    def __init__(self, generator=None):
        super().__init__()
        self.generator = generator

    def forward(self, x):
        return x + torch.randn(x.shape, generator=self.generator)


class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.passes = 0

    def forward(self, x):
        self.passes += 1
        return x * self.passes


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (nn.Sequential(nn.Linear(2, 2), Noise()), "'1' draws random numbers"),
        (nn.Sequential(nn.Sequential(Noise()), nn.ReLU()), r"'0.0' draws"),
        (Noise(), "'Noise' draws"),
        (nn.Sequential(Noise(torch.Generator())), "'Sequential' draws"),
        (Counter(), "'Counter' draws"),
    ],
)
def test_a_random_pass_is_refused(model, name):
    with pytest.raises(ValueError, match=rf"RSO: {name}.*can't be compared"):
        require_repeatable(model, torch.randn(3, 2))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_pass_that_draws_nothing_is_taken():
    inputs = torch.randn(3, 1, 6, 6)
    kept = inputs.clone()
    model = nn.Sequential(nn.ReLU(inplace=True), net())
    with search_mode(model):
        require_repeatable(model, inputs)
    assert inputs.equal(kept)
    require_repeatable(nn.Threshold(0.0, float("nan")), inputs)  # nan equals nan


# Losses


def test_loss_sums_by_hand(device):
    outputs = torch.tensor([[0.0, 0.0], [1.0, 0.0]], device=device)
    labels = torch.tensor([0, 1], device=device)
    wanted = torch.log(torch.tensor(2.0)) + torch.log(1 + torch.e * torch.ones(()))
    total = loss_sum(cross_entropy, outputs, labels)
    assert total.dtype == torch.float64
    assert total.item() == pytest.approx(wanted.item())
    mean = loss_sum(lambda o, y: F.cross_entropy(o, y), outputs, labels)
    assert mean.item() == pytest.approx(wanted.item())


@pytest.mark.parametrize(
    "loss", [cross_entropy, lambda o, y: F.cross_entropy(o, y, reduction="none")]
)
def test_loss_sums_of_candidates(loss):
    torch.manual_seed(0)
    outputs, labels = torch.randn(12, 3), torch.tensor([0, 1, 2, 0])
    parts = [loss_sum(loss, part, labels) for part in outputs.split(4)]
    assert_close(loss_sums(loss, outputs, labels), torch.stack(parts))


def test_a_loss_of_another_shape():
    with pytest.raises(
        ValueError, match=r"shape \(4, 3\) for 4 samples; wanted a scal"
    ):
        loss_sum(lambda o, y: o, torch.zeros(4, 3), torch.zeros(4).long())
