"""Train explicitly: parameters, state and gradients are plain nested dicts.

Nothing hides in the model or in the optimizer. What a step reads, it is given; what it
makes, it returns:

    params = parameters(model)
    state = setup(Adam(1e-3), params)
    for x, y in batches:
        value, grads = with_gradient(lambda p: loss(call(model, p, x), y), params)
        state, params = update(state, params, grads)
    store(model, params)

A tree mirrors the module tree: {"encoder": {"weight": ..., "bias": ...}, ...}. A tensor
that stands at several places of `params` is tied: one tensor, one state, one step.
(torch.func.vmap takes ties apart: inside it, each place has a tensor of its own.)
"""

import math
import warnings
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from course_lib import rules
from course_lib.graphs import is_any_recorded
from course_lib.groups import Group, apply_groups
from course_lib.pure import (
    buffers,
    call,
    first_of,
    gradient,
    parameters,
    store,
    with_gradient,
)
from course_lib.rules import Rule
from course_lib.state_files import load, save
from course_lib.states import Leaf, adjust, freeze, setup, thaw
from course_lib.trees import (
    Path,
    Tree,
    destructure,
    dotted,
    is_forward,
    is_transforming,
    require_tree,
    trainables,
)

__all__ = [
    "Leaf",
    "NonFiniteLoss",
    "adjust",
    "buffers",
    "call",
    "destructure",
    "freeze",
    "gradient",
    "load",
    "parameters",
    "save",
    "setup",
    "store",
    "thaw",
    "train",
    "trainables",
    "update",
    "update_",
    "with_gradient",
]


class NonFiniteLoss(ArithmeticError):
    """The loss is nan or infinite; nothing was updated by this batch."""

    def __str__(self) -> str:  # without the trees that stand beside the message
        return str(self.args[0])


# Steps


def update(
    state: Tree, params: Tree, grads: Tree, *, check: bool = True
) -> tuple[Tree, Tree]:
    """Return (new state, new params) after one step; the arguments stay as they are.

    Each distinct tensor takes one step: x' = x - dx. Gradients of a tied tensor's
    places are summed. A gradient None, or a subtree that grads leaves out, and a frozen
    tensor take no step. dtype and device stay.

    The step can be differentiated (meta-learning, learned step sizes): it is part of
    the graph where gradients or state have one, where params were computed from what
    requires a gradient, and inside `gradient` and torch.func.grad. A leaf that requires
    a gradient, such as an nn.Parameter, is stepped without a graph otherwise, as
    torch.optim does; pass x.view_as(x) to differentiate with respect to it, and
    x.detach() to leave steps before out of the graph.

    Args:
        state: from `setup`, or the step before.
        params: the tree that is stepped.
        grads: the gradients, as `gradient` gives them.
        check: refuse gradients that are nan or infinite. Costs one look at each; on a
            GPU the host waits for the answer.

    Raises:
        ValueError: trees, shapes, dtypes or devices that do not fit, or a gradient that
            is not finite; with the path. Nothing is updated then.

    >>> from course_lib.rules import Descent
    >>> params = {"x": torch.tensor([1.0])}
    >>> state = setup(Descent(0.1), params)
    >>> update(state, params, {"x": torch.tensor([2.0])})[1]
    {'x': tensor([0.8000])}
    """
    if torch.compiler.is_compiling():  # which can't trace this: it breaks the graph
        return torch.compiler.disable(update)(state, params, grads, check=check)
    new = _stepped("update", (state, params, grads), check=check, in_place=False)
    return _with_new(state, params, {id(old): (leaf, x) for old, leaf, x in new})


def _with_new(
    state: Tree, params: Tree, new: dict[int, tuple[Leaf, Tensor]]
) -> tuple[Tree, Tree]:
    """Return both trees with what is new, in one walk."""
    leaves, tensors = {}, {}
    for key, child in params.items():
        if isinstance(child, dict):
            leaves[key], tensors[key] = _with_new(state[key], child, new)
        else:
            leaves[key], tensors[key] = new.get(id(child)) or (state[key], child)
    return leaves, tensors


def update_(state: Tree, params: Tree, grads: Tree, *, check: bool = True) -> None:
    """Take the step of `update` in place, in the tensors of params and in state.

    Saves the memory and the time of the copies. Raises like `update`, before anything
    is changed; and where the step would be differentiated.
    """
    if torch.compiler.is_compiling():
        return torch.compiler.disable(update_)(state, params, grads, check=check)
    new = _stepped("update_", (state, params, grads), check=check, in_place=True)
    leaves = {id(tensor): leaf for tensor, leaf, _ in new}
    _replace_leaves(state, params, leaves)


