"""Penalties against Keras's own numbers, autograd, finite differences and hand sums."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import threading
import weakref
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, stack_module_state, vmap
from torch.nn.utils import parametrizations, prune
from torch.nn.utils import weight_norm as old_weight_norm
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from course_lib.regularization import (
    L1L2,
    Activity,
    add_penalty_gradients_,
    penalties,
    penalty,
    regularize,
)

KERAS_CASES = Path(__file__).parent / "keras_cases"
BOTH = L1L2(l1=0.3, l2=0.2)
REGULARIZERS = [
    L1L2(),
    L1L2(l1=0.3),
    L1L2(l2=0.2),
    BOTH,
    L1L2(l2=0.2, norm="euclidean"),
    L1L2(l1=0.3, l2=0.2, norm="euclidean"),
]


def by_hand(regularizer: L1L2, tensor: Tensor) -> Tensor:
    """The formula once more, in float64 and from powers alone."""
    x = tensor.to(torch.float64)
    squares = (x * x).sum()
    l2_term = squares if regularizer.norm == "squared" else squares**0.5
    return regularizer.l1 * (x * x.sign()).sum() + regularizer.l2 * l2_term


def gradients(model: nn.Module) -> dict[str, Tensor | None]:
    """Each parameter's .grad, which is then cleared."""
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return found


# The formula of one tensor


def test_l1l2_by_hand(device):
    x = torch.tensor([[3.0, -4.0], [0.0, 0.0]], device=device)
    assert L1L2(l1=0.5)(x).item() == 3.5
    assert L1L2(l2=0.5)(x).item() == 12.5
    assert L1L2(l1=1.0, l2=2.0)(x).item() == 57.0
    assert L1L2(l1=1.0, l2=2.0, norm="euclidean")(x).item() == 17.0
    assert L1L2(l1=1.0, l2=2.0).gradient(x).tolist() == [[13.0, -17.0], [0.0, 0.0]]
    steep = L1L2(l2=2.0, norm="euclidean").gradient(x)
    assert_close(steep, torch.tensor([[1.2, -1.6], [0.0, 0.0]], device=device))


@pytest.mark.parametrize("regularizer", REGULARIZERS)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 3), (2, 1, 3, 2)])
def test_l1l2_equals_its_formula_and_keeps_the_dtype(regularizer, shape, device):
    for dtype in (torch.float32, torch.float64):
        x = torch.randn(shape, dtype=dtype, device=device)
        value = regularizer(x)
        assert (value.shape, value.dtype, value.device) == ((), dtype, x.device)
        assert_close(value, by_hand(regularizer, x).to(dtype))


@pytest.mark.parametrize("regularizer", REGULARIZERS[1:])
def test_gradients_equal_finite_differences(regularizer):
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    wide = regularizer.gradient(x.detach())
    assert_close(wide, torch.autograd.grad(by_hand(regularizer, x), x)[0])
    assert torch.autograd.gradcheck(regularizer, x)
    assert torch.autograd.gradgradcheck(regularizer, x)
    assert torch.autograd.gradcheck(regularizer.gradient, x)


