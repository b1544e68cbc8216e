"""`python -m course_lib rso`: its folder, its words, and going on."""

import csv
import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import matplotlib.image
import pytest
import torch

from course_lib import data
from course_lib.__main__ import main
from course_lib.models import RSOCifar10CNN, small_cnn
from course_lib.rso import RSO, refresh_norm_statistics
from course_lib.rso.checkpoints import read
from course_lib.rso.cli import command, locks
from course_lib.rso.cli.folders import FILES, Folder
from course_lib.rso.cli.nets import build
from course_lib.training import evaluate

pytestmark = pytest.mark.usefixtures("ctrl_c")

NET = """
import torch
from course_lib.models import small_cnn

def tiny():
    return small_cnn(widths=(2, 3), norm=True)

made = tiny()
words = "no network"

def broken():
    return torch.zeros(1).nothing
"""


@pytest.fixture(autouse=True)
def no_bar(monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "1")


@pytest.fixture
def net(tmp_path):
    path = tmp_path / "net.py"
    path.write_text(NET)
    return path


@pytest.fixture
def rso(tmp_path, net):
    """Run the command on a tiny network, with options; return its exit status."""

    def run(*options, out="run", name="tiny", cycles=2):
        sizes = [] if cycles is None else ["--cycles", str(cycles)]
        sizes += [] if name is None else ["--net", f"{net}:{name}"]
        sizes += [] if cycles is None else ["--batch-size", "700", "--device", "cpu"]
        return main(["rso", "--out", str(tmp_path / out), *sizes, *options])

    return run


