"""One step of all tensors in a tree: `update`, and `update_` in place."""

from contextlib import nullcontext

import torch
from torch import Tensor

from course_lib.device import forget_casts
from course_lib.explicit.gathering import Item, gather
from course_lib.explicit.graphs import is_recorded
from course_lib.explicit.states import Leaf
from course_lib.rules.adam import Adam, has_fused_step
from course_lib.rules.base import STATE_ERRORS, Rule, State, has_form_of, is_rule
from course_lib.rules.groups import Group, apply_groups
from course_lib.trees import (
    Path,
    Tree,
    all_finite,
    branches,
    dotted,
    is_differentiable,
    is_forward,
    is_transforming,
    rebuilt,
)

Stepped = tuple[Tensor, Leaf, Tensor]  # the old tensor, the new leaf, the new tensor


def update(
    state: Tree, params: Tree, grads: Tree, *, check: bool = True
) -> tuple[Tree, Tree]:
    """Return (new state, new params) after one step; the arguments are not changed.

    Each distinct tensor takes one step: x' = x - dx. Gradients at the places of a tied
    tensor are summed; one array at several places, such as the shared `.grad` of a
    module's tied weights, is the whole gradient and counts once. (Two arrays with equal
    numbers count as two.) A gradient None, or a subtree that grads leaves out, and a
    frozen tensor take no step. dtype and device stay.

    Only Descent takes sparse gradients, as of nn.Embedding(sparse=True).

    The step can be differentiated (meta-learning, learned step sizes): it is part of
    the graph where gradients or state have one, where params were computed from what
    requires a gradient, and inside `gradient` and torch.func.grad. A leaf that requires
    a gradient, such as an nn.Parameter, is stepped without a graph otherwise, as
    torch.optim does; pass x.view_as(x) to differentiate with respect to it, and
    x.detach() to leave earlier steps out of the graph.

    Args:
        state: from `setup`, or the step before.
        params: the tree that is stepped.
        grads: the gradients, as `gradient` returns them.
        check: refuse gradients that are nan or infinite. Costs one norm of each; on a
            GPU the host waits for the result.

    Raises:
        ValueError: trees, shapes, dtypes or devices that do not fit, a sparse gradient
            for another rule than Descent, or a gradient that is not finite; with the
            path. Nothing is updated then.

    >>> from course_lib.explicit import setup
    >>> from course_lib.rules import Descent
    >>> params = {"x": torch.tensor([1.0])}
    >>> state = setup(Descent(0.1), params)
    >>> update(state, params, {"x": torch.tensor([2.0])})[1]
    {'x': tensor([0.8000])}
    """
    if torch.compiler.is_compiling():  # it can't trace this: a graph break
        return torch.compiler.disable(update)(state, params, grads, check=check)
    stepped = _stepped("update", (state, params, grads), check=check, in_place=False)
    return _with_new(state, params, {id(old): (leaf, x) for old, leaf, x in stepped})


def update_(state: Tree, params: Tree, grads: Tree, *, check: bool = True) -> None:
    """Take the step of `update` in place, in the tensors of params and in state.

    Saves the memory and the time of the copies. Raises like `update`, before anything
    is changed; for leaves in a tuple or alone, which can't be replaced; and where the
    step would be differentiated.
    """
    if torch.compiler.is_compiling():
        return torch.compiler.disable(update_)(state, params, grads, check=check)
    stepped = _stepped("update_", (state, params, grads), check=check, in_place=True)
    forget_casts()
    _replace_leaves(state, params, {id(old): leaf for old, leaf, _ in stepped})


def _with_new(
    state: Tree, params: Tree, new: dict[int, tuple[Leaf, Tensor]]
) -> tuple[Tree, Tree]:
    """Return both trees with the new leaves and tensors, in one walk."""
    is_plain = type(params) is dict and type(state) is dict  # the usual case, quicker
    if not is_plain and isinstance(params, Tensor):
        return new.get(id(params)) or (state, params)
    old = state if is_plain else branches(state)
    leaves, tensors = {}, {}
    for key, child in (params if is_plain else branches(params)).items():
        if type(child) is Tensor:  # without a call, for there may be thousands
            leaves[key], tensors[key] = new.get(id(child)) or (old[key], child)
        else:
            leaves[key], tensors[key] = _with_new(old[key], child, new)
    if is_plain:
        return leaves, tensors
    return rebuilt(state, leaves), rebuilt(params, tensors)


def _replace_leaves(state: Tree, params: Tree, leaves: dict[int, Leaf]) -> None:
    is_plain = type(params) is dict and type(state) is dict
    old = state if is_plain else branches(state)
    for key, child in (params if is_plain else branches(params)).items():
        if type(child) is not Tensor and not isinstance(child, Tensor):
            _replace_leaves(old[key], child, leaves)
        elif id(child) in leaves:
            state[key] = leaves[id(child)]


