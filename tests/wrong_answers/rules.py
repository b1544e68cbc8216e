"""Wrong answers to the exercises of lesson 07, each with a piece of its message."""

from tests.wrong_answers import changed, function

_nesterov = function("nesterov(v, x, g, eta, rho)")
_freeze = function("freeze_part(state, name)")


def _each(branch):
    return _freeze(f"return {{k: {branch} for k, b in state.items()}}")


_NEW = "v = rho * v - eta * g"


def _chain(*rules):
    return f"chain = Chain({', '.join(rules)})\n"


MEAN, CLIP, DECAY = (
    "rules.AccumulateGradients(2)",
    "rules.ClipGrad(1.0)",
    "WeightDecay(0.1)",
)
BALL = "Momentum(0.1, 0.5)"


def _schedule(rise, fall, done="(step - warmup) / (total - warmup)"):
    return (
        "def warm_cosine(peak, warmup, total):\n"
        "    def eta(step):\n"
        "        if step < warmup:\n"
        f"            return {rise}\n"
        f"        done = {done}\n"
        f"        return {fall}\n"
        "    return eta\n"
    )


_RISE = "peak * (step + 1) / warmup"
_FALL = "peak * (1 + math.cos(math.pi * done)) / 2"


def _accumulate(expression):
    return f"def accumulate(grads, sizes):\n    return {expression}\n"


_WEIGHTED = "sum(g * n for g, n in zip(grads, sizes))"

_CAREFUL = """\
@dataclass(frozen=True)
class Careful:
    rule: object
    warmup: int

    def init(self, x):
        return self.rule.init(x), 0

    def apply(self, state, x, g):
        memory, steps = state
        memory, dx = self.rule.apply(memory, x, g)
        if dx is None:
            return (memory, steps), None
        share = min(1, (steps + 1) / self.warmup)
        agrees = dx * g > 0
        return (memory, steps + 1), share * dx * agrees
"""


_careful = changed(_CAREFUL)

_AGREES = "        agrees = dx * g > 0\n"
_REST = "        if dx is None:\n            return (memory, steps), None\n"
_COUNT = "return (memory, steps + 1), share"

