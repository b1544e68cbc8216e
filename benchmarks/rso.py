"""What a proposal costs in each engine of RSO, in its multiply-adds and on the clock.

For each layer a few proposals are timed, the engines taking turns, and the medians are
extrapolated to a cycle: the first visit of every mini-batch included. Between two timed
proposals of a mini-batch as many weights move as would in a real sweep, so that there
is as much to mend. Images are random: their values do not change the time. Exits with 1
where a bound is missed.
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median

import torch
import torch.multiprocessing as multiprocessing
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from course_lib.compiler import NoCompiler
from course_lib.device import pick_device
from course_lib.models import rso_mnist_cnn, small_cnn
from course_lib.rso import proposals
from course_lib.rso.eager.network import Network
from course_lib.rso.eager.on_device import OnDevice
from course_lib.rso.eager.plan import Plan
from course_lib.rso.eager.prefixes import Prefixes
from course_lib.rso.eager.sweeps import Task
from course_lib.rso.engines import SWEEPS
from course_lib.rso.losses import cross_entropy
from course_lib.rso.minibatches import Minibatches
from course_lib.rso.modes import search_mode
from course_lib.rso.native.geometry import UnsupportedOperation
from course_lib.rso.native.lowering import LoweredPlan
from course_lib.rso.native.structures import KINDS, SCORED_ONLY
from course_lib.rso.parallel.processes import Processes
from course_lib.rso.proposals import Target
from course_lib.rso.steps import DeviceStep, RecordedStep, Rules

BOUNDS = {  # at least so many times as fast, and so much of the matmul's rate
    ("digits net", "reference"): 60,
    ("paper's MNIST net", "reference"): 60,
    ("paper's MNIST net", "cached"): 15,
    "rate": 0.5,
    "two processes": 1.6,
}
MOVED = 0.6  # share of the weights that move in early cycles


@dataclass
class Case:
    """A network, its data's shape, and how many mini-batches a cycle has."""

    name: str
    model: nn.Module
    image: tuple[int, int, int]
    batch: int
    minibatches: int
    device: torch.device
    share: tuple[int, int] = (0, 1)
    kept: int = 4  # mini-batches in memory, of the many of a real sweep

    def targets(self) -> list[Target]:
        return proposals.targets(self.model)

    @functools.cached_property
    def dealt(self) -> Minibatches:
        """A few of the cycle's mini-batches."""
        generator = torch.Generator().manual_seed(0)
        count = min(self.kept, self.minibatches)
        images = torch.randn(count * self.batch, *self.image, generator=generator)
        labels = torch.randint(10, (len(images),), generator=generator)
        images, labels = images.to(self.device), labels.to(self.device)
        return Minibatches(
            images, labels, self.batch, kind="partition", seed=0, share=self.share
        )

    @functools.cached_property
    def network(self) -> Network:
        inputs = self.dealt.inputs[:8]
        return Network.trace(self.model, inputs, Processes.current().reduce)

    @functools.cached_property
    def prefixes(self) -> Prefixes:
        """What the incremental engine's sweeps leave for each other."""
        parameters = [target.parameter for target in reversed(self.targets())]
        return Prefixes(self.network, parameters, math.inf)

    def task(self, target: Target) -> Task:
        """Return a parameter's task; what each weight may become is drawn as usual."""
        generator, weights = torch.Generator().manual_seed(0), target.values
        drawn = torch.randn(len(weights), generator=generator).to(weights)
        moves = proposals.base_sigma(target, "measured") * drawn
        values = torch.stack([weights, weights + moves, weights - moves], dim=1)
        return Task(self.model, target, values, self.dealt, cross_entropy, self.network)

    def sweep(self, target: Target, engine: str) -> Timed:
        """Return one engine's sweep of a parameter, not yet begun."""
        task, generator = self.task(target), torch.Generator().manual_seed(1)
        if engine == "incremental":
            task.prefixes = self.prefixes
        apart = self.minibatches / len(self.dealt)
        return Timed(SWEEPS[engine](task), task, apart, generator)


