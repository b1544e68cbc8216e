"""The loop over batches: fit a model, watch it, stop it before it breaks."""

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from course_lib import plots
from course_lib.data import Dataset, Split

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Loss = Callable[[Tensor, Tensor], Tensor]


class TrainingError(RuntimeError):
    """Training can't go on; `history` holds the epochs that were finished."""

    def __init__(self, message: str, history: "History") -> None:
        super().__init__(message)
        self.history = history


class Epoch(NamedTuple):
    """One pass over the training data; losses are means over the samples."""

    epoch: int
    loss: float  # without the penalty, while the weights move
    penalty: float  # mean over the batches
    test_loss: float
    test_accuracy: float  # in [0, 1]; nan where the labels are no classes
    seconds: float


@dataclass
class History:
    """What `fit` saw, an Epoch at a time; prints as a table.

    >>> history = History([Epoch(1, 2.0, 0.0, 1.9, 0.25, 0.1)])
    >>> history
    epoch   loss  test loss  test accuracy
        1  2.000      1.900          25.0%
    >>> history["test_accuracy"]
    [0.25]
    """

    epochs: list[Epoch] = field(default_factory=list)

    def __getitem__(self, column: str) -> list[float]:
        """Return one column, for example `history["test_loss"]`."""
        if column not in Epoch._fields:
            raise KeyError(
                f"History: got {column!r}; wanted one of {', '.join(Epoch._fields)}."
            )
        return [getattr(epoch, column) for epoch in self.epochs]

    def __len__(self) -> int:
        return len(self.epochs)

    def __repr__(self) -> str:
        if not self.epochs:
            return "History: no epoch finished yet"
        shown = _columns(self.epochs)
        rows = [[text(epoch) for _, text in shown] for epoch in self.epochs]
        if len(rows) > 10:  # the ends tell the story
            rows[5:-4] = [["..." for _ in shown]]
        table = [[name for name, _ in shown], *rows]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        return "\n".join(_line(row, widths) for row in table)

    def plot(self, ax: "Axes") -> "Axes":
        """Draw the training and test loss over the epochs on `ax`."""
        series = {"training loss": self["loss"], "test loss": self["test_loss"]}
        kept = {name: values for name, values in series.items() if not _blank(values)}
        return plots.curves(ax, kept, xlabel="epoch", ylabel="loss")


