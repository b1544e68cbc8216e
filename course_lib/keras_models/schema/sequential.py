"""A Sequential: each layer is called with what the one before it returned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from course_lib.keras_models.schema.draft import Draft, declared_input
from course_lib.keras_models.spec import LayerSpec, Ref


@dataclass(frozen=True)
class Merged:
    """The Merge with which a stack of Keras 1 may begin, and the stacks before it."""

    layer: LayerSpec
    branches: tuple[Stack, ...]


Stack = Sequence[LayerSpec | Merged]


def add_stack(draft: Draft, stack: Stack, built_shape: Any = None) -> Ref:
    """Add layers one after another, and return what the last one returns.

    Args:
        draft: the model.
        stack: its layers.
        built_shape: of the input, where the first layer does not say it.
    """
    last: Ref | None = None
    for part in stack:
        if isinstance(part, Merged):
            ends = tuple(add_stack(draft, branch) for branch in part.branches)
            draft.add(part.layer)
            last = draft.call(part.layer.name, ends)
        elif last is None and part.kind == "InputLayer":
            last = draft.add_input(part.name, *declared_input(part.config))
        else:
            last = _add_layer(draft, part, last, built_shape)
    if last is None:
        raise draft.error("a branch of it has no layers")
    return last


def _add_layer(
    draft: Draft, spec: LayerSpec, last: Ref | None, built_shape: Any
) -> Ref:
    known = draft.layers.get(spec.name)
    if last is None and known is not None:  # a layer that two branches share
        return Ref(spec.name, 0, 0)
    inputs = (last,) if last else _inputs_of(draft, spec, built_shape)
    if known is None:
        draft.add(spec)
    elif known != spec:
        raise draft.error(f"two layers are named {spec.name!r}")
    return draft.call(spec.name, inputs)


def _inputs_of(draft: Draft, spec: LayerSpec, built_shape: Any) -> tuple[Ref, ...]:
    """Add an input for each that the first layer or model takes."""
    if spec.model is not None:
        inputs = [spec.model.layers[ref.layer] for ref in spec.model.inputs]
        return tuple(
            draft.add_input(
                f"{spec.name}_{layer.name}",
                layer.config["shape"],
                layer.config["dtype"],
            )
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
        raise draft.error(
            f"the first layer, {spec.name!r}, has no batch_input_shape, so the sizes "
            "of the weights are unknown. Add it to the file's config, for example "
            "[null, 64]."
        )
    return (draft.add_input(f"{spec.name}_input", shape, dtype),)
