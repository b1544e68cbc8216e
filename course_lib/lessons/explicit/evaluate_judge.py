"""The check of lesson 06's `evaluate`: what it returns, and the traces that it leaves.

Each function raises `NotYet` with the name of a mistake, or returns.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from course_lib.lessons.checks import close, name_mistake, reject
from course_lib.lessons.exercises import NotYet
from course_lib.trees import Tree, dotted, walk


def judge_nested(answer: Callable[..., Tensor], x: Tensor) -> None:
    """A model inside of the model; its batch norm rests, its dropout is on."""
    inner = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5))
    model = nn.Sequential(inner, nn.Identity())
    inner[0].eval()
    modes = [module.training for module in model.modules()]
    norm = {"weight": torch.tensor([1.0, 2.0, 3.0]), "bias": torch.ones(3)}
    stats = {"running_mean": torch.ones(3), "running_var": torch.full((3,), 4.0)}
    stats["num_batches_tracked"] = torch.tensor(7)
    got = answer(model, {"0": {"0": norm}}, {"0": {"0": stats}}, x)
    if [module.training for module in model.modules()] != modes:
        raise NotYet(
            "A module inside of a module has another mode than before. "
            "`model.modules()` goes to any depth, `children()` to the first level."
        )
    wanted = (x - 1) / (4 + 1e-5) ** 0.5 * norm["weight"] + norm["bias"]
    if not close(got, wanted):
        raise NotYet(
            "In a model with a dropout that is on, the outputs are not those of eval "
            "mode. Is each module in eval mode, at any depth?"
        )


def judge_untouched(model: nn.Module, own: dict[str, Tensor]) -> None:
    """Refuse a model whose modes or numbers have changed."""
    modes = [module.training for module in model.modules()]
    reject(
        {
            "`model.train()` also switched on the dropout, which was off on purpose. "
            "Put back the mode of each module.": all(modes),
            "The model is still in eval mode afterwards. Put its mode back, or use a "
            "deep copy.": not any(modes),
            "The modes of the modules are not those from before.": (
                modes != [True, True, True, False]
            ),
        }
    )
    for name, tensor in model.state_dict().items():
        if not torch.equal(tensor, own[name]):
            raise NotYet(f"The model's own `{name}` has changed.")


def judge_outputs(
    got: Tensor, trees: tuple[Tree, Tree], own: dict[str, Tensor], x: Tensor
) -> None:
    """Accept the outputs of eval mode; name the mistake that gives the ones we got."""
    mine = {dotted(path): t for tree in trees for path, t in walk(tree)}
    stats = [name for name in own if "running" in name]
    batch = x @ mine["0.weight"].T + mine["0.bias"]
    in_batch = {"1.running_mean": batch.mean(0)}
    in_batch["1.running_var"] = batch.var(0, unbiased=False)
    tables = {
        "Those are outputs in train mode: each depends on the batch": mine | in_batch,
        "The running mean is the model's own. Pass `buffers=stats`": (
            mine | {name: own[name] for name in stats}
        ),
        "Those are the model's own numbers. Use `params` and `stats`": own,
        "The parameters are the model's own. Use `params`": (
            own | {name: mine[name] for name in stats}
        ),
    }
    name_mistake(got, {text: _normalized(t, x) for text, t in tables.items()})
    if not close(got, _normalized(mine, x)):
        raise NotYet("The outputs are not those of eval mode with these trees.")


def _normalized(table: dict[str, Tensor], x: Tensor) -> Tensor:
    hidden = x @ table["0.weight"].T + table["0.bias"]
    spread = (table["1.running_var"] + 1e-5).sqrt()
    hidden = (hidden - table["1.running_mean"]) / spread
    return hidden * table["1.weight"] + table["1.bias"]
