"""The small networks of the lessons, and modules that combine others."""

import functools
import inspect
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from course_lib.checks import is_int


def mlp(sizes: Sequence[int] = (64, 32, 10), *, dropout: float = 0.0) -> nn.Sequential:
    """Fully connected layers of the given sizes, ReLU between them.

    Inputs `(batch, ...)` are flattened to `(batch, sizes[0])`; the outputs
    `(batch, sizes[-1])` are logits.

    Args:
        sizes: input, hidden and output widths; at least two ints >= 1.
        dropout: probability in [0, 1) of dropping each hidden unit; 0 adds no layer.

    Raises:
        ValueError: an argument out of range.

    >>> [tuple(p.shape) for p in mlp((64, 32, 10)).parameters()]
    [(32, 64), (32,), (10, 32), (10,)]
    """
    _check_positive("mlp", "sizes", sizes)
    if len(sizes) < 2:
        raise ValueError(
            f"mlp: got sizes={tuple(sizes)}; wanted at least an input and an output "
            "width, for example mlp((64, 10))."
        )
    if not 0 <= dropout < 1:
        raise ValueError(f"mlp: got dropout={dropout}; wanted a number in [0, 1).")
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise(sizes[:-1]):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
        layers += [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))


def small_cnn(
    size: int = 8,
    channels: int = 1,
    classes: int = 10,
    *,
    widths: Sequence[int] = (8, 16),
    norm: bool = False,
) -> nn.Sequential:
    """A 3x3 convolution, ReLU and 2x2 max pooling for each width, then a linear layer.

    Takes `(batch, channels, size, size)`, returns logits `(batch, classes)`.

    Args:
        size: height and width of the images; at least 2 for each pooling.
        channels: input channels, 1 for gray images.
        classes: number of logits.
        widths: output channels of the convolutions.
        norm: batch norm after each convolution, in place of its bias.

    Raises:
        ValueError: a number below 1, or images too small for the poolings.

    >>> sum(p.numel() for p in small_cnn().parameters())
    1898
    """
    _check_positive("small_cnn", "widths", widths)
    _check_positive("small_cnn", "size, channels, classes", (size, channels, classes))
    left = size // 2 ** len(widths)  # height and width after the last pooling
    if left < 1:
        raise ValueError(
            f"small_cnn: images of {size}x{size} vanish after {len(widths)} poolings. "
            "Take fewer widths or larger images."
        )
    layers: list[nn.Module] = []
    for before, after in pairwise((channels, *widths)):
        conv = nn.Conv2d(before, after, kernel_size=3, padding=1, bias=not norm)
        between = [nn.BatchNorm2d(after)] if norm else []
        layers += [conv, *between, nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(widths[-1] * left * left, classes)
    )


def rso_mnist_cnn(
    *, width: int = 16, channels: int = 1, classes: int = 10, pooling: str = "max"
) -> nn.Sequential:
    """Six 3x3 convolutions, each with batch norm, global pooling, a linear layer.

    Takes `(batch, channels, height, width)` of at least 4x4, returns logits. Nothing
    has a bias; 2x2 average pooling follows convolutions 2 and 4, and ReLU all batch
    norms but the last.

    Args:
        width: channels of each convolution.
        channels: input channels, 1 for gray images.
        classes: number of logits.
        pooling: the global one: "max" as in the authors' code, or "average".

    Raises:
        ValueError: a number below 1, or another pooling.

    >>> model = rso_mnist_cnn()
    >>> norms = [layer for layer in model if isinstance(layer, nn.BatchNorm2d)]
    >>> [sum(p.numel() for p in m.parameters()) for m in (model, nn.ModuleList(norms))]
    [12016, 192]

    Source: Tripathi and Singh 2020, arXiv:2005.05955, and the authors' code.
    """
    _require_rso("rso_mnist_cnn", width, channels, classes, pooling)
    layers: list[nn.Module] = []
    for number in range(1, 7):
        fan_in = channels if number == 1 else width
        layers.append(nn.Conv2d(fan_in, width, 3, padding=1, bias=False))
        layers += [nn.AvgPool2d(2)] if number in (2, 4) else []
        layers.append(nn.BatchNorm2d(width))
        layers += [nn.ReLU()] if number < 6 else []
    head = nn.Linear(width, classes, bias=False)
    return nn.Sequential(*layers, _GLOBAL_POOLING[pooling](1), nn.Flatten(), head)


