"""The search: the paper's loop by hand, decisions that engines share, errors."""

import math

import pytest
import torch
import torch.nn.functional as F
from rso_cases import Call, random_split, zero_one
from torch import nn
from torch.testing import assert_close

from course_lib.data import Split
from course_lib.models import small_cnn
from course_lib.rso import RSO, CycleReport, SearchError, engines, steps
from course_lib.rso.cli import command
from course_lib.rso.proposals import SAMPLERS
from course_lib.rso.steps import DeviceStep

ENGINES = ("reference", "cached", "incremental", "torch alone")


def small_net():
    return nn.Sequential(
        *(nn.Conv2d(1, 2, 3, bias=False), nn.AvgPool2d(2), nn.BatchNorm2d(2)),
        *(nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Conv2d(2, 2, 2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(2, 3)),
    ).double()


def run(model=None, split=None, **options):
    """Search a model to the end; return (search, reports)."""
    model = small_net() if model is None else model
    split = random_split(20) if split is None else split
    options = {"batch_size": 7, "cycles": 2, "progress": False, **options}
    found = RSO(model, split, **named(options))
    return found, list(found)


def named(options):
    """Return the options; "torch alone" is the incremental engine, not compiled."""
    if options.get("engine") != "torch alone":
        return options
    return {**options, "engine": "incremental", "compiled": False}


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# The paper's loop, written anew


class Recorder:
    """Hands out a search's random numbers and remembers them."""

    def __init__(self):
        self.drawn, self.scheduled = [], []

    def sample(self, count, generator):
        self.drawn.append(torch.randn(count, generator=generator, dtype=torch.float64))
        return self.drawn[-1]

    def watch(self, minibatches):
        schedule = minibatches.schedule

        def scheduled(*arguments):
            self.scheduled.append(schedule(*arguments))
            return self.scheduled[-1]

        minibatches.schedule = scheduled


def paper_loop(model, parts, split, recorder, *, sigmas, factors, decay):
    """Keep the best of F(w + dw), F(w), F(w - dw) for each weight, output layer first.

    Batch norm works with batch statistics: torch's training mode, without dropout.
    """
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    drawn, scheduled = iter(recorder.drawn), iter(recorder.scheduled)
    decisions = []
    named = [(n, p) for n, p in model.named_parameters() if n.split(".")[0] != "2"]
    for factor in factors:
        decisions.clear()
        for name, parameter in reversed(named):
            steps = next(drawn) * sigmas[name] * factor
            flat = parameter.data.view(-1)
            for j, number in enumerate(next(scheduled)):
                x = split.inputs[parts[number]].double()
                y = split.labels[parts[number]]
                old = flat[j].item() * (1 - decay)
                best = None
                for sign in (0, 1, -1):
                    flat[j] = old + sign * steps[j]
                    with torch.no_grad():
                        loss = F.cross_entropy(model(x), y).item()
                    if best is None or loss < best[0] - 1e-11:
                        best = loss, sign
                flat[j] = old + best[1] * steps[j]
                decisions.append(best[1])
    return decisions


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("decay", [0.0, 1e-2])
def test_a_search_is_the_papers_loop(engine, decay):
    recorder, model, split = Recorder(), small_net(), random_split(20)
    options = {"sampler": recorder.sample, "weight_decay": decay, "engine": engine}
    found = RSO(model, split, batch_size=7, cycles=3, progress=False, **named(options))
    recorder.watch(found.minibatches)
    ours = small_net()
    ours.load_state_dict(model.state_dict())  # the first weights
    sigmas = {n: p.std().item() for n, p in ours.named_parameters() if p.dim() > 1}
    sigmas |= {"5.bias": math.sqrt(2 / 8), "8.bias": math.sqrt(2 / 2)}
    list(found)
    decisions = paper_loop(
        *(ours, found.minibatches.parts, split, recorder),
        sigmas=sigmas,
        factors=[1, 0.55, 0.1],
        decay=decay,
    )
    assert found.decisions.tolist() == decisions
    assert set(decisions) == {-1, 0, 1}
    assert_close(weights(model), weights(ours), rtol=1e-9, atol=1e-12)


# One set of decisions


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"minibatches": "fresh", "weight_decay": 1e-2},
        {"proposals_at_once": 3, "weight_decay": 1e-3},
        {"train_norm": True, "sampler": "uniform", "sigma": "analytic"},
        {"order": "random", "loss": zero_one, "sampler": "fixed"},
        {"order": "input_first", "final_sigma": 1.0, "seed": 3},
    ],
    ids=" ".join,
)
def test_engines_decide_alike(options):
    found = [run(engine=engine, **options) for engine in (*ENGINES, "auto")]
    first, reports = found[0]
    assert reports[0].accepted > 0
    for other, own_reports in found[1:]:
        assert other.decisions.equal(first.decisions)
        assert_close(weights(other.model), weights(first.model), rtol=0, atol=1e-14)
        for mine, its in zip(own_reports, reports, strict=True):
            assert mine.loss == pytest.approx(its.loss, abs=1e-12)
            assert mine[2:5] == its[2:5]


