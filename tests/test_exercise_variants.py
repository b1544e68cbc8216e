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
    "rso.passes": (
        "import numpy as np\n"
        "def forward_passes(model, cycles):\n"
        "    trained = [p for p in model.parameters() if p.requires_grad]\n"
        "    return 3 * cycles * np.sum([p.numel() for p in trained])\n"
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
}

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
