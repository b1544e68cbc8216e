"""Trees of tensors: nested dicts that mirror a model, walked, mapped and flattened.

A tensor that stands at several places of a tree is tied: it counts once.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

_top_transform = torch._C._functorch.peek_interpreter_stack
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
    return ".".join(map(str, path)) or "(root)"


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


def require_module(place: str, model: object) -> None:
    """Raise ValueError unless `model` is a module, and not, say, its parameters."""
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"{place}: got {type(model).__name__}; wanted an nn.Module. Pass the model "
            "itself, not its parameters."
        )


def require_tensors(place: str, what: str, tree: object) -> None:
    """Raise ValueError unless `tree` is a dict of nested dicts of tensors."""
    require_tree(place, what, tree)
    for path, leaf in walk(tree):
        if not isinstance(leaf, Tensor):
            raise ValueError(
                f"{place}: {dotted(path)!r} is {type(leaf).__name__}; wanted a tensor. "
                "parameters(model) gives a tree of them."
            )


def is_transformed(x: Tensor) -> bool:
    """Tell whether a torch.func transform wraps the tensor, which has no value yet."""
    is_compiling = torch.compiler.is_compiling()  # which can't trace the question
    return not is_compiling and torch._C._functorch.is_functorch_wrapped_tensor(x)


def is_tracked(x: Tensor) -> bool:
    """Tell whether a gradient with respect to the tensor is asked for, at any level."""
    while not x.requires_grad and is_transformed(x):  # vmap's own tensors never do
        x = torch._C._functorch.get_unwrapped(x)
    return x.requires_grad


def is_transforming() -> bool:
    """Tell whether we are inside a torch.func transform, of whichever tensor."""
    is_compiling = torch.compiler.is_compiling()
    return not is_compiling and torch._C._functorch.peek_interpreter_stack() is not None


def is_forward() -> bool:
    """Tell whether torch takes forward-mode derivatives: a tensor may be dual."""
    return not torch.compiler.is_compiling() and forward_ad._current_level >= 0


def is_watching() -> bool:
    """Tell whether a compiler, a transform or forward mode looks at what we compute."""
    if torch.compiler.is_dynamo_compiling():  # quicker to ask than is_compiling
        return True
    return _top_transform() is not None or forward_ad._current_level >= 0


def trainables(params: Tree) -> dict[str, Tensor]:
    """Return {path: tensor} of the distinct tensors; a tie stands at its first path.

    >>> w = torch.zeros(2)
    >>> list(trainables({"encoder": {"weight": w}, "decoder": {"weight": w}}))
    ['encoder.weight']
    """
    require_tensors("trainables", "params", params)
    return untied(params)[0]


def untied(params: Tree) -> tuple[dict[str, Tensor], Callable[..., Tree]]:
    """Return (distinct tensors by name, function that puts others in their places)."""
    names: dict[int, str] = {}
    distinct: dict[str, Tensor] = {}
    for path, tensor in walk(params):
        if id(tensor) not in names:
            names[id(tensor)] = dotted(path)
            distinct[dotted(path)] = tensor
    first = map_tree(lambda path, tensor: names[id(tensor)], params)
    return distinct, lambda tensors: map_tree(lambda _, name: tensors[name], first)


def destructure(params: Tree) -> tuple[Tensor, Callable[[Tensor], Tree]]:
    """Return (flat vector of the distinct tensors, function that rebuilds the tree).

    Both can be differentiated. A tied tensor is in the vector once. Tensors of several
    dtypes share a vector of the widest, and have their own again in the tree.

    >>> flat, rebuild = destructure({"a": torch.ones(2), "b": {"c": torch.zeros(1)}})
    >>> flat
    tensor([1., 1., 0.])
    >>> rebuild(2 * flat)["a"]
    tensor([2., 2.])
    """
    require_tensors("destructure", "params", params)
    distinct, tree_of = untied(params)
    kinds = [(tensor.shape, tensor.dtype) for tensor in distinct.values()]
    sizes = [shape.numel() for shape, _ in kinds]
    total = sum(sizes)

    def rebuild(flat: Tensor) -> Tree:
        if flat.shape != (total,):
            raise ValueError(
                f"rebuild: got shape {tuple(flat.shape)}; wanted ({total},), the "
                "length of the vector that destructure gave."
            )
        tensors = {}
        for name, part, (shape, dtype) in zip(
            distinct, flat.split(sizes), kinds, strict=True
        ):
            part = part if dtype.is_complex or not part.is_complex() else part.real
            tensors[name] = part.reshape(shape).to(dtype)
        return tree_of(tensors)

    parts = [tensor.reshape(-1) for tensor in distinct.values()]
    return torch.cat(parts or [torch.zeros(0)]), rebuild
