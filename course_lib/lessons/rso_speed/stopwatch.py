"""What lesson 09 measures with: computing time, multiply-adds, steps side by side."""

from collections.abc import Callable
from statistics import median
from time import thread_time
from typing import Any

from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

Losses = Callable[[int, int], Tensor]  # (weight, number of a mini-batch) -> three sums


def seconds_of(
    function: Callable[..., object], *arguments: Any, calls: int = 9, **options: Any
) -> float:
    """Return the computing time of `function(*arguments, **options)`, a median.

    It is that of this thread: another program that takes the processor away does not
    count, nor do torch's other threads.
    """
    times = []
    for _ in range(calls):
        start = thread_time()
        function(*arguments, **options)
        times.append(thread_time() - start)
    return median(times)


def multiply_adds(function: Callable[[], object]) -> int:
    """Return the multiply-adds of matrix products and convolutions in a call.

    torch's counter counts a multiply and an add apart, so its number is halved.
    """
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops() // 2


class Steps:
    """Ways to judge candidates, counted and timed on the same visits.

    Args:
        run: (losses, visits) -> decisions, one for each visit.
        visits: how many are timed; the first 24 of them are counted.
    """

    def __init__(self, run: Callable[[Losses, int], list[int]], visits: int) -> None:
        self.run, self.visits = run, visits
        self.decisions: dict[str, list[int]] = {}
        self.counts: dict[str, int] = {}  # multiply-adds a visit
        self.speeds: dict[str, float] = {}  # visits a second

    def measure(self, name: str, make: Callable[[], Losses]) -> None:
        """Run one way; print its count and how many decisions are the first way's.

        What `make` prepares is neither counted nor timed.
        """
        losses, counted = make(), min(self.visits, 24)
        work = multiply_adds(lambda: self.run(losses, counted))
        losses = make()
        start = thread_time()
        found = self.run(losses, self.visits)
        self.speeds[name] = self.visits / (thread_time() - start)
        self.decisions[name], self.counts[name] = found, work // counted
        pairs = zip(found, next(iter(self.decisions.values())), strict=True)
        alike = f"{sum(a == b for a, b in pairs)} of {self.visits} decisions alike"
        print(f"{name}: {self.counts[name]:,} multiply-adds a visit, {alike}")
