"""A model while it is read: layers and calls are added, then it becomes a spec."""

import math
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any

from course_lib.keras_models.spec import (
    LARGEST_TENSOR,
    CallSpec,
    KerasFormatError,
    LayerSpec,
    ModelSpec,
    Problems,
    Ref,
    Shape,
    Version,
    refusal,
)


class Draft:
    """The layers and calls of one model, as far as they are read."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.layers: dict[str, LayerSpec] = {}
        self.calls: list[CallSpec] = []
        self.inputs: list[Ref] = []
        self.outputs: list[Ref] = []
        self.output_names: list[str] = []
        self.input_keys: list[str] = []

    def error(self, text: str) -> KerasFormatError:
        """Return an error that names this model."""
        return refusal(f"model {self.name!r}: {text}")

    def add(self, spec: LayerSpec) -> None:
        """Add a layer; names are unique in a model."""
        if spec.name in self.layers:
            raise self.error(
                f"two layers are named {spec.name!r}; wanted one name each"
            )
        self.layers[spec.name] = spec

    def add_input(self, name: str, shape: Any, dtype: Any = None) -> Ref:
        """Add an input of a known shape."""
        config = {"shape": shape, "dtype": dtype}
        self.add(LayerSpec(name, "InputLayer", config, "InputLayer"))
        self.inputs.append(Ref(name, 0, 0))
        return self.inputs[-1]

    def call(self, name: str, args: tuple[Any, ...]) -> Ref:
        """Add the next call of a layer and return its first output."""
        number = sum(call.layer == name for call in self.calls)
        self.calls.append(CallSpec(name, number, args))
        return Ref(name, number, 0)

    def add_layer(self, spec: LayerSpec, last: Ref | None, built_shape: Any) -> Ref:
        """Add a layer of a stack to what the last one returns; return what it returns.

        `built_shape` is that of the input, where the first layer does not say it.
        """
        if last is None and spec.kind == "InputLayer":
            return self.add_input(spec.name, *declared_input(spec.config))
        known = self.layers.get(spec.name)
        if last is None and known is not None:  # a layer that two branches share
            return Ref(spec.name, 0, 0)
        inputs = (last,) if last else self._inputs_of(spec, built_shape)
        if known is None:
            self.add(spec)
        elif known != spec:
            raise self.error(f"two layers are named {spec.name!r}")
        return self.call(spec.name, inputs)

    def _inputs_of(self, spec: LayerSpec, built_shape: Any) -> tuple[Ref, ...]:
        """Add an input for each that the first layer or model takes."""
        if spec.model is not None:
            inputs = [spec.model.layers[ref.layer] for ref in spec.model.inputs]
            return tuple(
                self.add_input(f"{spec.name}_{layer.name}", **layer.config)
                for layer in inputs
            )
        config = dict(spec.config)
        if spec.inner and declared_input(config)[0] is None:
            config = {**spec.inner[0].config, **config}
        shape, dtype = declared_input(config)
        if shape is None:
            shape = built_shape
        if shape is None and spec.kind == "Embedding":
            length = config.get("input_length")
            shape = [None, length[0] if isinstance(length, list) else length]
        if shape is None:
            raise self.error(
                f"the first layer, {spec.name!r}, has no batch_input_shape, so the "
                "sizes of the weights are unknown. Add it to the file's config, for "
                "example [null, 64]."
            )
        return (self.add_input(f"{spec.name}_input", shape, dtype),)

    def finish(
        self, kind: str, version: Version, dtype: Any, problems: Problems
    ) -> ModelSpec:
        """Return the spec, its calls in an order that can run.

        Raises:
            KerasFormatError: a reference to nothing, or a cycle.
        """
        self._check_references()
        return ModelSpec(
            self.name,
            kind,
            version,
            self.layers,
            self._ordered(),
            tuple(self.inputs),
            tuple(self._input_shape(ref.layer, problems) for ref in self.inputs),
            tuple(self.outputs),
            tuple(self.output_names or [ref.layer for ref in self.outputs]),
            input_keys=tuple(self.input_keys),
            dtype=dtype,
        )

    def _check_references(self) -> None:
        """Check that every reference leads to an input or to a call."""
        for ref in self.inputs:
            if self.layers[ref.layer].kind != "InputLayer":
                raise self.error(
                    f"the input {ref.layer!r} is a {self.layers[ref.layer].source}; "
                    "wanted an InputLayer"
                )
        known = {(call.layer, call.number) for call in self.calls}
        inputs = {Ref(ref.layer, 0, 0) for ref in self.inputs}
        wanted = [(call.layer, ref) for call in self.calls for ref in call.refs]
        for user, ref in [*wanted, *(("the outputs", ref) for ref in self.outputs)]:
            if ref not in inputs and (ref.layer, ref.call) not in known:
                raise self.error(
                    f"{user!r} refers to call {ref.call} of layer {ref.layer!r}, which "
                    "has no such call"
                )

    def _ordered(self) -> tuple[CallSpec, ...]:
        """Order the calls so that each comes after those that it needs."""
        calls = {(call.layer, call.number): call for call in self.calls}
        needs = {
            key: [parent for parent in call.parents if parent in calls]
            for key, call in calls.items()
        }
        try:
            return tuple(calls[key] for key in TopologicalSorter(needs).static_order())
        except CycleError as error:
            names = sorted({layer for layer, _ in error.args[1]})
            raise self.error(
                f"its layers wait for one another in a cycle: {', '.join(names[:10])}"
            ) from None

    def _input_shape(self, name: str, problems: Problems) -> Shape:
        shape = self.layers[name].config.get("shape")
        good = isinstance(shape, list | tuple) and 0 < len(shape) <= 8
        good = good and all(n is None or (type(n) is int and n > 0) for n in shape)
        if good and math.prod(n or 1 for n in shape) < LARGEST_TENSOR:
            return tuple(shape)
        problems.add(
            f"input {name!r} has the shape {shape!r:.80}; wanted at most 8 whole "
            "numbers above 0, with null for an open size"
        )
        return (None, 1)


def declared_input(config: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return (shape with the batch, dtype) of an input, as any era writes them."""
    dtype = config.get("input_dtype", config.get("dtype"))
    for key in ("batch_shape", "batch_input_shape"):
        if config.get(key) is not None:
            return config[key], dtype
    if isinstance(config.get("shape"), list):
        return [None, *config["shape"]], dtype
    return None, dtype


def parts_of(data: Any) -> Iterator[Mapping[str, Any] | list[Any]]:
    """Yield every object and every list in nested JSON."""
    waiting = [data]
    while waiting:
        part = waiting.pop()
        if isinstance(part, Mapping | list):
            yield part
            waiting += part.values() if isinstance(part, Mapping) else part


def as_mapping(value: Any, place: str) -> Mapping[str, Any]:
    """Return a JSON object unchanged; anything else is a KerasFormatError."""
    if not isinstance(value, Mapping):
        raise refusal(f"{place} is {value!r:.60}; wanted a JSON object.")
    return value


def as_name(value: Any) -> str | None:
    """Return a name, None where there is none; what can't be one raises an error."""
    if value is None or value == "":
        return None
    if not isinstance(value, str) or len(value) > 500 or not value.isprintable():
        raise refusal(f"{value!r:.60} is no name of a layer.")
    return value
