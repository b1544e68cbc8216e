"""The loop over batches: fit a model, test it, and stop before it breaks."""

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from course_lib.checks import require_ints
from course_lib.data.sets import Dataset
from course_lib.losses import LossCollector
from course_lib.modes import restored_modes
from course_lib.training.batches import (
    Batch,
    Source,
    batches,
    device_of,
    is_tensors,
    require_source,
)
from course_lib.training.checks import (
    BufferCopies,
    call_loss,
    call_model,
    explained,
    needs_closure,
    parts_in_eval_mode,
    require_loss,
    require_optimizer,
    scalar,
)
from course_lib.training.finite import FiniteSteps, read_scalars
from course_lib.training.history import Epoch, History, TrainingError
from course_lib.training.reach import Reach, all_parameters, names_of
from course_lib.trees import require_module

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

    Each step minimizes loss(model(inputs), labels) + penalty(model) + the terms passed
    to `losses.add_loss` during the step, by the model, the loss or `after_forward`.
    The model and its parts end in the modes (train or eval) in which they began.

    A parameter with `requires_grad=False` stays fixed, and so does a part in eval mode
    of a model in train mode (a batch norm whose statistics must not change). If the
    model itself is in eval mode, as after an evaluation, all its parts train.

    A step waits for a GPU once, to see that its numbers are finite. With a fused
    optimizer, such as Adam(..., fused=True), a hundred steps do so together: a failure
    is noticed up to a hundred steps later, and nothing moves meanwhile.

    Args:
        model: takes inputs `(batch, ...)`; each batch is moved to the device of its
            first parameter.
        data: a Dataset, or one of these to train without testing: a Split, a
            TensorDataset, or an iterable that gives batches in each epoch, for example
            a DataLoader. A batch is (inputs, labels), or several inputs and then the
            labels; the model is called with all inputs.
        loss: (outputs, labels) -> scalar mean over the batch, or one number for each
            sample, `(batch,)`, which are averaged.
        optimizer: any torch.optim optimizer over the model's parameters. LBFGS calls
            the model and the loss several times in each step.
        epochs: passes over the data, >= 1.
        batch_size: samples in a step, >= 1; omitted if the data is batches already.
        test: data to test on, if data is no Dataset.
        penalty: model -> scalar added to the loss, for example
            `regularization.penalty`.
        after_forward: called with (model, inputs, outputs) before backward, to pass
            terms from outside the model to `add_loss`, for example
            `vat.virtual_adversarial_loss`. They become columns of the History. Several
            inputs are a tuple.
        after_backward: called with the model between backward and step, for example
            `regularization.add_penalty_gradients_`, the faster form of a penalty.
        patience: stop when the test loss has not improved for this many epochs.
        on_epoch: called with the History after each epoch; a true answer stops.
        seed: of the batches' order, drawn on the CPU.
        shuffle: visit the samples in a new order in each epoch.
        drop_last: skip a last batch that is smaller than the others; a batch norm can't
            train on one sample.
        progress: show a bar; TQDM_DISABLE=1 in the environment hides it too.

    Raises:
        TrainingError: the loss, the penalty, a term or a gradient is not finite. The
            weights and buffers are those before that batch; the error has the History.
        ValueError: an argument is out of range, the loss reaches no parameter of the
            optimizer or compares all pairs of samples by broadcasting, the model or
            the loss fails on a batch, or a term has the name of another column.

    Warns:
        UserWarning: a layer was called, but no loss reached its parameters.
    """
    require_module("fit", model)
    require_loss("fit", loss)
    require_optimizer("fit", optimizer)
    if isinstance(data, Dataset):
        if test is not None:
            raise ValueError(
                "fit: got a Dataset and test=; the Dataset has a test split. Pass "
                "data.train to test on something else."
            )
        data, test = data.train, data.test
    options = {"batch_size": batch_size, "shuffle": shuffle, "drop_last": drop_last}
    _check_arguments(data, test, options, epochs, patience)
    history = History()
    trainer = _Trainer(
        model, loss, optimizer, penalty, after_forward, after_backward, history
    )
    device, generator = device_of(model), torch.Generator().manual_seed(seed)
    hidden = not progress or bool(os.environ.get("TQDM_DISABLE"))
    bar = tqdm(range(1, epochs + 1), unit="epoch", disable=hidden)
    with closing(bar), closing(trainer), restored_modes(model.modules()):
        for number in bar:
            start = time.perf_counter()
            source = batches("fit", data, device, generator=generator, **options)
            terms = trainer.run_epoch(source, number)
            means = terms.pop("loss"), terms.pop("penalty")
            tested = (math.nan, math.nan)
            if test is not None:
                tested = evaluate(model, test, loss=loss)
            seconds = time.perf_counter() - start
            history.epochs.append(Epoch(number, *means, *tested, seconds, terms))
            bar.set_postfix(loss=f"{means[0]:.3g}")
            if _is_stale(history, patience) or (on_epoch and on_epoch(history)):
                break
    return history


@torch.no_grad()
def evaluate(
    model: nn.Module, split: Source, *, loss: Loss, batch_size: int = 1000
) -> tuple[float, float]:
    """Return (mean loss, accuracy) on a split, in eval mode; the modes are restored.

    The accuracy is nan unless the outputs are `(batch, classes)` and the labels are
    class numbers. `split` may be any data without a test split that `fit` takes.
    """
    require_module("evaluate", model)
    require_loss("evaluate", loss)
    require_source("evaluate", split)
    losses, rights, sizes = [], [], []
    options = {"batch_size": batch_size, "shuffle": False}
    # The collector's terms are not used.
    with restored_modes(model.modules()), LossCollector():
        model.eval()
        for batch in batches("evaluate", split, device_of(model), **options):
            outputs = call_model("evaluate", model, batch)
            losses.append(call_loss("evaluate", loss, outputs, batch))
            rights.append(_count_right(outputs, batch.targets))
            sizes.append(batch.size)
    total = sum(
        mean * size for mean, size in zip(read_scalars(losses), sizes, strict=True)
    )
    return total / sum(sizes), sum(read_scalars(rights)) / sum(sizes)


@dataclass
class _Trainer:
    """The steps of an epoch, and the means that the History needs."""

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
        self.buffers = BufferCopies(self.model)
        self.steps = FiniteSteps(self.optimizer)
        self.place = "fit"
        self.totals: dict[str, float] = {}  # over an epoch's samples
        self.last: dict[str, float] = {}  # of the step read last

    def close(self) -> None:
        """Remove what helps to train from the model and the optimizer."""
        self.reach.close()
        self.steps.close()

    def run_epoch(self, batches: Iterator[Batch], epoch: int) -> dict[str, float]:
        """Return the means over the samples of loss, penalty and each term."""
        self.model.train()
        for part in self.frozen:
            part.training = False
        self.totals = {"loss": 0.0, "penalty": 0.0}  # columns of every History
        samples = 0
        for number, batch in enumerate(batches, start=1):
            self.place = f"fit: epoch {epoch}, batch {number}"
            with self._undone_if_it_fails():
                self.buffers.take(unless=self.steps.skips)
                step = self._step_with_closure if self.needs_closure else self._step
                step(batch)
            samples += batch.size
        with self._undone_if_it_fails():
            self._read()
        self.reach.warn()
        return {name: total / samples for name, total in self.totals.items()}

    @contextmanager
    def _undone_if_it_fails(self) -> Iterator[None]:
        """Restore the buffers if this step fails, or one that was not read before."""
        try:
            yield
        except BaseException:  # Ctrl-C as well
            try:
                self._read()
            finally:
                self.buffers.restore()
            raise

    def _step(self, batch: Batch) -> None:
        self._backward(batch)
        if self.steps.is_due:
            self._read()
        with explained(self.place, type(self.optimizer).__name__):
            self.optimizer.step()

    def _step_with_closure(self, batch: Batch) -> None:
        """Let the optimizer compute loss and gradients as often as it needs them."""
        moved = all_parameters(self.optimizer)
        before = [p.detach().clone() for p in moved]
        counted: list[dict[str, float]] = []  # the totals after each call

        def closure() -> float:
            self._backward(batch)
            self._read()
            counted.append(dict(self.totals))
            return sum(self.last.values())

        try:
            self.optimizer.step(closure)
        except Exception:  # perhaps after some updates
            with torch.no_grad():
                torch._foreach_copy_(moved, before)
            raise
        self.totals = counted[0]  # the History has the loss before the step

    def _backward(self, batch: Batch) -> None:
        """Leave gradients in .grad, and note the numbers of the step."""
        parts = self.parts(batch)
        self.reach.note(self.place, parts)
        self.steps.note((self.place, batch.size, tuple(parts)), list(parts.values()))
        if self.steps.is_on_cpu:  # nothing to wait for: before the hook sees gradients
            self._read()
        total, *others = parts.values()
        for part in others:
            total = total + part
        self.optimizer.zero_grad()
        with explained(self.place, "backward", labels=batch.targets):
            total.backward()
        if self.after_backward:
            self.after_backward(self.model)
        moved = [p for p in all_parameters(self.optimizer) if p.grad is not None]
        self.steps.note_gradients((self.place, 0, moved), [p.grad for p in moved])

    def _read(self) -> None:
        """Count the losses noted since the last time; refuse the first failure."""
        for (place, size, names), numbers in self.steps.read():
            values = dict(zip(names, numbers, strict=True))
            if not all(map(math.isfinite, numbers)):
                wrong = _wrong_loss if size else partial(_wrong_gradient, self.model)
                raise TrainingError(f"{place}: {wrong(values)}", self.history)
            if size:
                self.last = values
                for name, value in values.items():
                    self.totals[name] = self.totals.get(name, 0.0) + value * size

    def parts(self, batch: Batch) -> dict[str, Tensor]:
        """Return the scalars to be minimized, by name."""
        with LossCollector() as collector:
            outputs = call_model(self.place, self.model, batch)
            loss = call_loss(self.place, self.loss, outputs, batch)
            parts = {"loss": loss}
            if self.penalty:
                value = self.penalty(self.model)
                parts["penalty"] = scalar(self.place, value, 1, name="penalty")
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


def _wrong_loss(values: dict[str, float]) -> str:
    first, *others = ({"loss": 0.0, "penalty": 0.0} | values).items()
    shown = [f"{name} {value:.4g}" for name, value in others]
    return (
        f"the loss is {first[1]:.4g} and the {' and the '.join(shown)}; wanted finite "
        "numbers. The weights are those before this batch. Lower the learning rate, or "
        "look for nan in the inputs."
    )


def _wrong_gradient(model: nn.Module, marks: dict[Tensor, float]) -> str:
    wrong = [p for p, mark in marks.items() if not math.isfinite(mark)]
    return (
        f"the loss is finite, but the gradient of {', '.join(names_of(model, wrong))} "
        "is not. The weights are those before this batch. Look for a root, a norm or a "
        "logarithm at 0 and for where() around one, or lower the learning rate."
    )


def _count_right(outputs: Any, labels: Any) -> Tensor:
    """Return how many class numbers are right; nan where there are no classes."""
    are_logits = isinstance(outputs, Tensor) and outputs.dim() == 2
    are_logits = are_logits and outputs.shape[1] >= 2
    are_labels = isinstance(labels, Tensor) and labels.dtype in _INTEGERS
    if not (are_logits and are_labels and labels.shape == outputs.shape[:1]):
        return torch.tensor(math.nan)
    return (outputs.argmax(dim=1) == labels).sum()


_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def _is_stale(history: History, patience: int | None) -> bool:
    losses = history["test_loss"]
    if patience is None or len(losses) <= patience:
        return False
    return min(losses[-patience:]) >= min(losses[:-patience])


def _check_arguments(
    train: Source,
    test: Source | None,
    options: dict[str, Any],
    epochs: int,
    patience: int | None,
) -> None:
    require_source("fit", train)
    if test is not None:
        require_source("fit: test", test)
    defaults = {"batch_size": None, "shuffle": True, "drop_last": False}
    for name, value in options.items():
        if not is_tensors(train) and value != defaults[name]:
            raise ValueError(
                f"fit: got {name}={value!r}; a {type(train).__name__} has made its "
                f"batches already. Leave {name} out, and set it there."
            )
    if is_tensors(train) and options["batch_size"] is None:
        raise ValueError("fit: batch_size is missing; for example batch_size=32.")
    require_ints("fit", epochs=epochs)
    if patience is None:
        return
    require_ints("fit", patience=patience)
    if test is None:
        raise ValueError(
            "fit: patience watches the test loss, and one Split has none. Pass the "
            "whole Dataset, or test=, or leave patience out."
        )
