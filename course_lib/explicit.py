"""Train explicitly: parameters, state and gradients are plain trees of tensors.

Nothing hides in the model or in the optimizer. What a step reads, it is given; what it
makes, it returns:

    params = parameters(model)
    state = setup(Adam(1e-3), params)
    for x, y in batches:
        value, grads = with_gradient(lambda p: loss(call(model, p, x), y), params)
        state, params = update(state, params, grads)
    store(model, params)

A model's tree mirrors it: {"encoder": {"weight": ..., "bias": ...}, ...}. Other trees
may have lists, tuples and named tuples in them, or be one tensor. A tensor that stands
at several places of `params` is tied: one tensor, one state, one step.
(torch.func.vmap takes ties apart: inside it, each place has a tensor of its own.)

What a model has frozen with `requires_grad_(False)` is frozen in the state, too.
"""

import math
import warnings
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from course_lib import rules
from course_lib.device import forget_casts
from course_lib.graphs import is_any_recorded
from course_lib.groups import Group, apply_groups
from course_lib.pure import (
    buffers,
    call,
    first_of,
    gradient,
    parameters,
    store,
    substitute,
    with_gradient,
)
from course_lib.rules import Descent, Rule
from course_lib.state_files import load, save
from course_lib.states import Leaf, adjust, freeze, setup, thaw
from course_lib.trees import (
    Path,
    Tree,
    branches,
    destructure,
    dotted,
    is_forward,
    is_transforming,
    rebuilt,
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
    "substitute",
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
    places are summed; one that stands at several of them, such as the shared `.grad` of
    a module's tied weights, is the whole and counts once. (Equal numbers in two arrays
    are two gradients.) A gradient None, or a subtree that grads leaves out, and a
    frozen tensor take no step. dtype and device stay.

    A sparse gradient, as of nn.Embedding(sparse=True), is for Descent alone.

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
        ValueError: trees, shapes, dtypes or devices that do not fit, a sparse gradient
            for another rule than Descent, or a gradient that is not finite; with the
            path. Nothing is updated then.

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
    is_plain = type(params) is dict and type(state) is dict  # the usual case, quicker
    if not is_plain and isinstance(params, Tensor):
        return new.get(id(params)) or (state, params)
    own = state if is_plain else branches(state)
    leaves, tensors = {}, {}
    for key, child in (params if is_plain else branches(params)).items():
        if type(child) is Tensor:  # without a call, for there may be thousands
            leaves[key], tensors[key] = new.get(id(child)) or (own[key], child)
        else:
            leaves[key], tensors[key] = _with_new(own[key], child, new)
    if is_plain:
        return leaves, tensors
    return rebuilt(state, leaves), rebuilt(params, tensors)


def update_(state: Tree, params: Tree, grads: Tree, *, check: bool = True) -> None:
    """Take the step of `update` in place, in the tensors of params and in state.

    Saves the memory and the time of the copies. Raises like `update`, before anything
    is changed; for leaves that stand in a tuple or alone, which can't be replaced; and
    where the step would be differentiated.
    """
    if torch.compiler.is_compiling():
        return torch.compiler.disable(update_)(state, params, grads, check=check)
    new = _stepped("update_", (state, params, grads), check=check, in_place=True)
    forget_casts()
    leaves = {id(tensor): leaf for tensor, leaf, _ in new}
    _replace_leaves(state, params, leaves)


def _stepped(
    place: str, trees: tuple[Tree, Tree, Tree], *, check: bool, in_place: bool
) -> list["Stepped"]:
    is_transformed = is_transforming()
    items = _items(place, *trees)
    if in_place:
        _require_places(place, trees[0])
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


def _require_places(place: str, state: Tree, path: Path = ()) -> None:
    """Refuse a state whose leaves can't be replaced where they are."""
    if type(state) is dict:
        for key, child in state.items():
            if type(child) is not Leaf:
                _require_places(place, child, (*path, key))
        return
    own = branches(state)
    if own is None or (isinstance(state, tuple) and _has_leaves(own)):
        raise ValueError(
            f"{place}: the state at {dotted(path)!r} is a {type(state).__name__}, "
            "which can't be changed in place. Write state, params = update(state, "
            "params, grads), or take dicts or lists."
        )
    for key, child in own.items():
        if not isinstance(child, Leaf):
            _require_places(place, child, (*path, key))


