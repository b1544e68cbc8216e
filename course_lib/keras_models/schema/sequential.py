"""A Sequential: each layer is called with what the one before it returned."""

from typing import Any

from course_lib.keras_models.schema.draft import Draft, declared_input
from course_lib.keras_models.spec import LayerSpec, Ref


def add_layer(
    draft: Draft, spec: LayerSpec, last: Ref | None, built_shape: Any = None
) -> Ref:
    """Add the next layer of a stack, and return what it returns.

    Args:
        draft: the model.
        spec: the layer.
        last: what the layer before it returns, None for the first one.
        built_shape: of the input, where the first layer does not say it.
    """
    if last is None and spec.kind == "InputLayer":
        return draft.add_input(spec.name, *declared_input(spec.config))
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
