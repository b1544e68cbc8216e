"""Convolutions that lesson 03's exercise `conv` is tried on, and their zeros."""

from dataclasses import dataclass
from typing import Any

from course_lib.lessons.keras_models.files import l1l2

CHANNELS, FILTERS = 2, 3

Pair = tuple[int, int]
Pads = tuple[Pair, Pair]  # (top, bottom), (left, right)


@dataclass(frozen=True)
class Case:
    """One layer, and the images it is tried on."""

    step: str
    size: Pair = (5, 6)
    kernel_size: Pair = (3, 2)
    strides: Pair = (1, 1)
    padding: str = "valid"
    use_bias: bool = False
    activation: str = "linear"
    coefficients: tuple[float, float] | None = None

    @property
    def config(self) -> dict[str, Any]:
        """Return the layer's config, as the file has it."""
        return {
            "name": "conv",
            "filters": FILTERS,
            "kernel_size": list(self.kernel_size),
            "strides": list(self.strides),
            "padding": self.padding,
            "activation": self.activation,
            "use_bias": self.use_bias,
            "kernel_regularizer": self.coefficients and l1l2(*self.coefficients),
        }


CASES = (
    Case("Step 1 of 8, the kernel"),
    Case("Step 2 of 8, the strides", strides=(2, 1)),
    Case("Step 3 of 8, 'same'", kernel_size=(2, 3), padding="same"),
    Case("Step 3 of 8, 'same'", kernel_size=(4, 1), padding="same"),
    Case("Step 4 of 8, 'same' with strides", (9, 8), (3, 3), (2, 3), "same"),
    Case("Step 4 of 8, 'same' with strides", (8, 9), (1, 4), (3, 1), "same"),
    Case("Step 5 of 8, the bias", use_bias=True),
    Case("Step 6 of 8, the activation", use_bias=True, activation="relu"),
    Case("Step 6 of 8, the activation", use_bias=True, activation="tanh"),
)
COSTLY = Case("Step 7 of 8, the regularizer", use_bias=True, coefficients=(0.25, 0.5))
TRAINED = Case(
    "Step 8 of 8, training",
    padding="same",
    use_bias=True,
    activation="tanh",
    coefficients=(0.25, 0.5),
)


def output(case: Case, pads: Pads, strides: Pair | None = None) -> tuple[int, ...]:
    """Return the shape of the output for 2 images with these zeros."""
    sizes = zip(case.size, case.kernel_size, strides or case.strides, pads, strict=True)
    return 2, FILTERS, *((n + sum(pad) - k) // s + 1 for n, k, s, pad in sizes)


def needed(case: Case, *, up: bool = True) -> list[int]:
    """Return the zeros that each axis lacks; below 0 where numbers are left over."""
    axes = zip(case.size, case.kernel_size, case.strides, strict=True)
    return [((-(-n // s) if up else n // s) - 1) * s + k - n for n, k, s in axes]


def floored(case: Case) -> Pads:
    """Return the zeros for a number of windows that is rounded down."""
    height, width = (split(max(n, 0)) for n in needed(case, up=False))
    return height, width


def split(missing: int) -> Pair:
    """Put half of the zeros before and the rest after."""
    return missing // 2, missing - missing // 2


def pads_of(case: Case) -> Pads:
    """Return the zeros of Keras."""
    return ((0, 0), (0, 0)) if case.padding == "valid" else same_pads(case)


def same_pads(case: Case) -> Pads:
    """Return the zeros of Keras with padding "same"."""
    height, width = (split(max(n, 0)) for n in needed(case))
    return height, width
