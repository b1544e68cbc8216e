"""What a teacher calls: the table of a class, and the lessons without solutions."""

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from course_lib import __main__ as commands
from course_lib.lessons import class_copy, class_table, working_copy

KNOWN = {"closures": ["guess", "watch"], "rso": ["best"]}


@pytest.fixture(autouse=True)
def short_course(monkeypatch):
    monkeypatch.setattr(class_table, "lessons", lambda: KNOWN)


def saved(path, *names):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"format": 1, "solved": names}))
    return str(path)


@pytest.fixture
def files(tmp_path):
    """Three learners: two files by name, and one in a folder of its own."""
    return [
        saved(tmp_path / "Zoë.json", "closures.guess", "rso.best"),
        saved(tmp_path / "ada.json", "closures.guess", "closures.watch", "rso.quiz"),
        saved(tmp_path / "Max" / "course_progress.json"),
    ]


TABLE = """\
| learner | closures (of 2) | rso (of 1) | all (of 3) | quizzes (of 2) |
| --- | ---: | ---: | ---: | ---: |
| ada | 2 | 0 | 2 | 1 |
| Max | 0 | 0 | 0 | 0 |
| Zoë | 1 | 1 | 2 | 0 |
| all learners | 3 | 1 | 4 | 1 |
"""


def test_the_table_is_printed(files, capsys):
    assert commands.main(["class", *files]) == 0
    assert capsys.readouterr().out == TABLE


def test_a_folder_stands_for_its_files(files, tmp_path, capsys):
    assert commands.main(["class", str(tmp_path)]) == 0
    assert capsys.readouterr().out == TABLE


def test_it_is_written_as_markdown_or_for_a_spreadsheet(files, tmp_path, capsys):
    for name in ("class.md", "class.csv"):
        assert class_table.main(files, str(tmp_path / name)) == 0
    assert (tmp_path / "class.md").read_text(encoding="utf-8") == TABLE
    text = (tmp_path / "class.csv").read_text(encoding="utf-8")
    head, *rows = csv.reader(io.StringIO(text))
    counted = ["closures (of 2)", "rso (of 1)", "all (of 3)", "quizzes (of 2)"]
    assert head == ["learner", *counted]
    assert rows[0] == ["ada", "2", "0", "2", "1"]
    assert "class.csv: 3 learners." in capsys.readouterr().out


def test_a_column_for_each_exercise(files, capsys):
    assert commands.main(["class", "--exercises", *files]) == 0
    head, _, ada, *_, sums = capsys.readouterr().out.splitlines()
    listed = "closures.guess | closures.watch | rso.best"
    assert head == f"| learner | {listed} | all (of 3) | quizzes (of 2) |"
    assert ada == "| ada | 1 | 1 | 0 | 2 | 1 |"
    assert sums == "| all learners | 2 | 1 | 1 | 4 | 1 |"


def test_two_files_of_one_learner_are_added_up(tmp_path):
    home = saved(tmp_path / "home" / "ada.json", "closures.guess", "closures.watch")
    lab = saved(tmp_path / "lab" / "ada.json", "closures.guess", "rso.best")
    found, _ = class_table.collect([home, lab])
    assert found == {"ada": {"closures.guess", "closures.watch", "rso.best"}}


def test_exercises_that_the_course_has_not_are_not_counted(tmp_path):
    found, _ = class_table.collect([saved(tmp_path / "ada.json", "old.gone")])
    assert class_table.table(found, KNOWN)[1] == ["ada", "0", "0", "0", "0"]


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b'{"solved": ["clo'])
def test_a_bad_file_is_named_and_the_others_are_shown(files, tmp_path, content, capsys):
    (tmp_path / "bad.json").write_bytes(content)
    assert class_table.main([*files, str(tmp_path / "bad.json")]) == 1
    out, err = capsys.readouterr()
    assert out == TABLE
    assert err.count("\n") == 1
    assert str(tmp_path / "bad.json") in err
    assert err.endswith("Ask the learner for it again.\n")


def test_a_missing_file_is_named(files, tmp_path, capsys):
    assert class_table.main([*files, str(tmp_path / "lost.json")]) == 1
    assert "lost.json" in capsys.readouterr().err


@pytest.mark.parametrize("paths", [["lost.json"], []])
def test_without_any_file_nothing_is_written(tmp_path, paths, capsys):
    out = tmp_path / "class.csv"
    out.write_text("the one of last week")
    assert class_table.main(paths, str(out)) == 1
    assert out.read_text() == "the one of last week"
    where = paths[0] if paths else "nothing"
    assert f"no progress file could be read in {where}." in capsys.readouterr().err


