"""Losses against Keras 3's figures, hand arithmetic, torch, finite differences."""

import copy
import importlib.util
import json
import math
import os
import pickle
import re
import subprocess
import sys
import threading

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from course_lib import loss_terms, losses
from course_lib.losses import (
    LossCollector,
    absolute_error,
    add_loss,
    binary_cross_entropy,
    cross_entropy,
    kl_from_logits,
    reduce,
    squared_error,
)

# Three samples of two steps of two numbers; the steps that are all 0 are padding.
GIVEN = {
    "outputs": [[[0.5, -1], [2, 0.25]], [[-1.5, 3], [0, 0]], [[0, 0], [0, 0]]],
    "targets": [[[1, 1], [-1, 0.5]], [[2, 2.5], [3, 1]], [[-2, 4], [0.5, 0]]],
    "shares": [[[1, 0], [0.5, 0.25]], [[0, 1], [1, 0]], [[0, 0.5], [1, 1]]],
    "labels": [[0, 1], [1, 0], [1, 1]],
    "weights": [1, 2, 0.5],
    "step_weights": [[1, 0], [3, 1], [0.25, 2]],
}
ASK_KERAS = """
import json, sys
import keras
import numpy as np

given = json.load(sys.stdin)
given = {name: np.array(value, "float32") for name, value in given.items()}
outputs, targets = given["outputs"], given["targets"]
ways = {
    "absolute_error": (keras.losses.MeanAbsoluteError(reduction=None), "targets"),
    "squared_error": (keras.losses.MeanSquaredError(reduction=None), "targets"),
    "binary_cross_entropy": (
        keras.losses.BinaryCrossentropy(from_logits=True, reduction=None), "shares"
    ),
    "cross_entropy": (
        keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=None),
        "labels",
    ),
}
each = {name: way(given[wanted], outputs) for name, (way, wanted) in ways.items()}
each["kl_from_logits"] = keras.losses.KLDivergence(reduction=None)(
    keras.ops.softmax(targets), keras.ops.softmax(outputs)
)
loss = keras.losses.MeanAbsoluteError()
weights, step_weights = given["weights"], given["step_weights"]
spread = np.broadcast_to(weights[:, None], step_weights.shape)
masked = keras.layers.Masking()(outputs)
reduced = {
    "plain": loss(targets, outputs),
    "weights": loss(targets, outputs, sample_weight=spread),
    "step weights": loss(targets, outputs, sample_weight=step_weights),
    "mask": loss(targets, masked),
    "mask, weights": loss(targets, masked, sample_weight=spread),
    "mask, step weights": loss(targets, masked, sample_weight=step_weights),
    "one step": loss(targets[:, 0], outputs[:, 0], sample_weight=weights),
}
each = {name: keras.ops.convert_to_numpy(x).tolist() for name, x in each.items()}
print(json.dumps({"each": each, **{name: float(x) for name, x in reduced.items()}}))
"""
KERAS = {  # what ASK_KERAS printed with Keras 3.15.1 on torch 2.13.0
    "each": {
        "absolute_error": [[1.25, 1.625], [2.0, 2.0], [3.0, 0.25]],
        "squared_error": [[2.125, 4.53125], [6.25, 5.0], [10.0, 0.125]],
        "binary_cross_entropy": [
            [0.39366936683654785, 0.9451836943626404],
            [0.12500031292438507, 0.6931471824645996],
            [0.6931471824645996, 0.6931471824645996],
        ],
        "cross_entropy": [
            [0.2014133334159851, 1.910224199295044],
            [0.011047743260860443, 0.6931471824645996],
            [0.6931471824645996, 0.6931471824645996],
        ],
        "kl_from_logits": [
            [0.2582661807537079, 1.1159279346466064],
            [1.047133445739746, 0.3278132379055023],
            [0.6758358478546143, 0.030299894511699677],
        ],
    },
    "plain": 1.6875,
    "weights": 2.0833332538604736,
    "step weights": 1.75,
    "mask": 1.625,
    "mask, weights": 2.2916667461395264,
    "mask, step weights": 2.4166667461395264,
    "one step": 2.25,
}


def given(name, device="cpu"):
    return torch.tensor(GIVEN[name], dtype=torch.float32, device=device)


