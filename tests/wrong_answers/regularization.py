"""Wrong answers to the exercises of lesson 02, each with a piece of its message."""

from tests.wrong_answers import changed, function


def _by_hand(expression):
    return f"def l1l2(w, l1, l2):\n    return {expression}\n"


def _shrink(expression):
    return f"def shrink(w, by):\n    return {expression}\n"


_optimizer = function("make_optimizer(model, l2, lr)")
_count = function("count_once(model, l2)")


def _groups(settings, decay="2 * l2"):
    return _optimizer(
        "weights = [p for p in model.parameters() if p.dim() > 1]",
        "biases = [p for p in model.parameters() if p.dim() == 1]",
        f"groups = [{{'params': weights, 'weight_decay': {decay}}}]",
        "groups += [{'params': biases}]",
        f"return torch.optim.SGD(groups, {settings})",
    )


_LOOP = """\
def train(model, batches, l1, l2, lr, epochs):
    weights = {m.weight for m in model.modules() if isinstance(m, nn.Linear)}
    sgd = torch.optim.SGD(model.parameters(), lr=lr)
    history = []
    for _ in range(epochs):
        losses = []
        for inputs, labels in batches:
            loss = nn.functional.cross_entropy(model(inputs), labels)
            cost = l2 * sum(w.square().sum() for w in weights)
            sgd.zero_grad()
            (loss + cost).backward()
            sgd.step()
            for w in weights:
                w.data = nn.functional.softshrink(w.data, lr * l1)
            losses.append(loss.item())
        history.append(sum(losses) / len(losses))
    return history
"""


_WEIGHTS = "{m.weight for m in model.modules() if isinstance(m, nn.Linear)}"
_COST = "            cost = l2 * sum(w.square().sum() for w in weights)\n"
_ZERO = "            sgd.zero_grad()\n"
_BACK = "            (loss + cost).backward()\n"
_STEP = "            sgd.step()\n"
_EACH = "            for w in weights:\n"
_SHRINK = "                w.data = nn.functional.softshrink(w.data, lr * l1)\n"
_NOTE = "            losses.append(loss.item())\n"
_MEAN = "        history.append(sum(losses) / len(losses))\n"


def _outer(lines):
    """The same lines in the outer loop."""
    return "".join(line[4:] for line in lines.splitlines(keepends=True))


