"""The judge of lesson 04's larger exercise: a model with two heads and masked losses.

It goes step by step, and each message names its step: `forward`, the loss of the
digits, the term of the names, and batches in which nothing is known.
"""

from collections.abc import Callable
from numbers import Real

import torch
from torch import Tensor, nn

from course_lib.lessons.checks import (
    as_text,
    close,
    gradient,
    reject,
    require_close,
    require_kind,
    require_parameters,
    require_unchanged,
)
from course_lib.lessons.exercises import NotYet
from course_lib.losses import LossCollector


def judge(answer: Callable[..., nn.Module]) -> None:
    """Raise NotYet with the first mistake of a class TwoHeads."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.Tanh())
    digit, letters = nn.Linear(4, 10), nn.Linear(4, 5 * 27)
    model = answer(encoder, digit, letters)
    require_kind(model, nn.Module, "a module", what="`TwoHeads(...)`")
    outputs = _judge_forward(model, encoder, digit, letters)
    require_parameters(model, encoder, digit, letters)
    _judge_reach(outputs, encoder)
    _judge_loss(model)
    _judge_missing(model)


def _judge_forward(
    model: nn.Module, encoder: nn.Module, digit: nn.Module, letters: nn.Module
) -> tuple[Tensor, Tensor]:
    calls: list[int] = []
    watch = encoder.register_forward_hook(lambda *_: calls.append(1))
    x = torch.randn(3, 1, 2, 3)
    with LossCollector() as collector:
        got = model(x)
    watch.remove()
    if collector.terms:
        raise NotYet("Step 1: `forward` calls `add_loss`. Leave that to `loss`.")
    pair = "a pair: scores (batch, 10) and letter scores (batch, 5, 27)"
    require_kind(got, tuple | list, pair, what="Step 1, `forward`,")
    if len(got) != 2 or not all(isinstance(part, Tensor) for part in got):
        raise NotYet(f"Step 1, `forward`, returned {len(got)} parts; wanted {pair}.")
    code = encoder(x)
    scores, flat = digit(code), letters(code)
    by_letter = torch.stack([flat[:, 27 * i : 27 * i + 27] for i in range(5)], dim=1)
    by_place = torch.stack([flat[:, i::5] for i in range(5)], dim=1)
    if close(got[0], by_letter) and close(got[1], scores):
        raise NotYet("Step 1, `forward`: the pair is turned around. Digits come first.")
    require_close(got[0], scores, "Step 1, the scores of the digits", {})
    name = "Step 1, the scores of the letters"
    mistakes = {
        "The letters are in one row, (batch, 135). Make it (batch, 5, 27)": flat,
        "The axes of letters and places are exchanged. Wanted (batch, 5, 27); the "
        "exchange belongs into `loss`": by_letter.transpose(1, 2),
        "The numbers are read in the wrong order: the first 27 are the scores of the "
        "first letter. `view(-1, 27, 5)`, transposed, takes each fifth": by_place,
        "The numbers are read in the wrong order, and the axes are exchanged": (
            by_place.transpose(1, 2)
        ),
    }
    require_close(got[1], by_letter, name, mistakes)
    if len(calls) > 1:
        raise NotYet(
            f"Step 1: `forward` calls the encoder {len(calls)} times. With dropout "
            "in it the heads would see different codes. Call it once and keep the code."
        )
    return got[0], got[1]


def _judge_reach(outputs: tuple[Tensor, Tensor], encoder: nn.Module) -> None:
    for name, part in zip(("digits", "letters"), outputs, strict=True):
        found = gradient(part.square().sum(), encoder[1].weight)
        if found is None or not found.any():
            raise NotYet(
                f"Step 1: the gradient of the {name} does not reach the encoder. No "
                "`detach` and no `no_grad`: both heads train it."
            )


_DIGITS = (3, -1, 7, 0)
_NAMES = [20, 8, 18, 5, 5], [15, 14, 5, 0, 0], [0] * 5, [26, 5, 18, 15, 0]


def _judge_loss(model: nn.Module) -> None:
    scores, letters = _outputs(4, seed=0)
    digits, names = torch.tensor(_DIGITS), torch.tensor(_NAMES)
    got, term = _loss_of(model, scores, letters, digits.clone(), names.clone())
    each = _cross_entropies(scores, digits.clamp(min=0))
    spelled = _cross_entropies(letters.flatten(0, 1), names.flatten()).view(4, 5)
    known, counts = [0, 2, 3], names != 0
    wanted, wanted_term = each[known].mean(), spelled[counts].mean()
    both = wanted + wanted_term
    reject(
        {
            "Step 2: `loss` returns the loss of the names. Return that of the digits, "
            "and pass the names to `add_loss`.": close(got, wanted_term),
            "Step 3: you return the sum of both. Pass the names to `add_loss` in place "
            "of that, so that they are logged by themselves.": (
                term is None and close(got, both)
            ),
            "Step 3: the digits were passed to `add_loss`, too, so they would count "
            "twice.": close(term, wanted) or close(term, both),
            "Step 3: the names were passed to `add_loss` twice.": (
                close(term, 2 * wanted_term)
            ),
        }
    )
    place = "Step 2, the loss of the digits 3, -1, 7, 0"
    mistakes = _digit_mistakes(each.detach(), scores.detach())
    together = "You return the sum of both terms. `add_loss` adds the names already"
    if term is not None:
        mistakes[together] = both.detach()
    require_close(got, wanted.detach(), place, mistakes)
    if term is None:
        raise NotYet(
            "Step 3: no term arrived. Pass the loss of the letters on, with "
            '`add_loss("names", ...)`, inside of `loss`.'
        )
    place = "Step 3, the term of the names"
    require_close(term, wanted_term.detach(), place, _letter_mistakes(spelled))
    for value, right, of, name in (
        (got, wanted, scores, "digits"),
        (term, wanted_term, letters, "letters"),
    ):
        if not close(gradient(value, of), gradient(right, of)):
            raise NotYet(
                f"The values are right, but the gradient does not reach the {name}. Do "
                "`.item()`, `.detach()` or `torch.no_grad()` stand in your code?"
            )


def _outputs(batch: int, *, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = (batch, 10), (batch, 5, 27)
    scores, letters = (
        torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes
    )
    return scores, letters


def _loss_of(
    model: nn.Module, scores: Tensor, letters: Tensor, digits: Tensor, names: Tensor
) -> tuple[Tensor | Real, Tensor | None]:
    """Return the loss and its term, whose name must be right."""
    given = digits.clone(), names.clone()
    with LossCollector() as collector:
        try:
            got = model.loss((scores, letters), digits, names)
        except IndexError as error:
            raise NotYet(
                f"Step 2: cross_entropy was given a label that is no class ({error}). "
                "Replace the -1, `digits.clamp(min=0)`, and leave it to the mask."
            ) from error
        except RuntimeError as error:
            if "target size" not in str(error):
                raise
            raise NotYet(
                "Step 3: cross_entropy wants the classes in the second axis, (batch, "
                f"27, 5): `letters.mT`. It said: {error}."
            ) from error
    kind = Tensor if (digits >= 0).any() else Tensor | Real
    require_kind(got, kind, "a tensor", what="`loss`")
    require_unchanged([digits, names], given, "the labels that were given")
    if isinstance(got, Tensor) and got.dim():
        raise NotYet(
            f"Step 2: `loss` returned the shape {tuple(got.shape)}; wanted one number. "
            "`reduce` takes the mean over what counts."
        )
    others = collector.terms.keys() - {"names"}
    if others:
        raise NotYet(
            f"Step 3: the term is called {', '.join(sorted(others))!r}; wanted 'names'."
        )
    return got, collector.terms.get("names")


def _cross_entropies(scores: Tensor, labels: Tensor) -> Tensor:
    """Return -log of the label's share, one sample at a time."""
    rows = zip(scores, labels.tolist(), strict=True)
    return torch.stack([row.exp().sum().log() - row[label] for row, label in rows])