WRONG = {
    "nesterov": [
        (_nesterov(_NEW, "return v, rho * v - eta * g"), "dx has the wrong sign"),
        (_nesterov(_NEW, "return v, x + rho * v - eta * g"), "That is the new x"),
        (_nesterov("v = rho * v + eta * g", "return v, v"), "points uphill"),
        (_nesterov(_NEW, "return v, -v"), "The look ahead is missing"),
        (_nesterov(_NEW, "return v, -rho * v"), "is missing from dx"),
        (_nesterov(_NEW, "return eta * g - rho * v, v"), "in the wrong order"),
        (_nesterov(_NEW, "return eta * g - rho * v"), "wanted two things"),
        (
            _nesterov("v *= rho", "v -= eta * g", "return v, eta * g - rho * v"),
            "changed a tensor",
        ),
        (
            _nesterov("new = rho * v - eta * g", "return v, eta * g - rho * new"),
            "the old velocity, so the rule",
        ),
        (_nesterov(_NEW, "return v, None"), "dx is None; wanted a tensor."),
        (_nesterov("v = rho * v - g", "return v, g - rho * v"), "lost its eta"),
        (_nesterov(_NEW, "return v, eta * g + rho * v"), "the wrong sign in dx"),
        (_nesterov("return print(v), g"), "The new v is None; wanted a tensor."),
        (
            _nesterov("v = rho * v - 0.1 * g", "return v, 0.1 * g - rho * v"),
            "Your eta is 0.1 whatever",
        ),
        (
            _nesterov("v = 0.9 * v - eta * g", "return v, eta * g - 0.9 * v"),
            "Your rho is 0.9 whatever",
        ),
        (
            _nesterov("v = 0.5 * v - 0.1 * g", "return v, 0.1 * g - 0.5 * v"),
            "eta and rho are 0.1 and 0.5 whatever",
        ),
        (
            _nesterov(
                "v = torch.stack([rho * v[i] - eta * g[i] for i in range(len(v))])",
                "return v, eta * g - rho * v",
            ),
            "With tensors of shape () it raised TypeError",
        ),
        (
            _nesterov(
                "v, g = v.flatten(), g.flatten()", _NEW, "return v, eta * g - rho * v"
            ),
            "the numbers are right, but not their shape",
        ),
        (
            _nesterov(_NEW, "return v, (eta * g - rho * v).clamp(-1, 1)"),
            "dx: got [-1, 0.863",
        ),
        (
            _nesterov(_NEW, "return v, (eta * g - rho * v).double()"),
            "dx is of torch.float64; wanted torch.float32",
        ),
        (
            _nesterov("v = (rho * v - eta * g).float()", "return v, eta * g - rho * v"),
            "The new v is of torch.float32; wanted torch.float64",
        ),
    ],
    "in_order": [
        ("chain = [rules.ClipGrad(1.0), Momentum(0.1, 0.5)]\n", "wanted a rule"),
        (_chain(CLIP, MEAN, DECAY, BALL), "clipped before the mean"),
        (_chain(MEAN, DECAY, CLIP, BALL), "cut together with the data"),
        (_chain(MEAN, CLIP, BALL, DECAY), "comes after the momentum, so neither"),
        (_chain(MEAN, BALL, CLIP, DECAY), "cuts the step"),
        (_chain(MEAN, CLIP, "WeightDecay(0.05)", BALL), "half of what the penalty"),
        (_chain(MEAN, CLIP, DECAY, "Momentum(0.1)"), "rho is still 0.9"),
        (_chain(CLIP, DECAY, BALL), "The mean of two gradients is missing"),
        (_chain(MEAN, DECAY, BALL), "Nothing is clipped"),
        (_chain(MEAN, CLIP, BALL), "The penalty is missing"),
        (_chain(MEAN, CLIP, DECAY), "The momentum is missing"),
        (_chain(MEAN, CLIP, DECAY, "Momentum(1.0, 0.5)"), "word by word"),
        ("chain = Chain\n", "is the class Chain"),
        (_chain(MEAN, CLIP, DECAY, BALL).strip() + ",\n", "a comma stands after"),
        (_chain(MEAN, CLIP, DECAY, "Momentum(rho=0.5)"), "eta is still 0.01"),
        (_chain(MEAN, CLIP, DECAY, "Momentum(0.5, 0.1)"), "have changed places"),
        (_chain(MEAN, CLIP, DECAY, "Descent(0.1)"), "remembers nothing"),
        (_chain("rules.AccumulateGradients()", CLIP, DECAY, BALL), "of four gradients"),
        (_chain(MEAN, "rules.ClipNorm(1.0)", DECAY, BALL), "The whole array is made"),
        (_chain(MEAN, CLIP, DECAY, CLIP, BALL), "There are two clips"),
        (_chain(MEAN, CLIP, DECAY, BALL, CLIP), "x ends at [597, -2997]"),
        (_chain(MEAN, CLIP, DECAY, BALL, "rules.ClipGrad()"), "x ends at [575, -2970]"),
        (
            _chain("rules.ClipGrad(10.0)", MEAN, CLIP, DECAY, BALL),
            "x ends at [575, -2873.7]",
        ),
        (
            "class Gather:\n"
            "    first = None\n"
            "    def init(self, x):\n"
            "        return ()\n"
            "    def apply(self, state, x, g):\n"
            "        first, self.first = self.first, g\n"
            "        if first is None:\n"
            "            return state, None\n"
            "        self.first = None\n"
            "        return state, (first + g) / 2\n"
            + _chain("Gather()", CLIP, DECAY, BALL),
            "One array comes out right, two do not",
        ),
        (
            "class Cut:\n"
            "    def init(self, x):\n"
            "        return None\n"
            "    def apply(self, state, x, g):\n"
            "        return state, g.clamp_(-1, 1)\n"
            + _chain("Cut()", MEAN, DECAY, BALL),
            "You changed x or g",
        ),
    ],
    "freeze_part": [
        (
            _freeze("state[name] = freeze(state[name])", "return state"),
            "You wrote into the state that you were given",
        ),
        (_freeze("return freeze(state[name])"), "the branch alone"),
        (_freeze("return freeze(state)"), "is frozen, too; only the"),
        (
            _freeze("return {**state, name: adjust(state[name], 0.0)}"),
            "You changed the rule of",
        ),
        (_freeze("freeze(state[name])", "return {**state}"), "Nothing is frozen"),
        (_freeze("freeze(state[name])"), "returned None; wanted the whole state"),
        (
            _freeze(
                "empty = {key: torch.zeros(1) for key in state[name]}",
                "return {**state, name: freeze(setup(Momentum(0.01), empty))}",
            ),
            "The velocity or the rule of the encoder is lost",
        ),
        (_freeze("return {name: freeze(state[name])}"), "has lost decoder"),
        (_freeze("return dict(state, name=freeze(state[name]))"), "a new branch, name"),
        (
            _each("freeze(b) if k == name else thaw(b)"),
            "The decoder was frozen before, and your function thawed it",
        ),
        (
            _freeze(
                "for leaf in state[name].values():",
                "    leaf.state.zero_()",
                "return {**state, name: freeze(state[name])}",
            ),
            "You changed a velocity of the given state",
        ),
        (
            _freeze(
                "branch = state[name] | {'weight': freeze(state[name]['weight'])}",
                "return {**state, name: branch}",
            ),
            "`encoder.bias` still moves",
        ),
        (_each("freeze(b) if name in k else b"), "The encoder_2 is frozen, too"),
        (_each("freeze(b) if k in name else b"), "The code is frozen, too"),
        (
            _each("freeze(b) if k is name else b"),
            "the encoder does not rest. Take `name` as it comes, and compare it with",
        ),
        (
            _freeze(
                "key = 'encoder' if name == 'encoder' else 'decoder'",
                "return {**state, key: freeze(state[key])}",
            ),
            "With four branches the encoder_2 does not rest",
        ),
        (
            _freeze(
                "other = next(key for key in state if key != name)",
                "return {name: freeze(state[name]), other: state[other]}",
            ),
            "has lost code, decoder",
        ),
        (
            _freeze(
                "from dataclasses import replace",
                "leaves = state[name].items()",
                "branch = {key: replace(leaf, frozen=True) for key, leaf in leaves}",
                "return {**state, name: branch}",
            ),
            "`freeze` takes any branch",
        ),
        (
            "kept = {}\n"
            + _freeze(
                "return {**state, name: kept.setdefault(name, freeze(state[name]))}"
            ),
            "Keep nothing from one call to the next",
        ),
    ],
    "warm_cosine": [
        (_schedule("peak * step / warmup", _FALL), "eta = 0 and is wasted"),
        (_schedule(_RISE, _FALL, "step / total"), "starts at step 0"),
        (_schedule(_RISE, _FALL, "(step - warmup) / total"), "is stretched over"),
        (
            _schedule(
                _FALL.replace("done", "((step - warmup) / (total - warmup))"), _FALL
            ),
            "There is no warm-up",
        ),
        (_schedule(_RISE, "peak * (1 - done)"), "straight line"),
        (
            _schedule(_RISE, _FALL).replace("step < warmup", "step <= warmup"),
            "has more than the peak",
        ),
        (_schedule(_RISE, _FALL.replace("1 +", "1 -")), "eta rises from 0"),
        (_schedule(_RISE, _FALL.replace("pi", "tau")), "a whole wave"),
        (_schedule(_RISE, "peak * math.cos(math.pi * done / 2)"), "a quarter of"),
        (_schedule(_RISE, "peak * math.cos(math.pi * done)"), "becomes negative"),
        (_schedule(_RISE, "peak * (1 + math.cos(math.pi * done))"), "twice the peak"),
        (
            _schedule("(step + 1) / warmup", "(1 + math.cos(math.pi * done)) / 2"),
            "Multiply by `peak`",
        ),
        (_schedule(_RISE, "peak * (1 + math.cos(done)) / 2"), "counts in radians"),
        ("def warm_cosine(peak, warmup, total):\n    return peak\n", "returned float"),
        (_schedule(_RISE, "peak"), "step 5 has eta 0.2"),
        (_schedule("peak * (step + 1) / (warmup + 1)", _FALL), "by `warmup + 1`"),
        (
            _schedule(
                "peak * (1 - math.cos(math.pi * (step + 1) / warmup)) / 2", _FALL
            ),
            "The warm-up follows a cosine",
        ),
        (
            _schedule(_RISE, _FALL, "(step - warmup) / (total - warmup - 1)"),
            "0 one step early",
        ),
        (
            _schedule(_RISE, _FALL, "(step - warmup) / ((total - warmup) // 2 * 2)"),
            "With peak 0.5, warmup 3 and total 10: The cosine reaches 0 one step early",
        ),
        (
            _schedule(_RISE, _FALL, "(step - warmup + 1) / (total - warmup)"),
            "which still has the peak.",
        ),
        (
            _schedule(_RISE, _FALL, "(step - warmup + 1) / (total - warmup + 1)"),
            "step `warmup - 1` has it, too",
        ),
        (
            "def warm_cosine(peak, warmup, total):\n"
            "    return lambda n: peak * (1 + math.cos(math.pi * n / total)) / 2\n",
            "There is no warm-up, and the cosine starts",
        ),
        (
            _schedule(_RISE, "max(0.0, peak * math.cos(math.pi * done))"),
            "eta is 0 from the middle",
        ),
        (_schedule(_RISE, "(1 + math.cos(math.pi * done)) / 2"), "the peak is missing"),
        (_schedule(_RISE, "peak * (1 + math.cos(180 * done)) / 2"), "not 180"),
        (
            _schedule(_RISE, "peak * (1 - done * done * (3 - 2 * done))"),
            "step 5 has eta 0.1977539; wanted 0.1980785",
        ),
        (
            _schedule(_RISE, _FALL)
            .replace("def eta(step):", "calls = iter(range(10**9))\n    def eta(_):")
            .replace("        if step", "        step = next(calls)\n        if step"),
            "it counts no calls",
        ),
        (
            "def warm_cosine(peak, warmup, total):\n"
            "    def eta(step):\n"
            "        if step < warmup:\n"
            "            return torch.tensor(peak * (step + 1) / warmup)\n"
            "        done = (step - warmup) / (total - warmup)\n"
            "        return torch.tensor(peak * (1 + math.cos(math.pi * done)) / 2)\n"
            "    return eta\n",
            "which `train` refuses",
        ),
        (
            _schedule(_RISE, _FALL).replace(f"return {_FALL}", _FALL),
            "Your schedule returned None; wanted a number. Is a `return` missing?",
        ),
    ],
    "accumulate": [
        (_accumulate("sum(grads)"), "That is the sum of the pieces'"),
        (_accumulate("sum(grads) / len(grads)"), "That is the plain mean"),
        (_accumulate(_WEIGHTED), "the gradient of the summed loss"),
        (_accumulate(f"{_WEIGHTED} / len(grads)"), "divide by the number of pieces"),
        (_accumulate("sum(grads) / sum(sizes)"), "Multiply it by its size first"),
        (_accumulate("grads[-1]"), "the last piece alone"),
        (_accumulate("grads[0]"), "the first piece alone"),
        (
            "def accumulate(grads, sizes):\n"
            "    for g, n in zip(grads, sizes):\n"
            "        return g * n / sum(sizes)\n",
            "`return` stands inside of the loop",
        ),
        (
            "def accumulate(grads, sizes):\n"
            "    for g, n in zip(grads, sizes):\n"
            "        g *= n\n"
            "    return sum(grads) / sum(sizes)\n",
            "You changed a gradient",
        ),
        (
            "def accumulate(grads, sizes):\n"
            "    total, n = 0, sum(sizes)\n"
            "    while grads:\n"
            "        total = total + grads.pop() * sizes.pop()\n"
            "    return total / n\n",
            "You changed a list",
        ),
        (
            "def accumulate(grads, sizes):\n"
            "    for g, n in zip(grads, sizes):\n"
            "        total = g * n\n"
            "    return total / sum(sizes)\n",
            "The last piece is the only one",
        ),
        (_accumulate(f"{_WEIGHTED}.sum() / sum(sizes)"), "It keeps its shape"),
        (
            _accumulate(f"{_WEIGHTED}.flatten() / sum(sizes)"),
            "the numbers are right, but not their shape",
        ),
        (_accumulate(f"({_WEIGHTED} / sum(sizes)).float()"), "wanted torch.float64"),
        (
            "def accumulate(grads, sizes):\n"
            "    total = torch.zeros(2)\n"
            "    for g, n in zip(grads, sizes):\n"
            "        total += g * n\n"
            "    return total / sum(sizes)\n",
            "With vectors it runs. With tensors of shape (3, 2)",
        ),
        (
            "def accumulate(grads, sizes):\n"
            "    last = sizes[-1] / sizes[0]\n"
            "    full = len(sizes) - 1 + last\n"
            "    return (sum(grads[:-1]) + grads[-1] * last) / full\n",
            "Only the last piece has a weight of its own",
        ),
        (
            _accumulate(
                "sum(g * round(n / sum(sizes), 2) for g, n in zip(grads, sizes))"
            ),
            "With sizes [2, 4, 1] and gradients of shape (3, 2): got [-1.13",
        ),
    ],
    "careful": [
        ("Careful = Chain(rules.ClipGrad(1.0), Momentum(0.1))\n", "is Chain; wanted"),
        (_careful(("def init", "def start")), "has no `init`"),
        (_careful(("@dataclass(frozen=True)\n", "")), "is no dataclass"),
        (_careful(("(frozen=True)", "")), "has no hash"),
        (
            _careful(
                ("    rule: object", "    inner: object"),
                ("self.rule.init", "self.inner.init"),
                ("self.rule.apply", "self.inner.apply"),
            ),
            "should be the field `rule`",
        ),
        (_careful(("    warmup: int\n", "")), "`Careful(Momentum(), 4)` raised"),
        (
            _careful(("return self.rule.init(x), 0", "return self.rule.init(x)")),
            "the inner memory alone",
        ),
        (
            _careful(("return self.rule.init(x), 0", "return 0, self.rule.init(x)")),
            "`init` has the pair in the other order",
        ),
        (
            _careful(("return self.rule.init(x), 0", "return torch.zeros_like(x), 0")),
            "not the inner rule's",
        ),
        (_careful(("init(x), 0", "init(x), 1")), "the count is 1; wanted 0"),
        (_careful(("/ self.warmup", "/ 4")), "the warm-up takes 4 steps"),
        (
            _careful(("dx * g > 0", "(dx * g > 0) & (x.abs() >= 1)")),
            "In Chain(WeightDecay(0.1), Careful(...), ClipGrad(0.1))",
        ),
        (
            _careful(
                ("dx = self.rule.apply", "dx = Careful.kept.apply"),
                (
                    "return self.rule",
                    "Careful.kept = self.rule\n        return self.rule",
                ),
            ),
            "the step is not that of the new eta",
        ),
        (
            _careful(
                (_COUNT, "return memory, steps + 1, share"),
            ),
            "The state is *one* pair",
        ),
        (
            _careful(
                (_COUNT + " * dx * agrees", "return share * dx * agrees, (memory, 1)")
            ),
            "the state first, then dx",
        ),
        (
            _careful((_COUNT, "return memory, share")),
            "as `init` gives it",
        ),
        (_careful((" * dx * agrees", " * dx")), "Nothing rests"),
        (_careful(("dx * g > 0", "dx * g < 0")), "The wrong elements rest"),
        (_careful(("dx * g > 0", "(dx * g).sum() > 0")), "The whole array rests"),
        (_careful(("dx * g > 0", "dx * g >= 0")), "the gradient 0 still moves."),
        (_careful(("dx * g > 0", "(dx > 0) == (g > 0)")), "if its dx is negative"),
        (
            _careful(
                (
                    "    rule: object\n    warmup: int\n",
                    "    warmup: int\n    rule: object\n",
                )
            ),
            "in this order",
        ),
        (
            _careful((_AGREES, "        dx[dx * g <= 0] = 0\n        agrees = 1\n")),
            "has been masked, too",
        ),
        (
            _careful((_AGREES, "        dx *= share * (dx * g > 0)\n")).replace(
                "share * dx * agrees", "dx"
            ),
            "has been masked and scaled",
        ),
        (
            _careful(
                (
                    "        memory, dx =",
                    "        g = g * min(1, (steps + 1) / 4)\n        memory, dx =",
                ),
                ("share * dx", "dx"),
            ),
            "The gradient is scaled",
        ),
        (
            _careful(("        memory, dx =", "        _, dx =")),
            "starts at its first memory",
        ),
        (_careful(("share * dx", "dx")), "There is no warm-up"),
        (_careful(("(steps + 1) / self", "steps / self")), "scaled by 0"),
        (
            _careful((_COUNT, "return (memory, steps), share")),
            "that is returned does not grow",
        ),
        (
            _careful(
                ("min(1, (steps + 1) / self.warmup)", "(steps + 1) / self.warmup")
            ),
            "go on growing",
        ),
        (_careful(("share * dx", "x - share * dx")), "That is the new x"),
        (
            _careful(("(memory, steps + 1)", "(memory, steps + bool(agrees.any()))")),
            "is a step, too: count it",
        ),
        (
            _careful(
                (_AGREES, _AGREES + _REST.replace("dx is None", "not agrees.any()"))
            ),
            "dx is None; wanted a tensor of zeros",
        ),
        (
            _careful(("(memory, steps + 1)", "(memory, (steps + 1) % 100)")),
            "One step after ten thousand: the count is 1;",
        ),
        (
            _careful(("share * dx * agrees", "share * dx.double() * agrees")),
            "dx is of torch.float64; wanted torch.float32",
        ),
        (
            _careful(("share * dx * agrees", "share * dx.float() * agrees")),
            "dx is of torch.float32; wanted torch.float64",
        ),
        (
            _careful(
                ("share * dx * agrees", "share * dx * agrees / agrees.float().mean()")
            ),
            "lengthened, as in the paper",
        ),
        (
            _careful(("    warmup: int\n", "    warmup: int\n    seen = {}\n"))
            .replace("min(1, (steps", "min(1, (self.seen.setdefault('n', 0)")
            .replace(_AGREES, _AGREES + "        self.seen['n'] += 1\n"),
            "something is remembered outside of it",
        ),
        (_careful((_REST, "")), "The inner rule gave no step, None, and your code"),
        (
            _careful((_REST, "        if dx is None:\n            dx = 0 * g\n")),
            "you made one of it",
        ),
        (
            _careful(
                ("return (memory, steps), None", "return (memory, steps + 1), None")
            ),
            "and you counted one",
        ),
        (
            _careful(("return (memory, steps), None", "return state, None")),
            "return its new memory with the None",
        ),
        (
            _careful(
                (
                    "        memory, steps = state\n",
                    "        memory, self.steps = state\n",
                )
            ),
            "Your rule wrote to itself",
        ),
    ],
}
