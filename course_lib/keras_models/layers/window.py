"""Kernel, strides, dilation and padding: which places of an input a window sees."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from course_lib.keras_models.settings import Settings

Amounts = list[tuple[int, int]]
# torch's functions by the number of dimensions
CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
CONVOLVE_BACK = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
MEAN_POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def same_padding(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """Return (before, after) so that the output has ceil(size / stride) places.

    What is odd goes after, at the bottom and right, as in TensorFlow.

    >>> same_padding(8, 3, 2, 1)
    (0, 1)
    """
    reach = (kernel - 1) * dilation + 1
    total = max((-(-size // stride) - 1) * stride + reach - size, 0)
    return total // 2, total - total // 2


def theano_padding(
    size: int, kernel: int, stride: int, dilation: int, before: int
) -> tuple[int, int]:
    """Return (before, after) where Theano pads `before` on both sides, then cuts.

    Keras pads a fixed number of places for each kernel and cuts the output to
    ceil(size / stride) places; so the first window begins at -before for every size,
    and places behind the last window do not matter.

    >>> theano_padding(8, 3, 2, 1, before=1)
    (1, 0)

    Source: conv2d and pool2d of keras/backend/theano_backend.py, tag 2.2.4.
    """
    reach = (kernel - 1) * dilation + 1
    return before, max((-(-size // stride) - 1) * stride + reach - size - before, 0)


def theano_pool_margin(kernel: int) -> int:
    """Return how many places Keras on Theano pads on each side of a pool.

    Source: pool2d of keras/backend/theano_backend.py, tag 2.2.4.

    >>> [theano_pool_margin(kernel) for kernel in (1, 2, 3, 4, 5)]
    [0, 1, 1, 3, 3]
    """
    return kernel - 2 if kernel > 2 and kernel % 2 else kernel - 1


def pad(x: Tensor, amounts: Amounts, value: float = 0.0) -> Tensor:
    """Pad the last axes by (before, after) each."""
    flat = [amount for pair in reversed(amounts) for amount in pair]
    return F.pad(x, flat, value=value) if any(flat) else x


def fit(x: Tensor, places: Amounts) -> Tensor:
    """Return the part (start, length) of each of the last axes; 0 behind their end."""
    sizes = x.shape[-len(places) :]
    ends = [start + length for start, length in places]
    pairs = zip(ends, sizes, strict=True)
    x = pad(x, [(0, max(end - size, 0)) for end, size in pairs])
    for axis, (start, length) in enumerate(places, start=-len(places)):
        x = x.narrow(axis, start, length)
    return x


class Window:
    """Kernel, strides, dilation and padding, and the meaning of "same".

    Attributes:
        on_theano: "same" is Theano's, not TensorFlow's; see `use_theano`.
        cuts: Theano's output is cut to ceil(size / stride) places; see
            `theano_padding`. Not so in some layers of some versions.
        theano_differs: False where "same" is the same on Theano.
        symmetric: the padding where it is the same on both sides for every input, so
            that torch's own functions do it; else None.
    """

    def __init__(self, settings: Settings, dims: int, *, pool: bool = False) -> None:
        modes = ["valid", "same"]
        self.pool = pool
        self.on_theano = False
        self.cuts = self.theano_differs = True
        if pool:
            self.kernel = settings.integers("pool_size", dims, 2)
            if settings.left.get("strides") is None:
                settings.left["strides"] = list(self.kernel)
            self.strides = settings.integers("strides", dims)
            self.dilation = (1,) * dims
        else:
            self.kernel = settings.integers("kernel_size", dims)
            self.strides = settings.integers("strides", dims, 1)
            self.dilation = settings.integers("dilation_rate", dims, 1)
            modes += ["causal"] if dims == 1 else []
        self.mode = settings.choice("padding", modes, "valid")
        self.symmetric = self._symmetric()

    def use_theano(self) -> None:
        """Take Theano's meaning of "same"."""
        self.on_theano = self.theano_differs
        self.symmetric = self._symmetric()

    @property
    def reach(self) -> tuple[int, ...]:
        """Return how many places the kernel spans in each direction."""
        pairs = zip(self.kernel, self.dilation, strict=True)
        return tuple((kernel - 1) * dilation + 1 for kernel, dilation in pairs)

    @property
    def margins(self) -> tuple[int, ...]:
        """Return how many places Theano pads on each side for "same"."""
        if self.pool:
            return tuple(map(theano_pool_margin, self.kernel))
        return tuple(reach // 2 for reach in self.reach)

    def _symmetric(self) -> tuple[int, ...] | None:
        if self.mode == "valid":
            return (0,) * len(self.kernel)
        if self.mode != "same":
            return None
        if self.on_theano and not self.cuts:
            return self.margins
        middle = tuple(reach // 2 for reach in self.reach)
        if not all(reach % 2 for reach in self.reach):
            return None
        if self.on_theano:
            return middle if middle == self.margins else None
        return middle if max(self.strides) == 1 else None

    def amounts(self, sizes: torch.Size) -> Amounts:
        """Return (before, after) for each axis of an input of these sizes."""
        if self.mode == "valid":
            return [(0, 0)] * len(sizes)
        if self.mode == "causal":
            return [((self.kernel[0] - 1) * self.dilation[0], 0)]
        parts = zip(sizes, self.kernel, self.strides, self.dilation, strict=True)
        if not self.on_theano:
            return [same_padding(*part) for part in parts]
        if not self.cuts:
            return [(margin, margin) for margin in self.margins]
        pairs = zip(parts, self.margins, strict=True)
        return [theano_padding(*part, before=margin) for part, margin in pairs]

    def pad(self, x: Tensor, value: float = 0.0) -> Tensor:
        """Pad (batch, channels, ...)."""
        return pad(x, self.amounts(x.shape[2:]), value)


def use_theano(modules: Iterable[nn.Module]) -> None:
    """Let these modules compute, and their windows pad, as Keras did on Theano."""
    for module in modules:
        if hasattr(module, "on_theano"):
            module.on_theano = True
        for value in vars(module).values():
            if isinstance(value, Window):
                value.use_theano()
