"""A file is compiled once; where it can't be, the message says why."""

import ctypes
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import platformdirs
import pytest

from course_lib import compiler
from course_lib.data import archives

SOURCE = """
#ifndef ANSWER
#define ANSWER 42
#endif
extern "C" int answer(void) { return ANSWER; }
extern "C" int has_threads(void) {
#ifdef _OPENMP
    return 1;
#else
    return 0;
#endif
}
"""


def is_there():
    try:
        compiler._compiler()
    except compiler.NoCompiler:
        return False
    return True


needs_one = pytest.mark.skipif(not is_there(), reason="no C++ compiler here")


@pytest.fixture(autouse=True)
def caches(monkeypatch, tmp_path):
    """An empty cache and an empty folder for temporary files; nothing is remembered."""
    home, temporary = tmp_path / "cache", tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: home / name)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    forget()
    yield home / "course_lib" / "compiled", temporary
    forget()


def forget():
    compiler._libraries.clear()
    compiler._failures.clear()


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "answer.cpp"
    path.write_text(SOURCE)
    return path


@pytest.fixture
def wrapper(monkeypatch, tmp_path):
    """Return what makes a script the compiler; `real` calls the one there is."""
    if os.name != "posix":
        pytest.skip("a script of sh")

    def make(script):
        real = compiler._compiler() if "real" in script else ""
        path = tmp_path / "wrapper"
        path.write_text(f'#!/bin/sh\nreal="{real}"\n{script}\n')
        path.chmod(0o755)
        monkeypatch.setenv(compiler.SWITCH, str(path))
        return path

    return make


def fresh(source, *defines):
    """Return the library as another process would get it."""
    forget()
    return compiler.library(source, *defines)


def cached(caches):
    return sorted(caches[0].iterdir()) if caches[0].exists() else []


# Compiled once


@needs_one
def test_a_file_is_compiled_once(source, caches, monkeypatch):
    first = compiler.library(source)
    assert first.answer() == 42
    assert compiler.library(source) is first
    assert compiler.library(str(source)).answer() == 42
    (path,) = cached(caches)
    assert path.suffix == ".so"
    assert not list(caches[1].iterdir())  # nothing is left behind
    monkeypatch.setattr(compiler, "_compile", None)
    assert fresh(source).answer() == 42
    assert cached(caches) == [path]


@needs_one
def test_what_it_depends_on_is_in_the_name(source, caches, monkeypatch, wrapper):
    compiler.library(source)
    assert compiler.library(source, "ANSWER=7").answer() == 7
    assert compiler.library(source, "ANSWER=8").answer() == 8
    source.write_text(SOURCE.replace("42", "43"))
    assert fresh(source).answer() == 43
    monkeypatch.setattr(compiler, "FLAGS", (*compiler.FLAGS, "-DANSWER=9"))
    assert fresh(source).answer() == 9
    monkeypatch.setattr(compiler, "_processor", lambda: "another one")
    fresh(source)
    monkeypatch.setattr(compiler, "version", lambda compiler: "g++ 99")
    fresh(source)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "99.0")
    fresh(source)
    wrapper('exec "$real" "$@"')
    fresh(source)
    names = {path.name.split("-")[1] for path in cached(caches)}
    assert len(names) == len(cached(caches)) == 9


@needs_one
@pytest.mark.skipif(os.name != "posix", reason="modes of files")
def test_the_cache_is_for_its_user_alone(source, caches):
    compiler.library(source)
    assert caches[0].stat().st_mode & 0o777 == 0o700


@needs_one
@pytest.mark.skipif(os.name != "posix", reason="modes of files")
def test_a_folder_of_data_that_others_may_write_is_no_obstacle(source, caches):
    before = os.umask(0o002)  # of users that share a group
    try:
        archives.cache().mkdir(parents=True)
        found = compiler.library(source)
    finally:
        os.umask(before)
    assert archives.cache().stat().st_mode & 0o777 == 0o775
    assert caches[0].parent == archives.cache()
    assert caches[0].stat().st_mode & 0o777 == 0o700
    assert compiler.obstacle() is None
    assert compiler.is_stored(found)


@needs_one
@pytest.mark.skipif(os.name != "posix", reason="modes of files")
@pytest.mark.parametrize("mode", [0o777, 0o770, 0o707])
def test_a_folder_that_others_may_write_is_not_used(source, caches, mode):
    compiler.library(source, "ANSWER=13")
    (evil,) = cached(caches)
    compiler.library(source)
    for path in set(cached(caches)) - {evil}:
        path.unlink()  # this process has it in memory
        planted = path.with_name(re.sub(r"\w+.so", evil.name[-27:], path.name))
        planted.write_bytes(evil.read_bytes())
        planted.chmod(0o600)
    caches[0].chmod(mode)
    before = cached(caches)
    assert fresh(source).answer() == 42
    assert cached(caches) == before
    assert "others may write to it" in compiler.obstacle()
    caches[0].chmod(0o700)
    assert compiler.obstacle() is None


