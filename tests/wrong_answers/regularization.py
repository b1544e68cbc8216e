"""Wrong answers to the exercises of lesson 02, each with a piece of its message."""


def _by_hand(expression):
    return f"def l1l2(w, l1, l2):\n    return {expression}\n"


def _shrink(expression):
    return f"def shrink(w, by):\n    return {expression}\n"


def _optimizer(*lines):
    return "def make_optimizer(model, l2, lr):\n" + "".join(f"    {x}\n" for x in lines)


def _loss(*lines):
    return "def with_penalty(loss, layer, l2):\n" + "".join(f"    {x}\n" for x in lines)


def _count(*lines):
    return "def count_once(model, l2):\n" + "".join(f"    {x}\n" for x in lines)


_LINEARS = "linears = [m for m in model.modules() if isinstance(m, nn.Linear)]"

WRONG = {
    "by_hand": [
        (_by_hand("..."), "There is still a `...`"),
        (_by_hand("l1 * w.abs().sum() + l2 * w.norm()"), "That is the norm"),
        (_by_hand("l1 * w.abs().sum() + l2 / 2 * w.square().sum()"), "You halve"),
        (
            _by_hand("l1 * w.abs().sum() + l2 * w.square().mean()"),
            "mean of the squares",
        ),
        (_by_hand("l1 * w.abs().mean() + l2 * w.square().sum()"), "mean of |w|"),
        (_by_hand("l1 * w.sum() + l2 * w.square().sum()"), "plain sum"),
        (_by_hand("l1 * w.abs().sum() + l2 * w.sum().square()"), "You square the sum."),
        (_by_hand("l1 * w.abs() + l2 * w.square()"), "Is a `sum()` missing?"),
        (
            _by_hand("(l1 * w.abs().sum() + l2 * w.square().sum()).item()"),
            "a Python number",
        ),
        (
            _by_hand("l1 * w.abs().sum() + l2 * w.detach().square().sum()"),
            "its gradient does not reach",
        ),
    ],
    "shrink": [
        (_shrink("w - by"), "moved away from zero"),
        (_shrink("w - by * w.sign()"), "jumps over zero"),
        (_shrink("w * (w.abs() > by)"), "it does not shrink"),
        (_shrink("(w.abs() - by).clamp(min=0)"), "the sign is lost"),
        (_shrink("(w - by).clamp(min=0)"), "All negative weights became 0"),
        (_shrink("w.clamp(-by, by)"), "That clips"),
        (
            _shrink("w.copy_(w.sign() * (w.abs() - by).clamp(min=0))"),
            "changed the tensor that you were given",
        ),
        (_shrink("w.sign() * (w.abs() - 0.5).clamp(min=0)"), "not for by = 2"),
    ],
    "same_as_penalty": [
        (
            _optimizer(
                "weights = [p for p in model.parameters() if p.dim() > 1]",
                "biases = [p for p in model.parameters() if p.dim() == 1]",
                "groups = [{'params': weights, 'weight_decay': l2}]",
                "groups += [{'params': biases}]",
                "return torch.optim.SGD(groups, lr=lr)",
            ),
            "half of what the penalty gives",
        ),
        (
            _optimizer(
                "return torch.optim.SGD(",
                "    model.parameters(), lr=lr, weight_decay=2 * l2",
                ")",
            ),
            "so parameters with one dimension need a group of their own",
        ),
        (
            _optimizer(
                "weights = [p for p in model.parameters() if p.dim() > 1]",
                "return torch.optim.SGD(weights, lr=lr, weight_decay=2 * l2)",
            ),
            "did not move",
        ),
        (
            _optimizer(
                "return torch.optim.AdamW(",
                "    model.parameters(), lr=lr, weight_decay=2 * l2",
                ")",
            ),
            "That is AdamW",
        ),
        (
            _optimizer("return torch.optim.SGD(model.parameters(), lr=lr)"),
            "does not decay at all",
        ),
        (
            _optimizer("torch.optim.SGD(model.parameters(), lr=lr)"),
            "returned None; wanted a `torch.optim.SGD`",
        ),
        (
            "def make_optimizer(model, l2, lr):\n"
            "    weights = [p for p in model.parameters() if p.dim() > 1]\n"
            "    biases = [p for p in model.parameters() if p.dim() == 1]\n"
            '    decayed = {"params": weights, "weight_decay": 2 * l2}\n'
            '    groups = [decayed, {"params": biases}]\n'
            "    return torch.optim.SGD(groups, lr=lr, momentum=0.9)\n",
            "no momentum",
        ),
        (
            "def make_optimizer(model, l2, lr):\n"
            "    named = dict(model.named_parameters())\n"
            '    weights = [p for n, p in named.items() if n.endswith("weight")]\n'
            '    biases = [p for n, p in named.items() if n.endswith("bias")]\n'
            '    decayed = {"params": weights, "weight_decay": 2 * l2}\n'
            '    return torch.optim.SGD([decayed, {"params": biases}], lr=lr)\n',
            "`1.weight` has one dimension",
        ),
    ],
    "with_penalty": [
        (
            _loss("return l2 * layer.weight.square().sum()"),
            "a number that never changes",
        ),
        (
            _loss(
                "cost = l2 * layer.weight.square().sum()",
                "return lambda outputs, labels: loss(outputs, labels) + cost",
            ),
            "computed once",
        ),
        (
            _loss(
                "def total(outputs, labels):",
                "    cost = (l2 * layer.weight.square().sum()).item()",
                "    return loss(outputs, labels) + cost",
                "return total",
            ),
            "does not reach the weights through the penalty",
        ),
        (
            _loss("return lambda outputs, labels: l2 * layer.weight.square().sum()"),
            "That is the penalty alone",
        ),
        (
            _loss(
                "def total(outputs, labels):",
                "    cost = sum(p.square().sum() for p in layer.parameters())",
                "    return loss(outputs, labels) + l2 * cost",
                "return total",
            ),
            "The bias pays too",
        ),
        (
            _loss(
                "def total(outputs, labels):",
                "    return loss(outputs, labels) + l2 * layer.weight.norm()",
                "return total",
            ),
            "That adds the norm",
        ),
        (_loss("return loss"), "without any penalty"),
        (
            "def with_penalty(loss, layer, l2):\n"
            "    w = layer.weight\n"
            "    def total(outputs, labels):\n"
            "        return loss(outputs, labels) + l2 * w.square().sum()\n"
            "    return total\n",
            "is another tensor",
        ),
        (
            "def with_penalty(loss, layer, l2):\n"
            "    def total(outputs, labels):\n"
            "        plain = nn.functional.cross_entropy(outputs, labels)\n"
            "        return plain + l2 * layer.weight.square().sum()\n"
            "    return total\n",
            "whatever loss you were given",
        ),
    ],
    "count_once": [
        (
            _count("return l2 * sum(p.square().sum() for p in model.parameters())"),
            "You count the bias",
        ),
        (
            _count(
                "named = model.named_parameters()",
                "weights = [p for name, p in named if 'weight' in name]",
                "return l2 * sum(w.square().sum() for w in weights)",
            ),
            "`LayerNorm`'s weight",
        ),
        (
            _count(
                "linears = {m for m in model if isinstance(m, nn.Linear)}",
                "return l2 * sum(m.weight.square().sum() for m in linears)",
            ),
            "inside an inner `Sequential` is missing",
        ),
        (
            _count(
                "def walk(module):",
                "    if isinstance(module, nn.Linear):",
                "        return module.weight.square().sum()",
                "    parts = getattr(module, '_modules', {}).values()",
                "    return sum((walk(part) for part in parts), torch.zeros(()))",
                "return l2 * walk(model)",
            ),
            "stands twice in the model paid twice",
        ),
        (
            _count(
                _LINEARS,
                "return l2 * sum(m.weight.square().sum() for m in linears)",
            ),
            "share one tensor paid twice",
        ),
        (
            _count(
                _LINEARS,
                "costs = {m.weight.square().sum().item() for m in linears}",
                "return torch.tensor(l2 * sum(costs))",
            ),
            "happen to hold the same numbers",
        ),
        (
            _count(
                _LINEARS,
                "weights = {id(m.weight): m.weight.data for m in linears}",
                "return l2 * sum(w.square().sum() for w in weights.values())",
            ),
            "its gradient does not reach the weights.",
        ),
        (
            "def count_once(model, l2):\n"
            "    weights = [p for p in model.parameters() if p.dim() > 1]\n"
            "    return l2 * sum(w.square().sum() for w in weights)\n",
            "table of an `Embedding`",
        ),
    ],
}
