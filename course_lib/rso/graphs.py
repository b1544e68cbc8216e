"""Functions that a GPU repeats from a recording of their operations.

To start an operation takes the host some microseconds, often more than the GPU needs
to do it. A CUDA graph starts all operations of a function at once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch

PLAIN = 2  # calls before the recording, in which libraries and buffers are set up


class Recordings:
    """Record each function at its third call, and repeat the recording from then on.

    A function works on the same tensors in each call, sends the device the same
    operations with the same arguments, and never waits for a value. On a CPU it is
    called each time.
    """

    def __init__(self, device: torch.device) -> None:
        self.is_recording = device.type == "cuda"
        self.calls: dict[Hashable, int] = {}
        self.graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}

    def run(self, key: Hashable, function: Callable[[], None]) -> None:
        """Call the function of this key, or repeat it."""
        if key not in self.graphs:
            self.calls[key] = self.calls.get(key, 0) + 1
            if not self.is_recording or self.calls[key] <= PLAIN:
                function()
                return
            self.graphs[key] = self._record(function)  # nothing runs yet
        self.graphs[key].replay()

    def _record(self, function: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """Record a call; all share the memory of what lives only inside of one."""
        first = next(iter(self.graphs.values()), None)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=first.pool() if first else None):
            function()
        return graph
