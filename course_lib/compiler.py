"""Compile a C++ file of this package on the reader's machine, once.

Python calls what comes out through ctypes. Where there is no compiler, everything that
uses this module does its work with torch alone, more slowly.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
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


@functools.cache
def library(source: Path, *defines: str) -> ctypes.CDLL:
    """Return a C++ file as a library, compiled at the first call on this machine.

    It is kept in the user's cache under a name made of all that it depends on, so a
    changed file, compiler or processor is compiled anew; where there can be no cache,
    each process compiles for itself.

    Args:
        source: the file.
        defines: of the preprocessor, such as `"REAL=float"`.

    Raises:
        NoCompiler: there is none, it can't compile the file, or the variable
            COURSE_COMPILER is set to nothing; that variable also names another one.
    """
    compiler = _compiler()
    options = [*FLAGS, *(f"-D{define}" for define in defines)]
    read = [source, *sorted(source.parent.glob("*.hpp"))]
    texts = [path.read_text("utf-8") for path in read]
    parts = [*texts, compiler, *options, _processor()]
    name = f"{source.stem}-{_digest(chr(10).join(parts).encode())}"
    known = _known(name)
    if known is not None:
        return known
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
    for path in _cache().glob(f"{name}-*.so"):
        with contextlib.suppress(OSError):
            if path.stem == f"{name}-{_digest(path.read_bytes())}":
                return ctypes.CDLL(str(path))
    return None


def _stored(made: Path, name: str) -> Path:
    """Put a library into the cache in one step; return where it is then.

    Where nothing can be written it stays where it is, in a folder that only we can
    write and that is gone soon: others could put theirs into one that they know of.
    """
    kept = _cache() / f"{name}-{_digest(made.read_bytes())}.so"
    if not kept.is_absolute():  # a user without a home
        return made
    try:
        kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
            shutil.copyfile(made, Path(folder) / kept.name).replace(kept)
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
