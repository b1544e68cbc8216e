"""Faults of a step that would pass in silence: each is refused, or put right."""

import copy
import inspect
import math
import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from course_lib import losses
from course_lib.data import Split
from course_lib.regularization import L1L2, penalty, regularize
from course_lib.rules import Adam
from course_lib.training import History, TrainingError, evaluate, fit

CROSS_ENTROPY = functional.cross_entropy


def split(samples=12):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(samples) % 3
    inputs = torch.randn(samples, 1, 2, 2, generator=generator)
    return Split(inputs + labels[:, None, None, None], labels)


def network(*middle):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3), *middle)


def sgd(model, lr=0.1):
    return torch.optim.SGD(model.parameters(), lr=lr)


def train(model, data=None, **changes):
    options = {"loss": CROSS_ENTROPY, "epochs": 1, "batch_size": 4, **changes}
    if "optimizer" not in options:
        options["optimizer"] = sgd(model)
    return fit(model, data or split(), **options)


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


def assert_same(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


# Losses for each sample


@pytest.mark.parametrize(
    ("each", "mean"),
    [
        (losses.cross_entropy, CROSS_ENTROPY),
        (
            lambda o, y: CROSS_ENTROPY(o, y, reduction="none"),
            CROSS_ENTROPY,
        ),
        (
            lambda o, y: losses.squared_error(o, functional.one_hot(y, 3)),
            lambda o, y: functional.mse_loss(o, functional.one_hot(y, 3).float()),
        ),
    ],
)
def test_a_loss_for_each_sample_is_its_mean(each, mean):
    ours, theirs = network(), network()
    mine, other = train(ours, loss=each), train(theirs, loss=mean)
    torch.testing.assert_close(weights(ours), weights(theirs))
    assert mine["loss"] == pytest.approx(other["loss"])
    tested = [evaluate(ours, split(), loss=loss) for loss in (each, mean)]
    assert tested[0] == pytest.approx(tested[1])


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda o, y: o.square(), r"shape \(4, 3\); wanted a scalar, or \(4,\), a num"),
        (
            lambda o, y: o.square()[:2].sum(1),
            r"shape \(2,\); .*reduce\(cross_entropy\(",
        ),
        (lambda o, y: o.sum().item(), r"type float; wanted a tensor\. \.item\(\), flo"),
        (lambda o, y: o.sum().detach().numpy(), "type ndarray; wanted a tensor"),
        (lambda o, y: (o.sum(), 1), "type tuple; wanted a tensor"),
        (lambda o, y: (o.argmax(1) != y).sum(), "is of torch.int64; wanted real float"),
        (lambda o, y: o.sum() * 1j, "is of torch.complex64; wanted real float"),
        (lambda o, y: o.sum().detach(), r"has no gradient.*\.detach\(\), \.item\(\)"),
        (lambda o, y: (o.argmax(1) != y).float().mean(), "no gradient.*argmax"),
    ],
)
@pytest.mark.parametrize("beside", [None, penalty])
def test_a_loss_that_can_train_nothing_is_refused(loss, message, beside):
    model = network()
    regularize(model[1], weight=L1L2(l2=0.1))
    before = weights(model)
    with pytest.raises(
        ValueError, match=f"^fit: epoch 1, batch 1: the loss .*{message}"
    ):
        train(model, loss=loss, penalty=beside)
    assert_same(weights(model), before)


def test_a_term_alone_may_do_the_training():
    model = network()
    before = weights(model)
    train(
        model,
        loss=lambda o, y: torch.zeros(()),
        after_forward=lambda m, x, o: losses.add_loss("size", o.square().mean()),
    )
    assert not torch.equal(model[1].weight, before[0])


def test_a_penalty_must_be_a_scalar_too():
    with pytest.raises(
        ValueError, match=r"the penalty has shape \(3, 4\); wanted a sc"
    ):
        train(network(), penalty=lambda m: m[1].weight.square())
    with pytest.raises(ValueError, match="the penalty is of type float"):
        train(network(), penalty=lambda m: 0.0)


# What the optimizer holds


@pytest.mark.parametrize("beside", [None, penalty])
def test_an_optimizer_of_another_model_is_refused(beside):
    model, other = network(), network()
    regularize(model[1], weight=L1L2(l2=0.1))
    message = (
        r"reaches no parameter of the optimizer, .*holds a tensor \(3, 4\) of no part "
        r"of this model, a tensor \(3,\).*torch\.optim\.SGD\(model\.parameters"
    )
    with pytest.raises(ValueError, match=message):
        train(model, optimizer=sgd(other), penalty=beside)


