"""Wrong answers to the exercises of lesson 06, each with a piece of its message."""


def _lines(head, *body):
    return f"def {head}:\n" + "".join(f"    {line}\n" for line in body)


def _descend(*body):
    return _lines("descend(params, grads, eta)", *body)


def _recursive(step):
    return _descend(
        "def walk(x, g):",
        "    if isinstance(x, dict):",
        "        return {k: walk(x[k], g[k]) for k in x}",
        f"    return {step}",
        "return walk(params, grads)",
    )


def _samples(*body):
    return _lines("sample_gradients(model, params, x, y)", *body)


_BATCH = "loss = lambda p: cross_entropy(call(model, p, x), y)"
_ONE = "loss = lambda p, a, b: cross_entropy(call(model, p, a[None]), b[None])"


def _stale(reused, added_up):
    return f'answer = {{"reused": {reused}, "added_up": {added_up}}}\n'


def _freeze(*body):
    return _lines("freeze_encoder(state)", *body)


def _evaluate(*body):
    return _lines("evaluate(model, params, stats, x)", *body)


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
    ],
    "stale": [
        (_stale(4, 2), "swapped"),
        (_stale(3, 5), "count from 1"),
        (_stale(1, 3), "before the bad ones"),
        (_stale(3, 4), "only starts from a w"),
        (_stale(2, 1), "`added_up` is not 1"),
        ("answer = 2\n", "the dict with the keys"),
    ],
    "freeze_encoder": [
        (
            _freeze("return explicit.freeze(state)"),
            "decoder is frozen, too; only the encoder",
        ),
        (
            _freeze('return {**state, "decoder": explicit.freeze(state["decoder"])}'),
            "That freezes the decoder",
        ),
        (
            _freeze('explicit.freeze(state["encoder"])', "return state"),
            "Nothing is frozen",
        ),
        (
            _freeze(
                'state["encoder"] = explicit.freeze(state["encoder"])', "return state"
            ),
            "wrote into the state",
        ),
        (
            _freeze(
                'return {**state, "encoder": explicit.adjust(state["encoder"], 0.0)}'
            ),
            "still coasts",
        ),
        (
            _freeze('return explicit.freeze(state["encoder"])'),
            "the branch alone",
        ),
        (
            _freeze(
                "zeros = {k: torch.zeros_like(leaf.state)",
                '         for k, leaf in state["encoder"].items()}',
                'fresh = setup(Momentum(0.1, 0.5), {"encoder": zeros})',
                'return {**state, "encoder": explicit.freeze(fresh["encoder"])}',
            ),
            "The velocity or the rule of the encoder is lost",
        ),
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
    ],
}
