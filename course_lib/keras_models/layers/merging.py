"""The merge layers, and the modes of Keras 1's Merge."""

from collections.abc import Callable
from functools import reduce
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from course_lib.keras_models.layers.base import Layer, Shape, place_of
from course_lib.keras_models.settings import Settings


class Elementwise(Layer):
    """Add, Subtract, Multiply, Average, Maximum, Minimum; shapes may broadcast."""

    functions: ClassVar[dict[str, Callable[[Tensor, Tensor], Tensor]]] = {
        "Add": torch.add,
        "Average": torch.add,
        "Subtract": torch.sub,
        "Multiply": torch.mul,
        "Maximum": torch.maximum,
        "Minimum": torch.minimum,
    }
    passes_mask = True

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.kind = settings.spec.kind
        self.function = self.functions[self.kind]

    def build(self, *shapes: Shape) -> None:
        """Check that there are two inputs or more, two to subtract."""
        wanted = 2 if self.kind == "Subtract" else max(2, len(shapes))
        if len(shapes) != wanted:
            raise ValueError(f"got {len(shapes)} inputs; wanted {wanted}")

    def settle(self, first: bool, ranks: tuple[int, ...]) -> bool | None:
        """Take either order where all inputs have as many axes."""
        self.wants_first = first and len(set(ranks)) == 1
        return self.wants_first

    def forward(self, *inputs: Tensor) -> Tensor:
        """Merge from the first to the last."""
        rank = max(x.dim() for x in inputs)
        inputs = tuple(_raise(x, rank) for x in inputs)
        if inputs[0].is_meta:  # see apply
            return inputs[0].new_empty(
                torch.broadcast_shapes(*(x.shape for x in inputs))
            )
        total = reduce(self.function, inputs)
        return total / len(inputs) if self.kind == "Average" else total


def _raise(x: Tensor, rank: int) -> Tensor:
    """Give x axes of length 1 after the batch, as Keras does."""
    while x.dim() < rank:
        x = x.unsqueeze(1)
    return x


class Concatenate(Layer):
    """Put the inputs one after another along an axis."""

    passes_mask = True

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.axis = settings.integer("axis", -1, least=-8)

    def settle(self, first: bool, ranks: tuple[int, ...]) -> bool | None:
        """Take either order, and find the axis in it."""
        self.wants_first = first and len(set(ranks)) == 1
        rank = ranks[0]
        if not -rank <= self.axis < rank:
            raise ValueError(f"axis={self.axis}; the inputs have {rank} axes")
        self.place = place_of(self.axis, rank)
        if self.wants_first and self.place:
            self.place = 1 if self.place == rank - 1 else self.place + 1
        return self.wants_first

    def forward(self, *inputs: Tensor) -> Tensor:
        """Concatenate."""
        return torch.cat(inputs, self.place)


class Dot(Layer):
    """Sum the products along one axis of each of two inputs, sample by sample.

    `normalize` scales both to length 1 along these axes first. Keras 1's mode "cos"
    divides by the lengths, and returns one more axis.
    """

    wants_first = False

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        axes = settings.take("axes")
        axes = axes if isinstance(axes, list | tuple) else [axes, axes]
        flat = []
        for axis in axes:  # 0.3 writes [[1], [2]]
            single = isinstance(axis, list | tuple) and len(axis) == 1
            settings.left["axes"] = axis[0] if single else axis
            flat.append(settings.integer("axes", least=-8))
        if len(flat) != 2:
            settings.problem(f"axes={axes!r:.60}; wanted one axis of each input")
            flat = [1, 1]
        self.axes = flat
        self.normalize = settings.flag("normalize", False)
        self.cosine = settings.flag("cosine", False)

    def build(self, *shapes: Shape) -> None:
        """Check the axes."""
        if len(shapes) != 2:
            raise ValueError(f"got {len(shapes)} inputs; wanted 2")
        pairs = zip(self.axes, shapes, strict=True)
        for axis, shape in pairs:
            if not -len(shape) <= axis < len(shape) or axis % len(shape) == 0:
                raise ValueError(f"axes={self.axes} do not fit the shapes {shapes}")

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """(batch, ...), (batch, ...) -> (batch, what is left of both)."""
        i, j = self.axes[0] % x.dim(), self.axes[1] % y.dim()
        if self.normalize:
            x = F.normalize(x, dim=i, eps=1e-6)
            y = F.normalize(y, dim=j, eps=1e-6)
        product = _contract(x, y, i, j)
        if not self.cosine:
            return product.unsqueeze(1) if product.dim() == 1 else product
        lengths = _contract(x, x, i, i) * _contract(y, y, j, j)
        product = product / lengths.sqrt().clamp(min=1e-7)
        return (
            product.reshape(x.shape[0], 1, -1)
            if product.dim() == 1
            else (product.unsqueeze(1))
        )


def _contract(x: Tensor, y: Tensor, i: int, j: int) -> Tensor:
    """Multiply and sum over x's axis i and y's axis j, for each sample."""
    first = list(range(x.dim()))
    second = [0, *range(x.dim(), x.dim() + y.dim() - 1)]
    second[j] = first[i]
    left = [axis for axis in first if axis != i]
    left += [axis for axis in second[1:] if axis != first[i]]
    return torch.einsum(x, first, y, second, left)


def merge_mask(*masks: Tensor) -> Tensor:
    """Return the mask of merged inputs: where all of them count."""
    return reduce(torch.logical_and, masks)
