"""Steps that are differentiated: meta-learning, against finite differences."""

from __future__ import annotations

import pytest
import torch
from test_rules import RULES
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import grad, hessian, jvp, vmap
from torch.testing import assert_close

from course_lib.explicit import (
    Leaf,
    gradient,
    setup,
    train,
    update,
    update_,
    with_gradient,
)
from course_lib.rules import (
    Adam,
    Chain,
    ClipNorm,
    Descent,
    MixedPrecision,
    Momentum,
    Rule,
)
from course_lib.trees import map_tree

every_rule = pytest.mark.parametrize("rule", RULES, ids=repr)
START = torch.tensor([3.0, -0.4, 0.9], dtype=torch.float64)
STEP = 1e-6  # of the finite differences


def bowl(p: dict) -> Tensor:
    return ((p["x"] - 1.3) ** 4).sum() + (p["x"] * p["y"]).sum()


def by_autograd(p: dict) -> dict:
    found = torch.autograd.grad(bowl(p), list(p.values()), create_graph=True)
    return dict(zip(p, found, strict=True))


def after_steps(rule: Rule, x: Tensor, slopes=None) -> Tensor:
    """A function of where two steps lead; its derivative goes through both."""
    y = torch.tensor(0.7, dtype=x.dtype, requires_grad=slopes is not None)
    p = {"x": x, "y": y * 1}
    state = setup(rule, p)
    for _ in range(2):
        grads = gradient(bowl, p) if slopes is None else slopes(p)
        state, p = update(state, p, grads)
    return (p["x"] ** 2).sum() + p["y"] ** 2


def differences(function, x: Tensor) -> Tensor:
    sides = STEP * torch.eye(len(x), dtype=x.dtype)
    return torch.stack(
        [(function(x + h) - function(x - h)) / (2 * STEP) for h in sides]
    )


def near(got, wanted):
    assert_close(got, wanted, rtol=1e-5, atol=1e-5)


@every_rule
def test_gradients_through_steps_are_the_finite_differences(rule):
    def meta(x):
        return after_steps(rule, x)

    wanted = differences(meta, START)
    near(grad(meta)(START), wanted)
    near(gradient(lambda p: meta(p["x"]), {"x": START})["x"], wanted)
    near(vmap(grad(meta))(torch.stack([START, START]))[1], wanted)
    x = START.clone().requires_grad_()
    if isinstance(rule, MixedPrecision):  # its copy of a leaf is none of the graph
        with pytest.raises(ValueError, match="MixedPrecision: the array is differenti"):
            after_steps(rule, x, by_autograd)
    else:
        near(torch.autograd.grad(after_steps(rule, x, by_autograd), x)[0], wanted)
    near(torch.autograd.grad(after_steps(rule, x * 1, by_autograd), x)[0], wanted)


@every_rule
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # in torch
def test_forward_mode_agrees(rule):
    def meta(x):
        return after_steps(rule, x)

    tangent = torch.tensor([0.3, 1.0, -2.0], dtype=torch.float64)
    wanted = differences(meta, START) @ tangent
    near(jvp(meta, (START,), (tangent,))[1], wanted)


@every_rule
def test_second_derivatives_through_steps(rule):
    def meta(x):
        return after_steps(rule, x)

    wanted = differences(grad(meta), START)
    assert_close(hessian(meta)(START), wanted, rtol=1e-4, atol=1e-4)


def test_the_numbers_of_one_step_of_descent():
    """z = x - 0.1 * 2 x = 0.8 x, and d z**2 / dx = 2 * 0.64 x."""

    def meta(x):
        p = {"x": x}
        state = setup(Descent(0.1), p)
        _, p = update(state, p, gradient(lambda p: (p["x"] ** 2).sum(), p))
        return (p["x"] ** 2).sum()

    x = torch.tensor([3.0])
    near(grad(meta)(x), torch.tensor([3.84]))
    near(gradient(lambda p: meta(p["x"]), {"x": x})["x"], torch.tensor([3.84]))


@pytest.mark.parametrize("rule", [Descent(1.0), Momentum(1.0), Chain(Descent(1.0))])
def test_a_step_size_is_learned(rule):
    """x' = x - alpha * g for a constant g, so that d x' / d alpha = -g."""
    p, g = {"x": torch.ones(2)}, torch.tensor([2.0, -3.0])
    state = setup(rule, p)
    alpha = torch.tensor(0.1, requires_grad=True)
    moved = update(state, p, {"x": alpha * g})[1]["x"]
    assert_close(torch.autograd.grad(moved.sum(), alpha)[0], -g.sum())
    taken = grad(lambda a: update(state, p, {"x": a * g})[1]["x"].sum())
    assert_close(taken(torch.tensor(0.1)), -g.sum())


