"""environment.yml and binder/, which no command of ours runs.

conda and repo2docker pass over a key that they don't know, so that a slip of the pen
would show only in an image that lacks something: all keys are checked here.
"""

import os
import re
import subprocess
import sys
from importlib import metadata

import pytest
import yaml
from packaging.requirements import Requirement
from pins import ROOT, pins

from course_lib.doctor import advice

ENVIRONMENTS = ["environment.yml", "binder/environment.yml"]
# conda-forge's name -> the index's name
CONDA_NAMES = {theirs: ours for ours, theirs in advice.CONDA_NAMES.items()}


def environment(path):
    return yaml.safe_load((ROOT / path).read_text())


def packages(path):
    """Return name -> version of what conda installs; the last, pip, has none."""
    lines = environment(path)["dependencies"]
    parts = [line.split("=") for line in lines if isinstance(line, str)]
    return {name: version for name, version, *build in (*parts[:-1], ["pip", ""])}


@pytest.mark.parametrize("path", ENVIRONMENTS)
def test_keys_are_known(path):
    assert environment(path).keys() == {"name", "channels", "dependencies"}
    [*lines, last] = environment(path)["dependencies"]
    assert all(isinstance(line, str) for line in lines)
    assert last == "pip" or last.keys() == {"pip"}


@pytest.mark.parametrize("path", ENVIRONMENTS)
def test_versions_are_those_of_the_constraints(path):
    found = packages(path)
    wanted = pins(found.pop("python"))
    assert found.pop("pip") == ""
    assert found == {name: wanted[CONDA_NAMES.get(name, name)] for name in found}


def test_conda_installs_all_that_the_lessons_need():
    needed = map(Requirement, metadata.requires("course-lib"))
    marks = [(n.name, n.marker) for n in needed]
    names = {n for n, mark in marks if not mark or mark.evaluate({"extra": "lab"})}
    found = {CONDA_NAMES.get(name, name) for name in packages("environment.yml")}
    assert names <= found


@pytest.mark.parametrize("path", ENVIRONMENTS)
def test_only_conda_forge_and_no_cuda(path):
    assert environment(path)["channels"] == ["conda-forge", "nodefaults"]
    [torch] = [d for d in environment(path)["dependencies"] if "pytorch" in d]
    assert torch.endswith("=cpu*")


def test_binder_installs_the_same_but_the_package_itself():
    # Binder reads environment.yml before it copies the repository.
    root, binder = map(environment, ENVIRONMENTS)
    assert root["dependencies"].pop() == {"pip": ["--editable ."]}
    assert binder == root


@pytest.mark.parametrize("name", ["postBuild", "start"])
def test_scripts_are_executable(name):
    path = ROOT / "binder" / name
    assert path.read_bytes().startswith(b"#!/usr/bin/env bash\n")
    assert os.name == "nt" or os.access(path, os.X_OK)


def test_post_build_stops_at_an_error_and_installs_the_package_alone():
    lines = (ROOT / "binder" / "postBuild").read_text().splitlines()
    assert lines.index("set -e") < lines.index("pip install --no-deps --editable .")


def test_start_hands_over_to_the_server():
    lines = (ROOT / "binder" / "start").read_text().splitlines()
    assert "export OMP_NUM_THREADS=1" in lines
    assert lines[-1] == 'exec "$@"'


@pytest.mark.skipif(sys.platform == "win32", reason="repo2docker needs Unix")
def test_repo2docker_uses_all_of_binder(tmp_path):
    # Of a copy of binder/ alone: repo2docker would read all of .venv otherwise.
    (tmp_path / "binder").symlink_to(ROOT / "binder")
    command = [sys.executable, "-m", "repo2docker", "--no-build", "--debug", "."]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    dockerfile = done.stdout + done.stderr
    assert "Building conda environment for python=3.11" in dockerfile
    assert '--file "binder/environment.yml"' in dockerfile
    assert "RUN ./binder/postBuild" in dockerfile
    assert re.search(r"R2D_ENTRYPOINT=.*/binder/start", dockerfile)