def steps(name, device="cpu"):
    """Return the given numbers with the steps in the batch: (samples * steps, ...)."""
    return given(name, device).flatten(0, 1)


def our_figures(device="cpu"):
    """Return what ASK_KERAS asks, computed here."""
    outputs, targets = steps("outputs", device), steps("targets", device)
    each = {
        "absolute_error": absolute_error(outputs, targets),
        "squared_error": squared_error(outputs, targets),
        "binary_cross_entropy": binary_cross_entropy(outputs, steps("shares", device)),
        "cross_entropy": cross_entropy(outputs, steps("labels", device).long()),
        "kl_from_logits": kl_from_logits(targets, outputs),
    }
    per_step = each["absolute_error"].view(3, 2)
    weights, step_weights = given("weights", device), given("step_weights", device)
    mask = (given("outputs", device) != 0).any(dim=2)
    first = given("outputs", device)[:, 0], given("targets", device)[:, 0]
    return {
        "each": {name: loss.view(3, 2).tolist() for name, loss in each.items()},
        "plain": reduce(per_step).item(),
        "weights": reduce(per_step, weights=weights).item(),
        "step weights": reduce(per_step, weights=step_weights).item(),
        "mask": reduce(per_step, mask=mask).item(),
        "mask, weights": reduce(per_step, weights=weights, mask=mask).item(),
        "mask, step weights": reduce(per_step, weights=step_weights, mask=mask).item(),
        "one step": reduce(absolute_error(*first), weights=weights).item(),
    }


def assert_figures(ours, keras):
    assert ours.keys() == keras.keys()
    for name, losses_of_steps in ours.pop("each").items():
        for mine, theirs in zip(losses_of_steps, keras["each"][name], strict=True):
            assert mine == pytest.approx(theirs, rel=1e-5, abs=1e-7), name
    for name, figure in ours.items():
        assert figure == pytest.approx(keras[name], rel=1e-6), name


def test_losses_weights_and_masks_mean_what_they_mean_in_keras(device):
    assert_figures(our_figures(device), KERAS)


@pytest.mark.skipif(not importlib.util.find_spec("keras"), reason="Keras is not here")
def test_the_keras_of_this_machine_agrees():
    environment = {**os.environ, "KERAS_BACKEND": "torch"}
    answer = subprocess.run(
        [sys.executable, "-c", ASK_KERAS],
        input=json.dumps(GIVEN),
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    assert_figures(our_figures(), json.loads(answer.stdout.splitlines()[-1]))


# One value for each sample

PAIRS = [
    (absolute_error, functional.l1_loss),
    (squared_error, functional.mse_loss),
    (binary_cross_entropy, functional.binary_cross_entropy_with_logits),
]


@pytest.mark.parametrize(("ours", "torchs"), PAIRS)
@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 3), (4, 3, 2, 5)])
def test_each_sample_has_the_loss_that_torch_gives_it_alone(
    ours, torchs, shape, device
):
    outputs, targets = torch.randn(shape, device=device), torch.rand(shape).to(device)
    alone = [torchs(o, t) for o, t in zip(outputs, targets, strict=True)]
    torch.testing.assert_close(ours(outputs, targets), torch.stack(alone))


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 2), (4, 3, 2, 5)])
def test_cross_entropies_and_divergences_have_their_classes_second(shape, device):
    logits, other = torch.randn(2, *shape, device=device)
    labels = torch.randint(3, (shape[0], *shape[2:]), device=device)
    probabilities = other.softmax(dim=1)
    for targets in (labels, probabilities):
        alone = [
            functional.cross_entropy(z[None], t[None])
            for z, t in zip(logits, targets, strict=True)
        ]
        torch.testing.assert_close(cross_entropy(logits, targets), torch.stack(alone))
    # KL(p || q) = cross-entropy of p against q - entropy of p
    entropy = cross_entropy(other, probabilities)
    wanted = cross_entropy(logits, probabilities) - entropy
    torch.testing.assert_close(kl_from_logits(other, logits), wanted)


def test_a_divergence_by_hand_and_its_directions():
    p, q = torch.tensor([[0.25, 0.75]]).double(), torch.tensor([[0.5, 0.5]]).double()
    wanted = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert kl_from_logits(p.log(), q.log() + 7).item() == pytest.approx(wanted)
    assert kl_from_logits(q.log(), p.log()).item() == pytest.approx(
        0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    )
    assert kl_from_logits(p.log(), p.log() - 3).item() == pytest.approx(0, abs=1e-15)


