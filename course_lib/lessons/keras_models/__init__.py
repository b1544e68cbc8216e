"""Exercises of lesson 03, Bring a Keras model along.

Most judges compare with the imported model itself.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from course_lib.data import Dataset, Split
from course_lib.device import seed_everything
from course_lib.keras_models import load_keras
from course_lib.lessons.checks import (
    as_text,
    close,
    reject,
    require_close,
    require_gradient,
    require_kind,
    require_scalar,
    require_unchanged,
)
from course_lib.lessons.exercises import NotYet, exercise
from course_lib.lessons.keras_models import conv_judge
from course_lib.lessons.keras_models.files import File, layer, regularized, sequential
from course_lib.lessons.keras_models.files import convnet as convnet
from course_lib.lessons.keras_models.files import dense as dense
from course_lib.lessons.keras_models.files import functional as functional
from course_lib.lessons.keras_models.files import halves as halves
from course_lib.lessons.keras_models.files import outspoken as outspoken
from course_lib.lessons.keras_models.files import pair as pair
from course_lib.lessons.keras_models.files import question as question
from course_lib.lessons.keras_models.graphs import Graph, graphs
from course_lib.lessons.keras_models.graphs import outputs_of_calls as outputs_of_calls
from course_lib.lessons.keras_models.padding import PAD_MISTAKES, as_pads, same_pads
from course_lib.regularization import penalty

NUMBER = 3


def mislabeled(dataset: Dataset, wrong: int, *, seed: int = 0) -> Dataset:
    """Return 300 of the training images, the first `wrong` with another one's label.

    The test split stays as it is.
    """
    seed_everything(seed)
    few = torch.randperm(len(dataset.train))[:300]
    x, y = dataset.train.inputs[few], dataset.train.labels[few]
    count = len(dataset.classes)
    y[:wrong] = (y[:wrong] + torch.randint(1, count, (wrong,))) % count
    return replace(dataset, name="mislabeled", train=Split(x, y))


Coefficients = Mapping[str, tuple[float, float] | None]
Tensors = Mapping[str, Tensor]

_COEFFICIENTS: dict[str, Coefficients] = {
    "With one layer, l2 = 0.5": {"a": (0.0, 0.5)},
    "With one layer, l1 = 0.5": {"a": (0.5, 0.0)},
    "With a layer that has none, null in the file": {"a": None, "b": (0.0, 0.5)},
    "With three layers": {"a": (0.25, 0.5), "b": None, "c": (0.5, 0.125)},
}


@exercise(
    "Go over `file['config']`. An entry has a `class_name` and a `config`; which "
    "of them have a `W_regularizer`, and where does the layer's name stand?",
    "`config.get('W_regularizer')` is None for a Dropout and for a layer without a "
    "regularizer. Skip both. The kernel is `kernels[config['name']]`.",
    "Add `r['l1'] * w.abs().sum() + r['l2'] * w.square().sum()` for each layer with a "
    "regularizer `r`, with `w` its own kernel.",
    right="Each regularizer went to the layer in whose entry it stands; `penalty` of "
    "the imported model is the same number.",
)
def cost(answer: Callable[[File, Mapping[str, Tensor]], Tensor]) -> None:
    """A function of (file, kernels): the penalty that a Keras 1 file asks for."""
    torch.manual_seed(0)
    for place, coefficients in _COEFFICIENTS.items():
        file = regularized(coefficients)
        kernels = {name: torch.randn(3, 3, requires_grad=True) for name in coefficients}
        arrays = [a for w in kernels.values() for a in (w.detach(), torch.zeros(3))]
        model = load_keras(file, weights=arrays)
        wanted = penalty(model).item()
        given = dict(reversed(kernels.items()))  # the order says nothing
        got = _cost(answer, file, given, place)
        if isinstance(got, Real) and not close(got, wanted):
            got = torch.tensor(float(got))  # a wrong number is that first
        mistakes = _cost_mistakes(coefficients, kernels, given)
        require_scalar(got, wanted, place, mistakes)
        for name, kernel in kernels.items():
            weight = model.child(name).weight  # transposed
            (slope,) = torch.autograd.grad(
                penalty(model), [weight], materialize_grads=True
            )
            if slope.any():
                require_gradient(got, kernel, slope.T, "all kernels")


def _cost(answer: Callable[..., Any], file: File, given: Tensors, place: str) -> Any:
    before = copy.deepcopy(file)
    try:
        got = answer(file, given)
    except TypeError as error:
        if "'NoneType'" not in str(error):
            raise
        raise NotYet(
            f"{place}: your code raised TypeError: {error}. What is null in a file is "
            "None in Python: skip a layer whose regularizer is None."
        ) from error
    if file != before:
        raise NotYet("You changed the file, and a second call would read another one.")
    return got


def _cost_mistakes(
    coefficients: Coefficients, kernels: Tensors, given: Tensors
) -> dict[str, Tensor | float]:
    known = {name: of for name, of in coefficients.items() if of}
    pairs = [(of, kernels[name]) for name, of in known.items()]
    all_of = [of or (0.0, 0.0) for of in coefficients.values()]
    counting = "You match regularizers and kernels by counting. Go by the name"
    found = {
        counting: _total(zip(all_of, given.values(), strict=True)),
        f"{counting}s": _total(zip(known.values(), given.values(), strict=False)),
        "That is the first layer alone. Go on to the end": _total(pairs[:1]),
        "That is the last layer alone. Add them up": _total(pairs[-1:]),
        "That takes the norm. Keras squares": _total(pairs, Tensor.norm),
        "You halve. Keras does not": _total(pairs, lambda w: w.square().sum() / 2),
        "That is a mean. Keras sums": _total(pairs, lambda w: w.square().mean()),
        "l1 takes |w|, and not its square": sum(
            (l1 + l2) * w.square().sum() for (l1, l2), w in pairs
        ),
        "l1 takes |w|, and not w": sum(
            l1 * w.sum() + l2 * w.square().sum() for (l1, l2), w in pairs
        ),
    }
    if None in coefficients.values():
        return {"Nothing is added. Does the loop end at the first entry": 0.0, **found}
    return {
        **found,
        "l1 and l2 have changed places": _total(((l2, l1), w) for (l1, l2), w in pairs),
        "The l2 part is missing": _total(pairs, lambda w: 0.0),
        "The l1 part is missing": _total(((0, l2), w) for (_, l2), w in pairs),
    }


def _total(
    pairs: Iterable[tuple[tuple[float, float], Tensor]],
    squares: Callable[[Tensor], Any] = lambda w: w.square().sum(),
) -> Any:
    return sum(l1 * w.abs().sum() + l2 * squares(w) for (l1, l2), w in pairs)


@exercise(
    "Both eras have a straight line, cut at 0 and at 1. Only the slope differs.",
    "The version is a text: `int(version.split('.')[0])` is its first number.",
    "`slope = 1 / 6 if ... else 0.2`, and `(slope * x + 0.5).clamp(0, 1)`.",
    right="Three lines with a kink at each end; in Keras 3 the kinks are at -3 and 3.",
)
def hard_sigmoid(answer: Callable[[Tensor, str], Tensor]) -> None:
    """A function of (x, version): the hard sigmoid of that Keras."""
    x = torch.tensor([[-4.0, -2.75, -2.0, -0.5], [0.0, 1.0, 2.75, 4.0]])
    mistakes = {
        "That is the line of Keras 1 and 2": (0.2 * x + 0.5).clamp(0, 1),
        "That is the line of Keras 3": (x / 6 + 0.5).clamp(0, 1),
        "The line has no ends. Cut it at 0 and 1": 0.2 * x + 0.5,
        "The line has no ends. Cut it at 0 and at 1": x / 6 + 0.5,
        "That is the sigmoid, which has no kinks": x.sigmoid(),
        "The line is not cut at 1": (0.2 * x + 0.5).relu(),
        "The line isn't cut at 1": (x / 6 + 0.5).relu(),
        "At 0 the gate must be half open: add 0.5": (0.2 * x).clamp(0, 1),
        "A gate closes at 0, and yours goes down to -1": (0.2 * x + 0.5).clamp(-1, 1),
    }
    for version in ("1.1.0", "2.15.0", "3.15.1", "3.0.0"):
        entry = layer("Activation", "gate", activation="hard_sigmoid")
        entry["config"]["batch_input_shape"] = [None, 4]
        wanted = load_keras(sequential(entry, version=version))(x)
        place = f"For version {version!r} and x = {as_text(x)}"
        given, leaf = x.clone(), x.clone().requires_grad_()
        require_close(answer(given, version), wanted, place, mistakes)
        require_unchanged([given], [x], "the tensor that you were given")
        slope = ((wanted > 0) & (wanted < 1)) / (6 if version[0] == "3" else 5)
        require_gradient(answer(leaf, version).sum(), leaf, slope, "`x`")
    place = (
        "A Keras '10.0.0' would come after 3: compare the first number, with `<` or "
        "`>=`, not its text. For it"
    )
    wanted = torch.nn.functional.hardsigmoid(x)
    require_close(answer(x.clone(), "10.0.0"), wanted, place, {})


@exercise(
    "`calls = {entry['name']: entry['inbound_nodes'] for entry in "
    "file['config']['layers']}`. What must be known before a call can run?",
    "Write an inner function `value(name, number)`: the output of that call. It asks "
    "itself for the inputs, and returns `x` for the layer that has no calls.",
    "`inputs = [value(n, i) for n, i, _ in calls[name][number]]`, then "
    "`modules[name](*inputs)`. The model's output is `value` of "
    "`file['config']['output_layers'][0]`.",
    right="One module for each layer, and each call with the inputs that the file "
    "names for it. No order of the layers is needed.",
)
def run(answer: Callable[[File, Mapping[str, Any], Tensor], Tensor]) -> None:
    """A function of (file, modules, x): the output of a functional model."""
    x = torch.tensor([[0.25, -1.5], [2.0, 0.75], [-0.5, 1.25]])
    for graph in graphs(x):
        got = _run(answer, graph, x)
        require_close(got, graph.wanted, graph.place, graph.mistakes)
        if not got.requires_grad:
            raise NotYet(
                "The output is right, but no gradient comes back to `x`. Do "
                "`.detach()`, `.data` or `torch.no_grad()` stand in your code?"
            )


def _run(answer: Callable[..., Any], graph: Graph, x: Tensor) -> Any:
    try:
        return answer(graph.file, graph.modules, x.clone().requires_grad_())
    except KeyError as error:
        key = error.args[0] if error.args else None
        name = key[0] if isinstance(key, tuple) and key else key
        if name not in {*graph.modules, "x"}:
            raise
        raise NotYet(
            f"{graph.place}: your code looks for {key!r}, which is not there. The "
            "input has no calls and no module: its output is `x`. And a call may need "
            "a layer that stands further down in the file."
        ) from error
    except TypeError as error:
        if "ellipsis" in str(error).lower():
            raise
        raise NotYet(
            f"{graph.place}: your code raised TypeError: {error}. Pass the tensors of "
            "a call one by one: `modules[name](*inputs)`."
        ) from error
    except IndexError as error:
        raise NotYet(
            f"{graph.place}: your code raised IndexError: {error}. `inbound_nodes` of "
            "the input is empty: its output is `x`."
        ) from error
    except RecursionError as error:
        raise NotYet(
            f"{graph.place}: a call asks for itself without end. Ask for the call of "
            "that number, and stop at the input, which has no calls."
        ) from error


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
    for units, shape in ((5, (2, 3, 4)), (4, (3, 3, 2))):
        height, width, channels = shape
        kernel = torch.randn(height * width * channels, units, generator=generator)
        maps = torch.randn(6, channels, height, width, generator=generator)
        given, wanted = kernel.clone(), (units, len(kernel))
        got = answer(given, shape)
        require_unchanged([given], [kernel], "the kernel")
        require_kind(got, Tensor, f"a tensor of shape {wanted}")
        if got.shape != wanted:
            join = "join the axes of the inputs with `flatten(1)`"
            order = "torch has (units, inputs), Keras (inputs, units)"
            raise NotYet(
                f"Got the shape {tuple(got.shape)}; wanted {wanted}: "
                f"{join if got.dim() > 2 else order}."
            )
        in_keras = maps.permute(0, 2, 3, 1).flatten(1) @ kernel
        if torch.allclose(maps.flatten(1) @ got.T, in_keras, atol=1e-4):
            continue
        by_rows = kernel.reshape(*shape, -1)
        way_back = kernel.reshape(channels, height, width, -1).permute(3, 1, 2, 0)
        mistakes = {
            "That transposes the matrix and leaves the inputs in Keras's order: "
            "channels still vary fastest.": kernel.T,
            "Height and width have changed places.": (
                by_rows.permute(3, 2, 1, 0).flatten(1)
            ),
            "That is the way back, from torch to Keras: the kernel's rows are in the "
            "order (height, width, channels).": way_back.flatten(1),
        }
        reject({name: close(got, wrong) for name, wrong in mistakes.items()})
        raise NotYet(
            f"For maps of (height, width, channels) = {shape} the outputs are not "
            "those of Keras. Write down the axes of your tensor after each step."
        )


_CASES = ((8, 3, 1), (8, 3, 2), (7, 3, 2), (8, 4, 1), (8, 5, 3), (10, 2, 4), (9, 2, 5))
_CASES += ((7, 3, 3), (16, 7, 1))


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
    got = {case: as_pads(answer(*case)) for case in _CASES}
    wanted = {case: same_pads(*case) for case in _CASES}
    if got == wanted:
        return
    case = next(case for case in _CASES if got[case] != wanted[case])
    size, kernel, stride = case
    difference = (
        f"Size {size}, kernel {kernel}, stride {stride}: got {got[case]}, wanted "
        f"{wanted[case]}."
    )
    for text, rule in PAD_MISTAKES.items():
        if got == {case: rule(*case) for case in _CASES}:
            raise NotYet(f"{text}. {difference}")
    raise NotYet(difference)


@exercise(
    "The lesson has all of it: the axes of a kernel, the zeros of 'same', a "
    "regularizer that is stored with its layer. Begin with `nn.Conv2d(...)` in "
    "`__init__` and `self.conv(x)` in `forward`, and check after each addition.",
    "`nn.Conv2d(channels, filters, size, stride=config['strides'], bias=bias is not "
    "None)`; copy `kernel.permute(3, 2, 0, 1)` into its weight under "
    "`torch.no_grad()`. `regularize(self.conv, weight=L1L2(l1, l2))` if there is one.",
    "In `forward`, for 'same': work out (before, after) for the height from "
    "`x.shape[2]` and for the width from `x.shape[3]`, as in the exercise above, then "
    "`nn.functional.pad(x, (left, right, top, bottom))`: the last axis comes first.",
    right="That is a converter for one more layer: weights, strides, zeros, bias, "
    "activation, penalty and gradients are those of the file.",
)
def conv(answer: Callable[..., nn.Module]) -> None:
    """A module made of (config, kernel, bias): a Conv2D of a Keras 2 file."""
    conv_judge.judge(answer)