def test_slopes_without_a_graph_keep_the_way_through_the_params():
    """A linear loss has a constant gradient; x' = x - c, and d x' / dx = 1."""

    def meta(x):
        p = {"x": x}
        grads = gradient(lambda p: 2 * p["x"].sum(), p)
        return update(setup(Adam(), p), p, grads)[1]["x"].sum()

    ones = torch.ones(3)
    assert_close(gradient(lambda p: meta(p["x"]), {"x": ones})["x"], ones)
    assert_close(grad(meta)(ones), ones)
    x = torch.ones(3, requires_grad=True)
    assert_close(torch.autograd.grad(meta(x.view_as(x)), x)[0], ones)


@every_rule
def test_torch_autograd_outside_sees_the_gradients_inside(rule):
    """As those who know torch write it: leaves, steps, and backward() at the end."""
    x = START.clone().requires_grad_()
    after_steps(rule, x.view_as(x)).backward()
    near(x.grad, differences(lambda x: after_steps(rule, x), START))


def test_the_graph_that_params_have_is_that_of_value_and_gradient():
    x = START.clone().requires_grad_()
    value, grads = with_gradient(bowl, {"x": x.view_as(x), "y": START[0]})
    assert_close(torch.autograd.grad(grads["x"].sum(), x)[0], 12 * (START - 1.3) ** 2)
    slope = 4 * (START - 1.3) ** 3 + START[0]
    assert_close(torch.autograd.grad(value, x)[0], slope)
    for given, is_enabled in ((x, True), (x.view_as(x).detach(), True), (x * 1, False)):
        with torch.set_grad_enabled(is_enabled):
            value, grads = with_gradient(bowl, {"x": given, "y": START[0]})
        assert not value.requires_grad
        assert not grads["x"].requires_grad


def test_a_state_with_a_graph_goes_on_in_it():
    v = torch.ones(2, requires_grad=True)
    p = {"x": torch.zeros(2)}
    for rule, state, part in (
        (Momentum(0.1, 0.5), v, lambda leaf: leaf.state),
        (Chain(Chain(Momentum(0.1, 0.5))), ((v,),), lambda leaf: leaf.state[0][0]),
    ):
        after, moved = update({"x": Leaf(rule, state)}, p, {"x": torch.ones(2)})
        slope = torch.autograd.grad(moved["x"].sum(), v, retain_graph=True)[0]
        assert_close(slope, torch.full((2,), -0.5))
        assert part(after["x"]).requires_grad


@pytest.mark.parametrize("rule", [Adam(), Momentum(), Chain(ClipNorm(), Adam())])
@pytest.mark.parametrize("make", [nn.Parameter, lambda x: x.requires_grad_()])
def test_a_loop_with_leaves_that_require_grad_ties_no_step_to_the_one_before(
    rule, make
):
    p = {"x": make(torch.ones(3)), "y": torch.ones(2)}
    state = setup(rule, p)
    for _ in range(3):
        grads = gradient(lambda p: (p["x"] ** 2).sum() + p["y"].sum(), p)
        state, p = update(state, p, grads)
        parts = torch.utils._pytree.tree_leaves((p, state))
        tensors = [part for part in parts if isinstance(part, Tensor)]
        assert not any(part.requires_grad for part in tensors)
    state, p, _ = train(lambda p, x: (p["x"] * x).sum(), p, [torch.ones(3)] * 2, state)
    assert p["x"].grad_fn is None


def test_vmap_over_leaves_and_over_what_has_a_graph():
    x = torch.ones(3, 2, requires_grad=True)
    for params, is_attached in (({"x": x}, False), ({"x": x * 1}, True)):
        state = vmap(lambda p: setup(Adam(), p))(params)
        moved = vmap(update)(state, params, {"x": torch.ones(3, 2)})[1]["x"]
        assert moved.requires_grad == is_attached
    slopes = {"x": (2 * x) ** 2}
    params = {"x": x.detach()}
    state = vmap(lambda p: setup(Descent(0.5), p))(params)
    moved = vmap(update)(state, params, slopes)[1]["x"]
    assert_close(torch.autograd.grad(moved.sum(), x)[0], -4 * x.detach())


def test_no_grad_and_detach_end_the_graph():
    x = torch.ones(2, requires_grad=True)
    p = {"x": x * 1}
    state = setup(Adam(), p)
    with torch.no_grad():
        after, moved = update(state, p, {"x": x * 2})
        assert not moved["x"].requires_grad
        assert not after["x"].state[0].requires_grad
    after, moved = update(state, p, {"x": x * 2})
    assert moved["x"].requires_grad
    moved = map_tree(lambda path, x: x.detach(), moved)
    assert update(setup(Adam(), moved), moved, moved)[1]["x"].grad_fn is None


