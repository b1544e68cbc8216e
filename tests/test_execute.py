"""Stored notebooks: the same file from each run, and nothing of this machine in it."""

import json
import os
import re
import sys
import textwrap

import nbformat
import pytest
from nbformat.v4 import (
    new_code_cell,
    new_markdown_cell,
    new_notebook,
    new_output,
)

from course_lib.lessons import execute

HEADER = "# Measure\n\n**A full run** takes a while.\n\n**Before** it, nothing."
SOURCES = [
    """
    import json, os, matplotlib.pyplot as plt
    from course_lib.lessons import explore, progress_file, show
    """,
    """
    def draw(steps):
        fig, ax = plt.subplots()
        ax.plot([0, steps])
        return fig, f"{steps} steps."
    """,
    "picture = explore(draw, steps=(1, 9, 1))\npicture",
    "picture.set(steps=2)",
    "show(draw(3)[0], alt='Three steps.')",
    """
    progress_file.mark_solved("lesson.exercise")
    progress_file.solved()
    """,
    "os.environ['TQDM_DISABLE']",
    "json.loads('{')",
    "missing",
    "draw = 1",
    "draw = 1",
]
MAY_RAISE = {7, 8}


def lesson(sources=SOURCES, may_raise=MAY_RAISE):
    """A notebook as somebody saved it, with what an editor leaves in it."""
    cells = [new_markdown_cell(HEADER)]
    for number, source in enumerate(sources):
        cell = new_code_cell(textwrap.dedent(source).strip())
        cell.metadata = {"collapsed": True, "execution": {"iopub.status.busy": "now"}}
        if number in may_raise:
            cell.metadata["tags"] = ["raises-exception"]
        cells.append(cell)
    metadata = {"kernelspec": {"display_name": "mine", "name": "mine-3.9"}, "a": 1}
    return new_notebook(cells=cells, metadata=metadata)


def write(path, notebook):
    nbformat.write(notebook, path)
    return path


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """The same lesson, stored from two runs in two folders."""
    folder = tmp_path_factory.mktemp("lessons")
    pair = []
    with pytest.MonkeyPatch.context() as patch:
        seconds, run = iter([3.2, 3.9]), execute.run
        patch.setattr(execute, "run", lambda *given: (next(seconds), run(*given)[1]))
        patch.delenv("TQDM_DISABLE", raising=False)
        mine = folder / "mine.json"
        mine.write_text('{"format": 1, "solved": ["my.exercise"]}')
        patch.setenv("COURSE_PROGRESS", str(mine))
        for name in ("one", "two"):
            (folder / name).mkdir()
            path = write(folder / name / "lesson.ipynb", lesson())
            measured = execute.store(path)
            pair.append((path, measured, nbformat.read(path, as_version=4)))
        assert "TQDM_DISABLE" not in os.environ
    return pair


@pytest.fixture
def notebook(stored):
    return stored[0][2]


def text_of(cell):
    return [o.get("text") or o.get("data", {}).get("text/plain") for o in cell.outputs]


def test_two_runs_give_the_same_file(stored):
    (first, measured, _), (second, *_) = stored
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes().endswith(b"}\n")
    assert [path.name for path in first.parent.iterdir()] == ["lesson.ipynb"]
    assert measured[0] == pytest.approx(3.2)


def test_each_cell_keeps_what_it_printed_itself(notebook):
    _, view, picture = notebook.cells[3].outputs
    assert view.data["text/plain"].startswith("Controls: steps.")
    assert picture.data["text/plain"] == "5 steps."  # not 2, which a later cell set
    assert text_of(notebook.cells[4]) == ["'2 steps.'"]
    assert text_of(notebook.cells[5]) == ["Three steps."]


def test_neither_a_bar_nor_the_learners_progress_is_stored(notebook):
    assert text_of(notebook.cells[6]) == ["{'lesson.exercise'}"]
    assert text_of(notebook.cells[7]) == ["'1'"]


def test_cells_are_numbered_from_one_and_the_probe_is_gone(notebook):
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(SOURCES) + 1))
    assert len(notebook.cells) == len(SOURCES) + 1


def test_the_header_states_what_was_measured(notebook, stored):
    megabytes = stored[0][1][1]
    assert 50 < megabytes < 5000
    header = notebook.cells[0].source
    assert header.startswith("# Measure\n\n**A full run** takes about 4 seconds and ")
    gigabytes = float(re.search(r"([\d.]+) GB of memory on two quiet", header)[1])
    assert 0 <= gigabytes * 1000 - megabytes < 100
    assert header.endswith("\n\n**Before** it, nothing.")


def test_metadata_is_reduced_to_what_a_reader_needs(notebook):
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"
    tags = [cell.metadata.get("tags") for cell in notebook.cells if cell.metadata]
    assert tags == [["raises-exception"]] * 2
    assert all(set(cell.metadata) <= {"tags"} for cell in notebook.cells)


