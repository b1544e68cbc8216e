"""A module as a pure function of its parameters, and gradients with respect to them.

torch.func has the same parts; here a module under two names stays whole, buffers are
never written behind the caller's back, and the value comes before the gradient.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree

from course_lib.device import forget_casts
from course_lib.substitution import (
    Loan,
    Own,
    copied,
    lent,
    loans_of,
    owners_noted,
)
from course_lib.trees import (
    Path,
    Tree,
    branches,
    dotted,
    insert,
    is_forward,
    is_transformed,
    is_transforming,
    mark_frozen,
    rebuilt,
    require_module,
    require_tensors,
    require_tree,
    walk,
)


def parameters(model: nn.Module) -> Tree:
    """Return a copy of the model's parameters as a tree; tied ones are one tensor.

    The copies of those that the model froze, with `requires_grad_(False)`, remember it:
    `setup` gives them a frozen state, which `thaw` frees. `destructure` leaves them
    out of the vector. Gradients are taken all the same, for it is the state that says
    which tensors take a step. What is computed from such a copy, `.to(device)` too,
    doesn't remember: move the model first, or `freeze` the state.
    """
    require_module("parameters", model)
    return _copy(model.named_parameters(remove_duplicate=False), is_model=True)


def buffers(model: nn.Module) -> Tree:
    """Return a copy of the model's buffers as a tree, for example running means."""
    require_module("buffers", model)
    return _copy(model.named_buffers(remove_duplicate=False))


def _copy(named: Iterable[tuple[str, Tensor]], *, is_model: bool = False) -> Tree:
    tree: Tree = {}
    copies: dict[int, Tensor] = {}
    for name, tensor in named:
        if id(tensor) not in copies:
            copies[id(tensor)] = tensor.detach().clone()
            if is_model and not tensor.requires_grad:
                mark_frozen(copies[id(tensor)])
        insert(tree, name, copies[id(tensor)])
    return tree


