"""Compile a C++ file of this package on the reader's machine, once.

Python calls what comes out through ctypes. Where there is no compiler, everything that
uses this module does its work with torch alone, more slowly.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-shared", "-fPIC")
NAMES = ("c++", "g++", "clang++")
SWITCH = "COURSE_COMPILER"


class NoCompiler(RuntimeError):
    """Nothing was compiled; the message says why."""


@functools.cache
def library(source: Path, *defines: str) -> ctypes.CDLL:
    """Return a C++ file as a library, compiled at the first call on this machine.

    It is kept in the user's cache under a name made of all that it depends on, so a
    changed file, compiler or processor is compiled anew.

    Args:
        source: the file.
        defines: of the preprocessor, such as `"REAL=float"`.

    Raises:
        NoCompiler: there is none, it can't compile the file, or the variable
            COURSE_COMPILER is set to nothing; that variable also names another one.
    """
    compiler = _compiler()
    options = [*FLAGS, *(f"-D{define}" for define in defines)]
    parts = [source.read_text(), compiler, *options, _processor()]
    name = hashlib.blake2b("\n".join(parts).encode(), digest_size=12).hexdigest()
    failures = []
    for folder in (_cache(), Path(tempfile.gettempdir()) / f"course_lib-{_user()}"):
        path = folder / f"{source.stem}-{name}.so"
        try:
            if not path.exists():
                _compile(compiler, options, source, path)
            return ctypes.CDLL(str(path))
        except OSError as error:
            failures.append(f"{path}: {error}")
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
    """Write the library in one step: two processes may be at it."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}")
    try:
        said = ""
        for threads in (["-fopenmp"], []):  # Apple's clang has no OpenMP
            command = [compiler, *options, *threads, str(source), "-o", str(unfinished)]
            done = subprocess.run(
                command, capture_output=True, text=True, stdin=subprocess.DEVNULL
            )
            if done.returncode == 0:
                unfinished.replace(path)
                return
            said = said or done.stderr.strip()
        raise NoCompiler(f"{compiler} can't compile {source.name}: {said[:500]}")
    finally:
        unfinished.unlink(missing_ok=True)


def _cache() -> Path:
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "course_lib"
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "course_lib"


def _user() -> str:
    return str(os.getuid()) if hasattr(os, "getuid") else "user"


def _processor() -> str:
    """Return what -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.platform() + platform.processor()
    return next((x for x in lines if x.startswith(("flags", "Features"))), "")
