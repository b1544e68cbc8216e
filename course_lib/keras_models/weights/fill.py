"""Read weights of every era's files and put each array into its slot."""

import re
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import chain, groupby
from typing import Any

import numpy as np
import torch
from torch import nn

from course_lib.keras_models.graph.model import KerasModel
from course_lib.keras_models.initializers import Unknown
from course_lib.keras_models.layers.base import Layer
from course_lib.keras_models.layers.window import use_theano
from course_lib.keras_models.source.files import Arrays, NamedArrays, Stored
from course_lib.keras_models.source.foreign import listed
from course_lib.keras_models.source.hdf5 import Group, Hdf5
from course_lib.keras_models.spec import refusal
from course_lib.keras_models.weights.keras_3 import pairs_of
from course_lib.keras_models.weights.naming import check_renamed
from course_lib.keras_models.weights.origin import Origin
from course_lib.keras_models.weights.slots import Slot, common_layouts, slots_of

LARGEST_UNTRAINED = 150_000_000  # parameters without a file; VGG16 has 138 million
Weights = Hdf5 | NamedArrays | Sequence[Any]
Slots = Sequence[Slot]
_SIDE = re.compile(r"(?:^|[/|.])(forward|backward)_")


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
        try:
            array = np.asarray(value)
        except ValueError as error:
            raise refusal(
                f"{place} is no table of numbers; wanted an array, or lists of which "
                "all have the same length."
            ) from error
        load = partial(np.asarray, array)
        arrays.append((str(i), Stored(array.shape, array.dtype, place, load)))
    return arrays


class _Filler:
    """Finds the slot of each array."""

    def __init__(self, model: KerasModel, origin: Origin) -> None:
        self.model = model
        self.origin = origin
        self.slots = list(slots_of(model, (), origin))

    def from_hdf5(self, file: Hdf5) -> None:
        """Read any HDF5 file that a Keras wrote."""
        root = file.get(file.root, "model_weights") or file.root
        names = file.strings(root, "layer_names")
        if names:
            self.origin = self.origin.of_file(file, root)
            self.slots = list(slots_of(self.model, (), self.origin))
            groups = {name: _arrays_of_group(file, root, name) for name in names}
            file.check_sizes(chain(*groups.values()))
            self._from_groups({n: a for n, a in groups.items() if a}, file.place)
        elif "nb_layers" in root["attributes"] or "graph" in root["members"]:
            arrays = _arrays_of_keras_0(file, root)
            file.check_sizes(arrays)
            self.from_list(arrays, file.place)
        else:
            pairs = list(pairs_of(file, root, self.model))
            file.check_sizes(chain(*(found for _, found in pairs)))
            for slots, found in pairs:
                _fill([slots], found, file.place)

    def _from_groups(self, groups: dict[str, Arrays], place: str) -> None:
        """Read the arrays of each layer or nested model, by its name or its place."""
        names = [name.replace(".", "_") for name in groups]
        owners = {n: s for n in self.model._modules if (s := self._slots_of_child(n))}
        if sorted(names) != sorted(owners):
            leaves = _by_leaf(self.slots)
            is_flat = {*names} <= {*leaves}  # a nested Sequential was written so
            if is_flat and sum(len(leaves[n]) for n in names) == len(self.slots):
                for name, arrays in zip(names, groups.values(), strict=True):
                    _fill(_orders_in_layer(leaves[name], arrays), arrays, place)
                return
            if len(names) != len(owners):
                raise refusal(
                    f"{place} has weights for the layers {listed(names)}; the model's "
                    f"layers with weights are {listed(owners)}."
                )
            check_renamed(dict(zip(owners, names, strict=True)), place)
            names = list(owners)  # in order, as in Keras
        for name, arrays in zip(names, groups.values(), strict=True):
            slots = owners[name]
            if len(slots) != len(arrays):  # see slots_of
                slots = self._slots_of_child(name, joined=True)
            _fill(_orders_in_layer(slots, arrays), arrays, place)

    def _slots_of_child(self, name: str, *, joined: bool = False) -> list[Slot]:
        child = self.model._modules[name]
        return list(slots_of(child, (name,), self.origin, joined=joined))

    def from_npz(self, arrays: Arrays, place: str) -> None:
        """Read arrays in layer order; "003|dense_1|dense_1_b:0" also names the layer.

        An array that is there twice, by name and numbers, counts once.
        """
        named = None
        numbered = [(name.partition("|"), array) for name, array in arrays]
        if all(mark and number.isdigit() for (number, mark, _), _ in numbered):
            arrays = _without_repeats([(name, a) for (*_, name), a in numbered])
            named = _named_by_leaf(self.slots, arrays)
        _fill([named] if named else self._orders(), arrays, place)

    def from_named(self, arrays: Arrays, place: str) -> None:
        """Read arrays whose names show the layer, or that fit in one order alone."""
        named = _named_by_leaf(self.slots, arrays)
        orders = [named] if named else self._orders()
        fitting = [slots for slots in orders if common_layouts(slots, arrays)]
        if any(slots != fitting[0] for slots in fitting[1:]):
            raise refusal(
                f"{place} has arrays whose names, such as {arrays[0][0]!r:.80}, are "
                "not those of layers, and they fit in several orders. Pass the arrays "
                "as a list in Keras's order."
            )
        _fill(orders, arrays, place)

    def from_list(self, arrays: Arrays, place: str = "the list of weights") -> None:
        """Fill in layer order, or with what isn't trained last, whichever fits."""
        _fill(self._orders(), arrays, place)

    def _orders(self) -> list[Slots]:
        """Return the orders in which a list may be.

        Up to 2.3 each layer lists its trained weights first, also a nested model,
        keras 2.2.4 keras/engine/network.py#L483; later the whole model does so,
        keras v2.15.0 keras/engine/training.py#L3445, and each innermost layer, keras
        v2.15.0 keras/engine/base_layer.py#L1349; in Keras 3 they come as they were
        made, keras v3.15.1 keras/src/layers/layer.py#L712.
        """
        by_child = [
            slot
            for name in self.model._modules
            for slot in _frozen_last(self._slots_of_child(name))
        ]
        version = self.model.version
        by_layer = self.slots if version >= (3, 0) else _frozen_last_of_each(self.slots)
        orders = [by_layer, by_child]
        if version < (2, 4) and not version.tf:
            orders.reverse()
        return [*orders, _frozen_last(self.slots)]


