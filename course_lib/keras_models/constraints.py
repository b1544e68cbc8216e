"""Constraints of weights, and the hook that applies them after each step."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from course_lib.checks import is_int
from course_lib.keras_models.objects import class_and_config, number_in

Constraint = Callable[[Tensor], Tensor]
_EPSILON = 1e-7


def _norms(weight: Tensor, axis: Any) -> Tensor:
    return weight.square().sum(axis, keepdim=True).sqrt()


def max_norm(weight: Tensor, *, max_value: float, axis: Any) -> Tensor:
    """Scale down what is longer than `max_value` along `axis`.

    >>> max_norm(torch.tensor([[3.0], [4.0]]), max_value=1.0, axis=0).T
    tensor([[0.6000, 0.8000]])
    """
    norms = _norms(weight, axis)
    return weight * (norms.clamp(0, max_value) / (_EPSILON + norms))


def unit_norm(weight: Tensor, *, axis: Any) -> Tensor:
    """Scale to length 1 along `axis`."""
    return weight / (_EPSILON + _norms(weight, axis))


def min_max_norm(
    weight: Tensor, *, min_value: float, max_value: float, rate: float, axis: Any
) -> Tensor:
    """Move the length along `axis` towards [min_value, max_value] by `rate`."""
    norms = _norms(weight, axis)
    wanted = rate * norms.clamp(min_value, max_value) + (1 - rate) * norms
    return weight * (wanted / (_EPSILON + norms))


def non_negative(weight: Tensor) -> Tensor:
    """Set what is below zero to zero."""
    return weight * (weight >= 0)


def parse_constraint(value: Any) -> Constraint | None:
    """Return the function that a constraint's config describes, or None.

    Raises:
        ValueError: an unknown one; the message completes a sentence.
    """
    if value is None:
        return None
    name, config = class_and_config(value)
    if name in ("NonNeg", "NonNegative"):
        return non_negative
    axis = _axis(config.get("axis", 0))
    if name in ("UnitNorm", "UnitNormalization"):
        return partial(unit_norm, axis=axis)
    if name == "MaxNorm":
        limit = number_in(config, "max_value", "m", default=2.0)
        return partial(max_norm, max_value=limit, axis=axis)
    if name == "MinMaxNorm":
        return partial(
            min_max_norm,
            min_value=number_in(config, "min_value", "low", default=0.0),
            max_value=number_in(config, "max_value", "high", default=1.0),
            rate=number_in(config, "rate", default=1.0),
            axis=axis,
        )
    raise ValueError(f"{name!r} is unknown here")


def _axis(value: Any) -> Any:
    axes = value if isinstance(value, list) else [value]
    if not axes or not all(map(is_int, axes)):
        raise ValueError(f"has axis={value!r}; wanted whole numbers")
    return tuple(axes)


@torch.no_grad()
def apply_constraints(model: nn.Module) -> None:
    """Bring every constrained weight of an imported model back into its bounds."""
    for module in model.modules():
        for variable in getattr(module, "variables", {}).values():
            if variable.constraint is not None:
                weight = variable.view(getattr(module, variable.attribute))
                weight.copy_(variable.constraint(weight))


def constrain(model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    """Apply the file's constraints after each step of `optimizer`, as Keras does.

    Returns:
        The hook's handle; its `remove()` ends it.
    """
    return optimizer.register_step_post_hook(lambda *_: apply_constraints(model))
