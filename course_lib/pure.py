"""A module as a pure function of its parameters, and gradients with respect to them.

torch.func has the same parts; here a module under two names stays whole, buffers are
never written behind the caller's back, and the value comes before the gradient.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from course_lib.trees import (
    Tree,
    dotted,
    insert,
    is_transforming,
    map_tree,
    require_module,
    require_tensors,
    require_tree,
    untied,
    walk,
)


def parameters(model: nn.Module) -> Tree:
    """Return a copy of the model's parameters as a tree; tied ones are one tensor."""
    require_module("parameters", model)
    return _copy(model.named_parameters(remove_duplicate=False))


def buffers(model: nn.Module) -> Tree:
    """Return a copy of the model's buffers as a tree, for example running means."""
    require_module("buffers", model)
    return _copy(model.named_buffers(remove_duplicate=False))


def _copy(named: Iterable[tuple[str, Tensor]]) -> Tree:
    tree: Tree = {}
    copies: dict[int, Tensor] = {}
    for name, tensor in named:
        if id(tensor) not in copies:
            copies[id(tensor)] = tensor.detach().clone()
        insert(tree, name, copies[id(tensor)])
    return tree


def call(
    model: nn.Module,
    params: Tree,
    *inputs: Any,
    buffers: Tree | None = None,
    **options: Any,
) -> Any:
    """Return model(*inputs) with these parameters; the module is untouched.

    Args:
        model: gives the architecture and the mode (train or eval), no numbers.
        params: every parameter of the model, as `parameters(model)`.
        *inputs: what the module's forward takes. Threads must not share a module.
        **options: and by name.
        buffers: every buffer. Then (output, new buffers) is returned, and the tree
            itself is left as it is. Without it the module's own buffers are read, and
            what the forward pass would write to them is dropped.

    Raises:
        ValueError: keys that are missing or too many, or wrong shapes; with names.
    """
    slots = _slots(model, params, "_parameters")
    given = buffers if buffers is not None else _own_buffers(model)
    clones: dict[int, Tensor] = {}
    for place, key, tensor in _slots(model, given, "_buffers"):
        fresh = clones.setdefault(id(tensor), tensor.clone())
        slots.append((place, key, fresh))
    with _swapped(slots), _restored(model):
        output = model(*inputs, **options)
        if buffers is None:
            return output
        named = model.named_buffers(remove_duplicate=False)
        return output, _as_tree((name, tensor.detach()) for name, tensor in named)


def _own_buffers(model: nn.Module) -> Tree:
    return _as_tree(model.named_buffers(remove_duplicate=False))


def _as_tree(named: Iterable[tuple[str, Tensor]]) -> Tree:
    tree: Tree = {}
    for name, tensor in named:
        insert(tree, name, tensor)
    return tree


Slot = tuple[dict[str, Any], str, Tensor]  # a module's dict, a key, what goes there


def _slots(model: nn.Module, tree: Tree, kind: str, caller: str = "call") -> list[Slot]:
    """Pair each tensor of the tree with its place; complain of names and shapes."""
    what = kind.strip("_")
    require_module(caller, model)
    require_tree(caller, what, tree)
    paired: dict[tuple[int, str], Slot] = {}
    if _pair(model, tree, kind, paired):
        return list(paired.values())
    given = {dotted(path): tensor for path, tensor in walk(tree)}
    slots: dict[tuple[int, str], Slot] = {}  # a module under two names has one place
    for path, module in model.named_modules(remove_duplicate=False):
        for key, own in getattr(module, kind).items():
            if own is None:
                continue
            name = f"{path}.{key}" if path else key
            if name not in given:
                raise ValueError(
                    f"{caller}: {what} have no {name!r}. {_advice(model, what)}"
                )
            tensor = given.pop(name)
            if not isinstance(tensor, Tensor) or tensor.shape != own.shape:
                got = type(tensor).__name__
                if isinstance(tensor, Tensor):
                    got = f"a tensor of shape {tuple(tensor.shape)}"
                raise ValueError(
                    f"{caller}: {name!r} is {got}; the module wants a tensor of shape "
                    f"{tuple(own.shape)}. {_advice(model, what)}"
                )
            slots.setdefault((id(module), key), (getattr(module, kind), key, tensor))
    if given:
        names = ", ".join(map(repr, given))
        raise ValueError(
            f"{caller}: {what} have {names} too many. {_advice(model, what)}"
        )
    return list(slots.values())


def _pair(
    module: nn.Module, tree: Tree, kind: str, slots: dict[tuple[int, str], Slot]
) -> bool:
    """Fill the slots in one quick walk; False where something does not fit."""
    used, own = 0, getattr(module, kind)
    for key, mine in own.items():
        if mine is not None:
            tensor = tree.get(key)
            if not isinstance(tensor, Tensor) or tensor.shape != mine.shape:
                return False
            slots.setdefault((id(module), key), (own, key, tensor))
            used += 1
    for name, child in module._modules.items():
        if child is not None:
            subtree = tree.get(name, _EMPTY)
            used += subtree is not _EMPTY
            if not isinstance(subtree, dict) or not _pair(child, subtree, kind, slots):
                return False
    return used == len(tree)


_EMPTY: Tree = {}


def _advice(model: nn.Module, what: str) -> str:
    return f"Wanted the tree of {what}(model) for this {type(model).__name__}."


