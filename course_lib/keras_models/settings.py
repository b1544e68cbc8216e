"""Read a layer's settings with their types checked; an unread one is a problem."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from course_lib.checks import is_int
from course_lib.keras_models import activations
from course_lib.keras_models.activations import Activation
from course_lib.keras_models.constraints import Constraint, parse_constraint
from course_lib.keras_models.initializers import Initializer, Unknown, parse_initializer
from course_lib.keras_models.objects import check_package, unwrapped
from course_lib.keras_models.regularizers import parse_regularizer
from course_lib.keras_models.spec import LayerSpec, Problems, Version
from course_lib.regularization.regularizers import L1L2

LARGEST = 2**31 - 1  # of a number in a config; what is larger is damage
_MISSING: Any = object()
# Settings that change no number of a loaded model.
_WITHOUT_EFFECT = {
    *("name", "custom_name", "trainable", "dtype", "input_dtype", "autocast"),
    *("batch_input_shape", "batch_shape", "batch_size", "input_shape"),
    *("cache_enabled", "build_config", "quantization_config"),
    *("sparse", "ragged", "seed"),
}


class Settings:
    """The settings of one layer. Problems are noted, not raised, so that all show.

    Each method returns a value of the right type in any case; after a problem it is
    never used, since nothing is built then.
    """

    def __init__(self, spec: LayerSpec, version: Version, problems: Problems) -> None:
        self.spec = spec
        self.name = spec.name
        self.version = version
        self.problems = problems
        self.left = {k: v for k, v in spec.config.items() if k not in _WITHOUT_EFFECT}
        self.activity: L1L2 | None = self.regularizer("activity_regularizer")

    def problem(self, text: str) -> None:
        """Note what is wrong with this layer."""
        self.problems.add(f"layer {self.name!r} ({self.spec.source}): {text}")

    def unsupported(self, key: str, value: Any, way_out: str = "") -> None:
        """Note a setting that this package does not carry out."""
        text = f"{key}={_short(value)} is not supported"
        self.problem(f"{text}. {way_out or self.way_out}")

    @property
    def way_out(self) -> str:
        """Say how to load the file all the same."""
        return f"Pass replacements={{{self.name!r}: a module or function}}."

    def take(self, key: str, default: Any = _MISSING) -> Any:
        """Return a setting unchanged."""
        value = self.left.pop(key, default)
        if value is _MISSING:
            self.problem(f"{key!r} is missing")
            return None
        return value

    def only(self, key: str, *allowed: Any) -> None:
        """Accept a setting only with a value that changes nothing."""
        if key in self.left:
            value = self.left.pop(key)
            if value not in allowed:
                self.unsupported(key, value)

    def ignore(self, *keys: str) -> None:
        """Leave out settings of speed and memory."""
        for key in keys:
            self.left.pop(key, None)

    def integer(self, key: str, default: Any = _MISSING, *, least: int = 1) -> int:
        """Return a whole number of at least `least`."""
        return self._integer(key, self.take(key, default), least)

    def _integer(self, key: str, value: Any, least: int) -> int:
        if isinstance(value, float) and value.is_integer() and abs(value) <= LARGEST:
            value = int(value)
        if is_int(value) and least <= value <= LARGEST:
            return value
        self.problem(f"{key}={_short(value)}; wanted a whole number >= {least}")
        return max(least, 1)

    def integers(
        self, key: str, count: int, default: Any = _MISSING, *, least: int = 1
    ) -> tuple[int, ...]:
        """Return `count` whole numbers; a single one stands for all."""
        value = self.take(key, default)
        if not isinstance(value, list | tuple):
            return (self._integer(key, value, least),) * count
        if len(value) != count:
            self.problem(f"{key}={_short(value)}; wanted {count} whole numbers")
            return (max(least, 1),) * count
        return tuple(self._integer(key, part, least) for part in value)

    def list_of_integers(self, key: str, default: Any = _MISSING) -> tuple[int, ...]:
        """Return any number of whole numbers, also negative ones."""
        value = self.take(key, default)
        value = value if isinstance(value, list | tuple) else [value]
        return tuple(self._integer(key, part, -LARGEST) for part in value)

    def number(
        self,
        key: str,
        default: Any = _MISSING,
        *,
        low: float = -1e30,
        high: float = 1e30,
    ) -> float:
        """Return a number in [low, high]."""
        value = unwrapped(self.take(key, default))
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and low <= value <= high:
            return float(value)
        self.problem(f"{key}={_short(value)}; wanted a number in [{low:g}, {high:g}]")
        return low

    def rate(self, key: str = "rate", default: Any = _MISSING) -> float:
        """Return the fraction that a dropout drops, in [0, 1)."""
        return self.number(key, default, low=0.0, high=1 - 1e-9)

    def flag(self, key: str, default: Any = _MISSING) -> bool:
        """Return True or False."""
        value = self.take(key, default)
        if not isinstance(value, bool | int | None):
            self.problem(f"{key}={_short(value)}; wanted true or false")
        return bool(value)

    def choice(self, key: str, options: Iterable[str], default: Any = _MISSING) -> str:
        """Return one of the options."""
        value, options = self.take(key, default), list(options)
        if value in options:
            return value
        wanted = ", ".join(map(repr, options))
        self.problem(f"{key}={_short(value)}; wanted one of {wanted}")
        return options[0]

    def channels_last(self) -> bool:
        """Read data_format."""
        formats = ("channels_last", "channels_first")
        return self.choice("data_format", formats, "channels_last") == formats[0]

    def regularizer(self, key: str) -> L1L2 | None:
        """Return the coefficients, or None."""
        return self._parsed(key, parse_regularizer)

    def constraint(self, key: str) -> Constraint | None:
        """Return the function, or None."""
        return self._parsed(key, parse_constraint)

    def initializer(self, key: str, default: str) -> Initializer:
        """Return the function that fills a tensor; an unknown one raises when called.

        Only a model without weights needs it.
        """
        value = self.left.pop(key, None) or default
        try:
            check_package(value)
            return parse_initializer(value, self.version)
        except (TypeError, ValueError, OverflowError) as error:
            where = f"layer {self.name!r} ({self.spec.source}): {key}"
            return Unknown(f"{where}: {error}; without weights= it is needed.")

    def _parsed(
        self, key: str, parse: Callable[[Any], Any], default: Any = None
    ) -> Any:
        value = self.left.pop(key, default)
        try:
            check_package(value)
            return parse(value)
        except (TypeError, ValueError, OverflowError) as error:
            self.problem(f"{key}: {error}. {self.way_out}")
            return None

    def activation(
        self, key: str = "activation", default: Any = "linear", axis: int = -1
    ) -> Activation:
        """Return the function; `axis` is where Keras's last axis will lie."""
        value = self._parsed(key, lambda value: value, default)
        if value is None:
            return activations.linear
        found, options = None, {}
        if isinstance(value, Mapping):  # a function or a layer, serialized
            options = value.get("config", {})
            if isinstance(options, str):
                value, options = options, {}
            else:
                value = value.get("class_name")
                found = self._layer_activation(key, value, options)
        if found is not None:
            return activations.along(found, axis)
        if isinstance(value, str) and not options:
            found = activations.named_activation(value, self.version, axis)
        if found is None:
            self.problem(
                f"{key}={_short(value)} is unknown. {self.way_out} Known are "
                f"{', '.join(activations.activation_names())}."
            )
        return found or activations.linear

    def _layer_activation(self, key: str, name: Any, options: Any) -> Any:
        """Return an activation that is given as a layer with its config."""
        if not isinstance(name, str) or not isinstance(options, Mapping):
            return None
        source = f"{name}, {key} of {self.spec.source}"
        spec = LayerSpec(self.name, name, options, source)
        settings = Settings(spec, self.version, self.problems)
        function = settings.activation_layer()
        if function is not None:
            settings.finish()
        return function

    def activation_layer(self) -> Activation | None:
        """Return the function of an activation layer, None of another layer."""
        kind = self.spec.kind
        if kind == "Activation":
            return self.activation(default="")
        if kind == "Softmax":
            return activations.softmax(self.list_of_integers("axis", -1))
        if kind not in activations.LAYERS:
            return None
        function, defaults = activations.LAYERS[kind]
        options = {}
        for key, default in defaults.items():
            if default is None and self.left.get(key) is None:
                self.ignore(key)
            else:
                options[key] = self.number(key, default)
        return partial(function, **options)

    def finish(self) -> None:
        """Note every setting that was not read."""
        for key, value in self.left.items():
            if value not in (None, False, [], {}):
                self.unsupported(key, value)
        self.left = {}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
