"""What people bring to fit: loaders, tables, several inputs, tokens, and mistakes."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Subset, TensorDataset

from course_lib.data import Dataset, Split
from course_lib.training import TrainingError, evaluate, fit

CROSS_ENTROPY = functional.cross_entropy


def table(samples=20, features=4):
    """Features, a target that is linear in them, and a class."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(samples, features, generator=generator)
    y = x @ torch.arange(1.0, features + 1)
    return x, y, (y > 0).long()


def linear(outputs=2, features=4):
    torch.manual_seed(0)
    return nn.Linear(features, outputs)


def train(model, data, **changes):
    options = {"loss": CROSS_ENTROPY, "epochs": 2, **changes}
    options.setdefault("optimizer", torch.optim.SGD(model.parameters(), lr=0.1))
    return fit(model, data, **options)


def by_hand(model, batches, *, loss=CROSS_ENTROPY, epochs=2):
    """Train without fit; return the mean loss of each epoch."""
    optimizer, means = torch.optim.SGD(model.parameters(), lr=0.1), []
    for _ in range(epochs):
        total = count = 0
        for *inputs, targets in batches():
            value = loss(model(*inputs), targets)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            total, count = total + value.item() * len(targets), count + len(targets)
        means.append(total / count)
    return means


def assert_same(ours, theirs):
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=0)


# What is taken


@pytest.mark.parametrize(
    "wrap",
    [
        lambda pairs: DataLoader(TensorDataset(*pairs), batch_size=8),
        lambda pairs: list(DataLoader(TensorDataset(*pairs), batch_size=8)),
        lambda pairs: tuple(zip(*(part.split(8) for part in pairs), strict=True)),
    ],
)
def test_batches_that_are_made_already_come_in_their_order(wrap):
    x, _, labels = table()
    ours, theirs = linear(), linear()
    history = train(ours, wrap((x, labels)))
    means = by_hand(theirs, lambda: zip(x.split(8), labels.split(8), strict=True))
    assert history["loss"] == pytest.approx(means)
    assert_same(ours, theirs)
    assert len(history) == 2


def test_a_loader_shuffles_by_itself():
    x, _, labels = table()
    ours, theirs = linear(), linear()

    def loader():
        generator = torch.Generator().manual_seed(3)
        data = TensorDataset(x, labels)
        return DataLoader(data, batch_size=8, shuffle=True, generator=generator)

    train(ours, loader())
    same = loader()
    by_hand(theirs, lambda: same)
    assert_same(ours, theirs)


def test_a_table_of_tensors_is_shuffled_as_a_split_is():
    labels = torch.arange(11) % 2
    images = torch.randn(11, 1, 2, 2)
    models = [nn.Sequential(nn.Flatten(), linear()) for _ in range(3)]
    train(models[0], Split(images, labels), batch_size=4, seed=7)
    train(models[1], TensorDataset(images, labels), batch_size=4, seed=7)
    train(models[2], TensorDataset(images, labels), batch_size=4, seed=8)
    assert_same(models[0], models[1])
    assert not torch.equal(models[0][1].weight, models[2][1].weight)


@pytest.mark.parametrize("kind", ["split", "table"])
def test_shuffle_and_drop_last(kind):
    labels = torch.arange(11) % 2
    images = torch.randn(11, 1, 2, 2)
    data = Split(images, labels) if kind == "split" else TensorDataset(images, labels)
    ours, theirs = (nn.Sequential(nn.Flatten(), linear()) for _ in range(2))
    train(ours, data, batch_size=4, shuffle=False, drop_last=True)
    parts = images[:8].split(4), labels[:8].split(4)
    by_hand(theirs, lambda: zip(*parts, strict=True))
    assert_same(ours, theirs)


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(4, 2), nn.Linear(3, 2)

    def forward(self, a, b):
        return self.first(a) - self.second(b)


@pytest.mark.parametrize("nested", [False, True])
def test_several_inputs_go_to_the_model_in_their_order(nested):
    a, _, labels = table()
    b = torch.randn(20, 3)
    ours, theirs = TwoInputs(), TwoInputs()
    data, seen = TensorDataset(a, b, labels), []
    if nested:
        parts = a.split(8), b.split(8), labels.split(8)
        data = [((x, y), z) for x, y, z in zip(*parts, strict=True)]
    batch_size = None if nested else 8
    history = train(
        ours,
        data,
        batch_size=batch_size,
        **({} if nested else {"shuffle": False}),
        after_forward=lambda model, inputs, outputs: seen.append(inputs),
    )
    parts = a.split(8), b.split(8), labels.split(8)
    means = by_hand(theirs, lambda: zip(*parts, strict=True))
    assert_same(ours, theirs)
    assert history["loss"] == pytest.approx(means)
    assert isinstance(seen[0], tuple)
    torch.testing.assert_close(seen[0], (a[:8], b[:8]))


