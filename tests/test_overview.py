"""docs/results/lessons.md says of each lesson what its notebook and its header say."""

import re

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from course_lib.lessons import overview
from course_lib.lessons.execute import FOLDER

NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_table_has_the_counts_and_the_header_of_the_lesson(path):
    row, notebook = overview.read()[path.stem], nbformat.read(path, as_version=4)
    counts = overview.count(notebook)
    assert {name: int(row[name]) for name in counts} == counts
    measured = r"about (\d+) seconds and ([\d.]+) GB"
    seconds, gigabytes = re.search(measured, notebook.cells[0].source).groups()
    assert 0 <= int(seconds) - int(row["seconds"]) <= 5  # rounded up
    assert 0 <= float(gigabytes) - float(row["GB"]) <= 0.11


def test_the_table_has_no_other_rows():
    assert list(overview.read()) == [path.stem for path in NOTEBOOKS]


def lesson():
    stub, cell = new_code_cell("f = ..."), new_code_cell("explore(f)")
    stub.metadata.tags = ["exercise:f"]
    picture = {"text/html": '<img alt="A"><img alt="B">', "text/plain": "A"}
    shown = [{"text/plain": "Controls: n. They move."}, picture]
    cell.outputs = [new_output("display_data", data=data) for data in shown]
    words = new_markdown_cell("Two words. *Guess first.* Guess\nFirst")
    return new_notebook(cells=[words, stub, cell])


def test_counts():
    assert overview.count(lesson()) == {
        "words": 6,
        "code cells": 2,
        "pictures": 2,
        "widgets": 1,
        "exercises": 1,
        "guesses": 1,
    }


def test_a_row_is_replaced_and_the_others_stay(tmp_path):
    page = tmp_path / "lessons.md"
    for name, seconds in (("02_b", 7.6), ("01_a", 1.0), ("02_b", 2.4)):
        path = tmp_path / f"{name}.ipynb"
        nbformat.write(lesson(), path)
        overview.record({path: (seconds, 432)}, page)
    rows = overview.read(page)
    assert list(rows) == ["01_a", "02_b"]
    assert (rows["02_b"]["seconds"], rows["02_b"]["GB"]) == ("2", "0.43")
    assert rows["02_b"]["words"] == "6"
