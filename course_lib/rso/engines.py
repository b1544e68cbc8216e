"""Which engine sweeps which parameter: what the model allows and the memory holds.

A model with hooks, replaced methods and the like, or inside of torch.autocast, is left
to "reference", and half precision to the model's own operations.

"incremental" adds in another order. In float32 its losses are off by about 1e-7 of the
mean loss + 1, so about one of 10,000 decisions may differ from those of "reference": a
tie but for rounding, after which the two searches differ. Where a pass has at most
2**20 multiply-adds, "reference" judges such close calls too; see `steps`.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from course_lib.compiler import NoCompiler
from course_lib.rso.eager import eligibility
from course_lib.rso.eager.incremental import Incremental
from course_lib.rso.eager.network import Network, NotTraceable
from course_lib.rso.eager.on_device import OnDevice
from course_lib.rso.eager.plan import Plan, Unsuitable
from course_lib.rso.eager.prefixes import Prefixes
from course_lib.rso.eager.sweeps import Cached, Reference, Sweep, Task
from course_lib.rso.losses import Loss
from course_lib.rso.minibatches import Minibatches
from course_lib.rso.modes import require_repeatable, search_mode
from course_lib.rso.native.geometry import UnsupportedOperation
from course_lib.rso.native.lowering import LoweredPlan
from course_lib.rso.native.program import library
from course_lib.rso.native.sweep import Compiled
from course_lib.rso.parallel.processes import Processes
from course_lib.rso.proposals import Target

MEMORY_SHARE = 0.7  # of the free memory that an engine may take
LOW_PRECISION = (torch.bfloat16, torch.float16)  # left to the model's own operations


def incremental(task: Task) -> Compiled | Incremental:
    """Return the fast engine's sweep, in compiled code on a CPU that allows it."""
    if task.compiled:
        with contextlib.suppress(UnsupportedOperation, NoCompiler):
            return Compiled(task)
    is_on_host = task.values.device.type == "cpu"
    return Incremental(task) if is_on_host else OnDevice(task)


SWEEPS = {"reference": Reference, "cached": Cached, "incremental": incremental}


@dataclass(frozen=True)
class Choice:
    """Which engine sweeps a parameter, and why not a faster one."""

    engine: str
    reason: str = ""
    numbers: int = 0  # that it stores for each sample
    obstacle: str = ""  # to running in compiled code

    @property
    def is_compiled(self) -> bool:
        """Tell whether the sweep runs in compiled code."""
        return self.engine == "incremental" and not self.obstacle


