"""RSO: random search optimization, one weight at a time, without gradients."""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from course_lib.compiler import NoCompiler
from course_lib.data import Split
from course_lib.rso import arguments, checkpoints, engines, fitting, memory, proposals
from course_lib.rso.eager.eligibility import Fingerprint, Weights
from course_lib.rso.eager.network import Network, NotTraceable
from course_lib.rso.eager.pipeline import run_whole
from course_lib.rso.eager.prefixes import Prefixes
from course_lib.rso.eager.sweeps import Task
from course_lib.rso.interrupts import Request, deferred
from course_lib.rso.minibatches import Minibatches
from course_lib.rso.modes import (
    LOSSES,
    Loss,
    loss_sum,
    require_batch_statistics,
    require_repeatable,
    searched,
)
from course_lib.rso.native.program import Unwritten, library
from course_lib.rso.parallel.processes import Processes
from course_lib.rso.precision import Comparison, products
from course_lib.rso.precision import check as check_precision
from course_lib.rso.proposals import Sampler, Target
from course_lib.rso.steps import DeviceStep, HostStep, Rules

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}  # of losses that count as equal


class CycleReport(NamedTuple):
    """One visit to every weight."""

    cycle: int  # from 1
    loss: float  # mean over the training samples, batch norm with batch statistics
    accuracy: float  # of the same pass, in [0, 1]; nan where labels are no classes
    proposals: int
    accepted: float  # share of the weights that moved
    seconds: float
    proposals_a_second: float


