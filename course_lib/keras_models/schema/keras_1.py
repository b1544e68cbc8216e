"""Keras 1.0 to 1.2: its words for layers and settings, in Keras 3's words.

Keras 2 still reads `Merge`, so its schema asks `merge` here as well.
"""

from collections.abc import Mapping
from typing import Any

Config = dict[str, Any]

_CLASSES = {
    "Convolution1D": "Conv1D",
    "Convolution2D": "Conv2D",
    "Convolution3D": "Conv3D",
    "AtrousConvolution1D": "Conv1D",
    "AtrousConvolution2D": "Conv2D",
    "Deconvolution2D": "Conv2DTranspose",
    "SeparableConvolution2D": "SeparableConv2D",
    "TimeDistributedDense": "Dense",
}
_KEYS = {
    "output_dim": "units",
    "nb_filter": "filters",
    "border_mode": "padding",
    "subsample": "strides",
    "subsample_length": "strides",
    "atrous_rate": "dilation_rate",
    "dim_ordering": "data_format",
    "bias": "use_bias",
    "p": "rate",
    "sigma": "stddev",
    "init": "kernel_initializer",
    "inner_init": "recurrent_initializer",
    "inner_activation": "recurrent_activation",
    "dropout_W": "dropout",
    "dropout_U": "recurrent_dropout",
    "pool_length": "pool_size",
    "stride": "strides",
    "length": "size",
    "filter_length": "kernel_size",
}
_KEYS |= {
    f"{old}_{kind}": f"{new}_{kind}"
    for old, new in (("W", "kernel"), ("U", "recurrent"), ("b", "bias"))
    for kind in ("regularizer", "constraint")
}
# What a key means in layers of one kind.
_OWN_KEYS = {
    "PReLU": {"init": "alpha_initializer"},
    "LeakyReLU": {"alpha": "negative_slope"},
    "Reshape": {"dims": "target_shape"},
}
_EMBEDDING = {
    "init": "embeddings_initializer",
    "W_regularizer": "embeddings_regularizer",
    "W_constraint": "embeddings_constraint",
}
FORMATS = {"th": "channels_first", "tf": "channels_last"}
_MERGES = {"sum": "Add", "mul": "Multiply", "ave": "Average", "max": "Maximum"}
KERAS_1_ONLY = ("MaxoutDense", "Highway")
_WITH_INPUT = ("Dense", "SimpleRNN", "LSTM", "GRU", *KERAS_1_ONLY)
# Their get_config of tags 1.0.0 to 1.2.2 leaves dim_ordering out.
UNWRITTEN = {
    f"{kind}{dims}D"
    for kind in ("ZeroPadding", "Cropping", "UpSampling", "SpatialDropout")
    for dims in (2, 3)
}


def translate(name: str, config: Mapping[str, Any]) -> tuple[str, Config]:
    """Return Keras 3's class name and settings for a layer of Keras 1.

    >>> translate("Dropout", {"p": 0.5})
    ('Dropout', {'rate': 0.5})
    """
    if name == "Merge":
        return merge(config)
    if name == "Embedding":
        return name, {_EMBEDDING.get(key, key): config[key] for key in config}
    kind = _CLASSES.get(name, name)
    keys = _KEYS | _OWN_KEYS.get(kind, {})
    new = {keys.get(key, key): value for key, value in config.items()}
    if kind.startswith(("Conv", "Locally")) or kind in _WITH_INPUT:
        new.pop("input_dim", None)
        new.pop("input_length", None)
    if isinstance(new.get("data_format"), str):
        new["data_format"] = FORMATS.get(new["data_format"], new["data_format"])
    _join(new, "kernel_size", ("nb_row", "nb_col"))
    _join(new, "kernel_size", ("kernel_dim1", "kernel_dim2", "kernel_dim3"))
    if kind == "LSTM":
        start = new.pop("forget_bias_init", "one")
        new["unit_forget_bias"] = start in ("one", "ones")
        if not new["unit_forget_bias"] and start not in ("zero", "zeros"):
            new["forget_bias_init"] = start  # reported as unsupported
    elif kind == "Conv2DTranspose":
        _output_shape(new)
    elif kind in ("ZeroPadding1D", "ZeroPadding2D"):
        new["padding"] = _padding(new.get("padding"))
    elif kind == "SeparableConv2D":
        new.pop("kernel_initializer", None)
    return kind, new


def merge(config: Mapping[str, Any]) -> tuple[str, Config]:
    """Return the merge layer for a mode; a mode of Python code is a Lambda."""
    mode = config.get("mode")
    new: Config = {"name": config.get("name")}
    if config.get("mode_type", "raw") != "raw" or not isinstance(mode, str):
        return "Lambda", new
    if mode in _MERGES:
        return _MERGES[mode], new
    if mode == "concat":
        return "Concatenate", {**new, "axis": config.get("concat_axis", -1)}
    if mode in ("dot", "cos"):
        axes = config.get("dot_axes", -1)
        return "Dot", {**new, "axes": axes, "cosine": mode == "cos"}
    return f"Merge with mode {mode!r:.40}", new


def _join(config: Config, key: str, parts: tuple[str, ...]) -> None:
    if all(part in config for part in parts):
        config[key] = [config.pop(part) for part in parts]


def _output_shape(config: Config) -> None:
    """Keep the places of a Deconvolution2D's output_shape, without batch, channels."""
    shape = config.pop("output_shape", None)
    if isinstance(shape, list | tuple) and len(shape) == 4:
        first = config.get("data_format") == "channels_first"
        config["output_places"] = list(shape[2:] if first else shape[1:3])


def _padding(value: Any) -> Any:
    """Return (top, bottom), (left, right) for all forms that 1.2 knows."""
    if isinstance(value, Mapping):
        names = ("top_pad", "bottom_pad", "left_pad", "right_pad")
        if "top_pad" not in value and "bottom_pad" not in value:
            names = names[2:]
        value = [value.get(name, 0) for name in names]
    if isinstance(value, list | tuple) and len(value) == 4:
        return [list(value[:2]), list(value[2:])]
    return value
