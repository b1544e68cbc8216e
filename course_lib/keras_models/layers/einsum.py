"""EinsumDense: a dense layer over any axes."""

import re

import torch
from torch import Tensor

from course_lib.keras_models.layers.base import Shape, Weighted, apply, open_sizes
from course_lib.keras_models.registry import keras_layer
from course_lib.keras_models.settings import Settings

_EQUATION = re.compile(
    r"(\.\.\.)?([a-zA-Z]+)(\.\.\.)?,([a-zA-Z]+)->(\.\.\.)?([a-zA-Z]+)(\.\.\.)?"
)


@keras_layer("EinsumDense")
class EinsumDense(Weighted):
    """activation(einsum(equation, x, kernel) + bias).

    Source: keras/src/layers/core/einsum_dense.py at v3.15.1.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.equation = str(settings.take("equation")).replace(" ", "")
        found = _EQUATION.fullmatch(self.equation)
        if found is None or found[1] != found[5] or found[3] != found[7]:
            settings.problem(
                f"equation={self.equation!r:.60}; wanted like 'abc,cd->abd'"
            )
        else:
            self.ahead = found[1] is not None  # the axes that "..." stands for
            self.labels = found[2], found[4], found[6]
        self.output_sizes = open_sizes(settings, "output_shape")
        self.bias_axes = settings.take("bias_axes", None) or ""
        settings.only("lora_rank", None)
        settings.ignore("lora_alpha", "gptq_unpacked_column_size")

    def build(self, shape: Shape) -> None:
        """Make weight, and bias where it has axes."""
        taken, kernel, given = self.labels
        elided = len(shape) - len(taken)
        before = elided if self.ahead else 0
        middle = shape[1:elided] if self.ahead else ()
        full = (shape[0], *middle, *self.output_sizes)
        sizes = dict(zip(given, full[before:], strict=False))
        sizes |= {label: shape[before + i] for i, label in enumerate(taken)}
        self.add("kernel", "weight", tuple(sizes[n] for n in kernel), **self.kernel)
        first = min(map(given.index, self.bias_axes), default=0)
        size = [sizes[n] if n in self.bias_axes else 1 for n in given[first:]]
        size += [1] * (0 if self.ahead else elided)
        self.use_bias = bool(self.bias_axes)
        self.add_bias(*size)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply along the axes that the equation names."""
        y = torch.einsum(self.equation, x, self.weight)
        return apply(self.activation, y if self.bias is None else y + self.bias)
