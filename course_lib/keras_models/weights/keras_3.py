"""Weights as Keras 3 saves them, and tf.keras since 2.12: a tree of objects.

The groups follow the attributes of the objects. A model's layers lie under "layers",
by their class and a count: dense, dense_1. Source: `saving_lib.py` of Keras 3.
"""

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from course_lib.keras_models.graph.model import KerasModel
from course_lib.keras_models.source.files import Arrays
from course_lib.keras_models.source.foreign import listed
from course_lib.keras_models.source.hdf5 import Group, Hdf5
from course_lib.keras_models.spec import refusal
from course_lib.keras_models.weights.naming import check_renamed
from course_lib.keras_models.weights.slots import Slot, slots_of

Pair = tuple[list[Slot], Arrays]
# In tf.keras 2.12 to 2.14 it is visited before "layers", and lists each layer with
# weights twice, once by its place among those. Source: `_layer_checkpoint_dependencies`
# in keras/engine/functional.py at v2.13.1.
_TWICE = "_layer_checkpoint_dependencies"


def pairs_of(file: Hdf5, root: Group, model: KerasModel) -> Iterator[Pair]:
    """Yield the slots of each layer, with the arrays that belong into them.

    Raises:
        KerasFormatError: a layer without arrays, or arrays without a layer.
    """
    _split_names(file, root)
    if not {"layers", _TWICE} & {*root["members"]} and _has_slots(model):
        raise refusal(
            f"{file.place} holds no weights that Keras saved: neither 'layers' nor "
            f"layer_names; it has the groups {listed(root['members'])}."
        )
    yield from _Walk(file).model(root, model, ())


class _Walk:
    """Goes through a model and the groups of a file side by side."""

    def __init__(self, file: Hdf5) -> None:
        self.file = file

    def model(
        self, group: Group | None, model: KerasModel, path: tuple[str, ...]
    ) -> Iterator[Pair]:
        inside, twice = self.file.get(group, "layers"), self.file.get(group, _TWICE)
        if twice is not None:
            inside = twice
        names = self.names(inside, model, doubled=twice is not None)
        self.check_rest(inside, names, model, path)
        for name, child in model._modules.items():
            deeper = self.file.get(inside, names[name])
            yield from self.child(deeper, child, (*path, name), inside)

    def child(
        self, group: Group | None, module: Any, path: tuple[str, ...], around: Any
    ) -> Iterator[Pair]:
        if isinstance(module, KerasModel):
            yield from self.model(group, module, path)
            return
        parts = module.sublayers()
        for name, part in zip(module.group_names, parts, strict=False):
            # tf.keras's are private: _query_dense
            deeper = self.file.get(group, name) or self.file.get(group, f"_{name}")
            yield from self.child(deeper, part, path, group)
        slots = list(slots_of(module, path))
        if parts:
            slots = [slot for slot in slots if slot.module is module]
        if not slots:
            return
        arrays = self.arrays(group)
        if not arrays:
            raise refusal(
                f"{self.file.place} has no arrays for layer {'/'.join(path)!r}; the "
                f"groups there are {listed((around or {}).get('members', {}))}."
            )
        # SpectralNormalization lists the wrapped kernel once more, before its vector.
        yield slots, arrays[-len(slots) :] if parts else arrays

    def arrays(self, group: Group | None) -> Arrays:
        """Return the numbered arrays of a layer, or of its cell."""
        for place in ("vars", "cell/vars"):
            inside = self.file.get(group, place)
            names = [n for n in (inside or {}).get("members", {}) if n.isdigit()]
            if inside is not None and names:
                names.sort(key=int)
                return [(f"{place}/{n}", self.file.array(inside, n)) for n in names]
        return []

    def names(
        self, inside: Group | None, model: KerasModel, *, doubled: bool
    ) -> dict[str, str]:
        """Return the group of each layer: by its own name, or by counting its class.

        A file counts the classes in the order of the model's layers. Newer ones also
        write each layer's name.
        """
        counted = _counted(model)
        if inside is None:
            return counted
        if doubled:
            return _nth_groups(inside, counted)
        written = {}  # by group
        for group in inside["members"]:
            variables = self.file.get(inside, f"{group}/vars")
            own = variables and self.file.text(variables, "name")
            if own:
                written[group] = own
        known = [name for name, child in model._modules.items() if _has_slots(child)]
        if {*known} <= {*written.values()}:
            return {**counted, **{own: group for group, own in written.items()}}
        pairs = {n: written[counted[n]] for n in known if counted[n] in written}
        check_renamed(pairs, self.file.place)
        return counted

    def check_rest(
        self,
        inside: Group | None,
        names: dict[str, str],
        model: KerasModel,
        path: tuple[str, ...],
    ) -> None:
        """Refuse arrays of layers that the model does not have."""
        members = (inside or {}).get("members", {})
        rest = [name for name in members if name not in set(names.values())]
        rest = [name for name in rest if self.arrays(self.file.get(inside, name))]
        if rest:
            where = f" of {'/'.join(path)!r}" if path else ""
            raise refusal(
                f"{self.file.place} has arrays for layers that the model does not "
                f"have: {listed(rest)}; its layers with weights{where} are "
                f"{listed(n for n, c in model._modules.items() if _has_slots(c))}."
            )


def _counted(model: KerasModel) -> dict[str, str]:
    """Return the group of each layer: dense, dense_1, ..."""
    counts = Counter()
    names = {}
    for name, child in model._modules.items():
        base = _snake(child.keras_class)
        names[name] = f"{base}_{counts[base]}" if counts[base] else base
        counts[base] += 1
    return names


def _nth_groups(inside: Group, counted: dict[str, str]) -> dict[str, str]:
    """Return the group of each layer where a file counts some of them twice.

    Each layer has one group all the same, so the third Dense has the third of those.
    """
    groups: dict[str, list[tuple[int, str]]] = {}
    for name in inside["members"]:
        base, number = _numbered(name)
        groups.setdefault(base, []).append((number, name))
    names = {}
    for layer, name in counted.items():
        base, number = _numbered(name)
        found = sorted(groups.get(base, []))
        names[layer] = found[number][1] if number < len(found) else name
    return names


def _numbered(name: str) -> tuple[str, int]:
    """Split dense_12 into dense and 12.

    >>> _numbered("dense_12"), _numbered("dense")
    (('dense', 12), ('dense', 0))
    """
    base, _, number = name.rpartition("_")
    good = number.isdecimal() and number.isascii() and len(number) < 10
    return (base, int(number)) if base and good else (name, 0)


def _split_names(file: Hdf5, root: Group) -> None:
    r"""Make a tree of groups that Windows joined by a backslash: "layers\dense".

    Source: `tf.io.gfile.join` in keras/saving/saving_lib.py at v2.15.0.
    """
    joined = {n: place for n, place in root["members"].items() if "\\" in n}
    for name, place in joined.items():
        *parents, last = name.split("\\")
        group = root
        for part in parents:
            deeper = file.get(group, part)
            if deeper is None:
                deeper = file.add_group(group, part)
            group = deeper
        if isinstance(group.get("members"), dict):
            group["members"].setdefault(last, place)


def _has_slots(module: Any) -> bool:
    return any(True for _ in slots_of(module, ()))


def _snake(name: str) -> str:
    """Turn a class name into Keras's snake case: Conv2DTranspose, conv2d_transpose."""
    name = re.sub(r"\W+", "", name.rpartition(">")[2])
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()
