"""Every registered layer has evidence: what some Keras of its versions computed."""

from __future__ import annotations

import ast
import json
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import pytest

import course_lib.keras_models.layers  # noqa: F401  (its import registers them)
from course_lib.keras_models.registry import (
    Registration,
    is_registered,
    keras_layer,
    registrations,
)
from course_lib.keras_models.schema.read import read_spec
from course_lib.keras_models.source.opening import open_source
from course_lib.keras_models.spec import Problems, Version

HERE = Path(__file__).parent
SOURCES = ["model.json", "m.keras", "m_legacy.h5", "model.h5"]
# A script that test_keras_live runs with the Keras 3 that is installed.
LIVE = HERE / "keras_live.py"


def spec_of(folder):
    """The spec of a stored case; test_keras_models compares what it computes."""
    options = folder / "options.json"
    options = json.loads(options.read_text()) if options.exists() else {}
    source = next(folder / name for name in SOURCES if (folder / name).exists())
    known = (options.get("keras_version"), options.get("data_format"))
    with ExitStack() as stack:
        return read_spec(open_source(source, stack).data, Problems(folder.name), *known)


def layers_in(spec):
    """The (name, version) of each layer, also of nested and wrapped ones."""
    waiting = list(spec.layers.values())
    while waiting:
        layer = waiting.pop()
        yield layer.kind, spec.version
        waiting += layer.inner
        if layer.model:
            yield from layers_in(layer.model)


@cache
def evidence():
    found = set()
    for path in HERE.glob("keras_cases/[0-9]*/io.npz"):
        found.update(layers_in(spec_of(path.parent)))
    for node in ast.walk(ast.parse(LIVE.read_text())):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "layers":
            found.add((node.attr, Version(3, 15, 1, False)))
    return found


def lacking(registration):
    """Say which evidence is missing, None where there is some."""
    known = any(
        name == registration.name and registration.covers(version)
        for name, version in evidence()
    )
    return None if known else f"{registration} has no case in tests/keras_cases"


@pytest.mark.parametrize("registration", registrations(), ids=lambda r: r.name)
def test_a_layer_is_compared_with_keras(registration):
    assert lacking(registration) is None


@pytest.mark.parametrize(
    ("name", "since", "until"),
    [("Imagined", (0,), (99,)), ("EinsumDense", (1, 0), (2, 0))],
)
def test_a_layer_without_evidence_is_named(name, since, until):
    planted = Registration(name, since, until, make=list)
    assert name in lacking(planted)


def test_two_registrations_for_one_version_are_refused():
    match = r"'Dense' is registered twice: list for \(2, 0\) to \(99,\), .*"
    with pytest.raises(ValueError, match=match + r"Dense for \(0,\) to \(99,\)"):
        keras_layer("Dense", since=(2, 0))(list)


@pytest.mark.parametrize("names", [("Imagined", "Dense"), ("Imagined", "Imagined")])
def test_where_one_name_is_refused_none_is_registered(names):
    with pytest.raises(ValueError, match=f"{names[1]!r} is registered twice"):
        keras_layer(*names)(list)
    assert not is_registered("Imagined")


@pytest.mark.parametrize(
    ("names", "versions", "match"),
    [
        ((), {}, "for the names; wanted text in brackets"),
        ((list,), {}, "<class 'list'>.* for the names; wanted text in brackets"),
        (("Imagined",), {"since": "2.0"}, "since='2.0'.*'Imagined'; wanted tuples"),
        (("Imagined",), {"until": 2}, "until=2 for 'Imagined'; wanted tuples"),
        (("Imagined",), {"since": (3,), "until": (2,)}, "the first one earlier"),
        (("Imagined",), {"since": (3,), "until": (3,)}, "the first one earlier"),
    ],
)
def test_what_registers_nothing_is_refused(names, versions, match):
    with pytest.raises(ValueError, match=match):
        keras_layer(*names, **versions)
