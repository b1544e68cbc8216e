"""Zeros in large pages are zeros as torch has them."""

import mmap
import os
from pathlib import Path

import pytest
import torch

from course_lib.rso.native import pages

SHAPES = [(0,), (3, 5), (pages.LARGE // 4 - 1,), (pages.LARGE // 4,), (3, 7, 50_001)]
ADVICE = hasattr(mmap, "MADV_HUGEPAGE")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_zeros_of_any_size(shape, dtype):
    found = pages.zeros(shape, dtype)
    assert found.dtype == dtype
    assert found.is_contiguous()
    assert torch.equal(found, torch.zeros(shape, dtype=dtype))
    found += 1
    assert found.sum() == found.numel()
    assert not pages.zeros(shape, dtype).any()  # other memory


def flags_of(address: int) -> list[str]:
    """What Linux notes of the mapping that an address lies in."""
    is_inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if first.endswith(":"):
            if is_inside and first == "VmFlags:":
                return rest
        else:
            start, end = (int(part, 16) for part in first.split("-"))
            is_inside = start <= address < end
    raise AssertionError(f"no mapping holds {address:x}")


@pytest.mark.skipif(
    not ADVICE or not os.path.exists("/sys/kernel/mm/transparent_hugepage"),
    reason="needs Linux with large pages",
)
def test_large_zeros_ask_for_large_pages_and_small_ones_do_not():
    large, small = (
        pages.zeros((size,), torch.float32) for size in (pages.LARGE, 1_000)
    )
    assert "hg" in flags_of(large.data_ptr())
    assert "hg" not in flags_of(small.data_ptr())
    assert large.data_ptr() % 64 == 0


def test_a_system_without_large_pages(monkeypatch):
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    assert not pages.zeros((pages.LARGE,), torch.float32).any()


@pytest.mark.skipif(not ADVICE, reason="needs Linux")
def test_a_kernel_without_large_pages(monkeypatch):
    class Refusing(mmap.mmap):
        def madvise(self, *arguments):
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr(mmap, "mmap", Refusing)
    assert not pages.zeros((pages.LARGE,), torch.float32).any()
