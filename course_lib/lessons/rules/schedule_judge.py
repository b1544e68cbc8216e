"""A check for lesson 07: of a warm-up with half a cosine wave after it."""

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from course_lib.lessons.checks import close, name_mistake, require_kind
from course_lib.lessons.exercises import NotYet

Schedule = Callable[[int], float]
Setting = tuple[float, int, int]  # peak, warmup, total

_SETTINGS = ((0.2, 4, 20), (1.0, 10, 110), (0.5, 3, 10), (2.0, 1, 8))


def judge_schedule(answer: Callable[[float, int, int], Any]) -> None:
    """Compare schedules with the formula at every step, and ask them a second time."""
    made: list[tuple[Setting, Schedule]] = []
    for setting in _SETTINGS:
        eta = answer(*setting)
        what = "`warm_cosine`"
        require_kind(eta, Callable, "a function of the step, defined inside", what=what)
        _require_schedule(_asked(eta, range(setting[2] + 1)), *setting)
        made.append((setting, eta))
    for setting, eta in made:
        if not _gives_again(eta, setting):
            raise NotYet(
                "Asked again, a schedule gives other numbers. It may depend only on "
                "the step that it is given, and on its own peak, warmup and total: it "
                "counts no calls, and keeps nothing that a newer schedule overwrites."
            )


def _gives_again(eta: Schedule, setting: Setting) -> bool:
    """Ask a schedule from the last step to the first."""
    try:
        got = _asked(eta, range(setting[2], -1, -1))
    except Exception:
        return False
    return close(got.flip(0), _wanted(*setting))


def _asked(eta: Schedule, steps: range) -> Tensor:
    got = [eta(step) for step in steps]
    for value in got:
        require_kind(value, Real | Tensor, "a number", what="Your schedule")
    if any(isinstance(value, Tensor) for value in got):
        raise NotYet(
            "Your schedule gives a tensor, which `train` refuses, for a rule holds "
            "no tensors. Compute with `math`, or take `.item()` at the end."
        )
    return torch.tensor([float(value) for value in got], dtype=torch.float64)


def _cosine(peak: float, done: Tensor) -> Tensor:
    return peak * (1 + torch.cos(math.pi * done)) / 2


def _wanted(peak: float, warmup: int, total: int) -> Tensor:
    s = torch.arange(total + 1, dtype=torch.float64)
    fall = _cosine(peak, (s - warmup) / (total - warmup))
    return torch.where(s < warmup, peak * (s + 1) / warmup, fall)


def _require_schedule(got: Tensor, peak: float, warmup: int, total: int) -> None:
    wanted = _wanted(peak, warmup, total)
    if close(got, wanted):
        return
    mistakes = _mistakes(peak, warmup, total)
    numbers = f"With peak {peak}, warmup {warmup} and total {total}"
    place = "" if (peak, warmup, total) == _SETTINGS[0] else f"{numbers}: "
    name_mistake(got, {place + text: wrong for text, wrong in mistakes.items()})
    step = next(i for i in range(total + 1) if not close(got[i], wanted[i]))
    texts = [f"{x[step]:.3g}" for x in (got, wanted)]
    if texts[0] == texts[1]:
        texts = [f"{x[step]:.7g}" for x in (got, wanted)]
    raise NotYet(f"{numbers}, step {step} has eta {texts[0]}; wanted {texts[1]}.")


def _mistakes(peak: float, warmup: int, total: int) -> dict[str, Tensor]:
    """Return the numbers that each likely mistake gives."""
    s = torch.arange(total + 1, dtype=torch.float64)
    length = total - warmup
    done = (s - warmup) / length
    rise, fall = peak * (s + 1) / warmup, _cosine(peak, done)
    wave = torch.cos(math.pi * done)

    def joined(second: Tensor, first: Tensor = rise) -> Tensor:
        return torch.where(s < warmup, first, second)

    ahead = (
        "The cosine is one step ahead. It begins at step `warmup`, which still has "
        "the peak"
    )
    return {
        "The first step has eta = 0 and is wasted. Step `warmup - 1` should have the "
        "peak: count from 1 with `step + 1`": joined(fall, peak * s / warmup),
        "The warm-up is divided by `warmup + 1`. Step `warmup - 1` should have the "
        "peak: divide by `warmup`": joined(fall, peak * (s + 1) / (warmup + 1)),
        "The warm-up follows a cosine. It should rise in equal parts": (
            joined(fall, _cosine(peak, 1 - (s + 1) / warmup))
        ),
        "The cosine starts at step 0, so eta jumps down after the warm-up. Count its "
        "steps from `warmup` on": joined(_cosine(peak, s / total)),
        "The cosine is stretched over `total` steps and does not reach 0. It has "
        "`total - warmup` steps": joined(_cosine(peak, (s - warmup) / total)),
        "The cosine reaches 0 one step early. Step `total` should have 0": (
            joined(_cosine(peak, (s - warmup) / (length - 1)))
        ),
        ahead: joined(_cosine(peak, (s - warmup + 1) / length)),
        f"{ahead}; step `warmup - 1` has it, too": (
            joined(_cosine(peak, (s - warmup + 1) / (length + 1)))
        ),
        "There is no warm-up": fall,
        "There is no warm-up, and the cosine starts at step 0": (
            _cosine(peak, s / total)
        ),
        "Step `warmup` has more than the peak. It belongs to the cosine: use `<`": (
            torch.where(s <= warmup, rise, fall)
        ),
        "After the warm-up eta rises from 0. The cosine falls: 1 + cos": (
            joined(peak - fall)
        ),
        "That is a whole wave: eta rises again. Half a wave is `math.pi`": (
            joined(_cosine(peak, 2 * done))
        ),
        "That falls on a straight line. The cosine is flat at both ends": (
            joined(peak * (1 - done))
        ),
        "That is a quarter of a cosine wave: it is steep at the end. Half a wave goes "
        "from 1 to -1; add 1 and halve": joined(peak * torch.cos(math.pi * done / 2)),
        "eta becomes negative. The cosine goes from 1 to -1: add 1 and halve": (
            joined(peak * wave)
        ),
        "eta is 0 from the middle of the wave on. The cosine goes from 1 to -1: add 1 "
        "and halve": joined((peak * wave).clamp(min=0)),
        "After the warm-up eta is twice the peak. Halve 1 + cos": joined(2 * fall),
        "It runs from 0 to 1. Multiply by `peak`": joined(fall) / peak,
        "After the warm-up the peak is missing. Multiply by `peak` there, too": (
            joined(fall / peak)
        ),
        "The cosine has hardly begun at the end. `math.cos` counts in radians: half a "
        "wave is `math.pi`": joined(_cosine(peak, done / math.pi)),
        "`math.cos` counts in radians: half a wave is `math.pi`, not 180": (
            joined(_cosine(peak, 180 * done / math.pi))
        ),
    }
