"""Trees of tensors, walked, mapped and flattened: nested dicts, lists and tuples.

The tree of a model is nested dicts that mirror it. One tensor alone is a tree, too. A
tensor that stands at several places of a tree is tied: it counts once.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.graph import get_gradient_edge

_innermost_transform = torch._C._functorch.peek_interpreter_stack
Tree = Any  # nested dicts, lists, tuples and named tuples of tensors; or one tensor
Path = tuple[Any, ...]  # keys of dicts, names of fields, and places in sequences

CONTAINERS = (dict, list, tuple)


def branches(node: Any) -> dict[Any, Any] | None:
    """Return the children of a container by key, name or place; None for a leaf."""
    if isinstance(node, dict):
        return node
    if isinstance(node, tuple) and hasattr(node, "_fields"):  # a named tuple
        return dict(zip(node._fields, node, strict=True))
    return dict(enumerate(node)) if isinstance(node, list | tuple) else None


def rebuilt(node: Any, children: dict[Any, Any]) -> Any:
    """Return a container like this one, with other children at the same keys."""
    if isinstance(node, dict):
        return children
    values = [children[key] for key in branches(node)]
    if isinstance(node, list):
        return values
    return type(node)(*values) if hasattr(node, "_fields") else tuple(values)


def walk(tree: Tree, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield (path, leaf) in the order of the containers."""
    if not isinstance(tree, CONTAINERS):
        yield path, tree
        return
    for key, child in branches(tree).items():
        yield from walk(child, (*path, key))


def map_tree(function: Callable[[Path, Any], Any], tree: Tree, path: Path = ()) -> Tree:
    """Return a tree of the same shape with function(path, leaf) for each leaf."""
    if not isinstance(tree, CONTAINERS):
        return function(path, tree)
    children = branches(tree).items()
    return rebuilt(tree, {k: map_tree(function, c, (*path, k)) for k, c in children})


def dotted(path: Path) -> str:
    """Return the path as one name, for messages."""
    return ".".join(map(str, path)) or "(root)"


def insert(tree: Tree, name: str, leaf: Any) -> None:
    """Put a leaf at a dotted name; make the dicts that contain it."""
    *folders, last = name.split(".")
    for folder in folders:
        tree = tree.setdefault(folder, {})
    tree[last] = leaf


def require_tree(caller: str, name: str, tree: object) -> None:
    """Raise ValueError unless `tree` is a container or one tensor."""
    if isinstance(tree, nn.Module):
        raise ValueError(
            f"{caller}: got a {type(tree).__name__} for {name}; wanted nested dicts of "
            "tensors. parameters(model) gives them."
        )
    if not isinstance(tree, (*CONTAINERS, Tensor)):
        raise ValueError(
            f"{caller}: got {type(tree).__name__} for {name}; wanted tensors in nested "
            "dicts, lists or tuples, for example as parameters(model) gives them."
        )


def require_dict(caller: str, name: str, tree: object) -> None:
    """Raise ValueError unless `tree` is a dict, as a module's tree is."""
    require_tree(caller, name, tree)
    if not isinstance(tree, dict):
        raise ValueError(
            f"{caller}: got {type(tree).__name__} for {name}; wanted nested dicts, as "
            f"{name}(model) gives them."
        )


def require_module(caller: str, model: object) -> None:
    """Raise ValueError unless `model` is a module, and not, say, its parameters."""
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"{caller}: got {type(model).__name__}; wanted an nn.Module. Pass the "
            "model itself, not its parameters."
        )


def require_tensors(caller: str, name: str, tree: object) -> None:
    """Raise ValueError unless all leaves of `tree` are tensors."""
    require_tree(caller, name, tree)
    for path, leaf in walk(tree):
        if not isinstance(leaf, Tensor):
            raise ValueError(
                f"{caller}: {dotted(path)!r} is {type(leaf).__name__}; wanted a "
                "tensor. parameters(model) gives a tree of them."
            )


