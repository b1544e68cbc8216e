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
        ValueError: a name is registered for some of these versions already.
    """

    def register(make: MakeT) -> MakeT:
        for name in names:
            known = _REGISTERED.setdefault(name, [])
            if any(since < other.until and other.since < until for other in known):
                raise ValueError(f"keras_layer: {name!r} is registered twice")
            known.append(Registration(name, since, until, make))
        return make

    return register


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
