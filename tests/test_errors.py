"""Every error of the package crosses from process to process as it was raised."""

import copy
import importlib
import pickle
import pkgutil

import pytest

import course_lib


def own_errors():
    """Return the exception classes that the package's modules define."""
    found = set()
    for module in pkgutil.walk_packages(course_lib.__path__, "course_lib."):
        if module.name.endswith("__main__"):
            continue
        space = vars(importlib.import_module(module.name)).values()
        found |= {
            value
            for value in space
            if isinstance(value, type)
            and issubclass(value, BaseException)
            and value.__module__ == module.name
        }
    return sorted(found, key=lambda kind: kind.__name__)


def raised(kind):
    """Return an error with a message, and what else its class asks for."""
    if kind.__name__ == "TrainingError":
        return kind("on purpose", {"epochs": [1, 2]})
    return kind("on purpose")


def test_the_errors_are_found():
    names = {kind.__name__ for kind in own_errors()}
    assert {"TrainingError", "KerasFormatError", "DataError", "NonFiniteLoss"} <= names


@pytest.mark.parametrize("kind", own_errors(), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(
    "through", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy]
)
def test_an_error_keeps_its_kind_message_and_attributes(kind, through):
    error = raised(kind)
    error.place = "set by whoever caught it"
    other = through(error)
    assert type(other) is kind
    assert (str(other), other.args) == (str(error), error.args)
    assert vars(other) == vars(error)
