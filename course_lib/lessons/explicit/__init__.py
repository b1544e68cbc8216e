"""Exercises of lesson 06, Carry the state in your own hands.

The oracles are autograd on one sample at a time, arithmetic, and torch's own eval mode;
none of them is the function that the lesson teaches.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from course_lib.explicit import parameters
from course_lib.lessons.checks import reject, require_kind, require_written
from course_lib.lessons.exercises import NotYet, exercise
from course_lib.lessons.explicit.evaluate_judge import (
    judge_nested,
    judge_outputs,
    judge_untouched,
)
from course_lib.lessons.explicit.fit_judge import Fit, judge_fit
from course_lib.lessons.explicit.hidden_state import PLACES as PLACES
from course_lib.lessons.explicit.hidden_state import make_run as make_run
from course_lib.lessons.explicit.hidden_state import race as race
from course_lib.lessons.explicit.hidden_state import torch_steps as torch_steps
from course_lib.lessons.explicit.hidden_state import watch as watch
from course_lib.lessons.explicit.tree_judge import (
    copied,
    require_dtype,
    require_keys,
    require_tree,
    same,
)
from course_lib.trees import Tree, map_tree, walk

NUMBER = 6

ETA = 0.25  # of the check of `descend`


@exercise(
    "The gradient of w**2 is 2 * w. Put it beside the column g.",
    "Two rows differ: 1.6 beside 1.28, and 1.728 beside 0.768.",
    "1.6 is the g of the row before; 1.728 is 0.768 + 0.96.",
    right="At step 2 the gradient 1.6 belongs to w = 0.8; at step 4, 1.728 = 0.768 + "
    "0.96. Neither raises an error, and the loss falls all the same.",
)
def stale(answer: dict[str, int]) -> None:
    """A dict: at which steps of the table a gradient was stale, and in which way."""
    if not isinstance(answer, dict) or set(answer) != {"reused", "added_up"}:
        raise NotYet("The answer is the dict with the keys `reused` and `added_up`.")
    answer = {name: _number(step) for name, step in answer.items()}
    for step in answer.values():
        require_written(step)
    got = answer["reused"], answer["added_up"]
    reject(
        {
            "Right steps, swapped. In one of them g equals the g before, in the other "
            "it equals the right one plus the one before.": got == (4, 2),
            "You count from 1. The first row of the table is step 0.": got == (3, 5),
            "Those are the steps before the bad ones: the rows that the stale numbers "
            "come from.": got == (1, 3),
            "Step 3 is right for its w: 2 * 0.48 = 0.96. It only starts from a w that "
            "a bad step has left.": got == (3, 4),
        }
    )
    for name, wanted in {"reused": 2, "added_up": 4}.items():
        if answer[name] != wanted:
            raise NotYet(
                f"`{name}` is not {answer[name]!r}. Compute 2 * w for each row, and "
                "look for where the gradient beside it differs."
            )


def _number(step: Any) -> Any:
    """Return the step, also from "2", or a list, tuple or set of one."""
    if isinstance(step, list | tuple | set) and len(step) == 1:
        (step,) = step
    return int(step) if isinstance(step, str) and step.isdecimal() else step


@exercise(
    "A tree is a dict; its values are tensors or trees again.",
    "For a dict: call `descend` on params[key] and grads[key]. For a tensor: "
    "`x - eta * g`.",
    "`{k: descend(x, grads[k], eta) if isinstance(x, dict) else ... for k, x in "
    "params.items()}`.",
    right="A new tree, and the old one is still there: we can go back, compare, or "
    "step twice from one place.",
)
def descend(answer: Callable[[Tree, Tree, float], Tree]) -> None:
    """A function of (params, grads, eta): the tree after one step of descent."""
    params = {"w": torch.tensor([1.0, 2.0]), "in": {"b": torch.tensor([3.0])}}
    params["in"]["deep"] = {"c": torch.tensor([[4.0]])}
    grads = map_tree(lambda path, x: 2 * x + 1, params)
    before, given = copied(params), copied(grads)
    tensors = dict(walk(params))
    got = _descended(answer, params, grads, ETA)
    if any(now is not tensors[path] for path, now in walk(params)):
        raise NotYet(
            "You put the new tensors into the dict that you were given, so the old "
            "parameters are gone. Build a new dict."
        )
    if not same(params, before) or not same(grads, given):
        raise NotYet(
            "You changed the tensors that you were given. Write `x - eta * g`, which "
            "makes a new one, and not `-=` or a method that ends in `_`."
        )
    require_keys(got, params, "descend")
    by_path = dict(walk(given))

    def stepped(factor: float) -> Tree:
        return map_tree(lambda path, x: x + factor * by_path[path], before)

    mistakes = {
        "That climbs: the loss grows along the gradient. Subtract it": stepped(ETA),
        "The step has no `eta` in it": stepped(-1.0),
        "Nothing moved. Return x - eta * g for every tensor": before,
        "That is the step alone, without x": map_tree(lambda path, g: -ETA * g, grads),
        "The step is 0.1 whatever `eta` is; use the argument": stepped(-0.1),
        "The signs of x and of the step are swapped": map_tree(
            lambda path, x: -x, stepped(-ETA)
        ),
        "Only the tensors at the top moved. Use what `descend` returns for a dict": (
            {**before, "w": stepped(-ETA)["w"]}
        ),
    }
    wanted = "x - eta * g for each tensor x"
    require_tree(got, stepped(-ETA), "descend", mistakes, wanted)
    first = copied(got)
    _judge_deep(answer)
    if not same(got, first):
        raise NotYet("A second call changes what the first one returned.")


def _judge_deep(answer: Callable[[Tree, Tree, float], Tree]) -> None:
    """A tree of five levels; the names `weight` and `bias` stand at each."""
    names = ("weight", "bias")
    params: Tree = {name: torch.tensor([1.0, -2.0]) for name in names}
    for level in range(4):
        here = {name: torch.tensor([level, 1.0]) for name in names}
        params = {**here, "inner": params}
    size = iter(range(3, 99))
    grads = map_tree(lambda path, x: torch.full_like(x, next(size)), params)
    got = _descended(answer, params, grads, 0.5)
    require_keys(got, params, "descend")
    by_path = dict(walk(grads))

    def stepped(step: Callable[[tuple[str, ...]], Tensor]) -> Tree:
        return map_tree(lambda path, x: x - step(path), params)

    deepest = {path[-1]: g for path, g in by_path.items()}
    mistakes = {
        "The second call has another `eta`, and your step is that of the first": (
            stepped(lambda path: ETA * by_path[path])
        ),
        "`weight` stands at five levels, and your step takes one gradient for all. "
        "Go down in `grads` by the same keys as in `params`": (
            stepped(lambda path: 0.5 * deepest[path[-1]])
        ),
        "`bias` has not moved": stepped(
            lambda path: 0.5 * by_path[path] * (path[-1] == "weight")
        ),
    }
    place = "descend, for a tree of five levels and eta = 0.5"
    require_tree(
        got, stepped(lambda path: 0.5 * by_path[path]), place, mistakes, "x - eta * g"
    )


def _descended(
    answer: Callable[..., Tree], params: Tree, grads: Tree, eta: float
) -> Tree:
    try:
        got = answer(params, grads, eta)
    except (TypeError, AttributeError, IndexError) as error:
        said = str(error)
        if "'Tensor' object has no" in said or "used as indices" in said:
            raise NotYet(
                "A tensor was used as a dict: it may stand at any level, at the top, "
                "too. Ask of each value which of the two it is."
            ) from error
        if "dict" not in said:
            raise
        raise NotYet(
            "Arithmetic met a dict: the tree has dicts inside of dicts, to any depth. "
            "For a value that is a dict call `descend` again."
        ) from error
    require_written(got)
    return got


@exercise(
    "Write the gradient of one sample first; vmap makes many of it.",
    "The model wants a batch: `one[None]` is a batch of one, `label[None]` too.",
    "`vmap(of_one)(x, y)`, where `of_one(one, label)` returns `gradient(lambda p: "
    "cross_entropy(call(model, p, one[None]), label[None]), params)`.",
    right="Five gradients for each tensor, one a sample. Their mean is the gradient of "
    "the batch.",
)
def sample_gradients(answer: Callable[..., Tree]) -> None:
    """A function of (model, params, x, y): the gradient of each sample."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    own = parameters(model)
    params = map_tree(lambda path, x: x + torch.randn_like(x), own)
    x, y = torch.randn(5, 3), torch.tensor([0, 1, 1, 0, 1])
    given, x_before = copied(params), x.clone()
    got = answer(model, given, x, y)
    require_written(got)
    if not same(given, params) or not torch.equal(x, x_before):
        raise NotYet("`params` or `x` has changed. Leave what you are given as it is.")
    if not all(module.training for module in model.modules()):
        raise NotYet("The model came in train mode and is in eval mode now.")
    if not same(parameters(model), own):
        raise NotYet("The model's own parameters have changed. Use `call` or a copy.")
    if any(p.grad is not None for p in model.parameters()):
        raise NotYet(
            "The model has a `.grad` now, so the next `backward` adds to it. Take "
            "gradients with respect to `params`, not to the model."
        )
    require_keys(got, params, "sample_gradients")
    wanted = _one_at_a_time(params, x, y)

    def changed(function: Callable[[Tensor], Tensor]) -> Tree:
        return map_tree(lambda path, g: function(g), wanted)

    mistakes = {
        "That is one gradient for the whole batch. vmap over x and y": changed(
            lambda g: g.mean(0)
        ),
        "That is the sum over the batch. vmap over x and y, and return what it gives": (
            changed(lambda g: g.sum(0))
        ),
        "Five times the same: each is the gradient of the whole batch. Inside of vmap "
        "use the one sample only": changed(lambda g: g.mean(0).expand_as(g)),
        "Each gradient is divided by the batch size": changed(lambda g: g / len(g)),
        "Each gradient holds those of the samples before it: `.grad` adds up": (
            changed(lambda g: g.cumsum(0))
        ),
        "All are the gradient of the last sample. A lambda made in a loop looks its "
        "variables up late; a list of `.grad` without `.clone()` holds one tensor": (
            changed(lambda g: g[-1:].expand_as(g))
        ),
        "Their signs are turned": changed(lambda g: -g),
        "Those are gradients at the model's own parameters. Use `params`": (
            _one_at_a_time(own, x, y)
        ),
    }
    require_tree(got, wanted, "sample_gradients", mistakes)
    of_three = map_tree(lambda path, g: g[:3], wanted)
    others = {
        "that begins with `nn.Flatten()`, as the lesson's own": (
            [*model],
            lambda tree: {"1": tree["0"], "3": tree["2"]},
            "If it gets one sample alone, give it a batch of one: `one[None]`, and "
            "`label[None]`.",
        ),
        "that has a model inside": (
            [nn.Sequential(*model)],
            lambda tree: {"1": tree},
            "Its tree has one level more; `map_tree` and `vmap` go to any depth.",
        ),
    }
    for words, (layers, moved, advice) in others.items():
        trees = moved(params), moved(of_three)
        _judge_other(answer, layers, trees, (x[:3], y[:3]), words, advice)