@pytest.mark.parametrize("regularizer", REGULARIZERS)
def test_the_gradient_at_zero_is_zero(regularizer, device):
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        x = torch.zeros(3, dtype=dtype, device=device, requires_grad=True)
        assert torch.equal(regularizer.gradient(x), torch.zeros_like(x))
        module = regularize(holder(x), x=regularizer)
        penalty(module).backward()
        assert torch.equal(module.x.grad, torch.zeros_like(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("regularizer", REGULARIZERS[1:])
def test_halves_do_not_overflow(dtype, regularizer, device):
    x = torch.full((500,), -300.0, dtype=dtype, device=device)  # squares: above 65504
    value = regularizer(x)
    assert value.dtype == torch.float32
    assert_close(value.double(), by_hand(regularizer, x), rtol=1e-6, atol=0)
    module = regularize(holder(x), x=regularizer)
    (penalty(module) * 1e-3).backward()
    slope = regularizer.gradient(x)
    assert slope.dtype == module.x.grad.dtype == dtype
    exact = by_hand_gradient(regularizer, x)
    assert_close(slope.double(), exact, rtol=1e-2, atol=1e-7)
    assert_close(module.x.grad.double(), exact * 1e-3, rtol=1e-2, atol=1e-7)
    add_penalty_gradients_(module)
    assert module.x.grad.dtype == dtype


def test_a_loss_scale_beyond_a_half_reaches_small_gradients(device):
    layer = regularize(nn.Linear(1, 1), weight=L1L2(l2=1e-4)).to(device).half()
    nn.init.ones_(layer.weight)
    (penalty(layer) * 1e5).backward()  # 1e5 itself is inf in float16
    assert layer.weight.grad.item() == 20.0


def by_hand_gradient(regularizer: L1L2, tensor: Tensor) -> Tensor:
    x = tensor.detach().double().requires_grad_()
    return torch.autograd.grad(by_hand(regularizer, x), x)[0]


def holder(tensor: Tensor) -> nn.Module:
    module = nn.Module()
    module.x = nn.Parameter(tensor.detach().clone())
    return module


# One battery for all layers; a new one joins the list


def tied_autoencoder() -> nn.Module:
    """An encoder and a decoder whose weight is one parameter, regularized in both."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    regularize(model[2], weight=BOTH)
    return regularize(model, **{"0.weight": BOTH})


def twice_in_a_list() -> nn.Module:
    layer = nn.Linear(3, 2)
    inner = nn.ModuleList([layer, layer])
    return regularize(
        nn.ModuleList([inner, nn.Sequential(layer), inner]),
        **{
            "0.0.weight": BOTH,
            "1.0.weight": BOTH,
        },
    )


def two_kinds_of_numbers() -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double())
    return regularize(model, **{"0.weight": BOTH, "1.weight": BOTH})


def regularized_then(change, **options) -> nn.Module:
    return change(regularize(nn.Linear(3, 3), weight=BOTH), **options)


def then_regularized(change, **options) -> nn.Module:
    return regularize(change(nn.Linear(3, 3), **options), weight=BOTH)


# name: (make, the tensors that are to be counted, each once)
PLAIN = {
    "linear": (
        lambda: regularize(nn.Linear(4, 2), weight=BOTH, bias=L1L2(l1=0.1)),
        ["weight", "bias"],
    ),
    "conv": (lambda: regularize(nn.Conv2d(2, 3, 3), weight=BOTH), ["weight"]),
    "lstm": (
        lambda: regularize(nn.LSTM(3, 2), weight_hh_l0=BOTH, bias_ih_l0=BOTH),
        ["weight_hh_l0", "bias_ih_l0"],
    ),
    "embedding": (lambda: regularize(nn.Embedding(4, 2), weight=BOTH), ["weight"]),
    "batch norm": (lambda: regularize(nn.BatchNorm1d(3), weight=BOTH), ["weight"]),
    "attention": (
        lambda: regularize(
            nn.MultiheadAttention(4, 2), in_proj_weight=BOTH, **{"out_proj.bias": BOTH}
        ),
        ["in_proj_weight", "out_proj.bias"],
    ),
    "dotted": (
        lambda: regularize(
            nn.Sequential(nn.Sequential(nn.Linear(2, 3)), nn.Linear(3, 1)),
            **{"0.0.weight": BOTH, "1.bias": BOTH},
        ),
        ["0.0.weight", "1.bias"],
    ),
    "euclidean": (
        lambda: regularize(nn.Linear(4, 2), weight=REGULARIZERS[-1]),
        ["weight"],
    ),
    "tied": (tied_autoencoder, ["0.weight"]),
    "module list": (twice_in_a_list, ["0.0.weight"]),
    "float32 and float64": (two_kinds_of_numbers, ["0.weight", "1.weight"]),
    "nothing": (lambda: nn.Linear(2, 2), []),
    "zero coefficients": (
        lambda: regularize(nn.Linear(2, 2), weight=L1L2()),
        ["weight"],
    ),
}
PARAMETRIZED = {
    f"{change.__name__}, {when.__name__}": (
        lambda change=change, when=when: when(change),
        ["weight"],
    )
    for change in (parametrizations.orthogonal, parametrizations.weight_norm)
    for when in (regularized_then, then_regularized)
}
LAYERS = PLAIN | PARAMETRIZED


@pytest.fixture(params=LAYERS)
def layer(request, device):
    make, names = LAYERS[request.param]
    torch.manual_seed(0)
    made = make().to(device)
    for parameter in made.parameters():  # no zeros: bias and batch norm start there
        parameter.data += 0.1 * torch.randn(parameter.shape).to(parameter)
    made.counted = names
    return made


def expected(layer: nn.Module) -> Tensor:
    """The penalty as a hand-written sum over `layer.counted`."""
    total = torch.zeros((), dtype=torch.float64)
    for name in layer.counted:
        path, _, leaf = name.rpartition(".")
        owner = layer.get_submodule(path)
        regularizer = owner.__dict__["_regularizers"][leaf]
        total = total + by_hand(regularizer, getattr(owner, leaf)).cpu()
    return total


def test_the_penalty_is_the_sum_by_hand(layer, device):
    value = penalty(layer)
    assert (value.shape, value.device) == ((), device)
    assert_close(value.cpu().double(), expected(layer), rtol=1e-6, atol=1e-7)
    parts = penalties(layer)
    assert sorted(parts) == sorted(layer.counted)
    assert_close(value, sum(parts.values(), torch.zeros_like(value)))


def test_all_paths_give_the_gradient_by_hand(layer):
    if not layer.counted:
        return
    expected(layer).backward()
    wanted = gradients(layer)
    penalty(layer).backward()
    by_autograd = gradients(layer)
    parts = sum(penalties(layer).values())
    if parts.requires_grad:  # not where all coefficients are zero
        parts.backward()
    by_parts = gradients(layer)
    add_penalty_gradients_(layer)
    by_formula = gradients(layer)
    tolerance = {"rtol": 1e-5, "atol": 1e-6}
    for name, parameter in layer.named_parameters():
        slope = or_zeros(wanted[name], parameter)
        for ours in (by_autograd, by_parts, by_formula):
            assert_close(or_zeros(ours[name], parameter), slope, **tolerance)


def or_zeros(slope: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if slope is None else slope


def test_an_unregularized_parameter_gets_no_gradient():
    layer = regularize(nn.Linear(2, 2), weight=BOTH)
    add_penalty_gradients_(layer)
    assert layer.bias.grad is None


def test_the_penalty_follows_the_weights(layer):
    before = penalty(layer).item()
    if not layer.counted or before == 0:
        return
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
    penalty(layer).backward()
    optimizer.step()
    assert_close(penalty(layer).cpu().double(), expected(layer), rtol=1e-6, atol=1e-7)


def test_copies_keep_their_penalty(layer):
    value = penalty(layer)
    clone = copy.deepcopy(layer)
    assert_close(penalty(clone), value)
    assert penalties(clone).keys() == penalties(layer).keys()
    for parameter in clone.parameters():
        parameter.data.zero_()
    assert_close(penalty(layer), value)
    assert_close(penalty(layer.double()).float(), value.float())


@pytest.mark.parametrize("name", PLAIN)  # torch refuses to pickle the others
def test_pickles_keep_their_penalty(name):
    model = PLAIN[name][0]()
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for again in (
        pickle.loads(pickle.dumps(model)),
        torch.load(file, weights_only=False),
    ):
        assert_close(penalty(again), penalty(model))
        assert penalties(again).keys() == penalties(model).keys()


def test_the_state_dict_is_unchanged():
    plain, layer = nn.Linear(4, 2), nn.Linear(4, 2)
    assert regularize(layer, weight=BOTH, activity=BOTH) is layer
    layer(torch.ones(1, 4))
    assert layer.state_dict().keys() == plain.state_dict().keys()
    layer.load_state_dict(plain.state_dict())
    plain.load_state_dict(layer.state_dict())
    assert_close(penalties(layer)["weight"], BOTH(plain.weight))


def test_a_shallow_copy_can_be_regularized_on_its_own():
    layer = regularize(nn.Linear(4, 2), weight=BOTH)
    regularize(copy.copy(layer), bias=BOTH)
    assert list(penalties(layer)) == ["weight"]


def test_a_later_call_adds_and_replaces():
    layer = regularize(nn.Linear(4, 2), weight=L1L2(l1=9.0))
    regularize(layer, bias=L1L2(l1=1.0))
    regularize(layer, weight=L1L2(l2=1.0))
    wanted = layer.weight.square().sum() + layer.bias.abs().sum()
    assert_close(penalty(layer), wanted)


def test_names_that_could_collide():
    module = nn.Module()
    module.module = nn.Parameter(torch.tensor([2.0]))
    module._activity = module._pass = torch.relu  # a user's own attributes
    assert penalty(regularize(module, module=L1L2(l2=1.0))).item() == 4.0
    add_penalty_gradients_(module)
    assert module.module.grad.item() == 4.0


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("when", [regularized_then, then_regularized])
@pytest.mark.parametrize(
    "change", [old_weight_norm, lambda m: prune.l1_unstructured(m, "weight", 4)]
)
def test_weights_that_a_hook_computes_are_of_now(change, when):
    layer = when(change)
    layer(torch.randn(2, 3)).sum().backward()  # its graph is freed
    source = next(p for name, p in layer.named_parameters() if name != "bias")
    with torch.no_grad():
        source.mul_(2.0)
    layer.zero_grad()
    add_penalty_gradients_(layer)
    by_formula = gradients(layer)
    value = penalty(layer)
    layer(torch.randn(2, 3))  # recomputes the weight
    assert_close(value.double(), by_hand(BOTH, layer.weight))
    by_hand(BOTH, layer.weight).backward()
    for name, slope in gradients(layer).items():
        assert_close(by_formula[name], slope)


def test_a_lazy_layer_can_be_regularized_before_its_shape_is_known():
    layer = regularize(nn.LazyLinear(2), weight=BOTH)
    layer(torch.ones(1, 3))
    assert_close(penalty(layer).double(), by_hand(BOTH, layer.weight))


def test_ties_survive_a_deepcopy():
    model = tied_autoencoder()
    clone = copy.deepcopy(model)
    assert clone[0].weight is clone[2].weight
    with torch.no_grad():
        clone[0].weight.fill_(1.0)
    assert_close(penalty(clone), torch.tensor(9 * 0.5))


def test_nothing_regularized_is_zero(device):
    layer = nn.Linear(2, 2).to(device)
    assert penalty(layer).item() == 0.0
    assert penalty(layer).device == device
    assert penalty(nn.ReLU()).item() == 0.0
    assert penalties(layer) == {}
    add_penalty_gradients_(layer)
    assert layer.weight.grad is None


def test_frozen_weights_count_but_get_no_gradient():
    model = regularize(nn.Linear(2, 2), weight=BOTH, bias=BOTH)
    model.weight.requires_grad_(False)
    assert_close(penalty(model), BOTH(model.weight) + BOTH(model.bias))
    penalty(model).backward()
    add_penalty_gradients_(model)
    assert model.weight.grad is None
    assert_close(model.bias.grad, 2 * BOTH.gradient(model.bias))
    model.bias.requires_grad_(False)
    assert not penalty(model).requires_grad


@settings(max_examples=40, deadline=None)
@given(
    l1=st.floats(0, 10),
    l2=st.floats(0, 10),
    norm=st.sampled_from(["squared", "euclidean"]),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    change=st.sampled_from(
        [lambda m: m, parametrizations.weight_norm, lambda m: m.double()]
    ),
    first=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_fast_path_equals_autograd(l1, l2, norm, shape, change, first, seed):
    torch.manual_seed(seed)
    regularizer = L1L2(l1=l1, l2=l2, norm=norm)
    model = change(regularize(nn.Linear(*shape), weight=regularizer, bias=BOTH))
    x = torch.randn(3, shape[0]).to(model.bias.dtype)

    (model(x).square().mean() + penalty(model)).backward()
    wanted = gradients(model)
    if first:  # each .grad is None
        add_penalty_gradients_(model)
    model(x).square().mean().backward()
    if not first:
        add_penalty_gradients_(model)
    for name, slope in gradients(model).items():
        assert_close(slope, wanted[name], rtol=1e-4, atol=1e-4)


def test_the_fast_path_adds_in_place_and_keeps_no_graph():
    layer = regularize(nn.Linear(3, 2), weight=BOTH)
    layer(torch.ones(1, 3)).sum().backward()
    held, before = layer.weight.grad, layer.weight.grad.clone()
    assert add_penalty_gradients_(layer) is None
    assert layer.weight.grad is held
    assert_close(held, before + BOTH.gradient(layer.weight.detach()))
    assert held.grad_fn is None
    assert not held.requires_grad


def test_the_fast_path_adds_to_sparse_gradients():
    layer = regularize(nn.Embedding(4, 2, sparse=True), weight=BOTH)
    layer(torch.tensor([1, 1])).sum().backward()
    before = layer.weight.grad.to_dense()
    add_penalty_gradients_(layer)
    assert_close(layer.weight.grad, before + BOTH.gradient(layer.weight.detach()))


def test_an_sgd_step_on_the_squared_norm_is_weight_decay():
    decayed = nn.Linear(3, 2)
    layer = regularize(copy.deepcopy(decayed), weight=L1L2(l2=0.1), bias=L1L2(l2=0.1))
    options = {"lr": 0.5, "momentum": 0.9}
    ours = torch.optim.SGD(layer.parameters(), **options)
    torchs = torch.optim.SGD(decayed.parameters(), weight_decay=0.2, **options)
    for _ in range(4):
        for model, optimizer in ((layer, ours), (decayed, torchs)):
            optimizer.zero_grad()
            model(torch.ones(1, 3)).sum().backward()
            if model is layer:
                add_penalty_gradients_(model)
            optimizer.step()
    assert_close(layer.weight, decayed.weight)


# torch's transforms


class Penalty(nn.Module):
    """The penalty as a module, so that functional_call can swap its parameters."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self) -> Tensor:
        return penalty(self.model)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # theirs
@pytest.mark.parametrize("regularizer", REGULARIZERS)
def test_first_and_second_derivatives_of_the_penalty(regularizer):
    module = Penalty(regularize(nn.Linear(2, 3).double(), weight=regularizer))
    weight = module.model.weight.detach().clone().requires_grad_()

    def value(weight: Tensor) -> Tensor:
        return functional_call(module, {"model.weight": weight}, ())

    assert_close(value(weight), by_hand(regularizer, weight))
    assert torch.autograd.gradcheck(value, weight)
    if regularizer.l1 or regularizer.l2:
        assert torch.autograd.gradgradcheck(value, weight)
    exact = hessian(lambda w: by_hand(regularizer, w))(weight.detach())
    assert_close(hessian(value)(weight.detach()), exact)
    tangent = torch.randn_like(weight)
    _, slope = torch.func.jvp(value, (weight.detach(),), (tangent,))
    assert_close(slope, (by_hand_gradient(regularizer, weight) * tangent).sum())


@pytest.mark.parametrize("regularizer", REGULARIZERS)
def test_vmap_over_an_ensemble(regularizer):
    members = [
        Penalty(regularize(nn.Linear(2, 3), weight=regularizer)) for _ in range(3)
    ]
    stacked, _ = stack_module_state(members)

    def value(parameters: dict) -> Tensor:
        return functional_call(members[0], parameters, ())

    wanted = torch.stack([member() for member in members])
    assert_close(vmap(value)(stacked), wanted)
    slopes = vmap(grad(value))(stacked)["model.weight"]
    for member, slope in zip(members, slopes, strict=True):
        assert_close(slope, regularizer.gradient(member.model.weight))


def test_no_grad_keeps_no_graph():
    layer = regularize(nn.Linear(2, 2), weight=BOTH, activity=BOTH)
    with torch.no_grad():
        layer(torch.ones(1, 2))
        assert not penalty(layer).requires_grad
    with torch.inference_mode():
        layer(torch.ones(1, 2))
        assert penalty(layer).item() > 0
    parametrizations.weight_norm(layer)
    with torch.no_grad():
        assert not penalty(layer).requires_grad


# Activity


class Twice(nn.Module):
    """Calls one layer twice in a pass, and another only if it is told to."""

    def __init__(self, activity: L1L2 | Activity = BOTH) -> None:
        super().__init__()
        self.layer = regularize(nn.Linear(2, 2), activity=activity, weight=BOTH)
        self.extra = regularize(nn.Linear(2, 2), activity=activity)

    def forward(self, x: Tensor, *, detour: bool = False, fail: object = None):
        hidden = self.layer(x)
        if fail is not None:
            raise fail
        return self.extra(hidden) if detour else self.layer(hidden)

    def wanted(self, x: Tensor) -> Tensor:
        """The activity's cost of a pass without a detour, from functions alone."""
        first = nn.functional.linear(x, self.layer.weight, self.layer.bias)
        second = nn.functional.linear(first, self.layer.weight, self.layer.bias)
        cost = by_hand(BOTH, first) + by_hand(BOTH, second)
        return cost.float() / len(x)


@pytest.fixture
def twice():
    torch.manual_seed(0)
    return Twice()


@pytest.fixture
def x():
    return torch.tensor([[1.0, -2.0], [0.5, 3.0], [-1.0, 0.0]])  # (batch, features)


def activity_cost(model: nn.Module) -> Tensor:
    return penalties(model)["layer.activity"]


def test_activity_by_hand():
    outputs = torch.tensor([[1.0, -2.0], [3.0, 4.0]])  # (batch, features)
    identity = nn.Identity()
    for activity, wanted in [
        (L1L2(l1=1.0), 5.0),
        (Activity(L1L2(l1=1.0)), 5.0),
        (Activity(L1L2(l1=1.0), reduction="sum"), 10.0),
        (Activity(L1L2(l2=0.1), reduction="sum"), 3.0),
        (Activity(L1L2(l2=0.1), reduction="mean"), 1.5),
    ]:
        regularize(identity, activity=activity)
        identity(outputs)
        assert penalty(identity).item() == pytest.approx(wanted)
    assert Activity(L1L2(l1=1.0))(torch.ones(0, 3)).item() == 0.0


def test_a_layer_called_twice_pays_twice_in_each_pass_anew(twice, x):
    assert list(penalties(twice)) == ["layer.weight"]  # before any pass
    for batch in (x, 2 * x, x[:1]):
        twice(batch)
        assert_close(activity_cost(twice), twice.wanted(batch))
        wanted = BOTH(twice.layer.weight) + twice.wanted(batch)
        assert_close(penalty(twice), wanted)


def test_activity_gradients_flow_through_the_pass(twice, x):
    twice(x)
    activity_cost(twice).backward()
    slopes = gradients(twice)
    twice.wanted(x).backward()
    assert_close(slopes, gradients(twice))


def test_a_layer_that_a_pass_leaves_out_pays_nothing(twice, x):
    twice(x, detour=True)
    assert "extra.activity" in penalties(twice)
    twice(x)
    assert "extra.activity" not in penalties(twice)


def test_a_pass_without_gradients_does_not_leak_into_the_next(twice, x):
    twice(x)
    twice.eval()
    with torch.no_grad():
        twice(5 * x)
    assert not activity_cost(twice).requires_grad
    twice.train()(x)
    assert_close(activity_cost(twice), twice.wanted(x))
    assert activity_cost(twice).requires_grad


@pytest.mark.parametrize("fail", [RuntimeError("stop"), KeyboardInterrupt()])
def test_a_pass_that_fails_does_not_leak_into_the_next(twice, x, fail):
    for _ in range(2):
        with pytest.raises(type(fail)):
            twice(x, fail=fail)
    twice(x)
    assert_close(activity_cost(twice), twice.wanted(x))


def test_the_pass_is_the_outermost_modules(twice, x):
    twice.layer(x)  # alone, before it stands in a model
    twice.layer(x)
    assert_close(activity_cost(twice).double(), by_hand(BOTH, twice.layer(x)) / len(x))
    twice(x)
    assert_close(activity_cost(twice), twice.wanted(x))
    larger = nn.Sequential(twice, twice)
    wanted = twice.wanted(x) + twice.wanted(twice(x))
    for _ in range(2):
        larger(x)
        assert_close(penalties(larger)["0.layer.activity"], wanted)
        assert_close(penalty(larger), BOTH(twice.layer.weight) + wanted)
    twice(x)
    assert_close(activity_cost(twice), twice.wanted(x))


def test_the_old_graph_is_freed_by_the_next_pass(twice, x):
    class Mark(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.marked = marker = type("Marker", (), {})()
            alive.append(weakref.ref(marker))
            return x.clone()

        @staticmethod
        def backward(ctx, slope):
            return slope

    alive: list[weakref.ref] = []
    for _ in range(3):
        twice(Mark.apply(x.clone().requires_grad_()), detour=True)
    twice(x)
    gc.collect()
    assert [ref() for ref in alive] == [None] * 3


def test_models_with_an_activity_are_collected(x):
    model = Twice()
    model(x)
    ref = weakref.ref(model)
    del model
    gc.collect()
    assert ref() is None


def test_copies_begin_without_activities(twice, x):
    twice(x)
    for again in (copy.deepcopy(twice), pickle.loads(pickle.dumps(twice))):
        assert list(penalties(again)) == ["layer.weight"]
        again(2 * x)
        again(x)
        assert_close(activity_cost(again), again.wanted(x))
    twice(3 * x)
    assert_close(activity_cost(twice), twice.wanted(3 * x))


def test_an_lstm_pays_for_its_outputs_alone():
    lstm = regularize(nn.LSTM(2, 3, batch_first=True), activity=L1L2(l2=1.0))
    outputs, _ = lstm(torch.randn(4, 5, 2))  # (batch, time, features)
    assert_close(penalty(lstm), outputs.square().sum() / 4)


def test_threads_have_passes_of_their_own(x):
    models = [Twice() for _ in range(4)]

    def train(model: Twice) -> None:
        for _ in range(20):
            model(x)

    threads = [threading.Thread(target=train, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for model in models:
        assert_close(activity_cost(model), model.wanted(x))


def test_checkpointing_changes_nothing(twice, x):
    for _ in range(2):
        twice(x)
        penalty(twice).backward()
        wanted = gradients(twice)
        output = checkpoint(twice, x, use_reentrant=False)
        (penalty(twice) + 0 * output.sum()).backward()
        assert_close(gradients(twice), wanted)


# Dynamo looks at the .grad of whatever crosses a break in the graph.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("inside", [torch.compile, lambda m, **o: m.compile(**o) or m])
def test_compiled_models_pay_the_same(twice, x, inside):
    torch.compiler.reset()
    compiled = inside(twice, backend="eager")
    for batch in (x, 2 * x, 3 * x):
        compiled(batch)
        assert_close(activity_cost(twice), twice.wanted(batch))
        wanted = BOTH(twice.layer.weight) + twice.wanted(batch)
        assert_close(penalty(compiled), wanted)


def test_a_compiled_penalty_is_of_the_weights_of_now():
    torch.compiler.reset()
    layer = regularize(nn.Linear(2, 2), weight=BOTH)
    compiled = torch.compile(lambda: penalty(layer), backend="eager", fullgraph=True)
    for _ in range(2):
        value = compiled()
        assert_close(value.double(), by_hand(BOTH, layer.weight))
        assert_close(
            torch.autograd.grad(value, layer.weight)[0], BOTH.gradient(layer.weight)
        )
        nn.init.normal_(layer.weight)


def test_functional_calls_record_activities(x):
    class Cost(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = Twice()

        def forward(self, x: Tensor) -> Tensor:
            self.model(x)
            return activity_cost(self.model)

    cost = Cost()
    parameters = {name: p.detach() for name, p in cost.named_parameters()}
    slopes = grad(lambda p: functional_call(cost, p, (x,)))(parameters)
    cost.model.wanted(x).backward()
    for name, parameter in cost.named_parameters():
        assert_close(slopes[name], or_zeros(parameter.grad, parameter))


# Keras's own numbers

MILLI, TENTH_MILLI, CENTI = (float(np.float32(c)) for c in (1e-3, 1e-4, 1e-2))
SEED_MLP = [
    {"weight": L1L2(l2=MILLI)},
    {"weight": L1L2(l2=MILLI)},
    {"weight": L1L2(l1=TENTH_MILLI, l2=MILLI), "bias": L1L2(l1=MILLI)},
]
MLP_REG = [
    {"weight": L1L2(l2=MILLI)},
    {"weight": L1L2(l1=TENTH_MILLI, l2=MILLI), "bias": L1L2(l1=MILLI)},
    {"weight": L1L2(l2=MILLI)},
]


@pytest.mark.parametrize(
    ("case", "coefficients", "activity"),
    [
        ("k1_seed_mlp", SEED_MLP, None),
        ("k2_mlp_reg_2.0.3", MLP_REG, Activity(L1L2(l2=CENTI), reduction="sum")),
        ("k2_mlp_reg_2.15", MLP_REG, Activity(L1L2(l2=CENTI), reduction="mean")),
        ("seq_mlp_reg_3.15", MLP_REG, L1L2(l2=CENTI)),
    ],
)
def test_the_penalty_is_keras_own(case, coefficients, activity, device):
    folder = KERAS_CASES / case
    arrays = iter(np.load(folder / "weights.npz").values())
    model = nn.Sequential()
    functions = (nn.ReLU(), nn.Identity(), regularize(nn.Sigmoid(), activity=activity))
    for by_parameter, function in zip(coefficients, functions, strict=True):
        kernel, bias = torch.from_numpy(next(arrays)), torch.from_numpy(next(arrays))
        layer = nn.Linear(*kernel.shape)  # Keras keeps kernels as (in, out)
        layer.load_state_dict({"weight": kernel.T, "bias": bias})
        model.extend([regularize(layer, **by_parameter), function])
    model.to(device)
    keras = np.load(folder / "io.npz")
    outputs = model(torch.from_numpy(keras["x0"]).float().to(device))
    assert_close(outputs.detach().cpu(), torch.from_numpy(keras["y0"]))
    assert penalty(model).item() == pytest.approx(keras["reg_loss"].item(), rel=1e-6)


# Errors: the place, what came, what was wanted


@pytest.mark.parametrize("value", [-1e-9, float("nan"), float("inf"), True, "1", None])
@pytest.mark.parametrize("name", ["l1", "l2"])
def test_bad_coefficients_are_refused(name, value):
    with pytest.raises(ValueError, match=rf"L1L2: got {name}=.*; wanted a finite f"):
        L1L2(**{name: value})


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="a finite float"):
        L1L2(l2=10**400)
    with pytest.raises(ValueError, match="L1L2: got norm='l2'; wanted 'squared' or 'e"):
        L1L2(norm="l2")
    with pytest.raises(ValueError, match="Activity: got reduction='max'; wanted 'mean"):
        Activity(BOTH, reduction="max")
    with pytest.raises(ValueError, match=r"Activity: got regularizer=0.1; wanted an L"):
        Activity(0.1)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_tensors_that_are_not_real_are_refused(dtype):
    message = f"got a tensor of {dtype}; wanted floating-point numbers.*[.]float"
    x = torch.ones(2, dtype=dtype)
    for call in (BOTH, BOTH.gradient, L1L2(), L1L2().gradient):
        with pytest.raises(ValueError, match="L1L2: " + message):
            call(x)
    module = nn.Module()
    module.codes = nn.Parameter(x, requires_grad=False)
    with pytest.raises(ValueError, match="regularize: 'codes': " + message):
        regularize(module, codes=BOTH)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            {"kernel": BOTH},
            "'kernel' is no parameter in this .*are: weight, running",
        ),
        ({"bias": BOTH}, "'bias' is None in this Linear; its parameters are: weight"),
        ({"0.weight": BOTH}, "'0.weight' is no parameter"),
        ({"forward": BOTH}, "'forward' is no parameter"),
        ({"buffer": BOTH}, "'buffer' is no parameter"),
        ({"constant": BOTH}, "'constant' is no parameter"),
        ({"": BOTH}, "'' is no parameter"),
        (
            {"running_w": 0.1},
            r"got running_w=0.1; wanted an L1L2, for example running_w=",
        ),
        ({"activity": 0.1}, r"got activity=0.1; wanted an L1L2, for example activity="),
    ],
)
def test_nothing_is_stored_when_one_of_several_is_bad(bad, message):
    layer = nn.Linear(2, 2, bias=False)
    layer.running_w = nn.Parameter(torch.ones(2))
    layer.register_buffer("buffer", torch.ones(2))
    layer.constant = torch.ones(2)
    before = set(vars(layer))
    good = {"weight": BOTH, "activity": BOTH}
    with pytest.raises(ValueError, match="regularize: " + message):
        regularize(layer, **(good | bad))
    assert set(vars(layer)) == before
    assert not layer._forward_hooks
    assert penalties(layer) == {}


def test_a_module_without_parameters_says_so():
    with pytest.raises(ValueError, match="in this ReLU; its parameters are: none"):
        regularize(nn.ReLU(), weight=BOTH)


def test_ties_that_disagree_are_refused():
    model = regularize(tied_autoencoder(), **{"2.weight": L1L2(l1=9.0)})
    message = r"'0.weight' and '2.weight' are one tied tensor, but .*l2=0.2.*l1=9.0"
    for function in (penalty, penalties, add_penalty_gradients_):
        with pytest.raises(ValueError, match=message):
            function(model)


def test_the_fast_path_refuses_activities(twice, x):
    with pytest.raises(ValueError, match=r"'layer' has an activity.*penalty\(model\)"):
        add_penalty_gradients_(twice)
    with pytest.raises(ValueError, match="'the model' has an activity"):
        add_penalty_gradients_(twice.layer)
    assert twice.layer.weight.grad is None


@pytest.mark.parametrize("output", [{"x": 1}, (), (None,), torch.ones(()), "x"])
def test_outputs_that_are_no_batch_are_refused(output):
    class Returns(nn.Module):
        def forward(self):
            return output

    with pytest.raises(ValueError, match=r"returned .*wanted a tensor \(batch, ...\)"):
        regularize(Returns(), activity=BOTH)()


@pytest.mark.parametrize("function", [penalty, penalties, add_penalty_gradients_])
def test_parameters_are_not_a_model(function):
    message = f"{function.__name__}: got generator; wanted an nn.Module"
    with pytest.raises(ValueError, match=message):
        function(nn.Linear(2, 1).parameters())
    with pytest.raises(ValueError, match=r"regularize: got list; wanted an nn\.Module"):
        regularize([], weight=L1L2())


# Weights that change their kind, their maker or their place


@pytest.mark.parametrize(
    ("number", "wanted"),
    [
        (np.float32(0.25), 0.25),
        (np.float64(0.1), 0.1),
        (np.float16(0.5), 0.5),
        (np.int64(2), 2.0),
        (np.uint8(3), 3.0),
    ],
)
def test_numpys_numbers_are_coefficients(number, wanted):
    for ours in (L1L2(l1=number), L1L2(l2=number), L1L2(l1=0.5, l2=number)):
        theirs = L1L2(*(wanted if c == number and c else c for c in (ours.l1, ours.l2)))
        assert (ours, repr(ours), hash(ours)) == (theirs, repr(theirs), hash(theirs))
        assert all(type(c) is float for c in (ours.l1, ours.l2))
    assert repr(L1L2(l1=1)) == "L1L2(l1=1, l2=0.0, norm='squared')"


@pytest.mark.parametrize(
    "value", [np.array(0.1), torch.tensor(0.1), np.True_, "0.1", 1j, [0.1]]
)
def test_what_is_no_plain_number_is_refused_as_such(value):
    with pytest.raises(ValueError, match=r"a plain number\. float\(\.\.\.\) makes one"):
        L1L2(l2=value)


@pytest.mark.parametrize(
    "value", [np.float32(-1), np.float64("nan"), np.float32("inf")]
)
def test_numpys_numbers_have_the_same_range(value):
    with pytest.raises(ValueError, match="wanted a finite float >= 0"):
        L1L2(l1=value)


def test_a_bias_that_was_taken_away_costs_nothing():
    layer = regularize(nn.Linear(2, 2), weight=BOTH, bias=BOTH)
    layer.bias = None
    alone = BOTH(layer.weight)
    assert_close(penalty(layer), alone)
    assert list(penalties(layer)) == ["weight"]
    add_penalty_gradients_(layer)
    assert_close(layer.weight.grad, BOTH.gradient(layer.weight))


@pytest.mark.parametrize("function", [penalty, penalties, add_penalty_gradients_])
def test_a_weight_that_was_deleted_is_named(function):
    model = nn.Sequential(regularize(nn.Linear(2, 2), weight=BOTH))
    del model[0].weight
    message = r"'0\.weight' is regularized, and deleted now\. .*\('weight', None\)"
    with pytest.raises(ValueError, match=message):
        function(model)
    model[0].register_parameter("weight", None)
    function(model)


@pytest.mark.parametrize("function", [penalty, penalties, add_penalty_gradients_])
def test_a_lazy_weight_without_a_shape_is_named(function):
    model = nn.Sequential(regularize(nn.LazyLinear(3), weight=BOTH))
    with pytest.raises(ValueError, match=r"'0\.weight' has no shape yet\. Call the mo"):
        function(model)
    model(torch.ones(1, 2))
    function(model)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:DeprecationWarning")
def test_script_modules_are_refused():
    layer = regularize(nn.Linear(2, 2), weight=BOTH)
    made = torch.jit.script(layer), torch.jit.trace(layer, torch.ones(1, 2))
    for script in made:
        for call in (
            penalty,
            penalties,
            add_penalty_gradients_,
            lambda m: regularize(m, weight=BOTH),
            lambda m: regularize(m, activity=BOTH),
            lambda m: regularize(nn.Sequential(m), **{"0.weight": BOTH}),
        ):
            with pytest.raises(
                ValueError, match=r"ScriptModule, which can't hold.*share"
            ):
                call(script)
    assert_close(penalty(layer), BOTH(layer.weight))  # the way that the message names


def used(layer):
    """Return the weight that a pass really uses, from its outputs of unit vectors."""
    return (layer(torch.eye(layer.in_features)) - layer.bias).T


@pytest.mark.filterwarnings("ignore:.*spectral_norm.*:FutureWarning")
@pytest.mark.parametrize(
    "norm", [nn.utils.spectral_norm, parametrizations.spectral_norm]
)
@pytest.mark.parametrize("first", ["norm", "regularize"])
@pytest.mark.parametrize("mode", [True, False])
def test_a_spectral_norm_is_looked_at_and_not_moved(norm, first, mode):
    torch.manual_seed(0)
    layer = nn.Linear(5, 4)
    if first == "norm":
        layer = regularize(norm(layer), weight=BOTH)
    else:
        layer = norm(regularize(layer, weight=BOTH))
    layer.train(mode)
    assert penalty(layer).isfinite()  # before any pass, too
    for _ in range(3):
        weight = used(layer)
        state = copy.deepcopy(layer.state_dict())
        assert_close(penalty(layer), BOTH(weight))
        assert_close(penalties(layer)["weight"], BOTH(weight))
        add_penalty_gradients_(layer)
        for name, value in layer.state_dict().items():
            assert torch.equal(value, state[name]), name
    assert [m.training for m in layer.modules()] == [mode] * len(list(layer.modules()))


def test_tensors_are_wanted():
    with pytest.raises(ValueError, match="L1L2: got ndarray; wanted a tensor"):
        BOTH(np.ones(3))


def test_meta_and_empty_weights_have_a_penalty():
    assert penalty(regularize(nn.Linear(2, 2, device="meta"), weight=BOTH)).is_meta
    empty = nn.Module()
    empty.weight = nn.Parameter(torch.zeros(0, 3))
    assert penalty(regularize(empty, weight=BOTH)).item() == 0
