"""Examine the machine: will the lessons run here, and what can be done if not?

`python -m course_lib doctor` prints the table and ends with status 1 if a lesson would
fail. Each check is a function that returns a `Check`; none raises. A check imports what
it examines, so that a broken library is a line of the table.
"""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

OK, WARNING, FAULT = "ok", "warning", "fault"

TESTED = ((3, 10), (3, 11), (3, 12), (3, 13))  # the Pythons of constraints.txt
NEEDED_MEMORY = 1.2  # GB, the most that a lesson takes
NEEDED_DISK = 0.1  # GB, for progress and for notebooks as they are saved
CONSTRAINTS = Path(__file__).resolve().parents[1] / "constraints.txt"


@dataclass(frozen=True)
class Check:
    """The result of one check."""

    name: str
    status: str  # OK, WARNING (lessons run, but see the remedy) or FAULT (one fails)
    found: str
    remedy: str = ""  # what to do, if anything


def examine(*, kernel: bool = True) -> list[Check]:
    """Run every check.

    Args:
        kernel: start a Jupyter kernel too, which takes a second or two. A notebook
            passes False, as its own kernel is running.
    """
    checks = [python(), *versions(), device(), threads(), compiler(), memory()]
    checks += data_sets()
    if kernel:
        checks.append(jupyter_kernel())
    return [*checks, widgets(), disk()]


def report(checks: Sequence[Check]) -> str:
    """Return the checks as a table, each remedy under its line, and a verdict."""
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{check.status:8} {check.name:{width}}  {check.found}")
        if check.remedy:
            lines.append(f"{'':8} {'':{width}}  -> {check.remedy}")
    faults = ", ".join(check.name for check in checks if check.status == FAULT)
    verdict = f"A lesson would fail here. Repair first: {faults}." if faults else ""
    return "\n".join([*lines, "", verdict or "The lessons will run here."])


def exit_status(checks: Sequence[Check]) -> int:
    """Return 1 if a lesson would fail, else 0."""
    return int(any(check.status == FAULT for check in checks))


Result = tuple[str, ...]  # status, found, and perhaps a remedy


def _check(name: str) -> Callable[[Callable[[], Result]], Callable[[], Check]]:
    """Make a Check of a function's result; an error is a fault, and others go on."""

    def decorate(examine: Callable[[], Result]) -> Callable[[], Check]:
        @functools.wraps(examine)
        def guarded() -> Check:
            try:
                return Check(name, *examine())
            except Exception as error:
                remedy = "Install the course again: remove .venv, then `make lab`."
                found = f"{type(error).__name__}: {_first_line(error)}"
                return Check(name, FAULT, found, remedy)

        return guarded

    return decorate


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")


@_check("Python")
def python() -> Result:
    """Python itself: one of the tested versions?"""
    found = platform.python_version()
    if sys.version_info[:2] not in TESTED:
        remedy = "Not tested with it. Remove .venv, then `make lab PYTHON=python3.12`."
        return WARNING, found, remedy
    return OK, found


def versions() -> list[Check]:
    """Each library that the lessons use: installed, and in the tested version?"""
    try:
        requirements = metadata.requires("course-lib") or []
    except metadata.PackageNotFoundError:
        remedy = "Run `make lab`, or `python -m pip install --editable '.[lab]'`."
        return [Check("course-lib", FAULT, "not installed", remedy)]
    pins = _pins(CONSTRAINTS)
    needed = [Requirement(line) for line in requirements]
    return [
        version(requirement, pins.get(requirement.name))
        for requirement in needed
        if not requirement.marker or requirement.marker.evaluate({"extra": "lab"})
    ]


def version(requirement: Requirement, pin: Requirement | None) -> Check:
    """One library: within the range that the course allows, and as it was tested?

    Args:
        requirement: the range, from the package's metadata.
        pin: the exact version of constraints.txt; None outside a checkout.
    """
    name, found = requirement.name, "not installed"
    fits = False
    with contextlib.suppress(metadata.PackageNotFoundError):
        found = metadata.version(name)
        fits = requirement.specifier.contains(found, prereleases=True)
    if not fits:
        wanted = f"{name}{(pin or requirement).specifier}"
        remedy = f'Run `make lab`, or `{sys.executable} -m pip install "{wanted}"`.'
        return Check(name, FAULT, found, remedy)
    if pin and not pin.specifier.contains(found):
        remedy = f"Stored outputs are of {pin.specifier}; last digits may differ."
        return Check(name, WARNING, found, remedy)
    return Check(name, OK, found)


def _pins(constraints: Path) -> dict[str, Requirement]:
    """Return the lines of constraints.txt that hold for this Python, by name."""
    if not constraints.exists():
        return {}
    lines = constraints.read_text(encoding="utf-8").splitlines()
    pins = (Requirement(line) for line in lines if line and not line.startswith("#"))
    return {pin.name: pin for pin in pins if not pin.marker or pin.marker.evaluate()}


@_check("device")
def device() -> Result:
    """The device that the lessons choose: does it compute?"""
    import torch

    from course_lib.device import pick_device

    chosen = pick_device()
    name = torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else "no GPU"
    found = f"{chosen} ({name})"
    try:
        works = torch.ones(2, 2, device=chosen).mm(torch.ones(2, 2, device=chosen))
        works.sum().item()
    except RuntimeError as error:
        remedy = "Update the GPU's driver, or remove .venv and `make lab TORCH=cpu`."
        return FAULT, f"{found}: {_first_line(error)}", remedy
    return OK, found


