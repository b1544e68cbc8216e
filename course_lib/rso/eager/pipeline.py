"""Run a network's steps for several candidates, in pieces that stay in the cache.

Batch norm needs the sums of a whole batch before its first output; no other step does.
So the steps form segments: each starts with the output of a batch norm, and ends with
the input of the next one. Within a segment a piece of the batch runs through all steps
while it is in the processor's cache, and adds its share to the sums. Values that later
segments read lie in memory that is used again at each call: the system would have to
map new memory, which takes longer than the arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from course_lib.rso.eager.kernels import RawSums, affine_of, finished, raw_sums
from course_lib.rso.eager.network import Env, Network

PIECE = 2**21  # bytes of the largest value of a piece
Source = Callable[["Piece", Tensor], None]  # fills what a step gives for a piece


class Piece(NamedTuple):
    """Some candidates, and which samples of each: one candidate, or all samples."""

    candidates: slice
    samples: slice
    rows: slice  # of a whole value, in which the candidates follow one another
    count: int  # candidates
    batch: int  # samples of each


class Pipeline:
    """The steps from values that are given to values that are wanted.

    Args:
        network: whose steps.
        wanted: the nodes whose values `run` returns.
        given: nodes whose values `run` is given.
        sources: nodes whose values functions write, piece by piece.
        is_live: use the weights at the time of each run, not those of now.
    """

    def __init__(
        self,
        network: Network,
        wanted: Iterable[fx.Node],
        given: Iterable[fx.Node],
        sources: Iterable[fx.Node] = (),
        *,
        is_live: bool = False,
    ) -> None:
        self.network, self.wanted, self.is_live = network, set(wanted), is_live
        self.given, self.sources = set(given), set(sources)
        self.segments: list[_Segment] = []
        self.buffers: dict[object, Tensor] = {}
        self.cut: dict[tuple[int, int], list[Piece]] = {}
        self.order = order = network.needed(self.wanted, self.given, self.sources)
        levels = self._levels()
        kept = self.wanted & set(order) | {
            used
            for node in order
            for used in self.reads(node)
            if levels.get(used, levels[node]) < levels[node]
        }
        self.measured = {
            network.used_by(n)[0] for n in order if network.kind(n) == "norm"
        }
        shapes = [s for s in map(network.shapes.get, order) if s is not None]
        self.widest = max(map(math.prod, shapes), default=1)  # numbers a sample
        for level in range(max(levels.values(), default=-1) + 1):
            steps = [n for n in order if levels[n] == level]
            self.segments.append(_Segment(self, steps, kept))

    def reads(self, node: fx.Node) -> list[fx.Node]:
        """Return the nodes whose values a step reads; a source reads none."""
        return [] if node in self.sources else self.network.used_by(node)

    def _levels(self) -> dict[fx.Node, int]:
        """Return the number of each step's segment."""
        levels: dict[fx.Node, int] = {}
        kind = self.network.kind
        for node in self.order:
            waits = kind(node) in ("norm", "unknown")
            after = [
                levels.get(n, -1) + (waits or kind(n) == "unknown")
                for n in self.reads(node)
            ]
            levels[node] = max([0, *after])
        return levels

    def run(
        self,
        values: Env,
        batch: int,
        candidates: int = 1,
        sources: dict[fx.Node, Source] | None = None,
        like: Tensor | None = None,
    ) -> Env:
        """Return the wanted values, `(candidates * batch, ...)`.

        They lie in memory that the next call overwrites. `like` has their dtype and
        device; it may be left out where values are given.
        """
        self.like = next(iter(values.values())) if like is None else like
        if self.sources == self.wanted:  # no step is left
            piece = _everything(batch, candidates)
            whole = {n: self.buffer(n, piece.rows.stop, self.like) for n in self.wanted}
            for node, fill in (sources or {}).items():
                fill(piece, whole[node])
            return whole
        whole, sums = dict(values), _Sums(candidates)
        for node in self.measured & values.keys():
            sums.add(node, values[node], _everything(batch, candidates))
        for segment in self.segments:
            segment.run(whole, sums, batch, candidates, sources or {})
        return {node: whole[node] for node in self.wanted}

    def pieces(self, batch: int, candidates: int) -> list[Piece]:
        """Return all candidates at once where that is small, else piece by piece."""
        key = batch, candidates
        if key not in self.cut:
            bytes_a_sample = self.widest * self.like.element_size()
            is_small = candidates * batch * bytes_a_sample <= 2 * PIECE
            if is_small or self.like.device.type != "cpu":
                self.cut[key] = [_everything(batch, candidates)]
            else:
                size = math.ceil(batch / math.ceil(batch * bytes_a_sample / PIECE))
                self.cut[key] = [
                    _piece(candidate, start, min(start + size, batch), batch)
                    for start in range(0, batch, size)
                    for candidate in range(candidates)
                ]
        return self.cut[key]

    def buffer(self, node: fx.Node, rows: int, like: Tensor) -> Tensor:
        """Return memory for a node's whole value, channels last."""
        key = node, rows
        if key not in self.buffers:
            shape = self.network.shapes[node]
            if len(shape) == 3:
                channels, height, width = shape
                memory = like.new_empty(rows, height, width, channels)
                self.buffers[key] = memory.permute(0, 3, 1, 2)
            else:
                self.buffers[key] = like.new_empty(rows, *shape)
        return self.buffers[key]


