"""The exercises of lesson 02, Regularized layers.

Each judge compares with a closed form, with autograd or with torch's own function,
and tries the likely mistakes by name before it says "something else".
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from course_lib.lessons.exercises import (
    UNTOUCHED,
    Exercise,
    Mistakes,
    NotYet,
    close,
    gradient,
    require_close,
)

NUMBER = 2


def _judge_by_hand(answer: Callable[[Tensor, float, float], Tensor]) -> str:
    weight = torch.tensor([[1.0, -2.0], [3.0, -4.0]], requires_grad=True)
    _reject_number(answer(weight, 1.0, 0.0), "the penalty")
    of_l1, of_l2 = answer(weight, 1.0, 0.0), answer(weight, 0.0, 1.0)
    _require_value(of_l1, 10.0, "With l1 = 1 and l2 = 0", _L1_MISTAKES)
    _require_value(of_l2, 30.0, "With l1 = 0 and l2 = 1", _L2_MISTAKES)
    both = answer(weight, 0.5, 0.1)
    _require_value(both, 8.0, "With l1 = 0.5 and l2 = 0.1", ())
    slope = gradient(both, weight)
    if slope is None or not close(slope, 0.5 * weight.sign() + 0.2 * weight):
        raise NotYet(
            "The value is right, but its gradient does not reach all of `w`. Do "
            "`.detach()`, `.data` or `torch.no_grad()` stand in your code?"
        )
    return (
        "0.5 * 10 + 0.1 * 30 = 8, and autograd finds `l1 * sign(w) + 2 * l2 * w`. "
        "`L1L2` computes the same."
    )


_L1_MISTAKES = (
    (-2.0, "That is the plain sum: negative weights pay less than nothing. Take `abs`"),
    (2.5, "That is the mean of |w|. Keras sums; a mean shrinks as the layer grows"),
    (100.0, "That is the square of the sum of |w|. The l1 term has no square"),
)
_L2_MISTAKES = (
    (30.0**0.5, "That is the norm, `sqrt` of the sum. Keras leaves the root out"),
    (15.0, "You halve the squares. Keras has no factor 1/2"),
    (7.5, "That is the mean of the squares. Keras sums"),
    (4.0, "You square the sum. Square each weight, then sum"),
    (100.0, "You square the sum of |w|. Square each weight, then sum"),
)


def _judge_shrink(answer: Callable[[Tensor, float], Tensor]) -> str:
    weight = torch.tensor([-3.0, -1.0, -0.2, 0.0, 0.2, 1.0, 3.0])
    given, by = weight.clone(), 0.5
    got = _require_tensor(answer(given, by), "shrink(w, by)")
    if not torch.equal(given, weight):
        raise NotYet(
            "`shrink` changed the tensor that it was given. Return a new one: no "
            "methods that end in `_`."
        )
    mistakes = (
        (weight - by, "Negative weights moved away from zero. Shrink |w|, not w"),
        (
            weight - by * weight.sign(),
            "0.2 became -0.3: the step jumps over zero, as plain descent does. A "
            "weight smaller than `by` must stop at 0",
        ),
        (
            weight * (weight.abs() > by),
            "Large weights stay as they were: that cuts, it does not shrink. They lose "
            "`by` as well",
        ),
        (
            (weight.abs() - by).clamp(min=0),
            "-3 became +2.5: the sign is lost. Multiply it back at the end",
        ),
        (
            (weight - by).clamp(min=0),
            "All negative weights became 0. Shrink |w|, then give the sign back",
        ),
        (weight.clamp(-by, by), "That clips: large weights became `by`"),
    )
    wanted = nn.functional.softshrink(weight, by)
    require_close(got, wanted, "shrink(w, 0.5)", mistakes)
    if not close(answer(weight, 2.0), nn.functional.softshrink(weight, 2.0)):
        raise NotYet("Right for by = 0.5, not for by = 2. Is a number written in?")
    return (
        "Weights within `by` of zero become exactly 0, all others lose `by`. Torch "
        "calls it `nn.functional.softshrink`."
    )


def _judge_same_as_penalty(answer: Callable[..., torch.optim.Optimizer]) -> str:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    optimizer = answer(model, 0.05, 0.1)
    _require_sgd(optimizer)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        _judge_step(name, before[name], parameter.detach(), l2=0.05, lr=0.1)
    return (
        "The weights feel 1 + 2 * l2 * w, the biases only their own gradient: the "
        "steps of `loss + penalty(model)`."
    )


def _require_sgd(optimizer: object) -> None:
    if optimizer is ...:
        raise NotYet(UNTOUCHED)
    if optimizer is None:
        raise NotYet("`make_optimizer` returned nothing. Return the optimizer.")
    if isinstance(optimizer, torch.optim.Adam):  # AdamW is one, too
        raise NotYet(
            f"That is {type(optimizer).__name__}, which rescales every step, so it "
            "does not make the steps of plain descent. Take `torch.optim.SGD`."
        )
    if not isinstance(optimizer, torch.optim.SGD):
        raise NotYet(
            f"Got {type(optimizer).__name__}; wanted a `torch.optim.SGD` over the "
            "model's parameters."
        )


def _judge_step(name: str, old: Tensor, new: Tensor, *, l2: float, lr: float) -> None:
    decay = 2 * l2 if name.endswith("weight") else 0.0
    if torch.equal(new, old):
        raise NotYet(
            f"`{name}` did not move: no group of the optimizer holds it, so it never "
            "trains. Weights and biases both belong there."
        )
    mistakes = [
        (old - lr, f"`{name}` does not decay at all"),
        (
            old - lr * (1 + l2 * old),
            f"`{name}` decays by l2 * w, half of what the penalty gives. The "
            "derivative of l2 * w**2 is 2 * l2 * w",
        ),
    ]
    if not decay:
        why = "regularizes weights only, so the biases need a group of their own"
        mistakes = [
            (old - lr * (1 + c * old), f"`{name}` decays too. The penalty {why}")
            for c in (l2, 2 * l2)
        ]
    wanted = old - lr * (1 + decay * old)
    require_close(new, wanted, f"The step of {name}", mistakes)


def _judge_with_penalty(answer: Callable[..., Callable[..., Tensor]]) -> str:
    torch.manual_seed(0)
    layer, l2 = nn.Linear(3, 2), 0.1
    inputs, labels = torch.randn(5, 3), torch.tensor([0, 1, 1, 0, 1])
    loss = answer(nn.functional.cross_entropy, layer, l2)
    _require_function(loss)
    first = _squares(layer.weight, l2)
    _judge_loss(loss, layer, (inputs, labels), (l2, first, "At the first call"))
    with torch.no_grad():
        layer.weight.mul_(3.0)
        layer.bias.add_(1.0)
    place = "After the weights have changed"
    _judge_loss(loss, layer, (inputs, labels), (l2, first, place))
    return (
        "The sum stands inside the function, so each call reads the weights of now, "
        "and their gradient flows."
    )


def _require_function(loss: object) -> None:
    if loss is ...:
        raise NotYet(UNTOUCHED)
    if not callable(loss):
        raise NotYet(
            f"`with_penalty` returned a {type(loss).__name__}, a number that is fixed "
            "for ever. Return a function of (outputs, labels)."
        )


_STATIC = (
    "It still adds the penalty of the first weights: that number was computed once, "
    "outside of the function"
)
_NONE = "That is the loss without any penalty"
_HALF = "You halve the squares"
_NORM = "That adds the norm. Leave out the root"


def _judge_loss(
    loss: Callable[..., Tensor],
    layer: nn.Linear,
    batch: tuple[Tensor, Tensor],
    setting: tuple[float, float, str],
) -> None:
    l2, first, place = setting
    inputs, labels = batch
    plain = nn.functional.cross_entropy(layer(inputs), labels)
    now = _squares(layer.weight, l2)
    got = loss(layer(inputs), labels)
    _reject_number(got, "the loss")
    bias, norm = _squares(layer.bias, l2), (now * l2) ** 0.5
    mistakes = [(now, "That is the penalty alone. Add `loss(outputs, labels)`")]
    added = ((first, _STATIC), (0.0, _NONE), (now / 2, _HALF), (norm, _NORM))
    added += ((now + bias, "The bias pays too. Only `layer.weight` should"),)
    mistakes += [(plain.item() + cost, text) for cost, text in added]
    _require_value(got, plain.item() + now, place, mistakes)
    alone = torch.autograd.grad(plain, layer.weight)[0]
    slope = gradient(got, layer.weight)
    if slope is not None and close(slope, alone + 2 * l2 * layer.weight):
        return
    raise NotYet(
        "The value is right, but the penalty has no gradient, so training does not "
        "feel it. Do `.item()`, `float()`, `.detach()` or `.data` stand in your code?"
    )


def _judge_count_once(answer: Callable[[nn.Module, float], Tensor]) -> str:
    torch.manual_seed(0)
    linear = nn.Linear(2, 3)
    _count(answer, nn.Sequential(nn.Linear(2, 3, bias=False)), "For one layer", ())
    bias = _squares(linear.bias, 1.0)
    _count(answer, nn.Sequential(linear), "With a bias", [(bias, _BIAS)])
    model = nn.Sequential(linear, nn.LayerNorm(2, bias=False))
    _count(answer, model, "With a LayerNorm", [(2.0, _LAYER_NORM)])
    _count_nested_and_shared(answer)
    weight = linear.weight
    slope = gradient(answer(nn.Sequential(linear), 1.0), weight)
    if slope is None or not close(slope, 2 * weight):
        raise NotYet(
            "The values are right, but no gradient comes back. Do `.item()`, "
            "`.detach()` or `.data` stand in your code?"
        )
    return (
        "Nested, shared, tied: every tensor pays once. `penalty(model)` goes by the "
        "tensor's identity in the same way."
    )


_BIAS = "You count the bias as well"
_LAYER_NORM = "You count the `LayerNorm`'s weight too. Ask for `nn.Linear`"
_INNER = (
    "A layer inside an inner `Sequential` is missing. `modules()` goes all the way down"
)
_REPEAT = "A layer that stands twice in the model paid twice"
_TIED = (
    "Two layers that share one tensor paid twice. Compare the tensors, not the layers"
)
_TWINS = (
    "Two layers that happen to hold the same numbers paid once. Ask whether it is the "
    "same tensor (`id`), not whether the values agree"
)


def _count_nested_and_shared(answer: Callable[[nn.Module, float], Tensor]) -> None:
    inner, outer, tied, twin = (nn.Linear(2, 2) for _ in range(4))
    part = _squares(inner.weight, 1.0)
    nested = nn.Sequential(outer, nn.Sequential(inner))
    _count(answer, nested, "With a model inside the model", [(-part, _INNER)])
    repeated = nn.Sequential(inner, nn.Tanh(), inner)
    _count(answer, repeated, "With a repeated layer", [(part, _REPEAT)])
    tied.weight = inner.weight
    _count(answer, nn.Sequential(inner, tied), "With tied weights", [(part, _TIED)])
    twin.load_state_dict(inner.state_dict())
    _count(answer, nn.Sequential(inner, twin), "With equal numbers", [(-part, _TWINS)])


def _count(
    answer: Callable[[nn.Module, float], Tensor],
    model: nn.Module,
    place: str,
    offsets: Sequence[tuple[float, str]],
) -> None:
    l2 = 0.5
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    distinct = {id(m.weight): m.weight for m in linears}
    wanted = sum(_squares(weight, l2) for weight in distinct.values())
    mistakes = [(wanted + l2 * offset, text) for offset, text in offsets]
    norms = sum(_squares(weight, 1.0) ** 0.5 for weight in distinct.values())
    mistakes += [(l2 * norms, "That sums norms. Leave out the root")]
    got = answer(model, l2)
    _reject_number(got, "the penalty")
    _require_value(got, wanted, place, mistakes)


# Small helpers


def _squares(tensor: Tensor, l2: float) -> float:
    return l2 * float(tensor.detach().square().sum())


def _reject_number(got: object, what: str) -> None:
    if isinstance(got, int | float):
        raise NotYet(
            f"Your function returns a Python number for {what}. It has the value but "
            "no gradient; return the tensor itself, without `.item()` or `float()`."
        )


def _require_tensor(got: object, what: str) -> Tensor:
    if got is ...:
        raise NotYet(UNTOUCHED)
    if not isinstance(got, Tensor):
        raise NotYet(f"{what} returned {type(got).__name__}; wanted a tensor.")
    return got


def _require_value(got: object, wanted: float, place: str, mistakes: Mistakes) -> None:
    value = _require_tensor(got, "Your function")
    if value.numel() != 1:
        raise NotYet(
            f"{place}: got a tensor of shape {tuple(value.shape)}; wanted one number. "
            "Is a `sum()` missing?"
        )
    require_close(value.reshape(()), torch.tensor(wanted), place, mistakes)


by_hand = Exercise(
    "regularization.by_hand",
    _judge_by_hand,
    (
        "Two sums over all weights: one of |w|, one of w squared.",
        "`w.abs().sum()` and `w.square().sum()`, each times its coefficient.",
        "`return l1 * w.abs().sum() + l2 * w.square().sum()`",
    ),
)
shrink = Exercise(
    "regularization.shrink",
    _judge_shrink,
    (
        "Do it for the size first: |w| loses `by`, but never falls below 0.",
        "`(w.abs() - by).clamp(min=0)` is the new size. What is the sign?",
        "`return w.sign() * (w.abs() - by).clamp(min=0)`",
    ),
)
same_as_penalty = Exercise(
    "regularization.same_as_penalty",
    _judge_same_as_penalty,
    (
        "Decay adds `weight_decay * w` to the gradient. What does the penalty add?",
        "Two groups: `torch.optim.SGD([{'params': ..., 'weight_decay': ...}, "
        "{'params': ...}], lr=lr)`. A parameter with one dimension is a bias here.",
        "`weight_decay` is `2 * l2` for the parameters with `p.dim() > 1`; the group "
        "of the others has none.",
    ),
)
with_penalty = Exercise(
    "regularization.with_penalty",
    _judge_with_penalty,
    (
        "Return a function: define one inside, and name it on the return line.",
        "When is `layer.weight` read: when `with_penalty` runs, or when the inner "
        "function does? It must be the second.",
        "`return lambda outputs, labels: loss(outputs, labels) + l2 * "
        "layer.weight.square().sum()`",
    ),
)
count_once = Exercise(
    "regularization.count_once",
    _judge_count_once,
    (
        "`model.modules()` visits every module at every depth, and each one once.",
        "Two modules can hold one tensor. Collect the weights in a dict under "
        "`id(weight)`, and later ones replace equal keys.",
        "`weights = {id(m.weight): m.weight for m in model.modules() if isinstance(m, "
        "nn.Linear)}`, then sum the squares of its values.",
    ),
)
