"""States written and read: every bit, no pickle, all or nothing."""

from __future__ import annotations

import errno
import json
import math
import os
import pickle
import re
import tempfile

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from course_lib.explicit import Leaf, adjust, freeze, load, save, setup, update
from course_lib.rules import (
    AccumulateGradients,
    Adam,
    Chain,
    ClipNorm,
    Descent,
    MixedPrecision,
    Momentum,
    RMSProp,
    Rprop,
)
from course_lib.trees import map_tree, walk

KINDS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
KINDS += [torch.complex64, torch.complex128]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state.npz"


def tensors(state):
    parts = torch.utils._pytree.tree_leaves(state)
    return [part for part in parts if isinstance(part, torch.Tensor)]


def test_every_dtype_and_shape_comes_back(path, device):
    params = {
        str(dtype): {
            "x": torch.ones(2, 3, device=device).to(dtype),
            "number": torch.ones((), device=device).to(dtype),
            "empty": torch.ones(0, 2, device=device).to(dtype),
            "turned": torch.arange(6.0, device=device).reshape(2, 3).to(dtype).T,
        }
        for dtype in KINDS
    }
    state, params = update(setup(Adam(), params), params, params)
    save(path, state)
    read = load(path, device=device)
    assert [keys for keys, _ in walk(read)] == [keys for keys, _ in walk(state)]
    for one, other in zip(tensors(state), tensors(read), strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert one.device == other.device
        assert torch.equal(one, other)
    again, straight = update(read, params, params), update(state, params, params)
    for one, other in zip(tensors(straight), tensors(again), strict=True):
        assert torch.equal(one, other)


def test_rules_frost_and_odd_keys_come_back(path):
    rule = Chain(
        AccumulateGradients(3),
        ClipNorm(5, math.inf),
        MixedPrecision(Chain(RMSProp(centered=True), Rprop()), torch.float64),
    )
    state = setup({"a.b": rule, 0: Descent(1)}, {"a.b": torch.ones(1), 0: SHARED})
    state["a.b"] = freeze(state["a.b"])
    save(path, state)
    read = load(path)
    assert list(read) == ["a.b", 0]
    assert read["a.b"].rule == rule
    assert read["a.b"].frozen
    assert not read[0].frozen
    assert isinstance(read[0], Leaf)
    save(path, {})
    assert load(path) == {}


SHARED = torch.ones(2)


def test_ties_are_stored_once_and_stay(path):
    params = {"a": SHARED, "b": {"again": SHARED}}
    state = setup(Adam(), params)
    save(path, state)
    read = load(path)
    assert read["a"] is read["b"]["again"]
    with np.load(path) as file:
        assert len(file.files) == 3  # json, m, v
    grads = map_tree(lambda keys, x: torch.ones_like(x), params)
    assert_close(update(read, params, grads)[1], update(state, params, grads)[1])


def test_a_precise_copy_of_complex_numbers_comes_back(path):
    rule = MixedPrecision(Momentum(), torch.complex128)
    state = setup(rule, {"x": torch.ones(2, dtype=torch.complex64)})
    save(path, state)
    assert load(path)["x"].rule == rule
    assert_close(load(path)["x"].state, state["x"].state)


def test_what_is_read_can_be_stepped_in_place(path):
    save(path, setup(Adam(), {"x": torch.ones(2)}))
    leaf = load(path)["x"]
    leaf.state[0].add_(1)
    assert load(path)["x"].state[0].tolist() == [0, 0]


class Own:
    def init(self, x):
        return ()

    def apply(self, state, x, g):
        return state, g


@pytest.mark.parametrize(
    ("state", "match"),
    [
        (setup(Own(), {"x": torch.ones(1)}), "is not one of course_lib.rules"),
        ({"x": Leaf(Own(), None)}, "is not one of course_lib.rules"),
        ({"x": Leaf(None, ())}, "save: None is not one of course_lib.rules"),
        ({"x": Leaf(0.1, ())}, "save: 0.1 is not one of course_lib.rules"),
        ({"x": Leaf(Adam, ())}, "Adam'> is not one of course_lib.rules"),
        ({"x": Leaf(Adam(), {"m": 1})}, "save: a state holds dict; wanted tensors"),
        ({"x": Leaf(Adam(), None)}, "save: a state holds NoneType; wanted tensors"),
        ({"x": torch.ones(1)}, "save: 'x' is Tensor; wanted a state"),
        (setup(Adam(), {"x": torch.ones(1)})["x"], "save: got a Leaf; wanted a state"),
        (torch.ones(1), "save: got Tensor; wanted a state"),
    ],
)
def test_what_can_not_be_saved_leaves_the_file_as_it_was(path, state, match):
    path.write_bytes(b"before")
    with pytest.raises(ValueError, match=match):
        save(path, state)
    assert path.read_bytes() == b"before"
    assert list(path.parent.iterdir()) == [path]


def test_a_write_that_breaks_leaves_nothing(path, monkeypatch):
    def full(*args, **arrays):
        raise OSError("no space left")

    path.write_bytes(b"before")
    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="no space left"):
        save(path, setup(Adam(), {"x": torch.ones(1)}))
    assert path.read_bytes() == b"before"
    assert list(path.parent.iterdir()) == [path]


