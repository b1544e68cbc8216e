"""Likely wrong answers of lesson 01, each with words of the message it must get."""

WRONG = {
    "guess": [
        ("answer = [0, 1, 2]", "early binding"),
        ("answer = [2, 2, 2]", "changes once more"),
        ("answer = 10", "list of three"),
        ("answer = [10, 10]", "does not return [10, 10]"),
    ],
    "scalers": [
        (
            "def make_scalers(factors):\n"
            "    return [lambda x: factor * x for factor in factors]\n",
            "captured late",
        ),
        (
            "def make_scalers(factors):\n"
            "    return [lambda x, factor=factor: factor * x for factor in factors]\n",
            "quietly replaces the factor",
        ),
        (
            "def make_scalers(factors):\n"
            "    return [factor * 10 for factor in factors]\n",
            "returned numbers",
        ),
        (
            "def make_scalers(factors):\n"
            "    return [(lambda f: lambda x: f + x)(f) for f in factors]\n",
            "wanted [20, 30, 50]",
        ),
    ],
    "watch": [
        (
            "def watch(model):\n"
            "    seen = []\n"
            "    for name, layer in model.named_children():\n"
            "        layer.register_forward_hook(lambda *_: seen.append(name))\n"
            "    return seen\n",
            "they share one `name`",
        ),
        (
            "def watch(model):\n"
            "    return [name for name, _ in model.named_children()]\n",
            "before the model has run",
        ),
        (
            "def watch(model):\n"
            "    seen = []\n"
            "    def reporter(name):\n"
            "        return lambda m, args, out: seen.append(name) or out * 0\n"
            "    for name, layer in model.named_children():\n"
            "        layer.register_forward_hook(reporter(name))\n"
            "    return seen\n",
            "output changed",
        ),
        (
            "def watch(model):\n"
            "    seen = []\n"
            "    for name, layer in model.named_children():\n"
            "        layer.register_forward_hook(lambda *_, name=name: None)\n"
            "    return seen\n",
            "One forward pass gave []",
        ),
        (
            "def watch(model):\n"
            "    for name, layer in model.named_children():\n"
            "        layer.register_forward_hook(lambda *_: None)\n",
            "wanted the list",
        ),
    ],
    "shares": [
        (
            "def shares_cell(f, g):\n"
            "    return any(a == b for a in f.__closure__ for b in g.__closure__)\n",
            "Compare the cells with `is`",
        ),
        (
            "def shares_cell(f, g):\n"
            "    return any(a is b for a in f.__closure__ for b in g.__closure__)\n",
            "Treat None as no cells",
        ),
        (
            "def shares_cell(f, g):\n    return f.__closure__ is g.__closure__\n",
            "your answer for them is not True",
        ),
        (
            "def shares_cell(f, g):\n"
            "    mine, theirs = f.__closure__, g.__closure__ or ()\n"
            "    return not theirs or mine[0] is theirs[0]\n",
            "shares nothing",
        ),
    ],
    "live": [
        (
            "def make_total(model, coefficients):\n"
            "    return sum(c * model.get_submodule(n).weight.square().sum()\n"
            "               for n, c in coefficients.items())\n",
            "returned a number",
        ),
        (
            "def make_total(model, coefficients):\n"
            "    return lambda m: sum(c * m.get_submodule(n).weight.square().sum()\n"
            "                         for n, c in coefficients.items()).item()\n",
            "lost its gradient",
        ),
        (
            "def make_total(model, coefficients):\n"
            "    parts = []\n"
            "    for name, c in coefficients.items():\n"
            "        parts.append(lambda m, c=c:\n"
            "                     c * m.get_submodule(name).weight.square().sum())\n"
            "    return lambda m: sum(part(m) for part in parts)\n",
            "captured late",
        ),
        (
            "def make_total(model, coefficients):\n"
            "    return lambda m: sum(c * m.get_submodule(n).weight.abs().sum()\n"
            "                         for n, c in coefficients.items())\n",
            "Square the weights",
        ),
        (
            "def make_total(model, coefficients):\n"
            "    return lambda m: sum(c * p.square().sum() for n, c in\n"
            "                         coefficients.items()\n"
            "                         for p in m.get_submodule(n).parameters())\n",
            "weights only, squared",
        ),
        (
            "def make_total(model, coefficients):\n"
            "    import torch\n"
            "    held = torch.tensor(2.5, requires_grad=True) * 1\n"
            "    return lambda m: held\n",
            "stayed the same",
        ),
    ],
}
