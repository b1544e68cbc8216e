"""Judge with rounded products, and count the decisions that this changes.

"tf32" rounds what convolutions and linear layers multiply to 10 bits behind the point,
"bf16" to 7; their sums stay in float32. The rest of a pass, and one proposal in
`EVERY`, which is judged in full too, are not rounded.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

NAMES = ("float32", "tf32", "bf16")
EVERY = 32  # proposals
PRODUCTS = (torch.conv2d, F.conv2d, F.linear)


def check_precision(name: str, weights: Tensor) -> None:
    """Raise ValueError where weights can't be judged with this precision."""
    if name == "float32":
        return
    if weights.dtype != torch.float32:
        raise ValueError(
            f"RSO: got precision={name!r} for weights of {weights.dtype}; wanted "
            "float32 ones. Leave precision out."
        )
    if name == "tf32" and weights.device.type != "cuda":
        raise ValueError(
            f"RSO: got precision='tf32' on {weights.device.type}; it is a format of "
            "NVIDIA's GPUs. Take 'bf16', or leave precision out."
        )


class _Rounded(TorchFunctionMode):
    """Multiply in bfloat16."""

    def __torch_function__(
        self,
        function: Callable,
        types: object,
        args: tuple = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if function not in PRODUCTS:
            return function(*args, **kwargs)
        args = tuple(a.bfloat16() if isinstance(a, Tensor) else a for a in args)
        return function(*args, **kwargs).float()


@contextlib.contextmanager
def products(name: str) -> Iterator[None]:
    """Round products; "float32" switches off what torch on a GPU rounds by default."""
    if name not in NAMES:
        raise ValueError(f"products: got {name!r}; wanted one of {', '.join(NAMES)}.")
    settings = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    before = [setting.fp32_precision for setting in settings]
    try:
        for setting in settings:
            setting.fp32_precision = "tf32" if name == "tf32" else "ieee"
        with _Rounded() if name == "bf16" else contextlib.nullcontext():
            yield
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.fp32_precision = value


class Comparison:
    """How many decisions rounding has changed, of those that were judged twice.

    Inside of `products("float32")`.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.seen = self.judged = 0
        self.changed: int | Tensor = 0

    def losses(
        self, judge: Callable[[], Tensor], pick: Callable[[Tensor], int | Tensor]
    ) -> Tensor:
        """Return what `judge` gives, rounded; one in `EVERY` is also judged in full."""
        if self.name == "float32":
            return judge()
        with products(self.name):
            rounded = judge()
        self.seen += 1
        if self.seen % EVERY == 1:
            self.judged += 1
            self.changed = self.changed + (pick(rounded) != pick(judge()))
        return rounded
