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
    require_module,
    require_tensors,
    require_tree,
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
    loans = _loans(model, params, "_parameters")
    if buffers is not None:
        loans += _copied(_loans(model, buffers, "_buffers"))
    else:
        modules = [module for module, _, _ in loans]
        loans += _copied((m, "_buffers", m._buffers) for m in modules if m._buffers)
    with _lent(loans):
        output = model(*inputs, **options)
        if buffers is None:
            return output
        new: Tree = {}
        for name, tensor in model.named_buffers(remove_duplicate=False):
            insert(new, name, tensor.detach())
        return output, new


Tensors = dict[str, Tensor | None]
Loan = tuple[nn.Module, str, Tensors]  # a module, and what stands in for which dict


def _loans(model: nn.Module, tree: Tree, kind: str, caller: str = "call") -> list[Loan]:
    """Pair each module with its tensors in the tree; complain of names and shapes.

    A module under two names stands there once, with the tensors of its first name.
    """
    what = kind.strip("_")
    require_module(caller, model)
    require_tree(caller, what, tree)
    loans: dict[int, Loan] = {}
    if _pair(model, tree, kind, loans):
        return list(loans.values())
    loans, given = {}, {dotted(path): tensor for path, tensor in walk(tree)}
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, _Scripted):
            raise ValueError(
                f"{caller}: {path or 'the model'!r} is a compiled ScriptModule, which "
                "can't be run with other tensors than its own. Take the module that it "
                "was made from."
            )
        mine: Tensors = {}
        for key, own in getattr(module, kind).items():
            name = f"{path}.{key}" if path else key
            mine[key] = own
            if own is None:
                continue
            if name not in given:
                raise ValueError(
                    f"{caller}: {what} have no {name!r}. {_advice(model, what)}"
                )
            tensor = mine[key] = given.pop(name)
            if not isinstance(tensor, Tensor) or tensor.shape != own.shape:
                got = type(tensor).__name__
                if isinstance(tensor, Tensor):
                    got = f"a tensor of shape {tuple(tensor.shape)}"
                raise ValueError(
                    f"{caller}: {name!r} is {got}; the module wants a tensor of shape "
                    f"{tuple(own.shape)}. {_advice(model, what)}"
                )
        loans.setdefault(id(module), (module, kind, mine))
    if given:
        names = ", ".join(map(repr, given))
        raise ValueError(
            f"{caller}: {what} have {names} too many. {_advice(model, what)}"
        )
    return list(loans.values())


def _pair(module: nn.Module, tree: Tree, kind: str, loans: dict[int, Loan]) -> bool:
    """Fill the loans in one quick walk; False where something does not fit."""
    attributes, used = vars(module), 0
    if isinstance(module, _Scripted):
        return False
    mine = dict(attributes[kind])
    for key, own in mine.items():
        if own is not None:
            tensor = tree.get(key)
            if not isinstance(tensor, Tensor) or tensor.shape != own.shape:
                return False
            mine[key] = tensor
            used += 1
    loans.setdefault(id(module), (module, kind, mine))
    for name, child in attributes["_modules"].items():
        if child is not None:
            subtree = tree.get(name, _EMPTY)
            used += subtree is not _EMPTY
            if not isinstance(subtree, dict) or not _pair(child, subtree, kind, loans):
                return False
    return used == len(tree)


_EMPTY: Tree = {}
_Scripted = torch.jit.ScriptModule


def _advice(model: nn.Module, what: str) -> str:
    return f"Wanted the tree of {what}(model) for this {type(model).__name__}."


def _copied(loans: Iterable[Loan]) -> list[Loan]:
    """Give each distinct tensor a copy that a forward pass may write to."""
    copies: dict[int, Tensor | None] = {id(None): None}
    made = []
    for module, kind, tensors in loans:
        for tensor in tensors.values():
            if id(tensor) not in copies:
                copies[id(tensor)] = tensor.clone()
        mine = {key: copies[id(tensor)] for key, tensor in tensors.items()}
        made.append((module, kind, mine))
    return made


@contextmanager
def _lent(loans: list[Loan]) -> Iterator[None]:
    """Put the tensors into the modules; then give all attributes back, come what may.

    Forward passes and hooks write attributes, too.
    """
    own = [(vars(module), dict(vars(module))) for module, _, _ in loans]
    try:
        for module, kind, tensors in loans:
            vars(module)[kind] = tensors
        yield
    finally:
        for attributes, before in own:
            attributes.clear()
            attributes.update(before)


