"""The folder of a run: settings, checkpoint, reports, weights and a picture."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import platform
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import nn

from course_lib import __version__
from course_lib.plots.common import curves
from course_lib.rso.checkpoints import remove_leftovers, replacing
from course_lib.rso.cli import locks
from course_lib.rso.parallel.processes import Processes
from course_lib.rso.reports import CycleReport

CHECKPOINT, SETTINGS, REPORTS = "checkpoint.pt", "settings.json", "reports.csv"
PLOT, WEIGHTS = "accuracy.png", "weights.pt"
FILES = (SETTINGS, CHECKPOINT, REPORTS, WEIGHTS, PLOT)
COLUMNS = (*CycleReport._fields, "test_accuracy")


class Folder:
    """A run's files, each written in one step or not at all."""

    def __init__(self, path: Path) -> None:
        self.path, self.checkpoint = path, path / CHECKPOINT

    @contextlib.contextmanager
    def locked(self, *, resume: bool) -> Iterator[None]:
        """Keep other runs out meanwhile; remove what a killed one was still writing.

        Raises:
            ValueError: another run is at work there.
            OSError: it is no folder, or can't be written.
        """
        if resume and not self.path.exists():
            yield  # for `claim` to refuse
            return
        with locks.locked(self.path):
            remove_leftovers(self.path)
            yield

    def claim(
        self, given: Mapping[str, Any], *, resume: bool, overwrite: bool
    ) -> dict[str, Any]:
        """Return the arguments of a run to start or to resume; write nothing yet.

        `given`, of the command line, have precedence over those of a run to resume.

        Raises:
            ValueError: there is a run and neither is wanted, both are, or there is none
                to resume.
        """
        here = [name for name in FILES if (self.path / name).exists()]
        if resume and overwrite:
            raise ValueError("rso: --resume and --overwrite exclude each other.")
        if resume:
            return {**self._settings()["arguments"], **given}
        if here and not overwrite:
            raise ValueError(
                f"rso: {self.path} holds a run ({', '.join(here)}). Continue it by "
                "--resume, replace it by --overwrite, or choose another --out."
            )
        return dict(given)

    def clear(self) -> None:
        """Remove a run's files; what else is there stays."""
        for name in FILES:
            (self.path / name).unlink(missing_ok=True)

    def _settings(self) -> dict[str, Any]:
        path = self.path / SETTINGS
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(settings["arguments"], dict):
                return settings
            raise KeyError("arguments")
        except FileNotFoundError:
            raise ValueError(f"rso: {self.path} holds no run to resume.") from None
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"rso: {path} is not a run's settings ({error})."
            ) from error

    def write_settings(
        self, arguments: Mapping[str, Any], model: nn.Module, device: torch.device
    ) -> None:
        """Write what the run is made with; a resumed run keeps its first date."""
        date, resumed = datetime.now(timezone.utc).isoformat(timespec="seconds"), []
        if (self.path / SETTINGS).exists():
            before = self._settings()
            date, resumed = before["date"], [*before["resumed"], date]
        settings = {
            "arguments": dict(arguments),
            "parameters": sum(p.numel() for p in model.parameters()),
            "date": date,
            "resumed": resumed,
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "course_lib": __version__,
            },
            "machine": {
                "system": platform.platform(),
                "device": _device_name(device),
                "processes": Processes.current().share[1],
                "threads": torch.get_num_threads(),
            },
        }
        self._write(SETTINGS, json.dumps(settings, indent=2) + "\n")

    def tested(self) -> dict[int, float]:
        """Return {cycle: test accuracy} of the reports that are stored."""
        path = self.path / REPORTS
        if not path.exists():
            return {}
        try:
            with path.open(newline="", encoding="utf-8") as stream:
                rows = list(csv.DictReader(stream))
            return {int(row["cycle"]): float(row["test_accuracy"]) for row in rows}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"rso: {path} is not what a run wrote ({error}). Move it away "
                "to continue."
            ) from error

    def write_reports(
        self, reports: Sequence[CycleReport], tested: Mapping[int, float]
    ) -> None:
        """Write the table and the picture; nan where a cycle was not tested."""
        accuracies = [tested.get(report.cycle, math.nan) for report in reports]
        table = io.StringIO()
        rows = csv.writer(table, lineterminator="\n")
        rows.writerow(COLUMNS)
        rows.writerows([*r, a] for r, a in zip(reports, accuracies, strict=True))
        self._write(REPORTS, table.getvalue())
        figure = Figure(figsize=(6, 3.5), layout="constrained")
        series = {"training": [r.accuracy for r in reports], "test": accuracies}
        curves(figure.subplots(), series, xlabel="cycle", ylabel="accuracy")
        with replacing(self.path / PLOT, "the picture") as stream:
            figure.savefig(stream, format="png", dpi=150)

    def write_weights(self, model: nn.Module) -> None:
        """Write the state_dict of a model that is ready for testing."""
        with replacing(self.path / WEIGHTS, "the weights") as stream:
            torch.save(model.state_dict(), stream)

    def _write(self, name: str, text: str) -> None:
        with replacing(self.path / name, "the file") as stream:
            stream.write(text.encode())


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({platform.processor() or platform.machine()})"
