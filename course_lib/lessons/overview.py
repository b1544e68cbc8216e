"""The lessons in numbers: docs/results/lessons.md, which `make notebooks` writes."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from datetime import date
from pathlib import Path

import nbformat
import torch
from nbformat import NotebookNode

from course_lib.device import cpu_name
from course_lib.files import replacing

PAGE = Path(__file__).resolve().parents[2] / "docs" / "results" / "lessons.md"
QUIET = "two quiet cores"  # where the seconds are true; the headers say so
COUNTS = ("words", "code cells", "pictures", "widgets", "exercises", "guesses")
_MEASURED = ("seconds", "GB", "date", "versions")
_ALIGNED = {"date": "---|", "versions": "---|"}  # numbers stand at the right


def count(notebook: NotebookNode) -> dict[str, int]:
    """Return how much there is of each of COUNTS.

    Words are those of all text cells, solutions included; pictures are the stored
    ones, also those under a widget.
    """
    text = [c.source for c in notebook.cells if c.cell_type == "markdown"]
    code = [c for c in notebook.cells if c.cell_type == "code"]
    shown = [o.get("data", {}) for c in code for o in c.outputs]
    tags = [tag for c in notebook.cells for tag in c.metadata.get("tags", ())]
    return {
        "words": sum(len(source.split()) for source in text),
        "code cells": len(code),
        "pictures": sum(data.get("text/html", "").count("<img") for data in shown),
        "widgets": sum(
            data.get("text/plain", "").startswith("Controls: ") for data in shown
        ),
        "exercises": sum(tag.startswith("exercise:") for tag in tags),
        "guesses": sum(len(re.findall("guess first", s, re.I)) for s in text),
    }


def record(measured: Mapping[Path, tuple[float, int]], page: Path = PAGE) -> None:
    """Write the rows of these lessons, and keep those of the others.

    Args:
        measured: path of a stored notebook -> seconds of computing, peak MB.
        page: the file to write.
    """
    rows = read(page) if page.exists() else {}
    for path, (seconds, megabytes) in measured.items():
        counts = count(nbformat.read(path, as_version=4))
        versions = f"Python {platform.python_version()}, torch {torch.__version__}"
        rows[path.stem] = {
            **{name: str(number) for name, number in counts.items()},
            "seconds": f"{seconds:.0f}",
            "GB": f"{megabytes / 1000:.2f}",
            "date": f"{date.today()}",
            "versions": f"{versions}, {cpu_name()}",
        }
    lines = [
        "# The lessons in numbers\n",
        "Written by `make notebooks`. Seconds are those that a full run computes, with",
        f"its child processes: it takes about as long on {QUIET}, one for the",
        "lesson and one for JupyterLab. GB is the kernel's peak.",
    ]
    for columns in COUNTS, _MEASURED:
        lines += ["", f"| lesson | {' | '.join(columns)} |"]
        lines.append("|---|" + "".join(_ALIGNED.get(c, "---:|") for c in columns))
        for name in sorted(rows):
            cells = [rows[name].get(column, "") for column in columns]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    with replacing(page) as stream:
        stream.write(("\n".join(lines) + "\n").encode())


def read(page: Path = PAGE) -> dict[str, dict[str, str]]:
    """Return the rows of the page: {"01_closures": {"words": "2100", ...}, ...}."""
    rows: dict[str, dict[str, str]] = {}
    head: list[str] = []
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("| "):
            name, *cells = [cell.strip() for cell in line.strip("|").split("|")]
            if name == "lesson":
                head = cells
            else:
                rows.setdefault(name, {}).update(zip(head, cells, strict=True))
    return rows
