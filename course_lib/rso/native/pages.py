"""Memory in large pages, where the system has them.

A processor looks up where each page of 4 KiB lies, and its cache holds some addresses
less well than others: with large pages, of 2 MiB, the arrays of a sweep need few
look-ups and lie in a row. Linux gives them to a program that asks.
"""

import contextlib
import math
import mmap

import torch
from torch import Tensor

LARGE = 2 << 20  # bytes of a large page


def zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return zeros as torch does, from a large page on in large pages."""
    size = math.prod(shape) * dtype.itemsize
    if size < LARGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(shape, dtype=dtype)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    memory = mmap.mmap(-1, -(-size // LARGE) * LARGE, flags=flags)
    with contextlib.suppress(OSError):  # this system's kernel has none
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype, count=math.prod(shape)).view(shape)
