"""Read weights of every era's files and put each array into its slot."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from course_lib.keras_models.files import (
    Stored,
    kind_of,
    npz_arrays,
    open_zip,
    stored,
)
from course_lib.keras_models.graph import KerasModel
from course_lib.keras_models.hdf5 import Group, Hdf5, open_hdf5
from course_lib.keras_models.layers.base import Layer
from course_lib.keras_models.slots import Slot, slots_of
from course_lib.keras_models.spec import KerasFormatError

LARGEST_UNTRAINED = 150_000_000  # parameters without a file; VGG16 has 138 million
Arrays = list[tuple[str, Stored]]


@dataclass(frozen=True)
class LayerArrays:
    """The arrays of one layer in a file, by the name that the file gives it."""

    name: str
    arrays: Arrays


def load_weights(model: KerasModel, source: Any, *, flipped: bool = False) -> None:
    """Fill a model that was built on the meta device from a file or list of arrays.

    Args:
        model: as `KerasModel.build` leaves it.
        source: a path, or a list of arrays in the order of Keras's `get_weights()`.
        flipped: the file's kernels are Theano's, to be turned by 180 degrees.

    Raises:
        KerasFormatError: arrays that don't fit, by layer, got and wanted.
    """
    filler = _Filler(model, flipped)
    if isinstance(source, list | tuple):
        filler.from_list(_arrays(source))
    else:
        _from_path(filler, Path(source))


def _from_path(filler: "_Filler", path: Path) -> None:
    if kind_of(path) != "zip":
        with open_hdf5(path, str(path)) as file:
            filler.from_hdf5(file)
        return
    with open_zip(path) as archive:
        if "model.weights.h5" not in archive:
            filler.from_npz(npz_arrays(archive), str(path))
            return
        with (
            archive.unpacked("model.weights.h5") as stream,
            open_hdf5(stream, str(path)) as file,
        ):
            filler.from_hdf5(file)


def _arrays(source: Iterable[Any]) -> Arrays:
    arrays = []
    for i, value in enumerate(source):
        if isinstance(value, torch.Tensor):
            value = value.detach().cpu().numpy()
        place = f"array {i} of weights"
        arrays.append((str(i), stored(np.asarray(value), place)))
    return arrays


class _Filler:
    """Finds the slot of each array."""

    def __init__(self, model: KerasModel, flipped: bool) -> None:
        self.model = model
        self.flipped = flipped
        self.slots = list(slots_of(model, (), flipped=flipped))

    # The forms of files

    def from_hdf5(self, file: Hdf5) -> None:
        """Read any HDF5 file that a Keras wrote."""
        root = file.get(file.root, "model_weights") or file.root
        names = file.strings(root, "layer_names")
        if names:
            groups = [self._group(file, root, name) for name in names]
            self._from_groups(file, groups)
        elif "nb_layers" in root["attributes"] or "graph" in root["members"]:
            self._from_hdf5_0(file, root)
        else:
            self._from_hdf5_3(file, root)

    def _group(self, file: Hdf5, root: Group, name: str) -> LayerArrays:
        group = file.get(root, name)
        if group is None:
            raise KerasFormatError(
                f"load_keras: {file.place} lists the layer {name!r}, but holds no "
                "such group."
            )
        weights = file.strings(group, "weight_names")
        return LayerArrays(name, [(w, file.array(group, w)) for w in weights])

    def _from_groups(self, file: Hdf5, groups: list[LayerArrays]) -> None:
        arrays = [array for group in groups for _, array in group.arrays]
        file.check_sizes(arrays)
        groups = [group for group in groups if group.arrays]
        owners = {
            name: child
            for name, child in self.model._modules.items()
            if any(True for _ in self._slots(child, name))
        }
        names = [group.name.replace(".", "_") for group in groups]
        if sorted(names) != sorted(owners):
            leaves = _by_leaf(self.slots)
            if set(names) <= set(leaves):  # a nested Sequential was written flat
                parts = [slot for name in names for slot in leaves[name]]
                if len(parts) == len(self.slots):
                    for group, name in zip(groups, names, strict=True):
                        self._match([leaves[name]], group.arrays, file.place)
                    return
            if len(names) != len(owners):
                raise KerasFormatError(
                    f"load_keras: {file.place} has weights for the layers "
                    f"{_list(names)}; the model's layers with weights are "
                    f"{_list(owners)}."
                )
            names = list(owners)  # renamed layers are taken in order, as in Keras
        for group, name in zip(groups, names, strict=True):
            slots = list(self._slots(owners[name], name))
            self._fill_layer(slots, group.arrays, file.place)

    def _slots(self, child: Any, name: str) -> Iterable[Slot]:
        return slots_of(child, (name,), flipped=self.flipped)

    def _fill_layer(self, slots: list[Slot], arrays: Arrays, place: str) -> None:
        """Fill a layer or a nested model, whose arrays may be named by inner layer."""
        by_name = _named_by_leaf(slots, arrays)
        orders = [slots, _frozen_last(slots)]
        if by_name is not None:
            orders.insert(0, by_name)
        elif len({slot.path for slot in slots}) > 1:
            orders.reverse()
        self._match(orders, arrays, place)

    def _from_hdf5_0(self, file: Hdf5, root: Group) -> None:
        """Read Keras 0.3's file: numbered layers with numbered arrays, or one graph."""
        arrays: Arrays = []
        names = ["graph"]
        if "graph" not in root["members"]:
            names = [f"layer_{i}" for i in range(file.count(root, "nb_layers"))]
        for name in names:
            group = file.get(root, name)
            if group is None:
                raise KerasFormatError(f"load_keras: {file.place} has no {name!r}.")
            for i in range(file.count(group, "nb_params")):
                arrays.append((f"{name}/{i}", file.array(group, f"param_{i}")))
        file.check_sizes([array for _, array in arrays])
        self.from_list(arrays, file.place)

    def _from_hdf5_3(self, file: Hdf5, root: Group) -> None:
        """Read Keras 3's file, whose paths follow the objects' attributes."""
        pairs: list[tuple[list[Slot], Arrays]] = []
        _walk_3(file, root, self.model, (), pairs, self.flipped)
        arrays = [array for _, found in pairs for _, array in found]
        file.check_sizes(arrays)
        for slots, found in pairs:
            self._match([slots], found, file.place)

    def from_npz(self, arrays: Arrays, place: str) -> None:
        """Read arrays in layer order; "003|dense_1|dense_1_b:0" also names the layer.

        An array that is there twice, by name and numbers, counts once.
        """
        parts = [name.split("|") for name, _ in arrays]
        if all(len(part) > 1 and part[0].isdigit() for part in parts):
            arrays = _without_repeats(
                [("|".join(p[1:]), a) for p, (_, a) in zip(parts, arrays, strict=True)]
            )
            named = _named_by_leaf(self.slots, arrays)
            if named is not None:
                self._match([named], arrays, place)
                return
        self.from_list(arrays, place)

    def from_list(self, arrays: Arrays, place: str = "the list of weights") -> None:
        """Fill in layer order, or with what isn't trained last, whichever fits.

        Keras 1 and 2 list a nested model's trained arrays before its others.
        """
        orders = [self.slots, self._by_child(), _frozen_last(self.slots)]
        if self.model.version < (2, 4) and not self.model.version.tf:
            orders[:2] = orders[1::-1]
        self._match(orders, arrays, place)

    def _by_child(self) -> list[Slot]:
        children = self.model._modules.items()
        return [
            slot
            for name, child in children
            for slot in _frozen_last(list(self._slots(child, name)))
        ]

    # Filling

    def _match(
        self, orders: Sequence[Sequence[Slot]], arrays: Arrays, place: str
    ) -> None:
        """Fill the first order of slots into which all arrays fit."""
        for slots in orders:
            pairs = list(zip(slots, arrays, strict=False))
            fits = all(array.shape in slot.shapes for slot, (_, array) in pairs)
            if fits and len(slots) == len(arrays):
                for slot, (_, array) in pairs:
                    materialize(slot.module, slot.attribute)
                    slot.fill(torch.from_numpy(np.ascontiguousarray(array.read())))
                return
        raise KerasFormatError(_misfit(orders[0], arrays, place))


