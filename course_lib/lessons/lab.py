"""`make lab`: the learner's copy of the lessons, then JupyterLab on it."""

import os
import subprocess
import sys
from collections.abc import Sequence

from course_lib.lessons import working_copy


def prepare() -> int:
    """Bring the copy up to date and say so; return the exit status."""
    try:
        said = working_copy.update()
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(*said, f"Your copy of the lessons: {working_copy.WORK}", sep="\n")
    return 0


def main(options: Sequence[str] = ()) -> int:
    """Prepare, then open lesson 00; further options are JupyterLab's."""
    if status := prepare():
        return status
    return subprocess.call(_command(options))


def reset(lesson: str) -> int:
    """Make one lesson as it was at first; return the exit status."""
    try:
        print(working_copy.reset(lesson))
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _command(options: Sequence[str]) -> list[str]:
    """Return the command line of JupyterLab.

    JupyterLab refuses to run as root, who is the only user of many containers.
    """
    is_root = getattr(os, "geteuid", lambda: 1)() == 0
    return [
        sys.executable,
        *("-m", "jupyterlab", "--ip=127.0.0.1"),
        f"--ServerApp.root_dir={working_copy.CHECKOUT}",
        "--LabApp.default_url=/lab/tree/work/00_start_here.ipynb",
        "--KernelManager.transport_encryption=auto",
        *(["--allow-root"] if is_root else []),
        *options,
    ]