def _has_leaves(children: dict[Any, Any]) -> bool:
    return any(isinstance(child, Leaf) for child in children.values())


def _replace_leaves(state: Tree, params: Tree, leaves: dict[int, Leaf]) -> None:
    is_plain = type(params) is dict and type(state) is dict
    own = state if is_plain else branches(state)
    for key, child in (params if is_plain else branches(params)).items():
        if type(child) is not Tensor and not isinstance(child, Tensor):
            _replace_leaves(own[key], child, leaves)
        elif id(child) in leaves:
            state[key] = leaves[id(child)]


@dataclass(slots=True)
class _Item:
    """A distinct tensor that takes a step: its path, its leaf and its gradients."""

    path: Path
    tensor: Tensor
    leaf: Leaf
    grad: Tensor | None
    others: list[Tensor] | None = None  # those of the other places of a tie

    def add(self, grad: Tensor) -> None:
        """Take one more gradient, unless it is one that we have."""
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


def _items(place: str, state: Tree, params: Tree, grads: Tree) -> list[_Item]:
    require_tree(place, "params", params)
    is_one = isinstance(params, Tensor)  # one tensor, whose state is one leaf
    if not (is_one and isinstance(state, Leaf)):
        require_tree(place, "state", state)
    if not (is_one and grads is None):
        require_tree(place, "grads", grads)
    items: dict[int, _Item] = {}
    _gather(place, state, params, grads, (), items)
    steps = [i for i in items.values() if i.grad is not None and not i.leaf.frozen]
    for item in steps:
        if item.others:
            item.grad = _total([item.grad, *item.others])
        if item.grad.layout is not torch.strided:
            _require_sparse_rule(place, item)
    return steps


def _total(grads: list[Tensor]) -> Tensor:
    """Add gradients; torch adds a sparse one to a dense one, not the other way."""
    first, *rest = sorted(grads, key=lambda grad: grad.is_sparse)
    return sum(rest, first)


def _require_sparse_rule(place: str, item: _Item) -> None:
    if not (item.grad.is_sparse and isinstance(item.leaf.rule, Descent)):
        raise ValueError(
            f"{place}: the gradient of {dotted(item.path)!r} is sparse; call "
            ".to_dense() on it."
        )


def _gather(
    place: str,
    state: Any,
    params: Any,
    grads: Any,
    path: Path,
    items: dict[int, _Item],
) -> None:
    """Walk three trees at once; complain, with the path, where they part."""
    if type(params) is type(state) is type(grads) is dict:  # the usual case, quicker
        children, leaves, slopes = params, state, grads
    elif isinstance(params, Tensor) or branches(params) is None:
        _gather_one(place, state, params, grads, path, items)
        return
    else:
        children, leaves = branches(params), branches(state)
        slopes = {} if grads is None else branches(grads)
    if leaves is None or leaves.keys() != children.keys():
        _refuse_state(place, path, state, children)
    if (
        slopes is None
        or not slopes.keys() <= children.keys()
        or _is_short(grads, children)
    ):
        _refuse_gradients(place, path, grads, children)
    for key, child in children.items():
        leaf, slope = leaves[key], slopes.get(key)
        # The plain case without a call, for there may be thousands of arrays.
        if type(leaf) is Leaf and isinstance(child, Tensor) and id(child) not in items:
            kind = child.shape, child.dtype, child.device
            if isinstance(slope, Tensor) and _fits(slope, kind):
                if not _fits(leaf.state, kind):
                    _require_state(place, (*path, key), child, leaf)
                items[id(child)] = _Item((*path, key), child, leaf, slope)
                continue
        _gather(place, leaf, child, slope, (*path, key), items)


