"""What Sphinx sees of this package: docstrings, which members, formulas."""

from __future__ import annotations

from typing import Any

from sphinx.application import Sphinx

from course_site import docstrings, mathml


def setup(app: Sphinx) -> dict[str, Any]:
    """Register everything; called by Sphinx."""
    # Before napoleon (500), which makes its sections of what is left.
    app.connect("autodoc-process-docstring", _docstring, priority=400)
    app.connect("autodoc-process-signature", _signature)
    app.connect("autodoc-skip-member", _skip)
    app.add_html_math_renderer(
        "mathml", (mathml.visit_inline, None), (mathml.visit_block, None)
    )
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _docstring(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    lines[:] = docstrings.to_rst(lines)


def _skip(
    app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any
) -> bool | None:
    return True if docstrings.is_field(obj) else None  # None: as Sphinx would


def _signature(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, text: str, returns: str
) -> tuple[str, str] | None:
    """Write a default that a dataclass makes as `...`: Sphinx 8 can't read <factory>.

    It would show the types of such a signature by their whole paths, without links.
    """
    return (text.replace("<factory>", "..."), returns) if text else None
