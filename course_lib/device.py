"""Choose a device, and seed all random number generators."""

import platform
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from course_lib.checks import is_int


def pick_device(name: str | torch.device | None = None) -> torch.device:
    """Return the device called `name`, or the best one for this course.

    None chooses the first CUDA GPU if there is one, else the CPU. Apple's `"mps"` is
    used only by name: it has no float64, which several lessons use.

    Args:
        name: `"cpu"`, `"cuda"`, `"cuda:1"`, `"mps"`, a torch.device, or None.

    Raises:
        ValueError: the name is not a device, or this machine has no such device.

    >>> pick_device("cpu")
    device(type='cpu')
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"pick_device: got {name!r}; wanted 'cpu', 'cuda', 'cuda:N' or 'mps'. "
            "Leave the name out to take the best device of this machine."
        ) from error
    if not _is_available(device):
        raise ValueError(
            f"pick_device: '{device}' is not available here; this machine has "
            f"{_available_names()}. Leave the name out to take the best of them."
        )
    return device


def _is_available(device: torch.device) -> bool:
    if device.type == "cuda":
        return (device.index or 0) < torch.cuda.device_count()
    if device.type == "mps":
        return torch.backends.mps.is_available()
    return device.type in ("cpu", "meta")


def _available_names() -> str:
    names = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    return ", ".join(names + ["mps"] * torch.backends.mps.is_available())


def seed_everything(seed: int) -> torch.Generator:
    """Seed Python, NumPy and torch (every device); return a seeded CPU generator.

    Draw with the returned generator on the CPU and move the numbers: a GPU's generator
    gives other numbers for the same seed.

    Args:
        seed: an int in [0, 2**32), the range that NumPy takes.

    Raises:
        ValueError: the seed is not an int in that range.

    >>> g = seed_everything(0)
    >>> bool(torch.randn(3, generator=g).equal(torch.randn(3)))
    True
    """
    if not is_int(seed) or not 0 <= seed < 2**32:
        raise ValueError(
            f"seed_everything: got {seed!r}; wanted an int in [0, 2**32). "
            "Write the seed as a plain number, for example seed_everything(0)."
        )
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


def forget_casts() -> None:
    """Clear torch.autocast's cache of cast weights, after the weights have changed.

    torch clears it at the end of the autocast block. A whole loop inside one block
    would compute with the weights of its first step.
    """
    if torch._C._is_any_autocast_enabled():
        torch.clear_autocast_cache()


def cpu_name() -> str:
    """Return the processor's name."""
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.check_output(command, text=True).strip()
    return platform.processor() or platform.machine()