def test_ids_are_unique_and_depend_on_the_source_alone(notebook):
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    assert ids[-1] == f"{ids[-2]}-2"  # two cells of one source
    assert all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", cell_id) for cell_id in ids)
    shuffled = new_notebook(cells=[notebook.cells[4], notebook.cells[2]])
    execute.tidy(shuffled)
    assert [cell.id for cell in shuffled.cells] == [ids[4], ids[2]]


def test_words_and_code_of_one_text_differ_in_id():
    notebook = new_notebook(cells=[new_markdown_cell("a"), new_code_cell("a")])
    execute.tidy(notebook)
    first, second = (cell.id for cell in notebook.cells)
    assert first != second


def test_tidying_twice_changes_nothing(notebook):
    before = nbformat.writes(notebook)
    execute.tidy(notebook)
    assert nbformat.writes(notebook) == before


def test_an_error_is_stored_with_the_frames_of_the_notebook_alone(notebook, stored):
    (error,) = notebook.cells[8].outputs
    *head, frame, rest, last = (
        re.sub(r"\x1b\[[\d;]*m", "", t) for t in error.traceback
    )
    assert "".join(head).endswith("Traceback (most recent call last)")
    assert frame.startswith("Cell In[8], line 1\n----> 1 json.loads('{')")
    assert re.fullmatch(r"\(\.\.\. frames inside the libraries: \d \.\.\.\)", rest)
    assert last == f"JSONDecodeError: {error.evalue}"
    content = stored[0][0].read_text()
    for path in (str(execute.FOLDER.parent), sys.prefix, "decoder.py", "ipykernel_"):
        assert path not in content


def test_an_error_without_inner_frames_is_stored_as_it_is():
    traceback = [
        "NameError  Traceback",
        "Cell In[1], line 1",
        "NameError: no File here",
    ]
    output = new_output("error", ename="NameError", evalue="", traceback=traceback)
    execute.tidy(new_notebook(cells=[new_code_cell("x", outputs=[output])]))
    assert output.traceback == traceback


def test_a_missing_name_is_explained_below_its_error(notebook):
    error, hint = notebook.cells[9].outputs
    assert error.ename == "NameError"
    assert hint.text.startswith("If a cell above makes 'missing', run it first")


@pytest.mark.parametrize(
    ("measured", "sentence"),
    [
        ((3.2, 401), "about 4 seconds and 0.5 GB"),
        ((9.1, 400), "about 10 seconds and 0.4 GB"),
        ((10.2, 1101), "about 15 seconds and 1.2 GB"),
    ],
)
def test_what_was_measured_is_rounded_up(measured, sentence):
    notebook = new_notebook(cells=[new_markdown_cell(HEADER)])
    for _ in range(2):  # the second time it replaces its own sentence
        execute.tidy(notebook, measured)
    words = notebook.cells[0].source
    assert words == HEADER.replace(
        "takes a while.",
        f"takes {sentence} of memory on two quiet cores "
        "([measured](../docs/results/lessons.md)).",
    )


def test_a_failing_cell_leaves_the_file_untouched_and_the_rest_goes_on(
    tmp_path, capsys
):
    bad = write(tmp_path / "bad.ipynb", lesson(["1 / 0"], ()))
    good = write(tmp_path / "good.ipynb", lesson(["1 + 1"], ()))
    before = bad.read_bytes()
    assert execute.main([bad, str(good)]) == 1
    assert bad.read_bytes() == before
    output = json.loads(good.read_text())["cells"][1]["outputs"][0]
    assert output["data"]["text/plain"] == ["2"]
    printed = capsys.readouterr()
    assert printed.err.startswith("bad.ipynb: not stored: ")
    assert "ZeroDivisionError" in printed.err
    assert re.fullmatch(r"good\.ipynb: \d+\.\d s, \d+ MB\n", printed.out)
    assert {path.name for path in tmp_path.iterdir()} == {"bad.ipynb", "good.ipynb"}


def test_without_names_all_notebooks_of_the_folder_are_stored(monkeypatch, tmp_path):
    for name in ("b.ipynb", "a.ipynb", "c.txt"):
        (tmp_path / name).touch()
    monkeypatch.setattr(execute, "FOLDER", tmp_path)
    done, rows = [], {}
    monkeypatch.setattr(execute, "store", lambda p: done.append(p.name) or (1.0, 1))
    monkeypatch.setattr(execute.overview, "record", rows.update)
    assert execute.main() == 0
    assert done == ["a.ipynb", "b.ipynb"]
    assert rows == {tmp_path / name: (1.0, 1) for name in done}


def test_output_that_no_test_compares_is_stored_once(tmp_path):
    cell = new_code_cell("import os; print(os.getpid())")
    cell.metadata.tags = ["nbval-ignore-output"]
    path = tmp_path / "lesson.ipynb"
    nbformat.write(new_notebook(cells=[new_markdown_cell("# Measure"), cell]), path)
    execute.store(path)
    first = nbformat.read(path, as_version=4).cells[1].outputs
    execute.store(path)  # another process, with another number
    assert first
    assert nbformat.read(path, as_version=4).cells[1].outputs == first