def _stepped(
    place: str, trees: tuple[Tree, Tree, Tree], *, check: bool, in_place: bool
) -> list["Stepped"]:
    is_transformed = is_transforming()
    items = _items(place, *trees)
    is_recorded = is_any_recorded(
        [i.tensor for i in items],
        [i.leaf.state for i in items],
        [i.grad for i in items],
    )
    if is_recorded and in_place:
        raise ValueError(
            f"{place}: got a step that is differentiated, because gradients, state or "
            "params have a graph; in place it would overwrite what the graph needs. "
            "Call update, or detach them."
        )
    look = _Look(place, check and not is_transformed)
    with nullcontext() if is_recorded else torch.no_grad():
        may_fuse = not (is_transformed or is_recorded)
        try:
            return _step(items, look, in_place=in_place, may_fuse=may_fuse)
        except (TypeError, ValueError, IndexError, AttributeError):
            _require_forms(place, items)
            raise


def _require_forms(place: str, items: list["_Item"]) -> None:
    """Refuse states that no rule of theirs made, once a step has failed."""
    for item in items:
        rule, own = item.leaf.rule, rules.form_of(item.leaf.state)
        is_rule = rules.is_rule(rule)
        if not is_rule or own != rules.form_of(rule.init(item.tensor.detach())):
            raise ValueError(
                f"{place}: the state of {dotted(item.path)!r} is not one of {rule!r}. "
                "Call setup(rule, params) for these parameters."
            )


def _replace_leaves(state: Tree, params: Tree, leaves: dict[int, Leaf]) -> None:
    for key, child in params.items():
        if isinstance(child, dict):
            _replace_leaves(state[key], child, leaves)
        elif id(child) in leaves:
            state[key] = leaves[id(child)]


@dataclass(slots=True)
class _Item:
    """A distinct tensor that takes a step, with its path, its leaf and its gradient."""

    path: Path
    tensor: Tensor
    leaf: Leaf
    grad: Tensor | None


def _items(place: str, state: Tree, params: Tree, grads: Tree) -> list[_Item]:
    for what, tree in (("state", state), ("params", params), ("grads", grads)):
        require_tree(place, what, tree)
    items: dict[int, _Item] = {}
    _gather(place, state, params, grads, (), items)
    return [i for i in items.values() if i.grad is not None and not i.leaf.frozen]


def _gather(
    place: str,
    state: Any,
    params: Tree,
    grads: Any,
    path: Path,
    items: dict[int, _Item],
) -> None:
    """Walk three trees at once; complain, with the path, where they part."""
    _require_keys(place, path, state, params, grads)
    for key, tensor in params.items():
        here, leaf, grad = (*path, key), state[key], grads.get(key)
        if isinstance(tensor, dict):
            grad = {} if grad is None else grad
            _gather(place, leaf, tensor, grad, here, items)
            continue
        _require_types(place, here, tensor, leaf, grad)
        kind = tensor.shape, tensor.dtype, tensor.device
        if grad is not None and not _fits(grad, kind):
            _refuse_gradient(place, here, tensor, grad)
        known = items.get(id(tensor))
        if known is None:
            if not _fits(leaf.state, kind):
                _require_state(place, here, tensor, leaf)
            items[id(tensor)] = _Item(here, tensor, leaf, grad)
            continue
        if known.leaf is not leaf:
            known.leaf = _reconcile(place, known, here, leaf)
        if grad is not None:
            known.grad = grad if known.grad is None else known.grad + grad


def _require_keys(place: str, path: Path, state: Any, params: Tree, grads: Any) -> None:
    if not isinstance(state, dict) or state.keys() != params.keys():
        got = ", ".join(map(str, state)) if isinstance(state, dict) else repr(state)
        raise ValueError(
            f"{place}: at {dotted(path)!r} the state has {got}; the parameters have "
            f"{', '.join(params)}. Call setup(rule, params) for these parameters."
        )
    if not isinstance(grads, dict) or not grads.keys() <= params.keys():
        got = type(grads).__name__
        if isinstance(grads, dict):
            got = ", ".join(sorted(grads.keys() - params.keys()))
        raise ValueError(
            f"{place}: at {dotted(path)!r} the gradients have {got}, which the "
            f"parameters ({', '.join(params)}) have not. Take gradients with "
            "respect to these params."
        )


