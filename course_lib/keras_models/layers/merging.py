"""The merge layers, and the modes of Keras 1's Merge, and their masks.

| | 0.3 | 1 and 2, tf.keras | 3.0 - 3.3 | since 3.4 |
|---|---|---|---|---|
| Add and the like | none | AND of all masks | none | OR; none if one is missing |
| Concatenate | none | joined as the numbers are, AND | none | joined, OR |
| Dot | none | none | none | none |

Up to 3.3 `Layer.__call__` asked the list of inputs itself for a mask
(keras/src/layers/layer.py at v3.3.3); the rules since are those of v3.4.0's
keras/src/layers/merging. There Multiply, Maximum and Minimum also leave a masked step
of one input out of their values.
"""

from collections.abc import Callable
from functools import reduce

import torch
from torch import Tensor
from torch.nn import functional as F

from course_lib.keras_models.layers.base import (
    Joining,
    Layer,
    MaskRule,
    Shape,
    channels_to_last,
    drops_masks_of_lists,
    place_of,
)
from course_lib.keras_models.registry import keras_layer
from course_lib.keras_models.settings import Settings
from course_lib.keras_models.spec import Version

Masks = tuple[Tensor | None, ...]
_MASKED_VALUES = ("Multiply", "Maximum", "Minimum")
_FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": torch.add,
    "Average": torch.add,
    "Subtract": torch.sub,
    "Multiply": torch.mul,
    "Maximum": torch.maximum,
    "Minimum": torch.minimum,
}


@keras_layer(*_FUNCTIONS)
class Elementwise(Joining):
    """Add, Subtract, Multiply, Average, Maximum, Minimum; shapes may broadcast."""

    ends_mask = True

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.kind = settings.spec.kind
        self.function = _FUNCTIONS[self.kind]
        # keras v3.4.1 keras/src/layers/merging/multiply.py#L34
        self.uses_masks = settings.version >= (3, 4) and self.kind in _MASKED_VALUES

    def build(self, *shapes: Shape) -> None:
        """Check that there are two inputs or more, two to subtract."""
        wanted = 2 if self.kind == "Subtract" else max(2, len(shapes))
        if len(shapes) != wanted:
            raise ValueError(f"got {len(shapes)} inputs; wanted {wanted}")

    def mask_after(self, masked: tuple[bool, ...]) -> MaskRule:
        """Return AND of the masks, in Keras 3 none or OR."""
        if _drops_masks(self.keras_version) or not any(masked):
            return None
        if self.keras_version < (2, 0) and self.kind == "Maximum":
            # keras 1.2.2 keras/engine/topology.py#L1492
            raise ValueError("a mask reaches it, and Keras 1 has no rule for it")
        if self.keras_version < (3, 0):  # keras 2.2.4 keras/layers/merge.py#L184
            return all_of if sum(masked) > 1 else masked.index(True)
        return any_of if all(masked) else None

    def forward(self, *inputs: Tensor, masks: Masks = ()) -> Tensor:
        """Merge from the first to the last."""
        rank = max(x.dim() for x in inputs)
        raised = [_raise(x, rank) for x in inputs]
        if any(mask is not None for mask in masks) and not inputs[0].is_meta:
            # An input that got another axis is another tensor, without its mask.
            pairs = zip(inputs, masks, strict=True)
            wide = [self._beside(x, m) if x.dim() == rank else None for x, m in pairs]
            return self._merge_masked(raised, wide)
        if raised[0].is_meta:  # see apply
            shape = torch.broadcast_shapes(*(x.shape for x in raised))
            return raised[0].new_empty(shape)
        total = reduce(self.function, raised)
        return total / len(inputs) if self.kind == "Average" else total

    def _beside(self, x: Tensor, mask: Tensor | None) -> Tensor | None:
        """Return a mask as wide as its input."""
        if mask is None:
            return None
        return mask.unsqueeze(1 if self.wants_first else -1).expand_as(x)

    def _merge_masked(self, inputs: list[Tensor], masks: list[Tensor | None]) -> Tensor:
        """Merge the numbers that count; where none does, Multiply returns 0."""
        if self.kind == "Multiply":
            pairs = zip(inputs, masks, strict=True)
            parts = [x if m is None else x.masked_fill(~m, 1) for x, m in pairs]
            total = reduce(torch.mul, parts)
            whole = all(mask is not None for mask in masks)
            return total * any_of(masks=tuple(masks)) if whole else total
        total, counts = inputs[0], masks[0]
        for x, mask in zip(inputs[1:], masks[1:], strict=True):
            x = x if mask is None else torch.where(mask, x, total)
            total = total if counts is None else torch.where(counts, total, x)
            both = mask is not None and counts is not None
            counts = counts | mask if both else None
            total = self.function(total, x)
        return total


