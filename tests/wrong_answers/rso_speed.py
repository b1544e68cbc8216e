"""Wrong answers to the exercises of lesson 09, each with a piece of its message."""

from tests.wrong_answers import function

_time = function("prefix_seconds(costs, weights, batch, rate)")
_mend = function("mend(x, a, z, second, o, i, by)")
_normalize = function("normalize(x, candidates)")
_decide = function("decide(shares)")
_kernel = function("fold(weight, size)")


def _seconds(expression):
    return _time(f"return {expression}")


def _sweeps(term, factor="3 * batch / rate"):
    return _seconds(f"{factor} * sum({term} for d, n in enumerate(weights))")


_NEW = "new = a[:, o] + by * x[:, i]"
_CHANGE = "change = new.relu() - a[:, o].relu()"
_STORE = "a[:, o] = new"


_APART = "apart = x.view(candidates, -1, x.shape[1])"
_MEAN = "mean = apart.mean(1, keepdim=True)"
_VARIANCE = "variance = apart.var(1, keepdim=True, correction=0)"
_DIVIDE = "return ((apart - mean) / (variance + 1e-5).sqrt()).view(x.shape)"


_PLACES = "[(y, x) for y in range(size) for x in range(size)]"


def _fold(expression, places=_PLACES):
    shifts = "[(x, size - 1 - x, y, size - 1 - y) for y, x in places]"
    shifted = f"[pad(weight, shift) for shift in {shifts}]"
    lines = f"places = {places}", f"shifted = {shifted}", f"return {expression}"
    return _kernel(*lines)


_SUMS = "sums = [s for s, _ in shares]"
_TOTALS = "totals = [sum(three) for three in zip(*sums)]"

_INIT = (
    "def __init__(self, x, first, second):",
    "    self.padded, self.second = pad(x, (1, 1, 1, 1)), second",
    "    self.x, self.first = x, first",
    "    self.own = first(x)",
    "    self.after = second(self.own.relu())",
    "",
)
_PLANE = "self.padded[:, i, row : row + height, column : column + width]"
_SEND = "new.relu() - self.own[:, o].relu()"
_PART = "self.second.weight[:, o : o + 1]"


