"""The tables of lessons, in README and in lesson 00, are those of the notebooks."""

import importlib.util
import re
from pathlib import Path
from typing import NamedTuple

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


class Row(NamedTuple):
    file: str  # 01_closures.ipynb
    title: str
    question: str
    minutes: str


def cells(path):
    return [cell.source for cell in nbformat.read(path, as_version=4).cells]


def in_readme(text):
    row = r"^\| \[\d\d\]\(notebooks/(\S+)\) \| (.+?) \| (.+?) \| (\d+) \|$"
    return [Row(*found) for found in re.findall(row, text, re.MULTILINE)]


def in_lesson_00(text):
    row = r"^\| \[(\d\d) (.+?)\]\((\S+)\) \| (.+?) \|$"
    found = re.findall(row, text, re.MULTILINE)
    assert all(file.startswith(number) for number, _, file, _ in found)
    return [(file, title, question) for _, title, file, question in found]


def of_the_notebook(path):
    header = cells(path)[0]
    (title,) = re.findall(r"^# (.+)$", header, re.MULTILINE)
    (minutes,) = re.findall(r"^\*\*Time.*?(\d+) minutes", header, re.MULTILINE)
    return path.name, title, minutes


def differences(readme, paths):
    """Return the rows that only README has, or only the notebooks."""
    shown = {(row.file, row.title, row.minutes) for row in in_readme(readme)}
    return shown ^ {of_the_notebook(path) for path in paths}


README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_readme_lists_the_notebooks_in_order():
    assert differences(README, NOTEBOOKS) == set()
    assert [row.file for row in in_readme(README)] == [p.name for p in NOTEBOOKS]


def test_lesson_00_lists_the_other_lessons_as_readme_does():
    rows = [(row.file, row.title, row.question) for row in in_readme(README)]
    assert in_lesson_00("\n".join(cells(NOTEBOOKS[0]))) == rows[1:]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_each_lesson_has_a_module_and_wrong_answers_of_its_name(path):
    name = path.stem[3:]
    assert importlib.util.find_spec(f"course_lib.lessons.{name}") is not None
    assert (ROOT / "tests/wrong_answers" / f"{name}.py").is_file()


def test_a_lesson_that_is_not_listed_or_renamed_is_noticed():
    first, *others = NOTEBOOKS
    assert differences(README, others) == {of_the_notebook(first)}
    renamed = README.replace("| Start here |", "| Begin here |")
    assert len(differences(renamed, NOTEBOOKS)) == 2
