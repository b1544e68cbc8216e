"""`python -m course_lib export`: the lessons for a class, without their solutions.

    FOLDER/notebooks/    the lessons: no solutions, no outputs
    FOLDER/docs/         what they show and link to

The learners need the library too: the package, or this repository.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from course_lib.files import made
from course_lib.lessons.working_copy import CHECKOUT, STORED, cleared, required

_LINK = re.compile(r"\]\(\.\./([\w./-]+)")
_SHOWN = "docs/results"  # pages and measurements that code cells read as well


def main(folder: str) -> int:
    """Make the folder and say so; return the exit status."""
    try:
        count = export(Path(folder))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(
            f"export: {folder} can't be made ({error}). Name a new folder in a place "
            "where you can write.",
            file=sys.stderr,
        )
        return 1
    print(f"{count} lessons without solutions: {Path(folder) / 'notebooks'}")
    return 0


def export(folder: Path, checkout: Path = CHECKOUT) -> int:
    """Write the lessons to a new folder, whole or not at all; return their number.

    Raises:
        ValueError: the folder is there already, or there are no lessons to export.
        OSError: it can't be made there.
    """
    stored = checkout / STORED.name
    lessons = required("export", stored)
    if folder.exists():
        raise ValueError(
            f"export: {folder} is there already. Name a new folder, or remove it."
        )
    above = folder.absolute().parent
    with made(above), tempfile.TemporaryDirectory(dir=above) as private:
        new = Path(private, "new")
        shutil.copytree(checkout / _SHOWN, new / _SHOWN)
        (new / "notebooks").mkdir()
        for name in lessons:
            notebook = nbformat.read(stored / f"{name}.ipynb", as_version=4)
            for path in linked(notebook):
                _copy(checkout / path, new / path)
            nbformat.write(without_solutions(notebook), new / f"notebooks/{name}.ipynb")
        os.rename(new, folder)
    return len(lessons)


def without_solutions(notebook: NotebookNode) -> NotebookNode:
    """Remove the solutions, and the outputs, which answer the guesses."""
    notebook.cells = [cell for cell in notebook.cells if not _is_solution(cell)]
    return cleared(notebook)


def _is_solution(cell: NotebookNode) -> bool:
    return any(tag.startswith("solution:") for tag in cell.metadata.get("tags", ()))


def linked(notebook: NotebookNode) -> set[str]:
    """Return the repository's files that the text links to, such as README.md."""
    texts = [c.source for c in notebook.cells if c.cell_type == "markdown"]
    return {path for text in texts for path in _LINK.findall(text)}


def _copy(source: Path, target: Path) -> None:
    if source.is_file() and not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
