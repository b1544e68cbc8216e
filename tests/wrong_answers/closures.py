"""Likely wrong answers of lesson 01, each with words of the message it must get."""

_DEF = "def make_total(model, coefficients):\n"
_PAIRS = (
    _DEF + "    pairs = [(model.get_submodule(n).weight, c)\n"
    "             for n, c in coefficients.items()]\n"
)

WRONG = {
    "guess": [
        ("answer = [0, 1, 2]", "early binding"),
        ("answer = [2, 2, 2]", "changes once more"),
        ("answer = 10", "list of three"),
        ("answer = (10, 10, 10)", "The values are right; write a list"),
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
        (
            "def make_scalers(factors):\n"
            "    return [lambda x, *, factor=f: factor * x for f in factors]\n",
            "`scale(10, factor=7)` quietly",
        ),
        (
            "def make_scalers(factors):\n"
            "    import functools\n"
            "    def scale(x, by):\n"
            "        return by * x\n"
            "    return [functools.partial(scale, by=f) for f in factors]\n",
            "`scale(10, by=7)` quietly",
        ),
        (
            "def make_scalers(factors):\n"
            "    return [(lambda k: lambda x: factors[k] * x)(k)\n"
            "            for k in range(len(factors))]\n",
            "read the caller's list at each call",
        ),
        (
            "def make_scalers(factors):\n"
            "    return {f: (lambda k: lambda x: k * x)(f) for f in factors}\n",
            "returned dict; wanted a list",
        ),
        (
            "def make_scalers(factors):\n    [lambda x: f * x for f in factors]\n",
            "returned None; wanted a list",
        ),
    ],
    "watch": [
        (
            "def watch(model):\n"
            "    seen = []\n"
            "    for name, layer in model.named_children():\n"
            "        layer.register_forward_hook(\n"
            "            lambda *_, name=name: seen.append(name)\n"
            "        )\n"
            "    model(torch.ones(1))\n"
            "    return seen\n",
            "`watch` has run the model itself",
        ),
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
            "        return lambda m, args, out: seen.append(name) or 'done'\n"
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
            "The hooks ran, and `seen` is still empty",
        ),
        (
            "def watch(model):\n    seen = []\n    return seen\n",
            "No hook ran: `seen` is still empty",
        ),
        (
            "def watch(model):\n"
            "    seen = []\n"
            "    def reporter(i):\n"
            "        return lambda *_: seen.append(i)\n"
            "    for i, layer in enumerate(model):\n"
            "        layer.register_forward_hook(reporter(i))\n"
            "    return seen\n",
            "gave [0, 1, 2]; wanted",
        ),
        (
            "def watch(model):\n"
            "    seen = []\n"
            "    def reporter(i):\n"
            "        return lambda *_: seen.append(str(i))\n"
            "    for i, layer in enumerate(model):\n"
            "        layer.register_forward_hook(reporter(i))\n"
            "    return seen\n",
            "a position is not a name",
        ),
        (
            "def watch(model):\n"
            "    seen = []\n"
            "    names = [name for name, _ in model.named_children()]\n"
            "    model.register_forward_hook(lambda *_: seen.extend(names))\n"
            "    return seen\n",
            "not the order",
        ),
        (
            "def watch(model):\n"
            "    seen = []\n"
            "    def reporter(name):\n"
            "        return lambda *_: seen.append(name)\n"
            "    for name, layer in model.named_children():\n"
            "        layer.register_forward_pre_hook(reporter(name))\n"
            "    return seen\n",
            "that is a pre-hook",
        ),
        (
            "def watch(model):\n"
            "    for name, layer in model.named_children():\n"
            "        layer.register_forward_hook(lambda *_: None)\n",
            "wanted the list",
        ),
        (
            "def watch(model):\n"
            "    seen = []\n"
            "    def reporter(name):\n"
            "        def hook(module, args, output):\n"
            "            seen.append(name); seen.sort()\n"
            "        return hook\n"
            "    for name, layer in model.named_children():\n"
            "        layer.register_forward_hook(reporter(name))\n"
            "    return seen\n",
            "'early', 'early', 'late', 'late'",
        ),
        (
            "def watch(model):\n"
            "    seen = []\n"
            "    def reporter(name):\n"
            "        def hook(module, args, output):\n"
            "            if name not in seen: seen.append(name)\n"
            "        return hook\n"
            "    for name, layer in model.named_children():\n"
            "        layer.register_forward_hook(reporter(name))\n"
            "    return seen\n",
            "nothing sorts or leaves out",
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
            "    mine, theirs = f.__closure__ or (), g.__closure__ or ()\n"
            "    return any(a is b for a, b in zip(mine, theirs))\n",
            "every cell of f with every cell of g",
        ),
        (
            "def shares_cell(f, g):\n"
            "    mine, theirs = f.__closure__ or (), g.__closure__ or ()\n"
            "    return bool({id(c) for c in mine} & {id(c) for c in theirs})\\\n"
            "        if mine else None\n",
            "returned None; wanted True or False",
        ),
        (
            "def shares_cell(f, g):\n"
            "    mine, theirs = f.__closure__ or (), g.__closure__ or ()\n"
            "    return {id(c) for c in mine} & {id(c) for c in theirs}\n",
            "returned set; wanted True or False",
        ),
        (
            "def shares_cell(f, g):\n"
            "    return bool(set(f.__closure__) & set(g.__closure__))\n",
            "it has no hash",
        ),
        (
            "def shares_cell(f, g):\n"
            "    mine, theirs = f.__closure__ or (), g.__closure__ or ()\n"
            "    return not theirs or any(a is b for a in mine for b in theirs)\n",
            "shares nothing",
        ),
    ],
    "live": [
        (
            _PAIRS + "    return sum(c * w.square().sum() for w, c in pairs)\n",
            "returned a number",
        ),
        (
            _PAIRS
            + (
                "    def total():\n"
                "        return sum(c * w.square().sum() for w, c in pairs)\n"
            ),
            "returned None",
        ),
        (
            _PAIRS
            + "    return lambda net: sum(c * w.square().sum() for w, c in pairs)\n",
            "`total` wants arguments",
        ),
        (
            _PAIRS
            + (
                "    held = sum(c * w.square().sum() for w, c in pairs)\n"
                "    return lambda: held\n"
            ),
            "computed once",
        ),
        (
            _PAIRS
            + (
                "    def total():\n"
                "        return sum(c * w.square().sum() for w, c in pairs).item()\n"
                "    return total\n"
            ),
            "lost its gradient",
        ),
        (
            _DEF
            + (
                "    parts = []\n"
                "    for n, c in coefficients.items():\n"
                "        m = model.get_submodule(n)\n"
                "        parts.append(lambda c=c: c * m.weight.square().sum())\n"
                "    return lambda: sum(part() for part in parts)\n"
            ),
            "Every term looks at one layer",
        ),
        (
            _DEF
            + (
                "    parts = []\n"
                "    for n, c in coefficients.items():\n"
                "        m = model.get_submodule(n)\n"
                "        parts.append(lambda m=m: c * m.weight.square().sum())\n"
                "    return lambda: sum(part() for part in parts)\n"
            ),
            "Every term has the last coefficient",
        ),
        (
            _DEF
            + (
                "    parts = []\n"
                "    for n, c in coefficients.items():\n"
                "        m = model.get_submodule(n)\n"
                "        parts.append(lambda: c * m.weight.square().sum())\n"
                "    return lambda: sum(part() for part in parts)\n"
            ),
            "layer and coefficient: both",
        ),
        (
            _DEF
            + (
                "    layers = model[0], model[2]\n"
                "    numbers = coefficients.values()\n"
                "    pairs = [(m.weight, c) for m, c in zip(layers, numbers)]\n"
                "    return lambda: sum(c * w.square().sum() for w, c in pairs)\n"
            ),
            "in their order, not by name",
        ),
        (
            _DEF
            + (
                "    pairs = list(zip(model.parameters(), coefficients.values()))\n"
                "    return lambda: sum(c * p.square().sum() for p, c in pairs)\n"
            ),
            "paid for a bias",
        ),
        (
            _DEF
            + (
                "    return lambda: sum(c * p.square().sum() for n, c in\n"
                "                       coefficients.items()\n"
                "                       for p in model.get_submodule(n).parameters())\n"
            ),
            "biases are counted",
        ),
        (
            _PAIRS + "    return lambda: sum(c * w.abs().sum() for w, c in pairs)\n",
            "absolute values",
        ),
        (
            _PAIRS + "    return lambda: sum(c * w.abs().mean() for w, c in pairs)\n",
            "each layer's weights.",
        ),
        (
            _PAIRS
            + "    return lambda: sum(c * w.square().mean() for w, c in pairs)\n",
            "each layer's weights, squared",
        ),
        (
            _PAIRS + "    return lambda: sum(c * w.sum() ** 2 for w, c in pairs)\n",
            "squares each sum",
        ),
        (
            _PAIRS + "    return lambda: sum(w.square().sum() for w, c in pairs)\n",
            "coefficients are missing",
        ),
        (
            _PAIRS + "    return lambda: sum(c * w.norm() for w, c in pairs)\n",
            "wanted 12.5",
        ),
        (
            _PAIRS + "    return lambda: [c * w.square() for w, c in pairs]\n",
            "`total()` returned list",
        ),
        (
            _PAIRS
            + (
                "    pairs = iter(pairs)\n"
                "    return lambda: sum(c * w.square().sum() for w, c in pairs)\n"
            ),
            "empty after the first time",
        ),
        (
            _DEF
            + (
                "    kept = dict(coefficients)\n"
                "    get = model.get_submodule\n"
                "    return lambda: sum(c * get(n).weight.square().sum()\n"
                "                       for n, c in kept.items())\n"
            ),
            "names are looked up at each call",
        ),
        (
            _DEF
            + (
                "    layers = {n: model.get_submodule(n) for n in coefficients}\n"
                "    return lambda: sum(c * layers[n].weight.square().sum()\n"
                "                       for n, c in coefficients.items())\n"
            ),
            "caller has changed `coefficients`",
        ),
        (
            "def make_total(model, coefficients):\n"
            "    chosen = [(model[int(n)], c) for n, c in coefficients.items()]\n"
            "    def total():\n"
            "        return sum(c * m.weight.square().sum() for m, c in chosen)\n"
            "    return total\n",
            "names such as 'head'",
        ),
    ],
}