def test_several_targets_and_what_is_no_tensor_go_to_the_loss():
    a, b, _ = table()
    b = b[:, None]
    batches, seen = [(a, ([b, 2 * b], "meters"))], []

    def loss(outputs, targets):
        (first, second), unit = targets
        seen.append(unit)
        return (outputs - first).square().mean() + (outputs - second).square().mean()

    model = linear(1)
    with torch.no_grad():
        before = loss(model(a), batches[0][1]).item()
    history = train(model, batches, loss=loss, epochs=1)
    assert history["loss"] == pytest.approx([before])
    assert seen == ["meters", "meters"]


def test_regression_finds_the_line_and_has_no_accuracy():
    x, y, _ = table(64)
    model = linear(1)
    history = train(
        model,
        TensorDataset(x, y[:, None]),
        loss=functional.mse_loss,
        batch_size=16,
        epochs=60,
    )
    wanted = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    torch.testing.assert_close(model.weight.detach(), wanted, atol=1e-3, rtol=0)
    assert all(map(math.isnan, history["test_accuracy"]))


def test_class_numbers_for_one_output_have_no_accuracy():
    model, (x, _, labels) = linear(1), table()
    loss, accuracy = evaluate(
        model,
        TensorDataset(x, labels),
        loss=lambda o, y: functional.binary_cross_entropy_with_logits(
            o[:, 0], y.float()
        ),
    )
    assert math.isfinite(loss)
    assert math.isnan(accuracy)


def test_tokens_for_an_embedding():
    torch.manual_seed(0)
    tokens = torch.randint(5, (12, 3))
    model = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(12, 2))
    before = model[0].weight.detach().clone()
    history = train(model, TensorDataset(tokens, tokens[:, 0] % 2), batch_size=4)
    assert history["loss"][1] < history["loss"][0]
    assert not torch.equal(model[0].weight, before)


@pytest.mark.parametrize("kind", ["loader", "table", "list"])
def test_what_to_test_on_may_be_any_of_these(kind):
    x, _, labels = table()
    data = TensorDataset(x, labels)
    tests = {"loader": DataLoader(data, batch_size=6), "table": data}
    tests["list"] = list(tests["loader"])
    model = linear()
    history = train(model, data, batch_size=8, test=tests[kind])
    outputs = model(x)
    assert history["test_loss"][-1] == pytest.approx(
        CROSS_ENTROPY(outputs, labels).item()
    )
    right = (outputs.argmax(dim=1) == labels).float().mean().item()
    assert history["test_accuracy"][-1] == pytest.approx(right)


# What is refused


X, Y = torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((X, Y), r"got data of type tuple; .*Wrap the tensors: TensorDataset\(inputs,"),
        (X, r"of type Tensor; .*TensorDataset"),
        (np.zeros((4, 3)), r"of type ndarray; .*torch\.from_numpy makes tensors"),
        ((np.zeros((4, 3)), np.zeros(4)), r"of type tuple; .*torch\.from_numpy"),
        (TensorDataset(X[:0], Y[:0]), "a TensorDataset without samples"),
        (
            Subset(TensorDataset(X, Y), [0]),
            r"of type Subset; .*DataLoader\(data, batch",
        ),
        (iter([(X, Y)]), r"of type list_iterator; .*used up after one epoch: pass li"),
        (((x, Y) for x in [X]), "of type generator; .*used up"),
        ({"train": (X, Y)}, r"of type dict; .*course_lib\.data\.load"),
        ("digits", "of type str; .*load"),
        (None, "of type NoneType; .*load"),
        ([{"x": X, "y": Y}], r"batch 1 is of type dict; .*A collate_fn"),
        ([(X,)], r"batch 1 is of 1 part; .*TensorDataset\(x, x\)"),
        ([(X, Y), (X.numpy(), Y)], r"batch 2 has inputs of type ndarray; .*from_numpy"),
        ([({"x": X}, Y)], "batch 1 has inputs of type dict; .*of dicts"),
        ([(torch.tensor(1.0), Y)], r"batch 1 has inputs of type Tensor of shape \(\)"),
        ([(X[:0], Y[:0])], "batch 1 has no samples"),
    ],
)
def test_other_data_is_refused_with_what_to_write(data, message):
    tensors = isinstance(data, TensorDataset)
    with pytest.raises(ValueError, match=f"^fit: .*{message}"):
        train(linear(2, 3), data, **({"batch_size": 2} if tensors else {}))


