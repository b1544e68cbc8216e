"""Python, its libraries, and what they start: the device, a compiler, a kernel."""

from __future__ import annotations

import contextlib
import importlib
import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from course_lib.doctor import advice, folders
from course_lib.doctor.check import FAULT, OK, WARNING, Check, Result, check, first_line

if TYPE_CHECKING:
    from jupyter_client.manager import KernelManager
    from packaging.requirements import Requirement

TESTED = ((3, 10), (3, 11), (3, 12), (3, 13))  # the Pythons of constraints.txt
CONSTRAINTS = advice.CHECKOUT / "constraints.txt"
IMPORTED = ("h5py", "ipywidgets", "matplotlib")  # by lessons, and by no other check
VENV = advice.CHECKOUT / ".venv"  # as `make lab` makes it


@check("Python")
def python() -> Result:
    """Python itself: one of the tested versions?"""
    found = platform.python_version()
    if sys.version_info[:2] not in TESTED:
        remedy = f"The course is not tested with it. {advice.set_up_again('3.12')}"
        return WARNING, found, remedy
    return OK, found


@check("set-up")
def stamps() -> Result:
    """The stamps of make: was the environment installed from today's lists?"""
    stamp = VENV / "lab.stamp"
    if not stamp.exists():
        return OK, f"in {advice.setup()}"
    lists = [VENV.parent / name for name in ("pyproject.toml", "constraints.txt")]
    newer = [p.name for p in lists if p.stat().st_mtime > stamp.stat().st_mtime]
    if newer:
        remedy = f"The course has changed. {advice.run('make lab')}"
        return WARNING, f"{' and '.join(newer)} changed after the install", remedy
    return OK, "as pyproject.toml and constraints.txt say"


def versions() -> list[Check]:
    """Each library that the lessons use: installed, and in the tested version?"""
    try:
        requirements = metadata.requires("course-lib") or []
    except metadata.PackageNotFoundError:
        return [Check("course-lib", FAULT, "not installed", advice.install_course())]
    try:
        needed = [_requirement(line) for line in requirements]
    except Exception as error:  # a broken library can fail in any way
        return [_no_packaging(error)]
    pins = _pins(CONSTRAINTS)
    return [
        version(requirement, pins.get(requirement.name))
        for requirement in needed
        if not requirement.marker or requirement.marker.evaluate({"extra": "lab"})
    ]


