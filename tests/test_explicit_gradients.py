"""Gradients of trees: torch.func and autograd are the oracles."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from explicit_cases import MODELS, numbers
from torch import nn
from torch.func import vmap
from torch.testing import assert_close

from course_lib.explicit import (
    call,
    gradient,
    parameters,
    setup,
    train,
    update,
    update_,
    with_gradient,
)
from course_lib.regularization import L1L2, penalty, regularize
from course_lib.rules import (
    Adam,
    Descent,
)
from course_lib.trees import dotted, map_tree, walk


def test_the_value_comes_first():
    value, grads = with_gradient(lambda p: (p["x"] ** 2).sum(), {"x": numbers(3.0)})
    assert value == 9
    assert grads["x"].tolist() == [6]
    assert gradient(lambda p: (p["x"] ** 3).sum(), {"x": numbers(2.0)})["x"] == 12


def test_extra_outputs_come_with_the_value_and_hold_no_graph():
    def loss(p):
        y = p["x"] * 2
        return y.sum(), {"y": y, "text": "seen"}, [y]

    (value, extra, rest), grads = with_gradient(loss, {"x": numbers(1.0, 2)})
    assert value == 6
    assert extra["text"] == "seen"
    assert not any(t.requires_grad for t in (value, extra["y"], rest[0]))
    assert grads["x"].tolist() == [2, 2]


def test_what_is_unused_or_whole_has_no_gradient():
    params = {"x": numbers(1.0), "unused": numbers(1.0), "n": torch.tensor(3)}
    params |= {"flag": torch.tensor(True), "deep": {"none": numbers(1.0)}}
    grads = gradient(lambda p: (p["x"] * p["n"]).sum(), params)
    assert grads["x"].tolist() == [3]
    assert grads["unused"] is grads["n"] is grads["flag"] is None
    assert grads["deep"] == {"none": None}
    none = gradient(lambda p: torch.tensor(1.0), params, allow_unused=True)
    assert none["x"] is none["n"] is None
    inside = vmap(lambda s: gradient(lambda p: (s * p["x"] * p["n"]).sum(), params))
    with pytest.raises(ValueError, match="must only return Tensors"):
        inside(numbers(1.0, 2))  # torch: None can't leave vmap
    got = vmap(lambda s: gradient(lambda p: (s * p["x"] * p["n"]).sum(), params)["x"])
    assert got(numbers(1.0, 2)).tolist() == [[3], [6]]


# A loss that trains nothing, or not all that it seems to train


def small():
    torch.manual_seed(0)
    return regularize(nn.Linear(3, 1), weight=L1L2(l2=1.0))


def item(model, p, x):
    return torch.tensor(call(model, p, x).sum().item(), requires_grad=True)


def without_grad(model, p, x):
    with torch.no_grad():
        return call(model, p, x).sum()


NOTHING = {
    "the module itself": lambda model, p, x: model(x).sum(),
    "a penalty": lambda model, p, x: penalty(model),
    "a constant": lambda model, p, x: torch.tensor(1.0),
    "detached": lambda model, p, x: call(model, p, x).detach().sum(),
    "detached before": lambda model, p, x: call(
        model, map_tree(lambda _, w: w.detach(), p), x
    ).sum(),
    "an item": item,
    "argmax": lambda model, p, x: call(model, p, x).argmax().float(),
    "no_grad": without_grad,
    "other parameters": lambda model, p, x: call(model, parameters(model), x).sum(),
    "a copy": lambda model, p, x: copy.deepcopy(model)(x).sum(),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")  # torch's own, in jvp
@pytest.mark.parametrize("transform", ["plain", "vmap", "grad", "gradient", "jvp"])
@pytest.mark.parametrize("name", NOTHING)
def test_a_loss_that_uses_no_parameter_is_refused(name, transform):
    if transform in ("vmap", "grad", "jvp") and name in ("an item", "a copy"):
        pytest.skip("torch refuses .item() there, and new leaves count as used")
    model, x = small(), torch.ones(2, 3)
    params = parameters(model)

    def loss(p, factor):
        return NOTHING[name](model, p, factor * x) * 1.0

    def slope(factor):
        return gradient(lambda p: loss(p, factor), params)["weight"].sum()

    run = {
        "plain": lambda: slope(torch.tensor(2.0)),
        "vmap": lambda: vmap(slope)(torch.ones(2)),
        "grad": lambda: torch.func.grad(slope)(torch.tensor(2.0)),
        "gradient": lambda: gradient(lambda p: slope(p["x"]), {"x": torch.ones(())}),
        "jvp": lambda: torch.func.jvp(slope, (torch.ones(()),), (torch.ones(()),)),
    }[transform]
    match = (
        "with_gradient: the loss uses none of the parameters: 'weight', 'bias' have no "
        r"gradient. In place of model\(x\) write call\(model, params, x\)"
    )
    with pytest.raises(ValueError, match=match):
        run()


def test_train_refuses_it_too_unless_it_may():
    model, x = small(), torch.ones(2, 3)
    params = parameters(model)
    state = setup(Adam(), params)
    with pytest.raises(ValueError, match="the loss uses none of the parameters"):
        train(lambda p, x: model(x).sum(), params, [x], state)

    def some(p, x):
        return call(model, p, x).sum() if x.any() else torch.tensor(0.0)

    batches = [x, 0 * x, x]
    with pytest.raises(ValueError, match="pass allow_unused=True"):
        train(some, params, batches, state)
    _, moved, losses = train(some, params, batches, state, allow_unused=True)
    _, twice, _ = train(some, params, [x, x], state)
    assert losses[1] == 0
    assert_close(moved, twice)


def test_a_constant_is_allowed_where_it_is_said():
    params = {"x": numbers(1.0)}
    for loss in (lambda p: torch.tensor(1.0), lambda p: numbers(1.0).sum()):
        assert gradient(loss, params, allow_unused=True) == {"x": None}
    linear = {"x": numbers(2.0)}  # a slope that no parameter is in
    second = lambda p, **how: gradient(  # noqa: E731
        lambda q: gradient(lambda r: 3 * r["x"].sum(), q)["x"].sum(), p, **how
    )
    with pytest.raises(ValueError, match="the loss uses none"):
        second(linear)
    assert second(linear, allow_unused=True) == {"x": None}


def test_many_names_are_cut_short():
    params = {f"w{i}": numbers(1.0) for i in range(20)}
    with pytest.raises(ValueError, match="'w7' and 12 more have no gradient"):
        gradient(lambda p: torch.tensor(1.0), params)
    named = {"x": numbers(1.0), "n": torch.tensor(3)}
    with pytest.raises(ValueError, match="parameters: 'x' have"):
        gradient(lambda p: torch.tensor(1.0), named)


def test_heads_that_are_not_used_have_no_gradient():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(3, 1), nn.Linear(3, 1)

        def forward(self, x):
            return self.one(x)

    model = Heads()
    grads = gradient(
        lambda p: call(model, p, torch.ones(1, 3)).sum(), parameters(model)
    )
    assert grads["two"] == {"weight": None, "bias": None}
    assert grads["one"]["weight"].tolist() == [[1, 1, 1]]


BESIDE = {
    "penalty": lambda model, p, x: penalty(model),
    "the module": lambda model, p, x: model(x).sum(),
    "a parameter": lambda model, p, x: model.weight[0, 0],
    "a product": lambda model, p, x: (call(model, p, x) * model(x)).sum(),
    "nothing times": lambda model, p, x: 0 * model.bias.sum(),
}


@pytest.mark.parametrize("transform", ["plain", "vmap", "grad", "gradient"])
@pytest.mark.parametrize("name", BESIDE)
def test_a_modules_own_parameters_beside_call_are_refused(name, transform):
    model, x = small(), torch.ones(2, 3)
    params = parameters(model)

    def slope(factor):
        def loss(p):
            return call(model, p, factor * x).sum() + BESIDE[name](model, p, factor * x)

        return gradient(loss, params)["weight"].sum()

    run = {
        "plain": lambda: slope(torch.tensor(2.0)),
        "vmap": lambda: vmap(slope)(torch.ones(2)),
        "grad": lambda: torch.func.grad(slope)(torch.tensor(2.0)),
        "gradient": lambda: gradient(lambda p: slope(p["x"]), {"x": torch.ones(())}),
    }[transform]
    with pytest.raises(
        ValueError,
        match=r"with_gradient: the loss runs a module by `call`, and beside it uses "
        r"its own parameters.*Linear\.(weight|bias).*with substitute\(model, params\)",
    ):
        run()


def test_also_in_a_part_and_in_an_inner_gradient():
    inner = small()
    model, x = nn.Sequential(inner, nn.Tanh()), torch.ones(2, 3)
    params = parameters(model)
    for loss in (
        lambda p: call(model, p, x).sum() + penalty(inner),
        lambda p: call(inner, p["0"], x).sum() + model(x).sum(),
        lambda p: (
            gradient(lambda q: call(model, q, x).sum(), p)["0"]["bias"].sum()
            + model(x).sum()
            + p["0"]["bias"].sum()
        ),
    ):
        with pytest.raises(ValueError, match="beside it uses its own parameters"):
            gradient(loss, params)


def test_what_is_meant_as_a_constant_is_one():
    model, x = small(), torch.ones(2, 3)
    params = map_tree(lambda _, w: w + 1, parameters(model))

    def to_teacher(p):
        with torch.no_grad():
            target = model(x)
        return (call(model, p, x) - target).square().sum()

    wanted = gradient(to_teacher, params)
    detached = gradient(
        lambda p: (call(model, p, x) - model(x).detach()).square().sum(), params
    )
    model.requires_grad_(False)
    still = gradient(lambda p: (call(model, p, x) - model(x)).square().sum(), params)
    assert_close(wanted, detached)
    assert_close(wanted, still)
    assert wanted["bias"].abs() > 0.1


def test_another_network_may_judge_with_its_own_parameters():
    torch.manual_seed(0)
    maker, judge, z = nn.Linear(2, 3), nn.Linear(3, 1), torch.ones(4, 2)
    params = parameters(maker)
    grads = gradient(lambda p: judge(call(maker, p, z)).sum(), params)
    wanted = torch.autograd.grad(judge(maker(z)).sum(), maker.weight)[0]
    assert_close(grads["weight"], wanted)
    assert judge.weight.grad is None
    shares = vmap(
        lambda one: gradient(lambda p: judge(call(maker, p, one)).sum(), params)["bias"]
    )(z)
    assert_close(shares.sum(0), grads["bias"])
    both = parameters(judge)
    grads = gradient(lambda p: call(judge, both, call(maker, p, z)).sum(), params)
    assert_close(grads["weight"], wanted)


def test_parameters_that_are_the_modules_own_are_copied():
    model, x = small(), torch.ones(2, 3)
    own = dict(model.named_parameters())
    grads = gradient(lambda p: call(model, p, x).sum(), own)
    assert grads["bias"].tolist() == [2]
    with pytest.raises(ValueError, match="beside it uses its own parameters"):
        gradient(lambda p: call(model, p, x).sum() + penalty(model), own)


def test_a_skeleton_without_numbers_is_called():
    model, x = small(), torch.ones(2, 3)
    empty = copy.deepcopy(model).to("meta")
    params = parameters(model)
    got = gradient(lambda p: call(empty, p, x).square().sum(), params)
    assert_close(got, gradient(lambda p: call(model, p, x).square().sum(), params))


def test_no_parameters_no_gradients():
    outside = numbers(1.0, 2).requires_grad_()
    value, grads = with_gradient(lambda p: outside.sum(), {"n": torch.tensor(3)})
    assert (value, grads) == (3, {"n": None})
    assert not value.requires_grad
    assert outside.grad is None
    assert gradient(lambda p: outside.sum(), {}) == {}


def test_a_tie_stays_a_tie_in_the_loss():
    shared = numbers(2.0)
    params = {"a": {"w": shared}, "b": {"w": shared}}

    def loss(p):
        assert p["a"]["w"] is p["b"]["w"]
        return (3 * p["a"]["w"] + 7 * p["b"]["w"]).sum()

    grads = gradient(loss, params)
    assert grads["a"]["w"].tolist() == [10]
    assert grads["b"]["w"] is None
    shares = vmap(lambda s: gradient(lambda p: s * loss(p), params)["a"]["w"])
    assert shares(numbers(1.0, 2)).tolist() == [[10], [20]]


@pytest.mark.parametrize(
    ("params", "loss", "match"),
    [
        (nn.Linear(1, 1), None, r"got a Linear for params.*parameters\(model\)"),
        ({numbers(1.0)}, None, "got set for params"),
        ({"a": {"b": 3.0}}, None, "'a.b' is float; wanted a tensor"),
        ({"a": nn.Linear(1, 1)}, None, "'a' is Linear; wanted a tensor"),
        ({"x": numbers(1.0, 2)}, lambda p: p["x"], r"returned \(2,\); wanted a real"),
        ({"x": numbers(1.0)}, lambda p: 3.0, "the loss returned float; wanted"),
        ({"x": numbers(1.0)}, lambda p: None, "the loss returned NoneType; wanted"),
        ({"x": numbers(1.0)}, lambda p: (p["x"], 1), r"the loss returned \(1,\)"),
        (
            {"x": numbers(1.0)},
            lambda p: p["x"].sum() * 1j,
            r"returned \(\); wanted a re",
        ),
    ],
)
def test_bad_losses_and_parameters_are_refused(params, loss, match):
    for function in (gradient, with_gradient):
        with pytest.raises(ValueError, match=f"with_gradient: .*{match}"):
            function(loss, params)


def test_no_grad_does_not_disturb_and_inference_mode_is_refused():
    params = {"x": numbers(3.0)}
    with torch.no_grad():
        assert gradient(lambda p: (p["x"] ** 2).sum(), params)["x"] == 6
    with torch.inference_mode(), pytest.raises(ValueError, match="inference_mode"):
        gradient(lambda p: (p["x"] ** 2).sum(), params)


def test_the_gradient_of_a_gradient():
    def inner(p):
        return gradient(lambda q: (q["x"] ** 3 * p["y"]).sum(), {"x": p["x"]})["x"]

    params = {"x": numbers(2.0), "y": numbers(5.0)}
    grads = gradient(lambda p: inner(p).sum(), params)  # of 3 x**2 y
    assert (grads["x"].item(), grads["y"].item()) == (60, 12)
    third = gradient(
        lambda o: gradient(lambda p: inner(p | {"y": o["y"]}).sum(), o)["x"].sum(),
        params,
    )
    assert (third["x"].item(), third["y"].item()) == (30, 12)


def test_a_penalty_on_the_gradient_trains():
    model, x = (
        nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)),
        torch.ones(2, 3),
    )
    params = parameters(model)

    def loss(p):
        slope = gradient(lambda q: call(model, p, q["x"]).sum(), {"x": x})["x"]
        return slope.square().sum()

    got = gradient(loss, params)
    inputs = x.clone().requires_grad_()
    slope = torch.autograd.grad(model(inputs).sum(), inputs, create_graph=True)[0]
    wanted = torch.autograd.grad(slope.square().sum(), model[0].weight)[0]
    assert_close(got["0"]["weight"], wanted)


def test_a_gradient_leaves_nothing_in_memory():
    value, grads = with_gradient(lambda p: (p["x"] ** 2).sum(), {"x": numbers(3.0)})
    assert not value.requires_grad
    assert not grads["x"].requires_grad
    params = {"x": numbers(3.0).requires_grad_()}  # as from named_parameters()
    for _ in range(3):
        grads = gradient(lambda p: (p["x"] ** 2).sum(), params)
        params = {"x": params["x"] - 0.1 * grads["x"]}
        assert not grads["x"].requires_grad
        params = {"x": params["x"].detach().requires_grad_()}


def test_an_error_in_the_loss_leaves_no_depth_behind():
    params = {"x": numbers(3.0)}

    def broken(p):
        gradient(lambda q: 1 / 0, p)

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            gradient(broken, params)
        with pytest.raises(ValueError, match="the loss returned"):
            gradient(lambda p: gradient(lambda q: "text", p), params)
    assert not gradient(lambda p: (p["x"] ** 2).sum(), params)["x"].requires_grad


def test_threads_do_not_see_each_other():
    inside, done = threading.Event(), threading.Event()
    seen = []

    def waiting(p):
        inside.set()
        assert done.wait(10)
        return (p["x"] ** 2).sum()

    thread = threading.Thread(
        target=lambda: seen.append(gradient(waiting, {"x": numbers(3.0)})["x"])
    )
    thread.start()
    assert inside.wait(10)
    alone = gradient(lambda p: (p["x"] ** 2).sum(), {"x": numbers(4.0)})["x"]
    done.set()
    thread.join()
    assert not alone.requires_grad
    assert not seen[0].requires_grad
    assert (alone.item(), seen[0].item()) == (8, 6)


@pytest.mark.parametrize("name", ["tied", "one submodule under two names", "linear"])
def test_gradients_for_each_sample(name):
    torch.manual_seed(0)
    model, x = MODELS[name](), torch.randn(4, 3)
    params = parameters(model)

    def loss(p, sample):
        return call(model, p, sample[None]).square().sum()

    def of_one(sample):
        grads = gradient(lambda p: loss(p, sample), params)
        return {dotted(path): g for path, g in walk(grads) if g is not None}

    together = vmap(of_one)(x)
    for i, sample in enumerate(x):
        for key, g in of_one(sample).items():
            assert_close(together[key][i], g)


@pytest.mark.parametrize("name", ["tied", "one submodule under two names", "linear"])
def test_penalties_of_lesson_02(name):
    """A wrapper whose forward is data loss plus penalty, called explicitly."""

    class Objective(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x):
            return self.model(x).square().mean() + penalty(self.model)

    torch.manual_seed(0)
    model = MODELS[name]()
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.Linear):
            where = f"{path}.weight" if path else "weight"
            regularize(model, **{where: L1L2(l1=0.1, l2=0.3)})
    objective, x = Objective(model), torch.randn(4, 3)
    value, grads = with_gradient(lambda p: call(objective, p, x), parameters(objective))
    loss = objective(x)
    assert_close(value, loss.detach())
    loss.backward()
    for name, parameter in objective.named_parameters():
        got = {dotted(path): g for path, g in walk(grads)}[name]
        assert_close(got, parameter.grad)


def test_a_whole_step_compiles_without_a_warning():
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh()), torch.ones(2, 3)
    params = parameters(model)

    def step(state, params, x):
        loss = lambda p: call(model, p, x).square().sum()  # noqa: E731
        value, grads = with_gradient(loss, params)
        return value, *update(state, params, grads)

    compiled = torch.compile(step, backend="eager")
    one = other = (None, setup(Adam(), params), params)
    for _ in range(10):
        one, other = compiled(*one[1:], x), step(*other[1:], x)
    assert torch.equal(one[0], other[0])
    assert torch.equal(one[2]["0"]["weight"], other[2]["0"]["weight"])


def test_an_autocast_around_a_loop_holds_no_casts():
    """torch holds its casts of leaves until the outermost autocast ends."""
    model, x = nn.Linear(2, 1, bias=False), torch.ones(1, 2)
    params = {"weight": model.weight}
    state = setup(Descent(1.0), params)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(x).dtype == torch.bfloat16
        update_(state, params, {"weight": model.weight.detach().clone()})
        assert model(x).item() == 0
        with torch.no_grad():
            model.weight.fill_(3.0)
        gradient(lambda p: call(model, p, x).float().sum(), params)
        assert model(x).item() == 6


# Parameters that were computed from the module's own


def steps_by_hand(model, x, take=gradient, steps=3):
    params = dict(model.named_parameters())
    for _ in range(steps):
        grads = take(lambda q: call(model, q, x).pow(2).mean(), params)
        params = {key: params[key] - 0.1 * grads[key] for key in params}
    return params


def in_vmap(loss, params):
    grads = vmap(lambda s: gradient(lambda q: s * loss(q), params))(torch.ones(2))
    return {key: grad[0] for key, grad in grads.items()}


@pytest.mark.parametrize("take", [gradient, in_vmap])
def test_a_loop_by_hand_may_begin_with_the_modules_own_parameters(take):
    model, x = nn.Linear(3, 1), torch.ones(3)
    wanted = {key: p.detach().clone() for key, p in model.named_parameters()}
    for _ in range(3):
        grads = torch.func.grad(
            lambda q: torch.func.functional_call(model, q, x).pow(2).mean()
        )(wanted)
        wanted = {key: wanted[key] - 0.1 * grads[key] for key in wanted}
    got = steps_by_hand(model, x, take)
    assert_close({key: p.detach() for key, p in got.items()}, wanted)


def test_inside_another_gradient_the_own_parameters_may_be_the_params():
    model, x = nn.Linear(3, 1), torch.ones(3)

    def outer(scale):
        own = dict(model.named_parameters())
        inner = gradient(lambda q: scale * call(model, q, x).sum(), own)
        return inner["bias"].sum()

    assert gradient(outer, torch.tensor(2.0)) == 1


def test_beside_such_parameters_the_own_ones_are_still_refused():
    model, x = small(), torch.ones(3)
    params = steps_by_hand(model, x, steps=1)
    with pytest.raises(ValueError, match="beside it uses its own parameters"):
        gradient(lambda q: call(model, q, x).sum() + penalty(model), params)
