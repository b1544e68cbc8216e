"""Make a page of a lesson's notebook.

What a guess asks for is folded, widgets get their stand-ins, pictures become files, and
the lesson's question with the buttons that open it comes below the title. A quiz shows
what is stored, each reply folded below its choice.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import html
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell, new_output

from course_lib.lessons import working_copy
from course_site import explorers, states
from course_site.lessons import Lesson
from course_site.repository import Repository

_TITLE = re.compile(r"\A# ")
_GUESS = re.compile(r"guess first", re.I)
_STORED = re.compile(
    r'<img alt="([^"]*)" width="(\d+)" src="data:image/png;base64,([^"]+)">'
)
PICTURES = "../_static/pictures"


def page(
    notebook: NotebookNode,
    lesson: Lesson,
    drawn: dict[str, list[dict[str, Any]]],
    repository: Repository | None,
    static: Path,
) -> NotebookNode:
    """Return the notebook as a page.

    Args:
        notebook: as it is stored; it is not changed.
        lesson: what its header says.
        drawn: the states of its widgets, by cell. A widget without is a still picture.
        repository: for the buttons.
        static: the folder that pictures are written to, in `pictures/`.
    """
    made = copy.deepcopy(notebook)
    number = 0
    for cell in made.cells:
        if cell.cell_type != "code":
            continue
        cell.execution_count = None
        if states.has_widget(cell):
            number = _replace_widgets(cell, drawn.get(cell.id, []), number)
        cell.outputs = [output for output in cell.outputs if not _is_script(output)]
        for output in cell.outputs:
            output.get("data", {}).pop(states.WIDGET, None)  # what is left says it
            _move_picture(output, static)
    for cell in made.cells[1:]:
        if cell.cell_type == "markdown":
            cell.source = _TITLE.sub("## ", cell.source)  # a page has one title
    fold_answers(made)
    fold_setup(made)
    made.cells[:1] = _with_buttons(made.cells[0], lesson, repository)
    return made


def cleared(notebook: NotebookNode) -> NotebookNode:
    """Return the notebook without outputs, so that a guess comes before its answer."""
    return working_copy.cleared(copy.deepcopy(notebook))


def fold_answers(notebook: NotebookNode) -> None:
    """Fold the outputs that stand between a guess and the next words."""
    asked = shown = False
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            guess = bool(_GUESS.search(cell.source))
            asked = guess or (asked and not shown)
            shown = shown and not guess
        elif asked and cell.outputs:
            shown = True
            _fold(cell, "hide-output", "Show the answer")


def fold_setup(notebook: NotebookNode) -> None:
    """Fold the imports and the call of the quiz: a reader of the page needs neither."""
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", ())
        if "setup" in tags:
            _fold(cell, "hide-input", "Show the imports and settings")
        elif "quiz" in tags:
            _fold(cell, "hide-input", "Show the code")


def _fold(cell: NotebookNode, tag: str, words: str) -> None:
    cell.metadata["tags"] = [*cell.metadata.get("tags", ()), tag]
    cell.metadata["mystnb"] = {"code_prompt_show": words, "code_prompt_hide": "Fold"}


def _replace_widgets(
    cell: NotebookNode, widgets: Sequence[dict[str, Any]], number: int
) -> int:
    """Replace script, controls and picture of each widget; return the next number."""
    kept, left = [], list(widgets)
    outputs = iter(cell.outputs)
    for output in outputs:
        data = output.get("data", {})
        if _is_script(output):
            continue
        if states.WIDGET not in data:
            kept.append(output)
            continue
        picture = next(outputs)
        if left:
            made = _stand_in(left.pop(0), number)
            number += 1
        else:
            alt = picture["data"]["text/plain"]
            made = explorers.still(picture["data"]["text/html"], alt)
        kept.append(new_output("display_data", {"text/html": made}))
    cell.outputs = kept
    return number


def _is_script(output: NotebookNode) -> bool:
    """Return whether it is for JupyterLab's controls, of which a page has none."""
    return output.get("data", {}).get("text/html", "").startswith("<script>")


def _stand_in(widget: dict[str, Any], number: int) -> str:
    dials = [
        explorers.Dial(d["label"], tuple(d["values"]), d["start"], d["is_words"])
        for d in widget["dials"]
    ]
    pictures = []
    for picture in widget["pictures"]:
        width, height = _size((states.STATES / picture["file"]).read_bytes())
        shown = int(picture["width"])
        source = f"{PICTURES}/{picture['file']}"
        sizes = {"width": shown, "height": round(shown * height / width)}
        pictures.append({"src": source, "alt": picture["alt"], **sizes})
    return explorers.figure(number, dials, explorers.plan(dials), pictures)


def _move_picture(output: NotebookNode, static: Path) -> None:
    """Turn a picture inside the HTML into a file of its own."""
    data = output.get("data", {})
    if "text/html" in data:
        data["text/html"] = _STORED.sub(
            lambda image: _to_file(image, static), data["text/html"]
        )


def _to_file(image: re.Match[str], static: Path) -> str:
    alt, shown, encoded = image.groups()
    png = base64.b64decode(encoded)
    name = f"{hashlib.sha256(png).hexdigest()[:16]}.png"
    folder = static / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(png)
    width, height = _size(png)
    return (
        f'<img src="{PICTURES}/{name}" alt="{alt}" width="{shown}" '
        f'height="{round(int(shown) * height / width)}" loading="lazy">'
    )


def _size(png: bytes) -> tuple[int, int]:
    """Return the width and height that a PNG file says."""
    width, height = struct.unpack(">II", png[16:24])
    return width, height


def _with_buttons(
    header: NotebookNode, lesson: Lesson, repository: Repository | None
) -> list[NotebookNode]:
    title, _, rest = header.source.partition("\n")
    above = f"{title}\n\n{buttons(lesson, repository)}"
    return [new_markdown_cell(above), new_markdown_cell(rest.strip())]


def buttons(lesson: Lesson, repository: Repository | None) -> str:
    """Return the lesson's question and the ways to open it, as HTML."""
    ways = []
    if repository:
        ways.append(("Launch on Binder", repository.binder(lesson.name), ""))
        ways.append(("Open in Colab", repository.colab(lesson.name), ""))
    file = f"../_static/lessons/{lesson.name}.ipynb"
    ways.append(("Download", file, " download"))
    links = "".join(
        f'<a class="launch-way" href="{html.escape(address)}"{more}>{words}'
        f'<span class="launch-of"> lesson {lesson.number}</span></a>'
        for words, address, more in ways
    )
    asked = f'<p class="launch-question">{html.escape(lesson.question)}</p>'
    return (
        f'<div class="launch">{asked}<p class="launch-ways">'
        f'<span class="launch-time">Lesson {lesson.number} · {lesson.minutes} minutes'
        f"</span>{links}</p></div>"
    )
