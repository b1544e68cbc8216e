"""Faults that are made to happen, and the doctor's advice, typed until it cures.

What Linux and macOS can show is done here for real, in processes, folders and a virtual
environment of its own. For Windows, conda and Binder the words alone are compared.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from pins import ROOT, pins

from course_lib.doctor import FAULT, OK, WARNING, Check, advice, folders, software

unix = pytest.mark.skipif(os.name == "nt", reason="the commands are typed in bash")
SETUPS = [advice.BINDER, advice.CONDA, advice.SYSTEM, advice.VENV]


@pytest.fixture
def checkout(monkeypatch, tmp_path):
    """A folder in which advice may make others."""
    folder = tmp_path / "a course"
    folder.mkdir()
    (folder / "pyproject.toml").touch()
    monkeypatch.setattr(advice, "CHECKOUT", folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def no_folder(tmp_path):
    """A path where nobody can make a folder, root included: below a file."""
    (tmp_path / "file").touch()
    return tmp_path / "file" / "folder"


def commands(remedy):
    return re.findall(r"`([^`]+)`", remedy)


def examined(name, env, cwd, *typed, before=""):
    """Return the check of a new process, after commands in the same shell.

    Args:
        name: of the check, such as "folders.temporary".
        env: what the environment has besides or instead; None removes.
        cwd: the folder of the shell.
        typed: what is typed before.
        before: Python code that makes the fault happen.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    environment = {k: v for k, v in environment.items() if v is not None}
    python = environment.pop("TEST_PYTHON", sys.executable)
    code = "import gc, os, pathlib\ngc.disable()\n" + before
    code += "\nfrom course_lib.doctor import advice, folders, software\n"
    code += f"advice.CHECKOUT = pathlib.Path({str(cwd)!r})\n"
    code += f"print('checked', {name}())\n"
    code += "gc.freeze()"  # the end is quicker, as that of commands
    script = "\n".join([*typed, shlex.join([python, "-c", code])])
    done = subprocess.run(
        ["bash", "-e", "-c", script],
        env=environment,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    [line] = re.findall(r"^checked (.*)$", done.stdout, re.MULTILINE)
    return eval(line, {"Check": Check})


def cured(name, env, cwd, *, status, before=""):
    """Return the check that finds the fault, once its advice has cured it."""
    found = examined(name, env, cwd, before=before)
    assert found.status == status, found
    typed = commands(found.remedy)
    assert typed, found
    again = examined(name, env, cwd, *typed, before=before)
    assert again.status == OK, again
    return found


# Faults that a variable or a folder cures


ONLY_NAMED = """
import tempfile
tempfile._candidate_tempdir_list = lambda: [os.environ.get("TMPDIR", "/dev/null")]
"""


@unix
def test_no_temporary_folder(checkout, no_folder):
    env = {"TMPDIR": str(no_folder)}
    cured("folders.temporary", env, checkout, status=FAULT, before=ONLY_NAMED)
    assert (checkout / "work" / "temporary").is_dir()


@unix
def test_without_a_temporary_folder_the_compiler_is_not_blamed(checkout, no_folder):
    env = {"TMPDIR": str(no_folder)}
    check = examined("software.compiler", env, checkout, before=ONLY_NAMED)
    assert (check.status, check.found) == (WARNING, "nothing can be compiled")
    assert "temporary folder" in check.remedy


HOMELESS = {f"JUPYTER_{name}_DIR": None for name in ("CONFIG", "DATA", "RUNTIME")}


@unix
def test_a_home_that_can_not_be_written(checkout, no_folder):
    env = {**HOMELESS, "HOME": str(no_folder)}
    check = cured("folders.jupyter", env, checkout, status=FAULT)
    assert check.found.startswith(f"{no_folder}")
    assert "can't be written" in check.found


@unix
@pytest.mark.parametrize("name", HOMELESS)
def test_one_folder_of_jupyter_that_can_not_be_written(checkout, no_folder, name):
    cured("folders.jupyter", {name: str(no_folder)}, checkout, status=FAULT)


@unix
def test_a_kernel_waits_for_jupyters_folders(checkout, no_folder):
    env = {"JUPYTER_RUNTIME_DIR": str(no_folder)}
    check = examined("software.kernel", env, checkout)
    assert (check.status, check.found) == (FAULT, "can't start")
    typed = commands(examined("folders.jupyter", env, checkout).remedy)
    assert examined("software.kernel", env, checkout, *typed).status == OK


def server(env, cwd, *typed):
    """Start JupyterLab; return whether it came to listen, and what it wrote."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    environment = {k: v for k, v in environment.items() if v is not None}
    options = "--no-browser --ServerApp.root_dir=. --ServerApp.port=0 --allow-root"
    start = f"exec {shlex.quote(sys.executable)} -m jupyterlab {options}"
    log = cwd / f"log-{len(typed)}"
    with log.open("w") as stream:
        process = subprocess.Popen(
            ["bash", "-e", "-c", "\n".join([*typed, start])],
            env=environment,
            cwd=cwd,
            stdout=stream,
            stderr=stream,
        )
        try:
            deadline = time.monotonic() + 60
            while process.poll() is None and time.monotonic() < deadline:
                if "is running at" in log.read_text():
                    return True, log.read_text()
                time.sleep(0.1)
        finally:
            process.kill()  # it may miss SIGTERM in the moment that it begins
            process.wait()
    return False, log.read_text()


@unix
def test_jupyterlab_starts_once_the_advice_is_followed(checkout, no_folder):
    env = {**HOMELESS, "HOME": str(no_folder)}
    started, log = server(env, checkout)
    assert not started
    assert "Error" in log
    typed = commands(examined("folders.jupyter", env, checkout).remedy)
    started, log = server(env, checkout, *typed)
    assert started, log


@unix
@pytest.mark.parametrize("kind", ["missing", "file"])
def test_course_data_that_is_no_folder(checkout, no_folder, kind):
    given = no_folder if kind == "missing" else no_folder.parent
    env = {"COURSE_DATA": str(given)}
    check = cured("folders.data_folder", env, checkout, status=WARNING)
    assert str(given) in check.found


def test_course_data_that_is_there(monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_DATA", str(tmp_path))
    assert folders.data_folder() == Check("data folder", OK, str(tmp_path))


@unix
def test_progress_that_would_go_to_a_missing_folder(checkout, no_folder):
    env = {"COURSE_PROGRESS": str(no_folder / "progress.json")}
    cured("folders.disk", env, checkout, status=FAULT)


@unix
def test_more_threads_than_cpus(checkout):
    env = {"OMP_NUM_THREADS": "1000000"}
    cured("software.threads", env, checkout, status=WARNING)


BROKEN_GPU = """
import torch
ones, torch.cuda.get_device_name = torch.ones, lambda device: "a GPU"
torch.cuda.is_available = lambda: os.environ.get("CUDA_VISIBLE_DEVICES") != "-1"
def refuse(*size, device):
    if device.type == "cuda":
        raise RuntimeError("no kernel image is available")
    return ones(*size, device=device)
torch.ones = refuse
"""


@unix
def test_a_gpu_that_does_not_compute(checkout):
    cured("software.device", {}, checkout, status=FAULT, before=BROKEN_GPU)


has_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="needs a C++ compiler"
)


@unix
@has_compiler
@pytest.mark.parametrize("given", ["", "no-such-compiler"])
def test_a_compiler_that_the_variable_hides(checkout, given, tmp_path):
    env = {"COURSE_COMPILER": given, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    cured("software.compiler", env, checkout, status=WARNING)


@pytest.mark.skipif(sys.platform != "linux", reason="the variable is Linux's")
@has_compiler
def test_a_cache_that_can_not_be_written(checkout, no_folder):
    env = {"XDG_CACHE_HOME": str(no_folder)}
    check = cured("software.compiler", env, checkout, status=WARNING)
    assert "nothing can be stored" in check.found


# Faults of an installation


@pytest.fixture
def hidden(tmp_path, monkeypatch):
    """Return a function that makes a virtual environment without some packages.

    Everything else of this one is seen through links. The hidden packages lie in a
    folder as wheels, and pip takes what it installs from there.
    """
    pytest.importorskip("pip")
    wheels = tmp_path / "wheels"
    wheels.mkdir()

    def make(*names):
        for name in names:
            _wheel(name, wheels)
        links, venv = tmp_path / "links", tmp_path / "venv"
        links.mkdir()
        gone = {top for name in names for top in _tops(name)}
        site = Path(metadata.distribution("pip").locate_file(""))
        for path in site.iterdir():
            if path.name not in gone:
                (links / path.name).symlink_to(path)
        command = [sys.executable, "-m", "venv", "--without-pip", venv]
        subprocess.run(command, check=True)
        [own] = venv.glob("lib/python*/site-packages")
        text = f"import site; site.addsitedir({str(links)!r})\n"
        (own / "links.pth").write_text(text)
        return {
            "TEST_PYTHON": str(venv / "bin" / "python"),
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(wheels),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_ROOT_USER_ACTION": "ignore",
        }

    return make


def _tops(name):
    """Return what a package has put into site-packages."""
    files = metadata.distribution(name).files or []
    return {file.parts[0] for file in files if file.parts[0] != ".."}


def _wheel(name, folder):
    """Pack an installed package again."""
    found = metadata.distribution(name)
    stem = f"{found.metadata['Name'].replace('-', '_')}-{found.version}"
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as wheel:
        for file in found.files or []:
            path = Path(file.locate())
            inside = str(file)
            if "../share/" in inside:  # where Jupyter looks, beside lib
                inside = f"{stem}.data/data/share/{inside.partition('../share/')[2]}"
            if path.is_file() and ".." not in inside and "__pycache__" not in inside:
                wheel.write(path, inside)


@unix
def test_ipywidgets_is_missing(checkout, hidden):
    env = hidden("ipywidgets")
    version = metadata.version("ipywidgets")
    name = "(lambda: software.version(Requirement('ipywidgets>=8'), "
    name += f"Requirement('ipywidgets=={version}')))"
    before = "from packaging.requirements import Requirement"
    check = cured(name, env, checkout, status=FAULT, before=before)
    assert (check.name, check.found) == ("ipywidgets", "not installed")
    assert f'-m pip install "ipywidgets=={version}"' in check.remedy


@unix
def test_the_library_that_reads_requirements_is_missing(checkout, hidden):
    version = metadata.version("packaging")
    (checkout / "constraints.txt").write_text(f"numpy==1\npackaging=={version}\n")
    name = (
        "(lambda: setattr(software, 'CONSTRAINTS', advice.CHECKOUT / 'constraints.txt')"
    )
    name += " or next(c for c in software.versions() if c.name == 'packaging'))"
    check = cured(name, hidden("packaging"), checkout, status=FAULT)
    assert (check.name, check.found) == ("packaging", "not installed")
    assert f'-m pip install "packaging=={version}"' in check.remedy


def test_without_constraints_any_packaging_will_do(monkeypatch, tmp_path):
    monkeypatch.setattr(software, "CONSTRAINTS", tmp_path / "constraints.txt")
    monkeypatch.setitem(sys.modules, "packaging.requirements", None)
    [check] = software.versions()
    assert (check.status, check.found) == (FAULT, "not installed")
    assert '-m pip install "packaging"`' in check.remedy


@unix
def test_the_extension_of_the_widgets_is_missing(checkout, hidden):
    env = {**hidden("jupyterlab_widgets"), "JUPYTER_PATH": None}
    check = cured("software.widgets", env, checkout, status=FAULT)
    assert "--force-reinstall" in check.remedy


@unix
def test_the_kernel_is_missing(checkout, hidden):
    env = {**hidden("ipykernel"), "JUPYTER_PATH": None}
    check = cured("software.kernel", env, checkout, status=FAULT)
    assert check.found == "none is installed"


@unix
def test_the_kernel_is_one_of_another_python(checkout, hidden, tmp_path):
    env = hidden()
    spec = tmp_path / "data" / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec.write_text(json.dumps({"argv": argv, "display_name": "Python"}))
    env |= {"JUPYTER_DATA_DIR": str(tmp_path / "data")}
    check = cured("software.kernel", env, checkout, status=FAULT)
    assert repr(sys.prefix) in check.found


PRETENDED = """#!/bin/sh
echo "$@" >> typed
"""


@unix
@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_a_stamp_older_than_the_lists(checkout, monkeypatch):
    venv = checkout / ".venv"
    monkeypatch.setattr(software, "VENV", venv)
    (venv / "bin").mkdir(parents=True)
    for name in ("python", "jupyter-labextension"):
        (venv / "bin" / name).write_text(PRETENDED)
        (venv / "bin" / name).chmod(0o755)
    for name in ("Makefile", "constraints.txt"):
        shutil.copy(ROOT / name, checkout)
    (venv / "made-in").write_text(f"{checkout}\n")
    (venv / "lab.stamp").touch()
    os.utime(venv / "lab.stamp", (1, 1))
    check = software.stamps()
    assert check.status == WARNING
    assert check.found == "pyproject.toml and constraints.txt changed after the install"
    [typed] = commands(check.remedy)
    subprocess.run(typed, shell=True, cwd=checkout, check=True)
    typed = (checkout / "typed").read_text().splitlines()
    assert [line for line in typed if line.startswith("-m pip install -")]
    assert typed[-1] == "-m course_lib lab"
    assert software.stamps().status == OK


# The words on other systems


def everything():
    """Return all that the doctor can advise, on the system that is pretended."""
    wanted = [Requirement("torch==2.13.0"), Requirement("numpy>=2.1")]
    yield advice.install(*wanted)
    yield advice.install(*wanted, again=True)
    yield advice.install_course()
    yield advice.set_up_again()
    yield advice.set_up_again("3.12")
    yield advice.variables({"A": "b c", "D": None})
    yield advice.own_folder("jupyter", "A", "B")
    yield advice.compiler()


def begins(command):
    return command.split()[0].partition("=")[0]


@pytest.fixture
def pretended(monkeypatch):
    def pretend(platform, kind):
        monkeypatch.setattr(advice.sys, "platform", platform)
        monkeypatch.setattr(advice, "setup", lambda: kind)
        monkeypatch.setattr(advice, "CHECKOUT", Path.cwd())
        monkeypatch.setattr(advice.sys, "executable", "python")
        known = {"python", "conda"} if kind != advice.SYSTEM else {"python"}
        if kind == advice.BINDER:
            known |= {"%env", "mkdir"}
        elif platform == "win32":
            known |= {"py", r".venv\Scripts\python", "mkdir", "set"}
            known |= {"$env:A", "$env:B", "$env:D"}
        else:
            known |= {"make", "rm", "mkdir", "export", "unset", "sudo", "apt-get"}
            known |= {"xcode-select"} if platform == "darwin" else set()
        return known

    return pretend


@pytest.mark.parametrize("kind", SETUPS)
@pytest.mark.parametrize("platform", ["win32", "darwin", "linux"])
def test_each_system_gets_commands_that_it_has(pretended, platform, kind, monkeypatch):
    monkeypatch.setattr(advice.shutil, "which", {"apt-get": "/usr/bin/apt-get"}.get)
    known = pretended(platform, kind)
    for text in everything():
        assert {begins(command) for command in commands(text)} <= known, text


def test_windows_gets_the_lines_of_the_readme(pretended):
    pretended("win32", advice.VENV)
    make, install = commands(advice.set_up_again())
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert install in readme.splitlines()
    assert make.replace(" --clear", "") in readme.splitlines()
    assert commands(advice.set_up_again("3.12"))[0] == "py -3.12 -m venv --clear .venv"


def test_windows_has_two_shells(pretended):
    pretended("win32", advice.VENV)
    assert commands(advice.variables({"A": "b", "C": None})) == [
        *("set A=b", "$env:A = 'b'"),
        *("set C=", "$env:C = $null"),
    ]


def test_conda_installs_what_the_environment_has(pretended):
    pretended("linux", advice.CONDA)
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    wanted = pins("3.11")  # the Python of that file
    for name in ("torch", "matplotlib", "ipywidgets"):
        [command] = commands(advice.install(Requirement(f"{name}=={wanted[name]}")))
        before, spec, _ = command.split('"')
        assert before == "conda install --channel conda-forge "
        assert spec in listed


def test_conda_gets_its_own_environment_anew(pretended):
    pretended("darwin", advice.CONDA)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    typed = commands(advice.set_up_again())
    assert typed[2] in readme
    name = yaml.safe_load((ROOT / "environment.yml").read_text())["name"]
    assert typed[1].endswith(f"--name {name}")
    assert typed[3].endswith(name)


@pytest.mark.parametrize(
    ("manager", "command"),
    [
        ("apt-get", "apt-get install g++"),
        ("dnf", "dnf install gcc-c++"),
        ("apk", "apk add g++"),
    ],
)
def test_the_compiler_comes_from_the_systems_packages(
    pretended, monkeypatch, manager, command
):
    pretended("linux", advice.VENV)
    monkeypatch.setattr(advice.shutil, "which", {manager: "/bin"}.get)
    monkeypatch.setattr(advice.os, "geteuid", lambda: 1000, raising=False)
    assert commands(advice.compiler()) == [f"sudo {command}"]
    monkeypatch.setattr(advice.os, "geteuid", lambda: 0, raising=False)
    assert commands(advice.compiler()) == [command]


def test_without_a_gpu_linux_takes_the_smaller_torch(pretended, monkeypatch):
    pretended("linux", advice.VENV)
    torch = Requirement("torch==2.13.0")
    for found, is_small in ((None, True), ("/bin/nvidia-smi", False)):
        monkeypatch.setattr(advice.shutil, "which", lambda name, found=found: found)
        assert ("whl/cpu" in advice.install(torch)) == is_small
    pretended("darwin", advice.VENV)
    monkeypatch.setattr(advice.shutil, "which", lambda name: None)
    assert "whl/cpu" not in advice.install(torch)


# Which system is it?


def test_binder_and_conda_are_known_by_their_marks(monkeypatch, tmp_path):
    monkeypatch.delenv("BINDER_LAUNCH_HOST", raising=False)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert advice.setup() == advice.VENV
    (tmp_path / "conda-meta").mkdir()
    assert advice.setup() == advice.CONDA
    monkeypatch.setenv("BINDER_LAUNCH_HOST", "https://mybinder.org/")
    assert advice.setup() == advice.BINDER


def test_a_python_that_pip_may_not_change(monkeypatch, tmp_path):
    (tmp_path / "EXTERNALLY-MANAGED").touch()
    monkeypatch.setattr(advice.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    assert advice.setup() == advice.SYSTEM
    assert commands(advice.install(Requirement("numpy")))[-1].startswith("make lab")
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert advice.setup() == advice.VENV


def test_elsewhere_the_folder_is_named(checkout, monkeypatch, tmp_path):
    assert advice.run("make lab") == "Run `make lab`."
    monkeypatch.chdir(tmp_path)
    assert advice.run("make lab") == f'Run `cd "{checkout}"`, then `make lab`.'


def test_a_python_of_the_course_is_named_as_the_readme_does(checkout, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(checkout / ".venv" / "bin" / "python"))
    assert advice.python() == os.path.join(".venv", "bin", "python")
    monkeypatch.setattr(sys, "executable", "/with space/python")
    assert advice.python() == '"/with space/python"'
