"""Likely wrong answers of lesson 01, each with words of the message it must get."""

_DEF = "def make_total(model, coefficients):\n"
_PAIRS = (
    _DEF + "    pairs = [(model.get_submodule(n).weight, c)\n"
    "             for n, c in coefficients.items()]\n"
)

_CLASS = (
    "class Penalty:\n"
    "    def __init__(self, layer, l1, l2):\n"
    "        self.layer, self.l1, self.l2 = layer, l1, l2\n"
    "    def __call__(self):\n"
    "        w = self.layer.weight\n"
    "        return {}\n"
)
_SUMS = "self.l1 * w.abs().sum() + self.l2 * w.square().sum()"
_RIGHT = _CLASS.format(_SUMS)
_MAKE = "def make_penalties(model, rules):\n"
_DENSE = _MAKE + "    dense = [m for m in model if isinstance(m, nn.Linear)]\n"
_LOOP = (
    _DENSE + "    return [Penalty(m, r['l1'], r['l2'])\n"
    "            for m, r in zip(dense, rules) if r is not None]\n"
)


def _penalty(value: str) -> str:
    """A right factory of objects that compute something else."""
    return _CLASS.format(value) + _LOOP


def _scaler(
    *lines: str, before: str = "", after: str = "return [s(f) for f in factors]"
) -> str:
    """A factory of factories: `lines` are the body of scale(x), inside of s(f)."""
    body = "".join(f"            {line}\n" for line in lines)
    head = "def make_scalers(factors):\n"
    make = f"    def s(f):\n        def scale(x):\n{body}        return scale\n"
    return head + before + make + f"    {after}\n"


def _watched(
    *lines: str, hook: str = "seen.append(name)", after: str = "return seen"
) -> str:
    """Hooks that are right; `lines` follow the registration of each, in the loop."""
    return (
        "def watch(model):\n"
        "    seen = []\n"
        "    def reporter(name):\n"
        "        def hook(module, args, output):\n"
        f"            {hook}\n"
        "        return hook\n"
        "    for name, layer in model.named_children():\n"
        "        layer.register_forward_hook(reporter(name))\n"
        + "".join(f"        {line}\n" for line in lines)
        + f"    {after}\n"
    )


def _shared(condition: str) -> str:
    """Whether a pair of cells meets a condition."""
    return (
        "def shares_cell(f, g):\n"
        "    mine, theirs = f.__closure__ or (), g.__closure__ or ()\n"
        f"    return {condition}\n"
    )