class RSOCifar10CNN(nn.Module):
    """Nine 3x3 convolutions in a row with additions across each second one.

    With x_i the output of batch norm i, without ReLU:

        x_i = norm(pool(conv(relu(x_(i-1))) + shortcut(x_(i-2)))),  i = 1..9,

    with the shortcut at i = 3, 5, 7, 9 only: the identity or, if the channels grow, a
    1x1 convolution with batch norm; the 2x2 average pooling is at i = 3, 5. Global
    pooling and a linear layer follow. Nothing has a bias.

    Takes `(batch, channels, height, width)` of at least 4x4, returns logits.

    Args:
        width: channels of the first three convolutions; the others have twice as many.
        channels: input channels.
        classes: number of logits.
        pooling: the global one: "max" as in the authors' code, or "average".

    Raises:
        ValueError: a number below 1, or another pooling.

    >>> model = RSOCifar10CNN()
    >>> sum(p.numel() for p in model.parameters() if p.dim() > 1)
    56560

    Source: Tripathi and Singh 2020, arXiv:2005.05955, and the authors' code.
    """

    def __init__(
        self,
        *,
        width: int = 16,
        channels: int = 3,
        classes: int = 10,
        pooling: str = "max",
    ) -> None:
        _require_rso("RSOCifar10CNN", width, channels, classes, pooling)
        super().__init__()
        widths = [channels, *[width] * 3, *[2 * width] * 6]
        self.convs = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=1, bias=False)
            for before, after in pairwise(widths)
        )
        self.norms = nn.ModuleList(map(nn.BatchNorm2d, widths[1:]))
        self.widen = nn.Sequential(
            nn.Conv2d(width, 2 * width, 1, bias=False), nn.BatchNorm2d(2 * width)
        )
        self.relu, self.halve = nn.ReLU(), nn.AvgPool2d(2)
        self.pool = _GLOBAL_POOLING[pooling](1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(2 * width, classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, `(batch, classes)`."""
        before = x
        layers = zip(self.convs, self.norms, strict=True)
        for number, (conv, norm) in enumerate(layers, start=1):
            y = conv(self.relu(x) if number > 1 else x)
            if number in (3, 5, 7, 9):
                y = y + (self.widen(before) if number == 5 else before)
            if number in (3, 5):
                y = self.halve(y)
            before, x = x, norm(y)
        return self.linear(self.flatten(self.pool(x)))


_GLOBAL_POOLING = {"max": nn.AdaptiveMaxPool2d, "average": nn.AdaptiveAvgPool2d}


def _require_rso(
    place: str, width: int, channels: int, classes: int, pooling: str
) -> None:
    numbers = (width, channels, classes)
    _check_positive(place, "width, channels, classes", numbers)
    if pooling not in _GLOBAL_POOLING:
        raise ValueError(
            f"{place}: got pooling={pooling!r}; wanted 'max' or 'average'."
        )


class Lambda(nn.Module):
    """A function as a module: a transformation of samples without weights.

    The first axis is the batch, and the output's must be as long as the first input's:
    `x[:5]` takes five samples, `x[:, :5]` the first five features of each. Weights that
    the function uses are not the module's: no optimizer and no state_dict sees them.

    Args:
        function: tensors `(batch, ...)` -> a tensor `(batch, ...)`, or a tuple of such.
            It can be pickled with the module if a file defines it by a name.
        name: shown by repr, as a lambda expression has no name.

    Raises:
        ValueError: not a function, or a module, which needs no wrapper; and at a call,
            if the output has another batch size.

    >>> Lambda(torch.tanh), Lambda(lambda x: x[:, :5], name="first five")
    (Lambda(tanh), Lambda(first five))
    >>> Lambda(lambda x: x[:, :5])(torch.zeros(2, 10)).shape
    torch.Size([2, 5])
    """

    def __init__(self, function: Callable, *, name: str | None = None) -> None:
        super().__init__()
        if isinstance(function, nn.Module) or not callable(function):
            raise ValueError(
                f"Lambda: got a {type(function).__name__}; wanted a function of "
                "tensors, for example torch.tanh. A module is used as it is."
            )
        self.function, self.name = function, name

    def forward(self, *inputs: Any) -> Any:
        """Return function(*inputs)."""
        outputs = self.function(*inputs)
        first = inputs[0] if inputs else None
        for output in outputs if isinstance(outputs, tuple) else (outputs,):
            shape = tuple(output.shape) if isinstance(output, Tensor) else None
            if isinstance(first, Tensor) and (not shape or shape[0] != len(first)):
                got = type(output).__name__ if shape is None else f"shape {shape}"
                raise ValueError(
                    f"{self!r}: the input has shape {tuple(first.shape)}, the output "
                    f"is {got}; wanted a tensor ({len(first)}, ...), as the first axis "
                    "is the batch. Index the features behind it: x[:, :5]."
                )
        return outputs

    def extra_repr(self) -> str:
        """Return the function's name, for repr."""
        return self.name or _function_name(self.function)


def _function_name(function: Callable) -> str:
    if isinstance(function, functools.partial):
        given = [*map(repr, function.args)]
        given += [f"{key}={value!r}" for key, value in function.keywords.items()]
        return f"partial({', '.join([_function_name(function.func), *given])})"
    name = getattr(function, "__name__", repr(function))
    if name == "<lambda>":
        return f"lambda {', '.join(inspect.signature(function).parameters)}: ..."
    return name


class Shared(nn.Module):
    """One bundle of layers called on each of several inputs: one set of weights.

    The gradients of all calls add up. The inputs are not joined: they may differ in
    batch size, and batch norm normalizes each by itself.

    Args:
        bundle: any module of one input.

    >>> encode = Shared(nn.Sequential(nn.Linear(4, 2), nn.ReLU()))
    >>> left, right = encode(torch.zeros(3, 4), torch.ones(5, 4))
    >>> left.shape, right.shape, sum(p.numel() for p in encode.parameters())
    (torch.Size([3, 2]), torch.Size([5, 2]), 10)
    """

    def __init__(self, bundle: nn.Module) -> None:
        super().__init__()
        self.bundle = bundle

    def forward(self, *inputs: Any) -> tuple:
        """Return (bundle(input), ...), in the inputs' order."""
        return tuple(self.bundle(each) for each in inputs)


class Siamese(nn.Module):
    """Two inputs through one encoder: |encoder(first) - encoder(second)|, `(batch,)`.

    This Euclidean distance is symmetric, and 0 for equal inputs, for all weights.

    Args:
        encoder: a module `(batch, ...)` -> `(batch, features)`.

    >>> distance = Siamese(mlp((4, 8, 2)))
    >>> distance(torch.ones(3, 4), torch.ones(3, 4)).tolist()
    [0.0, 0.0, 0.0]
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = Shared(encoder)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the distance of each pair."""
        one, other = self.encoder(first, second)
        return torch.linalg.vector_norm(one - other, dim=1)


def shared_parameters(model: nn.Module) -> dict[str, list[str]]:
    """Return {parameter: its other names} of those that several layers share.

    Sharing by design or by accident looks the same in the code; here it shows.

    >>> shared_parameters(nn.Sequential(*[nn.Linear(4, 4, bias=False)] * 3))
    {'0.weight': ['1.weight', '2.weight']}
    """
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {first: others for first, *others in names.values() if others}


def _check_positive(place: str, name: str, numbers: Sequence[int]) -> None:
    if not isinstance(numbers, Sequence):
        raise ValueError(
            f"{place}: got {name}={numbers!r}; wanted a sequence of whole numbers, "
            "for example (64, 32, 10)."
        )
    for number in numbers:
        if not is_int(number) or number < 1:
            raise ValueError(
                f"{place}: got {name}={tuple(numbers)}; wanted whole numbers of at "
                f"least 1, and {number!r} is not one."
            )
    if not numbers:
        raise ValueError(f"{place}: got no {name}; wanted at least one number.")
