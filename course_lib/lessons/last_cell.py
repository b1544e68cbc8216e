"""Whether the cell that ran last has stopped: then its answer is still the old one."""

from __future__ import annotations

from IPython.core.interactiveshell import ExecutionResult, InteractiveShell

_error: BaseException | None = None  # of the last cell
_is_asked = False  # in the cell that runs: a check leaves the error where it is


def watch(shell: InteractiveShell) -> None:
    """Take note, from now on, of how each of the learner's cells ends."""
    shell.events.register("post_run_cell", _note)


def obstacle() -> str:
    """Say what stopped the cell before this one; nothing where it came to its end.

    A syntax error, for example, changes no name: a check would judge what they held
    before.
    """
    global _is_asked
    _is_asked = True
    if _error is None:
        return ""
    return (
        f"The cell that ran before this one stopped with {type(_error).__name__}: "
        f"{str(_error).splitlines()[0] if str(_error) else 'no message'}. So this "
        "would be an older answer. Correct the cell, run it, then check again."
    )


def _note(result: ExecutionResult) -> None:
    global _error, _is_asked
    if result.info is not None and not result.info.store_history:
        return  # not a cell of the learner
    error = result.error_before_exec or result.error_in_exec
    if error is not None or not _is_asked:
        _error = error
    _is_asked = False
