"""A file's JSON to the neutral spec: which era it is, its layers, its calls."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from course_lib.keras_models.layers.operations import OPERATIONS
from course_lib.keras_models.packages import with_package
from course_lib.keras_models.schema import keras_0, keras_1, keras_2
from course_lib.keras_models.schema.assembly import Assembly, as_mapping, as_name
from course_lib.keras_models.schema.dtypes import (
    has_floats,
    is_float64,
    is_known,
    type_names,
)
from course_lib.keras_models.spec import (
    KerasFormatError,
    LayerSpec,
    ModelSpec,
    Problems,
    Version,
)

DEEPEST = 32  # models inside models
_SEQUENTIAL = ("Sequential",)
_GRAPHS = ("Model", "Functional", "Container", "Network")
_MODELS = (*_SEQUENTIAL, *_GRAPHS, "Graph")
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
    version = find_version(data, keras_version)
    if "class_name" not in data:
        data = keras_0.to_keras_1(data)
    ordering = data_format or _ordering(data)
    reader = _Reader(version, problems, data.get("backend"), ordering)
    spec = reader.model(data, None, True, 0)
    return replace(spec, is_float64=reader.is_float64)


def find_version(data: Mapping[str, Any], keras_version: str | None) -> Version:
    """Return the version that wrote the file: as given, as written, or as it looks."""
    written = keras_version or data.get("keras_version")
    if written is not None:
        return Version.parse(written)
    if "class_name" not in data:
        return Version(0, 3, 3, False)
    keys, names = set(), set()
    for part in _walk(data):
        keys.update(part)
        names.add(str(part.get("class_name")))
        names.add(str(part.get("name")) if "l1" in part else None)
    if "registered_name" in keys or "batch_shape" in keys or "module" in keys:
        return Version(3, 15, 0, False)
    if keys & {"kernel_initializer", "units", "pool_size", "rate"} and not keys & {
        "W_regularizer",
        "dim_ordering",
        "input_dtype",
    }:
        return Version(2, 2, 4, False)
    if "L1L2Regularizer" in names:
        return Version(1, 2, 2, False)
    if "bias" in keys:
        return Version(1, 1, 0, False)
    return Version(1, 0, 8 if "gamma_regularizer" in keys else 0, False)


def _ordering(data: Mapping[str, Any]) -> str | None:
    """Return the data_format of layers that were written without theirs.

    ZeroPadding2D and others of Keras 1 did not write it; it was that of the user's
    settings, so that of the other layers. None where these don't agree or don't say.
    """
    keys = ("dim_ordering", "data_format")
    written = [part.get(key) for part in _walk(data) for key in keys]
    named = {value for value in written if isinstance(value, str)}
    found = {keras_1.FORMATS.get(value, value) for value in named}
    return found.pop() if len(found) == 1 else None


def _walk(data: Any) -> Any:
    """Yield every object in nested JSON."""
    waiting = [data]
    while waiting:
        part = waiting.pop()
        if isinstance(part, Mapping):
            yield part
            waiting.extend(part.values())
        elif isinstance(part, list):
            waiting.extend(part)


def is_quantized(dtype: Any) -> bool:
    """Tell a policy of model.quantize() from one of plain numbers.

    Source: `QuantizedDTypePolicy` in keras/src/dtype_policies/dtype_policy.py at
    v3.15.1.
    """
    if isinstance(dtype, Mapping):
        config = dtype.get("config")
        return isinstance(config, Mapping) and {"mode", "source_name"} <= {*config}
    return isinstance(dtype, str) and "_from_" in dtype


QUANTIZED = (
    "the model is quantized (int8, int4 or float8, by model.quantize), which rounds "
    "its weights. Save it before it is quantized"
)


class _Reader:
    """Reads one file: all that its parts share."""

    def __init__(
        self,
        version: Version,
        problems: Problems,
        backend: Any,
        ordering: str | None,
    ) -> None:
        self.version = version
        self.ordering = ordering
        self.problems = problems
        self.backend = backend if isinstance(backend, str) else None
        self.types: set[str] = set()
        self.input_types: set[str] = set()

    def model(
        self, data: Mapping[str, Any], name: str | None, trainable: bool, depth: int
    ) -> ModelSpec:
        """Read a model of any kind."""
        if depth > DEEPEST:
            raise KerasFormatError(
                f"load_keras: models are nested more than {DEEPEST} deep."
            )
        kind, config = data.get("class_name"), data.get("config")
        if kind not in _MODELS:
            raise KerasFormatError(
                f"load_keras: the file holds a {kind!r:.60}; wanted a model: "
                f"{', '.join(_MODELS)}. A subclassed model is Python code, and no file "
                "describes it."
            )
        if isinstance(config, Mapping):
            name = name or as_name(config.get("name"))
            trainable = trainable and config.get("trainable") is not False
            self.check_dtype(name, config)
        assembly = Assembly(self, name or kind.lower(), kind, trainable, depth)
        if kind == "Sequential":
            assembly.sequential(config)
        elif kind == "Graph":
            assembly.old_graph(as_mapping(config, "the Graph's config"))
        else:
            assembly.functional(as_mapping(config, f"the config of {assembly.name!r}"))
        return assembly.finished()

    def layer(
        self, data: Any, trainable: bool, depth: int, name: str | None = None
    ) -> LayerSpec:
        """Read one layer, with what it wraps."""
        data = as_mapping(data, "a layer")
        source, config = data.get("class_name"), data.get("config")
        if not isinstance(source, str):
            raise KerasFormatError(
                f"load_keras: a layer has the class {source!r:.60}; wanted a name."
            )
        if source in _MODELS:
            name = name or self._name(data, source)
            model = self.model(data, name, trainable, depth + 1)
            return LayerSpec(name, "Model", {}, source, model, trainable=trainable)
        name = name or self._name(data, source)
        source = with_package(data, source)
        config = dict(as_mapping(config, f"the config of {name!r}"))
        trainable = trainable and config.get("trainable") is not False
        operation = self._is_operation(data, config)
        if not operation:  # its dtype is an argument
            self.check_dtype(name, config, source)
        if operation:
            kind = f"ops.{source}"
        elif self.version < (2, 0):
            kind, config = keras_1.translate(source, config)
            self.order(name, kind, source, config)
        elif self.version < (3, 0):
            kind, config = keras_2.translate(source, config)
            if kind in keras_2.UNWRITTEN and self.ordering:
                config.setdefault("data_format", self.ordering)
        else:
            kind = source
        inner: tuple[LayerSpec, ...] = ()
        if kind == "RNN":
            kind, config, trainable, inner = self._cells(name, config, trainable)
        elif kind in _WRAPPERS:
            inner = self._wrapped(kind, config, trainable, depth + 1)
        return LayerSpec(name, kind, config, source, None, inner, trainable)

    def _wrapped(
        self, kind: str, config: dict[str, Any], trainable: bool, depth: int
    ) -> tuple[LayerSpec, ...]:
        """Read what a wrapper's config holds, and take it out of the config."""
        if depth > DEEPEST:
            raise KerasFormatError(
                f"load_keras: layers are nested more than {DEEPEST} deep."
            )
        layer = self.layer(config.pop("layer", None), trainable, depth)
        if kind != "Bidirectional" or layer.kind not in _RECURRENT:
            return (layer,)
        twin = config.pop("backward_layer", None)
        if twin is not None:
            return layer, self.layer(twin, trainable, depth)
        backward = not layer.config.get("go_backwards", False)
        turned = {**layer.config, "go_backwards": backward}
        return layer, replace(layer, config=turned)

    def order(self, name: str, kind: str, source: str, config: dict[str, Any]) -> None:
        """Add the data_format that Keras 1 did not write; ask where nothing tells."""
        if kind not in keras_1.UNWRITTEN or config.get("data_format") is not None:
            return
        if self.ordering is None:
            self.problems.add(
                f"layer {name!r} ({source}): Keras 1 wrote no dim_ordering for it, "
                "and the other layers don't tell. Pass data_format='channels_last' or "
                "data_format='channels_first' to load_keras, Keras 1's tf or th."
            )
        config["data_format"] = self.ordering or "channels_last"

    def _cells(
        self, name: str, config: dict[str, Any], trainable: bool
    ) -> tuple[str, dict[str, Any], bool, tuple[LayerSpec, ...]]:
        """Return a layer of one cell as Keras's own of that cell, a stack as its cells.

        RNN(LSTMCell(3), return_sequences=True) is LSTM(3, return_sequences=True).
        """
        cell = config.pop("cell", None)
        cells = cell if isinstance(cell, list) else [cell]
        if len(cells) == 1 and isinstance(cell, Mapping):
            inside = cell.get("config")
            if cell.get("class_name") == "StackedRNNCells":
                cells = inside.get("cells") if isinstance(inside, Mapping) else None
        if not isinstance(cells, list) or not 1 <= len(cells) <= DEEPEST:
            raise KerasFormatError(
                f"load_keras: layer {name!r} has the cells {cells!r:.60}; wanted 1 to "
                f"{DEEPEST}."
            )
        specs = []
        for data in cells:
            spec = self.layer(data, trainable, DEEPEST)
            known = spec.source.removesuffix("Cell")
            if spec.source not in _CELLS:
                self.problems.add(
                    f"layer {name!r} (RNN): its cell {spec.source!r:.60} is not "
                    f"supported. Known are {', '.join(_CELLS)}."
                )
            specs.append(replace(spec, kind=known))
        if len(specs) == 1:
            own = {k: v for k, v in specs[0].config.items() if k not in ("name",)}
            trainable = specs[0].trainable
            return specs[0].kind, {**own, **config}, trainable, ()
        return "RNN", config, trainable, tuple(specs)

    def _is_operation(self, data: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
        """Tell a node of keras.ops from a layer of the same class name."""
        if self.version < (3, 0):
            return False
        module = data.get("module")
        if isinstance(module, str):
            return module.startswith("keras.src.ops")
        # An .h5 file of Keras 3 names no modules, but only layers are trainable.
        return "trainable" not in config and data["class_name"] in OPERATIONS

    def _name(self, data: Mapping[str, Any], source: str) -> str:
        config = data.get("config")
        inner = config.get("name") if isinstance(config, Mapping) else None
        return as_name(data.get("name")) or as_name(inner) or source.lower()

    def check_dtype(
        self, name: str | None, config: Mapping[str, Any], source: str = ""
    ) -> None:
        """Collect the types of numbers; note one that is not known, once."""
        if is_quantized(config.get("dtype")):
            self.problems.add(QUANTIZED)
            return
        known = self.input_types if source == "InputLayer" else self.types
        for key in ("dtype", "input_dtype"):
            for dtype in set(type_names(config.get(key))) - known:
                known.add(dtype)
                if not is_known(dtype):
                    self.problems.add(
                        f"dtype={dtype!r:.60} is not supported, here of layer "
                        f"{name!r}. A quantized model can't be loaded: save it before "
                        "it is quantized."
                    )

    @property
    def is_float64(self) -> bool:
        """Tell whether all layers are of float64; Keras 1 and 2 say it of inputs."""
        return is_float64(self.types) or (
            is_float64(self.input_types) and not has_floats(self.types)
        )
