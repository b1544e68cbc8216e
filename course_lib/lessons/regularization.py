"""Exercises of lesson 02, Store a penalty with its layer.

Each judge compares with a closed form, with autograd or with torch's own function,
and tries the likely mistakes by name before it says "something else".
"""

from collections.abc import Callable

import torch
import torch._dynamo  # else the first check does, on its clock
from torch import Tensor, nn

from course_lib.lessons.checks import (
    Mistakes,
    close,
    require_close,
    require_gradient,
    require_kind,
    require_scalar,
    require_unchanged,
)
from course_lib.lessons.exercises import NotYet, exercise

NUMBER = 2


@exercise(
    "Two sums over all weights: one of |w|, one of w squared.",
    "`w.abs().sum()` and `w.square().sum()`, each times its coefficient.",
    "`return l1 * w.abs().sum() + l2 * w.square().sum()`",
    right="0.5 * 10 + 0.1 * 30 = 8, and autograd finds `l1 * sign(w) + 2 * l2 * w`. "
    "`L1L2` computes the same.",
)
def by_hand(answer: Callable[[Tensor, float, float], Tensor]) -> None:
    """A function of (w, l1, l2): the penalty."""
    weight = torch.tensor([[1.0, -2.0], [3.0, -4.0]], requires_grad=True)
    of_l1, of_l2 = answer(weight, 1.0, 0.0), answer(weight, 0.0, 1.0)
    l1_mistakes = {
        "That is the plain sum: negative weights pay less than nothing. Take `abs`": -2,
        "That is the mean of |w|. Keras sums; a mean shrinks as the layer grows": 2.5,
        "That is the square of the sum of |w|. The l1 term has no square": 100.0,
    }
    l2_mistakes = {
        "That is the norm, `sqrt` of the sum. Keras leaves the root out": 30.0**0.5,
        "You halve the squares. Keras has no factor 1/2": 15.0,
        "That is the mean of the squares. Keras sums": 7.5,
        "You square the sum. Square each weight, then sum": 4.0,
        "You square the sum of |w|. Square each weight, then sum": 100.0,
    }
    require_scalar(of_l1, 10.0, "With l1 = 1 and l2 = 0", l1_mistakes)
    require_scalar(of_l2, 30.0, "With l1 = 0 and l2 = 1", l2_mistakes)
    both = answer(weight, 0.5, 0.1)
    require_scalar(both, 8.0, "With l1 = 0.5 and l2 = 0.1", {})
    require_gradient(both, weight, 0.5 * weight.sign() + 0.2 * weight, "all of `w`")


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
    }
    wanted = nn.functional.softshrink(weight, by)
    require_close(got, wanted, "shrink(w, 0.5)", mistakes)
    wanted = nn.functional.softshrink(weight, 2.0)
    place = "Right for by = 0.5, not for by = 2. Is a number written in? shrink(w, 2)"
    require_close(answer(weight, 2.0), wanted, place, {})


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
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    optimizer = answer(model, 0.05, 0.1)
    if isinstance(optimizer, torch.optim.Adam):  # AdamW is a subclass
        raise NotYet(
            f"That is {type(optimizer).__name__}, which rescales every step, so it "
            "does not make the steps of plain descent. Take `torch.optim.SGD`."
        )
    wanted = "a `torch.optim.SGD` over the model's parameters"
    require_kind(optimizer, torch.optim.SGD, wanted, what="`make_optimizer`")
    for place in ("The step", "The second step"):
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        for name, parameter in model.named_parameters():
            _judge_step(place, name, before[name], parameter.detach(), l2=0.05, lr=0.1)


def _judge_step(
    place: str, name: str, old: Tensor, new: Tensor, *, l2: float, lr: float
) -> None:
    def stepped(decay: float) -> Tensor:
        return old - lr * (1 + decay * old)

    if torch.equal(new, old):
        raise NotYet(
            f"`{name}` did not move: no group of the optimizer holds it, so it never "
            "trains. Weights and biases both belong there."
        )
    if old.dim() > 1:
        decay = 2 * l2
        mistakes = {
            f"`{name}` does not decay at all": stepped(0.0),
            f"`{name}` decays by l2 * w, half of what the penalty gives. The "
            "derivative of l2 * w**2 is 2 * l2 * w": stepped(l2),
        }
    else:
        decay = 0.0
        text = f"`{name}` has one dimension and decays too. The penalty regularizes "
        mistakes = {
            f"{text}weights only, so parameters with one dimension need a group "
            "of their own": (stepped(2 * l2)),
            f"{text}weights only, so parameters with one dimension need a group "
            "without decay": (stepped(l2)),
        }
    if place != "The step" and not close(new, stepped(decay)):
        raise NotYet(
            f"The first step is right, and the second step of {name} is not: the "
            "optimizer remembers the first. Plain descent has no momentum."
        )
    require_close(new, stepped(decay), f"{place} of {name}", mistakes)


