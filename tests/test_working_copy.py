"""The learner's copy of the lessons: nothing that was typed is lost."""

import errno
import subprocess
import sys
from functools import partial

import hypothesis
import nbformat
import pytest
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from course_lib import __main__ as commands
from course_lib.lessons import lab, working_copy
from course_lib.lessons.working_copy import KEPT_ASIDE, merge, reset, update


def cell(source, key, tag=None, **rest):
    made = new_code_cell(source, **rest)
    made.id = key
    if tag:
        made.metadata.tags = [tag]
    return made


def notebook(*cells):
    return new_notebook(cells=[nbformat.from_dict(cell) for cell in cells])


def sources(book):
    return [cell.source for cell in book.cells]


INTRO, STUB, CHECK = (
    cell("x = 1", "intro"),
    cell("def f(): ...", "stub", "exercise:f"),
    cell("f.check(f)", "check"),
)
LESSON = notebook(INTRO, STUB, CHECK)
ANSWER = cell("def f(): return 3", "stub", "exercise:f")


def test_what_was_not_touched_follows_the_lesson():
    new = notebook(INTRO, cell("y = 2", "new"), STUB)
    assert merge(LESSON, LESSON, new) == (new, 0)


def test_an_answer_stays_when_other_cells_change():
    mine = notebook(INTRO, ANSWER, CHECK)
    new = notebook(cell("x = 7", "intro-2"), STUB, CHECK, cell("z", "end"))
    merged, conflicts = merge(LESSON, mine, new)
    assert sources(merged) == ["x = 7", ANSWER.source, CHECK.source, "z"]
    assert conflicts == 0


def test_an_answer_to_a_stub_that_changed_stands_below_it():
    mine = notebook(INTRO, ANSWER, CHECK)
    stub = cell("def f(x): ...", "stub-2", "exercise:f")
    merged, conflicts = merge(LESSON, mine, notebook(INTRO, stub, CHECK))
    wanted = ["x = 1", stub.source, KEPT_ASIDE, ANSWER.source, CHECK.source]
    assert (sources(merged), conflicts) == (wanted, 1)
    nbformat.validate(merged)
    again, conflicts = merge(notebook(INTRO, stub, CHECK), merged, merged)
    assert (sources(again), conflicts) == (wanted, 0)


def test_a_changed_cell_whose_place_is_gone_stays_where_it_was():
    mine = notebook(INTRO, STUB, cell("f.check(f)  # again", "check"))
    merged, conflicts = merge(LESSON, mine, notebook(INTRO, STUB))
    assert sources(merged)[1:] == [STUB.source, KEPT_ASIDE, "f.check(f)  # again"]
    assert conflicts == 1


def test_own_cells_follow_the_cell_that_they_followed():
    own = [cell("print(x)", "mine-1"), new_markdown_cell("A note.")]
    first = cell("# first", "mine-0")
    mine = notebook(first, INTRO, *own, STUB, CHECK)
    new = notebook(cell("import a", "import"), INTRO, STUB, CHECK)
    merged, conflicts = merge(LESSON, mine, new)
    assert sources(merged) == [
        "# first",
        "import a",
        "x = 1",
        "print(x)",
        "A note.",
        STUB.source,
        CHECK.source,
    ]
    assert conflicts == 0


def test_a_pasted_copy_of_an_exercise_is_a_cell_of_its_own():
    second = cell("def f(): return 4", "pasted", "exercise:f")
    mine = notebook(INTRO, ANSWER, second, CHECK)
    merged, conflicts = merge(LESSON, mine, notebook(INTRO, STUB, CHECK))
    assert sources(merged) == sources(mine)
    assert conflicts == 0


def test_outputs_stay_with_cells_that_did_not_change():
    ran = cell("x = 1", "intro", execution_count=4)
    merged, _ = merge(LESSON, notebook(ran, STUB, CHECK), notebook(INTRO, STUB))
    assert merged.cells[0].execution_count == 4


KEYS = st.sampled_from("abcdef")
BOOKS = st.lists(st.tuples(KEYS, st.integers(0, 2)), unique_by=lambda pair: pair[0])


@hypothesis.settings(deadline=None)
@hypothesis.given(BOOKS, BOOKS, BOOKS)
def test_all_that_was_typed_is_there_after_any_change(old, mine, new):
    """A cell's key is its place; the number is its text."""

    def book(cells, who):
        return notebook(*(cell(f"{key}{n or who}", key) for key, n in cells))

    old, new = book(old, 0), book(new, 0)
    mine = book(mine, "mine")
    merged, conflicts = merge(old, mine, new)
    had, known = sources(merged), set(sources(old))
    assert {text for text in sources(mine) if text not in known} <= set(had)
    typed = {c.id for c in mine.cells if c.source not in known}
    assert {c.source for c in new.cells if c.id not in typed} <= set(had)
    assert had.count(KEPT_ASIDE) == conflicts
    ids = [c.id for c in merged.cells]
    assert len(ids) == len(set(ids))


