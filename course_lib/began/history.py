"""The records of a BEGAN run, and how they print."""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from matplotlib.axes import Axes

from course_lib.plots.common import lines
from course_lib.training.history import table


class Record(NamedTuple):
    """What a stretch of steps was like; errors and M are means over its steps."""

    step: int  # how many were taken when it ended
    real: float  # L_real, in units of pixels
    generated: float  # L_gen
    k: float  # after the last step
    M: float
    seconds: float  # of this stretch


@dataclass
class History:
    """The records of a run; prints as a table.

    >>> history = History([Record(100, 0.125, 0.0625, 0.01, 0.125, 1.5)])
    >>> history
    step  L_real   L_gen       k       M
     100  0.1250  0.0625  0.0100  0.1250
    >>> history["k"]
    [0.01]
    """

    records: list[Record] = field(default_factory=list)

    def __getitem__(self, column: str) -> list[float]:
        """Return one column, for example `history["M"]`."""
        if column not in Record._fields:
            raise KeyError(
                f"History: got {column!r}; wanted one of {', '.join(Record._fields)}."
            )
        return [getattr(record, column) for record in self.records]

    def __len__(self) -> int:
        return len(self.records)

    def __repr__(self) -> str:
        if not self.records:
            return "History: no record yet"
        rows = [[str(r.step), *(f"{v:.4f}" for v in r[1:5])] for r in self.records]
        return table(["step", "L_real", "L_gen", "k", "M"], rows)

    def plot(self, ax: Axes, *columns: str) -> Axes:
        """Draw columns over the steps on `ax`: k and M, unless others are named."""
        series = {name: torch.tensor(self[name]) for name in columns or ("k", "M")}
        across = torch.tensor(self["step"])
        return lines(ax, across, series, xlabel="step", ylabel="")
