"""The judge of lesson 09's larger exercise, in steps.

`Pair` is the exercise's class with one fault that can be chosen: an answer that gives
the numbers of a fault has made that mistake. What is right comes from full passes.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

from course_lib.lessons.checks import close, require_kind
from course_lib.lessons.exercises import NotYet
from course_lib.lessons.rso_speed.stopwatch import multiply_adds

Call = tuple[str, tuple[int, int, int, int], float]  # look or accept, weight, by

INPUTS, HIDDEN, OUTPUTS, KERNEL = 3, 4, 5, 9

FAULTS = {
    "no relu": "The ReLU between the convolutions is missing.",
    "only change": "You return the change alone. Add it to what `second` gave before.",
    "front": "You send on the change in front of the ReLU. Where a channel is "
    "negative, nothing passes: take the difference of the two ReLUs.",
    "relu of change": "You take the ReLU of the change. Wanted is the change of the "
    "ReLU: `new.relu() - old.relu()`.",
    "whole new": "You send on the new channel, and the old one is still in `after`: "
    "send its change, new minus old.",
    "minus": "The change has the wrong sign: wanted new minus old.",
    "bias twice": "The bias of `second` is added once more. It is in what you "
    "remember; a change has no bias.",
    "unshifted": "You take channel i of x as it is. Only the middle of the kernel sees "
    "that; another row and column see a shifted copy, with zeros at the edge.",
    "turned": "You have exchanged row and column.",
    "flipped": "You shift to the other side: row 0 of the kernel sees the pixels "
    "*above*. torch's convolution does not flip the kernel.",
    "wrong input": "You take the plane from channel o of x. The weight [o, i] "
    "multiplies channel i.",
    "wrong column": "You use `second.weight[:, i]`. Hidden channel o feeds `second` "
    "through `second.weight[:, o]`.",
    "all channels": "You move every hidden channel. Only channel o has this weight.",
    "nothing": "After `accept` nothing has changed: what you remember is stale.",
    "after stale": "`accept` brings the hidden channel up to date, and not what "
    "`second` gives. (Or you overwrite the channel before you take the difference.)",
    "own stale": "`accept` brings up to date what `second` gives, and not the hidden "
    "channel. The next visit to that channel starts from the old one.",
    "relu stored": "You store the hidden channel behind its ReLU. Wanted is what goes "
    "into it.",
}


class Pair:
    """Two convolutions of which one channel moves, with at most one fault."""

    def __init__(self, x: Tensor, first: Any, second: Any, fault: str = "") -> None:
        self.fault, self.second, self.padded = fault, second, pad(x, (1, 1, 1, 1))
        self.own = first(x)
        self.after = second(self.own if fault == "no relu" else self.own.relu())

    def _moved(self, o: int, i: int, row: int, column: int, by: float) -> Any:
        height, width = self.own.shape[2:]
        row, column = {
            "unshifted": (1, 1),
            "turned": (column, row),
            "flipped": (2 - row, 2 - column),
        }.get(self.fault, (row, column))
        channel = o % INPUTS if self.fault == "wrong input" else i
        plane = self.padded[:, channel, row : row + height, column : column + width]
        at = slice(None) if self.fault == "all channels" else slice(o, o + 1)
        old = self.own[:, at]
        start = old.relu() if self.fault == "relu stored" else old
        new = start + by * plane[:, None]
        change = {
            "front": new - old,
            "relu of change": (new - old).relu(),
            "whole new": new.relu(),
            "minus": old.relu() - new.relu(),
        }.get(self.fault, new.relu() - old.relu())
        if self.fault == "wrong column":
            at = slice(i, i + 1)
        bias = self.second.bias if self.fault == "bias twice" else None
        return at, new, conv2d(change, self.second.weight[:, at], bias, padding=1)

    def look(self, o: int, i: int, row: int, column: int, by: float) -> Tensor:
        """Return what `second` would give."""
        _, _, spread = self._moved(o, i, row, column, by)
        return spread if self.fault == "only change" else self.after + spread

    def accept(self, o: int, i: int, row: int, column: int, by: float) -> None:
        """Bring up to date what is remembered."""
        at, new, spread = self._moved(o, i, row, column, by)
        if self.fault not in ("nothing", "own stale"):
            self.own[:, at] = new.relu() if self.fault == "relu stored" else new
        if self.fault not in ("nothing", "after stale"):
            self.after = self.after + spread


def judge(answer: type) -> None:
    """Raise NotYet with the first step that is wrong, and why."""
    require_kind(answer, type, "the class itself", what="The answer", verb="is")
    for step in (_remember, _look, _look_again, _accept, _apart, _price, _search):
        step(answer)


def _layers() -> tuple[Tensor, nn.Conv2d, nn.Conv2d]:
    """Return an input that is not square, and two layers with biases."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(4, INPUTS, 5, 6, generator=generator, dtype=torch.float64)
    first = nn.Conv2d(INPUTS, HIDDEN, 3, padding=1, dtype=torch.float64)
    second = nn.Conv2d(HIDDEN, OUTPUTS, 3, padding=1, dtype=torch.float64)
    for parameter in (*first.parameters(), *second.parameters()):
        parameter.requires_grad_(False)
        drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.copy_(drawn / 3)
    return x, first, second


