"""The loop over batches: fit a model, watch it, stop it before it breaks."""

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from course_lib import plots
from course_lib.data import Dataset, Split
from course_lib.losses import LossCollector

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
    terms: Mapping[str, float] = {}  # means over the samples of what add_loss was given


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
        """Return one column, for example `history["test_loss"]`.

        A term of the loss is a column by its name; 0 where an epoch did not have it.
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
    after_forward: Callable[[nn.Module, Tensor, Tensor], object] | None = None,
    after_backward: Callable[[nn.Module], object] | None = None,
    patience: int | None = None,
    on_epoch: Callable[[History], object] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> History:
    """Train `model` on `data.train`, test it on `data.test` after each epoch.

    Each step minimizes loss(model(inputs), labels) + penalty(model) + the terms that
    `losses.add_loss` was given since the step began, by the model's parts, the loss or
    `after_forward`. The model and its parts are left in the modes (train or eval)
    that they came in.

    Args:
        model: takes inputs `(batch, ...)` on the data's device.
        data: a Dataset, or one Split to train without testing.
        loss: (outputs, labels) -> scalar mean over the batch.
        optimizer: any torch.optim optimizer over the model's parameters.
        epochs: passes over the data, >= 1.
        batch_size: samples a step, >= 1.
        penalty: model -> scalar added to the loss, for example
            `regularization.penalty`.
        after_forward: called with (model, inputs, outputs) before backward, to hand
            terms from outside the model to `add_loss`, for example
            `vat.virtual_adversarial_loss`. They have columns in the History.
        after_backward: called with the model between backward and step, for example
            `regularization.add_penalty_gradients_`, the faster form of a penalty.
        patience: stop when the test loss has not improved for so many epochs.
        on_epoch: called with the History after each epoch; a true answer stops.
        seed: of the batches' order, drawn on the CPU.
        progress: show a bar; TQDM_DISABLE=1 in the environment hides it too.

    Raises:
        TrainingError: the loss, the penalty or a term is not finite. The weights are
            those before that batch, and the error carries the History so far.
        ValueError: an argument is out of range, or a term has the name of another
            column of the History.
    """
    _check_arguments(data, epochs=epochs, patience=patience)
    train = data.train if isinstance(data, Dataset) else data
    test = data.test if isinstance(data, Dataset) else None
    history = History()
    trainer = _Trainer(
        model, loss, optimizer, penalty, after_forward, after_backward, history
    )
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
            own = means.pop("loss"), means.pop("penalty")  # the terms remain
            history.epochs.append(Epoch(number, *own, *tested, seconds, means))
            bar.set_postfix(loss=f"{own[0]:.3g}")
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
    with _modes_put_back(model), LossCollector():  # whose terms nobody reads
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
    after_forward: Callable[[nn.Module, Tensor, Tensor], object] | None
    after_backward: Callable[[nn.Module], object] | None
    history: History

    def run_epoch(
        self, batches: Iterable[tuple[Tensor, Tensor]], epoch: int
    ) -> dict[str, float]:
        """Return the means over the samples of loss, penalty and each term."""
        self.model.train()
        totals: dict[str, float] = {}
        samples = 0
        for number, (inputs, labels) in enumerate(batches, start=1):
            for name, value in self.step(inputs, labels, (epoch, number)).items():
                totals[name] = totals.get(name, 0.0) + value * len(inputs)
            samples += len(inputs)
        return {name: total / samples for name, total in totals.items()}

    def step(
        self, inputs: Tensor, labels: Tensor, place: tuple[int, int]
    ) -> dict[str, float]:
        parts = self.parts(inputs, labels)
        values = {name: part.item() for name, part in parts.items()}
        self._require_finite(values, place)
        self.optimizer.zero_grad()
        sum(parts.values()).backward()
        if self.after_backward:
            self.after_backward(self.model)
        self.optimizer.step()
        return values

    def parts(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return what is to be minimized, as scalars by name."""
        with LossCollector() as collector:
            outputs = self.model(inputs)
            loss = self.loss(outputs, labels)
            cost = self.penalty(self.model) if self.penalty else loss.new_zeros(())
            if self.after_forward:
                self.after_forward(self.model, inputs, outputs)
        for name in collector.terms:
            if name in Epoch._fields:
                raise ValueError(
                    f"fit: a term is called {name!r}, and so is a column of the "
                    "History. Give add_loss another name."
                )
        return {"loss": loss, "penalty": cost, **collector.terms}

    def _require_finite(self, values: dict[str, float], place: tuple[int, int]) -> None:
        if not all(map(math.isfinite, values.values())):
            loss, *others = (f"{name} {value:.4g}" for name, value in values.items())
            raise TrainingError(
                f"fit: epoch {place[0]}, batch {place[1]}: the loss is {loss[5:]} "
                f"and the {' and the '.join(others)}; wanted finite numbers. The "
                "weights are those before this batch. Lower the learning rate, or "
                "look for nan in the inputs.",
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
    """Return rows of text under a header, each column to the right; of many, the ends.

    >>> print(table(["step", "k"], [["5", "0.1"], ["10", "0.25"]]))
    step     k
       5   0.1
      10  0.25
    """
    if len(rows) > 10:  # the ends tell the story
        rows = [*rows[:5], ["..." for _ in header], *rows[-4:]]
    lines = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(_line(line, widths) for line in lines)


def _line(row: list[str], widths: list[int]) -> str:
    return "  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True))
