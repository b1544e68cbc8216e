"""The state of rules: a tree of leaves that mirrors the parameters.

Each leaf holds the rule of one tensor, the rule's state, and whether the tensor is
frozen. All functions return new trees; their arguments are not changed.
"""

import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from course_lib.explicit.graphs import is_recorded
from course_lib.rules.base import Rule, is_rule
from course_lib.rules.composing import Chain
from course_lib.rules.hyperparameters import plain
from course_lib.trees import (
    Path,
    Tree,
    branches,
    dotted,
    is_frozen_in_model,
    map_tree,
    rebuilt,
    require_tree,
    walk,
)


@dataclass(frozen=True, slots=True)
class Leaf:
    """The rule of one tensor and its state; a frozen tensor is not stepped."""

    rule: Rule
    state: Any
    frozen: bool = False


pytree.register_pytree_node(  # so that vmap maps over the tensors in it
    Leaf,
    lambda leaf: ([leaf.state], (leaf.rule, leaf.frozen)),
    lambda children, context: Leaf(context[0], *children, context[1]),
)


def setup(
    rule: Rule | Mapping[str, Any] | Callable[[Path, Tensor], Rule], params: Tree
) -> Tree:
    """Return the state of a rule for every tensor of the tree, in the same shape.

    Tensors that the model froze, by `requires_grad_(False)`, are frozen; `thaw` frees
    them. A warning says so where all are frozen.

    Args:
        rule: one rule for all; or a dict {key: rule or dict} with the keys of params,
            for other rules for other subtrees, and a list or a tuple for a sequence; or
            a function (path, tensor) -> rule, where the path is the tuple of keys. A
            dict may hold functions.
        params: the tree. A tied tensor has one state.

    Raises:
        ValueError: no rule, keys that do not fit, two rules for a tied tensor, or a
            sparse tensor.

    >>> from course_lib.rules import AdamW, Momentum
    >>> setup(Momentum(), {"x": torch.zeros(1)})["x"].state
    tensor([0.])
    >>> def no_decay_for_biases(path, tensor):
    ...     return AdamW(decay=0.0 if path[-1] == "bias" else 0.1)
    >>> params = {"fc": {"weight": torch.zeros(1, 1), "bias": torch.zeros(1)}}
    >>> setup(no_decay_for_biases, params)["fc"]["weight"].rule.decay
    0.1
    """
    require_tree("setup", "params", params)
    leaves: dict[int, tuple[Path, Leaf]] = {}

    def leaf(path: Path, tensor: Any, rule: Any) -> Leaf:
        if not isinstance(tensor, Tensor):
            raise ValueError(
                f"setup: {dotted(path)!r} is {type(tensor).__name__}; wanted a tensor."
            )
        rule = _rule_for(rule, path, tensor)
        if id(tensor) not in leaves:
            if tensor.layout is not torch.strided:
                raise ValueError(
                    f"setup: the parameter {dotted(path)!r} is sparse; wanted a dense "
                    "one. Call .to_dense() on it."
                )
            in_graph = is_recorded([], [tensor], [])
            state = rule.init(tensor if in_graph else tensor.detach())
            leaves[id(tensor)] = path, Leaf(rule, state, is_frozen_in_model(tensor))
        first, known = leaves[id(tensor)]
        if known.rule != rule:
            raise ValueError(
                f"setup: {dotted(first)!r} and {dotted(path)!r} are one tied "
                f"tensor, but have the rules {known.rule} and {rule}. "
                "Give both the same rule."
            )
        return known

    state = _map_with_rules(leaf, params, rule)
    if leaves and all(leaf.frozen for _, leaf in leaves.values()):
        warnings.warn(
            "setup: every parameter is frozen, because their model has "
            "requires_grad=False everywhere, so `update` moves nothing. To train them, "
            "thaw(state) frees them.",
            stacklevel=2,
        )
    return state


def _map_with_rules(
    function: Callable[[Path, Any, Any], Leaf], tree: Tree, rule: Any, path: Path = ()
) -> Tree:
    """Map over (path, tensor, what `rule` names for it)."""
    children = branches(tree)
    if children is None:
        return function(path, tree, rule)
    parts = dict(rule) if isinstance(rule, Mapping) else branches(rule)
    if parts is None:  # one rule for the whole tree
        parts = dict.fromkeys(children, rule)
    if parts.keys() - children.keys():
        extra = (dotted((*path, key)) for key in parts if key not in children)
        raise ValueError(
            f"setup: there are rules for {', '.join(extra)}; the keys are "
            f"{', '.join(map(str, children))}."
        )
    for key, child in children.items():
        if key not in parts and any(True for _ in walk(child)):
            raise ValueError(
                f"setup: there is no rule for {dotted((*path, key))!r}; the rules "
                f"are for {', '.join(map(str, parts))}. Name one for every subtree."
            )
    mapped = {
        key: _map_with_rules(function, child, parts.get(key), (*path, key))
        for key, child in children.items()
    }
    return rebuilt(tree, mapped)