def call(
    model: nn.Module,
    params: Tree,
    /,
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
            what the forward pass would write to them is dropped. Where the module's
            forward has an argument of that name, pass it by position, or use
            `substitute`.

    Activation checkpointing (torch.utils.checkpoint) finds these parameters again in
    backward; within `gradient` only with use_reentrant=False.

    Raises:
        ValueError: keys that are missing or too many, or wrong shapes; with names.
    """
    loans = loans_of(model, params, "_parameters")
    if buffers is not None:
        loans += copied(loans_of(model, buffers, "_buffers"))
    else:
        loans += _copied_buffers(loans)
    with lent(loans):
        output = model(*inputs, **options)
        if buffers is None:
            return output
        new: Tree = {}
        for name, tensor in model.named_buffers(remove_duplicate=False):
            insert(new, name, tensor.detach())
        return output, new


@contextmanager
def substitute(model: nn.Module, params: Tree) -> Iterator[nn.Module]:
    """Let the module have these parameters inside the block, as `call` does for a pass.

    For what takes the module itself, such as a penalty. Yields the model. Afterwards
    the module is as it was; what was written to its buffers is dropped.

    Raises:
        ValueError: keys that are missing or too many, or wrong shapes; with names.

    >>> from course_lib.regularization import L1L2, penalty, regularize
    >>> model = regularize(nn.Linear(2, 1, bias=False), weight=L1L2(l2=1.0))
    >>> def loss(p):
    ...     with substitute(model, p):
    ...         return model(torch.zeros(1, 2)).sum() + penalty(model)
    >>> gradient(loss, {"weight": torch.tensor([[3.0, 4.0]])})
    {'weight': tensor([[6., 8.]])}
    """
    loans = loans_of(model, params, "_parameters", "substitute")
    loans += _copied_buffers(loans)
    with lent(loans):
        yield model


def _copied_buffers(loans: list[Loan]) -> list[Loan]:
    modules = [module for module, _, _ in loans]
    return copied((m, "_buffers", m._buffers) for m in modules if m._buffers)


@torch.no_grad()
def store(model: nn.Module, params: Tree, buffers: Tree | None = None) -> None:
    """Copy trees back into the module, all or nothing.

    Raises:
        ValueError: names or shapes do not fit, or a number has no place in the
            module's dtype.
    """
    loans = loans_of(model, params, "_parameters", "store")
    if buffers is not None:
        loans += loans_of(model, buffers, "_buffers", "store")
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


def gradient(
    loss: Callable[[Tree], Any], params: Tree, *, allow_unused: bool = False
) -> Tree:
    """Return the tree of d loss(params) / d params; see `with_gradient`."""
    return with_gradient(loss, params, allow_unused=allow_unused)[1]


def with_gradient(
    loss: Callable[[Tree], Any], params: Tree, *, allow_unused: bool = False
) -> tuple[Any, Tree]:
    """Return (loss(params), its gradient), the value first.

    Args:
        loss: takes the tree, returns a scalar tensor, or a tuple that begins with one;
            then the whole tuple is the value.
        params: the tree: dicts, lists, tuples and named tuples of tensors in each
            other, or one tensor. What the loss does not use, and what is not of a
            floating-point or complex type, has the gradient None. A tied tensor is
            one in the loss as well: its whole gradient stands at its first place.
        allow_unused: let a loss use none of them, as the constant 0 of an empty batch.
            Without it that is an error, for it is nearly always a mistake: the module
            was called itself, or the parameters were detached on the way.

    A module that `call` runs inside the loss must not be used beside it with its own
    parameters, as in `call(model, p, x).sum() + penalty(model)`: what they contribute
    would train nothing. `substitute` gives them to such functions; torch.no_grad, or
    `.requires_grad_(False)` on the module, says that they are meant as constants.
    Other modules, such as the judge of a generator, may be called as they are.

    Works inside itself, inside torch.func's transforms, and in torch's forward mode.
    Where params were computed from what requires a gradient, value and gradient have a
    graph that leads there, as a step of `update` has: x.detach() leaves it out, and for
    a leaf x that requires a gradient x.view_as(x) asks for it. What else the loss uses,
    such as a learned weight of a penalty, has no graph: to differentiate with respect
    to it, take the outer derivative with `gradient` or torch.func, too.

    Raises:
        ValueError: params are no tree of tensors, the loss is no scalar, it depends on
            none of them, or on the own parameters of a module that `call` ran.

    >>> with_gradient(lambda p: (p["x"] ** 2).sum(), {"x": torch.tensor([3.0])})
    (tensor(9.), {'x': tensor([6.])})
    """
    if torch.compiler.is_compiling():  # which can't trace this: it breaks the graph
        return torch.compiler.disable(with_gradient)(
            loss, params, allow_unused=allow_unused
        )
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
    if of_numbers and not allow_unused and not _is_any(found):
        _refuse_unused(params, of_numbers)
    return value, _at_first_places(params, found)


def _collect(tree: Tree, distinct: dict[int, Any]) -> None:
    children = tree if type(tree) is dict else branches(tree)
    if children is None:
        distinct[id(tree)] = tree
        return
    for child in children.values():
        if type(child) is Tensor:  # without a call, as below: there may be thousands
            distinct[id(child)] = child
        else:
            _collect(child, distinct)


def _replaced(tree: Tree, others: dict[int, Tensor]) -> Tree:
    """Return the tree with others, by the id of the tensors that they stand for."""
    is_plain = type(tree) is dict  # the usual case, quicker
    if not is_plain and isinstance(tree, Tensor):
        return others.get(id(tree), tree)
    children = {
        key: others.get(id(child), child)
        if type(child) is Tensor
        else _replaced(child, others)
        for key, child in (tree if is_plain else branches(tree)).items()
    }
    return children if is_plain else rebuilt(tree, children)


def _at_first_places(params: Tree, grads: dict[int, Tensor | None]) -> Tree:
    """Return the tree of gradients, and empty the table: a tie's stands there once."""
    is_plain = type(params) is dict
    if not is_plain and isinstance(params, Tensor):
        return grads.pop(id(params), None)
    children = {
        key: grads.pop(id(child), None)
        if type(child) is Tensor
        else _at_first_places(child, grads)
        for key, child in (params if is_plain else branches(params)).items()
    }
    return children if is_plain else rebuilt(params, children)


def _is_any(found: dict[int, Tensor | None]) -> bool:
    return any(grad is not None for grad in found.values())


def _refuse_unused(params: Tree, watched: dict[int, Tensor]) -> NoReturn:
    paths = (path for path, tensor in walk(params) if id(tensor) in watched)
    raise ValueError(
        f"with_gradient: the loss uses none of the parameters: {_names(paths)} have no "
        "gradient. In place of model(x) write call(model, params, x), with the params "
        "that the loss is given; what takes the module itself, such as penalty(model), "
        "goes inside `with substitute(model, params):`. Nothing may detach them on the "
        "way. Where the loss may be a constant, pass allow_unused=True."
    )


def _names(paths: Iterable[Path]) -> str:
    names = [repr(dotted(path)) for path in paths]
    rest = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + rest


def _autograd_gradient(
    loss: Callable[[Tree], Any], params: Tree, distinct: dict[int, Tensor]
) -> tuple[Any, dict[int, Tensor | None]]:
    depth = getattr(_nesting, "depth", 0)
    is_inner = depth > 0 or _is_any_attached(distinct)
    leaves = _watched(distinct, is_inner)
    _nesting.depth = depth + 1
    try:
        with torch.enable_grad(), owners_noted() as owners:
            value = loss(_replaced(params, leaves))
            _require_scalar(value)
        first = first_of(value)
        if not (leaves and first.requires_grad):
            return value if is_inner else _detach(value), {}
        own = _trainable(owners)  # should have no gradient, and then costs nothing
        found = torch.autograd.grad(
            first, (*leaves.values(), *own), create_graph=is_inner, allow_unused=True
        )
    finally:
        _nesting.depth = depth
        forget_casts()  # autocast would hold those of each step's leaves to its end
    used = [x for x, g in zip(own, found[len(leaves) :], strict=True) if g is not None]
    if used:
        _refuse_own(owners, used)
    value = value if is_inner else _detach(value)
    return value, dict(zip(leaves, found, strict=False))


def _is_any_attached(tensors: dict[int, Tensor]) -> bool:
    """Tell whether a graph outside leads to one: `update` records such a step, too."""
    if not torch._C._any_requires_grad(list(tensors.values())):
        return False
    is_attached = any(x.requires_grad and not x.is_leaf for x in tensors.values())
    return is_attached and torch.is_grad_enabled()


def _trainable(owners: list[Own]) -> list[Tensor]:
    """Return the distinct parameters of modules' own that gradients could reach."""
    return list(
        {
            id(own): own
            for _, tensors in owners
            for own in tensors.values()
            if own is not None and own.requires_grad
        }.values()
    )


def _refuse_own(owners: list[Own], used: list[Tensor]) -> NoReturn:
    ids = {id(tensor) for tensor in used}
    names = [
        (type(module).__name__, name)
        for module, tensors in owners
        for name, own in tensors.items()
        if id(own) in ids
    ]
    raise ValueError(
        "with_gradient: the loss runs a module by `call`, and beside it uses its own "
        f"parameters, which are not in params: {_names(dict.fromkeys(names))}. That "
        "part would train nothing. Put what takes the module itself, such as "
        "model(x) or penalty(model), inside `with substitute(model, params):`. Is it "
        "meant as a constant? Then compute it under torch.no_grad()."
    )


def _watched(tensors: dict[int, Tensor], is_inner: bool) -> dict[int, Tensor]:
    """Return new leaves; inside another gradient some that the outer one still sees."""
    if is_inner or is_forward():
        return {i: _watch(tensor, is_inner) for i, tensor in tensors.items()}
    return {i: tensor.detach().requires_grad_() for i, tensor in tensors.items()}


def _watch(tensor: Tensor, is_inner: bool) -> Tensor:
    if is_inner and tensor.requires_grad:
        return tensor.view_as(tensor)
    if not is_forward():
        return tensor.detach().requires_grad_()
    primal, tangent = forward_ad.unpack_dual(tensor)
    leaf = primal.detach().requires_grad_()
    return leaf if tangent is None else forward_ad.make_dual(leaf, tangent)


def _is_watched(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _functional_gradient(
    loss: Callable[[Tree], Any], params: Tree, distinct: dict[int, Tensor]
) -> tuple[Any, dict[int, Tensor]]:
    is_used = False

    def scalar_first(watched: dict[int, Tensor]) -> tuple[Tensor, Any]:
        nonlocal is_used
        value = loss(_replaced(params, watched))
        _require_scalar(value)
        is_used = first_of(value).requires_grad  # at this level: of these parameters
        return first_of(value), value

    with owners_noted() as owners:
        found, (_, value) = torch.func.grad_and_value(scalar_first, has_aux=True)(
            distinct
        )
    ids = {id(own) for own in _trainable(owners)}
    used = [leaf for leaf in _leaves_behind(first_of(value)) if id(leaf) in ids]
    if used:
        _refuse_own(owners, used)
    return value, found if is_used else {}


def _leaves_behind(value: Tensor) -> Iterator[Tensor]:
    """Yield what requires a gradient behind the value, below all transforms."""
    while is_transformed(value):
        value = torch._C._functorch.get_unwrapped(value)
    nodes = [value.grad_fn]
    seen = {None}
    while nodes:
        node = nodes.pop()
        if node not in seen:
            seen.add(node)
            if hasattr(node, "variable"):  # where torch would add to .grad
                yield node.variable
            nodes += [parent for parent, _ in node.next_functions]


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
    if is_forward():
        return pytree.tree_map_only(Tensor, _detach_dual, value)
    if isinstance(value, Tensor):  # as a rule
        return value.detach()
    return pytree.tree_map_only(Tensor, Tensor.detach, value)


def _detach_dual(x: Tensor) -> Tensor:
    """Cut the graph and leave the tangent, which detach() drops."""
    primal, tangent = forward_ad.unpack_dual(x)
    primal = primal.detach()
    return primal if tangent is None else forward_ad.make_dual(primal, tangent.detach())