@pytest.mark.parametrize("engine", ENGINES)
def test_engines_take_a_step_network_and_no_gradient(engine):
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), Call(torch.sign))
    model.append(nn.Linear(3, 3))
    split = random_split(30, (1, 2, 2))
    split = Split(split.inputs, (split.inputs[:, 0, 0, 0] > 0).long())
    options = {"loss": zero_one, "engine": engine, "batch_size": 30, "cycles": 4}
    _, reports = run(model.double(), split, **options)
    right = model(split.inputs.double()).argmax(1) == split.labels
    assert reports[-1].accuracy == pytest.approx(right.double().mean().item())
    assert reports[-1].loss == pytest.approx(1 - reports[-1].accuracy)
    assert reports[-1].accuracy > 0.9


@pytest.mark.parametrize("minibatches", ["partition", "fresh"])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_device_that_is_not_waited_for_decides_alike(
    engine, minibatches, monkeypatch
):
    options = {"engine": engine, "minibatches": minibatches, "weight_decay": 1e-3}
    wanted, _ = run(**options)
    monkeypatch.setattr(steps, "HostStep", DeviceStep)
    got, _ = run(**options)
    assert got.decisions.equal(wanted.decisions)
    assert weights(got.model).equal(weights(wanted.model))


def test_each_device(device):
    found, reports = run(device=device, cycles=1)
    assert weights(found.model).device.type == device.type
    assert found.decisions.device.type == "cpu"
    wanted, _ = run(cycles=1)
    assert found.decisions.equal(wanted.decisions)
    assert 0 < reports[0].accepted <= 1


def test_a_seed_decides_all():
    first, again, other = (run(seed=seed)[0] for seed in (1, 1, 2))
    assert weights(first.model).equal(weights(again.model))
    assert not weights(first.model).equal(weights(other.model))


# By hand


def one_input(value=1.0):
    inputs = torch.full((1, 1, 1, 1), value)
    return Split(inputs, torch.tensor([0]))


def lone_weights(count=1):
    return nn.Sequential(nn.Flatten(), nn.Linear(1, count, bias=False)).double()


def downhill(outputs, labels):
    return -outputs.sum(1)


def test_annealed_steps_add_up():
    """Each step of sigma is taken: 1, 0.7, 0.4, 0.1 times sqrt(2 / 1)."""
    model = lone_weights()
    nn.init.zeros_(model[1].weight)
    options = {"loss": downhill, "sampler": "fixed", "initialize": False}
    run(model, one_input(), batch_size=1, cycles=4, **options)
    assert model[1].weight.item() == pytest.approx(2.2 * math.sqrt(2))


def test_decay_comes_first():
    """w' = 0.9 * w + sigma, twice, from w = 1."""
    model = lone_weights()
    nn.init.ones_(model[1].weight)
    options = {"loss": downhill, "sampler": "fixed", "initialize": False}
    options |= {"weight_decay": 0.1, "final_sigma": 1.0}
    run(model, one_input(), batch_size=1, cycles=2, **options)
    sigma = math.sqrt(2)
    assert model[1].weight.item() == pytest.approx(0.9 * (0.9 + sigma) + sigma)