def test_data_without_a_batch_is_refused():
    loader = DataLoader(TensorDataset(X, Y), batch_size=8, drop_last=True)
    for data in (loader, []):
        with pytest.raises(
            ValueError, match=r"fit: the data gave no batch\. Is it empty"
        ):
            train(linear(2, 3), data)
    with pytest.raises(ValueError, match="evaluate: the data gave no batch"):
        evaluate(linear(2, 3), loader, loss=CROSS_ENTROPY)


@pytest.mark.parametrize(
    "options", [{"batch_size": 2}, {"shuffle": False}, {"drop_last": True}]
)
def test_batches_that_are_made_already_take_no_such_options(options):
    loader = DataLoader(TensorDataset(X, Y), batch_size=2)
    (name,) = options
    with pytest.raises(
        ValueError, match=f"got {name}=.*DataLoader has made its batches"
    ):
        train(linear(2, 3), loader, **options)


def test_tensors_need_a_batch_size():
    words = r"^fit: batch_size is missing; for example batch_size=32\.$"
    with pytest.raises(ValueError, match=words):
        train(linear(2, 3), TensorDataset(X, Y))


def zeros():
    one, split = torch.ones(1, 1, 1), Split(torch.zeros(4, 1, 2, 2), Y)
    return Dataset("zeros", split, split, ("a",), 0 * one, one)


def test_two_test_sets_are_refused():
    data, model = zeros(), nn.Sequential(nn.Flatten(), linear())
    with pytest.raises(ValueError, match=r"a Dataset and test=; .*data\.train"):
        train(model, data, batch_size=2, test=data.test)


def test_where_one_split_is_wanted_a_dataset_is_refused():
    data, model = zeros(), nn.Sequential(nn.Flatten(), linear())
    words = r"type Dataset; wanted a Split, .* Pass one of its splits: data\.test, or"
    with pytest.raises(ValueError, match=f"^evaluate: got data of {words}"):
        evaluate(model, data, loss=CROSS_ENTROPY)
    with pytest.raises(ValueError, match=f"^fit: test: got data of {words}"):
        train(model, data.train, batch_size=2, test=data)


def test_a_test_set_is_looked_at_before_the_first_step():
    model = linear(2, 3)
    before = model.weight.detach().clone()
    with pytest.raises(ValueError, match="fit: test: got data of type Tensor"):
        train(model, TensorDataset(X, Y), batch_size=2, test=X)
    assert torch.equal(model.weight, before)


# Words for what torch says


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        (
            linear(2, 3),
            (X.double(), Y),
            r"inputs of \(float64 \(4, 3\).*\.float\(\) as",
        ),
        (linear(2, 3), (X.long(), Y), r"int64 \(4, 3\).*parameters are torch\.float32"),
        (
            linear(2, 5),
            (X, Y),
            r"the model failed on inputs of \(float32 \(4, 3\) on cp",
        ),
        (linear(2, 3), (X, X, Y), "positional argument.*All of a batch but its last"),
        (
            linear(2, 3),
            (X, Y + 2),
            r"Target 2 is out of bounds.*Labels of C classes are",
        ),
        (
            linear(2, 3),
            (X, Y.float()),
            r"labels of float32 \(4,\).*Class numbers are i",
        ),
        (linear(2, 3), (X, Y[:3]), r"the loss failed on outputs of float32 \(4, 2\)"),
        (
            nn.Embedding(3, 2),
            (Y + 3, Y),
            "out of range in self. An Embedding of n rows takes",
        ),
        (nn.Embedding(3, 2), (X, Y), r"An Embedding takes .*: convert.*\.long\(\)"),
        (nn.RNN(3, 2), (X, Y), r"outputs\[0\], labels\)"),
    ],
)
def test_what_fails_inside_of_torch_is_said_with_the_tensors(model, data, message):
    with pytest.raises(ValueError, match=f"(?s)^fit: epoch 1, batch 1: .*{message}"):
        train(model, [data])
    with pytest.raises(ValueError, match=f"(?s)^evaluate: .*{message}"):
        evaluate(model, [data], loss=CROSS_ENTROPY)


