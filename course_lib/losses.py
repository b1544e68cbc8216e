"""Losses with one value for each sample, their reduction, and named extra terms.

A loss that is averaged too early can be neither weighted nor masked. So the losses here
map `(batch, ...)` to `(batch,)`, and `reduce` makes the scalar. Further terms of the
loss are passed to `add_loss`, from anywhere, and stored by the open `LossCollector`.
"""

import torch
from torch import Tensor
from torch.nn import functional

from course_lib.loss_terms import LossCollector, add_loss
from course_lib.trees import is_transforming, widened

__all__ = [
    "LossCollector",
    "absolute_error",
    "add_loss",
    "binary_cross_entropy",
    "cross_entropy",
    "kl_from_logits",
    "reduce",
    "squared_error",
]


def absolute_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return mean |outputs - targets| over all axes but the first, shape `(batch,)`.

    Args:
        outputs: `(batch, ...)`, floats.
        targets: of the same shape; converted to the outputs' dtype.

    Raises:
        ValueError: the shapes differ (they are not broadcast), no tensors, complex
            numbers, or integer outputs. All losses here refuse complex numbers.

    >>> absolute_error(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.zeros(2, 2))
    tensor([1.5000, 3.5000])
    """
    _require_one_shape("absolute_error", "outputs", outputs, "targets", targets)
    targets = targets.to(outputs.dtype)  # torch's backward fails on two dtypes
    return _mean_of_each(functional.l1_loss(outputs, targets, reduction="none"))


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return mean (outputs - targets)**2 over all axes but the first, `(batch,)`.

    Without a factor 1/2. Arguments and errors are those of `absolute_error`.

    >>> squared_error(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.zeros(2, 2))
    tensor([ 2.5000, 12.5000])
    """
    _require_one_shape("squared_error", "outputs", outputs, "targets", targets)
    targets = targets.to(outputs.dtype)
    return _mean_of_each(functional.mse_loss(outputs, targets, reduction="none"))


def cross_entropy(
    logits: Tensor, labels: Tensor, *, ignore_index: int = -100
) -> Tensor:
    """Return -log softmax(logits)[label] of each sample, in nats, `(batch,)`.

    Labels equal to `ignore_index` don't count, as in torch. If c of n labels count,
    their losses are divided by c / n, so that `reduce` gives their mean; if none
    counts, the loss is 0. Don't mask those labels in `reduce` again: it would divide a
    second time.

    Args:
        logits: `(batch, classes, ...)`, floats; later axes are averaged.
        labels: class numbers `(batch, ...)`, or probabilities of the logits' shape.
        ignore_index: the class number of padding.

    Raises:
        ValueError: logits without an axis of classes; labels of another shape, or out
            of range (on a GPU torch stops the program instead).

    >>> cross_entropy(torch.zeros(2, 4), torch.tensor([0, 3]))  # log 4 each
    tensor([1.3863, 1.3863])
    >>> cross_entropy(torch.zeros(2, 4), torch.tensor([0, -100]))  # mean is log 4
    tensor([2.7726, 0.0000])
    """
    _require_classes("cross_entropy", logits)
    _require_labels(logits, labels)
    if labels.is_floating_point():
        labels = labels.to(logits.dtype)
        values = functional.cross_entropy(logits, labels, reduction="none")
        return _mean_of_each(values)
    labels = labels.long()
    try:
        values = functional.cross_entropy(
            logits, labels, ignore_index=ignore_index, reduction="none"
        )
    except IndexError as error:
        low, high = labels[labels != ignore_index].aminmax()
        raise ValueError(
            f"cross_entropy: got labels from {low} to {high}; wanted 0 to "
            f"{logits.shape[1] - 1}, as the logits have {logits.shape[1]} classes, or "
            f"ignore_index={ignore_index} for those that don't count."
        ) from error
    counted = (labels != ignore_index).sum().clamp(min=1)
    means, share = _mean_of_each(values), labels.numel() / counted
    if means.dtype != torch.float16:
        return means * share.to(means.dtype)
    return (means.float() * share).half()  # where share may be inf, and 0 * inf is nan


