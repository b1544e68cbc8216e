"""What tf.image does to (batch, height, width, channels): sizes, crops, colors."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from course_lib.keras_models.layers import resize as resizing
from course_lib.keras_models.layers.base import channels_to_first, channels_to_last
from course_lib.keras_models.layers.operations.numbers import as_floats, dtype_of
from course_lib.keras_models.layers.operations.row import Row


def _resize(
    x: Tensor,
    *,
    size: Any,
    method: str = "bilinear",
    preserve_aspect_ratio: bool = False,
    antialias: bool = False,
) -> Tensor:
    """Return tf.image.resize: pixels are squares; whole numbers become float32."""
    if method not in resizing.METHODS:
        raise ValueError(f"method={method!r:.40}; wanted one of {resizing.METHODS}")
    size = _checked_size(size)
    old = _sides(x)
    if preserve_aspect_ratio:
        factor = min(new / side for new, side in zip(size, old, strict=True))
        size = _checked_size([round(factor * side) for side in old])
    if size == old:
        return x
    x = x if method == "nearest" else as_floats(x)
    first = channels_to_first(x if x.dim() == 4 else x[None])
    y = channels_to_last(resizing.resize(first, size, method, antialias=antialias))
    return y if x.dim() == 4 else y[0]


def _sides(x: Tensor, *ranks: int) -> resizing.Size:
    """Return height and width of ((batch,) height, width, channels)."""
    ranks = ranks or (3, 4)
    if x.dim() not in ranks:
        wanted = " or ".join(map(str, ranks))
        raise ValueError(f"the input has {x.dim()} axes; wanted {wanted}")
    return x.shape[-3], x.shape[-2]


def _checked_size(size: Any) -> resizing.Size:
    whole = (int, torch.SymInt)
    good = isinstance(size, list | tuple) and len(size) == 2
    if not good or not all(type(n) in whole and n > 0 for n in size):
        raise ValueError(f"size={size!r:.40}; wanted two whole numbers above 0")
    return size[0], size[1]


def _resize_legacy(
    x: Tensor,
    *,
    size: Any,
    method: Any = 0,
    align_corners: bool = False,
    half_pixel_centers: bool = False,
) -> Tensor:
    """Return TensorFlow 1's resizing by method 0, "bilinear", or 1, "nearest".

    Pixels are points at 0, 1, ..., unless `half_pixel_centers`.
    """
    nearest = method in (1, "nearest")
    if not nearest and method not in (0, "bilinear"):
        raise ValueError(f"method={method!r:.40} is not supported")
    if nearest and align_corners:
        raise ValueError("nearest pixels with align_corners are not supported")
    size = _checked_size(size)
    unchanged = size == _sides(x, 4)
    if unchanged and (nearest or x.is_floating_point() or method == 0):
        return x
    if half_pixel_centers:
        return _resize(x, size=size, method="nearest" if nearest else "bilinear")
    first = channels_to_first(x if nearest else as_floats(x))
    if nearest:
        return channels_to_last(resizing.resize_nearest(first, size, middle=0.0))
    resized = resizing.resize_corners(first, size, align=align_corners)
    return channels_to_last(resized)


def _keras_resize(
    x: Tensor,
    *,
    size: Any,
    interpolation: str = "bilinear",
    fill_mode: str = "constant",
    fill_value: float = 0.0,
    data_format: Any = None,
) -> Tensor:
    """Return keras.ops.image.resize; only where its backends compute the same."""
    if interpolation not in ("bilinear", "nearest"):
        raise ValueError(f"interpolation={interpolation!r:.40} is not supported")
    _sides(x)
    if data_format == "channels_first":
        last = _keras_resize(x.movedim(-3, -1), size=size, interpolation=interpolation)
        return last.movedim(-1, -3)
    return _resize(x, size=size, method=interpolation)


# Crops and pads


def _boxed(function: Callable[[Tensor, int, int, int, int], Tensor]) -> Callable:
    """Give a function of (x, top, left, height, width) TensorFlow's arguments."""

    def apply(
        x: Tensor,
        *,
        offset_height: int,
        offset_width: int,
        target_height: int,
        target_width: int,
    ) -> Tensor:
        return function(x, offset_height, offset_width, target_height, target_width)

    return apply


