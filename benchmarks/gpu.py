"""What the library does on a GPU, in one command of at most ten minutes.

    python benchmarks/gpu.py

Runs the tests of the device, compares decisions with those of the CPU, measures the
paper's RSO network at mini-batches of 5,000, explicit steps beside torch's, VAT and
BEGAN, and writes docs/results/gpu.md. Without a GPU it ends with 2, and a page that
exists is left as it is. Ends with 1 where a bound is missed.
"""

from __future__ import annotations

import contextlib
import io
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import explicit
import losses
import torch
from _timing import Ways, compare
from rso import Case, matmul_rate, multiply_adds, paper, synchronize

from course_lib import data
from course_lib.began import FOLDER_64, Config
from course_lib.began.run import Run
from course_lib.data import Split
from course_lib.files import replacing
from course_lib.models import small_cnn
from course_lib.rso import RSO, proposals
from course_lib.rso.eager.on_device import OnDevice
from course_lib.rso.modes import search_mode
from course_lib.rso.parallel.processes import Processes
from course_lib.rso.steps import DeviceStep, RecordedStep, Rules

PAGE = Path(__file__).resolve().parents[1] / "docs" / "results" / "gpu.md"
TITLE = "# On a GPU\n\nWritten by `python benchmarks/gpu.py`.\n"
UNMEASURED = (
    f"{TITLE}\n**Nothing here is measured yet**: no GPU was at hand. The tests run on "
    "a pretended GPU, which proves where tensors are, what waits and what a recording\n"
    "repeats, and says nothing about time.\n"
)
BOUNDS = {DeviceStep: 20.0, RecordedStep: 5.0}  # seconds a cycle of the paper's net
NAMES = {DeviceStep: "one by one", RecordedStep: "recorded"}
TESTS = 240  # seconds that the tests of the device may take


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    case: Callable[[torch.device], Case]
    samples: int | None = None  # of the digits, where decisions are compared
    widths: tuple[int, int] = (4, 4)  # of the network there
    cycles: int = 2
    proposals: int = 60  # that are timed for each parameter
    rounds: int = 50  # of everything else
    faces: Config = FOLDER_64
    whole: bool = True  # with the tests of the device, and a profile


def headline(device: torch.device) -> Case:
    """Return the paper's network with 12 mini-batches of 5,000."""
    return replace(paper(device, 5000), kept=12)


def main() -> int:
    """Measure, write the page, and return 1 where a bound is missed."""
    if not torch.cuda.is_available():
        print("No GPU: nothing can be measured here.", file=sys.stderr)
        if not PAGE.exists():  # never in place of what was measured elsewhere
            write(UNMEASURED)
        return 2
    found = Page()
    write(found.of(torch.device("cuda"), Sizes(headline)))
    for sentence in found.missed:
        print(f"A bound is missed: {sentence}.", file=sys.stderr)
    return int(bool(found.missed))


def write(text: str) -> None:
    with replacing(PAGE) as stream:
        stream.write(text.encode())


class Page:
    """What was measured, and which bounds were missed."""

    def __init__(self) -> None:
        self.missed: list[str] = []

    def of(self, device: torch.device, sizes: Sizes) -> str:
        """Return the whole page."""
        properties = torch.cuda.get_device_properties(device)
        facts = (
            f"- date: {date.today()}",
            f"- {properties.name}, {properties.total_memory / 2**30:.0f} GiB",
            f"- Python {platform.python_version()}, torch {torch.__version__}, "
            f"CUDA {torch.version.cuda}",
        )
        parts = {
            "Tests of the device": device_tests() if sizes.whole else iter(()),
            "Decisions beside the CPU's": decisions(device, sizes),
            "A cycle of the paper's network": self._cycles(device, sizes),
            "Rounded products": precisions(device, sizes),
            "Explicit steps": table(explicit.tasks(device), device, sizes),
            "VAT and BEGAN": table(
                [*losses.tasks(device), faces(device, sizes.faces)], device, sizes
            ),
        }
        sections = [f"## {name}\n\n" + "\n".join(part) for name, part in parts.items()]
        return "\n\n".join([TITLE + "\n" + "\n".join(facts), *sections]) + "\n"

    def _cycles(self, device: torch.device, sizes: Sizes) -> Iterator[str]:
        yield "| a proposal's operations | seconds a cycle | bound | peak GiB |"
        yield "|---|---:|---:|---:|"
        for kind, bound in BOUNDS.items():
            torch.cuda.reset_peak_memory_stats()
            case = sizes.case(device)
            seconds = cycle(case, kind, sizes.proposals)
            total = sum(seconds.values())
            peak = torch.cuda.max_memory_allocated() / 2**30
            yield f"| {NAMES[kind]} | {total:.2f} | {bound:.0f} | {peak:.1f} |"
            if total > bound:
                self.missed.append(f"{NAMES[kind]}: {total:.1f} s, wanted {bound:.0f}")
        yield ""
        yield from roofline(case, seconds)
        if sizes.whole:
            yield from profile(case)


# RSO


def digits(sizes: Sizes) -> Split:
    """Return the digits' training images, or the first of them."""
    split, few = data.load("digits").train, slice(sizes.samples)
    return replace(split, inputs=split.inputs[few], labels=split.labels[few])


