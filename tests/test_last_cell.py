"""After a cell that stopped, a check says so; it does not judge the older answer."""

import pytest
from IPython.core.interactiveshell import InteractiveShell

from course_lib.lessons import last_cell
from course_lib.lessons.exercises import Exercise, NotYet


def judge(answer):
    if callable(answer):
        answer = answer()
    if answer != 2:
        raise NotYet("wanted 2")
    return "It is 2."


@pytest.fixture
def shell(monkeypatch, tmp_path):
    """Return a notebook's shell, with an exercise that wants 2."""
    monkeypatch.setenv("COURSE_PROGRESS", str(tmp_path / "progress.json"))
    monkeypatch.setattr(last_cell, "_error", None)
    shell = InteractiveShell()
    last_cell.watch(shell)
    shell.user_ns["two"] = Exercise("start_here.two", judge, ("", "", ""))
    yield shell
    shell.events.unregister("post_run_cell", last_cell._note)


def check(shell):
    return repr(shell.run_cell("two.check(x)", store_history=True).result)


def run(shell, code):
    shell.run_cell(code, store_history=True)


@pytest.mark.parametrize(
    ("code", "error"),
    [("x = = 3", "SyntaxError"), ("if x:\nx = 3", "IndentationError")],
)
def test_a_cell_that_can_not_be_read_leaves_the_older_answer(shell, code, error):
    run(shell, "x = 2")
    assert check(shell).startswith("Right")
    run(shell, code)
    for _ in range(2):  # a check before this one changes nothing
        assert check(shell).startswith("Not yet. The cell that ran before")
        assert error in check(shell)
    run(shell, "x = 2")
    assert check(shell).startswith("Right")


def test_a_cell_that_stopped_on_its_way_is_named(shell):
    run(shell, "x = 2")
    run(shell, "1 / 0\nx = 3")
    assert "ZeroDivisionError: division by zero" in check(shell)
    run(shell, "y = 1")  # anything that comes to its end
    assert check(shell).startswith("Right")


def test_an_error_without_words(shell):
    run(shell, "x = 2")
    run(shell, "assert x == 3")
    assert "AssertionError: no message" in check(shell)


def test_what_the_lab_runs_by_itself_is_no_cell(shell):
    run(shell, "x = 2")
    shell.run_cell("1 / 0", store_history=False)
    assert check(shell).startswith("Right")


def test_a_cell_that_holds_answer_and_check_is_judged_once_corrected(shell):
    run(shell, "x = 2")
    shell.run_cell("x = = 2\ntwo.check(x)", store_history=True, cell_id="a")
    assert check(shell).startswith("Not yet. The cell that ran before")
    corrected = {"store_history": True, "cell_id": "a"}
    for _ in range(2):
        verdict = shell.run_cell("x = 2\ntwo.check(x)", **corrected).result
        assert repr(verdict).startswith("Right")
    assert check(shell).startswith("Right")


def test_a_check_that_was_stopped_by_hand_can_run_again(shell):
    run(shell, "def x():\n    raise KeyboardInterrupt")
    shell.run_cell("two.check(x)", store_history=True)
    assert not check(shell).startswith("Not yet. The cell that ran before")
