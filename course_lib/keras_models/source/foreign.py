"""Name what is not a Keras file, or not the right one, and say what to do instead."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from course_lib.keras_models.spec import refusal

HEAD = 4096  # bytes of a file's beginning that show what it is
_AGAIN = (
    "Load it with the Keras that wrote it, and save it with "
    "model.save('model.keras') or model.save('model.h5')"
)
_NOT_RUN = f"Reading it would run code, which is never done. {_AGAIN}"
_UNPACK = "Unpack it, and pass the file inside of it"
_SAVED_MODEL = (
    "a TensorFlow SavedModel, which holds a graph of operations and no layers. "
    "Load it with tf.keras.models.load_model and save it with model.save('model.h5')"
)
_CHECKPOINT = (
    "a TensorFlow checkpoint. Load it with model.load_weights in the Keras that wrote "
    "it, and save it with model.save_weights('weights.h5')"
)
_YAML = (
    "YAML, as to_yaml() wrote it until Keras 2.5; only JSON is read. Pass the dict "
    'yaml.safe_load(text.replace("!!python/tuple", ""))'
)
_TORCH = "a PyTorch file. It needs no Keras: see torch.load"
_TFLITE = f"a TensorFlow Lite model, which holds no layers. {_AGAIN}"
_ONNX = f"an ONNX model. {_AGAIN}"
_GRAPH = f"a TensorFlow graph (.pb), which holds no layers. {_AGAIN}"
_SUFFIXES = {
    ".tflite": _TFLITE,
    ".onnx": _ONNX,
    ".pb": _GRAPH,
    ".pbtxt": _GRAPH,
    ".meta": _CHECKPOINT,
    ".index": _CHECKPOINT,
    ".ckpt": _CHECKPOINT,
    ".pt": _TORCH,
    ".pth": _TORCH,
    ".yaml": _YAML,
    ".yml": _YAML,
    ".safetensors": "a safetensors file, which no Keras writes",
    ".mlmodel": f"a Core ML model. {_AGAIN}",
    ".py": "Python code. Run it, and save the model that it builds as .keras or .h5",
    ".prototxt": "a Caffe file",
    ".caffemodel": "a Caffe file",
}
# What a file's first bytes match, from their beginning.
_PICKLE = rb"(\x80[\x02-\x05]|\(dp?\d|ccopy_reg|cnumpy|ccollections)"
_PATTERNS: tuple[tuple[bytes, str], ...] = (
    (
        rb"version https://git-lfs",
        "a Git LFS pointer in place of the file itself. Run `git lfs pull` in its "
        "repository, or download the file",
    ),
    (rb"\x93NUMPY", "one NumPy array. Pass weights=[numpy.load(path), ...]"),
    (rb"\x1f\x8b", f"packed by gzip. {_UNPACK}"),
    (rb"BZh", f"packed by bzip2. {_UNPACK}"),
    (rb"\xfd7zXZ", f"packed by xz. {_UNPACK}"),
    (rb"\x28\xb5/\xfd", f"packed by zstd. {_UNPACK}"),
    (rb"7z\xbc\xaf", f"a 7z archive. {_UNPACK}"),
    (rb"Rar!", f"a RAR archive. {_UNPACK}"),
    (rb"MATLAB 5\.0", "a MATLAB file. Pass the arrays as a list: weights=[...]"),
    (rb"GGUF", "a GGUF file, which no Keras writes"),
    (rb"%PDF", "a PDF document"),
    (
        rb"(\xef\xbb\xbf)?\s*<(?i:!doctype|html|\?xml|head|body)",
        "a web page, not the file that was asked for. Download the file itself (on "
        "GitHub: its raw form)",
    ),
    (rb".{4}TFL3", _TFLITE),
    (rb'.{8}\{"', _SUFFIXES[".safetensors"]),
    (rb".{257}ustar", f"a tar archive. {_UNPACK}"),
    # torch.save until 1.5
    (rb"\x80[\x02-\x05]\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19", _TORCH),
    (_PICKLE + rb".*joblib", f"a joblib pickle of Python objects. {_NOT_RUN}"),
    (_PICKLE, f"a pickle of Python objects. {_NOT_RUN}"),
    (rb"\x08.{0,193}(onnx|pytorch)", _ONNX),
    (rb"\x08\x01\x12", _SAVED_MODEL),
)


def refuse_foreign(path: Path, start: bytes) -> None:
    """Raise an error that names the file, where its first bytes or its name show it."""
    known = (text for pattern, text in _PATTERNS if re.match(pattern, start, re.DOTALL))
    text = next(known, None) or _by_name(path, start)
    if not start:
        text = "empty; download or save it again"
    if text:
        raise refusal(f"{path} is {text}.")


def _by_name(path: Path, start: bytes) -> str | None:
    if re.fullmatch(r"\.data-\d+-of-\d+", path.suffix):
        return _CHECKPOINT
    if re.match(rb"(---\s+)?(backend|class_name|config|keras_version): ", start):
        return _YAML
    if start.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"[", b'"'):
        return None  # JSON, whatever its name is
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return None  # text in UTF-16
    return _SUFFIXES.get(path.suffix.lower())


def refuse_text(text: str) -> None:
    """Raise an error about text that is neither JSON nor, for its lines, a path."""
    refuse_foreign(Path("the text"), text.encode("utf-8", "replace"))
    raise refusal(f"the text {text!r:.60} is neither the JSON of a model nor a path.")


def refuse_missing(path: Path) -> None:
    """Raise an error where a path is only the beginning of a checkpoint's names."""
    if path.with_name(f"{path.name}.index").exists():
        raise refusal(f"{path} is {_CHECKPOINT}.")