def kl_from_logits(logits: Tensor, other: Tensor) -> Tensor:
    """Return KL(p || q) = sum p * log(p / q) of each sample, in nats, `(batch,)`.

    p = softmax(logits) and q = softmax(other), both over the second axis. It is not
    symmetric. Both get a gradient; detach the one that is the target.

    Args:
        logits: `(batch, classes, ...)`, finite; later axes are averaged.
        other: of the same shape, finite.

    Raises:
        ValueError: the shapes differ, or there is no axis of classes.

    >>> sure, even = torch.tensor([[9.0, 0.0]]), torch.zeros(1, 2)
    >>> kl_from_logits(sure, even), kl_from_logits(even, sure)
    (tensor([0.6919]), tensor([3.8070]))
    """
    _require_one_shape("kl_from_logits", "logits", logits, "other", other)
    _require_classes("kl_from_logits", logits)
    log_p, log_q = logits.log_softmax(dim=1), other.log_softmax(dim=1)
    values = functional.kl_div(log_q, log_p, reduction="none", log_target=True)
    return _mean_of_each(values.sum(dim=1))


def binary_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return -t * log p - (1 - t) * log(1 - p), p = sigmoid(logits), `(batch,)`.

    It stays exact where p rounds to 0 or 1. Keras's default takes probabilities, and
    clips them at 1e-7: compare `from_logits=True`.

    Args:
        logits: `(batch, ...)`; all axes but the first are averaged over.
        targets: of the same shape, in [0, 1]: floats, bools, or integers 0 and 1.

    Raises:
        ValueError: the shapes differ (they are not broadcast), or targets on the CPU
            are out of range; on a GPU the check would wait.

    >>> binary_cross_entropy(torch.tensor([0.0, 200.0]), torch.tensor([1.0, 0.0]))
    tensor([  0.6931, 200.0000])
    """
    _require_one_shape("binary_cross_entropy", "logits", logits, "targets", targets)
    _require_shares(targets)
    targets = targets.to(logits.dtype)
    loss = functional.binary_cross_entropy_with_logits
    return _mean_of_each(loss(logits, targets, reduction="none"))


def reduce(
    per_sample: Tensor, *, weights: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """Return one scalar, with Keras's meaning of sample weights and masks.

    sum(weights * losses) / n. Without a mask n is the number of losses, so weights of 2
    double the loss. With a mask n is the number of its True entries, and the other
    losses, even nan, are not part of the sum, which is 0 if nothing remains. (Keras
    adds 1e-7 to that n.) Half precision is added up in float32.

    A masked loss, or its weight, may be nan, as it gets no gradient. But 0 * nan is nan
    in the backward pass through the operations that made this loss: replace inputs of
    theirs that are nan or infinite, too, by `x.where(mask[:, None], 0)`.

    Args:
        per_sample: losses `(batch,)`, or `(batch, time, ...)`.
        weights: numbers of that shape, or of its first axes: `(batch,)` gives one
            weight to all the steps of a sample.
        mask: bools of such a shape; True counts.

    Raises:
        ValueError: shapes that don't fit (they are not broadcast from the right), a
            scalar, no losses, integers, or a mask that is not of bools.

    >>> losses = torch.tensor([1.0, 2.0, 6.0])
    >>> reduce(losses)
    tensor(3.)
    >>> reduce(losses, weights=torch.tensor([1.0, 1.0, 0.0]))  # still / 3
    tensor(1.)
    >>> reduce(losses, mask=torch.tensor([True, True, False]))  # / 2
    tensor(1.5000)

    Source: keras.losses.Loss of Keras 3, reduction "sum_over_batch_size".
    """
    _require_losses(per_sample)
    dtype = per_sample.dtype
    losses = widened(per_sample)
    counts = None if mask is None else _spread("mask", mask, losses)
    if mask is not None and mask.dtype != torch.bool:
        raise ValueError(
            f"reduce: got a mask of {mask.dtype}; wanted bools, True where a loss "
            "counts. Compare first, for example tokens != padding."
        )
    if counts is not None:
        losses = losses.where(counts, 0)
    if weights is not None:
        factors = _spread("weights", weights, losses).to(losses.dtype)
        losses = losses * (factors if counts is None else factors.where(counts, 0))
    if counts is None:
        return losses.mean().to(dtype)
    return (losses.sum() / counts.sum().clamp(min=1)).to(dtype)


# Helpers and checks


def _mean_of_each(values: Tensor) -> Tensor:
    return values if values.dim() == 1 else values.flatten(start_dim=1).mean(dim=1)


def _spread(name: str, factors: Tensor, losses: Tensor) -> Tensor:
    """Return a view of the losses' shape; missing axes are added at the end."""
    _require_real("reduce", **{name: factors})
    if factors.dim() == 0 or factors.shape != losses.shape[: factors.dim()]:
        raise ValueError(
            f"reduce: got {name} of shape {tuple(factors.shape)} for losses of shape "
            f"{tuple(losses.shape)}; wanted the same, or its first axes. For one "
            "number a sample give (batch,)."
        )
    _require_one_device("reduce", "losses", losses, name, factors)
    missing = losses.dim() - factors.dim()
    return factors.reshape(*factors.shape, *[1] * missing).expand_as(losses)