def _crop(x: Tensor, top: int, left: int, high: int, wide: int) -> Tensor:
    height, width = _sides(x)
    good = min(top, left) >= 0 and min(high, wide) > 0
    if not good or top + high > height or left + wide > width:
        raise ValueError(f"the part does not lie in an image of {(height, width)}")
    return x[..., top : top + high, left : left + wide, :]


def _surround(x: Tensor, top: int, left: int, high: int, wide: int) -> Tensor:
    """Return each image with 0 around it."""
    height, width = _sides(x)
    below, right = high - top - height, wide - left - width
    if min(top, left, below, right) < 0:
        raise ValueError(f"an image of {(height, width)} does not fit")
    return F.pad(x, (0, 0, left, right, top, below))


def _crop_or_pad(x: Tensor, *, target_height: int, target_width: int) -> Tensor:
    """Cut each image around its center, or put 0 around it."""
    _sides(x)
    high, wide = _checked_size((target_height, target_width))
    pads = []
    for axis, wanted in ((-2, wide), (-3, high)):
        spare = wanted - x.shape[axis]
        before = spare // 2 if spare > 0 else -(-spare // 2)
        pads += [before, spare - before]
    return F.pad(x, (0, 0, *pads))  # which cuts where they are below 0


def _resize_with_pad(
    x: Tensor,
    *,
    target_height: int,
    target_width: int,
    method: str = "bilinear",
    antialias: bool = False,
) -> Tensor:
    """Resize to fit into the target with its proportions, and put 0 around it."""
    height, width = _sides(x)
    high, wide = _checked_size((target_height, target_width))
    ratio = max(width / wide, height / high)
    new = [max(math.floor(side / ratio), 1) for side in (height, width)]
    top = max(math.floor((high - height / ratio) / 2), 0)
    left = max(math.floor((wide - width / ratio) / 2), 0)
    small = _resize(x, size=new, method=method, antialias=antialias)
    return _surround(small, top, left, high, wide)


def _central_crop(x: Tensor, *, central_fraction: float) -> Tensor:
    if not 0 < central_fraction <= 1:
        raise ValueError(f"central_fraction={central_fraction!r:.40}")
    _sides(x)
    for axis in (-3, -2):
        size = x.shape[axis]
        start = int((size - size * central_fraction) / 2)
        x = x.narrow(axis, start, size - 2 * start)
    return x


# Colors; numbers are floating, since TensorFlow gives whole ones other ranges.


def _floating(x: Tensor) -> Tensor:
    if not x.is_floating_point():
        raise ValueError(f"images of {x.dtype} are not supported; cast them first")
    return x


def _colors(function: Callable[[Tensor], Tensor]) -> Callable:
    """Let a function of floating (..., channels) take Keras 3's data_format."""

    def apply(x: Tensor, *, data_format: Any = None) -> Tensor:
        if data_format == "channels_first":
            return function(_floating(x).movedim(-3, -1)).movedim(-1, -3)
        return function(_floating(x))

    return apply


def _by_matrix(*rows: tuple[float, ...]) -> Callable[[Tensor], Tensor]:
    """Return a function that multiplies the channels with a matrix."""
    return _colors(lambda x: x @ x.new_tensor(rows))


rgb_to_grayscale = _by_matrix((0.2989,), (0.587,), (0.114,))
rgb_to_yuv = _by_matrix(
    (0.299, -0.14714119, 0.61497538),
    (0.587, -0.28886916, -0.51496512),
    (0.114, 0.43601035, -0.10001026),
)
yuv_to_rgb = _by_matrix(
    (1, 1, 1), (0, -0.394642334, 2.03206185), (1.13988303, -0.58062185, 0)
)


def _grayscale_to_rgb(x: Tensor) -> Tensor:
    if x.shape[-1] != 1:
        raise ValueError(f"got {x.shape[-1]} channels; wanted 1")
    return x.expand(*x.shape[:-1], 3)


def _adjust_contrast(x: Tensor, contrast_factor: Any) -> Tensor:
    mean = _floating(x).mean((-3, -2), keepdim=True)
    return (x - mean) * contrast_factor + mean


@_colors
def _rgb_to_hsv(x: Tensor) -> Tensor:
    """Return hue, saturation and value, each from 0 to 1."""
    red, green, blue = x.unbind(-1)
    value = x.amax(-1)
    spread = value - x.amin(-1)
    saturation = torch.where(value > 0, spread / torch.where(value > 0, value, 1), 0)
    unit = 1 / (6 * torch.where(spread > 0, spread, 1))
    below = torch.where(
        green == value, unit * (blue - red) + 2 / 6, unit * (red - green) + 4 / 6
    )
    hue = torch.where(red == value, unit * (green - blue), below)
    hue = torch.where(spread > 0, hue, 0)
    return torch.stack([torch.where(hue < 0, hue + 1, hue), saturation, value], -1)


