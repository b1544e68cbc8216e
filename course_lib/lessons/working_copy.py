"""The learner's own copy of the lessons, in `work/`, which git ignores.

The stored lessons, in `notebooks/`, are what the tests compare; nobody types there. The
copy has no outputs, so that a guess comes before its answer. When a lesson changes, its
copy follows, cell by cell: what was typed stays, and where the lesson changed the same
cell, both stand there, one below the other.

    work/01_closures.ipynb            the copy
    work/.stored/01_closures.ipynb    the lesson that it was made from
    work/set_aside/                   copies that were reset, and damaged ones
"""

import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell

from course_lib.files import made, replacing
from course_lib.lessons.progress_file import NAME as PROGRESS

CHECKOUT = Path(__file__).resolve().parents[2]
STORED = CHECKOUT / "notebooks"
WORK = CHECKOUT / "work"
KEPT_ASIDE = (
    "*The lesson has changed the cell above. Yours, as you left it, is below: take "
    "what you need from it, then delete it and this line.*"
)


def update(stored: Path = STORED, work: Path = WORK) -> list[str]:
    """Make the copy of each lesson, or bring it up to date; say what was done.

    Raises:
        ValueError: there are no lessons, as in an installed package without them.
        OSError: the folder can't be written. The lessons before are up to date.
    """
    lessons = required("lab", stored)
    paths = [stored / f"{name}.ipynb" for name in lessons]
    older = stored / PROGRESS  # from when people worked on the stored lessons
    with made(work / ".stored"):
        if older.exists() and not (work / PROGRESS).exists():
            with replacing(work / PROGRESS) as stream:
                stream.write(older.read_bytes())
        return [said for path in paths if (said := _update_one(path, work))]


def names(stored: Path = STORED) -> list[str]:
    """Return the names of the lessons, such as 01_closures, in order."""
    return [path.stem for path in sorted(stored.glob("[0-9][0-9]_*.ipynb"))]


def required(place: str, stored: Path) -> list[str]:
    """Return the names of the lessons.

    Raises:
        ValueError: there are none, as in an installed package without them.
    """
    if found := names(stored):
        return found
    raise ValueError(
        f"{place}: there are no lessons in {stored}. They come with the course's "
        "repository, and not with the package: clone it, and run this there."
    )


def reset(lesson: str, stored: Path = STORED, work: Path = WORK) -> str:
    """Set a lesson's copy aside and make a new one; say where the old one is.

    Args:
        lesson: its number, its name or its file, such as "01" or "01_closures".
        stored: the folder of the lessons.
        work: the folder of the copies.

    Raises:
        ValueError: there is no such lesson, or several, or no lesson at all.
        OSError: the folder can't be written; the copy is as it was.
    """
    known = required("reset", stored)
    wanted = Path(lesson).name.removesuffix(".ipynb")
    found = [n for n in known if wanted in (n, n[:2], n[3:], n[:2].lstrip("0") or "0")]
    if len(found) != 1:
        raise ValueError(f"reset: got {lesson!r}; wanted one of {', '.join(known)}.")
    (name,) = found
    old = work / f"{name}.ipynb"
    with made(work / ".stored"), made(work / "set_aside"):
        aside = _set_aside(old) if old.exists() else None
        try:
            _make(stored / f"{name}.ipynb", work)
        except BaseException:
            if aside:
                aside.replace(old)
            raise
    new = f"{name} is as it was at first."
    return f"{new} Your old one: {aside.relative_to(work.parent)}" if aside else new


def _update_one(lesson: Path, work: Path) -> str:
    copy, base = work / lesson.name, work / ".stored" / lesson.name
    if not copy.exists():
        _make(lesson, work)
        return f"{lesson.stem}: ready."
    new = cleared(_read(lesson))
    try:
        old, mine = _read(base), _read(copy)
    except Exception as error:  # nbformat raises many kinds
        aside = _set_aside(copy)
        _make(lesson, work)
        reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        place = aside.relative_to(work.parent)
        return f"{lesson.stem}: could not be read ({reason}). Yours is {place}."
    if _texts(old) == _texts(new):
        return ""
    merged, conflicts = merge(old, mine, new)
    _write(copy, merged)
    _write(base, new)
    words = "" if not conflicts else f" Below a changed cell stands yours: {conflicts}."
    return f"{lesson.stem}: brought up to date, with all that you typed.{words}"


