"""Answers in other words than the stored solutions: right ones pass.

A few wrong ones stand here because their words are those of another wrong answer, and
the lists in `wrong_answers` have each message once.
"""

import importlib

import pytest

from tests.test_exercises import Desk, notebook_of

RIGHT = {
    "adversaries.remembers": (
        "class Memory(BEGANLoss):\n"
        "    def __init__(self, k):\n"
        "        super().__init__(k=k)\n"
        "    def update_(self, step):\n"
        "        self.k = torch.clip(self.k + step.item(), 0, 1)\n"
    ),
    "adversaries.balance": (
        "import numpy as np\n"
        "def balance(k, real, generated, gamma, lambda_k):\n"
        "    ahead = gamma * real.item() - generated.item()\n"
        "    new = np.clip(k.item() + lambda_k * ahead, 0, 1)\n"
        "    return [real - k * generated, new, real.item() + abs(ahead)]\n"
    ),
    "adversaries.began_step": (
        "def began_step(loss, G, D, optimizers, images, z):\n"
        "    for optimizer in optimizers:\n"
        "        optimizer.zero_grad()\n"
        "    real, made = gradients_(loss, G, D, images, z)\n"
        "    for optimizer in optimizers:\n"
        "        optimizer.step()\n"
        "    loss.update_(real, made)\n"
        "    return real.item(), made.numpy()[()]\n"
    ),
    "adversaries.worse_side": (
        "def worse_side(model, x, step):\n"
        "    chosen = []\n"
        "    for image, s in zip(x.split(1), step.split(1)):\n"
        "        p = model(image).softmax(1)\n"
        "        kl = lambda q: float((p * (p / q.softmax(1)).log()).sum().detach())\n"
        "        chosen.append(max(s, -s, key=lambda r: kl(model(image + r))))\n"
        "    return torch.cat(chosen)\n"
    ),
    "adversaries.vat_term": (
        "def vat_term(model, x, d, eps):\n"
        "    with torch.no_grad():\n"
        "        p = model(x).softmax(1)\n"
        "    q = model(x + eps * d).log_softmax(1)\n"
        "    return nn.functional.kl_div(q, p, reduction='batchmean')\n"
    ),
    "adversaries.vat_loss": (
        "def vat_loss(model, x, d, eps, xi, iterations):\n"
        "    target, rows = model(x).detach(), []\n"
        "    for one, v, p in zip(x, d, target):\n"
        "        v = v / v.norm()\n"
        "        for _ in range(iterations):\n"
        "            near = (one + xi * v).requires_grad_()\n"
        "            kl = kl_from_logits(p[None], model(near[None])).sum()\n"
        "            (v,) = torch.autograd.grad(kl, near)\n"
        "            v = v / v.norm()\n"
        "        rows.append(v)\n"
        "    moved = model(x + eps * torch.stack(rows))\n"
        "    return sum(kl_from_logits(target, moved)) / len(x)\n"
    ),
    "rso_speed.decide": (
        "import numpy as np\n"
        "def decide(shares):\n"
        "    totals = np.array([sums for sums, _ in shares]).sum(0)\n"
        "    return np.array([0, 1, -1])[np.argmin(totals)]\n"
    ),
    "rso_speed.seconds": (
        "import numpy as np\n"
        "def prefix_seconds(costs, weights, batch, rate):\n"
        "    behind = np.cumsum(costs[::-1])[::-1]\n"
        "    return torch.tensor(3.0 * batch * np.dot(behind, weights) / rate)\n"
    ),
    "rso_speed.mend": (
        "def mend(x, a, z, second, o, i, by):\n"
        "    old = torch.clamp(a[:, o], min=0)\n"
        "    a[:, o].add_(x[:, i], alpha=by)\n"
        "    z.addr_(torch.clamp(a[:, o], min=0) - old, second[:, o])\n"
    ),
    "rso_speed.statistics": (
        "def normalize(x, candidates):\n"
        "    norm = nn.BatchNorm1d(x.shape[1], affine=False, dtype=x.dtype)\n"
        "    return torch.cat([norm(part) for part in x.chunk(candidates)])\n"
    ),
    "rso_speed.fold": (
        "def fold(weight, size):\n"
        "    outputs, inputs, height, width = weight.shape\n"
        "    last = size - 1\n"
        "    grown = torch.zeros(outputs, inputs, height + last, width + last)\n"
        "    for y in range(size):\n"
        "        for x in range(size):\n"
        "            grown[:, :, y : y + height, x : x + width] += weight\n"
        "    return grown / (size * size)\n"
    ),
    "rso_speed.one_channel": (
        "class OneChannel:\n"
        "    def __init__(self, x, first, second):\n"
        "        self.kernel = second.weight.double()\n"
        "        self.planes = unfold(x, 3, padding=1).transpose(0, 1)\n"
        "        self.hidden = first(x).transpose(0, 1).contiguous()\n"
        "        self.out = second(self.hidden.relu().transpose(0, 1))\n"
        "        self.inputs = x.shape[1]\n"
        "    def parts(self, o, i, row, column, by):\n"
        "        plane = self.planes[9 * i + 3 * row + column]\n"
        "        new = self.hidden[o] + by * plane.view(self.hidden[o].shape)\n"
        "        moved = torch.clamp(new, min=0) - torch.clamp(self.hidden[o], min=0)\n"
        "        part = self.kernel[:, [o]]\n"
        "        return new, conv2d(moved.unsqueeze(1), part, None, 1, 1)\n"
        "    def look(self, o, i, row, column, by):\n"
        "        return self.parts(o, i, row, column, by)[1] + self.out\n"
        "    def accept(self, o, i, row, column, by):\n"
        "        self.hidden[o], spread = self.parts(o, i, row, column, by)\n"
        "        self.out += spread\n"
    ),
    "rso.passes": (
        "import numpy as np\n"
        "def forward_passes(model, cycles):\n"
        "    trained = [p for p in model.parameters() if p.requires_grad]\n"
        "    return 3 * cycles * np.sum([p.numel() for p in trained])\n"
    ),
    "rso.best": (
        "def best(loss, w, dw):\n"
        "    tries = torch.tensor([w, w + dw, w - dw])\n"
        "    return tries[torch.tensor([loss(t) for t in tries]).argmin()]\n"
    ),
    "rso.cycle": (
        "import numpy as np\n"
        "def run_cycle(model, sigmas, draw, take, loss):\n"
        "    for d in range(len(model) - 1, -1, -1):\n"
        "        if type(model[d]) not in (nn.Linear, nn.Conv2d):\n"
        "            continue\n"
        "        memory = model[d].weight.detach().numpy()\n"
        "        places = list(np.ndindex(*memory.shape))\n"
        "        dws = [draw(sigmas[d]) for _ in places]\n"
        "        batches = [take() for _ in places]\n"
        "        for place, dw, (x, y) in zip(places, dws, batches):\n"
        "            w, losses = memory[place], {}\n"
        "            for candidate in (w - dw, w + dw, w):\n"
        "                memory[place] = candidate\n"
        "                losses[candidate] = loss(model(x), y).item()\n"
        "            memory[place] = min((w, w + dw, w - dw), key=losses.get)\n"
    ),
    "rules.warm_cosine": (
        "import numpy as np\n"
        "def warm_cosine(peak, warmup, total):\n"
        "    up = peak * np.arange(1, warmup + 1) / warmup\n"
        "    done = np.linspace(0, 1, total - warmup + 1)\n"
        "    down = peak * (1 + np.cos(np.pi * done)) / 2\n"
        "    return np.concatenate([up, down]).astype(np.float32).__getitem__\n"
    ),
    "keras_models.same_padding": (
        "import numpy as np\n"
        "def same_padding(size, kernel, stride):\n"
        "    windows = np.int64(np.ceil(size / stride))\n"
        "    missing = np.maximum((windows - 1) * stride + kernel - size, 0)\n"
        "    return missing // 2, missing - missing // 2\n"
    ),
    "rso.anneal": (
        "from fractions import Fraction\n"
        "def anneal(sigma, cycle, cycles, final):\n"
        "    done = Fraction(cycle, max(cycles - 1, 1))\n"
        "    return Fraction(sigma) * (1 - (1 - Fraction(final)) * done)\n"
    ),
    "closures.live": (
        "def make_total(model, coefficients):\n"
        "    pairs = [(model.get_submodule(n), c) for n, c in coefficients.items()]\n"
        "    def total():\n"
        "        norms = [(m.weight.float().norm(), c) for m, c in pairs]\n"
        "        return sum(c * norm**2 for norm, c in norms) * (1 + 1e-8)\n"
        "    return total\n"
    ),
    "losses.untie": (
        "import pickle\n"
        "def untie(model):\n"
        "    new = copy.deepcopy(model)\n"
        "    for i, layer in enumerate(list(new)):\n"
        "        new[i] = pickle.loads(pickle.dumps(layer))\n"
        "    return new\n"
    ),
    "losses.twins": (
        "class Twins(nn.Module):\n"
        "    def __init__(self, encoder):\n"
        "        super().__init__()\n"
        "        self.shared = models.Shared(encoder)\n"
        "    def forward(self, first, second):\n"
        "        return torch.einsum('bf,bf->b', *self.shared(first, second))\n"
    ),
    "losses.center": (
        "import numpy as np\n"
        "def center(x):\n"
        "    return torch.from_numpy(np.stack([a - a.mean() for a in x.numpy()]))\n"
    ),
    "losses.weighted": (
        "def weighted(losses, weights):\n"
        "    total = 0\n"
        "    for row, weight in zip(losses.double(), weights.tolist()):\n"
        "        total = total + weight * row.sum()\n"
        "    return total / losses.numel()\n"
    ),
    "losses.masked": (
        "def masked(losses, counts):\n"
        "    number = int(counts.sum())\n"
        "    return losses[counts].sum() / number if number else 0\n"
    ),
    "losses.two_heads": (
        "class TwoHeads(nn.Module):\n"
        "    def __init__(self, encoder, digit, letters):\n"
        "        super().__init__()\n"
        "        self.body = encoder\n"
        "        self.heads = nn.ModuleList([digit, letters])\n"
        "    def forward(self, x):\n"
        "        code = self.body(x)\n"
        "        scores, letters = (head(code) for head in self.heads)\n"
        "        return [scores, torch.stack(letters.split(27, dim=1), dim=1)]\n"
        "    def loss(self, outputs, digits, names):\n"
        "        scores, letters = outputs\n"
        "        n = max(int((names != 0).sum()), 1)\n"
        "        options = {'ignore_index': 0, 'reduction': 'sum'}\n"
        "        flat = letters.flatten(0, 1), names.flatten()\n"
        "        add_loss('names', cross_entropy(*flat, **options) / n)\n"
        "        known = digits != -1\n"
        "        if not known.any():\n"
        "            return scores.sum() * 0\n"
        "        return cross_entropy(scores[known], digits[known])\n"
    ),
    "regularization.shrink": (
        "def shrink(w, by):\n"
        "    sizes = [max(abs(v) - by, 0.0) for v in w.tolist()]\n"
        "    return torch.tensor(sizes) * w.sign()\n"
    ),
    "regularization.same_as_penalty": (
        "import numpy as np\n"
        "def make_optimizer(model, l2, lr):\n"
        "    groups = [\n"
        "        {'params': [p], 'weight_decay': np.float64(2 * l2) * (p.ndim > 1)}\n"
        "        for p in model.parameters()\n"
        "    ]\n"
        "    return SGD(groups, lr, foreach=True)\n"
    ),
    "regularization.count_once": (
        "def count_once(model, l2):\n"
        "    total, seen = 0, []\n"
        "    for m in model.modules():\n"
        "        if type(m) is nn.Linear and not any(m.weight is w for w in seen):\n"
        "            seen.append(m.weight)\n"
        "            total = total + l2 * m.weight.norm() ** 2\n"
        "    return total\n"
    ),
    "regularization.train": (
        "import numpy as np\n"
        "def train(model, batches, l1, l2, lr, epochs):\n"
        "    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]\n"
        "    weights = {id(m.weight): m.weight for m in layers}.values()\n"
        "    parameters = list(model.parameters())\n"
        "    found = np.zeros((epochs, len(batches)))\n"
        "    for e in range(epochs):\n"
        "        for b, (x, y) in enumerate(batches):\n"
        "            plain = nn.CrossEntropyLoss()(model(x), y)\n"
        "            total = plain + l2 * sum((w**2).sum() for w in weights)\n"
        "            slopes = torch.autograd.grad(total, parameters)\n"
        "            with torch.no_grad():\n"
        "                for p, slope in zip(parameters, slopes):\n"
        "                    p -= lr * slope\n"
        "                for w in weights:\n"
        "                    w -= w.clamp(-lr * l1, lr * l1)\n"
        "            found[e, b] = plain.item()\n"
        "    return found.mean(axis=1)\n"
    ),
}

