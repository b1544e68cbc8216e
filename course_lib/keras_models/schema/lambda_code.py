"""What a Lambda's bytecode names, so that its user can write the replacement.

The bytes are those of Python's marshal. They are read here by hand, as a list of texts
and numbers: nothing is unmarshalled, and no code object is ever made. Source of the
format: Python/marshal.c in CPython, tags v2.7.18, v3.7.0, v3.10.0 and v3.13.0.
"""

import base64
import re
import reprlib
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from typing import Any

LARGEST = 2**14  # characters of code that are looked at
_DEEPEST = 20
_OLD = ("code", "consts", "names", "varnames", "free", "cell", "file", "name")
_NEW = ("code", "consts", "names", "varnames", "kinds", "file", "name", "qualname")
# How many numbers begin a code object, the objects after them, and how many objects
# come after the line number: Python 3.11 and later, 3.8 to 3.10, 3.0 to 3.7, 2.
_LAYOUTS = ((5, _NEW, 2), (6, _OLD, 1), (5, _OLD, 1), (4, _OLD, 1))
_NUMBERS = {"i": "<i", "I": "<q", "g": "<d"}  # struct's forms, by the kind's letter
_SHOWN = 12


@dataclass(frozen=True)
class Code:
    """The parts of a code object that say what it does."""

    arguments: tuple[str, ...]
    names: tuple[str, ...]
    constants: tuple[Any, ...]


def describe(config: Mapping[str, Any]) -> str:
    """Describe the function in a Lambda's settings, as a sentence or "".

    >>> describe({"function": "crop", "function_type": "function"})
    " Its function is 'crop'."
    """
    function = config.get("function")
    if isinstance(function, Mapping):
        inner = function.get("config")
        function = inner.get("code") if isinstance(inner, Mapping) else inner
    elif isinstance(function, list) and function:
        function = function[0]
    if not isinstance(function, str):
        return ""
    code = _code_in(function)
    if code is not None:
        return _sentence(code, config.get("arguments"))
    known = function.isidentifier() and len(function) <= 80
    return f" Its function is {function!r}." if known else ""


def _sentence(code: Code, arguments: Any) -> str:
    text = f" Its code takes ({', '.join(code.arguments)})"
    if code.names:
        text += f", uses the names {', '.join(code.names)}"
    if code.constants:
        text += f", and has the constants {', '.join(map(_short, code.constants))}"
    if isinstance(arguments, Mapping) and arguments:
        text += f"; it is called with {_short(dict(arguments))}"
    return text + "."


# References may make a small file's tuples endless to write out.
_WRITER = reprlib.Repr()
_WRITER.maxlevel = 2
_short = _WRITER.repr


def _code_in(text: str) -> Code | None:
    """Find a code object in base64, or in the raw text of Keras 1 and 2.0."""
    if len(text) > LARGEST:
        return None
    forms = [text.encode("raw_unicode_escape")]
    with suppress(ValueError):
        forms.insert(0, base64.b64decode("".join(text.split()), validate=True))
    for data, layout in product(forms, _LAYOUTS):
        with suppress(_Unreadable, ValueError, IndexError, struct.error):
            return _Reader(data, layout).whole()
    return None


class _Unreadable(Exception):
    """The bytes are not of the layout that was tried."""


class _Reader:
    """Reads one code object as texts and numbers."""

    def __init__(self, data: bytes, layout: tuple[int, tuple[str, ...], int]) -> None:
        self.data, self.at, self.layout = data, 0, layout
        self.seen: list[Any] = []  # what a reference may mean
        self.interned: list[Any] = []  # the same in Python 2

    def whole(self) -> Code:
        """Return the one code object that fills the bytes."""
        found = self.value(0)
        if not isinstance(found, Code) or self.at != len(self.data):
            raise _Unreadable
        return found

    def take(self, count: int) -> bytes:
        if not 0 <= count <= len(self.data) - self.at:
            raise _Unreadable
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, form: str = "<i") -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def value(self, depth: int) -> Any:
        """Return the next object: text, bytes, a number, a tuple or a Code."""
        if depth > _DEEPEST:
            raise _Unreadable
        kind = self.take(1)[0]
        mark, kind = kind & 0x80, chr(kind & 0x7F)
        if kind == "r":
            return self.seen[self.number("<I")]
        if kind == "R":
            return self.interned[self.number("<I")]
        place = len(self.seen)
        if mark:
            self.seen.append(None)
        found = self.of_kind(kind, depth)
        if mark:
            self.seen[place] = found
        if kind == "t":
            self.interned.append(found)
        return found

    def of_kind(self, kind: str, depth: int) -> Any:
        """Return the object after the letter of its kind."""
        if kind in "NTFS.":
            return {"T": True, "F": False}.get(kind)
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        if kind == "y":
            return complex(self.number("<d"), self.number("<d"))
        if kind == "l":
            return self.long()
        if kind == "f":
            return float(self.take(self.number("<B")))
        if kind == "s":
            return self.take(self.number())
        if kind in "utaAzZ":
            count = self.number("<B" if kind in "zZ" else "<i")
            return self.take(count).decode("utf-8", "replace")
        if kind in "()[<>":
            count = self.number("<B" if kind == ")" else "<i")
            if count < 0:
                raise _Unreadable
            return tuple(self.value(depth + 1) for _ in range(count))
        if kind == "c":
            return self.code(depth)
        raise _Unreadable

    def long(self) -> int:
        """Return a whole number of any size: its sign and count, then 15 bits each."""
        count = self.number()
        digits = struct.unpack(f"<{abs(count)}H", self.take(2 * abs(count)))
        size = sum(digit << (15 * i) for i, digit in enumerate(digits[:64]))
        return -size if count < 0 else size

    def code(self, depth: int) -> Code:
        """Return what a code object names, with the functions inside of it."""
        numbers, fields, after = self.layout
        count, *_ = [self.number() for _ in range(numbers)]
        parts = {field: self.value(depth + 1) for field in fields}
        self.number()
        for _ in range(after):
            self.value(depth + 1)
        constants, names = parts["consts"], _texts(parts["names"])
        arguments = _texts(parts["varnames"])
        if not isinstance(constants, tuple) or not 0 <= count <= len(arguments):
            raise _Unreadable
        inner = [part for part in constants if isinstance(part, Code)]
        plain = [part for part in constants if not isinstance(part, Code | None)]
        for part in inner[:_SHOWN]:
            names += part.names
            plain += part.constants
        names = tuple(dict.fromkeys(names))
        return Code(arguments[:count][:_SHOWN], names[:_SHOWN], tuple(plain[:_SHOWN]))


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, tuple):
        raise _Unreadable
    texts = [v.decode("latin-1") if isinstance(v, bytes) else v for v in value]
    # ".0" is what a generator walks through.
    if not all(isinstance(t, str) and re.fullmatch(r"\.?\w{1,80}", t) for t in texts):
        raise _Unreadable
    return tuple(texts)