@pytest.mark.parametrize("at_once", [1, 2])
@pytest.mark.parametrize("engine", ENGINES)
def test_equal_candidates_keep_the_weight_but_not_its_decay(engine, at_once):
    model, options = small_net(), {"loss": lambda o, y: 0 * o.sum(1)}
    options |= {"engine": engine, "proposals_at_once": at_once, "initialize": False}
    before = weights(model)
    found, reports = run(model, cycles=1, **options)
    assert not found.decisions.any()
    assert reports[0].accepted == 0
    assert weights(model).equal(before)
    run(model, cycles=1, weight_decay=0.5, **options)
    searched = [n for n, _ in model.named_parameters() if n.split(".")[0] != "2"]
    after = torch.cat([model.get_parameter(n).detach().flatten() for n in searched])
    halves = torch.cat([after, after])
    assert halves.abs().sum() * 1 == pytest.approx(
        float(sum(b.abs().sum() for b in before.split(1)) - 2)  # a norm's gamma stays
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_a_dead_channel_and_a_bias_before_batch_norm_never_move(engine):
    model = nn.Sequential(
        *(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten()),
        nn.Linear(48, 3),
    ).double()
    with torch.no_grad():
        model[1].bias[1] = -100.0  # ReLU gives zeros in this channel
    before = [p.detach().clone() for p in model.parameters()]
    run(model, engine=engine, initialize=False)
    after = [p.detach() for p in model.parameters()]
    assert after[0][1].equal(before[0][1])
    assert not after[0][0].equal(before[0][0])
    assert after[1].equal(before[1])  # subtracted with the mean
    readers = after[4].view(3, 3, 16), before[4].view(3, 3, 16)
    assert readers[0][:, 1].equal(readers[1][:, 1])
    assert not readers[0][:, 0].equal(readers[1][:, 0])


@pytest.mark.parametrize("engine", ENGINES)
def test_a_nan_never_wins(engine):
    def loss(outputs, labels):  # less is better, until it is no number
        return torch.where(outputs > 1, math.nan, -outputs).sum(1)

    model = lone_weights(3)
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[0.9], [0.0], [-3.0]]))
    options = {"loss": loss, "sampler": "fixed", "sigma": "analytic", "cycles": 1}
    options |= {"initialize": False, "batch_size": 1, "engine": engine}
    found, _ = run(model, one_input(), **options)
    assert found.decisions.tolist() == [0, 0, 1]  # sqrt(2) is too far for two of them


def test_layers_come_in_order():
    names = ["8.bias", "8.weight", "5.bias", "5.weight", "0.weight"]
    orders = {}
    for order in ("output_first", "input_first", "random"):
        found = RSO(small_net(), random_split(), batch_size=7, cycles=9, order=order)
        orders[order] = []
        for found.cycle in range(4):
            orders[order].append([target.name for target in found._ordered()])
    assert orders["output_first"] == [names] * 4
    assert orders["input_first"] == [names[::-1]] * 4
    assert all(sorted(found) == sorted(names) for found in orders["random"])
    assert len(set(map(tuple, orders["random"]))) > 1


def test_a_report_by_hand():
    model = lone_weights(2)
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0], [0.0]]))
    split = Split(
        torch.tensor([1.0, -1.0, 2.0]).view(3, 1, 1, 1), torch.tensor([0, 0, 1])
    )
    frozen = {"loss": lambda o, y: F.cross_entropy(o, y) * 0 + 2.5, "initialize": False}
    found, (report,) = run(model, split, batch_size=2, cycles=1, **frozen)
    assert isinstance(report, CycleReport)
    assert report[:5] == (1, 2.5, pytest.approx(1 / 3), 2, 0.0)
    assert report.proposals_a_second == pytest.approx(2 / report.seconds)
    assert found.reports == [report]
    with pytest.raises(StopIteration):
        next(found)