_loop = changed(_LOOP)

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
        (_by_hand("l1 * w.sign() + 2 * l2 * w"), "That is the gradient, a number"),
        (_by_hand("l2 * w.abs().sum() + l1 * w.square().sum()"), "changed places"),
        (_by_hand("l1 * w.abs().sum() - l2 * w.square().sum()"), "rewards large"),
        (_by_hand("l1 * w.abs() + l2 * w.square()"), "Is a `sum()` missing?"),
        (
            _by_hand("(l1 * w.abs().sum() + l2 * w.square().sum()).item()"),
            "a Python number",
        ),
        (
            _by_hand("l1 * w.abs().sum() + l2 * w.detach().square().sum()"),
            "its gradient does not reach",
        ),
        (_by_hand("l1 * w.relu().sum() + l2 * w.square().sum()"), "pay nothing"),
        (
            _by_hand("l1 * w.abs().sum() + l2 * torch.linalg.norm(w, 2) ** 2"),
            "a norm of the matrix",
        ),
        (
            _by_hand("l1 * w.data.abs_().sum() + l2 * w.square().sum()"),
            "changed the tensor that you were given",
        ),
        (
            _by_hand("l1 * w.abs().sum() + l2 * w.square().sum().sqrt() ** 2"),
            "For weights that are zero the gradient is nan",
        ),
        (
            _by_hand("sum(sum(l1 * w.abs() + l2 * w.square()))"),
            "not for a tensor of shape (4,): your code raised",
        ),
    ],
    "shrink": [
        (_shrink("w - by"), "moved away from zero"),
        (_shrink("w - by * w.sign()"), "jumps over zero"),
        (_shrink("w * (w.abs() > by)"), "it does not shrink"),
        (_shrink("(w.abs() - by).clamp(min=0)"), "the sign is lost"),
        (_shrink("(w - by).clamp(min=0)"), "All negative weights became 0"),
        (_shrink("w.clamp(-by, by)"), "That clips"),
        (_shrink("w * (1 - by)"), "multiplies by 1 - by"),
        (_shrink("torch.where(w.abs() > by, w - by, 0.0)"), "large negative ones"),
        (_shrink("w.sign() * (w.abs() - by).clamp(max=0)"), "Keep what is above"),
        (
            _shrink("w.copy_(w.sign() * (w.abs() - by).clamp(min=0))"),
            "changed the tensor that you were given",
        ),
        (_shrink("w.sign() * (w.abs() - 0.5).clamp(min=0)"), "not for by = 2"),
        (_shrink("nn.functional.softshrink(w.flatten(), by)"), "not for a matrix, as"),
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
            "returned None; wanted one `torch.optim.SGD`",
        ),
        (_groups("lr=lr", decay="0.1"), "Is a number written in?"),
        (_groups("lr=0.1"), "Right for l2 = 0.05 and lr = 0.1"),
        (_groups("lr=lr", decay="2 * l2 * lr"), "decays by lr too little"),
        (_groups("lr=lr, maximize=True"), "goes along the gradient"),
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
        (
            _optimizer(
                "weights = [p for p in model.parameters() if p.dim() == 2]",
                "others = [p for p in model.parameters() if p.dim() != 2]",
                "groups = [{'params': weights, 'weight_decay': 2 * l2}]",
                "return SGD([*groups, {'params': others}], lr=lr)",
            ),
            "`2.weight`, with 3 dimensions, does not decay",
        ),
    ],
    "count_once": [
        (
            _count(
                _LINEARS,
                "return 0.5 * sum(w.square().sum() for w in {m.weight for "
                "m in linears})",
            ),
            "not for l2 = 2. Is a number written in?",
        ),
        (
            _count(
                _LINEARS,
                "return sum(w.square().sum() for w in {m.weight for m in linears})",
            ),
            "l2 is missing",
        ),
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
        (
            _count(
                _LINEARS,
                "shapes = {m.weight.shape: m.weight for m in linears}",
                "return l2 * sum(w.square().sum() for w in shapes.values())",
            ),
            "Two layers of the same shape paid once",
        ),
        (
            _count(
                "found = set()",
                "def visit(part):",
                "    if isinstance(part, nn.Linear):",
                "        found.add(part.weight)",
                "    for child in part if isinstance(part, nn.Sequential) else ():",
                "        visit(child)",
                "visit(model)",
                "return l2 * sum(w.square().sum() for w in found)",
            ),
            "a module that is no `Sequential` is missing",
        ),
        (
            _count(
                _LINEARS,
                "found = {m.weight for m in linears if m.weight.requires_grad}",
                "return l2 * sum(w.square().sum() for w in found)",
            ),
            "A frozen layer pays nothing",
        ),
        (
            _count(
                _LINEARS,
                "return l2 * sum(m.weight.square().mean() for m in linears)",
            ),
            "the mean of the squares",
        ),
        (
            "def count_once(model, l2, seen=set()):\n"
            "    total = 0\n"
            "    for m in model.modules():\n"
            "        if isinstance(m, nn.Linear) and m.weight not in seen:\n"
            "            seen.add(m.weight)\n"
            "            total = total + l2 * m.weight.square().sum()\n"
            "    return total\n",
            "must not outlive the call",
        ),
        (
            _count(
                _LINEARS,
                "for m in linears:",
                "    regularize(m, weight=L1L2(l2=l2))",
                "return penalty(model)",
            ),
            "leaves regularizers on the layers",
        ),
    ],
    "train": [
        (_loop(("return history", "...")), "returned None"),
        (_loop(("return history", "return history[-1]")), "returned float"),
        (_loop(("loss.item()", "loss")), "still carry the graphs"),
        (_loop((_ZERO, "")), "are still in `.grad`"),
        (_loop((_STEP, "")), "did not move"),
        (_loop(("lr=lr)", "lr=lr, momentum=0.9)")), "has no momentum"),
        (
            _loop(("optim.SGD(", "optim.Adam(")),
            "Make one step of `torch.optim.SGD(model.parameters(), lr=lr)`",
        ),
        (
            _loop(("SGD(model.parameters(), ", "SGD(weights, ")),
            "Only the weights train",
        ),
        (
            _loop(("labels)\n", "labels, reduction='sum')\n")),
            "sums over the samples",
        ),
        (_loop(("range(epochs)", "range(1)")), "Only the first epoch trains"),
        (
            _loop(
                (_ZERO + _BACK + _STEP, ""),
                (_MEAN, _outer(_ZERO + _BACK + _STEP) + _MEAN),
            ),
            "Only the last batch of an epoch makes a step",
        ),
        (
            _loop((_ZERO, ""), (_STEP, ""), (_MEAN, _outer(_STEP + _ZERO) + _MEAN)),
            "one step for all batches of an epoch",
        ),
        (_loop(("(loss + cost)", "loss")), "as if l2 were 0"),
        (_loop(("(loss + cost)", "(loss - cost)")), "rewards large weights"),
        (_loop(("cost = l2", "cost = l2 / 2")), "half of the penalty's gradient"),
        (_loop(("w.square().sum()", "w.norm()")), "That is the norm"),
        (_loop(("w.square().sum()", "w.square().mean()")), "mean of the squares"),
        (
            _loop((_WEIGHTS, "list(model.parameters())")),
            "The biases pay l2, too",
        ),
        (
            _loop(
                (
                    _WEIGHTS,
                    "{m.weight for m in model.modules() if hasattr(m, 'weight')}",
                )
            ),
            "The weight of the `LayerNorm` pays",
        ),
        (
            _loop(("model.modules()", "model.children()")),
            "inside an inner `Sequential` is missing",
        ),
        (
            _loop((_WEIGHTS, f"[{_WEIGHTS[1:-1]}]")),
            "two layers share pays twice",
        ),
        (
            _loop((_EACH, "            for w in [" + _WEIGHTS[1:-1] + "]:\n")),
            "two layers share is shrunk twice",
        ),
        (
            _loop(
                (_COST, ""), ("    history = []\n", _COST[8:] + "    history = []\n")
            ),
            "computed once, before the loop",
        ),
        (
            _loop(
                ("(loss + cost)", "loss"),
                ("loss = nn", _COST.strip() + "; loss = cost + nn"),
                (_COST, ""),
            ),
            "without the penalty",
        ),
        (
            _loop(
                ("(loss + cost)", "loss"),
                ("(w.data, ", "(w.data * (1 - 2 * lr * l2), "),
            ),
            "The weights decay after the step",
        ),
        (_loop(("w.data = nn", "w = nn")), "Nothing is shrunk"),
        (_loop(("lr * l1", "l1")), "shrunk by l1. One step of size lr"),
        (_loop(("softshrink(", "hardshrink(")), "large ones keep their size"),
        (
            _loop((_SHRINK, "                w.data -= lr * l1 * w.data.sign()\n")),
            "jump across zero",
        ),
        (
            _loop(
                (_EACH + _SHRINK, ""),
                (
                    _BACK,
                    "            cost += l1 * sum(w.abs().sum() for w in weights)\n"
                    + _BACK,
                ),
            ),
            "l1 is part of the loss",
        ),
        (
            _loop(
                (
                    _BACK,
                    "            cost += l1 * sum(w.abs().sum() for w in weights)\n"
                    + _BACK,
                )
            ),
            "l1 acts twice",
        ),
        (
            _loop((_EACH + _SHRINK, ""), (_ZERO, _EACH + _SHRINK + _ZERO)),
            "shrunk before the step",
        ),
        (
            _loop((_EACH + _SHRINK, ""), (_MEAN, _outer(_EACH + _SHRINK) + _MEAN)),
            "shrunk once in an epoch",
        ),
        (
            _loop(("for w in weights:", "for w in model.parameters():")),
            "The biases are shrunk, too",
        ),
        (
            _loop((_SHRINK, _SHRINK.replace("w.data = ", "w.copy_(")[:-1] + ")\n")),
            "changed in place while autograd looks on",
        ),
        (
            _loop(
                (
                    _EACH + _SHRINK,
                    "            for m in model.modules():\n"
                    "                if isinstance(m, nn.Linear):\n"
                    "                    w = softshrink(m.weight.data, lr * l1)\n"
                    "                    m.weight = nn.Parameter(w)\n",
                ),
                (
                    "    history = []",
                    "    softshrink = nn.functional.softshrink\n    history = []",
                ),
            ),
            "layers hold other tensors now",
        ),
        (
            _loop((_MEAN, ""), ("losses.append", "history.append")),
            "number for each batch",
        ),
        (
            _loop(("sum(losses) / len(losses)", "loss.item()")),
            "last batch of each epoch",
        ),
        (
            _loop(("sum(losses) / len(losses)", "sum(losses)")),
            "That is the sum over the batches",
        ),
        (
            _loop(
                ("loss.item()", "loss.item() * len(labels)"),
                ("len(losses)", "sum(len(labels) for _, labels in batches)"),
            ),
            "weights each batch by its size",
        ),
        (
            _loop((_WEIGHTS, "[p for p in model.parameters() if p.dim() > 1]")),
            "A matrix that is no layer's weight pays l2",
        ),
        (
            _loop(
                (
                    "SGD(model.parameters(), ",
                    "SGD([p for p in model.parameters() if p.dim() > 1], ",
                )
            ),
            "What has one dimension, as a bias, does not train",
        ),
        (
            _loop(("    history = []", "    model.eval()\n    history = []")),
            "eval mode",
        ),
        (
            _loop(
                (
                    _STEP,
                    "            nn.utils.clip_grad_norm_(model.parameters(), 1)\n"
                    + _STEP,
                )
            ),
            "Fewer batches and coefficients were right",
        ),
    ],
}
