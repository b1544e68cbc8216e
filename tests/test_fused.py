"""adam.cpp against torch's own kernel."""

import pytest
import torch

from course_lib import fused
from course_lib.compiler import NoCompiler
from course_lib.explicit import setup, update
from course_lib.rules import Adam

SIZES = [(fused.LEAST,), (3, 5), (1,), (), (0,), (257, 63)]
OPTIONS = {"eta": 3e-3, "beta": (0.8, 0.99), "eps": 1e-6}


@pytest.fixture(autouse=True)
def compiler():
    try:
        fused.compiled()
    except NoCompiler as error:
        pytest.skip(str(error))


def arrays(dtype, seed=0):
    """Return xs, gs, ms and vs, of large and small numbers."""
    generator = torch.Generator().manual_seed(seed)
    scales = 1e-6, 1.0, 1e3
    made = [
        [
            torch.randn(size, generator=generator, dtype=dtype)
            * scales[i % len(scales)]
            for i, size in enumerate(SIZES)
        ]
        for _ in range(4)
    ]
    return *made[:3], [v * v for v in made[3]]


def by_torch(xs, gs, ms, vs, steps):
    xs, ms, vs = ([t.clone() for t in ts] for ts in (xs, ms, vs))
    counts = [torch.tensor(float(step)) for step in steps]
    first, second = OPTIONS["beta"]
    torch._fused_adam_(
        *(xs, gs, ms, vs, [], counts),
        lr=OPTIONS["eta"],
        beta1=first,
        beta2=second,
        weight_decay=0.0,
        eps=OPTIONS["eps"],
        amsgrad=False,
        maximize=False,
    )
    return xs, ms, vs


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize(
    ("dtype", "near"), [(torch.float64, 1e-13), (torch.float32, 1e-6)]
)
def test_new_arrays_hold_what_torch_writes_into_the_old(dtype, near, threads):
    given = arrays(dtype)
    before = [[t.clone() for t in ts] for ts in given]
    steps, known = range(1, len(SIZES) + 1), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        *found, is_finite = fused.adam(*given, steps, **OPTIONS)
    finally:
        torch.set_num_threads(known)
    assert is_finite
    (xs, *moments), wanted = found, by_torch(*given, steps)
    torch.testing.assert_close(moments, list(wanted[1:]), rtol=near, atol=1e-30)
    least = near * OPTIONS["eta"]  # of a step, beside which x may be small
    torch.testing.assert_close(xs, wanted[0], rtol=near, atol=least)
    for now, then in zip(given, before, strict=True):
        torch.testing.assert_close(now, then, rtol=0, atol=0)


def test_what_it_takes():
    large = torch.zeros(fused.LEAST)
    assert not fused.takes([])
    assert fused.takes([large])
    assert fused.takes([large[:-1], torch.zeros(1)])
    assert not fused.takes([large[:-1]])
    assert not fused.takes([large, large.double()])
    assert not fused.takes([large.half()])
    assert not fused.takes([large.to("meta")])


@pytest.mark.parametrize("compiled", [True, False])
def test_thirty_steps_of_a_large_tensor_are_those_of_torch(compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(fused, "LEAST", float("inf"))
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(260, 260, dtype=torch.float64, generator=generator)
    theirs = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.Adam([theirs], lr=1e-2)
    params = {"x": start.clone()}
    state = setup(Adam(1e-2), params)
    for _ in range(30):
        grad = torch.randn(260, 260, dtype=torch.float64, generator=generator)
        theirs.grad = grad.t()  # columns stand together in memory
        optimizer.step()
        state, params = update(state, params, {"x": grad.t()})
    torch.testing.assert_close(params["x"], theirs.data, rtol=0, atol=1e-12)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [0, 7, fused.LEAST - 1])
def test_a_gradient_that_is_not_finite_is_named_and_goes_through_unchecked(bad, place):
    params = {"x": torch.ones(fused.LEAST), "y": torch.ones(fused.LEAST)}
    grads = {name: torch.zeros(fused.LEAST) for name in params}
    grads["y"][place] = bad
    state = setup(Adam(), params)
    with pytest.raises(ValueError, match="update: the gradient of 'y' is not finite"):
        update(state, params, grads)
    _, new = update(state, params, grads, check=False)
    assert new["x"].isfinite().all()
    assert new["y"].isnan().nonzero().tolist() == [[place]]
    grads["y"][place] = 3e38  # its square overflows; it is finite
    update(state, params, grads)
