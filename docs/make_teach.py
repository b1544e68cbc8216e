"""Fill the tables of docs/teach.md and README.md, and write docs/mistakes.md.

All come from what the tests hold true: the headers of the lessons, their measured
seconds and memory, and the wrong answers that the checks must name. Called by
`make notebooks`; alone: `python docs/make_teach.py`.
"""

import importlib
import math
import os
import re
import sys
import tempfile
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from course_lib.files import replacing  # noqa: E402
from course_lib.lessons import overview  # noqa: E402
from course_lib.lessons.exercises import lessons  # noqa: E402
from course_site.lessons import describe  # noqa: E402
from tests.desk import Desk, exercises_of  # noqa: E402

README = ROOT / "README.md"
TEACH, MISTAKES = ROOT / "docs" / "teach.md", ROOT / "docs" / "mistakes.md"
NOTEBOOKS = ROOT / "notebooks"
SERVER = 0.1  # GB of one JupyterLab without kernels
PATIENCE = 3  # minutes that a class may wait when all press Run All at once
BLOCK = r"(<!-- table: {} -->\n).*?(<!-- end -->)"


def header(path):
    """Return a lesson's title, minutes, objectives and what to know before."""
    notebook = nbformat.read(path, as_version=4)
    lesson, source = describe(path.stem, notebook, {}), notebook.cells[0].source
    (before,) = re.findall(r"^\*\*Before.*?\*\*:? *(.+)$", source, re.MULTILINE)
    points = re.findall(r"^- (.+)[;.]$", source, re.MULTILINE)
    return lesson.title, lesson.minutes, points, before


def capital(text):
    return text[:1].upper() + text[1:]


def linked(text):
    """Return a lesson's text with its links as seen from docs/."""
    return re.sub(r"\]\((\d\d_\w+\.ipynb)\)", r"](../notebooks/\1)", text)


def lessons_table():
    lines = ["| lesson | minutes | before | after it, they can |", "|---|---:|---|---|"]
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        title, minutes, points, before = header(path)
        name = f"[{path.stem[:2]} {title}](../notebooks/{path.name})"
        goals = "<br>".join(f"• {capital(point)}" for point in points)
        lines.append(f"| {name} | {minutes} | {linked(capital(before))} | {goals} |")
    return lines


def measured():
    """Return what a run of each lesson takes: sorted seconds, and the most GB."""
    rows = overview.read().values()
    seconds = sorted(int(row["seconds"]) for row in rows)
    return seconds, max(float(row["GB"]) for row in rows)


def machines_table():
    """Return memory and cores for classes, from the measured lessons."""
    seconds, memory = measured()
    lines = [
        "| people | memory, one lesson each | memory, three lessons each | cores |",
        "|---:|---:|---:|---:|",
    ]
    for people in (1, 30, 300):
        one, three = (math.ceil(people * (SERVER + n * memory)) for n in (1, 3))
        cores = math.ceil(people * seconds[-1] / (60 * PATIENCE))
        lines.append(f"| {people} | {one} GB | {three} GB | {cores} |")
    return lines


def runs():
    """Return the sentence on what a run of a lesson takes."""
    seconds, memory = measured()
    rows = overview.read().values()
    dates, versions = ({row[k] for row in rows} for k in ("date", "versions"))
    torch = sorted({re.search(r"torch ([\d.]*\d)", text)[1] for text in versions})
    return [
        f"To run all of a lesson takes {seconds[0]} to {seconds[-1]} seconds and at",
        f"most {math.ceil(memory * 10) / 10:.1f} GB on {overview.QUIET}",
        "([measured](docs/results/lessons.md)",
        f"on {max(dates)} with PyTorch {' and '.join(torch)}).",
    ]


TABLES = {
    TEACH: {"lessons": lessons_table, "machines": machines_table},
    README: {"runs": runs},
}


def filled(path, text=None):
    """Return the page with its tables as they are today."""
    text = path.read_text(encoding="utf-8") if text is None else text
    for name, table in TABLES[path].items():
        rows = "\n".join(table())
        pattern = re.compile(BLOCK.format(name), re.DOTALL)
        text, count = pattern.subn(lambda m, r=rows: f"{m[1]}{r}\n{m[2]}", text)
        if count != 1:
            raise ValueError(f"{path.name}: wanted one table {name}, found {count}.")
    return text


def mistakes():
    """Return the page of typical mistakes, by lesson and exercise."""
    lines = [
        "# Typical mistakes",
        "",
        "What the checks say to the wrong answers that the tests know, exercise by",
        "exercise: most are mistakes that people make. Written by `make notebooks`;",
        "[how to teach the course](teach.md) says what to do with it.",
    ]
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        lesson, notebook = path.stem[3:], nbformat.read(path, as_version=4)
        module = importlib.import_module(f"course_lib.lessons.{lesson}")
        wrong = importlib.import_module(f"tests.wrong_answers.{lesson}").WRONG
        lines += ["", f"## {path.stem[:2]} {header(path)[0]}"]
        desk = Desk(notebook)
        for name in exercises_of(module):
            verdicts = (desk.check(name, answer) for answer, _ in wrong[name])
            said = dict.fromkeys(" ".join(v.message.split()) for v in verdicts)
            lines += ["", f"### {lesson}: {name}", "", *(f"- {text}" for text in said)]
    return "\n".join([*lines, ""])


def write(path, text):
    with replacing(path) as stream:
        stream.write(text.encode())


def main():
    with tempfile.TemporaryDirectory() as private:
        os.environ["COURSE_PROGRESS"] = str(Path(private, "progress.json"))
        os.chdir(NOTEBOOKS)
        page = mistakes()
        os.chdir(ROOT)
    write(MISTAKES, page)
    for path in TABLES:
        write(path, filled(path))
    print(f"{len(lessons())} lessons: {MISTAKES}, {', '.join(map(str, TABLES))}")


if __name__ == "__main__":
    main()
