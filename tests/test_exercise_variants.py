"""Answers in other words than the stored solutions: right ones pass.

A few wrong ones stand here because their words are those of another wrong answer, and
the lists in `wrong_answers` have each message once.
"""

import importlib

import pytest

from tests.test_exercises import Desk, notebook_of

RIGHT = {
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