def test_a_head_that_was_put_in_after_the_optimizer_is_refused():
    model = network()
    optimizer = sgd(model[1])
    model[1] = nn.Linear(4, 3)
    with pytest.raises(ValueError, match="reaches no parameter of the optimizer"):
        train(model, optimizer=optimizer)


def test_frozen_parameters_stay_and_all_frozen_is_refused():
    model = network(nn.Linear(3, 3))
    model[1].requires_grad_(False)
    before = weights(model)
    train(model)
    assert_same(weights(model)[:2], before[:2])
    assert not torch.equal(model[2].weight, before[2])
    model[2].requires_grad_(False)
    with pytest.raises(
        ValueError, match=r"the loss has no gradient.*all of them are fro"
    ):
        train(model)


class Cut(nn.Module):
    """Two layers; the gradient of the first is lost on the way, or it is not used."""

    def __init__(self, way):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 3)
        self.way = way

    def forward(self, x):
        return self.head(self.way(self, x.flatten(1)))


def without_gradient(model, x):
    with torch.no_grad():
        return model.body(x)


@pytest.mark.parametrize("way", [lambda m, x: m.body(x).detach(), without_gradient])
@pytest.mark.parametrize("beside", [None, penalty])
def test_a_layer_whose_gradient_is_lost_is_named(way, beside):
    model = Cut(way)
    regularize(model.body, weight=L1L2(l2=0.1))
    message = (
        r"fit: 'body\.weight', 'body\.bias': the layer is called, but no loss reac"
    )
    with pytest.warns(UserWarning, match=message) as caught:
        train(model, penalty=beside, epochs=3)
    assert len(caught) == 1
    assert caught[0].filename == __file__ or "training" in caught[0].filename
    assert not model.body._forward_hooks


@pytest.mark.parametrize(
    "way",
    [
        lambda m, x: x,  # left out on purpose
        lambda m, x: m.body(x),
        lambda m, x: m.body(x) if len(x) < 4 else x,  # now and then: the last batch
        lambda m, x: checkpoint(m.body, x, use_reentrant=False),
    ],
)
def test_other_layers_are_not(way):
    model = Cut(way)
    train(model, split(11), epochs=2)
    assert not model.body._forward_hooks


def test_reentrant_checkpoints_hide_their_graph_and_train():
    model = network()
    inner = model[1]

    def forward(x):
        return checkpoint(inner, x.flatten(1).requires_grad_(), use_reentrant=True)

    model.forward = forward
    before = weights(model)
    train(model)
    assert not torch.equal(inner.weight, before[0])


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")]
)
def test_wrapped_models_train_as_their_inner_one(wrap):
    plain, inner = network(), network()
    model = wrap(inner)
    mine, other = train(model, epochs=2), train(plain, epochs=2)
    torch.testing.assert_close(weights(inner), weights(plain))
    assert mine["loss"] == pytest.approx(other["loss"])


# Gradients that are not finite


def nan_gradient(outputs, labels):
    """Finite, and so is its gradient by the outputs, but for a root at 0."""
    return CROSS_ENTROPY(outputs, labels) + 0 * (0 * outputs).abs().sqrt().sum()


@pytest.mark.parametrize(
    "optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.LBFGS]
)
def test_a_gradient_that_is_nan_stops_before_the_update(optimizer):
    model = network()
    before = weights(model)
    message = (
        r"^fit: epoch 1, batch 1: the loss is finite, but the gradient of '1\.weight', "
        r"'1\.bias' is not\. The weights are those before this batch"
    )
    with pytest.raises(TrainingError, match=message):
        train(model, loss=nan_gradient, optimizer=optimizer(model.parameters(), lr=0.1))
    assert_same(weights(model), before)


@pytest.mark.parametrize("wrong", ["inputs", "gradient"])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.LBFGS])
def test_a_batch_that_is_refused_leaves_no_trace_in_the_buffers(wrong, optimizer):
    """Else the running means are nan, and so is the model in eval mode."""

    class Counted(nn.BatchNorm1d):
        def forward(self, x):
            self.seen = self.seen + 1  # another tensor
            return super().forward(x)

    layer = Counted(3)
    layer.register_buffer("seen", torch.zeros(()))
    model, data = network(layer), split()
    if wrong == "inputs":
        data.inputs[5:] = torch.inf
    before = {key: b.clone() for key, b in model.state_dict().items()}
    with pytest.raises(TrainingError, match="before this batch"):
        train(
            model,
            Split(data.inputs[5:], data.labels[5:]),
            loss=CROSS_ENTROPY if wrong == "inputs" else nan_gradient,
            optimizer=optimizer(model.parameters(), lr=0.1),
        )
    assert_same(dict(model.state_dict()), before)


