"""Each branch on a Keras version names the line of that Keras that justifies it.

A reference is `keras TAG PATH#LLINE`, for the line of
https://github.com/keras-team/keras/blob/TAG/PATH. It stands in the function that
branches, or in the docstring of its class.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import course_lib.keras_models

ROOT = Path(course_lib.keras_models.__file__).parent
REFERENCE = re.compile(r"keras v?\d+\.\d+\.\d+\s+(?:#\s*)?keras/[\w/]+\.py#L\d+")
# Files whose branches have no references yet. Take a file off once they have.
NOT_YET: set[str] = set()


def is_release(node):
    """A tuple of whole numbers, as a version is compared with."""
    parts = node.elts if isinstance(node, ast.Tuple) else []
    return bool(parts) and all(isinstance(part, ast.Constant) for part in parts)


def is_version(node):
    return ast.unparse(node).endswith("version")


def branches_on_a_version(node):
    """`version < (2, 0)`, `version.tf`, or a registration for some versions."""
    if isinstance(node, ast.Compare):
        operands = [node.left, *node.comparators]
        return any(map(is_version, operands)) and any(map(is_release, operands))
    if isinstance(node, ast.keyword):
        return node.arg in ("since", "until") and is_release(node.value)
    return (
        isinstance(node, ast.Attribute)
        and node.attr == "tf"
        and (is_version(node.value))
    )


def unjustified(text):
    """The lines that branch on a version in a function without a reference."""
    tree, lines = ast.parse(text), text.splitlines()
    found = {n.lineno for n in ast.walk(tree) if branches_on_a_version(n)}
    for part in ast.walk(tree):
        if isinstance(part, ast.ClassDef):
            scope = ast.get_docstring(part) or ""
        elif isinstance(part, ast.FunctionDef):
            scope = "\n".join(lines[part.lineno - 1 : part.end_lineno])
        else:
            continue
        if REFERENCE.search(scope):
            first = min([part, *part.decorator_list], key=lambda n: n.lineno).lineno
            found -= set(range(first, part.end_lineno + 1))
    return sorted(found)


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: p.stem)
def test_each_branch_on_a_version_has_a_reference(path):
    name = path.relative_to(ROOT).as_posix()
    found = unjustified(path.read_text())
    if name in NOT_YET:
        assert found, f"{name} is done: take it off the list"
    else:
        assert not found, f"{name}: lines {found} branch on a version without a source"


@pytest.mark.parametrize(
    ("body", "lines"),
    [
        ("def f(version):\n    return version < (2, 0)", [2]),
        ("def f(version):\n    # keras 2.2.4 keras/a.py#L3\n    return version.tf", []),
        ("class A:\n    def f(self):\n        return self.keras_version >= (3,)", [3]),
        ("@keras_layer('A', until=(3, 0))\ndef f(): ...", [1]),
    ],
)
def test_a_branch_without_a_reference_is_found(body, lines):
    assert unjustified(body) == lines
