"""The engines judge alike: random networks, and each way in which one may be built."""

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, Phase, given, settings
from rso_cases import (
    LOSSES,
    TOLERANCE,
    Call,
    Net,
    Sum,
    networks,
    random_split,
    side_by_side,
)
from torch import nn

from course_lib.models import small_cnn
from course_lib.rso.eager import pipeline
from course_lib.rso.eager.sweeps import Reference
from course_lib.rso.proposals import winner


def assert_alike(model, split, *, slow=(), **options):
    """Each engine gives the same losses; `slow` parameters have no incremental one."""
    dtype = options.get("dtype", torch.float64)
    rounding = 1e-11 if dtype == torch.float64 else 2e-4
    seen, disagreed = 0, 0
    for name, group, samples, wanted, found in side_by_side(model, split, **options):
        assert ("Incremental" not in found) == (name in slow), name
        scale = float(wanted[0].abs()) + samples
        for engine, losses in found.items():
            gap = (losses - wanted).abs().max().item()
            assert gap <= rounding * scale, (engine, name, group, gap)
            if group != "joint" and len(group) == 1:
                seen += 1
                got = winner(losses.tolist(), samples, TOLERANCE[dtype])
                if got != winner(wanted.tolist(), samples, TOLERANCE[dtype]):
                    disagreed += 1
                    # Whichever wins, the other was as good up to the gap.
                    least = wanted.min().item()
                    assert wanted[got].item() - least <= 2 * gap + 1e-5 * scale
    allowed = 0 if dtype == torch.float64 else max(1, seen // 1000)
    assert disagreed <= allowed, (disagreed, seen)


# Random networks


@settings(
    max_examples=60,
    phases=[Phase.generate],  # to shrink a network takes minutes
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(
    network=networks(),
    seed=st.integers(0, 99),
    minibatches=st.sampled_from(["partition", "fresh"]),
    at_once=st.sampled_from([1, 1, 1, 3]),
    decay=st.sampled_from([0.0, 0.0, 1e-2]),
    train_norm=st.booleans(),
    loss=st.sampled_from(sorted(LOSSES)),
    dtype=st.sampled_from([torch.float64, torch.float64, torch.float32]),
    piece=st.sampled_from([pipeline.PIECE, 2**9]),
)
def test_the_engines_judge_random_networks_alike(network, seed, loss, piece, **options):
    model, shape = network
    split = random_split(14, shape, seed=seed)
    if loss == "0/1" and options["dtype"] == torch.float32:
        loss = "squares"  # a step magnifies rounding
    slow = {
        f"{name}.{kind}"
        for name, module in model.named_modules()
        if isinstance(module, (nn.PReLU, nn.LayerNorm))
        for kind in ("weight", "bias")
    }
    options.update(loss=LOSSES[loss], batch_size=7, slow=slow)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "PIECE", piece)  # small ones cut a batch
        assert_alike(model, split, **options)


# Each way to build a network


def conv(inputs, outputs, kernel=3, **options):
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


def vector(*shape):
    return nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(0)))


def gated(s, x):
    a, b = s.conv(x).chunk(2, 1)
    return s.head((a * torch.sigmoid(b)).mean((2, 3)))


def aliased(s, x):
    y = s.conv(x)
    return s.head((torch.relu(s.norm(s.drop(y))) + y).mean((2, 3)))


def aliased_tail(s, x):
    y = s.second(torch.tanh(s.conv(x)))
    return s.head(s.relu(s.drop(y)).mean((2, 3)) + y.mean((2, 3)))


def convnext(s, x):
    y = s.norm(s.conv(x).permute(0, 2, 3, 1))
    return s.head(s.narrow(F.gelu(s.wide(y))).permute(0, 3, 1, 2).mean((2, 3)))


def squeezed(s, x):
    y = s.conv(x)
    return s.head(
        (y * torch.sigmoid(s.gate(y.mean((2, 3), keepdim=True)))).mean((2, 3))
    )


def centered(s, x):
    y = s.conv(x).mean((2, 3))
    return s.head((y - y.mean(0)) / y.abs().max())


def attended(s, x):
    y = s.embed(x.flatten(2))
    return s.head(s.mix(y, y, y, need_weights=False)[0].mean(1))


def rows_as_samples(s, x):
    y = s.conv(x)
    rows = s.row(y.reshape(-1, 5)).relu()
    return s.head(rows.view(x.size(0), -1))


def spread_twice(s, x):
    y = torch.relu(s.conv(x))
    return s.head((s.second(y) + s.third(y)).mean((2, 3)))


