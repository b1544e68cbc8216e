"""Gradients with respect to a tree: `gradient` and `with_gradient`.

torch.func has the same; here the value comes before the gradient, and a loss that
trains nothing is an error.
"""

import threading
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree

from course_lib.device import forget_casts
from course_lib.explicit.substitution import Originals, recorded_originals
from course_lib.trees import (
    Path,
    Tree,
    branches,
    dotted,
    graph_nodes,
    is_differentiable,
    is_forward,
    is_transforming,
    rebuilt,
    require_tensors,
    require_tree,
    walk,
)

Tensors = dict[int, Tensor]  # by the ids of those in params
Loss = Callable[[Tree], Any]

_nesting = threading.local()  # .depth: calls of `gradient` in progress in this thread


def is_in_gradient() -> bool:
    """Tell whether a call of `gradient` is in progress in this thread."""
    return getattr(_nesting, "depth", 0) > 0


def gradient(loss: Loss, params: Tree, *, allow_unused: bool = False) -> Tree:
    """Return the tree of d loss(params) / d params; see `with_gradient`."""
    return with_gradient(loss, params, allow_unused=allow_unused)[1]


def with_gradient(
    loss: Loss, params: Tree, *, allow_unused: bool = False
) -> tuple[Any, Tree]:
    """Return (loss(params), its gradient), the value first.

    Args:
        loss: takes the tree, returns a scalar tensor, or a tuple that begins with one;
            then the whole tuple is the value.
        params: dicts, lists, tuples and named tuples of tensors in each other, or one
            tensor. A tensor that the loss does not use, or that is not of a
            floating-point or complex type, has the gradient None. The whole gradient
            of a tied tensor is at its first place.
        allow_unused: let a loss use none of them, as the constant 0 of an empty batch.
            Otherwise that is an error: usually the module itself was called, or the
            parameters were detached.

    A module that `call` runs inside the loss must not be used beside it with its own
    parameters, as in `call(model, p, x).sum() + penalty(model)`: that part would train
    nothing. `substitute` gives such functions the parameters; torch.no_grad, or
    `.requires_grad_(False)` on the module, says that they are meant as constants.
    Other modules, such as the judge of a generator, may be called as usual.

    Works inside itself, torch.func's transforms, and torch's forward mode. Where params
    were computed from what requires a gradient, value and gradient have a graph that
    leads there, as a step of `update` has: x.detach() leaves it out, and for a leaf x
    that requires a gradient x.view_as(x) asks for it. So a loop that subtracts the
    gradients from such leaves itself needs `.detach()` after each step, else each step
    keeps the graphs of all those before. To differentiate with respect to
    other tensors in the loss, such as a learned coefficient of a penalty, take the
    outer derivative with `gradient` or torch.func, too.

    Raises:
        ValueError: params are no tree of tensors, the loss is no scalar, it depends on
            none of them, or on the own parameters of a module that `call` ran.

    >>> with_gradient(lambda p: (p["x"] ** 2).sum(), {"x": torch.tensor([3.0])})
    (tensor(9.), {'x': tensor([6.])})
    """
    if torch.compiler.is_compiling():  # it can't trace this: a graph break
        return torch.compiler.disable(with_gradient)(
            loss, params, allow_unused=allow_unused
        )
    if torch.is_inference_mode_enabled():
        raise ValueError(
            "with_gradient: torch.inference_mode records nothing to take gradients "
            "of. Call it outside; torch.no_grad does not disturb it."
        )
    require_tree("with_gradient", "params", params)
    distinct: Tensors = {}
    _collect(params, distinct)
    if not all(isinstance(tensor, Tensor) for tensor in distinct.values()):
        require_tensors("with_gradient", "params", params)  # names the one that is none
    inputs = {i: x for i, x in distinct.items() if is_differentiable(x)}

    def at(new: Tensors) -> Any:
        value = loss(_looked_up(params, {**distinct, **new}.get))
        _require_scalar(value)
        return value

    take = _functional_gradient if is_transforming() else _autograd_gradient
    value, found = take(at, inputs)
    if inputs and not allow_unused and all(grad is None for grad in found.values()):
        _refuse_unused(path for path, tensor in walk(params) if id(tensor) in inputs)
    return value, _looked_up(params, found.pop)  # pop: at the first place of a tie


