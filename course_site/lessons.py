"""What the pages say of a lesson: its title, question, minutes, and what comes before.

Nothing of it is written here: titles, minutes and prerequisites are those of the
notebooks' first cells, the questions those of README's table.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from course_lib.lessons import working_copy
from course_site import ROOT

_TITLE = re.compile(r"^# (.+)$", re.M)
_MINUTES = re.compile(r"^\*\*Time.*?(\d+) minutes", re.M)
_BEFORE = re.compile(r"^\*\*Before.*$", re.M)
_LESSON = re.compile(r"[Ll]esson (\d\d)")
_ROW = re.compile(r"^\| \[(\d\d)\]\(notebooks/\S+\) \| .+? \| (.+?) \| \d+ \|$", re.M)
FIRST = "00"  # it teaches what a lesson without prerequisites takes for granted


@dataclass(frozen=True)
class Lesson:
    """One lesson, as its notebook and README describe it."""

    name: str  # 01_closures
    title: str
    question: str
    minutes: int
    after: tuple[str, ...]  # numbers of lessons to read before, such as "04"

    @property
    def number(self) -> str:
        """Return its two digits."""
        return self.name[:2]


def all_lessons(root: Path = ROOT) -> list[Lesson]:
    """Return the lessons in order."""
    questions = dict(_ROW.findall((root / "README.md").read_text(encoding="utf-8")))
    folder = root / "notebooks"
    return [
        describe(name, nbformat.read(folder / f"{name}.ipynb", as_version=4), questions)
        for name in working_copy.names(folder)
    ]


def describe(name: str, notebook: NotebookNode, questions: dict[str, str]) -> Lesson:
    """Return what a notebook's first cell says.

    Raises:
        ValueError: it has no title or no minutes.
    """
    header = notebook.cells[0].source if notebook.cells else ""
    title, minutes = _TITLE.search(header), _MINUTES.search(header)
    if not title or not minutes:
        raise ValueError(
            f"{name}: the first cell has no title or no time; wanted '# Title' and "
            "'**Time** about 60 minutes'."
        )
    number = name[:2]
    return Lesson(
        name=name,
        title=title[1],
        question=questions.get(number, ""),
        minutes=int(minutes[1]),
        after=_prerequisites(number, header),
    )


def _prerequisites(number: str, header: str) -> tuple[str, ...]:
    """Return the earlier lessons that the line "Before you start" names, or the first.

    A lesson needs no arrow from 00 beside one from a lesson that itself needs 00.
    """
    if number == FIRST:
        return ()
    line = _BEFORE.search(header)
    named = sorted({n for n in _LESSON.findall(line[0] if line else "") if n < number})
    return tuple(n for n in named if n != FIRST) or (FIRST,)