class RSO:
    """Search a model's weights one by one: keep the best of w, w + dw and w - dw.

    For each cycle, for each layer, output first, for each of its weights: draw a
    mini-batch and dw ~ N(0, sigma), and set

        w <- argmin of loss(w), loss(w + dw), loss(w - dw) on that mini-batch.

    sigma is the deviation of the layer's initial weights; it falls in a line to
    `final_sigma` times that in the last cycle. Iterate over the search: each step is a
    cycle and gives a CycleReport. Batch norm works with batch statistics, and its
    running ones stay as they are: call `refresh_norm_statistics` before testing.

    Three engines come to the same decisions from the same seed. "reference" runs the
    whole model three times a weight. "cached" computes what lies before the swept layer
    once a sweep. "incremental" recomputes one channel, and runs the candidates side by
    side from the layer after the next. "auto" takes the fastest that each parameter
    and the memory allow; `choices` says which, and why. A model with hooks, replaced
    methods and the like, or inside of torch.autocast, is left to "reference", and half
    precision to the model's own operations.

    "incremental" adds up in another order. In float32 its losses are off by about 1e-7
    of the mean loss + 1, so of 10,000 decisions about one may differ from those of
    "reference": a tie but for rounding, after which the two searches part. Where a pass
    has at most 2**20 multiply-adds, such close calls are judged by "reference" too.

    Where the paper is silent: losses that differ by less than rounding count as equal,
    and then the weight stays; biases start at 0 and take sqrt(2 / fan_in) for sigma.

    Args:
        model: any module from one tensor to one tensor. Its weights are searched in
            place; parameters that are frozen when the search is made stay.
        split: the training data.
        batch_size: samples of a mini-batch, in [1, len(split)]; with "partition" the
            mini-batches are made equal, so they may be a little smaller.
        cycles: visits to every weight, >= 1.
        seed: of weights, proposals and mini-batches.
        engine: "auto", "reference", "cached" or "incremental".
        minibatches: "partition" of the data into fixed mini-batches, or "fresh".
        final_sigma: sigma in the last cycle over sigma in the first, in (0, 1].
        weight_decay: each visited weight is first multiplied by 1 - weight_decay, in
            [0, 1); 1e-4 in the authors' code.
        train_norm: search batch norm's gamma and beta too.
        loss: "cross_entropy", or (outputs, labels) -> one number for each sample, or a
            scalar mean. It needs no gradient.
        device: where to search; None leaves model and data where they are.
        order: of the layers: "output_first", "input_first" or "random".
        sampler: "normal", "uniform" (of the same deviation), "fixed" (always sigma), or
            (count, generator) -> numbers of deviation 1.
        sigma: "measured", or "analytic": sqrt(2 / fan_in).
        proposals_at_once: weights of one channel that are judged on one mini-batch and
            accepted together, if that beats the best of them alone. 1 is the paper's.
        initialize: draw the first weights from N(0, sqrt(2 / fan_in)); False keeps
            those that the model has.
        tolerance: losses closer than tolerance * (mean loss + 1) are equal; None takes
            1e-12 in float64 and 1e-6 in float32.
        memory_limit: bytes that an engine may remember; None takes most of what is
            free.
        compiled: let the incremental engine run in compiled code, where there is a C++
            compiler and the layers allow: several times as fast on a CPU.
        precision: of what convolutions and linear layers multiply while candidates
            are judged: "float32", the weights' own; "tf32" on a GPU; "bf16". After a
            cycle `changed` is the share of decisions that this changed, of those in
            32 that were also made in full.
        checkpoint: a file that is written after each cycle and on Ctrl-C, which stops
            the search between two proposals; pressed again, it stops at once.
        progress: show a bar; TQDM_DISABLE=1 in the environment hides it too.

    In each process of torch.distributed a search judges its share of each mini-batch,
    and all come to the decisions of one; see `processes`.

    Raises:
        ValueError: an argument out of range, no trainable weight, a module that draws
            random numbers, an engine that can't take the model or lacks memory; data,
            labels or a loss that don't fit the model; on the way, a weight that was
            frozen, replaced or converted since.
        SearchError: on the way, a loss that is not finite.
        LostProcess: on the way, another process has ended or hangs.
        KeyboardInterrupt: on the way, Ctrl-C; the search can go on from there.

    Source: Tripathi and Singh 2020, arXiv:2005.05955, algorithm 1.
    """

    _fingerprint: Fingerprint | None = None  # of what the choices rest on

    def __init__(
        self,
        model: nn.Module,
        split: Split,
        *,
        batch_size: int,
        cycles: int,
        seed: int = 0,
        engine: str = "auto",
        minibatches: str = "partition",
        final_sigma: float = 0.1,
        weight_decay: float = 0.0,
        train_norm: bool = False,
        loss: str | Loss = "cross_entropy",
        device: str | torch.device | None = None,
        order: str = "output_first",
        sampler: str | Sampler = "normal",
        sigma: str = "measured",
        proposals_at_once: int = 1,
        initialize: bool = True,
        tolerance: float | None = None,
        memory_limit: int | None = None,
        compiled: bool = True,
        precision: str = "float32",
        checkpoint: str | os.PathLike[str] | None = None,
        progress: bool = True,
    ) -> None:
        settings = {
            "seed": seed,
            "cycles": cycles,
            "batch_size": batch_size,
            "minibatches": minibatches,
            "final_sigma": final_sigma,
            "weight_decay": weight_decay,
            "train_norm": train_norm,
            "order": order,
            "sampler": sampler,
            "sigma": sigma,
            "loss": loss,
            "proposals_at_once": proposals_at_once,
            "precision": precision,
        }
        more = {"engine": engine, "initialize": initialize, "compiled": compiled}
        arguments.check(split, {**settings, **more})
        self.targets = proposals.targets(model, train_norm=train_norm)
        self.model, self.cycles, self.seed = model, cycles, seed
        self.final_sigma, self.weight_decay = final_sigma, weight_decay
        self.order, self.at_once = order, proposals_at_once
        self.loss = LOSSES[loss] if isinstance(loss, str) else loss
        named = isinstance(sampler, str)
        self.sampler = proposals.SAMPLERS[sampler] if named else sampler
        self.checkpoint = checkpoint
        self.processes = Processes.current()
        is_first = self.processes.share[0] == 0
        self.progress = progress and is_first and not os.environ.get("TQDM_DISABLE")
        if device is not None:
            model.to(device)
        weights = self.targets[0].parameter
        check_precision(precision, weights)
        self.precision, self.changed = precision, 0.0
        compiled = compiled and precision == "float32"
        usual = TOLERANCE.get(weights.dtype, 1e-3)
        self.tolerance = usual if tolerance is None else tolerance
        self.minibatches = self._deal(split, weights, batch_size, minibatches)
        self.settings = {k: "own" if callable(v) else v for k, v in settings.items()}
        self.settings["tolerance"] = self.tolerance
        self.settings["samples"] = len(split)
        self.settings["labels"] = _digest(split.labels)
        self.processes.require_equal(self.settings)
        if initialize:
            proposals.initialize(self.targets, seed)
        self.processes.share_weights(model)
        self.sigmas = {t.name: proposals.base_sigma(t, sigma) for t in self.targets}
        self._asked = engine, memory_limit, compiled
        self._weights = Weights.of(self.targets)
        self._renew_choices()
        self.cycle = 0  # cycles that are finished
        self._place = (0, 0)  # of the cycle that runs: target, and its next proposal
        self._seconds = 0.0  # that were spent on the cycle that runs
        self._request = Request()
        self.reports: list[CycleReport] = []
        self._count = sum(t.values.numel() for t in self.targets)
        self.decisions = torch.zeros(self._count, dtype=torch.int8)

    # The loop

    def __iter__(self) -> Iterator[CycleReport]:
        return self

    def __next__(self) -> CycleReport:
        if self.cycle >= self.cycles:
            raise StopIteration
        self._renew_choices()
        with (
            deferred(self._request),
            searched(self.model),
            products("float32"),
            self.processes.guarded(),
        ):
            report = self._run_cycle()
        self.save()
        if report is None:
            self._request = Request()
            raise KeyboardInterrupt(
                f"RSO: stopped in cycle {self.cycle + 1}, and can go on from there"
            )
        return report

    def _run_cycle(self) -> CycleReport | None:
        """Visit every weight that this cycle has left; None if asked to stop."""
        start = time.perf_counter() - self._seconds
        ordered = self._ordered()
        done = self._offset(self._place[0]) + self._place[1]
        if not done:
            self.decisions = torch.zeros(self._count, dtype=torch.int8)
        bar = tqdm(
            total=self._count,
            initial=done,
            disable=not self.progress,
            desc=f"cycle {self.cycle + 1} of {self.cycles}",
            unit=" proposals",
            leave=False,
        )
        prefixes = self._prefixes(ordered)
        comparison = Comparison(self.precision)
        with bar:
            for number in range(self._place[0], len(ordered)):
                if prefixes is not None:
                    prefixes.begin(number)
                is_asked = self._sweep(ordered[number], prefixes, comparison, bar)
                self._seconds = time.perf_counter() - start
                if is_asked:
                    return None
                self._place = (number + 1, 0)
        self.changed = float(comparison.changed) / max(1, comparison.judged)
        return self._close_cycle()

    def _close_cycle(self) -> CycleReport:
        loss, accuracy = self._evaluate()
        report = CycleReport(
            cycle=self.cycle + 1,
            loss=loss,
            accuracy=accuracy,
            proposals=self._count,
            accepted=float(self.decisions.ne(0).float().mean()),
            seconds=self._seconds,
            proposals_a_second=self._count / self._seconds,
        )
        self.cycle, self._place, self._seconds = self.cycle + 1, (0, 0), 0.0
        self.reports.append(report)
        return report

    def _prefixes(self, ordered: list[Target]) -> Prefixes | None:
        """Return what this cycle's sweeps may leave for each other."""
        if self.network is None or not len(self.minibatches):
            return None
        parameters = [target.parameter for target in ordered]
        return Prefixes(self.network, parameters, self._room)

    def _ordered(self) -> list[Target]:
        """Return the parameters in this cycle's order."""
        if self.order == "output_first":
            return self.targets[::-1]
        if self.order == "random":
            generator = proposals.generator_of(self.seed, "order", self.cycle)
            shuffled = torch.randperm(len(self.targets), generator=generator)
            return [self.targets[i] for i in shuffled.tolist()]
        return self.targets

    def _sweep(
        self,
        target: Target,
        prefixes: Prefixes | None,
        comparison: Comparison,
        bar: tqdm,
    ) -> bool:
        """Visit a parameter's weights, from `self._place` on, until asked to stop."""
        number, first = self._place
        values, groups, schedule = self._draw(target)
        dealt, network = self.minibatches, self.network
        choice = self.choices[target.name]
        task = Task(self.model, target, values, dealt, self.loss, network, prefixes)
        task.compiled = choice.is_compiled
        sweep = engines.SWEEPS[choice.engine](task)
        judged_by = self.minibatches, self.processes, self.tolerance, self.cycle + 1
        rules = Rules(*judged_by, comparison)
        on_host = values.device.type == "cpu" or self.at_once > 1
        step = (HostStep if on_host else DeviceStep)(rules, task, sweep)
        start = next((i for i, g in enumerate(groups) if g[0] >= first), len(groups))
        self.minibatches.skip(start)
        is_asked, place = False, first
        for group, minibatch in zip(groups[start:], schedule[start:], strict=True):
            is_asked = step(group, minibatch, bool(self._request))
            place = group.stop
            bar.update(len(group))
            if is_asked:
                break
        visited = slice(self._offset(number) + first, self._offset(number) + place)
        self.decisions[visited] = step.decisions()[first:place]
        self._place = (number, place)
        if not on_host and self.processes.reduce is not None:
            is_asked = self.processes.any(bool(self._request))
        return is_asked

    def _offset(self, number: int) -> int:
        return sum(t.values.numel() for t in self._ordered()[:number])

    def _draw(self, target: Target) -> tuple[Tensor, list[range], list[int]]:
        """Return what each weight may become, the groups judged together, mini-batches.

        All of it is drawn on the CPU from the seed, the cycle and the name.
        """
        old = target.values
        generator = proposals.generator_of(self.seed, self.cycle, target.name)
        sigma = proposals.annealed(
            self.sigmas[target.name], self.cycle, self.cycles, self.final_sigma
        )
        dw = (sigma * self.sampler(len(old), generator)).to(old.device, old.dtype)
        kept = old * (1 - self.weight_decay)
        values = torch.stack([kept, kept + dw, kept - dw], dim=1)
        channel = len(old) // target.channels
        groups = [
            range(i, min(i + self.at_once, start + channel))
            for start in range(0, len(old), channel)
            for i in range(start, start + channel, self.at_once)
        ]
        return values, groups, self.minibatches.schedule(len(groups), generator)

    # Before and after

    def _deal(
        self, split: Split, weights: Tensor, batch_size: int, kind: str
    ) -> Minibatches:
        inputs = split.inputs.to(weights.device, weights.dtype)
        fitting.check_finite(inputs)
        labels, share = split.labels.to(weights.device), self.processes.share
        options = {"kind": kind, "seed": self.seed, "share": share}
        dealt = Minibatches(inputs, labels, batch_size, **options)
        self.processes.require_shares(dealt.smallest)
        require_batch_statistics(self.model)
        fitting.require_fitting(self.model, dealt, self.loss)
        return dealt

    def _probe(self) -> Tensor:
        return self.minibatches.inputs[: min(8, max(2, self.minibatches.batch_size))]

    def _renew_choices(self) -> None:
        """Choose the engines, again where the model or what is around it has changed.

        Raises:
            ValueError: a weight was replaced, converted or frozen since the beginning.
        """
        self._weights.require_same(self.model)
        now = Fingerprint(self.model)
        if self.processes.any(now != self._fingerprint):
            self.network, reason = self._trace()
            self.choices = self._choose(self._asked[0], reason, *self._asked[1:])
            self._fingerprint = Fingerprint(self.model)

    def _trace(self) -> tuple[Network | None, str]:
        inputs, network, why = self._probe(), None, ""
        with searched(self.model):
            require_repeatable(self.model, inputs)
            try:
                network = Network.trace(self.model, inputs, self.processes.reduce)
            except NotTraceable as error:
                why = str(error)
        why = next(filter(None, self.processes.gather(why)), "")  # all choose alike
        return (None if why else network), why

    def _choose(
        self, engine: str, reason: str, limit: int | None, compiled: bool
    ) -> dict[str, engines.Choice]:
        own, processes = self.minibatches, self.processes
        remembered = len(own.labels) if len(own) else own.batch_size
        if limit is None:
            limit = memory.available(own.inputs.device, processes.neighbors)
        chooser = engines.Chooser(
            self.network,
            reason,
            own,
            samples=-(-remembered // processes.share[1]),
            limit=processes.least(limit),
            obstacle=self._obstacle(compiled),
        )
        choices = chooser.choose(engine, self.targets)
        self._room = chooser.room(choices, own.inputs.element_size())
        if processes.reduce is not None:
            with searched(self.model):
                cross_sample_op = engines.find_cross_sample_op(
                    self.model, self.network, self._probe()
                )
            processes.require_additive(self.model, choices, cross_sample_op)
        return choices

    def _obstacle(self, compiled: bool) -> str:
        """Say why nothing can be compiled in some process; nothing where it can be."""
        why = "" if compiled else "compiled=False"
        try:
            if compiled:
                library(self.minibatches.inputs.dtype)
        except (Unwritten, NoCompiler) as error:
            why = str(error)
        return next(filter(None, self.processes.gather(why)), "")

    def _evaluate(self) -> tuple[float, float]:
        """Return (mean loss, accuracy) on the training data, with batch statistics."""
        device = self.minibatches.inputs.device
        totals = torch.zeros(3, dtype=torch.float64, device=device)
        is_classes = True
        for inputs, labels in self.minibatches.all():
            if self.network is None or inputs.dtype in engines.COARSE:
                outputs = self.model(inputs.clone())
            else:
                outputs = run_whole(self.network, inputs)
            is_classes = outputs.dim() == 2 and labels.dim() == 1
            totals[0] += loss_sum(self.loss, outputs, labels)
            totals[1] += (outputs.argmax(1) == labels).sum() if is_classes else 0
            totals[2] += len(labels)
        loss, right, samples = self.processes.total(totals).tolist()
        return loss / samples, right / samples if is_classes else math.nan

    # Stopping and going on

    @property
    def is_between_cycles(self) -> bool:
        """Tell whether the weights are those of the end of the last cycle."""
        return self._place == (0, 0)

    def state_dict(self) -> dict[str, Any]:
        """Return all that a search needs to go on: tensors, numbers and strings."""
        return {
            "format": 1,
            "settings": dict(self.settings),
            "model": {k: v.clone() for k, v in self.model.state_dict().items()},
            "sigmas": dict(self.sigmas),
            "cycle": self.cycle,
            "place": list(self._place),
            "seconds": self._seconds,
            "reports": [list(report) for report in self.reports],
            "decisions": self.decisions.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken; the search then ends with the same weights.

        Raises:
            ValueError: it belongs to another model or to other settings; nothing is
                changed then.
        """
        lengths = {t.name: t.values.numel() for t in self.targets}
        checkpoints.require_fitting(state, self.settings, self.model, lengths)
        self.processes.require_equal({k: state[k] for k in ("cycle", "place")})
        self.model.load_state_dict(state["model"])
        self.sigmas, self._seconds = dict(state["sigmas"]), state["seconds"]
        self.cycle, self._place = state["cycle"], tuple(state["place"])
        self.reports = [CycleReport(*report) for report in state["reports"]]
        self.decisions = state["decisions"].clone()

    def save(self) -> None:
        """Write the checkpoint, in one step or not at all; process 0 does it."""
        if self.checkpoint is not None and self.processes.share[0] == 0:
            checkpoints.write(self.checkpoint, self.state_dict())

    def load(self, path: str | os.PathLike[str]) -> None:
        """Read a checkpoint and go on from there.

        Raises:
            ValueError: the file is no checkpoint, or one of another search.
        """
        self.load_state_dict(checkpoints.read(path))


def _digest(labels: Tensor) -> str:
    """Return a fingerprint of the labels: other data must not go on with a search."""
    raw = labels.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    return hashlib.blake2b(raw.tobytes(), digest_size=8).hexdigest()
