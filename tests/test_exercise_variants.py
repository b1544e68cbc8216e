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
