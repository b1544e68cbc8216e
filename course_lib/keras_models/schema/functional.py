"""A graph of layers since Keras 1: each lists its calls as inbound nodes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from course_lib.keras_models.schema.draft import Draft, declared_input, parts_of
from course_lib.keras_models.spec import CallSpec, LayerSpec, Ref, Version


def add_functional(
    draft: Draft,
    config: Mapping[str, Any],
    layers: list[tuple[LayerSpec, Any]],
    version: Version,
) -> None:
    """Add layers, each with its inbound_nodes, and the model's inputs and outputs."""
    nodes: dict[str, list[Any]] = {}
    for spec, inbound in layers:
        if spec.kind == "InputLayer":
            shape, dtype = declared_input(spec.config)
            declared = {"shape": shape, "dtype": dtype}
            spec = LayerSpec(spec.name, spec.kind, declared, spec.source)
        if not isinstance(inbound, list):
            raise draft.error(
                f"layer {spec.name!r} has inbound_nodes={inbound!r:.60}; wanted a list"
            )
        draft.add(spec)
        nodes[spec.name] = inbound
    reader = _NodeReader(draft, _first_calls(draft.layers, nodes, version))
    for name, inbound in nodes.items():
        for number, node in enumerate(inbound):
            draft.calls.append(CallSpec(name, number, *reader.arguments(name, node)))
    draft.inputs, draft.input_keys = reader.ends(config, "input_layers", version)
    draft.outputs, draft.output_names = reader.ends(config, "output_layers", version)


def _first_calls(
    layers: Mapping[str, LayerSpec], nodes: Mapping[str, list[Any]], version: Version
) -> dict[str, int]:
    """Return the index that each layer's first call has in references.

    In Keras 1 and 2 a nested model counts its construction as call 0: `Container`
    adds a Node, keras 2.2.4 keras/engine/network.py#L238. A Sequential that got its
    shape at its first call counts from 0.
    """
    used: dict[str, set[int]] = {}
    for part in parts_of(nodes):
        if isinstance(part, list) and _is_triple(part[:3]):
            used.setdefault(part[0], set()).add(part[1])
    firsts = dict.fromkeys(nodes, 0)
    for name, inbound in nodes.items():
        if layers[name].model is not None and version < (3, 0):
            seen = used.get(name)
            fits = not seen or (min(seen) >= 1 and max(seen) <= len(inbound))
            firsts[name] = 1 if fits else 0
    return firsts


