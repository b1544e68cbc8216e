"""What it brings to judge several weights on one mini-batch and move them together.

The digits, the same network and seeds; K = 1 is the paper's algorithm. For each K the
test accuracy after every cycle is set against the processor's seconds. No bound: the
table says what was gained or lost.
"""

from __future__ import annotations

import time
from statistics import mean

import torch
from _timing import parse

from course_lib import data
from course_lib.models import small_cnn
from course_lib.rso import RSO, refresh_norm_statistics
from course_lib.training import evaluate

SEEDS, CYCLES, BATCH = (0, 1, 2), 10, 512
WANTED = 0.95


def run(together: int, seed: int) -> list[tuple[float, float]]:
    """Return (seconds so far, test accuracy) after each cycle."""
    digits, model = data.load("digits"), small_cnn()
    search = RSO(
        model,
        digits.train,
        batch_size=BATCH,
        cycles=CYCLES,
        seed=seed,
        proposals_at_once=together,
        progress=False,
    )
    seconds, history = 0.0, []
    while len(history) < CYCLES:
        start = time.process_time()
        next(search)
        seconds += time.process_time() - start
        refresh_norm_statistics(model, digits.train)
        loss = torch.nn.functional.cross_entropy
        history.append((seconds, evaluate(model, digits.test, loss=loss)[1]))
    return history


def main() -> int:
    """Measure and print one table."""
    parse(__doc__)
    print(
        f"| digits, batch {BATCH}, mean of {len(SEEDS)} seeds | CPU seconds a cycle | "
        f"test accuracy after {CYCLES} cycles | CPU seconds to {WANTED:.0%} |"
    )
    print("|---|---:|---:|---:|")
    for together in (1, 2, 4, 8, 16):
        runs = [run(together, seed) for seed in SEEDS]
        each = mean(history[-1][0] / CYCLES for history in runs)
        final = mean(history[-1][1] for history in runs)
        reached = [[s for s, accuracy in h if accuracy >= WANTED] for h in runs]
        done = all(reached)
        until = f"{mean(r[0] for r in reached):.2f}" if done else "not all reach it"
        print(f"| {together} at once | {each:.2f} | {final:.1%} | {until} |")
    return 0


if __name__ == "__main__":
    main()
