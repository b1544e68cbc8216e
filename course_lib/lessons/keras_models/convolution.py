"""The judge of lesson 03's last exercise: a Conv2D, step by step.

The oracle is the layer that `load_keras` makes of the same file.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
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
from course_lib.lessons.keras_models.cases import (
    CASES,
    CHANNELS,
    COSTLY,
    FILTERS,
    TRAINED,
    Case,
    Pair,
    floored,
    needed,
    output,
    pads_of,
    same_pads,
    split,
)
from course_lib.lessons.keras_models.files import layer, sequential
from course_lib.regularization import penalty

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
    for case in (*CASES, COSTLY, TRAINED):
        draw = _Drawn(case, generator)
        model = _made(answer, case, draw)
        _require_numbers(model, case, draw)
        given = draw.x.clone()
        got = _tried(partial(model, given), case)
        require_unchanged([given], [draw.x], "the images")
        place = f"{case.step}: the output"
        _require_shape(got, draw.wanted, case, place)
        require_close(got, draw.wanted, place, _mistakes(case, draw), what="`forward`")
        if case.padding == "same" and max(case.strides) > 1:
            _require_other_size(model, case, draw)
        if case is COSTLY:
            _require_penalty(model, case, draw)
        if case is TRAINED:
            _require_gradients(model, case, draw)


class _Drawn:
    """Random weights and images for a case, and what Keras makes of them."""

    def __init__(self, case: Case, generator: torch.Generator) -> None:
        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        self.kernel = normal(*case.kernel_size, CHANNELS, FILTERS)
        self.bias = normal(FILTERS) if case.use_bias else None
        self.x = normal(2, CHANNELS, *case.size)
        self.oracle = self.oracle_of(case)
        self.wanted = self.oracle(self.x).detach()

    def oracle_of(self, case: Case) -> nn.Module:
        start = {"batch_input_shape": [None, *case.size, CHANNELS]}
        entry = layer("Conv2D", **case.config, **start, data_format="channels_last")
        arrays = [array for array in (self.kernel, self.bias) if array is not None]
        return load_keras(sequential(entry), weights=arrays, axis_order="torch")


def _made(answer: Callable[..., Any], case: Case, draw: _Drawn) -> nn.Module:
    given = [draw.kernel.clone()]
    given += [draw.bias.clone()] if draw.bias is not None else []
    model = _tried(partial(answer, case.config, *given), case)
    return require_kind(model, nn.Module, "a module", what="`Conv(...)`", verb="is")


def _tried(call: Callable[[], Any], case: Case) -> Any:
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


def _require_numbers(model: nn.Module, case: Case, draw: _Drawn) -> None:
    found = sum(p.numel() for p in model.parameters() if p.requires_grad)
    kernel, total = draw.kernel.numel(), draw.kernel.numel()
    total += draw.bias.numel() if draw.bias is not None else 0
    head = f"{case.step}: the module trains {found} numbers, the file has {total}."
    reject(
        {
            f"{case.step}: the module trains no numbers. Keep an `nn.Conv2d` as an "
            "attribute, or make an `nn.Parameter`.": found == 0,
            f"{head} The file says `use_bias: False`, and yours has a bias: give "
            "`bias=False` to `nn.Conv2d`.": (
                found == kernel + FILTERS and total == kernel
            ),
            f"{head} The bias is not among its parameters.": (
                found == kernel and total == kernel + FILTERS
            ),
            head: found != total,
        }
    )
    if not _holds(model, draw):
        raise NotYet(
            f"{case.step}: the parameters do not hold the numbers of the file. Copy "
            "`kernel` and `bias` into them."
        )


def _holds(model: nn.Module, draw: _Drawn) -> bool:
    """Tell whether a model and the file have the same numbers, in any order."""
    found, wanted = (
        torch.cat([p.detach().flatten().double() for p in m.parameters()]).sort().values
        for m in (model, draw.oracle)
    )
    return torch.allclose(found, wanted)


def _require_shape(got: Any, wanted: Tensor, case: Case, place: str) -> None:
    """Name the mistake behind another shape, if there is one that gives it alone."""
    require_kind(got, Tensor, "a tensor", what="`forward`")
    shape, target = tuple(got.shape), tuple(wanted.shape)
    if shape == target:
        return
    named = [text for text, found in _shapes(case).items() if found == shape != target]
    word = named[0] if len(named) == 1 else "Compare height and width one by one"
    raise NotYet(f"{place} has shape {shape}; wanted {target}. {word}.")


def _shapes(case: Case) -> dict[str, tuple[int, ...]]:
    """Return the shape that each mistake gives."""
    first, turned = (case.strides[0],) * 2, case.strides[::-1]
    pads, same = pads_of(case), same_pads(case)
    right = output(case, pads)
    found = {
        "The strides are not used": output(case, pads, (1, 1)),
        "The strides have changed places: height first": output(case, pads, turned),
        "The first stride is used for both axes": output(case, pads, first),
    }
    if case.padding == "valid":
        swapped = replace(case, kernel_size=case.kernel_size[::-1])
        found[_TURNED] = output(swapped, pads)
        found["Are zeros added? 'valid' has none"] = output(case, same)
        found["The images come out as (batch, filters, height, width)"] = (
            right[0],
            *right[2:],
            right[1],
        )
        return found
    if max(case.strides) == 1:  # no answer without zeros comes further
        found["No zeros are added"] = output(case, ((0, 0), (0, 0)))
    halves = tuple((size // 2, size // 2) for size in case.kernel_size)
    return {
        **found,
        "`kernel // 2` zeros on each side are too many for an even kernel": (
            output(case, halves)
        ),
        _SWAPPED_PADS: output(case, pads[::-1]),
        _FLOOR: output(case, floored(case)),
        _ONE_STRIDE: output(case, same_pads(_with_one_stride(case))),
    }


def _with_one_stride(case: Case) -> Case:
    return replace(case, strides=(case.strides[0],) * 2)


def _mistakes(case: Case, draw: _Drawn) -> dict[str, Tensor]:
    """Return what likely mistakes give; `require_close` takes the first that fits."""
    kernel = draw.kernel
    height, width = case.kernel_size
    right = kernel.permute(3, 2, 0, 1)
    reshaped = kernel.reshape(FILTERS, CHANNELS, height, width)
    pads = pads_of(case)
    before = tuple(pair[::-1] for pair in pads)
    plain = _convolved(case, draw, right, pads)
    bias = 0 if draw.bias is None else draw.bias[:, None, None]
    named = {
        "`reshape` does not move axes. Use `permute`": (reshaped, pads),
        "The kernel is upside down. Keras 2 on TensorFlow does not turn it": (
            right.flip(2, 3),
            pads,
        ),
        _SWAPPED_PADS: (right, pads[::-1]),
        _ONE_STRIDE: (right, same_pads(_with_one_stride(case))),
        "That pads as with stride 1. With strides the windows need less": (
            right,
            tuple(split(size - 1) for size in case.kernel_size),
        ),
        "The odd zero comes after the numbers, not before": (right, before),
        "All zeros come after the numbers. Keras puts half of them before": (
            right,
            tuple((0, sum(pair)) for pair in pads),
        ),
        "That pads alike on both sides, `kernel // 2`": (
            right,
            tuple((size // 2, size // 2) for size in case.kernel_size),
        ),
        "Negative padding cuts numbers off. Take at least 0": (
            right,
            tuple(map(split, needed(case))),
        ),
        _FLOOR: (right, floored(case)),
    }
    found = {}
    if draw.bias is not None:
        function = _FUNCTIONS[case.activation]
        found["The bias is missing"] = function(plain)
        found["The activation is missing"] = plain + bias
        found["The bias comes before the activation, not after it"] = (
            function(plain) + bias
        )
        found["The activation is relu, and the file says tanh"] = (plain + bias).relu()
    for text, (weight, zeros) in named.items():
        found[text] = _convolved(case, draw, weight, zeros)
    return found


_FUNCTIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "linear": torch.clone,
    "relu": torch.relu,
    "tanh": torch.tanh,
}


def _convolved(
    case: Case, draw: _Drawn, weight: Tensor, pads: Sequence[Pair]
) -> Tensor:
    (top, bottom), (left, right) = pads
    padded = F.pad(draw.x, (left, right, top, bottom))
    return F.conv2d(padded, weight, stride=case.strides)


def _require_penalty(model: nn.Module, case: Case, draw: _Drawn) -> None:
    l1, l2 = case.coefficients or (0, 0)
    size, squares = draw.kernel.abs().sum(), draw.kernel.square().sum()
    bias = torch.zeros(()) if draw.bias is None else draw.bias
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
    place = f"{case.step}: `penalty` of the module"
    got = penalty(model).item()
    require_close(got, wanted, place, mistakes)


def _require_gradients(model: nn.Module, case: Case, draw: _Drawn) -> None:
    """Compare the magnitudes, whatever the axes of the parameters."""
    found, wanted = _sizes(model, draw.x), _sizes(draw.oracle, draw.x)
    if not torch.allclose(found, wanted, rtol=1e-3, atol=1e-4):
        raise NotYet(
            f"{case.step}: the output is right, but its gradient does not reach the "
            "parameters as it does in Keras. Do `.detach()`, `.data` or "
            "`torch.no_grad()` stand in `forward`?"
        )


def _require_other_size(model: nn.Module, case: Case, draw: _Drawn) -> None:
    height, width = case.size
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