@exercise(
    "Return a function: define one inside, and name it on the return line.",
    "When is `layer.weight` read: when `with_penalty` runs, or when the inner "
    "function does? It must be the second.",
    "`return lambda outputs, labels: loss(outputs, labels) + l2 * "
    "layer.weight.square().sum()`",
    right="The sum stands inside the function, so each call reads the current weights, "
    "and their gradient flows.",
)
def with_penalty(answer: Callable[..., Callable[..., Tensor]]) -> None:
    """A function of (loss, layer, l2): the loss with the layer's penalty."""
    torch.manual_seed(0)
    layer, l2 = nn.Linear(3, 2), 0.1
    batch = torch.randn(5, 3), torch.tensor([0, 1, 1, 0, 1])
    loss = answer(_doubled, layer, l2)
    wanted = "a function of (outputs, labels), and not a number that never changes"
    require_kind(loss, Callable, wanted, what="`with_penalty`")
    first = _squares(layer.weight, l2)
    _judge_loss(loss, layer, batch, (l2, first, "At the first call"))
    with torch.no_grad():
        layer.weight.mul_(3.0)
        layer.bias.add_(1.0)
    _judge_loss(loss, layer, batch, (l2, first, "After the weights have changed"))
    layer.weight = nn.Parameter(torch.ones(2, 3))
    _judge_loss(
        loss, layer, batch, (l2, first, "After `layer.weight` is another tensor")
    )


def _doubled(outputs: Tensor, labels: Tensor) -> Tensor:
    return 2 * nn.functional.cross_entropy(outputs, labels)


def _judge_loss(
    loss: Callable[..., Tensor],
    layer: nn.Linear,
    batch: tuple[Tensor, Tensor],
    setting: tuple[float, float, str],
) -> None:
    l2, first, place = setting
    inputs, labels = batch
    plain = _doubled(layer(inputs), labels)
    now, without = _squares(layer.weight, l2), plain.item()
    got = loss(layer(inputs), labels)
    mistakes = {
        "That is the penalty alone. Add `loss(outputs, labels)`": now,
        "It still adds the penalty of the first weights: that number was computed "
        "once, outside of the function": without + first,
        "That is the loss without any penalty": without,
        "That is the cross entropy, whatever loss you were given. Call `loss`": (
            without / 2 + now
        ),
        "You halve the squares": without + now / 2,
        "That adds the norm. Leave out the root": without + (now * l2) ** 0.5,
        "The bias pays too. Only `layer.weight` should": (
            without + now + _squares(layer.bias, l2)
        ),
    }
    require_scalar(got, without + now, place, mistakes)
    alone = torch.autograd.grad(plain, layer.weight)[0]
    wanted = alone + 2 * l2 * layer.weight
    require_gradient(got, layer.weight, wanted, "the weights through the penalty")


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
    part, bias = _squares(inner.weight, 1.0), _squares(linear.bias, 1.0)

    def count(place: str, offsets: Mistakes, *layers: nn.Module) -> None:
        _count(answer, nn.Sequential(*layers), place, offsets)

    count("For one layer", {}, nn.Linear(2, 3, bias=False))
    count("With a bias", {"You count the bias as well": bias}, linear)
    offsets = {"You count the `LayerNorm`'s weight too. Ask for `nn.Linear`": 2.0}
    count("With a LayerNorm", offsets, linear, nn.LayerNorm(2, bias=False))
    table = nn.Embedding(2, 2)
    offsets = {
        "You count the table of an `Embedding` too. Ask for `nn.Linear`": (
            _squares(table.weight, 1.0)
        )
    }
    count("With an Embedding", offsets, table, linear)
    offsets = {
        "A layer inside an inner `Sequential` is missing. `modules()` goes all the way "
        "down": -part
    }
    count("With a model inside the model", offsets, outer, nn.Sequential(inner))
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
    weight, got = linear.weight, answer(nn.Sequential(linear), 1.0)
    require_gradient(got, weight, 2 * weight, "the weights")


def _count(
    answer: Callable[[nn.Module, float], Tensor],
    model: nn.Module,
    place: str,
    offsets: Mistakes,
) -> None:
    l2 = 0.5
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    distinct = {id(m.weight): m.weight for m in linears}
    wanted = sum(_squares(weight, l2) for weight in distinct.values())
    norms = sum(_squares(weight, 1.0) ** 0.5 for weight in distinct.values())
    mistakes = {text: wanted + l2 * offset for text, offset in offsets.items()}
    mistakes["That sums norms. Leave out the root"] = l2 * norms
    require_scalar(answer(model, l2), wanted, place, mistakes)


def _squares(tensor: Tensor, l2: float) -> float:
    return l2 * float(tensor.detach().square().sum())


@exercise("a", "b", "c", right="x")
def train(answer: Callable[..., list[float]]) -> None:
    """Placeholder."""
    require_kind(answer(None, [], 0, 0, 0, 0), list, "a list")