@needs_one
@pytest.mark.skipif(os.name != "posix", reason="owners of files")
def test_a_folder_of_another_user_is_not_used(source, caches, monkeypatch):
    compiler.library(source)
    own = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: own + 1)
    assert fresh(source).answer() == 42
    assert len(cached(caches)) == 1
    assert "belongs to another user" in compiler.obstacle()


@needs_one
@pytest.mark.skipif(os.name != "posix", reason="modes of files")
def test_a_file_that_others_may_write_is_not_loaded(source, caches, monkeypatch):
    compiler.library(source)
    (path,) = cached(caches)
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o666)
    compiled = []
    compile_ = compiler._compile
    monkeypatch.setattr(
        compiler, "_compile", lambda *a: compiled.append(a) or compile_(*a)
    )
    assert fresh(source).answer() == 42
    assert len(compiled) == 1


@needs_one
@pytest.mark.parametrize("share", [0, 0.3, 0.7])
def test_a_damaged_file_is_compiled_again(source, caches, share):
    compiler.library(source)
    (path,) = cached(caches)
    whole = path.read_bytes()
    path.unlink()  # this process has it in memory
    path.write_bytes(whole[: int(share * len(whole))])
    assert fresh(source).answer() == 42
    assert fresh(source).answer() == 42
    assert path.read_bytes() == whole


@needs_one
def test_a_file_under_a_known_name_with_other_contents_is_not_loaded(source, caches):
    """As a half-written one, which would end Python."""
    compiler.library(source)
    (path,) = cached(caches)
    compiler.library(source, "ANSWER=13")
    (other,) = set(cached(caches)) - {path}
    path.unlink()
    path.write_bytes(other.read_bytes())
    assert fresh(source).answer() == 42


@needs_one
def test_two_processes_compile_at_once(source, tmp_path):
    script = (
        "import sys; from pathlib import Path; from course_lib import compiler;"
        "print(compiler.library(Path(sys.argv[1])).answer())"
    )
    home = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "shared")}
    command = [sys.executable, "-c", script, str(source)]
    options = {"env": home, "stdout": subprocess.PIPE, "text": True}
    started = [subprocess.Popen(command, **options) for _ in range(2)]
    assert [process.communicate(timeout=60)[0] for process in started] == ["42\n"] * 2
    if sys.platform.startswith("linux"):
        left = list((tmp_path / "shared/course_lib/compiled").iterdir())
        assert [path.suffix for path in left] == [".so"]


# Where nothing can be stored


def blocked(folder):
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.write_text("a file, so no folder can be made")


def read_only(folder):
    folder.mkdir(parents=True)
    folder.chmod(0o500)
    if os.access(folder, os.W_OK):
        pytest.skip("this user writes everywhere")


@needs_one
@pytest.mark.parametrize("prevent", [blocked, read_only])
def test_a_cache_that_can_not_be_written(source, caches, prevent):
    prevent(caches[0])
    found = compiler.library(source)
    assert found.answer() == 42
    assert not compiler.is_stored(found)
    assert not list(caches[1].iterdir())


@needs_one
def test_a_user_without_a_home(source, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    home = Path("~/.cache")
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: home / name)
    assert compiler.library(source).answer() == 42
    assert not (tmp_path / "~").exists()


@needs_one
def test_a_cache_from_which_nothing_can_be_loaded(source, monkeypatch, caches):
    """As on a disk that is mounted noexec."""
    load = ctypes.CDLL

    def refuse(path):
        if Path(path).is_relative_to(caches[0]):
            raise OSError("failed to map segment")
        return load(path)

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    found = compiler.library(source)
    assert found.answer() == 42
    assert not compiler.is_stored(found)


@needs_one
def test_a_planted_file_is_not_loaded(source, caches, tmp_path):
    """Whoever may write to the folder of temporary files can't choose what we load."""
    compiler.library(source, "ANSWER=13")
    (evil,) = cached(caches)
    content = evil.read_bytes()
    compiler.library(source)
    names = {path.name for path in cached(caches)} - {evil.name}
    for path in cached(caches):
        path.unlink()
    caches[0].rmdir()
    blocked(caches[0])
    for folder in (caches[1], caches[1] / f"course_lib-{os.getuid()}"):
        folder.mkdir(exist_ok=True)
        for name in names:
            (folder / name).write_bytes(content)
    assert fresh(source).answer() == 42


# What is no C++ file


@pytest.mark.parametrize("source", [3, None, b"a.cpp", ["a.cpp"]])
def test_a_source_that_is_no_path(source):
    match = r"library: source is .*; wanted the path of a C\+\+ file, as text or"
    with pytest.raises(TypeError, match=match):
        compiler.library(source)


@pytest.mark.parametrize("define", [3, ["A=1"]])
def test_a_define_that_is_no_text(source, define):
    match = r"library: a define is .*; wanted text such as 'REAL=float'"
    with pytest.raises(TypeError, match=match):
        compiler.library(source, define)


@pytest.mark.parametrize("flags", ["-O2", ["-O2"], (2,), None])
def test_flags_that_are_no_tuple_of_text(source, flags):
    match = r"library: got flags=.*; wanted a tuple of text, for example flags=\('-O2',"
    with pytest.raises(TypeError, match=match):
        compiler.library(source, flags=flags)


