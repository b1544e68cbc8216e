"""Answers in other words than the stored solutions: right ones pass.

A few wrong ones stand here because their words are those of another wrong answer, and
the lists in `wrong_answers` have each message once.
"""

import importlib

import pytest

from tests.test_exercises import Desk, notebook_of

RIGHT = {
    "start_here.accuracy": (
        "import numpy as np\n"
        "def accuracy(logits, labels):\n"
        "    rows = zip(logits.tolist(), labels.tolist())\n"
        "    return np.mean([row.index(max(row)) == n for row, n in rows])\n"
    ),
    "start_here.count": "answer = torch.tensor([64 * 32 + 32 + 32 * 10 + 10.0])\n",
    "start_here.overfit": "answer = 'The test loss'\n",
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
    "adversaries.remembers as a buffer that is registered anew": (
        "class Memory(nn.Module):\n"
        "    def __init__(self, k):\n"
        "        super().__init__()\n"
        "        self.register_buffer('k', torch.tensor([float(k)]))\n"
        "    def update_(self, step):\n"
        "        moved = float(self.k) + step.item()\n"
        "        moved = 0.0 if moved < 0 else 1.0 if moved > 1 else moved\n"
        "        self.register_buffer('k', torch.tensor([moved]))\n"
    ),
    "adversaries.began_step with the discriminator switched off": (
        "def began_step(loss, G, D, optimizers, images, z):\n"
        "    mean = lambda images: absolute_error(D(images), images).mean()\n"
        "    for optimizer in optimizers:\n"
        "        optimizer.zero_grad()\n"
        "    made = G(z)\n"
        "    D.requires_grad_(False)\n"
        "    mean(made).backward()\n"
        "    D.requires_grad_(True)\n"
        "    real, generated = mean(images), mean(made.detach())\n"
        "    loss(real, generated).backward()\n"
        "    for optimizer in optimizers:\n"
        "        optimizer.step()\n"
        "    loss.update_(real, generated)\n"
        "    return real.item(), generated.item()\n"
    ),
    "adversaries.vat_term as cross-entropy less entropy": (
        "def vat_term(model, x, d, eps):\n"
        "    log_p = model(x).detach().log_softmax(1)\n"
        "    both = cross_entropy(model(x + eps * d), log_p.exp())\n"
        "    return both - cross_entropy(log_p, log_p.exp())\n"
    ),
    "adversaries.vat_loss with backward and switched weights": (
        "def vat_loss(model, x, d, eps, xi, iterations):\n"
        "    unit = lambda v: normalize(v.flatten(1)).view_as(v)\n"
        "    p, d = model(x).detach(), unit(d)\n"
        "    model.requires_grad_(False)\n"
        "    for _ in range(iterations):\n"
        "        step = (xi * d).requires_grad_()\n"
        "        kl_from_logits(p, model(x + step)).sum().backward()\n"
        "        d = unit(step.grad)\n"
        "    model.requires_grad_(True)\n"
        "    return kl_from_logits(p, model(x + eps * d)).mean()\n"
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
    "rules.careful": (
        "import numpy as np\n"
        "@dataclass(frozen=True, eq=False)\n"
        "class Careful(rules.Rule):\n"
        "    rule: object\n"
        "    warmup: float = 9.0\n"
        "    def init(self, x):\n"
        "        return [self.rule.init(x), np.int64(0)]\n"
        "    def apply(self, state, x, g):\n"
        "        memory, step = self.rule.apply(state[0], x, g)\n"
        "        if step is None:\n"
        "            return [memory, state[1]], step\n"
        "        out, count = step.clone(), state[1] + 1\n"
        "        out[(out > 0) & (g <= 0)] = 0\n"
        "        out[(out < 0) & (g >= 0)] = 0\n"
        "        out *= np.minimum(count / self.warmup, 1.0)\n"
        "        return [memory, count], out\n"
    ),
    "rules.accumulate": (
        "import numpy as np\n"
        "def accumulate(grads, sizes):\n"
        "    rows = [g.numpy() for g in grads]\n"
        "    return torch.as_tensor(np.average(rows, axis=0, weights=sizes))\n"
    ),
    "rules.freeze_part": (
        "def freeze_part(state, name):\n"
        "    return {k: freeze(b) if k == name else b for k, b in state.items()}\n"
    ),
    "rules.nesterov": (
        "def nesterov(v, x, g, eta, rho):\n"
        "    pairs = zip(v.flatten(), g.flatten())\n"
        "    new = torch.stack([rho * a - eta * b for a, b in pairs]).view_as(v)\n"
        "    return [new, x - (x + rho * new - eta * g)]\n"
    ),
    "rules.nesterov with methods": (
        "def nesterov(velocity, where, slope, eta, rho):\n"
        "    velocity = velocity.clone().mul_(rho).sub_(slope, alpha=eta)\n"
        "    return velocity, slope.mul(eta).sub(velocity, alpha=rho)\n"
    ),
    "rules.nesterov by the library": (
        "def nesterov(v, x, g, eta, rho):\n"
        "    return rules.Nesterov(eta=eta, rho=rho).apply(v, x, g)\n"
    ),
    "rules.in_order with rules of one's own": (
        "class Pair:\n"
        "    def init(self, x):\n"
        "        return []\n"
        "    def apply(self, state, x, g):\n"
        "        state = [*state, g]\n"
        "        return ([], sum(state) / 2) if len(state) == 2 else (state, None)\n"
        "class Ball:\n"
        "    def init(self, x):\n"
        "        return torch.zeros_like(x)\n"
        "    def apply(self, v, x, g):\n"
        "        v = 0.5 * v + g\n"
        "        return v, 0.1 * v\n"
        "clips = rules.ClipGrad(3), rules.ClipGrad(1)\n"
        "half = WeightDecay(0.05)\n"
        "chain = Chain(Pair(), *clips, half, half, Ball())\n"
    ),
    "rules.in_order in one rule": (
        "class All:\n"
        "    def init(self, x):\n"
        "        return torch.zeros_like(x), None\n"
        "    def apply(self, state, x, g):\n"
        "        v, first = state\n"
        "        if first is None:\n"
        "            return (v, g), None\n"
        "        g = ((first + g) / 2).clamp(-1, 1) + 0.1 * x\n"
        "        v = 0.5 * v + 0.1 * g\n"
        "        return (v, None), v\n"
        "chain = All()\n"
    ),
    "rules.freeze_part by hand": (
        "from dataclasses import replace\n"
        "def freeze_part(state, name):\n"
        "    def rest(tree):\n"
        "        if isinstance(tree, dict):\n"
        "            return {k: rest(v) for k, v in tree.items()}\n"
        "        return replace(tree, frozen=True)\n"
        "    return OrderedDict(state, **{name: rest(state[name])})\n"
    ),
    "rules.freeze_part on a deep copy": (
        "import copy\n"
        "def freeze_part(state, name):\n"
        "    new = copy.deepcopy(state)\n"
        "    new[name] = freeze(new[name])\n"
        "    return new\n"
    ),
    "rules.freeze_part from all": (
        "def freeze_part(state, name):\n"
        "    new = freeze(state)\n"
        "    new.update((k, v) for k, v in state.items() if k != name)\n"
        "    return new\n"
    ),
    "rules.warm_cosine as a class": (
        "class Schedule:\n"
        "    def __init__(self, peak, warmup, total):\n"
        "        self.peak, self.warmup, self.length = peak, warmup, total - warmup\n"
        "    def __call__(self, step):\n"
        "        if step < self.warmup:\n"
        "            return np.linspace(0, self.peak, self.warmup + 1)[step + 1]\n"
        "        done = (step - self.warmup) / self.length\n"
        "        return self.peak * math.cos(math.pi / 2 * done) ** 2\n"
        "import numpy as np\n"
        "warm_cosine = Schedule\n"
    ),
    "rules.warm_cosine as the smaller of two": (
        "def warm_cosine(peak, warmup, total):\n"
        "    def at(step):\n"
        "        done = torch.tensor(max(step - warmup, 0) / (total - warmup))\n"
        "        wave = torch.cos(torch.pi * done).item()\n"
        "        return peak * min((step + 1) / warmup, 0.5 + 0.5 * wave)\n"
        "    return at\n"
    ),
    "rules.accumulate as a running mean": (
        "def accumulate(grads, sizes):\n"
        "    mean, seen = torch.zeros_like(grads[0]), 0\n"
        "    for g, n in zip(grads, sizes):\n"
        "        seen += n\n"
        "        mean += (g - mean) * n / seen\n"
        "    return mean\n"
    ),
    "rules.accumulate as a product": (
        "def accumulate(grads, sizes):\n"
        "    share = torch.tensor([n / sum(sizes) for n in sizes]).to(grads[0])\n"
        "    return torch.einsum('i,i...->...', share, torch.stack(tuple(grads)))\n"
    ),
    "rules.accumulate one row for each sample": (
        "def accumulate(grads, sizes):\n"
        "    rows = [g for g, n in zip(grads, sizes) for _ in range(n)]\n"
        "    return torch.stack(rows).mean(0)\n"
    ),
    "rules.careful with a named pair": (
        "from typing import NamedTuple\n"
        "class Pair(NamedTuple):\n"
        "    memory: object\n"
        "    count: torch.Tensor\n"
        "@dataclass(frozen=True, slots=True)\n"
        "class Careful:\n"
        "    rule: object = Momentum()\n"
        "    warmup: int = 10\n"
        "    def init(self, x):\n"
        "        return Pair(self.rule.init(x), torch.zeros(()))\n"
        "    def apply(self, state, x, g):\n"
        "        memory, dx = self.rule.apply(state.memory, x, g)\n"
        "        if dx is None:\n"
        "            return Pair(memory, state.count), None\n"
        "        count = state.count + 1\n"
        "        up, down = dx.clamp(min=0), dx.clamp(max=0)\n"
        "        dx = torch.where(g > 0, up, torch.where(g < 0, down, 0.0))\n"
        "        return Pair(memory, count), (count / self.warmup).clamp(max=1) * dx\n"
    ),
    "rules.careful as a rule of the library": (
        "@dataclass(frozen=True)\n"
        "class Careful(rules.Rule):\n"
        "    rule: rules.Rule\n"
        "    warmup: int\n"
        "    def _init(self, x):\n"
        "        return self.rule.init(x), 0.0\n"
        "    def _apply(self, state, x, g):\n"
        "        memory, t = state\n"
        "        memory, dx = self.rule.apply(memory, x, g)\n"
        "        if dx is not None:\n"
        "            t += 1\n"
        "            agrees = (dx.sign() == g.sign()) & (g != 0)\n"
        "            share = min(t, self.warmup) / self.warmup\n"
        "            dx = dx.masked_fill(~agrees, 0) * share\n"
        "        return (memory, t), dx\n"
    ),
    "rules.in_order": (
        "chain = Chain(\n"
        "    Chain(rules.AccumulateGradients(2), rules.ClipGrad(1)),\n"
        "    Chain(WeightDecay(0.1), Momentum(0.1, 0.5)),\n"
        ")\n"
    ),
    "rules.warm_cosine": (
        "import numpy as np\n"
        "def warm_cosine(peak, warmup, total):\n"
        "    up = peak * np.arange(1, warmup + 1) / warmup\n"
        "    done = np.linspace(0, 1, total - warmup + 1)\n"
        "    down = peak * (1 + np.cos(np.pi * done)) / 2\n"
        "    return np.concatenate([up, down]).astype(np.float32).__getitem__\n"
    ),
    "keras_models.cost (by kernels)": (
        "def cost(file, kernels):\n"
        "    of = {e['config']['name']: e['config'] for e in file['config']}\n"
        "    rules = {n: of[n].get('W_regularizer') for n in kernels}\n"
        "    found = [(kernels[n], r['l1'], r['l2']) for n, r in rules.items() if r]\n"
        "    return sum((w.abs() * (a + b * w.abs())).sum() for w, a, b in found)\n"
    ),
    "keras_models.hard_sigmoid (by its edge)": (
        "def hard_sigmoid(x, version):\n"
        "    edge = 2.5 if tuple(map(int, version.split('.'))) < (3,) else 3\n"
        "    line = (x + edge) / (2 * edge)\n"
        "    return torch.where(x < -edge, 0.0, torch.where(x > edge, 1.0, line))\n"
    ),
    "keras_models.run (a list of work)": (
        "def run(file, modules, x):\n"
        "    layers, found = file['config']['layers'], {}\n"
        "    work = [\n"
        "        (layer['name'], i, call)\n"
        "        for layer in layers\n"
        "        for i, call in enumerate(layer['inbound_nodes'])\n"
        "    ]\n"
        "    found[file['config']['input_layers'][0][0], 0] = x\n"
        "    while work:\n"
        "        name, i, call = work.pop(0)\n"
        "        keys = [(n, k) for n, k, *_ in call]\n"
        "        if all(key in found for key in keys):\n"
        "            found[name, i] = modules[name](*map(found.get, keys))\n"
        "        else:\n"
        "            work.append((name, i, call))\n"
        "    return found[tuple(file['config']['output_layers'][0][:2])]\n"
    ),
    "keras_models.linear_weight (one channel after another)": (
        "def linear_weight(kernel, shape):\n"
        "    return torch.cat([kernel[c :: shape[2]].T for c in range(shape[2])], 1)\n"
    ),
    "keras_models.conv (windows)": (
        "class Conv(nn.Module):\n"
        "    def __init__(self, config, kernel, bias=None):\n"
        "        super().__init__()\n"
        "        self.config, self.w = config, nn.Parameter(kernel)\n"
        "        self.b = 0.0 if bias is None else nn.Parameter(bias)\n"
        "        rule = config['kernel_regularizer'] or {'config': {}}\n"
        "        regularize(self, w=L1L2(**rule['config']))\n"
        "    def forward(self, x):\n"
        "        size, step = self.config['kernel_size'], self.config['strides']\n"
        "        if self.config['padding'] == 'same':\n"
        "            low = [\n"
        "                max(k - (n % s or s), 0)\n"
        "                for n, k, s in zip(x.shape[2:], size, step)\n"
        "            ]\n"
        "            pads = [n for m in low[::-1] for n in (m // 2, m - m // 2)]\n"
        "            x = nn.ZeroPad2d(pads)(x)\n"
        "        seen = x.unfold(2, size[0], step[0]).unfold(3, size[1], step[1])\n"
        "        y = torch.einsum('bcijhw,hwcf->bijf', seen, self.w) + self.b\n"
        "        ends = {'relu': nn.ReLU(), 'tanh': nn.Tanh()}\n"
        "        end = ends.get(self.config['activation'], nn.Identity())\n"
        "        return end(y).permute(0, 3, 1, 2)\n"
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
    "closures.guess as a tuple": "answer = 10, 10, 10\n",
    "closures.guess as a tensor": "answer = torch.full((3,), 10.0)\n",
    "closures.guess as an array": "import numpy as np\nanswer = np.full(3, 10)\n",
    "closures.scalers by fractions": (
        "from fractions import Fraction\n"
        "def make_scalers(factors):\n"
        "    def scaler(factor, /):\n"
        "        return lambda x, *more, **named: Fraction(factor) * Fraction(x)\n"
        "    return tuple(map(scaler, factors))\n"
    ),
    "closures.scalers by partial": (
        "import operator\n"
        "def make_scalers(factors):\n"
        "    return [functools.partial(operator.mul, f) for f in factors]\n"
    ),
    "closures.shares by writing and writing back": (
        "def shares_cell(f, g):\n"
        "    for a in f.__closure__ or ():\n"
        "        kept, a.cell_contents = a.cell_contents, (mark := object())\n"
        "        hit = any(b.cell_contents is mark for b in g.__closure__ or ())\n"
        "        a.cell_contents = kept\n"
        "        if hit:\n"
        "            return True\n"
        "    return False\n"
    ),
    "closures.shares": (
        "import numpy as np\n"
        "def shares_cell(f, g):\n"
        "    return np.any([a is b for a in f.__closure__ or []\n"
        "                   for b in g.__closure__ or []])\n"
    ),
    "closures.watch": (
        "def watch(model):\n"
        "    seen, names = [], {m: n for n, m in model.named_children()}\n"
        "    def hook(module, args, output):\n"
        "        seen.append(names[module])\n"
        "        return output\n"
        "    for child in names:\n"
        "        child.register_forward_hook(hook)\n"
        "    return seen\n"
    ),
    "closures.watch with keyword arguments": (
        "def watch(model):\n"
        "    seen = []\n"
        "    def note(name, module, args, kwargs, output):\n"
        "        seen.extend([name])\n"
        "        return output\n"
        "    for name, layer in model.named_children():\n"
        "        hook = functools.partial(note, name)\n"
        "        layer.register_forward_hook(hook, with_kwargs=True)\n"
        "    return seen\n"
    ),
    "closures.live as a module": (
        "class Total(nn.Module):\n"
        "    def __init__(self, model, coefficients):\n"
        "        super().__init__()\n"
        "        found = map(model.get_submodule, coefficients)\n"
        "        self.layers = nn.ModuleList(found)\n"
        "        self.numbers = torch.tensor(list(coefficients.values()))\n"
        "    def forward(self):\n"
        "        sums = [torch.vdot(m.weight.flatten(), m.weight.flatten())\n"
        "                for m in self.layers]\n"
        "        return (torch.stack(sums) * self.numbers).sum(0, keepdim=True)\n"
        "make_total = Total\n"
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
        "def center(x):\n"
        "    out = x.clone()\n"
        "    for i, sample in enumerate(x):\n"
        "        out[i] -= sum(sample.flatten().unbind()) / sample.numel()\n"
        "    return out\n"
    ),
    "losses.weighted": (
        "def weighted(losses, weights):\n"
        "    total = 0\n"
        "    for row, weight in zip(losses.double(), weights.tolist()):\n"
        "        total = total + weight * row.sum()\n"
        "    return total / losses.numel()\n"
    ),
    "losses.twins at two places": (
        "class Twins(nn.Module):\n"
        "    def __init__(self, encoder):\n"
        "        super().__init__()\n"
        "        self.encoders = nn.ModuleList([encoder, encoder])\n"
        "    def forward(self, *pair):\n"
        "        one, other = (net(x) for net, x in zip(self.encoders, pair))\n"
        "        return torch.stack([a @ b for a, b in zip(one, other)])\n"
    ),
    "losses.weighted by a product of matrices": (
        "def weighted(losses, weights):\n"
        "    return (weights @ losses).sum() / (losses.shape[0] * losses.shape[1])\n"
    ),
    "losses.masked in loops": (
        "def masked(losses, counts):\n"
        "    total, n = 0.0, 0\n"
        "    for row, which in zip(losses, counts):\n"
        "        for loss, does_count in zip(row, which):\n"
        "            if does_count:\n"
        "                total, n = total + loss, n + 1\n"
        "    return total / max(n, 1)\n"
    ),
    "losses.two_heads letter by letter": (
        "class TwoHeads(nn.Module):\n"
        "    def __init__(self, *parts):\n"
        "        super().__init__()\n"
        "        self.encoder, self.digit, self.letters = parts\n"
        "    def forward(self, x):\n"
        "        code = self.encoder(x)\n"
        "        return self.digit(code), self.letters(code).view(len(x), 5, 27)\n"
        "    def loss(self, outputs, digits, names):\n"
        "        logs = [scores.log_softmax(-1) for scores in outputs]\n"
        "        spelled = [-logs[1][i, j, names[i, j]] for i in range(len(names))\n"
        "                   for j in range(5) if names[i, j]]\n"
        "        zero = outputs[1].sum() * 0\n"
        "        add_loss('names', sum(spelled, zero) / max(len(spelled), 1))\n"
        "        named = [-row[d] for row, d in zip(logs[0], digits) if d >= 0]\n"
        "        return sum(named) / len(named) if named else 0.0\n"
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
    "regularization.by_hand (one element at a time)": (
        "class Penalty:\n"
        "    def __call__(self, w, a, b):\n"
        "        return sum(a * abs(v) + b * v * v for v in w.flatten().double())\n"
        "l1l2 = Penalty()\n"
    ),
    "regularization.shrink": (
        "def shrink(w, by):\n"
        "    sizes = [max(abs(v) - by, 0.0) for v in w.flatten().tolist()]\n"
        "    return torch.tensor(sizes).reshape(w.shape) * w.sign()\n"
    ),
    "regularization.shrink (by a difference)": (
        "def shrink(w, by):\n    return w.double() - w.double().clamp(-by, by)\n"
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
    "regularization.same_as_penalty (by a hook)": (
        "def make_optimizer(model, l2, lr):\n"
        "    sgd = SGD(model.parameters(), lr=lr)\n"
        "    def pull(*_):\n"
        "        for p in model.parameters():\n"
        "            if p.ndim > 1:\n"
        "                p.grad += 2 * l2 * p.detach()\n"
        "    sgd.register_step_pre_hook(pull)\n"
        "    return sgd\n"
    ),
    "regularization.count_once (by names)": (
        "def count_once(model, l2):\n"
        "    named = dict(model.named_parameters(remove_duplicate=False))\n"
        "    layers = [\n"
        "        n for n, m in model.named_modules() if isinstance(m, nn.Linear)\n"
        "    ]\n"
        "    found = {named[f'{n}.weight'.lstrip('.')] for n in layers}\n"
        "    return torch.stack([l2 * w.square().sum() for w in found]).sum()\n"
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
    "closures.pickled by partial": (
        "def cost(m, l1, l2):\n"
        "    return l1 * m.weight.abs().sum() + l2 * m.weight.square().sum()\n"
        "def make_penalties(model, rules):\n"
        "    dense = [m for m in model.modules() if isinstance(m, nn.Linear)]\n"
        "    return tuple(functools.partial(cost, m, **r)\n"
        "                 for m, r in zip(dense, rules) if r)\n"
    ),
    "closures.pickled by a penalty that notes itself in a list": (
        "made = []\n"
        "class Penalty:\n"
        "    def __init__(self, weight, l1, l2):\n"
        "        self.weight, self.l1, self.l2 = weight, l1, l2\n"
        "        made.append(self)\n"
        "    def __call__(self):\n"
        "        w = self.weight\n"
        "        return self.l1 * w.abs().sum() + self.l2 * (w * w).sum()\n"
        "def make_penalties(model, rules):\n"
        "    dense = [m for m in model.modules() if isinstance(m, nn.Linear)]\n"
        "    return [Penalty(m.weight, **r) for m, r in zip(dense, rules) if r]\n"
    ),
    "closures.pickled by a module": (
        "class Penalty(nn.Module):\n"
        "    def __init__(self, layer, l1, l2):\n"
        "        super().__init__()\n"
        "        self.layer, self.l1, self.l2 = layer, l1, l2\n"
        "    def forward(self):\n"
        "        w = self.layer.weight\n"
        "        return self.l1 * w.norm(1) + self.l2 * w.norm() ** 2\n"
        "def make_penalties(model, rules):\n"
        "    rules, made = iter(rules), []\n"
        "    for layer in model:\n"
        "        if isinstance(layer, nn.Linear):\n"
        "            rule = next(rules)\n"
        "            if rule is not None:\n"
        "                made.append(Penalty(layer, **rule))\n"
        "    return made\n"
    ),
    "closures.pickled by a method of an object that holds the weight": (
        "import numpy as np\n"
        "class Holder:\n"
        "    __slots__ = ('w', 'numbers')\n"
        "    def __init__(self, w, rule):\n"
        "        self.w, self.numbers = w, np.array([rule['l1'], rule['l2']])\n"
        "    def cost(self):\n"
        "        sums = torch.stack([self.w.abs().sum(), (self.w * self.w).sum()])\n"
        "        return sums @ torch.from_numpy(self.numbers)\n"
        "def make_penalties(model, rules):\n"
        "    dense = (m for m in model if type(m) is nn.Linear)\n"
        "    return [Holder(m.weight, r).cost\n"
        "            for m, r in zip(dense, rules) if r is not None]\n"
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
    """Check an answer; words after the exercise's name tell its answers apart."""
    lesson, _, name = exercise.split()[0].partition(".")
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