@dataclass
class Engines:
    """The engine of each parameter, chosen again whenever the model has changed.

    asked: the name of an engine, or "auto".
    compiled: whether the incremental engine may run in compiled code.
    """

    model: nn.Module
    targets: Sequence[Target]
    minibatches: Minibatches
    processes: Processes
    asked: str
    compiled: bool
    network: Network | None = field(init=False)  # None where it can't be traced
    choices: dict[str, Choice] = field(init=False)

    def __post_init__(self) -> None:
        self._forms = eligibility.forms_of(self.targets)
        self._fingerprint: tuple | None = None
        self.update()

    def update(self) -> None:
        """Choose the engines, again where the model or its surroundings have changed.

        Raises:
            ValueError: a weight was replaced, converted or frozen since the beginning;
                a module draws random numbers; `asked` does not support a parameter or
                needs more memory than there is; processes can't share the work.
        """
        eligibility.require_same_forms(self._forms, self.model)
        now = eligibility.fingerprint(self.model)
        if self.processes.any(not eligibility.are_same(now, self._fingerprint)):
            self.network, self._reason = self._trace()
            inputs, why = self.minibatches.inputs, "compiled=False"
            if self.compiled:
                why = obstacle_to(library, inputs.dtype)
            self._obstacle = self._first_of_all(why)
            free = available_memory(inputs.device, self.processes.on_this_machine)
            self._limit = self.processes.least(free)
            self.choices = self._choose()
            self._require_shared()
            self._fingerprint = eligibility.fingerprint(self.model)

    def sweep(
        self, target: Target, values: Tensor, loss: Loss, prefixes: Prefixes
    ) -> tuple[Task, Sweep]:
        """Return a parameter's task and the sweep that its engine makes of it."""
        choice, dealt = self.choices[target.name], self.minibatches
        task = Task(self.model, target, values, dealt, loss, self.network, prefixes)
        task.compiled = choice.is_compiled
        return task, SWEEPS[choice.engine](task)

    def prefixes(self, ordered: Sequence[Target]) -> Prefixes:
        """Return where the sweeps of a cycle, in this order, store values to share."""
        if self.network is None or not len(self.minibatches):
            return Prefixes()
        room = math.inf  # numbers a sample, beside those of the sweeps
        if self._limit is not None:
            item = self.minibatches.inputs.element_size()
            room = self._limit / self._samples / item
            room -= max(choice.numbers for choice in self.choices.values())
        return Prefixes(self.network, [t.parameter for t in ordered], room)

    # What the model allows

    def _trace(self) -> tuple[Network | None, str]:
        """Return the model's operations, or None and why they can't be recorded."""
        inputs, network, why = self._probe(), None, ""
        with search_mode(self.model):
            require_repeatable(self.model, inputs)
            try:
                network = Network.trace(self.model, inputs, self.processes.reduce)
            except NotTraceable as error:
                why = str(error)
        why = self._first_of_all(why)
        return (None if why else network), why

    def _probe(self) -> Tensor:
        return self.minibatches.inputs[: min(8, max(2, self.minibatches.batch_size))]

    def _first_of_all(self, reason: str) -> str:
        """Return the first reason of any process, so that all choose alike."""
        return next(filter(None, self.processes.gather(reason)), "")

    def _require_shared(self) -> None:
        if self.processes.reduce is not None:
            with search_mode(self.model):
                found = find_cross_sample_op(self.model, self.network, self._probe())
            self.processes.require_additive(self.model, self.choices, found)

    # The choice

    def _choose(self) -> dict[str, Choice]:
        choices = {target.name: self._choice(target) for target in self.targets}
        refused = [
            f"{name!r}: {choice.reason}"
            for name, choice in choices.items()
            if self.asked not in ("auto", choice.engine)
        ]
        if refused:
            raise ValueError(
                f"RSO: engine={self.asked!r} can't sweep {'; '.join(refused)}. Take "
                "engine='auto', which uses a slower engine there."
            )
        return choices

    def _choice(self, target: Target) -> Choice:
        if self.asked == "reference":
            return Choice("reference")
        if self.network is None:
            return Choice("reference", self._reason)
        why = obstacle = ""
        dtype = target.parameter.dtype
        if dtype in LOW_PRECISION:
            why = f"{dtype} rounds so much that other orders of adding decide otherwise"
            obstacle = self._obstacle
        elif self.asked != "cached":
            try:
                plan = Plan(self.network, target.parameter)
                numbers = plan.numbers_per_sample()
                why = self._memory_shortage(numbers, target)
                if not why:
                    obstacle = self._obstacle or obstacle_to(
                        LoweredPlan, plan, None, self.minibatches
                    )
                    return Choice("incremental", "", numbers, obstacle)
            except Unsuitable as error:
                why = str(error)
        numbers = Cached.numbers_per_sample(self.network, target.parameter)
        if shortage := self._memory_shortage(numbers, target):
            return Choice("reference", shortage)
        return Choice("cached", why, 0, obstacle)

    @property
    def _samples(self) -> int:
        """Return of how many samples this process stores values."""
        data = self.minibatches
        stored = len(data.labels) if len(data) else data.batch_size
        return -(-stored // self.processes.share[1])

    def _memory_shortage(self, numbers: int, target: Target) -> str:
        needed = numbers * self._samples * target.values.element_size()
        if self._limit is None or needed <= self._limit:
            return ""
        return (
            f"it would remember {format_bytes(needed)}, and "
            f"{format_bytes(self._limit)} are free; take fewer samples, or "
            "minibatches='fresh'"
        )


def obstacle_to(make: Callable, *arguments: object) -> str:
    """Say why something can't be made in compiled code; nothing where it can."""
    try:
        make(*arguments)
    except (UnsupportedOperation, NoCompiler) as error:
        return str(error)
    return ""


def find_cross_sample_op(
    model: nn.Module, network: Network | None, inputs: Tensor
) -> str | None:
    """Name an operation whose output for a sample depends on the others, or None.

    Batch norm as the engines know it is skipped: they add up its sums.
    """
    first = slice(len(inputs) // 2)
    if network is None:
        is_same = _agree(model(inputs[first]), model(inputs)[first])
        return None if is_same else type(model).__name__
    whole, part = {network.nodes[0]: inputs}, {network.nodes[0]: inputs[first]}
    for node in network.nodes[1:]:
        whole[node] = value = network.call(node, whole)
        if network.kind(node) == "norm":
            part[node] = value[first]
            continue
        part[node] = network.call(node, part)
        is_batch = isinstance(value, Tensor) and value.shape[:1] == inputs.shape[:1]
        if is_batch and not _agree(part[node], value[first]):
            return str(node.target)
    return None


def _agree(x: Tensor, y: Tensor) -> bool:
    slack = 1e-3 * float(y.double().abs().max()) + 1e-6
    return x.shape == y.shape and torch.allclose(x, y, rtol=1e-3, atol=slack)


def available_memory(device: torch.device, processes: int = 1) -> int | None:
    """Return the bytes that each process may use; None where that is unknown.

    The processes of one machine share its memory; a GPU has one process.
    """
    if device.type == "cuda":
        return int(MEMORY_SHARE * torch.cuda.mem_get_info(device)[0])
    try:
        pages = os.sysconf("SC_AVPHYS_PAGES")
        free = max(pages * os.sysconf("SC_PAGE_SIZE"), _reclaimable())
        return int(MEMORY_SHARE * free / processes)
    except (AttributeError, ValueError, OSError):  # not on this system
        return None


def _reclaimable() -> int:
    """Return what Linux would free for us; its cache counts as used otherwise."""
    with contextlib.suppress(OSError), open("/proc/meminfo") as lines:
        for line in lines:
            if line.startswith("MemAvailable"):
                return int(line.split()[1]) * 1024
    return 0


def format_bytes(count: int) -> str:
    """Write a number of bytes for people.

    >>> format_bytes(3 * 2**30)
    '3.0 GiB'
    """
    return f"{count / 2**30:.1f} GiB" if count >= 2**29 else f"{count / 2**20:.0f} MiB"