def test_proposals_together_are_accepted_only_if_that_beats_the_best_alone():
    """loss = |w0 + w1 - 1| from (0, 0): one step is perfect, two are too many."""

    def loss(outputs, labels):
        return (outputs.sum(1) - 1).abs()

    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 1, bias=False)).double()
    nn.init.zeros_(model[1].weight)
    split = Split(torch.ones(1, 1, 1, 2), torch.tensor([0]))
    options = {"loss": loss, "sampler": "fixed", "initialize": False, "cycles": 1}
    options |= {"batch_size": 1, "proposals_at_once": 2}
    for engine in ENGINES:
        nn.init.zeros_(model[1].weight)
        found, _ = run(model, split, engine=engine, **options)
        assert found.decisions.tolist() == [1, 0]  # sigma is 1 = sqrt(2 / 2)
    options["loss"] = lambda o, y: (o.sum(1) - 2).abs()
    nn.init.zeros_(model[1].weight)
    found, _ = run(model, split, **options)
    assert found.decisions.tolist() == [1, 1]


# What stays as it was


def state_of(model):
    return {
        "modes": [(m.training, getattr(m, "inplace", None)) for m in model.modules()],
        "wanted": [p.requires_grad for p in model.parameters()],
        "buffers": {k: v.clone() for k, v in model.named_buffers()},
        "norms": [p.clone() for p in model[2].parameters()],
        "frozen": model[5].weight.detach().clone(),
        "hooks": [len(m._forward_hooks) for m in model.modules()],
    }


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_model_keeps_its_modes_statistics_and_frozen_weights(engine, error):
    model, calls = small_net(), []
    model[5].weight.requires_grad_(False)
    model[2].running_mean.fill_(3.0)
    model[4].eval()
    before = state_of(model)

    def loss(outputs, labels):
        calls.append(1)
        if error and len(calls) == 40:
            raise error
        return F.cross_entropy(outputs, labels, reduction="none")

    inputs = random_split(20)
    kept = inputs.inputs.clone()
    if error is None:
        run(model, inputs, engine=engine, loss=loss)
    else:
        with pytest.raises(error):
            run(model, inputs, engine=engine, loss=loss)
    assert_close(state_of(model), before, rtol=0, atol=0)
    assert torch.is_grad_enabled()
    assert inputs.inputs.equal(kept)


# Errors


class Noise(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"batch_size": 21}, "got batch_size=21, but the split has 20 samples. Take a"),
        ({"batch_size": 0}, "got batch_size=0; wanted an int >= 1"),
        ({"batch_size": 2.0}, "got batch_size=2.0; wanted an int"),
        ({"cycles": 0}, "got cycles=0; wanted an int >= 1"),
        ({"cycles": True}, "got cycles=True; wanted an int"),
        ({"seed": "a"}, "got seed='a'; wanted an int"),
        ({"compiled": "yes"}, "got compiled='yes'; wanted True or False"),
        ({"train_norm": None}, "got train_norm=None; wanted True or False"),
        ({"initialize": 1}, "got initialize=1; wanted True or False"),
        ({"proposals_at_once": 0}, "got proposals_at_once=0; wanted"),
        ({"final_sigma": "0.1"}, r"got final_sigma='0\.1'; wanted a number"),
        ({"weight_decay": None}, r"got weight_decay=None; wanted a number"),
        ({"final_sigma": 0.0}, r"got final_sigma=0.0; wanted it in \(0, 1\]"),
        ({"final_sigma": math.nan}, "got final_sigma=nan"),
        ({"weight_decay": 1.0}, r"got weight_decay=1.0; wanted it in \[0, 1\)"),
        ({"weight_decay": -0.1}, "got weight_decay=-0.1"),
        ({"engine": "fast"}, "got engine='fast'; wanted one of 'auto', 'reference'"),
        ({"minibatches": "all"}, "got minibatches='all'; wanted one of 'partition'"),
        ({"order": "up"}, "got order='up'; wanted one of 'output_first'"),
        ({"sampler": "cauchy"}, "got sampler='cauchy'; wanted one of 'normal', 'uni"),
        (
            {"loss": "hinge"},
            "got loss='hinge'; wanted one of 'cross_entropy', or a ",
        ),
        ({"sigma": "guess"}, "got sigma='guess'; wanted one of 'measured'"),
    ],
)
def test_bad_arguments_change_nothing(options, match):
    model = small_net()
    before = weights(model)
    with pytest.raises(ValueError, match=f"RSO: {match}"):
        run(model, **options)
    assert weights(model).equal(before)


