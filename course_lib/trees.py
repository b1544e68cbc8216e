"""Trees of tensors: nested dicts that mirror a model, walked, mapped and flattened.

A tensor that stands at several places of a tree is tied: it counts once.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

Tree = dict[str, Any]  # nested dicts whose leaves are tensors
Path = tuple[str, ...]


def walk(tree: Tree, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield (path, leaf) in the order of the dicts."""
    for key, child in tree.items():
        if isinstance(child, dict):
            yield from walk(child, (*path, key))
        else:
            yield (*path, key), child


def map_tree(function: Callable[[Path, Any], Any], tree: Tree, path: Path = ()) -> Tree:
    """Return a tree of the same shape with function(path, leaf) for each leaf."""
    return {
        key: map_tree(function, child, (*path, key))
        if isinstance(child, dict)
        else function((*path, key), child)
        for key, child in tree.items()
    }


def dotted(path: Path) -> str:
    """Return the path as one name, for messages and files."""
    return ".".join(path) or "(root)"


def insert(tree: Tree, name: str, leaf: Any) -> None:
    """Put a leaf at a dotted name, making the dicts on the way."""
    *folders, last = name.split(".")
    for folder in folders:
        tree = tree.setdefault(folder, {})
    tree[last] = leaf


def require_tree(place: str, what: str, tree: object) -> None:
    """Raise ValueError unless `tree` is a dict; a model gets advice of its own."""
    if isinstance(tree, nn.Module):
        raise ValueError(
            f"{place}: got a {type(tree).__name__} for {what}; wanted nested dicts of "
            "tensors. parameters(model) gives them."
        )
    if not isinstance(tree, dict):
        raise ValueError(
            f"{place}: got {type(tree).__name__} for {what}; wanted nested dicts, as "
            "parameters(model) gives them."
        )


def is_transformed(x: Tensor) -> bool:
    """Tell whether a torch.func transform wraps the tensor, which has no value yet."""
    is_compiling = torch.compiler.is_compiling()  # which can't trace the question
    return not is_compiling and torch._C._functorch.is_functorch_wrapped_tensor(x)


def trainables(params: Tree) -> dict[str, Tensor]:
    """Return {path: tensor} of the distinct tensors; a tie stands at its first path.

    >>> w = torch.zeros(2)
    >>> list(trainables({"encoder": {"weight": w}, "decoder": {"weight": w}}))
    ['encoder.weight']
    """
    require_tree("trainables", "params", params)
    seen: dict[int, tuple[str, Tensor]] = {}
    for path, tensor in walk(params):
        seen.setdefault(id(tensor), (dotted(path), tensor))
    return dict(seen.values())


def destructure(params: Tree) -> tuple[Tensor, Callable[[Tensor], Tree]]:
    """Return (flat vector of the distinct tensors, function that rebuilds the tree).

    Both can be differentiated. A tied tensor is in the vector once.

    >>> flat, rebuild = destructure({"a": torch.ones(2), "b": {"c": torch.zeros(1)}})
    >>> flat
    tensor([1., 1., 0.])
    >>> rebuild(2 * flat)["a"]
    tensor([2., 2.])
    """
    distinct = trainables(params)
    shapes = [tensor.shape for tensor in distinct.values()]
    sizes = [shape.numel() for shape in shapes]
    places = {id(tensor): i for i, tensor in enumerate(distinct.values())}
    order = map_tree(lambda path, tensor: places[id(tensor)], params)
    total = sum(sizes)

    def rebuild(flat: Tensor) -> Tree:
        if flat.shape != (total,):
            raise ValueError(
                f"rebuild: got shape {tuple(flat.shape)}; wanted ({total},), the "
                "length of the vector that destructure gave."
            )
        parts = zip(flat.split(sizes), shapes, strict=True)
        tensors = [part.view(shape) for part, shape in parts]
        return map_tree(lambda path, place: tensors[place], order)

    flat = torch.cat([tensor.reshape(-1) for tensor in distinct.values()])
    return flat, rebuild