def _rule_for(rule: Any, path: Path, tensor: Tensor) -> Rule:
    """Return the rule, or the one that a function of path and tensor returns."""
    is_class_or_model = isinstance(rule, type | nn.Module)
    if callable(rule) and not (is_class_or_model or is_rule(rule)):
        try:
            inspect.signature(rule).bind(path, tensor)
        except (TypeError, ValueError):
            raise ValueError(
                f"setup: got {rule!r} for the rule, which does not take (path, "
                "tensor); wanted a function of both that returns a rule."
            ) from None
        rule = rule(path, tensor)
    if not is_rule(rule):
        raise ValueError(
            f"setup: the rule for {dotted(path)!r} is {rule!r}; wanted one of "
            "course_lib.rules, for example Adam(1e-3)."
        )
    return rule


def freeze(state: Tree) -> Tree:
    """Return this state, or a subtree of one, frozen: `update` does not step it.

    >>> from course_lib.rules import Descent
    >>> params = {"a": {"x": torch.zeros(1)}, "b": {"x": torch.ones(1)}}
    >>> state = setup(Descent(), params)
    >>> state["a"] = freeze(state["a"])
    >>> [leaf["x"].frozen for leaf in state.values()]
    [True, False]
    """
    return each_leaf("freeze", state, lambda path, leaf: replace(leaf, frozen=True))


def thaw(state: Tree) -> Tree:
    """Return this state, or a subtree of one, not frozen: `update` steps it again."""
    return each_leaf("thaw", state, lambda path, leaf: replace(leaf, frozen=False))


def adjust(state: Tree, eta: float | None = None, **hyperparameters: Any) -> Tree:
    """Return this state, or subtree of one, with other hyperparameters.

    Moments and velocities stay. In a Chain every rule that has the name gets the value.

    Raises:
        ValueError: a rule has no hyperparameter of that name, refuses the value, or
            would need a state of another form.

    >>> from course_lib.rules import Adam
    >>> state = adjust(setup(Adam(), {"x": torch.zeros(1)}), 0.01)
    >>> state["x"].rule.eta
    0.01
    """
    given = {**({} if eta is None else {"eta": eta}), **hyperparameters}
    given = {name: plain(value) for name, value in given.items()}  # of numpy's

    def adjusted(path: Path, leaf: Leaf) -> Leaf:
        rule = leaf.rule
        for name, value in given.items():
            rule, is_changed = _with(rule, name, value)
            if not is_changed:
                raise ValueError(
                    f"adjust: {leaf.rule} of {dotted(path)!r} has no {name!r}. "
                    "Adjust the subtree whose rule has it."
                )
        if not all(isinstance(value, float) for value in given.values()):
            _require_same_state(path, leaf, rule)
        return replace(leaf, rule=rule)

    return each_leaf("adjust", state, adjusted)


def _with(rule: Any, name: str, value: Any) -> tuple[Any, bool]:
    """Return the rule with the value, and whether it has the name."""
    if isinstance(rule, Chain):
        pairs = [_with(member, name, value) for member in rule.rules]
        return Chain(*(member for member, _ in pairs)), any(has for _, has in pairs)
    names = [spec.name for spec in fields(rule)] if is_dataclass(rule) else []
    if name in names and name != "rule":
        return replace(rule, **{name: value}), True
    if "rule" in names:  # a rule around a rule
        inner, is_changed = _with(rule.rule, name, value)
        return replace(rule, rule=inner), is_changed
    return rule, False


def _require_same_state(path: Path, leaf: Leaf, rule: Rule) -> None:
    """Refuse a switch, such as RMSProp's `centered`, that needs another form of state.

    A float, such as a step size, can't be a switch; `adjust` does not check it here.
    """
    tensors = [x for x in pytree.tree_leaves(leaf.state) if isinstance(x, Tensor)]
    probe = tensors[0].detach() if tensors else torch.zeros(1)
    if _form(leaf.rule, probe) != _form(rule, probe):
        raise ValueError(
            f"adjust: {dotted(path)!r} has the state of {leaf.rule}; {rule} wants "
            f"one of another form. Call setup({rule}, params) for a new state."
        )


def _form(rule: Rule, x: Tensor) -> tuple[Any, list[Any]]:
    """Return which containers the rule's state has, and which dtypes in them."""
    leaves, form = pytree.tree_flatten(rule.init(x))
    return form, [getattr(leaf, "dtype", type(leaf)) for leaf in leaves]


def each_leaf(caller: str, state: Any, function: Callable[[Path, Leaf], Leaf]) -> Any:
    """Map over the leaves of a state, or over one leaf; tied places stay one leaf."""
    done: dict[int, Leaf] = {}

    def once(path: Path, leaf: Any) -> Leaf:
        if not isinstance(leaf, Leaf):
            at = f"{dotted(path)!r} is" if path else "got"
            raise ValueError(
                f"{caller}: {at} {type(leaf).__name__}; wanted a state, as "
                "setup(rule, params) gives it."
            )
        if id(leaf) not in done:
            done[id(leaf)] = function(path, leaf)
        return done[id(leaf)]

    return map_tree(once, state)