def _gather_one(
    place: str, leaf: Any, tensor: Any, grad: Any, path: Path, items: dict[int, _Item]
) -> None:
    _require_types(place, path, tensor, leaf, grad)
    kind = tensor.shape, tensor.dtype, tensor.device
    if grad is not None and not _fits(grad, kind):
        _refuse_gradient(place, path, tensor, grad)
    known = items.get(id(tensor))
    if known is None:
        if not _fits(leaf.state, kind):
            _require_state(place, path, tensor, leaf)
        items[id(tensor)] = _Item(path, tensor, leaf, grad)
        return
    if known.leaf is not leaf:
        known.leaf = _reconcile(place, known, path, leaf)
    if grad is not None:
        known.add(grad)


def _is_short(grads: Any, children: dict[Any, Any]) -> bool:
    """Tell whether a sequence of gradients leaves places out; a dict may do that."""
    return isinstance(grads, list | tuple) and len(grads) != len(children)


def _refuse_state(
    place: str, path: Path, state: Any, children: dict[Any, Any]
) -> NoReturn:
    own = branches(state)
    got = repr(state) if own is None else _keys(own)
    raise ValueError(
        f"{place}: at {dotted(path)!r} the state has {got}; the parameters have "
        f"{_keys(children)}. Call setup(rule, params) for these parameters."
    )


def _refuse_gradients(
    place: str, path: Path, grads: Any, children: dict[Any, Any]
) -> NoReturn:
    own, got = branches(grads), type(grads).__name__
    if _is_short(grads, children):
        got = f"{len(grads)} places"
    elif own is not None:
        got = _keys(key for key in own if key not in children)
    raise ValueError(
        f"{place}: at {dotted(path)!r} the gradients have {got}, which the "
        f"parameters ({_keys(children)}) have not. Take gradients with "
        "respect to these params."
    )


def _keys(keys: Iterable[Any]) -> str:
    return ", ".join(map(str, keys))


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
    for part in thing if isinstance(thing, tuple) else (thing,):
        if type(part) is Tensor or isinstance(part, Tensor):  # plain: there are many
            if (part.shape, part.dtype, part.device) != kind:
                return False
        elif isinstance(part, tuple) and not _fits(part, kind):
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
    if is_forward() or torch.is_grad_enabled():  # norms take no tangent and no graph
        grads = [grad.detach() for grad in grads]
    try:
        norms = torch._foreach_norm(grads)
    except NotImplementedError:  # a sparse one is among them
        norms = torch._foreach_norm([_numbers(grad) for grad in grads])
    # A large norm may overflow: then look again.
    if not norms[0].is_cpu:  # wait for a GPU once, not for each number
        norms = torch.stack([norm.to(norms[0].device) for norm in norms]).tolist()
    if all(map(math.isfinite, norms)):
        return
    for item in items:
        if not _numbers(item.grad).isfinite().all():
            raise ValueError(
                f"{place}: the gradient of {dotted(item.path)!r} is not finite. "
                "Nothing was updated. Look for nan or inf in the loss, or lower the "
                "step size."
            )


def _numbers(grad: Tensor) -> Tensor:
    return grad.coalesce().values() if grad.is_sparse else grad


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
    return Leaf(leaf.rule, state, leaf.frozen)  # dataclasses.replace is slow


def _moved(x: Tensor, dx: Tensor | None, in_place: bool) -> Tensor:
    if dx is None:
        return x
    new = x - dx
    if in_place:
        return x.copy_(new)
    return new if new.dtype is x.dtype else new.to(x.dtype)


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
    allow_unused: bool = False,
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
        allow_unused: as in `with_gradient`; a batch whose loss is a constant then
            moves nothing.

    Raises:
        NonFiniteLoss: the loss is nan or infinite. `error.args[1]` is (state, params)
            as they were before that batch.
        ValueError: another word for `on_nonfinite`, or what `with_gradient` and
            `update` raise: a loss that uses none of the parameters, for one.
    """
    if on_nonfinite not in ("raise", "skip"):
        raise ValueError(
            f"train: got on_nonfinite={on_nonfinite!r}; wanted 'raise' or 'skip'."
        )
    require_tree("train", "params", params)
    if not isinstance(state, Leaf):
        require_tree("train", "the state", state)
    losses: list[float] = []
    for step, batch in enumerate(batches):
        batch = batch if isinstance(batch, tuple | list) else (batch,)
        value, grads = with_gradient(
            lambda p, batch=batch: loss(p, *batch), params, allow_unused=allow_unused
        )
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
