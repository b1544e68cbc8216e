"""Which exercises are solved, in one small file that a learner can carry along.

The file is `course_progress.json` beside the notebooks, or what COURSE_PROGRESS names.
Binder forgets files: download it from the file browser before you leave, and bring it
back with `bring_back("path/to/course_progress.json")`.
"""

import json
import os
import tempfile
from pathlib import Path

_FORMAT = 1


def file() -> Path:
    """Return the path of the progress file; it need not exist yet."""
    return Path(os.environ.get("COURSE_PROGRESS", "course_progress.json")).absolute()


def solved() -> set[str]:
    """Return the solved exercises as "lesson.exercise"; empty without a file.

    Raises:
        ValueError: the file is not one that this course wrote.
    """
    return _read(file()) if file().exists() else set()


def mark_solved(name: str) -> None:
    """Add one exercise to the file, which is replaced in one step or not at all.

    Raises:
        ValueError: the file is there but not one that this course wrote.
        OSError: the folder can't be written.
    """
    known = solved()
    if name not in known:
        _write(file(), known | {name})


def bring_back(path: str | Path) -> str:
    """Add the solved exercises of another progress file to this one.

    Returns how many were new, in words.

    Raises:
        ValueError: no such file, or not one that this course wrote. Nothing changes.
    """
    brought, known = _read(Path(path)), solved()
    _write(file(), known | brought)
    return f"Brought back: {len(brought - known)}. Here before: {len(known)}."


def overview() -> str:
    """Return a table: each lesson, how many of its exercises are solved, and which."""
    from course_lib.lessons.exercises import lessons  # exercises mark progress here

    done, lines = solved(), []
    for lesson, names in lessons().items():
        marks = [name for name in names if f"{lesson}.{name}" in done]
        lines.append(f"{lesson:15}{len(marks)} of {len(names)}  {', '.join(marks)}")
    return "\n".join(line.rstrip() for line in lines)


def _read(path: Path) -> set[str]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"progress: there is no file {path}. Upload it beside the notebooks, or "
            "give its full path."
        ) from None
    except (OSError, ValueError) as error:
        raise ValueError(
            f"progress: {path} can't be read ({error}). Move it away to begin anew, "
            "or bring back an older copy."
        ) from error
    names = content.get("solved") if isinstance(content, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"progress: {path} holds no list 'solved'; wanted a file that this course "
            "wrote. Move it away to begin anew."
        )
    return set(names)


def _write(path: Path, names: set[str]) -> None:
    text = json.dumps({"format": _FORMAT, "solved": sorted(names)}, indent=1)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".progress")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text + "\n")
        os.replace(temporary, path)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise
