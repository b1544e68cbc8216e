"""Whether the cell that ran last has stopped: then its answer is still the old one."""

from __future__ import annotations

from IPython.core.interactiveshell import (
    ExecutionInfo,
    ExecutionResult,
    InteractiveShell,
)

_error: BaseException | None = None  # of the last cell
_place: str | None = None  # that cell's id
_here: str | None = None  # that of the cell that runs
_is_asked = False  # in the cell that runs: a check leaves the error where it is


def watch(shell: InteractiveShell) -> None:
    """Take note, from now on, of how each of the learner's cells ends."""
    shell.events.register("pre_run_cell", _begin)
    shell.events.register("post_run_cell", _note)


def obstacle() -> str:
    """Say what stopped the cell before this one; nothing where it came to its end.

    A syntax error, for example, changes no name: a check would judge what they held
    before. The cell that stopped may hold the check, too: when it runs again, it is
    corrected.
    """
    global _is_asked
    _is_asked = True
    if _error is None or _is_same_cell():
        return ""
    words = str(getattr(_error, "msg", _error))  # a SyntaxError's without its file
    return (
        f"The cell that ran before this one stopped with {type(_error).__name__}: "
        f"{words.splitlines()[0] if words else 'no message'}. So this may be an older "
        "answer. Correct that cell, run it, then check again."
    )


def _is_same_cell() -> bool:
    return _place is not None and _here == _place


def _begin(info: ExecutionInfo) -> None:
    global _here, _is_asked
    _here, _is_asked = info.cell_id, False


def _note(result: ExecutionResult) -> None:
    global _error, _place
    if result.info is not None and not result.info.store_history:
        return  # not a cell of the learner
    if not _is_asked or _is_same_cell():
        _error = result.error_before_exec or result.error_in_exec
        _place = _here
