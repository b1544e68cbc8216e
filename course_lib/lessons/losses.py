"""The exercises of lesson 04, Build what does not fit the mold.

The oracles are sums written out by hand and one sample taken at a time; none of them
is the code that the lesson teaches.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from course_lib.lessons.exercises import (
    Exercise,
    Mistakes,
    NotYet,
    as_text,
    close,
    gradient,
    require_close,
    require_written,
)

NUMBER = 4

# The judges


def _judge_twins(answer: Callable[[nn.Module], nn.Module]) -> str:
    torch.manual_seed(0)
    encoder = nn.Linear(3, 2, bias=False)
    first, second = torch.randn(4, 3), torch.randn(4, 3)
    model = answer(encoder)
    require_written(model)
    if not isinstance(model, nn.Module):
        raise NotYet(f"`Twins(encoder)` is a {type(model).__name__}; wanted a module.")
    products = model(first, second)
    require_written(products)
    _judge_weights(model, encoder)
    codes = first @ encoder.weight.T, second @ encoder.weight.T
    _judge_products(products, *(code.detach() for code in codes))
    wanted = gradient((codes[0] * codes[1]).sum(), encoder.weight)
    found = gradient(products.sum(), encoder.weight)
    if found is None or not close(found, wanted):
        raise NotYet(
            "The values are right, but only a part of the gradient comes back to the "
            "weights. Both calls must train them: no `detach` and no `no_grad`."
        )
    return (
        "One set of weights, two calls, and the gradients of both add up. `Shared` and "
        "`Siamese` do it for any bundle of layers."
    )


def _judge_weights(model: nn.Module, encoder: nn.Linear) -> None:
    weights = list(model.parameters())
    if not weights:
        raise NotYet(
            "The module has no weights: neither an optimizer nor `state_dict` would "
            "find any. A plain list, dict or lambda hides the encoder; write "
            "`self.encoder = encoder`."
        )
    if len(weights) > 1:
        raise NotYet(
            "There are two sets of weights. They start equal and drift apart with the "
            "first step. Call the one encoder twice."
        )
    if weights[0] is not encoder.weight:
        raise NotYet(
            "The module trains a copy; the encoder that was given never learns. Keep "
            "the encoder itself."
        )


def _judge_products(got: object, one: Tensor, other: Tensor) -> None:
    got = _require_tensor(got, "`forward`")
    products = one * other
    if got.dim() == 0:
        raise NotYet(
            "That is one number for the whole batch. Return one for each pair, shape "
            "(batch,), so that pairs can be weighted."
        )
    if got.shape == (4, 4):
        raise NotYet("You compare each sample with all others. Wanted (batch,) pairs.")
    mistakes = (
        (products, "The products are not added up. Sum over the features"),
        (products.mean(1), "That is the mean of the products; a dot product sums"),
        ((one * one).sum(1), "You multiply the first code by itself"),
        ((other * other).sum(1), "You multiply the second code by itself"),
        ((one - other).square().sum(1), "That is a squared distance"),
    )
    _require_close(got, products.sum(1), "The dot products", mistakes)


def _judge_center(answer: Callable[[Tensor], Tensor]) -> str:
    generator = torch.Generator().manual_seed(0)
    for shape in ((2, 3, 2), (4, 3), (2, 1, 4, 4)):
        x = torch.randn(shape, generator=generator)
        given = x.clone()
        got = _require_tensor(answer(given), "`center`")
        if not torch.equal(given, x):
            raise NotYet("You changed the batch that was given. Return a new tensor.")
        mistakes = (
            (x - x.mean(), "You took one mean over the whole batch"),
            (
                x - x.mean(0),
                "You took the mean over the batch axis: each pixel's mean over the "
                "samples. Keep the first axis apart",
            ),
            (x - x.mean(1, keepdim=True), "You took the mean over axis 1 alone"),
            (x - x.mean(-1, keepdim=True), "You took the mean over the last axis"),
            (torch.stack([s.mean() for s in x]), "That is the means. Subtract them"),
        )
        wanted = torch.stack([sample - sample.mean() for sample in x])
        _require_close(got, wanted, f"For a batch of shape {shape}", mistakes)
    return (
        "Each sample is centered by itself, so its result is the same alone and in any "
        "company."
    )


def _judge_weighted(answer: Callable[[Tensor, Tensor], Tensor]) -> str:
    weights = torch.tensor([1.0, 3.0, 0.0])
    losses = torch.tensor([[1.0, 2, 3], [4, 6, 8], [9, 9, 50]], requires_grad=True)
    each = losses.detach() * weights[:, None]
    got = answer(losses, weights)
    mistakes = (
        (each.sum() / (3 * weights.sum()), f"{_BY_WEIGHTS} spread over the steps"),
        (each.sum() / weights.sum(), _BY_WEIGHTS),
        (
            (losses * weights).mean(),
            "The weights met the steps and not the samples: broadcasting begins at "
            "the last axis. Give them one more axis, `weights[:, None]`",
        ),
        (
            losses.mean() * weights.mean(),
            "You averaged the losses before the weights came, so they only rescale "
            "one number",
        ),
        (each.sum(), "That is the sum. Divide by the number of losses"),
        (each.sum() / 3, "You divided by the samples. Each step has a loss: count all"),
        (losses.mean(), "The weights do nothing"),
    )
    place = "For 3 samples of 3 steps with weights 1, 3, 0"
    _require_close(got, each.sum() / 9, place, mistakes)
    slope = gradient(got, losses)
    if slope is None or not close(slope, weights[:, None].expand(3, 3) / 9):
        raise NotYet(
            "The value is right, but its gradient does not reach the losses. Do "
            "`.item()`, `.detach()` or `.data` stand in your code?"
        )
    got = answer(losses[:, :2], weights)
    _require_close(got, each[:, :2].sum() / 6, "For 3 samples of 2 steps", ())
    return (
        "The losses are weighted one by one and divided by their number. Weights of 2 "
        "everywhere double the loss, as in Keras."
    )


_BY_WEIGHTS = (
    "You divided by the sum of the weights, as torch's `weight=` does. Keras divides "
    "by the number of losses"
)


def _judge_balance(answer: Callable[..., tuple[Tensor, Tensor, Tensor]]) -> str:
    k = torch.tensor(0.3)
    real, generated = (torch.tensor(n, requires_grad=True) for n in (0.8, 0.5))
    loss, new, measure = _three(answer(k, real, generated, 0.5, 0.1))
    if k.item() != torch.tensor(0.3).item():
        raise NotYet(
            "You changed the tensor `k` in place. `loss` has not gone backward yet and "
            "still needs the old one. Return a new k."
        )
    _judge_new_k(new, "gamma * real - generated is -0.1", 0.29)
    early = 0.8 - 0.29 * 0.5
    mistakes = (
        (early, "The loss has the new k already. It takes the k of before the step"),
        (0.8 + 0.3 * 0.5, "The sign of the second term is wrong"),
        (0.8, "The loss has no term of the generated images"),
        (0.8 - 0.5, "The loss has no k"),
    )
    _require_close(loss, torch.tensor(0.8 - 0.3 * 0.5), "The loss", mistakes)
    mistakes = (
        (0.7, "M takes the size of the imbalance, |gamma * real - generated|"),
        (0.1, "That is the imbalance alone. M adds it to `real`"),
    )
    _require_close(measure, torch.tensor(0.9), "M", mistakes)
    _judge_balance_gradients(loss, new, measure, (real, generated))
    for start, made, end in ((0.01, 0.9, 0.0), (0.99, 0.0, 1.0)):
        errors = torch.tensor(0.8), torch.tensor(made)
        _, new, _ = _three(answer(torch.tensor(start), *errors, 0.5, 0.1))
        _require_clipped(new, end)
    return (
        "The old k in the loss, then the update, clipped to [0, 1], and no graph that "
        "grows from step to step. `BEGANLoss` keeps k and M as buffers."
    )


def _three(got: object) -> tuple[object, object, object]:
    require_written(got)
    if not isinstance(got, tuple | list) or len(got) != 3:
        raise NotYet("Return three tensors: the loss, the new k and M.")
    return got


def _judge_new_k(new: object, place: str, wanted: float) -> None:
    mistakes = (
        (0.3, "k is frozen: the new one is the old one"),
        (0.31, "k moved the wrong way. Generated images are rebuilt too badly here"),
        (-0.01, "That is only the step of k. Add it to k"),
        (0.2, "The factor lambda_k is missing"),
        (
            0.3 + 0.1 * (0.8 - 0.5 * 0.5),
            "gamma stands at `generated`. It scales `real`",
        ),
        (0.3 + 0.1 * (0.8 - 0.5), "gamma is missing"),
    )
    _require_close(new, torch.tensor(wanted), f"The new k ({place})", mistakes)


def _judge_balance_gradients(
    loss: Tensor, new: Tensor, measure: Tensor, errors: tuple[Tensor, Tensor]
) -> None:
    if new.requires_grad or measure.requires_grad:
        raise NotYet(
            "The new k or M still hangs on this step's graph; the next step would hang "
            "on it, too, and memory grows. Compute both from detached errors."
        )
    slopes = [gradient(loss, error) for error in errors]
    wanted = torch.tensor(1.0), torch.tensor(-0.3)
    for slope, number in zip(slopes, wanted, strict=True):
        if slope is None or not close(slope, number):
            raise NotYet(
                "The loss has the right value, but not its gradient: 1 by `real` and "
                "-k by `generated`. Detach for k and M only."
            )


def _require_clipped(new: object, end: float) -> None:
    got = _require_tensor(new, "The new k")
    if not close(got.detach(), torch.tensor(end)):
        raise NotYet(
            f"The new k became {got.item():.2f}. It stays in [0, 1]: at its ends it is "
            "clipped."
        )


def _judge_vat_term(answer: Callable[..., Tensor]) -> str:
    torch.manual_seed(0)
    model = nn.Linear(3, 4)
    x, d = torch.randn(5, 3), nn.functional.normalize(torch.randn(5, 3))
    weight = model.weight.detach().clone()
    got = answer(model, x, d, 0.5)
    if not torch.equal(model.weight, weight):
        raise NotYet("You changed the model. Only its outputs are wanted.")
    log_p, log_q = (model(y).log_softmax(1) for y in (x, x + 0.5 * d))
    wanted = (log_p.exp() * (log_p - log_q)).sum(1).mean()
    mistakes = _vat_mistakes(model, x, d, log_p, log_q)
    _require_close(got, wanted.detach(), "With eps = 0.5", mistakes)
    _judge_vat_gradient(got, model, log_p, log_q)
    return (
        "The answer on x stands fixed, and the answer beside it is drawn to it. "
        "`virtual_adversarial_loss` finds d as well."
    )


def _vat_mistakes(
    model: nn.Module, x: Tensor, d: Tensor, log_p: Tensor, log_q: Tensor
) -> Mistakes:
    kl = (log_p.exp() * (log_p - log_q)).sum(1)
    far = model(x + d).log_softmax(1)
    return (
        (
            (log_q.exp() * (log_q - log_p)).sum(1).mean(),
            "p and q are the other way round. The clean answer is p",
        ),
        (
            kl.mean() / 4,
            "That is the mean over samples and classes. `reduction='mean'` of torch's "
            "`kl_div` counts both; sum over the classes",
        ),
        (kl.sum(), "You summed over the batch. Take its mean"),
        (
            -(log_p.exp() * log_q).sum(1).mean(),
            "That is the cross-entropy. The KL has the entropy of p taken off",
        ),
        ((log_p.exp() * (log_p - far)).sum(1).mean(), "The step is d without eps"),
        (0.0, "It is 0: both passes saw the same inputs"),
    )


def _judge_vat_gradient(
    got: Tensor, model: nn.Linear, log_p: Tensor, log_q: Tensor
) -> None:
    p = log_p.exp()
    fixed = (p.detach() * (log_p.detach() - log_q)).sum(1).mean()
    leaking = (p * (log_p - log_q)).sum(1).mean()
    swapped = (p * (log_p - log_q.detach())).sum(1).mean()
    found = gradient(got, model.weight)
    if found is not None and close(found, gradient(fixed, model.weight)):
        return
    if found is None:
        text = (
            "no gradient comes back: both passes are detached. Let it flow through the "
            "second one"
        )
    elif close(found, gradient(leaking, model.weight)):
        text = (
            "a gradient leaks into the target: the clean answer is drawn toward the "
            "disturbed one as well. Detach p"
        )
    elif close(found, gradient(swapped, model.weight)):
        text = "the wrong pass is detached: the clean answer moves and q stands still"
    else:
        text = "the gradient by the weights is another one than with a fixed p"
    raise NotYet(f"The value is right, but {text}.")


# Small helpers


def _require_tensor(got: object, what: str) -> Tensor:
    require_written(got)
    if not isinstance(got, Tensor):
        raise NotYet(f"{what} is a {type(got).__name__}; wanted a tensor.")
    return got


def _require_close(got: object, wanted: Tensor, place: str, mistakes: Mistakes) -> None:
    got = _require_tensor(got, "What your function returns")
    require_close(got, wanted, place, mistakes, text=_text)


def _text(tensor: Tensor) -> str:
    if tensor.dim() > 1:
        return f"a tensor of shape {tuple(tensor.shape)}"
    return as_text(tensor)


twins = Exercise(
    "losses.twins",
    _judge_twins,
    (
        "A module that stands at one place has one set of weights, however often it "
        "is called.",
        "In `__init__`: `self.encoder = encoder`. In `forward` call it on `first`, "
        "then on `second`.",
        "`return (self.encoder(first) * self.encoder(second)).sum(dim=1)`",
    ),
)
center = Exercise(
    "losses.center",
    _judge_center,
    (
        "The mean of a sample is taken over all its axes, and over no other sample.",
        "`x.flatten(start_dim=1).mean(dim=1)` has shape (batch,). It must get as many "
        "axes as x has.",
        "`x.mean(dim=tuple(range(1, x.dim())), keepdim=True)`",
    ),
)
weighted = Exercise(
    "losses.weighted",
    _judge_weighted,
    (
        "First multiply, then average. By how many numbers does a mean divide?",
        "Broadcasting begins at the last axis. `weights[:, None]` has shape "
        "(batch, 1).",
        "`return (losses * weights[:, None]).mean()`",
    ),
)
balance = Exercise(
    "losses.balance",
    _judge_balance,
    (
        "The loss first: it takes the k that came in.",
        "Compute `imbalance = gamma * real - generated` from detached errors. The new "
        "k and M both follow from it.",
        "`new_k = (k + lambda_k * imbalance).clamp(0, 1)` and "
        "`M = real.detach() + imbalance.abs()`",
    ),
)
vat_term = Exercise(
    "losses.vat_term",
    _judge_vat_term,
    (
        "Two passes: one on x, which is the target, and one on x + eps * d.",
        "Detach the first pass's logits. `kl_from_logits(target, other)` gives "
        "(batch,).",
        "`return kl_from_logits(model(x).detach(), model(x + eps * d)).mean()`",
    ),
)