def with_buffer(buffer, change=lambda buffer: None):
    """Return a network with a buffer that `change` may write in each pass."""

    class Noted(nn.Identity):
        def forward(self, x):
            change(self.noted)
            return x

    layer = Noted()
    layer.register_buffer("noted", buffer)
    return network(layer)


def test_a_lazy_buffer_gets_its_values_in_the_first_step():
    model = network(nn.LazyBatchNorm1d(affine=False))
    train(model)
    assert model[2].num_batches_tracked == 3


@torch.inference_mode()
def made_for_inference():
    return torch.zeros(3)


@torch.inference_mode()
def count_for_inference(buffer):
    buffer.add_(1)


@pytest.mark.parametrize(
    ("make", "change"),
    [
        (lambda: torch.zeros(1).expand(3), lambda buffer: None),
        (lambda: torch.full((1,), torch.nan).expand(3), lambda buffer: None),
        (made_for_inference, lambda buffer: None),
        (made_for_inference, count_for_inference),
        (lambda: torch.zeros(3), lambda buffer: buffer.data.add_(1)),
        (lambda: torch.zeros(3), lambda buffer: buffer.resize_(4)),
    ],
)
def test_a_buffer_of_any_kind_does_not_hide_the_error(make, change):
    model = with_buffer(make(), change)
    before = model[2].noted.clone()
    with pytest.raises(TrainingError, match=r"of .1\.weight."):
        train(model, loss=nan_gradient)
    if model[2].noted.shape == before.shape:
        torch.testing.assert_close(model[2].noted, before, equal_nan=True)


def test_a_buffer_that_did_not_change_is_not_written():
    model = with_buffer(torch.zeros(3))
    version = model[2].noted._version
    with pytest.raises(TrainingError):
        train(model, loss=nan_gradient)
    assert model[2].noted._version == version


def test_the_third_step_is_undone_to_the_second_even_where_a_buffer_grew():
    """Its copies are in the tensors of the steps before where they fit."""
    model, calls = network(nn.BatchNorm1d(3)), []
    model.register_buffer("rows", torch.zeros(0))

    def loss(outputs, labels):
        value = CROSS_ENTROPY(outputs, labels)
        calls.append({k: v.clone() for k, v in model.state_dict().items()})
        model.rows = torch.zeros(len(calls) // 2)
        return value * math.nan if len(calls) == 4 else value

    with pytest.raises(TrainingError):
        train(model, batch_size=3, loss=loss)
    state = model.state_dict()
    assert state["2.num_batches_tracked"] == 3
    assert state["rows"].shape == (1,)
    assert_same(state["2.running_mean"], calls[2]["2.running_mean"])


class Spoiled(torch.autograd.Function):
    """The identity; its gradient is a given number."""

    @staticmethod
    def forward(ctx, x, number):
        ctx.number = number
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return torch.full_like(grad, ctx.number), None


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan])
def test_only_the_spoiled_parameter_is_named_and_the_history_comes_along(number):
    model, steps = network(), []

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.scale = model, nn.Parameter(torch.ones(3))

        def forward(self, x):
            steps.append(weights(self))
            spoil = number if len(steps) == 5 else 0.0  # the second epoch's second
            return self.inner(x) * Spoiled.apply(self.scale, spoil)

    scaled = Scaled()
    with pytest.raises(
        TrainingError, match=r"epoch 2, batch 2.*of 'scale' is"
    ) as caught:
        train(scaled, epochs=3)
    assert_same(weights(scaled), steps[-1])
    assert caught.value.history["epoch"] == [1]


def test_large_gradients_are_finite():
    model = network()

    class Large(nn.Module):
        def forward(self, x):
            return Spoiled.apply(model(x), 1e30)  # its square is beyond float32

    large = Large()
    large.inner = model
    history = train(large, split(4), optimizer=sgd(model, lr=1e-30))
    assert len(history) == 1


def test_what_is_added_after_backward_is_looked_at_too():
    model = network()

    def spoil(model):
        model[1].bias.grad[0] = math.nan

    with pytest.raises(TrainingError, match=r"gradient of '1\.bias' is not"):
        train(model, after_backward=spoil)


