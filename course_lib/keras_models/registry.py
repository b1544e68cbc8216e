"""Which class or function makes a layer: by its name in Keras 3 and the file's version.

A layer registers itself where it is defined:

    @keras_layer("Conv1D", "Conv2D", "Conv3D")
    class Conv(Convolution): ...

    @keras_layer("Identity", until=(3, 0))
    def unmasked_identity(settings: Settings) -> Layer: ...

tests/test_keras_registry.py demands evidence for each: a stored case of these versions,
or a comparison with a running Keras.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from course_lib.keras_models.spec import Version

Release = tuple[int, ...]
# Called with the layer's Settings, then with the layers that it wraps.
Make = Callable[..., Any]
MakeT = TypeVar("MakeT", bound=Make)


@dataclass(frozen=True)
class Registration:
    """One layer for the versions since <= version < until."""

    name: str
    since: Release
    until: Release
    make: Make

    def covers(self, version: Version) -> bool:
        """Tell whether it makes the layers of that version's files."""
        return self.since <= version < self.until


_REGISTERED: dict[str, list[Registration]] = {}


def keras_layer(
    *names: str, since: Release = (0,), until: Release = (99,)
) -> Callable[[MakeT], MakeT]:
    """Register what it decorates for layers of these names, in files of these versions.

    Raises:
        ValueError: no names or versions; a name is registered for some of these
            versions already. Then none of the names is registered.
    """
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"keras_layer: got {names!r:.80} for the names; wanted text in brackets, "
            '@keras_layer("Dense")'
        )
    if not isinstance(since, tuple) or not isinstance(until, tuple) or since >= until:
        raise ValueError(
            f"keras_layer: got since={since!r:.40} and until={until!r:.40} for "
            f"{names[0]!r}; wanted tuples such as (2, 0), the first one earlier"
        )

    def register(make: MakeT) -> MakeT:
        new = [Registration(name, since, until, make) for name in names]
        for i, one in enumerate(new):
            _check_is_new(one, [*_REGISTERED.get(one.name, []), *new[:i]])
        for one in new:
            _REGISTERED.setdefault(one.name, []).append(one)
        return make

    return register


def _check_is_new(one: Registration, others: list[Registration]) -> None:
    for other in others:
        same = one.name == other.name
        if same and one.since < other.until and other.since < one.until:
            raise ValueError(
                f"keras_layer: {one.name!r} is registered twice: "
                f"{one.make.__qualname__} for {one.since} to {one.until}, and before "
                f"{other.make.__qualname__} for {other.since} to {other.until}. Choose "
                "since and until so that each version has one"
            )


def registrations() -> list[Registration]:
    """Return all registrations."""
    return [one for known in _REGISTERED.values() for one in known]


def is_registered(name: str) -> bool:
    """Tell whether some version's layer of that name is supported."""
    return name in _REGISTERED


def find_maker(name: str, version: Version) -> Make | None:
    """Return what makes that layer, None where nothing does."""
    known = _REGISTERED.get(name, [])
    return next((one.make for one in known if one.covers(version)), None)
