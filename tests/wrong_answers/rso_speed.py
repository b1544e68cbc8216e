"""Wrong answers to the exercises of lesson 09, each with a piece of its message."""


def _function(head, *lines):
    return f"def {head}:\n" + "".join(f"    {line}\n" for line in lines)


def _seconds(expression):
    return _function(
        "least_seconds(costs, weights, batch, rate)", f"return {expression}"
    )


def _sweeps(term, factor="3 * batch / rate"):
    return _seconds(f"{factor} * sum({term} for d, n in enumerate(weights))")


def _mend(*lines):
    return _function("mend(x, a, z, second, o, i, by)", *lines)


_NEW = "new = a[:, o] + by * x[:, i]"
_CHANGE = "change = new.relu() - a[:, o].relu()"
_STORE = "a[:, o] = new"


def _normalize(*lines):
    return _function("normalize(x, candidates)", *lines)


_APART = "apart = x.view(candidates, -1, x.shape[1])"
_MEAN = "mean = apart.mean(1, keepdim=True)"
_VARIANCE = "variance = apart.var(1, keepdim=True, correction=0)"
_DIVIDE = "return ((apart - mean) / (variance + 1e-5).sqrt()).view(x.shape)"


def _fold(expression, corners="[(0, 0), (0, 1), (1, 0), (1, 1)]"):
    shifted = "[pad(weight, (x, 1 - x, y, 1 - y)) for y, x in corners]"
    lines = f"corners = {corners}", f"shifted = {shifted}", f"return {expression}"
    return _function("fold(weight)", *lines)


def _decide(*lines):
    return _function("decide(shares)", *lines)


_SUMS = "sums = [s for s, _ in shares]"
_TOTALS = "totals = [sum(three) for three in zip(*sums)]"

