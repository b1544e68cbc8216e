"""Exercises of lesson 09, Get the same answer many times faster.

The oracles are hand arithmetic and torch's own layers, run in full: none of them
remembers or shares anything. The last exercise, `one_channel`, is judged in
`channel_judge`.
"""

from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from course_lib.lessons.checks import (
    name_mistake,
    reject,
    require_close,
    require_kind,
    require_unchanged,
)
from course_lib.lessons.exercises import NotYet, exercise
from course_lib.lessons.rso_speed import channel_judge
from course_lib.lessons.rso_speed.fold_judge import fold_mistakes, judge_kernel
from course_lib.lessons.rso_speed.mend_judge import judge_a, judge_other_sizes, judge_z
from course_lib.lessons.rso_speed.stopwatch import Steps as Steps
from course_lib.lessons.rso_speed.stopwatch import multiply_adds as multiply_adds
from course_lib.lessons.rso_speed.stopwatch import seconds_of as seconds_of

NUMBER = 9

Shares = Sequence[tuple[list[float], int]]


@exercise(
    "How many multiply-adds has one pass from layer d to the end, and how many "
    "such passes does layer d need?",
    "`sum(costs[d:])` for one image. Three candidates for each of `weights[d]`.",
    "Sum 3 * weights[d] * sum(costs[d:]) over d, times batch, divided by rate.",
    right="With the paper's layers, batch 1000 and a rate of 50 billion a second it "
    "gives about twelve minutes a cycle: no twenty hours, and the prefix is all that "
    "was spared.",
)
def seconds(answer: Callable[[list, list, int, float], float]) -> None:
    """A function of (costs, weights, batch, rate): the time of a cycle."""
    wanted = 3 * (2 * 123 + 30 * 23 + 500 * 3) * 10 / 7  # by hand
    mistakes = {
        "The three candidates are missing": wanted / 3,
        "You count two candidates. `keep` must be judged too": wanted * 2 / 3,
        "The batch is missing: `costs` are those of *one* image": wanted / 10,
        "You multiply by the rate; a rate is a number *a second*": wanted * 49,
        "You run all layers for each weight": 3 * 532 * 123 * 10 / 7,
        "You run the layers *before* the swept one, whose outputs are known": (
            3 * (2 * 100 + 30 * 120 + 500 * 123) * 10 / 7
        ),
        "The swept layer itself is missing: its weight changed": (
            3 * (2 * 23 + 30 * 3) * 10 / 7
        ),
        "You visit each layer once; wanted each of its weights": (
            3 * (123 + 23 + 3) * 10 / 7
        ),
        "You run the swept layer alone; the layers behind it change, too": (
            3 * (2 * 100 + 30 * 20 + 500 * 3) * 10 / 7
        ),
        "That is one over the time": 1 / wanted,
    }
    costs, weights = [100, 20, 3], [2, 30, 500]
    got = answer(costs, weights, 10, 7.0)
    place = "For costs [100, 20, 3], weights [2, 30, 500], batch 10 and rate 7"
    require_close(got, wanted, place, mistakes)
    if (costs, weights) != ([100, 20, 3], [2, 30, 500]):
        raise NotYet(
            "You changed the list `costs` or `weights`, which belongs to the caller: a "
            "second call would get other numbers. No `pop`, `reverse` or `sort`."
        )
    place = "With a single layer something else comes out. Is a number fixed?"
    wanted = 3 * 4 * 7 * 5 / 8
    whole = {"You round to whole seconds. `/` divides, `//` cuts off": wanted // 1}
    require_close(answer([7], [4], 5, 8.0), wanted, f"{place} There", whole)
    require_close(answer([1], [1], 1, 8.0), 0.375, "Where less than a second goes", {})


@exercise(
    "Which column of `a` does `first[o, i]` feed, and with which input?",
    "`new = a[:, o] + by * x[:, i]`. What goes on to `z` is the change of its "
    "ReLU; you need the old column for that.",
    "`z += (new.relu() - a[:, o].relu())[:, None] * second[:, o]`, and then "
    "`a[:, o] = new`.",
    right="One column of `a` and an outer product for `z`, and both are what a full "
    "pass gives: no decision can tell the difference.",
)
def mend(answer: Callable[..., object]) -> None:
    """A function that updates `a` and `z` after one weight has changed."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    o, i = 1, 2
    for by in (0.75, -2.5, 0.0):
        x, first, second = draw(40, 3), draw(4, 3), draw(4, 4)
        a = x @ first.T
        bias = draw(4)  # which only an answer that updates z leaves in it
        z = a.relu() @ second.T + bias
        old_a, old_z, given = a.clone(), z.clone(), (x.clone(), second.clone())
        work = multiply_adds(lambda: answer(x, a, z, second, o, i, by))  # noqa: B023
        require_unchanged((x, second), given, "`x` or `second`, not only `a` and `z`")
        first[o, i] += by
        new_a = x @ first.T
        if by:
            judge_a(a, new_a, old_a)
            if torch.allclose(z, new_a.relu() @ second.T):
                raise NotYet(
                    "You compute all of `z` again: the right numbers, and the whole "
                    "product that this is to spare (a bias that was in `z` is lost). "
                    "Add to `z` what column o changes."
                )
            judge_z(z, old_z, old_a[:, o], new_a[:, o], second)
            if work > len(x) * len(second):
                raise NotYet(
                    f"The numbers are right, at the price of the whole product: {work} "
                    f"multiply-adds, where column o takes {len(x) * len(second)}. Use "
                    "`second[:, o]` alone."
                )
        if not torch.allclose(a, new_a) or not torch.allclose(
            z, new_a.relu() @ second.T + bias
        ):
            raise NotYet(f"With by = {by} the numbers are not those of a full pass.")
    judge_other_sizes(answer, draw(20, 5), draw(6, 5), draw(2, 6))


@exercise(
    "Make the candidates an axis of their own. Over which axis are the means?",
    "`x.view(candidates, -1, x.shape[1])` is (candidates, batch, channels).",
    "`mean(dim=1, keepdim=True)` and `var(dim=1, keepdim=True, correction=0)`; "
    "divide by `(variance + 1e-5).sqrt()` and view it as x again.",
    right="Each candidate is judged as if it were alone, which is what RSO asks for.",
)
def statistics(answer: Callable[[Tensor, int], Tensor]) -> None:
    """A function of (x, candidates): batch norm for each candidate."""
    generator = torch.Generator().manual_seed(0)
    for candidates, channels in ((3, 4), (2, 3)):
        x = torch.randn(12, channels, generator=generator, dtype=torch.float64)
        x[4:8] = 3 * x[4:8] + 5  # far off
        x[:, 1] *= 2e-3  # here the 1e-5 counts
        given = x.clone()
        got = answer(given, candidates)
        require_unchanged([given], [x], "`x` in place")
        require_kind(got, Tensor, "a tensor")
        if got.shape != x.shape:
            shapes = f"{tuple(got.shape)}; wanted the shape of x, {tuple(x.shape)}"
            raise NotYet(f"You returned {shapes}.")
        if torch.allclose(got.to(x), _each_alone(x, candidates), atol=1e-5):
            continue
        if candidates == 2:
            raise NotYet(
                "It is right for 3 candidates of 4 images and not for 2 of 6. Is a "
                "number fixed?"
            )
        mistakes = _statistics_mistakes(x, candidates)
        name_mistake(got.to(x), mistakes, same=torch.allclose)
        raise NotYet("It is not what batch norm gives for each candidate alone.")


def _each_alone(x: Tensor, candidates: int) -> Tensor:
    return torch.cat([_batch_norm(part) for part in x.chunk(candidates)])


def _batch_norm(x: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, training=True)


def _statistics_mistakes(x: Tensor, candidates: int) -> dict[str, Tensor]:
    parts = x.view(candidates, -1, x.shape[1])  # (candidates, batch, channels)
    mean, variance = parts.mean(1, True), parts.var(1, keepdim=True, correction=0)
    every_third = x.view(-1, candidates, x.shape[1]).transpose(0, 1).reshape(x.shape)
    turned = _each_alone(every_third, candidates).view(parts.shape).transpose(0, 1)

    def by(mean: Tensor, variance: Tensor, eps: float = 1e-5) -> Tensor:
        return ((parts - mean) / (variance + eps).sqrt()).view(x.shape)

    def over(axes: tuple[int, ...]) -> Tensor:
        return by(parts.mean(axes, True), parts.var(axes, keepdim=True, correction=0))

    deviation = variance.sqrt()
    return {
        "The candidates share their statistics: what one of them tries changes the "
        "outputs of the others": _batch_norm(x),
        "Your variance divides by n - 1. Batch norm divides by n: `correction=0`": (
            by(mean, parts.var(1, keepdim=True))
        ),
        "Each mean is a candidate's own, and the variance is still shared": (
            by(mean, x.var(0, correction=0))
        ),
        "Each variance is a candidate's own, and the mean is still shared": (
            by(x.mean(0), variance)
        ),
        "You take every third row for a candidate. All images of the first one stand "
        "first: `view(candidates, -1, channels)`": turned.reshape(x.shape),
        "You normalize each image over its channels, as layer norm does": over((2,)),
        "You mix the channels. Each channel has a mean of its own": over((1, 2)),
        "The 1e-5 is missing. A channel of equal values would divide by zero": (
            by(mean, variance, 0.0)
        ),
        "You add 1e-5 behind the root. It belongs to the variance: "
        "`(variance + 1e-5).sqrt()`": by(mean, (deviation + 1e-5).square(), 0.0),
        "You divide by the variance; wanted its root": (
            by(mean, (variance + 1e-5).square(), 0.0)
        ),
        "You divide by the variance, and the 1e-5 is missing": (
            by(mean, variance.square(), 0.0)
        ),
        "Your variance divides by n - 1, and the 1e-5 is missing": (
            by(mean, parts.var(1, keepdim=True), 0.0)
        ),
        "You only subtract the mean": by(mean, torch.ones_like(variance), 0.0),
        "You only divide by the deviation. The mean must go, too": (
            by(torch.zeros_like(mean), variance)
        ),
        "You return x as it is": x,
        "`split` takes the size of a part; `chunk` takes the number of parts": (
            torch.cat([_batch_norm(part) for part in x.split(candidates)])
        ),
    }


@exercise(
    "Which inputs does a block of outputs see? Draw it for a 1 x 1 kernel.",
    "The kernel at every place of the block: `pad(weight, (left, right, top, "
    "bottom))` with size - 1 zeros in all along each axis.",
    "Two loops, x and y in `range(size)`: add the paddings (x, size - 1 - x, y, "
    "size - 1 - y) and divide by size * size.",
    right="One convolution in place of two layers, and fewer multiply-adds: for 3 x 3 "
    "kernels and blocks of 2 x 2 it is 16 instead of 36.",
)
def fold(answer: Callable[[Tensor, int], Tensor]) -> None:
    """A function of a kernel: the kernel of convolution and mean pooling in one."""
    generator = torch.Generator().manual_seed(0)
    sizes = ((3, 3), 3), ((1, 1), 2), ((5, 2), 2), ((2, 3), 4), ((3, 3), 1)
    for shape, size in sizes:
        weight = torch.randn(4, 2, *shape, generator=generator, dtype=torch.float64)
        x = torch.randn(2, 2, 13, 14, generator=generator, dtype=torch.float64)
        given = weight.clone()
        got = answer(given, size)
        require_unchanged([given], [weight], "`weight`, which the layer still needs")
        judge_kernel(got, weight, size)
        wanted = F.avg_pool2d(F.conv2d(x, weight), size)
        if not torch.allclose(F.conv2d(x, got.to(x), stride=size), wanted, atol=1e-5):
            name_mistake(got.to(x), fold_mistakes(weight, size), same=torch.allclose)
            raise NotYet(
                f"For size {size}: conv2d(x, fold(weight, {size}), stride={size}) is "
                "not the pooled convolution."
            )


# (shares, decision, the mistake as a sentence; without one, what the case is about)
_CASES: tuple[tuple[Shares, int, str], ...] = (
    ([([9, 5, 8], 10), ([9, 6, 8], 10)], 1, "both agree on w + dw"),
    ([([4, 5, 8], 10), ([4, 6, 8], 10)], 0, "both agree to stay"),
    ([([9, 8, 2], 10), ([9, 8, 3], 10)], -1, "w - dw is the best"),
    (
        [([3, 4, 9], 10), *[([20, 18, 17], 10)] * 3, ([90, 50, 95], 10)],
        1,
        "Only one worker decides. The losses of all of them count.",
    ),
    (
        [([3, 4, 9], 10), ([20, 10, 25], 10)],
        1,
        "Only one worker decides. The losses of all of them count.",
    ),
    (
        [([20, 10, 25], 10), ([3, 4, 9], 10)],
        1,
        "The last worker decides alone. The losses of all of them count.",
    ),
    (
        [([100, 140, 190], 200), ([40, 20, 60], 10)],
        0,
        "You treat shares of 200 and 10 images alike. The sums are sums already: add "
        "them without another factor.",
    ),
    (
        [([10, 12, 30], 200), ([20, 15, 40], 10)],
        1,
        "You multiply the sums of 200 and of 10 images by those numbers. They are "
        "sums already: add them without another factor.",
    ),
    (
        [([30, 31, 40], 10), ([29, 10, 50], 10)],
        1,
        "You take the largest loss of a candidate. The losses of all workers count: "
        "add them.",
    ),
    (
        [([7, 7, 7], 10), ([7, 7, 7], 10)],
        0,
        "At a tie you move. The first of equals wins, and that is w.",
    ),
    ([([9, 8, 7], 4)], -1, "one worker only"),
    (
        [([9, 4, 3], 10), ([9, 1, 2], 10)],
        1,
        "Where w + dw and w - dw are equal you take w - dw. The first of equals wins, "
        "and w + dw stands first.",
    ),
    (
        [([2.0625, 2.0634765625, 2.0615234375], 10), ([1.25, 1.25, 1.25], 10)],
        -1,
        "The sums differ by less than 0.01, and they do differ. Do not round them.",
    ),
    (
        [([5, 6, 9], 10), ([30, 10, 40], 10), ([5, 6, 9], 10)],
        1,
        "Three workers, and one of them does not count. Add the sums of all.",
    ),
    (
        [([-3, -9, -5], 10), ([-3, -1, -2], 10)],
        1,
        "With another loss a sum may be negative, and the least one still wins.",
    ),
)


@exercise(
    "What is the loss of w on the whole mini-batch, given its sums on the parts?",
    "Add the first numbers of all workers, then the second, then the third.",
    "`zip(*[sums for sums, _ in shares])` gives them in threes turned around; the "
    "position of the least total picks from (0, 1, -1).",
    right="Three numbers from each worker, one sum, and the decision is that of one.",
)
def decide(answer: Callable[[Shares], int]) -> None:
    """A function of the workers' sums: their common decision."""
    for shares, wanted, text in _CASES:
        given = [(list(map(float, sums)), count) for sums, count in shares]
        got = _as_decision(answer(given))
        if given != shares:
            raise NotYet(
                "You changed the sums or the list of the workers that you were given. "
                "Add into numbers of your own: no `+=` on them, no `pop`."
            )
        if got == wanted:
            continue
        reject(
            {
                "You return a position, 2. Decisions are 0, 1 and -1.": (
                    got == 2 and wanted == -1
                ),
                "You add decisions. Add the losses, and decide once.": got == 2,
                "You take a vote. Who sees a large difference must weigh more: add.": (
                    len(shares) == 5 and got == -1
                ),
            }
        )
        if text.endswith("."):
            raise NotYet(text)
        raise NotYet(f"Where {text}: got {got!r}, wanted {wanted}.")


def _as_decision(got: Any) -> Any:
    if isinstance(got, Tensor) and got.numel() == 1:
        got = got.item()
    return require_kind(got, Real, "one decision: 0, 1 or -1")


@exercise(
    "What one weight multiplies is a plane: channel i of x, shifted. Pad x once, and "
    "cut `[row : row + height, column : column + width]` out of it.",
    "Remember the padded x, `own = first(x)` and `after = second(own.relu())`. Channel "
    "o becomes `new = own[:, o] + by * plane`; what goes on is the change of its ReLU.",
    "`conv2d(change[:, None], second.weight[:, o : o + 1], padding=1)` is what moves "
    "`after`. `look` adds it and returns the sum; `accept` stores `new` and the sum.",
    right="You have built what makes the search fast: all 108 decisions are those of "
    "full passes, at the price of one channel.",
)
def one_channel(answer: type) -> None:
    """A class that remembers two convolutions and moves one channel of them."""
    channel_judge.judge(answer)
