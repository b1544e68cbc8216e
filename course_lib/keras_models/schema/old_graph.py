"""The Graph of Keras 0.3 and 1.0: named inputs, nodes and outputs."""

from collections.abc import Mapping
from typing import Any

from course_lib.keras_models.schema import keras_1
from course_lib.keras_models.schema.draft import Draft, as_mapping, as_name
from course_lib.keras_models.spec import LayerSpec, Ref

Config = Mapping[str, Any]


def add_old_graph(
    draft: Draft, config: Config, layers: Mapping[str, LayerSpec]
) -> None:
    """Add all inputs, nodes with their layers, and outputs."""
    for entry in _entries(draft, config, "input_config"):
        shape = entry.get("batch_input_shape")
        if shape is None and isinstance(entry.get("input_shape"), list):
            shape = [None, *entry["input_shape"]]
        draft.add_input(_name_of(draft, entry), shape, entry.get("dtype"))
    for entry in _entries(draft, config, "node_config"):
        name = _name_of(draft, entry)
        if name not in layers:
            raise draft.error(f"its nodes have no layer {name!r}")
        draft.add(layers[name])
        draft.call(name, _inputs_of(draft, entry))
    for entry in _entries(draft, config, "output_config"):
        draft.output_names.append(_name_of(draft, entry))
        draft.outputs.append(_inputs_of(draft, entry)[0])
    if not draft.outputs:
        raise draft.error("it has no outputs")
    _reorder(draft, config)


def _reorder(draft: Draft, config: Config) -> None:
    """Put inputs and outputs into the order that the file lists."""
    order = config.get("output_order")
    if isinstance(order, list) and sorted(map(str, order)) == sorted(
        draft.output_names
    ):
        found = dict(zip(draft.output_names, draft.outputs, strict=True))
        draft.output_names = [str(name) for name in order]
        draft.outputs = [found[name] for name in draft.output_names]
    order = config.get("input_order")
    if isinstance(order, list) and all(isinstance(name, str) for name in order):
        places = {name: i for i, name in enumerate(order)}
        draft.inputs.sort(key=lambda ref: places.get(ref.layer, 0))


def _entries(draft: Draft, config: Config, key: str) -> list[Config]:
    value = config.get(key)
    if not isinstance(value, list):
        raise draft.error(f"got {key}={value!r:.60}; wanted a list")
    return [as_mapping(entry, key) for entry in value]


def _name_of(draft: Draft, entry: Config) -> str:
    name = as_name(entry.get("name"))
    if name is None:
        raise draft.error(f"an entry has the name {entry.get('name')!r:.60}")
    return name


def _inputs_of(draft: Draft, entry: Config) -> tuple[Ref, ...]:
    """Return the inputs of a node: one, after a merge of several, or several joined."""
    single, several = entry.get("input"), entry.get("inputs")
    names = several if isinstance(several, list) and several else [single]
    refs = []
    for name in names:
        if not isinstance(name, str) or name not in draft.layers:
            raise draft.error(
                f"{_name_of(draft, entry)!r} takes its input from {name!r:.60}, which "
                "is no input or earlier node"
            )
        refs.append(Ref(name, 0, 0))
    mode = entry.get("merge_mode", "concat")
    if len(refs) == 1 or mode == "join":
        return tuple(refs)
    name = f"{_name_of(draft, entry)}_merge"
    options = {key: entry.get(key, -1) for key in ("concat_axis", "dot_axes")}
    kind, merge = keras_1.merge({"name": name, "mode": mode, **options})
    draft.add(LayerSpec(name, kind, merge, "Merge"))
    return (draft.call(name, tuple(refs)),)
