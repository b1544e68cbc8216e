"""Formulas as MathML, which browsers draw themselves: no script, no font to fetch."""

from __future__ import annotations

import html
from typing import Any

from docutils.nodes import SkipNode
from latex2mathml.converter import convert


def formula(latex: str, *, block: bool) -> str:
    """Return LaTeX as MathML, with the LaTeX itself as its alternative text."""
    made = convert(latex, display="block" if block else "inline")
    return made.replace("<math ", f'<math alttext="{html.escape(latex)}" ', 1)


def visit_inline(translator: Any, node: Any) -> None:
    """Write an inline formula."""
    translator.body.append(formula(node.astext(), block=False))
    raise SkipNode


def visit_block(translator: Any, node: Any) -> None:
    """Write a formula of its own line, which scrolls where it is too wide."""
    made = formula(node.astext(), block=True)
    translator.body.append(f'<div class="formula" tabindex="0">{made}</div>')
    raise SkipNode
