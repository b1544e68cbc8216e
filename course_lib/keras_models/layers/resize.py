"""Resize images as TensorFlow and Keras do, which count from the middles of pixels.

torch's interpolation gives the same for "nearest" and "bilinear". Its bicubic
kernel is another one (a = -0.75, where TensorFlow and JAX have -0.5) and it has no
others, so these are products with one matrix of weights for each axis.

Source: tensorflow/core/kernels/image/sampling_kernels.h, scale_and_translate_op.cc and
resize_bicubic_op.cc at v2.15.0.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

METHODS = (
    *("nearest", "bilinear", "bicubic", "lanczos3", "lanczos5"),
    *("gaussian", "mitchellcubic", "area"),
)


def resize(
    x: Tensor, size: tuple[int, int], method: str, *, antialias: bool = False
) -> Tensor:
    """Return images of another size.

    Args:
        x: (batch, channels, height, width).
        size: the new height and width.
        method: one of `METHODS`.
        antialias: where an axis shrinks, let each new pixel see all old ones that it
            covers. Changes nothing for "nearest" and "area".
    """
    if x.is_meta:
        return x.new_empty(*x.shape[:2], *size)
    if method == "nearest":
        return F.interpolate(x, size, mode="nearest-exact")
    if method == "bilinear":
        return F.interpolate(x, size, mode="bilinear", antialias=antialias)
    rows, columns = (
        torch.from_numpy(weights(old, new, method, antialias)).to(x)
        for old, new in zip(x.shape[2:], size, strict=True)
    )
    return rows @ x @ columns.T


def weights(old: int, new: int, method: str, antialias: bool = False) -> np.ndarray:
    """Return what each old pixel of an axis adds to each new one: (new, old).

    >>> weights(4, 2, "area")
    array([[0.5, 0.5, 0. , 0. ],
           [0. , 0. , 0.5, 0.5]])
    """
    scale = old / new
    if method == "area":
        starts = scale * np.arange(new)[:, None]
        left, right = np.arange(old), np.arange(old) + 1
        covered = np.minimum(starts + scale, right) - np.maximum(starts, left)
        return np.maximum(covered, 0.0) / scale
    radius, kernel = _KERNELS[method]
    wide = max(scale, 1.0) if antialias else 1.0
    middles = scale * (np.arange(new)[:, None] + 0.5) - 0.5
    if method == "bicubic" and not antialias:
        middles = np.rint(1024 * middles) / 1024  # it looks its weights up in a table
    distance = np.abs(np.arange(old) - middles) / wide
    found = np.where(distance < radius, kernel(distance), 0.0)
    return found / found.sum(1, keepdims=True)  # what lies outside is left out


def _cubic(near: tuple[float, ...], far: tuple[float, ...]) -> Callable:
    """Return a kernel of two polynomials, to distance 1 and to 2."""
    return lambda d: np.where(d < 1, np.polyval(near, d), np.polyval(far, d))


def _lanczos(radius: int) -> Callable:
    return lambda d: np.sinc(d) * np.sinc(d / radius)


_KERNELS: dict[str, tuple[float, Callable]] = {
    "bilinear": (1.0, lambda d: 1 - d),
    "bicubic": (2.0, _cubic((1.5, -2.5, 0, 1), (-0.5, 2.5, -4, 2))),
    "mitchellcubic": (
        2.0,
        _cubic((7 / 6, -2, 0, 8 / 9), (-7 / 18, 2, -10 / 3, 16 / 9)),
    ),
    "lanczos3": (3.0, _lanczos(3)),
    "lanczos5": (5.0, _lanczos(5)),
    "gaussian": (1.5, lambda d: np.exp(-2 * d * d)),
}


def crop_to_aspect(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the middle of the images that has the shape of `size`.

    (batch, channels, height, width); as `smart_resize` cuts before it resizes.
    """
    (height, width), (new_height, new_width) = x.shape[2:], size
    high = max(min(height, int(width * new_height / new_width)), 1)
    wide = max(min(width, int(height * new_width / new_height)), 1)
    return center(x, (high, wide))


def center(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the middle of the images, of this height and width."""
    for axis, new in enumerate(size, start=2):
        x = x.narrow(axis, (x.shape[axis] - new) // 2, new)
    return x


def pad_to_aspect(x: Tensor, size: tuple[int, int], value: float) -> Tensor:
    """Return the images with equal borders, so that they have the shape of `size`."""
    (height, width), (new_height, new_width) = x.shape[2:], size
    top = (max(height, int(width * new_height / new_width)) - height) // 2
    side = (max(width, int(height * new_width / new_height)) - width) // 2
    return F.pad(x, (side, side, top, top), value=value)


def smart_resize(x: Tensor, size: tuple[int, int], method: str) -> Tensor:
    """Cut to the new shape, then resize, as keras.utils.image.smart_resize."""
    return resize(crop_to_aspect(x, size), size, method)