def _misfit(slots: Sequence[Slot], arrays: Arrays, place: str) -> str:
    """Say which array does not fit, and what was wanted."""
    for slot, (name, array) in zip(slots, arrays, strict=False):
        if array.shape not in slot.shapes:
            wanted = " or ".join(map(str, slot.shapes))
            hint = ""
            if array.shape[::-1] in slot.shapes:
                hint = " It is transposed."
            return (
                f"load_keras: {place}: array {name!r} has shape {array.shape}; "
                f"{str(slot)!r} wants {wanted}.{hint}"
            )
    first = slots[min(len(arrays), len(slots) - 1)] if slots else "no layer"
    much = "few" if len(arrays) < len(slots) else "many"
    return (
        f"load_keras: {place}: too {much} arrays: got {len(arrays)}; wanted "
        f"{len(slots)}, up to {str(slots[-1] if slots else first)!r}"
        f"{f', and {str(first)!r} has none' if much == 'few' else ''}."
    )


def _frozen_last(slots: Sequence[Slot]) -> list[Slot]:
    """Order as Keras's Model.weights: what is trained, then what is not."""
    return sorted(slots, key=lambda slot: not slot.trainable)


def _by_leaf(slots: Sequence[Slot]) -> dict[str, list[Slot]]:
    leaves: dict[str, list[Slot]] = {}
    for slot in slots:
        leaves.setdefault(slot.path[-1] if slot.path else "", []).append(slot)
    return leaves


