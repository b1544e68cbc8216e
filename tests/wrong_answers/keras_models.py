"""Wrong answers to the exercises of lesson 03, each with a piece of its message."""


def _cost(*lines):
    return "def cost(file, kernels):\n" + "".join(f"    {x}\n" for x in lines)


def _each(term, *, end="return total"):
    """Return a loop over the layers that have a price, with `term` for each."""
    return _cost(
        "total = torch.zeros(())",
        "for entry in file['config']:",
        "    config = entry['config']",
        "    price = config.get('W_regularizer')",
        "    if price:",
        "        w, l1, l2 = kernels[config['name']], price['l1'], price['l2']",
        f"        total = total + {term}",
        end,
    )


def _gate(expression):
    return f"def hard_sigmoid(x, version):\n    return {expression}\n"


def _weight(expression):
    return f"def linear_weight(kernel, shape):\n    return {expression}\n"


def _pads(*lines):
    return "def same_padding(size, kernel, stride):\n" + "".join(
        f"    {x}\n" for x in lines
    )


def _twin(init, forward):
    return (
        "class Twin(nn.Module):\n    def __init__(self, look, decide):\n"
        "        super().__init__()\n"
        + "".join(f"        {line}\n" for line in init)
        + "    def forward(self, left, right):\n"
        + "".join(f"        {line}\n" for line in forward)
    )


_KEEP = ("self.look, self.decide = look, decide",)
_WINDOWS = "windows = -(-size // stride)"
_MISSING = "missing = max((windows - 1) * stride + kernel - size, 0)"
_JOINED = "return self.decide(torch.cat([self.look({}), self.look({})], dim=1))"