def run_network(network: Network, inputs: Tensor) -> Tensor:
    """Return the network's outputs with its weights of now."""
    start, end = network.nodes[0], network.output
    return Pipeline(network, [end], [start]).run({start: inputs}, len(inputs))[end]


def _everything(batch: int, candidates: int) -> Piece:
    rows = slice(0, candidates * batch)
    return Piece(slice(0, candidates), slice(0, batch), rows, candidates, batch)


def _piece(candidate: int, start: int, stop: int, batch: int) -> Piece:
    first = candidate * batch
    rows = slice(first + start, first + stop)
    one = slice(candidate, candidate + 1)
    return Piece(one, slice(start, stop), rows, 1, stop - start)


class _Sums:
    """The sums of x and x * x of each value that a batch norm reads."""

    def __init__(self, candidates: int) -> None:
        self.candidates = candidates
        self.found: dict[fx.Node, list[RawSums | None]] = {}

    def add(self, node: fx.Node, value: Tensor, piece: Piece) -> None:
        """Add a piece's share."""
        if node not in self.found:
            self.found[node] = [None] * self.candidates
        parts = self.found[node]
        first = piece.candidates.start
        parts[first] = raw_sums(value, piece.count, parts[first])

    def total(self, node: fx.Node) -> tuple[Tensor, Tensor]:
        """Return both sums of all candidates, `(candidates, channels)`, float64."""
        parts = [finished(part) for part in self.found[node] if part is not None]
        sums, squares = zip(*parts, strict=True)
        return torch.cat(sums), torch.cat(squares)


