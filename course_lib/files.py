"""Replace a file in one step or not at all; make a folder that does not stay empty."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def replacing(
    path: str | os.PathLike[str], *, prefix: str = ".unfinished-"
) -> Iterator[IO[bytes]]:
    """Write beside a file, and rename at the end: it is replaced whole or not at all.

    An error, in the block or here, leaves the old file, or none, and nothing beside it.
    A process that is killed leaves the unfinished file.

    Args:
        path: of the file; its folder exists.
        prefix: of the unfinished file's name, eight more characters follow.

    Raises:
        OSError: the disk is full, or the folder can't be written.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replacing(Path(folder, "notes.txt")) as stream:
    ...         _ = stream.write(b"all of it")
    ...     os.listdir(folder), Path(folder, "notes.txt").read_text()
    (['notes.txt'], 'all of it')
    """
    path = Path(path).absolute()
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=prefix)
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        with contextlib.suppress(OSError):  # some file systems have no modes
            os.chmod(temporary, 0o666 & ~_umask())  # mkstemp's are 0o600
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def made(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Make a folder, with those above it; what is empty at the end goes again.

    So nothing stays of a block that fails before it writes. Folders that were there
    before are left, empty or not.

    Raises:
        OSError: it is a file, or can't be made; then none of them stays.

    >>> with tempfile.TemporaryDirectory() as place:
    ...     with made(Path(place, "new", "newer")):
    ...         os.listdir(Path(place, "new"))
    ...     os.listdir(place)
    ['newer']
    []
    """
    folder = Path(folder).absolute()
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for path in new:  # the deepest first
            with contextlib.suppress(OSError):  # something is in it
                path.rmdir()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
