"""RSO: random search optimization, one weight at a time, without gradients."""

from __future__ import annotations

import hashlib
import os
import textwrap
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from course_lib.data.sets import Split
from course_lib.rso import checkpoints, checks, proposals
from course_lib.rso.eager.prefixes import Prefixes
from course_lib.rso.engines import Choice, Engines
from course_lib.rso.interrupts import StopRequest, deferred
from course_lib.rso.losses import LOSSES, Loss
from course_lib.rso.minibatches import Minibatches
from course_lib.rso.modes import search_mode
from course_lib.rso.parallel.processes import Processes
from course_lib.rso.precision import Comparison, check_precision, products
from course_lib.rso.proposals import SAMPLERS, Sampler, Target
from course_lib.rso.reports import CycleReport, evaluate
from course_lib.rso.steps import Rules, step_of, visit

SETTINGS = (  # arguments that a search and its checkpoint must have in common
    *("seed", "cycles", "batch_size", "minibatches", "final_sigma", "weight_decay"),
    *("train_norm", "order", "sampler", "sigma", "loss", "proposals_at_once"),
    "precision",
)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}  # of losses that count as equal


class RSO:
    """Search a model's weights one by one: keep the best of w, w + dw and w - dw.

    For each cycle, for each layer, output first, for each of its weights: draw a
    mini-batch and dw ~ N(0, sigma), and set

        w <- argmin of loss(w), loss(w + dw), loss(w - dw) on that mini-batch.

    sigma is the deviation of the layer's initial weights; it falls linearly to
    `final_sigma` times that in the last cycle. Iterate over the search: each step is a
    cycle and gives a CycleReport. Batch norm works with batch statistics, and its
    running ones do not change: call `refresh_norm_statistics` before testing.

    Three engines come to the same decisions from the same seed. "reference" runs the
    whole model three times a weight. "cached" computes what lies before the swept layer
    once a sweep. "incremental" recomputes one channel, and runs the candidates side by
    side from the layer after the next. "auto" takes the fastest that each parameter
    and the memory allow; `choices` says which, and why; see `engines`.

    Where the paper is silent: losses closer than 1e-12 (float64) or 1e-6 (float32) of
    the mean loss + 1 count as equal, and then the weight stays; biases start at 0 and
    take sqrt(2 / fan_in) for sigma.

    Args:
        model: any module from one tensor to one tensor. Its weights are searched in
            place; parameters that are frozen when the search is made do not change.
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
        sampler: {samplers}
        sigma: "measured", or "analytic": sqrt(2 / fan_in).
        proposals_at_once: weights of one channel that are judged on one mini-batch and
            accepted together, if that beats the best of them alone. 1 is the paper's.
        initialize: draw the first weights from N(0, sqrt(2 / fan_in)); False starts
            from those that the model has.
        compiled: let "incremental" run in compiled code, where there is a C++ compiler
            and the layers allow: several times as fast on a CPU.
        precision: of what convolutions and linear layers multiply while candidates
            are judged: "float32", the weights' own; "tf32" on a GPU; "bf16". After a
            cycle `changed` is the share of decisions that this changed, of those in
            32 that were also made in full.
        checkpoint: a file that is written after each cycle and on Ctrl-C, which stops
            the search between two proposals; pressed again, it stops at once.
        progress: show a bar; TQDM_DISABLE=1 in the environment hides it too.

    In each process of torch.distributed a search judges its share of each mini-batch,
    and all make the same decisions; see `parallel`.

    Raises:
        ValueError: an argument out of range, no trainable weight, a module that draws
            random numbers, an engine that does not support the model or needs more
            memory; data, labels or a loss that don't fit the model; during the search,
            a weight that was frozen, replaced or converted since.
        SearchError: during the search, a loss that is not finite.
        LostProcess: during the search, another process has ended or hangs.
        KeyboardInterrupt: during the search, Ctrl-C; it can be continued from there.

    Source: Tripathi and Singh 2020, arXiv:2005.05955, algorithm 1.
    """

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
        compiled: bool = True,
        precision: str = "float32",
        checkpoint: str | os.PathLike[str] | None = None,
        progress: bool = True,
    ) -> None:
        given = dict(locals())  # all arguments, by name
        checks.check_arguments(given)
        self.targets = proposals.targets(model, train_norm=train_norm)
        self.model, self.cycles, self.seed = model, cycles, seed
        self.final_sigma, self.weight_decay = final_sigma, weight_decay
        self.order, self.at_once = order, proposals_at_once
        self.loss = LOSSES[loss] if isinstance(loss, str) else loss
        self.sampler = SAMPLERS[sampler].draw if isinstance(sampler, str) else sampler
        self.checkpoint = checkpoint
        self.processes = Processes.current()
        is_first = self.processes.share[0] == 0
        self.progress = progress and is_first and not os.environ.get("TQDM_DISABLE")
        if device is not None:
            model.to(device)
        weights = self.targets[0].parameter
        check_precision(precision, weights)
        self.precision, self.changed = precision, 0.0
        self.tolerance = TOLERANCE.get(weights.dtype, 1e-3)
        self.minibatches = Minibatches(
            split.inputs.to(weights.device, weights.dtype),
            split.labels.to(weights.device),
            batch_size,
            kind=minibatches,
            seed=seed,
            share=self.processes.share,
        )
        self.processes.require_shares(self.minibatches.smallest)
        checks.check_fit(model, self.minibatches, self.loss)
        self.settings = {
            name: "own" if callable(given[name]) else given[name] for name in SETTINGS
        }
        self.settings |= {"samples": len(split), "labels": _digest(split.labels)}
        self.settings["tolerance"] = self.tolerance
        self.processes.require_equal(self.settings)
        if initialize:
            proposals.initialize(self.targets, seed)
        self.processes.share_weights(model)
        self.sigmas = {t.name: proposals.base_sigma(t, sigma) for t in self.targets}
        self._engines = Engines(
            model,
            self.targets,
            self.minibatches,
            self.processes,
            asked=engine,
            compiled=compiled and precision == "float32",
        )
        self.cycle = 0  # cycles that are finished
        self._place = (0, 0)  # of the cycle that runs: target, and its next proposal
        self._seconds = 0.0  # of the cycle that runs
        self._request = StopRequest()
        self.reports: list[CycleReport] = []
        self._count = sum(t.values.numel() for t in self.targets)
        self.decisions = torch.zeros(self._count, dtype=torch.int8)

    @property
    def choices(self) -> dict[str, Choice]:
        """Return which engine sweeps which parameter, and why."""
        return self._engines.choices

    # The loop

    def __iter__(self) -> Iterator[CycleReport]:
        return self

    def __next__(self) -> CycleReport:
        if self.cycle >= self.cycles:
            raise StopIteration
        self._engines.update()
        with (
            deferred(self._request),
            search_mode(self.model),
            products("float32"),
            self.processes.guarded(),
        ):
            report = self._run_cycle()
        self.save()
        if report is None:
            self._request = StopRequest()
            raise KeyboardInterrupt(
                f"RSO: stopped in cycle {self.cycle + 1}; the search can continue there"
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
        prefixes = self._engines.prefixes(ordered)
        comparison = Comparison(self.precision)
        with bar:
            for number in range(self._place[0], len(ordered)):
                prefixes.begin(number)
                is_asked = self._sweep(ordered[number], prefixes, comparison, bar)
                self._seconds = time.perf_counter() - start
                if is_asked:
                    return None
                self._place = (number + 1, 0)
        self.changed = float(comparison.changed) / max(1, comparison.judged)
        return self._close_cycle()

    def _close_cycle(self) -> CycleReport:
        judged_by = self.minibatches, self.loss, self.processes
        loss, accuracy = evaluate(self.model, self._engines.network, *judged_by)
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

    def _ordered(self) -> list[Target]:
        return proposals.ordered(self.targets, self.order, self.seed, self.cycle)

    def _sweep(
        self, target: Target, prefixes: Prefixes, comparison: Comparison, bar: tqdm
    ) -> bool:
        """Visit a parameter's weights, from `self._place` on, until asked to stop."""
        number, first = self._place
        values, groups, schedule = self._draw(target)
        task, sweep = self._engines.sweep(target, values, self.loss, prefixes)
        cycle = self.cycle + 1
        rules = Rules(
            self.minibatches, self.processes, self.tolerance, cycle, comparison
        )
        step = step_of(rules, task, sweep, at_once=self.at_once)
        place, is_asked = visit(
            rules, step, groups, schedule, first, self._request, bar.update
        )
        start = self._offset(number)
        self.decisions[start + first : start + place] = step.decisions()[first:place]
        self._place = (number, place)
        return is_asked

    def _offset(self, number: int) -> int:
        return sum(t.values.numel() for t in self._ordered()[:number])

    def _draw(self, target: Target) -> tuple[Tensor, list[range], list[int]]:
        """Return the candidates, the groups judged together, and their mini-batches.

        All of it is drawn on the CPU from the seed, the cycle and the name.
        """
        generator = proposals.generator_of(self.seed, self.cycle, target.name)
        sigma = proposals.annealed(
            self.sigmas[target.name], self.cycle, self.cycles, self.final_sigma
        )
        drawn = self.sampler(target.values.numel(), generator)
        values = proposals.candidates(target, drawn, sigma, self.weight_decay)
        groups = proposals.groups(target, self.at_once)
        return values, groups, self.minibatches.schedule(len(groups), generator)

    # Stopping and continuing

    @property
    def is_between_cycles(self) -> bool:
        """Tell whether the weights are those of the end of the last cycle."""
        return self._place == (0, 0)

    def state_dict(self) -> dict[str, Any]:
        """Return all that a search needs to continue: tensors, numbers and strings."""
        return {
            "format": checkpoints.FORMAT,
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
        """Continue where `state` was taken; the search then ends with the same weights.

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
        """Read a checkpoint and continue from there.

        Raises:
            ValueError: the file is no checkpoint, or one of another search.
        """
        self.load_state_dict(checkpoints.read(path))


def _digest(labels: Tensor) -> str:
    """Return a fingerprint of the labels, which differs for other data."""
    raw = labels.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    return hashlib.blake2b(raw.tobytes(), digest_size=8).hexdigest()


def _document_samplers(doc: str) -> str:
    """Fill in a line of RSO's docstring from the table, so that none is forgotten."""
    known = proposals.describe_samplers()
    text = f"sampler: {known}, or (count, generator) -> numbers of deviation 1."
    lines = textwrap.fill(text, 88, initial_indent=8 * " ", subsequent_indent=12 * " ")
    return doc.replace("        sampler: {samplers}", lines)


if RSO.__doc__:  # which python -OO leaves out
    RSO.__doc__ = _document_samplers(RSO.__doc__)