WEIGHTS = ((1, 2, 1, 1), (3, 0, 0, 2), (0, 1, 2, 1), (2, 2, 0, 0), (2, 0, 1, 0))


def _remember(answer: type) -> None:
    _compare(answer, [("look", WEIGHTS[0], 0.0)], "Step 1, `look` with by = 0")


def _look(answer: type) -> None:
    calls = [("look", w, by) for w in WEIGHTS for by in (1.5, -2.0)]
    _compare(answer, calls, "Step 2, `look`", fresh=True)


def _look_again(answer: type) -> None:
    calls = [("look", w, by) for w in WEIGHTS[:2] * 2 for by in (0.0, 1.5, 0.0)]
    pairs = zip(_outputs(answer, calls), _outputs(_Full, calls), strict=True)
    if not all(close(got, wanted) for got, wanted in pairs):
        raise NotYet(
            "Step 3, `look` several times: it must change nothing, and after a `look` "
            "the next one gives something else. It is asked three times for each "
            "weight, and only one of these wins."
        )


def _accept(answer: type) -> None:
    first, second, third = WEIGHTS[0], WEIGHTS[3], WEIGHTS[4]
    calls = [("look", first, -0.7), ("accept", first, 1.5), ("look", first, -0.7)]
    calls += [("look", first, 0.0)]
    calls += [("accept", second, -2.0), ("look", third, 1.1), ("accept", third, 1.1)]
    calls += [("look", WEIGHTS[1], -1.0), ("look", third, 0.0), ("look", second, 0.8)]
    _compare(answer, calls, "Step 4, after `accept`")


def _compare(
    answer: type, calls: Sequence[Call], place: str, fresh: bool = False
) -> None:
    """Compare each `look` with a full pass, and name the fault that gives the same."""
    outputs, wanted = _outputs(answer, calls, fresh), _outputs(_Full, calls, fresh)
    looks = [call for call in calls if call[0] == "look"]
    for got in outputs:
        _require_output(got, place)
    for (_, weight, by), got, known in zip(looks, outputs, wanted, strict=True):
        if close(got, known):
            continue
        for fault, words in FAULTS.items():
            faulty = _outputs(partial(Pair, fault=fault), calls, fresh)
            if all(map(close, outputs, faulty)):
                raise NotYet(f"{place}: {words}")
        where = f"look({', '.join(map(str, (*weight, by)))})"
        off = (got.double() - known).abs().max().item()
        raise NotYet(
            f"{place}: {where} is not what a full pass gives, by up to {off:.2g}."
        )


def _outputs(
    make: Callable[..., Any], calls: Sequence[Call], fresh: bool = False
) -> list[Any]:
    """Make all calls, if `fresh` each on an object of its own; return what looks give.

    The weight has grown when `accept` is called.
    """
    x, first, second = _layers()
    given = [x, *first.parameters(), *second.parameters()]
    before = [tensor.clone() for tensor in given]
    known, found = make(x, first, second), []
    if not all(map(torch.equal, given, before)):
        raise NotYet("`__init__` changes x, `first` or `second`. Work with copies.")
    for name, weight, by in calls:
        if fresh and found:
            known = make(x, first, second)
        if name == "accept":
            first.weight[weight] += by
        before = [tensor.clone() for tensor in given]
        got = getattr(known, name)(*weight, by)
        if not all(map(torch.equal, given, before)):
            raise NotYet(
                f"`{name}` changes x, `first` or `second`. The search changes the "
                "weights; you only change what you remember."
            )
        if name == "look":
            found.append(got.clone() if isinstance(got, Tensor) else got)
    return found


