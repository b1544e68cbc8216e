"""Exercises of lesson 04, Build what does not fit the mold.

The oracles are sums written out by hand and one sample taken at a time; none of them
is the code that the lesson teaches.
"""

import operator
from collections.abc import Callable

import torch
from torch import Tensor, nn

from course_lib.lessons.checks import (
    close,
    gradient,
    reject,
    require_close,
    require_kind,
    require_parameters,
    require_unchanged,
)
from course_lib.lessons.exercises import NotYet, exercise
from course_lib.lessons.losses import means_judge, two_heads_judge

NUMBER = 4


@exercise(
    "How often is `copy.deepcopy` called, and what does one call do with a layer that "
    "it meets twice?",
    "Go over the model place by place: `for layer in model` visits a repeated layer "
    "at each of its places.",
    "`nn.Sequential(*[copy.deepcopy(layer) for layer in model])`",
    right="Each place has weights of its own now, and they begin with the old numbers.",
)
def untie(answer: Callable[[nn.Sequential], nn.Sequential]) -> None:
    """A function that gives each place of a Sequential a copy of its layer."""
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    _judge_untied(answer, block, nn.Linear(2, 2, bias=False), block, block)
    _judge_untied(answer, *[nn.Linear(2, 2, dtype=torch.float64)] * 6)


def _judge_untied(
    answer: Callable[[nn.Sequential], nn.Sequential], *layers: nn.Module
) -> None:
    model = nn.Sequential(*layers)
    before = {name: p.detach().clone() for name, p in _places(model).items()}
    got = answer(model)
    require_kind(got, nn.Sequential, "an nn.Sequential", what="`untie`")
    _require_still_tied(model, layers, before)
    _judge_places(got, model)
    found = _places(got)
    reject(
        {
            "Two places still hold one tensor. One call of `copy.deepcopy` copies each "
            "object once, so the copy of a whole model is tied as the model was. Call "
            "it once for each place.": (
                len({p.data_ptr() for p in found.values()}) < len(before)
            ),
            "The layers have other numbers than before. Copy them: a new layer begins "
            "with random numbers.": not all(
                close(found[name], before[name]) for name in before
            ),
            "The copies are frozen: their `requires_grad` is False, so no training "
            "would move them.": not all(p.requires_grad for p in found.values()),
            "The copies have another dtype than the layers they were made of.": any(
                found[name].dtype != before[name].dtype for name in before
            ),
        }
    )


def _places(model: nn.Module) -> dict[str, nn.Parameter]:
    return dict(model.named_parameters(remove_duplicate=False))


def _require_still_tied(
    model: nn.Sequential, layers: tuple[nn.Module, ...], before: dict[str, Tensor]
) -> None:
    is_tied = len(model) == len(layers) and all(map(operator.is_, model, layers))
    if not is_tied or _places(model).keys() != before.keys():
        raise NotYet(
            "You changed the model that was given. Build a new `nn.Sequential` of "
            "copies, and leave the old one as it is."
        )
    if not all(close(p, before[name]) for name, p in _places(model).items()):
        raise NotYet("You changed the numbers of the model that was given.")


def _judge_places(got: nn.Sequential, model: nn.Sequential) -> None:
    given = {parameter.data_ptr() for parameter in model.parameters()}
    reject(
        {
            "The new model has one place, which holds all the others. Open the list "
            "with a star: `nn.Sequential(*layers)`.": (
                len(got) == 1 and isinstance(got[0], nn.Sequential)
            ),
            f"The new model has {len(got)} places, the old one {len(model)}. "
            "`children()`, `modules()` and a set visit a repeated layer once; `for "
            "layer in model` visits it at each place.": len(got) < len(model),
            "The new model has other layers than the old one, or another order.": (
                [type(a) for a in got] != [type(a) for a in model]
            ),
            "Some parameters of the old model have no place in the new one.": (
                _places(got).keys() != _places(model).keys()
            ),
            "The new model holds tensors of the old one, so training it changes both. "
            "`copy.copy` copies a module and not its tensors; `copy.deepcopy` copies "
            "both. Each place needs a copy, the first too.": any(
                parameter.data_ptr() in given for parameter in got.parameters()
            ),
        }
    )


