"""What to type on this system: the same fault has another cure on Windows or conda.

Every function returns a sentence or two with the commands in `backticks`. They are for
a terminal in the course's folder; where the doctor was called elsewhere, the sentence
names the folder.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

CHECKOUT = Path(__file__).resolve().parents[2]

# How this Python came here. Each installs packages in another way.
BINDER, CONDA, SYSTEM, VENV = "Binder", "conda", "the system", "a virtual environment"

CONDA_NAMES = {"matplotlib": "matplotlib-base", "torch": "pytorch"}  # of conda-forge
_BUILDS = {"torch": "=cpu*"}
_CPU_WHEELS = "--extra-index-url https://download.pytorch.org/whl/cpu"
_COMPILER = {  # package manager -> its command
    "apt-get": "apt-get install g++",
    "dnf": "dnf install gcc-c++",
    "zypper": "zypper install gcc-c++",
    "pacman": "pacman -S gcc",
    "apk": "apk add g++",
}


class Package(NamedTuple):
    """A package to install."""

    name: str  # as pip calls it
    specifier: str  # the versions, such as "==2.4.6", or "" for any


def setup() -> str:
    """Return how this Python was set up: BINDER, CONDA, SYSTEM or VENV."""
    if "BINDER_LAUNCH_HOST" in os.environ:
        return BINDER
    if Path(sys.prefix, "conda-meta").is_dir():
        return CONDA
    marker = Path(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED")  # pip refuses
    return SYSTEM if sys.prefix == sys.base_prefix and marker.exists() else VENV


def python() -> str:
    """Return what to type for this Python in the course's folder."""
    if setup() in (BINDER, CONDA):  # it is the one on the path
        return "python"
    path = Path(sys.executable)
    if CHECKOUT in path.parents:
        path = path.relative_to(CHECKOUT)
    return f'"{path}"' if " " in str(path) else str(path)


def run(*commands: str) -> str:
    """Return the sentence that says to run these commands in the course's folder."""
    listed = ", then ".join(f"`{command}`" for command in commands)
    if Path.cwd() == CHECKOUT or not (CHECKOUT / "pyproject.toml").exists():
        return f"Run {listed}."
    return f'Run `cd "{CHECKOUT}"`, then {listed}.'


def install(*wanted: Package, again: bool = False) -> str:
    """Say how to install packages, such as numpy==2.4.6.

    Args:
        wanted: the packages, with their versions.
        again: install them though they seem to be there.
    """
    kind = setup()
    if kind == SYSTEM:
        return set_up_again()
    if kind == CONDA:
        names = " ".join(map(_conda, wanted))
        force = "--force-reinstall " if again else ""
        return run(f"conda install {force}--channel conda-forge {names}")
    names = " ".join(f'"{w.name}{w.specifier}"' for w in wanted)
    force = "--force-reinstall --no-deps " if again else ""
    is_torch = any(package.name.startswith("torch") for package in wanted)
    index = f"{_CPU_WHEELS} " if is_torch and _is_linux_without_gpu() else ""
    return run(f"{python()} -m pip install {force}{index}{names}")


def _is_linux_without_gpu() -> bool:
    """Say if the plain torch would be a far larger download for nothing."""
    return sys.platform == "linux" and shutil.which("nvidia-smi") is None


def install_course() -> str:
    """Say how to install the course itself, and what it needs, for this Python."""
    if setup() == SYSTEM:
        return set_up_again()
    if setup() == VENV:
        options = '-c constraints.txt -e ".[lab]"'
    else:  # conda has brought the rest
        options = "--no-deps --editable ."
    return run(f"{python()} -m pip install {options}")


def _conda(package: Package) -> str:
    """Return a package as conda writes it, such as "pytorch=2.13.0=cpu*"."""
    name = CONDA_NAMES.get(package.name, package.name)
    version = str(package.specifier)
    if version.startswith("==") and "," not in version:
        build = _BUILDS.get(package.name, "")
        return f'"{name}={version[2:]}{build}"'
    return f'"{name}{version}"'


def set_up_again(version: str = "") -> str:
    """Say how to make the course's environment anew, or for the first time.

    Args:
        version: the Python to make it with, such as "3.12"; else the default one.
    """
    kind = setup()
    if kind == BINDER:
        return "Close this tab and open the course on Binder again."
    if kind == CONDA:
        return run(
            "conda deactivate",
            "conda env remove --yes --name course",
            "conda env create --file environment.yml",
            "conda activate course",
        )
    if sys.platform == "win32":
        make = f"py{f' -{version}' if version else ''} -m venv --clear .venv"
        pip = r'.venv\Scripts\python -m pip install -c constraints.txt -e ".[test]"'
        return run(make, pip)
    choice = f" PYTHON=python{version}" if version else ""
    return run("rm -rf .venv", f"make lab{choice}")


def variables(settings: dict[str, str | None]) -> str:
    """Say how to set environment variables, or to remove those that are None."""
    commands = [_variable(name, value) for name, value in settings.items()]
    if setup() == BINDER:
        return f"Run {', '.join(commands)} in a new first cell, and restart the kernel."
    return f"Type {', then '.join(commands)}, and start again."


def _variable(name: str, value: str | None) -> str:
    if setup() == BINDER:
        return f"`%env {name}={value or ''}`"
    if sys.platform == "win32":
        power = f"$env:{name} = " + ("$null" if value is None else f"'{value}'")
        return f"`set {name}={value or ''}` (in PowerShell `{power}`)"
    if value is None:
        return f"`unset {name}`"
    return f"`export {name}={shlex.quote(value)}`"


def own_folder(name: str, *names: str) -> str:
    """Say how to make a folder inside of work/ and to let variables name it.

    Args:
        name: of the folder, such as "temporary".
        names: of the variables.
    """
    is_checkout = (CHECKOUT / "pyproject.toml").exists()
    folder = (CHECKOUT if is_checkout else Path.cwd()) / "work" / name
    if sys.platform == "win32":
        make = f'mkdir "{folder}"'
    else:
        make = f"mkdir -p {shlex.quote(str(folder))}"
    settings = variables(dict.fromkeys(names, str(folder)))
    return f"Type `{make}`. {settings}"


def compiler() -> str:
    """Say how to get a C++ compiler."""
    why = "Lessons run without it; RSO is several times as fast with one"
    kind = setup()
    if kind == BINDER or sys.platform == "win32":
        there = "in WSL" if sys.platform == "win32" else "on a machine of your own"
        return f"{why}, {there}."
    if kind == CONDA:
        package = "clangxx" if sys.platform == "darwin" else "gxx"
        return f"{why}: `conda install --channel conda-forge {package}`"
    if sys.platform == "darwin":
        return f"{why}: `xcode-select --install`"
    found = next((text for name, text in _COMPILER.items() if shutil.which(name)), None)
    if found is None:
        return f"{why}: install g++ or clang++."
    sudo = "" if getattr(os, "geteuid", lambda: 1)() == 0 else "sudo "
    return f"{why}: `{sudo}{found}`"