def _arrays_of_group(file: Hdf5, root: Group, name: str) -> Arrays:
    group = file.get(root, name)
    if group is None:
        raise refusal(
            f"{file.place} lists the layer {name!r}, but holds no such group."
        )
    return [(w, file.array(group, w)) for w in file.strings(group, "weight_names")]


def _arrays_of_keras_0(file: Hdf5, root: Group) -> Arrays:
    """Read 0.3's file: numbered layers with numbered arrays, or one graph."""
    names = ["graph"]
    if "graph" not in root["members"]:
        names = [f"layer_{i}" for i in range(file.count(root, "nb_layers"))]
    arrays: Arrays = []
    for name in names:
        group = file.get(root, name)
        if group is None:
            raise refusal(f"{file.place} has no {name!r}.")
        for i in range(file.count(group, "nb_params")):
            arrays.append((f"{name}/{i}", file.array(group, f"param_{i}")))
    return arrays


def _orders_in_layer(slots: list[Slot], arrays: Arrays) -> list[Slots]:
    """Return the orders for a layer or a nested model, by inner layer if named so."""
    ordered = _frozen_last(slots)
    return [_named_by_leaf(slots, arrays) or ordered, ordered, slots]


def _fill(orders: Iterable[Slots], arrays: Arrays, place: str) -> None:
    """Fill the first order of slots into which all arrays fit."""
    orders = list(orders)
    for slots in (_on_named_sides(order, arrays) for order in orders):
        layouts = common_layouts(slots, arrays)
        if layouts is None:
            continue
        for slot, (_, array), layout in zip(slots, arrays, layouts, strict=True):
            _allocate(slot.module, slot.attribute)
            numbers = torch.from_numpy(np.asarray(array.read(), order="C"))
            slot.fill(numbers, layout)
        return
    raise refusal(f"{place}: {_misfit(orders[0], arrays)}")


def _misfit(slots: Slots, arrays: Arrays) -> str:
    """Say which array does not fit, and what was wanted."""
    for slot, (name, array) in zip(slots, arrays, strict=False):
        if array.shape not in slot.shapes:
            wanted = " or ".join(map(str, slot.shapes))
            hint = " It is transposed." if array.shape[::-1] in slot.shapes else ""
            return (
                f"array {name!r} has shape {array.shape}; {str(slot)!r} wants "
                f"{wanted}.{hint}"
            )
    text = f"arrays: got {len(arrays)}; wanted {len(slots)}"
    last = str(slots[-1]) if slots else "no layer"
    if len(arrays) > len(slots):
        return f"too many {text}, up to {last!r}."
    return f"too few {text}, up to {last!r}, and {str(slots[len(arrays)])!r} has none."