# Optimizers

PLAIN = ["SGD", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "Adadelta", "Adagrad"]
PLAIN += ["ASGD", "RMSprop", "Rprop", "Adafactor"]
SPECIAL = {"LBFGS", "SparseAdam", "Muon"}


def test_every_optimizer_of_torch_is_tried():
    classes = inspect.getmembers(torch.optim, inspect.isclass)
    here = {name for name, kind in classes if issubclass(kind, torch.optim.Optimizer)}
    assert here - {"Optimizer"} <= {*PLAIN, *SPECIAL}


@pytest.mark.parametrize("name", PLAIN)
def test_fit_takes_the_steps_of_the_optimizer(name):
    ours, theirs = network(), network()
    kind = getattr(torch.optim, name)
    train(ours, split(4), optimizer=kind(ours.parameters()), epochs=3, shuffle=False)
    optimizer, data = kind(theirs.parameters()), split(4)
    for _ in range(3):
        optimizer.zero_grad()
        CROSS_ENTROPY(theirs(data.inputs), data.labels).backward()
        optimizer.step()
    assert_same(weights(ours), weights(theirs))


def test_lbfgs_asks_as_often_as_it_likes():
    ours, theirs, data = network(), network(), split()
    options = {"lr": 0.5, "max_iter": 5, "line_search_fn": "strong_wolfe"}
    optimizer = torch.optim.LBFGS(ours.parameters(), **options)
    history = train(
        ours, data, optimizer=optimizer, epochs=3, batch_size=12, shuffle=False
    )
    optimizer, means = torch.optim.LBFGS(theirs.parameters(), **options), []

    def closure():
        optimizer.zero_grad()
        loss = CROSS_ENTROPY(theirs(data.inputs), data.labels)
        loss.backward()
        return loss

    for _ in range(3):
        means.append(optimizer.step(closure).item())
    torch.testing.assert_close(weights(ours), weights(theirs))
    assert history["loss"] == pytest.approx(means)
    assert history["loss"][-1] < history["loss"][0]


def test_lbfgs_goes_back_when_one_of_its_trials_fails():
    model, calls = network(), []

    def loss(outputs, labels):
        calls.append(len(labels))
        value = CROSS_ENTROPY(outputs, labels)
        return value * math.nan if len(calls) == 3 else value

    before = weights(model)
    with pytest.raises(TrainingError, match="epoch 1, batch 1: the loss is nan"):
        train(model, loss=loss, optimizer=torch.optim.LBFGS(model.parameters(), lr=1))
    assert_same(weights(model), before)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_muon_moves_the_matrices_it_holds():
    model = network()
    before = weights(model)
    train(model, optimizer=torch.optim.Muon([model[1].weight]))
    assert not torch.equal(model[1].weight, before[0])
    assert_same(model[1].bias.detach(), before[1])


def test_sparse_gradients_are_looked_at():
    torch.manual_seed(0)
    tokens, labels = torch.tensor([[0, 1], [1, 2], [0, 2]]), torch.tensor([0, 1, 0])
    table = nn.Embedding(4, 2, sparse=True)
    model = nn.Sequential(table, nn.Flatten(), nn.Unflatten(1, (2, 2)), nn.Flatten())
    before = table.weight.detach().clone()
    optimizer = torch.optim.SparseAdam(model.parameters(), lr=0.1)
    fit(model, [(tokens, labels)], loss=CROSS_ENTROPY, optimizer=optimizer, epochs=2)
    moved = (table.weight != before).any(dim=1)
    assert moved.tolist() == [True, True, True, False]
    with pytest.raises(TrainingError, match=r"gradient of '0\.weight' is not"):
        fit(
            model,
            [(tokens, labels)],
            loss=nan_gradient,
            optimizer=optimizer,
            epochs=1,
        )


def test_what_an_optimizer_refuses_is_said_with_the_batch():
    model = network()
    optimizer = torch.optim.SparseAdam(model.parameters())
    message = (
        r"^fit: epoch 1, batch 1: SparseAdam failed: SparseAdam does not support dense "
        r"gradients, please consider Adam instead\.$"
    )
    with pytest.raises(ValueError, match=message):
        train(model, optimizer=optimizer)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"loss": nn.CrossEntropyLoss},
            r"loss=CrossEntropyLoss; .*CrossEntropyLoss\(\)",
        ),
        ({"loss": "mse"}, "loss='mse'; wanted a function"),
        ({"optimizer": torch.optim.SGD}, r"optimizer=SGD; .*SGD\(model\.parameters"),
        ({"optimizer": "adam"}, "optimizer='adam'; wanted one of torch.optim"),
        ({"optimizer": Adam()}, "optimizer=Adam.*course_lib.rules go with"),
    ],
)
def test_what_is_no_loss_and_no_optimizer(changes, message):
    with pytest.raises(ValueError, match=f"^fit: got {message}"):
        train(network(), **changes)
    if "loss" in changes:
        with pytest.raises(ValueError, match=f"^evaluate: got {message}"):
            evaluate(network(), split(), **changes)