def refuse_folder(path: Path) -> None:
    """Raise an error that says what a folder is, and what of it to pass."""
    names = sorted(item.name for item in path.iterdir())
    if {"saved_model.pb", "saved_model.pbtxt"} & {*names}:
        text = f"the folder of {_SAVED_MODEL}"
    elif "checkpoint" in names or any(name.endswith(".index") for name in names):
        text = f"the folder of {_CHECKPOINT}"
    else:
        text = f"a folder; it holds {listed(names)}. Pass one file"
    raise refusal(f"{path} is {text}.")


def refuse_zip(path: Path, names: list[str]) -> None:
    """Raise an error that says what a zip is that holds no Keras model."""
    inside = [n for n in names if n.endswith((".keras", ".h5", ".hdf5", ".json"))]
    if any(name.endswith("saved_model.pb") for name in names):
        text = f"a zip of {_SAVED_MODEL}"
    elif any(name.endswith("data.pkl") for name in names):
        text = _TORCH
    elif names and all(name.endswith(".npy") for name in names):
        text = (
            "a zip without config.json: an .npz of arrays, which describes no model. "
            "Pass the model's JSON as source, and this file as weights"
        )
    elif inside:
        text = f"a zip without config.json. Unpack it, and pass {listed(inside)}"
    else:
        text = f"a zip without config.json, so no .keras file; it holds {listed(names)}"
    raise refusal(f"{path} is {text}.")


# JSON


def refuse_foreign_json(data: Any, place: str) -> None:
    """Raise an error that names JSON which is known, but is no model."""
    text = _of_list(data) if isinstance(data, list) else None
    if isinstance(data, Mapping) and data and "class_name" not in data:
        text = _of_object(data)
    if text:
        raise refusal(f"{place} {text}.")


def _of_list(data: list[Any]) -> str | None:
    if data and all(
        isinstance(part, Mapping) and "class_name" in part for part in data
    ):
        return (
            "holds a list of layers, as get_config() of a Sequential returned it. Pass "
            '{"class_name": "Sequential", "config": that list}'
        )
    return f"holds a list of {len(data)} parts; wanted the JSON of one model"


_TUNER = (
    "holds hyperparameters of a tuner, and no model. Build the model with them in "
    "Keras and save it"
)
_HUGGING_FACE = "is the settings of a Hugging Face model, which no Keras wrote"
_JSON: tuple[tuple[set[str], str], ...] = (
    *(({key}, _TUNER) for key in ("oracle", "hyperparameters", "trial_id")),
    ({"space", "values"}, _TUNER),
    (
        {"date_saved"},
        "is the metadata.json of a .keras file. Pass that file, or its config.json",
    ),
    *(({key}, _HUGGING_FACE) for key in ("architectures", "model_type")),
    ({"cells"}, "is a notebook. Run it, and save the model that it builds"),
)


def _of_object(data: Mapping[str, Any]) -> str | None:
    layers = data.get("layers")
    if isinstance(layers, list) and any(
        isinstance(layer, Mapping) and "class_name" in layer for layer in layers
    ):
        graph = "input_layers" in data or "output_layers" in data
        kind = "Functional" if graph else "Sequential"
        return (
            "holds a model's config alone, as get_config() returns it. Pass "
            f'{{"class_name": "{kind}", "config": that dict}}, and keras_version='
        )
    for key, part in data.items():
        if _holds_model(part):
            return (
                f"holds other JSON, with a model inside of it under {key!r}. Pass only "
                f"that part: load_keras(json.load(open(path))[{key!r}])"
            )
    keys = {str(key) for key in data}
    for known, text in _JSON:
        if known <= keys:
            return text
    if "name" not in keys:
        return (
            f"holds JSON with {listed(keys)}, and no model; wanted an object with "
            '"class_name" and "config"'
        )
    return None


def _holds_model(part: Any) -> bool:
    if isinstance(part, str):
        return re.match(r'\s*\{.*"class_name"', part[:HEAD], re.DOTALL) is not None
    return isinstance(part, Mapping) and {"class_name", "config"} <= {*part}


def listed(names: Iterable[str]) -> str:
    """Return some names for a message, in quotes.

    >>> listed(["a", "b"]), listed([])
    ("'a', 'b'", 'none')
    """
    names = sorted(names)
    text = ", ".join(f"{name!r:.80}" for name in names[:12])
    return text + (", ..." if len(names) > 12 else "") if names else "none"
