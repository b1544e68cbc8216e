"""Types of numbers: policies, inputs of other types, and models of float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from course_lib.keras_models import load_keras

CASES = Path(__file__).parent / "keras_cases"
HALF = ["mixed_float16_2.15", "mixed_bfloat16_3.15.1", "float16_2.15"]


def load(case):
    files = ("m.keras", "model.h5")
    model = load_keras(next(p for f in files if (p := CASES / case / f).exists()))
    arrays = np.load(CASES / case / "io.npz")
    return model, torch.from_numpy(arrays["x0"]), torch.from_numpy(arrays["y0"])


@pytest.mark.parametrize("case", HALF)
def test_half_precision_is_computed_in_float32(case):
    """Keras computed in halves, so its own numbers are off by about 1e-3."""
    model, x, wanted = load(case)
    got = model(x).detach()
    assert got.dtype == torch.float32
    assert_close(got, wanted.float(), rtol=1e-2, atol=1e-2)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_a_model_of_float64_is_one():
    model, x, wanted = load("2.15_float64")
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    x = x.float()  # its InputLayer is of float32
    assert_close(model(x).detach(), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", [torch.uint8, torch.int64, torch.bool, torch.float64])
def test_images_of_any_type_are_floats_inside(kind):
    model, x, _ = load("3.15.1_uint8_images")
    x = (x > 99).to(kind)
    assert_close(model(x), model(x.float()))
    doubled = model.double()(x)
    assert doubled.dtype == torch.float64
    assert_close(doubled.float(), model.float()(x), rtol=1e-5, atol=1e-5)


def test_floats_are_cut_for_an_input_of_whole_numbers():
    model, x, _ = load("2.15_int_dense")
    assert_close(model(x), model(x.floor()), rtol=0, atol=0)
    assert_close(model(x), model(x.to(torch.int32)), rtol=0, atol=0)


def test_rows_of_a_table_are_not_rounded_in_halves():
    """2049 is no number of float16, and so would be another row."""
    layer = {"name": "e", "input_dim": 2100, "output_dim": 1}
    layer["batch_input_shape"] = [None, 1]
    layers = [{"class_name": "Embedding", "config": layer}]
    table = np.arange(2100.0)[:, None] % 7
    data = {"class_name": "Sequential", "keras_version": "2.15.0", "config": layers}
    model = load_keras(data, weights=[table]).half()
    assert model(torch.tensor([[2049]])).item() == 2049 % 7
