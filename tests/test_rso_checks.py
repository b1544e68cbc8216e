"""Data, model and loss that don't fit are refused when a search is made, in words."""

import copy

import pytest
import torch
import torch.nn.functional as F
from rso_cases import Call
from torch import nn

from course_lib.data import Split
from course_lib.rso import RSO

GOOD = torch.arange(20) % 2


def model_of(inputs=4, outputs=2):
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, outputs))


def make(model=None, *, inputs=None, labels=GOOD, **options):
    inputs = torch.randn(20, 1, 2, 2) if inputs is None else inputs
    options = {"batch_size": 10, "cycles": 1, "progress": False, **options}
    return RSO(model or model_of(), Split(inputs, labels), **options)


def assert_refused(match, model=None, **options):
    model = model or model_of()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=match):
        make(model, **options)
    now = model.state_dict()
    assert all(before[name].equal(now[name]) for name in before)


def test_what_fits():
    assert next(make()).proposals == 10


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        (torch.arange(20) % 3, r"6 of 20 labels .* 0 to 1, .* number 2: 2\."),
        (torch.arange(20) - 1, "19 of 20 labels|number 0: -1"),
        (torch.where(torch.arange(20) == 7, -100, GOOD), "1 of 20 .* number 7: -100"),
    ],
)
@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_labels(labels, match, engine):
    assert_refused(match, labels=labels, engine=engine)


def test_losses():
    assert next(make(loss=F.cross_entropy)).proposals == 10
    far = torch.arange(20) * 100
    assert next(make(labels=far, loss=lambda x, y: x.sum(1) - y)).proposals == 10
    pixels = nn.Conv2d(1, 2, 1)  # (batch, 2, 2, 2), and one label for each image
    assert_refused("the loss fails on outputs .*Error", pixels)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_inputs_that_are_not_finite(value):
    inputs = torch.randn(20, 1, 2, 2)
    inputs[3, 0, 1, 1] = value
    assert_refused(
        "1 of 20 training inputs hold nan or inf; .* number 3", inputs=inputs
    )


def test_inputs_that_overflow_the_weights():
    assert_refused(
        "20 of 20 .* nan or inf",
        model_of().half(),
        inputs=torch.full((20, 1, 2, 2), 1e6),
    )


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (
            model_of(5),
            r"fails on 8 samples of shape \(1, 2, 2\), torch.float32 \(Runtime",
        ),
        (nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten()), "fails on 8 samples"),
        (nn.Sequential(Call(lambda x: x.view(10, -1)), nn.Linear(4, 2)), "so few"),
        (nn.Sequential(model_of(), Call(lambda x: (x, x))), "returned a tuple"),
        (nn.Sequential(model_of(), Call(lambda x: x.mean(0))), "row for each sample"),
        (nn.Sequential(model_of(), Call(lambda x: x.sum())), "row for each sample"),
    ],
)
def test_models_that_do_not_take_the_data(model, match):
    assert_refused(match, model)


def test_batch_norm_of_one_sample():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.BatchNorm1d(2))
    assert_refused("fails on 1 samples .*more than 1 value", model, batch_size=1)
    few = {"inputs": torch.randn(3, 1, 2, 2), "labels": GOOD[:3], "batch_size": 2}
    assert_refused("fails on 1 samples", model, **few)
    assert next(make(model, batch_size=2)).proposals == 10


def test_batch_norm_that_can_not_use_its_batch():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Flatten())
    with pytest.warns(DeprecationWarning, match="jit"):
        script = torch.jit.script(nn.Sequential(model, nn.Linear(8, 2)))
    assert_refused("'0.1' is a BatchNorm2d in a ScriptModule", script)


def test_padding_that_the_fast_engine_does_not_know():
    for options, match in (
        ({"padding": "same"}, r"padding='same' instead of numbers such as \(1, 1\)"),
        ({"padding": 1, "padding_mode": "reflect"}, "padding_mode='reflect'"),
    ):
        conv = nn.Conv2d(1, 2, 3, **options)
        model = nn.Sequential(conv, nn.Flatten(), nn.Linear(8, 2))
        with pytest.raises(ValueError, match=match):
            make(model, engine="incremental")
        assert next(make(model)).proposals == 38


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        (
            None,
            Split(torch.zeros(2, 1, 2, 2), GOOD[:2]),
            r"got model=None; wanted an nn\.Module",
        ),
        (nn.Linear(2, 2), None, r"got split=None; wanted a Split\(inputs, labels\)"),
        (nn.Linear(2, 2), (1, 2), r"got split=\(1, 2\); wanted a Split"),
    ],
)
def test_what_is_no_model_or_no_split_is_refused(model, data, message):
    with pytest.raises(ValueError, match=message):
        RSO(model, data, batch_size=2, cycles=1)
