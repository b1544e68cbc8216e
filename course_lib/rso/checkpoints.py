"""Write a search's state to a file, in one step or not at all, and read it back."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from course_lib import files
from course_lib.rso.checks import first_line
from course_lib.rso.reports import CycleReport

FORMAT = 1
TEMPORARY = ".rso"
LEFTOVER = re.compile(r"\.rso[a-z0-9_]{8}")  # as tempfile.mkstemp names them
KINDS = {
    "settings": dict,
    "model": dict,
    "sigmas": dict,
    "cycle": int,
    "place": list,
    "seconds": float,
    "reports": list,
    "decisions": Tensor,
}


def write(path: str | os.PathLike[str], state: dict[str, Any]) -> None:
    """Write a state; see `replacing`."""
    with replacing(path, "the checkpoint") as stream:
        torch.save(state, stream)


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], what: str) -> Iterator[IO[bytes]]:
    """Replace a file of a search, as `files.replacing`; make its folder.

    Raises:
        OSError: the disk is full, or the folder can't be written; the old file stays.
    """
    path = Path(path)
    try:
        with (
            files.made(path.absolute().parent),
            files.replacing(path, prefix=TEMPORARY) as stream,
        ):
            yield stream
    except (OSError, RuntimeError) as error:  # torch's word for a full disk
        raise OSError(
            f"RSO: {what} {path} could not be written ({first_line(error)}). The one "
            "before it, if there is one, is intact. Make room, or choose another "
            "folder."
        ) from error


def remove_leftovers(folder: Path) -> None:
    """Remove the unfinished files of killed processes from a folder that is locked."""
    for path in folder.glob(f"{TEMPORARY}*"):
        if LEFTOVER.fullmatch(path.name):
            path.unlink(missing_ok=True)


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a state; nothing in the file is run.

    Raises:
        ValueError: there is no such file, or it is no checkpoint of a search.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"RSO: there is no checkpoint {path}.") from None
    except Exception as error:  # a damaged file can fail in any way
        raise ValueError(
            f"RSO: {path} is not a checkpoint of a search, or a damaged one "
            f"({first_line(error)})."
        ) from error
    if not _is_state(state):
        raise ValueError(f"RSO: {path} is not a checkpoint of a search.")
    return state


def _is_state(state: object) -> bool:
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        return False
    return all(isinstance(state.get(name), kind) for name, kind in KINDS.items())


def require_fitting(
    state: dict[str, Any],
    settings: Mapping[str, Any],
    model: nn.Module,
    lengths: Mapping[str, int],
) -> None:
    """Raise ValueError unless a state is that of a search with these settings.

    lengths: {parameter that is searched: how many weights it has}.
    """
    if not _is_state(state):
        raise ValueError("RSO: this is not what state_dict() of a search gave.")
    _require_model(state["model"], model)
    for name, value in settings.items():
        if state["settings"].get(name) != value:
            raise ValueError(
                f"RSO: the checkpoint was made with {name}="
                f"{state['settings'].get(name)!r}, this search has {value!r}. Use the "
                "same settings and data to continue."
            )
    is_whole = (
        state["sigmas"].keys() == lengths.keys()
        and 0 <= state["cycle"] <= settings["cycles"]
        and len(state["place"]) == 2
        and state["decisions"].shape == (sum(lengths.values()),)
        and len(state["reports"]) == state["cycle"]
        and all(len(r) == len(CycleReport._fields) for r in state["reports"])
    )
    if not is_whole:
        raise ValueError(
            "RSO: the checkpoint contradicts itself: its sigmas, cycle, place, reports "
            "and decisions are not those of one search. Take another one."
        )


def _require_model(theirs: Mapping[str, Tensor], model: nn.Module) -> None:
    ours = model.state_dict()
    if unshared := sorted(ours.keys() ^ theirs.keys()):
        raise ValueError(
            "RSO: the checkpoint is of another model; only one of the two has "
            f"{', '.join(unshared[:5])}."
        )
    for name, tensor in ours.items():
        if theirs[name].shape != tensor.shape or theirs[name].dtype != tensor.dtype:
            raise ValueError(
                f"RSO: the checkpoint is of another model; {name!r} has shape "
                f"{tuple(theirs[name].shape)}, {theirs[name].dtype}, there and "
                f"{tuple(tensor.shape)}, {tensor.dtype}, here."
            )
