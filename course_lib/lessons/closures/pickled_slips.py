"""Lesson 01's last exercise: its model and rules, and what known mistakes give."""

from collections.abc import Callable, Mapping

from torch import Tensor, nn

Rule = Mapping[str, float]
Term = Callable[[nn.Module, Rule], Tensor]  # what one layer pays

BEFORE, AFTER = {"l1": 0.5, "l2": 0.25}, {"l2": 0.125, "l1": 2.0}


def new_model(start: float) -> nn.Sequential:
    """Return a model with three dense layers; all of its numbers are alike."""
    dense = nn.Linear(2, 2), nn.Linear(2, 1), nn.Linear(1, 2)
    others = nn.Dropout(), nn.LayerNorm(2)
    model = nn.Sequential(*others, dense[0], nn.ReLU(), *dense[1:]).double()
    for parameter in model.parameters():
        nn.init.constant_(parameter, start)
    return model


def dense_of(model: nn.Sequential) -> list[nn.Linear]:
    """Return the dense layers, in order."""
    return [layer for layer in model if isinstance(layer, nn.Linear)]


def right_term(layer: nn.Module, rule: Rule) -> Tensor:
    """Return what one layer pays."""
    w = layer.weight
    return rule["l1"] * w.abs().sum() + rule["l2"] * w.square().sum()


def wanted_of(model: nn.Sequential) -> list[Tensor]:
    """Return what the model pays by the rules BEFORE, None, AFTER."""
    first, _, last = dense_of(model)
    return [right_term(first, BEFORE), right_term(last, AFTER)]


def slips(model: nn.Sequential) -> dict[str, list[Tensor]]:
    """Return what each known mistake gives."""
    first, free, last = dense_of(model)
    held = right_term(last, AFTER)
    norm = next(layer for layer in model if isinstance(layer, nn.LayerNorm))
    return {
        "every penalty is the last one: layer and numbers are shared. Captured late, "
        "or kept in the class? Give each penalty its own.": [held, held],
        "every penalty looks at the last layer. Give each its own.": [
            right_term(last, BEFORE),
            held,
        ],
        "every penalty has the numbers of the last rule. Give each its own.": [
            right_term(first, AFTER),
            held,
        ],
        "the free layer pays, with the next rule. None keeps the place of its layer: "
        "pair first, leave out afterwards.": [
            right_term(first, BEFORE),
            right_term(free, AFTER),
        ],
        "the `LayerNorm` has a weight, too, and got the first rule. Ask for "
        "`nn.Linear`.": [right_term(norm, BEFORE), right_term(free, AFTER)],
        "the rules are in the wrong order.": [
            right_term(first, AFTER),
            right_term(last, BEFORE),
        ],
        "the weights have moved since the penalties were made, and they did not "
        "notice. Compute inside `__call__`, from the layer itself and not a copy.": (
            wanted_of(new_model(1.0))
        ),
        **{
            name: [term(first, BEFORE), term(last, AFTER)]
            for name, term in _TERMS.items()
        },
    }


_TERMS: dict[str, Term] = {
    "l1 is missing.": lambda m, rule: rule["l2"] * m.weight.square().sum(),
    "l2 is missing.": lambda m, rule: rule["l1"] * m.weight.abs().sum(),
    "l1 and l2 have changed places.": lambda m, rule: (
        rule["l2"] * m.weight.abs().sum() + rule["l1"] * m.weight.square().sum()
    ),
    "l1 belongs to the absolute values: weights of both signs cancel out.": (
        lambda m, rule: (
            rule["l1"] * m.weight.sum() + rule["l2"] * m.weight.square().sum()
        )
    ),
    "l2 belongs to the squares; that is the norm, their root.": lambda m, rule: (
        rule["l1"] * m.weight.abs().sum() + rule["l2"] * m.weight.norm()
    ),
    "l2 belongs to the square of each weight; that squares their sum.": (
        lambda m, rule: (
            rule["l1"] * m.weight.abs().sum() + rule["l2"] * m.weight.sum() ** 2
        )
    ),
    "these are means; wanted sums over the weights.": lambda m, rule: (
        rule["l1"] * m.weight.abs().mean() + rule["l2"] * m.weight.square().mean()
    ),
    "half of the squares; wanted all.": lambda m, rule: (
        rule["l1"] * m.weight.abs().sum() + rule["l2"] / 2 * m.weight.square().sum()
    ),
    "the biases pay, too; wanted the weights only.": lambda m, rule: (
        rule["l1"] * sum(p.abs().sum() for p in m.parameters())
        + rule["l2"] * sum(p.square().sum() for p in m.parameters())
    ),
    "the numbers l1 and l2 are missing.": lambda m, rule: (
        m.weight.abs().sum() + m.weight.square().sum()
    ),
}
