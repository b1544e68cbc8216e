"""TensorFlow.js's layers models: a model.json, and shards of bytes beside it.

The manifest lists groups; each has arrays, which lie one after another in the group's
shards. Source: tfjs-core's `io/types.ts` and `io/io_utils.ts` (decodeWeights).
"""

import math
from collections.abc import Mapping
from itertools import accumulate, pairwise
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from course_lib.checks import is_int
from course_lib.keras_models.source.files import (
    Arrays,
    NamedArrays,
    Stored,
    check_sizes,
)
from course_lib.keras_models.spec import refusal

_DTYPES = {"float32": "<f4", "float16": "<f2", "int32": "<i4", "bool": "|u1"}
_DTYPES |= {"uint8": "|u1", "uint16": "<u2"}
_MOST_SHARDS = 100_000
# The JavaScript library writes its own version, and means what tf.keras 2 means.
_MEANING = "2.4.0"


def is_tensorflow_js(data: Any) -> bool:
    """Tell a model.json of TensorFlow.js from a Keras model's JSON."""
    return isinstance(data, Mapping) and (
        "modelTopology" in data or "weightsManifest" in data
    )


def topology(data: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Return the Keras model's JSON inside.

    Raises:
        KerasFormatError: a graph model, which has no layers.
    """
    model = data.get("modelTopology")
    graph = isinstance(model, Mapping) and ("node" in model or "library" in model)
    if graph or data.get("format") == "graph-model":
        raise refusal(
            f"{place} is a graph model of TensorFlow.js: operations, and no layers. "
            "Convert the Keras model itself, with --output_format=tfjs_layers_model, "
            "or save it as .keras or .h5."
        )
    if not isinstance(model, Mapping):
        raise refusal(
            f"{place} is a file of TensorFlow.js with modelTopology={model!r:.60}; "
            "wanted a model."
        )
    model = dict(model)
    for part in (model, model.get("model_config")):
        if isinstance(part, dict) and str(part.get("keras_version")).startswith("tfjs"):
            part["keras_version"] = _MEANING
    return model


def weights_of(data: Mapping[str, Any], path: Path | None, place: str) -> NamedArrays:
    """Return the arrays of the shards beside `path`.

    Raises:
        KerasFormatError: a shard that is missing, lies elsewhere or has another size.
    """
    if path is None:
        raise refusal(
            f"{place} is a model of TensorFlow.js, whose weights lie in files beside "
            "it. Pass the path of its model.json, or weights=."
        )
    arrays: Arrays = []
    size = 0
    for group in _list(data, "weightsManifest", place):
        shards = _Shards(_list(group, "paths", place), path.parent, place)
        at = 0
        for about in _list(group, "weights", place):
            name, array, count = _array(about, shards, at, place)
            arrays.append((name, array))
            at += count
        if at != shards.size:
            raise refusal(
                f"{place}: the shards {shards.names} hold {shards.size:,} bytes; the "
                f"manifest describes {at:,}."
            )
        size += shards.size
    check_sizes(arrays, size, place)
    return NamedArrays(arrays, place)


def _list(data: Any, key: str, place: str) -> list[Any]:
    value = data.get(key) if isinstance(data, Mapping) else None
    if isinstance(value, list) and len(value) <= _MOST_SHARDS:
        return value
    raise refusal(
        f"{place}: {key!r} of TensorFlow.js's manifest is {value!r:.60}; wanted a list."
    )


class _Shards:
    """The files of one group, read as if they were one."""

    def __init__(self, names: list[Any], folder: Path, place: str) -> None:
        self.paths = [_beside(name, folder, place) for name in names]
        sizes = [path.stat().st_size for path in self.paths]
        self.starts = [*accumulate(sizes, initial=0)]
        self.size = self.starts[-1]
        self.names = ", ".join(path.name for path in self.paths)[:200]

    def read(self, at: int, count: int) -> bytearray:
        """Return some bytes of the whole, fewer where the files have become shorter."""
        found = bytearray()
        for path, (start, end) in zip(self.paths, pairwise(self.starts), strict=True):
            low, high = max(at, start), min(at + count, end)
            if low < high:
                with open(path, "rb") as stream:
                    stream.seek(low - start)
                    found += stream.read(high - low)
        return found


def _beside(name: Any, folder: Path, place: str) -> Path:
    """Return the path of a shard, which lies in the folder of the model.json."""
    path = PurePosixPath(name) if isinstance(name, str) else PurePosixPath("..")
    if path.is_absolute() or ".." in path.parts or any(c in str(name) for c in "\\:\0"):
        raise refusal(
            f"{place} lists the shard {name!r:.80}; wanted a name in the folder of the "
            "model.json."
        )
    found = folder / path
    if not found.is_file():
        raise refusal(
            f"{place} lists the shard {name!r:.80}, but there is no such file beside "
            "it. Download all shards into the same folder, or pass weights=."
        )
    return found


def _array(about: Any, shards: _Shards, at: int, place: str) -> tuple[str, Stored, int]:
    """Return the name of an array, the array, and how many bytes of a shard it has."""
    about = about if isinstance(about, Mapping) else {}
    name, shape = about.get("name"), about.get("shape")
    if not isinstance(name, str):
        raise refusal(f"{place}: an array has the name {name!r:.60}; wanted text.")
    place = f"{place}: {name!r:.80}"
    good = isinstance(shape, list) and len(shape) <= 32
    if not good or not all(is_int(n) and n >= 0 for n in shape):
        raise refusal(f"{place} has shape={shape!r:.60}; wanted whole numbers.")
    packed = about.get("quantization")
    scale, low = _scale(packed, place)
    known = packed.get("dtype") if isinstance(packed, Mapping) else about.get("dtype")
    if not isinstance(known, str) or known not in _DTYPES:
        raise refusal(
            f"{place} has dtype={known!r:.60}; wanted one of {', '.join(_DTYPES)}."
        )
    dtype = np.dtype(_DTYPES[known])
    count = math.prod(shape) * dtype.itemsize
    if at + count > shards.size:
        raise refusal(
            f"{place} needs the bytes {at:,} to {at + count:,} of "
            f"{shards.names or 'no shard'}; there are {shards.size:,}. The download "
            "may not be complete."
        )

    def load() -> np.ndarray:
        array = np.frombuffer(shards.read(at, count), dtype).reshape(shape)
        return array if scale is None else (array * scale + low).astype(np.float32)

    whole = dtype if scale is None else np.dtype(np.float32)
    return name, Stored(tuple(shape), whole, place, load), count


def _scale(packed: Any, place: str) -> tuple[np.float64 | None, float]:
    """Return what turns whole numbers into fractions: x = scale * number + min.

    None where the numbers are plain; float16 is stored as it is.
    """
    if not isinstance(packed, Mapping) or packed.get("dtype") == "float16":
        return None, 0.0
    pair = [packed.get(key) for key in ("scale", "min")]
    if not all(type(n) in (int, float) and abs(n) < 1e30 for n in pair):
        raise refusal(
            f"{place} has quantization={packed!r:.120}; wanted numbers "
            '"scale" and "min".'
        )
    return np.float64(pair[0]), float(pair[1])