def doubled(s, x):
    y = torch.relu(s.conv(x))
    return s.head((y + y).mean((2, 3)))


def broadcast(s, x):
    y = torch.relu(s.conv(x))
    return s.head((y + y.mean((2, 3), keepdim=True)).mean((2, 3)))


def overwriting(s, x):
    y = s.second(s.conv(x).relu_()).add_(1)
    return s.head(F.relu(y, True).mean((2, 3)).mul_(0.5))


def ends():
    return {"conv": conv(2, 3), "head": nn.Linear(3, 3)}


NETS = {
    "a small CNN": (lambda: small_cnn(5, 2, 3, widths=(2, 3)), ()),
    "a linear model": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(50, 3)), ()),
    "an MLP": (
        lambda: nn.Sequential(
            *(nn.MaxPool2d(2), nn.Flatten()),
            *(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.ReLU()),
            *(nn.Linear(4, 4), nn.LayerNorm(4), nn.Sigmoid(), nn.Linear(4, 3)),
        ),
        ("6.weight", "6.bias"),
    ),
    "the paper's blocks": (
        lambda: nn.Sequential(
            *(conv(2, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU()),
            *(conv(3, 3, bias=False), nn.AvgPool2d(2), nn.BatchNorm2d(3), nn.ReLU()),
            *(conv(3, 2, bias=False), nn.BatchNorm2d(2), nn.AdaptiveMaxPool2d(1)),
            *(nn.Flatten(), nn.Linear(2, 3, bias=False)),
        ),
        (),
    ),
    "average pools with odd sizes and strides": (
        lambda: nn.Sequential(
            *(nn.Conv2d(2, 2, (2, 3), stride=(1, 1), padding=(1, 2)),),
            *(nn.AvgPool2d((1, 2)), nn.Tanh(), nn.Conv2d(2, 2, 2), nn.AvgPool2d(2)),
            *(nn.Flatten(), nn.LazyLinear(3)),
        ),
        (),
    ),
    "a pool over a strided convolution": (
        lambda: nn.Sequential(
            *(nn.Conv2d(2, 3, 3, stride=1, padding=2), nn.AvgPool2d(3)),
            *(nn.Conv2d(3, 4, 3, stride=2, padding=2), nn.AvgPool2d(2), nn.ReLU()),
            *(nn.Flatten(), nn.LazyLinear(3)),
        ),
        (),
    ),
    "groups and dilation": (
        lambda: nn.Sequential(
            *(conv(2, 4, groups=2), nn.ReLU(), conv(4, 4, groups=4)),
            *(nn.Conv2d(4, 2, 2, dilation=2, stride=(1, 2)), nn.GELU()),
            *(nn.Conv2d(2, 2, 1, groups=2), nn.AvgPool2d(2), nn.Flatten()),
            nn.LazyLinear(3),
        ),
        (),
    ),
    "residual blocks": (
        lambda: nn.Sequential(
            *(conv(2, 2), nn.ReLU(inplace=True), Sum(nn.Sequential(conv(2, 2)))),
            nn.ReLU(inplace=True),
            Sum(
                nn.Sequential(conv(2, 3, stride=2, bias=False), nn.BatchNorm2d(3)),
                nn.Sequential(nn.Conv2d(2, 3, 1, 2), nn.BatchNorm2d(3)),
                "torch.add",
            ),
            Sum(
                nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), conv(3, 3)),
                None,
                "in place",
            ),
            Call(lambda x: x.mean((2, 3))),
            nn.Linear(3, 3),
        ),
        (),
    ),
    "an addition of the input": (
        lambda: Net(
            lambda s, x: s.head((s.second(s.conv(x)) + x).flatten(1)),
            conv=conv(2, 3),
            second=conv(3, 2),
            head=nn.Linear(50, 3),
        ),
        (),
    ),
    "a concatenation": (
        lambda: Net(
            lambda s, x: s.head(torch.cat([s.conv(x), x], 1).relu().mean((2, 3))),
            conv=conv(2, 3),
            head=nn.Linear(5, 3),
        ),
        (),
    ),
    "two readers of one channel": (
        lambda: Net(spread_twice, second=conv(3, 3), third=conv(3, 3, 1), **ends()),
        (),
    ),
    "a value added to itself": (lambda: Net(doubled, **ends()), ()),
    "an addition that broadcasts": (lambda: Net(broadcast, **ends()), ()),
    "an output in two parts": (
        lambda: Net(gated, conv=conv(2, 4), head=nn.Linear(2, 3)),
        (),
    ),
    "a maximum with its place": (
        lambda: Net(lambda s, x: s.head(s.conv(x).flatten(2).max(2).values), **ends()),
        (),
    ),
    "a squeeze and excitation": (
        lambda: Net(squeezed, gate=nn.Conv2d(3, 3, 1), **ends()),
        (),
    ),
    "statistics of the batch": (
        # as many channels as samples that the tracer sees
        lambda: Net(centered, conv=conv(2, 8, 1), head=nn.Linear(8, 3)),
        (),
    ),
    "rows that are samples": (
        lambda: Net(
            rows_as_samples, conv=conv(2, 2), row=nn.Linear(5, 1), head=nn.Linear(10, 3)
        ),
        ("row.weight", "row.bias"),
    ),
    "samples that stand last": (
        lambda: Net(
            lambda s, x: (s.matrix @ s.conv(x).mean((2, 3)).t()).t(),
            conv=conv(2, 4),
            matrix=vector(3, 4),
        ),
        ("matrix",),
    ),
    "a lone bias, longer than a batch": (
        lambda: Net(
            lambda s, x: s.head(torch.relu(s.first(x.amax((2, 3))) + s.bias)),
            first=nn.Linear(2, 16),
            bias=vector(16),
            head=nn.Linear(16, 3),
        ),
        ("bias",),
    ),
    "a functional layer": (
        lambda: Net(
            lambda s, x: F.linear(torch.relu(s.first(x.flatten(1))), s.weight),
            first=nn.Linear(50, 4),
            weight=vector(21, 4),
        ),
        ("weight",),
    ),
    "a map of positions": (
        lambda: Net(
            lambda s, x: s.head(torch.relu(s.conv(x) + s.places).mean((2, 3))),
            places=vector(1, 3, 5, 5),
            **ends(),
        ),
        ("places",),
    ),
    "a lone number": (
        lambda: Net(
            lambda s, x: s.head(s.conv(x).mean((2, 3))) * s.scale,
            scale=nn.Parameter(torch.tensor(1.5)),
            **ends(),
        ),
        ("scale",),
    ),
    "a step with a tensor for its value at 0": (
        lambda: Net(
            lambda s, x: s.head(torch.heaviside(s.conv(x), values=s.at_0).mean((2, 3))),
            at_0=nn.Parameter(torch.tensor([0.5]), requires_grad=False),
            **ends(),
        ),
        (),
    ),
    "steps alone": (
        lambda: Net(
            lambda s, x: s.head(torch.sign(s.conv(x)).flatten(1)),
            conv=conv(2, 2),
            head=nn.Linear(50, 3),
        ),
        (),
    ),
    "a convolution as head": (
        lambda: nn.Sequential(
            *(conv(2, 3), nn.ReLU(), nn.Conv2d(3, 3, 1)),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        ),
        (),
    ),
    "batch norm of sequences": (
        lambda: Net(
            lambda s, x: s.head(s.norm(s.conv(x.flatten(2))).relu().mean(2)),
            conv=nn.Conv1d(2, 3, 3),
            norm=nn.BatchNorm1d(3),
            head=nn.Linear(3, 3),
        ),
        ("conv.weight", "conv.bias", "norm.weight", "norm.bias"),
    ),
    "linear layers over the pixels": (
        lambda: Net(
            convnext,
            conv=conv(2, 3),
            norm=nn.LayerNorm(3),
            wide=nn.Linear(3, 4),
            narrow=nn.Linear(4, 3),
            head=nn.Linear(3, 3),
        ),
        (
            *("norm.weight", "norm.bias", "wide.weight", "wide.bias"),
            *("narrow.weight", "narrow.bias"),
        ),
    ),
    "attention": (
        lambda: Net(
            attended,
            embed=nn.Linear(25, 2),
            mix=nn.MultiheadAttention(2, 1, batch_first=True),
            head=nn.Linear(2, 3),
        ),
        (
            *("embed.weight", "embed.bias", "mix.in_proj_weight", "mix.in_proj_bias"),
            *("mix.out_proj.weight", "mix.out_proj.bias"),
        ),
    ),
    "other norms": (
        lambda: nn.Sequential(
            *(conv(2, 4), nn.GroupNorm(2, 4), nn.ReLU(), nn.InstanceNorm2d(4)),
            *(conv(4, 2), nn.Softmax(1), nn.Upsample(scale_factor=2)),
            *(nn.AvgPool2d(5), nn.Flatten(), nn.Linear(8, 3)),
        ),
        ("1.weight", "1.bias"),
    ),
    "a shared layer": (
        lambda: (
            lambda c: nn.Sequential(c, nn.ReLU(), c, nn.Flatten(), nn.Linear(50, 3))
        )(conv(2, 2)),
        ("0.weight", "0.bias"),
    ),
    "other padding": (
        lambda: nn.Sequential(
            *(conv(2, 2, padding_mode="circular"), nn.ReLU()),
            *(nn.Conv2d(2, 2, 3, padding="same"), nn.Flatten(), nn.Linear(50, 3)),
        ),
        ("0.weight", "0.bias", "2.weight", "2.bias"),
    ),
    "a parametrized layer": (
        lambda: nn.Sequential(
            *(nn.utils.parametrizations.weight_norm(conv(2, 2)), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(50, 3)),
        ),
        (
            *("0.bias", "0.parametrizations.weight.original0"),
            "0.parametrizations.weight.original1",
        ),
    ),
    "a constant": (
        lambda: Net(
            lambda s, x: s.head((s.conv(x) + torch.ones(3, 1, 1)).relu().mean((2, 3))),
            **ends(),
        ),
        (),
    ),
    "a layer that is never called": (
        lambda: Net(
            lambda s, x: s.head(x.flatten(1)),
            idle=nn.Linear(2, 2),
            head=nn.Linear(50, 3),
        ),
        ("idle.weight", "idle.bias"),
    ),
    "two norms of one value": (
        lambda: Net(
            lambda s, x: (lambda y: s.head((s.a(y) + s.b(y)).mean((2, 3))))(s.conv(x)),
            a=nn.BatchNorm2d(3),
            b=nn.BatchNorm2d(3),
            **ends(),
        ),
        (),
    ),
    "a norm of what another reads": (
        lambda: Net(aliased, norm=nn.BatchNorm2d(3), drop=nn.Dropout(), **ends()),
        (),
    ),
    "a ReLU of what another reads": (
        lambda: Net(
            aliased_tail, second=conv(3, 3), drop=nn.Dropout(), relu=nn.ReLU(), **ends()
        ),
        (),
    ),
    "a pool that keeps all, before a norm": (
        lambda: Net(
            lambda s, x: (lambda y: s.head((s.norm(s.pool(y)) + y).mean((2, 3))))(
                s.second(torch.relu(s.conv(x)))
            ),
            second=conv(3, 3),
            pool=nn.MaxPool2d(1),
            norm=nn.BatchNorm2d(3),
            **ends(),
        ),
        (),
    ),
    "functions that overwrite": (
        lambda: Net(overwriting, second=conv(3, 3), **ends()),
        (),
    ),
}
PLAIN = {"batch_size": 7}
ALL_AT_ONCE = {
    "batch_size": 8,
    "at_once": 3,
    "decay": 1e-2,
    "minibatches": "fresh",
    "train_norm": True,
}
TWICE = {"cycles": 2, "train_norm": True, "decay": 1e-3, "batch_size": 7}


