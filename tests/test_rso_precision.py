"""Rounded products against rounding by hand; which decisions they change."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from course_lib import data
from course_lib.data import Split
from course_lib.models import small_cnn
from course_lib.rso import RSO, steps
from course_lib.rso.precision import EVERY, Comparison, products
from course_lib.rso.steps import DeviceStep

CONVS = torch.backends.cudnn.conv, torch.backends.cuda.matmul


def search_of(**options):
    digits = data.load("digits").train
    split = Split(digits.inputs[:96], digits.labels[:96])
    options = {"batch_size": 48, "cycles": 1, "progress": False, **options}
    return RSO(small_cnn(widths=(2, 3, 3), norm=True), split, **options)


def test_products_are_those_of_rounded_numbers():
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(*s, generator=generator) for s in ((4, 3, 5, 5), (2, 3, 3, 3)))
    y, v, b = (torch.randn(*s, generator=generator) for s in ((4, 9), (2, 9), (2,)))
    with products("bf16"):
        found = nn.Conv2d(3, 2, 3)
        found.weight.data, found.bias.data = w, b
        conv, linear = found(x), F.linear(y, v)
        assert (x @ x.mT).dtype == torch.float32  # no layer's product
    x, w, y, v, b = (t.bfloat16().float() for t in (x, w, y, v, b))
    near = {"rtol": 2**-7, "atol": 2**-7}  # the result is rounded, too
    torch.testing.assert_close(conv, F.conv2d(x, w, b), **near)
    torch.testing.assert_close(linear, F.linear(y, v), **near)
    assert conv.dtype == linear.dtype == torch.float32


@pytest.mark.parametrize("name", ["float32", "tf32", "bf16"])
def test_torch_s_settings_are_put_back(name):
    def fail():
        wanted = "tf32" if name == "tf32" else "ieee"
        assert [own.fp32_precision for own in CONVS] == [wanted] * 2
        raise KeyError

    before = [own.fp32_precision for own in CONVS]
    with pytest.raises(KeyError), products(name):
        fail()
    assert [own.fp32_precision for own in CONVS] == before


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="got 'fp8'; wanted one of float32, tf32"):
        products("fp8").__enter__()


def test_a_cycle_in_float32_is_judged_without_tf32():
    seen = set()

    class Look(nn.Linear):
        def forward(self, x):
            seen.add(CONVS[0].fp32_precision)
            return super().forward(x)

    model = nn.Sequential(nn.Flatten(), Look(4, 2))
    split = Split(torch.randn(6, 1, 2, 2), torch.arange(6) % 2)
    options = {"batch_size": 3, "cycles": 1, "progress": False}
    search = RSO(model, split, engine="reference", **options)
    seen.clear()  # of what was tried before
    next(search)
    assert seen == {"ieee"}


@pytest.mark.parametrize("engine", ["reference", "cached", "incremental"])
@pytest.mark.parametrize("minibatches", ["partition", "fresh"])
def test_rounding_changes_a_few_decisions_and_the_share_says_so(
    engine, minibatches, monkeypatch
):
    monkeypatch.setattr("course_lib.rso.precision.EVERY", 2)
    options = {"engine": engine, "minibatches": minibatches}
    whole = search_of(**options)
    next(whole)
    rounded = search_of(**options, precision="bf16")
    next(rounded)
    assert whole.changed == 0
    assert 0 < rounded.changed < 0.5
    assert not rounded.decisions.equal(whole.decisions)
    assert not any(choice.is_compiled for choice in rounded.choices.values())


def test_judging_twice_changes_nothing_else(monkeypatch):
    runs = []
    for every in (1, 10**9):
        monkeypatch.setattr("course_lib.rso.precision.EVERY", every)
        for minibatches in ("partition", "fresh"):
            search = search_of(precision="bf16", minibatches=minibatches)
            next(search)
            runs.append(search.decisions)
    assert runs[0].equal(runs[2])
    assert runs[1].equal(runs[3])


def test_the_share_is_counted_on_a_device_too(monkeypatch):
    monkeypatch.setattr("course_lib.rso.precision.EVERY", 2)
    host = search_of(precision="bf16", engine="cached")
    next(host)
    monkeypatch.setattr(steps, "HostStep", DeviceStep)
    device = search_of(precision="bf16", engine="cached")
    next(device)
    assert device.changed == host.changed > 0


def test_one_proposal_in_so_many_is_judged_twice():
    calls = []

    def judge():
        calls.append(0)
        return torch.tensor([1.0, float(len(calls) % 2), 2.0])

    comparison = Comparison("bf16")
    for _ in range(2 * EVERY):
        comparison.losses(judge, lambda sums: int(sums.argmin()))
    assert len(calls) == 2 * EVERY + 2
    assert comparison.judged == 2
    assert math.isfinite(comparison.changed)


@pytest.mark.parametrize(
    ("double", "name", "message"),
    [
        (True, "bf16", "weights of torch.float64; wanted float32"),
        (False, "tf32", "on cpu; it is a format of NVIDIA's GPUs"),
        (False, "fp8", "wanted one of 'float32', 'tf32', 'bf16'"),
    ],
)
def test_what_can_not_be_rounded(double, name, message):
    model = small_cnn(widths=(2, 3))
    model = model.double() if double else model
    split = data.load("digits").train
    with pytest.raises(ValueError, match=message):
        RSO(model, split, batch_size=48, cycles=1, precision=name)