def in_place_of(p, grads):
    update_(setup(Descent(), p), p, grads)
    return p["x"].sum()


@pytest.mark.parametrize(
    "run",
    [
        lambda x: in_place_of({"x": x * 1}, {"x": torch.ones(2)}),
        lambda x: in_place_of({"x": torch.ones(2)}, {"x": x * 1}),
        lambda x: gradient(lambda p: in_place_of({"x": p["x"] * 1}, p), {"x": x}),
        lambda x: gradient(lambda p: in_place_of(p, {"x": torch.ones(2)}), {"x": x}),
        lambda x: grad(lambda x: in_place_of({"x": x * 1}, {"x": x}))(x.detach()),
        lambda x: vmap(grad(lambda x: in_place_of({"x": x * 1}, {"x": x})))(
            x.detach()[None]
        ),
    ],
)
def test_a_differentiated_step_in_place_is_refused(run):
    with pytest.raises(
        ValueError, match=r"^update_: got a step that is diff.* Call upd"
    ):
        run(torch.ones(2, requires_grad=True))


def test_vmap_alone_steps_in_place():
    p = {"x": torch.ones(3, 2)}

    def step(p):
        update_(setup(Descent(0.5), p), p, {"x": torch.ones(2)})
        return p

    assert_close(vmap(step)(p)["x"], torch.full((3, 2), 0.5))


def test_a_gradient_that_is_not_finite_is_still_named():
    x = torch.tensor([0.0, 1.0], requires_grad=True)
    p = {"x": x * 1}
    with pytest.raises(ValueError, match="update: the gradient of 'x' is not finite"):
        update(setup(Adam(), p), p, {"x": 1 / x})


def vmap_of(function):
    return lambda xs: vmap(function)(xs).sum()


def test_a_copy_without_a_graph_is_refused():
    """The step would go from the copy, and d x' / dx lose its one."""
    outside = setup(MixedPrecision(Descent(0.1)), {"x": torch.ones(2)})

    def meta(x, state=outside):
        return update(state, {"x": x}, {"x": 2 * x})[1]["x"].sum()

    x = torch.ones(2)
    for run in (grad(meta), lambda x: grad(vmap_of(meta))(x[None])):
        with pytest.raises(
            ValueError, match=r"MixedPrecision: the array is diff.*setup"
        ):
            run(x)
    inside = grad(lambda x: meta(x, setup(MixedPrecision(Descent(0.1)), {"x": x})))
    assert_close(inside(x), torch.full((2,), 0.8))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # in torch
@pytest.mark.parametrize("size", [3, 70_000])  # small, and for the compiled kernel
def test_dual_tensors_keep_their_tangents(size):
    """Adam's first step is eta * g / (|g| + eps): nothing of g's size is left."""
    with forward_ad.dual_level():
        x = forward_ad.make_dual(torch.ones(size), torch.full((size,), 3.0))
        p = {"x": x}
        moved = update(setup(Adam(0.5, eps=1.0), p), p, {"x": x})[1]["x"]
        _, tangent = forward_ad.unpack_dual(moved)
    assert_close(tangent, torch.full((size,), 3 - 3 * 0.5 / 4))


def cubes(p: dict) -> Tensor:
    return (p["x"] ** 3).sum()


def with_tangent(function, x: Tensor, v: Tensor) -> list[Tensor]:
    """The tangents of what function gives, where x moves by v."""
    with forward_ad.dual_level():
        found = function(forward_ad.make_dual(x, v))
        return [forward_ad.unpack_dual(each).tangent for each in found]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # in torch
def test_a_gradient_in_forward_mode_has_its_tangent():
    """Forward over reverse: the tangent of 3 x**2 is 6 x v."""
    x, v = START, torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)

    def of_params(x):
        value, grads = with_gradient(cubes, {"x": x})
        assert not value.requires_grad
        return value, grads["x"]

    def of_factor(x):  # which is no parameter
        return gradient(lambda p: (p["x"] ** 2 * x).sum(), {"x": START})["x"]

    def in_tuple(x):
        loss = with_gradient(lambda p: (cubes(p), 2 * p["x"]), {"x": x})[0]
        return loss[1]

    assert_close(with_tangent(of_params, x, v)[0], (3 * x**2 * v).sum())
    assert_close(with_tangent(of_params, x, v)[1], 6 * x * v)
    assert_close(with_tangent(lambda x: [of_factor(x)], x, v)[0], 2 * START * v)
    assert_close(with_tangent(lambda x: [in_tuple(x)], x, v)[0], 2 * v)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # in torch
@every_rule
def test_forward_mode_goes_through_gradients_and_steps(rule):
    v = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    got = with_tangent(lambda x: [after_steps(rule, x)], START, v)[0]
    near(got, differences(lambda x: after_steps(rule, x), START) @ v)