def _require_types(place: str, path: Path, tensor: Any, leaf: Any, grad: Any) -> None:
    if isinstance(tensor, Tensor) and isinstance(leaf, Leaf):
        if grad is None or isinstance(grad, Tensor):
            return
        what, thing, wanted = "gradient", grad, "Tensor"
    elif isinstance(tensor, Tensor):
        what, thing, wanted = "state", leaf, "Leaf"
    else:
        what, thing, wanted = "parameter", tensor, "Tensor"
    raise ValueError(
        f"{place}: the {what} of {dotted(path)!r} is {type(thing).__name__}; wanted a "
        f"{wanted}. Do all trees belong to these params?"
    )


Kind = tuple[torch.Size, torch.dtype, torch.device]


def _fits(thing: Any, kind: Kind) -> bool:
    """Tell whether a tensor, or each in a tuple, is of this kind."""
    if isinstance(thing, Tensor):
        return (thing.shape, thing.dtype, thing.device) == kind
    if isinstance(thing, tuple):
        for part in thing:  # plain, for there may be thousands
            if not _fits(part, kind):
                return False
    return True


def _require_state(place: str, path: Path, tensor: Tensor, leaf: Leaf) -> None:
    """Refuse what a rule remembers of another tensor; the rule knows what it wants."""
    own, wanted = (
        [p for p in pytree.tree_leaves(each) if isinstance(p, Tensor)]
        for each in (leaf.state, leaf.rule.init(tensor.detach()))
    )
    for got, want in zip(own, wanted, strict=False):
        if not _fits(got, (want.shape, want.dtype, want.device)):
            raise ValueError(
                f"{place}: the state of {dotted(path)!r} is {_kind(got)}; for this "
                f"parameter, {_kind(tensor)}, the rule wants {_kind(want)}. Call "
                "setup(rule, params) for these parameters."
            )


def _kind(tensor: Tensor) -> str:
    return f"{tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}"


def _refuse_gradient(place: str, path: Path, tensor: Tensor, grad: Tensor) -> None:
    raise ValueError(
        f"{place}: the gradient of {dotted(path)!r} has shape {tuple(grad.shape)}, "
        f"{grad.dtype} on {grad.device}; the parameter has shape "
        f"{tuple(tensor.shape)}, {tensor.dtype} on {tensor.device}. Take gradients "
        "with respect to these params."
    )


def _reconcile(place: str, known: _Item, path: Path, leaf: Leaf) -> Leaf:
    if known.leaf.rule != leaf.rule:
        raise ValueError(
            f"{place}: {dotted(known.path)!r} and {dotted(path)!r} are one tied "
            f"tensor, but have the rules {known.leaf.rule} and {leaf.rule}. "
            "Adjust both."
        )
    return replace(known.leaf, frozen=known.leaf.frozen or leaf.frozen)


@dataclass(frozen=True)
class _Look:
    """Whether gradients are looked at, and where to say so."""

    place: str
    is_wanted: bool

    def __call__(self, items: list[_Item]) -> None:
        if self.is_wanted and items:
            _require_finite(self.place, items)


def _require_finite(place: str, items: list[_Item]) -> None:
    """Look at all gradients at once; only where one is bad, look for which."""
    grads = [item.grad for item in items]
    if is_forward():  # torch's foreach kernels don't take tangents
        grads = [grad.detach() for grad in grads]
    with torch.no_grad():
        norms = torch._foreach_norm(grads)
    # A large norm may overflow: then look again.
    if not norms[0].is_cpu:  # wait for a GPU once, not for each number
        norms = torch.stack([norm.to(norms[0].device) for norm in norms]).tolist()
    if all(map(math.isfinite, norms)):
        return
    for item in items:
        if not item.grad.isfinite().all():
            raise ValueError(
                f"{place}: the gradient of {dotted(item.path)!r} is not finite. "
                "Nothing was updated. Look for nan or inf in the loss, or lower the "
                "step size."
            )


Stepped = tuple[Tensor, Leaf, Tensor]  # the old tensor, the new leaf, the new tensor


def _step(
    items: list[_Item], look: _Look, *, in_place: bool, may_fuse: bool
) -> list[Stepped]:
    """Apply each rule to all its tensors at once; write only when all have ended."""
    of_rule: dict[Rule, tuple[list[_Item], list[_Item]]] = {}
    of_object: dict[int, tuple[list[_Item], list[_Item]]] = {}  # quicker to look up
    for item in items:
        rule = item.leaf.rule
        if id(rule) not in of_object:
            of_object[id(rule)] = of_rule.setdefault(rule, ([], []))
        fused = may_fuse and rules.has_fused(rule) and rules.is_fusible(item.tensor)
        if not (fused or item.tensor.is_floating_point() or item.tensor.is_complex()):
            raise ValueError(
                f"{look.place}: {dotted(item.path)!r} is {item.tensor.dtype}, in which "
                "a step would be rounded away; wanted a floating-point or complex "
                "parameter, or the gradient None."
            )
        of_object[id(rule)][fused].append(item)
    if in_place:  # nothing may be written then
        look(items)
    plain = [(rule, group) for rule, (group, _) in of_rule.items() if group]
    if not in_place:
        look([item for _, group in plain for item in group])
    plans = [_plan(look.place, plain)] if plain else []
    plans += [_plan_fused(r, f, look) for r, (_, f) in of_rule.items() if f]
    return [stepped for finish in plans for stepped in finish(in_place)]