def _channel(
    *,
    init=_INIT,
    plane=_PLANE,
    send=_SEND,
    part=_PART,
    look="self.after + spread",
    accept=("self.own[:, o] = new", "self.after = self.after + spread"),
):
    """Return the class, of which one place may be wrong."""
    lines = [
        *init,
        "def change(self, o, i, row, column, by):",
        "    height, width = self.own.shape[2:]",
        f"    new = self.own[:, o] + by * {plane}",
        f"    change = {send}",
        f"    return new, conv2d(change[:, None], {part}, padding=1)",
        "",
        "def look(self, o, i, row, column, by):",
        "    new, spread = self.change(o, i, row, column, by)",
        f"    return {look}",
        "",
        "def accept(self, o, i, row, column, by):",
        "    new, spread = self.change(o, i, row, column, by)",
        *(f"    {line}" for line in accept),
    ]
    return "class OneChannel:\n" + "".join(f"    {line}\n" for line in lines)


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
        (_sweeps("n * costs[d]"), "You run the swept layer alone"),
        (
            "def prefix_seconds(costs, weights, batch, rate):\n"
            "    work = sum(n * 3 * sum(costs[d:]) for d, n in enumerate(weights))\n"
            "    return work * batch // rate\n",
            "You round to whole seconds",
        ),
        (
            _time(
                "total = 0",
                "for n in weights:",
                "    total += n * sum(costs)",
                "    costs.pop(0)",
                "return 3 * batch * total / rate",
            ),
            "You changed the list `costs` or `weights`",
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
        (
            _mend(
                "new = a.clone()",
                "new[:, o] += by * x[:, i]",
                "z += (new.relu() - a.relu()) @ second.T",
                _STORE.replace("new", "new[:, o]"),
            ),
            "at the price of the whole product: 640 multiply-adds",
        ),
        (
            _mend(
                "new = a[:, 1] + by * x[:, 2]",
                "change = new.relu() - a[:, 1].relu()",
                "a[:, 1] = new",
                "z += change[:, None] * second[:, 1]",
            ),
            "and not for o = 4, i = 0",
        ),
    ],
    "statistics": [
        (_normalize("return x"), "You return x as it is"),
        (
            _normalize(
                "parts = x.split(candidates)",
                "norm = nn.BatchNorm1d(x.shape[1], affine=False, dtype=x.dtype)",
                "return torch.cat([norm(part) for part in parts])",
            ),
            "`split` takes the size of a part",
        ),
        (
            _normalize(
                "parts = x.chunk(candidates)",
                "return torch.cat([(p - p.mean(0)) / p.std(0) for p in parts])",
            ),
            "divides by n - 1, and the 1e-5 is missing",
        ),
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
        (
            _normalize(
                _APART,
                _MEAN,
                _VARIANCE,
                "return ((apart - mean) / (variance.sqrt() + 1e-5)).view(x.shape)",
            ),
            "You add 1e-5 behind the root",
        ),
        (
            _normalize(
                _APART,
                _MEAN,
                _VARIANCE,
                "return ((apart - mean) / (variance + 1e-5)).view(x.shape)",
            ),
            "You divide by the variance; wanted its root",
        ),
        (
            _normalize(
                _APART.replace("candidates, -1", "3, -1"), _MEAN, _VARIANCE, _DIVIDE
            ),
            "Is a number fixed?",
        ),
    ],
    "fold": [
        (_kernel("return ..."), "There is still a"),
        (_fold("sum(shifted)"), "A mean divides by size * size"),
        (_fold("sum(shifted) / size"), "You divide by size; a block has"),
        (_fold("sum(shifted) / 4"), "You divide by 4"),
        (
            _fold("sum(shifted) / size", "[(y, y) for y in range(size)]"),
            "the diagonal",
        ),
        (
            _fold("sum(shifted) / size", "[(0, x) for x in range(size)]"),
            "along the rows only",
        ),
        (
            _fold("sum(shifted) / size", "[(y, 0) for y in range(size)]"),
            "along the columns only",
        ),
        (_fold("shifted[0]"), "take no mean"),
        (_fold("weight / 4"), "the old size"),
        (_fold("avg_pool2d(weight, size)"), "(4, 2, 1, 1)"),
        (_fold("sum(shifted).flip(2, 3) / size**2"), "upside down"),
        (
            _kernel(
                "corners = [(0, 0), (0, 1), (1, 0), (1, 1)]",
                "return sum(pad(weight, (x, 1 - x, y, 1 - y)) for y, x in corners) / 4",
            ),
            "right for blocks of 2 x 2 alone",
        ),
        (
            _kernel(
                "grown = pad(weight, (size - 1, size - 1, size - 1, size - 1))",
                "return grown / size**2",
            ),
            "on both sides of each axis",
        ),
        (
            _kernel(
                "places = [(y, x) for y in range(size) for x in range(size)]",
                "grown = [pad(weight, (x, size - x, y, size - y)) for y, x in places]",
                "return sum(grown) / size**2",
            ),
            "grows by size; wanted size - 1",
        ),
    ],
    "decide": [
        (
            _decide(
                _SUMS,
                "worst = [max(three) for three in zip(*sums)]",
                "return (0, 1, -1)[worst.index(min(worst))]",
            ),
            "You take the largest loss",
        ),
        (
            _decide(_SUMS, "return sum((0, 1, -1)[s.index(min(s))] for s in sums)"),
            "You add decisions",
        ),
        (_decide("return ..."), "There is still a"),
        (_decide(_SUMS, _TOTALS, "return totals.index(min(totals))"), "a position"),
        (
            _decide("sums, _ = shares[0]", "return (0, 1, -1)[sums.index(min(sums))]"),
            "Only one worker decides",
        ),
        (
            _decide("sums, _ = shares[-1]", "return (0, 1, -1)[sums.index(min(sums))]"),
            "The last worker decides alone",
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
            "shares of 200 and 10 images",
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
            "of 200 and of 10 images by",
        ),
        (
            _decide(
                "a, b, c = (sum(sums[k] for sums, _ in shares) for k in range(3))",
                "if a <= min(b, c):",
                "    return 0",
                "return 1 if b < c else -1",
            ),
            "w + dw stands first",
        ),
        (
            _decide(
                "sums = [round(sum(s[k] for s, _ in shares), 2) for k in range(3)]",
                "return (0, 1, -1)[sums.index(min(sums))]",
            ),
            "Do not round them",
        ),
        (
            _decide(
                "sums = [a + b for a, b in zip(shares[0][0], shares[-1][0])]",
                "sums = sums if len(shares) > 1 else shares[0][0]",
                "return (0, 1, -1)[sums.index(min(sums))]",
            ),
            "one of them does not count",
        ),
        (
            _decide(
                "sums = [abs(sum(s[k] for s, _ in shares)) for k in range(3)]",
                "return (0, 1, -1)[sums.index(min(sums))]",
            ),
            "a sum may be negative",
        ),
        (
            _decide(
                "total = shares[0][0]",
                "for sums, _ in shares[1:]:",
                "    for k in range(3):",
                "        total[k] += sums[k]",
                "return (0, 1, -1)[total.index(min(total))]",
            ),
            "You changed the sums or the list",
        ),
    ],
    "one_channel": [
        (_channel(look="..."), "There is still a"),
        (_channel(look="spread"), "You return the change alone"),
        (_channel(look="(new, spread)"), "returned tuple; wanted a tensor"),
        (_channel(look="new"), "the shape (4, 5, 6); wanted that of"),
        (
            _channel(
                init=[line.replace("self.own.relu()", "self.own") for line in _INIT]
            ),
            "The ReLU between the convolutions is missing",
        ),
        (_channel(plane="self.x[:, i]"), "You take channel i of x as it is"),
        (
            _channel(
                plane="self.padded[:, i, column : column + height, row : row + width]"
            ),
            "exchanged row and column",
        ),
        (
            _channel(
                plane="self.padded[:, i, 2 - row : 2 - row + height, "
                "2 - column : 2 - column + width]"
            ),
            "You shift to the other side",
        ),
        (_channel(send="new - self.own[:, o]"), "the change in front of the ReLU"),
        (_channel(send="(new - self.own[:, o]).relu()"), "the ReLU of the change"),
        (_channel(send="new.relu()"), "the old one is still in `after`"),
        (
            _channel(part="self.second.weight[:, i : i + 1]"),
            "You use `second.weight[:, i]`",
        ),
        (
            _channel(part=f"{_PART}, self.second.bias"),
            "The bias of `second` is added once more",
        ),
        (
            _channel(accept=("pass",)),
            "what you remember is stale",
        ),
        (_channel(accept=("self.own[:, o] = new",)), "and not what `second` gives"),
        (
            _channel(accept=("self.after = self.after + spread",)),
            "and not the hidden channel",
        ),
        (
            _channel(look="self.after.add_(spread)"),
            "it must change nothing",
        ),
        (
            _channel(accept=("self.first.weight[o, i, row, column] += by",)),
            "`accept` changes x, `first` or `second`",
        ),
        (
            "class OneChannel:\n"
            "    def __init__(self, x, first, second):\n"
            "        self.x, self.first, self.second = x, first, second\n"
            "    def look(self, o, i, row, column, by):\n"
            "        weight = self.first.weight.clone()\n"
            "        weight[o, i, row, column] += by\n"
            "        own = conv2d(self.x, weight, self.first.bias, padding=1)\n"
            "        return self.second(own.relu())\n"
            "    def accept(self, o, i, row, column, by):\n"
            "        pass\n",
            "and computed in full again",
        ),
        (
            _channel(
                accept=(
                    "self.own = self.first(self.x)",
                    "self.after = self.second(self.own.relu())",
                )
            ),
            "`accept` makes",
        ),
        (
            _channel(
                init=(
                    *_INIT[:3],
                    "    OneChannel.own = first(x)",
                    "    OneChannel.after = second(self.own.relu())",
                    "",
                )
            ),
            "a second object changes what the first one gives",
        ),
        (
            _channel(init=(*_INIT[:-1], "    x.zero_()", "")),
            "`__init__` changes x",
        ),
        (
            _channel(look="torch.add(self.after, spread, out=self.kept)").replace(
                "self.after = second(self.own.relu())",
                "self.after = second(self.own.relu())\n"
                "        self.kept = self.after.clone()",
                1,
            ),
            "overwrites what the one before has returned",
        ),
        (
            _channel(
                look="self.__dict__.setdefault((o, i, row, column, by), "
                "self.after + spread)"
            ),
            "look(1, 2, 1, 1, -0.7) is not what a full pass gives",
        ),
        (
            "class OneChannel:\n"
            "    def __init__(self, x, first, second):\n"
            "        self.second = second\n"
            "        self.after = second(first(x).relu())\n"
            "    def look(self, o, i, row, column, by):\n"
            "        return self.after\n"
            "    def accept(self, o, i, row, column, by):\n"
            "        pass\n",
            "is not what a full pass gives",
        ),
    ],
}
