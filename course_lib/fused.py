"""Adam's step into new arrays, in compiled code: one pass over the memory.

torch's kernel overwrites what it steps. To keep the old arrays, they must be copied
first, and for large ones the copies take longer than the step.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from course_lib.compiler import NoCompiler, library

LEAST = 2**16  # numbers from which on it pays
_SOURCE = Path(__file__).with_name("adam.cpp")
DEFINES = {torch.float32: "REAL=float", torch.float64: "REAL=double"}


class _Arrays(ctypes.Structure):
    """As in adam.cpp: pointers to x, g, m, v and to what they become."""

    _fields_ = (
        ("pointers", ctypes.c_void_p * 7),
        ("count", ctypes.c_long),
        ("step", ctypes.c_long),
    )


def takes(xs: Sequence[Tensor]) -> bool:
    """Tell whether `adam` takes these arrays, and pays: many numbers on a CPU."""
    if not xs:
        return False
    dtype, count = xs[0].dtype, 0
    for x in xs:  # plain, for this is asked at each step
        if x.dtype is not dtype or not x.is_cpu:
            return False
        count += x.numel()
    if count < LEAST or dtype not in DEFINES:
        return False
    try:
        compiled(dtype)
    except NoCompiler:
        return False
    return True


def adam(
    xs: Sequence[Tensor],
    gs: Sequence[Tensor],
    ms: Sequence[Tensor],
    vs: Sequence[Tensor],
    steps: Sequence[int],
    *,
    eta: float,
    beta: tuple[float, float],
    eps: float,
) -> tuple[list[Tensor], list[Tensor], list[Tensor], bool]:
    """Return all x', m' and v', contiguous, and whether all gradients are finite.

    The arguments stay as they are; `steps` are the numbers of each array's, from 1.
    """
    new = [[torch.empty_like(x) for x in xs] for _ in range(3)]
    arrays = (_Arrays * len(xs))()
    columns = zip(xs, gs, ms, vs, *new, strict=True)
    for own, tensors, step in zip(arrays, columns, steps, strict=True):
        own.pointers[:] = [tensor.data_ptr() for tensor in tensors]
        own.count, own.step = tensors[0].numel(), step
    numbers = map(ctypes.c_double, (eta, *beta, eps))
    count, threads = ctypes.c_long(len(xs)), torch.get_num_threads()
    step = compiled(xs[0].dtype).adam_step
    is_finite = not step(arrays, count, *numbers, threads)
    return *new, is_finite


def compiled(dtype: torch.dtype = torch.float32) -> ctypes.CDLL:
    """Return adam.cpp as a library; the first call on a machine compiles it.

    Raises:
        compiler.NoCompiler: it can't be compiled here.
    """
    return library(_SOURCE, DEFINES[dtype])