def rows(folder):
    with (folder / "reports.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def decisions(folder):
    return read(folder / "checkpoint.pt")["decisions"]


def test_a_run_leaves_all_its_files(tmp_path, rso, capsys):
    assert rso() == 0
    out = capsys.readouterr().out
    folder = tmp_path / "run"
    assert sorted(os.listdir(folder)) == sorted(FILES)
    assert f"Stored in {folder}" in out
    assert out.splitlines()[0].startswith("1437 samples, 202 weights, incremental")
    assert len(out.splitlines()) == 5  # two lines ahead, one a cycle, one behind
    table = rows(folder)
    assert [row["cycle"] for row in table] == ["1", "2"]
    assert float(table[1]["loss"]) < float(table[0]["loss"])
    settings = json.loads((folder / "settings.json").read_text())
    assert settings["arguments"]["batch_size"] == 700
    assert settings["arguments"]["sampler"] == "normal"  # defaults are written too
    assert settings["parameters"] == 202 + 2 * (2 + 3)
    assert settings["versions"]["torch"] == torch.__version__
    assert settings["machine"]["processes"] == 1
    assert settings["date"].startswith("20")
    height, width, _ = matplotlib.image.imread(folder / "accuracy.png").shape
    assert width > height > 300


def test_the_search_is_that_of_rso_and_the_weights_those_that_were_tested(
    tmp_path, rso
):
    assert rso() == 0
    folder, digits = tmp_path / "run", data.load("digits")
    model = small_cnn(widths=(2, 3), norm=True)
    reports = list(RSO(model, digits.train, batch_size=700, cycles=2))
    assert [row["loss"] for row in rows(folder)] == [str(r.loss) for r in reports]
    refresh_norm_statistics(model, digits.train)
    stored = small_cnn(widths=(2, 3), norm=True)
    stored.load_state_dict(torch.load(folder / "weights.pt"))
    for name, tensor in model.state_dict().items():
        assert tensor.equal(stored.state_dict()[name]), name
    entropy = torch.nn.functional.cross_entropy
    accuracy = evaluate(model, digits.test, loss=entropy)[1]
    assert float(rows(folder)[-1]["test_accuracy"]) == accuracy


def test_a_run_is_not_overwritten_unless_asked(tmp_path, rso, capsys):
    assert rso(cycles=1) == 0
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    assert rso(cycles=1) == 1
    assert "holds a run (settings.json, checkpoint.pt" in capsys.readouterr().err
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before
    (tmp_path / "run" / "notes.txt").write_text("mine")
    assert rso("--overwrite", "--engine", "warp", cycles=1) == 1
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before  # a mistake
    assert rso("--overwrite", "--seed", "5", cycles=1) == 0
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() != before
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"
    assert rso("--overwrite", "--resume") == 1
    assert "exclude each other" in capsys.readouterr().err


@pytest.mark.parametrize("number", ["SIGINT", "SIGKILL"])
def test_a_run_that_was_stopped_is_resumed_to_the_same_weights(
    tmp_path, rso, net, number, capsys
):
    number, folder = getattr(signal, number), tmp_path / "run"
    options = ["--net", f"{net}:tiny", "--cycles", "4", "--batch-size", "700"]
    command = [sys.executable, "-m", "course_lib", "rso", *options, "--device", "cpu"]
    child = subprocess.Popen(
        [*command, "--out", folder],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    while child.stdout.readline().split()[:1] != [b"1"]:
        assert child.poll() is None, child.stderr.read()
    child.send_signal(number)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == (130 if number == signal.SIGINT else -9)
    assert (b"To continue: --resume" in errors) == (number == signal.SIGINT)
    assert rso("--resume", name=None, cycles=None) == 0  # with the stored settings
    assert rso(out="whole", cycles=4) == 0
    for ours, theirs in zip(rows(folder), rows(tmp_path / "whole"), strict=True):
        for name in ("cycle", "loss", "accuracy", "test_accuracy"):
            assert ours[name] == theirs[name]
    assert decisions(folder).equal(decisions(tmp_path / "whole"))
    one, two = (torch.load(f / "weights.pt") for f in (folder, tmp_path / "whole"))
    assert all(one[name].equal(two[name]) for name in two)
    settings = json.loads((folder / "settings.json").read_text())
    assert len(settings["resumed"]) == 1


def test_resume_takes_what_is_given_above_what_is_stored(tmp_path, rso, capsys):
    assert rso(cycles=1) == 0
    capsys.readouterr()
    assert rso("--resume", "--seed", "3", name=None, cycles=None) == 1
    assert "made with seed=0, this search has 3" in capsys.readouterr().err
    assert rso("--resume", "--engine", "cached", name=None, cycles=None) == 0
    assert len(rows(tmp_path / "run")) == 1  # it was at its end


def test_what_can_not_be_resumed(tmp_path, rso, capsys):
    assert rso("--resume", out="nowhere") == 1
    assert "nowhere holds no run to resume" in capsys.readouterr().err
    assert rso(cycles=1) == 0
    settings = tmp_path / "run" / "settings.json"
    for text in ("{", "[]", '{"arguments": 3}'):
        settings.write_text(text)
        assert rso("--resume") == 1
        assert "is not a run's settings" in capsys.readouterr().err


def test_a_lost_table_or_checkpoint(tmp_path, rso, capsys):
    assert rso(cycles=1) == 0
    folder = tmp_path / "run"
    accuracy = rows(folder)[0]["test_accuracy"]
    (folder / "reports.csv").write_text("cycle,nonsense\n1,2\n")
    assert rso("--resume", name=None, cycles=None) == 1
    assert "is not what a run wrote" in capsys.readouterr().err
    (folder / "reports.csv").unlink()
    assert rso("--resume", name=None, cycles=None) == 0
    assert [row["test_accuracy"] for row in rows(folder)] == [accuracy]  # made again
    (folder / "checkpoint.pt").write_bytes(b"cut")
    assert rso("--resume", name=None, cycles=None) == 1
    assert "or a damaged one" in capsys.readouterr().err
    (folder / "checkpoint.pt").unlink()  # killed in the first cycle: from the start
    assert rso("--resume", name=None, cycles=None) == 0
    assert rows(folder)[0]["test_accuracy"] != "nan"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "mnits"], "Did you mean 'mnist'?"),
        (["--net", "large"], "wanted 'small', 'paper' or PATH.py:NAME"),
        (["--net", "none.py:net"], "there is no file none.py"),
        (["--batch-size", "2000"], "the split has 1437 samples"),
        (["--engine", "warp"], "wanted one of 'auto', 'reference'"),
        (["--device", "abacus"], "pick_device: got 'abacus'"),
        (["--final-sigma", "0"], "wanted it in (0, 1]"),
    ],
)
def test_a_mistake_is_one_line(rso, capsys, options, message):
    assert rso(*options) == 1
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_a_folder_that_can_not_be_made(tmp_path, rso, capsys):
    (tmp_path / "run").write_text("a file")
    assert rso() == 1
    assert "run is a file. Choose another --out." in capsys.readouterr().err
    assert rso(out="run/inside") == 1
    assert "nothing can be written to" in capsys.readouterr().err
    assert (tmp_path / "run").read_text() == "a file"


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_folder_that_can_not_be_written(tmp_path, rso, monkeypatch, capsys, code):
    """As on a read-only disk, without permission, and on a full one."""

    def refuse(*given, **options):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(locks, "_acquire", refuse)
    assert rso() == 1
    err = capsys.readouterr().err
    assert f"nothing can be written to {tmp_path / 'run'} ({os.strerror(code)})" in err
    assert rso(out="runs/today/run") == 1
    left = {path.name for path in tmp_path.iterdir()} - {"__pycache__"}
    assert left == {"net.py"}


