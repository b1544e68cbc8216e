"""Check an answer without ever raising, and name the mistake.

A lesson's exercises are the Exercise objects of its module. A judge compares the
answer with an independent oracle, raises `NotYet` with the name of the mistake, and
returns a sentence that says why a right answer is right.
"""

import contextlib
import ctypes
import html
import importlib
import pkgutil
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from course_lib.lessons import progress

Mistakes = Sequence[tuple[Tensor | float, str]]  # what it gives, its name

UNTOUCHED = "There is still a ... in your code. Replace it, then check again."


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
        return f"<p><b>{word}</b> {_to_html(self.message)}</p>{self._nested_hints()}"

    def _nested_hints(self) -> str:
        nested = ""
        for number, hint in reversed(list(enumerate(self.hints, start=1))):
            title = f"<summary>Hint {number} of {len(self.hints)}</summary>"
            nested = f"<details>{title}<p>{_to_html(hint)}</p>{nested}</details>"
        return nested


@dataclass(frozen=True)
class Exercise:
    """One exercise: `check(answer)` never raises and never hangs.

    Args:
        name: "lesson.exercise", the key in the progress file.
        judge: answer -> why it is right; raises NotYet with the mistake's name.
        hints: three, each saying more than the one before.
        seconds: how long an answer may compute.
    """

    name: str
    judge: Callable[[Any], str] = field(repr=False)
    hints: tuple[str, str, str] = field(repr=False)
    seconds: float = field(default=10.0, repr=False)

    def check(self, answer: Any) -> Verdict:
        """Judge an answer, and keep the progress if it is right."""
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
            return self._not_yet(_describe(error))
        return Verdict(True, praise + self._keep())

    def _not_yet(self, message: str) -> Verdict:
        return Verdict(False, message, self.hints)

    def _keep(self) -> str:
        try:
            progress.mark_solved(self.name)
        except (OSError, ValueError) as error:
            return f" (Your progress could not be kept: {error})"
        return ""


def require_written(value: Any) -> None:
    """Raise NotYet if the learner's function still returns the stub's `...`."""
    if value is ...:
        raise NotYet("There is still a `...` in your code. Replace it with your own.")


def close(got: Any, wanted: Tensor) -> bool:
    """Tell whether the answer is a tensor of the wanted shape and numbers.

    >>> half = torch.tensor(0.5)
    >>> close(half.double(), half), close(half[None], half), close(0.5, half)
    (True, False, False)
    """
    return (
        isinstance(got, Tensor)
        and got.shape == wanted.shape
        and torch.allclose(got.to(wanted.dtype), wanted, atol=1e-5)
    )


def gradient(value: Tensor, of: Tensor) -> Tensor | None:
    """Return the gradient of `value` by `of`, None where there is none."""
    if not value.requires_grad:
        return None
    return torch.autograd.grad(value, of, allow_unused=True, retain_graph=True)[0]


def as_text(tensor: Tensor) -> str:
    """Return a number, or the first seven.

    >>> as_text(torch.tensor(2 / 3)), as_text(torch.arange(9.0))
    ('0.667', '[0, 1, 2, 3, 4, 5, 6, ...]')
    """
    numbers = [f"{number + 0.0:.3g}" for number in tensor.flatten().tolist()]
    if tensor.dim() == 0:
        return numbers[0]
    return f"[{', '.join(numbers[:7])}{', ...' * (len(numbers) > 7)}]"


def require_close(
    got: Tensor,
    wanted: Tensor,
    place: str,
    mistakes: Mistakes,
    *,
    text: Callable[[Tensor], str] = as_text,
) -> None:
    """Accept the wanted numbers; name the mistake that gives the ones we got."""
    if close(got, wanted):
        return
    numbers = f"{place}: got {text(got)}, wanted {text(wanted)}."
    for wrong, name in mistakes:
        if close(got, torch.as_tensor(wrong)):
            raise NotYet(f"{name}. {numbers}")
    raise NotYet(numbers)


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


def _describe(error: BaseException) -> str:
    kind, text = type(error).__name__, str(error).split("\n")[0]
    if isinstance(error, NameError):
        return f"Your code raised {kind}: {text}. Run the cells above first."
    if isinstance(error, TypeError) and "ellipsis" in text.lower():
        return UNTOUCHED
    return f"Your code raised {kind}: {text}"


def _to_html(text: str) -> str:
    """Escape, and set what stands in `backticks` as code."""
    parts = html.escape(text, quote=False).split("`")
    return "".join(f"<code>{p}</code>" if i % 2 else p for i, p in enumerate(parts))


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise _TooSlow in this thread after some seconds, on any system.

    A signal would need the main thread and does not exist on Windows; this reaches
    any Python loop, though not a single call that sleeps in C.
    """
    thread = ctypes.c_ulong(threading.get_ident())
    has_fired = threading.Event()

    def stop() -> None:
        has_fired.set()
        raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc
        raise_in(thread, ctypes.py_object(_TooSlow))

    timer = threading.Timer(seconds, stop)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        if has_fired.is_set():
            _receive_late()


def _receive_late() -> None:
    """Take a _TooSlow that came after the answer's end, or it would hit the next cell.

    `PyThreadState_SetAsyncExc(thread, NULL)` would withdraw it, but on Python 3.11 it
    also sets a flag that only an exception clears: under a tracer or a debugger the
    next call then never returns.
    """
    with contextlib.suppress(_TooSlow):
        for _ in range(1000):  # it arrives at a jump back
            pass
