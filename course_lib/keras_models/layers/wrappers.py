"""TimeDistributed, Bidirectional, nested models and replacements."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from course_lib.keras_models.initializers import truncated_normal
from course_lib.keras_models.layers.base import (
    Layer,
    MaskRule,
    Shape,
    accepts_mask,
    channels_to_first,
    channels_to_last,
)
from course_lib.keras_models.layers.cells import StackedCells
from course_lib.keras_models.layers.normalization import BatchNormalization
from course_lib.keras_models.layers.recurrent import Recurrent
from course_lib.keras_models.registry import keras_layer
from course_lib.keras_models.settings import Settings


def call_alone(layer: Any, x: Tensor, mask: Tensor | None = None) -> Any:
    """Call a layer inside another, moving channels where it wants them first."""
    options: dict[str, Any] = {}
    if mask is not None:
        options = {"masks": (mask,)} if layer.uses_masks else {"mask": mask}
    moved = layer.wants_first and x.dim() > 2
    y = layer(channels_to_first(x) if moved else x, **options)
    if isinstance(y, tuple) and layer.uses_masks and mask is not None:
        y = y[0]  # a model's output, and behind it that output's mask
    return channels_to_last(y) if moved and y.dim() == x.dim() else y


@keras_layer("TimeDistributed")
class TimeDistributed(Layer):
    """One layer or model, applied to each time step of (batch, steps, ...).

    Since 2.2 the mask reaches the wrapped layer, step by step. Up to 2.15 the output
    has the wrapped layer's mask, or else counts a step where any part of it counts
    (`compute_mask`, keras/layers/wrappers.py at 2.2.0); otherwise it has the input's.

    Keras 3 calls the wrapped layer once a step, so that an activity penalty is a mean
    over the batch for each step, and a batch norm moves its statistics at each
    (`call`, keras/src/layers/rnn/time_distributed.py at v3.15.1). Where there is
    neither, all steps are one batch here, which gives the same.
    """

    passes_mask = True
    group_names = ("layer",)

    def __init__(self, settings: Settings, layer: Layer) -> None:
        super().__init__(settings)
        self.layer = layer
        version = settings.version
        # keras 2.2.4 keras/layers/wrappers.py#L245 and #L305
        self.uses_mask = version >= (2, 2) and (layer.uses_mask or layer.uses_masks)
        self.asks_inside = (2, 2) <= version < (3, 0)

    def build(self, shape: Shape) -> None:
        """Build the wrapped layer for one step."""
        if len(shape) < 3:
            raise ValueError(f"the input has {len(shape)} axes; wanted at least 3")
        self.layer.build((shape[0], *shape[2:]))
        self.layer.settle(False, (len(shape) - 1,))
        parts = list(self.layer.modules())
        # keras v3.15.1 keras/src/layers/rnn/time_distributed.py#L73
        new = self.keras_version >= (3, 0)
        self.costs = new and any(
            getattr(part, "activity", None) is not None for part in parts[1:]
        )
        self.has_statistics = new and any(
            isinstance(part, BatchNormalization) for part in parts
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(batch, steps, ...) -> (batch, steps, ...)."""
        if self.costs or (self.has_statistics and self.training):
            masks = [None] * x.shape[1] if mask is None else mask.unbind(1)
            steps = zip(x.unbind(1), masks, strict=True)
            return torch.stack([call_alone(self.layer, *step) for step in steps], 1)
        inner = None if mask is None else mask.flatten(0, 1)
        y = call_alone(self.layer, x.flatten(0, 1), inner)
        return y.unflatten(0, x.shape[:2])

    def mask_after(self, masked: tuple[bool, ...]) -> MaskRule:
        """Say which mask the steps have."""
        if not self.asks_inside:
            return super().mask_after(masked)
        if masked[0] and not accepts_mask(self.layer):
            raise ValueError(
                f"a mask reaches the {self.layer.keras_class} inside, and Keras "
                f"{self.keras_version} refuses that"
            )
        if self.layer.makes_mask:
            return self._mask_inside
        rule = self.layer.mask_after(masked)
        if rule is None:
            return self._any_part if masked[0] else None
        return self._mask_inside if callable(rule) else rule

    def _any_part(self, x: Tensor, *, masks: tuple[Tensor, ...]) -> Tensor:
        return masks[0].flatten(2).any(-1) if masks[0].dim() > 2 else masks[0]

    def _mask_inside(self, x: Tensor, *, masks: tuple[Tensor | None, ...]) -> Tensor:
        flat = x.flatten(0, 1)
        if self.layer.makes_mask:
            return self.layer.mask(flat).unflatten(0, x.shape[:2])
        rule = self.layer.mask_after(tuple(mask is not None for mask in masks))
        inner = tuple(mask if mask is None else mask.flatten(0, 1) for mask in masks)
        return rule(flat, masks=inner).unflatten(0, x.shape[:2])


_JOIN: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "concat": lambda y, z: torch.cat([y, z], -1),
    "sum": torch.add,
    "mul": torch.mul,
    "ave": lambda y, z: (y + z) / 2,
}


