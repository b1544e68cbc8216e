"""Save and load the state of rules without pickle: arrays and JSON in one file."""

import json
import math
import os
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from course_lib import rules
from course_lib.explicit.states import Leaf, each_leaf
from course_lib.files import replacing
from course_lib.rules.base import Rule, has_form_of, is_rule
from course_lib.rules.composing import Chain
from course_lib.rules.counts import Count, TracedCount
from course_lib.trees import Path as Keys
from course_lib.trees import Tree, branches, walk

FORMAT = 1  # of the files; one of another number is refused
Arrays = dict[str, np.ndarray]
_RULES = {name: getattr(rules, name) for name in rules.__all__}


def save(path: str | os.PathLike[str], state: Tree) -> None:
    """Write a state to one `.npz` file, in one step or not at all; nothing is pickled.

    The file holds the arrays, and the rules with their hyperparameters as JSON. `load`
    returns lists and tuples as such, a named tuple as a dict of its fields; `update`
    accepts that in its place.

    Raises:
        ValueError: no state, a rule that is not of course_lib.rules, or a key of a dict
            that is neither a string nor an integer.
        OSError: the file can't be written; what was there before is unchanged.
    """
    place = _path("save", path)
    if isinstance(state, Leaf):
        raise ValueError(
            "save: got a Leaf; wanted a state in nested dicts, for example {'x': leaf}."
        )
    arrays = _to_arrays(state)
    try:
        with replacing(place) as stream:
            np.savez(stream, **arrays)
    except OSError as error:
        advised = type(error)(
            f"save: {path} was not written ({error.strerror or error}); what was there "
            "before is unchanged. Wanted a file in a folder that exists, that may be "
            "written to and has room."
        )
        advised.errno = error.errno
        raise advised from error


def _to_arrays(state: Tree) -> Arrays:
    """Return the arrays of a file, one of which is the JSON of all the rest."""
    numbers: dict[int, int] = {}  # of the distinct leaves: a tied one is stored once
    places: dict[str, int] = {}
    arrays: Arrays = {}
    leaves = []
    for path, leaf in walk(each_leaf("save", state, lambda _, leaf: leaf)):
        for key in path:
            if not isinstance(key, str | int):
                raise ValueError(
                    f"save: {key!r} is a key of the state; wanted strings or integers, "
                    "which a file can hold. Use another key."
                )
        number = numbers.setdefault(id(leaf), len(numbers))
        places[json.dumps(path)] = number
        if number == len(leaves):
            rule = _rule_to_json(leaf.rule)
            described = _state_to_json(leaf.state, str(number), arrays)
            leaves.append({"rule": rule, "state": described, "frozen": leaf.frozen})
    kinds = {json.dumps(path): kind for path, kind in _containers(state)}
    content = {"format": FORMAT, "places": places, "containers": kinds}
    text = json.dumps({**content, "leaves": leaves})
    return {**arrays, "json": np.frombuffer(text.encode(), dtype=np.uint8)}


def load(path: str | os.PathLike[str], *, device: Any = None) -> Tree:
    """Read a state that `save` wrote, onto a device.

    Raises:
        ValueError: not such a file, or one that can't be read, or no such device; with
            what is wrong. Nothing in the file is run.
    """
    place = _path("load", path)
    try:
        state = _read(place)
    except FileNotFoundError:
        raise ValueError(f"load: there is no file {path}.") from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise ValueError(
                f"load: {path} can't be read ({error.strerror}); wanted a file that "
                "save wrote."
            ) from error
        raise ValueError(
            f"load: {path} is not a state that course_lib.explicit.save wrote "
            f"({type(error).__name__}: {error})."
        ) from error
    return state if device is None else _moved(state, device)


def _path(place: str, path: Any) -> Path:
    if not isinstance(path, str | bytes | os.PathLike):
        raise ValueError(
            f"{place}: got {type(path).__name__} for the path; wanted a str or a Path, "
            "for example 'state.npz'."
        )
    name = os.fsdecode(path)
    if "\0" in name:
        raise ValueError(
            f"{place}: got {name!r}; wanted a path without null characters."
        )
    return Path(name)


def _read(path: Path) -> Tree:
    with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
        arrays = dict(file)  # np.load by itself leaves a broken file open
    content = json.loads(arrays.pop("json").tobytes())
    if content["format"] != FORMAT:
        raise ValueError(
            f"its format is {content['format']!r}, this course_lib reads {FORMAT}; "
            "install the version that wrote it"
        )
    leaves = [_leaf_from_json(leaf, arrays) for leaf in content["leaves"]]
    places = {place: leaves[i] for place, i in content["places"].items()}
    return _tree(places, content.get("containers", {}))


def _containers(state: Tree, path: Keys = ()) -> Iterator[tuple[Keys, str]]:
    """Yield (path, kind) of the containers that the leaves' paths do not show."""
    children = branches(state)
    if children is None:
        return
    if isinstance(state, list | tuple) and not hasattr(state, "_fields"):
        yield path, "list" if isinstance(state, list) else "tuple"
    elif not children:
        yield path, "dict"
    for key, child in children.items():
        yield from _containers(child, (*path, key))


