"""The larger check of lesson 06: a loop over epochs, judged in steps.

The oracle is plain PyTorch: a linear layer, `backward`, and torch.optim.SGD.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from course_lib.explicit import Leaf, setup
from course_lib.lessons.checks import (
    close,
    name_mistake,
    reject,
    require_kind,
    require_written,
)
from course_lib.lessons.exercises import NotYet
from course_lib.lessons.explicit.fit_oracle import (
    Batches,
    Epoch,
    Watched,
    accuracy,
    by_torch,
)
from course_lib.rules import Momentum
from course_lib.trees import Tree, dotted, map_tree, walk

Fit = Callable[..., Any]
WANTED = "the tuple (state, params, log)"


def judge_fit(fit: Fit) -> None:
    """Call `fit` on small problems, each with one difficulty more."""
    problem = _problem()
    for step in (_one_epoch, _epochs, _going_on, _skipping, _modes, _stopping):
        step(fit, *problem)


def _problem() -> tuple[Tree, Batches, tuple[Tensor, Tensor]]:
    """Return parameters that start badly, three batches and eight test samples."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(20, 3, generator=generator)
    x[:, 0] = x[:, 0].abs() + 0.1  # the inputs of the test are negative there
    y = (x[:, 1] + x[:, 2] > 0).long()
    x[12:, 0] *= -1
    weight = torch.tensor([[2.0, 1.5, 1.0], [-2.0, -1.0, -1.5]])
    batches = [(x[a:b], y[a:b]) for a, b in ((0, 3), (3, 7), (7, 12))]
    bias = torch.tensor([0.25, -0.25])
    return {"0": {"weight": weight, "bias": bias}}, batches, (x[12:], y[12:])


def _run(
    fit: Fit,
    given: Tree,
    batches: Batches,
    test: Any,
    epochs: int = 1,
    goal: float = 2,
    *,
    model: nn.Module | None = None,
    state: Tree | None = None,
) -> tuple[Tree, Tree, list]:
    """Call the answer; return what it returned, once its form is right."""
    if model is None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 2))
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    params = map_tree(lambda path, x: x.clone(), given)
    state = setup(Momentum(0.1, 0.9), params) if state is None else state
    velocities = [leaf.state.clone() for _, leaf in walk(state)]
    given_batches, batches = batches, list(batches)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `train` warns of a batch that it skips
        got = _called(fit, model, params, state, batches, test, epochs, goal)
    if isinstance(got, list) and len(got) == 3:
        got = tuple(got)
    require_kind(got, tuple, WANTED)
    if len(got) != 3:
        raise NotYet(f"Your function returned a tuple of {len(got)}; wanted {WANTED}.")
    for part in got:
        require_written(part)
    _require_trees(*got, params)
    for name, tensor in model.state_dict().items():
        if not torch.equal(tensor, own[name]):
            raise NotYet(
                f"The model's own `{name}` has changed. Keep what is trained in "
                "`params`; the model gives the architecture alone."
            )
    if any(p.grad is not None for p in model.parameters()):
        raise NotYet("The model has a `.grad` now. Take gradients with respect to p.")
    changed = [p for p, x in walk(params) if not torch.equal(x, dict(walk(given))[p])]
    now = [leaf.state for _, leaf in walk(state)]
    moved = not all(map(torch.equal, now, velocities))
    if len(batches) != len(given_batches):
        raise NotYet("The list `batches` has lost entries: leave it as it came.")
    if changed or moved:
        raise NotYet(
            f"The {'params' if changed else 'state'} that you were given changed in "
            "place. `update` returns new trees; `update_`, `store` and `-=` write."
        )
    return got


def _called(fit: Fit, *arguments: Any) -> Any:
    try:
        return fit(*arguments)
    except (AttributeError, TypeError) as error:
        said = str(error)
        if "'dict' object has no attribute" in said or "real number, not dict" in said:
            raise NotYet(
                f"A tree stands where a number should: {said}. `with_gradient` gives "
                "the value first, then the gradients."
            ) from error
        raise


def _require_trees(state: Any, params: Any, log: Any, wanted: Tree) -> None:
    kinds = [next((type(x) for _, x in walk(tree)), None) for tree in (state, params)]
    if isinstance(state, list) or kinds == [Tensor, Leaf]:
        raise NotYet(f"The order is another one: wanted {WANTED}.")
    for name, tree, kind in (("state", state, Leaf), ("params", params, Tensor)):
        places = {dotted(path): leaf for path, leaf in walk(tree)}
        if set(places) != {dotted(path) for path, _ in walk(wanted)} or not all(
            isinstance(leaf, kind) for leaf in places.values()
        ):
            raise NotYet(f"Your `{name}` is not a tree like the one that was given.")
    kind = "a list with a dict for each epoch"
    require_kind(log, list, kind, what="`log`", verb="is")
    for entry in log:
        require_kind(entry, dict, "a dict", what="An entry of `log`", verb="is")
        if set(entry) != {"losses", "accuracy"}:
            raise NotYet(
                f"An entry of `log` has the keys {', '.join(map(str, entry))}; wanted "
                "losses and accuracy."
            )
        losses, kind = entry["losses"], "a list, one number for each batch"
        require_kind(losses, list | tuple, kind, what="`losses`", verb="is")


