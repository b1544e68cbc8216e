"""The result of one check, and a decorator by which no check raises."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

from course_lib.doctor import advice

OK, WARNING, FAULT = "ok", "warning", "fault"


@dataclass(frozen=True)
class Check:
    """The result of one check.

    A remedy has its commands in `backticks`; typed one after the other they cure the
    fault.
    """

    name: str
    status: str  # OK, WARNING (lessons run, but see the remedy) or FAULT (one fails)
    found: str
    remedy: str = ""  # what to do, if anything


Result = tuple[str, ...]  # status, found, and perhaps a remedy


def check(name: str) -> Callable[[Callable[[], Result]], Callable[[], Check]]:
    """Make a Check of a function's result; an error is a fault, and others go on."""

    def decorate(examine: Callable[[], Result]) -> Callable[[], Check]:
        @functools.wraps(examine)
        def guarded() -> Check:
            try:
                return Check(name, *examine())
            except Exception as error:
                found = f"{type(error).__name__}: {first_line(error)}"
                first = "Install first what is not installed above, if anything. Else: "
                again = advice.set_up_again()
                is_missing = isinstance(error, ModuleNotFoundError)
                return Check(name, FAULT, found, is_missing * first + again)

        return guarded

    return decorate


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or nothing."""
    return next(iter(str(error).splitlines()), "")
