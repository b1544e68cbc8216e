"""Resize images as TensorFlow and Keras do.

Pixels are squares with their middles at 0.5, 1.5, ...; only `resize_corners` counts
them as points at 0, 1, ... torch's own interpolation gives the same for "bilinear". Its
bicubic kernel is another one (a = -0.75, where TensorFlow and JAX have -0.5) and others
are missing, so these are products with one matrix of weights for each axis.

Images are (batch, channels, height, width).

Source: tensorflow v2.15.0 tensorflow/core/kernels/image/sampling_kernels.h,
scale_and_translate_op.cc, resize_bicubic_op.cc and image_resizer_state.h there.
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
Size = tuple[int, int]


def resize(x: Tensor, size: Size, method: str, *, antialias: bool = False) -> Tensor:
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
        return resize_nearest(x, size)
    if method == "bilinear":
        return F.interpolate(x, size, mode="bilinear", antialias=antialias)
    pairs = zip(x.shape[2:], size, strict=True)
    return _weighted(x, *(weights(*pair, method, antialias) for pair in pairs))


def resize_nearest(x: Tensor, size: Size, *, middle: float = 0.5) -> Tensor:
    """Return the old pixel at each new one's middle, or at its start (`middle=0`)."""
    for axis, new in enumerate(size, start=2):
        old = x.shape[axis]
        places = torch.arange(new, device=x.device, dtype=torch.float32) + middle
        places = (places * (old / new)).floor().long().clamp(max=old - 1)
        x = x.index_select(axis, places)
    return x


def resize_corners(x: Tensor, size: Size, *, align: bool) -> Tensor:
    """Interpolate between points; `align` puts the last new point at the last old one.

    Source: tensorflow v2.15.0 tensorflow/core/util/image_resizer_state.h,
    CalculateResizeScale and LegacyScaler.
    """
    found = []
    for old, new in zip(x.shape[2:], size, strict=True):
        step = (old - 1) / (new - 1) if align and new > 1 else old / new
        points = np.minimum(np.arange(new)[:, None] * step, old - 1)
        found.append(np.maximum(1 - np.abs(np.arange(old) - points), 0.0))
    return _weighted(x, *found)


def _weighted(x: Tensor, rows: np.ndarray, columns: np.ndarray) -> Tensor:
    left, right = torch.from_numpy(rows).to(x), torch.from_numpy(columns).to(x)
    return left @ x @ right.T


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
    width = max(scale, 1.0) if antialias else 1.0
    middles = scale * (np.arange(new)[:, None] + 0.5) - 0.5
    if method == "bicubic" and not antialias:
        # tensorflow v2.15.0 resize_bicubic_op.cc: weights come from a table
        middles = np.rint(1024 * middles) / 1024
    distance = np.abs(np.arange(old) - middles) / width
    found = np.where(distance < radius, kernel(distance), 0.0)
    return found / found.sum(1, keepdims=True)  # what lies outside does not count


def _cubic(near: tuple[float, ...], far: tuple[float, ...]) -> Callable:
    """Return a kernel of two polynomials, to distance 1 and to 2."""
    return lambda d: np.where(d < 1, np.polyval(near, d), np.polyval(far, d))


def _lanczos(radius: int) -> Callable:
    return lambda d: np.sinc(d) * np.sinc(d / radius)


_MITCHELL = ((7 / 6, -2, 0, 8 / 9), (-7 / 18, 2, -10 / 3, 16 / 9))
# How far the kernel reaches, and the kernel of the distance.
_KERNELS: dict[str, tuple[float, Callable]] = {
    "bicubic": (2.0, _cubic((1.5, -2.5, 0, 1), (-0.5, 2.5, -4, 2))),
    "mitchellcubic": (2.0, _cubic(*_MITCHELL)),
    "lanczos3": (3.0, _lanczos(3)),
    "lanczos5": (5.0, _lanczos(5)),
    "gaussian": (1.5, lambda d: np.exp(-2 * d * d)),
}


def crop_to_aspect(x: Tensor, size: Size) -> Tensor:
    """Return the middle of the images that has the shape of `size`.

    As `smart_resize` cuts before it resizes.
    """
    (height, width), (new_height, new_width) = x.shape[2:], size
    high = max(min(height, int(width * new_height / new_width)), 1)
    wide = max(min(width, int(height * new_width / new_height)), 1)
    return center(x, (high, wide))


def center(x: Tensor, size: Size) -> Tensor:
    """Return the middle of the images, of this height and width."""
    for axis, new in enumerate(size, start=2):
        x = x.narrow(axis, (x.shape[axis] - new) // 2, new)
    return x


def pad_to_aspect(x: Tensor, size: Size, value: float) -> Tensor:
    """Return the images with equal borders, so that they have the shape of `size`."""
    (height, width), (new_height, new_width) = x.shape[2:], size
    top = (max(height, int(width * new_height / new_width)) - height) // 2
    side = (max(width, int(height * new_width / new_height)) - width) // 2
    return F.pad(x, (side, side, top, top), value=value)


def smart_resize(x: Tensor, size: Size, method: str) -> Tensor:
    """Cut to the new shape, then resize, as keras.utils.image.smart_resize."""
    return resize(crop_to_aspect(x, size), size, method)