def test_a_model_without_weights():
    with pytest.raises(ValueError, match="Flatten has no trainable weight"):
        run(nn.Flatten())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_data_that_are_not_finite(bad):
    split, model = random_split(20), small_net()
    split.inputs[4, 0, 2, 3] = split.inputs[9, 0, 0, 0] = bad
    before = weights(model)
    with pytest.raises(
        ValueError, match=r"2 of 20 training inputs .*first is number 4"
    ):
        run(model, split)
    assert weights(model).equal(before)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_loss_that_is_not_finite(engine):
    calls, model = [], small_net()

    def loss(outputs, labels):
        calls.append(weights(model))
        value = math.nan if len(calls) > 30 else 1.0
        return F.cross_entropy(outputs, labels, reduction="none") * value

    with pytest.raises(SearchError, match=r"loss is nan on mini-batch \d, cycle 1, '"):
        run(model, engine=engine, loss=loss)
    assert weights(model).isfinite().all()


def test_a_loss_that_is_not_finite_on_a_device(monkeypatch):
    monkeypatch.setattr(steps, "HostStep", DeviceStep)
    with pytest.raises(SearchError, match=r"not finite in cycle 1, '8.bias'"):
        run(loss=lambda o, y: o.sum(1) / 0)


def test_a_module_that_draws_random_numbers():
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3), Noise(), nn.Linear(3, 3))
    with pytest.raises(ValueError, match="'2' draws random numbers in a pass"):
        run(model)


def branching(x):
    return x if x.sum() > 0 else x * 2


@pytest.mark.parametrize(
    ("middle", "reason", "slow"),
    [
        (nn.ConvTranspose2d(2, 2, 1), "belongs to ConvTranspose2d, not", "1"),
        (Call(branching), "torch.fx can't follow it", "0"),
        (nn.Linear(6, 6), "works on sequences", "1"),
    ],
)
def test_what_an_engine_can_not_take(middle, reason, slow):
    def model():
        return nn.Sequential(nn.Conv2d(1, 2, 1), middle, nn.Flatten(), nn.Linear(72, 3))

    with pytest.raises(
        ValueError, match=rf"engine='incremental' can't.*{reason}.*auto"
    ):
        run(model(), engine="incremental")
    found, _ = run(model(), cycles=1)
    choices = {name: choice for name, choice in found.choices.items() if choice.reason}
    assert any(name.startswith(slow) for name in choices)
    assert all(reason in choice.reason for choice in choices.values())
    wanted, _ = run(model(), cycles=1, engine="reference")
    assert found.decisions.equal(wanted.decisions)


def test_memory_is_refused_with_the_number(monkeypatch):
    def allow(count):
        monkeypatch.setattr(engines, "available_memory", lambda *a: count)

    model = small_cnn(widths=(2, 3)).double()
    split = random_split(20, (1, 8, 8), classes=10)
    allow(100)
    with pytest.raises(ValueError, match=r"it would remember \d+ MiB, and 0 MiB are"):
        run(model, split, engine="incremental")
    with pytest.raises(ValueError, match="minibatches='fresh'"):
        run(model, split, engine="cached")
    found, _ = run(model, split, cycles=1)
    assert {choice.engine for choice in found.choices.values()} == {"reference"}
    # 20 samples of 8 bytes: 60 numbers hold the last layer's inputs and outputs.
    allow(20 * 8 * 60)
    last = run(model, split, cycles=1)[0].choices
    names = [name for name, _ in model.named_parameters()]
    assert last[names[-1]].engine == last[names[-2]].engine == "incremental"
    assert last[names[0]].engine != "incremental"


@pytest.mark.parametrize("name", ["partition", "fresh"])
def test_losses_of_the_wrong_shape(name):
    with pytest.raises(
        ValueError, match=r"the loss has shape .* for .* samples; wanted"
    ):
        run(minibatches=name, loss=lambda o, y: o)


def test_every_sampler_is_documented():
    """The docstring and `--help` are made from the table of samplers."""
    for name, sampler in SAMPLERS.items():
        for text in (RSO.__doc__, command.parser().format_help()):
            assert f'"{name}" ({sampler.meaning})' in " ".join(text.split())
    assert "{" not in RSO.__doc__
    assert max(map(len, RSO.__doc__.splitlines())) <= 88
