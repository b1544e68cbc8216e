"""Read weights of every era's files and put each array into its slot."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from course_lib.keras_models.graph.model import KerasModel
from course_lib.keras_models.initializers import Unknown
from course_lib.keras_models.layers.base import Layer
from course_lib.keras_models.layers.window import use_theano
from course_lib.keras_models.source.files import Arrays, NamedArrays, Stored, stored
from course_lib.keras_models.source.hdf5 import Group, Hdf5
from course_lib.keras_models.spec import KerasFormatError
from course_lib.keras_models.weights.keras_3 import pairs_of
from course_lib.keras_models.weights.naming import check_renamed
from course_lib.keras_models.weights.origin import Origin
from course_lib.keras_models.weights.slots import Slot, common_layouts, slots_of

LARGEST_UNTRAINED = 150_000_000  # parameters without a file; VGG16 has 138 million


@dataclass(frozen=True)
class LayerArrays:
    """The arrays of one layer in a file, by the name that the file gives it."""

    name: str
    arrays: Arrays


Weights = Hdf5 | NamedArrays | Sequence[Any]


def fill_model(model: KerasModel, source: Weights | None, origin: Origin) -> None:
    """Fill a model that is on the meta device, from a file or a list of arrays.

    What no file fills is filled with its constant or by its initializer.

    Args:
        model: with all its variables.
        source: an open file, or a list of arrays in the order of `get_weights()`.
        origin: who wrote the arrays, where the file does not say.

    Raises:
        KerasFormatError: arrays that don't fit, by layer, got and wanted; so many
            parameters without arrays that only a mistake asks for them.
    """
    if source is not None:
        filler = _Filler(model, origin)
        if isinstance(source, list | tuple):
            filler.from_list(_arrays(source))
        elif isinstance(source, Hdf5):
            filler.from_hdf5(source)
        elif source.ordered:
            filler.from_npz(source.arrays, source.place)
        else:
            filler.from_named(source.arrays, source.place)
        origin = filler.origin
    if origin.theano:
        use_theano(model.modules())
    _initialize_rest(model)


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

    def __init__(self, model: KerasModel, origin: Origin) -> None:
        self.model = model
        self.origin = origin
        self.slots = list(slots_of(model, (), origin))

    # The forms of files

    def from_hdf5(self, file: Hdf5) -> None:
        """Read any HDF5 file that a Keras wrote."""
        root = file.get(file.root, "model_weights") or file.root
        names = file.strings(root, "layer_names")
        if names:
            self.origin = self.origin.of_file(file, root)
            self.slots = list(slots_of(self.model, (), self.origin))
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
            check_renamed(dict(zip(owners, names, strict=True)), file.place)
            names = list(owners)  # in order, as in Keras
        for group, name in zip(groups, names, strict=True):
            slots = list(self._slots(owners[name], name))
            if len(slots) != len(group.arrays):  # see slots_of
                slots = list(slots_of(owners[name], (name,), self.origin, joined=True))
            self._fill_layer(slots, group.arrays, file.place)

    def _slots(self, child: Any, name: str) -> Iterable[Slot]:
        return slots_of(child, (name,), self.origin)

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
        pairs = list(pairs_of(file, root, self.model))
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

    def from_named(self, arrays: Arrays, place: str) -> None:
        """Read arrays that names tell the layer of, or that fit in one order alone."""
        named = _named_by_leaf(self.slots, arrays)
        orders = [named] if named else self._orders()
        fitting = [slots for slots in orders if _fits(slots, arrays)]
        if any(slots != fitting[0] for slots in fitting[1:]):
            raise KerasFormatError(
                f"load_keras: {place} has arrays whose names, such as "
                f"{arrays[0][0]!r:.80}, are not those of layers, and they fit in "
                "several orders. Pass the arrays as a list in Keras's order."
            )
        self._match(orders, arrays, place)

    def from_list(self, arrays: Arrays, place: str = "the list of weights") -> None:
        """Fill in layer order, or with what isn't trained last, whichever fits.

        Keras 1 and 2 list a nested model's trained arrays before its others.
        """
        self._match(self._orders(), arrays, place)

    def _orders(self) -> list[list[Slot]]:
        orders = [self.slots, self._by_child(), _frozen_last(self.slots)]
        # keras 2.2.4 keras/engine/network.py#L483, keras v2.15.0
        # keras/engine/training.py#L3445
        if self.model.version < (2, 4) and not self.model.version.tf:
            orders[:2] = orders[1::-1]
        return orders

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
            layouts = common_layouts(slots, [array.shape for _, array in arrays])
            if layouts is None:
                continue
            for slot, (_, array), layout in zip(slots, arrays, layouts, strict=True):
                materialize(slot.module, slot.attribute)
                numbers = torch.from_numpy(np.asarray(array.read(), order="C"))
                slot.fill(numbers, layout)
            return
        raise KerasFormatError(_misfit(orders[0], arrays, place))


def _fits(slots: Sequence[Slot], arrays: Arrays) -> bool:
    return common_layouts(slots, [array.shape for _, array in arrays]) is not None


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


def _initialize_rest(model: KerasModel) -> None:
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
    unknown = [
        v.initializer.problem for _, v in rest if isinstance(v.initializer, Unknown)
    ]
    if unknown:
        raise KerasFormatError(f"load_keras: {' '.join(dict.fromkeys(unknown))}")
    for layer, variable in rest:
        materialize(layer, variable.attribute)
        with torch.no_grad():
            view = variable.view(getattr(layer, variable.attribute))
            if variable.value is not None:
                view.copy_(torch.from_numpy(np.asarray(variable.value)))
            elif variable.initializer is not None:
                variable.initializer(view)
