"""Which masks a call takes, and which its results have, as each Keras has it.

A mask is None where there is none, the place of a tensor, or in words why it can't be
known, which is raised where a layer needs it.
"""

from typing import Any

from course_lib.keras_models.graph.walk import Mask, MaskPlaces, Nested, Tape, Value
from course_lib.keras_models.layers.base import accepts_mask
from course_lib.keras_models.spec import Version


def check_mask_allowed(module: Any, mask: Mask, version: Version) -> None:
    """Refuse a mask where Keras does: 1 and 2 ask the layer whether it supports one.

    keras 1.2.2 keras/engine/topology.py#L650 and keras 2.1.0
    keras/engine/topology.py#L732 raise an error; tf.keras and Keras 3 drop the mask,
    keras v2.15.0 keras/engine/base_layer.py#L2873.
    """
    if not (version.is_new or mask is None or accepts_mask(module)):
        raise ValueError(
            f"a mask reaches it, and Keras {version} refuses such a call. If another "
            "version made the file, name it: keras_version=..."
        )


def masks_of_call(
    inputs: list[Value], given: list[Value | None], is_list: bool, version: Version
) -> tuple[list[Mask], list[Mask]]:
    """Return the inputs' masks for the call, and those that say what leaves it.

    A mask that the file gives to the call replaces the input's; in tf.keras a
    list of them does so also where it has None: keras v2.15.0
    keras/engine/base_layer.py#L2909. What leaves the layer follows the given one in
    tf.keras and since 3.11: keras v3.11.0 keras/src/layers/layer.py#L911, and not yet
    keras v3.10.0 keras/src/layers/layer.py#L909.

    `given` are the masks that the file gives, for the first inputs; `is_list` says that
    it gives a list of them.
    """
    of_inputs = [value.mask for value in inputs]
    masks = [None] * len(of_inputs) if is_list and version.tf else list(of_inputs)
    for i, value in enumerate(given[: len(masks)]):
        if value is not None:
            masks[i] = value.place
    return masks, masks if version.tf or version >= (3, 11) else of_inputs


def places_for(module: Any, masks: list[Mask]) -> MaskPlaces:
    """Return the places of the masks that a module is called with.

    Raises:
        ValueError: one of them can't be known.
    """
    uses_all = module.uses_masks and any(masked(masks))
    if not uses_all and isinstance(module, Nested):  # it may make masks of its own
        uses_all = bool(module.walk_for(masked(masks)).kept_masks)
    wanted = masks[:1] if module.uses_mask else []
    if uses_all:
        wanted = masks
    for mask in wanted:
        if isinstance(mask, str):
            raise ValueError(mask)
    return tuple(masks) if uses_all else next(iter(wanted), None)


def masks_of_model(
    tape: Tape, module: Nested, masks: list[Mask], places: tuple[int, ...]
) -> list[Mask]:
    """Return the masks of a nested model's outputs; `places` are the known ones."""
    walk = module.walk_for(masked(masks))
    tape.mask_shapes |= dict(zip(places, walk.mask_shapes, strict=False))
    queue = iter(places)
    return [next(queue, None) if isinstance(m, int) else m for m in walk.masks]


def mask_of_result(
    tape: Tape,
    module: Any,
    inputs: list[Value],
    masks: list[Mask],
    shape: tuple[int, ...],
) -> Mask:
    """Plan the mask, of that shape, of what a layer returns."""
    if module.makes_mask:
        return tape.make_mask(module.mask, inputs[:1], None, shape)
    rule = module.mask_after(masked(masks))
    if rule is None or isinstance(rule, str):
        return rule
    if isinstance(rule, int):
        return masks[rule]
    unknown = next((mask for mask in masks if isinstance(mask, str)), None)
    return unknown or tape.make_mask(rule, inputs, tuple(masks), shape)


def masked(masks: list[Mask]) -> tuple[bool, ...]:
    """Tell which inputs have a mask."""
    return tuple(mask is not None for mask in masks)
