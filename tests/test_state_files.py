"""States written and read: every bit, no pickle, all or nothing."""

from __future__ import annotations

import json
import math
import pickle

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from course_lib.explicit import Leaf, freeze, load, save, setup, update
from course_lib.rules import (
    AccumulateGradients,
    Adam,
    Chain,
    ClipNorm,
    Descent,
    MixedPrecision,
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


def test_ties_are_stored_once_and_kept(path):
    params = {"a": SHARED, "b": {"again": SHARED}}
    state = setup(Adam(), params)
    save(path, state)
    read = load(path)
    assert read["a"] is read["b"]["again"]
    with np.load(path) as file:
        assert len(file.files) == 3  # json, m, v
    grads = map_tree(lambda keys, x: torch.ones_like(x), params)
    assert_close(update(read, params, grads)[1], update(state, params, grads)[1])


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
        ({"x": Leaf(Adam(), {"m": 1})}, "save: a state holds dict; wanted tensors"),
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
