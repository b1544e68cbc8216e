"""Compile a C++ file of this package on the reader's machine, once.

Python calls the library through ctypes. Where there is no compiler, everything that
uses this module works with torch alone, more slowly.
"""

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

    It is stored in the user's cache under a name made of all that it depends on: the
    file, the compiler and its version, the flags, the processor and torch. Where there
    is no cache that only this user may write, each process compiles for itself. What a
    compiler can't compile is remembered until that compiler is another one, so that a
    loop does not call it in each step.

    Args:
        source: the file.
        defines: of the preprocessor, such as `"REAL=float"`.
        flags: more for the compiler, such as `"-I..."`; they come last.

    Raises:
        TypeError: the source is no path, a define no text, or flags no tuple of text.
        FileNotFoundError: there is no such file.
        NoCompiler: there is none, it can't compile the file, or the variable
            COURSE_COMPILER is set to nothing; that variable also names another one.
    """
    _require_arguments(source, defines, flags)
    key = (source, defines, flags)
    if key in _libraries:
        return _libraries[key]
    file, compiler = _file(source), _compiler()
    attempt = (*key, compiler, _last_change(compiler), os.environ.get("PATH"))
    if attempt not in _failures:
        try:
            _libraries[key] = _library(file, compiler, defines, flags)
            return _libraries[key]
        except NoCompiler as error:
            _failures[attempt] = str(error)
    raise NoCompiler(_failures[attempt])


_libraries: dict[tuple, ctypes.CDLL] = {}  # by source, defines and flags
_failures: dict[tuple, str] = {}  # also by the compiler, and where it finds its parts


def _require_arguments(
    source: object, defines: Sequence[object], flags: object
) -> None:
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(
            f"library: source is {source!r}; wanted the path of a C++ file, as text or "
            "pathlib.Path"
        )
    for define in defines:
        if not isinstance(define, str):
            raise TypeError(
                f"library: a define is {define!r}; wanted text such as 'REAL=float'"
            )
    if not isinstance(flags, tuple) or not all(isinstance(f, str) for f in flags):
        raise TypeError(
            f"library: got flags={flags!r}; wanted a tuple of text, for example "
            "flags=('-O2',)"
        )


def _file(source: str | os.PathLike[str]) -> Path:
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(
            f"library: there is no file {str(source)!r} in {Path.cwd()}; wanted a C++ "
            "file. Pass its full path"
        )
    return path


def _library(
    source: Path, compiler: str, defines: Sequence[str], flags: Sequence[str]
) -> ctypes.CDLL:
    options = [*FLAGS, *(f"-D{define}" for define in defines), *flags]
    headers = sorted(source.parent.glob("*.hpp"))
    parts = [path.read_text("utf-8") for path in (source, *headers)]
    parts += [compiler, version(compiler), importlib.metadata.version("torch")]
    parts += [*options, _processor()]
    name = f"{source.stem}-{_digest(chr(10).join(parts).encode())}"
    cached = _cached(name)
    if cached is not None:
        return cached
    if sys.stderr is not None and sys.stderr.isatty():  # and not in a notebook's cell
        print(f"Compiling {source.name}, once on this machine.", file=sys.stderr)
    failures = []
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
            built = Path(temporary) / f"{name}.so"
            _compile(compiler, options, source, built)
            for path in dict.fromkeys((_stored(built, name), built)):
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


def _last_change(compiler: str) -> int:
    try:
        return os.stat(compiler).st_mtime_ns
    except OSError:  # removed just now: to call it will say so
        return 0


def used() -> str:
    """Return the compiler's path and version.

    Raises:
        NoCompiler: there is none.
    """
    compiler = _compiler()
    return f"{compiler}: {version(compiler)}"


def version(compiler: str) -> str:
    """Return the first line of the output of `compiler --version`, or nothing."""
    try:
        done = _run([compiler, "--version"])
    except OSError:
        return ""
    return done.stdout.decode(errors="replace").partition("\n")[0].strip()


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        command, capture_output=True, stdin=subprocess.DEVNULL, check=False
    )


def _compile(compiler: str, options: Sequence[str], source: Path, path: Path) -> None:
    message = ""
    for threads in (["-fopenmp"], []):  # Apple's clang has no OpenMP
        done = _run([compiler, *options, *threads, str(source), "-o", str(path)])
        if done.returncode == 0:
            return
        message = message or done.stderr.decode(errors="replace").strip()
    raise NoCompiler(f"{compiler} can't compile {source.name}: {message[:500]}")


def _cached(name: str) -> ctypes.CDLL | None:
    """Return a library from the cache, if its contents are those its name promises.

    To load a truncated one would end Python.
    """
    if obstacle() is not None:
        return None
    for path in folder().glob(f"{name}-*.so"):
        with contextlib.suppress(OSError):
            is_whole = path.stem == f"{name}-{_digest(path.read_bytes())}"
            if is_whole and _is_ours(path):
                return ctypes.CDLL(str(path))
    return None


def obstacle() -> str | None:
    """Say why the cache can't be used; None where it can, or does not exist yet."""
    cache = folder()
    if not cache.is_absolute():
        return "this user has no home"
    try:
        if cache.exists() and not _is_ours(cache):
            return (
                f"{cache} belongs to another user, or others may write to it, so they "
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


def _stored(built: Path, name: str) -> Path:
    """Put a library into the cache in one step; return its path.

    Where nothing can be written it stays in the temporary folder, which only we can
    write: others could put a library of theirs into a folder with a known name.
    """
    path = folder() / f"{name}-{_digest(built.read_bytes())}.so"
    if obstacle() is not None:
        return built
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as temporary:
            new = shutil.copyfile(built, Path(temporary) / path.name)
            new.chmod(0o600)  # whatever the umask
            new.replace(path)
    except OSError:
        return built
    return path


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=12).hexdigest()


def folder() -> Path:
    """Return where libraries are stored, whether it exists or not.

    Data sets are unpacked beside it; others may write there, if the umask says so.
    """
    return platformdirs.user_cache_path("course_lib") / "compiled"


def is_stored(library: ctypes.CDLL) -> bool:
    """Tell whether it was loaded from the cache, as the next process will do."""
    path = Path(library._name)
    return path.parent == folder() and path.is_file()


def _processor() -> str:
    """Return what -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.platform() + platform.processor()
    return next((x for x in lines if x.startswith(("flags", "Features"))), "")