def fit(
    model: nn.Module,
    data: Dataset | Split,
    *,
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    batch_size: int,
    penalty: Callable[[nn.Module], Tensor] | None = None,
    after_backward: Callable[[nn.Module], object] | None = None,
    patience: int | None = None,
    on_epoch: Callable[[History], object] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> History:
    """Train `model` on `data.train`, test it on `data.test` after each epoch.

    Each step minimizes loss(model(inputs), labels) + penalty(model). The model and
    its parts are left in the modes (train or eval) that they came in.

    Args:
        model: takes inputs `(batch, ...)` on the data's device.
        data: a Dataset, or one Split to train without testing.
        loss: (outputs, labels) -> scalar mean over the batch.
        optimizer: any torch.optim optimizer over the model's parameters.
        epochs: passes over the data, >= 1.
        batch_size: samples a step, >= 1.
        penalty: model -> scalar added to the loss, for example
            `regularization.penalty`.
        after_backward: called with the model between backward and step, for example
            `regularization.add_penalty_gradients_`, the faster form of a penalty.
        patience: stop when the test loss has not improved for so many epochs.
        on_epoch: called with the History after each epoch; a true answer stops.
        seed: of the batches' order, drawn on the CPU.
        progress: show a bar; TQDM_DISABLE=1 in the environment hides it too.

    Raises:
        TrainingError: the loss or the penalty is not finite. The weights are those
            before that batch, and the error carries the History so far.
        ValueError: an argument is out of range.
    """
    _check_arguments(data, epochs=epochs, patience=patience)
    train = data.train if isinstance(data, Dataset) else data
    test = data.test if isinstance(data, Dataset) else None
    history = History()
    trainer = _Trainer(model, loss, optimizer, penalty, after_backward, history)
    generator = torch.Generator().manual_seed(seed)
    hidden = not progress or bool(os.environ.get("TQDM_DISABLE"))
    bar = tqdm(range(1, epochs + 1), unit="epoch", disable=hidden)
    with contextlib.closing(bar), _modes_put_back(model):
        for number in bar:
            start = time.perf_counter()
            batches = train.batches(batch_size, generator=generator)
            means = trainer.run_epoch(batches, number)
            tested = evaluate(model, test, loss=loss) if test else (math.nan, math.nan)
            seconds = time.perf_counter() - start
            history.epochs.append(Epoch(number, *means, *tested, seconds))
            bar.set_postfix(loss=f"{means[0]:.3g}")
            if _is_stale(history, patience) or (on_epoch and on_epoch(history)):
                break
    return history


@torch.no_grad()
def evaluate(
    model: nn.Module, split: Split, *, loss: Loss, batch_size: int = 1000
) -> tuple[float, float]:
    """Return (mean loss, accuracy) on a split, in eval mode; the modes are put back.

    The accuracy is nan unless the outputs are `(batch, classes)` and the labels are
    class numbers.
    """
    total, right = 0.0, 0.0
    with _modes_put_back(model):
        model.eval()
        for inputs, labels in split.batches(batch_size, shuffle=False):
            outputs = model(inputs)
            total += float(loss(outputs, labels)) * len(inputs)
            right += _count_right(outputs, labels)
    return total / len(split), right / len(split)


@contextlib.contextmanager
def _modes_put_back(model: nn.Module) -> Iterator[None]:
    """Put back the mode of each module: one layer may be in eval mode on purpose."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@dataclass
class _Trainer:
    """One epoch of optimizer steps, and the means that the History needs."""

    model: nn.Module
    loss: Loss
    optimizer: torch.optim.Optimizer
    penalty: Callable[[nn.Module], Tensor] | None
    after_backward: Callable[[nn.Module], object] | None
    history: History

    def run_epoch(
        self, batches: Iterable[tuple[Tensor, Tensor]], epoch: int
    ) -> tuple[float, float]:
        self.model.train()
        loss = cost = samples = 0.0
        for number, (inputs, labels) in enumerate(batches, start=1):
            batch_loss, batch_cost = self.step(inputs, labels, (epoch, number))
            loss += batch_loss * len(inputs)
            cost += batch_cost * len(inputs)
            samples += len(inputs)
        return loss / samples, cost / samples

    def step(
        self, inputs: Tensor, labels: Tensor, place: tuple[int, int]
    ) -> tuple[float, float]:
        loss = self.loss(self.model(inputs), labels)
        cost = self.penalty(self.model) if self.penalty else loss.new_zeros(())
        values = loss.item(), cost.item()
        self._require_finite(values, place)
        self.optimizer.zero_grad()
        (loss + cost).backward()
        if self.after_backward:
            self.after_backward(self.model)
        self.optimizer.step()
        return values

    def _require_finite(
        self, values: tuple[float, float], place: tuple[int, int]
    ) -> None:
        if not all(map(math.isfinite, values)):
            raise TrainingError(
                f"fit: epoch {place[0]}, batch {place[1]}: the loss is {values[0]:.4g} "
                f"and the penalty {values[1]:.4g}; wanted finite numbers. The weights "
                "are those before this batch. Lower the learning rate, or look for "
                "nan in the inputs.",
                self.history,
            )


def _count_right(outputs: Tensor, labels: Tensor) -> float:
    if outputs.dim() != 2 or labels.dim() != 1 or labels.is_floating_point():
        return math.nan
    return float((outputs.argmax(dim=1) == labels).sum())


def _is_stale(history: History, patience: int | None) -> bool:
    losses = history["test_loss"]
    if patience is None or len(losses) <= patience:
        return False
    return min(losses[-patience:]) >= min(losses[:-patience])


def _check_arguments(
    data: Dataset | Split, *, epochs: int, patience: int | None
) -> None:
    if not isinstance(data, Dataset | Split):
        raise ValueError(
            f"fit: got data of type {type(data).__name__}; wanted a Dataset or a "
            "Split. course_lib.data.load() gives one."
        )
    for name, value in (("epochs", epochs), ("patience", patience)):
        is_count = isinstance(value, int) and not isinstance(value, bool) and value > 0
        if not is_count and not (name == "patience" and value is None):
            raise ValueError(f"fit: got {name}={value!r}; wanted an int >= 1.")
    if patience is not None and not isinstance(data, Dataset):
        raise ValueError(
            "fit: patience watches the test loss, and one Split has none. Pass the "
            "whole Dataset, or leave patience out."
        )


def _columns(epochs: list[Epoch]) -> list[tuple[str, Callable[[Epoch], str]]]:
    """Return (header, text of an epoch) for the columns that say something."""
    columns: list[tuple[str, Callable[[Epoch], str]]] = [
        ("epoch", lambda e: str(e.epoch)),
        ("loss", lambda e: f"{e.loss:.4g}" if e.loss >= 1e4 else f"{e.loss:.3f}"),
    ]
    if any(e.penalty for e in epochs):
        columns.append(("penalty", lambda e: f"{e.penalty:.3f}"))
    if not _blank([e.test_loss for e in epochs]):
        columns.append(("test loss", lambda e: f"{e.test_loss:.3f}"))
    if not _blank([e.test_accuracy for e in epochs]):
        columns.append(("test accuracy", lambda e: f"{e.test_accuracy:.1%}"))
    return columns


def _blank(values: list[float]) -> bool:
    return bool(values) and all(map(math.isnan, values))


def _line(row: list[str], widths: list[int]) -> str:
    return "  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True))
