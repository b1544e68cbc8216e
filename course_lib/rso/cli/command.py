"""`python -m course_lib rso`: a search from the shell, stored in a folder."""

from __future__ import annotations

import argparse
import contextlib
import copy
import inspect
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from course_lib import data
from course_lib.data.archives import DataError
from course_lib.data.sets import Dataset
from course_lib.rso.checks import CHOICES
from course_lib.rso.cli import nets
from course_lib.rso.cli.folders import FILES, Folder
from course_lib.rso.modes import refresh_norm_statistics
from course_lib.rso.parallel import processes
from course_lib.rso.parallel.processes import LostProcess, Processes
from course_lib.rso.proposals import describe_samplers
from course_lib.rso.search import RSO, CycleReport
from course_lib.rso.steps import SearchError
from course_lib.training.loop import evaluate


def _values(name: str) -> str:
    return ", ".join(CHOICES[name])


OPTIONS = {  # name -> help
    "data": "digits, mnist, fashion_mnist or cifar10",
    "net": "small, paper, or PATH.py:NAME, a module or a function that returns one; "
    "the code in that file is run",
    "cycles": "visits to every weight",
    "batch_size": "samples of a mini-batch",
    "seed": "of weights, proposals and mini-batches",
    "engine": _values("engine"),
    "device": "cpu or cuda; a GPU is taken if there is one",
    "minibatches": _values("minibatches"),
    "proposals_at_once": "weights judged together",
    "order": f"{_values('order')}, of the layers",
    "sampler": describe_samplers(),
    "sigma": _values("sigma"),
    "final_sigma": "in the last cycle, over the first's",
    "weight_decay": "of each weight at its visit",
    "train_norm": "batch norm too",
    "precision": f"{_values('precision')}; tf32 on a GPU only",
}
TITLES = "cycle", "loss", "train", "test", "moved", "proposals/s", "seconds"
COMMAND_ONLY = ("data", "net", "device")  # not passed to RSO
_RSO = inspect.signature(RSO).parameters
DEFAULTS: dict[str, Any] = {
    **{name: _RSO[name].default for name in OPTIONS if name in _RSO},
    **{"data": "digits", "net": "small", "cycles": 10, "batch_size": 512},
}


def parser() -> argparse.ArgumentParser:
    """Return the command's options; those that are not given are None."""
    made = argparse.ArgumentParser(
        prog="python -m course_lib rso",
        description="Search the weights of a network one by one, and store the run in "
        "a folder. Several processes: torchrun --nproc-per-node=N -m course_lib rso",
    )
    add = made.add_argument
    for name, text in OPTIONS.items():
        default, option = DEFAULTS[name], f"--{name.replace('_', '-')}"
        if default is False:
            add(option, action="store_const", const=True, help=text)
        elif default is None:
            add(option, help=text)
        else:
            add(option, type=type(default), help=f"{text} (default: {default})")
    add("--out", default="runs/rso", help="the run's folder (default: %(default)s)")
    add("--resume", action="store_true", help="continue the run in the folder")
    add("--overwrite", action="store_true", help="replace the run in the folder")
    return made


