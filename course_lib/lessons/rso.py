"""The exercises of lesson 07, Train without gradients.

The oracles are hand arithmetic, and torch's own `calculate_gain` and storage addresses;
none of them is the search that the lesson teaches.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from course_lib.lessons.exercises import Exercise, NotYet, require_written

NUMBER = 7

Mistakes = Sequence[tuple[float, str]]


# The judges


def _judge_assign(answer: Callable[[nn.Module, list[Tensor]], object]) -> str:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2, bias=False))
    parameters = list(model.parameters())
    old = [p.detach().clone() for p in parameters]
    values = [torch.randn(p.shape) for p in parameters]
    wanted = [v.clone() for v in values]
    answer(model, values)
    now = list(model.parameters())
    if any(a is not b for a, b in zip(now, parameters, strict=True)):
        raise NotYet(
            "The model has new parameters. Whoever holds the old ones, such as an "
            "optimizer, trains weights that nobody uses. Fill the old ones in place."
        )
    _judge_filled(now, old, values, wanted)
    _judge_own_memory(now, values)
    return (
        "The numbers moved and nothing else did: the same tensors, with memory of "
        "their own, and ready to be trained."
    )


def _judge_filled(
    now: list[Tensor], old: list[Tensor], values: list[Tensor], wanted: list[Tensor]
) -> None:
    if not all(map(torch.equal, values, wanted)):
        raise NotYet("You changed the tensors in `values`. They belong to the caller.")
    same = [torch.equal(a, b) for a, b in zip(now, old, strict=True)]
    if all(same):
        raise NotYet(
            "The model has not changed. `weight = ...` only gives the name `weight` to "
            "another tensor; write into the one that the model holds."
        )
    if any(same):
        raise NotYet("Only some of the parameters have changed. Fill each of them.")
    sums = (torch.add(b, w) for b, w in zip(old, wanted, strict=True))
    if all(map(torch.allclose, now, sums)):
        raise NotYet("You added the values to the old weights. Replace them.")
    if not all(map(torch.equal, now, wanted)):
        raise NotYet("The weights have changed, but they are not those of `values`.")


def _judge_own_memory(now: list[Tensor], values: list[Tensor]) -> None:
    if any(a.data_ptr() == v.data_ptr() for a, v in zip(now, values, strict=True)):
        raise NotYet(
            "The model now shares its memory with `values`: who changes `values` later "
            "changes the model. Copy the numbers."
        )
    if not all(p.requires_grad and p.is_leaf for p in now):
        raise NotYet(
            "The parameters can't be trained by gradients any more. Leave "
            "`requires_grad` as it was; `torch.no_grad()` around the copy is enough."
        )


# (what it is about, w, dw, losses at w, w + dw and w - dw)
_CASES = (
    ("only w - dw is better", 1.5, 0.25, (20.0, 30.0, 10.0)),
    ("w - dw is the best", 1.5, 0.25, (30.0, 20.0, 10.0)),
    ("w + dw is the best", 1.5, 0.25, (30.0, 10.0, 20.0)),
    ("staying is the best", 0.1, 0.7, (10.0, 20.0, 30.0)),
    ("w and w + dw are equal", 0.1, 0.7, (10.0, 10.0, 30.0)),
    ("w and w - dw are equal", 0.1, 0.7, (10.0, 30.0, 10.0)),
    ("both candidates are equal, and better", 2.5, -0.25, (30.0, 10.0, 10.0)),
    ("nothing makes a difference", 0.1, 0.7, (10.0, 10.0, 10.0)),
    ("the losses are negative", 0.1, 0.7, (-20.0, -30.0, -10.0)),
    ("all losses are large", 0.1, 0.7, (1e9, 2e9, 3e9)),
)


def _judge_best(
    answer: Callable[[Callable[[float], float], float, float], float],
) -> str:
    for about, w, dw, losses in _CASES:
        candidates = (w, w + dw, w - dw)
        seen: list[float] = []
        got = answer(_table(candidates, losses, seen), w, dw)
        require_written(got)
        _judge_winner(got, about, candidates, losses)
        if len(set(seen)) < 3:
            raise NotYet(
                f"You ask for {len(set(seen))} of the three losses. The one that you "
                "leave out may be the best."
            )
    return "The best of three, and a weight without effect does not wander."


def _table(
    candidates: Sequence[float], losses: Sequence[float], seen: list[float]
) -> Callable[[float], float]:
    def loss(w: float) -> float:
        nearest = min(range(3), key=lambda i: abs(candidates[i] - w))
        if abs(candidates[nearest] - w) > 1e-6:
            raise NotYet(
                f"You ask for the loss at {w:g}; wanted only w, w + dw and w - dw, "
                f"which are {', '.join(f'{c:g}' for c in candidates)} here."
            )
        seen.append(candidates[nearest])
        return losses[nearest]

    return loss


def _judge_winner(
    got: object, about: str, candidates: Sequence[float], losses: Sequence[float]
) -> None:
    if isinstance(got, bool) or not isinstance(got, int | float):
        raise NotYet(
            f"You returned {type(got).__name__}; wanted one number, the winner itself."
        )
    w, plus, minus = candidates
    lowest = min(losses)
    winner = candidates[losses.index(lowest)]
    place = f"Where {about}"
    if got == winner:
        return
    if losses.count(lowest) > 1 and lowest == losses[0] and got in (plus, minus):
        raise NotYet(
            f"{place}, you move the weight. A tie must keep it, or weights without "
            "effect wander about. Let `w` stand first."
        )
    if losses.count(lowest) > 1 and got == minus:  # of two equal ones, either is good
        return
    if abs(got - w) < 1e-9 and got != w:
        raise NotYet(
            f"{place}, you return {got!r} and not {w!r}. (w + dw) - dw is not always "
            "w: remember w itself."
        )
    if got == lowest:
        raise NotYet("You return the best loss; wanted the weight that gives it.")
    if got in (0, 1, 2, -1):
        raise NotYet(
            f"{place}, you return {got}. That looks like a position; wanted the weight."
        )
    if got in candidates and losses[candidates.index(got)] > losses[0]:
        raise NotYet(f"{place}, you keep a change although the loss rose.")
    if got == w:
        raise NotYet(f"{place}, you stay, although a candidate has a lower loss.")
    if got in candidates:
        raise NotYet(f"{place}, you return the second best. Compare all three losses.")
    raise NotYet(f"{place}, you return {got!r}; wanted {winner!r}.")


def _judge_passes(answer: Callable[[nn.Module, int], int]) -> str:
    dense = nn.Linear(4, 3, bias=False)  # 12 weights
    _count(answer, nn.Sequential(dense), 1, 36, "For 12 weights in one cycle", _PLAIN)
    _count(answer, nn.Sequential(dense), 5, 180, "In five cycles", _CYCLES)
    frozen = nn.Sequential(dense, nn.Linear(3, 2, bias=False).requires_grad_(False))
    text = "You count a frozen parameter. Ask for `requires_grad`"
    _count(answer, frozen, 2, 72, "With a frozen layer", [(108, text)])
    mixed = nn.Sequential(dense, nn.Linear(3, 2))
    text = "The bias is missing. It is a parameter like any other"
    _count(answer, mixed, 2, 120, "With a layer that has a bias", [(108, text)])
    square = nn.Linear(3, 3, bias=False)
    tied = nn.Sequential(square, nn.ReLU(), square)
    text = "A tensor that stands twice in the model is counted twice"
    _count(answer, tied, 1, 27, "With one layer at two places", [(54, text)])
    return (
        "48,672 for the network that we train below: batches, cycles and engines "
        "change how long a pass takes, not how many decisions there are."
    )


_PLAIN = (
    (12, "One pass for each weight can't compare anything"),
    (24, "`keep` needs a pass of its own: its old loss was on another mini-batch"),
    (3, "You count tensors. Each *number* in them is a weight: `numel()`"),
    (9, "You count rows. Each *number* is a weight: `numel()`"),
    (37, "You take one more pass. Writing the winner back needs none"),
    (48, "Four passes for each weight. Writing the winner back needs none"),
)
_CYCLES = (
    (36, "The cycles are missing"),
    (12 * 2 * 5, "Two passes for each weight"),
)


def _count(
    answer: Callable[[nn.Module, int], int],
    model: nn.Module,
    cycles: int,
    wanted: int,
    place: str,
    mistakes: Mistakes,
) -> None:
    got = answer(model, cycles)
    require_written(got)
    if isinstance(got, Tensor):
        raise NotYet("You returned a tensor; wanted an int. `numel()` gives one.")
    if got == wanted:
        return
    for wrong, text in mistakes:
        if got == wrong:
            raise NotYet(f"{text}. {place}: got {got}, wanted {wanted}.")
    raise NotYet(f"{place}: got {got}, wanted {wanted}.")


def _judge_he(answer: Callable[[Tensor], float]) -> str:
    weights = {
        "a linear layer, 5 inputs, 7 outputs": nn.Linear(5, 7).weight,
        "a convolution, 6 to 4 channels, 3 x 5": nn.Conv2d(6, 4, (3, 5)).weight,
        "a convolution in 2 groups": nn.Conv2d(6, 4, 3, groups=2).weight,
    }
    fans = (5, 6 * 3 * 5, 3 * 3 * 3)
    for (name, weight), fan_in in zip(weights.items(), fans, strict=True):
        got = answer(weight)
        require_written(got)
        value = float(got)
        wanted = nn.init.calculate_gain("relu") / math.sqrt(fan_in)
        if not math.isclose(value, wanted, rel_tol=1e-4):
            raise NotYet(_he_mistake(value, weight, wanted, fan_in, name))
    return (
        "One rule for both kinds of layer: two, divided by all that feeds one output, "
        "under the root."
    )


def _he_mistake(
    value: float, weight: Tensor, wanted: float, fan_in: int, name: str
) -> str:
    outputs = len(weight)
    others = (
        (2 / fan_in, "The root is missing: 2 / fan-in is the variance"),
        (1 / fan_in**0.5, "The 2 is missing. ReLU cuts half of the outputs off"),
        ((2 / weight.numel()) ** 0.5, "You divide by the whole tensor"),
        ((2 / outputs) ** 0.5, "You divide by the number of outputs, the fan-out"),
        (float(outputs), "That is the number of outputs"),
        (outputs * weight[0, 0].numel(), "That is the fan-out"),
        (
            (2 / (outputs * weight[0, 0].numel())) ** 0.5,
            "That is the fan-out: outputs times kernel. Which numbers does one "
            "*output* add up?",
        ),
        (
            (2 / weight.shape[1]) ** 0.5,
            "You count the channels and forget the kernel: each output adds up "
            "height * width numbers of each channel",
        ),
        (float(fan_in), "That is the fan-in itself; wanted sqrt(2 / fan-in)"),
    )
    numbers = f"For {name}: got {value:.4f}, wanted {wanted:.4f}."
    for wrong, text in others:
        if math.isclose(value, wrong, rel_tol=1e-4):
            return f"{text}. {numbers}"
    return numbers


def _judge_anneal(answer: Callable[[float, int, int, float], float]) -> str:
    last = answer(1.0, 4, 5, 0.1)
    require_written(last)
    first = answer(1.0, 0, 5, 0.1)
    if math.isclose(last, 0.28):
        raise NotYet(
            "The last cycle still has 0.28 of sigma. You divide by `cycles`, as the "
            "authors' code does; between 5 cycles there are 4 steps."
        )
    if math.isclose(first, 0.1) and math.isclose(last, 1.0):
        raise NotYet("That grows from 0.1 to 1. Sigma should fall.")
    if math.isclose(first, 0.82):
        raise NotYet("The first cycle is already smaller. `cycle` counts from 0.")
    if abs(last) < 1e-9:
        raise NotYet("You end at 0; wanted final * sigma in the last cycle.")
    for got, wanted, where in ((first, 1.0, "first"), (last, 0.1, "last")):
        if not math.isclose(got, wanted):
            raise NotYet(
                f"In the {where} of 5 cycles, with sigma = 1 and final = 0.1: got "
                f"{got:.3g}, wanted {wanted:.3g}."
            )
    _judge_between(answer)
    return "A line from sigma to final * sigma, both ends included."


def _judge_between(answer: Callable[[float, int, int, float], float]) -> None:
    middle = answer(1.0, 2, 5, 0.1)
    if math.isclose(middle, 0.1**0.5):
        raise NotYet(
            "That is a geometric fall: each cycle divides by the same number. Wanted a "
            "line, which is at 0.55 in the middle."
        )
    if not math.isclose(middle, 0.55):
        raise NotYet(f"In the middle: got {middle:.3g}, wanted 0.55.")
    if not math.isclose(answer(2.0, 2, 5, 0.1), 1.1):
        raise NotYet("With sigma = 2 all values should double.")
    if not math.isclose(answer(1.0, 2, 5, 0.5), 0.75):
        raise NotYet("With final = 0.5 the middle is 0.75. Is a 0.1 or 0.9 fixed?")
    try:
        alone = answer(1.0, 0, 1, 0.1)
    except ZeroDivisionError:
        raise NotYet(
            "With a single cycle you divide by zero. There is no line then; use sigma."
        ) from None
    if not math.isclose(alone, 1.0):
        raise NotYet(f"A single cycle: got {alone:.3g}, wanted sigma itself, 1.")


assign = Exercise(
    "rso.assign",
    _judge_assign,
    (
        "A name is not a place. Which methods of a tensor write into it?",
        "`weight.copy_(fresh)` does; torch complains unless gradients are off.",
        "Put `with torch.no_grad():` around `weight.copy_(fresh)`.",
    ),
)
best = Exercise(
    "rso.best",
    _judge_best,
    (
        "Three candidates, three losses, and the candidate with the least of them.",
        "`min(candidates, key=loss)` finds it. Of several equals it takes the first.",
        "`return min([w, w + dw, w - dw], key=loss)`",
    ),
)
passes = Exercise(
    "rso.passes",
    _judge_passes,
    (
        "How many candidates has a weight, and is any of their losses known before?",
        "`p.numel()` counts the numbers in a parameter; `model.parameters()` gives "
        "each parameter once.",
        "3 * cycles * the sum of `p.numel()` over those with `p.requires_grad`.",
    ),
)
he = Exercise(
    "rso.he",
    _judge_he,
    (
        "How many numbers of the weight does *one* output use?",
        "Those of the first output are `weight[0]`. How many are they?",
        "`return (2 / weight[0].numel()) ** 0.5`",
    ),
)
anneal = Exercise(
    "rso.anneal",
    _judge_anneal,
    (
        "Which part of the way is done at `cycle`? It is 0 at first and 1 at last.",
        "`cycle / (cycles - 1)`; look out for a single cycle. From there it is a line "
        "from 1 to `final`.",
        "`return sigma * (1 - (1 - final) * done)`",
    ),
)