def _tree(places: dict[str, Leaf], kinds: dict[str, str]) -> Tree:
    """Build a state from the leaves' paths and the containers', both as JSON."""
    root: dict[Any, Any] = {}
    for place, leaf in places.items():
        *folders, last = json.loads(place)
        _folder(root, folders)[last] = leaf
    for place in sorted(kinds, key=lambda place: -len(json.loads(place))):
        path = json.loads(place)
        children = _folder(root, path)
        if kinds[place] == "dict":
            continue
        values = [children[i] for i in range(len(children))]
        sequence = tuple(values) if kinds[place] == "tuple" else values
        if not path:
            return sequence
        _folder(root, path[:-1])[path[-1]] = sequence
    return root


def _folder(tree: dict[Any, Any], path: list[Any]) -> dict[Any, Any]:
    for key in path:
        tree = tree.setdefault(key, {})
    return tree


def _moved(state: Tree, device: Any) -> Tree:
    def leaf(_: Keys, leaf: Leaf) -> Leaf:
        moved = pytree.tree_map_only(Tensor, lambda x: x.to(device), leaf.state)
        return Leaf(leaf.rule, moved, leaf.frozen)

    try:
        torch.empty(0, device=device)
        return each_leaf("load", state, leaf)
    except (RuntimeError, AssertionError, TypeError) as error:
        first = str(error).partition("\n")[0]
        raise ValueError(
            f"load: got device={device!r}, where torch can't put arrays here "
            f"({first}). Wanted a device of this machine, for example 'cpu'."
        ) from error


def _leaf_from_json(content: dict[str, Any], arrays: Arrays) -> Leaf:
    rule = _rule_from_json(content["rule"])
    state = _state_from_json(content["state"], arrays)
    if not any(_is_of(rule, state, kind) for kind in (torch.float32, torch.complex64)):
        raise ValueError(f"it has a state that {rule} does not make")
    return Leaf(rule, state, bool(content["frozen"]))


def _is_of(rule: Rule, state: Any, dtype: torch.dtype) -> bool:
    try:
        return has_form_of(rule, state, torch.zeros(1, dtype=dtype))
    except ValueError:  # a MixedPrecision of the other kind
        return False


# Rules


def _rule_to_json(rule: Any) -> dict[str, Any]:
    name = type(rule).__name__
    if _RULES.get(name) is not type(rule):
        raise ValueError(
            f"save: {rule!r} is not one of course_lib.rules, so a file can't name it. "
            "Save its state yourself."
        )
    values = {spec.name: getattr(rule, spec.name) for spec in fields(rule)}
    return {"class": name, **{key: _value_to_json(v) for key, v in values.items()}}


def _value_to_json(value: Any) -> Any:
    """Describe a hyperparameter; tuples become lists in the JSON."""
    if isinstance(value, tuple):
        return [_value_to_json(part) for part in value]
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    return _rule_to_json(value) if is_rule(value) else value


def _rule_from_json(content: Any) -> Any:
    if isinstance(content, list):
        return tuple(map(_rule_from_json, content))
    if not isinstance(content, dict):
        return content
    if "class" not in content:
        return _dtype(content["dtype"])
    name = content["class"]
    if name not in _RULES:
        raise ValueError(f"it names a rule {name!r}, which this course_lib has not")
    values = {k: _rule_from_json(v) for k, v in content.items() if k != "class"}
    return Chain(*values["rules"]) if _RULES[name] is Chain else _RULES[name](**values)


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{name!r} is no dtype")
    return dtype


# States


def _state_to_json(state: Any, key: str, arrays: Arrays) -> Any:
    """Describe a state: tensors go into `arrays`, tuples become lists."""
    if isinstance(state, Tensor):
        tensor = state.detach().cpu().reshape(-1).contiguous()
        arrays[key] = tensor.view(torch.uint8).numpy()
        dtype = str(tensor.dtype).removeprefix("torch.")
        return {"array": key, "dtype": dtype, "shape": list(state.shape)}
    if isinstance(state, tuple):
        return [_state_to_json(s, f"{key}.{i}", arrays) for i, s in enumerate(state)]
    if isinstance(state, Count | TracedCount):
        return {"count": int(state)}
    raise ValueError(
        f"save: a state holds {type(state).__name__}; wanted tensors, "
        "counts or tuples of these."
    )


def _state_from_json(content: Any, arrays: Arrays) -> Any:
    if isinstance(content, list):
        return tuple(_state_from_json(part, arrays) for part in content)
    if "count" in content:
        count = content["count"]
        if type(count) is not int or count < 0:
            raise ValueError(f"it counts {count!r} steps")
        return Count(count)
    dtype, raw = _dtype(content["dtype"]), arrays[content["array"]]
    size = math.prod(content["shape"]) * dtype.itemsize
    is_negative = min(content["shape"], default=0) < 0
    if raw.dtype != np.uint8 or raw.size != size or is_negative:
        raise ValueError(f"an array has {raw.size} bytes of {raw.dtype}, wanted {size}")
    tensor = torch.empty(content["shape"], dtype=dtype)
    tensor.reshape(-1).view(torch.uint8).copy_(torch.from_numpy(raw))
    return tensor
