"""What the checks of all lessons share: kinds, numbers, gradients."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from course_lib.lessons.checks import (
    as_text,
    close,
    gradient,
    name_mistake,
    reject,
    require_after,
    require_close,
    require_gradient,
    require_kind,
    require_parameters,
    require_parts,
    require_scalar,
    require_unchanged,
    why_not_without_arguments,
)
from course_lib.lessons.exercises import NotYet, exercise

HALF = torch.tensor(0.5)


def test_the_first_mistake_that_was_made_is_named():
    with pytest.raises(NotYet, match=r"^second$"):
        reject({"first": False, "second": True, "third": True})
    assert reject({"first": False}) is None


def test_a_mistake_that_gives_the_same_is_named():
    with pytest.raises(NotYet, match=r"^That is a sum\.$"):
        name_mistake(3.0, {"That is a mean": 2.0, "That is a sum": 3.0})
    assert name_mistake(4.0, {"That is a mean": 2.0}) is None
    with pytest.raises(NotYet, match=r"^It is less\.$"):
        name_mistake(1.0, {"It is less": 2.0}, same=lambda got, other: got < other)


def test_the_first_change_that_the_answer_can_not_bear_is_named():
    made = []
    changes = {name: lambda name=name: made.append(name) for name in "abc"}
    with pytest.raises(NotYet, match=r"^b$"):
        require_after(changes, lambda: "b" not in made)
    assert made == ["a", "b"]  # and the rest is not tried
    assert require_after(changes, lambda: True) is None


@pytest.mark.parametrize(
    ("got", "message"),
    [
        (None, r"^Your function returned None; wanted two numbers\. Is a `return`"),
        ("ab", r"^Your function returned str; wanted two numbers\."),
        ((1, 2, 3), r"^Your function returned 3 things; wanted two numbers\.$"),
    ],
)
def test_another_number_of_parts_is_refused(got, message):
    with pytest.raises(NotYet, match=message):
        require_parts(got, 2, "two numbers")
    assert require_parts([1, 2], 2, "two numbers") == [1, 2]


@pytest.mark.parametrize(
    ("got", "kind", "message"),
    [
        (..., int, r"There is still a `\.\.\.` in your code"),
        (None, int, r"`f` returned None; wanted 3\. Is a `return` missing\?"),
        ("3", int, r"`f` returned str; wanted 3\."),
        (True, int, r"`f` returned bool; wanted 3\."),
        (True, int | float, r"`f` returned bool; wanted 3\."),
    ],
)
def test_an_answer_of_another_kind_is_refused(got, kind, message):
    with pytest.raises(NotYet, match=message):
        require_kind(got, kind, "3", what="`f`")


def test_a_part_of_an_answer_is_named():
    words = {"what": "The new v", "verb": "is"}
    with pytest.raises(NotYet, match=r"^The new v is None; wanted a tensor\.$"):
        require_close(None, HALF, "here", {}, **words)
    with pytest.raises(NotYet, match=r"^The new v is str; wanted a number\.$"):
        require_close("0.5", 0.5, "here", {}, **words)


def test_an_answer_of_the_wanted_kind_is_returned():
    assert require_kind(3, int, "3") == 3
    assert require_kind(True, bool, "a bool") is True


def test_numbers_are_close_in_any_precision_but_not_in_another_shape():
    assert close(torch.tensor(0.5, dtype=torch.float64), HALF)
    assert close(0.5, 0.5)
    assert close(HALF, 0.5)
    assert close(np.float32(0.5), 0.5)
    assert close(Fraction(1, 2), HALF)
    assert not close(HALF[None], HALF)
    assert not close(torch.tensor(0.5001), HALF)
    assert not close("0.5", HALF)
    assert not close(None, HALF)


def test_a_mistake_is_named_with_the_numbers():
    mistakes = {"You add": 5.0, "You divide": 1.5}
    with pytest.raises(NotYet, match=r"^You add\. For 2 and 3: got 5, wanted 6\.$"):
        require_close(5, 6, "For 2 and 3", mistakes)
    with pytest.raises(NotYet, match=r"^For 2 and 3: got 7, wanted 6\.$"):
        require_close(7, 6, "For 2 and 3", mistakes)
    assert require_close(6.0, 6, "For 2 and 3", mistakes) is None
    with pytest.raises(NotYet, match=r"^For 2 and 3: got nearly 6, but not to five"):
        require_close(6.0004, 6, "For 2 and 3", mistakes)


def test_a_number_is_no_tensor():
    with pytest.raises(NotYet, match=r"returned float; wanted a tensor"):
        require_close(0.5, HALF, "here", {})
    with pytest.raises(NotYet, match=r"^here: got a Python number.* no gradient"):
        require_scalar(0.5, 0.5, "here", {})


@pytest.mark.parametrize("got", [HALF, HALF[None], HALF[None, None]])
def test_one_number_may_have_any_shape(got):
    assert require_scalar(got, 0.5, "here", {}) is None


def test_several_numbers_are_not_one():
    with pytest.raises(NotYet, match=r"shape \(2,\); wanted one.*Is a `sum\(\)` miss"):
        require_scalar(torch.ones(2), 2.0, "here", {})


def test_numbers_are_written_shortly():
    assert as_text(438480.0) == "438480"
    assert as_text(torch.tensor(-0.0)) == "0"
    assert as_text(torch.ones(2, 1)) == "[1, 1] of shape (2, 1)"


def square(x: Tensor) -> Tensor:
    return x.square().sum()


def test_a_gradient_must_reach_what_is_named():
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    assert require_gradient(square(x), x, 2 * x, "`x`") is None
    for value in (square(x.detach()), square(x[:1]) + square(x[1:].detach())):
        with pytest.raises(NotYet, match=r"does not reach `x`\. Do `\.item\(\)`"):
            require_gradient(value, x, 2 * x, "`x`")
    assert gradient(square(x), torch.ones(1, requires_grad=True)) is None
    assert gradient(square(x), torch.ones(1)) is None


def test_a_graph_that_cannot_be_gone_back_through_is_named():
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    gone, factor = square(x), torch.ones(2)
    gone.backward()
    changed = (x * factor).sum()
    factor += 1
    for value, message in (
        (gone, r"your code has called `backward` already"),
        (changed, r"was changed in place"),
    ):
        with pytest.raises(NotYet, match=message):
            gradient(value, x)


def test_changed_arguments_are_named():
    assert require_unchanged([HALF], [HALF.clone()], "`x`") is None
    with pytest.raises(NotYet, match=r"^You changed `x`\. Make new tensors"):
        require_unchanged([HALF], [HALF + 1], "`x`")


def test_a_module_must_train_exactly_what_it_was_given():
    one, other, copy = (nn.Linear(2, 2) for _ in range(3))
    assert require_parameters(nn.Sequential(one, other, one), one, other) is None
    for model, message in (
        (nn.Sequential(), "has no parameters"),
        (nn.Sequential(one, other, copy), "has 6 parameters, 4 were given"),
        (nn.Sequential(one, copy), "does not train the parameters"),
        (nn.Sequential(one), "does not train the parameters"),
    ):
        with pytest.raises(NotYet, match=message):
            require_parameters(model, one, other)
    with pytest.raises(NotYet, match="Your code has frozen the weights"):
        require_parameters(one.requires_grad_(False), one)


def test_a_function_that_wants_arguments_says_which():
    assert "missing a required argument: 'x'" in why_not_without_arguments(lambda x: x)
    for function in (lambda x=1: x, int, nn.ReLU()):  # int tells nothing of itself
        assert why_not_without_arguments(function) == ""


def test_an_exercise_is_named_after_its_function_and_module(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_PROGRESS", str(tmp_path / "progress.json"))

    @exercise("one", "two", "three", right="It is.")
    def is_three(answer):
        reject({"It is not 3.": answer != 3})

    assert is_three.name == "test_checks.is_three"
    assert is_three.hints == ("one", "two", "three")
    assert repr(is_three.check(3)) == "Right. It is."
    assert repr(is_three.check(4)) == "Not yet. It is not 3."
