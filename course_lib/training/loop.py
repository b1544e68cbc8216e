"""The loop over batches: fit a model, watch it, stop it before it breaks."""

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from course_lib.data.sets import Dataset
from course_lib.losses import LossCollector
from course_lib.training.batches import (
    Batch,
    Batches,
    Source,
    home,
    is_tensors,
    require_source,
)
from course_lib.training.checks import (
    ERRORS,
    Buffers,
    Reach,
    call_loss,
    call_model,
    every,
    explain,
    names_of,
    needs_closure,
    parts_in_eval_mode,
    require_loss,
    require_optimizer,
    scalar,
)
from course_lib.training.history import Epoch, History, TrainingError, table
from course_lib.trees import all_finite, require_module

__all__ = ["Epoch", "History", "TrainingError", "evaluate", "fit", "table"]

Loss = Callable[[Tensor, Tensor], Tensor]


def fit(
    model: nn.Module,
    data: Dataset | Source,
    *,
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    batch_size: int | None = None,
    test: Source | None = None,
    penalty: Callable[[nn.Module], Tensor] | None = None,
    after_forward: Callable[[nn.Module, Tensor, Tensor], object] | None = None,
    after_backward: Callable[[nn.Module], object] | None = None,
    patience: int | None = None,
    on_epoch: Callable[[History], object] | None = None,
    seed: int = 0,
    shuffle: bool = True,
    drop_last: bool = False,
    progress: bool = True,
) -> History:
    """Train `model` on `data.train`, test it on `data.test` after each epoch.

    Each step minimizes loss(model(inputs), labels) + penalty(model) + the terms that
    `losses.add_loss` was given since the step began, by the model's parts, the loss or
    `after_forward`. The model and its parts are left in the modes (train or eval)
    that they came in.

    Frozen stays frozen: a parameter with `requires_grad=False`, and a part in eval mode
    inside of a model in train mode (a batch norm whose statistics shall not move). If
    the model itself is in eval mode, as an evaluation leaves it, that says nothing
    about its parts, and all of them train.

    Args:
        model: takes inputs `(batch, ...)`; each batch is moved to the device of its
            first parameter.
        data: a Dataset, or one of these to train without testing: a Split, a
            TensorDataset, or what gives batches in each epoch, for example a
            DataLoader. A batch is (inputs, labels); several inputs come first, and the
            model is called with all of them.
        loss: (outputs, labels) -> scalar mean over the batch, or a number for each
            sample, `(batch,)`, whose mean is taken.
        optimizer: any torch.optim optimizer over the model's parameters. LBFGS calls
            the model and the loss several times a step.
        epochs: passes over the data, >= 1.
        batch_size: samples a step, >= 1; left out where the data has batches already.
        test: what to test on, if data is no Dataset.
        penalty: model -> scalar added to the loss, for example
            `regularization.penalty`.
        after_forward: called with (model, inputs, outputs) before backward, to hand
            terms from outside the model to `add_loss`, for example
            `vat.virtual_adversarial_loss`. They have columns in the History. Several
            inputs are a tuple.
        after_backward: called with the model between backward and step, for example
            `regularization.add_penalty_gradients_`, the faster form of a penalty.
        patience: stop when the test loss has not improved for so many epochs.
        on_epoch: called with the History after each epoch; a true answer stops.
        seed: of the batches' order, drawn on the CPU.
        shuffle: visit the samples in a new order in each epoch.
        drop_last: leave out a last batch that is smaller than the others; a batch norm
            can't train on one sample.
        progress: show a bar; TQDM_DISABLE=1 in the environment hides it too.

    Raises:
        TrainingError: the loss, the penalty, a term or a gradient is not finite. The
            weights and buffers are those before that batch, and the error carries the
            History.
        ValueError: an argument is out of range, the loss reaches no parameter of the
            optimizer or compares all pairs of samples by broadcasting, the model or
            the loss fails on a batch, or a term has the name of another column.

    Warns:
        UserWarning: a layer was called, and no loss reached its parameters.
    """
    require_module("fit", model)
    require_loss("fit", loss)
    require_optimizer("fit", optimizer)
    train, test = _parts_of(data, test)
    own = {"batch_size": batch_size, "shuffle": shuffle, "drop_last": drop_last}
    _check_arguments(train, own, epochs=epochs, patience=patience, tests=test)
    history = History()
    trainer = _Trainer(
        model, loss, optimizer, penalty, after_forward, after_backward, history
    )
    generator = torch.Generator().manual_seed(seed)
    batches = Batches("fit", train, home(model), generator=generator, **own)
    hidden = not progress or bool(os.environ.get("TQDM_DISABLE"))
    bar = tqdm(range(1, epochs + 1), unit="epoch", disable=hidden)
    ends = contextlib.closing(bar), contextlib.closing(trainer.reach)
    with ends[0], ends[1], _modes_put_back(model):
        for number in bar:
            start = time.perf_counter()
            means = trainer.run_epoch(batches, number)
            tested = (math.nan, math.nan)
            if test is not None:
                tested = evaluate(model, test, loss=loss)
            seconds = time.perf_counter() - start
            own = means.pop("loss"), means.pop("penalty")  # the terms remain
            history.epochs.append(Epoch(number, *own, *tested, seconds, means))
            bar.set_postfix(loss=f"{own[0]:.3g}")
            if _is_stale(history, patience) or (on_epoch and on_epoch(history)):
                break
    return history