def test_an_autocast_around_fit_sees_the_weights_move():
    """torch holds its casts of weights until the outermost autocast ends."""

    class Cast(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network()

        def forward(self, x):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return self.inner(x)

    def loss(outputs, labels):
        return CROSS_ENTROPY(outputs.float(), labels)

    inside, around = Cast(), network()
    options = {"epochs": 3, "test": split(), "loss": loss}
    wanted = train(inside, split(), **options)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = train(around, split(), **options)
        also = evaluate(around, split(), loss=loss)
    assert_same(weights(around), weights(inside))
    assert got["loss"] == pytest.approx(wanted["loss"], rel=0.01)
    assert got["test_loss"] == pytest.approx(wanted["test_loss"], rel=0.01)
    assert also[0] == got["test_loss"][-1]


# Modes


def normed():
    model = network(nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 3))
    train(model)
    return model


def seen_modes(model):
    """Train for two epochs with a test; return the modes in each pass of training."""
    seen = []

    def note(model, inputs, outputs):
        seen.append([m.training for m in model.modules()])

    train(
        model,
        epochs=2,
        batch_size=6,
        test=split(),
        after_forward=note,
        on_epoch=lambda _: model.eval() and None,  # as for a picture
    )
    return seen


def test_a_part_in_eval_mode_is_frozen_on_purpose():
    model = normed()
    model[2].eval(), model[3].eval()
    before, twin = copy.deepcopy(model.state_dict()), copy.deepcopy(model)
    modes = [m.training for m in model.modules()]
    assert seen_modes(model) == [modes] * 4
    assert [m.training for m in model.modules()] == modes
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(getattr(model[2], name), before[f"2.{name}"])
    # The same by hand: normalized by the old statistics, nothing dropped.
    optimizer = sgd(twin)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        order = torch.randperm(12, generator=generator)
        for chosen in order.split(6):
            data = split()
            optimizer.zero_grad()
            CROSS_ENTROPY(twin(data.inputs[chosen]), data.labels[chosen]).backward()
            optimizer.step()
    torch.testing.assert_close(weights(model), weights(twin))


def test_a_frozen_container_freezes_its_parts():
    model = nn.Sequential(
        nn.Flatten(), nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    )
    model[1].eval()
    assert seen_modes(model) == [[True, True, False, False, False]] * 4


def test_a_model_that_is_in_eval_mode_itself_trains_whole():
    model = normed().eval()
    before = model[2].running_mean.clone()
    assert seen_modes(model) == [[True] * 6] * 4
    assert not any(m.training for m in model.modules())
    assert not torch.equal(model[2].running_mean, before)


def test_a_train_method_of_ones_own_is_called():
    class Kept(nn.Sequential):
        def train(self, mode=True):
            super().train(mode)
            self[1].eval()  # the popular way to freeze a batch norm
            return self

    model = Kept(nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, 3))
    assert seen_modes(model) == [[True, True, False, True]] * 4


# Errors in other processes


def fail():
    history = train(network())
    raise TrainingError("fit: epoch 2, batch 1: on purpose", history)


def test_the_error_crosses_to_another_process():
    history = train(network())
    for change in (lambda e: pickle.loads(pickle.dumps(e)), copy.deepcopy, copy.copy):
        error = change(TrainingError("on purpose", history))
        assert (str(error), error.args) == ("on purpose", ("on purpose",))
        assert error.history["loss"] == history["loss"]
    fresh = get_context("spawn")
    with (
        ProcessPoolExecutor(1, mp_context=fresh) as pool,
        pytest.raises(TrainingError) as caught,
    ):
        pool.submit(fail).result()
    assert str(caught.value) == "fit: epoch 2, batch 1: on purpose"
    assert isinstance(caught.value.history, History)
    assert len(caught.value.history) == 1


def test_a_model_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"^fit: got generator; wanted an nn\.Module"):
        train(network().parameters(), optimizer=sgd(network()))
