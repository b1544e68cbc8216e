"""Mini-batches for a search: a fixed partition, or a fresh draw for each weight."""

from collections.abc import Iterator

import torch
from torch import Tensor

from course_lib.data.sets import in_order
from course_lib.rso.proposals import generator_of

KINDS = ("partition", "fresh")


class Minibatches:
    """Which samples judge which proposal.

    `"partition"`: the data are shuffled once and cut into equal mini-batches (sizes
    differ by one at most, none is above `batch_size`); each proposal draws one of them.
    `"fresh"`: each proposal takes the next `batch_size` samples of an endless pass over
    the data, reshuffled at each end and at each parameter.

    With `share = (rank, processes)` only this process's part of each mini-batch is
    returned.
    """

    def __init__(
        self,
        inputs: Tensor,
        labels: Tensor,
        batch_size: int,
        *,
        kind: str,
        seed: int,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self.inputs, self.labels, self.share = in_order(inputs), labels, share
        self.batch_size, self.kind = batch_size, kind
        self.parts: list[Tensor] = []
        if kind == "partition":
            generator = generator_of(seed, "partition")
            shuffled = torch.randperm(len(labels), generator=generator)
            self.parts = list(shuffled.tensor_split(self._count))
        self._sizes = list(map(len, self.parts))

    def __len__(self) -> int:
        """Return how many mini-batches are fixed; 0 of fresh ones."""
        return len(self.parts)

    def schedule(self, proposals: int, generator: torch.Generator) -> list[int]:
        """Draw the number of each proposal's mini-batch.

        Fresh ones are drawn when they are taken; each has its proposal's number.
        """
        if self.kind == "fresh":
            self._fresh = self._draw_fresh(generator)
            self._taken: int | None = None
            return list(range(proposals))
        return torch.randint(
            len(self.parts), (proposals,), generator=generator
        ).tolist()

    def _draw_fresh(self, generator: torch.Generator) -> Iterator[Tensor]:
        full = len(self.labels) // self.batch_size * self.batch_size
        while True:
            shuffled = torch.randperm(len(self.labels), generator=generator)
            yield from shuffled[:full].split(self.batch_size)

    def skip(self, count: int) -> None:
        """Skip the fresh mini-batches of proposals that were judged before."""
        for _ in range(count if self.kind == "fresh" else 0):
            next(self._fresh)

    def take(self, number: int) -> tuple[Tensor, Tensor]:
        """Return this process's part of a mini-batch: (inputs, labels).

        A fresh one can be taken again until the next.
        """
        if self.kind == "partition":
            return self._part(self.parts[number])
        if number != self._taken:
            self._taken, self._index = number, next(self._fresh)
        return self._part(self._index)

    def size(self, number: int) -> int:
        """Return the samples of a mini-batch, those of all processes."""
        return self._sizes[number] if self._sizes else self.batch_size

    def all(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Return an iterator over this process's parts of the whole data."""
        everything = torch.arange(len(self.labels)).tensor_split(self._count)
        return map(self._part, self.parts or everything)

    @property
    def _count(self) -> int:
        return -(-len(self.labels) // self.batch_size)

    @property
    def smallest(self) -> int:
        """Return the samples of the smallest mini-batch, those of all processes."""
        return len(self.labels) // self._count

    def _part(self, index: Tensor) -> tuple[Tensor, Tensor]:
        rank, processes = self.share
        share = index.tensor_split(processes)[rank].to(self.labels.device)
        return self.inputs[share], self.labels[share]