def _named_by_leaf(slots: Sequence[Slot], arrays: Arrays) -> list[Slot] | None:
    """Return the slots in the order of the arrays, where their names tell the layer.

    "dense_5/kernel:0", "dense_5_W:0", "dense_5|dense_5.kernel:0" and
    "model/dense_5/kernel" are all of layer dense_5.
    """
    leaves = {name: list(group) for name, group in _by_leaf(slots).items()}
    if len({slot.path for slot in slots}) != len(leaves):
        return None  # two nested models have layers of one name
    ordered = []
    for name, _ in arrays:
        leaf = _leaf_of(name, leaves)
        if leaf is None or not leaves[leaf]:
            return None
        ordered.append(leaves[leaf].pop(0))
    return ordered if not any(leaves.values()) else None


def _leaf_of(name: str, leaves: dict[str, list[Slot]]) -> str | None:
    parts = re.split(r"[/|.]", name)
    for part in parts[:-1]:
        if part in leaves:
            return part
    last = parts[-1]
    found = [leaf for leaf in leaves if last.startswith(f"{leaf}_")]
    return max(found, key=len, default=None)


def _without_repeats(arrays: Arrays) -> Arrays:
    """Drop arrays that an earlier one repeats in name and numbers."""
    seen: dict[str, Stored] = {}
    kept = []
    for name, array in arrays:
        twin = seen.get(name)
        if twin is None or not np.array_equal(twin.read(), array.read()):
            kept.append((name, array))
        seen.setdefault(name, array)
    return kept


def _list(names: Iterable[str]) -> str:
    names = list(names)
    text = ", ".join(map(repr, names[:12]))
    return text + (", ..." if len(names) > 12 else "") if names else "none"


# Keras 3


def _walk_3(
    file: Hdf5,
    group: Group | None,
    module: Any,
    path: tuple[str, ...],
    pairs: list,
    flipped: bool,
) -> None:
    """Pair the slots of a module with the arrays of its group, and so on inside."""
    if isinstance(module, KerasModel):
        inside = _layers_group(file, group)
        names = _group_names(file, inside, module)
        for name, child in module._modules.items():
            deeper = file.get(inside, names[name])
            _walk_3(file, deeper, child, (*path, name), pairs, flipped)
        return
    for attribute, inner in _inner_3(module):
        deeper = file.get(group, attribute)
        _walk_3(file, deeper, inner, path, pairs, flipped)
    slots = [
        slot
        for slot in slots_of(module, path, flipped=flipped)
        if not module.sublayers()
    ]
    if not slots:
        return
    stored = _vars(file, group)
    if stored is None:
        raise KerasFormatError(
            f"load_keras: {file.place} has no arrays for layer {'/'.join(path)!r}."
        )
    pairs.append((slots, stored))


