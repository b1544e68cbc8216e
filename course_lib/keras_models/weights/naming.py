"""Layers whose names in a weights file differ from those in the model."""

import re
import warnings
from collections.abc import Mapping

from course_lib.keras_models.source.foreign import listed
from course_lib.keras_models.spec import refusal

_NUMBER = re.compile(r"_\d+$")
# Keras 1's names of layers, by those of Keras 2.
_OLD = {
    "conv1d": "convolution1d",
    "conv2d": "convolution2d",
    "conv3d": "convolution3d",
    "conv2d_transpose": "deconvolution2d",
    "conv3d_transpose": "deconvolution3d",
    "separable_conv2d": "separableconvolution2d",
}


def check_renamed(names: Mapping[str, str], place: str) -> None:
    """Look at layers that are paired by their order, as Keras does.

    Keras numbers the names that it makes itself, so that dense_3 may be what the file
    calls dense_1. Other names that differ are a reason to warn.

    Args:
        names: the model's layers in order, and the file's layer for each.
        place: the file, for messages.

    Raises:
        KerasFormatError: a layer of the user's own name would get the arrays of
            another, though the file has its own.
    """
    known = {name: layer for layer, name in names.items()}
    for layer, name in names.items():
        numbered = _NUMBER.search(layer) or _unnumbered(name) == _unnumbered(layer)
        if layer in known and name != layer and not numbered:
            raise refusal(
                f"{place} has the layers {listed(known)}; the model's are "
                f"{listed(names)}. By name and by order {layer!r} would get other "
                "arrays. Rename the layers in the JSON, or pass a list of arrays as "
                "weights."
            )
    other = [
        f"{name!r} for {layer!r}"
        for layer, name in names.items()
        if _unnumbered(layer) != _unnumbered(name)
    ]
    if other:
        warnings.warn(
            f"load_keras: {place} has other names for layers than the model; they "
            f"are taken in order, as in Keras: {', '.join(other[:12])}.",
            stacklevel=2,
        )


def _unnumbered(name: str) -> str:
    """Return a name without the number that Keras counts up, in Keras 1's words.

    >>> _unnumbered("conv2d_3"), _unnumbered("batch_normalization_1")
    ('convolution2d', 'batchnormalization')
    """
    plain = _NUMBER.sub("", name)
    return _OLD.get(plain, plain.replace("_", ""))
