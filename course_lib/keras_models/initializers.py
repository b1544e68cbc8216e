"""Initializers: how weights begin where a file brings none.

Each works in place on a tensor in Keras's own axis order, so that the fans are those
that Keras computed. The numbers are drawn from torch's generator.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from course_lib.keras_models.objects import number_in
from course_lib.keras_models.spec import Version, refusal

Initializer = Callable[[Tensor], Any]
_TRUNCATED = 0.87962566103423978  # standard deviation of a normal cut at 2


def fans(shape: tuple[int, ...]) -> tuple[float, float]:
    """Return (fan in, fan out) of a kernel whose last two axes are in and out.

    >>> fans((3, 3, 8, 16))
    (72, 144)
    """
    if len(shape) < 2:
        return (shape[0], shape[0]) if shape else (1, 1)
    field = math.prod(shape[:-2])
    return shape[-2] * field, shape[-1] * field


def variance_scaling(
    x: Tensor, *, scale: float, mode: str, distribution: str
) -> Tensor:
    """Draw numbers of variance scale / fan. Source: He et al. 2015, Glorot 2010."""
    fan_in, fan_out = fans(tuple(x.shape))
    fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}
    deviation = math.sqrt(scale / max(1.0, fan[mode]))
    if distribution == "uniform":
        limit = math.sqrt(3.0) * deviation
        return x.uniform_(-limit, limit)
    if distribution == "untruncated_normal":
        return x.normal_(0, deviation)
    return truncated_normal(x, mean=0.0, stddev=deviation / _TRUNCATED)


def truncated_normal(x: Tensor, *, mean: float, stddev: float) -> Tensor:
    """Draw normal numbers, none farther than two deviations from the mean."""
    low, high = mean - 2 * stddev, mean + 2 * stddev
    return nn.init.trunc_normal_(x, mean, stddev, low, high)


def orthogonal(x: Tensor, *, gain: float) -> Tensor:
    """Fill with orthonormal rows or columns. Source: Saxe et al. 2013."""
    flat = torch.empty(math.prod(x.shape[:-1]), x.shape[-1], dtype=x.dtype)
    return x.copy_(nn.init.orthogonal_(flat, gain).reshape(x.shape))


def identity(x: Tensor, *, gain: float) -> Tensor:
    """Fill with gain times the identity matrix."""
    return x.copy_(gain * torch.eye(*x.shape, dtype=x.dtype))


@dataclass(frozen=True)
class Unknown:
    """An initializer that can't be carried out, which only untrained layers need."""

    problem: str

    def __call__(self, x: Tensor) -> Tensor:
        """Raise the error."""
        raise refusal(self.problem)


_SCALED = {
    "glorot": {"scale": 1.0, "mode": "fan_avg"},
    "he": {"scale": 2.0, "mode": "fan_in"},
    "lecun": {"scale": 1.0, "mode": "fan_in"},
}
_ALIASES = {"zero": "zeros", "one": "ones"}
_ALIASES |= {"uniform": "random_uniform", "normal": "random_normal"}


def parse_initializer(value: Any, version: Version) -> Initializer:
    """Return the function that an initializer's config describes.

    Raises:
        ValueError: an unknown one; the message completes a sentence.

    >>> half = {"class_name": "Constant", "config": {"value": 0.5}}
    >>> parse_initializer(half, Version.parse("2.15"))(torch.empty(2))
    tensor([0.5000, 0.5000])
    """
    config: Any = {}
    source = value
    if isinstance(value, Mapping):
        config, source = value.get("config", {}), value.get("class_name")
    if not isinstance(source, str) or not isinstance(config, Mapping):
        raise ValueError(f"{source!r:.60} is no initializer")
    name = _plain_name(source)
    name = _ALIASES.get(name, name)
    number = partial(number_in, config)
    if name in ("zeros", "ones"):
        return partial(nn.init.constant_, val=float(name == "ones"))
    if name == "constant":
        return partial(nn.init.constant_, val=number("value", default=0.0))
    if name == "random_uniform":
        low, high = number("minval", default=-0.05), number("maxval", default=0.05)
        if low > high:
            raise ValueError(f"has minval={low} above maxval={high}")
        return partial(nn.init.uniform_, a=low, b=high)
    if name in ("random_normal", "truncated_normal"):
        mean = number("mean", default=0.0)
        deviation = abs(number("stddev", default=0.05))
        if name == "random_normal":
            return partial(nn.init.normal_, mean=mean, std=deviation)
        return partial(truncated_normal, mean=mean, stddev=deviation)
    if name == "orthogonal":
        # keras 1.2.2 keras/initializations.py#L88
        old = 1.1 if version < (2, 0) else 1.0
        return partial(orthogonal, gain=number("gain", "scale", default=old))
    if name == "identity":
        return partial(identity, gain=number("gain", default=1.0))
    family, _, distribution = name.partition("_")
    if family in _SCALED and distribution in ("uniform", "normal"):
        config = {**_SCALED[family], "distribution": distribution}
    elif name != "variance_scaling":
        raise ValueError(f"{source!r:.60} is unknown here")
    return _parse_scaling(config, version)


def _plain_name(name: str) -> str:
    """Return one name for all that the versions of Keras and TensorFlow write.

    >>> _plain_name("OrthogonalInitializer"), _plain_name("keras.initializers>HeNormal")
    ('orthogonal', 'he_normal')
    >>> _plain_name("glorot_normalV2"), _plain_name("random_uniform_initializer")
    ('glorot_normal', 'random_uniform')
    """
    name = re.split(r"[>.|]", name)[-1].removesuffix("V1").removesuffix("V2")
    name = re.sub(r"(?<=.)([A-Z])", r"_\1", name).lower()
    return name.removesuffix("_initializer")


def _parse_scaling(config: Mapping[str, Any], version: Version) -> Initializer:
    """Return a scaled initializer; its normal distribution is cut since Keras 2.

    keras 1.2.2 keras/initializations.py#L52, keras 2.0.3 keras/initializers.py#L203.
    """
    scale = number_in(config, "scale", default=1.0)
    mode = config.get("mode", "fan_in")
    distribution = config.get("distribution", "truncated_normal")
    if mode not in ("fan_in", "fan_out", "fan_avg") or scale <= 0:
        raise ValueError(f"has mode={mode!r} and scale={scale}")
    if distribution == "normal":
        distribution = "untruncated_normal" if version < (2, 0) else "truncated_normal"
    if distribution not in ("uniform", "truncated_normal", "untruncated_normal"):
        raise ValueError(f"has distribution={distribution!r}")
    return partial(variance_scaling, scale=scale, mode=mode, distribution=distribution)
