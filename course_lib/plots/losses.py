"""Pictures of lesson 04."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from course_lib.plots.boxes import connect

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def sharing(ax: "Axes", places: Mapping[str, Tensor]) -> "Axes":
    """Draw the places of a model on the left, their tensors on the right, and arrows.

    A tensor that stands at several places is drawn once, in another color.
    """
    found: dict[int, tuple[str, list[int]]] = {}  # shape and places of each tensor
    for i, tensor in enumerate(places.values()):
        shape = " x ".join(map(str, tensor.shape))
        found.setdefault(id(tensor), (shape, []))[1].append(i)
    return connect(ax, list(places), list(found.values()))
