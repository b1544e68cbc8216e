"""The exercises of lesson 08, Get the same answer many times faster.

The oracles are hand arithmetic and torch's own layers, run in full: none of them
remembers or shares anything.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from course_lib.lessons.exercises import Exercise, NotYet, require_written

NUMBER = 8

Shares = Sequence[tuple[list[float], int]]


# The judges


def _judge_seconds(answer: Callable[[list, list, int, float], float]) -> str:
    costs, weights = [100, 20, 3], [2, 30, 500]
    got = answer(list(costs), list(weights), 10, 6.0)
    require_written(got)
    work = 2 * 123 + 30 * 23 + 500 * 3  # by hand
    wanted = 3 * work * 10 / 6
    if not isinstance(got, int | float | Tensor):
        raise NotYet(f"You returned {type(got).__name__}; wanted a number of seconds.")
    if not math.isclose(got, wanted, rel_tol=1e-6):
        raise NotYet(_seconds_mistake(float(got), wanted))
    if not math.isclose(answer([7], [4], 5, 2.0), 3 * 4 * 7 * 5 / 2):
        raise NotYet("With a single layer something else comes out. Is a number fixed?")
    return (
        "With the paper's layers, batch 1000 and a rate of 50 billion a second it "
        "gives about twelve minutes a cycle: no twenty hours, and still too long."
    )


def _seconds_mistake(got: float, wanted: float) -> str:
    whole, prefix, behind = 532 * 123, 2 * 100 + 30 * 120 + 500 * 123, 2 * 23 + 30 * 3
    once = 123 + 23 + 3
    others = (
        (wanted / 3, "The three candidates are missing"),
        (wanted * 2 / 3, "You count two candidates. `keep` must be judged too"),
        (wanted / 10, "The batch is missing: `costs` are those of *one* image"),
        (wanted * 36, "You multiply by the rate; a rate is a number *a second*"),
        (3 * whole * 10 / 6, "You run all layers for each weight"),
        (
            3 * prefix * 10 / 6,
            "You run the layers *before* the swept one; these are"
            " the ones that are known",
        ),
        (3 * behind * 10 / 6, "The swept layer itself is missing: its weight changed"),
        (3 * once * 10 / 6, "You visit each layer once; wanted each of its weights"),
        (6 / (wanted * 6), "That is one over the time"),
    )
    for wrong, text in others:
        if math.isclose(got, wrong, rel_tol=1e-6):
            return f"{text}. Got {got:g}, wanted {wanted:g} seconds."
    return (
        "For costs [100, 20, 3], weights [2, 30, 500], batch 10 and rate 6: got "
        f"{got:g}, wanted {wanted:g}."
    )


def _judge_mend(answer: Callable[..., object]) -> str:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    for by in (0.75, -2.5, 0.0):
        x, first, second = draw(40, 3), draw(4, 3), draw(4, 4)
        o, i = (1, 2)
        a = x @ first.T
        z = a.relu() @ second.T
        old_a, old_z, given = a.clone(), z.clone(), (x.clone(), second.clone())
        answer(x, a, z, second, o, i, by)
        if not torch.equal(x, given[0]) or not torch.equal(second, given[1]):
            raise NotYet("You changed `x` or `second`. Only `a` and `z` are mended.")
        first[o, i] += by
        new_a = x @ first.T
        new_z = new_a.relu() @ second.T
        if by:
            _judge_a(a, new_a, old_a)
            _judge_z(z, new_z, (old_z, old_a, new_a), second, (o, i))
        if not torch.allclose(a, new_a) or not torch.allclose(z, new_z):
            raise NotYet(f"With by = {by} the mended numbers are not those of a pass.")
    return (
        "One column of `a` and an outer product for `z`, and both are what a full pass "
        "gives: no decision can tell the difference."
    )


def _judge_a(a: Tensor, wanted: Tensor, old: Tensor) -> None:
    if torch.equal(a, old):
        raise NotYet(
            "`a` has not changed. `a = ...` only gives the name to another tensor; "
            "write into a column, `a[:, o] = ...`. At the next visit `a` is needed."
        )
    columns = [c for c in range(a.shape[1]) if not torch.equal(a[:, c], old[:, c])]
    if columns != [1]:
        raise NotYet(
            f"Columns {columns} of `a` have changed; with o = 1, i = 2 wanted only "
            "column 1. `first[o, i]` feeds output o from input i."
        )
    if torch.allclose(a, wanted.relu() * (a == a) * 1.0) and bool((wanted < 0).any()):
        raise NotYet("You store `a` behind the ReLU; wanted what goes into it.")
    if not torch.allclose(a, wanted):
        raise NotYet(
            "Column o of `a` has changed, but not by `by * x[:, i]`, the input that "
            "this weight multiplies."
        )


def _judge_z(
    z: Tensor,
    wanted: Tensor,
    before: tuple[Tensor, Tensor, Tensor],
    second: Tensor,
    place: tuple[int, int],
) -> None:
    old_z, old_a, new_a = before
    o, _ = place
    if torch.allclose(z, wanted):
        return
    if torch.allclose(z, old_z, atol=1e-12):
        raise NotYet(
            "`z` is as it was: stale. Did you forget it, or overwrite the old column "
            "of `a` before you took the difference?"
        )
    change = new_a[:, o] - old_a[:, o]
    behind = new_a[:, o].relu() - old_a[:, o].relu()
    if torch.allclose(z, old_z + change[:, None] * second[:, o]):
        raise NotYet(
            "`z` moved by the change in front of the ReLU. Where `a` is negative, "
            "nothing passes: take the difference of the two ReLUs."
        )
    if torch.allclose(z, old_z + change.relu()[:, None] * second[:, o]):
        raise NotYet(
            "You take the ReLU of the change. Wanted the change of the ReLU: "
            "`new.relu() - old.relu()`."
        )
    if torch.allclose(z, old_z + behind[:, None] * second[o]):
        raise NotYet(
            "You use row o of `second`. Hidden unit o feeds all outputs through "
            "*column* o."
        )
    if torch.allclose(z, old_z - behind[:, None] * second[:, o]):
        raise NotYet("`z` moved to the other side: wanted new minus old.")
    if torch.allclose(z, old_z + new_a[:, o].relu()[:, None] * second[:, o]):
        raise NotYet("You add the new part of `z` and leave the old part in it.")
    raise NotYet("`a` is right, `z` is not. It moves by the change of relu(a[:, o]).")


def _judge_statistics(answer: Callable[[Tensor, int], Tensor]) -> str:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 4, generator=generator, dtype=torch.float64)
    x[4:8] = 3 * x[4:8] + 5  # a candidate that is far off
    given = x.clone()
    got = answer(x, 3)
    require_written(got)
    if not torch.equal(x, given):
        raise NotYet("You changed `x` in place. Return a new tensor.")
    if not isinstance(got, Tensor) or got.shape != x.shape:
        shape = tuple(got.shape) if isinstance(got, Tensor) else type(got).__name__
        raise NotYet(f"You returned {shape}; wanted the shape of x, {tuple(x.shape)}.")
    wanted = torch.cat([_batch_norm(part) for part in x.split(4)])
    if not torch.allclose(got, wanted):
        raise NotYet(_statistics_mistake(got, x))
    wide = torch.randn(10, 3, generator=generator, dtype=torch.float64)
    apart = torch.cat([_batch_norm(part) for part in wide.split(5)])
    if not torch.allclose(answer(wide, 2), apart):
        raise NotYet("It is right for 3 candidates and not for 2. Is a number fixed?")
    return "Each candidate is judged as if it were alone, which is what RSO asks for."


def _batch_norm(x: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, training=True)


def _statistics_mistake(got: Tensor, x: Tensor) -> str:
    def by(mean: Tensor, variance: Tensor, eps: float = 1e-5) -> Tensor:
        return ((x.view(mean.shape[0], -1, 4) - mean) / (variance + eps).sqrt()).view(
            x.shape
        )

    apart = x.view(3, 4, 4)
    mean, variance = apart.mean(1, True), apart.var(1, keepdim=True, correction=0)
    mixed = x.view(4, 3, 4)
    mixed_variance = mixed.var(0, keepdim=True, correction=0)
    by_sample = (mixed - mixed.mean(0, True)) / (mixed_variance + 1e-5).sqrt()
    rows = (x - x.mean(1, True)) / (x.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
    all_var = apart.var((1, 2), keepdim=True, correction=0)
    whole = by(apart.mean((1, 2), True), all_var)
    others = (
        (
            _batch_norm(x),
            "The candidates share their statistics: what one of them "
            "tries changes the outputs of the others",
        ),
        (
            by(mean, apart.var(1, keepdim=True)),
            "Your variance divides by n - 1. Batch norm divides by n: `correction=0`",
        ),
        (
            by(mean, x.var(0, correction=0).view(1, 1, 4).expand(3, 1, 4)),
            "The means are apart, and the variance is still shared",
        ),
        (
            by(x.mean(0).view(1, 1, 4).expand(3, 1, 4), variance),
            "The variances are apart, and the mean is still shared",
        ),
        (
            by_sample.reshape(x.shape),
            "You take every third row for a candidate. All "
            "samples of the first one stand first: `view(candidates, -1, channels)`",
        ),
        (rows, "You normalize each sample over its channels, as layer norm does"),
        (whole, "You mix the channels. Each channel has a mean of its own"),
        (
            by(mean, variance, 0.0),
            "The 1e-5 is missing. A channel of equal values would divide by zero",
        ),
        (
            by(mean, variance.square(), 0.0),
            "You divide by the variance; wanted its root",
        ),
        (by(mean, torch.ones_like(variance), 0.0), "You only subtract the mean"),
    )
    for wrong, text in others:
        if torch.allclose(got, wrong, rtol=1e-9, atol=1e-12):
            return f"{text}."
    return "It is not what batch norm gives for each candidate alone."


def _judge_fold(answer: Callable[[Tensor], Tensor]) -> str:
    generator = torch.Generator().manual_seed(0)
    for size in ((3, 3), (1, 1), (5, 2)):
        weight = torch.randn(4, 2, *size, generator=generator, dtype=torch.float64)
        x = torch.randn(2, 2, 11, 12, generator=generator, dtype=torch.float64)
        given = weight.clone()
        got = answer(weight)
        require_written(got)
        if not torch.equal(weight, given):
            raise NotYet("You changed `weight`, which the layer still needs.")
        _judge_kernel(got, weight)
        wanted = F.avg_pool2d(F.conv2d(x, weight), 2)
        if not torch.allclose(F.conv2d(x, got, stride=2), wanted):
            raise NotYet(_fold_mistake(got, weight))
    return "One convolution in place of two layers, and 16 multiply-adds instead of 36."


def _judge_kernel(got: object, weight: Tensor) -> None:
    if not isinstance(got, Tensor):
        raise NotYet(f"You returned {type(got).__name__}; wanted the new kernel.")
    *front, height, width = weight.shape
    wanted = (*front, height + 1, width + 1)
    if tuple(got.shape) == wanted:
        return
    if got.shape == weight.shape:
        raise NotYet(
            "Your kernel has the old size. The kernel reaches over two rows and two "
            f"columns of outputs, so it grows by one: wanted {wanted}."
        )
    raise NotYet(
        f"Your kernel has the shape {tuple(got.shape)}; for {tuple(weight.shape)} "
        f"wanted {wanted}."
    )


def _fold_mistake(got: Tensor, weight: Tensor) -> str:
    def shifted(*corners: tuple[int, int]) -> Tensor:
        return sum(F.pad(weight, (x, 1 - x, y, 1 - y)) for y, x in corners)

    right = shifted((0, 0), (0, 1), (1, 0), (1, 1))
    others = (
        (right, "You add the four places. A mean divides by 4"),
        (right / 2, "You divide by 2; a block has four pixels"),
        (
            shifted((0, 0), (1, 1)) / 2,
            "You shift along the diagonal only. A block has two more corners",
        ),
        (shifted((0, 0), (0, 1)) / 2, "You shift along the rows only"),
        (shifted((0, 0), (1, 0)) / 2, "You shift along the columns only"),
        (
            shifted((0, 0)),
            "You pad with zeros and take no mean: that leaves out three "
            "of the four pixels",
        ),
        (
            right.flip(2, 3) / 4,
            "Your kernel is upside down. torch's convolution does not flip it",
        ),
    )
    for wrong, text in others:
        if torch.allclose(got, wrong):
            return f"{text}."
    return "conv2d(x, fold(weight), stride=2) is not the pooled convolution."


# (what it is about, shares, decision)
_CASES: tuple[tuple[str, Shares, int], ...] = (
    ("both agree on w + dw", [([9, 5, 8], 10), ([9, 6, 8], 10)], 1),
    ("both agree to stay", [([4, 5, 8], 10), ([4, 6, 8], 10)], 0),
    ("w - dw is the best", [([9, 8, 2], 10), ([9, 8, 3], 10)], -1),
    (
        "three of five processes agree, and are wrong",
        [
            ([3, 4, 9], 10),
            ([20, 18, 17], 10),
            ([20, 18, 17], 10),
            ([20, 18, 17], 10),
            ([90, 50, 95], 10),
        ],
        1,
    ),
    ("the first process disagrees", [([3, 4, 9], 10), ([20, 10, 25], 10)], 1),
    ("the last process disagrees", [([20, 10, 25], 10), ([3, 4, 9], 10)], 1),
    (
        "the shares have different sizes",
        [([100, 140, 190], 200), ([40, 20, 60], 10)],
        0,
    ),
    ("nothing makes a difference", [([7, 7, 7], 10), ([7, 7, 7], 10)], 0),
    ("one process only", [([9, 8, 7], 4)], -1),
)


def _judge_decide(answer: Callable[[Shares], int]) -> str:
    for about, shares, wanted in _CASES:
        given = [(list(map(float, sums)), count) for sums, count in shares]
        got = answer(given)
        require_written(got)
        if isinstance(got, Tensor | list | tuple | bool):
            raise NotYet(
                f"You returned {type(got).__name__}; wanted one decision: 0, 1 or -1."
            )
        if got != wanted:
            raise NotYet(_decide_mistake(answer, got, about, wanted))
    return "Three numbers from each process, one sum, and the decision is that of one."


def _decide_mistake(
    answer: Callable[[Shares], int], got: object, about: str, wanted: int
) -> str:
    if got == 2:
        return "You return a position, 2. Decisions are 0, 1 and -1."
    if about.startswith("three of") and got == -1:
        return "You take a vote. Who sees a large difference must weigh more: add."
    if about.startswith(("three of", "the first")):
        return "Only one process decides. The losses of all of them count."
    if about.startswith("the last"):
        return "The last process decides alone. The losses of all of them count."
    if about.startswith("the shares"):
        return (
            "You treat shares of 200 and 10 samples alike. The sums are sums already: "
            "add them as they are."
        )
    if about.startswith("nothing"):
        return f"At a tie you return {got}. The first of equals wins, and that is w."
    return f"Where {about}: got {got!r}, wanted {wanted}."


seconds = Exercise(
    "rso_speed.seconds",
    _judge_seconds,
    (
        "How many multiply-adds has one pass from layer d to the end, and how many "
        "such passes does layer d need?",
        "`sum(costs[d:])` for one image. Three candidates for each of `weights[d]`.",
        "Sum 3 * weights[d] * sum(costs[d:]) over d, times batch, divided by rate.",
    ),
)
mend = Exercise(
    "rso_speed.mend",
    _judge_mend,
    (
        "Which column of `a` does `first[o, i]` feed, and with which input?",
        "`new = a[:, o] + by * x[:, i]`. What goes on to `z` is the change of its "
        "ReLU; you need the old column for that.",
        "`z += (new.relu() - a[:, o].relu())[:, None] * second[:, o]`, and then "
        "`a[:, o] = new`.",
    ),
)
statistics = Exercise(
    "rso_speed.statistics",
    _judge_statistics,
    (
        "Make the candidates an axis of their own. Over which axis are the means?",
        "`x.view(candidates, -1, x.shape[1])` is (candidates, batch, channels).",
        "`mean(dim=1, keepdim=True)` and `var(dim=1, keepdim=True, correction=0)`; "
        "divide by `(variance + 1e-5).sqrt()` and view it as x again.",
    ),
)
fold = Exercise(
    "rso_speed.fold",
    _judge_fold,
    (
        "Which inputs does a block of four outputs see? Draw it for a 1 x 1 kernel.",
        "The kernel at four places: `pad(weight, (left, right, top, bottom))` with one "
        "zero in all along each axis.",
        "Add the four paddings (0, 1, 0, 1), (1, 0, 0, 1), (0, 1, 1, 0), (1, 0, 1, 0) "
        "and divide by 4.",
    ),
)
decide = Exercise(
    "rso_speed.decide",
    _judge_decide,
    (
        "What is the loss of w on the whole mini-batch, given its sums on the parts?",
        "Add the first numbers of all processes, then the second, then the third.",
        "`zip(*[sums for sums, _ in shares])` gives them in threes turned around; the "
        "position of the least total picks from (0, 1, -1).",
    ),
)
