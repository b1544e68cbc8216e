"""Ctrl-C as a request, read where it is safe to stop."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

AT_ONCE = 0.5  # seconds; a terminal and a launcher may both send one Ctrl-C's signal


@dataclass
class StopRequest:
    """Whether somebody asked to stop, and when."""

    asked_at: float | None = None

    def __bool__(self) -> bool:
        return self.asked_at is not None


@contextlib.contextmanager
def deferred(request: StopRequest) -> Iterator[None]:
    """Turn Ctrl-C into a request; a second one stops at once, as usual.

    Only the main thread gets signals: nothing changes in another thread, nor where
    Ctrl-C is ignored.
    """
    before = signal.getsignal(signal.SIGINT)
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or not callable(before):
        yield
        return

    def ask(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if request.asked_at is None:
            request.asked_at = now
        elif now - request.asked_at > AT_ONCE:
            before(number, frame)

    signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
