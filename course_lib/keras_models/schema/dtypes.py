"""Types of numbers in a file: which are known, and what an input is cast to.

A policy like "mixed_float16" computes in another type than it stores. Here everything
is computed in float32, in the precision of the weights that the file stores; only a
model whose layers are all of float64 is of float64.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from course_lib.keras_models.spec import LayerSpec, ModelSpec, Problems

_FLOATS = {"float", "float16", "bfloat16", "float32", "float64"}
_FLOATS |= {"mixed_float16", "mixed_bfloat16"}
_INTEGERS = {
    "bool": torch.bool,
    "uint8": torch.uint8,
    "int8": torch.int8,
    "int16": torch.int16,
    "uint16": torch.int32,  # torch's own uint16 lacks most operations
    "int": torch.int32,
    "int32": torch.int32,
    "uint32": torch.int64,
    "int64": torch.int64,
    "uint64": torch.int64,
}
_KNOWN = {*_FLOATS, *_INTEGERS, "string"}


def type_names(value: Any) -> Iterator[str]:
    """Yield the names in a config's `dtype`: a name, a policy, or a map of policies.

    >>> list(type_names({"class_name": "Policy", "config": {"name": "mixed_float16"}}))
    ['mixed_float16']
    """
    if isinstance(value, Mapping):
        config = value.get("config")
        if not isinstance(config, Mapping):
            yield str(config)
        elif value.get("class_name") == "DTypePolicyMap":
            yield from type_names(config.get("default_policy"))
            policies = config.get("policy_map")
            for policy in policies.values() if isinstance(policies, Mapping) else ():
                yield from type_names(policy)
        else:
            yield str(config.get("name"))
    elif value is not None:
        yield str(value)


def check_dtypes(spec: ModelSpec, problems: Problems) -> bool:
    """Note types that are not supported; return whether the model is of float64.

    It is where all floats of its layers are, or of its inputs if no layer has a type,
    as in Keras 1.
    """
    of_layers: set[str] = set()
    of_inputs: set[str] = set()
    # An input comes last: it may be one that we added, of its layer's type.
    for layer in sorted(_layers(spec), key=_is_input):
        seen = of_inputs if _is_input(layer) else of_layers
        if _is_quantized(layer.config.get("dtype")):
            problems.add(_QUANTIZED)
            continue
        for key in ("dtype", "input_dtype"):
            for name in {*type_names(layer.config.get(key))} - seen:
                seen.add(name)
                if name not in _KNOWN | (of_layers if seen is of_inputs else set()):
                    problems.add(
                        f"dtype={name!r:.60} is not supported, here of layer "
                        f"{layer.name!r}. A quantized model can't be loaded: save it "
                        "before it is quantized."
                    )
    return (of_layers & _FLOATS or of_inputs & _FLOATS) == {"float64"}


def _layers(spec: ModelSpec) -> Iterator[LayerSpec]:
    """Yield the model itself as a layer, and all layers but operations."""
    yield LayerSpec(spec.name, "Model", {"dtype": spec.dtype}, spec.kind)
    waiting = list(spec.layers.values())
    for layer in waiting:  # which grows
        if not layer.kind.startswith("ops."):  # there it is an argument
            yield layer
        waiting += layer.inner
        if layer.model is not None:
            yield from _layers(layer.model)


def _is_input(layer: LayerSpec) -> bool:
    return layer.kind == "InputLayer"


_QUANTIZED = (
    "the model is quantized (int8, int4 or float8, by model.quantize), which rounds "
    "its weights. Save it before it is quantized"
)


def _is_quantized(dtype: Any) -> bool:
    """Tell a policy of model.quantize() from one of plain numbers.

    Source: `QuantizedDTypePolicy`,
    keras v3.15.1 keras/src/dtype_policies/dtype_policy.py#L216.
    """
    if isinstance(dtype, Mapping):
        config = dtype.get("config")
        return isinstance(config, Mapping) and {"mode", "source_name"} <= {*config}
    return isinstance(dtype, str) and "_from_" in dtype


def integer_type(value: Any) -> torch.dtype | None:
    """Return the type of whole numbers that an input declares; None for floats.

    >>> integer_type("int32"), integer_type("float32")
    (torch.int32, None)
    """
    return _INTEGERS.get(value) if isinstance(value, str) else None
