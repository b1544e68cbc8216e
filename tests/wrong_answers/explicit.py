"""Wrong answers to the exercises of lesson 06, each with a piece of its message."""

from tests.wrong_answers import changed, function

_descend = function("descend(params, grads, eta)")
_samples = function("sample_gradients(model, params, x, y)")
_evaluate = function("evaluate(model, params, stats, x)")


def _recursive(step):
    return _descend(
        "def walk(x, g):",
        "    if isinstance(x, dict):",
        "        return {k: walk(x[k], g[k]) for k in x}",
        f"    return {step}",
        "return walk(params, grads)",
    )


_BATCH = "loss = lambda p: cross_entropy(call(model, p, x), y)"
_ONE = "loss = lambda p, a, b: cross_entropy(call(model, p, a[None]), b[None])"


def _stale(reused, added_up):
    return f'answer = {{"reused": {reused}, "added_up": {added_up}}}\n'


_FIT = """\
def fit(model, params, state, batches, test, epochs, goal):
    log = []
    for _ in range(epochs):
        losses = []
        model.train()
        for a, b in batches:
            loss = lambda p: cross_entropy(call(model, p, a), b)
            value, grads = with_gradient(loss, params)
            losses.append(value.item())
            if not math.isfinite(value):
                continue
            state, params = update(state, params, grads)
        model.eval()
        right = call(model, params, test[0]).argmax(dim=1) == test[1]
        log.append({"losses": losses, "accuracy": right.double().mean().item()})
        if log[-1]["accuracy"] >= goal:
            break
    return state, params, log
"""


def _fit(old, new):
    return changed(_FIT)((old, new))


_SKIP = "            if not math.isfinite(value):\n                continue\n"
_LOG = "            losses.append(value.item())\n"
_STEP = "            state, params = update(state, params, grads)\n"
_ENTRY = '{"losses": losses, "accuracy": right.double().mean().item()}'

