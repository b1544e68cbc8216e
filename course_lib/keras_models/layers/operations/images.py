"""What tf.image does to (batch, height, width, channels): sizes, crops, colors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from course_lib.keras_models.layers.operations.numbers import dtype_of

_METHODS = ("bilinear", "nearest", "bicubic", "area")
_METHODS += ("lanczos3", "lanczos5", "gaussian", "mitchellcubic")


def _triangle(x: Tensor) -> Tensor:
    return (1 - x).clamp(min=0)


def _cubic(x: Tensor, b: float, c: float) -> Tensor:
    """Mitchell and Netravali's family of cubics; (0, 1/2) is Keys's."""
    near = (12 - 9 * b - 6 * c) * x**3 + (-18 + 12 * b + 6 * c) * x**2 + 6 - 2 * b
    far = (-b - 6 * c) * x**3 + (6 * b + 30 * c) * x**2 + (-12 * b - 48 * c) * x
    far = far + 8 * b + 24 * c
    return torch.where(x < 1, near, torch.where(x < 2, far, 0)) / 6


def _lanczos(radius: float) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.where(x <= radius, x.sinc() * (x / radius).sinc(), 0)


# name: (the kernel of the distance, how far it reaches)
_KERNELS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "bilinear": (_triangle, 1),
    "bicubic": (lambda x: _cubic(x, 0, 0.5), 2),
    "mitchellcubic": (lambda x: _cubic(x, 1 / 3, 1 / 3), 2),
    "lanczos3": (_lanczos(3), 3),
    "lanczos5": (_lanczos(5), 5),
    "gaussian": (lambda x: torch.where(x < 1.5, torch.exp(-2 * x * x), 0), 1.5),
}


def _weights(size: int, new: int, method: str, antialias: bool, like: Tensor) -> Tensor:
    """Return how much each old place (column) counts in each new one (row).

    Pixels are taken as squares with centers at 0.5, 1.5, ...
    Source: tensorflow/core/kernels/image/scale_and_translate_op.cc, v2.15.
    """
    places = torch.arange(new, device=like.device, dtype=torch.float64).unsqueeze(1)
    old = torch.arange(size, device=like.device, dtype=torch.float64)
    scale = size / new
    if method == "area":
        shared = torch.minimum(old + 1, (places + 1) * scale)
        weights = (shared - torch.maximum(old, places * scale)).clamp(min=0)
    else:
        kernel = _KERNELS[method][0]
        centers = (places + 0.5) * scale - 0.5
        if method == "bicubic" and not antialias:
            # Its own kernel keeps a table of 1024 steps between two pixels.
            centers = torch.round(centers * 1024) / 1024
        wide = max(scale, 1) if antialias else 1
        weights = kernel((old - centers).abs() / wide)
    return (weights / weights.sum(1, keepdim=True)).to(like.dtype)


def _by_weights(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return torch.einsum("hi,wj,bijc->bhwc", rows, columns, x)


def _picked(x: Tensor, places: Callable[[int, int], Tensor], new: tuple) -> Tensor:
    x = x.index_select(1, places(x.shape[1], new[0]))
    return x.index_select(2, places(x.shape[2], new[1]))


def resize(
    x: Tensor,
    *,
    size: Any,
    method: str = "bilinear",
    preserve_aspect_ratio: bool = False,
    antialias: bool = False,
) -> Tensor:
    """Return tf.image.resize: pixels are squares; whole numbers become float32."""
    if method not in _METHODS:
        raise ValueError(f"method={method!r:.40}; wanted one of {_METHODS}")
    if x.dim() == 3:
        return _alone(resize, x, size=size, method=method, antialias=antialias)
    height, width = size
    if preserve_aspect_ratio:
        factor = min(height / x.shape[1], width / x.shape[2])
        height, width = (round(factor * n) for n in x.shape[1:3])
    if (height, width) == tuple(x.shape[1:3]):
        return x
    if method == "nearest":
        return _picked(x, _nearest(x, 0.5), (height, width))
    x = x if x.is_floating_point() else x.float()
    if method == "bilinear" and not antialias:
        first = x.movedim(-1, 1)
        return F.interpolate(first, (height, width), mode="bilinear").movedim(1, -1)
    rows = _weights(x.shape[1], height, method, antialias, x)
    columns = _weights(x.shape[2], width, method, antialias, x)
    return _by_weights(x, rows, columns)


def _alone(function: Callable, x: Tensor, **options: Any) -> Tensor:
    """Treat one image as a batch of one."""
    return function(x.unsqueeze(0), **options).squeeze(0)


def _nearest(x: Tensor, center: float) -> Callable[[int, int], Tensor]:
    def places(size: int, new: int) -> Tensor:
        at = torch.arange(new, device=x.device, dtype=torch.float64) + center
        return (at * (size / new)).floor().long().clamp(max=size - 1)

    return places


def _corner_step(size: int, new: int, align_corners: bool) -> float:
    return (size - 1) / (new - 1) if align_corners and new > 1 else size / new


def resize_bilinear(
    x: Tensor,
    *,
    size: Any,
    align_corners: bool = False,
    half_pixel_centers: bool = False,
) -> Tensor:
    """Return TensorFlow 1's form: pixels are points at 0, 1, ..."""
    if half_pixel_centers:
        return resize(x, size=size)
    x = x if x.is_floating_point() else x.float()
    weights = []
    for old, new in zip(x.shape[1:3], size, strict=True):
        at = torch.arange(new, device=x.device, dtype=x.dtype).unsqueeze(1)
        at = (at * _corner_step(old, new, align_corners)).clamp(max=old - 1)
        weights.append(_triangle((torch.arange(old, device=x.device) - at).abs()))
    return _by_weights(x, *weights)