def _digit_mistakes(each: Tensor, scores: Tensor) -> dict[str, Tensor]:
    known = each[[0, 2, 3]]
    shares = torch.stack([row.exp() / row.exp().sum() for row in scores])
    squeezed = _cross_entropies(shares, torch.tensor(_DIGITS).clamp(min=0))
    return {
        "The missing label counts, as if it were a 0. Mask it": each.mean(),
        "The sum is masked, but you divided by all samples": known.sum() / 4,
        "That is the sum over the labels that exist. Divide by their number": (
            known.sum()
        ),
        "The digit 0 is masked as well. 0 is a label; -1 is none": each[[0, 2]].mean(),
        "The digit 0 is masked as well, and you divided by all samples": (
            each[[0, 2]].sum() / 4
        ),
        "A digit is left out because its name is unknown. Digits and names are labels "
        "of their own": each[[0, 3]].mean(),
        "`cross_entropy` wants scores, and you gave it shares (softmax)": (
            squeezed[[0, 2, 3]].mean()
        ),
        "The mask is turned around: that is the sample without a label": each[1],
    }


def _letter_mistakes(spelled: Tensor) -> dict[str, Tensor]:
    spelled = spelled.detach()
    counts = torch.tensor(_NAMES) != 0
    total = spelled[counts].sum()
    rows = [spelled[i][counts[i]] for i in (0, 1, 3)]
    return {
        "Padding counts. Mask it: `names > 0`": spelled.mean(),
        "The sum is masked, but you divided by all places": total / 20,
        "That is the sum over the letters. Divide by their number": total,
        "You divided by the number of names": total / 4,
        "You divided by the number of names that are known": total / 3,
        "You averaged each name first, so a letter of a short name counts more. Each "
        "letter counts alike": torch.stack([row.mean() for row in rows]).mean(),
        "You averaged each name first, and the unknown one counts as 0": (
            torch.stack([row.mean() for row in rows]).sum() / 4
        ),
        "A name is left out because its digit is unknown. Names and digits are "
        "labels of their own": torch.cat([rows[0], rows[2]]).mean(),
        "A letter is left out where the digit is 0, or unknown": rows[0].mean(),
        "Unknown names are left out, but padding in the others counts": (
            spelled[[0, 1, 3]].mean()
        ),
        "The mask is turned around: those are the places without a letter": (
            spelled[~counts].mean()
        ),
    }


def _judge_missing(model: nn.Module) -> None:
    """One label, and none: the means must be numbers, and 0 where nothing counts."""
    scores, letters = _outputs(2, seed=1)
    none = torch.zeros(2, 5, dtype=torch.int64)
    one = none.clone()
    one[1, 0] = 1
    got, term = _loss_of(model, scores, letters, torch.tensor([-1, 5]), one)
    wanted = scores[1].exp().sum().log() - scores[1, 5]
    require_close(got, wanted, "Step 2, with a single digit that is known", {})
    wanted = letters[1, 0].exp().sum().log() - letters[1, 0, 1]
    require_close(term, wanted, "Step 3, with a single letter that is known", {})
    got, term = _loss_of(model, scores, letters, torch.tensor([-1, -1]), none)
    for value, name in (got, "digit"), (term, "letter"):
        if value is None or not close(value, 0.0):
            text = "no term" if value is None else as_text(value)
            raise NotYet(
                f"Step 4, a batch in which no {name} is known: got {text}, wanted 0. A "
                "mean over nothing is 0 / 0; `reduce` with a mask returns 0 there."
            )