def main(argv: Sequence[str]) -> int:
    """Run or resume a search; return the exit status."""
    arguments = parser().parse_args(argv)
    given = {name: getattr(arguments, name) for name in OPTIONS}
    given = {name: value for name, value in given.items() if value is not None}
    out, is_first = Path(arguments.out), int(os.environ.get("RANK", "0")) == 0
    try:
        run(given, out, resume=arguments.resume, overwrite=arguments.overwrite)
    except (ValueError, OSError, DataError, SearchError, LostProcess) as error:
        if is_first or isinstance(error, LostProcess):
            print(error, file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        if is_first:
            print(f"\nStopped. To continue: --resume --out {out}", file=sys.stderr)
        return 130
    return 0


def run(given: dict[str, Any], out: Path, *, resume: bool, overwrite: bool) -> None:
    """Search, and write the folder `out`: process 0 does, if there are several.

    given: what differs from DEFAULTS, or from the settings of a run to resume.

    Raises:
        ValueError: an argument out of range, or a folder that holds a run already, or
            in which another one is at work.
        OSError: the folder can't be written.
    """
    folder = Folder(out)
    device = processes.start(given.get("device"))
    group = Processes.current()
    with contextlib.ExitStack() as stack:

        def prepare() -> dict[str, Any]:
            stack.enter_context(folder.locked(resume=resume))
            known = folder.claim(given, resume=resume, overwrite=overwrite)
            asked = {**DEFAULTS, **known, "device": str(device)}
            data.load(asked["data"])  # which may download it
            return asked

        asked = _first_alone(group, prepare)
        dataset = data.load(asked["data"]).to(device)
        torch.manual_seed(asked["seed"])
        model = nets.build(asked["net"], dataset).to(device)
        options = {k: v for k, v in asked.items() if k not in COMMAND_ONLY}
        search = RSO(model, dataset.train, checkpoint=folder.checkpoint, **options)
        if resume and folder.checkpoint.exists():
            search.load(folder.checkpoint)
        if group.share[0] == 0:
            if not resume:
                folder.clear()
            folder.write_settings(asked, model, device)
            _work(search, dataset, folder)
        else:
            for _ in search:
                pass
        processes.stop()


def _work(search: RSO, dataset: Dataset, folder: Folder) -> None:
    """Search, test after each cycle, and store all."""
    tested = folder.tested()
    engines = sorted(
        {c.engine + ", compiled" * c.is_compiled for c in search.choices.values()}
    )
    print(
        f"{search.settings['samples']} samples, {len(search.decisions)} weights, "
        f"{', '.join(engines)}"
    )
    print("".join(f"{title:>12}" for title in TITLES))
    if search.reports:
        last = search.reports[-1].cycle
        is_tested = not math.isnan(tested.get(last, math.nan))
        if is_tested or not search.is_between_cycles:
            folder.write_reports(search.reports, tested)
        else:  # killed before it was tested
            _test(search, dataset, folder, tested)
    for report in search:
        _test(search, dataset, folder, tested)
        print(_row(report, tested[report.cycle]), flush=True)
        if search.precision != "float32":
            print(f"{search.changed:.2%} of the decisions differ from those in float32")
    print(f"Stored in {folder.path}: {', '.join(FILES)}")


def _test(
    search: RSO, dataset: Dataset, folder: Folder, tested: dict[int, float]
) -> None:
    """Test the model after its last cycle, and store all of that."""
    model = copy.deepcopy(search.model)  # the search itself must not change
    refresh_norm_statistics(model, dataset.train)
    folder.write_weights(model)
    tested[search.reports[-1].cycle] = _accuracy(model.float(), dataset)
    folder.write_reports(search.reports, tested)


def _accuracy(model: nn.Module, dataset: Dataset) -> float:
    return evaluate(model, dataset.test, loss=F.cross_entropy)[1]


def _row(report: CycleReport, tested: float) -> str:
    shares = report.accuracy, tested, report.accepted
    rates = report.proposals_a_second, report.seconds
    return "{:12}{:12.4f}{:12.2%}{:12.2%}{:12.2%}{:12.0f}{:12.1f}".format(
        report.cycle, report.loss, *shares, *rates
    )


def _first_alone(group: Processes, work: Callable[[], Any]) -> Any:
    """Return the result of process 0 in all processes; the others wait for it.

    Raises:
        ValueError: process 0 failed; its message.
    """
    result, problem = None, None
    if group.share[0] == 0:
        try:
            result = work()
        except (ValueError, OSError, DataError) as error:
            problem = str(error)
    result, problem = group.gather((result, problem))[0]
    if problem is not None:
        raise ValueError(problem)
    return result
