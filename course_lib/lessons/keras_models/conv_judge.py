"""The judge of lesson 03's last exercise: a Conv2D, step by step.

The oracle is the layer that `load_keras` makes of the same file.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from course_lib.keras_models import load_keras
from course_lib.lessons.checks import (
    reject,
    require_close,
    require_kind,
    require_unchanged,
)
from course_lib.lessons.exercises import NotYet
from course_lib.lessons.keras_models import padding
from course_lib.lessons.keras_models.files import l1l2, layer, sequential
from course_lib.lessons.keras_models.padding import Pair, same_pads
from course_lib.regularization import penalty

_CHANNELS, _FILTERS = 2, 3

_Pads = tuple[Pair, Pair]  # (top, bottom), (left, right)


@dataclass(frozen=True)
class _Case:
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
            "filters": _FILTERS,
            "kernel_size": list(self.kernel_size),
            "strides": list(self.strides),
            "padding": self.padding,
            "activation": self.activation,
            "use_bias": self.use_bias,
            "kernel_regularizer": self.coefficients and l1l2(*self.coefficients),
        }

    def pads(self, rule: Callable[[int, int, int], Pair] = same_pads) -> _Pads:
        """Return the zeros that a rule for one axis adds to both."""
        height, width = map(rule, self.size, self.kernel_size, self.strides)
        return height, width

    def right_pads(self) -> _Pads:
        """Return the zeros of Keras."""
        return ((0, 0), (0, 0)) if self.padding == "valid" else self.pads()

    def output(self, pads: _Pads) -> tuple[int, ...]:
        """Return the shape of the output for 2 images with these zeros."""
        sizes = zip(self.size, self.kernel_size, self.strides, pads, strict=True)
        return 2, _FILTERS, *((n + sum(pad) - k) // s + 1 for n, k, s, pad in sizes)


_CASES = (
    _Case("Step 1 of 8, the kernel"),
    _Case("Step 2 of 8, the strides", strides=(2, 1)),
    _Case("Step 3 of 8, 'same'", kernel_size=(2, 3), padding="same"),
    _Case("Step 3 of 8, 'same'", kernel_size=(4, 1), padding="same"),
    _Case("Step 4 of 8, 'same' with strides", (9, 8), (3, 3), (2, 3), "same"),
    _Case("Step 4 of 8, 'same' with strides", (8, 9), (1, 4), (3, 1), "same"),
    _Case("Step 5 of 8, the bias", use_bias=True),
    _Case("Step 6 of 8, the activation", use_bias=True, activation="relu"),
    _Case("Step 6 of 8, the activation", use_bias=True, activation="tanh"),
)
_COSTLY = _Case("Step 7 of 8, the regularizer", use_bias=True, coefficients=(0.25, 0.5))
_TRAINED = _Case(
    "Step 8 of 8, training",
    padding="same",
    use_bias=True,
    activation="tanh",
    coefficients=(0.25, 0.5),
)

_SWAPPED_PADS = (
    "The zeros of the height went to the width. `nn.functional.pad` wants (left, "
    "right, top, bottom)"
)
_TURNED = (
    "Are the axes of the kernel in torch's order? torch wants (filters, channels, "
    "height, width)"
)
_FLOOR = "The number of windows is rounded down. Keras rounds up"
_ONE_STRIDE = "The first stride counts the windows of both axes"


def judge(answer: Callable[..., nn.Module]) -> None:
    """Go through the steps; raise NotYet at the first that is not right."""
    generator = torch.Generator().manual_seed(0)
    for case in (*_CASES, _COSTLY, _TRAINED):
        draw = _Drawn(case, generator)
        given = [array.clone() for array in draw.arrays]
        model = _tried(partial(answer, case.config, *given), case)
        require_kind(model, nn.Module, "a module", what="`Conv(...)`", verb="is")
        _require_numbers(model, draw)
        x = draw.x.clone()
        got = _tried(partial(model, x), case)
        require_unchanged([x], [draw.x], "the images")
        place = f"{case.step}: the output"
        _require_shape(got, draw, place)
        require_close(got, draw.wanted, place, _mistakes(draw), what="`forward`")
        if case.padding == "same" and max(case.strides) > 1:
            _require_other_size(model, draw)
        if case is _COSTLY:
            _require_penalty(model, draw)
        if case is _TRAINED:
            _require_gradients(model, draw)


class _Drawn:
    """Random weights and images for a case, and what Keras makes of them."""

    def __init__(self, case: _Case, generator: torch.Generator) -> None:
        normal = partial(torch.randn, generator=generator)
        self.case = case
        self.kernel = normal(*case.kernel_size, _CHANNELS, _FILTERS)
        self.arrays = [self.kernel, *([normal(_FILTERS)] if case.use_bias else [])]
        self.x = normal(2, _CHANNELS, *case.size)
        self.oracle = self.oracle_of(case)
        self.wanted = self.oracle(self.x).detach()

    def oracle_of(self, case: _Case) -> nn.Module:
        start = {"batch_input_shape": [None, *case.size, _CHANNELS]}
        entry = layer("Conv2D", **case.config, **start, data_format="channels_last")
        return load_keras(sequential(entry), weights=self.arrays, axis_order="torch")

    def convolved(self, weight: Tensor, pads: _Pads) -> Tensor:
        (top, bottom), (left, right) = pads
        padded = F.pad(self.x, (left, right, top, bottom))
        return F.conv2d(padded, weight, stride=self.case.strides)


def _tried(call: Callable[[], Any], case: _Case) -> Any:
    try:
        return call()
    except NotYet:
        raise
    except Exception as error:
        text = str(error).split("\n")[0]
        if isinstance(error, TypeError) and "ellipsis" in text.lower():
            raise
        hint = ""
        if "kernel" in case.step and isinstance(error, RuntimeError):
            hint = (
                ". Keras's kernel is (height, width, channels, filters); torch wants "
                "(filters, channels, height, width)."
            )
        raise NotYet(
            f"{case.step}: your code raised {type(error).__name__}: {text}{hint}"
        ) from error


def _require_numbers(model: nn.Module, draw: _Drawn) -> None:
    step, kernel = draw.case.step, draw.kernel.numel()
    found = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(array.numel() for array in draw.arrays)
    head = f"{step}: the module trains {found} numbers, the file has {total}."
    reject(
        {
            f"{step}: the module trains no numbers. Keep an `nn.Conv2d` as an "
            "attribute, or make an `nn.Parameter`.": found == 0,
            f"{head} The file says `use_bias: False`, and yours has a bias: give "
            "`bias=False` to `nn.Conv2d`.": (
                found == kernel + _FILTERS and total == kernel
            ),
            f"{head} The bias is not among its parameters.": (
                found == kernel and total == kernel + _FILTERS
            ),
            head: found != total,
        }
    )
    numbers, wanted = (
        torch.cat([p.detach().flatten().double() for p in m.parameters()]).sort().values
        for m in (model, draw.oracle)
    )
    if not torch.allclose(numbers, wanted):
        raise NotYet(
            f"{step}: the parameters do not hold the numbers of the file. Copy "
            "`kernel` and `bias` into them."
        )


def _require_shape(got: Any, draw: _Drawn, place: str) -> None:
    """Name the mistake behind another shape, if there is one that gives it alone."""
    require_kind(got, Tensor, "a tensor", what="`forward`")
    shape, wanted = tuple(got.shape), tuple(draw.wanted.shape)
    if shape == wanted:
        return
    shapes = _shapes(draw.case).items()
    named = [text for text, found in shapes if found == shape]
    word = named[0] if len(named) == 1 else "Compare height and width one by one"
    raise NotYet(f"{place} has shape {shape}; wanted {wanted}. {word}.")


def _shapes(case: _Case) -> dict[str, tuple[int, ...]]:
    """Return the shape that each mistake gives."""
    pads, same = case.right_pads(), case.pads()
    right = case.output(pads)
    found = {
        "The strides are not used": replace(case, strides=(1, 1)).output(pads),
        "The strides have changed places: height first": (
            replace(case, strides=case.strides[::-1]).output(pads)
        ),
        "The first stride is used for both axes": _with_one_stride(case).output(pads),
    }
    if case.padding == "valid":
        swapped = replace(case, kernel_size=case.kernel_size[::-1])
        return {
            **found,
            _TURNED: swapped.output(pads),
            "Are zeros added? 'valid' has none": case.output(same),
            "The images come out as (batch, filters, height, width)": (
                right[0],
                *right[2:],
                right[1],
            ),
        }
    if max(case.strides) == 1:  # no answer without zeros comes further
        found["No zeros are added"] = case.output(((0, 0), (0, 0)))
    return {
        **found,
        "`kernel // 2` zeros on each side are too many for an even kernel": (
            case.output(case.pads(padding.alike))
        ),
        _SWAPPED_PADS: case.output(pads[::-1]),
        _FLOOR: case.output(case.pads(padding.floored)),
        _ONE_STRIDE: case.output(_with_one_stride(case).pads()),
    }


def _with_one_stride(case: _Case) -> _Case:
    return replace(case, strides=(case.strides[0],) * 2)


def _mistakes(draw: _Drawn) -> dict[str, Tensor]:
    """Return what likely mistakes give; `require_close` takes the first that fits."""
    case, right = draw.case, draw.kernel.permute(3, 2, 0, 1)
    reshaped = draw.kernel.reshape(_FILTERS, _CHANNELS, *case.kernel_size)
    pads = case.right_pads()
    named = {
        "`reshape` does not move axes. Use `permute`": (reshaped, pads),
        "The kernel is upside down. Keras 2 on TensorFlow does not turn it": (
            right.flip(2, 3),
            pads,
        ),
        _SWAPPED_PADS: (right, pads[::-1]),
        _ONE_STRIDE: (right, _with_one_stride(case).pads()),
    }
    named |= {text: (right, case.pads(rule)) for text, rule in _RULES.items()}
    found = {}
    if case.use_bias:
        function = _FUNCTIONS[case.activation]
        plain, bias = draw.convolved(right, pads), draw.arrays[1][:, None, None]
        found = {
            "The bias is missing": function(plain),
            "The activation is missing": plain + bias,
            "The bias comes before the activation, not after it": (
                function(plain) + bias
            ),
            "The activation is relu, and the file says tanh": (plain + bias).relu(),
        }
    for text, (weight, zeros) in named.items():
        found[text] = draw.convolved(weight, zeros)
    return found


_RULES = {
    "That pads as with stride 1. With strides the windows need less": (
        padding.as_with_stride_1
    ),
    "The odd zero comes after the numbers, not before": padding.odd_before,
    "All zeros come after the numbers. Keras puts half of them before": (
        padding.all_after
    ),
    "That pads alike on both sides, `kernel // 2`": padding.alike,
    "Negative padding cuts numbers off. Take at least 0": padding.below_zero,
    _FLOOR: padding.floored,
}

_FUNCTIONS = {"linear": torch.clone, "relu": torch.relu, "tanh": torch.tanh}


def _require_penalty(model: nn.Module, draw: _Drawn) -> None:
    l1, l2 = draw.case.coefficients
    kernel, bias = draw.arrays
    size, squares = kernel.abs().sum(), kernel.square().sum()
    wanted = penalty(draw.oracle).item()
    mistakes = {
        "Nothing is regularized. Store the coefficients with `regularize`": 0.0,
        "l1 and l2 have changed places": l2 * size + l1 * squares,
        "The l1 part is missing": l2 * squares,
        "The l2 part is missing": l1 * size,
        "The bias is regularized too; the file names the kernel alone": (
            wanted + l1 * bias.abs().sum() + l2 * bias.square().sum()
        ),
        "You halve l2. Keras does not": l1 * size + l2 / 2 * squares,
        "It counts twice. Is the same regularizer stored in two places?": 2 * wanted,
        "That takes the norm. Keras squares": l1 * size + l2 * squares.sqrt(),
    }
    place = f"{draw.case.step}: `penalty` of the module"
    require_close(penalty(model).item(), wanted, place, mistakes)


def _require_gradients(model: nn.Module, draw: _Drawn) -> None:
    """Compare the magnitudes, whatever the axes of the parameters."""
    found, wanted = _sizes(model, draw.x), _sizes(draw.oracle, draw.x)
    if not torch.allclose(found, wanted, rtol=1e-3, atol=1e-4):
        raise NotYet(
            f"{draw.case.step}: the output is right, but its gradient does not reach "
            "the parameters as it does in Keras. Do `.detach()`, `.data` or "
            "`torch.no_grad()` stand in `forward`?"
        )


def _require_other_size(model: nn.Module, draw: _Drawn) -> None:
    case, (height, width) = draw.case, draw.case.size
    x = F.pad(draw.x, (0, 1, 0, 1), value=0.5)
    oracle = draw.oracle_of(replace(case, size=(height + 1, width + 1)))
    got = _tried(partial(model, x.clone()), case)
    place = f"{case.step}: right for images of one size, not for larger ones after them"
    require_close(got, oracle(x).detach(), place, {}, what="`forward`")


def _sizes(model: nn.Module, x: Tensor) -> Tensor:
    """Return the magnitudes of all gradients, sorted."""
    parameters = list(model.parameters())
    loss = model(x).square().mean() + penalty(model)
    if not loss.requires_grad:
        return torch.zeros(sum(p.numel() for p in parameters))
    grads = torch.autograd.grad(
        loss, parameters, allow_unused=True, materialize_grads=True
    )
    return torch.cat([grad.flatten() for grad in grads]).abs().sort().values
