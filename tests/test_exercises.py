"""Checks that never raise, and each lesson's own exercises, right and wrong.

The second half goes through every lesson: its starters must get "not yet", the
solution that stands in the notebook must pass, and each likely wrong answer must get
its own message.
"""

import asyncio
import contextlib
import importlib
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

import course_lib.lessons
from course_lib.lessons import closures, progress_file
from course_lib.lessons.checks import require_written
from course_lib.lessons.exercises import Exercise, NotYet, Verdict, lessons
from tests.desk import Desk, cell_with, exercises_of

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
HINTS = ("Look.", "Look at `w < 0`.", "It is 3.")


@pytest.fixture(autouse=True)
def progress_of_our_own(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_PROGRESS", str(tmp_path / "progress.json"))


def judge_three(answer):
    value = answer() if callable(answer) else answer
    if value != 3:
        raise NotYet(f"`{value}` is not 3.")
    return "Two and one is three."


three = Exercise("numbers.three", judge_three, HINTS)


# What a check says


def test_a_right_answer_is_praised_and_stored():
    assert three.check(3) == Verdict(True, "Two and one is three.")
    assert progress_file.solved() == {"numbers.three"}


def test_a_wrong_answer_is_named_gets_hints_and_is_not_stored():
    assert three.check(4) == Verdict(False, "`4` is not 3.", HINTS)
    assert progress_file.solved() == set()


def test_the_untouched_stub_gets_instructions():
    verdict = three.check(...)
    assert not verdict.solved
    assert verdict.message == "Replace the ... with your answer, then check again."
    assert verdict.hints == HINTS


def test_a_verdict_reads_as_text_and_as_html():
    assert repr(Verdict(True, "Yes.")) == "Right. Yes."
    assert repr(Verdict(False, "No.", HINTS)) == "Not yet. No."
    assert Verdict(True, "Yes.")._repr_html_() == "<p><b>✓ Right.</b> Yes.</p>"


def test_hints_open_one_inside_the_other():
    def closed(number, text, rest):
        summary = f"<summary>Hint {number} of 3</summary>"
        return f"<details>{summary}<p>{text}</p>{rest}</details>"

    nested = closed(3, "It is 3.", "")
    nested = closed(2, "Look at <code>w &lt; 0</code>.", nested)
    nested = closed(1, "Look.", nested)
    html = Verdict(False, "No.", HINTS)._repr_html_()
    assert html == f"<p><b>✗ Not yet.</b> No.</p>{nested}"


def test_what_a_learner_wrote_is_escaped():
    html = three.check("<script>&")._repr_html_()
    assert "<code>&lt;script&gt;&amp;</code> is not 3." in html
    assert "<script>" not in html


def test_an_exercise_prints_its_name_and_not_its_solution():
    assert repr(three) == "Exercise(name='numbers.three')"


# A check never raises


def leave():
    raise SystemExit(1)


def dive():
    return dive()


def add_to_the_stub():
    return ... + 1


def use_a_missing_name():
    return missing  # noqa: F821


def fail_in_two_lines():
    raise ValueError("first line\nsecond line")


def add_to_a_name_of_outside():
    total += 1  # noqa: F821, F841


def cancel():
    raise asyncio.CancelledError


FAILURES = {
    leave: "Your code raised SystemExit: 1",
    dive: "Your code raised RecursionError: maximum recursion depth exceeded",
    add_to_the_stub: "There is still a ... in your code. Replace it, then check again.",
    use_a_missing_name: "Your code raised NameError: name 'missing' is not defined. "
    "Run the cells above first.",
    add_to_a_name_of_outside: "Your code raised UnboundLocalError: cannot access local "
    "variable 'total' where it is not associated with a value",
    fail_in_two_lines: "Your code raised ValueError: first line",
    cancel: "Your code raised CancelledError: ",
    int: "`0` is not 3.",
    len: "Your code raised TypeError: len() takes exactly one argument (0 given)",
}


@pytest.mark.parametrize(("answer", "message"), FAILURES.items())
def test_whatever_an_answer_raises_becomes_words(answer, message):
    verdict = three.check(answer)
    assert not verdict.solved
    assert verdict.message.startswith(message)
    assert "\n" not in verdict.message
    assert verdict.hints == HINTS


@pytest.mark.parametrize(("answer", "kind"), [([1], "list"), (None, "NoneType")])
@pytest.mark.parametrize("name", ["scalers", "pickled"])
def test_what_is_no_function_is_named(name, answer, kind):
    verdict = getattr(closures, name).check(answer)
    assert verdict.message == (
        f"The check got {kind}; wanted a function or a class. Give it the name alone, "
        "without parentheses."
    )


def test_the_stop_button_still_stops():
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        three.check(stop)


def endless():
    while True:
        pass


def endless_and_swallowing():
    while True:
        with contextlib.suppress(Exception):
            time.sleep(0.001)


@pytest.mark.parametrize("answer", [endless, endless_and_swallowing])
def test_a_loop_that_never_ends_is_stopped(answer):
    start = time.perf_counter()
    verdict = Exercise("numbers.slow", judge_three, HINTS, seconds=0.1).check(answer)
    assert time.perf_counter() - start < 5
    assert verdict.message == (
        "Your code was stopped after 0.1 seconds. Is there a loop that never ends?"
    )
    assert not verdict.solved


def test_a_check_in_another_thread_stops_there():
    verdicts = []
    slow = Exercise("numbers.slow", judge_three, HINTS, seconds=0.1)
    thread = threading.Thread(target=lambda: verdicts.append(slow.check(endless)))
    thread.start()
    thread.join(timeout=5)
    assert "was stopped" in verdicts[0].message


def test_the_clock_ends_with_the_check():
    threads = threading.active_count()
    exercise = Exercise("numbers.quick", judge_three, HINTS, seconds=0.05)
    assert exercise.check(3).solved
    assert threading.active_count() == threads
    deadline = time.perf_counter() + 0.1  # a late clock would strike here
    while time.perf_counter() < deadline:
        pass


@pytest.mark.parametrize("answer", ["3", "endless"])
def test_a_check_under_a_tracer_lets_the_next_call_run(answer, tmp_path):
    """A debugger traces; a check once left Python 3.11 hanging at the next call."""
    program = f"""
import sys
from course_lib.lessons.exercises import Exercise

def endless():
    while True:
        pass

def judge(answer):
    return str(answer if answer == 3 else answer())

sys.settrace(lambda frame, event, argument: None)
print(Exercise("numbers.three", judge, ("", "", ""), seconds=0.2).check({answer}))
print((lambda: "still here")())
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "COURSE_PROGRESS": str(tmp_path / "progress.json")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.splitlines()[1:] == ["still here"], done.stderr


def test_an_import_is_neither_counted_nor_stopped(tmp_path, monkeypatch):
    """A first optimizer step imports torch._dynamo, which is broken if stopped."""
    lines = "import time", "start = time.process_time()"
    loop = "while time.process_time() - start < 0.4: pass"
    (tmp_path / "slow_to_import.py").write_text("\n".join([*lines, loop, "DONE = 3"]))
    monkeypatch.syspath_prepend(tmp_path)
    answers = []

    def judge(answer):
        module = importlib.import_module("slow_to_import")
        answers.append(module.DONE)
        return "Done." if answer is None else answer()

    quick = Exercise("numbers.quick", judge, HINTS, seconds=0.1)
    assert quick.check(None).solved
    assert answers == [3]
    sys.modules.pop("slow_to_import")
    assert "was stopped" in quick.check(endless).message
    assert answers == [3, 3]


def test_an_answer_does_not_pay_for_a_machine_that_does_something_else():
    """It waits here for what would be another program."""

    def wait(answer):
        deadline = time.perf_counter() + 0.3
        while time.perf_counter() < deadline:
            time.sleep(0.01)
        return "Done."

    assert Exercise("numbers.slow", wait, HINTS, seconds=0.1).check(None).solved


def test_a_clock_that_strikes_at_the_last_moment_hits_no_later_cell():
    """Answers that end just when the time does, many times over."""

    def wait(answer):
        end = time.perf_counter() + 0.002
        while time.perf_counter() < end:
            pass
        return "Done."

    close = Exercise("numbers.close", wait, HINTS, seconds=0.002)
    said = {close.check(None).message for _ in range(100)}
    assert all(words == "Done." or "was stopped" in words for words in said)


def test_a_stub_that_is_returned_is_recognized():
    with pytest.raises(NotYet, match=r"still a `\.\.\.` in your code\. Replace it"):
        require_written(...)
    assert require_written(None) is None


@pytest.mark.parametrize("content", [b"not ours", None], ids=["damaged", "no folder"])
def test_progress_that_can_not_be_stored_is_reported_and_costs_nothing(
    tmp_path, monkeypatch, content
):
    path = tmp_path / "folder" / "progress.json"
    monkeypatch.setenv("COURSE_PROGRESS", str(path))
    if content:
        path.parent.mkdir()
        path.write_bytes(content)
    verdict = three.check(3)
    assert verdict.solved
    assert verdict.message.startswith(
        "Two and one is three. (Your progress could not be stored: "
    )


# The exercises of every lesson


def solution_in(words):
    """Return the code of a closed <details> block."""
    details = re.fullmatch(r"<details>\s*<summary>.+?</details>", words.strip(), re.S)
    assert details, f"no closed <details> block: {words!r}"
    (code,) = re.findall(r"^```python\n(.*?)^```$", words, re.M | re.S)
    return code


def prove(notebook, module, wrong):
    """Assert what a lesson promises about each of its exercises."""
    desk, found = Desk(notebook), exercises_of(module)
    lesson = module.__name__.rpartition(".")[2]
    assert set(wrong) == set(found)
    for name, exercise in found.items():
        assert exercise.name == f"{lesson}.{name}"
        assert getattr(module, name) is exercise
        assert len(set(exercise.hints)) == 3
        assert all(hint.strip() for hint in exercise.hints)
        prove_one(desk, name, wrong[name])
        assert exercise.name in progress_file.solved()


def prove_one(desk, name, wrong):
    starter = desk.check(name, cell_with(desk.notebook, f"exercise:{name}"))
    assert not starter.solved, f"{name}: the starter passes"
    assert "Your code raised" not in starter.message, f"{name}: {starter.message}"

    messages = {}
    assert len(wrong) >= 3, f"{name}: only {len(wrong)} wrong answers"
    for answer, fragment in wrong:
        verdict = desk.check(name, answer)
        assert not verdict.solved, f"{name} accepts:\n{answer}"
        assert fragment in verdict.message, f"{name}: {verdict.message}\n{answer}"
        messages.setdefault(verdict.message, []).append(answer)
    repeated = f"{name}: one message for two mistakes: {messages}"
    assert len(messages) == len(wrong), repeated

    solution = solution_in(cell_with(desk.notebook, f"solution:{name}"))
    verdict = desk.check(name, solution)
    assert verdict.solved, f"{name}: the solution gets {verdict.message}"


def notebook_of(number, lesson):
    return nbformat.read(NOTEBOOKS / f"{number:02}_{lesson}.ipynb", as_version=4)


def tagged(notebook, kind):
    tags = [tag for c in notebook.cells for tag in c.metadata.get("tags", ())]
    return sorted(tag.partition(":")[2] for tag in tags if tag.startswith(f"{kind}:"))


@pytest.mark.parametrize("lesson", lessons())
def test_the_exercises_of_a_lesson_tell_right_from_wrong(lesson):
    module = importlib.import_module(f"course_lib.lessons.{lesson}")
    answers = importlib.import_module(f"tests.wrong_answers.{lesson}")
    notebook = notebook_of(module.NUMBER, lesson)
    prove(notebook, module, answers.WRONG)
    names = sorted(exercises_of(module))
    for kind in ("exercise", "check", "solution"):
        assert tagged(notebook, kind) == names
    assert len(names) >= 4 or module.NUMBER == 0


def test_every_notebook_has_a_lesson_with_exercises():
    names = [path.stem[3:] for path in sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))]
    assert list(lessons()) == names


def test_lessons_are_listed_by_number_with_their_exercises(tmp_path, monkeypatch):
    sources = {
        "apples": "NUMBER = 2\ncore = Exercise('apples.core', len, ())",
        "bears": "NUMBER = 1\nden = Exercise('bears.den', len, ())\n"
        "sleep = Exercise('bears.sleep', len, ())",
        "tools": "",
    }
    head = "from course_lib.lessons.exercises import Exercise\n"
    for name, source in sources.items():
        (tmp_path / f"{name}.py").write_text(head + source)
    monkeypatch.setattr(course_lib.lessons, "__path__", [str(tmp_path)])
    try:
        assert list(lessons().items()) == [
            ("bears", ["den", "sleep"]),
            ("apples", ["core"]),
        ]
    finally:
        for name in sources:
            del sys.modules[f"course_lib.lessons.{name}"]


# The proof itself, on a lesson of one exercise


def made_up(solution="answer = 1 + 2", stub="answer = ..."):
    """A notebook and its module."""
    details = "<details><summary>Solution</summary>\n\n```python\n{}\n```\n\n</details>"
    cells = {
        "setup": new_code_cell("import numbers_lesson as lesson"),
        "exercise:three": new_code_cell(stub),
        "check:three": new_code_cell("ready = True\nlesson.three.check(answer)"),
        "solution:three": new_markdown_cell(details.format(solution)),
    }
    for tag, cell in cells.items():
        cell.metadata["tags"] = [tag]
    lesson = ModuleType("numbers")
    lesson.three = three
    return new_notebook(cells=list(cells.values())), lesson


GOOD = {"three": [(f"answer = {n}", f"{n}` is not") for n in (4, 5, 6)]}


@pytest.fixture
def lesson_to_import(monkeypatch):
    monkeypatch.setitem(sys.modules, "numbers_lesson", made_up()[1])


@pytest.mark.usefixtures("lesson_to_import")
def test_a_good_lesson_is_proved():
    prove(*made_up(), GOOD)


@pytest.mark.usefixtures("lesson_to_import")
@pytest.mark.parametrize(
    ("changes", "wrong", "complaint"),
    [
        ({"stub": "answer = 3"}, GOOD, "three: the starter passes"),
        ({"solution": "answer = 2"}, GOOD, "three: the solution gets `2` is not 3"),
        ({}, {}, "assert set"),
        ({}, {"three": GOOD["three"][:2]}, "three: only 2 wrong answers"),
        ({}, {"three": [*GOOD["three"], ("answer = 3", "")]}, "three accepts:"),
        ({}, {"three": [*GOOD["three"], ("answer = 7", "8`")]}, "three: `7` is not 3"),
        ({}, {"three": GOOD["three"] * 2}, "three: one message for two mistakes"),
    ],
)
def test_a_lesson_that_breaks_a_promise_is_caught(changes, wrong, complaint):
    with pytest.raises(AssertionError, match=complaint):
        prove(*made_up(**changes), wrong)