@_check("threads")
def threads() -> Result:
    """Threads against CPUs: more threads than CPUs wait for each other."""
    import torch

    used, cpus = torch.get_num_threads(), os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # Linux: the CPUs of this process
        cpus = len(os.sched_getaffinity(0))
    asked = os.environ.get("OMP_NUM_THREADS", "")
    found = f"{used} of torch on {cpus} CPUs"
    # torch may take fewer than it is asked for; NumPy's and SciPy's libraries don't.
    if used > cpus or (asked.isdigit() and int(asked) > cpus):
        found += f", OMP_NUM_THREADS={asked}" if asked else ""
        remedy = f"Threads above CPUs are slow: set OMP_NUM_THREADS={cpus}, restart."
        return WARNING, found, remedy
    return OK, found


@_check("compiler")
def compiler() -> Result:
    """A C++ compiler, which a few functions use where there is one."""
    from course_lib import compiler as cpp
    from course_lib.rso.parallel import shared_memory

    try:
        library = shared_memory.compiled()
    except cpp.NoCompiler as error:
        remedy = "Lessons run without it, RSO several times as fast with one: `apt "
        remedy += "install g++`, or on macOS `xcode-select --install`."
        return WARNING, _first_line(error), remedy
    obstacle = cpp.obstacle()
    if obstacle is None and not cpp.is_stored(library):
        obstacle = f"nothing can be stored in {cpp.folder()}, or loaded from there"
    if obstacle is not None:
        remedy = "Until then each start compiles for itself, some seconds."
        return WARNING, f"compiles, but {obstacle}", remedy
    return OK, f"{cpp.used()}, stored for the next start"


@_check("memory")
def memory() -> Result:
    """Memory: enough in all, and enough free?"""
    total, free = _memory()
    found = f"{free:.1f} GB free of {total:.1f} GB"
    if total < NEEDED_MEMORY:
        remedy = f"Lessons need {NEEDED_MEMORY} GB: give the container or machine more."
        return FAULT, found, remedy
    if free < NEEDED_MEMORY:
        remedy = f"Lessons need {NEEDED_MEMORY} GB: shut down other kernels, programs."
        return WARNING, found, remedy
    return OK, found


def _memory(cgroup: Path = Path("/sys/fs/cgroup")) -> tuple[float, float]:
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


def data_sets() -> Iterator[Check]:
    """The data: do the digits load, and which other sets are here?"""
    from course_lib import data

    yield digits()
    for name in data.NAMES:
        if name != "digits":
            here = data.available(name)
            absent = f"not here; `python -m course_lib data {name}` fetches it"
            yield Check(name, OK, "here" if here else absent)


@_check("digits")
def digits() -> Result:
    """The data set that every lesson uses by default."""
    from course_lib import data

    return OK, str(data.load("digits", download=False))


@_check("kernel")
def jupyter_kernel() -> Result:
    """The kernel that JupyterLab would start: does it compute, with this Python?"""
    from jupyter_client.manager import KernelManager

    manager = KernelManager(kernel_name="python3")
    try:
        # Its notices belong to the terminal of JupyterLab and not into this table.
        manager.start_kernel(stderr=subprocess.DEVNULL)
        answers = _ask(manager, sum="1 + 1", python="__import__('sys').prefix")
    finally:
        if manager.has_kernel:
            manager.shutdown_kernel(now=True)
    if answers != {"sum": "2", "python": repr(sys.prefix)}:
        found = f"python3 is the kernel of another Python: {answers.get('python')}"
        remedy = f"Run `{sys.executable} -m ipykernel install --sys-prefix`."
        return FAULT, found, remedy
    return OK, "python3 starts and computes"


def _ask(manager, *, timeout: float = 30, **expressions: str) -> dict[str, str]:
    """Return the repr of each expression's value in the manager's kernel."""
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=timeout)
        ask = {"user_expressions": expressions, "reply": True, "timeout": timeout}
        values = client.execute("", **ask)["content"]["user_expressions"]
    finally:
        client.stop_channels()
    return {name: value["data"]["text/plain"] for name, value in values.items()}


@_check("widgets")
def widgets() -> Result:
    """Widgets: does JupyterLab find the extension that draws them?"""
    from jupyter_core.paths import jupyter_path

    extension = "@jupyter-widgets/jupyterlab-manager/package.json"
    if any((Path(p) / extension).exists() for p in jupyter_path("labextensions")):
        return OK, "JupyterLab's extension is there"
    again = f"{sys.executable} -m pip install --force-reinstall jupyterlab_widgets"
    remedy = f"Run `{again}`, then restart JupyterLab."
    return FAULT, "JupyterLab's extension is missing", remedy


@_check("disk")
def disk() -> Result:
    """The disk: can progress and notebooks be saved?"""
    progress = os.environ.get("COURSE_PROGRESS")
    folder = Path(progress).parent if progress else Path.cwd()
    free = shutil.disk_usage(folder).free / 1e9
    found = f"{free:.1f} GB free for notebooks and progress"
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError:
        remedy = "Copy the course to a folder of your own; nothing can be saved here."
        return WARNING, f"{folder} can't be written", remedy
    if free < NEEDED_DISK:
        return WARNING, found, "Make room, or your work can't be saved."
    return OK, found
