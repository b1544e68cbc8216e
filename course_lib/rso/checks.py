"""What is checked when a search is made: its arguments, then data, model and loss."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any

from torch import Tensor, nn

from course_lib.data.sets import Split
from course_lib.rso.losses import LOSSES, Loss, cross_entropy, loss_sum
from course_lib.rso.minibatches import KINDS, Minibatches
from course_lib.rso.modes import require_batch_statistics, search_mode
from course_lib.rso.precision import NAMES as PRECISIONS
from course_lib.rso.proposals import SAMPLERS

CHOICES: dict[str, tuple[str, ...]] = {  # of RSO's arguments; the default stands first
    "engine": ("auto", "reference", "cached", "incremental"),
    "minibatches": KINDS,
    "order": ("output_first", "input_first", "random"),
    "sigma": ("measured", "analytic"),
    "sampler": tuple(SAMPLERS),
    "precision": PRECISIONS,
    "loss": tuple(LOSSES),
}
FUNCTIONS = ("sampler", "loss")  # may be functions too


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Raise ValueError at the first argument of RSO that is out of range."""
    model, split = arguments["model"], arguments["split"]
    _require(isinstance(model, nn.Module), "model", model, "an nn.Module")
    _require(isinstance(split, Split), "split", split, "a Split(inputs, labels)")
    for name, known in CHOICES.items():
        value, wanted = arguments[name], f"one of {', '.join(map(repr, known))}"
        if name in FUNCTIONS:
            wanted += ", or a function"
        is_function = name in FUNCTIONS and callable(value)
        _require(is_function or value in known, name, value, wanted)
    for name in ("batch_size", "cycles", "proposals_at_once", "seed"):
        value, is_count = arguments[name], name != "seed"
        is_int = isinstance(value, int) and not isinstance(value, bool)
        is_valid = is_int and (value >= 1 or not is_count)
        _require(is_valid, name, value, "an int" + " >= 1" * is_count)
    for name in ("train_norm", "initialize", "compiled"):
        value = arguments[name]
        _require(isinstance(value, bool), name, value, "True or False")
    final, decay = arguments["final_sigma"], arguments["weight_decay"]
    for name, value in (("final_sigma", final), ("weight_decay", decay)):
        is_number = isinstance(value, Real) and not isinstance(value, bool)
        _require(is_number, name, value, "a number")
    _require(0 < final <= 1, "final_sigma", final, "it in (0, 1]")
    _require(0 <= decay < 1, "weight_decay", decay, "it in [0, 1)")
    if arguments["batch_size"] > len(split):
        raise ValueError(
            f"RSO: got batch_size={arguments['batch_size']}, but the split has "
            f"{len(split)} samples. Take a smaller batch_size."
        )


def _require(is_valid: bool, name: str, value: object, wanted: str) -> None:
    if not is_valid:
        raise ValueError(f"RSO: got {name}={value!r:.80}; wanted {wanted}.")


def check_finite(inputs: Tensor) -> None:
    """Raise ValueError where a training input is not finite."""
    bad = (~inputs.reshape(len(inputs), -1).isfinite().all(1)).nonzero()
    if len(bad):
        raise ValueError(
            f"RSO: {len(bad)} of {len(inputs)} training inputs hold nan or inf; the "
            f"first is number {int(bad[0])}. Remove or correct these inputs."
        )


def check_classes(labels: Tensor, classes: int) -> None:
    """Raise ValueError unless each label is the number of one of the outputs."""
    bad = ((labels < 0) | (labels >= classes)).nonzero()
    if len(bad):
        first = int(bad[0])
        raise ValueError(
            f"RSO: {len(bad)} of {len(labels)} labels lie outside of 0 to "
            f"{classes - 1}, for the model has {classes} outputs; the first is number "
            f"{first}: {int(labels[first])}. Remove these samples, or give the model "
            "as many outputs as there are classes."
        )


def check_fit(model: nn.Module, data: Minibatches, loss: Loss) -> None:
    """Raise ValueError unless the model takes the data and the loss its outputs."""
    check_finite(data.inputs)
    require_batch_statistics(model)
    fewest = min(data.smallest, 8)
    with search_mode(model):
        for count in {fewest, min(8, len(data.labels))}:
            outputs = _outputs(model, data.inputs[:count])
        if loss is not cross_entropy:  # a user's loss may count its calls
            return
        if outputs.dim() == 2:
            check_classes(data.labels, outputs.shape[1])
        _check_loss(loss, outputs, data.labels[:count])


def _outputs(model: nn.Module, inputs: Tensor) -> Tensor:
    try:
        outputs = model(inputs.clone())
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        raise ValueError(
            f"RSO: the model fails on {len(inputs)} samples of shape "
            f"{tuple(inputs.shape[1:])}, {inputs.dtype} ({first_line(error)}). Look at "
            "its first layer, and whether it takes so few samples."
        ) from error
    if not isinstance(outputs, Tensor):
        raise ValueError(
            f"RSO: the model returned a {type(outputs).__name__}; wanted one tensor. "
            "Wrap it in a module that returns the tensor that the loss needs."
        )
    if outputs.shape[:1] != (len(inputs),):
        raise ValueError(
            f"RSO: the model returned shape {tuple(outputs.shape)} for {len(inputs)} "
            "samples; wanted a row for each sample."
        )
    return outputs


def _check_loss(loss: Loss, outputs: Tensor, labels: Tensor) -> None:
    try:
        loss_sum(loss, outputs, labels)
    except (RuntimeError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(
            f"RSO: the loss fails on outputs of shape {tuple(outputs.shape)}, "
            f"{outputs.dtype}, and labels of shape {tuple(labels.shape)}, "
            f"{labels.dtype} ({first_line(error)})."
        ) from error


def first_line(error: BaseException) -> str:
    """Return an error's type and the first line of its message."""
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"