def test_a_mistake_leaves_no_folder(tmp_path, rso):
    assert rso("--final-sigma", "0") == 1
    assert not (tmp_path / "run").exists()
    assert rso("--resume") == 1
    assert rso("--final-sigma", "0", out="runs/today/run") == 1
    left = {path.name for path in tmp_path.iterdir()} - {"__pycache__"}
    assert left == {"net.py"}


# One run at a time


def test_a_second_run_in_a_folder_is_refused(tmp_path, rso, capsys):
    folder = tmp_path / "run"
    assert rso(cycles=1) == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    code = f"""
        import sys
        from pathlib import Path
        from course_lib.rso.cli.locks import locked
        with locked(Path({str(folder)!r})):
            print("held", flush=True)
            sys.stdin.read()
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as other:
        assert other.stdout.readline() == b"held\n"
        for options in ((), ("--resume",), ("--overwrite", "--seed", "1")):
            assert rso(*options, cycles=1) == 1
            err = capsys.readouterr().err
            assert f"another run is at work in {folder} (process {other.pid} on" in err
        assert rso(out="elsewhere", cycles=1) == 0
        now = {path.name: path.read_bytes() for path in folder.iterdir()}
        assert before == {name: now[name] for name in before}
        other.kill()  # the system takes the lock back
        other.wait()
    assert (folder / locks.NAME).exists()
    assert rso("--resume", cycles=1) == 0
    assert sorted(os.listdir(folder)) == sorted(FILES)


def test_a_lock_that_was_just_removed_is_no_lock(tmp_path, monkeypatch):
    """Of a run that ended just then; the file is made again."""
    lock, opened = locks._lock, []

    def late(number):
        lock(number)
        opened.append(number)
        if len(opened) == 1:
            (tmp_path / locks.NAME).unlink()

    monkeypatch.setattr(locks, "_lock", late)
    with locks.locked(tmp_path):
        assert len(opened) == 2
        assert (tmp_path / locks.NAME).exists()
        with pytest.raises(ValueError, match="another run"), locks.locked(tmp_path):
            pass
    assert tmp_path.exists()
    assert not any(tmp_path.iterdir())


def test_what_a_killed_run_left_half_written_is_cleared_away(tmp_path, rso):
    folder = tmp_path / "run"
    assert rso(cycles=1) == 0
    for name in (".rsoab12_x9z", ".rso", ".rso_settings_of_mine", "notes.rsoab12_x9z"):
        (folder / name).write_text("?")
    assert rso("--resume", cycles=None, name=None) == 0
    left = set(os.listdir(folder)) - set(FILES)
    assert left == {".rso", ".rso_settings_of_mine", "notes.rsoab12_x9z"}


def test_an_accuracy_that_a_kill_took_is_computed_again(tmp_path, rso, monkeypatch):
    """The checkpoint of a cycle is written before the model is tested."""
    assert rso(out="whole", cycles=3) == 0

    def killed(*given):
        raise SystemExit(9)

    with monkeypatch.context() as patch:
        patch.setattr(command, "_accuracy", killed)
        with pytest.raises(SystemExit):
            rso(cycles=3)
    assert not (tmp_path / "run" / "reports.csv").exists()
    assert rso("--resume", cycles=None, name=None) == 0
    wanted = [row["test_accuracy"] for row in rows(tmp_path / "whole")]
    assert [row["test_accuracy"] for row in rows(tmp_path / "run")] == wanted


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "has no 'nothing'; it has torch, small_cnn, tiny, made, words"),
        ("words", "'str' object is not callable"),
        ("broken", "AttributeError: 'Tensor' object has no attribute 'nothing'"),
        ("torch", "'module' object is not callable"),
        ("list", "has no 'list'"),
    ],
)
def test_what_is_no_network_in_a_file(net, name, message):
    with pytest.raises(ValueError, match=r"net\.py") as caught:
        build(f"{net}:{name}", data.load("digits"))
    assert message in str(caught.value)


def test_a_function_that_returns_something_else(tmp_path):
    path = tmp_path / "odd.py"
    path.write_text("def odd():\n    return 3\n")
    with pytest.raises(ValueError, match="gave a int; wanted an nn"):
        build(f"{path}:odd", data.load("digits"))
    path.write_text("1 / 0")
    with pytest.raises(ValueError, match="failed: ZeroDivisionError"):
        build(f"{path}:odd", data.load("digits"))


def test_networks_by_name_and_from_a_file(net):
    digits = data.load("digits")
    sizes = {}
    for name in ("small", "paper", f"{net}:tiny", f"{net}:made"):
        model = build(name, digits)
        assert model(digits.train.inputs[:5]).shape == (5, 10)
        sizes[name] = sum(p.numel() for p in model.parameters() if p.dim() > 1)
    assert list(sizes.values()) == [1864, 11824, 192, 192]


def test_the_papers_network_for_color():
    train = data.Split(torch.zeros(3, 3, 32, 32), torch.arange(3))
    moments = torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
    color = data.Dataset("color", train, train, tuple("abc"), *moments)
    model = build("paper", color)
    assert isinstance(model, RSOCifar10CNN)
    assert model(train.inputs).shape == (3, 3)


def test_full_disk(tmp_path, rso, monkeypatch, capsys):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    assert rso() == 1
    err = capsys.readouterr().err
    assert "the checkpoint" in err
    assert "No space left on device" in err
    assert sorted(os.listdir(tmp_path / "run")) == ["settings.json"]


def test_the_defaults_reach_95_percent_quickly(tmp_path):
    start = time.perf_counter()
    assert main(["rso", "--out", str(tmp_path / "run"), "--device", "cpu"]) == 0
    assert time.perf_counter() - start < 240  # a laptop takes a tenth
    assert float(rows(tmp_path / "run")[-1]["test_accuracy"]) >= 0.95


def test_a_folder_of_two_dates(tmp_path):
    folder, model, path = Folder(tmp_path), small_cnn(), tmp_path / "settings.json"
    folder.write_settings({"seed": 0}, model, torch.device("cpu"))
    first = json.loads(path.read_text())
    path.write_text(json.dumps({**first, "date": "2001-01-01"}))
    folder.write_settings({"seed": 0}, model, torch.device("cpu"))
    settings = json.loads(path.read_text())
    assert settings["date"] == "2001-01-01"
    assert settings["resumed"] >= [first["date"]]
    assert folder.claim({"seed": 1}, resume=True, overwrite=False) == {"seed": 1}
