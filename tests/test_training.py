"""fit and evaluate against a loop written by hand, number by number."""

import copy
import io
import math

import matplotlib.figure
import pytest
import torch
from torch import nn
from torch.nn import functional

from course_lib.data import Dataset, Split
from course_lib.losses import LossCollector, add_loss
from course_lib.regularization import (
    L1L2,
    add_penalty_gradients_,
    penalty,
    regularize,
)
from course_lib.training import Epoch, History, TrainingError, evaluate, fit, loop

CROSS_ENTROPY = functional.cross_entropy


def split(samples, device="cpu", seed=0):
    """Noise that leans towards its class, 2x2 pixels, three classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(samples) % 3
    inputs = torch.randn(samples, 1, 2, 2, generator=generator)
    inputs += labels[:, None, None, None]
    return Split(inputs, labels).to(device)


def dataset(device="cpu"):
    one = torch.ones(1, 1, 1)
    parts = split(23), split(10, seed=1)  # 23 = 8 + 8 + 7
    return Dataset("noise", *parts, ("a", "b", "c"), 0 * one, one).to(device)


def network(device="cpu", *, l2=0.0):
    torch.manual_seed(0)
    layer = regularize(nn.Linear(4, 3), weight=L1L2(l1=l2 / 2, l2=l2))
    return nn.Sequential(nn.Flatten(), layer).to(device)


def sgd(model, lr=0.1):
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


def train(model, data=None, **changes):
    options = {"loss": CROSS_ENTROPY, "epochs": 2, "batch_size": 8, **changes}
    options.setdefault("optimizer", sgd(model))
    return fit(model, data or dataset(), **options)


def weights(model):
    return [parameter.detach().clone() for parameter in model.parameters()]


def assert_same(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def loop_by_hand(model, data, *, epochs, batch_size, seed):
    """Return (mean loss, mean penalty) of each epoch."""
    optimizer, means = sgd(model), []
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        total = cost = 0.0
        order = torch.randperm(len(data), generator=generator).to(data.labels.device)
        for chosen in order.split(batch_size):
            loss = CROSS_ENTROPY(model(data.inputs[chosen]), data.labels[chosen])
            extra = penalty(model)
            optimizer.zero_grad()
            (loss + extra).backward()
            optimizer.step()
            total += loss.item() * len(chosen)
            cost += extra.item() * len(chosen)
        means.append((total / len(data), cost / len(data)))
    return means


def test_fit_is_the_loop_written_by_hand(device):
    data, ours = dataset(device), network(device, l2=0.01)
    theirs = copy.deepcopy(ours)

    history = train(ours, data, penalty=penalty, epochs=3, seed=5)
    means = loop_by_hand(theirs, data.train, epochs=3, batch_size=8, seed=5)

    assert_same(weights(ours), weights(theirs))
    assert list(zip(history["loss"], history["penalty"], strict=True)) == means
    with torch.no_grad():
        outputs, labels = theirs(data.test.inputs), data.test.labels
    assert history["test_loss"][-1] == pytest.approx(
        CROSS_ENTROPY(outputs, labels).item()
    )
    right = (outputs.argmax(dim=1) == labels).sum().item()
    assert history["test_accuracy"][-1] == right / len(labels)
    assert history["epoch"] == [1, 2, 3]
    assert all(seconds > 0 for seconds in history["seconds"])


def test_gradients_added_after_backward_equal_the_penalty_in_the_loss(device):
    data, in_loss = dataset(device), network(device, l2=0.1)
    added, without = copy.deepcopy(in_loss), copy.deepcopy(in_loss)

    train(in_loss, data, penalty=penalty)
    train(added, data, after_backward=add_penalty_gradients_)
    train(without, data)

    torch.testing.assert_close(weights(added), weights(in_loss))
    assert not torch.allclose(added[1].weight, without[1].weight)


def test_one_seed_gives_one_run_and_another_seed_another_order():
    runs = [network() for _ in range(3)]
    for model, seed in zip(runs, (1, 1, 2), strict=True):
        torch.rand(seed)  # the global generator has no say
        train(model, seed=seed)
    assert_same(weights(runs[0]), weights(runs[1]))
    assert not torch.equal(runs[0][1].weight, runs[2][1].weight)


# Terms of the loss


class Charging(nn.Module):
    """A network whose layer charges for its outputs."""

    def __init__(self, device="cpu"):
        super().__init__()
        self.inner = network(device)

    def forward(self, inputs):
        outputs = self.inner(inputs)
        add_loss("sparsity", outputs.abs().mean())
        return outputs


def charge_weights(model, inputs, outputs):
    assert outputs.requires_grad
    assert len(inputs) == len(outputs)
    add_loss("weights", 0.1 * model.inner[1].weight.square().sum())


def test_terms_from_inside_and_outside_are_minimized_and_logged(device):
    data, ours = dataset(device), Charging(device)
    theirs = copy.deepcopy(ours).inner

    history = train(ours, data, after_forward=charge_weights, epochs=2, seed=5)

    optimizer, generator = sgd(theirs), torch.Generator().manual_seed(5)
    for epoch in range(2):
        sums = [0.0, 0.0, 0.0]
        for chosen in torch.randperm(23, generator=generator).to(device).split(8):
            outputs = theirs(data.train.inputs[chosen])
            loss = CROSS_ENTROPY(outputs, data.train.labels[chosen])
            sparsity = outputs.abs().mean()
            size = 0.1 * theirs[1].weight.square().sum()
            optimizer.zero_grad()
            (loss + sparsity + size).backward()
            optimizer.step()
            for place, term in enumerate((loss, sparsity, size)):
                sums[place] += term.item() * len(chosen) / 23
        columns = ("loss", "sparsity", "weights")
        assert [history[name][epoch] for name in columns] == pytest.approx(sums)
    torch.testing.assert_close(weights(ours), weights(theirs))
    assert history["penalty"] == [0, 0]


def test_terms_have_columns_of_their_own():
    history = train(Charging(), after_forward=charge_weights)
    header, *rows = repr(history).split("\n")
    assert header.split()[:4] == ["epoch", "loss", "sparsity", "weights"]
    assert rows[0].split()[2] == f"{history['sparsity'][0]:.3f}"
    with pytest.raises(KeyError, match="test_accuracy, seconds, sparsity, weights"):
        history["vat"]
    with pytest.raises(KeyError):
        history["terms"]


def test_a_term_that_comes_now_and_then_costs_0_in_between():
    calls = []

    def term(model, inputs, outputs):
        calls.append(len(inputs))
        if len(calls) == 5:  # the second batch of the second epoch
            add_loss("rare", torch.tensor(1.0))

    history = train(network(), after_forward=term)
    assert history["rare"] == [0, pytest.approx(calls[4] / 23)]


def test_testing_neither_collects_nor_disturbs():
    model, data = Charging(), split(10)
    with LossCollector() as collector:
        loss, _ = evaluate(model, data, loss=CROSS_ENTROPY)
    assert collector.terms == {}
    assert loss == pytest.approx(
        CROSS_ENTROPY(model.inner(data.inputs), data.labels).item()
    )


def test_the_penalty_is_of_the_models_own_pass():
    model = network()
    regularize(model[1], activity=L1L2(l1=1.0))
    costs = []

    def cost(model):
        costs.append(penalty(model))
        return costs[-1]

    def another_pass(model, inputs, outputs):
        wanted = outputs.abs().sum() / len(outputs)
        torch.testing.assert_close(costs[-1], wanted)
        model(100 * inputs)

    history = train(model, penalty=cost, after_forward=another_pass, epochs=1)
    means = [c.item() * n for c, n in zip(costs, (8, 8, 7), strict=True)]
    assert history["penalty"] == [pytest.approx(sum(means) / 23)]


def test_a_term_that_is_nan_stops_and_is_named():
    model = network()
    before = weights(model)
    with pytest.raises(
        TrainingError, match=r"penalty 0 and the vat nan; wanted finite numbers"
    ):
        train(model, after_forward=lambda *_: add_loss("vat", torch.tensor(math.nan)))
    assert_same(weights(model), before)


@pytest.mark.parametrize("name", ["loss", "test_loss", "terms"])
def test_a_term_may_not_hide_another_column(name):
    model = network()
    before = weights(model)
    with pytest.raises(ValueError, match=f"fit: a term is called '{name}', and so is"):
        train(model, after_forward=lambda *_: add_loss(name, torch.tensor(1.0)))
    assert_same(weights(model), before)


# Stopping


def poisoned(data, sample):
    """Return the data with one nan among the training inputs."""
    data.train.inputs[sample] = math.nan
    return data


def test_a_loss_that_is_nan_stops_before_the_update():
    data, model = poisoned(dataset(), 0), network()
    states = []  # after each step
    with pytest.raises(
        TrainingError,
        match=r"^fit: epoch 1, batch [123]: the loss is nan and the penalty 0; "
        r"wanted finite numbers\. The weights are those before this batch\. Lower",
    ) as caught:
        train(model, data, after_backward=lambda m: states.append(weights(m)))
    batch = int(str(caught.value).split("batch ")[1][0])
    assert len(states) == batch - 1
    assert all(parameter.isfinite().all() for parameter in weights(model))
    assert caught.value.history.epochs == []


def test_the_weights_of_a_refused_batch_are_bitwise_those_before_it():
    model, twin = network(), network()
    model(torch.zeros(1, 1, 2, 2)).sum().backward()
    before = weights(model)
    with pytest.raises(TrainingError, match="the loss is nan"):
        train(model, loss=lambda outputs, labels: outputs.sum() * math.nan)
    assert_same(weights(model), before)
    assert_same(weights(model), weights(twin))


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_penalty_that_is_not_finite_stops_with_the_history_so_far(number):
    model, calls = network(), []

    def cost(model):
        calls.append(weights(model))
        return torch.tensor(number if len(calls) == 5 else 0.0)

    with pytest.raises(
        TrainingError, match=rf"epoch 2, batch 2: .* and the penalty {number};"
    ) as caught:
        train(model, penalty=cost)
    assert_same(weights(model), calls[-1])
    assert caught.value.history["epoch"] == [1]


def test_patience_counts_epochs_without_a_better_test_loss(monkeypatch):
    losses = iter([3.0, 2.0, 2.5, 1.9, 1.9, 2.0, 1.0])
    monkeypatch.setattr(loop, "evaluate", lambda *_, **__: (next(losses), 0.5))
    history = train(network(), epochs=7, patience=2)
    assert history["test_loss"] == [3.0, 2.0, 2.5, 1.9, 1.9, 2.0]


def test_patience_lets_an_improving_run_end_by_itself(monkeypatch):
    losses = iter([3.0, 2.0, 1.0])
    monkeypatch.setattr(loop, "evaluate", lambda *_, **__: (next(losses), 0.5))
    assert len(train(network(), epochs=3, patience=1)) == 3


def test_on_epoch_sees_each_epoch_and_a_true_answer_stops():
    seen = []

    def stop_after_two(history):
        seen.append(len(history))
        return len(history) == 2

    assert len(train(network(), epochs=5, on_epoch=stop_after_two)) == 2
    assert seen == [1, 2]


# Modes


class Modes(nn.Module):
    """Notes in which mode it was called, and with how many samples."""

    def __init__(self, *, fails=False):
        super().__init__()
        self.seen, self.fails = [], fails
        self.frozen = nn.BatchNorm2d(1).eval()
        self.layer = nn.Linear(4, 3)

    def forward(self, inputs):
        self.seen.append((self.training, len(inputs)))
        if self.fails:
            raise ArithmeticError("on purpose")
        return self.layer(inputs.flatten(1))


@pytest.mark.parametrize("mode", [True, False])
def test_fit_trains_in_train_mode_tests_in_eval_mode_and_puts_both_back(mode):
    model = Modes()
    model.training = mode
    train(model, epochs=2)
    epoch = [(True, 8), (True, 8), (True, 7), (False, 10)]
    assert model.seen == epoch * 2
    modes = [module.training for module in model.modules()]
    assert modes == [mode, False, True]


def test_the_modes_come_back_after_an_error_too():
    model = Modes(fails=True)
    for call in (train, lambda m: evaluate(m, split(4), loss=CROSS_ENTROPY)):
        with pytest.raises(ArithmeticError, match="on purpose"):
            call(model)
        assert [m.training for m in model.modules()] == [True, False, True]
    assert model.seen == [(True, 8), (False, 4)]


# evaluate


def test_evaluate_weighs_batches_by_their_samples(device):
    model, data = network(device), split(10, device)
    loss, accuracy = evaluate(model, data, loss=CROSS_ENTROPY, batch_size=4)
    outputs = model(data.inputs)
    assert loss == pytest.approx(CROSS_ENTROPY(outputs, data.labels).item())
    right = (outputs.argmax(dim=1) == data.labels).float()
    assert accuracy == pytest.approx(right.mean().item())
    assert 0 < accuracy < 1


def test_evaluate_takes_no_gradient():
    graphs = []

    def loss(outputs, labels):
        graphs.append(outputs.requires_grad)
        return CROSS_ENTROPY(outputs, labels)

    evaluate(network(), split(3), loss=loss)
    assert graphs == [False]


def test_a_regression_has_a_loss_and_no_accuracy():
    def squared(outputs, labels):
        return (outputs - labels).square().mean()

    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 1), nn.Flatten(0))
    history = train(model, loss=squared, optimizer=sgd(model, lr=0.001))
    assert all(map(math.isnan, history["test_accuracy"]))
    assert all(map(math.isfinite, history["test_loss"]))
    header = repr(history).split("\n")[0]
    assert header.split("  ") == ["epoch", " loss", "test loss"]


def test_a_single_split_trains_without_a_test():
    history = train(network(), split(23))
    assert all(map(math.isnan, history["test_loss"] + history["test_accuracy"]))
    assert repr(history).split("\n")[0].split() == ["epoch", "loss"]


# History


def epochs(count, **changes):
    first = Epoch(1, 2.0, 0.0, 1.5, 0.5, 0.1)._replace(**changes)
    return [first._replace(epoch=number) for number in range(1, count + 1)]


def test_history_prints_the_columns_that_say_something():
    assert repr(History(epochs(1, penalty=0.25))) == (
        "epoch   loss  penalty  test loss  test accuracy\n"
        "    1  2.000    0.250      1.500          50.0%"
    )
    assert repr(History(epochs(1, loss=123456.0))).split()[6:8] == ["1", "1.235e+05"]
    assert repr(History()) == "History: no epoch finished yet"


def test_a_long_history_prints_its_two_ends():
    def first_words(count):
        return [line.split()[0] for line in repr(History(epochs(count))).split("\n")]

    assert first_words(10) == ["epoch", *map(str, range(1, 11))]
    assert first_words(11) == ["epoch", *"12345", "...", "8", "9", "10", "11"]


def test_a_test_loss_that_became_nan_is_shown_and_not_hidden(ax):
    history = History([*epochs(1), epochs(1, test_loss=math.nan)[0]])
    assert repr(history).split("\n")[2].split()[2] == "nan"
    history.plot(ax)
    assert [line.get_label() for line in ax.lines] == ["training loss", "test loss"]


def test_history_gives_columns_by_name():
    history = History(epochs(3))
    assert (len(history), history["epoch"]) == (3, [1, 2, 3])
    assert history["penalty"] == [0.0] * 3
    message = r"History: got 'accuracy'; wanted one of epoch, loss, .*test_accuracy"
    with pytest.raises(KeyError, match=message):
        history["accuracy"]


@pytest.fixture
def ax():
    return matplotlib.figure.Figure().subplots()


def test_history_plots_its_losses_over_the_epochs(ax):
    assert History(epochs(2)).plot(ax) is ax
    drawn = {line.get_label(): list(line.get_ydata()) for line in ax.lines}
    assert drawn == {"training loss": [2.0, 2.0], "test loss": [1.5, 1.5]}
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "loss")


def test_history_without_a_test_plots_one_line(ax):
    History(epochs(2, test_loss=math.nan)).plot(ax)
    assert [line.get_label() for line in ax.lines] == ["training loss"]


# Progress and arguments


@pytest.mark.parametrize(
    ("progress", "disable", "shown"),
    [(True, "", True), (False, "", False), (True, "1", False)],
)
def test_the_bar_shows_unless_told_otherwise(monkeypatch, progress, disable, shown):
    written = io.StringIO()
    monkeypatch.setattr("sys.stderr", written)
    monkeypatch.setenv("TQDM_DISABLE", disable)
    train(network(), progress=progress)
    assert ("epoch/s" in written.getvalue()) is shown
    assert ("loss=" in written.getvalue()) is shown


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": 0}, r"fit: got epochs=0; wanted an int >= 1\."),
        ({"epochs": 1.5}, r"fit: got epochs=1\.5; wanted an int"),
        ({"epochs": True}, r"fit: got epochs=True; wanted an int"),
        ({"patience": 0}, r"fit: got patience=0; wanted an int >= 1\."),
        ({"batch_size": 0}, "batch_size"),
        ({"data": [1, 2]}, r"got data of type list; wanted a Dataset, a Split.*load"),
        ({"data": split(5), "patience": 1}, r"one Split has none\. Pass the whole Da"),
    ],
)
def test_wrong_arguments_are_refused_before_a_step(wrong, message):
    model = network()
    with pytest.raises(ValueError, match=message):
        train(model, **wrong)
    assert_same(weights(model), weights(network()))
