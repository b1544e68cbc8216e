"""The change of a channel behind its ReLU, by four calls of torch and by one loop."""

from ctypes import CDLL, c_double, c_long, c_void_p
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from course_lib.compiler import NoCompiler, library
from course_lib.lessons.rso_speed.stopwatch import seconds_of


def four_calls(own: Tensor, x: Tensor, by: float, out: Tensor) -> None:
    """Write relu(own + by * x) - relu(own) into `out`, operation by operation."""
    torch.add(own, x, alpha=by, out=out).relu_().sub_(own.relu())


def one_loop(own: Tensor, x: Tensor, by: float, out: Tensor) -> None:
    """Do what `four_calls` does in a loop in C++; without a compiler, call that.

    The tensors are contiguous, of float64, and on the CPU.
    """
    compiled = _compiled()
    if compiled is None:
        four_calls(own, x, by, out)
        return
    places = own.data_ptr(), x.data_ptr(), by, out.data_ptr()
    compiled.moved(*places, own.numel())


def loop_rates(*counts: int) -> dict[str, float]:
    """Return 10⁹ pixels a second of both, for 16 pixels of each of so many images."""
    rates = {}
    for images in counts:
        own, x, out = torch.randn(3, 16 * images, dtype=torch.float64)
        for function in (four_calls, one_loop):
            seconds = seconds_of(function, own, x, 0.1, out)
            name = f"{images} images, {function.__name__}"
            rates[name] = 16 * images / 1e9 / seconds
    return rates


@cache
def _compiled() -> CDLL | None:
    try:
        # without it gcc keeps branches, and does one number at a time
        flags = ("-fno-trapping-math",)
        found = library(Path(__file__).with_name("one_loop.cpp"), flags=flags)
    except NoCompiler:
        return None
    found.moved.argtypes = c_void_p, c_void_p, c_double, c_void_p, c_long
    found.moved.restype = None
    return found
