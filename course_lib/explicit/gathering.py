"""The distinct tensors that take a step, gathered from the trees and checked."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from course_lib.explicit.states import Leaf
from course_lib.rules.plain import Descent
from course_lib.trees import Path, Tree, branches, dotted, is_transforming, require_tree

Kind = tuple[torch.Size, torch.dtype, torch.device]


@dataclass(slots=True)
class Item:
    """A distinct tensor that takes a step: its path, its leaf and its gradients."""

    path: Path
    tensor: Tensor
    leaf: Leaf
    grad: Tensor | None
    others: list[Tensor] | None = None  # gradients of the other places of a tie

    def add(self, grad: Tensor) -> None:
        """Add the gradient of one more place, unless it is an array that we have."""
        if self.grad is None:
            self.grad = grad
            return
        self.others = self.others or []
        if not any(_is_same(grad, known) for known in (self.grad, *self.others)):
            self.others.append(grad)


def _is_same(one: Tensor, other: Tensor) -> bool:
    """Tell whether two gradients are one array, perhaps in two Python objects."""
    if one is other:
        return True
    if not (one.layout is other.layout is torch.strided) or is_transforming():
        return False
    return one.is_set_to(other)


def gather(caller: str, state: Tree, params: Tree, grads: Tree) -> list[Item]:
    """Return the items that have a gradient and are not frozen.

    Raises:
        ValueError: the trees do not fit each other; with the path.
    """
    require_tree(caller, "params", params)
    is_single = isinstance(params, Tensor)  # one tensor, whose state is one leaf
    if not (is_single and isinstance(state, Leaf)):
        require_tree(caller, "state", state)
    if not (is_single and grads is None):
        require_tree(caller, "grads", grads)
    found: dict[int, Item] = {}
    _gather(caller, state, params, grads, (), found)
    items = [i for i in found.values() if i.grad is not None and not i.leaf.frozen]
    for item in items:
        if item.others:  # torch adds a sparse tensor to a dense one, not vice versa
            first, *rest = sorted([item.grad, *item.others], key=lambda g: g.is_sparse)
            item.grad = sum(rest, first)
        if item.grad.layout is not torch.strided and not (
            item.grad.is_sparse and isinstance(item.leaf.rule, Descent)
        ):
            raise ValueError(
                f"{caller}: the gradient of {dotted(item.path)!r} is sparse; call "
                ".to_dense() on it."
            )
    return items


def _gather(
    caller: str, state: Any, params: Any, grads: Any, path: Path, found: dict[int, Item]
) -> None:
    """Walk the three trees at once; raise, with the path, where they differ."""
    if type(params) is type(state) is type(grads) is dict:  # the usual case, quicker
        children, leaves, gradients = params, state, grads
    elif isinstance(params, Tensor) or branches(params) is None:
        _gather_one(caller, state, params, grads, path, found)
        return
    else:
        children, leaves = branches(params), branches(state)
        gradients = {} if grads is None else branches(grads)
    if leaves is None or leaves.keys() != children.keys():
        got = repr(state) if leaves is None else _names(leaves)
        raise ValueError(
            f"{caller}: at {dotted(path)!r} the state has {got}; the parameters have "
            f"{_names(children)}. Call setup(rule, params) for these parameters."
        )
    # Only a dict of gradients may have fewer children.
    is_short = isinstance(grads, list | tuple) and len(grads) != len(children)
    if gradients is None or is_short or not gradients.keys() <= children.keys():
        got = type(grads).__name__
        if gradients is not None:
            extra = _names(key for key in gradients if key not in children)
            got = f"{len(grads)} places" if is_short else extra
        raise ValueError(
            f"{caller}: at {dotted(path)!r} the gradients have {got}, which the "
            f"parameters ({_names(children)}) have not. Take gradients with "
            "respect to these params."
        )
    for key, child in children.items():
        leaf, gradient = leaves[key], gradients.get(key)
        # The plain case without a call, for there may be thousands of arrays.
        if type(leaf) is Leaf and isinstance(child, Tensor) and id(child) not in found:
            kind = child.shape, child.dtype, child.device
            if isinstance(gradient, Tensor) and _fits(gradient, kind):
                if not _fits(leaf.state, kind):
                    _require_state(caller, (*path, key), child, leaf)
                found[id(child)] = Item((*path, key), child, leaf, gradient)
                continue
        _gather(caller, leaf, child, gradient, (*path, key), found)


def _gather_one(
    caller: str, leaf: Any, tensor: Any, grad: Any, path: Path, found: dict[int, Item]
) -> None:
    _require_types(caller, path, tensor, leaf, grad)
    kind = tensor.shape, tensor.dtype, tensor.device
    if grad is not None and not _fits(grad, kind):
        raise ValueError(
            f"{caller}: the gradient of {dotted(path)!r} has shape "
            f"{tuple(grad.shape)}, {grad.dtype} on {grad.device}; the parameter has "
            f"shape {tuple(tensor.shape)}, {tensor.dtype} on {tensor.device}. Take "
            "gradients with respect to these params."
        )
    known = found.get(id(tensor))
    if known is None:
        if not _fits(leaf.state, kind):
            _require_state(caller, path, tensor, leaf)
        found[id(tensor)] = Item(path, tensor, leaf, grad)
        return
    if known.leaf is not leaf:
        known.leaf = _reconcile(caller, known, path, leaf)
    if grad is not None:
        known.add(grad)


def _fits(thing: Any, kind: Kind) -> bool:
    """Tell whether a tensor, or each in a tuple, is of this kind."""
    for part in thing if isinstance(thing, tuple) else (thing,):
        if type(part) is Tensor or isinstance(part, Tensor):  # plain: there are many
            if (part.shape, part.dtype, part.device) != kind:
                return False
        elif isinstance(part, tuple) and not _fits(part, kind):
            return False
    return True


def _names(keys: Iterable[Any]) -> str:
    return ", ".join(map(str, keys))


def _require_types(caller: str, path: Path, tensor: Any, leaf: Any, grad: Any) -> None:
    for name, thing, wanted in (
        ("parameter", tensor, Tensor),
        ("state", leaf, Leaf),
        ("gradient", grad, Tensor),
    ):
        if not isinstance(thing, wanted) and not (name == "gradient" and thing is None):
            raise ValueError(
                f"{caller}: the {name} of {dotted(path)!r} is {type(thing).__name__}; "
                f"wanted a {wanted.__name__}. Do all trees belong to these params?"
            )


def _require_state(caller: str, path: Path, tensor: Tensor, leaf: Leaf) -> None:
    """Refuse the state of another tensor; what fits is what the rule's init makes."""
    got, wanted = (
        [p for p in pytree.tree_leaves(state) if isinstance(p, Tensor)]
        for state in (leaf.state, leaf.rule.init(tensor.detach()))
    )
    for part, want in zip(got, wanted, strict=False):
        if not _fits(part, (want.shape, want.dtype, want.device)):
            raise ValueError(
                f"{caller}: the state of {dotted(path)!r} is {_kind(part)}; for this "
                f"parameter, {_kind(tensor)}, the rule wants {_kind(want)}. Call "
                "setup(rule, params) for these parameters."
            )


def _kind(tensor: Tensor) -> str:
    return f"{tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}"


def _reconcile(caller: str, known: Item, path: Path, leaf: Leaf) -> Leaf:
    if known.leaf.rule != leaf.rule:
        raise ValueError(
            f"{caller}: {dotted(known.path)!r} and {dotted(path)!r} are one tied "
            f"tensor, but have the rules {known.leaf.rule} and {leaf.rule}. "
            "Adjust both."
        )
    return replace(known.leaf, frozen=known.leaf.frozen or leaf.frozen)