@torch.no_grad()
def store(model: nn.Module, params: Tree, buffers: Tree | None = None) -> None:
    """Copy trees back into the module, all or nothing.

    Raises:
        ValueError: names or shapes do not fit, or a number has no place in the
            module's dtype.
    """
    loans = _loans(model, params, "_parameters", "store")
    loans += _loans(model, buffers, "_buffers", "store") if buffers is not None else []
    pairs = [
        (key, getattr(module, kind)[key], tensor)
        for module, kind, tensors in loans
        for key, tensor in tensors.items()
        if tensor is not None
    ]
    for key, own, tensor in pairs:
        if tensor.is_meta or not torch.can_cast(tensor.dtype, own.dtype):
            raise ValueError(
                f"store: {key!r} is {tensor.dtype} on {tensor.device}; the module "
                f"wants numbers that fit into {own.dtype}."
            )
    for _, own, tensor in pairs:
        own.copy_(tensor)


# Gradients

_nesting = threading.local()  # .depth: calls of `gradient` under way in this thread


def is_in_gradient() -> bool:
    """Tell whether a call of `gradient` is under way in this thread."""
    return getattr(_nesting, "depth", 0) > 0


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
    if torch.is_inference_mode_enabled():
        raise ValueError(
            "with_gradient: torch.inference_mode records nothing to take gradients "
            "of. Call it outside; torch.no_grad does not disturb it."
        )
    require_tree("with_gradient", "params", params)
    distinct: dict[int, Tensor] = {}
    _collect(params, distinct)
    if not all(isinstance(tensor, Tensor) for tensor in distinct.values()):
        require_tensors("with_gradient", "params", params)  # knows which is none
    of_numbers = {i: t for i, t in distinct.items() if _is_watched(t)}
    take = _functional_gradient if is_transforming() else _autograd_gradient
    value, found = take(loss, params, of_numbers)
    return value, _at_first_places(params, found)


def _collect(tree: Tree, distinct: dict[int, Tensor]) -> None:
    for child in tree.values():
        if isinstance(child, dict):
            _collect(child, distinct)
        else:
            distinct[id(child)] = child


def _replaced(tree: Tree, others: dict[int, Tensor]) -> Tree:
    """Return the tree with others, by the id of the tensors that they stand for."""
    return {
        key: _replaced(child, others)
        if isinstance(child, dict)
        else others.get(id(child), child)
        for key, child in tree.items()
    }


def _at_first_places(params: Tree, grads: dict[int, Tensor | None]) -> Tree:
    """Return the tree of gradients, and empty the table: a tie's stands there once."""
    return {
        key: _at_first_places(child, grads)
        if isinstance(child, dict)
        else grads.pop(id(child), None)
        for key, child in params.items()
    }


def _autograd_gradient(
    loss: Callable[[Tree], Any], params: Tree, distinct: dict[int, Tensor]
) -> tuple[Any, dict[int, Tensor | None]]:
    depth = getattr(_nesting, "depth", 0)
    leaves = {i: _watch(tensor, depth) for i, tensor in distinct.items()}
    _nesting.depth = depth + 1
    try:
        with torch.enable_grad():
            value = loss(_replaced(params, leaves))
            _require_scalar(value)
        first = first_of(value)
        if not (leaves and first.requires_grad):
            return value if depth else _detach(value), {}
        found = torch.autograd.grad(
            first, tuple(leaves.values()), create_graph=depth > 0, allow_unused=True
        )
    finally:
        _nesting.depth = depth
    return value if depth else _detach(value), dict(zip(leaves, found, strict=True))


def _watch(tensor: Tensor, depth: int) -> Tensor:
    """Return a new leaf; inside another gradient one that the outer one still sees."""
    if depth and tensor.requires_grad:
        return tensor.view_as(tensor)
    return tensor.detach().requires_grad_()


def _is_watched(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _functional_gradient(
    loss: Callable[[Tree], Any], params: Tree, distinct: dict[int, Tensor]
) -> tuple[Any, dict[int, Tensor]]:
    def scalar_first(watched: dict[int, Tensor]) -> tuple[Tensor, Any]:
        value = loss(_replaced(params, watched))
        _require_scalar(value)
        return first_of(value), value

    found, (_, value) = torch.func.grad_and_value(scalar_first, has_aux=True)(distinct)
    return value, found


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
    if isinstance(value, Tensor):  # as a rule
        return value.detach()
    return pytree.tree_map_only(Tensor, Tensor.detach, value)
