"""Docstrings for Sphinx: they are plain text with `code`, and not reStructuredText."""

from __future__ import annotations

import re
from typing import Any

_CODE = re.compile(r"(``?)([^`]+)\1")
_NAME = re.compile(r"[A-Za-z_][\w.]*")
_SECTION = re.compile(r"^(?:Args|Returns|Raises|Yields):$", re.M)
# Lines set off by four spaces, before the sections: formulas or code.
_DISPLAYED = re.compile(
    r"^(?!- |>>>|::)(\S.*)\n\n?((?: {4}.*(?:\n|\Z)|\n(?= {4}))+)", re.M
)
_EXAMPLE = r"^ *>>> [\s\S]*?(?:\n\s*\n|\Z)"
_EXAMPLES = re.compile(rf"({_EXAMPLE})", re.M)
_UNTOUCHED = re.compile(rf"({_EXAMPLE}|^::\n\n(?: {{4}}.*\n?|\n(?= {{4}}))+)", re.M)
_MARKED = re.compile(r"([*|\\]|_(?=\W|$))")


def to_rst(lines: list[str]) -> list[str]:
    """Return the lines with `names` as references, `code` as code, the rest as it is.

    Examples (from >>> to the next empty line) stay untouched, and what the text sets
    off by four spaces is shown as it stands there.
    """
    text = "\n".join(lines)
    section = _SECTION.search(text)
    end = section.start() if section else len(text)
    head = _EXAMPLES.split(text[:end])  # the odd parts are examples
    head[::2] = [_DISPLAYED.sub(r"\1\n\n::\n\n\2\n", part) for part in head[::2]]
    parts = _UNTOUCHED.split("".join(head) + text[end:])
    return "".join(
        part if number % 2 else _prose(part) for number, part in enumerate(parts)
    ).split("\n")


def _prose(text: str) -> str:
    parts, end = [], 0
    for code in _CODE.finditer(text):
        parts += [_escape(text[end : code.start()]), _literal(code[2])]
        end = code.end()
        if text[end : end + 1].isalnum():  # `Adam`s: a word goes on behind it
            parts.append("\\")
    return "".join([*parts, _escape(text[end:])])


def _literal(code: str) -> str:
    code = re.sub(r"\s*\n\s*", " ", code)
    return f":py:obj:`{code}`" if _NAME.fullmatch(code) else f"``{code}``"


def _escape(text: str) -> str:
    return _MARKED.sub(r"\\\1", text)


def is_field(member: Any) -> bool:
    """Return whether it is a field of a named tuple, which its signature shows.

    >>> from collections import namedtuple
    >>> Point = namedtuple("Point", "x y")
    >>> is_field(Point.x), is_field(Point.count)
    (True, False)
    """
    words = str(member.__doc__)  # not always a string, for a descriptor of C
    return bool(re.match(r"Alias for field number \d+$", words))
