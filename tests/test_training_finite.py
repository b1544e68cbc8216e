"""Numbers that are not finite stop `fit`, even where a GPU is not waited for."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils.data import TensorDataset

from course_lib.losses import add_loss
from course_lib.training import TrainingError, evaluate, fit
from course_lib.training.checks import BufferCopies
from course_lib.training.finite import FiniteSteps, read_scalars
from course_lib.vat import virtual_adversarial_loss
from tests.pretended_gpu.tensors import waits


def network():
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(3)
    first = nn.Linear(4, 3, bias=False)  # its gradient would be rounding alone
    return nn.Sequential(first, norm, nn.ReLU(), nn.Linear(3, 2))


def data(batches=8):
    torch.manual_seed(1)
    return torch.randn(8 * batches, 4), torch.randint(2, (8 * batches,))


def adam(model, **options):
    return torch.optim.Adam(model.parameters(), lr=0.1, **options)


def train(model, optimizer, split, **options):
    options = {
        "loss": nn.functional.cross_entropy,
        "epochs": 1,
        "batch_size": 8,
    } | options
    return fit(
        model, TensorDataset(*split), optimizer=optimizer, shuffle=False, **options
    )


# Waits


@pytest.mark.parametrize(("options", "a_step"), [({"fused": True}, 0), ({}, 1)])
def test_fit_waits_for_no_step_of_a_fused_optimizer(gpu, options, a_step):
    for batches in (3, 6):
        model = network().to(gpu)
        waits.clear()
        train(model, adam(model, **options), data(batches), epochs=2)
        assert sum(waits.values()) == 2 * (batches * a_step or 1)


def test_terms_and_penalties_are_read_with_the_loss(gpu):
    model = network().to(gpu)
    waits.clear()
    train(model, adam(model), data(3), penalty=lambda m: m[0].weight.square().sum())
    assert sum(waits.values()) == 3


def test_a_virtual_adversarial_term_waits_for_nothing(gpu):
    def add(model, inputs, outputs):
        add_loss("vat", virtual_adversarial_loss(model, inputs))

    for batches in (3, 6):
        model = network().to(gpu)
        waits.clear()
        history = train(
            model, adam(model, fused=True), data(batches), after_forward=add
        )
        assert sum(waits.values()) == 1
        assert history["vat"][0] > 0


def test_evaluate_waits_twice(gpu):
    model = network().to(gpu)
    split = TensorDataset(*data())
    waits.clear()
    evaluate(model, split, loss=nn.functional.cross_entropy, batch_size=8)
    assert sum(waits.values()) == 2


def test_the_numbers_are_those_of_the_cpu(gpu):
    model = network()
    there = copy.deepcopy(model).to(gpu)
    ours = train(there, adam(there, fused=True), data(), epochs=3)
    theirs = train(model, adam(model), data(), epochs=3)
    assert_close(ours["loss"], theirs["loss"])
    for name, tensor in there.state_dict().items():
        assert_close(tensor.cpu(), model.state_dict()[name])


# Failures that are read late


def breaks(inputs, number=math.nan):
    """Break the fifth batch."""
    inputs[32 + 3, 1] = number
    return inputs


def late(gpu, split, **options):
    """Return model and optimizer after a failure that is read late, and its words."""
    model = network().to(gpu)
    optimizer = adam(model, fused=True)
    with pytest.raises(TrainingError) as caught:
        train(model, optimizer, split, **options)
    return model, optimizer, str(caught.value)


def assert_four_steps_were_taken(model, optimizer, inputs, labels):
    twin = network()
    other = adam(twin)
    train(twin, other, (inputs[:32], labels[:32]))
    for name, tensor in twin.state_dict().items():
        assert_close(model.state_dict()[name].cpu(), tensor)
    states = zip(optimizer.state.values(), other.state.values(), strict=True)
    for ours, theirs in states:
        for name in ("step", "exp_avg", "exp_avg_sq"):
            assert_close(ours[name].cpu(), theirs[name])


def test_a_loss_that_is_nan_undoes_what_came_after(gpu):
    inputs, labels = data()
    model, optimizer, words = late(gpu, (breaks(inputs), labels))
    assert words.startswith("fit: epoch 1, batch 5: the loss is nan and the penalty 0;")
    assert_four_steps_were_taken(model, optimizer, inputs, labels)


def test_a_gradient_that_is_nan_names_its_parameters(gpu):
    inputs, labels = data()
    count = iter(range(100))

    def spoil(model):
        if next(count) == 4:
            model[3].bias.grad[1] = math.inf

    model, optimizer, words = late(gpu, (inputs, labels), after_backward=spoil)
    assert words.startswith("fit: epoch 1, batch 5: the loss is finite, but the grad")
    assert "'3.bias'" in words
    assert "'3.weight'" not in words
    assert_four_steps_were_taken(model, optimizer, inputs, labels)


def test_an_earlier_failure_is_what_a_later_error_shows(gpu):
    inputs, labels = data()
    count = iter(range(100))

    def fail(*_):
        if next(count) == 6:
            raise KeyError("mine")

    split = breaks(inputs), labels
    model, optimizer, words = late(gpu, split, after_forward=fail)
    assert words.startswith("fit: epoch 1, batch 5: the loss is nan")
    assert_four_steps_were_taken(model, optimizer, inputs, labels)


def test_a_later_error_alone_is_shown_as_it_is(gpu):
    model, count = network().to(gpu), iter(range(100))

    def fail(*_):
        if next(count) == 6:
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        train(model, adam(model, fused=True), data(), after_forward=fail)


def test_ctrl_c_leaves_no_buffer_of_a_failure_that_nobody_saw(gpu):
    inputs, labels = data()
    count = iter(range(100))

    def interrupt(*_):
        if next(count) == 6:
            raise KeyboardInterrupt

    split = breaks(inputs), labels
    model, optimizer, words = late(gpu, split, after_forward=interrupt)
    assert words.startswith("fit: epoch 1, batch 5: the loss is nan")
    assert_four_steps_were_taken(model, optimizer, inputs, labels)


def test_a_buffer_replaced_by_a_longer_one_is_undone_late(gpu):
    inputs, labels = data()
    model = network().to(gpu)
    model.register_buffer("seen", torch.ones(1, 2, device=gpu))

    def grow(model, *_):
        model.seen = torch.cat([model.seen, torch.ones(1, 2, device=gpu)])

    split = breaks(inputs), labels
    with pytest.raises(TrainingError, match="epoch 1, batch 5"):
        train(model, adam(model, fused=True), split, after_forward=grow)
    assert model.seen.shape == (5, 2)


@pytest.mark.parametrize("skips", [0.0, 1.0])
def test_copies_stay_after_a_failure(skips):
    """Of sparse buffers, for which there is no where(), and of whole numbers, too."""
    model = nn.Module()
    start = {"sparse": torch.eye(2).to_sparse(), "count": torch.tensor(3)}
    for name, buffer in start.items():
        model.register_buffer(name, buffer.clone())
    copies = BufferCopies(model)
    copies.take(unless=torch.tensor(0.0))
    for buffer in model.buffers():
        buffer.mul_(2)
    copies.take(unless=torch.tensor(skips))
    for buffer in model.buffers():
        buffer.mul_(5)
    copies.restore()
    for name, buffer in start.items():
        wanted = buffer.to_dense() * (1 if skips else 2)
        assert torch.equal(getattr(model, name).to_dense(), wanted)


def test_lbfgs_counts_its_first_call_alone():
    """The History has the loss before the step; the calls after it are the search."""
    model, twin = network(), network()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=5)
    inputs, labels = data(2)
    history = train(model, optimizer, (inputs, labels), batch_size=16)
    with torch.no_grad():
        twin.train()
        first = nn.functional.cross_entropy(twin(inputs), labels)
    assert history["loss"] == [pytest.approx(first.item(), rel=1e-6)]


def test_a_hundred_steps_are_read_together(gpu):
    inputs, labels = data(250)
    inputs[-1] = math.nan
    inputs[8 * 120] = math.nan
    model = network().to(gpu)
    waits.clear()
    with pytest.raises(TrainingError, match="epoch 1, batch 121"):
        train(model, adam(model, fused=True), (inputs, labels))
    assert waits[next(k for k in waits if k.startswith("tolist"))] == 2


def test_the_optimizer_updates_again_after_fit(gpu):
    inputs, labels = data()
    model, optimizer, _ = late(gpu, (breaks(inputs), labels))
    assert not hasattr(optimizer, "found_inf")
    before = model[0].weight.cpu().clone()
    train(model, optimizer, data())
    assert not torch.equal(model[0].weight.cpu(), before)


# FiniteSteps by itself


def test_reading_lets_the_optimizer_go_on(gpu):
    """Who catches the error and goes on must not train nothing in silence."""
    weight = nn.Parameter(torch.ones(2, device=gpu))
    optimizer = torch.optim.SGD([weight], lr=1.0, fused=True)
    steps = FiniteSteps(optimizer)
    weight.grad = torch.ones(2, device=gpu)
    steps.note("first", [torch.tensor(math.inf, device=gpu)])
    optimizer.step()
    assert weight.tolist() == [1, 1]
    assert steps.read() == [("first", [math.inf])]
    assert steps.read() == []
    optimizer.step()
    assert weight.tolist() == [0, 0]


def test_numbers_are_exact_on_every_device(device):
    ints = [torch.tensor(n, device=device) for n in (3, 2**60 + 1)]
    assert read_scalars(ints) == [3, 2**60 + 1]  # without float64, which MPS has not
    third = torch.tensor(1 / 3, dtype=torch.float64, device=device)
    many = torch.tensor(2**40 + 1, device=device)
    half = torch.tensor(0.5, dtype=torch.float16, device=device)
    assert read_scalars([half, third, many]) == [0.5, 1 / 3, 2**40 + 1]
    assert read_scalars([]) == []


@pytest.mark.parametrize("as_on_gpu", [False, True])
def test_a_sparse_gradient_is_looked_at_and_a_large_one_is_finite(as_on_gpu):
    weight = nn.Parameter(torch.zeros(3, 2))
    steps = FiniteSteps(torch.optim.SGD([weight], lr=1.0))
    steps.is_on_cpu = not as_on_gpu  # the pretended GPU has no sparse tensors
    steps.note_gradients("large", [torch.full((3, 2), 1e38), torch.zeros(0)])
    for number in (0.25, math.nan):
        sparse = torch.tensor([[0.0, 0.0], [0.5, number]]).to_sparse(1)
        steps.note_gradients(number, [sparse])
    finite = [all(map(math.isfinite, numbers)) for _, numbers in steps.read()]
    assert finite == [True, True, False]