def built(name):
    torch.manual_seed(0)
    make, slow = NETS[name]
    model = make()
    with torch.no_grad():
        model(torch.zeros(2, 2, 5, 5))  # lazy layers learn their size
    return model, slow


@pytest.mark.parametrize("options", [PLAIN, ALL_AT_ONCE], ids=["plain", "all at once"])
@pytest.mark.parametrize("name", NETS)
def test_the_engines_judge_alike(name, options, monkeypatch):
    if options is ALL_AT_ONCE:
        monkeypatch.setattr(pipeline, "PIECE", 2**9)
    model, slow = built(name)
    present = {n for n, _ in model.named_parameters()}
    assert present.issuperset(slow)
    assert_alike(model, random_split(14, (2, 5, 5)), slow=slow, **options)


@pytest.mark.parametrize("options", [PLAIN, ALL_AT_ONCE, TWICE])
def test_the_reference_judges_as_a_whole_pass_does(options):
    model, _ = built("a small CNN")
    split = random_split(16, (2, 5, 5))
    for *_, wanted, found in side_by_side(model, split, kinds=(Reference,), **options):
        assert torch.allclose(found["Reference"], wanted, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["the paper's blocks", "residual blocks", "an MLP"])
def test_the_engines_judge_alike_on_each_device(name, device):
    model, slow = built(name)
    options = {**TWICE, "device": device, "dtype": torch.float32}
    assert_alike(model, random_split(28, (2, 5, 5)), slow=slow, **options)


def test_the_engines_judge_alike_when_minibatches_are_met_again():
    model, slow = built("the paper's blocks")
    assert_alike(model, random_split(15, (2, 5, 5)), slow=slow, **TWICE)
    many = {"at_once": 4, "batch_size": 3, "cycles": 2}
    assert_alike(model, random_split(15, (2, 5, 5)), slow=slow, **many)