@dataclass
class Timed:
    """A sweep whose proposals are timed one by one."""

    sweep: object
    task: Task
    apart: float  # weights that a real sweep visits between two of ours
    generator: torch.Generator
    weight: int = 0

    def first_visits(self) -> tuple[float, float]:
        """Return the seconds of the first visit of all, and of another mini-batch's.

        The first one makes what all use.
        """
        count = len(self.task.minibatches)
        first, *others = [self._timed(self.weight, number) for number in range(count)]
        return first, sum(others) / len(others)

    def proposal(self) -> float:
        """Return the seconds of one proposal, after others have moved unjudged."""
        skipped = round(self.apart) - 1
        self.weight = self.weight % len(self.task.values)
        for _ in range(skipped):
            if self.weight + 1 < len(self.task.values):
                moves = torch.rand(1, generator=self.generator).item() < MOVED
                self._take(self.weight, int(moves))
                self.weight += 1
        number = self.weight % len(self.task.minibatches)
        seconds = self._timed(self.weight, number)
        self.weight += 1
        return seconds

    def _timed(self, weight: int, number: int) -> float:
        synchronize(self.task.values)
        start = time.perf_counter()
        total = Processes.current().total(self.sweep.losses([weight], number))
        losses = total.tolist()
        samples = self.task.minibatches.size(number)
        self._take(weight, proposals.winner(losses, samples, 1e-6))
        return time.perf_counter() - start

    def _take(self, weight: int, winner: int) -> None:
        self.task.target.values[weight] = self.task.values[weight, winner]
        self.sweep.record_decision(weight, winner)


