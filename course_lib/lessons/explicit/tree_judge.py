"""What the checks of lesson 06 say about trees: their keys, kinds and numbers.

Each function raises `NotYet` with the name of a mistake, or returns.
"""

from typing import Any

import torch
from torch import Tensor

from course_lib.lessons.checks import Mistakes, close, name_mistake, require_kind
from course_lib.lessons.exercises import NotYet
from course_lib.trees import Tree, dotted, map_tree, walk


def copied(tree: Tree) -> Tree:
    """Return the tree with a copy of each tensor."""
    return map_tree(lambda path, tensor: tensor.clone(), tree)


def same(got: Tree, wanted: Tree) -> bool:
    """Tell whether the tree has the wanted numbers, at the same places."""
    at = dict(walk(got))
    return all(close(at[path], tensor) for path, tensor in walk(wanted))


def require_keys(got: Any, wanted: Tree, place: str) -> None:
    """Refuse a tree that lacks a place of the wanted one."""
    require_kind(got, dict, "nested dicts", what=f"`{place}`")
    for path, _ in walk(wanted):
        node = got
        for key in path:
            if not isinstance(node, dict) or key not in node:
                raise NotYet(
                    f"What `{place}` returned has no `{dotted(path)}`: it should have "
                    "the keys of the tree that it was given, level by level."
                )
            node = node[key]
    known = {path for path, _ in walk(wanted)}
    for path, _ in walk(got):
        if len(path) == 1 and path not in known:
            raise NotYet(
                f"What `{place}` returned has a `{dotted(path)}`, and the tree that it "
                "was given has none. Is it left from an earlier call? A default value "
                "`{}` in the head is made once, for all calls."
            )


def require_tree(
    got: Tree,
    wanted: Tree,
    place: str,
    mistakes: Mistakes,
    words: str = "those of autograd",
) -> None:
    """Accept the wanted tensors; name the mistake that gives the ones we got."""
    for path, tensor in walk(wanted):
        what, at = f"`{dotted(path)}`", got
        for key in path:
            at = at[key]
        require_kind(at, Tensor, "a tensor", what=what, verb="is")
        if at.shape not in (tensor.shape, tensor.shape[1:]):
            shapes = f"shape {tuple(at.shape)}; wanted {tuple(tensor.shape)}"
            raise NotYet(f"{what} has {shapes}.")
    if not same(got, wanted):
        name_mistake(got, mistakes, same=same)
        raise NotYet(f"The numbers of `{place}` are wrong; wanted {words}.")
    for path, tensor in walk(got):
        require_dtype(tensor, f"`{dotted(path)}`")


def require_dtype(got: Tensor, what: str) -> None:
    """Refuse right numbers of another kind than float32, which all inputs have."""
    if got.dtype != torch.float32:
        raise NotYet(
            f"{what} is {got.dtype}; wanted float32, as what you were given. Does a "
            "`.double()` or `.half()` stand in your code?"
        )