def resize_nearest(
    x: Tensor,
    *,
    size: Any,
    align_corners: bool = False,
    half_pixel_centers: bool = False,
) -> Tensor:
    """Return TensorFlow 1's form: the pixel at or before the place."""
    if align_corners:
        raise ValueError("nearest pixels with align_corners are not supported")
    return _picked(x, _nearest(x, 0.5 if half_pixel_centers else 0.0), size)


def resize_images(
    x: Tensor,
    *,
    size: Any,
    method: Any = 0,
    align_corners: bool = False,
    preserve_aspect_ratio: bool = False,
) -> Tensor:
    """Return tf.compat.v1.image.resize with method 0 (bilinear) or 1 (nearest)."""
    forms = {0: resize_bilinear, "bilinear": resize_bilinear}
    forms |= {1: resize_nearest, "nearest": resize_nearest}
    if method not in forms or preserve_aspect_ratio:
        raise ValueError(f"method={method!r:.40} is not supported")
    if tuple(size) == tuple(x.shape[1:3]):
        return x
    return forms[method](x, size=size, align_corners=align_corners)


# Crops and pads


def crop(
    x: Tensor,
    *,
    offset_height: int,
    offset_width: int,
    target_height: int,
    target_width: int,
) -> Tensor:
    """Return a part of each image."""
    top, left = offset_height, offset_width
    good = top >= 0 and left >= 0 and min(target_height, target_width) > 0
    height, width = x.shape[-3:-1]
    if not good or top + target_height > height or left + target_width > width:
        raise ValueError(f"the part does not lie in an image of {(height, width)}")
    return x[..., top : top + target_height, left : left + target_width, :]


def surround(
    x: Tensor,
    *,
    offset_height: int,
    offset_width: int,
    target_height: int,
    target_width: int,
) -> Tensor:
    """Return each image with 0 around it."""
    below = target_height - offset_height - x.shape[-3]
    right = target_width - offset_width - x.shape[-2]
    if min(offset_height, offset_width, below, right) < 0:
        raise ValueError(f"an image of {tuple(x.shape[-3:-1])} does not fit")
    return F.pad(x, (0, 0, offset_width, right, offset_height, below))


