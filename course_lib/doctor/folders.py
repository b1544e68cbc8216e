"""The folders that the lessons and Jupyter read and write."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from course_lib.doctor import advice
from course_lib.doctor.check import FAULT, OK, WARNING, Check, Result, check

NEEDED_DISK = 0.1  # GB, for progress and for notebooks as they are saved
_JUPYTER = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")


@check("temporary folder")
def temporary() -> Result:
    """The system's temporary folder: is there one?"""
    try:
        return OK, tempfile.gettempdir()
    except OSError:
        name = "TEMP" if os.name == "nt" else "TMPDIR"
        remedy = advice.own_folder("temporary", name)
        return FAULT, "none can be written, or the disk is full", remedy


@check("Jupyter's folders")
def jupyter() -> Result:
    """Jupyter's settings, data and running kernels: can their folders be written?"""
    from jupyter_core import paths

    places = (
        paths.jupyter_config_dir(),
        paths.jupyter_data_dir(),
        paths.jupyter_runtime_dir(),
    )
    for place in map(Path, places):
        obstacle = _obstacle(place)
        if obstacle:
            remedy = advice.own_folder("jupyter", *_JUPYTER)
            return FAULT, f"{place} can't be written ({obstacle})", remedy
    return OK, str(places[-1])


def _obstacle(folder: Path) -> str:
    """Say why nothing can be written in a folder, which is made if need be."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return error.strerror or type(error).__name__


@check("data folder")
def data_folder() -> Result:
    """COURSE_DATA, if it is set: is it a folder?"""
    from course_lib.data import archives

    given = os.environ.get("COURSE_DATA")
    if not given:
        return OK, f"{archives.cache()}, for what is downloaded"
    if os.path.isdir(os.path.expanduser(given)):
        return OK, given
    unset = advice.variables({"COURSE_DATA": None})
    remedy = f"Correct its path, or do without the variable. {unset}"
    return WARNING, f"COURSE_DATA is {given}, which is no folder", remedy


def data_sets() -> Iterator[Check]:
    """The data: do the digits load, and which other sets are here?"""
    yield digits()
    try:
        from course_lib import data
    except Exception:  # the line of the digits says it
        return
    others = (name for name in data.NAMES if name != "digits")
    yield from (check(name)(partial(_other_set, name))() for name in others)


def _other_set(name: str) -> Result:
    from course_lib import data

    fetch = f"{advice.python()} -m course_lib data {name}"
    return OK, "here" if data.available(name) else f"not here; `{fetch}` fetches it"


@check("digits")
def digits() -> Result:
    """The data set that every lesson uses by default."""
    from course_lib import data

    return OK, str(data.load("digits", download=False))


@check("disk")
def disk() -> Result:
    """The disk: can progress and notebooks be saved?"""
    progress = os.environ.get("COURSE_PROGRESS")
    folder = Path(progress).absolute().parent if progress else Path.cwd()
    if not folder.is_dir():
        unset = advice.variables({"COURSE_PROGRESS": None})
        return FAULT, f"{folder} is no folder", f"Progress is to go there. {unset}"
    free = shutil.disk_usage(folder).free / 1e9
    found = f"{free:.1f} GB free for notebooks and progress"
    if obstacle := _obstacle(folder):
        remedy = "Copy the course to a folder of your own; nothing can be saved here."
        return WARNING, f"{folder} can't be written ({obstacle})", remedy
    if free < NEEDED_DISK:
        return WARNING, found, "Make room, or your work can't be saved."
    return OK, found
