"""A file is replaced whole or not at all; a new folder does not stay empty."""

import os
import stat
from pathlib import Path

import pytest

from course_lib.files import made, replacing


@pytest.fixture(params=[True, False], ids=["an old file", "none"])
def path(request, tmp_path):
    path = tmp_path / "folder" / "file"
    path.parent.mkdir()
    if request.param:
        path.write_bytes(b"old")
    return path


def contents(path):
    return {entry.name: entry.read_bytes() for entry in path.parent.iterdir()}


@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_the_new_file_is_there_at_the_end_alone(path, kind):
    before = contents(path)
    with replacing(kind(path)) as stream:
        stream.write(b"new")
        stream.flush()
        (unfinished,) = set(contents(path)) - {"file"}
        assert unfinished.startswith(".unfinished-")
        assert contents(path) == {**before, unfinished: b"new"}
    assert contents(path) == {"file": b"new"}


def test_a_path_is_that_of_the_beginning(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    with replacing("file", prefix=".mine") as stream:
        stream.write(b"new")
        assert [name for name in contents(path) if name.startswith(".mine")]
        monkeypatch.chdir(path.parent.parent)
    assert contents(path) == {"file": b"new"}


@pytest.mark.parametrize("error", [OSError, KeyError, KeyboardInterrupt])
def test_an_error_in_the_block_leaves_what_was(path, error):
    def fail():
        with replacing(path) as stream:
            stream.write(b"half of it")
            raise error("ours")

    before = contents(path)
    with pytest.raises(error, match="ours"):
        fail()
    assert contents(path) == before


@pytest.mark.parametrize("moment", ["fdopen", "fsync", "replace"])
def test_an_error_of_the_system_leaves_what_was(path, monkeypatch, moment):
    def refuse(*arguments):
        raise OSError(28, "No space left on device")

    before = contents(path)
    with monkeypatch.context() as patch:
        patch.setattr(os, moment, refuse)
        with pytest.raises(OSError, match="No space left"), replacing(path) as stream:
            stream.write(b"new")
    assert contents(path) == before


def test_a_missing_folder_is_an_error_and_not_made(tmp_path):
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "no" / "file"):
        pytest.fail("not reached")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name != "posix", reason="modes of files")
def test_others_may_read_it_as_the_umask_says(path):
    before = os.umask(0o027)
    try:
        with replacing(path) as stream:
            stream.write(b"new")
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_file_system_without_modes(path, monkeypatch):
    def refuse(*arguments):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chmod", refuse)
    with replacing(path) as stream:
        stream.write(b"new")
    assert contents(path) == {"file": b"new"}


# Folders


def test_a_new_folder_stays_with_what_is_in_it(tmp_path):
    with made(tmp_path / "a" / "b"):
        (tmp_path / "a" / "file").touch()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "file"]


@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_nothing_stays_of_a_block_that_fails(tmp_path, monkeypatch, kind):
    def fail():
        with made(kind("a/b/c")):
            assert (tmp_path / "a" / "b" / "c").is_dir()
            monkeypatch.chdir("a")  # the path is that of the beginning
            raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_there_stays_though_it_is_empty(tmp_path):
    (tmp_path / "old").mkdir()
    with made(tmp_path / "old" / "new"):
        pass
    assert list(tmp_path.rglob("*")) == [tmp_path / "old"]


def test_half_of_a_path_that_can_not_be_made_goes_again(tmp_path, monkeypatch):
    mkdir = Path.mkdir

    def refuse(path, *arguments, **options):
        if path.name == "b":
            raise PermissionError("not here")
        mkdir(path, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(OSError, match="not here"), made(tmp_path / "a" / "b"):
        pytest.fail("there is no folder")
    assert list(tmp_path.iterdir()) == []