def decisions(device: torch.device, sizes: Sizes) -> Iterator[str]:
    """Compare whole searches of the digits in float64, engine by engine."""
    split = digits(sizes)
    yield "| engine | cycles | decisions | equal |"
    yield "|---|---:|---:|---:|"
    for engine in ("reference", "cached", "incremental"):
        searches = []
        for where in (torch.device("cpu"), device):
            torch.manual_seed(0)
            model = small_cnn(widths=sizes.widths).double()
            options = {"batch_size": len(split) // 3, "cycles": sizes.cycles}
            searches.append(
                RSO(
                    model, split, engine=engine, device=where, progress=False, **options
                )
            )
        same = count = 0
        for _ in range(sizes.cycles):
            for searching in searches:
                next(searching)
            here, there = (searching.decisions for searching in searches)
            same, count = same + int((here == there).sum()), count + len(here)
        yield f"| {engine} | {sizes.cycles} | {count:,} | {same / count:.2%} |"


def cycle(case: Case, kind: type[DeviceStep], timed: int) -> dict[str, float]:
    """Return the seconds of each parameter's sweep, from a few proposals of each."""
    proposals.initialize(case.targets(), 0)
    rules = Rules(case.dealt, Processes.current(), 1e-6, 1)
    found = {}
    with search_mode(case.model):
        for target in reversed(case.targets()):
            task = case.task(target)
            sweep = OnDevice(task)
            is_recorded = kind is RecordedStep and sweep.is_repeatable
            step = (RecordedStep if is_recorded else DeviceStep)(rules, task, sweep)
            count, minibatches = len(target.values), len(case.dealt)
            start = time.perf_counter()
            first = min(count, 3 * minibatches)  # what is set up once is in here
            for weight in range(first):
                step(range(weight, weight + 1), weight % minibatches, False)
            synchronize(target.values)
            once = time.perf_counter() - start
            last = min(count, first + timed)
            start = time.perf_counter()
            for weight in range(first, last):
                step(range(weight, weight + 1), weight % minibatches, False)
            synchronize(target.values)
            each = (time.perf_counter() - start) / max(1, last - first)
            found[target.name] = once + each * (count - first)
    return found


def profile(case: Case) -> Iterator[str]:
    """Name the operations of a proposal that take the device longest."""
    target = max(case.targets(), key=lambda t: len(t.values))
    both = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with search_mode(case.model):
        task = case.task(target)
        rules = Rules(case.dealt, Processes.current(), 1e-6, 1)
        step = DeviceStep(rules, task, OnDevice(task))
        for weight in range(4):
            step(range(weight, weight + 1), 0, False)
        with torch.profiler.profile(activities=both) as found:
            for weight in range(4, 12):
                step(range(weight, weight + 1), 0, False)
            synchronize(target.values)
    yield f"\nOf eight proposals of {target.name!r}, one by one:\n"
    yield "| operation | calls | ms on the device |"
    yield "|---|---:|---:|"
    events = sorted(found.key_averages(), key=lambda e: -e.self_device_time_total)
    for event in events[:8]:
        seconds = event.self_device_time_total / 1e3
        yield f"| `{event.key[:60]}` | {event.count} | {seconds:.2f} |"


def roofline(case: Case, seconds: dict[str, float]) -> Iterator[str]:
    """Say how near the sweeps come to the device's rate of matrix products."""
    work = sum(
        multiply_adds(case, target)[1] * len(target.values) for target in case.targets()
    )
    peak, rate = matmul_rate(case.device), work / sum(seconds.values())
    yield (
        f"The layers of a recorded cycle have {work / 1e12:.2f} T multiply-adds: "
        f"{rate / 1e9:.0f} G a second, {rate / peak:.2f} of those of a large product "
        f"of matrices ({peak / 1e9:.0f} G)."
    )


def precisions(device: torch.device, sizes: Sizes) -> Iterator[str]:
    """Search the digits with rounded products; count the decisions that change."""
    split = digits(sizes)
    yield "| precision | seconds a cycle | decisions that change |"
    yield "|---|---:|---:|"
    for name in ("float32", "tf32", "bf16"):
        torch.manual_seed(0)
        searching = RSO(
            small_cnn(widths=sizes.widths),
            split,
            batch_size=len(split) // 3,
            cycles=1,
            device=device,
            precision=name,
            progress=False,
        )
        report = next(searching)
        changed = "" if name == "float32" else f"{searching.changed:.2%}"
        yield f"| {name} | {report.seconds:.2f} | {changed} |"


# Steps by gradients


def table(
    tasks: list[tuple[str, Ways, dict[str, str]]], device: torch.device, sizes: Sizes
) -> Iterator[str]:
    """Return the table that `_timing.compare` prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        compare(tasks, {}, sizes.rounds, device)
    yield printed.getvalue().strip()


def faces(device: torch.device, config: Config) -> tuple[str, Ways, dict[str, str]]:
    """Return a BEGAN step on images of 64 x 64, in float32 and in mixed precision."""
    ways = {}
    for name, mixed in (("float32", False), ("mixed precision", True)):
        run = Run(replace(config, mixed_precision=mixed), seed=0, device=device)
        shape = config.batch_size, config.channels, config.size, config.size
        images = torch.rand(shape).to(device)
        ways[name] = lambda run=run, images=images: run.step(images)
    return (
        f"BEGAN step, {config.size} x {config.size}",
        ways,
        {"mixed precision": "float32"},
    )


# Tests


def device_tests() -> Iterator[str]:
    """Run the tests that take a device, on this one; give the runner's last line."""
    command = [sys.executable, "-m", "pytest", "-q", "-k", "cuda", "--no-header"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TESTS, cwd=PAGE.parents[2]
        )
    except subprocess.TimeoutExpired:
        yield f"They took more than {TESTS} seconds and were stopped."
        return
    lines = done.stdout.strip().splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    yield f"`{lines[-1]}`"
    yield from (f"- `{line}`" for line in failed[:20])


if __name__ == "__main__":
    sys.exit(main())
