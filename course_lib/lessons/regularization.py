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
from course_lib.lessons.regularized_loop import (
    SLIPS,
    Batches,
    Run,
    Setting,
    descend,
)

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
    reject(
        {
            "That is the gradient, a number for each weight. Return the penalty "
            "itself, one number; autograd finds the gradient.": (
                close(of_l1, weight.sign()) and close(of_l2, 2 * weight)
            )
        }
    )
    l1_mistakes = {
        "That is the plain sum: negative weights pay less than nothing. Take `abs`": -2,
        "That is the mean of |w|. Keras sums; a mean shrinks as the layer grows": 2.5,
        "That is the square of the sum of |w|. The l1 term has no square": 100.0,
        "l1 and l2 have changed places: l1 goes with |w|": 30.0,
        "Each coefficient is applied to both sums. l1 goes with |w| alone": 40.0,
        "That is the largest |w|. Sum over all": 4.0,
        "That is |sum of w|. Take `abs` of each weight first": 2.0,
    }
    l2_mistakes = {
        "That is the norm, `sqrt` of the sum. Keras leaves the root out": 30.0**0.5,
        "You halve the squares. Keras has no factor 1/2": 15.0,
        "That is the mean of the squares. Keras sums": 7.5,
        "You square the sum. Square each weight, then sum": 4.0,
        "You square the sum of |w|. Square each weight, then sum": 100.0,
        "That rewards large weights. Add the squares": -30.0,
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
    _judge_optimizer(answer, 0.05, 0.1, "")
    words = "Right for l2 = 0.05 and lr = 0.1. Is a number written in? "
    _judge_optimizer(answer, 0.2, 0.3, words)


def _judge_optimizer(
    answer: Callable[..., torch.optim.Optimizer], l2: float, lr: float, words: str
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    optimizer = answer(model, l2, lr)
    if isinstance(optimizer, torch.optim.Adam):  # AdamW is a subclass
        raise NotYet(
            f"That is {type(optimizer).__name__}, which rescales every step, so it "
            "does not make the steps of plain descent. Take `torch.optim.SGD`."
        )
    wanted = "one `torch.optim.SGD` over the model's parameters"
    require_kind(optimizer, torch.optim.SGD, wanted, what="`make_optimizer`")
    for place in ("The step", "The second step"):
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        for name, parameter in model.named_parameters():
            old, new = before[name], parameter.detach()
            _judge_step(f"{words}{place}", name, old, new, l2=l2, lr=lr)


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
            f"`{name}` decays by 4 * l2 * w, twice what the penalty gives": (
                stepped(4 * l2)
            ),
            f"`{name}` decays by lr too little. SGD multiplies the decay by lr "
            "itself": stepped(2 * l2 * lr),
            f"`{name}` goes along the gradient, not against it": (
                old - lr * (2 * l2 * old - 1)
            ),
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
    weight, got = linear.weight, answer(nn.Sequential(linear), 2.0)
    place = "Right for l2 = 0.5, not for l2 = 2. Is a number written in? For one layer"
    require_scalar(got, _squares(weight, 2.0), place, {})
    require_gradient(got, weight, 4 * weight, "the weights")


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
    mistakes["l2 is missing: multiply by it"] = wanted / l2
    mistakes["You halve the squares"] = wanted / 2
    require_scalar(answer(model, l2), wanted, place, mistakes)


def _squares(tensor: Tensor, l2: float) -> float:
    return l2 * float(tensor.detach().square().sum())


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
    _judge_loop(answer, "With one batch, l1 = 0 and l2 = 0", 1, Setting(0, 0, 0.5, 1))
    _judge_loop(answer, "With three batches", 3, Setting(0, 0, 0.5, 1))
    _judge_loop(answer, "With three batches and two epochs", 3, Setting(0, 0, 0.5, 2))
    _judge_loop(answer, "With l2 = 0.1 and one batch", 1, Setting(0, 0.1, 0.5, 1))
    _judge_loop(answer, "With l2 = 0.1", 3, Setting(0, 0.1, 0.5, 2))
    _judge_loop(answer, "With l1 = 0.1 and one batch", 1, Setting(0.1, 0, 0.5, 1))
    _judge_loop(answer, "With l1 = 0.1", 3, Setting(0.1, 0, 0.5, 2))
    _judge_loop(answer, "With l1 = 0.2 and l2 = 0.1", 3, Setting(0.2, 0.1, 0.25, 2))


class _Small(nn.Module):
    """A nested layer, a repeated one, two that share a tensor, and a LayerNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.inner = nn.Sequential(nn.Tanh(), nn.Linear(3, 3), nn.Tanh())
        self.norm = nn.LayerNorm(3)
        self.tied = nn.Linear(3, 3)
        self.tied.weight = self.first.weight
        self.last = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.inner(self.inner(self.first(x))))
        return self.last(torch.tanh(self.tied(x)))


def _judge_loop(
    answer: Callable[..., Sequence[float]], place: str, count: int, setting: Setting
) -> None:
    generator = torch.Generator().manual_seed(count)
    batches = [
        (torch.randn(4, 3, generator=generator), torch.tensor([0, 1, 1, i % 2]))
        for i in range(count)
    ]
    torch.manual_seed(0)
    model = _Small()
    trained = copy.deepcopy(model)
    got = _history(_run_loop(answer, trained, batches, setting))
    right = descend(model, batches, setting)
    found = {name: p.detach() for name, p in trained.named_parameters()}
    _judge_parameters(place, found, right, model, batches, setting)
    _judge_history(place, got, right, setting.epochs)


def _run_loop(
    answer: Callable[..., Any], model: nn.Module, batches: Batches, setting: Setting
) -> Any:
    """Call the answer; say what torch's errors mean here."""
    words = {
        "backward through the graph a second time": "The penalty was computed once, "
        "before the loop, and its graph is gone after the first `backward`. Compute it "
        "for each batch, from the weights of then.",
        "modified by an inplace operation": "The penalty was computed before the "
        "weights moved. Compute it for each batch, from the weights of then.",
        "leaf Variable that requires grad": "A weight is changed in place while "
        "autograd looks on. Put `with torch.no_grad():` around the shrinking.",
    }
    try:
        return answer(model, batches, *setting)
    except RuntimeError as error:
        for text, meaning in words.items():
            if text in str(error):
                raise NotYet(meaning) from error
        raise


def _history(got: Any) -> list[float]:
    require_kind(got, object, "a list of numbers", what="`train`")
    try:
        reject(
            {
                "The numbers still carry the graphs of their batches, which stay in "
                "memory. Note `loss.item()`.": any(
                    isinstance(number, Tensor) and number.requires_grad
                    for number in got
                )
            }
        )
        return [float(number) for number in got]
    except (TypeError, ValueError) as error:
        raise NotYet(
            f"`train` returned {type(got).__name__}; wanted a list with one number "
            "for each epoch."
        ) from error


def _judge_parameters(
    place: str,
    found: dict[str, Tensor],
    right: Run,
    model: nn.Module,
    batches: Batches,
    setting: Setting,
) -> None:
    def are(wanted: dict[str, Tensor]) -> bool:
        return found.keys() == wanted.keys() and all(
            close(found[name], p.detach()) for name, p in wanted.items()
        )

    if are(right.parameters):
        return
    reject(
        {
            f"{place}: layers hold other tensors now, and two that shared one do not. "
            "Change the numbers of a weight, as `w.data = ...` does, not the weight "
            "of a layer.": found.keys() != right.parameters.keys(),
            f"{place}: the model did not move. Is there a step, on this model's own "
            "parameters?": are(dict(model.named_parameters())),
        }
    )
    for name, slip in SLIPS.items():
        if are(descend(model, batches, setting, slip).parameters):
            raise NotYet(f"{name}. ({place}.)")
    wrong = next(n for n, p in right.parameters.items() if not close(found[n], p))
    raise NotYet(
        f"{place}: got {as_text(found[wrong])}, wanted "
        f"{as_text(right.parameters[wrong].detach())} as `{wrong}`. "
        + (
            "Fewer batches and coefficients were right, so look at what is new."
            if any(setting[:2]) or len(batches) > 1
            else "Make one step of `torch.optim.SGD(model.parameters(), lr=lr)`, with "
            "the gradient of the cross entropy."
        )
    )


def _judge_history(place: str, got: list[float], right: Run, epochs: int) -> None:
    every = [loss for losses in right.losses for loss in losses]
    wanted = torch.tensor(right.losses).mean(dim=1)
    mistakes = {
        "That is the sum over the batches. Take the mean": torch.tensor(
            right.losses
        ).sum(dim=1),
        "That is the last batch of each epoch. Take the mean over its batches": (
            torch.tensor(right.losses)[:, -1]
        ),
        "That is the first batch of each epoch. Take the mean over its batches": (
            torch.tensor(right.losses)[:, 0]
        ),
    }
    reject(
        {
            f"{place}: got one number for each batch. Wanted one for each epoch.": (
                len(got) == len(every) != epochs
            ),
            f"{place}: got {len(got)} numbers; wanted {epochs}, one for each epoch.": (
                len(got) != epochs
            ),
        }
    )
    got = torch.tensor(got)
    if close(got, wanted):
        return
    for name, wrong in mistakes.items():
        if close(got, wrong):
            raise NotYet(
                f"The weights are right, the numbers returned are not. {name}."
            )
    raise NotYet(
        "The weights are right, the numbers returned are not. Note the cross entropy "
        "before the step, and without the penalty. "
        f"{place}: got {as_text(got)}, wanted {as_text(wanted)}."
    )
