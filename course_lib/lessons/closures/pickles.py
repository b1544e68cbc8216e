"""Lesson 01: what comes back from a pickle, in its text and its last exercise."""

import contextlib
import copy
import io
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import FunctionType
from typing import Any

from course_lib.lessons.exercises import NotYet


def through_pickle(functions: Sequence[Callable[[], Any]]) -> list[Any] | str:
    """Pickle functions, call what comes back, and return the results; or "refused".

    >>> through_pickle([dict, lambda: 1])
    'refused'
    >>> through_pickle([dict])
    [{}]
    """
    try:
        return [function() for function in pickle.loads(pickle.dumps(functions))]
    except (pickle.PicklingError, AttributeError, TypeError):
        return "refused"


def round_trip(thing: Any, answer: Callable[..., Any]) -> Any:
    """Pickle and load; classes and functions of the notebook are found by name."""
    space = getattr(answer, "__globals__", {})
    stream = io.BytesIO()
    try:
        _Pickler(stream, space).dump(thing)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise NotYet(
            f"Step 3: a penalty can't be pickled: {error}. A lambda, or what is "
            "defined inside a function, can't be found by its name. Define a class at "
            "the top of the cell."
        ) from error
    stream.seek(0)
    try:
        return _Unpickler(stream, space).load()
    except Exception as error:
        raise NotYet(
            f"Step 3: the pickle can't be loaded: {type(error).__name__}: {error}."
        ) from error


def stores_of(answer: Callable[..., Any]) -> dict[str, Any]:
    """Return the lists and dictionaries of a notebook's globals and of its classes."""
    space = dict(getattr(answer, "__globals__", {}))
    for name, thing in list(space.items()):
        if isinstance(thing, type) and thing.__module__ == answer.__module__:
            space |= {f"{name}.{part}": value for part, value in vars(thing).items()}
    return {k: v for k, v in space.items() if isinstance(v, list | dict)}


@contextlib.contextmanager
def emptied(stores: Iterable[Any]) -> Iterator[None]:
    """Empty lists and dictionaries for a while: what another process would find."""
    kept = [(store, copy.copy(store)) for store in stores]
    for store, _ in kept:
        store.clear()
    try:
        yield
    finally:
        for store, content in kept:
            store.clear()
            (store.extend if isinstance(store, list) else store.update)(content)


class _Pickler(pickle.Pickler):
    """Stores what the learner defined as its name, as it is in the notebook.

    Where a judge is tested, the answer stands in no module that pickle could import.
    """

    def __init__(self, stream: io.BytesIO, space: Mapping[str, Any]) -> None:
        super().__init__(stream)
        self.space = space

    def persistent_id(self, thing: Any) -> str | None:
        """Return the name of a class or function of the notebook's top level."""
        if not isinstance(thing, type | FunctionType):
            return None
        is_there = self.space.get(thing.__qualname__) is thing
        return thing.__qualname__ if is_there else None


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO, space: Mapping[str, Any]) -> None:
        super().__init__(stream)
        self.space = space

    def persistent_load(self, name: str) -> Any:
        """Return what has this name now."""
        return self.space[name]
