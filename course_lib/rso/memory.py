"""How much memory is free."""

from __future__ import annotations

import os

import torch

SHARE = 0.7  # of the free memory that an engine may take


def available(device: torch.device, processes: int = 1) -> int | None:
    """Return the bytes that each process may use; None where nobody can tell.

    The processes of one machine share its memory; a GPU has one process.
    """
    if device.type == "cuda":
        return int(SHARE * torch.cuda.mem_get_info(device)[0])
    try:
        pages = os.sysconf("SC_AVPHYS_PAGES")
        free = max(pages * os.sysconf("SC_PAGE_SIZE"), _reclaimable())
        return int(SHARE * free / processes)
    except (AttributeError, ValueError, OSError):  # not on this system
        return None


def _reclaimable() -> int:
    """Return what Linux would free for us; its cache counts as used otherwise."""
    try:
        with open("/proc/meminfo") as lines:
            for line in lines:
                if line.startswith("MemAvailable"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def shown(count: int) -> str:
    """Write a number of bytes for people.

    >>> shown(3 * 2**30)
    '3.0 GiB'
    """
    return f"{count / 2**30:.1f} GiB" if count >= 2**29 else f"{count / 2**20:.0f} MiB"
