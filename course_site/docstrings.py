"""Docstrings for Sphinx: they are plain text with `code`, and not reStructuredText."""

from __future__ import annotations

import re

_CODE = re.compile(r"(``?)([^`]+)\1")
_NAME = re.compile(r"[A-Za-z_][\w.]*")
_MARKED = re.compile(r"([*|\\]|_(?=\W|$))")


def to_rst(lines: list[str]) -> list[str]:
    """Return the lines with `names` as references, `code` as code, the rest as it is.

    Examples (from >>> to the next empty line) stay untouched.
    """
    text = "\n".join(lines)
    blocks = re.split(r"(^ *>>> .*?(?:\n\s*\n|\Z))", text, flags=re.M | re.S)
    return "".join(
        block if block.lstrip().startswith(">>>") else _prose(block)
        for block in blocks
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
