"""Whether the numbers of a step are finite, without a wait for the GPU if possible.

A host that reads a number of each step waits for the GPU, which then waits for the
host. torch's fused optimizers can skip an update on the device itself, where their
`found_inf` is 1; torch.amp.GradScaler uses that. With one of them the numbers of many
steps are read at once: from the first failure on, all updates are skipped.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from course_lib.trees import all_finite

_AT_ONCE = 200  # notes that are read together, at most


class FiniteSteps:
    """The numbers of an optimizer's steps, which must be finite, until they are read.

    Note them before the update, and read them before it if `is_due`. Call `close` at
    the end, or the optimizer might skip the updates of others.

    Args:
        optimizer: one of torch.optim. If it is fused and its parameters are on one GPU,
            it skips all updates from the first failure on, and `read` may come late.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.skips: Tensor | None = None  # on the GPU, 1.0 after a failure
        self._noted: list[tuple[Any, Tensor | list[float]]] = []
        devices = {p.device for g in optimizer.param_groups for p in g["params"]}
        self.is_on_cpu = devices == {torch.device("cpu")}
        can_skip = getattr(optimizer, "_step_supports_amp_scaling", False)
        if can_skip and len(devices) == 1 and not self.is_on_cpu:
            self.skips = torch.zeros((), device=devices.pop())
            optimizer.grad_scale, optimizer.found_inf = None, self.skips

    @property
    def is_due(self) -> bool:
        """Whether the next update needs what `read` says."""
        return self.skips is None or len(self._noted) >= _AT_ONCE

    def note(self, key: Any, scalars: Sequence[Tensor]) -> None:
        """Take numbers, for example the parts of the loss; `read` returns the key."""
        if self.is_on_cpu:
            self._noted.append((key, read_scalars(scalars)))
            return
        numbers = _stacked(scalars)
        if self.skips is not None:
            failed = numbers.isfinite().all().logical_not()
            torch.maximum(self.skips, failed.to(self.skips), out=self.skips)
        self._noted.append((key, numbers))

    def note_gradients(self, key: Any, grads: list[Tensor]) -> None:
        """Take a number of each gradient, nan or infinite if any number in it is."""
        if not grads:
            return
        if self.is_on_cpu:
            are_finite = all_finite(grads)  # the one question to ask, as a rule
            marks = [0.0 if are_finite or all_finite([g]) else math.nan for g in grads]
            self._noted.append((key, marks))
            return
        dense = [g.coalesce().values() if g.is_sparse else g for g in grads]
        # An empty tensor has no largest number.
        dense = [g if g.numel() else g.new_zeros(1) for g in dense]
        self.note(key, torch._foreach_norm(dense, math.inf))

    def read(self) -> list[tuple[Any, list[float]]]:
        """Return each key and its numbers since the last call; wait for a GPU once."""
        noted, self._noted = self._noted, []
        if self.skips is not None:
            self.skips.zero_()  # who goes on after a failure means to update
        tensors = [numbers for _, numbers in noted if isinstance(numbers, Tensor)]
        read = iter(_stacked(tensors).tolist() if tensors else [])
        return [
            (key, n if isinstance(n, list) else list(itertools.islice(read, len(n))))
            for key, n in noted
        ]

    def close(self) -> None:
        """Let the optimizer update again, whatever comes."""
        if self.skips is not None:
            del self.optimizer.grad_scale, self.optimizer.found_inf


def read_scalars(tensors: Sequence[Tensor]) -> list[float]:
    """Return the numbers of scalars; a GPU is waited for once.

    >>> read_scalars([torch.tensor(0.5), torch.tensor(3)])
    [0.5, 3]
    """
    on_cpu = all(t.device.type == "cpu" for t in tensors)
    return [t.item() for t in tensors] if on_cpu else _stacked(tensors).tolist()


@torch.no_grad()
def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    """Return the numbers of all, exactly, on the device of the first."""
    dtypes, device = {t.dtype for t in tensors}, tensors[0].device
    dtype = torch.float32 if dtypes <= _EXACT_IN_FLOAT32 else torch.float64
    if len(dtypes) == 1:  # not every device has float64
        (dtype,) = dtypes
    return torch.cat([t.to(device, dtype).reshape(-1) for t in tensors])


_EXACT_IN_FLOAT32 = {torch.float32, torch.float16, torch.bfloat16}