@dataclass(frozen=True)
class _NodeReader:
    """Turns what the nodes of one model hold into arguments with `Ref`s."""

    draft: Draft
    firsts: Mapping[str, int]

    def arguments(self, name: str, node: Any) -> tuple[tuple, dict[str, Any]]:
        """Return what a call is given by position and by name."""
        if isinstance(node, Mapping):  # Keras 3
            args, kwargs = node.get("args", []), node.get("kwargs", {})
            if not isinstance(args, list) or not isinstance(kwargs, Mapping):
                raise self.draft.error(f"layer {name!r} has the node {node!r:.60}")
            named = {str(key): self.nested(part) for key, part in kwargs.items()}
            return tuple(self.nested(args)), named
        if not isinstance(node, list):
            raise self.draft.error(
                f"layer {name!r} has the inbound node {node!r:.60}; wanted a list"
            )
        kwargs = {}
        if self.draft.layers[name].kind.startswith("tf."):
            args = [self.first_argument(name, node, kwargs)]
        else:
            parts = [node] if node and isinstance(node[0], str) else node
            args = [self.tensor(name, part, kwargs) for part in parts]
        kwargs.pop("name", None)
        return tuple(args), kwargs

    def first_argument(self, name: str, part: Any, kwargs: dict[str, Any]) -> Any:
        """Read what a node of a TensorFlow function holds: its first argument, nested.

        Every tensor and constant in it is followed by all other arguments, by name:
        keras v2.15.0 keras/engine/node.py#L184.
        """
        if isinstance(part, list) and not (part and isinstance(part[0], str)):
            return [self.first_argument(name, inner, kwargs) for inner in part]
        return self.tensor(name, part, kwargs)

    def tensor(self, name: str, part: Any, kwargs: dict[str, Any]) -> Any:
        """Read a tensor or constant of Keras 1 and 2; add what is given by name."""
        if not isinstance(part, list) or not 3 <= len(part) <= 4:
            raise self.draft.error(
                f"layer {name!r} has the inbound tensor {part!r:.60}; wanted [layer, "
                "node, tensor]"
            )
        if len(part) == 4 and isinstance(part[3], Mapping):
            kwargs |= {str(k): self.old_nested(v) for k, v in part[3].items()}
        return part[2] if part[0] == "_CONSTANT_VALUE" else self.ref(part[:3])

    def nested(self, value: Any) -> Any:
        """Replace Keras 3's tensors by `Ref`s, at every depth."""
        if isinstance(value, list):
            return [self.nested(part) for part in value]
        if not isinstance(value, Mapping):
            return value
        if value.get("class_name") == "__keras_tensor__":
            config = value.get("config")
            history = config.get("keras_history") if isinstance(config, Mapping) else 0
            return self.ref(history)
        return {str(key): self.nested(part) for key, part in value.items()}

    def old_nested(self, value: Any) -> Any:
        """Replace [layer, node, tensor] among Keras 2's keyword arguments."""
        if _is_triple(value) and value[0] in self.draft.layers:
            return self.ref(value)
        if isinstance(value, list):
            return [self.old_nested(part) for part in value]
        if isinstance(value, Mapping):
            value = {str(key): self.old_nested(part) for key, part in value.items()}
            if {"start", "stop", "step"} == set(value):
                return {"class_name": "__slice__", "config": value}
        return value

    def ref(self, triple: Any, user: str = "a call") -> Ref:
        """Return the tensor that [layer, node, tensor] names."""
        if not _is_triple(triple):
            raise self.draft.error(f"got {triple!r:.60}; wanted [layer, node, tensor]")
        name, node, tensor = triple
        if name not in self.draft.layers:
            raise self.draft.error(
                f"there is no layer {name!r:.60}, which {user} refers to"
            )
        return Ref(name, node - self.firsts[name], tensor)

    def ends(
        self, config: Mapping[str, Any], key: str, version: Version
    ) -> tuple[list[Ref], list[str]]:
        """Read input_layers or output_layers: a triple, or lists and dicts of them.

        Returns:
            The tensors in Keras's order, and the keys of a dict.
        """
        value = config.get(key)
        triples = list(_leaves(value))
        if not triples or not all(map(_is_triple, triples)):
            raise self.draft.error(
                f"got {key}={value!r:.60}; wanted [layer, node, tensor]"
            )
        ends = [self.end(self.ref(triple, key), version) for triple in triples]
        flat = isinstance(value, Mapping) and len(value) == len(ends)
        return ends, sorted(map(str, value)) if flat else []

    def end(self, ref: Ref, version: Version) -> Ref:
        """Leave out the construction of a nested graph, which Keras 3 counts here.

        It does so nowhere else: `kept_nodes = 1` in `Functional.get_config`,
        keras v3.15.1 keras/src/models/functional.py#L454, as at v3.0.5.
        """
        nested = self.draft.layers[ref.layer]
        graph = nested.model is not None and nested.source != "Sequential"
        if graph and version >= (3, 0) and ref.call > 0:
            return ref._replace(call=ref.call - 1)
        return ref


def _is_triple(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and isinstance(value[0], str)
        and all(type(n) is int and abs(n) < 1_000_000 for n in value[1:])
    )


def _leaves(value: Any) -> Iterator[Any]:
    """Yield what nested lists and dicts hold; dicts by sorted keys, as `refs_in`."""
    if isinstance(value, Mapping):
        value = [value[key] for key in sorted(value, key=str)]
    elif _is_triple(value) or not isinstance(value, list):
        yield value
        return
    for part in value:
        yield from _leaves(part)