WRONG = {
    "seconds": [
        (_seconds("..."), "There is still a `...`"),
        (_sweeps("n * sum(costs[d:])", "batch / rate"), "three candidates are missing"),
        (_sweeps("n * sum(costs[d:])", "2 * batch / rate"), "You count two"),
        (_sweeps("n * sum(costs[d:])", "3 / rate"), "The batch is missing"),
        (_sweeps("n * sum(costs[d:])", "3 * batch * rate"), "multiply by the rate"),
        (_sweeps("n * sum(costs)"), "You run all layers"),
        (_sweeps("n * sum(costs[:d + 1])"), "*before* the swept one"),
        (_sweeps("n * sum(costs[d + 1:])"), "swept layer itself is missing"),
        (_sweeps("sum(costs[d:])"), "You visit each layer once"),
        (_seconds("sum(costs) / rate"), "For costs [100, 20, 3]"),
        (
            "def least_seconds(costs, weights, batch, rate):\n"
            "    work = sum(n * 3 * sum(costs[d:]) for d, n in enumerate(weights))\n"
            "    return work * batch // rate\n",
            "got 52, wanted 52.5",
        ),
    ],
    "mend": [
        (_mend("..."), "`a` has not changed"),
        (_mend(_NEW, _STORE), "so it is stale"),
        (_mend("a += by * x[:, i:i + 1]"), "Columns [0, 1, 2, 3]"),
        (_mend("a[:, i] += by * x[:, o]"), "Columns [2]"),
        (_mend("a[:, o] += by * x[:, o]"), "but not by `by * x[:, i]`"),
        (
            _mend(_NEW, "z += (new - a[:, o])[:, None] * second[:, o]", _STORE),
            "in front of the ReLU",
        ),
        (
            _mend(_NEW, "z += (new - a[:, o]).relu()[:, None] * second[:, o]", _STORE),
            "You take the ReLU of the change",
        ),
        (
            _mend(_NEW, _CHANGE, "z += change[:, None] * second[o]", _STORE),
            "You use row o",
        ),
        (
            _mend(_NEW, _CHANGE, "z -= change[:, None] * second[:, o]", _STORE),
            "to the other side",
        ),
        (
            _mend(_NEW, "z += new.relu()[:, None] * second[:, o]", _STORE),
            "leave the old part",
        ),
        (_mend("x[:, i] += by", "a[:, o] += by"), "You changed `x`"),
        (
            "def mend(x, a, z, second, o, i, by):\n"
            "    new = a[:, o] + by * x[:, i]\n"
            "    a[:, o] = new\n"
            "    z[:] = a.relu() @ second.T\n",
            "You compute all of `z` again",
        ),
    ],
    "statistics": [
        (_normalize("return ..."), "There is still a"),
        (
            _normalize(
                "variance = x.var(0, correction=0)",
                "return (x - x.mean(0)) / (variance + 1e-5).sqrt()",
            ),
            "share their statistics",
        ),
        (
            _normalize(_APART, _MEAN, "variance = apart.var(1, keepdim=True)", _DIVIDE),
            "divides by n - 1",
        ),
        (
            _normalize(_APART, _MEAN, "variance = x.var(0, correction=0)", _DIVIDE),
            "the variance is still shared",
        ),
        (
            _normalize(_APART, "mean = x.mean(0)", _VARIANCE, _DIVIDE),
            "the mean is still shared",
        ),
        (
            _normalize(
                "apart = x.view(-1, candidates, x.shape[1])",
                "mean = apart.mean(0, keepdim=True)",
                "variance = apart.var(0, keepdim=True, correction=0)",
                _DIVIDE,
            ),
            "every third row",
        ),
        (
            _normalize("return nn.functional.layer_norm(x, x.shape[1:])"),
            "as layer norm does",
        ),
        (_normalize(_APART, _MEAN, _VARIANCE, _DIVIDE[:-14]), "You returned (3, 4, 4)"),
        (
            _normalize(_APART, _MEAN, "return (apart - mean).view(x.shape)"),
            "only subtract the mean",
        ),
        (
            _normalize(
                _APART,
                _MEAN,
                _VARIANCE,
                "return ((apart - mean) / variance.sqrt()).view(x.shape)",
            ),
            "The 1e-5 is missing",
        ),
    ],
    "fold": [
        (_function("fold(weight)", "return ..."), "There is still a"),
        (_fold("sum(shifted)"), "A mean divides by 4"),
        (_fold("sum(shifted) / 2"), "You divide by 2"),
        (_fold("sum(shifted) / 2", "[(0, 0), (1, 1)]"), "the diagonal"),
        (_fold("sum(shifted) / 2", "[(0, 0), (0, 1)]"), "along the rows only"),
        (_fold("sum(shifted) / 2", "[(0, 0), (1, 0)]"), "along the columns only"),
        (_fold("shifted[0]"), "take no mean"),
        (_fold("weight / 4"), "the old size"),
        (_fold("avg_pool2d(weight, 2)"), "(4, 2, 1, 1)"),
        (_fold("sum(shifted).flip(2, 3) / 4"), "upside down"),
    ],
    "decide": [
        (_decide("return ..."), "There is still a"),
        (_decide(_SUMS, _TOTALS, "return totals.index(min(totals))"), "a position"),
        (
            _decide("sums, _ = shares[0]", "return (0, 1, -1)[sums.index(min(sums))]"),
            "Only one process decides",
        ),
        (
            _decide("sums, _ = shares[-1]", "return (0, 1, -1)[sums.index(min(sums))]"),
            "The last process decides alone",
        ),
        (
            _decide(
                _SUMS,
                "own = [s.index(min(s)) for s in sums]",
                "best = max(reversed(own), key=own.count)",
                "return (0, 1, -1)[best]",
            ),
            "You take a vote",
        ),
        (
            _decide(
                "means = [[v / n for v in s] for s, n in shares]",
                "totals = [sum(three) for three in zip(*means)]",
                "return (0, 1, -1)[totals.index(min(totals))]",
            ),
            "shares of 200 and 10",
        ),
        (
            _decide(
                _SUMS,
                _TOTALS,
                "best = min((t, -k) for k, t in enumerate(totals))[1]",
                "return (0, 1, -1)[-best]",
            ),
            "At a tie",
        ),
        (
            _decide(_SUMS, "return [sum(three) for three in zip(*sums)]"),
            "returned list",
        ),
        (
            "def decide(shares):\n"
            "    totals = [sum(s[k]*n for s, n in shares) for k in range(3)]\n"
            "    return (0, 1, -1)[totals.index(min(totals))]\n",
            "of 200 and of 10 samples by",
        ),
    ],
}
