"""What a claim is, and the page that holds what was measured."""

from __future__ import annotations

import importlib
import platform
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

import torch

from course_lib.device import cpu_name

CHECKOUT = Path(__file__).resolve().parents[2]
PAGE = CHECKOUT / "docs" / "results" / "claims.md"
SEEDS = 5

Series = Mapping[str, Sequence[float]]  # the numbers of each way, one for each seed
Holds = Callable[[Series], bool]


@dataclass(frozen=True)
class Claim:
    """A comparison that a lesson draws from training."""

    name: str  # annealing-costs
    lesson: str  # the name of its module, as in lessons/
    sentence: str
    holds: Holds
    measure: Callable[[int], Mapping[str, float]]
    digits: int
    seeds: int


def claim(sentence: str, holds: Holds, *, digits: int = 1, seeds: int = SEEDS):
    """Make a function of a seed a claim.

    Args:
        sentence: what is claimed, with the unit of the numbers.
        holds: says of the numbers of all seeds if the sentence is true.
        digits: printed after the point.
        seeds: 0, 1, ... seeds - 1 are measured; five or more.
    """
    if seeds < SEEDS:
        raise ValueError(f"claim: got {seeds} seeds; wanted {SEEDS} or more.")

    def make(measure: Callable[[int], Mapping[str, float]]) -> Claim:
        lesson = measure.__module__.rpartition(".")[2]
        name = measure.__name__.replace("_", "-")
        return Claim(name, lesson, sentence, holds, measure, digits, seeds)

    return make


def below(low: str, high: str, by: float = 0.0) -> Holds:
    """On every seed, `high` is above `low`, and by more than that."""
    return lambda v: all(b - a > by for a, b in zip(v[low], v[high], strict=True))


def both(*conditions: Holds) -> Holds:
    """All of the conditions are true."""
    return lambda v: all(condition(v) for condition in conditions)


def lessons() -> dict[str, str]:
    """Return {module: number} of the lessons in order: {"closures": "01", ...}."""
    names = sorted(p.stem for p in (CHECKOUT / "notebooks").glob("*.ipynb"))
    return {name[3:]: name[:2] for name in names}


def claims() -> dict[str, Claim]:
    """Return the claims by name, in the order of the lessons and of their modules."""
    found: dict[str, Claim] = {}
    for lesson in lessons():
        if (Path(__file__).parent / f"{lesson}.py").exists():
            module = importlib.import_module(f"benchmarks.claims.{lesson}")
            own = [v for v in vars(module).values() if isinstance(v, Claim)]
            found.update({c.name: c for c in own if c.lesson == lesson})
    return found


def section(claim: Claim) -> str:
    """Measure a claim on all of its seeds; return its section of the page."""
    start = time.perf_counter()
    by_seed = [claim.measure(seed) for seed in range(claim.seeds)]
    seconds = time.perf_counter() - start
    series = {way: [float(row[way]) for row in by_seed] for way in by_seed[0]}
    head = ["", *(f"seed {seed}" for seed in range(claim.seeds)), "mean", "spread"]
    rows = [head, ["---", *["---:"] * (len(head) - 1)]]
    for way, numbers in series.items():
        shown = [*numbers, mean(numbers), stdev(numbers)]
        rows.append([way, *(f"{number:.{claim.digits}f}" for number in shown)])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    verdict = "Holds." if claim.holds(series) else "Does not hold."
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    made = f"{date.today()}, {seconds:.0f} s, {versions}, {cpu_name()}"
    return (
        f"### {claim.name}\n\n{claim.sentence}\n\n{table}\n\n**{verdict}** ({made})\n"
    )


def sections(page: str) -> dict[str, str]:
    """Return the sections of a page by the names of their claims."""
    parts = re.split(r"^(?=##)", page, flags=re.MULTILINE)
    named = [part for part in parts if part.startswith("### ")]
    return {
        part.splitlines()[0].removeprefix("### "): part.strip() + "\n" for part in named
    }


def assemble(measured: Mapping[str, str]) -> str:
    """Return the page: the sections of all claims, under their lessons."""
    parts = [
        "# Claims\n\n"
        "What the lessons say about training, measured over seeds. Written by `make "
        "claims`;\n*spread* is the standard deviation over the seeds.\n"
    ]
    known = claims()
    for lesson, number in lessons().items():
        parts.append(f"## {number} {lesson}\n")
        names = [name for name, claim in known.items() if claim.lesson == lesson]
        parts += [measured[name] for name in names if name in measured]
    return "\n".join(parts)


class Row(NamedTuple):
    """What a section says."""

    sentence: str
    seeds: int
    quotes: dict[str, tuple[float, float]]  # mean and spread of each way, as printed
    holds: bool


def read(text: str) -> Row:
    """Read a section."""
    lines = text.splitlines()
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in lines
        if line.startswith("| ")
    ]
    head, _, *rows = cells
    quotes = {way: (float(n[-2]), float(n[-1])) for way, *n in rows}
    return Row(lines[2], len(head) - 3, quotes, "**Holds.**" in text)
