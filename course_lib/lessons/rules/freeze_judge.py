"""A check for lesson 07: of a function that freezes a branch of a state."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from course_lib.explicit import Leaf, freeze, setup, update
from course_lib.lessons.checks import reject, require_kind, require_unchanged
from course_lib.lessons.exercises import NotYet
from course_lib.rules import Momentum
from course_lib.trees import Path, Tree, map_tree, walk

Freeze = Callable[[Tree, str], Any]

_TWO = {
    "encoder": {"weight": torch.ones(2), "bias": torch.ones(1)},
    "decoder": {"weight": torch.ones(2)},
}
_FOUR = {  # names that lie in each other, and branches of branches
    "encoder": {"1": {"weight": torch.ones(2)}, "3": {"weight": torch.ones(1)}},
    "encoder_2": {"weight": torch.ones(2)},
    "code": {"weight": torch.ones(3)},
    "decoder": {"0": {"weight": torch.ones(2)}},
}


def judge_freezing(freeze_part: Freeze) -> None:
    """Call a function with states; it should return each with one branch frozen."""
    returned: list[Leaf] = []
    cases = (_TWO, ()), (_TWO, ()), (_FOUR, ("decoder",))
    for pull, (params, resting) in enumerate(cases, start=1):
        for name in params:
            before, moved = _state(params, resting, pull)
            got = _frozen_by(freeze_part, before, name)
            _judge_tree(got, before)
            _judge_leaves(got, before, name, returned)
            _judge_step(got, moved, {*resting, name})
            returned += [leaf for _, leaf in walk(got)]


def _state(params: Tree, resting: tuple[str, ...], pull: float) -> tuple[Tree, Tree]:
    """Return a state after a step, some branches of it frozen, and the parameters."""
    grads = map_tree(lambda path, x: pull * torch.ones_like(x), params)
    state, params = update(setup(Momentum(0.1, 0.5), params), params, grads)
    return {k: freeze(v) if k in resting else v for k, v in state.items()}, params


def _frozen_by(freeze_part: Freeze, before: Tree, name: str) -> Any:
    """Return what the function makes of a copy, which it may not change."""
    given, is_large = map_tree(lambda _, leaf: leaf, before), len(before) > 2
    if is_large:
        name = "".join(list(name))  # equal, but another object
    flags = {path: leaf.frozen for path, leaf in walk(before)}
    velocities = [leaf.state for _, leaf in walk(before)]
    kept = [v.clone() for v in velocities]
    try:
        got = freeze_part(given, name)
    except Exception as error:
        if not is_large:
            raise
        raise NotYet(
            f"With the branches {', '.join(before)}, where encoder and decoder have "
            f"branches again, your code raised {type(error).__name__}: {error}. "
            "`freeze` takes any branch."
        ) from None
    require_kind(got, dict, f"the whole state, with the branches {', '.join(before)}")
    old = {path: id(leaf) for path, leaf in walk(before)}
    is_same = {path: id(leaf) for path, leaf in walk(given)} == old
    if not is_same or {path: leaf.frozen for path, leaf in walk(given)} != flags:
        raise NotYet(
            "You wrote into the state that you were given; whoever still holds it has "
            f"a frozen {name}, too. Build a new dict: `{{**state, ...}}`."
        )
    require_unchanged(velocities, kept, "a velocity of the given state")
    return got


def _judge_tree(got: Tree, before: Tree) -> None:
    wanted = f"wanted the whole state, with the branches {', '.join(before)}"
    lost = [str(key) for key in before if key not in got]
    extra = [str(key) for key in got if key not in before]
    reject(
        {
            f"You returned the branch alone or another tree; {wanted}.": (
                bool(lost and extra)
            ),
            f"The result has lost {', '.join(lost)}; {wanted}.": bool(lost),
            f"The result has a new branch, {', '.join(extra)}; {wanted}. A name in "
            "quotes, or before `=`, is not the variable.": bool(extra),
        }
    )
    old = dict(walk(before))
    if dict(walk(got)).keys() != old.keys():
        raise NotYet(f"A branch of the result has other arrays in it; {wanted}.")
    for path, leaf in walk(got):
        if not isinstance(leaf, Leaf):
            what = f"`{'.'.join(path)}` is {type(leaf).__name__}"
            raise NotYet(f"{what}; a state has a Leaf there.")


def _judge_leaves(got: Tree, before: Tree, name: str, returned: list[Leaf]) -> None:
    old = dict(walk(before))
    for (branch, *_), leaf in walk(got):
        if any(leaf is earlier for earlier in returned):
            raise NotYet(
                f"That {branch} is of another state, which your function was given "
                "before. Keep nothing from one call to the next."
            )
    for path, leaf in walk(got):
        if leaf.rule != old[path].rule and not leaf.frozen:
            raise NotYet(
                f"You changed the rule of the {path[0]}. With eta = 0 it still coasts "
                "on the velocity that it has, which goes on changing. Use `freeze`."
            )
    _judge_flags(dict(walk(got)), old, name)
    for path, leaf in walk(got):
        is_tensor = isinstance(leaf.state, Tensor)
        if not (is_tensor and torch.equal(leaf.state, old[path].state)) or (
            leaf.rule != old[path].rule
        ):
            raise NotYet(
                f"The velocity or the rule of the {path[0]} is lost: it would start "
                "again. Freeze the state that you are given; `setup` makes a new one."
            )


def _judge_flags(got: Mapping[Path, Leaf], old: Mapping[Path, Leaf], name: str) -> None:
    thawed = {p[0] for p in got if old[p].frozen and not got[p].frozen}
    frozen = {p[0] for p in got if got[p].frozen and not old[p].frozen}
    other, free = ", ".join(sorted(frozen - {name})), ", ".join(sorted(thawed))
    branches = {path[0] for path in got}
    rests = any(leaf.frozen for path, leaf in got.items() if path[0] == name)
    reject(
        {
            f"The {free} was frozen before, and your function thawed it. A frozen "
            "branch stays frozen.": bool(thawed),
            f"The {other} is frozen, too; only the {name} should be.": (
                bool(other) and rests
            ),
            f"That freezes the {other}. The {name} should rest.": bool(other),
            f"With four branches the {name} does not rest. Take `name` as it comes, "
            "and compare it with `==`.": not rests and "code" in branches,
            "Nothing is frozen. `freeze` returns a new state; is it used?": not rests,
        }
    )


def _judge_step(got: Tree, params: Tree, resting: set[str]) -> None:
    ones = map_tree(lambda path, x: torch.ones_like(x), params)
    old, (_, moved) = dict(walk(params)), update(got, params, ones)
    for path, x in walk(moved):
        if torch.equal(x, old[path]) != (path[0] in resting):
            does = "still moves" if path[0] in resting else "does not move"
            raise NotYet(f"At the next step `{'.'.join(path)}` {does}.")
