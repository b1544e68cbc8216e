"""The progress file: whole or not at all, and never lost."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from course_lib.lessons import progress, progress_file

DAMAGED = {
    "cut short": '{"format": 1, "solved": ["closures.gu',
    "empty": "",
    "no text": b"\xff\xfe\x00",
    "another file": '{"cells": []}',
    "a list": '["closures.guess"]',
    "no names": '{"solved": [1]}',
    "one name": '{"solved": "closures.guess"}',
}


@pytest.fixture(autouse=True)
def path(tmp_path, monkeypatch):
    """A progress file of our own, not there yet."""
    path = tmp_path / "progress.json"
    monkeypatch.setenv("COURSE_PROGRESS", str(path))
    return path


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def saved(path, *names):
    write(path, json.dumps({"format": 1, "solved": names}))
    return path


def test_the_file_is_beside_the_notebook_or_where_course_progress_says(
    path, monkeypatch, tmp_path
):
    assert progress_file.file() == path
    monkeypatch.delenv("COURSE_PROGRESS")
    monkeypatch.chdir(tmp_path)
    assert progress_file.file() == tmp_path / "course_progress.json"


def test_solved_exercises_are_remembered_once_each(path):
    assert progress_file.solved() == set()
    for name in ("closures.guess", "closures.watch", "closures.guess"):
        progress_file.mark_solved(name)
    assert progress_file.solved() == {"closures.guess", "closures.watch"}
    assert json.loads(path.read_text()) == {
        "format": 1,
        "solved": ["closures.guess", "closures.watch"],
    }


def test_nothing_is_written_when_nothing_is_new(path):
    progress_file.mark_solved("closures.guess")
    os.utime(path, (0, 0))
    progress_file.mark_solved("closures.guess")
    assert path.stat().st_mtime == 0


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_named_and_left_as_it_is(path, content):
    write(path, content)
    before = path.read_bytes()
    for act in (
        progress_file.solved,
        lambda: progress_file.mark_solved("closures.guess"),
    ):
        with pytest.raises(ValueError, match=r"^progress: .*progress\.json .*away to"):
            act()
    with pytest.raises(ValueError, match=r"^progress: .*progress\.json "):
        progress.bring_back(saved(path.with_name("good.json"), "closures.watch"))
    assert path.read_bytes() == before
    assert {p.name for p in path.parent.iterdir()} == {path.name, "good.json"}


def test_a_write_that_fails_leaves_the_old_file_and_no_other(path, full_disk):
    saved(path, "closures.guess")
    with pytest.raises(OSError, match="No space left"):
        progress_file.mark_solved("closures.watch")
    assert progress_file.solved() == {"closures.guess"}
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("moment", ["os.fdopen", "os.replace"])
def test_a_process_killed_in_the_middle_leaves_the_old_file(path, moment):
    progress_file.mark_solved("closures.guess")
    before = path.read_bytes()
    script = f"""
import os, unittest.mock
from course_lib.lessons import progress_file
die = lambda *arguments, **options: os._exit(9)
unittest.mock.patch({moment!r}, die).start()
progress_file.mark_solved("closures.watch")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parents[1], check=False
    )
    assert done.returncode == 9
    assert path.read_bytes() == before


def test_bring_back_adds_to_what_is_here(path):
    saved(path, "closures.guess", "closures.watch")
    other = saved(path.with_name("other.json"), "closures.watch", "closures.live")
    assert progress.bring_back(str(other)) == "Brought back: 1. Here before: 2."
    assert progress_file.solved() == {
        "closures.guess",
        "closures.watch",
        "closures.live",
    }


def test_bring_back_begins_a_file_where_there_is_none(path):
    other = saved(path.with_name("other.json"), "closures.guess")
    progress.bring_back(other)
    assert progress_file.solved() == {"closures.guess"}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_bring_back_refuses_a_damaged_file_and_keeps_what_is_here(path, content):
    saved(path, "closures.guess")
    write(path.with_name("other.json"), content)
    with pytest.raises(ValueError, match=r"^progress: .*other\.json "):
        progress.bring_back(path.with_name("other.json"))
    assert progress_file.solved() == {"closures.guess"}


def test_bring_back_says_where_to_put_a_file_that_is_missing(path):
    with pytest.raises(ValueError, match=r"no file .*lost\.json\. Upload it beside"):
        progress.bring_back(path.with_name("lost.json"))
    assert not path.exists()


def test_the_overview_counts_the_solved_exercises_of_each_lesson(path, monkeypatch):
    lessons = {"closures": ["guess", "watch"], "regularization": ["by_hand"]}
    monkeypatch.setattr(progress, "lessons", lambda: lessons)
    saved(path, "closures.watch", "elsewhere.guess")
    assert progress.overview() == (
        "closures       1 of 2  watch\n"  # names line up
        "regularization 0 of 1"
    )


def test_a_quiz_is_named_in_the_overview_and_not_counted(path, monkeypatch):
    lessons = {"closures": ["guess", "watch"], "regularization": ["by_hand"]}
    monkeypatch.setattr(progress, "lessons", lambda: lessons)
    saved(path, "closures.watch", "closures.quiz", "regularization.quiz")
    assert progress.overview() == (
        "closures       1 of 2, quiz done  watch\nregularization 0 of 1, quiz done"
    )