def synchronize(tensor: Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize()


def measure(case: Case, engines: dict[str, int]) -> dict[str, dict[str, float]]:
    """Return the seconds that each engine takes for each parameter of a cycle.

    engines: name -> proposals that are timed for each parameter.
    """
    proposals.initialize(case.targets(), 0)
    cycle: dict[str, dict[str, float]] = {engine: {} for engine in engines}
    with search_mode(case.model):
        for number, target in enumerate(reversed(case.targets())):
            case.prefixes.begin(number)
            sweeps = {engine: case.sweep(target, engine) for engine in engines}
            first = {name: sweep.first_visits() for name, sweep in sweeps.items()}
            seconds = {name: [] for name in engines}
            for turn in range(max(engines.values())):
                for name, sweep in sweeps.items():
                    if turn < engines[name]:
                        seconds[name].append(sweep.proposal())
            for name in engines:
                each = median(seconds[name])
                once, other = first[name]
                extra = once + other * (case.minibatches - 1)
                usual = len(target.values) - case.minibatches
                cycle[name][target.name] = each * max(usual, 0) + extra
    return cycle


# Multiply-adds


def multiply_adds(case: Case, target: Target) -> tuple[float, float]:
    """Return the multiply-adds of a proposal: as computed, and as the layers have them.

    Only those of what runs in full for three candidates, which is most of them.
    """
    network = case.network
    with search_mode(case.model):
        plan = Plan(network, target.parameter)
    folded = plain = 0.0
    for segment in plan.tail.segments:
        for node, *_ in segment.steps:
            taps = network.conv_of(node)
            if taps is None or node in plan.dense:
                continue
            outputs = math.prod(network.shapes[node])
            folded += outputs * taps.weight()[0].numel()
            plain += outputs * taps.unpooled()[0].numel() * math.prod(taps.pooled)
    try:
        done = products(LoweredPlan(plan, cross_entropy, case.dealt))
    except (NoCompiler, UnsupportedOperation):
        done = folded  # torch's
    return 3 * case.batch * done, 3 * case.batch * plain


def products(lowered: LoweredPlan) -> int:
    """Return the products that compiled code makes in full layers for a sample."""
    count = 0
    for _, op in lowered.judging.ops:
        kind = KINDS[op.kind]
        if op.flags & SCORED_ONLY and kind in ("conv", "winograd"):
            places = op.rows * op.columns if kind == "winograd" else op.pixels
            count += places * op.taps * op.groups * op.inputs * op.outputs
    return count


def matmul_rate(device: torch.device) -> float:
    """Return the multiply-adds a second of a large matrix product."""
    a = torch.randn(2048, 2048, device=device)
    out = torch.empty_like(a)
    seconds = []
    for _ in range(7):
        synchronize(a)
        start = time.perf_counter()
        torch.mm(a, a, out=out)
        synchronize(a)
        seconds.append(time.perf_counter() - start)
    return 2048**3 / median(seconds)


# What the host does for a GPU


class Operations(TorchDispatchMode):
    """Count what the host would start on a GPU, one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.started = self.views = 0

    def __torch_dispatch__(
        self, function: object, types: object, args: tuple = (), kwargs: object = None
    ) -> object:
        returns = [r.alias_info for r in function._schema.returns]
        is_view = any(alias is not None and not alias.is_write for alias in returns)
        self.views += is_view
        self.started += not is_view
        return function(*args, **(kwargs or {}))


class Counted:
    """Stand for the recordings of a GPU: call, and count what would be recorded."""

    def run(self, key: object, function: Callable[[], None]) -> None:
        with Operations() as self.inside:
            function()


def host_work(case: Case) -> None:
    """Print what the host starts for a proposal: its operations, or a recording."""
    target = max(case.targets(), key=lambda t: len(t.values))
    rules = Rules(case.dealt, Processes.current(), 1e-6, 1)
    found = {}
    for kind in (DeviceStep, RecordedStep):
        with search_mode(case.model):
            task = case.task(target)
            step = kind(rules, task, OnDevice(task))
            step.recordings = recordings = Counted()
            for weight in range(20, 30):
                step(range(weight, weight + 1), 0, False)
            with Operations() as found[kind]:
                step(range(30, 31), 0, False)
    plain, inside = found[DeviceStep], recordings.inside
    outside = found[RecordedStep].started - inside.started
    print(
        f"| {case.name}, batch {case.batch} | what the host starts for a proposal on a "
        f"GPU | one by one: {plain.started} and {plain.views} views | recorded: "
        f"{outside + 1}, one of them with {inside.started} inside | | |"
    )


# Many processes


def share_of_work(rank: int, count: int, port: int, results: object) -> None:
    """Time some layers in one of `count` processes, each with one thread."""
    torch.set_num_threads(1)
    if count > 1:
        torch.distributed.init_process_group(
            "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=count
        )
    case = paper(torch.device("cpu"), 1000, share=(rank, count))
    proposals.initialize(case.targets(), 0)
    total = 0.0
    with search_mode(case.model):
        for number, target in enumerate(reversed(case.targets())):
            case.prefixes.begin(number)
            sweep = case.sweep(target, "incremental")
            sweep.first_visits()
            seconds = median(sweep.proposal() for _ in range(12))
            total += seconds * len(target.values)
    if rank == 0:
        results.put(total)
    if count > 1:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def two_processes() -> float:
    """Return how many times as fast two processes are as one, each with one thread."""
    context = multiprocessing.get_context("spawn")
    seconds = []
    for count in (1, 2):
        results = context.SimpleQueue()
        arguments = count, 29500 + count, results
        multiprocessing.spawn(share_of_work, arguments, nprocs=count)
        seconds.append(results.get())
    return seconds[0] / seconds[1]


# The page


def digits(device: torch.device) -> Case:
    """Conv 8, conv 16, linear; 1,437 training images are 3 mini-batches."""
    return Case("digits net", small_cnn().to(device), (1, 8, 8), 512, 3, device)


def paper(
    device: torch.device, batch: int, width: int = 16, share: tuple[int, int] = (0, 1)
) -> Case:
    model = rso_mnist_cnn(width=width).to(device)
    count = 60_000 // batch
    name = "paper's MNIST net"
    return Case(name, model, (1, 28, 28), batch, count, device, share)


def compare(case: Case, counts: dict[str, int]) -> Iterator[str]:
    """Print one case, engine by engine; yield what misses its bound."""
    seconds = measure(case, counts)
    total = {name: sum(each.values()) for name, each in seconds.items()}
    weights = sum(len(target.values) for target in case.targets())
    for name, whole in total.items():
        ratio = whole / total["incremental"]
        bound = BOUNDS.get((case.name, name))
        print(
            f"| {case.name}, batch {case.batch} | {name} | {weights / whole:,.1f} | "
            f"{whole:,.1f} | {ratio:.1f} | {bound or ''} |"
        )
        if bound and ratio < bound:
            yield f"{case.name}: {ratio:.1f} times {name}, wanted {bound}"
    if case.name != "digits net":
        yield from rates(case, seconds["incremental"])


def rates(case: Case, seconds: dict[str, float]) -> Iterator[str]:
    """Print how near the layers come to the machine's rate of multiply-adds."""
    peak = matmul_rate(case.device)
    done = plain = spent = 0.0
    for target in case.targets():
        own, unfolded = multiply_adds(case, target)
        if own > 1e8:  # what follows holds most of the work
            done += own * len(target.values)
            plain += unfolded * len(target.values)
            spent += seconds[target.name]
    shares = done / spent / peak, plain / spent / peak
    print(
        f"| {case.name}, batch {case.batch} | its share of the matmul's "
        f"{peak / 1e9:.0f} G multiply-adds a second | computed {shares[0]:.2f} | "
        f"as the layers count them {shares[1]:.2f} | | {BOUNDS['rate']} |"
    )
    if shares[1] < BOUNDS["rate"]:
        yield f"{case.name}: {shares[1]:.2f} of the matmul's rate, wanted 0.5"


def growth(device: torch.device, count: int) -> None:
    """Print how the cost grows with the batch and the width."""
    for batch, width in ((250, 16), (1000, 16), (5000, 16), (1000, 8), (1000, 32)):
        case = paper(device, batch, width)
        whole = sum(measure(case, {"incremental": count})["incremental"].values())
        weights = sum(len(target.values) for target in case.targets())
        work = sum(
            multiply_adds(case, target)[0] * len(target.values)
            for target in case.targets()
        )
        print(
            f"| {case.name}, width {width}, batch {batch} | incremental | "
            f"{weights / whole:,.1f} | {whole:,.1f} | {work / whole / 1e9:.1f} G "
            "multiply-adds a second | |"
        )


def main() -> int:
    """Measure, print one table, and return 1 where a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="leave out the growth")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device, missed = pick_device(), []
    print(
        f"| threads: {options.threads}, on {device} | engine | proposals a second | "
        "seconds a cycle | times as fast | bound |"
    )
    print("|---|---|---:|---:|---:|---:|")
    counts = {"reference": 12, "cached": 12, "incremental": 200}
    missed += compare(digits(device), counts)
    counts = {"reference": 3, "cached": 3, "incremental": 25}
    missed += compare(paper(device, 1000), counts)
    if not options.quick:
        growth(device, 12)
    if device.type == "cpu":
        for case in (digits(device), paper(device, 20)):  # in one piece, as on a GPU
            host_work(case)
        ratio = two_processes()
        bound = BOUNDS["two processes"]
        print(
            f"| paper's MNIST net, batch 1000 | two processes beside one, a thread "
            f"each | | | {ratio:.2f} | {bound} |"
        )
        if ratio < bound:
            missed.append(f"two processes: {ratio:.2f} times one, wanted {bound}")
    for sentence in missed:
        print(f"A bound is missed: {sentence}.", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