def merge(
    old: NotebookNode, mine: NotebookNode, new: NotebookNode
) -> tuple[NotebookNode, int]:
    """Bring a copy up to date.

    Args:
        old: the lesson that the copy was made from.
        mine: the copy, with cells that were changed, added or deleted.
        new: the lesson as it is today.

    Returns:
        The lesson of today with all that was typed, and how many cells both sides
        changed: those stand below the lesson's. A cell that was deleted comes back.
    """
    before, own, today = _by_key(old), _by_key(mine), _by_key(new)
    typed = {
        key: cell
        for key, cell in own.items()
        if key not in before or cell.source != before[key].source
    }
    aside = {
        key
        for key in typed
        if key in before and not _is_one_of(key, today, before, own)
    }
    merged: list[NotebookNode] = []
    places: dict[str, int] = {}  # the index of each cell of the copy in `merged`
    for key, cell in today.items():
        is_mine = key in typed and key not in aside
        same = key in own and own[key].source == cell.source
        merged.append(own[key] if is_mine or same else cell)
        places[key] = len(merged) - 1
    last = -1
    for key in own:
        if key in places and key not in aside:
            last = places[key]
        elif key in typed:  # it follows what it followed in the copy
            last = places.get(key, last)
            note = [new_markdown_cell(KEPT_ASIDE)] if key in aside else []
            merged[last + 1 : last + 1] = [*note, own[key]]
            shift = len(note) + 1
            places = {k: n + shift if n > last else n for k, n in places.items()}
            last += shift
    result = nbformat.from_dict(new)
    result.cells = _with_ids_of_their_own(merged)
    return result, len(aside)


def _is_one_of(
    key: str, today: dict[str, NotebookNode], *others: dict[str, NotebookNode]
) -> bool:
    """Say if the lesson's cell of today reads as it did before, or as the learner's."""
    return key in today and today[key].source in [other[key].source for other in others]


def _by_key(notebook: NotebookNode) -> dict[str, NotebookNode]:
    """Return the cells by their exercise, else by their id, which an edit leaves."""
    found: dict[str, NotebookNode] = {}
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", ())
        named = [
            tag for tag in tags if tag.startswith("exercise:") and tag not in found
        ]
        key = next(iter(named), cell.get("id", "cell"))
        found[next(k for k in _numbered(key) if k not in found)] = cell
    return found


def _numbered(name: str) -> Iterator[str]:
    """Yield name, name-2, name-3, ..."""
    yield name
    yield from (f"{name}-{number}" for number in itertools.count(2))


def _with_ids_of_their_own(cells: Sequence[NotebookNode]) -> list[NotebookNode]:
    cells, seen = [nbformat.from_dict(cell) for cell in cells], set[str]()
    for cell in cells:
        cell.id = next(name for name in _numbered(cell.id) if name not in seen)
        seen.add(cell.id)
    return cells


def _make(lesson: Path, work: Path) -> None:
    new = cleared(_read(lesson))
    _write(work / ".stored" / lesson.name, new)  # first: a copy without it is no use
    _write(work / lesson.name, new)


def cleared(notebook: NotebookNode) -> NotebookNode:
    """Remove what running it has left, so that each guess comes before its answer."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return notebook


def _texts(notebook: NotebookNode) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def _read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def _write(path: Path, notebook: NotebookNode) -> None:
    with replacing(path) as stream:
        stream.write(f"{nbformat.writes(notebook)}\n".encode())


def _set_aside(copy: Path) -> Path:
    """Move a copy to the folder of those, under a name that is free."""
    folder = copy.parent / "set_aside"
    folder.mkdir(exist_ok=True)
    paths = (folder / f"{name}.ipynb" for name in _numbered(copy.stem))
    free = next(path for path in paths if not path.exists())
    os.replace(copy, free)
    return free