@exercise(
    "A module that stands at one place has one set of weights, however often it "
    "is called.",
    "In `__init__`: `self.encoder = encoder`. In `forward` call it on `first`, "
    "then on `second`.",
    "`return (self.encoder(first) * self.encoder(second)).sum(dim=1)`",
    right="One set of weights, two calls, and the gradients of both add up. `Shared` "
    "and `Siamese` do it for any bundle of layers.",
)
def twins(answer: Callable[[nn.Module], nn.Module]) -> None:
    """A module of one encoder: the dot product of two codes."""
    torch.manual_seed(0)
    linear = nn.Linear(3, 2, bias=False)
    encoder = nn.Sequential(linear, nn.Tanh())
    first = torch.randn(4, 3, requires_grad=True)
    second = torch.randn(4, 3, requires_grad=True)
    model = answer(encoder)
    require_kind(model, nn.Module, "a module", what="`Twins(encoder)`")
    products = model(first, second)
    require_kind(products, Tensor, "a tensor", what="`forward`")
    require_parameters(model, encoder)
    one, other = ((x @ linear.weight.T).tanh() for x in (first, second))
    _judge_products(products, one.detach(), other.detach())
    wanted = (one * other).sum()
    for of, name in (linear.weight, "weights"), (first, "first"), (second, "second"):
        if not close(gradient(products.sum(), of), gradient(wanted, of)):
            what = "weights" if name == "weights" else f"input `{name}`"
            raise NotYet(
                "The values are right, but only a part of the gradient comes back to "
                f"the {what}. Both calls must train them: no `detach` and no `no_grad`."
            )
    if model(first[:1], second[:1]).shape != (1,):
        raise NotYet("For a batch of one pair the result has not the shape (1,).")


def _judge_products(got: Tensor, one: Tensor, other: Tensor) -> None:
    if got.dim() == 0:
        raise NotYet(
            "That is one number for the whole batch. Return one for each pair, shape "
            "(batch,), so that pairs can be weighted."
        )
    if got.shape == (4, 4):
        raise NotYet("You compare each sample with all others. Wanted (batch,) pairs.")
    products = one * other
    wanted = products.sum(1)
    mistakes = {
        "The products are not added up. Sum over the features": products,
        "You summed over the batch. Sum over the features, `dim=1`": products.sum(0),
        "One axis is left over. Wanted (batch,)": wanted[:, None],
        "That is the mean of the products; a dot product sums": products.mean(1),
        "You multiply the first code by itself": (one * one).sum(1),
        "You multiply the second code by itself": (other * other).sum(1),
        "That is a squared distance": (one - other).square().sum(1),
        "That is a distance": (one - other).norm(dim=1),
        "You divided by the lengths of the codes, which gives a cosine": (
            wanted / (one.norm(dim=1) * other.norm(dim=1))
        ),
        "The two codes are added, not multiplied": (one + other).sum(1),
    }
    require_close(got, wanted, "The dot products", mistakes)


@exercise(
    "The mean of a sample is taken over all its axes, and over no other sample.",
    "`x.flatten(start_dim=1).mean(dim=1)` has shape (batch,). It must get as many "
    "axes as x has.",
    "`x.mean(dim=tuple(range(1, x.dim())), keepdim=True)`",
    right="Each sample is centered by itself, so its result is the same alone and in "
    "any company.",
)
def center(answer: Callable[[Tensor], Tensor]) -> None:
    """A function of a batch: each sample minus its mean."""
    two = torch.tensor([[[1.0, 5], [7, 3], [2, 6]], [[9, 0], [4, 8], [40, 11]]])
    generator = torch.Generator().manual_seed(0)
    others = [torch.randn(s, generator=generator) for s in ((4, 3), (2, 1, 4, 4))]
    for x in (two, *others, torch.arange(6.0).reshape(1, 2, 3)):
        given = x.clone()
        got = answer(given)
        require_kind(got, Tensor, "a tensor", what="`center`")
        require_unchanged([given], [x], "the batch that was given")
        if got.dtype != x.dtype:
            raise NotYet(f"The batch is of {x.dtype}, and the result of {got.dtype}.")
        place = f"For a batch of shape {tuple(x.shape)}"
        wanted = torch.stack([sample - sample.mean() for sample in x])
        require_close(got, wanted, place, _center_mistakes(x))
    x = torch.tensor([[1.0, 5, 6], [7, 3, 2]], requires_grad=True)
    slope = torch.tensor([[2.0, -1, -1], [2, -1, -1]]) / 3  # of the first column
    if not close(gradient(answer(x)[:, 0].sum(), x), slope):
        raise NotYet(
            "The values are right, but not their gradient: a network in front of "
            "`center` would learn wrongly. No `.detach()`, `.item()`, `.data` or "
            "`torch.no_grad()`: the means have a gradient, too."
        )