def all_finite(tensors: list[Tensor]) -> bool:
    """Tell whether no number is nan or infinite; a GPU is waited for once.

    >>> all_finite([torch.ones(2)]), all_finite([torch.tensor([1.0, torch.nan])])
    (True, False)
    """
    if not tensors:
        return True
    try:
        norms = torch._foreach_norm(tensors)
    except NotImplementedError:  # a sparse one is among them
        tensors = [t.coalesce().values() if t.is_sparse else t for t in tensors]
        norms = torch._foreach_norm(tensors)
    norms = torch.stack([norm.to(norms[0].device) for norm in norms])
    if all(map(math.isfinite, norms.tolist())):  # one by one takes longer to read
        return True
    return all(bool(t.isfinite().all()) for t in tensors)  # a large norm may overflow


def is_differentiable(x: Tensor) -> bool:
    """Tell whether its numbers are real or complex: others have no derivatives."""
    return x.is_floating_point() or x.is_complex()


def widened(x: Tensor) -> Tensor:
    """Return half precision as float32; other dtypes unchanged."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def is_transformed(x: Tensor) -> bool:
    """Tell whether a torch.func transform wraps the tensor, which has no value yet."""
    is_compiling = torch.compiler.is_compiling()  # which can't trace the question
    return not is_compiling and torch._C._functorch.is_functorch_wrapped_tensor(x)


def is_tracked(x: Tensor) -> bool:
    """Tell whether the tensor requires a gradient, at any level of transforms."""
    return _at_tracked_level(x).requires_grad


def is_attached(x: Tensor) -> bool:
    """Tell whether the tensor was computed from one that requires a gradient."""
    x = _at_tracked_level(x)
    return x.requires_grad and not x.is_leaf


def _at_tracked_level(x: Tensor) -> Tensor:
    while not x.requires_grad and is_transformed(x):  # vmap's own tensors never do
        x = torch._C._functorch.get_unwrapped(x)
    return x


def is_transforming() -> bool:
    """Tell whether we are inside a torch.func transform, of whichever tensor."""
    return not torch.compiler.is_compiling() and _innermost_transform() is not None


def is_forward() -> bool:
    """Tell whether torch takes forward-mode derivatives: a tensor may be dual."""
    return not torch.compiler.is_compiling() and forward_ad._current_level >= 0


def is_any_transform_active() -> bool:
    """Tell whether a compiler, a torch.func transform or forward mode is active."""
    if torch.compiler.is_dynamo_compiling():  # quicker to ask than is_compiling
        return True
    return _innermost_transform() is not None or forward_ad._current_level >= 0


def graph_nodes(tensors: Iterable[Tensor], ends: Iterable[Tensor] = ()) -> Iterator:
    """Yield each node of autograd's graph behind the tensors, once; not past `ends`.

    A leaf's node has the leaf as its `variable`.
    """
    nodes = [_node(tensor) for tensor in tensors]
    seen = {None, *map(_node, ends)}
    while nodes:
        node = nodes.pop()
        if node not in seen:
            seen.add(node)
            yield node
            nodes += [parent for parent, _ in node.next_functions]


def _node(tensor: Tensor) -> Any:
    """Return where a tensor is in the graph below all transforms; None: in none."""
    while is_transformed(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return get_gradient_edge(tensor).node if tensor.requires_grad else None


def trainables(params: Tree) -> dict[str, Tensor]:
    """Return {path: tensor} of the distinct tensors; a tie stands at its first path.

    Raises:
        ValueError: params are no tree of tensors, or two paths have one dotted name.

    >>> w = torch.zeros(2)
    >>> list(trainables({"encoder": {"weight": w}, "decoder": {"weight": w}}))
    ['encoder.weight']
    """
    require_tensors("trainables", "params", params)
    first: dict[int, Path] = {}
    named: dict[str, Tensor] = {}
    for path, tensor in walk(params):
        if first.setdefault(id(tensor), path) is not path:
            continue
        name = dotted(path)
        if name in named:
            raise ValueError(
                f"trainables: two tensors have the name {name!r}. Use keys of one type "
                "and without dots in them."
            )
        named[name] = tensor
    return named


# Freezing: copies of a module's parameters have a mark where it froze them

_MARK = "is_frozen_in_model"


def mark_frozen(tensor: Tensor) -> None:
    """Mark the tensor as frozen by its module; a copy of it has no mark."""
    setattr(tensor, _MARK, True)


def is_frozen_in_model(tensor: Tensor) -> bool:
    """Tell whether it is a module's frozen parameter, or a marked copy of one.

    A plain tensor that requires no gradient is not frozen.
    """
    is_parameter = isinstance(tensor, nn.Parameter)
    return (is_parameter and not tensor.requires_grad) or hasattr(tensor, _MARK)


# Flattening


def destructure(params: Tree) -> tuple[Tensor, Callable[[Tensor], Tree]]:
    """Return (flat vector of the distinct tensors, function that rebuilds the tree).

    Both can be differentiated. A tied tensor is in the vector once. Tensors of several
    dtypes share a vector of the widest, and have their own again in the tree. Tensors
    that are not trained are not in the vector, and are the same in the tree: integers,
    booleans, and those that `parameters` found frozen in the model.

    Raises:
        ValueError: params are no tree of tensors, or lie on several devices; rebuild
            gets something else than a vector of this length, or complex numbers for
            real ones.

    >>> flat, rebuild = destructure({"a": torch.ones(2), "b": {"c": torch.zeros(1)}})
    >>> flat
    tensor([1., 1., 0.])
    >>> rebuild(2 * flat)["a"]
    tensor([2., 2.])
    """
    require_tensors("destructure", "params", params)
    distinct = {id(tensor): tensor for _, tensor in walk(params)}
    in_vector = {
        i: tensor
        for i, tensor in distinct.items()
        if is_differentiable(tensor) and not is_frozen_in_model(tensor)
    }
    constant = {i: tensor for i, tensor in distinct.items() if i not in in_vector}
    tree = map_tree(lambda _, tensor: id(tensor), params)
    kinds = {i: (tensor.shape, tensor.dtype) for i, tensor in in_vector.items()}
    flat = _flat(list(in_vector.values()))
    may_be_complex = flat.is_complex()

    def rebuild(flat: Tensor) -> Tree:
        _require_vector(flat, kinds, may_be_complex)
        tensors = dict(constant)
        parts = flat.split([shape.numel() for shape, _ in kinds.values()])
        for (i, (shape, dtype)), part in zip(kinds.items(), parts, strict=True):
            part = part if dtype.is_complex or not part.is_complex() else part.real
            tensors[i] = part.reshape(shape).to(dtype)
        return map_tree(lambda _, i: tensors[i], tree)

    return flat, rebuild


def _flat(tensors: list[Tensor]) -> Tensor:
    devices = sorted({str(tensor.device) for tensor in tensors})
    if len(devices) > 1:
        raise ValueError(
            f"destructure: the tensors lie on {' and '.join(devices)}; wanted one "
            "device. Move them with .to(device)."
        )
    return torch.cat([t.reshape(-1) for t in tensors] or [torch.zeros(0)])


def _require_vector(flat: object, kinds: dict, may_be_complex: bool) -> None:
    total = sum(shape.numel() for shape, _ in kinds.values())
    if not isinstance(flat, Tensor):
        raise ValueError(
            f"rebuild: got {type(flat).__name__}; wanted a tensor of shape ({total},)."
        )
    if flat.shape != (total,):
        raise ValueError(
            f"rebuild: got shape {tuple(flat.shape)}; wanted ({total},), the "
            "length of the vector that destructure gave."
        )
    if flat.is_complex() and not may_be_complex:
        raise ValueError(
            f"rebuild: got {flat.dtype}; wanted real numbers, for all parameters are "
            "real. Take .real of them."
        )