@torch.no_grad()
def evaluate(
    model: nn.Module, split: Source, *, loss: Loss, batch_size: int = 1000
) -> tuple[float, float]:
    """Return (mean loss, accuracy) on a split, in eval mode; the modes are put back.

    The accuracy is nan unless the outputs are `(batch, classes)` and the labels are
    class numbers. Other data than a Split is taken as in `fit`.
    """
    require_module("evaluate", model)
    require_loss("evaluate", loss)
    total, right, samples = 0.0, 0.0, 0
    batches = Batches("evaluate", split, home(model), batch_size, shuffle=False)
    with _modes_put_back(model), LossCollector():  # whose terms nobody reads
        model.eval()
        for batch in batches:
            outputs = call_model("evaluate", model, batch)
            value = call_loss("evaluate", loss, outputs, batch)
            total += float(value) * batch.size
            right += _count_right(outputs, batch.targets)
            samples += batch.size
    return total / samples, right / samples


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
    after_forward: Callable[[nn.Module, Any, Any], object] | None
    after_backward: Callable[[nn.Module], object] | None
    history: History

    def __post_init__(self) -> None:
        self.frozen = parts_in_eval_mode(self.model)
        self.needs_closure = needs_closure(self.optimizer)
        self.reach = Reach(self.model, self.optimizer)
        self.place = "fit"

    def run_epoch(self, batches: Batches, epoch: int) -> dict[str, float]:
        """Return the means over the samples of loss, penalty and each term."""
        self.model.train()
        for part in self.frozen:
            part.training = False
        totals: dict[str, float] = {}
        samples = 0
        for number, batch in enumerate(batches, start=1):
            self.place = f"fit: epoch {epoch}, batch {number}"
            for name, value in self.step(batch).items():
                totals[name] = totals.get(name, 0.0) + value * batch.size
            samples += batch.size
        self.reach.warn()
        return {name: total / samples for name, total in totals.items()}

    def step(self, batch: Batch) -> dict[str, float]:
        buffers = Buffers(self.model)
        try:
            if self.needs_closure:
                return self._step_with_closure(batch)
            values = self._backward(batch)
            self._step()
        except Exception:
            buffers.put_back()
            raise
        return values

    def _step(self) -> None:
        try:
            self.optimizer.step()
        except ERRORS as error:
            explain(error, self.place, type(self.optimizer).__name__)
            raise

    def _step_with_closure(self, batch: Batch) -> dict[str, float]:
        """Let the optimizer ask for loss and gradients as often as it likes."""
        moved = every(self.optimizer)
        before = [p.detach().clone() for p in moved]
        asked: list[dict[str, float]] = []

        def closure() -> float:
            asked.append(self._backward(batch))
            return sum(asked[-1].values())

        try:
            self.optimizer.step(closure)
        except Exception:  # after some of its moves
            with torch.no_grad():
                torch._foreach_copy_(moved, before)
            raise
        return asked[0]

    def _backward(self, batch: Batch) -> dict[str, float]:
        """Leave finite gradients in .grad; return the parts of the loss."""
        parts = self.parts(batch)
        self.reach.note(self.place, parts)
        values = {"loss": 0.0, "penalty": 0.0}  # in this order, whatever there is
        values |= {name: part.item() for name, part in parts.items()}
        self._require_finite(values)
        total, *others = parts.values()
        for part in others:
            total = total + part
        self.optimizer.zero_grad()
        try:
            total.backward()
        except ERRORS as error:
            explain(error, self.place, "backward", labels=batch.targets)
            raise
        if self.after_backward:
            self.after_backward(self.model)
        self._require_finite_gradients()
        return values

    def _require_finite_gradients(self) -> None:
        moved = every(self.optimizer)
        if not all_finite([g for p in moved if (g := p.grad) is not None]):
            wrong = [
                p for p in moved if p.grad is not None and not all_finite([p.grad])
            ]
            raise TrainingError(
                f"{self.place}: the loss is finite, but the gradient of "
                f"{', '.join(names_of(self.model, wrong))} is not. The weights are "
                "those before this batch. Look for a root, a norm or a logarithm at 0 "
                "and for where() around one, or lower the learning rate.",
                self.history,
            )

    def parts(self, batch: Batch) -> dict[str, Tensor]:
        """Return what is to be minimized, as scalars by name."""
        with LossCollector() as collector:
            outputs = call_model(self.place, self.model, batch)
            loss = call_loss(self.place, self.loss, outputs, batch)
            parts = {"loss": loss}
            if self.penalty:
                cost = self.penalty(self.model)
                parts["penalty"] = scalar(self.place, cost, 1, name="penalty")
            if self.after_forward:
                inputs = batch.inputs if len(batch.inputs) > 1 else batch.inputs[0]
                self.after_forward(self.model, inputs, outputs)
        for name in collector.terms:
            if name in Epoch._fields:
                raise ValueError(
                    f"fit: a term is called {name!r}, and so is a column of the "
                    "History. Give add_loss another name."
                )
        return parts | collector.terms

    def _require_finite(self, values: dict[str, float]) -> None:
        if not all(map(math.isfinite, values.values())):
            loss, *others = (f"{name} {value:.4g}" for name, value in values.items())
            raise TrainingError(
                f"{self.place}: the loss is {loss[5:]} "
                f"and the {' and the '.join(others)}; wanted finite numbers. The "
                "weights are those before this batch. Lower the learning rate, or "
                "look for nan in the inputs.",
                self.history,
            )


