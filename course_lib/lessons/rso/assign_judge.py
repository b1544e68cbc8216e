"""The check of lesson 08's `assign`: what is filled, and what else must not change.

Each function raises `NotYet` with the name of a mistake, or returns.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from course_lib.lessons.checks import reject
from course_lib.lessons.exercises import NotYet


def judge_norm(answer: Callable[[nn.Module, list[Tensor]], object]) -> None:
    """A norm has buffers, and its weight rests: still a parameter."""
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2))
    model[0].weight.requires_grad_(False)
    buffers = [b.clone() for b in model.buffers()]
    values = [torch.full_like(p, k + 2.0) for k, p in enumerate(model.parameters())]
    try:
        answer(model, [value.clone() for value in values])
    except RuntimeError as error:
        raise NotYet(
            "With a model that begins with a batch norm your code raised: "
            f"{str(error).splitlines()[0]}. Its running mean is in `state_dict` and no "
            "parameter; its frozen weight is one. Go through `model.parameters()`."
        ) from error
    filled = [
        torch.equal(*pair) for pair in zip(model.parameters(), values, strict=True)
    ]
    reject(
        {
            "With a frozen parameter in the model, the values are shifted or left "
            "out. Frozen or not, each parameter has its place in `values`.": (
                not all(filled)
            ),
            "The buffers of a batch norm have changed. They are no parameters.": (
                not all(map(torch.equal, model.buffers(), buffers))
            ),
            "You have changed `requires_grad` of a parameter that was frozen.": (
                model[0].weight.requires_grad
            ),
        }
    )


def judge_filled(now: list[Tensor], old: list[Tensor], wanted: list[Tensor]) -> None:
    """Refuse parameters that are not those of the values."""
    same = [torch.equal(a, b) for a, b in zip(now, old, strict=True)]
    sums = map(torch.add, old, wanted)
    reject(
        {
            "The model has not changed. `weight = ...` only gives the name `weight` to "
            "another tensor; write into the one that the model holds.": all(same),
            "Only some of the parameters have changed. Fill each of them.": any(same),
            "You added the values to the old weights. Replace them.": (
                all(map(torch.allclose, now, sums))
            ),
            "The weights have changed, but they are not those of `values`.": (
                not all(map(torch.equal, now, wanted))
            ),
        }
    )
