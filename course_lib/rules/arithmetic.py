"""Arithmetic that several rules share, for real and complex arrays."""

from typing import Any

import torch
from torch import Tensor

from course_lib.rules.counts import number_of
from course_lib.trees import is_any_transform_active


def widened(x: Tensor) -> Tensor:
    """Return half precision as float32; other dtypes unchanged."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def real_zeros_like(x: Tensor) -> Tensor:
    """Return zeros of the shape of x, real ones for a complex array."""
    return torch.zeros_like(x.real if x.is_complex() else x)


def squared_abs(g: Tensor) -> Tensor:
    """Return |g|**2 for each element."""
    return (g * g.conj()).real if g.is_complex() else g * g


def moving_average(average: Tensor, new: Tensor, rate: float) -> Tensor:
    """Return rate * average + (1 - rate) * new."""
    if new.dtype is not average.dtype:
        new = new.to(average.dtype)
    return torch.lerp(average, new, 1 - rate)


def bias_correction(rate: float, t: Any) -> Any:
    """Return 1 - rate**t, the divisor of a moving average that started at 0."""
    return 1 - rate ** number_of(t)


def safe_sqrt(v: Tensor) -> Tensor:
    """Return sqrt(v), with the derivative 0 at 0, where that of sqrt is infinite.

    v is the square of a gradient, and sqrt(v) its size: |g| has the subgradient 0.
    """
    if not (v.requires_grad or is_any_transform_active()):
        return v.sqrt()
    is_zero = v == 0
    return torch.where(is_zero, 0.0, torch.where(is_zero, 1.0, v).sqrt())
