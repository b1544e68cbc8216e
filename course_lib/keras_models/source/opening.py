"""Open what a caller gives: find the model's JSON, and the weights that go with it."""

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from course_lib.keras_models.source import files, foreign, hdf5, tensorflow_js
from course_lib.keras_models.spec import KerasFormatError, refusal

Weights = hdf5.Hdf5 | files.NamedArrays
_WEIGHTS = "model.weights.h5"
_DEEPEST_TEXT = 8  # JSON in a JSON string in a JSON string, ...


@dataclass
class Opened:
    """What a source holds."""

    data: Any  # the model's JSON
    place: str  # for messages
    open_weights: Callable[[], Weights] | None = None  # None where its form has none
    missing: str | None = None  # why a file that should bring weights does not

    def weights(self) -> Weights | None:
        """Return the source's own weights, None where it is JSON alone."""
        if self.missing:
            raise refusal(
                f"{self.place} {self.missing}, so its layers would be untrained. Pass "
                "weights=; or, if you want them untrained, pass the model's JSON as "
                "source."
            )
        return self.open_weights() if self.open_weights else None


def open_source(source: Any, stack: ExitStack) -> Opened:
    """Open a model, given as `load_keras` takes it; the stack closes its files.

    Raises:
        KerasFormatError: no model is in it; what it is instead.
    """
    if isinstance(source, Mapping):
        with files.reading("the dict"):
            # A cycle in it ends here, and tuples become lists.
            data = json.loads(json.dumps(source))
        return _from_json(data, "the dict", None)
    path = files.as_path(source)
    if path is None:
        place = "the JSON string"
        return _from_json(files.parse_json(source, place), place, None)
    if isinstance(source, str) and "\n" in source:
        foreign.refuse_text(source)
    kind, place = files.kind_of(path), str(path)
    if kind == "folder":
        return _from_folder(path, stack)
    if kind == "zip":
        return _from_zip(stack.enter_context(files.open_zip(path)), stack)
    if kind == "hdf5":
        return _from_hdf5(stack.enter_context(hdf5.open_hdf5(path, place)))
    return _from_json(_parsed(path), place, path)


def _parsed(path: Path) -> Any:
    with files.reading(str(path)):
        if path.stat().st_size > files.LARGEST_JSON:
            raise refusal(f"{path} is too large for JSON.")
        return files.parse_json(path.read_bytes(), str(path))


def _from_json(data: Any, place: str, path: Path | None) -> Opened:
    data = _plain(data, place)
    if not tensorflow_js.is_tensorflow_js(data):
        return Opened(_model_json(data, place), place)
    model = _model_json(tensorflow_js.topology(data, place), place)
    return Opened(model, place, lambda: tensorflow_js.weights_of(data, path, place))


def _plain(data: Any, place: str) -> Any:
    """Return JSON that was written as text into JSON: json.dump(model.to_json())."""
    for _ in range(_DEEPEST_TEXT):
        if not isinstance(data, str):
            return data
        data = files.parse_json(data, f"the JSON string in {place}")
    raise refusal(f"{place} is JSON in a string, more than {_DEEPEST_TEXT} deep.")


def _model_json(data: Any, place: str, about: Any = None) -> Any:
    """Return the model, which may lie under "model_config" as in an HDF5 file.

    `about` is what the file says beside it of keras_version and backend. Other JSON
    that is known is refused, unknown JSON is returned.
    """
    data = _plain(data, place)
    if isinstance(data, Mapping) and "model_config" in data:
        place = f"{place}: model_config"
        about, data = data, _plain(data["model_config"], place)
    if isinstance(data, dict) and isinstance(about, Mapping):
        for key in ("keras_version", "backend"):
            if about.get(key) is not None:
                data.setdefault(key, about[key])
    foreign.refuse_foreign_json(data, place)
    return data


def _from_zip(archive: files.Zip, stack: ExitStack) -> Opened:
    """Open a `.keras` file."""
    place, names = str(archive.path), archive.names
    if "config.json" not in names:
        foreign.refuse_zip(archive.path, names)
    return _from_members(place, names, archive.json, lambda: _zipped(archive, stack))