def _center_mistakes(x: Tensor) -> dict[str, Tensor]:
    means = torch.stack([sample.mean() for sample in x])
    columns = means.reshape(-1, *[1] * (x.dim() - 1))  # (batch, 1, ...)
    mistakes = {
        "You took one mean over the whole batch": x - x.mean(),
        "You took the mean over the batch axis: each pixel's mean over the "
        "samples. Leave the first axis out": x - x.mean(0),
        "You took the mean over axis 1 alone": x - x.mean(1, keepdim=True),
        "You took the mean over the last axis": x - x.mean(-1, keepdim=True),
        "That is the means. Subtract them": means,
        "That is the means, with as many axes as the batch. Subtract them": columns,
        "You subtracted the batch from the means: the signs are wrong": columns - x,
        "You added the means": x + columns,
        "You subtracted the sums. Divide by the number of values": torch.stack(
            [sample - sample.sum() for sample in x]
        ),
        "You subtracted the medians": torch.stack([s - s.median() for s in x]),
        "You divided by the standard deviation as well": torch.stack(
            [(s - s.mean()) / s.std() for s in x]
        ),
        "You divided by the standard deviation as well (without the - 1)": torch.stack(
            [(s - s.mean()) / s.std(correction=0) for s in x]
        ),
    }
    if x.shape[-1] == len(x):
        mistakes |= {
            "The means met the last axis, as broadcasting begins there. Give them the "
            "axes that are missing": x - means
        }
    return mistakes


@exercise(
    "First multiply, then average. By how many numbers does a mean divide?",
    "Broadcasting begins at the last axis. `weights[:, None]` has shape (batch, 1).",
    "`return (losses * weights[:, None]).mean()`",
    right="The losses are weighted one by one and divided by their number. Weights of "
    "2 everywhere double the loss, as in Keras 3.",
)
def weighted(answer: Callable[[Tensor, Tensor], Tensor]) -> None:
    """A function of (losses, weights): the weighted mean of Keras 3."""
    means_judge.judge_weighted(answer)


@exercise(
    "A mean is a sum divided by a number. The mask belongs into both.",
    "A factor does not hide nan. `losses.where(counts, 0)` puts 0 in its place.",
    "`losses.where(counts, 0).sum() / counts.sum().clamp(min=1)`",
    right="Each step that counts weighs alike, padding weighs nothing, and nothing "
    "that matters is hidden.",
)
def masked(answer: Callable[[Tensor, Tensor], Tensor]) -> None:
    """A function of (losses, counts): the mean over the steps that count."""
    means_judge.judge_masked(answer)


@exercise(
    "Write it in three steps, and check after each: `__init__`, `forward`, `loss`. "
    "Attributes register modules; one code goes to both heads.",
    "`self.letters(code).unflatten(1, (5, 27))` has shape (batch, 5, 27). "
    '`cross_entropy(..., reduction="none")` keeps one value for each label; `reduce` '
    "takes a mask.",
    '`add_loss("names", reduce(cross_entropy(letters.mT, names, reduction="none"), '
    "mask=names > 0))`, and the same for the digits with `mask=digits >= 0`.",
    right="One encoder gets the gradients of both heads, and each label that exists "
    "counts once. `fit` would train it and show `names` in a column of its own.",
)
def two_heads(answer: Callable[..., nn.Module]) -> None:
    """A class: one encoder, a head for digits, a head for letters, and their loss."""
    two_heads_judge.judge(answer)
