"""Examine the machine: will the lessons run here, and what can be done if not?

`python -m course_lib doctor` prints the table and ends with status 1 if a lesson would
fail. Each check is a function that returns a `Check`; none raises. A check imports what
it examines, so that a broken library is a line of the table.

Read `check`, then `folders`, `memory` and `software`, which examine, and `advice`,
which knows what to type on which system.
"""

from __future__ import annotations

from collections.abc import Sequence

from course_lib.doctor import folders, memory, software
from course_lib.doctor.check import FAULT, OK, WARNING, Check

__all__ = ["FAULT", "OK", "WARNING", "Check", "examine", "exit_status", "report"]


def examine(*, kernel: bool = True) -> list[Check]:
    """Run every check.

    Args:
        kernel: start a Jupyter kernel too, which takes a second or two. A notebook
            passes False, as its own kernel is running.
    """
    checks = [software.python(), software.stamps(), *software.versions()]
    checks += [folders.temporary(), folders.jupyter(), software.device()]
    checks += [software.threads(), software.compiler(), memory.memory()]
    checks += [folders.data_folder(), *folders.data_sets()]
    if kernel:
        checks.append(software.kernel())
    return [*checks, software.widgets(), folders.disk()]


def report(checks: Sequence[Check]) -> str:
    """Return the checks as a table, each remedy under its line, and a verdict."""
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{check.status:8} {check.name:{width}}  {check.found}")
        if check.remedy:
            lines.append(f"{'':8} {'':{width}}  -> {check.remedy}")
    faults = ", ".join(check.name for check in checks if check.status == FAULT)
    verdict = f"A lesson would fail here. Repair first: {faults}." if faults else ""
    return "\n".join([*lines, "", verdict or "The lessons will run here."])


def exit_status(checks: Sequence[Check]) -> int:
    """Return 1 if a lesson would fail, else 0."""
    return int(any(check.status == FAULT for check in checks))