def _judge_other(
    answer: Callable[..., Tree],
    layers: Sequence[nn.Module],
    trees: tuple[Tree, Tree],
    batch: tuple[Tensor, Tensor],
    words: str,
    advice: str,
) -> None:
    model, (params, wanted) = nn.Sequential(nn.Flatten(), *layers), trees
    try:
        got = answer(model, params, *batch)
    except (KeyError, IndexError, RuntimeError, ValueError, TypeError) as error:
        said = f"{type(error).__name__}: {error}".splitlines()[0].rstrip(".")
        if isinstance(error, KeyError):
            advice = "Its tree has other keys: take them from `params`."
        raise NotYet(
            f"With a model {words}, your code raised: {said}. {advice}"
        ) from None
    require_keys(got, params, "sample_gradients")
    require_tree(got, wanted, f"sample_gradients, for a model {words}", {})


def _one_at_a_time(params: Tree, x: Tensor, y: Tensor) -> Tree:
    """The gradients of each sample by plain autograd, without the model."""
    leaves = {path: t.detach().requires_grad_() for path, t in walk(params)}
    rows: list[dict[tuple[str, ...], Tensor]] = []
    for one, label in zip(x, y, strict=True):
        hidden = torch.tanh(leaves["0", "weight"] @ one + leaves["0", "bias"])
        logits = leaves["2", "weight"] @ hidden + leaves["2", "bias"]
        loss = logits.logsumexp(0) - logits[label]
        found = torch.autograd.grad(loss, list(leaves.values()))
        rows.append(dict(zip(leaves, found, strict=True)))
    return map_tree(lambda path, t: torch.stack([row[path] for row in rows]), params)