def _layers_group(file: Hdf5, group: Group | None) -> Group | None:
    for name in ("layers", "_layer_checkpoint_dependencies"):
        inside = file.get(group, name)
        if inside is not None:
            return inside
    return None


def _inner_3(module: Layer) -> list[tuple[str, Any]]:
    """Return the wrapped layers under the attributes that name them in the file."""
    inner = module.sublayers()
    names = ("forward_layer", "backward_layer") if len(inner) == 2 else ("layer",)
    return list(zip(names, inner, strict=False))


def _vars(file: Hdf5, group: Group | None) -> Arrays | None:
    """Return the numbered arrays of a layer, or of its cell."""
    for place in ("vars", "cell/vars"):
        inside = file.get(group, place)
        names = [n for n in (inside or {}).get("members", {}) if n.isdigit()]
        if not names:
            continue
        names.sort(key=int)
        return [(f"{place}/{n}", file.array(inside, n)) for n in names]
    return None


def _group_names(file: Hdf5, inside: Group | None, model: KerasModel) -> dict[str, str]:
    """Return the group of each layer: by its own name, or by counting its class.

    A file counts the classes in the order of the model's layers: dense, dense_1. Newer
    ones also write each layer's name.
    """
    counted: dict[str, int] = {}
    names = {}
    for name, child in model._modules.items():
        base = _snake(child.keras_class)
        number = counted.get(base, 0)
        counted[base] = number + 1
        names[name] = f"{base}_{number}" if number else base
    if inside is None:
        return names
    written = {}
    for group_name in inside.get("members", {}):
        variables = file.get(inside, f"{group_name}/vars")
        own = variables and file.text(variables, "name")
        if own:
            written[own] = group_name
    if set(written) >= {n for n, c in model._modules.items() if _has_slots(c)}:
        return {**names, **written}
    return names


def _has_slots(module: Any) -> bool:
    return any(True for _ in slots_of(module, ()))


def _snake(name: str) -> str:
    """Turn a class name into Keras's snake case: Conv2DTranspose, conv2d_transpose."""
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


# Memory


def materialize(module: nn.Module, attribute: str) -> None:
    """Give a tensor that is still on the meta device memory of its own."""
    old = getattr(module, attribute)
    if not old.is_meta:
        return
    if attribute in module._parameters:
        new = torch.empty(old.shape, dtype=old.dtype)
        parameter = nn.Parameter(new, requires_grad=old.requires_grad)
        module._parameters[attribute] = parameter
    else:
        module._buffers[attribute] = torch.empty(old.shape, dtype=old.dtype)


def initialize_rest(model: KerasModel) -> None:
    """Fill what no file has filled: constants, and weights by their initializers.

    Raises:
        KerasFormatError: so many parameters that only a mistake asks for them.
    """
    layers = [m for m in model.modules() if isinstance(m, Layer)]
    rest = [
        (layer, variable)
        for layer in layers
        for variable in layer.variables.values()
        if getattr(layer, variable.attribute).is_meta
    ]
    count = sum(getattr(layer, v.attribute).numel() for layer, v in rest)
    if count > LARGEST_UNTRAINED:
        raise KerasFormatError(
            f"load_keras: the model has {count:,} parameters, and no weights are given "
            f"for them. Without, at most {LARGEST_UNTRAINED:,} are made; pass weights=."
        )
    for layer, variable in rest:
        materialize(layer, variable.attribute)
        with torch.no_grad():
            view = variable.view(getattr(layer, variable.attribute))
            if variable.value is not None:
                view.copy_(torch.from_numpy(np.asarray(variable.value)))
            elif variable.initializer is not None:
                variable.initializer(view)