def version(requirement: Requirement, pin: Requirement | None) -> Check:
    """One library: in the range that the course allows, whole, and as it was tested?

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
        return Check(name, FAULT, found, advice.install(_wanted(requirement, pin)))
    try:
        if name in IMPORTED:
            importlib.import_module(name)
    except Exception as error:
        found = f"{found} can't be imported: {first_line(error)}"
        again = advice.install(_wanted(requirement, pin), again=True)
        return Check(name, FAULT, found, again)
    if pin and not pin.specifier.contains(found):
        remedy = f"Stored outputs are of {pin.specifier}; last digits may differ."
        return Check(name, WARNING, found, remedy)
    return Check(name, OK, found)


def _no_packaging(error: Exception) -> Check:
    """The library that reads requirements: without it no other can be examined."""
    is_missing = isinstance(error, ModuleNotFoundError)
    found = "not installed" if is_missing else f"can't be imported: {first_line(error)}"
    text = CONSTRAINTS.read_text(encoding="utf-8") if CONSTRAINTS.exists() else ""
    pin = re.search(r"^packaging(==[\w.]+)$", text, re.MULTILINE)
    package = advice.Package("packaging", pin[1] if pin else "")
    remedy = advice.install(package, again=not is_missing)
    return Check("packaging", FAULT, found, f"{remedy} Then call the doctor again.")


def _requirement(line: str) -> Requirement:
    from packaging.requirements import Requirement

    return Requirement(line)


def _wanted(requirement: Requirement, pin: Requirement | None) -> advice.Package:
    return advice.Package(requirement.name, str((pin or requirement).specifier))


def _pins(constraints: Path) -> dict[str, Requirement]:
    """Return the lines of constraints.txt that hold for this Python, by name."""
    if not constraints.exists():
        return {}
    lines = constraints.read_text(encoding="utf-8").splitlines()
    pins = (_requirement(line) for line in lines if line and not line.startswith("#"))
    return {pin.name: pin for pin in pins if not pin.marker or pin.marker.evaluate()}


def _pinned(name: str) -> advice.Package:
    return _wanted(_requirement(name), _pins(CONSTRAINTS).get(name))


@check("device")
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
        hide = advice.variables({"CUDA_VISIBLE_DEVICES": "-1"})
        remedy = f"Update the GPU's driver, or compute on the CPU. {hide}"
        return FAULT, f"{found}: {first_line(error)}", remedy
    return OK, found


@check("threads")
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
        fewer = advice.variables({"OMP_NUM_THREADS": str(cpus)})
        return WARNING, found, f"Threads above CPUs are slow. {fewer}"
    return OK, found


@check("compiler")
def compiler() -> Result:
    """A C++ compiler, which a few functions use where there is one."""
    from course_lib import compiler as cpp
    from course_lib.rso.parallel import shared_memory

    if folders.temporary().status != OK:
        remedy = "It needs a temporary folder: mend that first, as said there."
        return WARNING, "nothing can be compiled", remedy
    try:
        library = shared_memory.compiled()
    except cpp.NoCompiler as error:
        if cpp.SWITCH in os.environ:
            return WARNING, first_line(error), advice.variables({cpp.SWITCH: None})
        return WARNING, first_line(error), advice.compiler()
    obstacle = cpp.obstacle()
    if obstacle is None and not cpp.is_stored(library):
        obstacle = f"nothing can be stored in {cpp.folder()}, or loaded from there"
    if obstacle is not None:
        why = "Until then each start compiles for itself, some seconds."
        is_linux = sys.platform == "linux"
        cure = advice.own_folder("cache", "XDG_CACHE_HOME") if is_linux else ""
        return WARNING, f"compiles, but {obstacle}", f"{why} {cure}".strip()
    return OK, f"{cpp.used()}, stored for the next start"


@check("kernel")
def kernel() -> Result:
    """The kernel that JupyterLab would start: does it compute, with this Python?"""
    from jupyter_client.kernelspec import NoSuchKernel
    from jupyter_client.manager import KernelManager

    if folders.jupyter().status != OK:
        return FAULT, "can't start", "Mend Jupyter's folders first, as said there."
    manager = KernelManager(kernel_name="python3")
    try:
        # Its notices belong to the terminal of JupyterLab and not into this table.
        manager.start_kernel(stderr=subprocess.DEVNULL)
        answers = _ask(manager, sum="1 + 1", python="__import__('sys').prefix")
    except NoSuchKernel:
        return FAULT, "none is installed", _kernel_again()
    except RuntimeError as error:
        found = f"python3 does not start: {first_line(error)}"
        return FAULT, found, _kernel_again()
    finally:
        if manager.has_kernel:
            manager.shutdown_kernel(now=True)
    if answers["python"] != repr(sys.prefix):
        remedy = f"{advice.python()} -m ipykernel install --sys-prefix"
        found = f"python3 is the one of {answers['python']}"
        return FAULT, found, advice.run(remedy)
    return OK, "python3 starts and computes"


def _kernel_again() -> str:
    package = advice.install(_pinned("ipykernel"), again=True)
    spec = f"`{advice.python()} -m ipykernel install --sys-prefix`"
    return f"{package} Then {spec}."


def _ask(
    manager: KernelManager, timeout: float = 30, **expressions: str
) -> dict[str, str]:
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


@check("widgets")
def widgets() -> Result:
    """Widgets: does JupyterLab find the extension that draws them?"""
    from jupyter_core.paths import jupyter_path

    extension = "@jupyter-widgets/jupyterlab-manager/package.json"
    if any((Path(p) / extension).exists() for p in jupyter_path("labextensions")):
        return OK, "JupyterLab's extension is there"
    remedy = advice.install(_pinned("jupyterlab-widgets"), again=True)
    return FAULT, "JupyterLab's extension is missing", f"{remedy} Restart JupyterLab."