def _require_losses(per_sample: Tensor) -> None:
    _require_real("reduce", losses=per_sample)
    if per_sample.dim() == 0:
        raise ValueError(
            "reduce: got a scalar; wanted a loss for each sample, shape (batch,). "
            "Leave its mean to reduce, or weights and masks come too late."
        )
    if not per_sample.numel():
        raise ValueError(
            f"reduce: got losses of shape {tuple(per_sample.shape)}; the mean of none "
            "is nan. Leave samples out by a mask, which may leave none, and not by "
            "indexing."
        )
    _require_floats("reduce", "losses", per_sample)


def _require_real(place: str, **values: object) -> None:
    for name, value in values.items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"{place}: {name} is of type {type(value).__name__}; wanted a tensor. "
                "torch.as_tensor(...) makes one."
            )
        if value.is_complex():
            raise ValueError(
                f"{place}: {name} is of {value.dtype}; wanted real numbers. Take its "
                ".real, its .abs(), or torch.view_as_real(...), which has both parts."
            )


def _require_floats(place: str, name: str, value: Tensor) -> None:
    if not value.is_floating_point():
        raise ValueError(
            f"{place}: {name} is of {value.dtype}, which has no gradient; wanted "
            "floats. Convert with .float()."
        )


def _require_one_shape(
    place: str, name: str, first: Tensor, other_name: str, second: Tensor
) -> None:
    _require_real(place, **{name: first, other_name: second})
    if first.shape != second.shape or first.dim() == 0:
        raise ValueError(
            f"{place}: {name} has shape {tuple(first.shape)}, {other_name} "
            f"{tuple(second.shape)}; wanted one shape (batch, ...) for both. "
            "Broadcasting (batch, 1) against (batch,) would compare all pairs."
        )
    _require_floats(place, name, first)
    _require_one_device(place, name, first, other_name, second)


def _require_one_device(
    place: str, name: str, first: Tensor, other_name: str, second: Tensor
) -> None:
    if first.device != second.device:
        raise ValueError(
            f"{place}: {name} is on {first.device}, {other_name} on {second.device}. "
            f"Move them: {other_name}.to({str(first.device)!r})."
        )


def _require_shares(targets: Tensor) -> None:
    """Refuse -1 or 2 among targets that have a value and need no wait."""
    if targets.device.type != "cpu" or not targets.numel():
        return
    is_compiling = torch.compiler.is_compiling()
    if targets.dtype == torch.bool or is_compiling or is_transforming():
        return
    low, high = targets.detach().aminmax()
    if low < 0 or high > 1:
        raise ValueError(
            f"binary_cross_entropy: got targets from {low:.3g} to {high:.3g}; wanted "
            "them in [0, 1]. Of -1 and 1 make (targets + 1) / 2."
        )


def _require_classes(place: str, logits: Tensor) -> None:
    _require_real(place, logits=logits)
    if logits.dim() < 2:
        raise ValueError(
            f"{place}: got logits of shape {tuple(logits.shape)}; wanted (batch, "
            "classes, ...). One sample alone needs its batch axis: logits[None]."
        )
    _require_floats(place, "logits", logits)


def _require_labels(logits: Tensor, labels: Tensor) -> None:
    _require_real("cross_entropy", labels=labels)
    _require_one_device("cross_entropy", "logits", logits, "labels", labels)
    numbers = (*logits.shape[:1], *logits.shape[2:])
    wanted = logits.shape if labels.is_floating_point() else numbers
    if labels.shape == wanted and labels.dtype != torch.bool:
        return
    raise ValueError(
        f"cross_entropy: got labels of {labels.dtype} and shape {tuple(labels.shape)} "
        f"for logits of shape {tuple(logits.shape)}; wanted class numbers, integers "
        f"{numbers}, or probabilities, floats {tuple(logits.shape)}. A last axis of "
        "one is removed by labels.squeeze(-1); convert one-hot integers by .float()."
    )
