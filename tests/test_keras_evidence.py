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
# What looks like one: a tag before a path, which may begin in the next line, or after.
BEFORE = re.compile(r"keras\s+(v?[\d.]*\d)\s+(?:#\s*)?((?:keras/|\.\.\.)[\w/]*)")
AFTER = re.compile(r"(keras/[\w/]*)(?:\.py)?(?:\s+at|,\s+tag)\s+(v?[\d.]*\d)")
ORDER = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)


def is_release(node):
    """A tuple of whole numbers, as a version is compared with."""
    parts = node.elts if isinstance(node, ast.Tuple) else []
    return bool(parts) and all(
        isinstance(part, ast.Constant) and type(part.value) is int for part in parts
    )


def branches_on_a_version(node):
    """`version < (2, 0)` under any name, `version.tf`, or a registration for some."""
    if isinstance(node, ast.Compare):
        ordered = any(isinstance(op, ORDER) for op in node.ops)
        return ordered and any(map(is_release, [node.left, *node.comparators]))
    if isinstance(node, ast.keyword):
        return node.arg in ("since", "until") and is_release(node.value)
    return isinstance(node, ast.Attribute) and node.attr in ("tf", "is_new")


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


PATHS = pytest.mark.parametrize(
    "path", sorted(ROOT.rglob("*.py")), ids=lambda p: p.stem
)


@PATHS
def test_each_branch_on_a_version_has_a_reference(path):
    found = unjustified(path.read_text())
    assert not found, f"{path}: lines {found} branch on a version without a source"


def nowhere(text):
    """The references whose tag or path can't be one of Keras's repository."""
    found = [*BEFORE.findall(text), *((t, p) for p, t in AFTER.findall(text))]
    return [pair for pair in found if not may_exist(*pair)]


def may_exist(tag, path):
    """Tags have a v since tf.keras came back to Keras, and keras/src since Keras 3.3.

    The packages of 2.13 to 3.2 have keras/src too, but not the repository.
    """
    release = tuple(map(int, tag.removeprefix("v").split(".")))
    if path.startswith("...") or (release > (2, 4, 0)) != tag.startswith("v"):
        return False
    return release >= (3, 3, 3) or not path.startswith("keras/src/")


@PATHS
def test_references_lead_to_what_a_tag_has(path):
    assert nowhere(path.read_text()) == []


@pytest.mark.parametrize(
    "text",
    [
        "# keras v2.15.0 keras/src/layers/a.py#L3",
        "keras v3.0.5\n        # keras/src/layers/a.py#L3",
        "keras v3.8.0 .../a.py#L3",
        "keras 3.15.1\n    keras/src/a.py#L3",
        "keras v2.2.4 keras/a.py#L3",
        "f of keras/src/a.py at v2.15.0",
        "Source: keras/src/layers/locally_connected, tag v2.15.0",
    ],
)
def test_a_reference_to_nowhere_is_found(text):
    assert nowhere(text)


@pytest.mark.parametrize(
    ("body", "lines"),
    [
        ("def f(version):\n    return version < (2, 0)", [2]),
        ("def f(version):\n    # keras 2.2.4 keras/a.py#L3\n    return version.tf", []),
        ("class A:\n    def f(self):\n        return self.keras_version >= (3,)", [3]),
        ("@keras_layer('A', until=(3, 0))\ndef f(): ...", [1]),
        ("def f(settings):\n    return settings.version[:3] < (2, 1, 6)", [2]),
        ("def f(version):\n    return not version.is_new and g(version)", [2]),
        ("def f(v):\n    return (2, 0) <= v", [2]),
    ],
)
def test_a_branch_without_a_reference_is_found(body, lines):
    assert unjustified(body) == lines