WRONG = {
    "guess": [
        ("answer = [0, 1, 2]", "early binding"),
        ("answer = [2, 2, 2]", "changes once more"),
        ("answer = 10", "list of three"),
        ("answer = {10}", "does not return {10}"),
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
            "The list holds int; wanted a function",
        ),
        (
            "def make_scalers(factors):\n"
            "    return [(lambda f: lambda x: f + x)(f) for f in factors]\n",
            "wanted [20, 30, 50]",
        ),
        (
            "def make_scalers(factors):\n"
            "    return [lambda x, *, k=f: k * x for f in factors]\n",
            "`scale(10, k=7)` quietly",
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
        (
            "def make_scalers(factors):\n"
            "    return [(lambda f: lambda x: f * x) for f in factors]\n",
            "the list holds the factory itself",
        ),
        (
            "def make_scalers(factors):\n"
            "    return [lambda x, i=i: factors[i] * x for i in range(len(factors))]\n",
            "raises IndexError: a default argument is still",
        ),
        (
            "def make_scalers(factors):\n"
            "    return [(lambda f: lambda x, **more: more.get('factor', f) * x)(f)\n"
            "            for f in factors]\n",
            "`scale(10, factor=7)` quietly replaces",
        ),
        (
            "def make_scalers(factors):\n"
            "    it = iter(list(factors))\n"
            "    return [lambda x: next(it) * x for _ in factors]\n",
            "and it is empty",
        ),
        (
            "def make_scalers(factors):\n"
            "    import itertools\n"
            "    it = itertools.cycle(list(factors))\n"
            "    return [lambda x: next(it) * x for _ in factors]\n",
            "they return [8, 12, 20]; wanted [20, 12, 8]",
        ),
        (
            _scaler("nonlocal f", "f = f * x", "return f"),
            "A call leaves something behind",
        ),
        (_scaler("return f * 10"), "Or does it ignore x?"),
        (_scaler("x *= f", "return x"), "changes a tensor x in place"),
        (_scaler("return int(f) * x"), "they return [0, -9, 0, 0]"),
        (_scaler("return abs(f) * x"), "they return [1.5, 9, 0, 1.5]"),
        (
            _scaler("return f * x", after="return [s(f) for f in sorted(factors)]"),
            "they return [-9, 0, 1.5, 1.5]",
        ),
        (
            _scaler(
                "return f * x",
                after="return list({f: s(f) for f in factors}.values())",
            ),
            "they return [1.5, -9, 0];",
        ),
        (
            "def make_scalers(factors):\n"
            "    return [lambda x: 2 * x, lambda x: 3 * x, lambda x: 5 * x]\n",
            "they return [6, 9, 15]",
        ),
        (
            _scaler(
                "return f * x",
                after="return [s(factors.pop(0)) for _ in range(len(factors))]",
            ),
            "You changed `factors`",
        ),
        (
            _scaler("return f * x", after="made.extend(s(f) for f in factors)")
            .replace("(factors)", "(factors, made=[])", 1)
            .rstrip()
            + "\n    return made\n",
            "returned one list",
        ),
        (
            _scaler(
                "return kept[f] * x",
                before="    global kept\n    kept = list(factors)\n",
                after="return [s(i) for i in range(len(kept))]",
            ),
            "called with other factors",
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
        (
            _watched()
            .replace("(model)", "(model, seen=[])")
            .replace("    seen = []\n", ""),
            "returned one list",
        ),
        (
            _watched()
            .replace("named_children()", "named_modules()")
            .replace("        layer.register", "        if name: layer.register"),
            "gave ['stem.inner', 'stem', 'head']",
        ),
        (
            _watched()
            .replace("named_children()", "named_modules()")
            .replace(
                "        layer.register",
                "        if not list(layer.children()): layer.register",
            ),
            "gave ['stem.inner', 'head']",
        ),
        (
            _watched().replace(
                "model.named_children()",
                "zip([n for n, _ in model.named_children()], model)",
            ),
            "A model that is no `nn.Sequential`",
        ),
        (_watched("layer.eval()"), "Leave its mode"),
        (
            _watched().replace(
                "        layer.register",
                "        layer._forward_hooks.clear()\n        layer.register",
            ),
            "A hook that somebody else had registered is gone",
        ),
        (
            _watched(hook="seen.extend(name)"),
            "the list holds letters",
        ),
        (
            _watched(
                after="return [layer.register_forward_hook(reporter(name))\n"
                "            for name, layer in model.named_children()]"
            ),
            "It holds RemovableHandle",
        ),
        (
            "def watch(model):\n"
            "    seen = []\n"
            "    def wrap(name, forward):\n"
            "        def run(x):\n"
            "            seen.append(name)\n"
            "            return forward(x)\n"
            "        return run\n"
            "    for name, layer in model.named_children():\n"
            "        layer.forward = wrap(name, layer.forward)\n"
            "    return seen\n",
            "The `forward` of a layer was replaced",
        ),
        (
            "def watch(model):\n"
            "    seen, handles = [], []\n"
            "    def start(module, args):\n"
            "        for name, layer in model.named_children():\n"
            "            hook = lambda *_, name=name: seen.append(name)\n"
            "            handles.append(layer.register_forward_hook(hook))\n"
            "    def stop(module, args, output):\n"
            "        while handles: handles.pop().remove()\n"
            "    model.register_forward_pre_hook(start)\n"
            "    model.register_forward_hook(stop)\n"
            "    return seen\n",
            "a hook for all modules would see every model",
        ),
        (
            _watched(hook="seen += [name]"),
            "cannot access local variable",
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
        (
            _shared(
                "any(a is b and bool(a.cell_contents)\n"
                "               for a in mine for b in theirs)"
            ),
            "share a cell that holds None",
        ),
        (
            _shared(
                "len(mine) == len(theirs) and any(\n"
                "        a is b for a in mine for b in theirs)"
            ),
            "the other has two",
        ),
        (
            _shared("sum(a is b for a in mine for b in theirs) == 1"),
            "share both of their cells",
        ),
        (
            "def shares_cell(f, g):\n"
            "    mark = object()\n"
            "    for a in f.__closure__ or ():\n"
            "        a.cell_contents = mark\n"
            "    return any(b.cell_contents is mark for b in g.__closure__ or ())\n",
            "leave in them what they hold",
        ),
    ],
    "live": [
        (
            _PAIRS
            + (
                "    def total():\n"
                "        for w, c in pairs:\n"
                "            return c * w.square().sum()\n"
                "    return total\n"
            ),
            "Is a `return` inside the loop?",
        ),
        (
            _PAIRS
            + "    return lambda: sum(c * w.square().sum() / 2 for w, c in pairs)\n",
            "half of the squares",
        ),
        (
            _PAIRS
            + (
                "    def total():\n"
                "        dead = sum(c * w.detach().square().sum() for w, c in pairs)\n"
                "        return dead + 0 * sum(w.sum() for w, c in pairs)\n"
                "    return total\n"
            ),
            "Its gradient is wrong",
        ),
        (
            _DEF
            + (
                "    dense = [m for m in model.modules() if isinstance(m, nn.Linear)]\n"
                "    numbers = [coefficients[n] for n in sorted(coefficients)]\n"
                "    pairs = list(zip(dense, numbers))\n"
                "    return lambda: sum(c * m.weight.square().sum()\n"
                "                       for m, c in pairs)\n"
            ),
            "the names were sorted",
        ),
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
            "wanted 10.75",
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
        (
            _PAIRS + "    kept = []\n"
            "    def total():\n"
            "        if not kept:\n"
            "            kept.append(sum(c * w.square().sum() for w, c in pairs))\n"
            "        return kept[0]\n"
            "    return total\n",
            "keeps what its first call computed",
        ),
        (
            _PAIRS.replace("[(", "((").replace("()]", "())") + "    found = []\n"
            "    def total():\n"
            "        found.extend(pairs)\n"
            "        return sum(c * w.square().sum() for w, c in found)\n"
            "    return total\n",
            "a generator would wait",
        ),
        (
            _DEF + "    pairs = []\n"
            "    while coefficients:\n"
            "        n, c = coefficients.popitem()\n"
            "        pairs.append((model.get_submodule(n).weight, c))\n"
            "    return lambda: sum(c * w.square().sum() for w, c in pairs)\n",
            "You changed `coefficients`",
        ),
        (
            _PAIRS
            + "    return lambda: torch.stack([c * (w * w).sum() for w, c in pairs])\n",
            "a tensor of shape (2,); wanted one",
        ),
        (_PAIRS + "    return pairs\n", "returned list; wanted the function `total`"),
        (
            _DEF + "    pairs = [(p, c) for n, c in coefficients.items()\n"
            "             for q, p in model.named_parameters()\n"
            "             if q.startswith(n) and q.endswith('weight')]\n"
            "    return lambda: sum(c * w.square().sum() for w, c in pairs)\n",
            "only a part of the name was compared",
        ),
        (
            _DEF + "    numbers = dict(coefficients)\n"
            "    pairs = [(m.weight, numbers[n]) for n, m in model.named_modules()\n"
            "             if n in numbers and isinstance(m, nn.Linear)]\n"
            "    return lambda: sum(c * w.square().sum() for w, c in pairs)\n",
            "not for its class",
        ),
        (
            _DEF + "    found = {c: model.get_submodule(n).weight\n"
            "             for n, c in coefficients.items()}\n"
            "    return lambda: sum(c * w.square().sum() for c, w in found.items())\n",
            "a key of a dictionary",
        ),
        (
            _DEF + "    global kept\n"
            "    kept = {model.get_submodule(n): c for n, c in coefficients.items()}\n"
            "    return lambda: sum(kept[m] * m.weight.square().sum() for m in kept)\n",
            "`make_total` was called again",
        ),
        (
            _PAIRS + "    def total():\n"
            "        model.zero_grad()\n"
            "        return sum(c * w.square().sum() for w, c in pairs)\n"
            "    return total\n",
            "has changed the gradients",
        ),
        (
            _PAIRS + "    model.float()\n"
            "    return lambda: sum(c * w.square().sum() for w, c in pairs)\n",
            "You changed the model",
        ),
    ],
    "pickled": [
        (
            _RIGHT + _DENSE + "    return [Penalty(m, r['l1'], r['l2'])\n"
            "            for m, r in zip(dense, rules)]\n",
            "an entry of `rules` may be None",
        ),
        (
            _RIGHT + _MAKE + "    return [Penalty(m, r['l1'], r['l2'])\n"
            "            for m, r in zip(model, rules) if r is not None]\n",
            "Pair it with the dense layers",
        ),
        (
            _RIGHT + _DENSE + "    kept = [r for r in rules if r is not None]\n"
            "    return [Penalty(m, r['l1'], r['l2'])\n"
            "            for m, r in zip(dense, kept)]\n",
            "the free layer pays",
        ),
        (
            _RIGHT + _DENSE + "    none = {'l1': 0.0, 'l2': 0.0}\n"
            "    rules = [r or none for r in rules]\n"
            "    return [Penalty(m, r['l1'], r['l2'])\n"
            "            for m, r in zip(dense, rules)]\n",
            "The free one, None, has none",
        ),
        (_RIGHT + _LOOP.replace("return", "made ="), "returned None; wanted a list"),
        (
            _RIGHT + _LOOP + "make = make_penalties\n"
            "def make_penalties(model, rules):\n"
            "    return {i: p for i, p in enumerate(make(model, rules))}\n",
            "returned dict; wanted a list",
        ),
        (
            _RIGHT + _LOOP.replace("r['l2'])", "r['l2'])()"),
            "the list holds numbers",
        ),
        (
            _RIGHT.replace("__call__", "value") + _LOOP,
            "An object needs a method `__call__`",
        ),
        (
            _RIGHT.replace("__call__(self)", "__call__(self, m)") + _LOOP,
            "called without arguments",
        ),
        (
            _DENSE + "    return [lambda: r['l1'] * m.weight.abs().sum()\n"
            "            + r['l2'] * m.weight.square().sum()\n"
            "            for m, r in zip(dense, rules) if r is not None]\n",
            "every penalty is the last one",
        ),
        (
            _DENSE + "    return [lambda r=r: r['l1'] * m.weight.abs().sum()\n"
            "            + r['l2'] * m.weight.square().sum()\n"
            "            for m, r in zip(dense, rules) if r is not None]\n",
            "every penalty looks at the last layer",
        ),
        (
            "class Penalty:\n"
            "    def __call__(self):\n"
            "        w = self.layer.weight\n"
            f"        return {_SUMS}\n" + _DENSE + "    made = []\n"
            "    for m, r in zip(dense, rules):\n"
            "        if r is not None:\n"
            "            penalty = Penalty()\n"
            "            penalty.layer = m\n"
            "            Penalty.l1, Penalty.l2 = r['l1'], r['l2']\n"
            "            made.append(penalty)\n"
            "    return made\n",
            "has the numbers of the last rule",
        ),
        (_penalty(f"({_SUMS}).item()"), "Step 1: the values are right, but no"),
        (
            _RIGHT + "    def __setstate__(self, state):\n"
            "        self.__dict__ = state\n"
            "        self.layer.requires_grad_(False)\n" + _LOOP,
            "Step 3, after the pickle: the values are right",
        ),
        (_penalty("self.l1 * w.abs().sum()"), "l2 is missing"),
        (_penalty("self.l2 * w.square().sum()"), "l1 is missing"),
        (_penalty("self.l1 * w.abs() + self.l2 * w**2"), "has the shape (2, 2)"),
        (
            _penalty("self.l1 * w.sum() + self.l2 * w.square().sum()"),
            "both signs cancel out",
        ),
        (
            _penalty("self.l1 * w.abs().sum() + self.l2 * w.norm()"),
            "that is the norm, their root",
        ),
        (
            _penalty("self.l1 * w.abs().mean() + self.l2 * w.square().mean()"),
            "these are means",
        ),
        (
            _penalty("self.l1 * w.square().sum() + self.l2 * w.abs().sum()"),
            "have changed places",
        ),
        (
            _penalty(
                "sum(self.l1 * p.abs().sum() + self.l2 * p.square().sum()\n"
                "                   for p in self.layer.parameters())"
            ),
            "the biases pay",
        ),
        (_penalty("w.abs().sum() + w.square().sum()"), "l1 and l2 are missing"),
        (
            _penalty("self.l1 * w.abs().sum() + self.l2 * w.sum() ** 2"),
            "that squares their sum",
        ),
        (
            _penalty("self.l1 * w.abs().sum() + self.l2 * w.square().sum() / 2"),
            "half of the squares",
        ),
        (
            _RIGHT + _LOOP.replace("isinstance(m, nn.Linear)", "hasattr(m, 'weight')"),
            "the `LayerNorm` has a weight, too",
        ),
        (
            _RIGHT
            + _LOOP.replace(
                "    dense", "    model.insert(0, nn.Identity())\n    dense", 1
            ),
            "you changed the model",
        ),
        (
            _RIGHT
            + _LOOP.replace("Penalty(m, r", "Penalty(m, r").replace(
                "r['l1']", "r.pop('l1')"
            ),
            "you changed `rules`",
        ),
        (
            _RIGHT + _DENSE + "    return [Penalty\n"
            "            for m, r in zip(dense, rules) if r is not None]\n",
            "holds the class Penalty itself",
        ),
        (
            _RIGHT
            + _DENSE
            + "    return [Penalty(m, r['l1'], r['l2']) if r else None\n"
            "            for m, r in zip(dense, rules)]\n",
            "an entry of the list is None",
        ),
        (
            _penalty("self.l1 * w.abs().sum() - self.l2 * w.square().sum()"),
            "l1 * sum |w| + l2 * sum w**2 of each layer",
        ),
        (
            "class Penalty:\n"
            "    def __init__(self, layer, l1, l2):\n"
            "        w = layer.weight\n"
            "        self.value = l1 * w.abs().sum() + l2 * w.square().sum()\n"
            "    def __call__(self):\n"
            "        return self.value\n" + _LOOP,
            "they did not notice",
        ),
        (
            "class Penalty:\n"
            "    layers, rules = [], []\n"
            "    def __init__(self, i):\n"
            "        self.i = i\n"
            "    def __call__(self):\n"
            "        w, r = Penalty.layers[self.i].weight, Penalty.rules[self.i]\n"
            "        return r['l1'] * w.abs().sum() + r['l2'] * w.square().sum()\n"
            + _DENSE
            + "    pairs = [(m, r) for m, r in zip(dense, rules) if r is not None]\n"
            "    Penalty.layers, Penalty.rules = zip(*pairs)\n"
            "    return [Penalty(i) for i in range(len(pairs))]\n",
            "called for a second model",
        ),
        (
            "class Penalty:\n"
            "    def __init__(self, model, name, l1, l2):\n"
            "        self.model, self.name = model, name\n"
            "        self.l1, self.l2 = l1, l2\n"
            "    def __call__(self):\n"
            "        w = self.model.get_submodule(self.name).weight\n"
            f"        return {_SUMS}\n"
            + _MAKE
            + "    names = [n for n, m in model.named_children()\n"
            "             if isinstance(m, nn.Linear)]\n"
            "    return [Penalty(model, n, r['l1'], r['l2'])\n"
            "            for n, r in zip(names, rules) if r is not None]\n",
            "they look for their layer by place or name",
        ),
        (
            "class Penalty:\n"
            "    def __init__(self, layer, rule):\n"
            "        self.layer, self.rule = layer, rule\n"
            "    def __call__(self):\n"
            "        w, r = self.layer.weight, self.rule\n"
            "        return r['l1'] * w.abs().sum() + r['l2'] * w.square().sum()\n"
            + _DENSE
            + "    return [Penalty(m, r)\n"
            "            for m, r in zip(dense, rules) if r is not None]\n",
            "Keep the numbers, not the list",
        ),
        (
            _DENSE + "    def penalty(m, l1, l2):\n"
            "        return lambda: (l1 * m.weight.abs().sum()\n"
            "                        + l2 * m.weight.square().sum())\n"
            "    return [penalty(m, r['l1'], r['l2'])\n"
            "            for m, r in zip(dense, rules) if r is not None]\n",
            "a penalty can't be pickled",
        ),
        (
            _DENSE + "    class Penalty:\n"
            "        def __init__(self, layer, l1, l2):\n"
            "            self.layer, self.l1, self.l2 = layer, l1, l2\n"
            "        def __call__(self):\n"
            "            w = self.layer.weight\n"
            f"            return {_SUMS}\n"
            "    return [Penalty(m, r['l1'], r['l2'])\n"
            "            for m, r in zip(dense, rules) if r is not None]\n",
            "make_penalties.<locals>.Penalty",
        ),
        (
            "import functools\n"
            + _DENSE
            + "    cost = lambda m, l1, l2: (l1 * m.weight.abs().sum()\n"
            "                              + l2 * m.weight.square().sum())\n"
            "    return [functools.partial(cost, m, r['l1'], r['l2'])\n"
            "            for m, r in zip(dense, rules) if r is not None]\n",
            "<lambda>",
        ),
        (
            "import copy\n" + _RIGHT + "    def __getstate__(self):\n"
            "        state = dict(vars(self))\n"
            "        state['layer'] = copy.deepcopy(self.layer)\n"
            "        return state\n" + _LOOP,
            "do not see that model's weights",
        ),
        (
            "kept = {}\n"
            "class Penalty:\n"
            "    def __init__(self, layer, l1, l2):\n"
            "        self.name, self.l1, self.l2 = f'number {len(kept)}', l1, l2\n"
            "        kept[self.name] = layer\n"
            "    def __call__(self):\n"
            "        w = kept[self.name].weight\n"
            f"        return {_SUMS}\n" + _LOOP,
            "without its parts ('number 0')",
        ),
        (
            _RIGHT + "    def __getstate__(self):\n"
            "        return {'l1': self.l1, 'l2': self.l2}\n" + _LOOP,
            "without its parts ('Penalty' object has no attribute 'layer')",
        ),
        (
            _RIGHT + "    def __reduce__(self):\n"
            "        return Penalty, (self.layer, self.l2, self.l1)\n" + _LOOP,
            "come back from the pickle as",
        ),
        (
            "kept = ()\n"
            "class Penalty:\n"
            "    def __init__(self, layer, l1, l2):\n"
            "        global kept\n"
            "        kept += (layer,)\n"
            "        self.place, self.l1, self.l2 = len(kept) - 1, l1, l2\n"
            "    def __call__(self):\n"
            "        w = kept[self.place].weight\n"
            f"        return {_SUMS}\n" + _LOOP,
            "look at the first model",
        ),
        (
            "class Penalty:\n"
            "    rules = []\n"
            "    def __init__(self, layer, l1, l2):\n"
            "        self.layer, self.place = layer, len(self.rules)\n"
            "        self.rules.append((l1, l2))\n"
            "    def __call__(self):\n"
            "        w, (l1, l2) = self.layer.weight, self.rules[self.place]\n"
            "        return l1 * w.abs().sum() + l2 * w.square().sum()\n" + _LOOP,
            "without its parts (list index out of range)",
        ),
        (
            _RIGHT + "made = []\n" + _DENSE + "    made.extend(\n"
            "        Penalty(m, r['l1'], r['l2'])\n"
            "        for m, r in zip(dense, rules) if r is not None)\n"
            "    return made\n",
            "returned one list",
        ),
        (
            "import functools\n"
            + _RIGHT.replace(
                "    def __call__", "    @functools.cache\n    def __call__"
            )
            + _LOOP,
            "Compute in each call, and keep no result",
        ),
        (
            _RIGHT + _LOOP.replace("if r is not None", "if r and r['l1']"),
            "Only None is free",
        ),
        (
            _RIGHT + _LOOP.replace("r['l1']", "r['l1'] or 0.1"),
            "A 0 is a number as any other",
        ),
        (
            _RIGHT + _LOOP.replace("    dense", "    model.eval()\n    dense", 1),
            "Leave its mode",
        ),
        (
            "class Penalty:\n"
            "    def __init__(self, model, rank, l1, l2):\n"
            "        self.model, self.rank = model, rank\n"
            "        self.l1, self.l2 = l1, l2\n"
            "    def __call__(self):\n"
            "        dense = [m for m in self.model if isinstance(m, nn.Linear)]\n"
            "        w = dense[self.rank].weight\n"
            f"        return {_SUMS}\n"
            + _MAKE
            + "    return [Penalty(model, i, r['l1'], r['l2'])\n"
            "            for i, r in enumerate(rules) if r is not None]\n",
            "they count the dense layers at each call",
        ),
    ],
}
