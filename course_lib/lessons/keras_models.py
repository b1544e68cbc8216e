"""Exercises of lesson 03, Bring a Keras model along.

Most judges compare with the imported model itself.
"""

from collections.abc import Callable, Iterable, Mapping
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from course_lib.keras_models import load_keras
from course_lib.keras_models.graph.model import KerasModel
from course_lib.lessons.checks import (
    as_text,
    close,
    gradient,
    reject,
    require_close,
    require_gradient,
    require_kind,
    require_parameters,
    require_scalar,
    require_written,
)
from course_lib.lessons.exercises import NotYet, exercise
from course_lib.lessons.keras_files import File, layer, priced, sequential
from course_lib.lessons.keras_files import convnet as convnet
from course_lib.lessons.keras_files import dense as dense
from course_lib.lessons.keras_files import functional as functional
from course_lib.lessons.keras_files import halves as halves
from course_lib.lessons.keras_files import pair as pair
from course_lib.lessons.keras_files import question as question
from course_lib.regularization import L1L2, penalty, regularize

NUMBER = 3

Prices = Mapping[str, tuple[float, float] | None]

_PRICES: dict[str, Prices] = {
    "With one layer, l2 = 0.5": {"a": (0.0, 0.5)},
    "With one layer, l1 = 0.5": {"a": (0.5, 0.0)},
    "With a layer that is free, null in the file": {"a": None, "b": (0.0, 0.5)},
    "With three layers": {"a": (0.25, 0.5), "b": None, "c": (0.5, 0.125)},
}


@exercise(
    "Go over `file['config']`. An entry has a `class_name` and a `config`; which "
    "of them have a `W_regularizer`, and where does the layer's name stand?",
    "`config.get('W_regularizer')` is None for a Dropout and for a layer that is "
    "free. Skip both. The kernel is `kernels[config['name']]`.",
    "Add `price['l1'] * w.abs().sum() + price['l2'] * w.square().sum()` for each "
    "layer with a price, with `w` its own kernel.",
    right="Each price went to the layer in whose entry it stands; `penalty` of the "
    "imported model is the same number.",
)
def cost(answer: Callable[[File, Mapping[str, Tensor]], Tensor]) -> None:
    """A function of (file, kernels): the penalty that a Keras 1 file asks for."""
    torch.manual_seed(0)
    for place, prices in _PRICES.items():
        file = priced(prices)
        kernels = {name: torch.randn(3, 3, requires_grad=True) for name in prices}
        arrays = [a for w in kernels.values() for a in (w.detach(), torch.zeros(3))]
        model = load_keras(file, weights=arrays)
        got = answer(file, kernels)
        mistakes = _cost_mistakes(prices, kernels)
        require_scalar(got, penalty(model).item(), place, mistakes)
        for name, kernel in kernels.items():
            _require_kernel_gradient(got, kernel, model, name)


def _cost_mistakes(
    prices: Prices, kernels: Mapping[str, Tensor]
) -> dict[str, Tensor | float]:
    known = {name: of for name, of in prices.items() if of}
    pairs = [(of, kernels[name]) for name, of in known.items()]
    counted = zip(known.values(), kernels.values(), strict=False)
    return {
        "You match prices and kernels by counting. Go by the name": _total(counted),
        "That is the first layer alone. Go on to the end": _total(pairs[:1]),
        "That takes the norm. Keras squares": _total(pairs, Tensor.norm),
        "You halve. Keras does not": _total(pairs, lambda w: w.square().sum() / 2),
        "That is a mean. Keras sums": _total(pairs, lambda w: w.square().mean()),
        "The l2 part is missing": _total(pairs, lambda w: 0.0),
        "The l1 part is missing": _total(((0, l2), w) for (_, l2), w in pairs),
    }


def _total(
    pairs: Iterable[tuple[tuple[float, float], Tensor]],
    squares: Callable[[Tensor], Any] = lambda w: w.square().sum(),
) -> Any:
    return sum(l1 * w.abs().sum() + l2 * squares(w) for (l1, l2), w in pairs)


def _require_kernel_gradient(
    got: Tensor, kernel: Tensor, model: KerasModel, name: str
) -> None:
    """Compare with the gradient of the imported model, whose weight is transposed."""
    weight = model.child(name).weight
    (wanted,) = torch.autograd.grad(penalty(model), [weight], materialize_grads=True)
    if wanted.any():
        require_gradient(got, kernel, wanted.T, "all kernels")