def _plan(
    place: str, groups: list[tuple[Rule, list[_Item]]]
) -> Callable[[bool], list[Stepped]]:
    """Compute the steps now; the function that is returned takes them."""
    steps = apply_groups(
        place,
        [
            Group(
                rule,
                [i.leaf.state for i in items],
                [i.tensor for i in items],
                [i.grad for i in items],
                dotted(items[0].path),
            )
            for rule, items in groups
        ],
    )

    def finish(in_place: bool) -> list[Stepped]:
        return [
            (i.tensor, _with(i.leaf, state), _moved(i.tensor, dx, in_place))
            for (_, items), (states, dxs) in zip(groups, steps, strict=True)
            for i, state, dx in zip(items, states, dxs, strict=True)
        ]

    return finish


def _with(leaf: Leaf, state: Any) -> Leaf:
    new = object.__new__(Leaf)  # four times as fast as Leaf(...), which is frozen
    vars(new).update(rule=leaf.rule, state=state, frozen=leaf.frozen)
    return new


def _moved(x: Tensor, dx: Tensor | None, in_place: bool) -> Tensor:
    if dx is None:
        return x
    new = (x - dx).to(x.dtype)
    return x.copy_(new) if in_place else new


def _plan_fused(
    rule: Rule, group: list[_Item], look: _Look
) -> Callable[[bool], list[Stepped]]:
    """Let a fused kernel write, into new arrays unless the step is in place."""

    def finish(in_place: bool) -> list[Stepped]:
        states = [item.leaf.state for item in group]
        tensors, grads = [i.tensor for i in group], [i.grad for i in group]
        if in_place:
            states = rule.fused_(states, tensors, grads)
        else:
            states, tensors, is_finite = rule.fused(states, tensors, grads)
            if not is_finite:
                look(group)
        return [
            (i.tensor, _with(i.leaf, state), new)
            for i, state, new in zip(group, states, tensors, strict=True)
        ]

    return finish


# The loop


def train(
    loss: Callable[..., Any],
    params: Tree,
    batches: Iterable[Any],
    state: Tree,
    *,
    schedule: Callable[[int], float] | None = None,
    on_nonfinite: str = "raise",
    on_step: Callable[[int, Any], object] | None = None,
) -> tuple[Tree, Tree, list[float]]:
    """Take a step for each batch; return (state, params, losses).

    Args:
        loss: (params, *batch) -> scalar, or a tuple that begins with one.
        params: the tree; stays as it is.
        batches: tuples, or single tensors.
        state: from `setup`; stays as it is.
        schedule: step number from 0 -> eta; None leaves eta alone.
        on_nonfinite: `"raise"`, or `"skip"` to warn and leave that batch out.
        on_step: called with (step, value) after each step; a true answer stops.

    Raises:
        NonFiniteLoss: the loss is nan or infinite. `error.args[1]` is (state, params)
            as they were before that batch.
        ValueError: another word for `on_nonfinite`, or what `update` raises.
    """
    if on_nonfinite not in ("raise", "skip"):
        raise ValueError(
            f"train: got on_nonfinite={on_nonfinite!r}; wanted 'raise' or 'skip'."
        )
    require_tree("train", "params", params)
    require_tree("train", "the state", state)
    losses: list[float] = []
    for step, batch in enumerate(batches):
        batch = batch if isinstance(batch, tuple | list) else (batch,)
        value, grads = with_gradient(lambda p, batch=batch: loss(p, *batch), params)
        losses.append(first_of(value).item())
        if not math.isfinite(losses[-1]):
            message = f"train: the loss of batch {step} is {losses[-1]}"
            if on_nonfinite == "raise":
                raise NonFiniteLoss(
                    f"{message}. The parameters are those before this batch. Lower the "
                    "step size, or look for nan in the data.",
                    (state, params),
                )
            warnings.warn(f"{message}; it is left out.", stacklevel=2)
            continue
        if schedule is not None:
            state = adjust(state, schedule(step))
        state, params = update(state, params, grads)
        if on_step and on_step(step, value):
            break
    return state, params, losses
