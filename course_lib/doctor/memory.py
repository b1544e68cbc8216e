"""The memory of the machine, or of the container that the course runs in."""

from __future__ import annotations

import re
from pathlib import Path

from course_lib.doctor.check import FAULT, OK, WARNING, Result, check

NEEDED = 1.2  # GB, the most that a lesson takes


@check("memory")
def memory() -> Result:
    """Memory: enough in all, and enough free?"""
    total, free = total_and_free()
    found = f"{free:.1f} GB free of {total:.1f} GB"
    if total < NEEDED:
        remedy = f"Lessons need {NEEDED} GB: give the container or machine more."
        return FAULT, found, remedy
    if free < NEEDED:
        remedy = (
            f"Lessons need {NEEDED} GB: in JupyterLab's menu Kernel, Shut Down All "
            "Kernels, and end other programs."
        )
        return WARNING, found, remedy
    return OK, found


def total_and_free(cgroup: Path = Path("/sys/fs/cgroup")) -> tuple[float, float]:
    """Return total and free memory in GB: of the container if it has a limit."""
    import psutil

    machine = psutil.virtual_memory()
    total, free = machine.total, machine.available
    try:
        limit = int((cgroup / "memory.max").read_text())
        used = re.search(r"^anon (\d+)", (cgroup / "memory.stat").read_text(), re.M)
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return total / 1e9, free / 1e9
    left = limit - int(used[1]) if used else limit
    return min(total, limit) / 1e9, min(free, left) / 1e9
