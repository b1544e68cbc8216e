"""Check an answer without ever raising, and name the mistake.

A lesson's exercises are the functions of its module under `@exercise`. Such a function
compares the answer with an independent oracle, and raises `NotYet` with the name of the
mistake.
"""

import contextlib
import ctypes
import html
import importlib
import pkgutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from course_lib.lessons import last_cell, progress_file

Judge = Callable[[Any], str]

_PATIENCE = 6  # seconds that an answer may wait for each one that it may compute


class NotYet(Exception):
    """The answer is not right yet; the message names the mistake."""


class _TooSlow(BaseException):
    """Raised inside an answer that does not come to an end.

    Not an Exception, so an answer's own `except Exception` can't swallow it.
    """


@dataclass(frozen=True)
class Verdict:
    """What a check says: shown as text or HTML, hints closed one inside the other."""

    solved: bool
    message: str
    hints: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"{'Right.' if self.solved else 'Not yet.'} {self.message}"

    def _repr_html_(self) -> str:
        word = "✓ Right." if self.solved else "✗ Not yet."
        return f"<p><b>{word}</b> {to_html(self.message)}</p>{self._nested_hints()}"

    def _nested_hints(self) -> str:
        nested = ""
        for number, hint in reversed(list(enumerate(self.hints, start=1))):
            title = f"<summary>Hint {number} of {len(self.hints)}</summary>"
            nested = f"<details>{title}<p>{to_html(hint)}</p>{nested}</details>"
        return nested


@dataclass(frozen=True)
class Exercise:
    """One exercise: `check(answer)` never raises and never hangs.

    Args:
        name: "lesson.exercise", the key in the progress file.
        judge: answer -> why it is right; raises NotYet with the mistake's name.
        hints: three, each saying more than the one before.
        seconds: of the processor's time, that an answer may take. Imports are free.
    """

    name: str
    judge: Judge = field(repr=False)
    hints: tuple[str, ...] = field(repr=False)
    seconds: float = field(default=10.0, repr=False)

    def check(self, answer: Any) -> Verdict:
        """Judge an answer; store the progress if it is right."""
        if obstacle := last_cell.obstacle():
            return self._not_yet(obstacle)
        if answer is ...:
            return self._not_yet("Replace the ... with your answer, then check again.")
        try:
            with _time_limit(self.seconds):
                praise = self.judge(answer)
        except NotYet as mistake:
            return self._not_yet(str(mistake))
        except _TooSlow:
            return self._not_yet(
                f"Your code was stopped after {self.seconds:g} seconds. Is there a "
                "loop that never ends?"
            )
        except KeyboardInterrupt:  # the learner's own stop button
            raise
        except BaseException as error:  # SystemExit and CancelledError too
            return self._not_yet(_describe(error, answer))
        return Verdict(True, praise + store(self.name))

    def _not_yet(self, message: str) -> Verdict:
        return Verdict(False, message, self.hints)


def store(name: str) -> str:
    """Note in the progress file that this is solved; say it if that was impossible."""
    try:
        progress_file.mark_solved(name)
    except (OSError, ValueError) as error:
        return f" (Your progress could not be stored: {error})"
    return ""


def lessons() -> dict[str, list[str]]:
    """Return {lesson: names of its exercises}, in the lessons' order."""
    package = importlib.import_module("course_lib.lessons")
    found = {}
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"course_lib.lessons.{info.name}")
        exercises = [v for v in vars(module).values() if isinstance(v, Exercise)]
        if exercises:
            names = [exercise.name.partition(".")[2] for exercise in exercises]
            found[module.NUMBER] = (info.name, names)
    return dict(found[number] for number in sorted(found))


def exercise(*hints: str, right: str) -> Callable[[Callable[[Any], None]], Exercise]:
    """Make a function that raises NotYet the exercise of its name.

    The function `guess` in the module `closures` becomes "closures.guess".

    Args:
        hints: three, each saying more than the one before.
        right: why a right answer is right.
    """

    def make(check: Callable[[Any], None]) -> Exercise:
        def judge(answer: Any) -> str:
            check(answer)
            return right

        lesson = check.__module__.rpartition(".")[2]
        return Exercise(f"{lesson}.{check.__name__}", judge, hints)

    return make


def _describe(error: BaseException, answer: Any) -> str:
    kind, text = type(error).__name__, str(error).split("\n")[0]
    given = type(answer).__name__
    if not callable(answer) and text == f"'{given}' object is not callable":
        return (
            f"The check got {given}; wanted a function or a class. Give it the name "
            "alone, without parentheses."
        )
    if isinstance(error, NameError) and "is not defined" in text:
        return f"Your code raised {kind}: {text}. Run the cells above first."
    if isinstance(error, TypeError) and "ellipsis" in text.lower():
        return "There is still a ... in your code. Replace it, then check again."
    return f"Your code raised {kind}: {text}"


def to_html(text: str) -> str:
    """Escape, and set what stands in `backticks` as code."""
    parts = html.escape(text, quote=False).split("`")
    return "".join(f"<code>{p}</code>" if i % 2 else p for i, p in enumerate(parts))


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise _TooSlow in this thread once it has computed for so long, on any system.

    What counts is the processor's time, so an answer pays for no other program. An
    import is neither counted nor stopped: torch imports its compiler at the first step
    of an optimizer, for seconds, and half imported it stays broken. Who only waits is
    stopped as well, after `_PATIENCE` times as long.

    A signal would need the main thread and does not exist on Windows; this reaches
    any Python loop, though not a single call that sleeps in C.
    """
    thread = threading.get_ident()
    has_ended, has_fired = threading.Event(), threading.Event()

    def watch() -> None:
        computed, waited = 0.0, 0.0
        last = time.process_time(), time.monotonic()
        while not has_ended.wait(min(0.05, seconds / 4)):
            now = time.process_time(), time.monotonic()
            if not _imports(thread):
                computed += now[0] - last[0]
                waited += now[1] - last[1]
                if computed >= seconds or waited >= _PATIENCE * seconds:
                    has_fired.set()
                    raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc
                    raise_in(ctypes.c_ulong(thread), ctypes.py_object(_TooSlow))
                    return
            last = now

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        has_ended.set()
        watcher.join()
        if has_fired.is_set():
            _receive_late()


def _imports(thread: int) -> bool:
    """Say if a thread is inside of an import statement."""
    frame = sys._current_frames().get(thread)
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _receive_late() -> None:
    """Take a _TooSlow that came after the answer's end, or it would hit the next cell.

    `PyThreadState_SetAsyncExc(thread, NULL)` would withdraw it, but on Python 3.11 it
    also sets a flag that only an exception clears: under a tracer or a debugger the
    next call then never returns.
    """
    with contextlib.suppress(_TooSlow):
        for _ in range(1000):  # it arrives at a jump back
            pass
