"""What tests of RSO share: data, small networks, and engines judged side by side."""

import copy
import warnings

import hypothesis.strategies as st
import torch
import torch.nn.functional as F
from torch import nn

from course_lib.data import Split
from course_lib.rso.eager.incremental import Incremental
from course_lib.rso.eager.network import Network
from course_lib.rso.eager.plan import Unsuitable
from course_lib.rso.eager.sweeps import Cached, Reference, Task
from course_lib.rso.losses import cross_entropy, loss_sum
from course_lib.rso.minibatches import Minibatches
from course_lib.rso.modes import search_mode
from course_lib.rso.native.geometry import UnsupportedOperation
from course_lib.rso.native.sweep import Compiled
from course_lib.rso.proposals import (
    SAMPLERS,
    base_sigma,
    generator_of,
    initialize,
    targets,
    winner,
)

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}
CLASSES = 3


class Net(nn.Module):
    """A forward pass as a function of the module and its input, beside its parts."""

    def __init__(self, function, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.function = function

    def forward(self, x):
        return self.function(self, x)


def random_split(samples=20, shape=(1, 6, 6), *, classes=CLASSES, seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(samples, *shape, generator=generator)
    return Split(inputs, torch.randint(classes, (samples,), generator=generator))


class Call(nn.Module):
    """A function as a module, which torch.fx looks into."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Sum(nn.Module):
    """body(x) + shortcut(x), by the operator, in place, or by torch.add."""

    def __init__(self, body, shortcut=None, how="operator"):
        super().__init__()
        self.body, self.shortcut, self.how = body, shortcut or nn.Identity(), how

    def forward(self, x):
        y, z = self.body(x), self.shortcut(x)
        if self.how == "torch.add":
            return torch.add(z, y)
        if self.how == "in place":
            y += z
            return y
        return y + z


# Random networks

ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU),
    *(nn.Sigmoid, nn.Tanh, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.Softplus),
    *(nn.Softsign, nn.Mish, nn.LogSigmoid, nn.Tanhshrink, nn.Identity),
    *(lambda: nn.ReLU(inplace=True), lambda: nn.Threshold(0.1, -0.5)),
    *(lambda: Call(torch.relu), lambda: Call(lambda x: x.tanh())),
    *(lambda: Call(lambda x: F.leaky_relu(x, 0.2)), lambda: Call(torch.abs)),
    *(lambda: Call(lambda x: F.relu(x, inplace=True)), lambda: nn.Dropout(0.5)),
    *(nn.PReLU, lambda: nn.Softmax(1), lambda: Call(lambda x: x * 2 - 1)),
)
HEADS = (
    *(nn.Flatten, lambda: Call(lambda x: x.flatten(1))),
    *(lambda: Call(lambda x: torch.flatten(x, 1)),),
    *(lambda: Call(lambda x: x.view(x.size(0), -1)),),
    *(lambda: Call(lambda x: x.mean((2, 3))), lambda: Call(lambda x: x.amax((2, 3)))),
    *(
        lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        lambda: nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Dropout(), nn.Flatten()),
    ),
)
POOLS = (
    *(lambda: nn.AvgPool2d(2), lambda: nn.AvgPool2d(3), lambda: nn.AvgPool2d((1, 2))),
    *(lambda: nn.AvgPool2d(2, 1), lambda: nn.AvgPool2d(3, 2, 1)),
    *(lambda: nn.AvgPool2d(2, ceil_mode=True),),
    *(lambda: nn.AvgPool2d(2, divisor_override=3),),
    *(lambda: nn.MaxPool2d(2), lambda: nn.MaxPool2d((2, 1)), lambda: nn.MaxPool2d(3)),
    *(lambda: nn.MaxPool2d(3, 2, 1), lambda: nn.MaxPool2d(2, ceil_mode=True)),
    *(lambda: nn.MaxPool2d(2, dilation=2, stride=1),),
    *(lambda: nn.AdaptiveAvgPool2d(2), lambda: nn.AdaptiveMaxPool2d((2, 1))),
    *(lambda: nn.AdaptiveAvgPool2d((None, 1)), lambda: nn.Upsample(scale_factor=2)),
)
COMPILED = (  # activations, heads and pools that run in compiled code
    (
        *(nn.ReLU, lambda: nn.ReLU(inplace=True), nn.Identity, nn.Dropout),
        *(lambda: Call(torch.relu), lambda: Call(lambda x: x.relu())),
    ),
    (*HEADS[:3], *HEADS[-2:]),
    (
        *(lambda: nn.AvgPool2d(2), lambda: nn.AvgPool2d((1, 2)), nn.Identity),
        *(lambda: nn.AvgPool2d(2, 1), lambda: nn.AvgPool2d((3, 2), (1, 3))),
        *(lambda: nn.MaxPool2d(2), lambda: nn.MaxPool2d((2, 1)), nn.Identity),
        *(lambda: nn.MaxPool2d(3, 1), lambda: nn.MaxPool2d(2, (1, 3))),
        *(lambda: nn.AdaptiveAvgPool2d(1), lambda: nn.AdaptiveMaxPool2d(1)),
    ),
)


def fits(module, shape):
    """Return the shape after a module, or None where it can't take this one."""
    try:
        with torch.no_grad():
            out = module(torch.zeros(2, *shape))
    except (RuntimeError, ValueError):
        return None
    return tuple(out.shape[1:])


@st.composite
def convs(draw, channels):
    groups = draw(st.sampled_from([1, 1, channels]))
    return nn.Conv2d(
        channels,
        groups * draw(st.integers(1, 2)),
        (draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        stride=(draw(st.integers(1, 2)), draw(st.integers(1, 2))),
        padding=(draw(st.integers(0, 2)), draw(st.integers(0, 2))),
        dilation=(draw(st.integers(1, 2)), draw(st.integers(1, 2))),
        groups=groups,
        bias=draw(st.booleans()),
    )


@st.composite
def additions(draw, channels):
    """A residual block: its convolution keeps the size, or both sides halve it."""
    stride = draw(st.integers(1, 2))
    out = channels if stride == 1 else draw(st.integers(1, 3))
    body = nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False)
    shortcut = None
    if stride == 2:
        shortcut = nn.Sequential(
            nn.Conv2d(channels, out, 1, stride=2, bias=False), nn.BatchNorm2d(out)
        )
    body = nn.Sequential(body, nn.BatchNorm2d(out))
    return Sum(body, shortcut, draw(st.sampled_from(["operator", "torch.add"])))


@st.composite
def networks(draw, *, is_compiled=False):
    """Return (model, shape of one input): up to three blocks and a head.

    is_compiled: of operations alone that run in compiled code.
    """
    known = COMPILED if is_compiled else (ACTIVATIONS, HEADS, POOLS)
    activations, heads, pools = known
    shape = start = (draw(st.integers(1, 2)), *draw(st.sampled_from([(5, 6), (7, 5)])))
    layers = []

    def add(module):
        nonlocal shape
        after = fits(module, shape)
        if after is not None and all(after):
            layers.append(module)
            shape = after

    for _ in range(draw(st.integers(1, 3))):
        is_sum = draw(st.integers(0, 3)) == 0
        add(draw(additions(shape[0]) if is_sum else convs(shape[0])))
        rest = draw(st.permutations(["pool", "norm", "activation"]))
        for what in rest:
            if what == "pool" and draw(st.booleans()):
                add(draw(st.sampled_from(pools))())
            if what == "norm" and draw(st.booleans()):
                add(nn.BatchNorm2d(shape[0], affine=draw(st.booleans())))
            if what == "activation":
                add(draw(st.sampled_from(activations))())
    add(draw(st.sampled_from(heads))())
    if draw(st.booleans()):
        add(nn.Linear(shape[0], 3, bias=draw(st.booleans())))
        if draw(st.booleans()):
            norms = [nn.BatchNorm1d(3), nn.BatchNorm1d(3, affine=False)]
            norms += [] if is_compiled else [nn.LayerNorm(3)]
            add(draw(st.sampled_from(norms)))
        add(draw(st.sampled_from(activations))())
    add(nn.Linear(shape[0], CLASSES, bias=draw(st.booleans())))
    return nn.Sequential(*layers), start


# Engines side by side


def zero_one(outputs, labels):
    return (outputs.argmax(1) != labels).float()


def mean_squares(outputs, labels):
    return F.mse_loss(outputs, F.one_hot(labels, outputs.shape[1]).to(outputs.dtype))


LOSSES = {"cross_entropy": cross_entropy, "0/1": zero_one, "squares": mean_squares}


FASTER = (Cached, Incremental, Compiled)
AT_ONCE = 500  # candidates that go through the whole model side by side


def engines(task, batches, kinds=(Reference, *FASTER)):
    """Return each engine that can sweep the parameter, with its own mini-batches."""
    found = {}
    for engine in kinds:
        own = Task(
            task.model,
            task.target,
            task.values,
            batches(),
            task.loss,
            task.network,
        )
        try:
            found[engine.__name__] = engine(own)
        except Unsuitable:
            assert engine in (Incremental, Compiled)
        except UnsupportedOperation:
            assert engine is Compiled
    return found


class Oracle:
    """The losses of candidates from whole passes of a copy of the model, on the CPU.

    It is what the paper's loop computes, by torch.vmap for many candidates in a call.
    """

    def __init__(self, copied, model, target, loss):
        self.model, self.loss = copy.deepcopy(copied), loss
        self.name, self.shape = target.name, target.parameter.shape
        pairs = zip(self.model.parameters(), model.parameters(), strict=True)
        for own, other in pairs:
            own.data.copy_(other.cpu())
        self.candidates = []  # (the parameter's values, inputs, labels)
        self.ends = []  # how many there are after each call of `note`

    def note(self, rows, batch):
        """Take candidates that one mini-batch judges."""
        self.candidates += [(row, *batch) for row in rows]
        self.ends.append(len(self.candidates))

    def losses(self):
        """Return the sums of the loss of what each call of `note` took."""
        found = torch.empty(len(self.candidates), dtype=torch.float64)
        with search_mode(self.model):
            for size in {len(labels) for _, _, labels in self.candidates}:
                same = [i for i, c in enumerate(self.candidates) if len(c[2]) == size]
                for part in torch.tensor(same).split(AT_ONCE):
                    given = zip(*(self.candidates[i] for i in part), strict=True)
                    found[part] = self._judged(*map(torch.stack, given))
        return found.tensor_split(self.ends[:-1])

    def _judged(self, *stacked):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop")
            return torch.vmap(self._judge)(*stacked)

    def _judge(self, row, inputs, labels):
        weights = {self.name: row.view(self.shape)}
        outputs = torch.func.functional_call(self.model, weights, inputs.clone())
        return loss_sum(self.loss, outputs, labels)


def candidates(now, values, group):
    """Return the parameter with all of a group kept, then with each moved."""
    kept = now.clone()
    kept[group] = values[group, 0]
    rows = [kept]
    for weight in group:
        for which in (1, 2):
            rows.append(kept.clone())
            rows[-1][weight] = values[weight, which]
    return rows


def side_by_side(
    model,
    split,
    *,
    dtype=torch.float64,
    batch_size=8,
    minibatches="partition",
    at_once=1,
    decay=0.0,
    train_norm=False,
    loss=cross_entropy,
    device="cpu",
    cycles=1,
    kinds=FASTER,
):
    """Sweep a model, each proposal judged by all engines on the same weights.

    The last engine decides; of proposals judged together, random ones are accepted.
    Yields (parameter's name, weight, samples, right losses, losses of each engine).
    """
    copied = copy.deepcopy(model).to("cpu", dtype)
    model = model.to(device, dtype)
    inputs, labels = split.inputs.to(device, dtype), split.labels.to(device)
    chosen = targets(model, train_norm=train_norm)
    initialize(chosen, 0)
    sigmas = {target.name: base_sigma(target, "measured") for target in chosen}
    with search_mode(model):
        network = Network.trace(model, inputs[:8], None)
        for cycle, target in ((c, t) for c in range(cycles) for t in reversed(chosen)):
            words = 0, cycle, target.name
            count = target.values.numel()
            channel = count // target.channels
            groups = [
                list(range(i, min(i + at_once, start + channel)))
                for start in range(0, count, channel)
                for i in range(start, start + channel, at_once)
            ]

            def dealt(to=device, words=words, groups=groups):
                data = inputs.to(to), labels.to(to)
                own = Minibatches(*data, batch_size, kind=minibatches, seed=0)
                own.numbers = own.schedule(len(groups), generator_of(*words, "batch"))
                return own

            drawn = SAMPLERS["normal"].draw(count, generator_of(*words))
            dw = (sigmas[target.name] * drawn).to(device, dtype)
            kept = target.values * (1 - decay)
            values = torch.stack([kept, kept + dw, kept - dw], 1)
            batches, oracle = dealt("cpu"), Oracle(copied, model, target, loss)
            task = Task(model, target, values, None, loss, network)
            sweeps, judged = engines(task, dealt, kinds), []
            for group, number in zip(groups, batches.numbers, strict=True):
                samples, batch = batches.size(number), batches.take(number)
                now = target.values.cpu()
                oracle.note(candidates(now, values.cpu(), group), batch)
                found = {k: s.losses(group, number) for k, s in sweeps.items()}
                judged.append((group, samples, found))
                if at_once == 1:
                    losses = list(found.values())[-1].tolist()
                    won = [winner(losses, samples, TOLERANCE[dtype])]
                else:
                    generator = generator_of(*words, *group)
                    won = torch.randint(3, (len(group),), generator=generator).tolist()
                    joint = {k: s.joint(group, won).view(1) for k, s in sweeps.items()}
                    judged.append(("joint", samples, joint))
                for weight, which in zip(group, won, strict=True):
                    target.values[weight] = values[weight, which]
                    for sweep in sweeps.values():
                        sweep.record_decision(weight, which)
                if at_once > 1:
                    oracle.note([target.values.cpu().clone()], batch)
            for (group, samples, found), right in zip(
                judged, oracle.losses(), strict=True
            ):
                found = {k: losses.cpu() for k, losses in found.items()}
                yield target.name, group, samples, right, found
