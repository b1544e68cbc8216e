"""See which variables a function captured, who shares them, and freeze them.

A nested function keeps the *cells* of the variables it uses, not their values, and
reads a cell only when it runs. Functions made in one loop therefore share the loop
variable's cell and all see its last value (late binding).

Globals are not captured: a name that a function reads from its module, or from a
notebook's top level, has no cell, and none of these functions sees it.

Source: Python language reference, 4.2.2 "Resolution of names".
"""

import functools
import inspect
from collections.abc import Callable, Iterable
from types import (
    BuiltinFunctionType,
    CellType,
    FunctionType,
    MethodDescriptorType,
    MethodType,
    MethodWrapperType,
    WrapperDescriptorType,
)
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])
_IN_C = (  # len, str.upper, str.__len__ and "".__len__
    BuiltinFunctionType,
    MethodDescriptorType,
    WrapperDescriptorType,
    MethodWrapperType,
)


class _Unset:
    """The mark of a cell that holds no value yet."""

    def __repr__(self) -> str:
        return "<unset>"

    def __reduce__(self) -> str:
        return "UNSET"  # unpickles and copies to the one object of that name


UNSET = _Unset()


def captures(function: Callable[..., Any]) -> dict[str, object]:
    """Return what each captured name holds now: {name: value}, in co_freevars' order.

    A cell without a value (its variable is assigned later, or was deleted) is marked
    `UNSET`. A function that captures nothing gives {}.

    Raises:
        TypeError: not a Python function; the message says where its values live.

    >>> def make():
    ...     i = 1
    ...     read = lambda: i
    ...     i = 2
    ...     return read
    >>> captures(make())
    {'i': 2}
    """
    cells = _cells("captures", function)
    return {name: _value(cell) for name, cell in cells.items()}


def shared_captures(
    functions: Iterable[Callable[..., Any]],
) -> dict[str, list[Callable[..., Any]]]:
    """Return the names whose one cell several of the functions share, and who does.

    These are the suspects of late binding: {name: [function, ...]}, functions in the
    order given. Equal names in different cells are not shared. A function that is
    given twice counts once.

    Raises:
        TypeError: one of them is not a Python function.

    >>> def make():
    ...     return [lambda: i for i in range(3)]
    >>> {name: len(users) for name, users in shared_captures(make()).items()}
    {'i': 3}
    """
    if callable(functions):
        raise TypeError(
            f"shared_captures: got one callable, {_name(functions)}; wanted a list of "
            "functions. For a single one there is captures."
        )
    users: dict[tuple[str, int], list[Callable[..., Any]]] = {}
    for function in {id(f): f for f in functions}.values():
        for name, cell in _cells("shared_captures", function).items():
            users.setdefault((name, id(cell)), []).append(function)
    shared: dict[str, list[Callable[..., Any]]] = {}
    for (name, _), group in users.items():
        if len(group) > 1:
            shared.setdefault(name, []).extend(group)
    return shared


def freeze_captures(function: F) -> F:
    """Return a copy whose captured names are bound to their values of now.

    The copy keeps code, defaults, annotations, name, docstring and attributes; only
    its cells are new. The original is untouched. A captured function is frozen too,
    so a decorated function freezes through its wrapper, a recursive function calls
    its frozen self, and copies made together share a cell where the originals do.
    Values are bound, not copied: a captured list can still change from inside. A
    function that captures nothing is returned as it is.

    Raises:
        TypeError: not a Python function; the message says what to pass instead.
        ValueError: a captured name has no value yet.

    >>> def make():
    ...     return [freeze_captures(lambda: i) for i in range(3)]
    >>> [read() for read in make()]
    [0, 1, 2]
    """
    _cells("freeze_captures", function)  # refuses what is not a Python function
    return _freeze(function, {})


def _freeze(function: Any, done: dict[int, Any]) -> Any:
    """Return the copy; `done` maps the id of a function or a cell to its copy."""
    if not isinstance(function, FunctionType) or not function.__closure__:
        return function
    if id(function) not in done:
        cells = _cells("freeze_captures", function)
        new = {name: cell for name, cell in cells.items() if id(cell) not in done}
        done.update({id(cell): CellType() for cell in new.values()})
        copy = _with_cells(function, tuple(done[id(c)] for c in cells.values()))
        done[id(function)] = copy
        copy.__dict__.update({k: _freeze(v, done) for k, v in vars(function).items()})
        for name, cell in new.items():
            value = _require_value(function, name, cell)
            done[id(cell)].cell_contents = _freeze(value, done)
    return done[id(function)]


def _with_cells(function: FunctionType, cells: tuple[CellType, ...]) -> FunctionType:
    copy = FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        cells,
    )
    kwdefaults = function.__kwdefaults__
    copy.__kwdefaults__ = None if kwdefaults is None else dict(kwdefaults)
    functools.update_wrapper(copy, function, updated=())
    del copy.__wrapped__  # a copy, not a wrapper
    return copy


def _cells(place: str, function: Callable[..., Any]) -> dict[str, CellType]:
    if not isinstance(function, FunctionType):
        raise TypeError(f"{place}: got {_describe(function)}")
    cells = function.__closure__ or ()
    return dict(zip(function.__code__.co_freevars, cells, strict=True))


def _value(cell: CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # Python's word for an empty cell
        return UNSET


def _require_value(function: FunctionType, name: str, cell: CellType) -> object:
    value = _value(cell)
    if value is UNSET:
        raise ValueError(
            f"freeze_captures: {name!r} of {function.__qualname__} has no value yet. "
            f"Freeze the function after {name!r} is assigned."
        )
    return value


def _describe(thing: object) -> str:
    """Say why this callable has no cells, and what to pass instead."""
    if isinstance(thing, functools.partial):
        return (
            f"a partial of {_name(thing.func)}; it bound its arguments when it was "
            "made, so nothing in it is late. Pass its .func to see that function."
        )
    if isinstance(thing, MethodType):
        return (
            f"the bound method {_name(thing)}; its object is an argument, not a "
            "captured name. Pass its .__func__."
        )
    if isinstance(thing, _IN_C):
        return (
            f"the builtin {_name(thing)}; it is written in C and has no Python "
            "cells. Wrap it in a lambda if you need a function."
        )
    if inspect.isclass(thing):
        return f"the class {_name(thing)}; wanted a function. Pass one of its methods."
    if callable(thing):
        wrapped = hasattr(thing, "__wrapped__")  # by functools.cache, for example
        return (
            f"a callable {type(thing).__name__} object; it keeps its values in "
            "attributes, where vars(...) shows them. "
            + ("Pass its .__wrapped__." if wrapped else "Wanted a function.")
        )
    return f"{thing!r}, which can't be called; wanted a function (def or lambda)."


def _name(thing: object) -> str:
    return repr(getattr(thing, "__qualname__", type(thing).__name__))
