"""Layers that prepare images: resizing, cropping, and random changes for training."""

import torch
from torch import Tensor

from course_lib.keras_models.layers.base import Layer
from course_lib.keras_models.layers.pooling import Spatial
from course_lib.keras_models.layers.resize import (
    METHODS,
    center,
    crop_to_aspect,
    pad_to_aspect,
    resize,
    smart_resize,
)
from course_lib.keras_models.registry import keras_layer
from course_lib.keras_models.settings import Settings

# All of these return their input when they are not training.
# Source: keras/layers/preprocessing/image_preprocessing.py at v2.15.0 and the files
# in keras/src/layers/preprocessing/image_preprocessing/ at v3.15.1.
RANDOM = (
    *("RandomFlip", "RandomRotation", "RandomZoom", "RandomTranslation"),
    *("RandomContrast", "RandomBrightness", "RandomHeight", "RandomWidth"),
    *("RandomShear", "RandomHue", "RandomSaturation", "RandomSharpness"),
    *("RandomGrayscale", "RandomColorJitter", "RandomColorDegeneration"),
    *("RandomPosterization", "RandomPerspective", "RandomElasticTransform"),
    *("RandomErasing", "RandomGaussianBlur", "RandomInvert"),
    *("MixUp", "CutMix", "AugMix", "RandAugment"),
)


# Those that cast to `compute_dtype` in Keras 3: the files at v3.15.1. Until v3.3.3 all.
_CAST = (
    *("CenterCrop", "RandomFlip", "RandomRotation", "RandomZoom", "RandomTranslation"),
    *("RandomShear", "RandomSharpness"),
)


def as_floats(layer: Layer, x: Tensor) -> Tensor:
    """Return whole numbers as floats, as tf.keras since 2.8 and some layers of Keras 3.

    So x - 127 of a later layer can be negative.
    """
    version = layer.keras_version
    # keras v2.13.1 keras/layers/preprocessing/image_preprocessing.py#L104, new in
    # 2.8; keras v3.3.3 keras/src/layers/preprocessing/center_crop.py#L55
    casts = version >= (2, 8)
    if version >= (3, 4):
        casts = layer.keras_class in _CAST
    return x.to(torch.get_default_dtype()) if casts and not x.is_floating_point() else x


class Sized(Spatial):
    """A layer whose images all have one height and width."""

    makes_floats = True

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, 2)
        self.size = settings.integer("height"), settings.integer("width")


@keras_layer("Resizing")
class Resizing(Sized):
    """Images of another size; cut or padded to its shape first, if the file says so."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        value = settings.take("interpolation", "bilinear")
        value = value.lower() if isinstance(value, str) else value
        settings.left["interpolation"] = value
        self.method = settings.choice("interpolation", METHODS)
        self.crops = settings.flag("crop_to_aspect_ratio", False)
        self.pads = settings.flag("pad_to_aspect_ratio", False)
        if self.crops and self.pads:
            settings.problem("it both crops and pads to the aspect ratio")
        self.antialias = settings.flag("antialias", False)
        settings.only("fill_mode", "constant")
        self.value = settings.number("fill_value", 0.0)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, ...) -> (batch, channels, height, width)."""
        x = as_floats(self, x)
        if self.crops:
            x = crop_to_aspect(x, self.size)
        elif self.pads:
            x = pad_to_aspect(x, self.size, self.value)
        if x.is_floating_point() or self.method == "nearest":
            return resize(x, self.size, self.method, antialias=self.antialias)
        y = resize(x.float(), self.size, self.method, antialias=self.antialias)
        limits = torch.iinfo(x.dtype)  # Keras 3 rounds to whole numbers again
        return y.round().clamp(limits.min, limits.max).to(x.dtype)


@keras_layer("CenterCrop")
class CenterCrop(Sized):
    """The middle of each image; a smaller image is made larger instead."""

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, ...) -> (batch, channels, height, width)."""
        x = as_floats(self, x)
        fits = all(a >= b for a, b in zip(x.shape[2:], self.size, strict=True))
        return center(x, self.size) if fits else smart_resize(x, self.size, "bilinear")


class RandomChange(Layer):
    """A layer that changes images at random while training, and only then.

    Training with it raises: an import that left the changes out would train another
    model in silence.
    """

    makes_floats = True
    passes_mask = True  # outside of training the output is the very input

    def forward(self, x: Tensor) -> Tensor:
        """Return x.

        Raises:
            NotImplementedError: in train mode.
        """
        if self.training and not x.is_meta:
            raise NotImplementedError(
                f"layer {self.keras_name!r} ({self.keras_class}) changes its images at "
                "random while training, which the import does not do. Load the model "
                f"with replacements={{{self.keras_name!r}: a module or function}} "
                "(torch.nn.Identity() trains without), or call .eval() on this layer."
            )
        return self.evaluated(x)

    def evaluated(self, x: Tensor) -> Tensor:
        """Return the output outside of training."""
        unchanged = self.keras_class in ("RandomHeight", "RandomWidth")
        return x if unchanged else as_floats(self, x)


@keras_layer(*RANDOM)
def random_change(settings: Settings) -> RandomChange:
    """RandomFlip and the like; their settings change nothing outside of training."""
    settings.ignore(*settings.left)
    return RandomChange(settings)


@keras_layer("RandomCrop")
class RandomCrop(RandomChange):
    """A random part of each image; when not training, it depends on the version.

    To 3.3 the images are resized to that size, from 3.8 on they are unchanged.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.size = settings.integer("height"), settings.integer("width")
        # keras v3.3.3 keras/src/layers/preprocessing/random_crop.py#L127
        # keras v3.8.0
        # keras/src/layers/preprocessing/image_preprocessing/random_crop.py#L124
        self.resizes = settings.version < (3, 4)
        self.passes_mask = not self.resizes
        if (3, 4) <= settings.version < (3, 8):
            settings.unsupported("keras_version", str(settings.version))
        self.wants_first = self.resizes and settings.channels_last()
        settings.ignore("data_format")

    def evaluated(self, x: Tensor) -> Tensor:
        """Return images of the size, or the same."""
        if not self.resizes:
            return x
        return smart_resize(as_floats(self, x), self.size, "bilinear")
