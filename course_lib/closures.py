"""Show the variables that a function captured, who shares them, and freeze them.

A nested function stores the *cells* of the variables it uses, not their values, and
reads a cell only when it runs. So functions made in one loop share the loop variable's
cell and all see its last value (late binding).

A function that it calls may bind late as well: behind a decorator or a partial, in a
list or in a default. So all three search functions, `__wrapped__`, partials, bound
methods, lists, tuples, dicts and sets, but no attributes of other objects. Globals are
not captured: a name that a function reads from its module, or from a notebook's top
level, has no cell.

Source: Python language reference, 4.2.2 "Resolution of names".
"""

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from types import (
    BuiltinFunctionType,
    CellType,
    FunctionType,
    MappingProxyType,
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
_CONTAINERS = (list, tuple, set, frozenset, dict, MappingProxyType)


class _Unset:
    """Marks a cell that holds no value yet."""

    def __repr__(self) -> str:
        return "<unset>"

    def __reduce__(self) -> str:
        return "UNSET"  # unpickles and copies to the one object of that name


UNSET = _Unset()


def captures(function: Callable[..., Any]) -> dict[str, object]:
    """Return the current value of each captured name.

    First the function's own names, in co_freevars' order, then those of the functions
    behind it, the nearest first. If two cells have one name, the later is called by
    its path: "read.i" is the i that the function `read` captured.

    A cell without a value (its variable is assigned later, or was deleted) gives
    `UNSET`; a function that captures nothing gives {}.

    Raises:
        TypeError: there is no Python function in it.

    >>> def make():
    ...     i = 1
    ...     read = lambda: i
    ...     i = 2
    ...     return read
    >>> captures(make()), captures(functools.partial(make()))
    ({'i': 2}, {'i': 2})
    """
    return {name: _value(cell) for name, cell in cells(function).items()}


def shared_captures(
    functions: Iterable[Callable[..., Any]],
) -> dict[str, list[Callable[..., Any]]]:
    """Return the names whose cell several of the functions share, with the functions.

    These are the suspects of late binding: {name: [function, ...]}, functions in the
    order given, each once. Equal names in different cells are not shared. A cell that
    a function reaches through another one, behind a decorator for example, counts too.

    Raises:
        TypeError: there is no Python function in one of them.

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
        _require_function("shared_captures", function)
        for _, name, cell in _reached(function):
            users.setdefault((name, id(cell)), []).append(function)
    shared: dict[str, list[Callable[..., Any]]] = {}
    for (name, _), group in users.items():
        if len(group) > 1:
            known = shared.setdefault(name, [])
            known.extend(f for f in group if all(f is not other for other in known))
    return shared


def freeze_captures(function: F) -> F:
    """Return a copy whose captured names are bound to their current values.

    The copy has the code, defaults, annotations, name, docstring and attributes of the
    original, but new cells. A function that it captured, or has as a default, is frozen
    too, also inside a partial, a bound method or a tuple: a decorated function freezes
    through its wrapper, a recursive function calls its frozen self, and cells that the
    originals share are shared by the copies. Values are bound, not copied: a captured
    list can still change. A function that captures nothing is returned itself.

    Raises:
        TypeError: there is no Python function in it.
        ValueError: a captured name has no value yet; or a list, a dict, a set or an
            object such as functools.cache makes holds a function that captures, for a
            copy of it would not be the same object.

    >>> def make():
    ...     return [freeze_captures(lambda: i) for i in range(3)]
    >>> [read() for read in make()]
    [0, 1, 2]
    """
    _require_function("freeze_captures", function)
    return _freeze(function, {}, _name(function))


def cells(function: Callable[..., Any]) -> dict[str, CellType]:
    """Return the cells whose values `captures` shows, by the same names.

    Raises:
        TypeError: as `captures`.
    """
    _require_function("captures", function)
    found: dict[str, CellType] = {}
    for path, name, cell in _reached(function):
        found[".".join((*path, name)) if name in found else name] = cell
    return found


def _reached(function: Any) -> Iterator[tuple[tuple[str, ...], str, CellType]]:
    """Yield (path, name, cell) of each distinct cell once, the nearest first."""
    waiting: list[tuple[tuple[str, ...], Any]] = [((), function)]
    seen = {id(function)}
    seen_cells: set[int] = set()
    for path, thing in waiting:  # the list grows in the loop
        cells = _own_cells(thing)
        for name, cell in cells.items():
            if id(cell) not in seen_cells:
                seen_cells.add(id(cell))
                yield path, name, cell
        captured = ((name, _value(cell)) for name, cell in cells.items())
        for name, part in (*captured, *_parts(thing)):
            if id(part) not in seen:
                seen.add(id(part))
                waiting.append(((*path, name), part))


def _own_cells(thing: Any) -> dict[str, CellType]:
    if not isinstance(thing, FunctionType):
        return {}
    return dict(zip(thing.__code__.co_freevars, thing.__closure__ or (), strict=True))


def _parts(thing: Any) -> Iterator[tuple[str, Any]]:
    """Yield (name, part) of the parts besides cells that may hold a function."""
    if isinstance(thing, FunctionType):
        yield from _defaults(thing).items()
    elif isinstance(thing, functools.partial):
        yield "func", thing.func
        yield from _items("args", enumerate(thing.args))
        yield from _items("keywords", thing.keywords.items())
    elif isinstance(thing, MethodType):
        yield "__func__", thing.__func__
    elif isinstance(thing, list | tuple | set | frozenset):
        yield from _items("", enumerate(thing))
    elif isinstance(thing, dict | MappingProxyType):
        yield from _items("", thing.items())
    if callable(thing) and not inspect.isclass(thing):
        yield "__wrapped__", inspect.getattr_static(thing, "__wrapped__", None)


def _items(name: str, items: Iterable[tuple[Any, Any]]) -> Iterator[tuple[str, Any]]:
    for key, value in items:
        if callable(value) or isinstance(value, _CONTAINERS):  # not a million numbers
            yield f"{name}[{key!r}]", value


def _defaults(function: FunctionType) -> dict[str, Any]:
    """Return the default of each argument that has one."""
    code, values = function.__code__, function.__defaults__ or ()
    names = code.co_varnames[: code.co_argcount]
    last = names[len(names) - len(values) :]
    return {**dict(zip(last, values, strict=True)), **(function.__kwdefaults__ or {})}


def _freeze(thing: Any, done: dict[int, Any], name: str) -> Any:
    """Return the copy; `done` maps the id of a function or a cell to its copy."""
    if id(thing) in done:
        return done[id(thing)]
    if next(_reached(thing), None) is None:
        return thing
    if isinstance(thing, FunctionType):
        return _freeze_function(thing, done)
    if isinstance(thing, functools.partial):
        args = (_freeze(arg, done, name) for arg in thing.args)
        keywords = {k: _freeze(v, done, k) for k, v in thing.keywords.items()}
        copy = type(thing)(_freeze(thing.func, done, name), *args, **keywords)
        copy.__dict__.update(vars(thing))
        return copy
    if isinstance(thing, MethodType):
        return MethodType(_freeze(thing.__func__, done, name), thing.__self__)
    if isinstance(thing, tuple):
        parts = [_freeze(part, done, name) for part in thing]
        make = getattr(thing, "_make", type(thing))  # a named tuple has _make
        return make(parts)
    _, late, _ = next(_reached(thing))
    raise ValueError(
        f"freeze_captures: {name!r} is a {type(thing).__name__} with a function that "
        f"captures {late!r}, and would still bind late. Freeze that function before "
        "you put it there."
    )


def _freeze_function(function: FunctionType, done: dict[int, Any]) -> FunctionType:
    cells = _own_cells(function)
    new = {name: cell for name, cell in cells.items() if id(cell) not in done}
    done.update({id(cell): CellType() for cell in new.values()})
    copy = _with_cells(function, tuple(done[id(c)] for c in cells.values()))
    done[id(function)] = copy
    for name, cell in new.items():
        value = _value(cell)
        if value is UNSET:
            raise ValueError(
                f"freeze_captures: {name!r} of {function.__qualname__} has no value "
                f"yet. Freeze the function after {name!r} is assigned."
            )
        done[id(cell)].cell_contents = _freeze(value, done, name)
    frozen = {k: _freeze(v, done, k) for k, v in _defaults(function).items()}
    if function.__defaults__:
        copy.__defaults__ = tuple(frozen.values())[: len(function.__defaults__)]
    if function.__kwdefaults__:
        copy.__kwdefaults__ = {name: frozen[name] for name in function.__kwdefaults__}
    for name, value in vars(function).items():
        is_function = isinstance(value, FunctionType | MethodType | functools.partial)
        copy.__dict__[name] = _freeze(value, done, name) if is_function else value
    return copy


def _with_cells(function: FunctionType, cells: tuple[CellType, ...]) -> FunctionType:
    code, space, name = function.__code__, function.__globals__, function.__name__
    copy = FunctionType(code, space, name, None, cells)
    functools.update_wrapper(copy, function, updated=())
    del copy.__wrapped__  # a copy, not a wrapper
    return copy


def _require_function(place: str, thing: Any) -> None:
    """Accept a Python function, also behind a partial, a method or a wrapper."""
    inner = thing
    while not isinstance(inner, FunctionType):
        parts = dict(_parts(inner)) if callable(inner) else {}
        behind = (parts.get(key) for key in ("func", "__func__", "__wrapped__"))
        inner = next((part for part in behind if part is not None), None)
        if inner is None:
            raise TypeError(f"{place}: got {_describe(thing)}")


def _value(cell: CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # Python's word for an empty cell
        return UNSET


def _describe(thing: object) -> str:
    """Describe a callable without cells, and what to pass instead."""
    if isinstance(thing, functools.partial):
        return f"a partial of {_name(thing.func)}; wanted one of a Python function."
    if isinstance(thing, _IN_C):
        return (
            f"the builtin {_name(thing)}; it is written in C and has no Python "
            "cells. Wrap it in a lambda if you need a function."
        )
    if inspect.isclass(thing):
        return f"the class {_name(thing)}; wanted a function. Pass one of its methods."
    if callable(thing):
        return (
            f"a callable {type(thing).__name__} object; it keeps its values in "
            "attributes, where vars(...) shows them. Wanted a function."
        )
    return f"{thing!r}, which can't be called; wanted a function (def or lambda)."


def _name(thing: object) -> str:
    return repr(getattr(thing, "__qualname__", type(thing).__name__))