# The steps


def _one_epoch(fit: Fit, given: Tree, batches: Batches, test: Any) -> None:
    state, params, log = _run(fit, given, batches, test)
    (wanted,) = by_torch(given, batches, test)
    if len(log) != 1:
        raise NotYet(
            f"One epoch: `log` has {len(log)} entries. Append one after the batches."
        )

    def of(batches: Batches, velocity: str = "always") -> Tensor:
        return by_torch(given, batches, test, keeps_velocity=velocity)[0].weight

    start, got = given["0"]["weight"], params["0"]["weight"]
    mistakes = {
        "The parameters that you return are those that you were given. `update` "
        "returns new ones: keep them, for the next batch and for the end.": start,
        "Only the first batch was used. Does a `return` or a `break` end the loop over "
        "the batches?": of(batches[:1]),
        "Each batch starts from the first parameters, so only the last one counts. "
        "Give the new ones to the next batch.": of(batches[-1:]),
        "The velocity is lost between the batches: keep the state that `update` "
        "returns, too.": of(batches, "never"),
        "The steps climb: the losses grow.": 2 * start - wanted.weight,
    }
    reject({text: close(got, weight) for text, weight in mistakes.items()})
    if not close(got, wanted.weight):
        raise NotYet(
            "After one epoch of three batches the parameters are not those of plain "
            "PyTorch with the rule in `state`, which is Momentum here. For each batch: "
            "the gradient of its mean cross entropy at the newest params, then one "
            "`update`."
        )
    if not close(state["0"]["weight"].state, wanted.velocity):
        raise NotYet(
            "The state that you return is not the newest one: its velocity differs."
        )
    _judge_losses(log[0]["losses"], wanted.losses, "One epoch")
    _judge_accuracy(log[0]["accuracy"], wanted, 0, (given, batches, test))


def _judge_losses(got: Sequence[Any], wanted: list[float], place: str) -> None:
    if len(got) != len(wanted):
        raise NotYet(
            f"{place}: `losses` has {len(got)} entries; wanted {len(wanted)}, one for "
            "each batch of this epoch."
        )
    for number, wish in zip(got, wanted, strict=True):
        is_number = close(number, number) or number != number
        if not is_number or not _same(number, wish):
            raise NotYet(
                f"{place}: `losses` differ. Wanted the value of each batch before its "
                "step, as a number: `with_gradient` gives it together with the "
                "gradients."
            )


def _same(got: Any, wanted: float) -> bool:
    if math.isfinite(wanted):
        return close(got, wanted)
    return repr(float(got)) == repr(wanted)


def _epochs(fit: Fit, given: Tree, batches: Batches, test: Any) -> None:
    state, params, log = _run(fit, given, batches, test, 3)
    wanted = by_torch(given, batches, test, 3)
    if len(log) == 1:
        raise NotYet(
            "Three epochs, a goal that can't be reached: `log` has 1 entry. Does a "
            "`return` or a `break` stand in the loop, without its `if`? Or is `log` "
            "made again in each epoch?"
        )
    if len(log) != 3:
        raise NotYet(f"Three epochs: `log` has {len(log)} entries.")
    sizes = [len(entry["losses"]) for entry in log]
    if max(sizes) > 3:
        raise NotYet(
            f"Three batches in an epoch, and `losses` has {max(sizes)} entries: it "
            "goes on over the epochs. Begin each epoch with an empty list."
        )
    forgot = by_torch(given, batches, test, 3, keeps_velocity="in an epoch")[-1]
    if close(params["0"]["weight"], forgot.weight):
        raise NotYet(
            "The velocity starts at zero in each epoch. `state` goes on; no `setup` in "
            "the loop."
        )
    for number, (entry, epoch) in enumerate(zip(log, wanted, strict=True)):
        _judge_losses(entry["losses"], epoch.losses, f"Epoch {number + 1}")
        _judge_accuracy(entry["accuracy"], epoch, number, (given, batches, test))
    reject(
        {
            "After three epochs the parameters are not those of plain PyTorch.": (
                not close(params["0"]["weight"], wanted[-1].weight)
            ),
            "After three epochs the state is not the newest one.": (
                not close(state["0"]["weight"].state, wanted[-1].velocity)
            ),
        }
    )


def _going_on(fit: Fit, given: Tree, batches: Batches, test: Any) -> None:
    """The state of a first call goes into a second one."""
    state, params, _ = _run(fit, given, batches, test)
    _, params, _ = _run(fit, params, batches, test, state=state)
    if not close(params["0"]["weight"], by_torch(given, batches, test, 2)[-1].weight):
        raise NotYet(
            "A second call that goes on with the state of the first one differs from "
            "two epochs in one call. Use the `state` that comes in, and no `setup`."
        )