def crop_or_pad(x: Tensor, *, target_height: int, target_width: int) -> Tensor:
    """Cut each image around its center, or put 0 around it."""
    for axis, wanted in ((-3, target_height), (-2, target_width)):
        spare = wanted - x.shape[axis]
        if spare < 0:
            x = x.narrow(axis, -spare // 2, wanted)
        elif axis == -3:
            x = F.pad(x, (0, 0, 0, 0, spare // 2, spare - spare // 2))
        else:
            x = F.pad(x, (0, 0, spare // 2, spare - spare // 2))
    return x


def resize_with_pad(
    x: Tensor,
    *,
    target_height: int,
    target_width: int,
    method: str = "bilinear",
    antialias: bool = False,
) -> Tensor:
    """Resize to fit into the target with its proportions, and put 0 around it."""
    height, width = x.shape[-3:-1]
    ratio = max(width / target_width, height / target_height)
    new = max(math.floor(height / ratio), 1), max(math.floor(width / ratio), 1)
    top = max((target_height - height / ratio) / 2, 0)
    left = max((target_width - width / ratio) / 2, 0)
    small = resize(x, size=new, method=method, antialias=antialias)
    return surround(
        small,
        offset_height=math.floor(top),
        offset_width=math.floor(left),
        target_height=target_height,
        target_width=target_width,
    )


def central_crop(x: Tensor, *, central_fraction: float) -> Tensor:
    """Return the middle of each image."""
    if not 0 < central_fraction <= 1:
        raise ValueError(f"central_fraction={central_fraction!r:.40}")
    for axis in (-3, -2):
        size = x.shape[axis]
        start = int((size - size * central_fraction) / 2)
        x = x.narrow(axis, start, size - 2 * start)
    return x


def rot90(x: Tensor, *, k: int = 1) -> Tensor:
    """Turn each image k times to the left."""
    return torch.rot90(x, k, (-3, -2))


# Colors; numbers are floating, since TensorFlow gives whole ones other ranges.


def _floating(x: Tensor) -> Tensor:
    if not x.is_floating_point():
        raise ValueError(f"images of {x.dtype} are not supported; cast them first")
    return x


def _by_matrix(rows: list[list[float]]) -> Callable[[Tensor], Tensor]:
    return lambda x: _floating(x) @ x.new_tensor(rows)


rgb_to_grayscale = _by_matrix([[0.2989], [0.587], [0.114]])
rgb_to_yuv = _by_matrix(
    [
        [0.299, -0.14714119, 0.61497538],
        [0.587, -0.28886916, -0.51496512],
        [0.114, 0.43601035, -0.10001026],
    ]
)
yuv_to_rgb = _by_matrix(
    [[1, 1, 1], [0, -0.394642334, 2.03206185], [1.13988303, -0.58062185, 0]]
)


def grayscale_to_rgb(x: Tensor) -> Tensor:
    """Repeat the only channel three times."""
    if x.shape[-1] != 1:
        raise ValueError(f"got {x.shape[-1]} channels; wanted 1")
    return x.expand(*x.shape[:-1], 3)


def adjust_brightness(x: Tensor, delta: Any) -> Tensor:
    """Add to all numbers."""
    return _floating(x) + delta


def adjust_contrast(x: Tensor, contrast_factor: Any) -> Tensor:
    """Stretch each channel around its mean."""
    mean = _floating(x).mean((-3, -2), keepdim=True)
    return (x - mean) * contrast_factor + mean


def adjust_gamma(x: Tensor, gamma: Any = 1, gain: Any = 1) -> Tensor:
    """Return gain * x ** gamma."""
    return gain * _floating(x) ** gamma


def rgb_to_hsv(x: Tensor) -> Tensor:
    """Return hue, saturation and value, each from 0 to 1."""
    red, green, blue = _floating(x).unbind(-1)
    value, low = x.amax(-1), x.amin(-1)
    spread = value - low
    saturation = torch.where(value > 0, spread / torch.where(value > 0, value, 1), 0)
    unit = 1 / (6 * torch.where(spread > 0, spread, 1))
    hue = torch.where(
        red == value,
        unit * (green - blue),
        torch.where(
            green == value,
            unit * (blue - red) + 2 / 6,
            unit * (red - green) + 4 / 6,
        ),
    )
    hue = torch.where(spread > 0, hue, 0)
    return torch.stack([torch.where(hue < 0, hue + 1, hue), saturation, value], -1)


def hsv_to_rgb(x: Tensor) -> Tensor:
    """Return red, green and blue."""
    hue, saturation, value = (part.unsqueeze(-1) for part in _floating(x).unbind(-1))
    turns = hue * 6
    red, green, blue = (
        (turns - 3).abs() - 1,
        2 - (turns - 2).abs(),
        2 - (turns - 4).abs(),
    )
    full = torch.cat([red, green, blue], -1).clamp(0, 1)
    return ((full - 1) * saturation + 1) * value


def adjust_saturation(x: Tensor, saturation_factor: Any) -> Tensor:
    """Multiply the saturation."""
    hue, saturation, value = rgb_to_hsv(x).unbind(-1)
    saturation = (saturation * saturation_factor).clamp(0, 1)
    return hsv_to_rgb(torch.stack([hue, saturation, value], -1))


def adjust_hue(x: Tensor, delta: Any) -> Tensor:
    """Turn the hue by a share of the circle."""
    hue, saturation, value = rgb_to_hsv(x).unbind(-1)
    return hsv_to_rgb(torch.stack([(hue + delta) % 1, saturation, value], -1))


def per_image_standardization(x: Tensor) -> Tensor:
    """Return (x - mean) / max(deviation, 1 / sqrt(count)) of each image."""
    axes = (-3, -2, -1)
    x = x if x.is_floating_point() else x.float()
    least = 1 / math.sqrt(math.prod(x.shape[-3:]))
    deviation = x.var(axes, correction=0, keepdim=True).sqrt().clamp(min=least)
    return (x - x.mean(axes, keepdim=True)) / deviation


def convert_image_dtype(x: Tensor, *, dtype: Any, saturate: bool = False) -> Tensor:
    """Return the image in another dtype; floating ones go from 0 to 1."""
    kind = dtype_of(dtype)
    if not kind.is_floating_point:
        raise ValueError(f"images as {dtype} are not supported")
    if x.is_floating_point():
        return x.to(kind)
    return x.to(kind) * (1 / torch.iinfo(x.dtype).max)


# Keras 3's forms


def keras_resize(
    x: Tensor,
    *,
    size: Any,
    interpolation: str = "bilinear",
    antialias: bool = False,
    crop_to_aspect_ratio: bool = False,
    pad_to_aspect_ratio: bool = False,
    fill_mode: str = "constant",
    fill_value: float = 0.0,
    data_format: Any = None,
) -> Tensor:
    """Return keras.ops.image.resize; only where its backends compute the same."""
    if interpolation not in ("bilinear", "nearest"):
        raise ValueError(f"interpolation={interpolation!r:.40} is not supported")
    if antialias or crop_to_aspect_ratio or pad_to_aspect_ratio:
        raise ValueError("antialias and aspect ratios are not supported")
    if data_format == "channels_first":
        last = keras_resize(x.movedim(-3, -1), size=size, interpolation=interpolation)
        return last.movedim(-1, -3)
    return resize(x, size=size, method=interpolation)


def of_format(function: Callable[[Tensor], Tensor]) -> Callable:
    """Give a function of colors Keras 3's data_format."""

    def apply(x: Tensor, *, data_format: Any = None) -> Tensor:
        if data_format == "channels_first":
            return function(x.movedim(-3, -1)).movedim(-1, -3)
        return function(x)

    return apply
