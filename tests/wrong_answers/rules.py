"""Wrong answers to the exercises of lesson 07, each with a piece of its message."""


def _nesterov(*lines):
    head = "def nesterov(v, x, g, eta, rho):\n"
    return head + "".join(f"    {line}\n" for line in lines)


_NEW = "v = rho * v - eta * g"


def _chain(*rules):
    return f"chain = Chain({', '.join(rules)})\n"


MEAN, CLIP, DECAY = (
    "rules.AccumulateGradients(2)",
    "rules.ClipGrad(1.0)",
    "WeightDecay(0.1)",
)
BALL = "Momentum(0.1, 0.5)"


def _freeze(*lines):
    return "def freeze_part(state, name):\n" + "".join(f"    {x}\n" for x in lines)


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
        (_nesterov("return print(v), g"), "The new v is None; wanted a tensor."),
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
        (
            "def accumulate(grads, sizes):\n"
            "    for g, n in zip(grads, sizes):\n"
            "        g *= n\n"
            "    return sum(grads) / sum(sizes)\n",
            "You changed a gradient",
        ),
    ],
}