@exercise(
    "`call` leaves parameters and buffers alone, but a mode is an attribute of "
    "each module.",
    "A deep copy of the model may be switched to eval mode; nobody else sees it.",
    "`call(copy.deepcopy(model).eval(), params, x, buffers=stats)` gives a pair.",
    right="The same outputs however often we look, and a model that does not know that "
    "it was looked at.",
)
def evaluate(answer: Callable[..., Tensor]) -> None:
    """A function of (model, params, stats, x): the outputs in eval mode."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    model[2].eval()  # switched off on purpose
    params = map_tree(lambda path, x: x + torch.randn_like(x), parameters(model))
    stats = {"1": {"running_mean": torch.randn(4), "running_var": torch.rand(4) + 1}}
    stats["1"]["num_batches_tracked"] = torch.tensor(7)
    own = {name: t.clone() for name, t in model.state_dict().items()}
    x = torch.randn(6, 3) + 2
    x_before = x.clone()
    given = copied(params), copied(stats)
    generator = torch.get_rng_state()
    got = answer(model, *given, x)
    require_written(got)
    judge_untouched(model, own)
    if not same(given[0], params) or not same(given[1], stats):
        raise NotYet("The trees that you were given have changed. Leave them alone.")
    if not torch.equal(x, x_before):
        raise NotYet("The inputs `x` have changed. Leave them alone.")
    if isinstance(got, tuple):
        raise NotYet(
            "With `buffers=`, `call` returns (output, new buffers). Return the output "
            "alone."
        )
    require_kind(got, Tensor, "the outputs, a tensor", what="`evaluate`")
    judge_outputs(got, (params, stats), own, x)
    require_dtype(got, "What `evaluate` returned")
    if not torch.equal(torch.get_rng_state(), generator):
        raise NotYet(
            "torch's global generator has changed: that is a trace, too. In eval mode "
            "nothing is drawn, so nothing has to be seeded."
        )
    judge_nested(answer, x)


@exercise(
    "Two loops, one inside of the other: over the epochs, over the batches. Both stand "
    "in the section on the loop of Flux's chapter.",
    "Before the batches: `losses = []` and `model.train()`. After them: "
    "`model.eval()`, the accuracy, `log.append(...)`, and whether to `break`.",
    "In the inner loop: `value, grads = with_gradient(...)`; append the value; `if not "
    "math.isfinite(value): continue`; `state, params = update(state, params, grads)`.",
    right="The loop of Flux's chapter, and it owns nothing: what it read came in as "
    "arguments, what it made goes out with `return`.",
)
def fit(answer: Fit) -> None:
    """A function of (model, params, state, batches, test, epochs, goal)."""
    judge_fit(answer)