WRONG = {
    "cost": [
        (_cost("return ..."), "There is still a `...`"),
        (
            _cost(
                "configs = [entry['config'] for entry in file['config']]",
                "found = [c['W_regularizer'] for c in configs if 'W_regularizer' in c]",
                "prices = [price for price in found if price]",
                "return sum(",
                "    p['l1'] * w.abs().sum() + p['l2'] * w.square().sum()",
                "    for p, w in zip(prices, kernels.values())",
                ")",
            ),
            "by counting",
        ),
        (
            _cost(
                "for entry in file['config']:",
                "    config = entry['config']",
                "    price = config.get('W_regularizer')",
                "    if price:",
                "        w = kernels[config['name']]",
                "        l1, l2 = price['l1'], price['l2']",
                "        return l1 * w.abs().sum() + l2 * w.square().sum()",
            ),
            "the first layer alone",
        ),
        (_each("l1 * w.abs().sum() + l2 * w.norm()"), "That takes the norm"),
        (_each("l1 * w.abs().sum() + l2 / 2 * w.square().sum()"), "You halve"),
        (_each("l1 * w.abs().sum() + l2 * w.square().mean()"), "That is a mean"),
        (_each("l2 * w.square().sum()"), "The l1 part is missing"),
        (_each("l1 * w.abs().sum()"), "The l2 part is missing"),
        (
            _each(
                "l1 * w.abs().sum() + l2 * w.square().sum()", end="return total.item()"
            ),
            "a Python number",
        ),
        (
            _each("(l1 * w.abs().sum() + l2 * w.square().sum()).detach()"),
            "its gradient does not reach",
        ),
    ],
    "hard_sigmoid": [
        (_gate("..."), "There is still a `...`"),
        (_gate("(0.2 * x + 0.5).clamp(0, 1)"), "That is the line of Keras 1 and 2"),
        (_gate("nn.functional.hardsigmoid(x)"), "That is the line of Keras 3"),
        (_gate("0.2 * x + 0.5"), "Cut it at 0 and 1"),
        (_gate("x / 6 + 0.5"), "Cut it at 0 and at 1"),
        (_gate("x.sigmoid()"), "That is the sigmoid"),
        (_gate("(0.2 * x).clamp(0, 1)"), "add 0.5"),
        (_gate("(0.2 * x + 0.5).clamp(-1, 1)"), "goes down to -1"),
        (
            "def hard_sigmoid(x, version):\n"
            '    slope = 0.2 if version < "3" else 1 / 6\n'
            "    return (slope * x + 0.5).clamp(0, 1)\n",
            "with `<` or `>=`, not its text",
        ),
    ],
    "twin": [
        (_twin(_KEEP, ["return ..."]), "There is still a `...`"),
        (
            _twin(_KEEP, [_JOINED.format("right", "left")]),
            "have changed places",
        ),
        (_twin(_KEEP, [_JOINED.format("left", "left")]), "The left half is looked at"),
        (
            _twin(_KEEP, ["return self.decide(torch.cat([left, right], dim=1))"]),
            "Your code raised RuntimeError",
        ),
        (
            _twin(
                _KEEP,
                [
                    "a, b = self.look(left), self.look(right)",
                    "return self.decide(torch.cat([a.relu(), b.relu()], dim=1))",
                ],
            ),
            "not `decide` of the two looks side by side",
        ),
        (
            "import copy\n"
            + _twin(
                [*_KEEP, "self.other = copy.deepcopy(look)"],
                [
                    "both = [self.look(left), self.other(right)]",
                    "return self.decide(torch.cat(both, dim=1))",
                ],
            ),
            "has 6 parameters, 4 were given: it has copies",
        ),
        (
            _twin(
                ["self.parts = [look, decide]"],
                [
                    "look, decide = self.parts",
                    "return decide(torch.cat([look(left), look(right)], dim=1))",
                ],
            ),
            "would train nothing",
        ),
        (
            "import copy\n"
            + _twin(
                ["self.look, self.decide = copy.deepcopy(look), decide"],
                [_JOINED.format("left", "right")],
            ),
            "not train the parameters that it was given",
        ),
        (
            "class Twin(nn.Module):\n"
            "    def __init__(self, look, decide):\n"
            "        super().__init__()\n"
            "        self.look, self.decide = look, decide\n"
            "    def forward(self, left, right):\n"
            "        with torch.no_grad(): r = self.look(right)\n"
            "        return self.decide(torch.cat([self.look(left), r], dim=1))\n",
            "lacks a half",
        ),
        (
            _twin(_KEEP, [_JOINED.format("left", "right")[7:]]),
            "`forward` returned None",
        ),
    ],
    "linear_weight": [
        (_weight("..."), "There is still a `...`"),
        (_weight("kernel.T"), "leaves the inputs in Keras's order"),
        (_weight("kernel"), "torch has (units, inputs)"),
        (
            _weight("kernel.reshape(*shape, -1).permute(3, 2, 1, 0).flatten(1)"),
            "Height and width have changed places",
        ),
        (
            _weight(
                "kernel.reshape(shape[2], *shape[:2], -1)"
                ".permute(3, 1, 2, 0).flatten(1)"
            ),
            "That is the way back",
        ),
        (
            _weight("kernel.reshape(*shape, -1).permute(3, 1, 0, 2).flatten(1)"),
            "Write down the axes",
        ),
    ],
    "same_padding": [
        (_pads("return ..."), "There is still a `...`"),
        (_pads("return kernel // 2, kernel // 2"), "pads alike on both sides"),
        (
            _pads("return (kernel - 1) // 2, kernel // 2"),
            "right for stride 1 only",
        ),
        (
            _pads(_WINDOWS, _MISSING, "return missing - missing // 2, missing // 2"),
            "goes after the numbers, not before",
        ),
        (
            _pads(
                _WINDOWS,
                "missing = (windows - 1) * stride + kernel - size",
                "return missing // 2, missing - missing // 2",
            ),
            "at least 0",
        ),
        (
            _pads(
                "windows = size // stride",
                _MISSING,
                "return missing // 2, missing - missing // 2",
            ),
            "Keras rounds up",
        ),
        (_pads(_WINDOWS, _MISSING, "return 0, missing"), "half of them before"),
        (_pads(_WINDOWS, _MISSING, "return missing / 2, missing / 2"), "whole numbers"),
        (_pads(_WINDOWS, _MISSING, "return missing"), "wanted two numbers"),
    ],
}