class _Full:
    """Full passes, with the weights as they are now."""

    def __init__(self, x: Tensor, first: nn.Conv2d, second: nn.Conv2d) -> None:
        self.x, self.first, self.second = x, first, second

    def look(self, *weight_and_by: Any) -> Tensor:
        *weight, by = weight_and_by
        changed = self.first.weight.clone()
        changed[tuple(weight)] += by
        hidden = conv2d(self.x, changed, self.first.bias, padding=1)
        return self.second(hidden.relu())

    def accept(self, *weight_and_by: Any) -> None:
        """Remember nothing."""


def _require_output(got: Any, place: str) -> None:
    require_kind(got, Tensor, "a tensor", what=f"{place}: your method")
    wanted = (4, OUTPUTS, 5, 6)
    if tuple(got.shape) != wanted:
        raise NotYet(
            f"{place}: you returned the shape {tuple(got.shape)}; wanted that of what "
            f"`second` gives, {wanted}."
        )


def _apart(answer: type) -> None:
    """A search has an object for each mini-batch."""
    x, first, second = _layers()
    mine = answer(x, first, second)
    answer(x + 1, first, second)
    wanted = _Full(x, first, second).look(*WEIGHTS[0], 1.5)
    got = mine.look(*WEIGHTS[0], 1.5)
    before = got.clone()
    mine.look(*WEIGHTS[0], -2.0)
    if not torch.equal(got, before):
        raise NotYet(
            "Step 4, three candidates: a `look` overwrites what the one before has "
            "returned. Return a new tensor each time."
        )
    if not close(got, wanted):
        raise NotYet(
            "Step 4, two mini-batches: a second object changes what the first one "
            "gives. Keep what you remember on `self`, not on the class or outside."
        )


def _price(answer: type) -> None:
    """A visit may cost one channel of `second`, and one plane or channel of `first`."""
    x, first, second = _layers()
    known, pixels = answer(x, first, second), x[:, 0].numel()
    channel, full = OUTPUTS * KERNEL * pixels, HIDDEN * OUTPUTS * KERNEL * pixels
    for name in ("look", "accept"):
        if name == "accept":
            first.weight[WEIGHTS[1]] += 1.5
        work = multiply_adds(lambda n=name: getattr(known, n)(*WEIGHTS[1], 1.5))
        numbers = (
            f"Step 5, the price: `{name}` makes {work:,} multiply-adds; one channel of "
            f"`second` takes {channel:,}."
        )
        if work >= full:
            raise NotYet(
                f"{numbers} The numbers are right, and computed in full again."
            )
        if work >= channel + INPUTS * KERNEL * pixels:
            raise NotYet(
                f"{numbers} You compute channel o of `first` again, where `by * plane` "
                "moves it."
            )
        if work > channel + KERNEL * pixels:
            raise NotYet(f"{numbers} Move one channel, once.")


def _search(answer: type) -> None:
    """Visit all weights of `first`; the decisions are those of full passes."""
    x, first, second = _layers()
    known, full = answer(x, first, second), _Full(x, first, second)
    generator = torch.Generator().manual_seed(3)
    wanted = torch.randn(4, OUTPUTS, 5, 6, generator=generator, dtype=torch.float64)
    weights = [tuple(at) for at in torch.ones_like(first.weight).nonzero().tolist()]
    for visit, weight in enumerate(weights, start=1):
        step = torch.randn((), generator=generator, dtype=torch.float64).item()
        mine, theirs = (
            [(m.look(*weight, by) - wanted).square().sum() for by in (0.0, step, -step)]
            for m in (known, full)
        )
        if not all(map(close, mine, theirs)):
            raise NotYet(
                f"Step 6, a search: at visit {visit} of {len(weights)} your losses are "
                "not those of full passes. Something that you remember has grown stale."
            )
        by = (0.0, step, -step)[int(torch.stack(theirs).argmin())]
        if by:
            first.weight[weight] += by
            known.accept(*weight, by)