def _count_right(outputs: Any, labels: Any) -> float:
    if not isinstance(outputs, Tensor) or not isinstance(labels, Tensor):
        return math.nan
    if outputs.dim() != 2 or outputs.shape[1] < 2 or labels.shape != outputs.shape[:1]:
        return math.nan
    if labels.dtype not in _INTEGERS:
        return math.nan
    return float((outputs.argmax(dim=1) == labels).sum())


_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def _is_stale(history: History, patience: int | None) -> bool:
    losses = history["test_loss"]
    if patience is None or len(losses) <= patience:
        return False
    return min(losses[-patience:]) >= min(losses[:-patience])


def _parts_of(
    data: Dataset | Source, test: Source | None
) -> tuple[Source, Source | None]:
    """Return what to train and what to test on."""
    if not isinstance(data, Dataset):
        return data, test
    if test is not None:
        raise ValueError(
            "fit: got a Dataset and test=; the Dataset has a test split. Pass "
            "data.train to test on something else."
        )
    return data.train, data.test


def _check_arguments(
    train: Source,
    own: dict[str, Any],
    *,
    epochs: int,
    patience: int | None,
    tests: Source | None,
) -> None:
    require_source("fit", train)
    if tests is not None:
        require_source("fit: test", tests)
    unset = {"batch_size": None, "shuffle": True, "drop_last": False}
    for name, value in own.items():
        if not is_tensors(train) and value != unset[name]:
            raise ValueError(
                f"fit: got {name}={value!r}; a {type(train).__name__} has made its "
                f"batches already. Leave {name} out, and set it there."
            )
    for name, value in (("epochs", epochs), ("patience", patience)):
        is_count = isinstance(value, int) and not isinstance(value, bool) and value > 0
        if not is_count and not (name == "patience" and value is None):
            raise ValueError(f"fit: got {name}={value!r}; wanted an int >= 1.")
    if patience is not None and tests is None:
        raise ValueError(
            "fit: patience watches the test loss, and one Split has none. Pass the "
            "whole Dataset, or test=, or leave patience out."
        )
