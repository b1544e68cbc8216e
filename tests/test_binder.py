"""environment.yml and binder/, which no command of ours runs.

conda and repo2docker pass over a key that they don't know, so that a slip of the pen
would show only in an image that lacks something: all keys are checked here.
"""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from jupyter_core.paths import ENV_CONFIG_PATH
from pins import ROOT, needed_by_lessons, pins

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
    found = {CONDA_NAMES.get(name, name) for name in packages("environment.yml")}
    assert needed_by_lessons() <= found


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


def dockerfile(folder):
    """Return the Dockerfile that repo2docker makes of a folder with binder/ alone.

    Of a copy, as repo2docker would read all of .venv otherwise.
    """
    command = [sys.executable, "-m", "repo2docker", "--no-build", "--debug", "."]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


unix = pytest.mark.skipif(sys.platform == "win32", reason="repo2docker needs Unix")


@unix
def test_repo2docker_uses_all_of_binder(tmp_path):
    (tmp_path / "binder").symlink_to(ROOT / "binder")
    text = dockerfile(tmp_path)
    assert "Building conda environment for python=3.11" in text
    assert '--file "binder/environment.yml"' in text
    assert "RUN ./binder/postBuild" in text
    assert re.search(r"R2D_ENTRYPOINT=.*/binder/start", text)


# The way with pip alone


@unix
def test_repo2docker_uses_the_files_for_pip(tmp_path):
    ignored = shutil.ignore_patterns("environment.yml", "pip")
    shutil.copytree(ROOT / "binder", tmp_path / "binder", ignore=ignored)
    for path in (ROOT / "binder" / "pip").iterdir():
        shutil.copy(path, tmp_path / "binder")
    text = dockerfile(tmp_path)
    assert "Building conda environment for python=3.11" in text  # without packages
    assert "environment.yml" not in text.replace("environment.py-", "")
    # The constraints are of the repository: it has to be copied before.
    copied = re.search(r"COPY \S+ src/ ", text).start()
    assert copied < text.index(
        'pip install --no-cache-dir -r "binder/requirements.txt"'
    )
    assert "RUN ./binder/postBuild" in text


def test_pip_installs_what_conda_does():
    lines = (ROOT / "binder" / "pip" / "requirements.txt").read_text().splitlines()
    wanted = {line for line in lines if re.fullmatch(r"[\w-]+", line)}
    conda = packages("binder/environment.yml").keys() - {"python", "pip"}
    assert wanted == {CONDA_NAMES.get(name, name) for name in conda}
    assert "--constraint ../constraints.txt" in lines
    runtime = (ROOT / "binder" / "pip" / "runtime.txt").read_text().strip()
    assert runtime == f"python-{packages('binder/environment.yml')['python']}"


# Idle kernels


def settings():
    """Return what Binder's server is told, by the code of its file."""
    found = SimpleNamespace(MappingKernelManager=SimpleNamespace())
    source = (ROOT / "binder" / "jupyter_server_config.py").read_text()
    exec(source, {"get_config": lambda: found})
    return vars(found.MappingKernelManager)


def test_post_build_puts_the_settings_where_the_server_reads_them():
    lines = (ROOT / "binder" / "postBuild").read_text().splitlines()
    assert lines[-1] == 'cp binder/jupyter_server_config.py "$settings"'
    assert str(Path(sys.prefix, "etc", "jupyter")) in ENV_CONFIG_PATH


def test_a_lesson_that_is_read_is_not_ended():
    assert settings()["cull_idle_timeout"] >= 15 * 60  # a cell may take long to read
    assert settings()["cull_connected"]  # a tab that is open does not hold its kernel


def ask(port, path, **body):
    """Return the answer of a server; with a body, of a POST."""
    data = json.dumps(body).encode() if body else None
    address = f"http://127.0.0.1:{port}/api/{path}"
    with urllib.request.urlopen(urllib.request.Request(address, data)) as answer:
        return json.loads(answer.read())


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if condition():
                return True
        time.sleep(0.2)
    return False


def test_an_idle_kernel_ends_by_these_settings(tmp_path):
    """A real server with the file of Binder, on a faster clock."""
    source = (ROOT / "binder" / "jupyter_server_config.py").read_text()
    faster = source.replace("20 * 60", "2").replace("= 60", "= 1")
    assert faster != source
    (tmp_path / "jupyter_server_config.py").write_text(faster)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyter_server", "--no-browser", "--allow-root"]
    command += [f"--port={port}", "--IdentityProvider.token=", "--port-retries=0"]
    command += ["--ServerApp.disable_check_xsrf=True"]
    env = {**os.environ, "JUPYTER_CONFIG_DIR": str(tmp_path)}
    server = subprocess.Popen(command, cwd=tmp_path, env=env, stderr=subprocess.DEVNULL)
    try:
        assert wait_for(lambda: ask(port, "status"))
        started = ask(port, "kernels", name="python3")
        assert [kernel["id"] for kernel in ask(port, "kernels")] == [started["id"]]
        assert wait_for(lambda: ask(port, "kernels") == [])
    finally:
        server.terminate()
        server.wait()
