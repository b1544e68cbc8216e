"""How lesson 02 judges a whole training loop, step by step."""

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from course_lib.lessons.checks import as_text, close, reject, require_kind
from course_lib.lessons.exercises import NotYet
from course_lib.lessons.regularization.loops import (
    SLIPS,
    Batches,
    Run,
    Setting,
    descend,
)


class _Small(nn.Module):
    """A nested layer, a repeated one, two that share a tensor, and other weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.inner = nn.Sequential(nn.Tanh(), nn.Linear(3, 3), nn.Tanh())
        self.norm = nn.LayerNorm(3)
        self.tied = nn.Linear(3, 3)
        self.tied.weight = self.first.weight
        self.last = nn.Linear(3, 2)
        self.mixes = nn.Parameter(torch.eye(3) + 0.3)  # a matrix of no `nn.Linear`

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.inner(self.inner(self.first(x @ self.mixes))))
        return self.last(torch.tanh(self.tied(x)))


def judge_loop(
    answer: Callable[..., Sequence[float]], place: str, count: int, setting: Setting
) -> None:
    """Run the answer on a small model; compare the weights, then the numbers."""
    generator = torch.Generator().manual_seed(count)
    batches = [
        (torch.randn(n, 3, generator=generator), torch.tensor([0, 1, 1, i % 2][:n]))
        for i, n in zip(range(count), (4, 2, 4), strict=False)
    ]
    torch.manual_seed(0)
    model = _Small()
    trained = copy.deepcopy(model)
    modes: list[bool] = []
    hook = trained.register_forward_pre_hook(lambda m, _: modes.append(m.training))
    got = _history(_run_loop(answer, trained, batches, setting))
    hook.remove()
    if modes and not modes[0]:
        raise NotYet("The model trains in eval mode. Leave out `model.eval()`.")
    run = partial(descend, model, batches, setting)
    is_plain = not (setting.l1 or setting.l2) and count == 1
    _judge_parameters(place, trained, model, run, is_plain=is_plain)
    _judge_history(place, got, run().losses, [len(labels) for _, labels in batches])


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
        if any(isinstance(number, Tensor) and number.requires_grad for number in got):
            raise NotYet(
                "The numbers still carry the graphs of their batches, which stay in "
                "memory. Note `loss.item()`."
            )
        return [float(number) for number in got]
    except (TypeError, ValueError) as error:
        raise NotYet(
            f"`train` returned {type(got).__name__}; wanted a list with one number "
            "for each epoch."
        ) from error


def _judge_parameters(
    place: str,
    trained: nn.Module,
    model: nn.Module,
    run: Callable[..., Run],
    *,
    is_plain: bool,
) -> None:
    found = {name: p.detach() for name, p in trained.named_parameters()}
    right = run().parameters

    def are(wanted: Mapping[str, Tensor]) -> bool:
        return found.keys() == wanted.keys() and all(
            close(found[name], p) for name, p in wanted.items()
        )

    if are(right):
        return
    reject(
        {
            f"{place}: layers hold other tensors now, and two that shared one do not. "
            "Change the numbers of a weight, as `w.data = ...` does, not the weight "
            "of a layer.": found.keys() != right.keys(),
            f"{place}: the model did not move. Is there a step, on this model's own "
            "parameters?": are(dict(model.named_parameters())),
        }
    )
    for name, slip in SLIPS.items():
        if are(run(slip).parameters):
            raise NotYet(f"{name}. ({place}.)")
    gaps = {name: (found[name] - p).abs().max() for name, p in right.items()}
    wrong = max(gaps, key=gaps.__getitem__)  # where the shown digits differ, too
    advice = "Fewer batches and coefficients were right, so look at what is new."
    if is_plain:
        advice = (
            "Make one step of `torch.optim.SGD(model.parameters(), lr=lr)`, with the "
            "gradient of the cross entropy."
        )
    raise NotYet(
        f"{place}: got {as_text(found[wrong])}, wanted "
        f"{as_text(right[wrong].detach())} as `{wrong}`. {advice}"
    )


def _judge_history(
    place: str, got: list[float], right: list[list[float]], sizes: list[int]
) -> None:
    losses, epochs = torch.tensor(right), len(right)
    wanted, each = losses.mean(dim=1), torch.tensor(sizes) / sum(sizes)
    reject(
        {
            f"{place}: got one number for each batch. Wanted one for each epoch.": (
                len(got) == losses.numel() != epochs
            ),
            f"{place}: got {len(got)} numbers; wanted {epochs}, one for each epoch.": (
                len(got) != epochs
            ),
        }
    )
    got = torch.tensor(got)
    if close(got, wanted):
        return
    mistakes = {
        "That is the sum over the batches. Take the mean.": losses.sum(dim=1),
        "That is the last batch of each epoch. Take the mean over its batches.": (
            losses[:, -1]
        ),
        "That is the first batch of each epoch. Take the mean over its batches.": (
            losses[:, 0]
        ),
        "That weights each batch by its size. Here each batch counts once.": (
            losses @ each
        ),
    }
    head = "The weights are right, the numbers returned are not."
    reject({f"{head} {name}": close(got, wrong) for name, wrong in mistakes.items()})
    raise NotYet(
        f"{head} Note the cross entropy before the step, and without the penalty. "
        f"{place}: got {as_text(got)}, wanted {as_text(wanted)}."
    )