@keras_layer("Bidirectional")
class Bidirectional(Layer):
    """A recurrent layer, and its twin that walks backwards.

    Their outputs are joined by `merge_mode`; None returns both.
    """

    uses_mask = True
    group_names = ("forward_layer", "backward_layer")

    def __init__(
        self, settings: Settings, forward: Layer, backward: Layer | None = None
    ) -> None:
        super().__init__(settings)
        modes = (*_JOIN, None)
        self.mode = settings.take("merge_mode", "concat")
        if self.mode not in modes:
            settings.problem(f"merge_mode={self.mode!r:.60}; wanted one of {modes}")
        kinds = (Recurrent, StackedCells)
        if not isinstance(forward, kinds) or not isinstance(backward, kinds):
            settings.problem(f"wraps a {forward.keras_class}; wanted a recurrent layer")
            return
        if backward.go_backwards == forward.go_backwards:
            settings.problem("both layers walk in the same direction")
        for layer in (forward, backward):
            # A masked step returns 0, whatever the file says:
            # keras v2.15.0 keras/layers/rnn/bidirectional.py#L162
            if settings.version.is_new:
                layer.zero_output = layer.return_sequences
        self.forward_layer, self.backward_layer = forward, backward
        self.passes_mask = forward.passes_mask
        self.masked_outputs = 1 if self.mode else 2

    def build(self, shape: Shape, *states: Shape) -> None:
        """Build both."""
        self.forward_layer.build(shape)
        self.backward_layer.build(shape)

    def forward(
        self, x: Tensor, *states: Tensor, mask: Tensor | None = None
    ) -> Tensor | tuple[Tensor, ...]:
        """Return the joined outputs, then the states if wanted."""
        half = len(states) // 2
        y = self.forward_layer(x, *states[:half], mask=mask)
        z = self.backward_layer(x, *states[half:], mask=mask)
        rest: tuple[Tensor, ...] = ()
        if isinstance(y, tuple):
            (y, *first), (z, *second) = y, z
            rest = (*first, *second)
        if self.forward_layer.return_sequences:
            z = z.flip(1)
        if self.mode is None:
            return (y, z, *rest)
        joined = _JOIN[self.mode](y, z)
        return (joined, *rest) if rest else joined


@keras_layer("SpectralNormalization")
class SpectralNormalization(Layer):
    """A layer whose kernel each training step divides by its spectral norm.

    The norm is v @ W @ u, where u and v come from a few steps of power iteration.
    Outside of training the layer computes with the kernel that it has.
    Source: Miyato et al., "Spectral Normalization for GANs", 2018;
    keras/src/layers/normalization/spectral_normalization.py at v3.15.1.
    """

    group_names = ("layer",)

    def __init__(self, settings: Settings, layer: Layer) -> None:
        super().__init__(settings)
        self.layer = layer
        self.iterations = settings.integer("power_iterations", 1)

    def build(self, *shapes: Shape) -> None:
        """Build the wrapped layer, and make vector_u (1, last axis of its kernel)."""
        self.layer.build(*shapes)
        variables = self.layer.variables
        kernel = variables.get("kernel", variables.get("embeddings"))
        if kernel is None:
            raise ValueError(f"it wraps a {self.layer.keras_class} without a kernel")
        self.kernel = kernel
        size = (1, self._kernel_view().shape[-1])
        start = partial(truncated_normal, mean=0.0, stddev=0.02)
        self.add("vector_u", "vector_u", size, trainable=False, initializer=start)

    def settle(self, first: bool, ranks: tuple[int, ...]) -> None:
        """Take the wrapped layer's order."""
        self.layer.settle(first, ranks)
        self.wants_first = self.layer.wants_first

    def mask_after(self, masked: tuple[bool, ...]) -> MaskRule:
        """Say which mask the output has: Keras leaves the wrapped layer's on it."""
        return self.layer.mask_after(masked)

    def _kernel_view(self) -> Tensor:
        return self.kernel.view(getattr(self.layer, self.kernel.attribute))

    @torch.no_grad()
    def _normalize(self) -> None:
        view, u = self._kernel_view(), self.vector_u
        kernel = view.flatten(0, -2)
        if not bool(kernel.any()):
            return
        for _ in range(self.iterations):
            v = F.normalize(u @ kernel.T, dim=None, eps=1e-6)
            u = F.normalize(v @ kernel, dim=None, eps=1e-6)
        view.div_((v @ kernel @ u.T).squeeze())
        self.vector_u.copy_(u)

    def forward(self, *inputs: Tensor) -> Any:
        """Call the layer; in training, normalize its kernel in place before."""
        if self.training and not inputs[0].is_meta:
            self._normalize()
        return self.layer(*inputs)


class Replacement(Layer):
    """What the caller gave for a layer: a module, or a function of its inputs.

    A Lambda ends masks. Of another class only its author knows what it made of them,
    so its replacement says it, in Keras's word, where a later layer needs the mask:
    `supports_masking = True` for a mask that goes on, False for one that ends.
    """

    ends_mask = True

    def __init__(self, settings: Settings, function: Callable[..., Any]) -> None:
        super().__init__(settings)
        self.function = function
        said = getattr(function, "supports_masking", None)
        if settings.spec.kind == "Lambda" and said is None:
            said = False
        self.said = said

    def mask_after(self, masked: tuple[bool, ...]) -> MaskRule:
        """Return the first input's mask or none, as the replacement says."""
        if not any(masked) or self.said is False:
            return None
        if self.said:
            return 0 if masked[0] else None
        return (
            f"a mask goes into {self.keras_name!r} ({self.keras_class}), and nobody "
            "says whether it comes out. Set supports_masking = True on its "
            "replacement, as Keras's layers do, if the mask goes on; False if it ends"
        )

    def forward(self, *inputs: Tensor) -> Any:
        """Call the replacement with one tensor for each input, in Keras's order."""
        if not inputs[0].is_meta:
            return self.function(*inputs)
        # Only shapes are asked for, but the caller's own weights are real.
        home = next(iter(self.parameters()), torch.empty(0)).device
        result = self.function(*(torch.zeros(x.shape, device=home) for x in inputs))
        if isinstance(result, tuple | list):
            return tuple(part.to("meta") for part in result)
        return result.to("meta")
