"""The check of lesson 09's `mend`: what has moved, and by how much.

Each function raises `NotYet` with the name of a mistake, or returns.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from course_lib.lessons.checks import name_mistake, reject
from course_lib.lessons.exercises import NotYet


def judge_other_sizes(
    answer: Callable[..., object], x: Tensor, first: Tensor, second: Tensor
) -> None:
    """Refuse numbers that are fixed: another weight, and other sizes."""
    a = x @ first.T
    z = a.relu() @ second.T
    answer(x, a, z, second, 4, 0, 1.5)
    first[4, 0] += 1.5
    new = x @ first.T
    if not torch.allclose(a, new) or not torch.allclose(z, new.relu() @ second.T):
        raise NotYet(
            "It is right for o = 1, i = 2 and 4 outputs, and not for o = 4, i = 0 and "
            "2 outputs. Is a number fixed?"
        )


def judge_a(a: Tensor, wanted: Tensor, old: Tensor) -> None:
    """Refuse an `a` that is not that of the new weight."""
    columns = [c for c in range(a.shape[1]) if not torch.equal(a[:, c], old[:, c])]
    reject(
        {
            "`a` has not changed. `a = ...` only gives the name to another tensor; "
            "write into a column, `a[:, o] = ...`. At the next visit `a` is needed.": (
                not columns
            ),
            f"Columns {columns} of `a` have changed; with o = 1, i = 2 wanted only "
            "column 1. `first[o, i]` feeds output o from input i.": columns != [1],
            "You store `a` behind the ReLU; wanted what goes into it.": (
                torch.allclose(a[:, 1], wanted[:, 1].relu())
            ),
            "Column o of `a` has changed, but not by `by * x[:, i]`, the input that "
            "this weight multiplies.": not torch.allclose(a, wanted),
        }
    )


def judge_z(z: Tensor, old_z: Tensor, old: Tensor, new: Tensor, second: Tensor) -> None:
    """Compare `z`; `old` and `new` are column 1 of `a`, before and after."""
    change, behind = new - old, new.relu() - old.relu()

    def moved_by(part: Tensor, to: Tensor = second[:, 1]) -> Tensor:
        return old_z + part[:, None] * to

    if torch.allclose(z, moved_by(behind)):
        return
    mistakes = {
        "`z` did not change, so it is stale. Did you forget it, write `z = ...` in "
        "place of `z += ...`, or overwrite the old column of `a` before you took the "
        "difference? `a[:, o]` is a view: it changes with `a`": old_z,
        "`z` moved by the change in front of the ReLU. Where `a` is negative, nothing "
        "passes: take the difference of the two ReLUs": moved_by(change),
        "You take the ReLU of the change. Wanted the change of the ReLU: "
        "`new.relu() - old.relu()`": moved_by(change.relu()),
        "You use row o of `second`. Hidden unit o feeds all outputs through *column* "
        "o": moved_by(behind, second[1]),
        "`z` moved to the other side: wanted new minus old": moved_by(-behind),
        "You add the new part of `z` and leave the old part in it": (
            moved_by(new.relu())
        ),
    }
    name_mistake(z, mistakes, same=torch.allclose)
    raise NotYet("`a` is right, `z` is not. It moves by the change of relu(a[:, o]).")
