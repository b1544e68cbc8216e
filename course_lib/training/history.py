"""The History of a training, with one record for each epoch, and how it prints."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from matplotlib.axes import Axes

from course_lib.plots.common import curves


class TrainingError(RuntimeError):
    """Training can't continue; `history` holds the finished epochs."""

    def __init__(self, message: str, history: "History") -> None:
        super().__init__(message)
        self.history = history

    def __reduce__(self) -> tuple:  # so that it crosses from process to process
        return type(self), (*self.args, self.history), vars(self)


class Epoch(NamedTuple):
    """One pass over the training data; losses are means over the samples."""

    epoch: int
    loss: float  # without the penalty, while the weights change
    penalty: float  # mean over the batches
    test_loss: float
    test_accuracy: float  # in [0, 1]; nan where the labels are no classes
    seconds: float
    terms: Mapping[str, float] = {}  # means over the samples of the terms of add_loss


@dataclass
class History:
    """The epochs of a call of `fit`; prints as a table.

    >>> history = History([Epoch(1, 2.0, 0.0, 1.9, 0.25, 0.1)])
    >>> history
    epoch   loss  test loss  test accuracy
        1  2.000      1.900          25.0%
    >>> history["test_accuracy"]
    [0.25]
    """

    epochs: list[Epoch] = field(default_factory=list)

    def __getitem__(self, column: str) -> list[float]:
        """Return one column, for example `history["test_loss"]`.

        A term of the loss is a column by its name; 0 in epochs without it.
        """
        names = [*Epoch._fields[:-1], *_term_names(self.epochs)]
        if column not in names:
            raise KeyError(
                f"History: got {column!r}; wanted one of {', '.join(names)}."
            )
        if column in Epoch._fields:
            return [getattr(epoch, column) for epoch in self.epochs]
        return [epoch.terms.get(column, 0.0) for epoch in self.epochs]

    def __len__(self) -> int:
        return len(self.epochs)

    def __repr__(self) -> str:
        if not self.epochs:
            return "History: no epoch finished yet"
        shown = _columns(self.epochs)
        rows = [[text(epoch) for _, text in shown] for epoch in self.epochs]
        return table([name for name, _ in shown], rows)

    def plot(self, ax: Axes) -> Axes:
        """Draw the training and test loss over the epochs on `ax`."""
        series = {"training loss": self["loss"], "test loss": self["test_loss"]}
        known = {name: values for name, values in series.items() if not _blank(values)}
        return curves(ax, known, xlabel="epoch", ylabel="loss")


def _columns(epochs: list[Epoch]) -> list[tuple[str, Callable[[Epoch], str]]]:
    """Return (header, epoch -> its text) for the columns that hold any number."""
    columns: list[tuple[str, Callable[[Epoch], str]]] = [
        ("epoch", lambda e: str(e.epoch)),
        ("loss", lambda e: f"{e.loss:.4g}" if e.loss >= 1e4 else f"{e.loss:.3f}"),
    ]
    if any(e.penalty for e in epochs):
        columns.append(("penalty", lambda e: f"{e.penalty:.3f}"))
    for name in _term_names(epochs):
        columns.append((name, lambda e, name=name: f"{e.terms.get(name, 0.0):.3f}"))
    if not _blank([e.test_loss for e in epochs]):
        columns.append(("test loss", lambda e: f"{e.test_loss:.3f}"))
    if not _blank([e.test_accuracy for e in epochs]):
        columns.append(("test accuracy", lambda e: f"{e.test_accuracy:.1%}"))
    return columns


def _term_names(epochs: list[Epoch]) -> list[str]:
    return list(dict.fromkeys(name for epoch in epochs for name in epoch.terms))


def _blank(values: list[float]) -> bool:
    return bool(values) and all(map(math.isnan, values))


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return rows of text under a header, right-aligned; of many, the first and last.

    >>> print(table(["step", "k"], [["5", "0.1"], ["10", "0.25"]]))
    step     k
       5   0.1
      10  0.25
    """
    if len(rows) > 10:
        rows = [*rows[:5], ["..." for _ in header], *rows[-4:]]
    lines = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    pairs = (zip(line, widths, strict=True) for line in lines)
    return "\n".join("  ".join(text.rjust(w) for text, w in each) for each in pairs)
