"""Random models of Keras 3, run by Keras itself beside their import."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from course_lib.keras_models import load_keras
from course_lib.regularization import penalty

# Only asked for: an import would choose a backend for this whole process.
pytestmark = pytest.mark.skipif(find_spec("keras") is None, reason="no Keras here")
COUNT = 36


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What Keras computed, in a process that leaves no trace at home."""
    folder = tmp_path_factory.mktemp("keras")
    script = Path(__file__).with_name("keras_live.py")
    environment = {"KERAS_BACKEND": "torch", "KERAS_HOME": str(folder / "home")}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, script, folder, str(COUNT)],
        env=os.environ | environment,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return folder


def run(model, folder, number):
    """Return what the module and what Keras computed from the same inputs."""
    arrays = np.load(folder / f"{number}.npz")
    outputs = model(*(torch.from_numpy(x) for k, x in arrays.items() if k[0] == "x"))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    wanted = [torch.from_numpy(y) for k, y in arrays.items() if k[0] == "y"]
    return outputs, wanted, float(arrays["reg_loss"])


@pytest.mark.parametrize("number", range(COUNT))
def test_outputs_and_penalty(folder, number):
    model = load_keras(folder / f"{number}.keras")
    outputs, wanted, cost = run(model, folder, number)
    assert len(outputs) == len(wanted)
    for got, known in zip(outputs, wanted, strict=True):
        assert_close(got.detach(), known, rtol=1e-5, atol=1e-5)
    assert penalty(model).item() == pytest.approx(cost, rel=1e-6)


@pytest.mark.parametrize("number", range(COUNT))
def test_one_step_of_sgd(folder, number):
    """What a step moves is the gradients of outputs and penalty."""
    model = load_keras(folder / f"{number}.keras")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    outputs = run(model, folder, number)[0]
    (sum(y.square().mean() for y in outputs) + penalty(model)).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    after = dict(load_keras(folder / f"{number}_after.keras").named_parameters())
    moved = 0.0
    for name, parameter in model.named_parameters():
        got = parameter.detach() - before[name]
        wanted = after[name].detach() - before[name]
        least = 1e-6 * max(1.0, wanted.abs().max().item())  # rounding of a long step
        assert_close(
            got, wanted, rtol=1e-4, atol=least, msg=lambda m, n=name: f"{n} {m}"
        )
        moved += wanted.abs().sum().item()
    assert moved > 0
