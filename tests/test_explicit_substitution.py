"""Tensors substituted in a module: checkpointed passes, and functions of a module."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import nn
from torch.func import vmap
from torch.testing import assert_close
from torch.utils.checkpoint import (
    CheckpointFunction,
    checkpoint,
    checkpoint_sequential,
)

from course_lib.explicit import (
    buffers,
    call,
    gradient,
    parameters,
    store,
    substitute,
    with_gradient,
)
from course_lib.regularization import L1L2, penalty, regularize
from course_lib.trees import dotted, map_tree, walk

# Activation checkpointing: the same module without a checkpoint is the oracle


def layers(*more):
    return nn.Sequential(nn.Linear(3, 3), nn.Tanh(), *more, nn.Linear(3, 3))


class Checkpointed(nn.Module):
    """Runs `inner` under a checkpoint, or plainly where `is_on` is False."""

    def __init__(self, inner, *, reentrant=False, loops=1):
        super().__init__()
        self.inner, self.reentrant, self.loops = inner, reentrant, loops
        self.is_on = True

    def run(self, x):
        return self.inner(x)

    def forward(self, x):
        for _ in range(self.loops):
            x = self.again(self.run, x) if self.is_on else self.run(x)
        return x

    def again(self, function, x):
        return checkpoint(function, x, use_reentrant=self.reentrant)


class OfLayer(Checkpointed):
    def again(self, function, x):
        return checkpoint(self.inner, x, use_reentrant=self.reentrant)


class OfClosure(Checkpointed):
    def again(self, function, x):
        weight = self.inner[0].weight  # read before, used within
        return checkpoint(
            lambda x: self.inner(x) + x @ weight, x, use_reentrant=self.reentrant
        )

    def run(self, x):
        return self.inner(x) + x @ self.inner[0].weight


class Sequential(Checkpointed):
    def again(self, function, x):
        return checkpoint_sequential(self.inner, 2, x, use_reentrant=self.reentrant)


class WithState(Checkpointed):
    """Its forward leaves something on the module that the checkpointed part reads."""

    def run(self, x):
        return self.inner(x) * self.factor

    def forward(self, x):
        self.factor = 1 + x.detach().abs().mean()
        return super().forward(x)


def tied():
    model = layers()
    model[2].weight = model[0].weight
    return model


CHECKPOINTED = {
    "a method": lambda **how: Checkpointed(layers(), **how),
    "a module": lambda **how: OfLayer(layers(), **how),
    "a closure": lambda **how: OfClosure(layers(), **how),
    "a sequence": lambda **how: Sequential(layers(nn.Linear(3, 3), nn.Tanh()), **how),
    "an attribute": lambda **how: WithState(layers(), **how),
    "tied": lambda **how: Checkpointed(tied(), **how),
    "dropout": lambda **how: Checkpointed(layers(nn.Dropout(0.5)), **how),
    "batch norm": lambda **how: Checkpointed(layers(nn.BatchNorm1d(3)), **how),
    "a loop": lambda **how: OfLayer(layers(), loops=3, **how),
    "nested": lambda **how: Checkpointed(
        nn.Sequential(OfLayer(layers(), **how), nn.Linear(3, 3)), **how
    ),
    "parametrized": lambda **how: Checkpointed(
        nn.Sequential(
            nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)), nn.Linear(3, 3)
        ),
        **how,
    ),
    "a module in a module": lambda **how: nn.Sequential(
        nn.Linear(3, 3), Checkpointed(layers(), **how), nn.Linear(3, 3)
    ),
}
checkpointed = pytest.mark.parametrize("name", CHECKPOINTED)


def plain(model, params):
    """The same model with these numbers and no checkpoint in it."""
    twin = copy.deepcopy(model)
    store(twin, params)
    for module in twin.modules():
        module.is_on = False
    return twin


def grads_of(model):
    return {name: p.grad for name, p in model.named_parameters()}


def distinct(grads):
    return {dotted(path): g for path, g in walk(grads) if g is not None}


def inputs():
    torch.manual_seed(1)
    return torch.randn(4, 3)


def double(params):
    made = {}
    return map_tree(lambda _, w: made.setdefault(id(w), 2 * w), params)


@checkpointed
def test_gradients_with_a_checkpoint_are_those_without(name):
    torch.manual_seed(0)
    model, x = CHECKPOINTED[name](), inputs()
    params = double(parameters(model))
    twin = plain(model, params)
    torch.manual_seed(2)
    loss = twin(x).square().sum()
    loss.backward()
    torch.manual_seed(2)
    value, grads = with_gradient(lambda p: call(model, p, x).square().sum(), params)
    assert_close(value, loss.detach())
    assert_close(distinct(grads), grads_of(twin))


@checkpointed
@pytest.mark.parametrize("reentrant", [False, True])
def test_backward_finds_the_given_parameters_too(name, reentrant):
    torch.manual_seed(0)
    model, x = CHECKPOINTED[name](reentrant=reentrant), inputs().requires_grad_()
    params = map_tree(lambda _, w: w.requires_grad_(), double(parameters(model)))
    twin = plain(model, params)
    torch.manual_seed(2)
    twin(x).square().sum().backward()
    wanted, x.grad = x.grad, None
    torch.manual_seed(2)
    loss = call(model, params, x).square().sum()
    held = [dict(vars(module)) for module in model.modules()]
    loss.backward()
    assert [dict(vars(module)) for module in model.modules()] == held
    assert_close(x.grad, wanted)
    got = {dotted(path): w.grad for path, w in walk(params)}
    assert_close({key: got[key] for key in grads_of(twin)}, grads_of(twin))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_each_call_has_its_own_parameters_in_backward():
    torch.manual_seed(0)
    model, x = OfLayer(layers()), inputs()
    one = parameters(model)
    pair = {"one": one, "two": double(one)}

    def loss(p):
        return (call(model, p["one"], x) * call(model, p["two"], x)).sum()

    first, second = plain(model, one), plain(model, pair["two"])
    (first(x) * second(x)).sum().backward()
    grads = gradient(loss, pair)
    assert_close(distinct(grads["one"]), grads_of(first))
    assert_close(distinct(grads["two"]), grads_of(second))


def test_a_call_within_a_call_is_checkpointed_with_its_own():
    torch.manual_seed(0)
    x, inner = inputs(), OfLayer(layers())
    other = double(parameters(inner))

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = inner

        def forward(self, x):
            return self.net(x) * call(self.net, other, x)

    outer = Outer()
    grads = gradient(lambda p: call(outer, p, x).sum(), parameters(outer))
    first = plain(inner, parameters(inner))
    (first(x) * plain(inner, other)(x).detach()).sum().backward()
    assert_close(distinct(grads["net"]), grads_of(first))


def test_both_substitutions_are_found_again():
    torch.manual_seed(0)
    x, inner = inputs(), nn.Linear(3, 3)
    other = double(parameters(inner))

    class Outer(nn.Linear):
        def forward(self, x):
            with substitute(inner, other):
                both = lambda x: inner(super(Outer, self).forward(x).tanh())  # noqa: E731
                return checkpoint(both, x, use_reentrant=False)

    outer = Outer(3, 3)
    params = double(parameters(outer))
    grads = gradient(lambda p: call(outer, p, x).square().sum(), params)
    leaves = {key: w.clone().requires_grad_() for key, w in params.items()}
    hidden = nn.functional.linear(x, **leaves).tanh()
    loss = nn.functional.linear(hidden, **other).square().sum()
    wanted = torch.autograd.grad(loss, list(leaves.values()))
    assert_close(list(grads.values()), list(wanted))


def test_second_derivatives_through_a_checkpoint():
    torch.manual_seed(0)
    model, x = OfLayer(layers()), inputs()
    params = double(parameters(model))

    def loss(model_of):
        def penalized(p):
            slope = gradient(lambda q: model_of(p, q["x"]).sum(), {"x": x})["x"]
            return slope.square().sum()

        return penalized

    got = gradient(loss(lambda p, x: call(model, p, x)), params)
    twin = plain(model, params)
    wanted = gradient(loss(lambda p, x: call(twin, p, x)), params)
    assert_close(distinct(got), distinct(wanted))


def test_new_buffers_are_those_of_one_pass():
    torch.manual_seed(0)
    model, x = Checkpointed(layers(nn.BatchNorm1d(3))), inputs()
    params, stats = parameters(model), buffers(model)

    def loss(p):
        out, new = call(model, p, x, buffers=stats)
        return out.square().sum(), new

    (_, new), _ = with_gradient(loss, params)
    twin = plain(model, params)
    twin(x)
    assert_close(new, buffers(twin))
    assert_close(buffers(model), stats)


@pytest.mark.parametrize("reads", ["in a pass", "in backward"])
def test_an_error_in_a_checkpoint_leaves_the_module_whole(reads):
    class Broken(nn.Linear):
        left = 0 if reads == "in a pass" else 1

        def forward(self, x):
            if type(self).left == 0:
                raise ZeroDivisionError
            type(self).left -= 1
            return super().forward(x)

    model = OfLayer(Broken(3, 3))
    own = [dict(vars(module)) for module in model.modules()]
    with pytest.raises(ZeroDivisionError):
        gradient(lambda p: call(model, p, inputs()).sum(), parameters(model))
    assert [dict(vars(module)) for module in model.modules()] == own


def test_the_reentrant_kind_is_refused_where_it_gives_no_gradients():
    model = OfLayer(layers(), reentrant=True)
    match = "with_gradient: .* use_reentrant=True, .*Write use_reentrant=False"
    with pytest.raises(ValueError, match=match):
        gradient(lambda p: call(model, p, inputs()).sum(), parameters(model))

    teacher, x = parameters(model), inputs()

    def distance(p):
        with torch.no_grad():  # nothing is recomputed then
            target = call(model, teacher, x.requires_grad_())
        return (p["y"] - target).square().sum()

    slope = gradient(distance, {"y": torch.zeros(4, 3)})["y"]
    assert_close(slope, -2 * plain(model, teacher)(x).detach())


def test_inside_of_a_transform_it_is_refused():
    model, x = OfLayer(layers()), inputs()
    params = parameters(model)
    slopes = vmap(lambda row: gradient(lambda p: call(model, p, row).sum(), params))
    with pytest.raises(
        ValueError, match=r"with_gradient: .*checkpointing, which torch"
    ):
        slopes(x[:, None])
    rows = vmap(lambda row: call(model, params, row))(x[:, None])
    assert_close(rows[:, 0], model(x))


def test_another_kind_of_checkpoint_runs_its_own_code():
    class Loud(CheckpointFunction):
        @staticmethod
        def forward(ctx, function, preserve, *args):
            return 10 * CheckpointFunction.forward(ctx, function, preserve, *args)

    model, x = layers(), inputs().requires_grad_()
    got = Loud.apply(model, True, x)
    assert_close(got, 10 * model(x))


def test_a_checkpoint_outside_of_call_is_torchs_own():
    model, x = layers(), inputs()
    for reentrant in (False, True):
        model.zero_grad()
        given = x.clone().requires_grad_()
        checkpoint(model, given, use_reentrant=reentrant).sum().backward()
        wanted = torch.autograd.grad(model(x).sum(), model[0].weight)[0]
        assert_close(model[0].weight.grad, wanted)
    got = gradient(
        lambda p: checkpoint(lambda: call(model, p, x).sum(), use_reentrant=False),
        double(parameters(model)),
    )
    wanted = gradient(lambda p: call(model, p, x).sum(), double(parameters(model)))
    assert_close(got, wanted)


def test_a_checkpointed_pass_is_freed():
    model, x = OfLayer(layers()), inputs()
    params = map_tree(lambda _, w: w.requires_grad_(), parameters(model))
    out = call(model, params, x)
    seen = weakref.ref(params["inner"]["0"]["weight"])
    gc.disable()
    try:
        out.sum().backward()
        del out, params
        assert seen() is None
    finally:
        gc.enable()


# substitute


def penalized():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    regularize(model[0], weight=L1L2(l1=0.1, l2=0.5))
    regularize(model[1], activity=L1L2(l2=0.3))
    return model


def test_a_penalty_inside_of_substitute():
    model, x = penalized(), inputs()
    params = double(parameters(model))

    def loss(p):
        with substitute(model, p) as same:
            assert same is model
            return model(x).square().sum() + penalty(model)

    value, grads = with_gradient(loss, params)
    twin = copy.deepcopy(model)
    store(twin, params)
    total = twin(x).square().sum() + penalty(twin)
    total.backward()
    assert_close(value, total.detach())
    assert_close(distinct(grads), grads_of(twin))


def test_substitute_gives_everything_back_also_after_an_error():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    own = [dict(vars(module)) for module in model.modules()]
    bits = copy.deepcopy(model.state_dict())
    for error in (None, KeyError):
        try:
            with substitute(model, double(parameters(model))):
                model(inputs())
                model[0].seen = True
                assert not torch.equal(model[0].weight, bits["0.weight"])
                if error:
                    raise error
        except KeyError:
            pass
        assert [dict(vars(module)) for module in model.modules()] == own
        assert_close(model.state_dict(), bits, rtol=0, atol=0)


def test_substitute_says_what_does_not_fit():
    model = nn.Linear(2, 1)
    with (
        pytest.raises(ValueError, match="substitute: parameters have no 'weight'"),
        substitute(model, {}),
    ):
        pass
    with (
        pytest.raises(ValueError, match="substitute: got Tensor for parameters"),
        substitute(model, torch.ones(1)),
    ):
        pass


def test_a_forward_with_an_argument_named_as_ours():
    class Odd(nn.Linear):
        def forward(self, x, buffers=1.0, params=1.0, model=1.0):
            return super().forward(x) * buffers * params * model

    odd, x = Odd(3, 1), inputs()
    params = parameters(odd)
    wanted = nn.functional.linear(x, odd.weight, odd.bias) * 24
    assert_close(call(odd, params, x, 2.0, params=3.0, model=4.0), wanted)
    with substitute(odd, params):
        assert_close(odd(x, buffers=2.0, params=3.0, model=4.0), wanted)


def test_substitute_compiles():
    model, x = nn.Sequential(nn.Linear(3, 3), nn.Tanh()), inputs()

    def run(params, x):
        with substitute(model, params):
            return model(x).sum()

    params = double(parameters(model))
    torch.compiler.reset()
    assert_close(torch.compile(run, backend="eager")(params, x), run(params, x))