def test_gradients_of_all_are_finite_differences():
    def some(*shape):
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    shares = torch.rand(3, 4, dtype=torch.float64)
    labels = torch.tensor([0, 3, 1])
    cases = [
        (lambda a: absolute_error(a, shares), some(3, 4)),
        (lambda a: squared_error(a, shares), some(3, 4)),
        (lambda a: cross_entropy(a, labels), some(3, 4)),
        (lambda a: kl_from_logits(a, a.roll(1)), some(3, 4)),
        (lambda a: binary_cross_entropy(a, shares), some(3, 4)),
        (lambda a: reduce(a, weights=shares, mask=shares > 0.3), some(3, 4)),
    ]
    for function, argument in cases:
        assert torch.autograd.gradcheck(function, argument)


def test_logits_far_from_0_are_exact(device):
    logits = torch.tensor([[800.0, -800.0]], device=device)
    other = -logits
    assert kl_from_logits(logits, other).item() == 1600
    assert kl_from_logits(logits, logits).item() == 0
    assert cross_entropy(logits, torch.tensor([1], device=device)).item() == 1600
    targets = torch.tensor([[0.0, 1.0]], device=device)
    assert binary_cross_entropy(logits, targets).item() == 800


@pytest.mark.parametrize(
    "loss", [absolute_error, squared_error, binary_cross_entropy, kl_from_logits]
)
def test_shapes_are_not_broadcast(loss):
    with pytest.raises(ValueError, match=r"has shape \(4, 1\), .* \(4,\); wanted one"):
        loss(torch.zeros(4, 1), torch.zeros(4))
    with pytest.raises(ValueError, match=rf"^{loss.__name__}: "):
        loss(torch.zeros(()), torch.zeros(()))


def test_logits_need_an_axis_of_classes():
    with pytest.raises(ValueError, match=r"cross_entropy: got logits of shape \(4,\)"):
        cross_entropy(torch.zeros(4), torch.tensor(1))
    with pytest.raises(ValueError, match=r"kl_from_logits: .*its batch axis"):
        kl_from_logits(torch.zeros(4), torch.zeros(4))


# reduce


def test_weights_do_not_count_and_masks_do():
    losses = torch.tensor([1.0, 2.0, 6.0])
    ones, mask = torch.ones(3), torch.tensor([True, True, False])
    assert reduce(losses, weights=2 * ones) == 6
    assert reduce(losses, weights=mask.float()) == 1  # 3 / 3
    assert reduce(losses, mask=mask) == 1.5  # 3 / 2
    assert reduce(losses, weights=2 * ones, mask=mask) == 3
    assert reduce(losses, weights=torch.tensor([2, 0, 1])) == pytest.approx(8 / 3)


def test_a_masked_loss_may_be_nan_and_gets_no_gradient(device):
    losses = torch.tensor([1.0, math.nan, 3.0], device=device, requires_grad=True)
    mask = torch.tensor([True, False, True], device=device)
    value = reduce(losses, weights=torch.ones(3, device=device), mask=mask)
    value.backward()
    assert value.item() == 2
    assert losses.grad.tolist() == [0.5, 0, 0.5]


def test_nothing_left_costs_nothing():
    losses = torch.ones(3, requires_grad=True)
    value = reduce(losses, mask=torch.zeros(3, dtype=torch.bool))
    value.backward()
    assert (value.item(), losses.grad.tolist()) == (0, [0, 0, 0])


def test_the_scalar_has_the_dtype_of_the_losses():
    losses = torch.ones(3)
    assert reduce(losses, weights=torch.ones(3).double()).dtype == torch.float32
    assert reduce(losses.double(), mask=losses > 0).dtype == torch.float64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"weights": torch.ones(2)},
            r"\(2,\) for losses of shape \(3, 2\)",
        ),
        ({"weights": torch.ones(())}, r"got weights of shape \(\)"),
        ({"weights": torch.ones(3, 1)}, "wanted the same, or its first axes"),
        ({"mask": torch.ones(2).bool()}, r"got mask of shape \(2,\)"),
        ({"mask": torch.ones(3)}, r"got a mask of torch\.float32; wanted bools"),
        ({"per_sample": torch.ones(())}, "got a scalar; wanted a loss for each sample"),
    ],
)
def test_factors_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        reduce(**{"per_sample": torch.ones(3, 2), **changes})


