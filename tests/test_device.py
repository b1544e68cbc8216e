"""Devices by name, and seeds that give the same numbers everywhere."""

import random

import numpy as np
import pytest
import torch

from course_lib.device import pick_device, seed_everything


def test_a_named_device_is_the_one_that_tensors_live_on(device):
    assert torch.ones(1, device=pick_device(device.type)).device.type == device.type
    assert pick_device(device) == device


@pytest.mark.parametrize(("gpu", "best"), [(True, "cuda"), (False, "cpu")])
def test_without_a_name_a_gpu_is_taken_if_there_is_one(monkeypatch, gpu, best):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device() == torch.device(best)


@pytest.mark.parametrize("name", ["gpu", "cuda:one", "", 3.5])
def test_what_is_no_device_is_refused_with_the_names_that_are(name):
    message = f"pick_device: got {name!r}; wanted 'cpu', 'cuda', 'cuda:N' or 'mps'"
    with pytest.raises(ValueError, match=message):
        pick_device(name)


@pytest.mark.parametrize(
    ("name", "gpus", "mps", "here"),
    [
        ("cuda", 0, False, "cpu"),
        ("cuda:2", 2, False, "cpu, cuda:0, cuda:1"),
        ("mps", 1, False, "cpu, cuda:0"),
        ("cuda", 0, True, "cpu, mps"),
        ("xla", 0, False, "cpu"),
    ],
)
def test_a_device_that_is_not_here_is_refused_with_those_that_are(
    monkeypatch, name, gpus, mps, here
):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    message = f"'{name}' is not available here; this machine has {here}. Leave"
    with pytest.raises(ValueError, match=message):
        pick_device(name)


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:1", "mps"])
def test_a_device_that_is_here_is_returned(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device(name) == torch.device(name)


@pytest.fixture
def generators_put_back():
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    yield
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])


def draw():
    return random.random(), np.random.random(), torch.rand(()).item()


@pytest.mark.usefixtures("generators_put_back")
@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1])
def test_one_seed_repeats_python_numpy_and_torch(seed):
    generator = seed_everything(seed)
    first = draw()
    expected = (
        random.Random(seed).random(),
        np.random.RandomState(seed).random(),
        torch.rand((), generator=torch.Generator().manual_seed(seed)).item(),
    )
    assert first == expected
    assert torch.rand((), generator=generator).item() == first[2]
    assert generator.device.type == "cpu"
    seed_everything(seed)
    assert draw() == first


@pytest.mark.usefixtures("generators_put_back")
def test_the_returned_generator_draws_on_its_own():
    generator = seed_everything(0)
    torch.rand(3)
    torch.testing.assert_close(
        torch.rand(2, generator=generator),
        torch.rand(2, generator=torch.Generator().manual_seed(0)),
    )


@pytest.mark.usefixtures("generators_put_back")
def test_the_gpu_is_seeded_as_well(device):
    seed_everything(3)
    first = torch.rand(3, device=device)
    seed_everything(3)
    assert torch.equal(torch.rand(3, device=device), first)


@pytest.mark.parametrize("seed", [-1, 2**32, 1.0, True, "0", None])
def test_a_seed_that_numpy_would_not_take_is_refused_and_changes_nothing(seed):
    state = random.getstate()
    with pytest.raises(ValueError, match=rf"got {seed!r}; wanted an int in \[0, 2\*\*"):
        seed_everything(seed)
    assert random.getstate() == state
