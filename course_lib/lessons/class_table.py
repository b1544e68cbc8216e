"""`python -m course_lib class`: the progress files of a class as one table.

A learner's name is that of the file, or of its folder where the file is still called
course_progress.json.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from course_lib.files import replacing
from course_lib.lessons import progress_file
from course_lib.lessons.exercises import lessons
from course_lib.lessons.progress_file import QUIZ

Table = list[list[str]]  # the first row names the columns


def main(
    paths: Sequence[str], out: str | None = None, *, exercises: bool = False
) -> int:
    """Print the table, or write it; return 1 if a file could not be read or written.

    Args:
        paths: files, and folders in which every .json file is one.
        out: the file to write, .csv or .md; else Markdown is printed.
        exercises: a column for each exercise, and not for each lesson.
    """
    if out is not None and Path(out).suffix not in _FORMATS:
        return _complain(f"{out!r} is not written; wanted a .csv or .md file.")
    found, faults = collect(paths)
    for fault in faults:
        print(fault, file=sys.stderr)
    if not found:
        return _complain(
            f"no progress file could be read in {', '.join(paths) or 'nothing'}. Name "
            "the course_progress.json of each learner, or a folder of them."
        )
    made = table(found, lessons(), exercises=exercises)
    if out is None:
        print(markdown(made), end="")
        return 1 if faults else 0
    try:
        with replacing(out) as stream:
            stream.write(_FORMATS[Path(out).suffix](made).encode())
    except OSError as error:
        return _complain(
            f"{out} can't be written ({error.strerror or error}). Name a file in a "
            "folder that is there and your own."
        )
    print(f"{out}: {len(found)} learners.")
    return 1 if faults else 0


def _complain(words: str) -> int:
    print(f"class: {words}", file=sys.stderr)
    return 1


def collect(paths: Iterable[str | Path]) -> tuple[dict[str, set[str]], list[str]]:
    """Return {learner: solved exercises}, and a sentence for each file that is bad.

    Several files of one learner, from two machines say, are added up.
    """
    found: dict[str, set[str]] = {}
    faults = []
    for path in _files(paths):
        try:
            solved = progress_file.read(path, "Ask the learner for it again.")
        except ValueError as error:
            faults.append(str(error))
        else:
            found.setdefault(_learner(path), set()).update(solved)
    return found, faults


def _files(paths: Iterable[str | Path]) -> Iterable[Path]:
    for path in map(Path, paths):
        yield from sorted(path.rglob("*.json")) if path.is_dir() else [path]


def _learner(path: Path) -> str:
    if path.name != progress_file.NAME:
        return path.stem
    return path.absolute().parent.name


def table(
    found: Mapping[str, set[str]],
    known: Mapping[str, Sequence[str]],
    *,
    exercises: bool = False,
) -> Table:
    """Return a row for each learner, and a last one with the sums of the columns.

    Args:
        found: {learner: the solved exercises, as "lesson.exercise"}.
        known: {lesson: the names of its exercises}, in order.
        exercises: a column for each exercise, and not for each lesson.

    The last column counts the quizzes, which are no exercises.
    """
    groups = {
        lesson: {f"{lesson}.{n}" for n in names} for lesson, names in known.items()
    }
    if exercises:
        names = [f"{lesson}.{n}" for lesson, listed in known.items() for n in listed]
        groups = {name: {name} for name in names}
    every = set().union(*groups.values())
    quizzes = {f"{lesson}.{QUIZ}" for lesson in known}
    counted = (*groups.values(), every, quizzes)
    rows = [
        [learner, *(str(len(solved & group)) for group in counted)]
        for learner, solved in sorted(
            found.items(), key=lambda item: item[0].casefold()
        )
    ]
    columns = list(zip(*rows, strict=True))[1:]
    sums = ["all learners", *(str(sum(map(int, column))) for column in columns)]
    heads = [f"{name} (of {len(group)})" for name, group in groups.items()]
    if exercises:
        heads = list(groups)
    heads += [f"all (of {len(every)})", f"quizzes (of {len(quizzes)})"]
    return [["learner", *heads], *rows, sums]


def markdown(rows: Table) -> str:
    """Return the table in Markdown."""
    head, *rest = ([cell.replace("|", r"\|") for cell in row] for row in rows)
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, rule, *rest))


def comma_separated(rows: Table) -> str:
    """Return the table as CSV; a spreadsheet must not take a name for a formula."""
    text = io.StringIO()
    safe = ([f"'{c}" if c[:1] in "=+-@" and c else c for c in row] for row in rows)
    csv.writer(text, lineterminator="\n").writerows(safe)
    return text.getvalue()


_FORMATS = {".csv": comma_separated, ".md": markdown}
