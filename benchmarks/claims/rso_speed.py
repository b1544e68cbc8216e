"""Claims of lesson 09: its own cells, run with other seeds.

A seed draws the first weights, the proposals and the mini-batches. The cells of the
notebook are run up to its picture of speeds, so that nothing stands here twice.
"""

import contextlib
import io
import re
from functools import cache
from typing import Any

import nbformat
import torch
from matplotlib import pyplot as plt
from torch.nn.functional import batch_norm, conv2d, cross_entropy

from benchmarks.claims.core import CHECKOUT, Series, claim
from course_lib.rso.proposals import winner

NOTEBOOK = CHECKOUT / "notebooks" / "09_rso_speed.ipynb"
LAST = "plots.gains("  # of the cell that is run last


@cache
def lesson(seed: int) -> dict[str, Any]:
    """Return the names that the first part of the lesson has made, with this seed."""
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in cells:
        tags = " ".join(cell.metadata.get("tags", ()))
        if cell.cell_type == "code" and not re.search("exercise:|check:", tags):
            source = cell.source.replace("SEED, VISITS = 0,", f"SEED, VISITS = {seed},")
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(source, "<cell>", "exec"), names)
            plt.close("all")
            if LAST in source:
                names["flat"].copy_(names["start"])
                return names
    raise RuntimeError(f"{NOTEBOOK} has no cell with {LAST}")


def share(found: list[int], wanted: list[int]) -> float:
    """Return how many percent of the decisions differ."""
    differ = [a != b for a, b in zip(found, wanted, strict=True)]
    return 100 * sum(differ) / len(differ)


def none_differ(v: Series) -> bool:
    return all(number == 0 for numbers in v.values() for number in numbers)


@claim(
    "No step makes another decision than the paper's loop, of 144 (in percent).",
    none_differ,
)
def every_step_decides_alike(seed):
    decisions = lesson(seed)["steps"].decisions
    first, *others = decisions
    return {name: share(decisions[name], decisions[first]) for name in others}


@claim(
    "Stale values make other decisions than the paper's loop, of 144 (in percent).",
    lambda v: min(v["stale"]) > 5 and max(v["up to date"]) == 0,
)
def stale_values_decide_otherwise(seed):
    names = lesson(seed)
    truth = names["steps"].decisions["paper's loop"]
    fresh = names["steps"].decisions["one channel"]
    return {"stale": share(names["stale"], truth), "up to date": share(fresh, truth)}


@claim(
    "40 of 240 images alone make other decisions than all of them (in percent).",
    lambda v: min(v["40 images"]) > 2,
)
def a_part_decides_otherwise(seed):
    names = lesson(seed)
    (inputs, labels), alone, together = names["batches"][0], [], []
    for j in range(names["VISITS"]):
        parts = [
            names["three"](j, names["net"], inputs[own], labels[own])
            for own in (slice(0, 200), slice(200, 240))
        ]
        names["flat"].copy_(names["start"])
        alone.append(winner(parts[1].tolist(), 40, 1e-12))
        together.append(winner(sum(parts).tolist(), 240, 1e-12))
    return {"40 images": share(alone, together)}


@claim(
    "Candidates that share the statistics of batch norm make other decisions than "
    "candidates that do not (in percent, the first 144 weights of a network with one "
    "batch norm).",
    lambda v: min(v["shared"]) > 5,
)
def shared_statistics_decide_otherwise(seed):
    names = lesson(seed)
    net, inputs, decisions = names["net"], names["given"], {True: [], False: []}
    for is_shared, found in decisions.items():
        names["flat"].copy_(names["start"])
        for j, number in enumerate(names["numbers"]):
            x, labels = inputs[number]
            outputs = []
            for by in names["moves"][j]:
                names["flat"][j] = names["start"][j] + by
                outputs.append(conv2d(x, net[3].weight, padding=1))
            groups = [torch.cat(outputs)] if is_shared else outputs
            normed = [batch_norm(g, None, None, training=True) for g in groups]
            logits = net[4:](torch.cat(normed))
            each = cross_entropy(logits, labels.repeat(3), reduction="none")
            best = winner(each.view(3, -1).sum(1).tolist(), 240, 1e-12)
            names["flat"][j] = names["start"][j] + names["moves"][j, best]
            found.append(best)
    names["flat"].copy_(names["start"])
    return {"shared": share(decisions[True], decisions[False])}


@claim(
    "How many times as fast as the paper's loop, in computing time of one thread: one "
    "channel gains less than its 15.1 times fewer multiply-adds, and pooling folded "
    "less than its 26.0.",
    lambda v: max(v["one channel"]) < 15.1 and max(v["pooling folded"]) < 26.0,
)
def fewer_multiply_adds_less_time(seed):
    speeds = lesson(seed)["steps"].speeds
    first, *others = speeds
    return {name: speeds[name] / speeds[first] for name in others}
