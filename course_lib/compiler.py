"""Compile a C++ file of this package on the reader's machine, once.

Python calls what comes out through ctypes. Where there is no compiler, everything that
uses this module does its work with torch alone, more slowly.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import platformdirs

FLAGS = (
    *("-std=c++17", "-O3", "-march=native", "-fno-math-errno"),
    *("-pthread", "-shared", "-fPIC"),
)
NAMES = ("c++", "g++", "clang++")
SWITCH = "COURSE_COMPILER"


class NoCompiler(RuntimeError):
    """Nothing was compiled; the message says why."""


def library(
    source: str | os.PathLike[str], *defines: str, flags: tuple[str, ...] = ()
) -> ctypes.CDLL:
    """Return a C++ file as a library, compiled at the first call on this machine.

    It lies in the user's cache under a name made of all that it depends on: the file,
    the compiler and its version, the flags, the processor and torch. A change of one
    of them makes another library. Where there is no cache that only this user may
    write, each process compiles for itself. A failure is remembered, so that a loop
    does not call the compiler in each step.

    Args:
        source: the file.
        defines: of the preprocessor, such as `"REAL=float"`.
        flags: more for the compiler, such as `"-I..."`; they come last.

    Raises:
        NoCompiler: there is none, it can't compile the file, or the variable
            COURSE_COMPILER is set to nothing; that variable also names another one.
    """
    known = _remembered.get((source, defines, flags))  # a loop asks in each step
    if known is not None:
        return known
    key = (source, defines, flags, os.environ.get(SWITCH), os.environ.get("PATH"))
    known = _remembered.get(key)
    if known is None:
        try:
            found = _library(Path(source), defines, flags)
        except NoCompiler as error:
            known = _remembered[key] = str(error)
        else:
            _remembered[source, defines, flags] = found
            return found
    raise NoCompiler(known)


# Libraries by source and defines; failures also by what chose the compiler.
_remembered: dict[tuple, ctypes.CDLL | str] = {}


def _library(
    source: Path, defines: Sequence[str], flags: Sequence[str]
) -> ctypes.CDLL:
    compiler = _compiler()
    options = [*FLAGS, *(f"-D{define}" for define in defines), *flags]
    read = [source, *sorted(source.parent.glob("*.hpp"))]
    texts = [path.read_text("utf-8") for path in read]
    parts = [*texts, compiler, version(compiler)]
    parts += [importlib.metadata.version("torch"), *options, _processor()]
    name = f"{source.stem}-{_digest(chr(10).join(parts).encode())}"
    known = _known(name)
    if known is not None:
        return known
    if sys.stderr is not None and sys.stderr.isatty():  # and not in a notebook's cell
        print(f"Compiling {source.name}, once on this machine.", file=sys.stderr)
    failures = []
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            made = Path(folder) / f"{name}.so"
            _compile(compiler, options, source, made)
            for path in dict.fromkeys((_stored(made, name), made)):
                try:
                    return ctypes.CDLL(str(path))
                except OSError as error:
                    failures.append(str(error))
    except OSError as error:
        failures.append(str(error))
    raise NoCompiler("; ".join(failures))


def _compiler() -> str:
    asked = os.environ.get(SWITCH)
    if asked == "":
        raise NoCompiler(f"{SWITCH} is set to nothing")
    found = next(filter(None, map(shutil.which, [asked] if asked else NAMES)), None)
    if found is None:
        raise NoCompiler(f"there is no {asked or 'C++ compiler'} on the path")
    return found


def used() -> str:
    """Return the compiler's path and version.

    Raises:
        NoCompiler: there is none.
    """
    compiler = _compiler()
    return f"{compiler}: {version(compiler)}"


def version(compiler: str) -> str:
    """Return the first line of what a compiler says of itself, or nothing."""
    try:
        done = subprocess.run(
            [compiler, "--version"],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except OSError:
        return ""
    return done.stdout.decode(errors="replace").partition("\n")[0].strip()


def _compile(compiler: str, options: Sequence[str], source: Path, path: Path) -> None:
    said = ""
    for threads in (["-fopenmp"], []):  # Apple's clang has no OpenMP
        command = [compiler, *options, *threads, str(source), "-o", str(path)]
        done = subprocess.run(
            command, capture_output=True, stdin=subprocess.DEVNULL, check=False
        )
        if done.returncode == 0:
            return
        said = said or done.stderr.decode(errors="replace").strip()
    raise NoCompiler(f"{compiler} can't compile {source.name}: {said[:500]}")


def _known(name: str) -> ctypes.CDLL | None:
    """Return a library from the cache; its name says what is in it.

    To load one of which a part is missing would end Python.
    """
    if obstacle() is not None:
        return None
    for path in _cache().glob(f"{name}-*.so"):
        with contextlib.suppress(OSError):
            whole = path.stem == f"{name}-{_digest(path.read_bytes())}"
            if whole and _is_ours(path):
                return ctypes.CDLL(str(path))
    return None


def obstacle() -> str | None:
    """Say why the cache can't be used; None where it can, or is yet to be made."""
    folder = _cache()
    if not folder.is_absolute():
        return "this user has no home"
    try:
        if folder.exists() and not _is_ours(folder):
            return (
                f"{folder} belongs to another user, or others may write to it, so they "
                "could choose what is run; remove it, or run `chmod go-w` on it"
            )
    except OSError as error:
        return str(error)
    return None


def _is_ours(path: Path) -> bool:
    """Tell whether only this user could have written there."""
    if os.name != "posix":
        return True  # Windows's folder of a user is closed to others
    found = path.stat()
    return found.st_uid == os.getuid() and not found.st_mode & 0o022


def _stored(made: Path, name: str) -> Path:
    """Put a library into the cache in one step; return where it is then.

    Where nothing can be written it stays where it is, in a folder that only we can
    write and that is gone soon: others could put theirs into one that they know of.
    """
    kept = _cache() / f"{name}-{_digest(made.read_bytes())}.so"
    if obstacle() is not None:
        return made
    try:
        kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
            new = shutil.copyfile(made, Path(folder) / kept.name)
            new.chmod(0o600)  # whatever the umask
            new.replace(kept)
    except OSError:
        return made
    return kept


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=12).hexdigest()


def _cache() -> Path:
    return platformdirs.user_cache_path("course_lib")


def _processor() -> str:
    """Return what -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.platform() + platform.processor()
    return next((x for x in lines if x.startswith(("flags", "Features"))), "")
