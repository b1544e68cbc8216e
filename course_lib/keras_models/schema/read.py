"""A file's JSON to the neutral spec: its models, and each layer in Keras 3's words."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from course_lib.keras_models.layers.operations import FORMS
from course_lib.keras_models.objects import with_package
from course_lib.keras_models.schema import keras_0, keras_1, keras_2
from course_lib.keras_models.schema.draft import Draft, as_mapping, as_name, parts_of
from course_lib.keras_models.schema.dtypes import check_dtypes
from course_lib.keras_models.schema.functional import add_functional
from course_lib.keras_models.schema.old_graph import add_old_graph
from course_lib.keras_models.spec import (
    LayerSpec,
    ModelSpec,
    Problems,
    Ref,
    Version,
    refusal,
)

DEEPEST = 32  # models inside models, and layers inside layers
_MODELS = ("Sequential", "Model", "Functional", "Container", "Network", "Graph")
_CELLS = ("LSTMCell", "GRUCell", "SimpleRNNCell")
_RECURRENT = ("LSTM", "GRU", "SimpleRNN", "CuDNNLSTM", "CuDNNGRU", "RNN")
_RECURRENT += tuple(f"ConvLSTM{n}D" for n in (1, 2, 3))
_WRAPPERS = ("TimeDistributed", "Bidirectional", "SpectralNormalization")


def read_spec(
    data: Any,
    problems: Problems,
    keras_version: str | None = None,
    data_format: str | None = None,
) -> ModelSpec:
    """Translate the JSON of any era.

    Args:
        data: what the JSON holds, `{"class_name": ..., "config": ...}` or 0.3's form.
        problems: where unsupported parts are noted.
        keras_version: decides where the file does not say.
        data_format: the same for layers whose file does not say, which is the caller's
            answer to a problem noted here.

    Raises:
        KerasFormatError: no such JSON; a reference to nothing; a cycle.
    """
    data = as_mapping(data, "the file")
    version = _find_version(data, keras_version)
    if "class_name" not in data:
        data = keras_0.to_keras_1(data)
    reader = _Reader(version, data_format or _find_data_format(data), problems)
    spec = reader.model(data, None, _Place())
    backend = data.get("backend")
    return replace(
        spec,
        backend=backend if isinstance(backend, str) else None,
        is_float64=check_dtypes(spec, problems),
    )


def _find_version(data: Mapping[str, Any], keras_version: str | None) -> Version:
    """Return the version that wrote the file: as given, as written, or as it looks."""
    written = keras_version or data.get("keras_version")
    if written is not None:
        return Version.parse(written)
    if "class_name" not in data:
        return Version(0, 3, 3, False)
    parts = _objects(data)
    keys = {key for part in parts for key in part}
    if keys & {"registered_name", "batch_shape", "module"}:
        return Version(3, 15, 0, False)
    new_words = {"kernel_initializer", "units", "pool_size", "rate"}
    old_words = {"W_regularizer", "dim_ordering", "input_dtype"}
    if keys & new_words and not keys & old_words:
        return Version(2, 2, 4, False)
    if any("L1L2Regularizer" in (p.get("class_name"), p.get("name")) for p in parts):
        return Version(1, 2, 2, False)
    if "bias" in keys:
        return Version(1, 1, 0, False)
    return Version(1, 0, 8 if "gamma_regularizer" in keys else 0, False)


def _find_data_format(data: Mapping[str, Any]) -> str | None:
    """Return the data_format of layers that were written without theirs.

    It was that of the user's settings, and so that of the other layers. None where
    these don't agree or don't say.
    """
    keys = ("dim_ordering", "data_format")
    written = [part.get(key) for part in _objects(data) for key in keys]
    found = {keras_1.FORMATS.get(v, v) for v in written if isinstance(v, str)}
    return found.pop() if len(found) == 1 else None


def _objects(data: Any) -> list[Mapping[str, Any]]:
    return [part for part in parts_of(data) if isinstance(part, Mapping)]


@dataclass(frozen=True)
class _Place:
    """Where a layer is: how deep, and whether all models around it are trainable."""

    depth: int = 0
    trainable: bool = True

    def inside(self, config: Any) -> "_Place":
        """Return the place inside of a model or layer with that config."""
        frozen = isinstance(config, Mapping) and config.get("trainable") is False
        if self.depth > DEEPEST:
            raise refusal(f"models or layers are nested more than {DEEPEST} deep.")
        return _Place(self.depth + 1, self.trainable and not frozen)


@dataclass(frozen=True)
class _Reader:
    """Reads models and layers, which contain one another."""

    version: Version
    data_format: str | None
    problems: Problems

    def model(
        self, data: Mapping[str, Any], name: str | None, place: _Place
    ) -> ModelSpec:
        """Read a model of any kind."""
        kind, config = data.get("class_name"), data.get("config")
        if kind not in _MODELS:
            raise refusal(
                f"the file holds a {kind!r:.60}; wanted a model: {', '.join(_MODELS)}. "
                "A subclassed model is Python code, and no file describes it."
            )
        place = place.inside(config)
        about = config if isinstance(config, Mapping) else {"layers": config}
        draft = Draft(name or as_name(about.get("name")) or kind.lower())
        if kind == "Sequential":
            entries = _layer_list(draft, about.get("layers"))
            built_shape = about.get("build_input_shape")
            draft.outputs = [self._stack(draft, entries, place, built_shape)]
        elif kind == "Graph":
            config = as_mapping(config, "the Graph's config")
            nodes = as_mapping(config.get("nodes"), "the Graph's nodes").items()
            layers = {key: self.layer(node, place, as_name(key)) for key, node in nodes}
            add_old_graph(draft, config, layers)
        else:
            config = as_mapping(config, f"the config of {draft.name!r}")
            self._functional(draft, config, place)
        return draft.finish(kind, self.version, about.get("dtype"), self.problems)

    def _stack(
        self, draft: Draft, entries: list[Any], place: _Place, built_shape: Any = None
    ) -> Ref:
        """Add layers one after another, and return what the last one returns."""
        last: Ref | None = None
        for entry in entries:
            layer = self.layer(entry, place)
            branches = _branches(entry) if last is None else []
            if branches:
                ends = tuple(self._branch(draft, branch, place) for branch in branches)
                draft.add(layer)
                last = draft.call(layer.name, ends)
            else:
                last = draft.add_layer(layer, last, built_shape)
        if last is None:
            raise draft.error("a branch of it has no layers")
        return last

    def _branch(self, draft: Draft, data: Any, place: _Place) -> Ref:
        """Add a branch before a Merge; a Sequential's layers are the outer model's."""
        data = as_mapping(data, "a branch of Merge")
        entries = data.get("config")
        if data.get("class_name") != "Sequential" or not isinstance(entries, list):
            entries = [data]
        return self._stack(draft, entries, place.inside(None))

    def _functional(
        self, draft: Draft, config: Mapping[str, Any], place: _Place
    ) -> None:
        layers = []
        for entry in _layer_list(draft, config.get("layers")):
            entry = as_mapping(entry, f"a layer of {draft.name!r}")
            layer = self.layer(entry, place, as_name(entry.get("name")))
            layers.append((layer, entry.get("inbound_nodes", [])))
        add_functional(draft, config, layers, self.version)

    def layer(self, data: Any, place: _Place, name: str | None = None) -> LayerSpec:
        """Read one layer, with what it wraps."""
        data = as_mapping(data, "a layer")
        source, config = data.get("class_name"), data.get("config")
        if not isinstance(source, str):
            raise refusal(f"a layer has the class {source!r:.60}; wanted a name.")
        name = name or _name_of(data, source)
        if source in _MODELS:
            model = self.model(data, name, place)
            trainable = place.trainable
            return LayerSpec(name, "Model", {}, source, model, trainable=trainable)
        source = with_package(data, source)
        config = dict(as_mapping(config, f"the config of {name!r}"))
        place = place.inside(config)
        kind, config = self._translated(name, source, config, data.get("module"))
        inner: tuple[LayerSpec, ...] = ()
        if kind == "RNN":
            return self._recurrent(LayerSpec(name, kind, config, source), place)
        if kind in _WRAPPERS:
            inner = self._wrapped(kind, config, place)
        return LayerSpec(name, kind, config, source, None, inner, place.trainable)

    def _translated(
        self, name: str, source: str, config: dict[str, Any], module: Any
    ) -> tuple[str, dict[str, Any]]:
        """Return the class name and the settings in Keras 3's words.

        Keras 2 renamed the settings, keras 2.0.3 keras/legacy/interfaces.py#L106;
        Keras 3 names the modules, keras v3.0.5 keras/saving/serialization_lib.py#L123.
        """
        if self.version >= (3, 0):
            operation = _is_operation(source, config, module)
            return f"ops.{source}" if operation else source, config
        old = keras_1 if self.version < (2, 0) else keras_2
        kind, config = old.translate(source, config)
        if kind in old.UNWRITTEN and config.get("data_format") is None:
            if self.data_format is None and old is keras_1:
                self.problems.add(
                    f"layer {name!r} ({source}): Keras 1 wrote no dim_ordering for it, "
                    "and the other layers don't say. Pass data_format='channels_last' "
                    "or data_format='channels_first' to load_keras, Keras 1's tf or th."
                )
            config["data_format"] = self.data_format or "channels_last"
        return kind, config

    def _wrapped(
        self, kind: str, config: dict[str, Any], place: _Place
    ) -> tuple[LayerSpec, ...]:
        """Read what a wrapper's config holds, and take it out of the config."""
        layer = self.layer(config.pop("layer", None), place)
        if kind != "Bidirectional" or layer.kind not in _RECURRENT:
            return (layer,)
        twin = config.pop("backward_layer", None)
        if twin is not None:
            return layer, self.layer(twin, place)
        backward = not layer.config.get("go_backwards", False)
        turned = {**layer.config, "go_backwards": backward}
        return layer, replace(layer, config=turned)

    def _recurrent(self, spec: LayerSpec, place: _Place) -> LayerSpec:
        """Return an RNN of one cell as the layer of that cell, a stack with its cells.

        RNN(LSTMCell(3), return_sequences=True) is LSTM(3, return_sequences=True).
        """
        config = dict(spec.config)
        cell = config.pop("cell", None)
        if isinstance(cell, Mapping) and cell.get("class_name") != "StackedRNNCells":
            cell = [cell]
        elif isinstance(cell, Mapping) and isinstance(cell.get("config"), Mapping):
            cell = cell["config"].get("cells")
        if not isinstance(cell, list) or not 1 <= len(cell) <= DEEPEST:
            raise refusal(
                f"layer {spec.name!r} has the cells {cell!r:.60}; wanted 1 to "
                f"{DEEPEST}."
            )
        cells = tuple(self._cell(spec.name, data, place) for data in cell)
        if len(cells) > 1:
            return replace(spec, config=config, inner=cells, trainable=place.trainable)
        merged = {**cells[0].config, "name": spec.name, **config}
        return replace(
            spec, kind=cells[0].kind, config=merged, trainable=cells[0].trainable
        )

    def _cell(self, name: str, data: Any, place: _Place) -> LayerSpec:
        spec = self.layer(data, place)
        if spec.source not in _CELLS:
            self.problems.add(
                f"layer {name!r} (RNN): its cell {spec.source!r:.60} is not supported. "
                f"Known are {', '.join(_CELLS)}."
            )
        return replace(spec, kind=spec.source.removesuffix("Cell"))


def _layer_list(draft: Draft, entries: Any) -> list[Any]:
    if not isinstance(entries, list) or not entries:
        raise draft.error(f"got {entries!r:.60} for its layers; wanted a list")
    return entries


def _branches(entry: Any) -> list[Any]:
    """Return the models that a Keras 1 Sequential begins with, side by side."""
    if not isinstance(entry, Mapping) or entry.get("class_name") != "Merge":
        return []
    config = entry.get("config")
    layers = config.get("layers") if isinstance(config, Mapping) else None
    return layers if isinstance(layers, list) else []


def _is_operation(source: str, config: Mapping[str, Any], module: Any) -> bool:
    """Tell a node of keras.ops from a layer of the same class name."""
    if isinstance(module, str):
        return module.startswith("keras.src.ops")
    # An .h5 file of Keras 3 names no modules, but only layers are trainable.
    return "trainable" not in config and f"ops.{source}" in FORMS


def _name_of(data: Mapping[str, Any], source: str) -> str:
    config = data.get("config")
    inner = config.get("name") if isinstance(config, Mapping) else None
    return as_name(data.get("name")) or as_name(inner) or source.lower()
