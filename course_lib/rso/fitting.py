"""Whether data, model and loss fit together: found when a search is made."""

from __future__ import annotations

from torch import Tensor, nn

from course_lib.rso.minibatches import Minibatches
from course_lib.rso.modes import Loss, cross_entropy, loss_sum, searched


def check_finite(inputs: Tensor) -> None:
    """Raise ValueError where a training input is not finite."""
    bad = (~inputs.reshape(len(inputs), -1).isfinite().all(1)).nonzero()
    if len(bad):
        raise ValueError(
            f"RSO: {len(bad)} of {len(inputs)} training inputs hold nan or inf; the "
            f"first is number {int(bad[0])}. Remove them, or mend the data."
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


def require_fitting(model: nn.Module, data: Minibatches, loss: Loss) -> None:
    """Raise ValueError unless the model takes the data and the loss its outputs."""
    fewest = min(data.smallest, 8)
    with searched(model):
        for count in {fewest, min(8, len(data.labels))}:
            outputs = _outputs(model, data.inputs[:count])
        if loss is not cross_entropy:  # one's own may count its calls
            return
        if outputs.dim() == 2:
            check_classes(data.labels, outputs.shape[1])
        _check_loss(loss, outputs, data.labels[:count])


def _outputs(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return what the model gives for some samples."""
    try:
        outputs = model(inputs.clone())
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        raise ValueError(
            f"RSO: the model fails on {len(inputs)} samples of shape "
            f"{tuple(inputs.shape[1:])}, {inputs.dtype} ({_brief(error)}). Look at its "
            "first layer, and whether it takes so few samples."
        ) from error
    if not isinstance(outputs, Tensor):
        raise ValueError(
            f"RSO: the model returned a {type(outputs).__name__}; wanted one tensor. "
            "Wrap it in a module that returns the one that the loss is made of."
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
            f"{labels.dtype} ({_brief(error)})."
        ) from error


def _brief(error: BaseException) -> str:
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"