def test_a_disk_that_is_full_leaves_the_old_table(files, tmp_path, full_disk, capsys):
    out = tmp_path / "class.csv"
    out.write_text("the one of last week")
    assert class_table.main(files, str(out)) == 1
    said, err = capsys.readouterr()
    assert said == ""
    assert f"{out} can't be written (No space left on device)" in err
    assert out.read_text() == "the one of last week"
    assert not list(tmp_path.glob(".unfinished*"))


@pytest.mark.parametrize("place", ["missing/class.csv", "Max.md", "ada.json/a.csv"])
def test_a_place_where_nothing_can_be_written_is_named(files, tmp_path, place, capsys):
    (tmp_path / "Max.md").mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert class_table.main(files, str(tmp_path / place)) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"class: {tmp_path / place} can't be written (")
    assert err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_another_kind_of_file_is_refused(files, tmp_path, capsys):
    assert class_table.main(files, str(tmp_path / "class.xlsx")) == 1
    assert "wanted a .csv or .md file" in capsys.readouterr().err
    assert not (tmp_path / "class.xlsx").exists()


def test_a_name_is_no_formula_and_no_column(tmp_path):
    found = {"=1+2": set(), "a|b, c": set()}
    rows = class_table.table(found, KNOWN)
    assert "\n'=1+2,0,0,0,0\n" in class_table.comma_separated(rows)
    assert '\n"a|b, c",0,0,0,0\n' in class_table.comma_separated(rows)
    assert r"| a\|b, c | 0 |" in class_table.markdown(rows)


def test_the_command_knows_the_lessons_of_the_course(tmp_path):
    path = saved(tmp_path / "ada.json", "closures.guess", "start_here.count")
    command = [sys.executable, "-m", "course_lib", "class", path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    head, _, ada, _ = done.stdout.splitlines()
    names = re.findall(r"(\w+) \(of \d+\)", head)
    assert names == [n[3:] for n in working_copy.names()] + ["all", "quizzes"]
    assert ada.startswith("| ada | 1 | 1 | 0 |")


# The lessons without solutions


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("class") / "new" / "lessons"
    assert class_copy.export(folder) == len(working_copy.names())
    return folder


def read(folder, name):
    return nbformat.read(folder / "notebooks" / f"{name}.ipynb", as_version=4)


def tags(notebook, kind):
    every = [tag for c in notebook.cells for tag in c.metadata.get("tags", ())]
    return [tag.partition(":")[2] for tag in every if tag.startswith(f"{kind}:")]


@pytest.mark.parametrize("name", working_copy.names())
def test_an_exported_lesson_lacks_its_solutions_and_nothing_else(exported, name):
    before, after = read(working_copy.CHECKOUT, name), read(exported, name)
    solutions = [c for c in before.cells if "solution:" in str(c.metadata.get("tags"))]
    assert solutions
    kept = [c.source for c in before.cells if c not in solutions]
    assert [c.source for c in after.cells] == kept
    assert tags(after, "solution") == []
    assert tags(after, "exercise") == tags(after, "check") == tags(before, "exercise")
    code = [c for c in after.cells if c.cell_type == "code"]
    assert all(c.outputs == [] and c.execution_count is None for c in code)
    nbformat.validate(after)


def test_links_to_the_repositorys_files_lead_to_copies(exported):
    links = 0
    for name in working_copy.names():
        for cell in read(exported, name).cells:
            for path in re.findall(r"\]\((\.\./[\w./-]+)", cell.source):
                assert (exported / "notebooks" / path).resolve().is_file(), path
                links += 1
    assert links > 20
    assert (exported / "docs/results/rso/mnist_5_cycles/reports.csv").is_file()


def test_a_folder_that_is_there_is_left_as_it_is(tmp_path, capsys):
    (tmp_path / "mine").touch()
    assert commands.main(["export", str(tmp_path)]) == 1
    assert "is there already. Name a new folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_place_where_no_folder_can_be_made_is_named(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert class_copy.main(str(tmp_path / "file" / "new")) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"export: {tmp_path / 'file' / 'new'} can't be made (")
    assert err.count("\n") == 1


def test_an_export_that_fails_leaves_nothing(tmp_path, monkeypatch, capsys):
    def full(*paths):
        raise OSError("No space left on device")

    monkeypatch.setattr(nbformat, "write", full)
    assert class_copy.main(str(tmp_path / "course" / "spring" / "new")) == 1
    assert "No space left" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_package_without_lessons_says_where_they_are(tmp_path):
    with pytest.raises(ValueError, match=r"no lessons in .*clone it"):
        class_copy.export(tmp_path / "new", checkout=Path(tmp_path))