def _require_mutable(caller: str, state: Tree, path: Path = ()) -> None:
    """Refuse a state whose leaves can't be replaced where they are."""
    children = state if type(state) is dict else branches(state)
    if children is None or (
        isinstance(state, tuple) and any(type(c) is Leaf for c in children.values())
    ):
        raise ValueError(
            f"{caller}: the state at {dotted(path)!r} is a {type(state).__name__}, "
            "which can't be changed in place. Write state, params = update(state, "
            "params, grads), or use dicts or lists."
        )
    for key, child in children.items():
        if type(child) is not Leaf:
            _require_mutable(caller, child, (*path, key))


def _stepped(
    caller: str, trees: tuple[Tree, Tree, Tree], *, check: bool, in_place: bool
) -> list[Stepped]:
    is_transformed = is_transforming()
    items = gather(caller, *trees)
    if in_place:
        _require_mutable(caller, trees[0])
    in_graph = is_recorded(*_arrays(items))
    if in_graph and in_place:
        raise ValueError(
            f"{caller}: got a step that is differentiated, because gradients, state or "
            "params have a graph; in place it would overwrite what the graph needs. "
            "Call update, or detach them."
        )
    may_fuse = not (is_transformed or in_graph)
    with nullcontext() if in_graph else torch.no_grad():
        try:
            plain, fused = _by_rule(caller, items, may_fuse)
            if check and not is_transformed:
                _require_finite(caller, items)
            return _step(caller, plain, fused, in_place)
        except STATE_ERRORS:
            _require_forms(caller, items)
            raise


def _arrays(items: list[Item]) -> tuple[list[State], list[Tensor], list[Tensor]]:
    """Return the states, the parameters and the gradients."""
    return (
        [item.leaf.state for item in items],
        [item.tensor for item in items],
        [item.grad for item in items],
    )


def _require_finite(caller: str, items: list[Item]) -> None:
    grads = [item.grad for item in items]
    if is_forward() or torch.is_grad_enabled():  # norms take no tangent and no graph
        grads = [grad.detach() for grad in grads]
    if all_finite(grads):  # one check of all; only then look for the one
        return
    for item, grad in zip(items, grads, strict=True):
        if not all_finite([grad]):
            raise ValueError(
                f"{caller}: the gradient of {dotted(item.path)!r} is not finite. "
                "Nothing was updated. Look for nan or inf in the loss, or lower the "
                "step size."
            )


def _require_forms(caller: str, items: list[Item]) -> None:
    """Refuse states that their rules did not make, after a step has failed."""
    for item in items:
        rule, state = item.leaf.rule, item.leaf.state
        if not (is_rule(rule) and has_form_of(rule, state, item.tensor)):
            raise ValueError(
                f"{caller}: the state of {dotted(item.path)!r} is not one of {rule!r}. "
                "Call setup(rule, params) for these parameters."
            )


def _step(
    caller: str,
    plain: dict[Rule, list[Item]],
    fused: dict[Rule, list[Item]],
    in_place: bool,
) -> list[Stepped]:
    """Apply each rule to all its tensors at once; write only when all steps exist."""
    groups = [
        Group(rule, *_arrays(part), dotted(part[0].path))
        for rule, part in plain.items()
    ]
    steps = apply_groups(caller, groups)
    stepped = [
        (i.tensor, Leaf(i.leaf.rule, state, i.leaf.frozen), _moved(i, dx, in_place))
        for part, (states, dxs) in zip(plain.values(), steps, strict=True)
        for i, state, dx in zip(part, states, dxs, strict=True)
    ]
    for rule, part in fused.items():
        stepped += _step_fused(rule, part, in_place)
    return stepped


def _by_rule(
    caller: str, items: list[Item], may_fuse: bool
) -> tuple[dict[Rule, list[Item]], dict[Rule, list[Item]]]:
    """Return the items of each rule: those for plain steps, and for fused ones."""
    groups: tuple[dict[Rule, list[Item]], dict[Rule, list[Item]]] = {}, {}
    of_object: dict[tuple[int, bool], list[Item]] = {}  # quicker to look up
    for item in items:
        rule, x = item.leaf.rule, item.tensor
        is_fused = may_fuse and has_fused_step(rule, x)
        if not (is_fused or is_differentiable(x)):
            raise ValueError(
                f"{caller}: {dotted(item.path)!r} is {x.dtype}, in which "
                "a step would be rounded away; wanted a floating-point or complex "
                "parameter, or the gradient None."
            )
        key = id(rule), is_fused
        if key not in of_object:
            of_object[key] = groups[is_fused].setdefault(rule, [])
        of_object[key].append(item)
    return groups


def _moved(item: Item, dx: Tensor | None, in_place: bool) -> Tensor:
    x = item.tensor
    if dx is None:
        return x
    new = x - dx
    if in_place:
        return x.copy_(new)
    return new if new.dtype is x.dtype else new.to(x.dtype)


def _step_fused(rule: Adam, items: list[Item], in_place: bool) -> list[Stepped]:
    """Let torch's kernel write, into new arrays unless the step is in place."""
    states, tensors, grads = _arrays(items)
    if in_place:
        states = rule.fused_(states, tensors, grads)
    else:
        states, tensors = rule.fused(states, tensors, grads)
    return [
        (i.tensor, Leaf(i.leaf.rule, state, i.leaf.frozen), new)
        for i, state, new in zip(items, states, tensors, strict=True)
    ]
