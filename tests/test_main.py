import subprocess
import sys

import pytest

from course_lib import __main__ as commands
from course_lib import bench, data, doctor
from course_lib.lessons import execute


def test_help_names_every_command_without_importing_torch():
    code = "import sys; from course_lib.__main__ import main\n"
    code += "try: main(['--help'])\nfinally: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.endswith("False\n")
    names = "lab reset class export doctor data keras rso notebooks bench"
    for command in names.split():
        assert f"    {command}" in done.stdout


@pytest.mark.parametrize(("status", "expected"), [(doctor.OK, 0), (doctor.FAULT, 1)])
def test_doctor(monkeypatch, capsys, status, expected):
    monkeypatch.setattr(doctor, "examine", lambda: [doctor.Check("a", status, "seen")])
    assert commands.main(["doctor"]) == expected
    assert "seen" in capsys.readouterr().out


def test_data_shows_what_it_loaded_and_where(capsys):
    assert commands.main(["data", "digits"]) == 0
    out = capsys.readouterr().out
    assert "1437 train" in out
    assert "COURSE_DATA" in out


def test_data_goes_on_after_an_error_of_one_line(capsys):
    assert commands.main(["data", "mnits", "digits"]) == 1
    out, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert "Did you mean 'mnist'?" in err
    assert "1437 train" in out


def test_data_loads_all_by_default(monkeypatch, capsys):
    monkeypatch.setattr(data, "load", lambda name: f"<{name}>")
    assert commands.main(["data"]) == 0
    assert capsys.readouterr().out.split("\n")[:-2] == [f"<{n}>" for n in data.NAMES]


def test_notebooks_and_bench_hand_over(monkeypatch):
    seen = []
    monkeypatch.setattr(execute, "main", seen.append)
    monkeypatch.setattr(bench, "main", lambda: 7)
    assert commands.main(["notebooks", "a.ipynb"]) == 0
    assert seen == [["a.ipynb"]]
    assert commands.main(["bench"]) == 7
