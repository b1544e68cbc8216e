"""Save and load the state of rules without pickle: arrays and JSON in one file."""

import json
import os
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from course_lib import rules
from course_lib.counts import Count, TracedCount
from course_lib.rules import Chain, Rule
from course_lib.states import Leaf, each_leaf
from course_lib.trees import Tree, walk

Arrays = dict[str, np.ndarray]
_RULES = {name: kind for name, kind in vars(rules).items() if isinstance(kind, type)}
_RULES = {n: kind for n, kind in _RULES.items() if issubclass(kind, Rule)}


def save(path: str | os.PathLike[str], state: Tree) -> None:
    """Write a state to one `.npz` file, in one step or not at all; nothing is pickled.

    The file holds the arrays, and the rules with their hyperparameters as JSON.

    Raises:
        ValueError: no state, or a rule that is not of course_lib.rules.
    """
    if isinstance(state, Leaf):
        raise ValueError(
            "save: got a Leaf; wanted a state in nested dicts, for example {'x': leaf}."
        )
    distinct: dict[int, Leaf] = {}  # a tied leaf stands at several places, stored once
    places: dict[str, int] = {}
    for keys, leaf in walk(each_leaf("save", state, lambda keys, leaf: leaf)):
        distinct.setdefault(id(leaf), leaf)
        places[json.dumps(keys)] = list(distinct).index(id(leaf))
    arrays: Arrays = {}
    leaves = [_leaf_to_json(v, str(i), arrays) for i, v in enumerate(distinct.values())]
    text = json.dumps({"format": 1, "places": places, "leaves": leaves})
    arrays["json"] = np.frombuffer(text.encode(), dtype=np.uint8)
    _write(Path(path), arrays)


def load(path: str | os.PathLike[str], *, device: Any = None) -> Tree:
    """Read a state that `save` wrote, onto a device.

    Raises:
        ValueError: not such a file, with what is wrong; nothing in it is run.
    """
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = dict(file)  # np.load by itself leaves a broken file open
        content = json.loads(arrays.pop("json").tobytes())
        leaves = [_leaf_from_json(leaf, arrays, device) for leaf in content["leaves"]]
        state: Tree = {}
        for place, number in content["places"].items():
            *folders, last = json.loads(place)
            tree = state
            for folder in folders:
                tree = tree.setdefault(folder, {})
            tree[last] = leaves[number]
    except FileNotFoundError:
        raise ValueError(f"load: there is no file {path}.") from None
    except Exception as error:
        raise ValueError(
            f"load: {path} is not a state that course_lib.explicit.save wrote "
            f"({type(error).__name__}: {error})."
        ) from error
    return state


def _leaf_to_json(leaf: Leaf, key: str, arrays: Arrays) -> dict[str, Any]:
    rule, state = _rule_to_json(leaf.rule), _to_json(leaf.state, key, arrays)
    return {"rule": rule, "state": state, "frozen": leaf.frozen}


def _leaf_from_json(content: dict[str, Any], arrays: Arrays, device: Any) -> Leaf:
    rule = _rule_from_json(content["rule"])
    state = _from_json(content["state"], arrays, device)
    return Leaf(rule, state, bool(content["frozen"]))


def _rule_to_json(rule: Any) -> dict[str, Any]:
    name = type(rule).__name__
    if _RULES.get(name) is not type(rule):
        raise ValueError(
            f"save: {rule!r} is not one of course_lib.rules, so a file can't name it. "
            "Save what it remembers yourself."
        )
    if isinstance(rule, Chain):
        return {"class": name, "rules": [_rule_to_json(r) for r in rule.rules]}
    return {
        "class": name,
        **{f.name: _value(getattr(rule, f.name)) for f in fields(rule)},
    }


def _value(value: Any) -> Any:
    if isinstance(value, Rule):
        return _rule_to_json(value)
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    return value


def _rule_from_json(content: dict[str, Any]) -> Rule:
    content = dict(content)
    kind = _RULES[content.pop("class")]
    if kind is Chain:
        return Chain(*map(_rule_from_json, content["rules"]))
    return kind(**{name: _argument(value) for name, value in content.items()})


def _argument(value: Any) -> Any:
    if isinstance(value, dict) and "dtype" in value:
        return _dtype(value["dtype"])
    if isinstance(value, dict):
        return _rule_from_json(value)
    return tuple(value) if isinstance(value, list) else value


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{name!r} is no dtype")
    return dtype


def _to_json(state: Any, key: str, arrays: Arrays) -> Any:
    """Describe a state: tensors go into `arrays`, tuples become lists."""
    if isinstance(state, Tensor):
        tensor = state.detach().cpu().reshape(-1).contiguous()
        arrays[key] = tensor.view(torch.uint8).numpy()
        dtype = str(tensor.dtype).removeprefix("torch.")
        return {"array": key, "dtype": dtype, "shape": list(state.shape)}
    if isinstance(state, tuple):
        return [_to_json(s, f"{key}.{i}", arrays) for i, s in enumerate(state)]
    if state is None:
        return None
    if isinstance(state, Count | TracedCount):
        return {"count": int(state)}
    raise ValueError(
        f"save: a state holds {type(state).__name__}; wanted tensors, "
        "counts, None or tuples of these."
    )


def _from_json(content: Any, arrays: Arrays, device: Any) -> Any:
    if isinstance(content, list):
        return tuple(_from_json(part, arrays, device) for part in content)
    if content is None:
        return None
    if "count" in content:
        return Count(content["count"])
    tensor = torch.empty(content["shape"], dtype=_dtype(content["dtype"]))
    raw = torch.from_numpy(arrays[content["array"]])
    tensor.reshape(-1).view(torch.uint8).copy_(raw)
    return tensor.to(device)


def _write(path: Path, arrays: Arrays) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.absolute().parent, prefix=".state")
    try:
        with os.fdopen(handle, "wb") as stream:
            np.savez(stream, **arrays)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