def _drops_masks(version: Version) -> bool:
    # keras 1.0.8 keras/engine/topology.py#L1381 has the first rule
    return version < (1, 0) or drops_masks_of_lists(version)


def all_of(*inputs: Tensor, masks: Masks) -> Tensor:
    """Return where every mask counts; an input without one counts everywhere."""
    return reduce(torch.logical_and, [mask for mask in masks if mask is not None])


def any_of(*inputs: Tensor, masks: Masks) -> Tensor:
    """Return where any of the masks counts."""
    return reduce(torch.logical_or, [mask for mask in masks if mask is not None])


def _raise(x: Tensor, rank: int) -> Tensor:
    """Give x axes of length 1 after the batch, as Keras does."""
    while x.dim() < rank:
        x = x.unsqueeze(1)
    return x


@keras_layer("CustomScaleLayer")
class CustomScaleLayer(Joining):
    """x + scale * y, of InceptionResNetV2."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.scale = settings.number("scale")

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Add the scaled path to the other."""
        return torch.add(x, y, alpha=self.scale)


@keras_layer("Concatenate")
class Concatenate(Joining):
    """Put the inputs one after another along an axis."""

    ends_mask = True

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.axis = settings.integer("axis", -1, least=-8)

    def build(self, *shapes: Shape) -> None:
        """Note how many features each input has."""
        self.sizes = [shape[-1] for shape in shapes]

    def settle(self, first: bool, ranks: tuple[int, ...]) -> None:
        """Take either order, and find the axis in it."""
        super().settle(first, ranks)
        rank = ranks[0]
        self.place = place_of(self.axis, rank)
        self.is_last = self.place == rank - 1
        if self.wants_first and self.place:
            self.place = 1 if self.is_last else self.place + 1

    def mask_after(self, masked: tuple[bool, ...]) -> MaskRule:
        """Return the masks joined as the numbers are; up to 3.3 none in Keras 3."""
        # keras v3.4.1 keras/src/layers/merging/concatenate.py#L121
        new = self.keras_version >= (3, 0)
        if _drops_masks(self.keras_version) or not any(masked):
            return None
        unmasked = [n for n, has in zip(self.sizes, masked, strict=True) if not has]
        if not new and not self.is_last and any(size != 1 for size in unmasked):
            raise ValueError(
                "one input is masked and another is not, and Keras "
                f"{self.keras_version} can't join their masks along axis {self.axis}"
            )
        return self._join_masks

    def _join_masks(self, *inputs: Tensor, masks: Masks) -> Tensor:
        # keras v3.4.1 keras/src/layers/merging/concatenate.py#L121
        new = self.keras_version >= (3, 4)
        if self.wants_first:
            inputs = tuple(map(channels_to_last, inputs))
        wide = []
        for x, mask in zip(inputs, masks, strict=True):
            part = torch.ones_like(x, dtype=torch.bool) if mask is None else mask
            if part.dim() < x.dim():
                part = part.unsqueeze(-1)
                part = part.expand_as(x) if new else part
            wide.append(part)
        joined = torch.cat(wide, self.axis)
        return joined.any(-1) if new else joined.all(-1)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Concatenate."""
        return torch.cat(inputs, self.place)


@keras_layer("Dot")
class Dot(Layer):
    """Sum the products along one axis of each of two inputs, sample by sample.

    `normalize` scales both to length 1 along these axes first. Keras 1's mode "cos"
    divides by the lengths, and returns one more axis.
    """

    ends_mask = True

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
        """(batch, ...), (batch, ...) -> (batch, the other axes of both)."""
        i, j = self.axes[0] % x.dim(), self.axes[1] % y.dim()
        if self.normalize:
            x = F.normalize(x, dim=i, eps=1e-6)
            y = F.normalize(y, dim=j, eps=1e-6)
        product = _contract(x, y, i, j)
        if product.dim() == 1:
            product = product.unsqueeze(1)
        if not self.cosine:
            return product
        lengths = _contract(x, x, i, i) * _contract(y, y, j, j)
        return (product / lengths.sqrt().clamp(min=1e-7).view_as(product)).unsqueeze(1)


def _contract(x: Tensor, y: Tensor, i: int, j: int) -> Tensor:
    """Multiply and sum over x's axis i and y's axis j, for each sample."""
    first = list(range(x.dim()))
    second = [0, *range(x.dim(), x.dim() + y.dim() - 1)]
    second[j] = first[i]
    left = [axis for axis in first if axis != i]
    left += [axis for axis in second[1:] if axis != first[i]]
    return torch.einsum(x, first, y, second, left)
