"""From a spec to modules, none of them built: each layer reads its settings here."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from course_lib.keras_models.graph.model import KerasModel
from course_lib.keras_models.layers.base import Layer
from course_lib.keras_models.layers.operations import Operation
from course_lib.keras_models.layers.wrappers import Replacement
from course_lib.keras_models.registry import find_maker, is_registered
from course_lib.keras_models.schema.lambda_code import describe
from course_lib.keras_models.settings import Settings
from course_lib.keras_models.spec import (
    CallSpec,
    LayerSpec,
    ModelSpec,
    Problems,
    Version,
    is_operation,
)

Replacements = Mapping[str, Callable[..., Any]]


def make_model(
    spec: ModelSpec,
    problems: Problems,
    replacements: Replacements,
    axis_order: str = "keras",
) -> KerasModel:
    """Return the module of a model, its layers not yet built.

    What can't be made is noted as a problem.
    """
    names = set(_names(spec, replacements))
    for name in sorted({*replacements} - names):
        problems.add(f"replacements has {name!r}; there is no such layer")
    return _Maker(spec.version, problems, replacements).model(spec, axis_order)


def _names(spec: ModelSpec, replacements: Replacements) -> Iterator[str]:
    """Yield the names of all layers that are made, at every depth."""
    inputs = {ref.layer for ref in spec.inputs}
    waiting = [layer for name, layer in spec.layers.items() if name not in inputs]
    while waiting:
        layer = waiting.pop()
        yield layer.name
        if layer.name not in replacements:
            waiting += layer.inner
            if layer.model is not None:
                yield from _names(layer.model, replacements)


@dataclass(frozen=True)
class _Maker:
    version: Version
    problems: Problems
    replacements: Replacements

    def model(self, spec: ModelSpec, axis_order: str = "keras") -> KerasModel:
        calls: dict[str, list[CallSpec]] = {name: [] for name in spec.layers}
        for call in sorted(spec.calls, key=lambda call: call.number):
            calls[call.layer].append(call)
        inputs = {ref.layer for ref in spec.inputs}
        layers = {
            name: self.layer(layer, calls[name])
            for name, layer in spec.layers.items()
            if name not in inputs
        }
        return KerasModel(spec, layers, axis_order)

    def layer(self, spec: LayerSpec, calls: Sequence[CallSpec] = ()) -> Any:
        """Return the module of a layer, None where that can't be."""
        if spec.name in self.replacements:
            settings = Settings(replace(spec, config={}), self.version, self.problems)
            return Replacement(settings, self.replacements[spec.name])
        if spec.model is not None:
            return self.model(spec.model)
        settings = Settings(spec, self.version, self.problems)
        layer: Layer | None = None
        make = find_maker(spec.kind, self.version)
        if is_operation(spec.kind):
            layer = Operation(settings, list(calls))
        elif make is None:
            settings.problem(f"{_refusal(settings)} {settings.way_out}")
            return None
        else:
            inner = [self.layer(part) for part in spec.inner]
            if None in inner:
                return None
            layer = make(settings, *inner)
        settings.finish()
        return layer


def build_model(model: KerasModel, *, is_float64: bool) -> None:
    """Make all variables on the meta device, and plan the calls."""
    model.eval()
    with torch.no_grad():
        model.build()
    if is_float64:
        model.double()
    for module in model.modules():
        if isinstance(module, Layer) and not module.keras_trainable:
            module.requires_grad_(False)


_PACKAGES = {"PruneLowMagnitude": "tfmot", "QuantizeWrapperV2": "tfmot"}


def _refusal(settings: Settings) -> str:
    """Say why a layer is not supported."""
    kind, config = settings.spec.kind, settings.left
    if kind == "Lambda":
        return f"it carries Python code, which is never run.{describe(config)}"
    if kind in ("InstanceMethod", "InstanceProperty"):
        return (
            f"it takes {config.get('attr_name')!r:.60} of a ragged or sparse tensor, "
            "which is not supported."
        )
    package = _package(kind)
    what = f"a layer of {package!r}" if package else "this layer"
    return f"{what} is not supported."


def _package(kind: str) -> str | None:
    """Return the package of a class that is not Keras's own, if its name shows it."""
    package, mark, _ = kind.rpartition(">")
    if mark:
        return package
    if kind[:1] == "Q" and (is_registered(kind[1:]) or kind == "QConv2DBatchnorm"):
        return "qkeras"
    return _PACKAGES.get(kind)
