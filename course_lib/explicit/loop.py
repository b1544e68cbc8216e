"""The loop over batches: gradient, check, schedule, step."""

import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any

from course_lib.explicit.gradients import scalar_of, with_gradient
from course_lib.explicit.states import Leaf, adjust
from course_lib.explicit.steps import update
from course_lib.trees import Tree, require_tree


class NonFiniteLoss(ArithmeticError):
    """The loss is nan or infinite; this batch updated nothing."""

    def __str__(self) -> str:  # without the trees, which are the second argument
        return str(self.args[0])


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
        params: the tree; it is not changed.
        batches: tuples, or single tensors.
        state: from `setup`; it is not changed.
        schedule: step number from 0 -> eta; None leaves eta unchanged.
        on_nonfinite: `"raise"`, or `"skip"` to warn and skip that batch.
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
        losses.append(scalar_of(value).item())
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
