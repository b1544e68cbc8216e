"""The loop over batches."""

from __future__ import annotations

import math

import pytest
import torch
from explicit_cases import batches, mse, net, numbers
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from course_lib.explicit import (
    NonFiniteLoss,
    adjust,
    call,
    freeze,
    load,
    parameters,
    save,
    setup,
    train,
    trainables,
    update,
    with_gradient,
)
from course_lib.rules import (
    AccumulateGradients,
    Adam,
    Chain,
    ClipGlobalNorm,
    Descent,
    WeightDecay,
)


def test_accumulated_small_batches_are_one_large():
    model, data = net(), batches(4)
    params = parameters(model)

    def loss(p, x, y):
        return mse(call(model, p, x), y)

    state = setup(Chain(AccumulateGradients(4), Adam(0.1)), params)
    _, small, _ = train(loss, params, data, state)
    large = [tuple(map(torch.cat, zip(*data, strict=True)))]
    _, once, _ = train(loss, params, large, setup(Adam(0.1), params))
    assert_close(small, once)


@pytest.mark.parametrize("tie", [False, True])
def test_l2_three_ways(tie):  # Flux
    model = net(tie=tie)
    params = parameters(model)

    def plain(p, x, y):
        return mse(call(model, p, x), y)

    def explicit(p, x, y):
        squares = [(p["0"]["bias"] ** 2).sum() + (p["2"]["bias"] ** 2).sum()]
        squares += [(p["0"]["weight"] ** 2).sum()]
        squares += [] if tie else [(p["2"]["weight"] ** 2).sum()]
        return plain(p, x, y) + 0.33 * sum(squares) / 2

    def over_trainables(p, x, y):
        l2 = sum((w**2).sum() for w in trainables(p).values()) / 2
        return plain(p, x, y) + 0.33 * l2

    adam, decayed = Adam(0.1), Chain(WeightDecay(0.33), Adam(0.1))
    results = [
        train(loss, params, batches(), setup(rule, params))[1]
        for loss, rule in ((explicit, adam), (over_trainables, adam), (plain, decayed))
    ]
    assert_close(results[0], results[1])
    assert_close(results[0], results[2])


def valley(p, x):
    return ((p["x"] - x) ** 2).sum()


def test_train_is_the_loop_by_hand():
    params = {"x": numbers(1.0, -2)}
    data = [numbers(float(i), 0) for i in range(5)]  # single tensors are batches
    state, moved, losses = train(valley, params, data, setup(Adam(0.1), params))
    wanted, by_hand, values = setup(Adam(0.1), params), params, []
    for x in data:
        value, grads = with_gradient(lambda p, x=x: valley(p, x), by_hand)
        wanted, by_hand = update(wanted, by_hand, grads)
        values.append(value.item())
    assert losses == values
    assert_close(moved, by_hand, rtol=0, atol=0)
    assert state["x"].state[2] == 5
    assert params["x"].tolist() == [1, -2]


def test_batches_of_every_kind():
    params = {"x": numbers(1.0)}
    x = numbers(1.0, 2, 3)[:, None]

    def run(data, loss=lambda p, x, y: (p["x"] * x - y).sum()):
        return train(loss, params, data, setup(Descent(), params))[2]

    pairs = [(row, 2 * row) for row in x]
    wanted = run(pairs)
    assert run(pair for pair in pairs) == wanted
    assert run(list(map(list, pairs))) == wanted
    assert run(DataLoader(TensorDataset(x, 2 * x), batch_size=1)) == wanted
    assert run([]) == []
    assert len(run(iter(x), valley)) == 3
    assert run([{"x": 2.0}], lambda p, batch: p["x"].sum() * batch["x"]) == [2.0]


def poisoned(p, i):
    return (math.nan if i == 51 else 1.0) * p["x"].sum()


