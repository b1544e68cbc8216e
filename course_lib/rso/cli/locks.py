"""One run at a time in a folder: a lock that the system releases if its process dies.

Between machines it works only on a network file system that passes locks on (NFS does
with a lock service, many others do not): elsewhere give each run its own folder.
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
from collections.abc import Iterator
from pathlib import Path

from course_lib.files import made

NAME = "rso.lock"
_BUSY = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make a folder, if need be, and hold its lock; of both nothing empty stays.

    Raises:
        ValueError: another run holds it.
        OSError: it is no folder, or can't be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(made(folder))
            number = _acquire(folder / NAME)
        except FileExistsError:
            raise OSError(f"rso: {folder} is a file. Choose another --out.") from None
        except OSError as error:
            raise OSError(
                f"rso: nothing can be written to {folder} ({error.strerror or error}). "
                "Make room, see to its permissions, or choose another --out."
            ) from error
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # Windows removes no file that is open
                (folder / NAME).unlink()  # while it is held: see `_acquire`
            os.close(number)


def _acquire(path: Path) -> int:
    """Return the descriptor of a lock file that this process holds from now on."""
    while True:
        number = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(number)
            if _is_there(number, path):
                os.truncate(number, 0)
                os.write(number, f"{os.getpid()} on {platform.node()}".encode())
                return number
        except BaseException as error:
            holder = _holder(number)
            os.close(number)
            if not isinstance(error, OSError) or error.errno not in _BUSY:
                raise
            raise ValueError(
                f"rso: another run is at work in {path.parent} (process {holder}). "
                "Wait for its end, or choose another --out."
            ) from None
        os.close(number)  # of a run that has just removed it


def _is_there(number: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(number), os.stat(path))
    except FileNotFoundError:
        return False


def _holder(number: int) -> str:
    with contextlib.suppress(OSError):
        os.lseek(number, 0, os.SEEK_SET)
        return os.read(number, 200).decode(errors="replace") or "unknown"
    return "unknown"


def _lock(number: int) -> None:
    """Take a file's lock, or raise OSError where another process has it."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        os.lseek(number, 1 << 30, os.SEEK_SET)  # beyond the text, which stays readable
        msvcrt.locking(number, msvcrt.LK_NBLCK, 1)
        os.lseek(number, 0, os.SEEK_SET)
        return
    fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
