"""Exercises of lesson 00: four small ones, to learn how checks and hints work."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from course_lib.lessons.checks import reject, require_kind, require_unchanged
from course_lib.lessons.exercises import NotYet, exercise

NUMBER = 0


@exercise(
    "A linear layer multiplies by a matrix and adds a vector.",
    "From 64 to 32 the matrix has 64 * 32 entries. How many has the vector?",
    "(64 + 1) * 32 + (32 + 1) * 10",
    right="64 * 32 + 32 in the first layer, and 32 * 10 + 10 in the second.",
)
def count(answer: Any) -> None:
    """A number: the parameters of a network with 64, 32 and 10 units."""
    _require_one_number(answer)
    mistakes = {
        "These are the weights alone. Each of the 42 outputs of the two layers has a "
        "bias too.": 64 * 32 + 32 * 10,
        "That is the first layer. The second one takes 32 numbers to 10.": 64 * 32 + 32,
        "That is the second layer. The first one takes 64 numbers to 32.": 32 * 10 + 10,
        "The parameters stand in 4 tensors. Count the numbers in them.": 4,
        "These are the biases alone.": 32 + 10,
        "That would be one layer from 64 to 10; there are 32 between.": 64 * 10 + 10,
        "These are the sizes, added. A layer has a weight for each pair of an input "
        "and an output.": 64 + 32 + 10,
    }
    reject({name: answer == wrong for name, wrong in mistakes.items()})
    if answer != 64 * 32 + 32 + 32 * 10 + 10:
        raise NotYet(f"The network does not have {answer!r} parameters.")


@exercise(
    "One step of the optimizer uses one batch.",
    "1437 / 64 is a little more than 22.",
    "The images that are left over make one more, smaller batch.",
    right="22 full batches and one of 29 images.",
)
def steps(answer: Any) -> None:
    """A number: the optimizer's steps in one epoch of 1437 images."""
    _require_one_number(answer)
    if isinstance(answer, float) and not answer.is_integer():
        raise NotYet(f"There is no {answer:g}th step. The last batch is a small one.")
    mistakes = {
        "22 full batches leave 29 images over, and they are trained on too.": [22],
        "That is the number of images; a step takes 64 of them.": [1437],
        "That is the number of images in a step.": [64],
        "1437 images are left for training; 360 are for testing.": [6],
        "That counts all 1797 images; 360 are for testing.": [28],
        "29 images are left over after the full batches, and all 1797 images would "
        "make 29 steps. How many steps do 1437 make?": [29],
        "That is for all 8 epochs. How many steps are in one?": [8 * 22, 8 * 23],
        "That is the number of epochs.": [8],
        "There are not so many images: a 24th batch would be empty.": [24],
    }
    reject({name: answer in wrong for name, wrong in mistakes.items()})
    if answer != 23:
        raise NotYet(f"It is not {answer!r}. How often do 64 go into 1437?")


def _require_one_number(answer: Any) -> None:
    if isinstance(answer, str):
        raise NotYet(f"{answer!r} is a text. Wanted a number, without quotes.")
    size = getattr(answer, "shape", ())
    if len(size) and size != (1,):
        raise NotYet(f"Got an array of shape {tuple(size)}; wanted one number.")


# The last row is right, no guess is sure, and some large logits are negative.
_TABLE = [[0.1, 0.3, 0.2, 0.5], [-3.0, 0.2, 0.4, 0.3], [0.7, 0.6, 0.1, 0.2]]
_TABLE += [[0.5, 0.4, -1.0, 0.9]]
_LABELS = [3, 2, 1, 3]  # the third row is wrong


@exercise(
    "Each row of `logits` is one image, each column one class.",
    "`logits.argmax(dim=1)` is the guess for each row.",
    "Compare it with `labels`, and take the mean of the result as floats.",
    right="The largest logit of each row is the guess; the mean of hits is the share.",
)
def accuracy(answer: Callable[[Tensor, Tensor], Any]) -> None:
    """A function of (logits, labels): the share of right guesses."""
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [1.0, 0.0, 4.0]])
    got = _share(answer, logits, torch.tensor([0, 1, 0]))  # two of three are right
    square = torch.tensor([[1.0, 2.0], [0.0, 3.0]]), torch.tensor([1, 0])
    table = torch.tensor(_TABLE), torch.tensor(_LABELS)
    if got == 2.0 and _share(answer, *square) != 0.5:
        raise NotYet("That is how many are right; wanted a share between 0 and 1.")
    if round(got, 1) == 66.7:
        raise NotYet("That is a percentage; wanted a share between 0 and 1.")
    if abs(got - 1 / 3) < 1e-6 and _share(answer, *table) == 0.25:
        raise NotYet("That is the share of wrong answers.")
    if abs(got - 2 / 3) > 1e-6:
        raise NotYet(f"Two of three rows are right, and yours gives {got:.4g}.")
    if _share(answer, *square) != 0.5:
        raise NotYet(
            "For [[1, 2], [0, 3]] and labels [1, 0] it is 0.5. Is the largest logit "
            "looked for in each row (dim=1), and not in each column?"
        )
    wide = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]), torch.tensor([1, 2])
    if (got := _share(answer, *wide)) != 0.5:
        raise NotYet(
            "For two rows of three logits, one of them right, it is 0.5; yours gives "
            f"{got:.4g}. Divide by the number of rows."
        )
    if abs((got := _share(answer, *table)) - 0.75) > 1e-6:
        raise NotYet(
            f"For {_TABLE} and labels {_LABELS} it is 0.75; yours gives {got:.4g}. The "
            "largest logit of a row is the guess, however large it is. Count all rows."
        )


def _share(
    answer: Callable[[Tensor, Tensor], Any], logits: Tensor, labels: Tensor
) -> float:
    """Return what the learner's function gives, which must be one number."""
    given = logits.clone(), labels.clone()
    try:
        got = answer(*given)
    except RuntimeError as error:
        if "mean()" not in str(error):
            raise
        raise NotYet("True and False have no mean yet: `.float()` first.") from None
    require_unchanged(given, (logits, labels), "`logits` or `labels`")
    require_kind(got, object, "a share")
    if isinstance(got, str | list | tuple | dict):
        raise NotYet(f"Got {got!r}; wanted one number, the share.")
    if isinstance(got, Tensor) and got.numel() != 1:
        raise NotYet(
            "That says of each row whether it is right; wanted one number, the share "
            "of the rows that are."
        )
    return float(got)


@exercise(
    "Overfitting: the network learns the training images, not the digits.",
    "Which loss is measured on images that it never trains on?",
    "When one loss falls and the other rises, the one that rises tells.",
    right="Only images that the network has not trained on can show it.",
)
def overfit(answer: Any) -> None:
    """A word: which loss rises when a network overfits."""
    said = str(answer).strip().lower().removeprefix("the ").removesuffix(" loss")
    said = "training" if said == "train" else said
    mistakes = {
        "training": "The training loss goes on falling: the network fits the images "
        "that it learns by heart better and better.",
        "both": "If both rose, the training itself would be failing. A network that "
        "overfits does well on the images it has learned.",
        "neither": "As long as both fall, what the network learns helps on other "
        "images too. One of them rises when it no longer does.",
    }
    if said != "test":
        wanted = 'Wanted one of "training", "test", "both", "neither".'
        raise NotYet(mistakes.get(said, wanted))