class _Segment:
    """Steps that run one after another on each piece."""

    def __init__(
        self, pipeline: Pipeline, nodes: list[fx.Node], kept: set[fx.Node]
    ) -> None:
        network = self.network = pipeline.network
        self.pipeline = pipeline
        batched = [
            n for n in nodes if n in pipeline.sources or network.kind(n) != "unknown"
        ]
        self.unknown = [n for n in nodes if n not in batched]  # run on whole batches
        self.norms = [
            n
            for n in batched
            if n not in pipeline.sources and network.kind(n) == "norm"
        ]
        self.reads = {n for node in batched for n in pipeline.reads(node)} - {*batched}
        self.steps = [
            (n, self._step(n, kept), n in kept, n in pipeline.measured) for n in batched
        ]

    def _step(self, node: fx.Node, kept: set[fx.Node]) -> Callable | None:
        if node in self.pipeline.sources:
            return None
        if node in self.norms:
            return self._norm(node)
        is_live = self.pipeline.is_live
        return self.network.step(node, is_live=is_live, kept=kept)

    def run(
        self,
        whole: Env,
        sums: _Sums,
        batch: int,
        candidates: int,
        sources: dict[fx.Node, Source],
    ) -> None:
        """Run this segment's steps; `whole` and `sums` receive what later ones read."""
        pipeline, total = self.pipeline, candidates * batch
        self.total = total
        for node in self.unknown:
            whole[node] = self.network.one_by_one(node, whole, batch)
            if node in pipeline.measured:
                sums.add(node, whole[node], _everything(batch, candidates))
        if not self.steps:
            return
        self.affines = {n: self._affine(n, sums, batch) for n in self.norms}
        for piece in pipeline.pieces(batch, candidates):
            self.piece = piece
            env = {n: _part(whole[n], piece, batch, candidates) for n in self.reads}
            for node, step, is_kept, is_measured in self.steps:
                if step is None:
                    whole[node] = pipeline.buffer(node, total, pipeline.like)
                    value = whole[node][piece.rows]
                    sources[node](piece, value)
                else:
                    value = step(env, piece.batch)
                    if is_kept:
                        self._keep(node, value, whole, piece, total)
                env[node] = value
                if is_measured:
                    sums.add(node, value, piece)

    def _keep(
        self, node: fx.Node, value: Tensor, whole: Env, piece: Piece, total: int
    ) -> None:
        if value.shape[0] == total:
            whole[node] = value  # the piece is all there is
            return
        if node not in whole or piece.rows.start == 0:
            whole[node] = self.pipeline.buffer(node, total, value)
        whole[node][piece.rows] = value

    def _affine(self, node: fx.Node, sums: _Sums, batch: int) -> tuple[Tensor, Tensor]:
        """Return a batch norm's scale and shift, as long as a sample's memory."""
        (used,) = self.network.used_by(node)
        pixels = math.prod(self.network.shapes[used][1:])
        scale, shift = affine_of(
            *sums.total(used),
            batch * pixels,
            self.network.module(node),
            self.network.reduce,
        )
        return tuple(
            t.to(self.pipeline.like.dtype)[:, None, None]
            .expand(-1, 1, pixels, -1)
            .reshape(len(t), 1, -1)
            for t in (scale, shift)
        )

    def _norm(self, node: fx.Node) -> Callable[[Env, int], Tensor]:
        (used,) = self.network.used_by(node)

        def apply(env: Env, batch: int) -> Tensor:
            x = env[used]
            rows = (x.permute(0, 2, 3, 1) if x.dim() == 4 else x).contiguous()
            scale, shift = self.affines[node]
            chosen = self.piece.candidates
            wide = rows.view(-1, batch, scale.shape[2])
            out = self._scratch(node, rows)
            torch.addcmul(shift[chosen], wide, scale[chosen], out=out.view(wide.shape))
            return out.permute(0, 3, 1, 2) if x.dim() == 4 else out

        return apply

    def _scratch(self, node: fx.Node, like: Tensor) -> Tensor:
        """Return memory for a piece; whole values may be stored, so they are new."""
        if like.shape[0] >= self.total:
            return torch.empty_like(like)
        key = node, like.shape
        if key not in self.pipeline.buffers:
            self.pipeline.buffers[key] = torch.empty_like(like)
        return self.pipeline.buffers[key]


def _part(value: Any, piece: Piece, batch: int, candidates: int) -> Any:
    """Return a piece of a whole value, which may be one for all candidates."""
    if not isinstance(value, Tensor) or not value.dim():
        return value
    if value.shape[0] == batch and candidates > 1:
        return value[piece.samples]
    return value[piece.rows]