def test_a_missing_file(path):
    with pytest.raises(ValueError, match=r"load: there is no file .*state\.npz"):
        load(path)


def test_a_folder_is_no_file(path):
    state = setup(Adam(), {"x": torch.ones(1)})
    path.mkdir()
    with pytest.raises(
        ValueError, match=r"load: .*state\.npz can't be read \(Is a dir"
    ):
        load(path)
    with pytest.raises(
        IsADirectoryError, match=r"save: .*npz was not written \(Is a d"
    ):
        save(path, state)
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(
        FileNotFoundError, match=r"\(No such file .* folder that exists"
    ):
        save(path.parent / "nowhere" / "state.npz", state)
    path.rmdir()
    save(path, state)
    with pytest.raises(
        ValueError, match=r"load: .*npz.below can't be read \(Not a dir"
    ):
        load(path / "below")
    with pytest.raises(NotADirectoryError, match=r"save: .* was not written"):
        save(path / "below", state)


@pytest.mark.parametrize(
    ("error", "match"),
    [
        (PermissionError(errno.EACCES, "Permission denied"), "Permission denied"),
        (OSError(errno.EROFS, "Read-only file system"), "Read-only file system"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
    ],
)
def test_a_disk_that_is_read_only_or_full(path, monkeypatch, error, match):
    def refuse(*args, **kwargs):
        raise error

    path.write_bytes(b"before")
    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    wanted = rf"save: .*npz was not written \({match}\); what was there before is unch"
    with pytest.raises(type(error), match=wanted) as caught:
        save(path, setup(Adam(), {"x": torch.ones(1)}))
    assert caught.value.errno == error.errno
    monkeypatch.setattr(np, "load", refuse)
    with pytest.raises(ValueError, match=rf"load: .*npz can't be read \({match}\)"):
        load(path)


@pytest.mark.parametrize(
    "device",
    [
        pytest.param(
            "cuda",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="it has one"),
        ),
        "cuda:99",
        "gpu",
        "",
        3.5,
        ["cpu"],
    ],
)
def test_a_device_that_is_not_here(path, device):
    save(path, setup(Adam(), {"x": torch.ones(1)}))
    wanted = rf"load: got device={re.escape(repr(device))}, where .*example 'cpu'"
    with pytest.raises(ValueError, match=wanted):
        load(path, device=device)
    save(path, setup(Descent(), {"x": torch.ones(1)}))  # without any array, too
    with pytest.raises(ValueError, match=wanted):
        load(path, device=device)


def test_paths_of_every_kind(path):
    state = setup(Adam(), {"x": torch.ones(1)})
    for each in (path, str(path), os.fsencode(path)):
        save(each, state)
        assert load(each)["x"].rule == Adam()
        path.unlink()
    for bad in (None, 3, state):
        name = type(bad).__name__
        with pytest.raises(
            ValueError, match=f"save: got {name} for the path; wanted a"
        ):
            save(bad, state)
        with pytest.raises(
            ValueError, match=f"load: got {name} for the path; wanted a"
        ):
            load(bad)
    for function in (load, lambda path: save(path, state)):
        with pytest.raises(ValueError, match="wanted a path without null characters"):
            function("a\0b")


def test_a_file_of_another_version(path):
    content = leaf_of({"class": "Descent"})
    write(path, {**content, "format": 2})
    with pytest.raises(ValueError, match="its format is 2, this course_lib reads 1"):
        load(path)
    write(path, leaf_of({"class": "Muon", "eta": 0.1}))
    with pytest.raises(ValueError, match="names a rule 'Muon', which this course_lib"):
        load(path)


