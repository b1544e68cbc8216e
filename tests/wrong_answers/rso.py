"""Wrong answers to the exercises of lesson 08, each with a piece of its message."""

from tests.wrong_answers import changed, function

_best = function("best(loss, w, dw)")
_passes = function("forward_passes(model, cycles)")
_anneal = function("anneal(sigma, cycle, cycles, final)")


def _assign(*lines, before=""):
    return before + function("assign(model, values)")(*lines)


_PAIRS = "for weight, fresh in zip(model.parameters(), values):"
_NO_GRAD = "@torch.no_grad()\n"


def _he(expression):
    return f"def he(weight):\n    return {expression}\n"


_CYCLE = """
@torch.no_grad()
def run_cycle(model, sigmas, draw, take, loss):
    for layer, sigma in reversed(list(zip(model, sigmas))):
        if not isinstance(layer, (nn.Linear, nn.Conv2d)):
            continue
        for row in layer.weight:
            flat = row.view(-1)
            for j in range(len(flat)):
                inputs, targets = take()
                w, dw = flat[j].item(), draw(sigma)
                losses = []
                tries = w, w + dw, w - dw
                for candidate in tries:
                    flat[j] = candidate
                    losses.append(loss(model(inputs), targets).item())
                flat[j] = tries[losses.index(min(losses))]
"""


_cycle = changed(_CYCLE)

_KINDS = "if not isinstance(layer, (nn.Linear, nn.Conv2d)):"
_TAKE = "                inputs, targets = take()\n"
_LAST = "flat[j] = tries[losses.index(min(losses))]"
_ORDER = "reversed(list(zip(model, sigmas)))"
_ALL_ALIKE = """
@torch.no_grad()
def run_cycle(model, sigmas, draw, take, loss):
    for layer, sigma in reversed(list(zip(model, sigmas))):
        for parameter in layer.parameters():
            flat = parameter.view(-1)
            for j in range(len(flat)):
                inputs, targets = take()
                w, dw = flat[j].item(), draw(sigma)
                losses = {}
                for candidate in (w, w + dw, w - dw):
                    flat[j] = candidate
                    losses[candidate] = loss(model(inputs), targets).item()
                flat[j] = min(losses, key=losses.get)
"""
_WALK = """
@torch.no_grad()
def run_cycle(model, sigmas, draw, take, loss):
    for layer, sigma in reversed(list(zip(model, sigmas))):
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            flat = layer.weight.view(-1)
            for j in range(len(flat)):
                inputs, targets = take()
                dw = draw(sigma)
                flat[j] += dw
                plus = loss(model(inputs), targets)
                flat[j] -= dw
                stay = loss(model(inputs), targets)
                flat[j] -= dw
                minus = loss(model(inputs), targets)
                if plus < stay and plus < minus:
                    flat[j] += 2 * dw
                elif stay <= minus:
                    flat[j] += dw
"""

