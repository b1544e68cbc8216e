"""Exercises of lesson 02, Store a penalty with its layer.

Each judge compares with a closed form, with autograd or with torch's own function,
and tries the likely mistakes by name before it says "something else".
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from course_lib.lessons.checks import (
    Mistakes,
    close,
    gradient,
    require_close,
    require_gradient,
    require_kind,
    require_scalar,
    require_unchanged,
)
from course_lib.lessons.exercises import NotYet, exercise
from course_lib.lessons.regularization.loop_judge import judge_loop
from course_lib.lessons.regularization.loops import Setting
from course_lib.regularization import penalties

NUMBER = 2


@exercise(
    "Two sums over all weights: one of |w|, one of w squared.",
    "`w.abs().sum()` and `w.square().sum()`, each times its coefficient.",
    "`return l1 * w.abs().sum() + l2 * w.square().sum()`",
    right="0.5 * 11 + 0.1 * 39 = 9.4, and autograd finds `l1 * sign(w) + 2 * l2 * w`. "
    "`L1L2` computes the same.",
)
def by_hand(answer: Callable[[Tensor, float, float], Tensor]) -> None:
    """A function of (w, l1, l2): the penalty."""
    weight = torch.tensor([[1.0, -2.0], [-5.0, 3.0]], requires_grad=True)
    before = weight.detach().clone()
    of_l1, of_l2 = answer(weight, 1.0, 0.0), answer(weight, 0.0, 1.0)
    require_unchanged([weight], [before], "the tensor that you were given")
    if close(of_l1, weight.sign()) and close(of_l2, 2 * weight):
        raise NotYet(
            "That is the gradient, a number for each weight. Return the penalty "
            "itself, one number; autograd finds the gradient."
        )
    l1_mistakes = {
        "That is the plain sum: negative weights pay less than nothing. Take `abs`": -3,
        "That is the mean of |w|. Keras sums; a mean shrinks as the layer grows": 2.75,
        "That is the square of the sum of |w|. The l1 term has no square": 121.0,
        "l1 and l2 have changed places: l1 goes with |w|": 39.0,
        "Each coefficient is applied to both sums. l1 goes with |w| alone": 50.0,
        "That is the largest |w|. Sum over all": 5.0,
        "The negative weights pay nothing. Take `abs` of each": 4.0,
        "That is |sum of w|. Take `abs` of each weight first": 3.0,
        "That is a norm of the matrix, its largest column. Sum over all": 6.0,
    }
    l2_mistakes = {
        "That is the norm, `sqrt` of the sum. Keras leaves the root out": 39.0**0.5,
        "You halve the squares. Keras has no factor 1/2": 19.5,
        "That is the mean of the squares. Keras sums": 9.75,
        "You square the sum. Square each weight, then sum": 9.0,
        "You square the sum of |w|. Square each weight, then sum": 121.0,
        "That rewards large weights. Add the squares": -39.0,
        "That is a norm of the matrix, as `torch.linalg.norm(w, 2)`. Sum squares": (
            torch.linalg.matrix_norm(before, 2) ** 2
        ),
    }
    require_scalar(of_l1, 11.0, "With l1 = 1 and l2 = 0", l1_mistakes)
    require_scalar(of_l2, 39.0, "With l1 = 0 and l2 = 1", l2_mistakes)
    both = answer(weight, 0.5, 0.1)
    require_scalar(both, 9.4, "With l1 = 0.5 and l2 = 0.1", {})
    require_gradient(both, weight, 0.5 * weight.sign() + 0.2 * weight, "all of `w`")
    for shape in (4,), (1, 2, 2):  # of a bias, of the weight of a convolution
        place = f"Right for a matrix, not for a tensor of shape {shape}"
        got = _tried(place, answer, before.reshape(shape), 0.5, 0.1)
        require_scalar(got, 9.4, place, {})
    zeros = torch.zeros(2, requires_grad=True)
    slope = gradient(answer(zeros, 0.5, 0.1), zeros)
    if slope is not None and slope.isnan().any():
        raise NotYet(
            "For weights that are zero the gradient is nan: a root has no slope there. "
            "Take `abs` and `square`, without `sqrt`."
        )


def _tried(place: str, answer: Callable[..., Any], *given: Any) -> Any:
    try:
        return answer(*given)
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        raise NotYet(f"{place}: your code raised: {error}") from error


@exercise(
    "Do it for the size first: |w| loses `by`, but never falls below 0.",
    "`(w.abs() - by).clamp(min=0)` is the new size. What is the sign?",
    "`return w.sign() * (w.abs() - by).clamp(min=0)`",
    right="Weights within `by` of zero become exactly 0, all others lose `by`. Torch "
    "calls it `nn.functional.softshrink`.",
)
def shrink(answer: Callable[[Tensor, float], Tensor]) -> None:
    """A function of (w, by): soft thresholding."""
    weight, by = torch.tensor([-3.0, -1.0, -0.2, 0.0, 0.2, 1.0, 3.0]), 0.5
    given = weight.clone()
    got = answer(given, by)
    require_kind(got, Tensor, "a tensor", what="`shrink`")
    require_unchanged([given], [weight], "the tensor that you were given")
    mistakes = {
        "Negative weights moved away from zero. Shrink |w|, not w": weight - by,
        "0.2 became -0.3: the step jumps over zero, as plain descent does. A weight "
        "smaller than `by` must stop at 0": weight - by * weight.sign(),
        "Large weights did not change: that cuts, it does not shrink. They lose `by` "
        "as well": weight * (weight.abs() > by),
        "-3 became +2.5: the sign is lost. Multiply it back at the end": (
            (weight.abs() - by).clamp(min=0)
        ),
        "All negative weights became 0. Shrink |w|, then give the sign back": (
            (weight - by).clamp(min=0)
        ),
        "That clips: large weights became `by`": weight.clamp(-by, by),
        "That multiplies by 1 - by. Each weight loses the same amount, `by`": (
            weight * (1 - by)
        ),
        "Small weights became 0, and large negative ones moved away from zero. Shrink "
        "|w|, then give the sign back": (weight - by) * (weight.abs() > by),
        "That is the size minus `by`: it falls below 0, and the sign is lost": (
            weight.abs() - by
        ),
        "`max=0` keeps what is below 0. Keep what is above, with `min=0`": (
            weight.sign() * (weight.abs() - by).clamp(max=0)
        ),
    }
    wanted = nn.functional.softshrink(weight, by)
    require_close(got, wanted, "shrink(w, 0.5)", mistakes)
    wanted = nn.functional.softshrink(weight, 2.0)
    place = "Right for by = 0.5, not for by = 2. Is a number written in? shrink(w, 2)"
    require_close(answer(weight, 2.0), wanted, place, {})
    matrix = torch.tensor([[3.0, -0.2], [-1.0, 0.0]])
    place = "Right for one dimension, not for a matrix, as the weight of a layer is"
    got = _tried(place, answer, matrix, 0.5)
    require_close(got, nn.functional.softshrink(matrix, 0.5), place, {})


@exercise(
    "Decay adds `weight_decay * w` to the gradient. What does the penalty add?",
    "Two groups: `torch.optim.SGD([{'params': ..., 'weight_decay': ...}, "
    "{'params': ...}], lr=lr)`. A parameter with one dimension is a bias here.",
    "`weight_decay` is `2 * l2` for the parameters with `p.dim() > 1`; the group "
    "of the others has none.",
    right="The weights feel 1 + 2 * l2 * w, the biases only their own gradient: the "
    "steps of `loss + penalty(model)`.",
)
def same_as_penalty(answer: Callable[..., torch.optim.Optimizer]) -> None:
    """A function of (model, l2, lr): an optimizer with weight decay."""
    again = "Right for l2 = 0.05 and lr = 0.1. Is a number written in? "
    for l2, lr, words in (0.05, 0.1, ""), (0.2, 0.3, again):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Conv1d(4, 2, 3))
        optimizer = answer(model, l2, lr)
        _require_descent(optimizer)
        for place in (f"{words}The step", f"{words}The second step"):
            before = {name: p.detach().clone() for name, p in model.named_parameters()}
            for parameter in model.parameters():
                parameter.grad = torch.ones_like(parameter)
            optimizer.step()
            for name, parameter in model.named_parameters():
                new = parameter.detach()
                _judge_step(place, name, before[name], new, l2=l2, lr=lr)


def _require_descent(optimizer: Any) -> None:
    if isinstance(optimizer, torch.optim.Adam):  # AdamW is a subclass
        raise NotYet(
            f"That is {type(optimizer).__name__}, which rescales every step, so it "
            "does not make the steps of plain descent. Take `torch.optim.SGD`."
        )
    wanted = "one `torch.optim.SGD` over the model's parameters"
    require_kind(optimizer, torch.optim.SGD, wanted, what="`make_optimizer`")


def _judge_step(
    place: str, name: str, old: Tensor, new: Tensor, *, l2: float, lr: float
) -> None:
    def stepped(decay: float) -> Tensor:
        return old - lr * (1 + decay * old)

    if torch.equal(new, old):
        raise NotYet(
            f"`{name}`, with {old.dim()} dimension{'s' * (old.dim() > 1)}, did not "
            "move: no group of the optimizer holds it, so it never trains. Weights "
            "and biases of every layer belong there."
        )
    decay = 2 * l2 if old.dim() > 1 else 0.0
    mistakes = {
        f"`{name}`, with {old.dim()} dimensions, does not decay at all": stepped(0.0),
        f"`{name}` decays by l2 * w, half of what the penalty gives. The derivative of "
        "l2 * w**2 is 2 * l2 * w": stepped(l2),
        f"`{name}` decays by 4 * l2 * w, twice what the penalty gives": stepped(4 * l2),
        f"`{name}` decays by lr too little. SGD multiplies the decay by lr itself": (
            stepped(2 * l2 * lr)
        ),
        f"`{name}` goes along the gradient, not against it": (
            old - lr * (2 * l2 * old - 1)
        ),
    }
    if old.dim() == 1:
        text = (
            f"`{name}` has one dimension and decays too. The penalty regularizes "
            "weights only, so parameters with one dimension need a group"
        )
        mistakes = {
            f"{text} of their own": stepped(2 * l2),
            f"{text} without decay": stepped(l2),
        }
    if "second" in place and not close(new, stepped(decay)):
        raise NotYet(
            f"The first step is right, and the second step of {name} is not: the "
            "optimizer remembers the first. Plain descent has no momentum."
        )
    require_close(new, stepped(decay), f"{place} of {name}", mistakes)


@exercise(
    "`model.modules()` visits every module at every depth, and each one once.",
    "Two modules can hold one tensor. Collect the weights in a dict under "
    "`id(weight)`, and later ones replace equal keys.",
    "`weights = {id(m.weight): m.weight for m in model.modules() if isinstance(m, "
    "nn.Linear)}`, then sum the squares of its values.",
    right="Nested, shared, tied: every tensor pays once. `penalty(model)` goes by the "
    "tensor's identity in the same way.",
)
def count_once(answer: Callable[[nn.Module, float], Tensor]) -> None:
    """A function of (model, l2): the penalty of all linear weights."""
    torch.manual_seed(0)
    linear = nn.Linear(2, 3)
    inner, outer, tied, twin = (nn.Linear(2, 2) for _ in range(4))
    tied.weight = inner.weight
    twin.load_state_dict(inner.state_dict())
    part, bias = _squares(inner.weight), _squares(linear.bias)

    def count(place: str, offsets: Mistakes, *layers: nn.Module) -> None:
        _count(answer, nn.Sequential(*layers), place, offsets)

    one = nn.Sequential(nn.Linear(2, 3, bias=False))
    _count(answer, one, "For one layer", {})
    if not close(answer(one, 0.5), 0.5 * _squares(one[0].weight)):
        raise NotYet(
            "A second call with the same model gives another number. What your "
            "function remembers must not outlive the call."
        )
    count("With a bias", {"You count the bias as well": bias}, linear)
    offsets = {"You count the `LayerNorm`'s weight too. Ask for `nn.Linear`": 2.0}
    count("With a LayerNorm", offsets, linear, nn.LayerNorm(2, bias=False))
    table = nn.Embedding(2, 2)
    offsets = {
        "You count the table of an `Embedding` too. Ask for `nn.Linear`": (
            _squares(table.weight)
        )
    }
    count("With an Embedding", offsets, table, linear)
    offsets = {
        "A layer inside an inner `Sequential` is missing. `modules()` goes all the way "
        "down": -part
    }
    deep = nn.Sequential(nn.Sequential(nn.Sequential(inner)))
    offsets["Two layers of the same shape paid once"] = -_squares(outer.weight)
    count("With a model inside the model", offsets, outer, deep)
    residual = nn.Module()
    residual.inside = inner
    offsets = {
        "A layer inside a module that is no `Sequential` is missing. `modules()` "
        "visits every kind": -part
    }
    count("With a module of another kind", offsets, outer, residual)
    frozen = copy.deepcopy(inner).requires_grad_(False)
    offsets = {"A frozen layer pays nothing. It is in the model": -part}
    count("With a frozen layer", offsets, outer, frozen)
    offsets = {"A layer that stands twice in the model paid twice": part}
    count("With a repeated layer", offsets, inner, nn.Tanh(), inner)
    offsets = {
        "Two layers that share one tensor paid twice. Compare the tensors, not the "
        "layers": part
    }
    count("With tied weights", offsets, inner, tied)
    offsets = {
        "Two layers that happen to hold the same numbers paid once. Ask whether it is "
        "the same tensor (`id`), not whether the values agree": -part
    }
    count("With equal numbers", offsets, inner, twin)
    weight, got = linear.weight, answer(nn.Sequential(linear), 2.0)
    place = "Right for l2 = 0.5, not for l2 = 2. Is a number written in? For one layer"
    require_scalar(got, 2 * _squares(weight), place, {})
    require_gradient(got, weight, 4 * weight, "the weights")


def _count(
    answer: Callable[[nn.Module, float], Tensor],
    model: nn.Module,
    place: str,
    offsets: Mistakes,
) -> None:
    l2 = 0.5
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    weights = {id(m.weight): m.weight for m in linears}.values()
    total = sum(map(_squares, weights))
    mistakes = {text: l2 * (total + offset) for text, offset in offsets.items()}
    mistakes |= {
        "That sums norms. Leave out the root": (
            l2 * sum(_squares(weight) ** 0.5 for weight in weights)
        ),
        "l2 is missing: multiply by it": total,
        "You halve the squares": l2 * total / 2,
        "That takes the mean of the squares. Sum them": (
            l2 * sum(_squares(weight) / weight.numel() for weight in weights)
        ),
    }
    require_scalar(answer(model, l2), l2 * total, place, mistakes)
    if penalties(model):
        raise NotYet(
            "Your function leaves regularizers on the layers, and the next training "
            "pays for them. Sum the squares yourself, without `regularize`."
        )


def _squares(tensor: Tensor) -> float:
    return float(tensor.detach().square().sum())


@exercise(
    "Two loops, epochs around batches. In the inner one: the loss, the step, the "
    "shrinking, in this order. `{m.weight for m in model.modules() if isinstance(m, "
    "nn.Linear)}` are the weights, each tensor once.",
    "Call `backward` on `cross_entropy + l2 * squares`, with gradients that were set "
    "to zero before, and note `cross_entropy.item()` alone. `torch.optim.SGD` makes "
    "the step.",
    "After `sgd.step()`: `for w in weights: w.data = nn.functional.softshrink(w.data, "
    "lr * l1)`. After the batches: `history.append(sum(losses) / len(losses))`.",
    right="The step, the penalty, the shrinking and what you report are right, for "
    "tied, repeated and nested layers too. Try it on the digits with wrong labels: "
    "`batches = list(torch.utils.data.DataLoader(few, 50))`, and a model in "
    "`.double()`.",
)
def train(answer: Callable[..., Sequence[float]]) -> None:
    """A function of (model, batches, l1, l2, lr, epochs): the cross entropies."""
    judge_loop(answer, "With one batch, l1 = 0 and l2 = 0", 1, Setting(0, 0, 0.5, 1))
    judge_loop(answer, "With three batches", 3, Setting(0, 0, 0.5, 1))
    judge_loop(answer, "With three batches and two epochs", 3, Setting(0, 0, 0.5, 2))
    judge_loop(answer, "With l2 = 0.1 and one batch", 1, Setting(0, 0.1, 0.4, 1))
    judge_loop(answer, "With l2 = 0.1", 3, Setting(0, 0.1, 0.4, 2))
    judge_loop(answer, "With l1 = 0.1 and one batch", 1, Setting(0.1, 0, 0.4, 1))
    judge_loop(answer, "With l1 = 0.1", 3, Setting(0.1, 0, 0.4, 2))
    judge_loop(answer, "With l1 = 0.2 and l2 = 2", 3, Setting(0.2, 2, 0.05, 2))
