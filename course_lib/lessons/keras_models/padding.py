"""Zeros for "same" in lesson 03: the right ones, and those of likely mistakes."""

from collections.abc import Callable, Mapping
from numbers import Integral
from typing import Any

import numpy as np
from torch import Tensor

from course_lib.lessons.checks import require_kind, require_written
from course_lib.lessons.exercises import NotYet


def as_pads(got: Any) -> tuple[int, int]:
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


def same_pads(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return the zeros (before, after) that Keras adds for "same"."""
    return _split(max(_needed(size, kernel, stride), 0))


def _split(missing: int) -> tuple[int, int]:
    return missing // 2, missing - missing // 2


def _needed(size: int, kernel: int, stride: int) -> int:
    return (-(-size // stride) - 1) * stride + kernel - size


PAD_MISTAKES: Mapping[str, Callable[[int, int, int], tuple[int, int]]] = {
    "That pads alike on both sides, as `padding=kernel // 2` in torch does": (
        lambda size, kernel, stride: (kernel // 2, kernel // 2)
    ),
    "That is right for stride 1 only. With a stride, the windows may need less": (
        lambda size, kernel, stride: _split(kernel - 1)
    ),
    "The odd zero goes after the numbers, not before them": (
        lambda *case: same_pads(*case)[::-1]
    ),
    "Negative padding cuts numbers off. Take at least 0": (
        lambda *case: _split(_needed(*case))
    ),
    "You round the number of windows down. Keras rounds up": (
        lambda size, kernel, stride: _split(
            max((size // stride - 1) * stride + kernel - size, 0)
        )
    ),
    "You round the number of windows to the nearest. Keras rounds up": (
        lambda size, kernel, stride: _split(
            max((round(size / stride) - 1) * stride + kernel - size, 0)
        )
    ),
    "The odd zero stands on both sides. It goes after the numbers alone": (
        lambda *case: (same_pads(*case)[1],) * 2
    ),
    "All zeros go before the numbers. Keras puts half of them after": (
        lambda *case: (sum(same_pads(*case)), 0)
    ),
    "All zeros go after the numbers. Keras puts half of them before": (
        lambda *case: (0, sum(same_pads(*case)))
    ),
}
