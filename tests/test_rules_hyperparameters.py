"""Hyperparameters: their ranges, numpy's numbers, and advice."""

from __future__ import annotations

import math
import re
from dataclasses import fields
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from test_rules import (
    KINDS,
)

from course_lib.rules import (
    AccumulateGradients,
    Adam,
    AdamW,
    Chain,
    ClipNorm,
    Descent,
    MixedPrecision,
    Momentum,
    RMSProp,
    Rprop,
)
from course_lib.rules.counts import Count

NUMBERS = [
    (kind, f.name, f.metadata)
    for kind in sorted(KINDS, key=lambda kind: kind.__name__)
    for f in fields(kind)
    if "low" in f.metadata
]


@pytest.mark.parametrize(
    ("kind", "name", "metadata"),
    NUMBERS,
    ids=[f"{k.__name__}.{n}" for k, n, _ in NUMBERS],
)
def test_numbers_out_of_range_are_refused(kind, name, metadata):
    bad = [-0.1, math.nan, -math.inf, True, "0.1", None, 1j, [0.1], torch.ones(())]
    bad += [] if metadata["closed"] or metadata.get("pair") else [metadata["high"]]
    bad += [] if name == "p" else [math.inf]
    if metadata.get("pair"):
        bad = [(0.5, x) for x in bad] + [(x, 0.5) for x in bad]
        bad += [0.5, (0.5,), (0.5, 0.6, 0.7), (), "ab", None, [0.5, 1.2]]
    for value in bad:
        with pytest.raises(ValueError, match=rf"^{kind.__name__}: got {name}="):
            kind(**{name: value})


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (
            lambda: Adam(beta=(0.9, 1.0)),
            r"got beta=\(0.9, 1.0\); wanted a tuple of two",
        ),
        (lambda: Momentum(rho=1), r"Momentum: got rho=1; wanted a number in \[0, 1\)"),
        (lambda: ClipNorm(p=0.5), r"got p=0.5; wanted a number in \[1, inf\]"),
        (lambda: Rprop(ell=(1.2, 0.5)), "wanted 0 < shrink < 1 < grow"),
        (lambda: Rprop(gamma=(1.0, 0.5)), "wanted 0 < smallest <= largest"),
        (lambda: Rprop(gamma=(0.0, 0.5)), "wanted 0 < smallest <= largest"),
        (lambda: RMSProp(centered="no"), "got centered='no'; wanted True or False"),
        (lambda: AdamW(couple=1), "got couple=1; wanted True or False"),
        (lambda: AccumulateGradients(0), "got n=0; wanted an int >= 1"),
        (lambda: AccumulateGradients(True), "got n=True; wanted an int >= 1"),
        (lambda: AccumulateGradients(2.0), "got n=2.0; wanted an int >= 1"),
        (lambda: Chain(Adam), "Chain: got <class .*Adam'>; wanted rules"),
        (lambda: Chain([Adam()]), "Chain: got .*; wanted rules"),
        (lambda: MixedPrecision(Adam), "MixedPrecision: got rule=<class"),
        (lambda: MixedPrecision(3), "got rule=3; wanted a rule"),
        (lambda: MixedPrecision(Adam(), torch.int64), "got dtype=torch.int64; wanted"),
        (lambda: MixedPrecision(Adam(), "float32"), "got dtype='float32'; wanted"),
    ],
)
def test_bad_hyperparameters_are_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_good_edges_are_taken():
    ClipNorm(0, math.inf), Descent(0), Momentum(1, 0), Adam(beta=(0, 0)), Chain()
    assert isinstance(Adam().init(torch.ones(1))[2], Count)


@pytest.mark.parametrize(
    "cast", [np.float16, np.float32, np.float64, np.longdouble, np.array, Fraction]
)
def test_numbers_of_numpy_are_held_as_python_s(cast):
    rule = Adam(cast(0.25), (cast(0.5), 0.75), eps=cast(1.0))
    assert rule == Adam(0.25, (0.5, 0.75), eps=1.0)
    for value in (rule.eta, *rule.beta, rule.eps):
        assert type(value) is float
    assert repr(rule) == repr(Adam(0.25, (0.5, 0.75), eps=1.0))
    assert hash(rule) == hash(Adam(0.25, (0.5, 0.75), eps=1.0))


def test_a_float32_is_its_own_value():
    assert Adam(np.float32(1e-3)).eta == float(np.float32(1e-3))


@pytest.mark.parametrize("cast", [np.int64, np.int8, np.uint16, np.array])
def test_whole_numbers_and_flags_of_numpy(cast):
    rule = AccumulateGradients(cast(3))
    assert type(rule.n) is int
    assert rule == AccumulateGradients(3)
    assert type(Descent(cast(1)).eta) is int
    assert RMSProp(centered=np.bool_(True)) == RMSProp(centered=True)


@pytest.mark.parametrize(
    "bad",
    [
        np.float32("nan"),
        np.float64(-1),
        np.bool_(True),
        np.array([0.1]),
        Decimal("0.1"),
    ],
    ids=repr,
)
def test_what_is_no_number_in_the_range_is_refused_as_it_was_given(bad):
    with pytest.raises(ValueError, match=rf"Adam: got eta={re.escape(repr(bad))}; wan"):
        Adam(bad)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Adam(torch.tensor(0.1)), r"tensor\(0.1.*; pass|no tensors: pass"),
        (lambda: Adam(beta=[0.9, 0.99]), r"wanted a tuple .*Pass \(0.9, 0.99\)"),
        (lambda: AccumulateGradients(np.float64(2)), "wanted an int >= 1"),
        (lambda: RMSProp(centered=np.int64(1)), "wanted True or False"),
    ],
)
def test_advice_for_what_is_almost_a_number(make, match):
    with pytest.raises(ValueError, match=match):
        make()