EXPLICIT = {
    "explicit.fit": (
        "def fit(model, params, state, batches, test, epochs, goal):\n"
        "    log, judging = [], copy.deepcopy(model).eval()\n"
        "    training = copy.deepcopy(model).train()\n"
        "    while len(log) < epochs:\n"
        "        losses = []\n"
        "        for batch in batches:\n"
        "            def of(p):\n"
        "                return cross_entropy(call(training, p, batch[0]), batch[1])\n"
        "            losses += [of(params).detach()]\n"
        "            if losses[-1].isfinite():\n"
        "                grads = gradient(of, params)\n"
        "                state, params = update(state, params, grads)\n"
        "        hits = call(judging, params, test[0]).max(1).indices.eq(test[1])\n"
        "        log += [dict(accuracy=hits.float().mean(), losses=tuple(losses))]\n"
        "        if log[-1]['accuracy'] >= goal:\n"
        "            return [state, params, log]\n"
        "    return state, params, log\n"
    ),
    "explicit.descend": (
        "def descend(params, grads, eta):\n"
        "    vector, rebuild = explicit.destructure(params)\n"
        "    return rebuild(vector - eta * explicit.destructure(grads)[0])\n"
    ),
    "explicit.sample_gradients": (
        "def sample_gradients(model, params, x, y):\n"
        "    def of_one(p, one, label):\n"
        "        logits = call(model, p, one.unsqueeze(0))[0]\n"
        "        return logits.logsumexp(0) - logits.gather(0, label[None])[0]\n"
        "    of_many = vmap(torch.func.grad(of_one), in_dims=(None, 0, 0))\n"
        "    return of_many(params, x, y)\n"
    ),
    "explicit.evaluate": (
        "def evaluate(model, params, stats, x):\n"
        "    twin = copy.deepcopy(model)\n"
        "    explicit.store(twin, params, stats)\n"
        "    with torch.inference_mode():\n"
        "        return twin.train(False)(x)\n"
    ),
    "explicit.stale": (
        "import numpy as np\n"
        "answer = {'added_up': torch.tensor(4), 'reused': [np.int64(2)]}\n"
    ),
}
RIGHT |= EXPLICIT