def _from_members(
    place: str,
    names: list[str],
    read_json: Callable[[str], Any],
    open_it: Callable[[], Weights],
) -> Opened:
    about = read_json("metadata.json") if "metadata.json" in names else None
    data = _model_json(read_json("config.json"), place, about)
    if _WEIGHTS in names:
        return Opened(data, place, open_it)
    return Opened(data, place, missing=_without_weights(names))


def _zipped(archive: files.Zip, stack: ExitStack) -> hdf5.Hdf5:
    stream = stack.enter_context(archive.unpacked(_WEIGHTS))
    return stack.enter_context(hdf5.open_hdf5(stream, str(archive.path)))


def _without_weights(names: list[str]) -> str:
    if "model.weights.npz" in names:  # pickled: NpzIOStore in Keras 3's saving_lib.py
        return (
            "has its weights in model.weights.npz, as pickled Python objects, which "
            "are never unpickled (load it in Keras, and save it where h5py is "
            "installed)"
        )
    return f"has no {_WEIGHTS}; it holds {foreign.listed(names)}"


def _from_folder(path: Path, stack: ExitStack) -> Opened:
    """Open what Keras 3 saves with zipped=False: the members of a `.keras` file."""
    with files.reading(str(path)):
        if not (path / "config.json").is_file():
            foreign.refuse_folder(path)
        return _from_members(
            str(path),
            [item.name for item in path.iterdir()],
            lambda name: _parsed(path / name),
            lambda: open_weights(path / _WEIGHTS, stack),
        )


def _from_hdf5(file: hdf5.Hdf5) -> Opened:
    """Read a whole-model `.h5` file."""
    config = file.text(file.root, "model_config")
    if config is None:
        raise refusal(f"{file.place} {_without_config(file)}")
    about = {key: file.text(file.root, key) for key in ("keras_version", "backend")}
    data = _plain(config, f"{file.place}: model_config")
    opened = Opened(_model_json(data, file.place, about), file.place)
    if file.get(file.root, "model_weights") or "layer_names" in file.root["attributes"]:
        opened.open_weights = lambda: file
    else:
        opened.missing = (
            "holds a model_config, but no model_weights; it has the groups "
            f"{foreign.listed(file.root['members'])}"
        )
    return opened


def _without_config(file: hdf5.Hdf5) -> str:
    known = {"layers", "_layer_checkpoint_dependencies", "model_weights", "layer_0"}
    found = {name.split("\\")[0] for name in file.root["members"]}
    if found & known or {"layer_names", "nb_layers"} & {*file.root["attributes"]}:
        return (
            "holds weights, but no model_config. Give the model's JSON as source, and "
            "this file as weights."
        )
    return (
        "is an HDF5 file without model_config, so no Keras model; it has the groups "
        f"{foreign.listed(found)}."
    )


def open_weights(source: Any, stack: ExitStack) -> Weights:
    """Open a file of weights; the stack closes it.

    Raises:
        KerasFormatError: it holds no weights; what it is instead.
    """
    path = Path(source)
    kind, place = files.kind_of(path), str(path)
    if kind == "hdf5":
        return stack.enter_context(hdf5.open_hdf5(path, place))
    if kind == "folder":
        opened = _from_folder(path, stack)
        if opened.open_weights:
            return opened.open_weights()
        raise _no_weights(place, opened.missing)
    if kind == "json":
        return _weights_of_json(path)
    archive = stack.enter_context(files.open_zip(path))
    if _WEIGHTS in archive.names:
        return _zipped(archive, stack)
    if all(name.endswith(".npy") for name in archive.names):
        return files.NamedArrays(files.npz_arrays(archive), place, ordered=True)
    if "config.json" not in archive.names:
        foreign.refuse_zip(path, archive.names)
    raise _no_weights(place, _without_weights(archive.names))


def _no_weights(place: str, reason: str | None) -> KerasFormatError:
    return refusal(f"{place} {reason}. Pass as weights a file that holds the arrays.")


def _weights_of_json(path: Path) -> files.NamedArrays:
    data = _plain(_parsed(path), str(path))
    if tensorflow_js.is_tensorflow_js(data):
        return tensorflow_js.weights_of(data, path, str(path))
    if isinstance(data, Mapping) and "weight_map" in data:
        raise refusal(
            f"{path} lists the shards of weights that Keras saved with max_shard_size. "
            "Load them in Keras, and save one .weights.h5."
        )
    raise _no_weights(
        str(path), "is JSON, which describes a model and holds no weights"
    )
