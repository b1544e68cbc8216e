import subprocess
import sys
from importlib import metadata
from pathlib import Path

import psutil
import pytest
import torch
from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
from jupyter_client.manager import KernelManager
from packaging.requirements import Requirement

from course_lib import compiler, data, doctor
from course_lib.compiler import NoCompiler
from course_lib.doctor import (
    FAULT,
    OK,
    WARNING,
    Check,
    advice,
    folders,
    memory,
    software,
)
from course_lib.rso.parallel import shared_memory


@pytest.fixture(scope="module")
def checks():
    return doctor.examine(kernel=False)


def named(checks, name):
    [check] = [check for check in checks if check.name == name]
    return check


def test_this_machine_has_no_fault(checks):
    assert [check for check in checks if check.status == FAULT] == []
    assert doctor.exit_status(checks) == 0


def test_every_library_of_the_lessons_is_examined(checks):
    names = {check.name for check in checks}
    assert names >= {"Python", "torch", "torchvision", "jupyterlab", "ipywidgets"}
    assert names >= {"device", "threads", "memory", "widgets", "disk", *data.NAMES}
    assert "pytest" not in names  # only `make test` needs it


def test_whatever_is_not_ok_has_a_remedy(checks):
    assert all(check.remedy for check in checks if check.status != OK)


def test_report_shows_status_finding_and_remedy():
    table = doctor.report([Check("a", OK, "1"), Check("bcd", FAULT, "2", "mend it")])
    assert table.splitlines() == [
        "ok       a    1",
        "fault    bcd  2",
        "              -> mend it",
        "",
        "A lesson would fail here. Repair first: bcd.",
    ]


@pytest.mark.parametrize(("status", "expected"), [(OK, 0), (WARNING, 0), (FAULT, 1)])
def test_only_a_fault_ends_with_status_1(status, expected):
    assert doctor.exit_status([Check("a", OK, ""), Check("b", status, "")]) == expected


def test_untested_python(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 99, 0))
    assert software.python().status == WARNING
    assert "PYTHON=python3.12" in software.python().remedy


PIN = Requirement("numpy==2.4.6")


@pytest.mark.parametrize(
    ("found", "status", "remedy"),
    [
        ("2.4.6", OK, ""),
        ("2.4.6+local", OK, ""),
        ("2.5.0", WARNING, "last digits may differ"),
        ("1.26.4", FAULT, 'pip install "numpy==2.4.6"'),
    ],
)
def test_version_against_range_and_pin(monkeypatch, found, status, remedy):
    monkeypatch.setattr(metadata, "version", lambda name: found)
    check = software.version(Requirement("numpy>=2.1"), PIN)
    assert (check.name, check.status, check.found) == ("numpy", status, found)
    assert remedy in check.remedy


def test_missing_library():
    check = software.version(Requirement("course-no-such>=1"), None)
    assert (check.status, check.found) == (FAULT, "not installed")
    assert 'pip install "course-no-such>=1"' in check.remedy


