"""The files and the exercises of lesson 03, Bring a Keras model along.

The files are dicts with the keys that Keras writes, without those that stand at their
defaults. Most judges compare with the imported model itself.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from course_lib.keras_models import load_keras
from course_lib.keras_models.graph.model import KerasModel
from course_lib.lessons.exercises import Exercise, NotYet, require_written
from course_lib.regularization import L1L2, penalty, regularize

NUMBER = 3

File = dict[str, Any]
Mistakes = Sequence[tuple[Callable[..., Any], str]]

_L2 = 0.0010000000474974513  # 0.001 in float32, which Keras 1 kept it in

# Files


def layer(
    kind: str, name: str, *calls: Sequence[tuple[str, int]], **config: Any
) -> File:
    """Return a layer's entry; each call lists (layer, number of its call) as inputs.

    >>> layer("Dense", "look", [("left", 0)], [("right", 0)], units=4)["inbound_nodes"]
    [[['left', 0, 0]], [['right', 0, 0]]]
    """
    entry = {"class_name": kind, "name": name, "config": {"name": name, **config}}
    nodes = [[[*ref, 0] for ref in call] for call in calls]
    return {**entry, "inbound_nodes": nodes}


def sequential(*layers: File, version: str = "2.2.4") -> File:
    """Return the file of a Sequential model."""
    kept = ("class_name", "config")
    config = [{key: entry[key] for key in kept} for entry in layers]
    return {"class_name": "Sequential", "config": config, "keras_version": version}


def functional(*layers: File, output: str, version: str = "2.2.4") -> File:
    """Return the file of a functional model with one output, the first call of one."""
    return {**_graph("model", layers, output), "keras_version": version}


def _graph(name: str, layers: Sequence[File], output: str) -> File:
    inputs = [e["name"] for e in layers if e["class_name"] == "InputLayer"]
    ends = {"input_layers": [[name, 0, 0] for name in inputs]}
    ends["output_layers"] = [[output, 0, 0]]
    config = {"name": name, "layers": list(layers), **ends}
    return {"class_name": "Model", "name": name, "config": config}


def price(l1: float = 0.0, l2: float = 0.0) -> File:
    """Return a regularizer as Keras 2 writes it."""
    return {"class_name": "L1L2", "config": {"l1": l1, "l2": l2}}


def question() -> File:
    """Return the file of the original question, as Keras 1.1.0 wrote it."""
    sizes = {"dense_1": (512, "relu"), "dense_2": (32, "linear")}
    sizes["dense_3"] = (1, "sigmoid")
    costly = [_dense_1(name, *of) for name, of in sizes.items()]
    first = costly[0]["config"]
    first.update(input_dim=4096, input_dtype="float32", batch_input_shape=[None, 4096])
    entries = [costly[0]]
    for number, entry in enumerate(costly[1:], start=1):
        name = f"dropout_{number}"
        entries += [layer("Dropout", name, p=0.6, trainable=True), entry]
    return sequential(*entries, version="1.1.0")


def _dense_1(name: str, units: int, activation: str) -> File:
    free = ("W_constraint", "b_constraint", "b_regularizer", "activity_regularizer")
    return layer(
        "Dense",
        name,
        output_dim=units,
        init="glorot_normal",
        activation=activation,
        W_regularizer={"name": "WeightRegularizer", "l1": 0.0, "l2": _L2},
        input_dim=None,
        bias=True,
        trainable=True,
        **dict.fromkeys(free),
    )


def pair(version: str) -> File:
    """Return one model in the words of Keras 1 or 2: a nested model is called twice.

    Its one Dense layer has l2 = 0.01 on its weights and l1 = 0.001 on its output. The
    file does not say which version wrote it.
    """
    old = version.startswith("1.")
    weight, output = {"l1": 0.0, "l2": 0.01}, {"l1": 0.001, "l2": 0.0}
    config: File = {"units": 4, "kernel_regularizer": price(l2=0.01)}
    config["activity_regularizer"] = price(l1=0.001)
    if old:
        config = {"output_dim": 4}
        config["W_regularizer"] = {"name": "WeightRegularizer", **weight}
        config["activity_regularizer"] = {"name": "ActivityRegularizer", **output}
    half = layer("InputLayer", "half", batch_input_shape=[None, 6])
    inner = _graph(
        "twin", [half, layer("Dense", "dense", [("half", 0)], **config)], "dense"
    )
    inner["inbound_nodes"] = [[["left", 0, 0]], [["right", 0, 0]]]
    sides = [
        layer("InputLayer", n, batch_input_shape=[None, 6]) for n in ("left", "right")
    ]
    both = [("twin", 1), ("twin", 2)]  # 0 is its own construction
    total = (
        layer("Merge", "sum", both, mode="sum") if old else layer("Add", "sum", both)
    )
    return _graph("pair", [*sides, inner, total], "sum")


def halves(*, shared: bool) -> File:
    """Return a network that cuts a digit in two and looks at both halves alike.

    With `shared` one layer is called twice; otherwise each half has a layer of its own.
    """
    left, right = [("left", 0)], [("right", 0)]
    size = {"units": 12, "activation": "relu", "kernel_regularizer": price(l2=0.002)}
    looks = [layer("Dense", "look", [("flat", 0)], [("flat", 1)], **size)]
    both = [("look", 0), ("look", 1)]
    if not shared:
        names = ("look_left", "look_right")
        looks = [layer("Dense", n, [("flat", i)], **size) for i, n in enumerate(names)]
        both = [(name, 0) for name in names]
    return functional(
        layer("InputLayer", "digit", batch_input_shape=[None, 8, 8, 1]),
        layer("Cropping2D", "left", [("digit", 0)], cropping=[[0, 0], [0, 4]]),
        layer("Cropping2D", "right", [("digit", 0)], cropping=[[0, 0], [4, 0]]),
        layer("Flatten", "flat", left, right),
        *looks,
        layer("Concatenate", "both", both),
        layer("Dense", "scores", [("both", 0)], units=10),
        output="scores",
    )


def convnet() -> File:
    """Return a small convolutional network for the digits, as Keras 2 writes it."""
    size = {"filters": 4, "kernel_size": [3, 3], "padding": "same"}
    start = {"batch_input_shape": [None, 8, 8, 1], "data_format": "channels_last"}
    return sequential(
        layer("Conv2D", "look", **size, **start, activation="relu"),
        layer("Flatten", "flatten"),
        layer("Dense", "scores", units=10),
    )


def dense(*, l2: float) -> File:
    """Return a network of two Dense layers for the digits, both with a price."""
    paid = {"kernel_regularizer": price(l2=l2)}
    return sequential(
        layer("Flatten", "flat", batch_input_shape=[None, 8, 8, 1]),
        layer("Dense", "hidden", units=64, activation="relu", **paid),
        layer("Dense", "scores", units=10, **paid),
    )


# Exercises


def _judge_cost(answer: Callable[[File, Mapping[str, Tensor]], Tensor]) -> str:
    torch.manual_seed(0)
    for place, prices in _PRICES.items():
        file = _priced(prices)
        kernels = {name: torch.randn(3, 3, requires_grad=True) for name in prices}
        arrays = [a for w in kernels.values() for a in (w.detach(), torch.zeros(3))]
        model = load_keras(file, weights=arrays)
        got = answer(file, kernels)
        mistakes = _cost_mistakes(prices, kernels)
        _require_number(got, penalty(model).item(), place, mistakes)
        _require_gradient(got, kernels, model)
    return (
        "Each price went to the layer in whose entry it stands; `penalty` of the "
        "imported model is the same number."
    )


_PRICES = {
    "With one layer, l2 = 0.5": {"a": (0.0, 0.5)},
    "With one layer, l1 = 0.5": {"a": (0.5, 0.0)},
    "With a layer that is free, null in the file": {"a": None, "b": (0.0, 0.5)},
    "With three layers": {"a": (0.25, 0.5), "b": None, "c": (0.5, 0.125)},
}


def _priced(prices: Mapping[str, tuple[float, float] | None]) -> File:
    """Return a Keras 1.1 file with a Dropout between the Dense layers."""
    entries: list[File] = []
    for name, of in prices.items():
        entry = _dense_1(name, 3, "linear")
        found = of and {"name": "WeightRegularizer", "l1": of[0], "l2": of[1]}
        entry["config"]["W_regularizer"] = found
        entries += [entry, layer("Dropout", f"dropout_{name}", p=0.5)]
    entries[0]["config"].update(input_dim=3, batch_input_shape=[None, 3])
    return sequential(*entries, version="1.1.0")


def _cost_mistakes(
    prices: Mapping[str, tuple[float, float] | None], kernels: Mapping[str, Tensor]
) -> list[tuple[Tensor, str]]:
    known = {name: of for name, of in prices.items() if of}
    pairs = [(of, kernels[name]) for name, of in known.items()]
    counted = zip(known.values(), kernels.values(), strict=False)
    return [
        (_total(counted), "You match prices and kernels by counting. Go by the name"),
        (_total(pairs[:1]), "That is the first layer alone. Go on to the end"),
        (_total(pairs, lambda w: w.norm()), "That takes the norm. Keras squares"),
        (_total(pairs, lambda w: w.square().sum() / 2), "You halve. Keras does not"),
        (_total(pairs, lambda w: w.square().mean()), "That is a mean. Keras sums"),
        (_total(pairs, lambda w: 0 * w.sum()), "The l2 part is missing"),
        (_total(((0, l2), w) for (_, l2), w in pairs), "The l1 part is missing"),
    ]


def _total(
    pairs: Any, squares: Callable[[Tensor], Tensor] = lambda w: w.square().sum()
) -> Tensor:
    return sum(l1 * w.abs().sum() + l2 * squares(w) for (l1, l2), w in pairs)


def _require_gradient(
    got: Tensor, kernels: Mapping[str, Tensor], model: KerasModel
) -> None:
    """Compare the gradient with that of the imported model, whose axes are turned."""
    weights = [model.child(name).weight for name in kernels]
    wanted = torch.autograd.grad(penalty(model), weights, materialize_grads=True)
    if got.requires_grad:
        inputs = list(kernels.values())
        found = torch.autograd.grad(got, inputs, materialize_grads=True)
        if all(map(torch.allclose, found, [slope.T for slope in wanted])):
            return
    raise NotYet(
        "The value is right, but its gradient does not reach all kernels. Do "
        "`.item()`, `float()` or `.detach()` stand in your code?"
    )


def _judge_linear_weight(answer: Callable[[Tensor, tuple], Tensor]) -> str:
    generator = torch.Generator().manual_seed(0)
    for shape in ((2, 3, 4), (3, 3, 2)):
        height, width, channels = shape
        kernel = torch.randn(height * width * channels, 5, generator=generator)
        maps = torch.randn(6, channels, height, width, generator=generator)
        got = answer(kernel, shape)
        _require_weight(got, (5, len(kernel)))
        wanted = maps.permute(0, 2, 3, 1).flatten(1) @ kernel
        if torch.allclose(maps.flatten(1) @ got.T, wanted, atol=1e-4):
            continue
        for mistake, text in _ORDER_MISTAKES:
            if torch.allclose(mistake(kernel, shape), got):
                raise NotYet(f"{text}.")
        raise NotYet(
            f"For maps of (height, width, channels) = {shape} the outputs are not "
            "those of Keras. Write down the axes of your tensor after each step."
        )
    return "`maps.flatten(1) @ weight.T` now gives what Keras gives."


def _require_weight(got: Any, shape: tuple[int, int]) -> None:
    require_written(got)
    if not isinstance(got, Tensor):
        raise NotYet(f"Got {type(got).__name__}; wanted a tensor of shape {shape}.")
    if got.shape != shape:
        why = "torch keeps (units, inputs), Keras (inputs, units)"
        raise NotYet(f"Got the shape {tuple(got.shape)}; wanted {shape}: {why}.")


def _moved(axes: tuple[int, ...], *, read_first: bool = False) -> Callable[..., Tensor]:
    """Return a way to order a kernel; `read_first` takes its rows as channels first."""

    def order(kernel: Tensor, shape: tuple[int, int, int]) -> Tensor:
        height, width, channels = shape
        sizes = (channels, height, width) if read_first else shape
        return kernel.reshape(*sizes, -1).permute(axes).flatten(1)

    return order


_ORDER_MISTAKES: Mistakes = (
    (
        lambda kernel, shape: kernel.T,
        "That turns the matrix and leaves the inputs in Keras's order: channels still "
        "vary fastest",
    ),
    (_moved((3, 2, 1, 0)), "Height and width have changed places"),
    (
        _moved((3, 1, 2, 0), read_first=True),
        "That is the way back, from torch to Keras: the kernel's rows are in the order "
        "(height, width, channels)",
    ),
)


def _judge_hard_sigmoid(answer: Callable[[Tensor, str], Tensor]) -> str:
    x = torch.tensor([-4.0, -2.75, -2.0, -0.5, 0.0, 1.0, 2.75, 4.0])
    for version in ("1.1.0", "2.15.0", "3.15.1"):
        got = answer(x.clone(), version)
        require_written(got)
        if not isinstance(got, Tensor):
            raise NotYet(f"Got {type(got).__name__}; wanted a tensor.")
        entry = layer("Activation", "gate", activation="hard_sigmoid")
        entry["config"]["batch_input_shape"] = [None, len(x)]
        wanted = load_keras(sequential(entry, version=version))(x[None])[0]
        if got.shape == wanted.shape and torch.allclose(got, wanted, atol=1e-6):
            continue
        for mistake, text in _GATE_MISTAKES:
            if got.shape == x.shape and torch.allclose(got, mistake(x), atol=1e-6):
                raise NotYet(f"{text}. (For version {version!r}.)")
        raise NotYet(
            f"Version {version!r}: got {_text(got)} for x = {_text(x)}; wanted "
            f"{_text(wanted)}."
        )
    return "Three lines with a kink at each end; in Keras 3 the kinks are at -3 and 3."


_GATE_MISTAKES: Mistakes = (
    (lambda x: (0.2 * x + 0.5).clamp(0, 1), "That is the line of Keras 1 and 2"),
    (lambda x: (x / 6 + 0.5).clamp(0, 1), "That is the line of Keras 3"),
    (lambda x: 0.2 * x + 0.5, "The line has no ends. Cut it at 0 and 1"),
    (lambda x: x / 6 + 0.5, "The line has no ends. Cut it at 0 and at 1"),
    (lambda x: x.sigmoid(), "That is the sigmoid, which has no kinks"),
    (lambda x: (0.2 * x).clamp(0, 1), "At 0 the gate must be half open: add 0.5"),
    (
        lambda x: (0.2 * x + 0.5).clamp(-1, 1),
        "A gate closes at 0, and yours goes down to -1",
    ),
)


def _judge_same_padding(answer: Callable[[int, int, int], tuple[int, int]]) -> str:
    got = {case: _pads(answer(*case)) for case in _CASES}
    wanted = {case: _same(*case) for case in _CASES}
    if got == wanted:
        return (
            "`nn.functional.pad(x, (before, after))`, then a convolution without "
            "padding, is Keras's 'same'."
        )
    for mistake, text in _PAD_MISTAKES:
        if got == {case: mistake(*case) for case in _CASES}:
            raise NotYet(f"{text}. {_first_difference(got, wanted)}")
    raise NotYet(_first_difference(got, wanted))


_CASES = ((8, 3, 1), (8, 3, 2), (7, 3, 2), (8, 4, 1), (8, 5, 3), (10, 2, 4), (9, 2, 5))


def _pads(got: Any) -> tuple[int, int]:
    require_written(got)
    if not isinstance(got, tuple | list) or len(got) != 2:
        raise NotYet(f"Got {got!r}; wanted two numbers, (before, after).")
    for number in got:
        require_written(number)
        if not isinstance(number, int):
            raise NotYet(f"Got {number!r}; wanted whole numbers. Divide with `//`.")
    return got[0], got[1]


def _same(size: int, kernel: int, stride: int) -> tuple[int, int]:
    return _split(max(_needed(size, kernel, stride), 0))


def _split(missing: int) -> tuple[int, int]:
    return missing // 2, missing - missing // 2


def _needed(size: int, kernel: int, stride: int) -> int:
    return (-(-size // stride) - 1) * stride + kernel - size


_PAD_MISTAKES: Mistakes = (
    (
        lambda size, kernel, stride: (kernel // 2, kernel // 2),
        "That pads alike on both sides, as `padding=kernel // 2` in torch does",
    ),
    (
        lambda size, kernel, stride: _split(kernel - 1),
        "That is right for stride 1 only. With a stride, the windows may need less",
    ),
    (
        lambda *case: _same(*case)[::-1],
        "The odd zero goes after the numbers, not before them",
    ),
    (
        lambda *case: _split(_needed(*case)),
        "Negative padding cuts numbers off. Take at least 0",
    ),
    (
        lambda size, kernel, stride: _split(
            max((size // stride - 1) * stride + kernel - size, 0)
        ),
        "You round the number of windows down. Keras rounds up",
    ),
    (
        lambda *case: (0, sum(_same(*case))),
        "All zeros go after the numbers. Keras puts half of them before",
    ),
)


def _first_difference(got: Mapping, wanted: Mapping) -> str:
    case = next(case for case in wanted if got[case] != wanted[case])
    size, kernel, stride = case
    return (
        f"Size {size}, kernel {kernel}, stride {stride}: got {got[case]}, wanted "
        f"{wanted[case]}."
    )


def _judge_twin(answer: Callable[[nn.Module, nn.Module], nn.Module]) -> str:
    torch.manual_seed(0)
    look = regularize(nn.Linear(4, 3), weight=L1L2(l2=1.0))
    decide = nn.Linear(6, 2)
    left, right = torch.randn(5, 4), torch.randn(5, 4)
    model = answer(look, decide)
    if not isinstance(model, nn.Module):
        raise NotYet(f"Got {type(model).__name__}; wanted a module.")
    _judge_twin_output(model(left, right), look, decide, left, right)
    _judge_twin_weights(model, look, decide)
    return (
        "One `look`, two calls: one set of weights, one price, and a gradient from "
        "both halves."
    )


def _judge_twin_output(
    got: Any, look: nn.Module, decide: nn.Module, left: Tensor, right: Tensor
) -> None:
    require_written(got)
    a, b = look(left), look(right)
    tries = {
        "": (a, b),
        "The halves have changed places: left comes first.": (b, a),
        "The left half is looked at twice, the right one never.": (a, a),
        "The right half is looked at twice, the left one never.": (b, b),
    }
    for text, halves in tries.items():
        made = decide(torch.cat(halves, dim=1))
        if isinstance(got, Tensor) and got.shape == made.shape:
            if not torch.allclose(got, made, atol=1e-6):
                continue
            if text:
                raise NotYet(text)
            return
    raise NotYet(
        "The output is not `decide` of the two looks side by side. Join them with "
        "`torch.cat(..., dim=1)`."
    )


def _judge_twin_weights(model: nn.Module, look: nn.Module, decide: nn.Module) -> None:
    found = {id(parameter) for parameter in model.parameters()}
    given = {id(p) for part in (look, decide) for p in part.parameters()}
    if len(found) > len(given):
        times = penalty(model).item() / penalty(look).item()
        raise NotYet(
            f"The model has {len(found)} parameters, {len(given)} were given: a half "
            f"has a copy of its own. The penalty counts {times:.0f} times, and after "
            "one step the copies differ. Call the same `look` twice."
        )
    if not found:
        raise NotYet(
            "The model has no parameters: an optimizer would train nothing. Keep "
            "`look` and `decide` as attributes, after `super().__init__()`."
        )
    if found != given:
        raise NotYet(
            "The model does not train the parameters that it was given. Keep the "
            "modules themselves, not copies, and both of them."
        )


# Small helpers


def _require_number(
    got: Any, wanted: float, place: str, mistakes: Sequence[tuple[Tensor, str]]
) -> None:
    require_written(got)
    if isinstance(got, int | float):
        raise NotYet(
            f"Got the Python number {got:.3g}, which has no gradient. Return a tensor."
        )
    if not isinstance(got, Tensor) or got.numel() != 1:
        raise NotYet(f"{place}: got {type(got).__name__}; wanted one number, a tensor.")
    value = got.detach().item()
    numbers = f"{place}: got {value:.3g}, wanted {wanted:.3g}."
    if abs(value - wanted) < 1e-4 * max(1, abs(wanted)):
        return
    for wrong, text in mistakes:
        if abs(value - wrong.item()) < 1e-4:
            raise NotYet(f"{text}. {numbers}")
    raise NotYet(numbers)


def _text(tensor: Tensor) -> str:
    return (
        f"[{', '.join(f'{number + 0.0:.3g}' for number in tensor.flatten().tolist())}]"
    )


cost = Exercise(
    "keras_models.cost",
    _judge_cost,
    (
        "Go over `file['config']`. An entry has a `class_name` and a `config`; which "
        "of them have a `W_regularizer`, and where does the layer's name stand?",
        "`config.get('W_regularizer')` is None for a Dropout and for a layer that is "
        "free. Skip both. The kernel is `kernels[config['name']]`.",
        "Add `price['l1'] * w.abs().sum() + price['l2'] * w.square().sum()` for each "
        "layer with a price, with `w` its own kernel.",
    ),
)
hard_sigmoid = Exercise(
    "keras_models.hard_sigmoid",
    _judge_hard_sigmoid,
    (
        "Both eras have a straight line, cut at 0 and at 1. Only the slope differs.",
        "The version is a text: `int(version.split('.')[0])` is its first number.",
        "`slope = 1 / 6 if ... else 0.2`, and `(slope * x + 0.5).clamp(0, 1)`.",
    ),
)
twin = Exercise(
    "keras_models.twin",
    _judge_twin,
    (
        "Keep both modules in `__init__`: `self.look = look`, and so on.",
        "In `forward`, call the same `self.look` on `left` and on `right`.",
        "`self.decide(torch.cat([self.look(left), self.look(right)], dim=1))`",
    ),
)
linear_weight = Exercise(
    "keras_models.linear_weight",
    _judge_linear_weight,
    (
        "Give the rows of the kernel their three axes back, then move the axes.",
        "`kernel.reshape(height, width, channels, -1)` has the axes (h, w, c, units). "
        "Torch wants (units, c, h, w), and then two axes.",
        "`kernel.reshape(*shape, -1).permute(3, 2, 0, 1).flatten(1)`",
    ),
)
same_padding = Exercise(
    "keras_models.same_padding",
    _judge_same_padding,
    (
        "How many windows are there? size / stride, rounded up: `-(-size // stride)`.",
        "The last window ends at `(windows - 1) * stride + kernel`. What lies beyond "
        "`size` is missing, and never less than 0.",
        "`before = missing // 2`, and `after` is the rest.",
    ),
)
