"""Formulas as MathML, which browsers draw themselves: no script, no font to fetch."""

from __future__ import annotations

from typing import Any

from latex2mathml.converter import convert


def formula(latex: str, *, block: bool) -> str:
    """Return LaTeX as MathML, with the LaTeX itself as its alternative text."""
    made = convert(latex, display="block" if block else "inline")
    return made.replace("<math ", f'<math alttext="{_quoted(latex)}" ', 1)


def _quoted(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")


def visit_inline(translator: Any, node: Any) -> None:
    """Write an inline formula."""
    from docutils.nodes import SkipNode

    translator.body.append(formula(node.astext(), block=False))
    raise SkipNode


def visit_block(translator: Any, node: Any) -> None:
    """Write a formula of its own line, which scrolls where it is too wide."""
    from docutils.nodes import SkipNode

    made = formula(node.astext(), block=True)
    translator.body.append(f'<div class="formula" tabindex="0">{made}</div>')
    raise SkipNode
