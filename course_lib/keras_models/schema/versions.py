"""Which Keras wrote a file, and what the file leaves to that Keras's settings."""

from collections.abc import Mapping
from typing import Any

from course_lib.keras_models.schema.draft import parts_of
from course_lib.keras_models.schema.keras_1 import FORMATS
from course_lib.keras_models.spec import Version


def find_version(data: Mapping[str, Any], keras_version: str | None) -> Version:
    """Return the version that wrote the file: as given, as written, or as it looks."""
    written = keras_version or data.get("keras_version")
    if written is not None:
        return Version.parse(written)
    if "class_name" not in data:
        return Version(0, 3, 3, False)
    keys, names = set(), set()
    for part in _objects(data):
        keys.update(part)
        names.add(str(part.get("class_name")))
        names.add(str(part.get("name")) if "l1" in part else None)
    if keys & {"registered_name", "batch_shape", "module"}:
        return Version(3, 15, 0, False)
    new_words = {"kernel_initializer", "units", "pool_size", "rate"}
    old_words = {"W_regularizer", "dim_ordering", "input_dtype"}
    if keys & new_words and not keys & old_words:
        return Version(2, 2, 4, False)
    if "L1L2Regularizer" in names:
        return Version(1, 2, 2, False)
    if "bias" in keys:
        return Version(1, 1, 0, False)
    return Version(1, 0, 8 if "gamma_regularizer" in keys else 0, False)


def find_data_format(data: Mapping[str, Any]) -> str | None:
    """Return the data_format of layers that were written without theirs.

    It was that of the user's settings, and so that of the other layers. None where
    these don't agree or don't say.
    """
    keys = ("dim_ordering", "data_format")
    written = [part.get(key) for part in _objects(data) for key in keys]
    found = {FORMATS.get(value, value) for value in written if isinstance(value, str)}
    return found.pop() if len(found) == 1 else None


def _objects(data: Any) -> list[Mapping[str, Any]]:
    return [part for part in parts_of(data) if isinstance(part, Mapping)]