# Files


@pytest.fixture
def folders(tmp_path):
    stored, work = tmp_path / "notebooks", tmp_path / "work"
    stored.mkdir()
    store(stored / "01_closures.ipynb", LESSON)
    return stored, work


def store(path, book):
    path.write_text(nbformat.writes(book), encoding="utf-8")


def load(path):
    return nbformat.read(path, as_version=4)


def test_a_copy_is_made_without_outputs(folders):
    stored, work = folders
    ran = notebook(cell("x = 1", "intro", execution_count=1), STUB)
    ran.cells[0].outputs = [nbformat.v4.new_output("stream", text="1")]
    store(stored / "01_closures.ipynb", ran)
    before = (stored / "01_closures.ipynb").read_bytes()
    assert update(stored, work) == ["01_closures: ready."]
    made = load(work / "01_closures.ipynb").cells
    assert [c.get("outputs") for c in made] == [[], []]
    assert made[0].execution_count is None
    assert (stored / "01_closures.ipynb").read_bytes() == before
    assert update(stored, work) == []


def test_a_lesson_that_changed_brings_its_copy_up_to_date_once(folders):
    stored, work = folders
    update(stored, work)
    store(work / "01_closures.ipynb", notebook(INTRO, ANSWER, CHECK))
    stub = cell("def f(x): ...", "stub", "exercise:f")
    store(stored / "01_closures.ipynb", notebook(INTRO, stub, CHECK))
    assert update(stored, work) == [
        "01_closures: brought up to date, with all that you typed. "
        "Below a changed cell stands yours: 1."
    ]
    assert ANSWER.source in sources(load(work / "01_closures.ipynb"))
    assert update(stored, work) == []


def test_a_copy_that_is_no_notebook_is_set_aside(folders):
    stored, work = folders
    update(stored, work)
    (work / "01_closures.ipynb").write_text("{ half")
    (said,) = update(stored, work)
    assert said.startswith("01_closures: could not be read (NotJSONError")
    assert said.endswith("Yours is work/set_aside/01_closures.ipynb.")
    assert (work / "set_aside" / "01_closures.ipynb").read_text() == "{ half"
    assert sources(load(work / "01_closures.ipynb")) == sources(LESSON)


def test_progress_made_in_the_stored_lessons_comes_along_once(folders):
    stored, work = folders
    (stored / "course_progress.json").write_text("1")
    update(stored, work)
    (work / "course_progress.json").write_text("2")
    update(stored, work)
    assert (work / "course_progress.json").read_text() == "2"


@pytest.mark.parametrize(
    "name", ["01", "1", "closures", "01_closures", "01_closures.ipynb"]
)
def test_a_reset_keeps_the_old_copy(folders, name):
    stored, work = folders
    update(stored, work)
    for number in ("", "-2"):
        store(work / "01_closures.ipynb", notebook(INTRO, ANSWER, CHECK))
        assert reset(name, stored, work) == (
            "01_closures is as it was at first. Your old one: "
            f"work/set_aside/01_closures{number}.ipynb"
        )
        assert sources(load(work / "01_closures.ipynb")) == sources(LESSON)
    old = load(work / "set_aside" / "01_closures.ipynb")
    assert ANSWER.source in sources(old)
    assert update(stored, work) == []


def test_a_reset_before_the_first_start_makes_the_copy(folders):
    stored, work = folders
    assert reset("01", stored, work) == "01_closures is as it was at first."
    assert load(work / "01_closures.ipynb") == LESSON


@pytest.mark.parametrize("writes", [0, 1])
@pytest.mark.parametrize("act", [update, partial(reset, "01")])
def test_a_copy_that_can_not_be_made_leaves_nothing(folders, monkeypatch, writes, act):
    stored, work = folders
    allow_writes(monkeypatch, writes)
    with pytest.raises(OSError, match="No space left"):
        act(stored, work)
    assert not (work / "01_closures.ipynb").exists()
    assert not (work / "set_aside").exists()
    assert work.exists() == bool(writes)
    monkeypatch.undo()
    assert update(stored, work) == ["01_closures: ready."]


@pytest.mark.parametrize("writes", [0, 1])
def test_a_reset_that_can_not_write_leaves_the_copy(folders, monkeypatch, writes):
    stored, work = folders
    update(stored, work)
    store(work / "01_closures.ipynb", notebook(INTRO, ANSWER, CHECK))
    before = (work / "01_closures.ipynb").read_bytes()
    allow_writes(monkeypatch, writes)
    with pytest.raises(OSError, match="No space left"):
        reset("01", stored, work)
    assert (work / "01_closures.ipynb").read_bytes() == before
    assert sorted(path.name for path in work.iterdir()) == [
        ".stored",
        "01_closures.ipynb",
    ]
    monkeypatch.undo()
    assert update(stored, work) == []


