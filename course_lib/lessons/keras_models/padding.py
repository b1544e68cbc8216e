"""Zeros for "same" in lesson 03: the right ones, and those of likely mistakes."""

from collections.abc import Callable, Mapping
from numbers import Integral
from typing import Any

import numpy as np
from torch import Tensor

from course_lib.lessons.checks import require_kind, require_written
from course_lib.lessons.exercises import NotYet

Pair = tuple[int, int]


def as_pads(got: Any) -> Pair:
    """Return an answer as two integers; refuse what `pad` would not take."""
    if isinstance(got, Tensor | np.ndarray) and got.shape == (2,):
        got = got.tolist()
    require_kind(got, tuple | list, "two numbers, (before, after)")
    if len(got) != 2:
        raise NotYet(f"Got {got!r}; wanted two numbers, (before, after).")
    before, after = map(_whole, got)
    return before, after


def _whole(number: Any) -> int:
    require_written(number)
    if isinstance(number, Tensor | np.ndarray) and number.shape == ():
        number = number.item()
    if not isinstance(number, Integral):
        raise NotYet(
            f"Got {number!r}; wanted whole numbers, which `pad` takes. Divide with "
            "`//`."
        )
    return int(number)


def same_pads(size: int, kernel: int, stride: int) -> Pair:
    """Return the zeros (before, after) that Keras adds for "same"."""
    return _split(max(_missing(-(-size // stride), size, kernel, stride), 0))


def _missing(windows: int, size: int, kernel: int, stride: int) -> int:
    return (windows - 1) * stride + kernel - size


def _split(missing: int) -> Pair:
    return missing // 2, missing - missing // 2


# Rules that learners write instead


def floored(size: int, kernel: int, stride: int) -> Pair:
    """Return the zeros for a number of windows that is rounded down."""
    return _split(max(_missing(size // stride, size, kernel, stride), 0))


def below_zero(size: int, kernel: int, stride: int) -> Pair:
    """Return zeros that may be fewer than none."""
    return _split(_missing(-(-size // stride), size, kernel, stride))


def as_with_stride_1(size: int, kernel: int, stride: int) -> Pair:
    """Return the zeros for stride 1."""
    return _split(kernel - 1)


def alike(size: int, kernel: int, stride: int) -> Pair:
    """Return as many zeros before as after."""
    return kernel // 2, kernel // 2


def odd_before(*case: int) -> Pair:
    """Return the zeros of Keras, with the odd one before the numbers."""
    return same_pads(*case)[::-1]


def all_after(*case: int) -> Pair:
    """Return the zeros of Keras, all of them after the numbers."""
    return 0, sum(same_pads(*case))


PAD_MISTAKES: Mapping[str, Callable[[int, int, int], Pair]] = {
    "That pads alike on both sides, as `padding=kernel // 2` in torch does": alike,
    "That is right for stride 1 only. With a stride, the windows may need less": (
        as_with_stride_1
    ),
    "The odd zero goes after the numbers, not before them": odd_before,
    "Negative padding cuts numbers off. Take at least 0": below_zero,
    "You round the number of windows down. Keras rounds up": floored,
    "You round the number of windows to the nearest. Keras rounds up": (
        lambda size, kernel, stride: _split(
            max(_missing(round(size / stride), size, kernel, stride), 0)
        )
    ),
    "The odd zero stands on both sides. It goes after the numbers alone": (
        lambda *case: (same_pads(*case)[1],) * 2
    ),
    "All zeros go before the numbers. Keras puts half of them after": (
        lambda *case: (sum(same_pads(*case)), 0)
    ),
    "All zeros go after the numbers. Keras puts half of them before": all_after,
}