def test_a_file_from_before_still_loads(path):
    """As course_lib 1.0 wrote it: Adam after three steps, and a Chain that waits."""
    half = np.array([0.5, 0.25], dtype=np.float32).view(np.uint8)
    array = {"dtype": "float32", "shape": [2]}
    adam = {"class": "Adam", "eta": 0.01, "beta": [0.9, 0.999], "eps": 1e-08}
    moments = [{"array": "0.0", **array}, {"array": "0.1", **array}, {"count": 3}]
    waiting = {"class": "AccumulateGradients", "n": 4}
    rules = {"class": "Chain", "rules": [waiting, {"class": "Descent", "eta": 1}]}
    content = {
        "format": 1,
        "places": {'["a", "x"]': 0, '["b"]': 1},
        "leaves": [
            {"rule": adam, "state": moments, "frozen": True},
            {
                "rule": rules,
                "state": [[{"array": "1.0.0", **array}, {"count": 2}], []],
                "frozen": False,
            },
        ],
    }
    write(path, content, **{"0.0": half, "0.1": half, "1.0.0": half})
    state = load(path)
    assert state["a"]["x"].rule == Adam(0.01)
    assert state["a"]["x"].state[2] == 3
    assert state["a"]["x"].frozen
    assert state["b"].rule == Chain(AccumulateGradients(4), Descent(1))
    assert state["b"].state[0][0].tolist() == [0.5, 0.25]
    params = {"a": {"x": torch.ones(2)}, "b": torch.ones(2)}
    update(state, params, params)
    assert adjust(state["a"], 0.5)["x"].rule == Adam(0.5)


def moments(**changes):
    """A state of Adam in a file, with changes in its parts."""
    array = {"array": "0", "dtype": "float32", "shape": [2], **changes.pop("m", {})}
    parts = [array, {"array": "0", "dtype": "float32", "shape": [2]}, {"count": 3}]
    parts[2].update(changes)
    content = {"rule": {"class": "Adam"}, "state": parts, "frozen": False}
    return {"format": 1, "places": {'["x"]': 0}, "leaves": [content]}


@pytest.mark.parametrize(
    "content",
    [
        moments(count=-1),
        moments(count="3"),
        moments(count=2.5),
        moments(count=True),
        moments(m={"shape": []}),
        moments(m={"shape": [-1, -2]}),
        moments(m={"shape": [10**15]}),
        moments(m={"dtype": "float64"}),
        leaf_of_adam := {
            "format": 1,
            "places": {'["x"]': 0},
            "leaves": [{"rule": {"class": "Adam"}, "state": [], "frozen": False}],
        },
        {k: v for k, v in leaf_of_adam.items() if k != "format"},
        {**leaf_of_adam, "places": {'["x"]': 7}},
    ],
)
def test_numbers_that_do_not_fit_are_refused(path, content):
    write(path, content, **{"0": np.zeros(8, np.uint8)})
    with pytest.raises(ValueError, match=r"load: .*state\.npz is not a state that"):
        load(path)


def test_the_whole_of_such_a_file_is_taken(path):
    write(path, moments(), **{"0": np.zeros(8, np.uint8)})
    assert load(path)["x"].state[2] == 3


class Trap:
    def __reduce__(self):
        return pytest.fail, ("the file was unpickled",)


def write(path, content, **arrays):
    text = np.frombuffer(json.dumps(content).encode(), dtype=np.uint8)
    np.savez(path, json=text, **arrays)


def leaf_of(rule, state=()):
    content = {"rule": rule, "state": list(state), "frozen": False}
    return {"format": 1, "places": {'["x"]': 0}, "leaves": [content]}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"not a zip file"),
        lambda path: path.write_bytes(pickle.dumps(Trap())),
        lambda path: np.savez(path, json=np.array([Trap()], dtype=object)),
        lambda path: np.savez(path, weights=np.ones(2)),
        lambda path: torch.save({"x": 1}, path),
        lambda path: path.write_bytes(path.read_bytes()[:200]),
        lambda path: write(path, []),
        lambda path: write(path, leaf_of({"class": "Trap"})),
        lambda path: write(path, leaf_of({"class": "Adam", "eta": -1})),
        lambda path: write(path, leaf_of({"class": "Adam", "speed": 1})),
        lambda path: write(
            path,
            leaf_of(
                {"class": "Descent"}, [{"array": "0", "dtype": "save", "shape": [0]}]
            ),
            **{"0": np.zeros(0, "uint8")},
        ),
        lambda path: write(
            path,
            leaf_of(
                {"class": "Descent"}, [{"array": "0", "dtype": "float32", "shape": [9]}]
            ),
            **{"0": np.zeros(8, "uint8")},
        ),
    ],
)
def test_a_spoiled_file_is_refused_and_nothing_in_it_is_run(path, spoil):
    save(path, setup(Adam(), {"x": torch.ones(2)}))
    spoil(path)
    with pytest.raises(ValueError, match=r"load: .*state\.npz is not a state that"):
        load(path)