def allow_writes(monkeypatch, count):
    """Let the disk be full after so many notebooks."""
    write, done = working_copy._write, []

    def full(path, lesson):
        if len(done) == count:
            raise OSError(errno.ENOSPC, "No space left on device")
        done.append(path)
        write(path, lesson)

    monkeypatch.setattr(working_copy, "_write", full)


@pytest.mark.parametrize("name", ["2", "", "closure", "/etc/passwd"])
def test_an_unknown_lesson_is_refused_with_the_names(folders, name):
    with pytest.raises(ValueError, match=r"reset: got .*; wanted one of 01_closures\."):
        reset(name, *folders)


def test_a_package_without_lessons_says_where_they_are(tmp_path):
    words = "no lessons in .* They come with the course's repository"
    with pytest.raises(ValueError, match=f"lab: .*{words}"):
        update(tmp_path, tmp_path / "work")
    with pytest.raises(ValueError, match=f"reset: .*{words}"):
        reset("01", tmp_path, tmp_path / "work")
    assert not (tmp_path / "work").exists()


# Commands


@pytest.fixture
def called(folders, monkeypatch):
    """Let the commands work in those folders; return the command lines they start."""
    stored, work = folders
    monkeypatch.setattr(working_copy, "WORK", work)
    original = working_copy.update
    monkeypatch.setattr(working_copy, "update", lambda: original(stored, work))
    seen = []
    monkeypatch.setattr(subprocess, "call", lambda command: seen.append(command) or 5)
    return seen


def test_lab_makes_the_copy_and_opens_it(called, capsys):
    assert commands.main(["lab", "--no-browser", "--port=9999"]) == 5
    (command,) = called
    assert command[:3] == [sys.executable, "-m", "jupyterlab"]
    assert "--ip=127.0.0.1" in command  # for this machine alone, with a token
    assert not any("token" in option for option in command)
    assert command[-2:] == ["--no-browser", "--port=9999"]
    page = "/".join(["/lab/tree", "work", "00_start_here.ipynb"])
    assert f"--LabApp.default_url={page}" in command
    assert "01_closures: ready." in capsys.readouterr().out


def test_prepare_opens_nothing(called, capsys):
    assert commands.main(["lab", "--prepare"]) == 0
    assert called == []
    assert f"Your copy of the lessons: {working_copy.WORK}" in capsys.readouterr().out


def test_a_folder_that_can_not_be_written_is_said_in_a_line(called, capsys):
    working_copy.WORK.write_text("a file, where the folder should be")
    assert commands.main(["lab"]) == 1
    assert called == []
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.startswith(f"lab: {working_copy.WORK} can't be written")
    assert "a folder of your own" in err


def test_reset_says_what_it_does_not_know(capsys):
    assert commands.main(["reset", "77"]) == 1
    assert "reset: got '77'; wanted one of 00_start_here," in capsys.readouterr().err


@pytest.mark.parametrize("command", [["doctor"], ["lab", "--prepare"]])
def test_only_what_opens_jupyterlab_takes_its_options(called, command, capsys):
    with pytest.raises(SystemExit):
        commands.main([*command, "--no-browser"])
    assert not working_copy.WORK.exists()
    assert "unrecognized arguments: --no-browser" in capsys.readouterr().err


def test_root_is_allowed_where_there_is_no_other_user(monkeypatch):
    for user, allowed in ((0, True), (1000, False)):
        monkeypatch.setattr(lab.os, "geteuid", lambda user=user: user, raising=False)
        assert ("--allow-root" in lab._command([])) is allowed


def test_a_click_begins_a_lesson_again_and_says_where_the_old_copy_is(monkeypatch):
    seen = []
    monkeypatch.setattr(working_copy, "reset", lambda n: seen.append(n) or "Old: <a>.")
    buttons = lab.ResetButtons()
    assert [b.description for b in buttons.buttons][:2] == ["Reset 00", "Reset 01"]
    buttons.buttons[1].click()
    assert seen == ["01_closures"]
    assert buttons.message.value.startswith("Old: &lt;a&gt;. If its tab is open")


def test_a_click_that_can_not_write_says_so(monkeypatch):
    def fail(name):
        raise PermissionError("read-only")

    monkeypatch.setattr(working_copy, "reset", fail)
    buttons = lab.ResetButtons()
    buttons.buttons[0].click()
    assert buttons.message.value == "Nothing was changed: read-only"  # so keep the tab


def test_buttons_without_a_kernel_are_named_in_words(monkeypatch):
    shown = []
    monkeypatch.setattr(lab, "display", lambda bundle, raw: shown.append(bundle))
    lab.ResetButtons()._ipython_display_()
    assert shown[0]["text/plain"].startswith("Buttons: Reset 00, Reset 01")
    assert "application/vnd.jupyter.widget-view+json" in shown[0]
