"""One loop and four calls write the change of a channel behind its ReLU."""

import pytest
import torch

from course_lib.compiler import NoCompiler
from course_lib.lessons.rso_speed import one_loop as module

OWN = torch.tensor([-1.0, 2.0, 0.5, -3.0, 0.0], dtype=torch.float64)
X = torch.tensor([4.0, -6.0, 1.0, 1.0, -2.0], dtype=torch.float64)
WANTED = [1.0, -2.0, 0.5, 0.0, 0.0]  # by 0.5: 1, -1, 1, -2.5, -1


@pytest.mark.parametrize("function", [module.four_calls, module.one_loop])
def test_the_change_behind_the_relu_is_that_by_hand(function):
    own, x, out = OWN.clone(), X.clone(), torch.full_like(OWN, 9)
    function(own, x, 0.5, out)
    assert out.tolist() == WANTED
    assert torch.equal(own, OWN)
    assert torch.equal(x, X)


def test_without_a_compiler_torch_does_the_work(monkeypatch):
    def refuse(path, flags):
        raise NoCompiler("none here")

    monkeypatch.setattr(module, "library", refuse)
    module._compiled.cache_clear()
    try:
        out = torch.zeros_like(OWN)
        module.one_loop(OWN, X, 0.5, out)
    finally:
        module._compiled.cache_clear()
    assert out.tolist() == WANTED


def test_rates_are_pixels_over_seconds(monkeypatch):
    monkeypatch.setattr(module, "seconds_of", lambda f, own, *_: 1e-9 * len(own))
    rates = module.loop_rates(8, 240)
    assert list(rates) == [
        f"{n} images, {f}" for n in (8, 240) for f in ("four_calls", "one_loop")
    ]
    assert all(rate == pytest.approx(1) for rate in rates.values())
