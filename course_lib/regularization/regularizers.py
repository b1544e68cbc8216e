"""Regularizers, which compute the penalty of one tensor: of weights or an output."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import reduce
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor

from course_lib.trees import widened


@dataclass(frozen=True)
class L1L2:
    """The penalty l1 * sum |w| + l2 * sum w**2 of one tensor.

    With `norm="euclidean"` the second term is l2 * sqrt(sum w**2), whose gradient has
    length l2 however small w is. There is no factor 1/2: the squared form's gradient is
    2 * l2 * w.

    Args:
        l1: coefficient of the absolute values, finite and >= 0.
        l2: coefficient of the squares (or of the norm), finite and >= 0.
        norm: `"squared"`, Keras's meaning, or `"euclidean"`.

    Raises:
        ValueError: a coefficient is negative or not finite; an unknown norm; a call
            on a tensor that is not of a real floating-point type.

    >>> L1L2(l1=0.5, l2=0.1)(torch.tensor([3.0, -4.0]))
    tensor(6.)
    >>> L1L2(l2=0.1, norm="euclidean")(torch.tensor([3.0, -4.0]))
    tensor(0.5000)

    Source: keras.regularizers.L1L2.
    """

    l1: float = 0.0
    l2: float = 0.0
    norm: Literal["squared", "euclidean"] = field(default="squared", kw_only=True)

    def __post_init__(self) -> None:
        for name, value in (("l1", self.l1), ("l2", self.l2)):
            _require_coefficient(name, value)
            if type(value) not in (int, float):  # NumPy's print and pickle otherwise
                object.__setattr__(self, name, float(value))
        if self.norm not in ("squared", "euclidean"):
            raise ValueError(
                f"L1L2: got norm={self.norm!r}; wanted 'squared' or 'euclidean'. "
                "Keras squares."
            )

    def __call__(self, tensor: Tensor) -> Tensor:
        """Return the penalty, a scalar; of half precision in float32, as sums grow."""
        require_real("L1L2", tensor)
        tensor = widened(tensor)
        total = tensor.new_zeros(())
        if self.l1:
            total = total + self.l1 * tensor.abs().sum()
        if self.l2 and self.norm == "squared":
            total = total + self.l2 * tensor.square().sum()
        elif self.l2:
            total = total + self.l2 * torch.linalg.vector_norm(tensor)
        return total

    def gradient(self, tensor: Tensor, scale: float | Tensor = 1.0) -> Tensor:
        """Return scale * gradient by `tensor`, in its dtype; 0 at kinks."""
        require_real("L1L2", tensor)
        terms = [
            direction * (coefficient * scale)  # the numbers first: one pass, not two
            for coefficient, direction in self.directions(tensor)
        ]
        if not terms:
            return torch.zeros_like(tensor)
        return reduce(torch.add, terms).to(tensor.dtype)

    def directions(self, tensor: Tensor) -> Iterator[tuple[float, Tensor]]:
        """Yield (coefficient, direction) of each term; their products add up to it."""
        tensor = widened(tensor)
        if self.l1:
            yield self.l1, tensor.sign()
        if self.l2 and self.norm == "squared":
            yield 2 * self.l2, tensor
        elif self.l2:
            length = torch.linalg.vector_norm(tensor)
            yield self.l2, tensor / length.clamp(min=torch.finfo(length.dtype).tiny)


@dataclass(frozen=True)
class Activity:
    """The penalty of a module's output, added up over the batch and perhaps averaged.

    Args:
        regularizer: gives the penalty of one output tensor.
        reduction: `"mean"` divides by the batch size (Keras 2.15 and 3), the length of
            the first axis, so an LSTM needs `batch_first=True`; `"sum"` does not (Keras
            1.0 to 2.2), so the penalty grows with the batch.

    Raises:
        ValueError: not an L1L2, or an unknown reduction.

    >>> outputs = torch.tensor([[1.0, 2.0], [3.0, 4.0]])  # (batch, features)
    >>> Activity(L1L2(l1=1.0))(outputs)
    tensor(5.)
    >>> Activity(L1L2(l1=1.0), reduction="sum")(outputs)
    tensor(10.)
    """

    regularizer: L1L2
    reduction: Literal["mean", "sum"] = field(default="mean", kw_only=True)

    def __post_init__(self) -> None:
        require_l1l2("Activity", "regularizer", self.regularizer)
        if self.reduction not in ("mean", "sum"):
            raise ValueError(
                f"Activity: got reduction={self.reduction!r}; wanted 'mean' (over the "
                "batch, as in Keras 3) or 'sum' (as in Keras 1)."
            )

    def __call__(self, output: Any) -> Tensor:
        """Return the penalty of an output `(batch, ...)`, or of a tuple's first one."""
        if isinstance(output, tuple) and output:  # an LSTM's (outputs, state)
            output = output[0]
        if not isinstance(output, Tensor) or output.dim() == 0:
            raise ValueError(
                f"activity regularizer: the module returned {type(output).__name__}; "
                "wanted a tensor (batch, ...), or a tuple that begins with one."
            )
        total = self.regularizer(output)
        return total / max(1, len(output)) if self.reduction == "mean" else total


def _require_coefficient(name: str, value: object) -> None:
    if not isinstance(value, Real) or isinstance(value, bool):
        raise ValueError(
            f"L1L2: got {name}={value!r}; wanted a finite float >= 0, a plain number. "
            "float(...) makes one of an array or a tensor that holds one."
        )
    number = value if isinstance(value, int) else float(value)  # of float32, too
    if not 0 <= number <= sys.float_info.max:
        raise ValueError(
            f"L1L2: got {name}={value!r}; wanted a finite float >= 0. "
            "A negative or infinite coefficient would reward large weights."
        )


def require_l1l2(place: str, name: str, regularizer: object) -> None:
    """Raise ValueError unless it is an L1L2."""
    if not isinstance(regularizer, L1L2):
        raise ValueError(
            f"{place}: got {name}={regularizer!r}; wanted an L1L2, for example "
            f"{name}=L1L2(l2=1e-3)."
        )


def require_real(place: str, tensor: object) -> None:
    """Raise ValueError unless it is a tensor of real floating-point numbers."""
    if not isinstance(tensor, Tensor):
        got, wanted = type(tensor).__name__, "a tensor of floating-point numbers."
    elif tensor.is_complex():
        got = f"a tensor of {tensor.dtype}"
        wanted = (
            "floating-point numbers that are real. In a loss penalize "
            "torch.view_as_real(weight); .float() would drop the imaginary parts."
        )
    elif not tensor.is_floating_point():
        got = f"a tensor of {tensor.dtype}"
        wanted = (
            "floating-point numbers, since a penalty needs a gradient. Convert it with "
            ".float()."
        )
    else:
        return
    raise ValueError(f"{place}: got {got}; wanted {wanted}")
