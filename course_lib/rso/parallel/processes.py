"""Several processes, each with its share of every mini-batch, and one decision.

`torchrun --nproc-per-node=N` starts them, `start` joins them, and a search created
after that finds them by itself.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from course_lib.device import pick_device
from course_lib.rso.parallel.shared_memory import PeerLost, SharedMemoryReducer

TIMEOUT = 300.0  # seconds that a process waits for the others


class LostProcess(RuntimeError):
    """Another process has ended or hangs; this one can't continue alone."""


def start(device: str | None = None, *, timeout: float = TIMEOUT) -> torch.device:
    """Join the processes that torchrun started, if it did; return our device.

    They communicate by gloo on CPUs and by nccl on GPUs, one GPU for each process.

    Args:
        device: "cpu" or "cuda"; None takes GPUs where there are any.
        timeout: seconds that a process waits for the others before it gives up.

    Raises:
        ValueError: no such device, or fewer GPUs than processes.
    """
    chosen = pick_device(device)
    if not dist.is_available() or not dist.is_torchelastic_launched():
        return chosen
    if chosen.type == "cuda":
        wanted, count = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
        if wanted > count:
            raise ValueError(
                f"RSO: {wanted} processes and {count} GPUs; wanted a GPU for each. "
                "Start fewer, or take the device 'cpu'."
            )
        chosen = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(chosen)
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    return chosen


def stop() -> None:
    """Leave the processes, at the end of the work."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


@dataclass(frozen=True)
class Processes:
    """This process's rank, and the sums over all processes.

    share: (rank, processes).
    reduce: sums a tensor over all processes, in place; None where there is one.
    """

    share: tuple[int, int] = (0, 1)
    reduce: Callable[[Tensor], Tensor] | None = None

    @staticmethod
    def current() -> Processes:
        """Return the processes of torch.distributed, if it was set up."""
        if not dist.is_available() or not dist.is_initialized():
            return Processes()
        rank, count = dist.get_rank(), dist.get_world_size()
        if count == 1:
            return Processes()
        found, group = Processes((rank, count), _sum), dist.group.WORLD
        if group not in _reducers:
            _reducers.clear()  # of a group that has ended
            timeout = _timeout(group)
            _reducers[group] = SharedMemoryReducer.create(rank, found.gather, timeout)
        return found

    def total(self, numbers: Tensor) -> Tensor:
        """Return the sum over all processes."""
        return numbers if self.reduce is None else self.reduce(numbers)

    def judged(self, losses: Tensor, asked: bool) -> tuple[list[float], bool]:
        """Return the losses of all processes, and whether any was asked to stop.

        Both travel in one message, so that all stop at the same proposal.
        """
        if self.reduce is None:
            return losses.tolist(), asked
        message = torch.cat([losses, losses.new_tensor([float(asked)])])
        *sums, asking = self.reduce(message).tolist()
        return sums, asking > 0

    def any(self, asked: bool) -> bool:
        """Tell whether any process was asked to stop."""
        return any(self.gather(asked))

    def gather(self, value: Any) -> list[Any]:
        """Return the value of each process, in their order."""
        if self.reduce is None:
            return [value]
        values = [None] * self.share[1]
        with self.guarded():
            dist.all_gather_object(values, value)
        return values

    def require_equal(self, values: dict[str, Any]) -> None:
        """Raise ValueError in all processes where one has other values than the first.

        Otherwise they would judge different proposals, and mix up their sums.
        """
        first, *others = self.gather(values)
        for rank, other in enumerate(others, start=1):
            for name in first:
                if other[name] != first[name]:
                    raise ValueError(
                        f"RSO: process {rank} has {name}={other[name]!r}, process 0 "
                        f"{first[name]!r}. Start all with the same arguments and data."
                    )

    def share_weights(self, model: nn.Module) -> None:
        """Give all processes the model of the first one."""
        if self.reduce is None:
            return
        with self.guarded(), torch.no_grad():
            for tensor in model.state_dict().values():
                sent = tensor.contiguous()
                dist.broadcast(sent, 0)
                tensor.copy_(sent)

    @property
    def on_this_machine(self) -> int:
        """Return how many processes run on this machine, with this one."""
        return int(os.environ.get("LOCAL_WORLD_SIZE", self.share[1]))

    def least(self, limit: int | None) -> int | None:
        """Return the least memory of all processes: they must choose alike."""
        limits = [each for each in self.gather(limit) if each is not None]
        return min(limits, default=None)

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Raise LostProcess for the error of a broken connection."""
        try:
            yield
        except RuntimeError as error:
            text = str(error)
            is_lost = isinstance(error, (dist.DistError, PeerLost)) or "gloo" in text
            if self.reduce is None or not is_lost:
                raise
            raise LostProcess(
                f"RSO: process {self.share[0]} of {self.share[1]} lost another one "
                f"({_brief(text)}). The last checkpoint is intact: start all processes "
                "again and resume."
            ) from error

    def require_shares(self, smallest: int) -> None:
        """Raise ValueError where a process would get no sample of a mini-batch."""
        if smallest < self.share[1]:
            raise ValueError(
                f"RSO: {self.share[1]} processes for mini-batches of {smallest} "
                "samples; wanted at least one sample for each. Start fewer processes, "
                "or take a larger batch_size."
            )

    def require_additive(
        self, model: nn.Module, choices: dict[str, Any], mixing: str | None
    ) -> None:
        """Refuse a model that would compute statistics of each share alone.

        Args:
            model: the one that is searched.
            choices: the engine of each parameter.
            mixing: an operation where samples depend on each other, or None.

        Raises:
            ValueError: there is such an operation, or a batch norm that torch's own
                layer runs.
        """
        norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
        slow = {n: c for n, c in choices.items() if c.engine != "incremental"}
        if norms and slow:
            name, choice = next(iter(slow.items()))
            raise ValueError(
                f"RSO: {len(norms)} batch norms need the sums of all processes, which "
                f"only the incremental engine adds up, and {name!r} takes "
                f"{choice.engine!r} ({choice.reason or 'as asked'}). Run one process."
            )
        if mixing is not None:
            raise ValueError(
                f"RSO: in {mixing!r} a sample's output depends on the others of its "
                "mini-batch, of which each process has a share. Run one process."
            )


def _brief(text: str) -> str:
    """Return the error alone, without the line of gloo's source and its advice.

    >>> _brief("[/gloo/tcp/pair.cc:537] Read error [::1]:9: reset by peer. Check")
    'Read error [::1]:9: reset by peer'
    """
    line = text.splitlines()[0] if text else ""
    return line.partition("] ")[2].partition(". ")[0] or line


def _timeout(group: dist.ProcessGroup) -> float:
    """Return the seconds that a group's processes wait for each other."""
    with contextlib.suppress(RuntimeError):  # of a group without CPUs
        backend = group._get_backend(torch.device("cpu"))
        return backend.options._timeout.total_seconds()
    return TIMEOUT


_reducers: dict[object, SharedMemoryReducer | None] = {}  # of the current group


def _sum(tensor: Tensor) -> Tensor:
    reducer = _reducers.get(dist.group.WORLD)
    if reducer is not None and reducer.supports(tensor):
        return reducer.sum_(tensor)
    dist.all_reduce(tensor)
    return tensor