@exercise(
    "Both eras have a straight line, cut at 0 and at 1. Only the slope differs.",
    "The version is a text: `int(version.split('.')[0])` is its first number.",
    "`slope = 1 / 6 if ... else 0.2`, and `(slope * x + 0.5).clamp(0, 1)`.",
    right="Three lines with a kink at each end; in Keras 3 the kinks are at -3 and 3.",
)
def hard_sigmoid(answer: Callable[[Tensor, str], Tensor]) -> None:
    """A function of (x, version): the hard sigmoid of that Keras."""
    x = torch.tensor([-4.0, -2.75, -2.0, -0.5, 0.0, 1.0, 2.75, 4.0])
    mistakes = {
        "That is the line of Keras 1 and 2": (0.2 * x + 0.5).clamp(0, 1),
        "That is the line of Keras 3": (x / 6 + 0.5).clamp(0, 1),
        "The line has no ends. Cut it at 0 and 1": 0.2 * x + 0.5,
        "The line has no ends. Cut it at 0 and at 1": x / 6 + 0.5,
        "That is the sigmoid, which has no kinks": x.sigmoid(),
        "At 0 the gate must be half open: add 0.5": (0.2 * x).clamp(0, 1),
        "A gate closes at 0, and yours goes down to -1": (0.2 * x + 0.5).clamp(-1, 1),
    }
    for version in ("1.1.0", "2.15.0", "3.15.1"):
        entry = layer("Activation", "gate", activation="hard_sigmoid")
        entry["config"]["batch_input_shape"] = [None, len(x)]
        wanted = load_keras(sequential(entry, version=version))(x[None])[0]
        place = f"For version {version!r} and x = {as_text(x)}"
        require_close(answer(x.clone(), version), wanted, place, mistakes)
    place = (
        "A Keras '10.0.0' would come after 3: compare the first number, with `<` or "
        "`>=`, not its text. For it"
    )
    wanted = torch.nn.functional.hardsigmoid(x)
    require_close(answer(x.clone(), "10.0.0"), wanted, place, {})


@exercise(
    "Keep both modules in `__init__`: `self.look = look`, and so on.",
    "In `forward`, call the same `self.look` on `left` and on `right`.",
    "`self.decide(torch.cat([self.look(left), self.look(right)], dim=1))`",
    right="One `look`, two calls: one set of weights, one price, and a gradient from "
    "both halves.",
)
def twin(answer: Callable[[nn.Module, nn.Module], nn.Module]) -> None:
    """A function of (look, decide): a module that looks at both halves."""
    torch.manual_seed(0)
    look = regularize(nn.Linear(4, 3), weight=L1L2(l2=1.0))
    decide = nn.Linear(6, 2)
    left, right = torch.randn(5, 4), torch.randn(5, 4)
    model = answer(look, decide)
    require_kind(model, nn.Module, "a module")
    got, wanted = model(left, right), (look(left), look(right))
    _judge_twin_output(got, decide, *wanted)
    require_parameters(model, look, decide)
    both = gradient(decide(torch.cat(wanted, dim=1)).square().sum(), look.weight)
    if not close(gradient(got.square().sum(), look.weight), both):
        raise NotYet(
            "The output is right, but the gradient of `look` lacks a half or both. "
            "Does `detach`, `no_grad` or a copy stand in your `forward`?"
        )


def _judge_twin_output(
    got: Any, decide: nn.Module, left: Tensor, right: Tensor
) -> None:
    def decided(*halves: Tensor) -> Tensor:
        return decide(torch.cat(halves, dim=1))

    mistakes = {
        "The halves have changed places: left comes first": decided(right, left),
        "The left half is looked at twice, the right one never": decided(left, left),
        "The right half is looked at twice, the left one never": decided(right, right),
    }
    place = (
        "The output is not `decide` of the two looks side by side, "
        "`torch.cat(..., dim=1)`"
    )
    require_close(got, decided(left, right), place, mistakes, what="`forward`")