def _judge_accuracy(
    got: Any, epoch: Epoch, number: int, problem: tuple[Tree, Batches, Any]
) -> None:
    given, batches, test = problem
    place = f"Epoch {number + 1}: `accuracy` is"
    if not close(got, got):
        raise NotYet(f"{place} {got!r}; wanted one number, the share of right answers.")
    if close(got, epoch.accuracy):
        return
    seen = tuple(map(torch.cat, zip(*batches, strict=True)))
    torch.manual_seed(0)
    own = nn.Sequential(nn.Linear(3, 2))
    before = nn.Linear(3, 2)
    before.load_state_dict(given["0"])
    if number:
        before = by_torch(given, batches, test, number)[-1].layer
    mistakes = {
        "in percent; wanted a share between 0 and 1": 100 * epoch.accuracy,
        "the number of right answers; wanted their share": (
            len(test[1]) * epoch.accuracy
        ),
        "the share of mistakes": 1 - epoch.accuracy,
        "that of the training samples; wanted the test": accuracy(epoch.layer, seen),
        "that of the model's own parameters. Use `call` with the newest params": (
            accuracy(own, test)
        ),
        "from before this epoch. Measure after its batches, with the newest params": (
            accuracy(before, test)
        ),
    }
    name_mistake(got, {f"{place} {text}": wrong for text, wrong in mistakes.items()})
    raise NotYet(
        f"{place} {float(got):.3g}; wanted {epoch.accuracy:.3g}, the share of the test "
        "samples that the newest params name rightly."
    )


def _skipping(fit: Fit, given: Tree, batches: Batches, test: Any) -> None:
    nan = torch.full((2, 3), math.nan), torch.tensor([0, 1])
    inf = torch.tensor([[1.5e38, 0.0, 0.0]]), torch.tensor([1])
    first, second, third = batches
    hard = [first, nan, second, inf, third]
    try:
        state, params, log = _run(fit, given, hard, test)
    except (ValueError, ArithmeticError) as error:
        raise NotYet(
            "The loss of a batch was nan, and your loop stopped with an error: "
            f"{str(error).splitlines()[0][:60]}... Look at the loss before `update`, "
            "and skip the batch."
        ) from error
    (wanted,) = by_torch(given, hard, test)
    got = log[0]["losses"] if log else []
    reject(
        {
            "The loss of a batch was nan, and no batch came after it: `continue` goes "
            "on with the next batch; `break` or `return` end the epoch.": len(got) < 3,
            "`losses` has no entry for a batch that was skipped. Log first, then skip: "
            "who reads the log should see the nan.": len(got) == 3,
        }
    )
    weight = params["0"]["weight"]
    reject(
        {
            "A batch with an infinite loss was used. `math.isfinite` finds inf and "
            "nan.": not (weight.isfinite() & (weight.abs() < 1e9)).all().item(),
            "The batches with nan and inf should change nothing, the velocity "
            "included. Skip `update` for them, and for them only.": not (
                close(weight, wanted.weight)
                and close(state["0"]["weight"].state, wanted.velocity)
            ),
        }
    )
    _judge_losses(got, wanted.losses, "With a nan and an inf")


def _modes(fit: Fit, given: Tree, batches: Batches, test: Any) -> None:
    seen: dict[bool, list[bool]] = {True: [], False: []}

    def note(is_test: bool, is_training: bool) -> None:
        seen[is_test].append(is_training)

    model = Watched(note, nn.Linear(3, 2)).eval()
    _run(fit, given, batches, test, 2, 2.0, model=model)
    trained, judged = seen[False], seen[True]
    reject(
        {
            "The model came in eval mode and was trained in it: dropout would be off. "
            "Call `model.train()` before the batches.": not any(trained),
            "From the second epoch on you train in eval mode: `eval()` stays on. Call "
            "`model.train()` at the beginning of each epoch.": not all(trained),
            "The accuracy is measured in train mode, with dropout on. Call "
            "`model.eval()` first.": any(judged),
        }
    )


def _stopping(fit: Fit, given: Tree, batches: Batches, test: Any) -> None:
    wanted = by_torch(given, batches, test, 8)
    goal = wanted[-1].accuracy
    last = next(i for i, epoch in enumerate(wanted) if epoch.accuracy >= goal)
    for at_least in (goal - 0.01, goal):
        _, params, log = _run(fit, given, batches, test, 8, at_least)
        place = f"The accuracy reaches the goal in epoch {last + 1} of 8"
        is_equal = at_least == goal
        reject(
            {
                f"{place}, and the loop goes on. `break` leaves it.": (
                    len(log) > last + 1 and not is_equal
                ),
                f"{place}: it equals the goal, and the loop goes on. At least the goal "
                "is `>=`.": len(log) > last + 1,
                f"{place}, and that epoch is not in the log. Append first, then "
                "`break`.": len(log) == last,
                f"{place}, and the loop stops too early.": len(log) < last,
                "The parameters that you return are not those of the epoch that "
                "reached the goal.": not close(
                    params["0"]["weight"], wanted[last].weight
                ),
            }
        )
    _, _, log = _run(fit, given, batches, test, 3, 0.0)
    if len(log) != 1:
        raise NotYet(
            f"A goal that the first epoch reaches, and `log` has {len(log)} entries; "
            "wanted one."
        )