def _frozen_last(slots: Slots) -> list[Slot]:
    """Order as Keras's Model.weights: what is trained, then what is not."""
    return sorted(slots, key=lambda slot: not slot.tensor.requires_grad)


def _frozen_last_of_each(slots: Slots) -> list[Slot]:
    """Order each layer for itself."""
    layers = groupby(slots, key=lambda slot: slot.path)
    return [slot for _, layer in layers for slot in _frozen_last([*layer])]


def _by_leaf(slots: Slots) -> dict[str, list[Slot]]:
    leaves: dict[str, list[Slot]] = {}
    for slot in _frozen_last(slots):
        leaves.setdefault(slot.path[-1] if slot.path else "", []).append(slot)
    return leaves


def _named_by_leaf(slots: Slots, arrays: Arrays) -> list[Slot] | None:
    """Return the slots in the order of the arrays, where their names show the layer.

    "dense_5/kernel:0", "dense_5_W:0", "dense_5|dense_5.kernel:0" and
    "model/dense_5/kernel" are all of layer dense_5.
    """
    leaves = _by_leaf(slots)
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
    *parents, last = re.split(r"[/|.]", name)
    for part in parents:
        if part in leaves:
            return part
    found = [leaf for leaf in leaves if last.startswith(f"{leaf}_")]
    return max(found, key=len, default=None)


def _on_named_sides(slots: Slots, arrays: Arrays) -> Slots:
    """Exchange the halves of a bidirectional layer where the arrays' names say so.

    One that was frozen after it was made lies behind the other in the file, and in
    Keras 2 the config does not tell.
    """
    if len(slots) != len(arrays):
        return slots
    found = list(slots)
    for path in {slot.path for slot in slots if slot.side}:
        rest = [slot for slot in slots if slot.path == path]
        for i, (name, _) in enumerate(arrays):
            if slots[i].path == path:
                side = (_SIDE.findall(name) or [""])[-1]
                fitting = [slot for slot in rest if side in ("", slot.side)]
                if not fitting:
                    return slots
                rest.remove(fitting[0])
                found[i] = fitting[0]
    return found


def _without_repeats(arrays: Arrays) -> Arrays:
    """Drop arrays that an earlier one repeats in name and numbers."""
    seen: dict[str, Stored] = {}
    kept = []
    for name, array in arrays:
        twin = seen.setdefault(name, array)
        if twin is array or not np.array_equal(twin.read(), array.read()):
            kept.append((name, array))
    return kept


def _allocate(module: nn.Module, attribute: str) -> None:
    """Allocate a tensor that is still on the meta device."""
    old = getattr(module, attribute)
    if old.is_meta:
        new = torch.empty(old.shape, dtype=old.dtype)  # empty_like is slow from meta
        if isinstance(old, nn.Parameter):
            new = nn.Parameter(new, requires_grad=old.requires_grad)
        setattr(module, attribute, new)


def _initialize_rest(model: KerasModel) -> None:
    """Fill what no file has filled: constants, and weights by their initializers."""
    rest = [
        (layer, variable)
        for layer in model.modules()
        if isinstance(layer, Layer)
        for variable in layer.variables.values()
        if getattr(layer, variable.attribute).is_meta
    ]
    count = sum(getattr(layer, v.attribute).numel() for layer, v in rest)
    if count > LARGEST_UNTRAINED:
        raise refusal(
            f"the model has {count:,} parameters, and no weights are given for them. "
            f"Without, at most {LARGEST_UNTRAINED:,} are made; pass weights=."
        )
    unknown = [
        v.initializer.problem for _, v in rest if isinstance(v.initializer, Unknown)
    ]
    if unknown:
        raise refusal(" ".join(dict.fromkeys(unknown)))
    for layer, variable in rest:
        _allocate(layer, variable.attribute)
        with torch.no_grad():
            view = variable.view(getattr(layer, variable.attribute))
            if variable.value is not None:
                view.copy_(torch.from_numpy(np.asarray(variable.value)))
            elif variable.initializer is not None:
                variable.initializer(view)