# LossCollector and add_loss


class Sparse(nn.Module):
    """A layer that charges for its outputs."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(3, 3)

    def forward(self, x):
        outputs = self.linear(x)
        add_loss("sparsity", outputs.abs().mean())
        return outputs


X = torch.tensor([[1.0, -2.0, 0.5], [0.0, 1.0, 3.0]])


def cost_of(layer, x):
    return layer.linear(x).abs().mean()


def test_terms_from_inside_and_from_outside_by_name():
    layer = Sparse()
    with LossCollector() as collector:
        layer(X)
        add_loss("size", layer.linear.weight.square().sum())
    size = layer.linear.weight.square().sum()
    assert list(collector.terms) == ["sparsity", "size"]
    torch.testing.assert_close(collector.terms["sparsity"], cost_of(layer, X))
    torch.testing.assert_close(collector.total(), cost_of(layer, X) + size)
    collector.total().backward()
    ours, layer.linear.weight.grad = layer.linear.weight.grad, None
    (cost_of(layer, X) + layer.linear.weight.square().sum()).backward()
    torch.testing.assert_close(ours, layer.linear.weight.grad)


def test_a_module_that_is_called_twice_pays_twice():
    layer = Sparse()
    with LossCollector() as collector:
        nn.Sequential(layer, layer)(X)
    wanted = cost_of(layer, X) + cost_of(layer, layer.linear(X))
    torch.testing.assert_close(collector.terms["sparsity"], wanted)


def test_each_entry_begins_at_nothing():
    layer, collector = Sparse(), LossCollector()
    for scale in (1, 2, 3):
        with collector:
            layer(scale * X)
        torch.testing.assert_close(collector.total(), cost_of(layer, scale * X))
    with collector:
        pass
    assert collector.terms == {}
    assert collector.total().item() == 0


def test_outside_of_a_block_nothing_is_kept():
    layer, collector = Sparse(), LossCollector()
    attributes = set(vars(layer))
    layer(X)
    with collector:
        layer.eval()(X)
    layer(X)
    assert list(collector.terms) == ["sparsity"]
    torch.testing.assert_close(collector.total(), cost_of(layer, X))
    assert vars(layer).keys() == attributes


def test_an_inner_block_takes_what_comes_in_it():
    with LossCollector() as outer:
        add_loss("a", torch.tensor(1.0))
        with LossCollector() as inner:
            add_loss("a", torch.tensor(10.0))
        add_loss("a", torch.tensor(2.0))
    assert (outer.terms, inner.terms) == ({"a": 3.0}, {"a": 10.0})


def test_an_error_closes_the_block():
    collector = LossCollector()
    with pytest.raises(ArithmeticError), collector:
        raise ArithmeticError
    add_loss("late", torch.tensor(1.0))
    with collector:
        pass
    assert collector.terms == {}


def test_one_collector_is_not_opened_twice():
    collector = LossCollector()
    with collector:
        add_loss("a", torch.tensor(1.0))
        with pytest.raises(ValueError, match="this one is open already"):
            collector.__enter__()
        add_loss("a", torch.tensor(1.0))
    assert collector.terms == {"a": 2}


def test_copies_and_pickles_collect_their_own():
    layer = Sparse()
    with LossCollector() as first:
        layer(X)
        twin = copy.deepcopy(nn.Sequential(layer))
        nn.init.zeros_(twin[0].linear.weight)
        unpickled = pickle.loads(pickle.dumps(layer))
    for model, wanted in ((twin, cost_of(twin[0], X)), (unpickled, first.total())):
        with LossCollector() as collector:
            model(X)
        torch.testing.assert_close(collector.total(), wanted)


def test_threads_have_collectors_of_their_own():
    barrier, seen = threading.Barrier(3, timeout=30), {}

    def work(number):
        with LossCollector() as collector:
            barrier.wait()  # all are open
            for _ in range(100):
                add_loss("number", torch.tensor(float(number)))
            barrier.wait()  # none is closed
        seen[number] = collector.total().item()

    threads = [threading.Thread(target=work, args=(n,)) for n in (1, 2, 3)]
    with LossCollector() as mine:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert seen == {1: 100, 2: 200, 3: 300}
    assert mine.terms == {}


# Dynamo looks at the .grad of whatever crosses a break in the graph.
crosses_a_break = pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)


@crosses_a_break
@pytest.mark.parametrize("inside", [torch.compile, lambda m, **o: m.compile(**o) or m])
def test_compiled_models_give_the_same_terms_each_step(inside):
    torch.compiler.reset()
    layer = Sparse()
    compiled = inside(nn.Sequential(layer, nn.ReLU(), layer), backend="eager")
    plain = nn.Sequential(layer, nn.ReLU(), layer)
    for scale in (1, 2, 3):
        with LossCollector() as ours:
            outputs = compiled(scale * X)
        with LossCollector() as wanted:
            torch.testing.assert_close(outputs, plain(scale * X))
        torch.testing.assert_close(ours.terms, wanted.terms)
        grads = [
            torch.autograd.grad(c.total(), layer.linear.weight) for c in (ours, wanted)
        ]
        torch.testing.assert_close(*grads)
    compiled(X)  # without a collector


@crosses_a_break
def test_a_compiled_step_collects_too():
    torch.compiler.reset()
    layer = Sparse()

    @torch.compile(backend="eager")
    def step(x):
        with LossCollector() as collector:
            outputs = layer(x)
        return outputs.sum() + collector.total()

    for scale in (1, 2):
        wanted = layer.linear(scale * X).sum() + cost_of(layer, scale * X)
        torch.testing.assert_close(step(scale * X), wanted)


def test_what_checkpointing_computes_again_is_not_charged_again():
    layer = Sparse()
    with LossCollector() as collector:
        outputs = checkpoint(layer, X, use_reentrant=False)
        total = collector.total() + outputs.sum()
    total.backward()
    torch.testing.assert_close(collector.total(), cost_of(layer, X))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("vat", torch.ones(3)), r"'vat' is of shape \(3,\); wanted a scalar tensor"),
        (("vat", 1.0), r"'vat' is of float; wanted a scalar tensor\. reduce\(\.\.\.\)"),
        (("", torch.ones(())), "got the name ''; wanted a text"),
        ((torch.ones(()), "vat"), r"got the name tensor\(1\.\).*The name comes first"),
    ],
)
@pytest.mark.parametrize("opened", [True, False])
def test_terms_that_are_none_are_refused(arguments, message, opened):
    collector = LossCollector()
    if opened:
        with collector, pytest.raises(ValueError, match=message):
            add_loss(*arguments)
    else:
        with pytest.raises(ValueError, match=message):
            add_loss(*arguments)
    assert collector.terms == {}
    assert loss_terms._open.get() is None


# Labels as people have them


@pytest.mark.parametrize("shape", [(6,), (6, 4), (6, 2, 3)])
@pytest.mark.parametrize("ignored", [-100, 0])
def test_ignored_labels_are_left_out_of_the_mean_as_in_torch(shape, ignored, device):
    torch.manual_seed(0)
    logits = torch.randn(6, 5, *shape[1:], device=device, requires_grad=True)
    labels = torch.randint(5, shape, device=device)
    labels[torch.rand(shape, device=device) < 0.4] = ignored
    labels[0] = ignored  # a sample of nothing else
    ours = cross_entropy(logits, labels, ignore_index=ignored)
    theirs = functional.cross_entropy(logits, labels, ignore_index=ignored)
    torch.testing.assert_close(reduce(ours), theirs)
    assert ours[0].item() == 0
    gradients = [torch.autograd.grad(v, logits)[0] for v in (reduce(ours), theirs)]
    torch.testing.assert_close(*gradients)


def test_no_label_that_counts_costs_nothing():
    logits = torch.randn(2, 3, requires_grad=True)
    value = reduce(cross_entropy(logits, torch.full((2,), -100)))
    value.backward()
    assert (value.item(), logits.grad.abs().sum().item()) == (0, 0)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_class_numbers_may_be_any_integers(dtype):
    logits, labels = torch.randn(3, 4), torch.tensor([0, 3, 1])
    ours = cross_entropy(logits, labels.to(dtype))
    torch.testing.assert_close(ours, cross_entropy(logits, labels))


def test_probabilities_take_the_dtype_of_the_logits():
    shares = torch.rand(3, 4).softmax(dim=1)
    logits = torch.randn(3, 4, requires_grad=True)
    wanted = functional.cross_entropy(logits, shares)
    value = reduce(cross_entropy(logits, shares.double()))
    value.backward()
    torch.testing.assert_close(value, wanted)


@pytest.mark.parametrize("loss", [absolute_error, squared_error, binary_cross_entropy])
@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.uint8, torch.bool, torch.float64, torch.float16]
)
def test_targets_of_another_dtype_are_those_numbers(loss, dtype):
    outputs = torch.tensor([[0.5, -2.0], [1.5, 3.0]], requires_grad=True)
    targets = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    ours, wanted = loss(outputs, targets.to(dtype)), loss(outputs, targets)
    torch.testing.assert_close(ours, wanted, rtol=0, atol=0)
    (gradient,) = torch.autograd.grad(ours.sum(), outputs)
    (by_torch,) = torch.autograd.grad(wanted.sum(), outputs)
    torch.testing.assert_close(gradient, by_torch)


Z, LABELS = torch.zeros(2, 3), torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: cross_entropy(Z, LABELS + 2),
            r"labels from 2 to 3; wanted 0 to 2, as",
        ),
        (
            lambda: cross_entropy(Z, LABELS - 1),
            r"labels from -1 to 0; .*ignore_index=-1",
        ),
        (lambda: cross_entropy(Z, LABELS[:, None]), r"shape \(2, 1\).*squeeze\(-1\)"),
        (lambda: cross_entropy(Z, LABELS.float()), r"float32 and shape \(2,\) for"),
        (lambda: cross_entropy(Z, Z.long()), r"int64 and shape \(2, 3\).*by \.float"),
        (lambda: cross_entropy(Z, LABELS.bool()), r"labels of torch\.bool"),
        (lambda: cross_entropy(Z, LABELS[:1]), r"shape \(1,\) for logits of shape"),
        (
            lambda: cross_entropy(Z.long(), LABELS),
            r"logits is of torch\.int64.*\.float",
        ),
        (lambda: cross_entropy(Z, [0, 1]), r"labels is of type list; .*as_tensor"),
        (lambda: cross_entropy(Z.numpy(), LABELS), "logits is of type ndarray"),
        (lambda: absolute_error(Z.long(), Z), r"outputs is of torch\.int64"),
        (lambda: squared_error(Z, Z.tolist()), "targets is of type list"),
        (
            lambda: binary_cross_entropy(Z, torch.full((2, 3), -1)),
            r"targets from -1 to -1; wanted them in \[0, 1\]\. Of -1 and 1 make",
        ),
        (lambda: binary_cross_entropy(Z, Z + 2), r"targets from 2 to 2"),
        (lambda: reduce(Z[:0]), r"shape \(0, 3\); the mean of none is nan.*a mask"),
        (lambda: reduce(Z > 0), r"losses is of torch\.bool"),
        (lambda: reduce([1.0]), "losses is of type list"),
        (lambda: reduce(Z, weights=[1.0, 2.0]), "weights is of type list"),
        (lambda: reduce(Z, mask=[True, False]), "mask is of type list"),
        (
            lambda: reduce(Z, weights=Z.to("meta")),
            "losses is on cpu, weights on meta. Move",
        ),
    ],
)
def test_labels_and_losses_that_cannot_be_right_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_shares_are_not_looked_at_where_they_have_no_value():
    targets = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.5, 1.0]])
    each = torch.func.vmap(lambda z, t: binary_cross_entropy(z[None], t[None]))
    torch.testing.assert_close(each(Z, targets)[:, 0], binary_cross_entropy(Z, targets))
    meta = binary_cross_entropy(Z.to("meta"), targets.to("meta"))
    assert meta.shape == (2,)


# reduce, in halves and under masks


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mask": torch.ones(70_000, dtype=torch.bool)},
        {"weights": torch.full((70_000,), 2.0)},
        {"weights": torch.full((70_000,), 2.0), "mask": torch.arange(70_000) > 9},
    ],
)
def test_halves_are_added_up_in_float32(dtype, options, device):
    losses = (0.5 + torch.rand(70_000)).to(dtype)
    options = {name: value.to(device) for name, value in options.items()}
    value = reduce(losses.to(device), **options)
    wanted = reduce(losses.double().to(device), **options)
    assert value.dtype == dtype
    torch.testing.assert_close(value, wanted.to(dtype))


def test_large_halves_times_weights_stay_finite_on_the_way():
    losses = torch.tensor([60_000.0, 0, 0, 0], dtype=torch.float16)
    assert reduce(losses, weights=torch.full((4,), 4.0)).item() == 60_000


def test_a_masked_weight_may_be_nan_too():
    losses = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    weights = torch.tensor([1.0, math.nan, math.inf])
    value = reduce(losses, weights=weights, mask=torch.tensor([True, False, False]))
    value.backward()
    assert (value.item(), losses.grad.tolist()) == (1, [1, 0, 0])


def test_clean_inputs_under_a_mask_have_a_clean_gradient():
    z = torch.tensor([[1.0, 2.0], [math.nan, math.inf]], requires_grad=True)
    mask, labels = torch.tensor([True, False]), torch.tensor([0, 1])
    reduce(cross_entropy(z.where(mask[:, None], 0), labels), mask=mask).backward()
    alone = z.detach()[:1].requires_grad_()
    functional.cross_entropy(alone, labels[:1]).backward()
    torch.testing.assert_close(z.grad[:1], alone.grad)
    assert z.grad[1].tolist() == [0, 0]


def test_one_label_of_very_many_in_float16():
    """n / c is more than float16 holds, and 0 * inf is nan: torch gives log 2."""
    one = torch.tensor([3])
    logits = torch.zeros(70_000, 2, dtype=torch.float16, requires_grad=True)
    labels = torch.full((70_000,), -100)
    each = losses.cross_entropy(logits, labels.index_fill(0, one, 1))
    assert not each.isnan().any()
    assert each[:3].tolist() == [0, 0, 0]
    few = losses.cross_entropy(logits[:5000], labels[:5000].index_fill(0, one, 1))
    wanted = functional.cross_entropy(
        logits[:5000], labels[:5000].index_fill(0, one, 1)
    )
    torch.testing.assert_close(losses.reduce(few), wanted)


@pytest.mark.parametrize(
    ("name", "first", "second", "message"),
    [
        ("absolute_error", torch.zeros(2), torch.zeros(2, device="meta"), r"to\('cpu'"),
        (
            "binary_cross_entropy",
            torch.zeros(2),
            torch.zeros(2, device="meta"),
            "is on cpu, targets on meta. Move",
        ),
        (
            "cross_entropy",
            torch.zeros(2, 3),
            torch.zeros(2, device="meta", dtype=torch.long),
            "logits is on cpu, labels on meta. Move them: labels",
        ),
    ],
)
def test_other_devices_are_refused(name, first, second, message):
    with pytest.raises(ValueError, match=f"^{name}: .*{message}"):
        getattr(losses, name)(first, second)


PAIRS = {
    "absolute_error": ("outputs", "targets"),
    "squared_error": ("outputs", "targets"),
    "cross_entropy": ("logits", "labels"),
    "kl_from_logits": ("logits", "other"),
    "binary_cross_entropy": ("logits", "targets"),
}


@pytest.mark.parametrize("dtype", [torch.cfloat, torch.cdouble])
@pytest.mark.parametrize(("name", "arguments"), PAIRS.items())
@pytest.mark.parametrize("which", [(0,), (1,), (0, 1)])
def test_complex_numbers_are_refused(name, arguments, which, dtype):
    values = [torch.zeros(2, 3, dtype=dtype if i in which else None) for i in (0, 1)]
    words = f"{arguments[which[0]]} is of {dtype}; wanted real numbers. Take its .real"
    with pytest.raises(ValueError, match=re.escape(f"{name}: {words}")):
        getattr(losses, name)(*values)


@pytest.mark.parametrize("name", ["losses", "weights", "mask"])
def test_reduce_refuses_complex_numbers(name):
    values = {"losses": torch.ones(2), name: torch.ones(2, dtype=torch.cfloat)}
    words = rf"^reduce: {name} is of torch\.complex64; wanted real numbers"
    with pytest.raises(ValueError, match=words):
        losses.reduce(values.pop("losses"), **values)