def _collect(tree: Tree, distinct: dict[int, Any]) -> None:
    children = tree if type(tree) is dict else branches(tree)
    if children is None:
        distinct[id(tree)] = tree
        return
    for child in children.values():
        if type(child) is Tensor:  # without a call, for there may be thousands
            distinct[id(child)] = child
        else:
            _collect(child, distinct)


def _looked_up(tree: Tree, lookup: Callable[[int, None], Tensor | None]) -> Tree:
    """Return the tree with lookup(id(tensor), None) in place of each tensor."""
    is_plain = type(tree) is dict  # the usual case, quicker
    if not is_plain and isinstance(tree, Tensor):
        return lookup(id(tree), None)
    children = {
        key: lookup(id(child), None)
        if type(child) is Tensor
        else _looked_up(child, lookup)
        for key, child in (tree if is_plain else branches(tree)).items()
    }
    return children if is_plain else rebuilt(tree, children)


def _refuse_unused(paths: Iterable[Path]) -> NoReturn:
    raise ValueError(
        f"with_gradient: the loss uses none of the parameters: {_names(paths)} have no "
        "gradient. In place of model(x) write call(model, params, x), with the params "
        "that the loss gets as its argument; functions that take the module itself, "
        "such as penalty(model), go inside `with substitute(model, params):`. Nothing "
        "may detach them on the way. Where the loss may be a constant, pass "
        "allow_unused=True."
    )


def _names(paths: Iterable[Path]) -> str:
    names = [repr(dotted(path)) for path in paths]
    rest = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + rest


# By torch.autograd


def _autograd_gradient(
    loss: Callable[[Tensors], Any], inputs: Tensors
) -> tuple[Any, dict[int, Tensor | None]]:
    depth = getattr(_nesting, "depth", 0)
    is_inner = depth > 0 or _is_any_attached(inputs)
    if is_inner or is_forward():
        leaves = {i: _leaf(x, is_inner) for i, x in inputs.items()}
    else:  # the usual case, quicker
        leaves = {i: x.detach().requires_grad_() for i, x in inputs.items()}
    _nesting.depth = depth + 1
    try:
        with torch.enable_grad(), recorded_originals() as originals:
            value = loss(leaves)
        scalar = scalar_of(value)
        if not (leaves and scalar.requires_grad):
            return value if is_inner else _detached(value), {}
        own = _trainable(originals)  # should have no gradient, and then costs nothing
        if own and is_inner:  # else the graph of params would be searched for them, too
            own = _reached(scalar, own, beside=leaves.values())
        grads = torch.autograd.grad(
            scalar, (*leaves.values(), *own), create_graph=is_inner, allow_unused=True
        )
    finally:
        _nesting.depth = depth
        # Else autocast stores the casts of each step's leaves:
        # https://github.com/pytorch/pytorch/issues/48049
        forget_casts()
    used = [x for x, g in zip(own, grads[len(leaves) :], strict=True) if g is not None]
    _refuse_own(originals, used)
    value = value if is_inner else _detached(value)
    return value, dict(zip(leaves, grads, strict=False))


def _is_any_attached(tensors: Tensors) -> bool:
    """Tell whether a graph outside leads to one: `update` records such a step, too."""
    if not torch._C._any_requires_grad(list(tensors.values())):
        return False
    is_attached = any(x.requires_grad and not x.is_leaf for x in tensors.values())
    return is_attached and torch.is_grad_enabled()