def test_a_loss_that_is_not_finite_stops_the_run():  # Flux
    params, seen = {"x": torch.zeros(1)}, []

    def loss(p, i):
        seen.append(i)
        return poisoned(p, i)

    with pytest.raises(NonFiniteLoss, match="the loss of batch 50 is nan") as caught:
        train(loss, params, range(1, 101), setup(Descent(0.1), params))
    assert len(seen) == 51
    state, moved = caught.value.args[1]
    assert_close(moved["x"], torch.tensor([-5.0]))
    assert params["x"].item() == 0
    update(state, moved, params)
    assert isinstance(caught.value, ArithmeticError)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_or_it_is_left_out_with_a_warning(bad):
    params, stepped = {"x": torch.zeros(1)}, []
    with pytest.warns(
        UserWarning, match="loss of batch 1 is .*; it is left out"
    ) as seen:
        _, moved, losses = train(
            lambda p, factor: factor * (1 + p["x"].sum()),
            params,
            [1.0, bad, 1.0],
            setup(Descent(0.1), params),
            on_nonfinite="skip",
            on_step=lambda step, value: stepped.append(step),
        )
    assert len(seen) == 1
    assert seen[0].filename == __file__
    assert_close(moved["x"], torch.tensor([-0.2]))
    assert not math.isfinite(losses[1])
    assert stepped == [0, 2]


def test_another_word_for_on_nonfinite_is_refused():
    params = {"x": torch.zeros(1)}
    with pytest.raises(ValueError, match="on_nonfinite='ignore'; wanted 'raise' or"):
        train(poisoned, params, [1], setup(Descent(), params), on_nonfinite="ignore")


def test_a_schedule_sets_eta_before_each_step():
    params = {"x": numbers(0.0)}
    state, moved, _ = train(
        lambda p, _: p["x"].sum(),
        params,
        range(3),
        setup(Descent(7.0), params),
        schedule=lambda step: [1.0, 0.1, None][step],
    )
    assert moved["x"].item() == pytest.approx(-1.2)
    assert state["x"].rule == Descent(0.1)


def test_on_step_sees_the_whole_value_and_may_stop():
    params, seen = {"x": numbers(3.0)}, []

    def on_step(step, value):
        seen.append((step, value))
        return step == 1

    _, _, losses = train(
        lambda p, x: (valley(p, x), "extra"),
        params,
        iter([numbers(0.0)] * 9),
        setup(Descent(), params),
        on_step=on_step,
    )
    assert len(losses) == 2
    assert [step for step, _ in seen] == [0, 1]
    assert seen[0][1] == (numbers(9.0)[0], "extra")


def test_an_error_of_the_loss_or_of_update_comes_through():
    params = {"x": numbers(0.0)}
    state = setup(Descent(), params)
    with pytest.raises(ZeroDivisionError):
        train(lambda p, x: 1 / 0, params, [1], state)
    with pytest.raises(ValueError, match="update: the gradient of 'x' is not finite"):
        train(lambda p, x: p["x"].sqrt().sum(), params, [1], state)
    with pytest.raises(ValueError, match=r"adjust: .* has no 'eta'"):
        train(valley, params, [1.0], setup(Chain(), params), schedule=lambda step: 1.0)


def test_a_run_continues_from_files(tmp_path):
    model, data = net(tie=True), batches(6)
    params = parameters(model)

    def loss(p, x, y):
        return mse(call(model, p, x), y)

    state = setup(Chain(ClipGlobalNorm(1.0), Adam(0.1)), params)
    _, straight, whole = train(loss, params, data, state)
    state, half, first = train(loss, params, data[:3], state)
    save(tmp_path / "state.npz", state)
    read = load(tmp_path / "state.npz")
    assert read["0"]["weight"] is read["2"]["weight"]
    _, rest, second = train(loss, half, data[3:], read)
    assert_close(rest, straight, rtol=0, atol=0)
    assert first + second == whole


def test_frozen_and_adjusted_parts_in_a_loop():
    model, data = net(), batches(4)
    params = parameters(model)
    state = setup(Adam(0.1), params)
    state["0"] = freeze(state["0"])
    state["2"] = adjust(state["2"], 0.2)
    state, moved, _ = train(
        lambda p, x, y: mse(call(model, p, x), y), params, data, state
    )
    assert moved["0"]["weight"] is params["0"]["weight"]
    assert state["0"]["weight"].state[2] == 0
    assert state["2"]["weight"].state[2] == 4
    assert not torch.equal(moved["2"]["weight"], params["2"]["weight"])


def test_train_refuses_a_model_even_without_batches():
    with pytest.raises(ValueError, match="train: got a Linear for params"):
        train(mse, torch.nn.Linear(1, 1), [], {})
