"""Time several ways to do one thing so that a busy machine disturbs all alike."""

from __future__ import annotations

import random
from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch


def measure(ways: dict[str, Callable], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each way in each round; the order is random each time."""
    times = {name: [] for name in ways}
    order = list(ways)
    for warm_up in [True] * 3 + [False] * rounds:
        random.shuffle(order)
        for name in order:
            seconds = time_of(ways[name])
            if not warm_up:
                times[name].append(seconds)
    return times


def time_of(function: Callable[[], object]) -> float:
    start = perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return perf_counter() - start


def median_ratio(seconds: list[float], plain: list[float]) -> float:
    """Compare with the plain way of the same round, and take the median of rounds."""
    return median(mine / theirs for mine, theirs in zip(seconds, plain, strict=True))