def test_package_itself_missing(monkeypatch):
    def requires(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", requires)
    [check] = software.versions()
    assert check.status == FAULT
    assert '-m pip install -c constraints.txt -e ".[lab]"' in check.remedy


def test_outside_a_checkout_the_ranges_count(monkeypatch, tmp_path):
    monkeypatch.setattr(software, "CONSTRAINTS", tmp_path / "constraints.txt")
    monkeypatch.setattr(metadata, "version", lambda name: "9999")
    assert {check.status for check in software.versions()} == {OK}


def test_device_that_does_not_compute(monkeypatch):
    def broken(*size, device):
        raise RuntimeError("no kernel image is available\nfor this GPU")

    monkeypatch.setattr(torch, "ones", broken)
    check = software.device()
    assert (check.status, check.found[-28:]) == (FAULT, "no kernel image is available")
    assert "`export CUDA_VISIBLE_DEVICES=-1`" in check.remedy


def test_device_whose_result_never_comes(monkeypatch):
    def lost(tensor):  # a GPU reports an error only when the value is fetched
        raise RuntimeError("device-side assert")

    monkeypatch.setattr(torch.Tensor, "item", lost)
    assert software.device().status == FAULT


def test_no_compiler_is_no_fault(monkeypatch):
    def missing():
        raise NoCompiler("there is no C++ compiler on the path")

    monkeypatch.setattr(shared_memory, "compiled", missing)
    check = software.compiler()
    assert check.status == WARNING
    assert check.found == "there is no C++ compiler on the path"
    assert "install g++" in check.remedy


@pytest.mark.parametrize("is_stored", [True, False])
def test_stored_is_said_only_of_what_is(monkeypatch, is_stored):
    monkeypatch.setattr(shared_memory, "compiled", object)
    monkeypatch.setattr(compiler, "used", lambda: "/usr/bin/c++: 14.2")
    monkeypatch.setattr(compiler, "obstacle", lambda: None)
    monkeypatch.setattr(compiler, "is_stored", lambda library: is_stored)
    check = software.compiler()
    if is_stored:
        assert check == Check(
            "compiler", OK, "/usr/bin/c++: 14.2, stored for the next start"
        )
    else:
        assert check.status == WARNING
        assert f"nothing can be stored in {compiler.folder()}, or" in check.found


def test_too_many_threads_of_torch(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 10**6)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert software.threads().status == WARNING
    assert "export OMP_NUM_THREADS=" in software.threads().remedy


def test_too_many_threads_asked_for(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", str(10**6))
    assert software.threads().status == WARNING
    assert "OMP_NUM_THREADS=1000000" in software.threads().found


@pytest.mark.parametrize(
    ("total", "free", "status"),
    [(16e9, 8e9, OK), (16e9, 0.9e9, WARNING), (1e9, 0.9e9, FAULT)],
)
def test_memory(monkeypatch, total, free, status):
    monkeypatch.setattr(memory, "total_and_free", lambda: (total / 1e9, free / 1e9))
    assert memory.memory().status == status
    assert ("1.2 GB" in memory.memory().remedy) == (status != OK)


def test_memory_is_the_containers_where_it_sets_a_limit(tmp_path):
    (tmp_path / "memory.max").write_text("1000000000\n")
    (tmp_path / "memory.stat").write_text("anon 400000000\nfile 500000000\n")
    assert memory.total_and_free(tmp_path) == (1.0, 0.6)


@pytest.mark.parametrize("limit", ["max", f"{10**18}"])
def test_memory_is_the_machines_without_a_limit_below_it(tmp_path, limit):
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.stat").write_text("anon 0\n")
    assert memory.total_and_free(tmp_path)[0] == psutil.virtual_memory().total / 1e9


def test_digits_that_do_not_load(monkeypatch):
    monkeypatch.chdir(advice.CHECKOUT)

    def load(name, **options):
        raise data.DataError("load: no digits here.\nmore")

    monkeypatch.setattr(data, "load", load)
    check = named(folders.data_sets(), "digits")
    assert (check.status, check.found) == (FAULT, "DataError: load: no digits here.")
    assert "make lab" in check.remedy


@pytest.mark.parametrize("here", [True, False])
def test_other_data_sets_are_information_only(monkeypatch, here):
    monkeypatch.setattr(data, "available", lambda name: here)
    check = named(folders.data_sets(), "mnist")
    assert check.status == OK
    assert ("python -m course_lib data mnist" in check.found) == (not here)


def test_kernel_starts_and_computes():
    assert software.kernel() == Check("kernel", OK, "python3 starts and computes")


def test_no_kernel_installed(monkeypatch):
    def absent(self, name):
        raise NoSuchKernel(name)

    monkeypatch.setattr(KernelSpecManager, "get_kernel_spec", absent)
    check = software.kernel()
    assert (check.name, check.status) == ("kernel", FAULT)
    assert check.found == "none is installed"


def test_kernel_that_dies(monkeypatch):
    dying = [sys.executable, "-c", "raise SystemExit(1)"]
    monkeypatch.setattr(KernelManager, "format_kernel_cmd", lambda *a, **k: dying)
    assert software.kernel().status == FAULT


def test_kernel_of_another_python(monkeypatch):
    answers = {"sum": "2", "python": "'/elsewhere'"}
    monkeypatch.setattr(software, "_ask", lambda manager, **expressions: answers)
    check = software.kernel()
    assert (check.status, "/elsewhere" in check.found) == (FAULT, True)
    assert "ipykernel install --sys-prefix" in check.remedy


def test_widgets_without_their_extension(monkeypatch, tmp_path):
    monkeypatch.setattr("jupyter_core.paths.jupyter_path", lambda name: [str(tmp_path)])
    assert software.widgets().status == FAULT
    assert (
        '--force-reinstall --no-deps "jupyterlab-widgets==' in software.widgets().remedy
    )


def test_disk_that_is_full(monkeypatch):
    usage = type("usage", (), {"free": 5e6})
    monkeypatch.setattr(folders.shutil, "disk_usage", lambda folder: usage)
    assert folders.disk().status == WARNING
    assert "Make room" in folders.disk().remedy


def test_disk_that_can_not_be_written(monkeypatch):
    def refuse(**options):
        raise PermissionError

    monkeypatch.setattr(folders.tempfile, "TemporaryFile", refuse)
    assert folders.disk().status == WARNING
    assert "folder of your own" in folders.disk().remedy


def test_command_prints_the_table():
    command = [sys.executable, "-m", "course_lib", "doctor"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout.endswith("The lessons will run here.\n")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("torch", ["device", "threads", "digits"]),
        ("platformdirs", ["compiler", "mnist"]),
        ("matplotlib", ["matplotlib"]),
        ("h5py", ["h5py"]),
        ("packaging", ["packaging"]),
    ],
)
def test_a_broken_library_is_a_line_and_all_else_is_examined(tmp_path, name, lines):
    (tmp_path / f"{name}.py").write_text("raise ImportError('no such symbol')")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
    code += "from course_lib import doctor\n"
    code += "print(doctor.report(doctor.examine(kernel=False)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    table = done.stdout.splitlines()
    assert [line for line in table if line.startswith("ok       disk ")]
    for line in lines:
        (found,) = (text for text in table if text.split()[:2] == ["fault", line])
        assert found.endswith("no such symbol")
    assert table[-1].startswith("A lesson would fail here. Repair first: ")


def test_a_data_folder_of_nobody(monkeypatch):
    monkeypatch.setenv("COURSE_DATA", "~no-such-user/data")
    check = folders.data_folder()
    assert (check.status, "which is no folder" in check.found) == (WARNING, True)
    assert "COURSE_DATA" in check.remedy
    assert named(folders.data_sets(), "cifar10").status == OK


def test_broken_torch_is_a_line_of_the_table(tmp_path):
    Path(tmp_path / "torch.py").write_text("raise ImportError('libcudart is missing')")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
    code += "from course_lib.doctor import software; print(software.threads())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "status='fault', found='ImportError: libcudart" in done.stdout