def _leaf(tensor: Tensor, is_inner: bool) -> Tensor:
    """Return a new leaf, perhaps a dual one; inside another gradient, a view.

    The view belongs to the graph of the outer gradient.
    """
    if is_inner and tensor.requires_grad:
        return tensor.view_as(tensor)
    if not is_forward():
        return tensor.detach().requires_grad_()
    primal, tangent = forward_ad.unpack_dual(tensor)
    leaf = primal.detach().requires_grad_()
    return leaf if tangent is None else forward_ad.make_dual(leaf, tangent)


def _detached(value: Any) -> Any:
    if is_forward():
        return pytree.tree_map_only(Tensor, _detached_dual, value)
    if isinstance(value, Tensor):  # the usual case
        return value.detach()
    return pytree.tree_map_only(Tensor, Tensor.detach, value)


def _detached_dual(x: Tensor) -> Tensor:
    """Remove the graph, but not the tangent, which detach() drops."""
    primal, tangent = forward_ad.unpack_dual(x)
    primal = primal.detach()
    return primal if tangent is None else forward_ad.make_dual(primal, tangent.detach())


# Inside of torch.func


def _functional_gradient(
    loss: Callable[[Tensors], Any], inputs: Tensors
) -> tuple[Any, Tensors]:
    is_used = False

    def scalar_first(leaves: Tensors) -> tuple[Tensor, Any]:
        nonlocal is_used
        value = loss(leaves)
        is_used = scalar_of(value).requires_grad  # at this level: of these parameters
        return scalar_of(value), value

    with recorded_originals() as originals:
        grads, (_, value) = torch.func.grad_and_value(scalar_first, has_aux=True)(
            inputs
        )
    own = _trainable(originals)
    used = _reached(scalar_of(value), own, beside=inputs.values()) if own else []
    _refuse_own(originals, used)
    return value, grads if is_used else {}


# What a graph reaches


def _reached(
    value: Tensor, own: list[Tensor], *, beside: Iterable[Tensor]
) -> list[Tensor]:
    """Return those of `own` that the value's graph reaches, below all transforms.

    The ways that lead through the tensors of `beside` don't count: params may have been
    computed from the module's own parameters.
    """
    ids = {id(tensor) for tensor in own}
    nodes = graph_nodes([value], ends=beside)
    leaves = [node.variable for node in nodes if hasattr(node, "variable")]
    return [leaf for leaf in leaves if id(leaf) in ids]


# What a loss may do


def scalar_of(value: Any) -> Tensor:
    """Return the loss itself, of a value that may be a tuple that begins with it."""
    return value[0] if isinstance(value, tuple) else value


def _require_scalar(value: Any) -> None:
    first = scalar_of(value)
    if not isinstance(first, Tensor) or first.dim() != 0 or first.is_complex():
        got = tuple(first.shape) if isinstance(first, Tensor) else type(first).__name__
        raise ValueError(
            f"with_gradient: the loss returned {got}; wanted a real scalar tensor. "
            "Reduce it with .mean() or .sum()."
        )


def _trainable(originals: list[Originals]) -> list[Tensor]:
    """Return the distinct own parameters of modules that require a gradient."""
    tensors = [own for _, tensors in originals for own in tensors.values()]
    return list(
        {id(x): x for x in tensors if x is not None and x.requires_grad}.values()
    )


def _refuse_own(originals: list[Originals], used: list[Tensor]) -> None:
    if not used:
        return
    ids = {id(tensor) for tensor in used}
    names = [
        (type(module).__name__, name)
        for module, tensors in originals
        for name, own in tensors.items()
        if id(own) in ids
    ]
    raise ValueError(
        "with_gradient: the loss runs a module by `call`, and beside it uses its own "
        f"parameters, which are not in params: {_names(dict.fromkeys(names))}. That "
        "part would train nothing. Put functions that take the module itself, such as "
        "model(x) or penalty(model), inside `with substitute(model, params):`. Is it "
        "meant as a constant? Then compute it under torch.no_grad()."
    )