WRONG = {
    "assign": [
        (_assign(_PAIRS, "    weight = fresh"), "The model has not changed"),
        (_assign(_PAIRS, "    weight.copy_(fresh)"), "a leaf Variable that requires"),
        (_assign(_PAIRS, "    weight.data = fresh"), "shares its memory"),
        (
            _assign(_PAIRS, "    weight.add_(fresh)", before=_NO_GRAD),
            "You added the values",
        ),
        (
            _assign(_PAIRS, "    fresh.copy_(weight)", before=_NO_GRAD),
            "You changed the tensors in `values`",
        ),
        (
            _assign(
                "names = [name for name, _ in model.named_parameters()]",
                "for name, fresh in zip(names, values):",
                "    owner, _, kind = name.rpartition('.')",
                "    setattr(model.get_submodule(owner), kind,",
                "            nn.Parameter(fresh.clone()))",
            ),
            "The model has new parameters",
        ),
        (
            _assign(
                _PAIRS,
                "    weight.requires_grad_(False)",
                "    weight.copy_(fresh)",
            ),
            "can't be trained by gradients any more",
        ),
        (
            _assign(
                _PAIRS,
                "    if weight.dim() > 1:",
                "        weight.copy_(fresh)",
                before=_NO_GRAD,
            ),
            "Only some of the parameters",
        ),
        (
            _assign(
                _PAIRS,
                "    weight.copy_(torch.randn(weight.shape))",
                before=_NO_GRAD,
            ),
            "they are not those of `values`",
        ),
        (
            _assign(
                "for weight, fresh in zip(model.state_dict().values(), values):",
                "    weight.copy_(fresh)",
            ),
            "no parameter; its frozen weight is one",
        ),
        (
            _assign(
                _PAIRS,
                "    weight.requires_grad_(False)",
                "    weight.copy_(fresh)",
                "    weight.requires_grad_()",
            ),
            "of a parameter that was frozen",
        ),
        (
            _assign(
                "for weight in model.parameters():",
                "    weight.copy_(values.pop(0))",
                before=_NO_GRAD,
            ),
            "out of the list `values`",
        ),
        (
            _assign(_PAIRS, "    weight.grad = fresh", "    weight.data.copy_(fresh)"),
            "have a `.grad` now",
        ),
        (
            _assign("model.eval()", _PAIRS, "    weight.data.copy_(fresh)"),
            "is in eval mode now",
        ),
        (
            _assign(
                "for i, weight in enumerate(model.parameters()):",
                "    weight.copy_(values[i])",
                "    values[i] = weight",
                before=_NO_GRAD,
            ),
            "other tensors into the list",
        ),
    ],
    "best": [
        (_best("return ..."), "There is still a `...`"),
        (_best("return min([w + dw, w, w - dw], key=loss)"), "you move the weight"),
        (_best("return min(loss(w), loss(w + dw), loss(w - dw))"), "the best loss"),
        (
            _best(
                "losses = [loss(w), loss(w + dw), loss(w - dw)]",
                "return losses.index(min(losses))",
            ),
            "That looks like a position",
        ),
        (
            _best("return w + dw if loss(w + dw) < loss(w) else w"),
            "you stay, although a candidate has a lower loss",
        ),
        (
            _best(
                "if loss(w + dw) < loss(w):",
                "    return w + dw",
                "return w - dw if loss(w - dw) < loss(w) else w",
            ),
            "you return the second best",
        ),
        (
            _best("return min([w + dw, w - dw], key=loss)"),
            "You ask for 2 of the three losses",
        ),
        (
            _best(
                "now, w = loss(w), w + dw",
                "up, w = loss(w), w - 2 * dw",
                "down, w = loss(w), w + dw",
                "if now <= min(up, down):",
                "    return w",
                "return w + dw if up < down else w - dw",
            ),
            "remember w itself",
        ),
        (
            _best("return max([w, w + dw, w - dw], key=loss)"),
            "Where only w - dw is better, you keep a change",
        ),
        (
            _best("return min([w, w + dw, w - 2 * dw], key=loss)"),
            "You ask for the loss at 1",
        ),
        (
            _best(
                "new = min([w + dw, w - dw], key=loss)",
                "return new if loss(new) < 0.99 * loss(w) else w",
            ),
            "Where w + dw is a little better, you stay",
        ),
        (
            _best("return min([w, w + dw, w - dw], key=lambda x: abs(loss(x)))"),
            "Where the losses are negative, you keep a change",
        ),
        (
            _best(
                "tries = w, w + dw, w - dw",
                "return min(tries, key=lambda v: (loss(v), abs(v)))",
            ),
            "Where w and the smaller w + dw are equal, you move the weight",
        ),
    ],
    "passes": [
        (_passes("return ..."), "There is still a `...`"),
        (
            _passes("return cycles * sum(p.numel() for p in model.parameters())"),
            "One pass for each weight",
        ),
        (
            _passes("return 2 * cycles * sum(p.numel() for p in model.parameters())"),
            "`keep` needs a pass of its own",
        ),
        (
            _passes("return 3 * cycles * len(list(model.parameters()))"),
            "You count tensors",
        ),
        (
            _passes("return 3 * sum(p.numel() for p in model.parameters())"),
            "The cycles are missing",
        ),
        (
            _passes("return 3 * cycles * sum(p.numel() for p in model.parameters())"),
            "You count a frozen parameter",
        ),
        (
            _passes(
                "layers = [m for m in model.modules() if isinstance(m, nn.Linear)]",
                "weights = [m.weight for m in layers if m.weight.requires_grad]",
                "return 3 * cycles * sum(w.numel() for w in weights)",
            ),
            "The bias is missing",
        ),
        (
            _passes(
                "weights = [p for layer in model for p in layer.parameters()]",
                "chosen = [p for p in weights if p.requires_grad]",
                "return 3 * cycles * sum(p.numel() for p in chosen)",
            ),
            "stands twice in the model is counted twice",
        ),
        (
            _passes("return 4 * cycles * sum(p.numel() for p in model.parameters())"),
            "Four passes for each weight",
        ),
        (
            _passes(
                "return [3 * cycles * p.numel() for p in model.parameters()]",
            ),
            "returned list; wanted a number",
        ),
        (
            _passes(
                "shapes = {p.shape: p for p in model.parameters() if p.requires_grad}",
                "return 3 * cycles * sum(p.numel() for p in shapes.values())",
            ),
            "Only the *same* tensor counts once",
        ),
        (
            _passes(
                "seen = set()",
                "for layer in model:",
                "    seen |= set(layer.parameters(recurse=False))",
                "return 3 * cycles * sum(p.numel() for p in seen if p.requires_grad)",
            ),
            "a layer inside of another module",
        ),
        (
            _passes(
                "n = sum(p.numel() for p in model.parameters() if p.requires_grad)",
                "return 3 * cycles * (n + sum(b.numel() for b in model.buffers()))",
            ),
            "You count buffers",
        ),
        (
            _passes(
                "layers = [m for m in model.modules() if isinstance(m, nn.Linear)]",
                "found = {p for layer in layers for p in layer.parameters()}",
                "return 3 * cycles * sum(p.numel() for p in found if p.requires_grad)",
            ),
            "Other layers than linear ones",
        ),
        (
            _passes(
                "n = 0",
                "for layer in set(model.modules()):",
                "    own = layer.parameters(recurse=False)",
                "    n += sum(p.numel() for p in own if p.requires_grad)",
                "return 3 * cycles * n",
            ),
            "stands in two layers",
        ),
        (
            _passes(
                "found = set()",
                "for layer in model.modules():",
                "    own = list(layer.parameters(recurse=False))",
                "    if own and own[0].requires_grad:",
                "        found |= set(own)",
                "return 3 * cycles * sum(p.numel() for p in found)",
            ),
            "has a `requires_grad` of its own",
        ),
    ],
    "he": [
        (_he("..."), "There is still a `...`"),
        (_he("(2 / weight.numel()) ** 0.5"), "the whole tensor"),
        (_he("(2 / len(weight)) ** 0.5"), "divide by the number of outputs"),
        (_he("len(weight)"), "That is the number of outputs"),
        (_he("2 / weight[0].numel()"), "The root is missing"),
        (_he("(1 / weight[0].numel()) ** 0.5"), "The 2 is missing"),
        (_he("(2 / weight.shape[1]) ** 0.5"), "forget the kernel"),
        (_he("weight[0].numel()"), "That is the fan-in itself"),
        (
            _he(
                "(2 / weight.shape[1]) ** 0.5 / (weight.shape[2] if weight.dim() > 2 "
                "else 1)"
            ),
            "A kernel need not be square",
        ),
        (
            "def he(weight):\n"
            "    deviation = (2 / weight[0].numel()) ** 0.5\n"
            "    nn.init.normal_(weight, std=deviation)\n"
            "    return deviation\n",
            "You changed the weight",
        ),
    ],
    "anneal": [
        (_anneal("return ..."), "There is still a `...`"),
        (
            _anneal("return sigma * (1 - (1 - final) * cycle / cycles)"),
            "You divide by `cycles`",
        ),
        (
            _anneal("return sigma * (1 - (1 - final) * cycle / (cycles - 1))"),
            "you divide by zero",
        ),
        (
            _anneal("return sigma * final ** (cycle / max(cycles - 1, 1))"),
            "geometric fall",
        ),
        (
            _anneal("return sigma * (1 - 0.9 * cycle / max(cycles - 1, 1))"),
            "Is a 0.1 or 0.9 fixed?",
        ),
        (
            _anneal("return sigma * (1 - cycle / max(cycles - 1, 1))"),
            "You end at 0",
        ),
        (
            _anneal(
                "return final + (sigma - final) * (1 - cycle / max(cycles - 1, 1))"
            ),
            "You end at `final` itself",
        ),
        (
            _anneal(
                "return sigma * (final + (1 - final) * cycle / max(cycles - 1, 1))"
            ),
            "Sigma should fall",
        ),
        (
            _anneal("return sigma * (1 - (1 - final) * (cycle + 1) / cycles)"),
            "counts from 0",
        ),
        (
            _anneal(
                "done = cycle / max(cycles - 1, 1)",
                "return sigma * (1 - (1 - (final or 0.1)) * done)",
            ),
            "With final = 0, which ends at 0",
        ),
    ],
    "cycle": [
        (_cycle((_KINDS, "if True:")), "No loss was asked for"),
        (_cycle((_ORDER, "zip(model, sigmas)")), "You do not go from the output layer"),
        (
            _cycle((_ORDER, "zip(reversed(model), sigmas)")),
            "you draw with sigma = 0.5;",
        ),
        (_cycle(("(nn.Linear, nn.Conv2d)", "nn.Linear")), "Step 3, a convolution: No"),
        (_cycle((_KINDS, "if not hasattr(layer, 'weight'):")), "visit the PReLU layer"),
        (_ALL_ALIKE, "You visit a bias"),
        (
            _cycle(("for row in layer.weight:", "for row in layer.weight[:1]:")),
            "You leave out 9 of the 12 weights of the Linear layer",
        ),
        (
            _cycle(
                (_TAKE, ""),
                (
                    "        for row",
                    "        inputs, targets = take()\n        for row",
                ),
            ),
            "Mini-batches taken: 1. Visits: 3.",
        ),
        (
            _cycle(
                (_TAKE, ""),
                (
                    "loss(model(inputs), targets)",
                    "(lambda b: loss(model(b[0]), b[1]))(take())",
                ),
            ),
            "Each candidate has a mini-batch of its own",
        ),
        (
            _cycle(("tries = w, w + dw, w - dw", "tries = w + dw, w, w - dw")),
            "A weight without effect was moved",
        ),
        (_cycle(("w - dw", "w - draw(sigma)")), "You draw twice for a weight"),
        (_cycle(("w - dw", "w - 2 * dw")), "wanted w, w + dw and w - dw, which are"),
        (_cycle(("w, w + dw, w - dw", "w, w + dw")), "You compare two losses"),
        (_cycle((_LAST, "flat[j] = losses.index(min(losses))")), "leave a position"),
        (_cycle((_LAST, "flat[j] = min(losses)")), "You leave a loss in the weight"),
        (_cycle(("min(losses)", "max(losses)")), "although the loss rose"),
        (
            _cycle((_LAST, "pass")),
            "is left at the candidate that was tried last",
        ),
        (
            _cycle(("min(losses)", "sorted(losses)[1]")),
            "A visit leaves w although a candidate has a lower loss",
        ),
        (_WALK, "None of the three is w itself, only nearly"),
        (_cycle(("row.view(-1)", "row.clone()")), "the model never saw the candidates"),
        (
            _cycle(
                (
                    "for candidate in tries:",
                    "outputs = model(inputs)\n                for candidate in tries:",
                ),
                ("loss(model(inputs), targets)", "loss(outputs, targets)"),
            ),
            "outputs that the model does not have now",
        ),
        (
            _cycle(("(model(inputs), targets)", "(targets, model(inputs))")),
            "Call `loss(",
        ),
        (_cycle(("@torch.no_grad()\n", "")), "Put `@torch.no_grad()` above"),
        (
            _cycle(("flat[j] = candidate", "flat[j:] = candidate")),
            "numbers at once; wanted one weight",
        ),
        (
            _cycle(("draw(sigma)", "sigma * torch.randn(()).item()")),
            "You never call `draw`",
        ),
        (
            _cycle((_LAST, "flat[j] = tries[first_better(losses)]"))
            + "def first_better(losses):\n"
            "    keep, plus, minus = losses\n"
            "    return 1 if plus < keep else 2 if minus < keep else 0\n",
            "the second best of the three",
        ),
        (
            _cycle(
                (
                    "loss(model(inputs), targets)",
                    "cross_entropy(model(inputs), targets)",
                )
            ),
            "never call `loss(outputs, targets)`",
        ),
        (
            _cycle(("    for layer, sigma", "    model.eval()\n    for layer, sigma")),
            "another mode than before",
        ),
    ],
}