WRONG = {
    "descend": [
        (_descend("return ..."), "still a `...`"),
        (
            _descend("return {k: x - eta * grads[k] for k, x in params.items()}"),
            "Arithmetic met a dict",
        ),
        (_recursive("x + eta * g"), "That climbs"),
        (_recursive("x - g"), "no `eta`"),
        (_recursive("x"), "Nothing moved"),
        (_recursive("x - 0.1 * g"), "whatever `eta` is"),
        (_recursive("eta * g - x"), "signs of x and of the step"),
        (_recursive("x - eta * x"), "wanted x - eta * g for each tensor"),
        (
            _descend(
                "return {",
                "    k: {n: t - eta * grads[k][n] for n, t in part.items()}",
                "    for k, part in params.items()",
                "}",
            ),
            "A tensor was used as a dict",
        ),
        (
            _descend(
                "new = dict(params)",
                "for k, x in new.items():",
                "    if isinstance(x, dict):",
                "        descend(x, grads[k], eta)",
                "    else:",
                "        new[k] = x - eta * grads[k]",
                "return new",
            ),
            "Only the tensors at the top moved",
        ),
        (_recursive("-eta * g"), "without x"),
        (_recursive("x.sub_(eta * g)"), "changed the tensors"),
        (
            _descend(
                "for k, x in params.items():",
                "    if isinstance(x, dict):",
                "        descend(x, grads[k], eta)",
                "    else:",
                "        params[k] = x - eta * grads[k]",
                "return params",
            ),
            "into the dict that you were given",
        ),
        (
            _descend(
                "return {",
                "    k: x - eta * grads[k]",
                "    for k, x in params.items()",
                "    if not isinstance(x, dict)",
                "}",
            ),
            "has no `in.b`",
        ),
        (
            _recursive("x - eta * g").replace("return walk(", "walk("),
            "`descend` returned None",
        ),
        (_recursive("(x - eta * g).double()"), "`w` is torch.float64"),
        (_recursive("(x - eta * g).tolist()"), "`w` is list"),
        (
            "def descend(params, grads, eta, out={}):\n"
            "    for k, x in params.items():\n"
            "        if isinstance(x, dict):\n"
            "            out[k] = descend(x, grads[k], eta, {})\n"
            "        else:\n"
            "            out[k] = x - eta * grads[k]\n"
            "    return out\n",
            "is made once, for all calls",
        ),
        (
            "first = []\n"
            + _recursive("x - first[0] * g").replace(
                "    def walk", "    first.append(eta)\n    def walk"
            ),
            "your step is that of the first",
        ),
        (
            _descend(
                "found = {}",
                "map_tree(lambda path, g: found.update({path[-1]: g}), grads)",
                "return map_tree(lambda path, x: x - eta * found[path[-1]], params)",
            ),
            "your step takes one gradient for all",
        ),
        (
            _descend(
                "return {",
                "    k: descend(x, grads[k], eta) if isinstance(x, dict)",
                "    else x - eta * grads[k] * (k != 'bias')",
                "    for k, x in params.items()",
                "}",
            ),
            "`bias` has not moved",
        ),
    ],
    "sample_gradients": [
        (
            _samples(_BATCH, "return gradient(loss, params)"),
            "for the whole batch. vmap",
        ),
        (
            _samples(
                "total = lambda p: len(x) * cross_entropy(call(model, p, x), y)",
                "return gradient(total, params)",
            ),
            "the sum over the batch",
        ),
        (
            _samples(_BATCH, "return vmap(lambda a, b: gradient(loss, params))(x, y)"),
            "Five times the same",
        ),
        (
            _samples(
                _ONE,
                "part = lambda p, a, b: loss(p, a, b) / len(x)",
                "of = lambda a, b: gradient(lambda p: part(p, a, b), params)",
                "return vmap(of)(x, y)",
            ),
            "divided by the batch size",
        ),
        (
            _samples(
                _ONE,
                "own = parameters(model)",
                "of = lambda a, b: gradient(lambda p: loss(p, a, b), own)",
                "return vmap(of)(x, y)",
            ),
            "the model's own parameters. Use `params`",
        ),
        (
            _samples(
                "net = copy.deepcopy(model)",
                "explicit.store(net, params)",
                "rows = []",
                "for a, b in zip(x, y):",
                "    cross_entropy(net(a[None]), b[None]).backward()",
                "    rows.append([p.grad.clone() for p in net.parameters()])",
                "columns = [torch.stack(c) for c in zip(*rows)]",
                "keys = ['weight', 'bias']",
                "return {",
                "    '0': dict(zip(keys, columns[:2])),",
                "    '2': dict(zip(keys, columns[2:])),",
                "}",
            ),
            "`.grad` adds up",
        ),
        (
            _samples("explicit.store(model, params)", "return params"),
            "own parameters have changed",
        ),
        (
            _samples("cross_entropy(model(x), y).backward()", "return params"),
            "has a `.grad` now",
        ),
        (
            _samples(
                _ONE,
                "of = lambda a, b: gradient(lambda p: loss(p, a, b), params)",
                "return explicit.trainables(vmap(of)(x, y))",
            ),
            "has no `0.weight`",
        ),
        (
            "def sample_gradients(model, params, x, y):\n"
            "    def of_one(one, label):\n"
            "        loss = lambda p: cross_entropy(call(model, p, one), label)\n"
            "        return gradient(loss, params)\n"
            "    return vmap(of_one)(x, y)\n",
            "If it gets one sample alone, give it a batch of one",
        ),
        (
            _samples(
                _ONE,
                "of = lambda a, b: gradient(lambda p: loss(p, a, b), params)",
                "found = vmap(of)(x, y)",
                "return dict(zip(['0', '2'], found.values()))",
            ),
            "has no `1.weight`",
        ),
        (
            _samples(
                _ONE,
                "of = lambda a, b: gradient(lambda p: loss(p, a, b), params)",
                "rows = [of(a, b) for a, b in zip(x, y)]",
                "return {",
                "    k: {n: torch.stack([row[k][n] for row in rows]) for n in part}",
                "    for k, part in params.items()",
                "}",
            ),
            "Its tree has one level more",
        ),
        (
            _samples(
                _ONE,
                "losses = []",
                "for a, b in zip(x, y):",
                "    losses.append(lambda p: loss(p, a, b))",
                "rows = [gradient(late, params) for late in losses]",
                "flat = [explicit.trainables(row) for row in rows]",
                "at = lambda path: torch.stack([row['.'.join(path)] for row in flat])",
                "return map_tree(lambda path, _: at(path), params)",
            ),
            "All are the gradient of the last sample",
        ),
        (
            _samples(
                _ONE,
                "of = lambda a, b: gradient(lambda p: -loss(p, a, b), params)",
                "return vmap(of)(x, y)",
            ),
            "signs are turned",
        ),
        (
            _samples(
                _ONE,
                "of = lambda a, b: gradient(lambda p: loss(p, a, b), params)",
                "model.eval()",
                "return vmap(of)(x, y)",
            ),
            "is in eval mode now",
        ),
        (
            _samples(
                "x -= x.mean(0)",
                _ONE,
                "of = lambda a, b: gradient(lambda p: loss(p, a, b), params)",
                "return vmap(of)(x, y)",
            ),
            "`params` or `x` has changed",
        ),
    ],
    "stale": [
        (_stale(4, 2), "swapped"),
        (_stale(3, 5), "count from 1"),
        (_stale(1, 3), "before the bad ones"),
        (_stale(3, 4), "only starts from a w"),
        (_stale(2, 1), "`added_up` is not 1"),
        ("answer = 2\n", "the dict with the keys"),
    ],
    "evaluate": [
        (_evaluate("return call(model, params, x, buffers=stats)[0]"), "in train mode"),
        (
            _evaluate(
                "model.eval()",
                "return call(model, params, x, buffers=stats)[0]",
            ),
            "still in eval mode",
        ),
        (
            _evaluate(
                "model.eval()",
                "outputs = call(model, params, x, buffers=stats)[0]",
                "model.train()",
                "return outputs",
            ),
            "also switched on the dropout",
        ),
        (
            _evaluate(
                "twin = copy.deepcopy(model).eval()",
                "return call(twin, params, x, buffers=stats)",
            ),
            "Return the output alone",
        ),
        (
            _evaluate("return call(copy.deepcopy(model).eval(), params, x)"),
            "Pass `buffers=stats`",
        ),
        (
            _evaluate("return copy.deepcopy(model).eval()(x).detach()"),
            "the model's own numbers",
        ),
        (
            _evaluate(
                "explicit.store(model, params, stats)",
                "return call(model, params, x)",
            ),
            "The model's own `0.weight` has changed",
        ),
        (
            _evaluate(
                "parts = [model, *model.children()]",
                "modes = [part.training for part in parts]",
                "outputs = call(model.eval(), params, x, buffers=stats)[0]",
                "for part, mode in zip(parts, modes):",
                "    part.training = mode",
                "return outputs",
            ),
            "`children()` to the first level",
        ),
        (
            _evaluate(
                "twin = copy.deepcopy(model)",
                "for part in twin.modules():",
                "    if isinstance(part, nn.BatchNorm1d):",
                "        part.eval()",
                "return call(twin, params, x, buffers=stats)[0]",
            ),
            "Is each module in eval mode, at any depth?",
        ),
        (
            _evaluate(
                "torch.manual_seed(0)",
                "twin = copy.deepcopy(model).eval()",
                "return call(twin, params, x, buffers=stats)[0]",
            ),
            "global generator has changed",
        ),
        (
            _evaluate(
                "x -= x.mean(0)",
                "twin = copy.deepcopy(model).eval()",
                "return call(twin, params, x, buffers=stats)[0]",
            ),
            "The inputs `x` have changed",
        ),
        (
            _evaluate(
                "twin = copy.deepcopy(model).eval()",
                "return call(twin, params, x, buffers=stats)[0].double()",
            ),
            "returned is torch.float64",
        ),
    ],
    "fit": [
        ("def fit(*given):\n    return ...\n", "still a `...`"),
        (
            _fit("return state, params, log", "return params, state, log"),
            "The order is",
        ),
        (_fit("return state, params, log", "return params, log"), "a tuple of 2"),
        (_fit("state, params = update", "state, new = update"), "keep them"),
        (_fit("state, params = update", "_, params = update"), "velocity is lost"),
        (
            _fit("grads)\n        model.eval()", "grads)\n            break\n"),
            "Only the first batch was used",
        ),
        (
            _fit(
                _STEP, "            state2, new = update(state, params, grads)\n"
            ).replace("return state, params, log", "return state2, new, log"),
            "Each batch starts from the first parameters",
        ),
        (
            _fit(_STEP, "            explicit.update_(state, params, grads)\n"),
            "changed in place",
        ),
        (
            _fit("        model.eval()", "        explicit.store(model, params)"),
            "The model's own `0.weight` has changed",
        ),
        (_fit("call(model, p, a)", "model(a)"), "uses none of the parameters"),
        (_fit("value, grads = ", "grads, value = "), "gives the value first"),
        (
            _fit(
                _LOG + _SKIP + _STEP,
                _STEP + "            losses.append(loss(params))\n",
            ),
            "the value of each batch before its step",
        ),
        (
            _fit('"losses": losses', '"losses": sum(losses) / len(losses)'),
            "`losses` is float; wanted a list",
        ),
        (
            _fit("log.append(" + _ENTRY + ")", "log = [" + _ENTRY + "]"),
            "is `log` made again in each epoch?",
        ),
        (
            _fit("call(model, params, test[0])", "model(test[0])"),
            "model's own parameters",
        ),
        (_fit("right.double().mean()", "100 * right.double().mean()"), "in percent"),
        (_fit("right.double().mean()", "right.sum()"), "the number of right answers"),
        (
            _fit("test[0]).argmax(dim=1) == test[1]", "a).argmax(dim=1) == b"),
            "wanted 0.25, the share of the test samples",
        ),
        (
            _FIT.replace("        losses = []\n", "").replace(
                "    log = []\n", "    log, losses = [], []\n"
            ),
            "Begin each epoch with an empty list",
        ),
        (
            _fit(
                "        losses = []\n",
                "        losses = []\n        state = setup(Momentum(0.1), params)\n",
            ),
            "The velocity starts at zero in each epoch",
        ),
        (
            _fit(
                "    log = []\n", "    log, state = [], setup(Momentum(0.1), params)\n"
            ),
            "Use the `state` that comes in",
        ),
        (
            _fit("    return state", "    batches.clear()\n    return state"),
            "The list `batches` has lost entries",
        ),
        (_fit(_SKIP, ""), "stopped with an error"),
        (_fit("continue", "break"), "no batch came after it"),
        (_fit(_LOG + _SKIP, _SKIP + _LOG), "no entry for a batch that was skipped"),
        (
            _fit("not math.isfinite(value)", "math.isnan(value)"),
            "infinite loss was used",
        ),
        (_fit("        model.train()\n", ""), "came in eval mode"),
        (
            _fit("        model.train()\n", "").replace(
                "    log = []\n", "    log = []\n    model.train()\n"
            ),
            "From the second epoch on you train in eval mode",
        ),
        (_fit("        model.eval()\n", ""), "measured in train mode"),
        (
            _fit('        if log[-1]["accuracy"] >= goal:\n            break\n', ""),
            "the loop goes on. `break` leaves it",
        ),
        (_fit("] >= goal", "] > goal"), "At least the goal is `>=`"),
        (
            _fit("] >= goal", "] >= goal and len(log) > 1"),
            "A goal that the first epoch",
        ),
        (
            _fit("        log.append(" + _ENTRY + ")\n", "").replace(
                'log[-1]["accuracy"] >= goal:\n            break\n',
                "right.double().mean() >= goal:\n            break\n"
                "        log.append(" + _ENTRY + ")\n",
            ),
            "that epoch is not in the log",
        ),
    ],
}
