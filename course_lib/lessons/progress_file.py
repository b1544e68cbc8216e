"""Which exercises are solved, and which quizzes, in one small file.

The file is `course_progress.json` beside the notebooks, or what COURSE_PROGRESS names.
"""

import json
import os
from pathlib import Path
from typing import Any

from course_lib.files import replacing

NAME = "course_progress.json"
QUIZ = "quiz"  # "closures.quiz" stands there when all its questions are answered right
_FORMAT = 1


def file() -> Path:
    """Return the path of the progress file; it need not exist yet."""
    return Path(os.environ.get("COURSE_PROGRESS", NAME)).absolute()


def solved() -> set[str]:
    """Return the solved exercises as "lesson.exercise"; empty without a file.

    Raises:
        ValueError: the file is not one that this course wrote.
    """
    cure = "Move it away to begin again, or bring back an older copy."
    return read(file(), cure) if file().exists() else set()


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
    brought, known = read(Path(path), "Bring back an older copy of it."), solved()
    _write(file(), known | brought)
    return f"Brought back: {len(brought - known)}. Here before: {len(known)}."


def read(path: Path, cure: str) -> set[str]:
    """Return the solved exercises of any progress file.

    Args:
        path: of the file.
        cure: what to do if it can't be read, for the error.

    Raises:
        ValueError: no such file, or not one that this course wrote.
    """
    try:
        return _names(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ValueError(
            f"progress: there is no file {path}. Upload it beside the notebooks, or "
            "give its full path."
        ) from None
    except (OSError, ValueError) as error:
        raise ValueError(f"progress: {path} can't be read ({error}). {cure}") from error


def _names(content: Any) -> set[str]:
    names = content.get("solved") if isinstance(content, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("it has no list 'solved'; wanted a file of this course")
    return set(names)


def _write(path: Path, names: set[str]) -> None:
    text = json.dumps({"format": _FORMAT, "solved": sorted(names)}, indent=1)
    with replacing(path) as stream:
        stream.write(f"{text}\n".encode())
