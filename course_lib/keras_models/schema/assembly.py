"""Put one model together: its layers and calls, as a stack or a graph of any era."""

import math
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from course_lib.keras_models.spec import (
    LARGEST_TENSOR,
    CallSpec,
    KerasFormatError,
    LayerSpec,
    ModelSpec,
    Ref,
    Shape,
    refs_in,
)


class Assembly:
    """Collects the layers and calls of one model."""

    def __init__(
        self, reader: Any, name: str, kind: str, trainable: bool, depth: int
    ) -> None:
        self.reader = reader
        self.name, self.kind = name, kind
        self.trainable, self.depth = trainable, depth
        self.layers: dict[str, LayerSpec] = {}
        self.calls: list[CallSpec] = []
        self.inputs: list[Ref] = []
        self.outputs: list[Ref] = []
        self.output_names: list[str] = []
        self.input_keys: list[str] = []

    def finished(self) -> ModelSpec:
        """Return the spec, its calls in an order that can run."""
        names = self.output_names or [ref.layer for ref in self.outputs]
        return ModelSpec(
            self.name,
            self.kind,
            self.reader.version,
            self.layers,
            self._ordered(),
            tuple(self.inputs),
            tuple(self._input_shape(ref.layer) for ref in self.inputs),
            tuple(self.outputs),
            tuple(names),
            self.reader.backend,
            input_keys=tuple(self.input_keys),
        )

    def _input_shape(self, name: str) -> Shape:
        shape = self.layers[name].config.get("shape")
        good = isinstance(shape, list | tuple) and 0 < len(shape) <= 8
        good = good and all(n is None or (type(n) is int and n > 0) for n in shape)
        if good and math.prod(n or 1 for n in shape) < LARGEST_TENSOR:
            return tuple(shape)
        self.reader.problems.add(
            f"input {name!r} has the shape {shape!r:.80}; wanted at most 8 whole "
            "numbers above 0, with null for an open size"
        )
        return (None, 1)

    def error(self, text: str) -> KerasFormatError:
        """Return an error that names this model."""
        return KerasFormatError(f"load_keras: model {self.name!r}: {text}")

    def read(self, data: Any, name: str | None = None) -> LayerSpec:
        """Read a layer of this model."""
        return self.reader.layer(data, self.trainable, self.depth, name)

    def add(self, spec: LayerSpec) -> LayerSpec:
        """Add a layer; names are unique in a model."""
        if spec.name in self.layers:
            raise self.error(
                f"two layers are named {spec.name!r}; wanted one name each"
            )
        self.layers[spec.name] = spec
        return spec

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

    # Sequential

    def sequential(self, config: Any) -> None:
        """Read a stack of layers: a list, or a dict that holds it."""
        built = None
        if isinstance(config, Mapping):
            built = config.get("build_input_shape")
            config = config.get("layers")
        if not isinstance(config, list) or not config:
            raise self.error(f"got {config!r:.60} for its layers; wanted a list")
        last = self._chain(config, built)
        self.outputs = [Ref(last.layer, last.call, last.tensor)]

    def _chain(self, entries: list[Any], built: Any = None) -> Ref:
        """Add layers one after another and return what the last one returns."""
        last: Ref | None = None
        for entry in entries:
            kind = entry.get("class_name") if isinstance(entry, Mapping) else None
            branches = self._branches(entry) if kind == "Merge" else None
            if last is None and branches is not None:
                spec = self.add(self.read(entry))
                last = self.call(spec.name, branches)
                continue
            spec = self.read(entry)
            if kind == "InputLayer" and last is None:
                last = self.add_input(spec.name, *_declared(spec.config))
                continue
            known = self.layers.get(spec.name)
            if last is None:
                if known is not None:  # a layer that two branches share
                    last = Ref(spec.name, 0, 0)
                    continue
                last = self._implicit_input(spec, built)
            elif known is not None and known != spec:
                raise self.error(f"two layers are named {spec.name!r}")
            if known is None:
                self.add(spec)
            last = self.call(spec.name, (last,) if isinstance(last, Ref) else last)
        if last is None:
            raise self.error("a branch of it has no layers")
        return last

    def _branches(self, entry: Mapping[str, Any]) -> tuple[Ref, ...] | None:
        """Add the models that a Keras 1 Sequential begins with, side by side."""
        config = entry.get("config")
        layers = config.get("layers") if isinstance(config, Mapping) else None
        if not isinstance(layers, list) or not layers:
            return None
        ends = []
        for data in layers:
            data = as_mapping(data, "a branch of Merge")
            inner = data.get("config")
            if data.get("class_name") == "Sequential" and isinstance(inner, list):
                ends.append(self._chain(inner))
            else:
                spec = self.add(self.read(data))
                ends.append(self.call(spec.name, self._inputs_of(spec)))
        return tuple(ends)

    def _implicit_input(self, spec: LayerSpec, built: Any) -> Any:
        """Add the input that the first layer's shape stands for."""
        if spec.model is not None:
            refs = self._inputs_of(spec)
            return refs[0] if len(refs) == 1 else refs
        config = dict(spec.config)
        if spec.inner and not _has_shape(config):
            config = {**spec.inner[0].config, **config}
        shape, dtype = _declared(config)
        if shape is None:
            shape = built
        if shape is None and spec.kind == "Embedding":
            length = config.get("input_length")
            shape = [None, length[0] if isinstance(length, list) else length]
        if shape is None:
            raise self.error(
                f"the first layer, {spec.name!r}, has no batch_input_shape, so the "
                "sizes of the weights are unknown. Add it to the file's config, for "
                "example [null, 64]."
            )
        return self.add_input(f"{spec.name}_input", shape, dtype)

    def _inputs_of(self, spec: LayerSpec) -> tuple[Ref, ...]:
        """Add an input for each input of a nested model that comes first."""
        if spec.model is None:
            return (self._implicit_input(spec, None),)
        refs = []
        for ref in spec.model.inputs:
            inner = spec.model.layers[ref.layer].config
            name = f"{spec.name}_{ref.layer}"
            refs.append(self.add_input(name, inner["shape"], inner["dtype"]))
        return tuple(refs)

    # Functional

    def functional(self, config: Mapping[str, Any]) -> None:
        """Read a graph of layers with their inbound nodes."""
        entries = config.get("layers")
        if not isinstance(entries, list):
            raise self.error(f"got {entries!r:.60} for its layers; wanted a list")
        nodes: dict[str, list[Any]] = {}
        for entry in entries:
            entry = as_mapping(entry, f"a layer of {self.name!r}")
            spec = self.read(entry, as_name(entry.get("name")))
            if spec.kind == "InputLayer":
                shape, dtype = _declared(spec.config)
                spec = LayerSpec(
                    spec.name, spec.kind, {"shape": shape, "dtype": dtype}, spec.source
                )
            inbound = entry.get("inbound_nodes", [])
            if not isinstance(inbound, list):
                raise self.error(
                    f"layer {spec.name!r} has inbound_nodes={inbound!r:.60}; wanted a "
                    "list"
                )
            self.add(spec)
            nodes[spec.name] = inbound
        self._read_nodes(nodes)
        self.inputs, self.input_keys = self._ends(config, "input_layers")
        self.outputs, self.output_names = self._ends(config, "output_layers")
        self._check_refs()

    def _read_nodes(self, nodes: dict[str, list[Any]]) -> None:
        self.offsets = self._first_nodes(nodes)
        for name, inbound in nodes.items():
            for number, node in enumerate(inbound):
                args, kwargs = self._arguments(name, node)
                self.calls.append(CallSpec(name, number, args, kwargs))

    def _first_nodes(self, nodes: dict[str, list[Any]]) -> dict[str, int]:
        """Return the index that each layer's first call has in references.

        A nested model of Keras 1 and 2 counts its own construction as call 0.
        """
        used: dict[str, set[int]] = {}
        for inbound in nodes.values():
            for name, index in _mentioned(inbound):
                used.setdefault(name, set()).add(index)
        offsets = {}
        for name, inbound in nodes.items():
            nested = self.layers[name].model is not None
            first = 1 if nested and self.reader.version < (3, 0) else 0
            seen = used.get(name, set())
            # A Sequential that got its shape at its first call counts from 0.
            if first and seen and (min(seen) < 1 or max(seen) > len(inbound)):
                first = 0
            offsets[name] = first
        return offsets

    def _arguments(self, name: str, node: Any) -> tuple[tuple, dict[str, Any]]:
        if isinstance(node, Mapping):  # Keras 3
            args, kwargs = node.get("args", []), node.get("kwargs", {})
            if not isinstance(args, list) or not isinstance(kwargs, Mapping):
                raise self.error(f"layer {name!r} has the node {node!r:.60}")
            return tuple(self._nested(part) for part in args), {
                str(key): self._nested(part) for key, part in kwargs.items()
            }
        if self.layers[name].kind.startswith("tf."):
            kwargs: dict[str, Any] = {}
            return (self._first_argument(name, node, kwargs),), kwargs
        if isinstance(node, list) and node and isinstance(node[0], str):
            node = [node]
        if not isinstance(node, list):
            raise self.error(
                f"layer {name!r} has the inbound node {node!r:.60}; wanted a list"
            )
        args: list[Any] = []
        kwargs = {}
        for part in node:
            if not isinstance(part, list) or not 3 <= len(part) <= 4:
                raise self.error(
                    f"layer {name!r} has the inbound tensor {part!r:.60}; wanted "
                    "[layer, node, tensor]"
                )
            constant = part[0] == "_CONSTANT_VALUE"
            args.append(part[2] if constant else self._ref(part[:3]))
            if len(part) == 4 and isinstance(part[3], Mapping):
                kwargs |= {str(k): self._old_nested(v) for k, v in part[3].items()}
        kwargs.pop("name", None)
        return tuple(args), kwargs

    def _first_argument(self, name: str, part: Any, kwargs: dict[str, Any]) -> Any:
        """Read what a node of a TensorFlow function holds: its first argument, nested.

        Every tensor and constant in it is followed by all other arguments, by name.
        Source: Node.serialize in keras/engine/node.py, v2.15.0.
        """
        if not isinstance(part, list):
            raise self.error(
                f"layer {name!r} has the inbound tensor {part!r:.60}; wanted [layer, "
                "node, tensor]"
            )
        if not part or not isinstance(part[0], str):
            return [self._first_argument(name, inner, kwargs) for inner in part]
        if not 3 <= len(part) <= 4:
            raise self.error(f"layer {name!r} has the inbound tensor {part!r:.60}")
        if len(part) == 4 and isinstance(part[3], Mapping) and not kwargs:
            kwargs.update({str(k): self._old_nested(v) for k, v in part[3].items()})
        return part[2] if part[0] == "_CONSTANT_VALUE" else self._ref(part[:3])

    def _nested(self, value: Any) -> Any:
        """Replace Keras 3's tensors by `Ref`s, at every depth."""
        if isinstance(value, list):
            return [self._nested(part) for part in value]
        if not isinstance(value, Mapping):
            return value
        if value.get("class_name") == "__keras_tensor__":
            config = value.get("config")
            history = config.get("keras_history") if isinstance(config, Mapping) else 0
            return self._ref(history)
        return {str(key): self._nested(part) for key, part in value.items()}

    def _old_nested(self, value: Any) -> Any:
        """Replace [layer, node, tensor] among Keras 2's keyword arguments."""
        if _is_triple(value) and value[0] in self.layers:
            return self._ref(value)
        if isinstance(value, list):
            return [self._old_nested(part) for part in value]
        if isinstance(value, Mapping):
            value = {str(key): self._old_nested(part) for key, part in value.items()}
            if {"start", "stop", "step"} == set(value):
                return {"class_name": "__slice__", "config": value}
        return value

    def _ref(self, triple: Any) -> Ref:
        if not _is_triple(triple):
            raise self.error(f"got {triple!r:.60}; wanted [layer, node, tensor]")
        name, node, tensor = triple
        if name not in self.layers:
            raise self.error(f"there is no layer {name!r:.60}, which a call refers to")
        return Ref(name, node - self.offsets.get(name, 0), tensor)

    def _ends(self, config: Mapping[str, Any], key: str) -> tuple[list[Ref], list[str]]:
        """Read input_layers or output_layers: a triple, or lists and dicts of them.

        Returns:
            the tensors in Keras's order, and the keys of a dict.
        """
        value = config.get(key)
        triples = list(_leaves(value))
        if not triples:
            raise self.error(f"got {key}={value!r:.60}; wanted [layer, node, tensor]")
        ends = [self._end(triple) for triple in triples]
        flat = isinstance(value, Mapping) and len(value) == len(ends)
        return ends, sorted(map(str, value)) if flat else []

    def _end(self, triple: Any) -> Ref:
        """Read one output; Keras 3 counts a nested graph's own making as call 0 here.

        It does so nowhere else (`kept_nodes = 1`, `Functional.get_config`,
        keras/src/models/functional.py at v3.0.5 to v3.15.1).
        """
        ref = self._ref(triple)
        nested = self.layers[ref.layer]
        graph = nested.model is not None and nested.source != "Sequential"
        if graph and self.reader.version >= (3, 0) and ref.call > 0:
            return ref._replace(call=ref.call - 1)
        return ref

    def _check_refs(self) -> None:
        """Check that every reference leads to an input or to a call."""
        made = {(call.layer, call.number) for call in self.calls}
        fed = {ref.layer for ref in self.inputs}
        wanted = [(call.layer, ref) for call in self.calls for ref in _all_refs(call)]
        for user, ref in [*wanted, *(("the outputs", ref) for ref in self.outputs)]:
            if ref.layer in fed and ref.call == 0 and ref.tensor == 0:
                continue
            if (ref.layer, ref.call) not in made:
                raise self.error(
                    f"{user!r} refers to call {ref.call} of layer {ref.layer!r}, which "
                    "has no such call"
                )
        for ref in self.inputs:
            if self.layers[ref.layer].kind != "InputLayer":
                raise self.error(
                    f"the input {ref.layer!r} is a {self.layers[ref.layer].source}; "
                    "wanted an InputLayer"
                )

    # The Graph of 0.3 and 1.0

    def old_graph(self, config: Mapping[str, Any]) -> None:
        """Read named inputs, nodes and outputs."""
        self.offsets: dict[str, int] = {}
        layers = as_mapping(config.get("nodes"), "the Graph's nodes")
        for entry in self._entries(config, "input_config"):
            shape = entry.get("batch_input_shape")
            if shape is None and isinstance(entry.get("input_shape"), list):
                shape = [None, *entry["input_shape"]]
            self.add_input(self._label(entry), shape, entry.get("dtype"))
        for entry in self._entries(config, "node_config"):
            name = self._label(entry)
            self.add(self.read(layers.get(name), name))
            self.call(name, self._merged(entry))
        for entry in self._entries(config, "output_config"):
            self.output_names.append(self._label(entry))
            self.outputs.append(self._merged(entry)[0])
        order = config.get("output_order")
        if isinstance(order, list) and sorted(map(str, order)) == sorted(
            self.output_names
        ):
            found = dict(zip(self.output_names, self.outputs, strict=True))
            self.output_names = [str(name) for name in order]
            self.outputs = [found[name] for name in self.output_names]
        order = config.get("input_order")
        if isinstance(order, list) and all(isinstance(name, str) for name in order):
            places = {name: i for i, name in enumerate(order)}
            self.inputs.sort(key=lambda ref: places.get(ref.layer, 0))
        if not self.outputs:
            raise self.error("it has no outputs")
        self._check_refs()

    def _entries(self, config: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
        value = config.get(key)
        if not isinstance(value, list):
            raise self.error(f"got {key}={value!r:.60}; wanted a list")
        return [as_mapping(entry, key) for entry in value]

    def _label(self, entry: Mapping[str, Any]) -> str:
        name = as_name(entry.get("name"))
        if name is None:
            raise self.error(f"an entry has the name {entry.get('name')!r:.60}")
        return name

    def _merged(self, entry: Mapping[str, Any]) -> tuple[Ref, ...]:
        """Return the input of a node, after merging several of them."""
        single, several = entry.get("input"), entry.get("inputs")
        names = several if isinstance(several, list) and several else [single]
        refs = []
        for name in names:
            if not isinstance(name, str) or name not in self.layers:
                raise self.error(
                    f"{self._label(entry)!r} takes its input from {name!r:.60}, which "
                    "is no input or earlier node"
                )
            refs.append(Ref(name, 0, 0))
        if len(refs) == 1:
            return tuple(refs)
        mode = {"mode": entry.get("merge_mode", "concat")}
        if mode["mode"] == "join":
            return tuple(refs)
        mode |= {key: entry.get(key, -1) for key in ("concat_axis", "dot_axes")}
        name = f"{self._label(entry)}_merge"
        self.add(self.read({"class_name": "Merge", "config": {"name": name, **mode}}))
        return (self.call(name, tuple(refs)),)

    def _ordered(self) -> tuple[CallSpec, ...]:
        """Order the calls so that each comes after those that it needs."""
        waiting: dict[tuple[str, int], set] = {}
        followers: dict[tuple[str, int], list[CallSpec]] = {}
        made = {(call.layer, call.number) for call in self.calls}
        ready: deque[CallSpec] = deque()
        for call in self.calls:
            needs = {(ref.layer, ref.call) for ref in _all_refs(call)} & made
            waiting[call.layer, call.number] = needs
            for need in needs:
                followers.setdefault(need, []).append(call)
            if not needs:
                ready.append(call)
        ordered = []
        while ready:
            call = ready.popleft()
            ordered.append(call)
            for follower in followers.get((call.layer, call.number), []):
                needs = waiting[follower.layer, follower.number]
                needs.discard((call.layer, call.number))
                if not needs:
                    ready.append(follower)
        if len(ordered) < len(self.calls):
            done = {(call.layer, call.number) for call in ordered}
            stuck = sorted({layer for layer, n in made if (layer, n) not in done})
            raise self.error(
                f"its layers wait for one another in a cycle: {', '.join(stuck[:10])}"
            )
        return tuple(ordered)


def _all_refs(call: CallSpec) -> list[Ref]:
    return refs_in([*call.args, call.kwargs])


def _mentioned(value: Any) -> Any:
    """Yield (layer, node index) of every reference in an inbound_nodes entry."""
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if _is_triple(part[:3] if isinstance(part, list) else part):
            yield part[0], part[1]
        if isinstance(part, Mapping):
            waiting.extend(part.values())
        elif isinstance(part, list):
            waiting.extend(part)


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


def _declared(config: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return (shape with the batch, dtype) of an input, as any era writes them."""
    dtype = config.get("input_dtype", config.get("dtype"))
    for key in ("batch_shape", "batch_input_shape"):
        if config.get(key) is not None:
            return config[key], dtype
    if isinstance(config.get("shape"), list):
        return [None, *config["shape"]], dtype
    return None, dtype


def _has_shape(config: Mapping[str, Any]) -> bool:
    return _declared(config)[0] is not None


def as_mapping(value: Any, place: str) -> Mapping[str, Any]:
    """Return a JSON object as it is.

    Raises:
        KerasFormatError: it is none.
    """
    if not isinstance(value, Mapping):
        raise KerasFormatError(
            f"load_keras: {place} is {value!r:.60}; wanted a JSON object."
        )
    return value


def as_name(value: Any) -> str | None:
    """Return a name, None where there is none.

    Raises:
        KerasFormatError: no text, or one that can't be a name.
    """
    if value is None or value == "":
        return None
    if not isinstance(value, str) or len(value) > 500 or not value.isprintable():
        raise KerasFormatError(f"load_keras: {value!r:.60} is no name of a layer.")
    return value
