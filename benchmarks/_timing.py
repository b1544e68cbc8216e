"""What the scripts share: options, fair timing, a table, and which bounds are missed.

The ways to do one thing take turns, so that a busy machine disturbs all alike.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch

Ways = dict[str, Callable[[], object]]


def parse(about: str | None, *, rounds: int | None = None) -> argparse.Namespace:
    """Read --threads, and --rounds where it has a default; set torch's threads."""
    parser = argparse.ArgumentParser(description=about)
    if rounds is not None:
        parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    return options


def complain(missed: list[str]) -> int:
    """Say which bounds are missed; return what the script ends with."""
    for sentence in missed:
        print(f"A bound is missed: {sentence}.", file=sys.stderr)
    return 1 if missed else 0


def compare(
    tasks: list[tuple[str, Ways, dict[str, str]]],
    bounds: dict[tuple[str, str], float],
    rounds: int,
    device: torch.device,
) -> list[str]:
    """Print one table of all ways; return which of them miss their bound.

    A task has a name, ways, and for a way the one that it is compared with, by default
    itself. A bound belongs to (task, way).
    """
    missed = []
    threads = f"threads: {torch.get_num_threads()}, on {device}"
    print(f"| {threads} | what | ms | ratio | bound |")
    print("|---|---|---:|---:|---:|")
    for task, ways, plain in tasks:
        times = measure(ways, rounds)
        for name, seconds in times.items():
            ratio = median_ratio(seconds, times[plain.get(name, name)])
            bound = bounds.get((task, name))
            figures = f"{1e3 * median(seconds):.2f} | {ratio:.3f} | {bound or ''}"
            print(f"| {task} | {name} | {figures} |")
            if bound and ratio > bound:
                missed.append(f"{task}, {name}: {ratio:.3f}, wanted {bound}")
    return missed


def measure(ways: Ways, rounds: int) -> dict[str, list[float]]:
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