@exercise(
    "Give the rows of the kernel their three axes back, then move the axes.",
    "`kernel.reshape(height, width, channels, -1)` has the axes (h, w, c, units). "
    "Torch wants (units, c, h, w), and then two axes.",
    "`kernel.reshape(*shape, -1).permute(3, 2, 0, 1).flatten(1)`",
    right="`maps.flatten(1) @ weight.T` now gives what Keras gives.",
)
def linear_weight(answer: Callable[[Tensor, tuple], Tensor]) -> None:
    """A function of (kernel, shape): the weight behind a flattened map."""
    generator = torch.Generator().manual_seed(0)
    for shape in ((2, 3, 4), (3, 3, 2)):
        height, width, channels = shape
        kernel = torch.randn(height * width * channels, 5, generator=generator)
        maps = torch.randn(6, channels, height, width, generator=generator)
        got = answer(kernel, shape)
        wanted = (5, len(kernel))
        require_kind(got, Tensor, f"a tensor of shape {wanted}")
        if got.shape != wanted:
            raise NotYet(
                f"Got the shape {tuple(got.shape)}; wanted {wanted}: torch has (units, "
                "inputs), Keras (inputs, units)."
            )
        in_keras = maps.permute(0, 2, 3, 1).flatten(1) @ kernel
        if torch.allclose(maps.flatten(1) @ got.T, in_keras, atol=1e-4):
            continue
        by_rows = kernel.reshape(*shape, -1)
        way_back = kernel.reshape(channels, height, width, -1).permute(3, 1, 2, 0)
        reject(
            {
                "That transposes the matrix and leaves the inputs in Keras's order: "
                "channels still vary fastest.": close(got, kernel.T),
                "Height and width have changed places.": (
                    close(got, by_rows.permute(3, 2, 1, 0).flatten(1))
                ),
                "That is the way back, from torch to Keras: the kernel's rows are in "
                "the order (height, width, channels).": close(got, way_back.flatten(1)),
                f"For maps of (height, width, channels) = {shape} the outputs are not "
                "those of Keras. Write down the axes of your tensor after each step.": (
                    True
                ),
            }
        )


_CASES = ((8, 3, 1), (8, 3, 2), (7, 3, 2), (8, 4, 1), (8, 5, 3), (10, 2, 4), (9, 2, 5))


@exercise(
    "How many windows are there? size / stride, rounded up: `-(-size // stride)`.",
    "The last window ends at `(windows - 1) * stride + kernel`. What lies beyond "
    "`size` is missing, and never less than 0.",
    "`before = missing // 2`, and `after` is the rest.",
    right="`nn.functional.pad(x, (before, after))`, then a convolution without "
    "padding, is Keras's 'same'.",
)
def same_padding(answer: Callable[[int, int, int], tuple[int, int]]) -> None:
    """A function of (size, kernel, stride): zeros before and after."""
    got = {case: _pads(answer(*case)) for case in _CASES}
    wanted = {case: _same(*case) for case in _CASES}
    if got == wanted:
        return
    case = next(case for case in _CASES if got[case] != wanted[case])
    size, kernel, stride = case
    difference = (
        f"Size {size}, kernel {kernel}, stride {stride}: got {got[case]}, wanted "
        f"{wanted[case]}."
    )
    for text, mistake in _PAD_MISTAKES.items():
        if got == {case: mistake(*case) for case in _CASES}:
            raise NotYet(f"{text}. {difference}")
    raise NotYet(difference)


def _pads(got: Any) -> tuple[int, int]:
    require_kind(got, tuple | list, "two numbers, (before, after)")
    if len(got) != 2:
        raise NotYet(f"Got {got!r}; wanted two numbers, (before, after).")
    for number in got:
        require_written(number)
        if not isinstance(number, Integral):
            raise NotYet(f"Got {number!r}; wanted whole numbers. Divide with `//`.")
    return int(got[0]), int(got[1])


def _same(size: int, kernel: int, stride: int) -> tuple[int, int]:
    return _split(max(_needed(size, kernel, stride), 0))


def _split(missing: int) -> tuple[int, int]:
    return missing // 2, missing - missing // 2


def _needed(size: int, kernel: int, stride: int) -> int:
    return (-(-size // stride) - 1) * stride + kernel - size


_PAD_MISTAKES: Mapping[str, Callable[[int, int, int], tuple[int, int]]] = {
    "That pads alike on both sides, as `padding=kernel // 2` in torch does": (
        lambda size, kernel, stride: (kernel // 2, kernel // 2)
    ),
    "That is right for stride 1 only. With a stride, the windows may need less": (
        lambda size, kernel, stride: _split(kernel - 1)
    ),
    "The odd zero goes after the numbers, not before them": (
        lambda *case: _same(*case)[::-1]
    ),
    "Negative padding cuts numbers off. Take at least 0": (
        lambda *case: _split(_needed(*case))
    ),
    "You round the number of windows down. Keras rounds up": (
        lambda size, kernel, stride: _split(
            max((size // stride - 1) * stride + kernel - size, 0)
        )
    ),
    "All zeros go after the numbers. Keras puts half of them before": (
        lambda *case: (0, sum(_same(*case)))
    ),
}
