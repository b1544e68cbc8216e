"""What lesson 09 measures with, against hand arithmetic."""

import time

import torch

from course_lib.lessons.rso_speed.stopwatch import Steps, multiply_adds, seconds_of


def test_a_matrix_product_and_a_convolution_are_counted_by_hand():
    a, b = torch.ones(3, 5), torch.ones(5, 7)
    assert multiply_adds(lambda: a @ b) == 3 * 5 * 7
    x, kernel = torch.ones(2, 3, 6, 6), torch.ones(4, 3, 3, 3)
    count = multiply_adds(lambda: torch.conv2d(x, kernel))
    assert count == 2 * 4 * 4 * 4 * 27
    assert multiply_adds(lambda: a + a) == 0


def test_time_asleep_is_no_computing_time():
    assert seconds_of(time.sleep, 0.01, calls=3) < 0.005


def test_a_call_gets_its_arguments():
    kept = torch.zeros(2)
    seconds_of(torch.add, torch.ones(2), 2, alpha=3, out=kept)
    assert kept.tolist() == [7, 7]


def test_the_time_of_a_call_is_a_median():
    calls = []

    def slow_once():
        calls.append(1)
        end = time.thread_time() + (0.05 if len(calls) == 2 else 0.001)
        while time.thread_time() < end:
            pass

    assert 0.001 <= seconds_of(slow_once, calls=3) < 0.02
    assert len(calls) == 3


def run(losses, visits):
    return [int(losses(j, 0).argmin()) for j in range(visits)]


def test_steps_count_a_visit_and_compare_decisions_with_the_first_way(capsys):
    steps, made = Steps(run, visits=30), []
    square = torch.eye(3)

    def make():
        made.append(1)
        square @ square  # not counted
        return lambda j, number: (square[0] @ square) * 0 - square[j % 3]

    steps.measure("first", make)
    steps.measure("other", lambda: lambda j, number: torch.tensor([0, 1, 1]))
    assert steps.decisions == {"first": [0, 1, 2] * 10, "other": [0] * 30}
    assert len(made) == 2  # one to count, and a new one to time
    assert steps.counts == {"first": 9, "other": 0}
    assert steps.speeds.keys() == steps.counts.keys() == steps.decisions.keys()
    assert min(steps.speeds.values()) > 0
    assert capsys.readouterr().out.splitlines() == [
        "first: 9 multiply-adds a visit, 30 of 30 decisions alike",
        "other: 0 multiply-adds a visit, 10 of 30 decisions alike",
    ]