@pytest.mark.parametrize("name", ["no.cpp", ""])
def test_a_file_that_is_not_there(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    match = rf"library: there is no file '{name}' in .*{tmp_path.name}; .* full path"
    for switch in ("", "no-such-compiler"):
        monkeypatch.setenv(compiler.SWITCH, switch)
        with pytest.raises(FileNotFoundError, match=match):
            compiler.library(name)


# Where nothing can be compiled


def test_the_switch_turns_it_off(source, monkeypatch):
    monkeypatch.setenv(compiler.SWITCH, "")
    with pytest.raises(compiler.NoCompiler, match="COURSE_COMPILER is set to nothing"):
        compiler.library(source)


def test_a_compiler_that_is_not_there(source, monkeypatch):
    monkeypatch.setenv(compiler.SWITCH, "no-such-compiler")
    with pytest.raises(compiler.NoCompiler, match="there is no no-such-compiler on"):
        compiler.library(source)
    monkeypatch.delenv(compiler.SWITCH)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(compiler.NoCompiler, match=r"there is no C\+\+ compiler on"):
        compiler.library(source)


def test_a_compiler_that_fails_is_quoted(source, wrapper, caches):
    path = wrapper("printf 'answer.cpp:2: \\377 no idea' >&2; exit 1")
    match = rf"{path} can't compile answer.cpp: answer.cpp:2: \ufffd no idea"
    with pytest.raises(compiler.NoCompiler, match=match):
        compiler.library(source)
    assert cached(caches) == []
    assert not list(caches[1].iterdir())


def test_a_failure_is_remembered(source, wrapper, monkeypatch):
    path = wrapper('echo "$@" >> "$0.log"; exit 1')
    for _ in range(5):
        with pytest.raises(compiler.NoCompiler, match=r"can't compile answer\.cpp"):
            compiler.library(source)
    calls = Path(f"{path}.log").read_text().splitlines()
    assert len(calls) == 3  # its version, with OpenMP and without
    monkeypatch.setenv(compiler.SWITCH, "")
    with pytest.raises(compiler.NoCompiler, match="is set to nothing"):
        compiler.library(source)


@needs_one
def test_a_compiler_that_was_updated_is_tried_again(source, wrapper, monkeypatch):
    path = wrapper("exit 1")
    with pytest.raises(compiler.NoCompiler, match=r"can't compile answer\.cpp"):
        compiler.library(source)
    before = path.stat().st_mtime_ns
    monkeypatch.delenv(compiler.SWITCH)
    wrapper('exec "$real" "$@"')
    os.utime(path, ns=(before + 1, before + 1))
    assert compiler.library(source).answer() == 42


@needs_one
def test_a_compiler_that_appears_is_tried(source, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "which", lambda name: None)
        with pytest.raises(compiler.NoCompiler, match="there is no"):
            compiler.library(source)
    assert compiler.library(source).answer() == 42


@needs_one
@pytest.mark.parametrize("is_terminal", [True, False])
def test_the_first_compilation_says_so_in_a_terminal(
    source, capsys, monkeypatch, is_terminal
):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    compiler.library(source)
    fresh(source)
    line = "Compiling answer.cpp, once on this machine.\n"
    assert capsys.readouterr().err == line * is_terminal


@needs_one
def test_a_file_with_a_mistake(source, caches):
    source.write_text("int answer(void) { return nothing; }")
    with pytest.raises(compiler.NoCompiler, match=r"nothing.* not declared|undeclared"):
        compiler.library(source)
    assert cached(caches) == []


def test_a_compiler_that_writes_nonsense(source, wrapper):
    wrapper(
        'for last; do :; done; case "$last" in *.so) echo nonsense > "$last";; esac'
    )
    with pytest.raises(compiler.NoCompiler, match=r"too short|invalid ELF|dlopen"):
        compiler.library(source)


def test_a_compiler_that_can_not_run(source, tmp_path, monkeypatch):
    path = tmp_path / "not-a-program"
    path.write_bytes(b"\x7f not a program")
    path.chmod(0o755)
    monkeypatch.setenv(compiler.SWITCH, str(path))
    with pytest.raises(compiler.NoCompiler, match="not-a-program"):
        compiler.library(source)


@needs_one
def test_a_compiler_without_openmp(source, wrapper):
    wrapper(
        'for a; do [ "$a" = -fopenmp ] && echo "unknown: $a" >&2 && exit 1; done\n'
        'exec "$real" "$@"'
    )
    found = compiler.library(source)
    assert found.answer() == 42
    assert found.has_threads() == 0


def test_openmp_is_asked_for_first(source, wrapper):
    path = wrapper('echo "$@" >> "$0.log"; exit 1')
    with pytest.raises(compiler.NoCompiler):
        compiler.library(source)
    asked = Path(f"{path}.log").read_text().splitlines()[1:]  # after its version
    assert ["-fopenmp" in line.split() for line in asked] == [True, False]