@_colors
def _hsv_to_rgb(x: Tensor) -> Tensor:
    hue, saturation, value = x.split(1, -1)
    turns = hue * 6
    rgb = (turns - 3).abs() - 1, 2 - (turns - 2).abs(), 2 - (turns - 4).abs()
    full = torch.cat(rgb, -1).clamp(0, 1)
    return ((full - 1) * saturation + 1) * value


def _adjust_saturation(x: Tensor, saturation_factor: Any) -> Tensor:
    hue, saturation, value = _rgb_to_hsv(x).unbind(-1)
    saturation = (saturation * saturation_factor).clamp(0, 1)
    return _hsv_to_rgb(torch.stack([hue, saturation, value], -1))


def _adjust_hue(x: Tensor, delta: Any) -> Tensor:
    """Turn the hue by a share of the circle."""
    hue, saturation, value = _rgb_to_hsv(x).unbind(-1)
    return _hsv_to_rgb(torch.stack([(hue + delta) % 1, saturation, value], -1))


def _standardize(x: Tensor) -> Tensor:
    """Return (x - mean) / max(deviation, 1 / sqrt(count)) of each image."""
    axes, x = (-3, -2, -1), as_floats(x)
    least = 1 / math.sqrt(math.prod(x.shape[-3:]))
    deviation = x.var(axes, correction=0, keepdim=True).sqrt().clamp(min=least)
    return (x - x.mean(axes, keepdim=True)) / deviation


def _convert_dtype(x: Tensor, *, dtype: Any, saturate: bool = False) -> Tensor:
    """Return the image in another dtype; floating ones go from 0 to 1."""
    new = dtype_of(dtype)
    if not new.is_floating_point:
        raise ValueError(f"images as {dtype} are not supported")
    if x.is_floating_point():
        return x.to(new)
    return x.to(new) * (1 / torch.iinfo(x.dtype).max)


ROWS = (
    Row(_keras_resize, "Resize"),
    Row(_resize, "", "image.resize"),
    Row(_resize_with_pad, "", "image.resize_with_pad"),
    Row(
        _resize_legacy,
        "",
        'image.resize_images, image.resize_bilinear method:="bilinear",'
        'image.resize_nearest_neighbor method:="nearest"',
        'ResizeBilinear method:="bilinear", ResizeNearestNeighbor method:="nearest"',
    ),
    Row(_crop_or_pad, "", "image.resize_with_crop_or_pad"),
    Row(_boxed(_crop), "", "image.crop_to_bounding_box"),
    Row(_boxed(_surround), "", "image.pad_to_bounding_box"),
    Row(_central_crop, "", "image.central_crop"),
    Row(lambda x: x.flip(-2), "", "image.flip_left_right"),
    Row(lambda x: x.flip(-3), "", "image.flip_up_down"),
    Row(lambda x, *, k=1: torch.rot90(x, k, (-3, -2)), "", "image.rot90"),
    Row(lambda x: x.transpose(-3, -2), "", "image.transpose"),
    Row(rgb_to_grayscale, "RGBToGrayscale", "image.rgb_to_grayscale"),
    Row(_grayscale_to_rgb, "", "image.grayscale_to_rgb"),
    Row(_rgb_to_hsv, "RGBToHSV", "image.rgb_to_hsv"),
    Row(_hsv_to_rgb, "HSVToRGB", "image.hsv_to_rgb"),
    Row(rgb_to_yuv, "", "image.rgb_to_yuv"),
    Row(yuv_to_rgb, "", "image.yuv_to_rgb"),
    Row(lambda x, delta: _floating(x) + delta, "", "image.adjust_brightness"),
    Row(_adjust_contrast, "", "image.adjust_contrast"),
    Row(
        lambda x, gamma=1, gain=1: gain * _floating(x) ** gamma,
        "",
        "image.adjust_gamma",
    ),
    Row(_adjust_saturation, "", "image.adjust_saturation"),
    Row(_adjust_hue, "", "image.adjust_hue"),
    Row(_standardize, "", "image.per_image_standardization"),
    Row(_convert_dtype, "", "image.convert_image_dtype"),
)
