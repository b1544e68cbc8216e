"""A check for lesson 07: of a function that freezes a branch of a state."""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from course_lib.explicit import Leaf, setup, update
from course_lib.lessons.checks import reject, require_kind
from course_lib.lessons.exercises import NotYet
from course_lib.rules import Momentum
from course_lib.trees import Tree, map_tree


def judge_freezing(freeze_branch: Callable[[Tree], Any], name: str) -> None:
    """Call a function with a state; it should return it with the branch `name` frozen.

    Raises:
        NotYet: the state that was given changed, or the result is another one.
    """
    params = {
        "encoder": {"weight": torch.ones(2), "bias": torch.ones(1)},
        "decoder": {"weight": torch.ones(2)},
    }
    ones = map_tree(lambda path, x: torch.ones_like(x), params)
    before, params = update(setup(Momentum(0.1, 0.5), params), params, ones)
    given = {branch: dict(part) for branch, part in before.items()}
    got = freeze_branch(given)
    wanted = f"the whole state, with the branches {', '.join(before)}"
    require_kind(got, dict, wanted)
    if [id(leaf) for _, leaf in _leaves(given)] != [id(x) for _, x in _leaves(before)]:
        raise NotYet(
            "You wrote into the state that you were given; whoever still holds it has "
            f"a frozen {name}, too. Build a new dict: `{{**state, ...}}`."
        )
    if dict(_leaves(got)).keys() != dict(_leaves(before)).keys():
        raise NotYet(f"You returned the branch alone or another tree; wanted {wanted}.")
    _judge_leaves(got, before, name)
    _, moved = update(got, params, ones)
    for (branch, key), x in _leaves(moved):
        if torch.equal(x, params[branch][key]) != (branch == name):
            does = "still moves" if branch == name else "does not move"
            raise NotYet(f"At the next step `{branch}.{key}` {does}.")


def _leaves(tree: Any) -> Iterator[tuple[tuple[str, str], Any]]:
    for branch, part in tree.items():
        for key, leaf in part.items() if isinstance(part, dict) else [("", part)]:
            yield (branch, key), leaf


def _judge_leaves(got: Tree, before: Tree, name: str) -> None:
    old = dict(_leaves(before))
    for at, leaf in _leaves(got):
        if not isinstance(leaf, Leaf):
            what = f"`{'.'.join(at)}` is {type(leaf).__name__}"
            raise NotYet(f"{what}; a state has a Leaf there.")
        if leaf.rule != old[at].rule and not leaf.frozen:
            raise NotYet(
                f"You changed the rule of the {at[0]}. With eta = 0 it still coasts on "
                "the velocity that it has, which goes on changing. Use `freeze`."
            )
    frozen = {branch for (branch, _), leaf in _leaves(got) if leaf.frozen}
    other = ", ".join(sorted(frozen - {name}))
    reject(
        {
            f"The {other} is frozen, too; only the {name} should be.": (
                len(frozen) > 1 and name in frozen
            ),
            f"That freezes the {other}. The {name} should rest.": bool(other),
            "Nothing is frozen. `freeze` returns a new state; is it used?": not frozen,
        }
    )
    for at, leaf in _leaves(got):
        is_same = torch.equal(leaf.state, old[at].state) and leaf.rule == old[at].rule
        if not is_same:
            raise NotYet(
                f"The velocity or the rule of the {at[0]} is lost: it would start "
                "again. Freeze the state that you are given; `setup` makes a new one."
            )