def test_an_index_error_of_ones_own_code_gets_no_advice_about_an_embedding():
    def loss(outputs, labels):
        return [outputs.sum()][len(labels)]

    message = r"the loss failed on .*: list index out of range\. Compare the shapes"
    with pytest.raises(ValueError, match=message):
        train(linear(2, 3), [(X, Y)], loss=loss)


def test_a_loss_with_its_arguments_exchanged():
    message = r"the loss failed on .*not implemented for 'Long'\. Compare the shapes"
    with pytest.raises(ValueError, match=message):
        train(linear(2, 3), [(X, Y)], loss=lambda o, y: CROSS_ENTROPY(y, o))


def test_what_fails_in_backward_is_said_with_the_labels():
    class Half(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.sum()

        @staticmethod
        def backward(ctx, grad):
            raise RuntimeError("Found dtype Long but expected Float")

    message = r"batch 1: backward failed on labels of int64 \(4,\).*\(\.float\(\)\)"
    with pytest.raises(ValueError, match=message):
        train(linear(2, 3), [(X, Y)], loss=lambda o, y: Half.apply(o))


def test_a_batch_of_one_under_batch_norm():
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(9, 3), torch.arange(9) % 2)
    model = nn.Sequential(nn.BatchNorm1d(3), linear(2, 3))
    message = "epoch 1, batch 3: the model failed.*pass drop_last=True, or another"
    with pytest.raises(ValueError, match=message):
        train(model, data, batch_size=4)
    assert len(train(model, data, batch_size=4, drop_last=True)) == 2


def test_ones_own_errors_keep_their_kind():
    class Own(RuntimeError):
        pass

    def loss(outputs, labels):
        raise Own("on purpose")

    with pytest.raises(Own, match=r"^on purpose$"):
        train(linear(2, 3), [(X, Y)], loss=loss)
    with pytest.raises(TrainingError):
        train(linear(2, 3), [(X * math.nan, Y)])


# Broadcasting


COLUMN, ROW = torch.randn(6, 1), torch.randn(6)


def meet_late(outputs, targets):
    return (torch.sigmoid(2 * outputs) - targets.double().float()).abs().mean()


@pytest.mark.parametrize(
    "loss",
    [
        functional.mse_loss,
        functional.l1_loss,
        nn.SmoothL1Loss(),
        lambda o, y: ((o - y) ** 2).mean(),
        lambda o, y: (y - o).square().mean(),
        lambda o, y: torch.sub(y, other=o).square().mean(),
        meet_late,
    ],
)
@pytest.mark.parametrize("flip", [False, True])
def test_a_column_against_a_row_is_refused(loss, flip):
    model = nn.Sequential(linear(1, 3), nn.Flatten(0)) if flip else linear(1, 3)
    batch = torch.randn(6, 3), COLUMN if flip else ROW
    message = r"outputs of shape \(6,(?: 1)?\) meet labels of shape \(6,.*all pairs"
    with pytest.raises(ValueError, match=f"^fit: epoch 1, batch 1: .*{message}"):
        train(model, [batch], loss=loss)
    with pytest.raises(ValueError, match=f"^evaluate: .*{message}"):
        evaluate(model, [batch], loss=loss)


@pytest.mark.parametrize(
    "loss",
    [
        lambda o, y: functional.mse_loss(o.squeeze(1), y),
        lambda o, y: functional.mse_loss(o, y[:, None]),
        lambda o, y: (o[:, 0] - y).square().mean(),
        lambda o, y: ((o - o.T) - (y[:, None] - y)).square().mean(),  # pairs, meant
        lambda o, y: -(y @ o).mean(),
        lambda o, y: functional.binary_cross_entropy_with_logits(o.flatten(), y),
    ],
)
def test_a_loss_that_gives_them_one_shape_is_free_to(loss):
    ours, theirs, x = linear(1, 3), linear(1, 3), torch.randn(6, 3)
    train(ours, [(x, ROW)], loss=loss)
    by_hand(theirs, lambda: [(x, ROW)], loss=loss)
    assert_same(ours, theirs)


def test_one_sample_can_be_given_in_either_shape():
    x = torch.randn(1, 3)
    train(linear(1, 3), [(x, ROW[:1])], loss=lambda o, y: (o - y).square().mean())
