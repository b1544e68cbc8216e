"""Draw each widget's pictures beforehand, by running the lessons.

A lesson runs in a fresh kernel up to its last widget, where `explore` records instead
of showing controls. What was drawn is kept in build/site-states, and drawn again only
when the lesson or the library has changed.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from course_lib.files import replacing
from course_lib.lessons import execute
from course_site import ROOT, STATES
from course_site.capture import MIME

WIDGET = "application/vnd.jupyter.widget-view+json"
_INSTALL = f"""import sys as _sys
_sys.path.insert(0, {str(ROOT)!r})
from course_site import capture as _capture
_capture.install()"""


def draw(path: Path, folder: Path = STATES) -> dict[str, list[dict[str, Any]]]:
    """Return what the widgets of a lesson show: {cell id: [states of a widget]}.

    A state's pictures are files in `folder`: "file" instead of "png".
    """
    place = folder / path.stem
    stored, key = place / "states.json", _key(path)
    if stored.exists():
        found = json.loads(stored.read_text(encoding="utf-8"))
        if found["key"] == key:
            return found["cells"]
    cells = _run(nbformat.read(path, as_version=4), path.parent)
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    for number, widget in enumerate(itertools.chain(*cells.values())):
        for setting, picture in enumerate(widget["pictures"]):
            name = f"{number}-{setting}.png"
            (place / name).write_bytes(base64.b64decode(picture.pop("png")))
            picture["file"] = f"{path.stem}/{name}"
    with replacing(stored) as stream:  # the last: what is not whole is drawn again
        stream.write(json.dumps({"key": key, "cells": cells}).encode())
    return cells


def has_widget(cell: NotebookNode) -> bool:
    """Return whether `explore` is shown by this cell, as it is stored."""
    return any(
        WIDGET in output.get("data", {})
        and output["data"].get("text/plain", "").startswith("Controls: ")
        for output in cell.get("outputs", ())
    )


def _run(notebook: NotebookNode, folder: Path) -> dict[str, list[dict[str, Any]]]:
    places = [i for i, cell in enumerate(notebook.cells) if has_widget(cell)]
    if not places:
        return {}
    notebook.cells = notebook.cells[: places[-1] + 1]
    notebook.cells.insert(0, nbformat.v4.new_code_cell(_INSTALL))
    execute.run(notebook, folder)
    shown = {cell.id: list(_states(cell)) for cell in notebook.cells}
    return {name: widgets for name, widgets in shown.items() if widgets}


def _states(cell: NotebookNode) -> Iterator[dict[str, Any]]:
    for output in cell.get("outputs", ()):
        if MIME in output.get("data", {}):
            yield output["data"][MIME]


def _key(path: Path) -> str:
    """Return a digest of the lesson's code, the library and this package."""
    notebook = nbformat.read(path, as_version=4)
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    files = [*ROOT.glob("course_lib/**/*.py"), *ROOT.glob("course_lib/**/*.cpp")]
    files += [ROOT / "course_site" / n for n in ("capture.py", "explorers.py")]
    digest = hashlib.sha256("\0".join(code).encode())
    for file in sorted(files):
        digest.update(file.read_bytes())
    return digest.hexdigest()