WRONG = {
    "keras_models.same_padding": (
        "def same_padding(size, kernel, stride):\n"
        "    before = ...\n"
        "    return before, before\n",
        "There is still a `...` in your code",
    ),
    "keras_models.hard_sigmoid": (
        "def hard_sigmoid(x, version):\n"
        "    slope = 1 / 6 if int(version.split('.')[0]) == 3 else 0.2\n"
        "    return (slope * x + 0.5).clamp(0, 1)\n",
        "compare the first number, with `<` or `>=`, not its text",
    ),
    "explicit.sample_gradients": (
        "def sample_gradients(model, params, x, y):\n"
        "    if isinstance(model[0], nn.Flatten):\n"
        "        raise ValueError('no such model.')\n"
        "    return vmap(lambda a, b: gradient(lambda p: cross_entropy(\n"
        "        call(model, p, a[None]), b[None]), params))(x, y)\n",
        "your code raised: ValueError: no such model. If it gets one sample alone,",
    ),
}


@pytest.fixture(autouse=True)
def progress_of_our_own(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_PROGRESS", str(tmp_path / "progress.json"))


def verdict_on(exercise, answer):
    lesson, _, name = exercise.partition(".")
    module = importlib.import_module(f"course_lib.lessons.{lesson}")
    return Desk(notebook_of(module.NUMBER, lesson)).check(name, answer)


@pytest.mark.parametrize(("exercise", "answer"), RIGHT.items(), ids=RIGHT)
def test_a_right_answer_of_another_form_passes(exercise, answer):
    verdict = verdict_on(exercise, answer)
    assert verdict.solved, verdict.message


@pytest.mark.parametrize(
    ("exercise", "answer", "words"),
    [(name, *pair) for name, pair in WRONG.items()],
    ids=WRONG,
)
def test_a_wrong_answer_gets_the_words_of_its_kin(exercise, answer, words):
    verdict = verdict_on(exercise, answer)
    assert not verdict.solved
    assert words in verdict.message