@contextmanager
def _swapped(slots: list[Slot]) -> Iterator[None]:
    """Put the tensors into the module, and its own back, whatever happens."""
    own = [(place, key, place[key]) for place, key, _ in slots]
    try:
        for place, key, tensor in slots:
            place[key] = tensor
        yield
    finally:
        for place, key, tensor in own:
            place[key] = tensor


@contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    """Give the modules their attributes back: forward passes and hooks write some."""
    own = [(module, dict(vars(module))) for module in model.modules()]
    try:
        yield
    finally:
        for module, attributes in own:
            vars(module).clear()
            vars(module).update(attributes)


@torch.no_grad()
def store(model: nn.Module, params: Tree, buffers: Tree | None = None) -> None:
    """Copy trees back into the module, all or nothing.

    Raises:
        ValueError: names or shapes do not fit, or a number has no place in the
            module's dtype.
    """
    slots = _slots(model, params, "_parameters", "store")
    slots += _slots(model, buffers, "_buffers", "store") if buffers is not None else []
    for place, key, tensor in slots:
        if tensor.is_meta or not torch.can_cast(tensor.dtype, place[key].dtype):
            raise ValueError(
                f"store: {key!r} is {tensor.dtype} on {tensor.device}; the module "
                f"wants numbers that fit into {place[key].dtype}."
            )
    for place, key, tensor in slots:
        place[key].copy_(tensor)


# Gradients

_nesting = threading.local()  # .depth: calls of `gradient` under way in this thread


def gradient(loss: Callable[[Tree], Any], params: Tree) -> Tree:
    """Return the tree of d loss(params) / d params; see `with_gradient`."""
    return with_gradient(loss, params)[1]


def with_gradient(loss: Callable[[Tree], Any], params: Tree) -> tuple[Any, Tree]:
    """Return (loss(params), its gradient), the value first.

    Args:
        loss: takes the tree, returns a scalar tensor, or a tuple that begins with one;
            then the whole tuple is the value.
        params: the tree. What the loss does not use, and what is not of a
            floating-point or complex type, has the gradient None. A tied tensor is
            one in the loss as well: its whole gradient stands at its first place.

    Works inside itself, and inside torch.func.vmap.

    Raises:
        ValueError: params are no tree of tensors, or the loss is no scalar.

    >>> with_gradient(lambda p: (p["x"] ** 2).sum(), {"x": torch.tensor([3.0])})
    (tensor(9.), {'x': tensor([6.])})
    """
    if torch.compiler.is_compiling():  # which can't trace this: it breaks the graph
        return torch.compiler.disable(with_gradient)(loss, params)
    require_tensors("with_gradient", "params", params)
    if torch.is_inference_mode_enabled():
        raise ValueError(
            "with_gradient: torch.inference_mode records nothing to take gradients "
            "of. Call it outside; torch.no_grad does not disturb it."
        )
    if is_transforming():  # of the params, or of the data alone
        return _functional_gradient(loss, params)
    return _autograd_gradient(loss, params)


def _autograd_gradient(loss: Callable[[Tree], Any], params: Tree) -> tuple[Any, Tree]:
    depth = getattr(_nesting, "depth", 0)
    distinct, tree_of = untied(params)
    watched = {name: _watch(tensor, depth) for name, tensor in distinct.items()}
    leaves = [leaf for leaf in watched.values() if leaf.requires_grad]
    _nesting.depth = depth + 1
    try:
        with torch.enable_grad():
            value = loss(tree_of(watched))
            _require_scalar(value)
        if first_of(value).requires_grad:
            found = torch.autograd.grad(
                first_of(value), leaves, create_graph=depth > 0, allow_unused=True
            )
        else:
            found = [None] * len(leaves)
    finally:
        _nesting.depth = depth
    table = {id(leaf): g for leaf, g in zip(leaves, found, strict=True)}
    by_name = {name: table.get(id(leaf)) for name, leaf in watched.items()}
    grads = map_tree(lambda path, _: by_name.get(dotted(path)), params)
    return (value if depth else _detach(value)), grads


def _watch(tensor: Tensor, depth: int) -> Tensor:
    """Return a new leaf; inside another gradient one that the outer one still sees."""
    if not _is_watched(tensor):
        return tensor
    if depth and tensor.requires_grad:
        return tensor.view_as(tensor)
    return tensor.detach().requires_grad_()


def _is_watched(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _functional_gradient(loss: Callable[[Tree], Any], params: Tree) -> tuple[Any, Tree]:
    distinct, tree_of = untied(params)
    real = {name: tensor for name, tensor in distinct.items() if _is_watched(tensor)}

    def scalar_first(watched: dict[str, Tensor]) -> tuple[Tensor, Any]:
        value = loss(tree_of(distinct | watched))
        _require_scalar(value)
        return first_of(value), value

    found, (_, value) = torch.func.grad_and_value(scalar_first, has_aux=True)(real)
    return value, map_tree(lambda path, _: found.get(dotted(path)), params)


def first_of(value: Any) -> Tensor:
    """Return the loss itself, of a value that may be a tuple that begins with it."""
    return value[0] if isinstance(value, tuple) else value


def _require_scalar(value: Any) -> None:
    first = first_of(value)
    if not isinstance(first, Tensor) or first.dim() != 0 or first.is_complex():
        what = tuple(first.shape) if isinstance(first, Tensor) else type(first).__name__
        raise ValueError(
            f"with_gradient: the loss returned {what}; wanted a real scalar tensor. "
            "Reduce it with .mean() or .sum()."
        )


def _detach(value: Any) -> Any:
    return pytree.tree_map_only(Tensor, Tensor.detach, value)
