"""The neutral spec: what every era's file is translated to before anything is built.

A `ModelSpec` is a graph of calls. Layers bear the names and settings of Keras 3,
whatever the file's era calls them; regularizers are `L1L2` objects already.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

LARGEST_TENSOR = 2**34  # numbers in one tensor of a small batch
Shape = tuple[int | None, ...]  # None where a size is open


class KerasFormatError(ValueError):
    """A Keras file that can't be loaded: place, what was found, what to do."""


def refusal(text: str) -> KerasFormatError:
    """Return the error that a file can't be loaded, to be raised."""
    return KerasFormatError(f"load_keras: {text}")


class Version(NamedTuple):
    """A Keras release; `tf` marks tf.keras, whose meaning differs in places.

    Keras itself is tf.keras since 2.4: keras 2.4.0 keras/__init__.py#L24.

    >>> Version.parse("2.2.4-tf")
    Version(major=2, minor=2, patch=4, tf=True)
    >>> Version.parse("2.2.4") >= (2, 2)
    True
    """

    major: int
    minor: int
    patch: int
    tf: bool

    @classmethod
    def parse(cls, text: Any) -> "Version":
        """Read "2.15.0", "3.15" or "2.2.4-tf"; since 2.4 every release is tf.keras."""
        match = re.match(r"(\d{1,3})\.(\d{1,3})(?:\.(\d{1,3}))?", str(text))
        if match is None:
            raise refusal(
                f"got keras_version={text!r}; wanted a release such as '1.1.0', "
                "'2.2.4-tf' or '3.15'."
            )
        major, minor, patch = (int(part or 0) for part in match.groups())
        tf = str(text).endswith("-tf") or (2, 4) <= (major, minor) < (3, 0)
        return cls(major, minor, patch, tf)

    @property
    def is_new(self) -> bool:
        """Tell tf.keras and Keras 3 from Keras 0.3 to 2.3."""
        return self.tf or self.major >= 3

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"


class Ref(NamedTuple):
    """One tensor: the output number `tensor` of a layer's call number `call`."""

    layer: str
    call: int
    tensor: int


@dataclass(frozen=True)
class CallSpec:
    """One call of a layer: its arguments as the file nests them, with `Ref`s inside."""

    layer: str
    number: int  # 0 for its first call, 1 for the next; shared layers have several
    args: tuple[Any, ...]  # `Ref`s, constants, and lists of them
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def refs(self) -> "list[Ref]":
        """Return all tensors among its arguments."""
        return refs_in([*self.args, self.kwargs])

    @property
    def parents(self) -> list[tuple[str, int]]:
        """Return the calls, by layer and number, that these tensors come from."""
        return [(ref.layer, ref.call) for ref in self.refs]


@dataclass(frozen=True)
class LayerSpec:
    """One layer: its kind and settings in Keras 3's words.

    What only the file's era knows is dropped from the config by its schema, so that all
    that is left must be understood. TimeDistributed and SpectralNormalization have one
    inner layer, Bidirectional two, RNN its cells.
    """

    name: str  # unique in its model
    kind: str  # Keras 3's class name; "Model" for a nested model
    config: Mapping[str, Any]
    source: str  # the class name in the file, for messages
    model: "ModelSpec | None" = None
    inner: "tuple[LayerSpec, ...]" = ()
    trainable: bool = True


@dataclass(frozen=True)
class ModelSpec:
    """A whole model: layers in the file's order, calls in an order that can run.

    `input_shapes` begin with the batch; `input_keys` are the keys of a model whose
    inputs are a dict, in Keras's order.
    """

    name: str
    kind: str
    version: Version
    layers: Mapping[str, LayerSpec]
    calls: tuple[CallSpec, ...]
    inputs: tuple[Ref, ...]
    input_shapes: tuple[Shape, ...]
    outputs: tuple[Ref, ...]
    output_names: tuple[str, ...]
    backend: str | None = None
    is_float64: bool = False
    input_keys: tuple[str, ...] = ()
    dtype: Any = None

    def users_of(self, ref: Ref) -> list[CallSpec]:
        """Return the calls that are given this tensor by position."""
        return [call for call in self.calls if ref in refs_in(list(call.args))]


@dataclass
class Problems:
    """All that stands in the way of loading a file, reported at once."""

    place: str
    found: list[str] = field(default_factory=list)

    def add(self, text: str) -> None:
        """Note one problem, once."""
        if text not in self.found:
            self.found.append(text)

    def check(self) -> None:
        """Raise one error that lists every problem, if there is any."""
        if len(self.found) == 1:
            raise refusal(f"{self.place}: {self.found[0]}")
        if self.found:
            lines = "".join(f"\n  - {text}" for text in self.found)
            count = len(self.found)
            raise refusal(f"{self.place}: {count} things stand in the way:{lines}")


def is_operation(kind: str) -> bool:
    """Tell a node of a plain function, of Keras 3 or TensorFlow, from a layer."""
    return kind.startswith(("ops.", "tf.", "tfop."))


def refs_in(value: Any) -> list[Ref]:
    """Return the `Ref`s inside nested arguments, from left to right, as Keras does.

    A dict's values come in the order of its sorted keys (`flatten` of
    keras/src/tree/tree_api.py at v3.15.1, and tf.nest.flatten).

    >>> refs_in([Ref("a", 0, 0), 2, {"y": Ref("b", 0, 0), "x": Ref("c", 0, 0)}])
    [Ref(layer='a', call=0, tensor=0), Ref(layer='c', call=0, tensor=0), \
Ref(layer='b', call=0, tensor=0)]
    """
    if isinstance(value, Ref):
        return [value]
    if isinstance(value, Mapping):
        value = [value[key] for key in sorted(value, key=str)]
    elif not isinstance(value, list | tuple):
        return []
    return [ref for part in value for ref in refs_in(part)]
