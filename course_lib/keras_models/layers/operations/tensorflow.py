"""TensorFlow's functions, as nodes of tf.keras 2.4 to 2.15, in the words of the table.

A node holds the first argument of its function by itself and all others by name.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any, NamedTuple

from course_lib.keras_models.layers.operations.table import OPERATIONS


class Translation(NamedTuple):
    """One function of TensorFlow.

    Args:
        kind: the operation in the table.
        names: TensorFlow's argument = the operation's.
        defaults: what TensorFlow takes where the operation would take another value.
    """

    kind: str
    names: dict[str, str]
    defaults: Mapping[str, Any]


_REDUCED = "axis keepdims"
_POOLED = "ksize strides padding data_format"
_CONVOLVED = "strides padding data_format dilations"
_BOX = "offset_height offset_width target_height target_width"
# function: "operation" and, after it, arguments: "name" where both call it so, else
# "TensorFlow's=the operation's".
_FUNCTIONS: dict[str, str] = {
    # each number by itself
    "math.abs": "Absolute",
    "math.negative": "Negative",
    "math.exp": "Exp",
    "math.expm1": "Expm1",
    "math.log": "Log",
    "math.log1p": "Log1p",
    "math.log_sigmoid": "LogSigmoid",
    "math.sqrt": "Sqrt",
    "math.rsqrt": "Rsqrt",
    "math.square": "Square",
    "math.reciprocal": "Reciprocal",
    "math.sign": "Sign",
    "math.floor": "Floor",
    "math.ceil": "Ceil",
    "math.round": "Round",
    "math.sin": "Sin",
    "math.cos": "Cos",
    "math.tan": "Tan",
    "math.asin": "Arcsin",
    "math.acos": "Arccos",
    "math.atan": "Arctan",
    "math.sinh": "Sinh",
    "math.cosh": "Cosh",
    "math.tanh": "Tanh",
    "math.asinh": "Arcsinh",
    "math.acosh": "Arccosh",
    "math.atanh": "Arctanh",
    "math.erf": "Erf",
    "math.erfc": "Erfc",
    "math.lgamma": "math.lgamma",
    "math.digamma": "math.digamma",
    "math.sigmoid": "Sigmoid",
    "math.softplus": "Softplus",
    "math.is_nan": "Isnan",
    "math.is_inf": "Isinf",
    "math.is_finite": "Isfinite",
    "math.logical_not": "LogicalNot",
    "nn.relu": "Relu",
    "nn.relu6": "Relu6",
    "nn.leaky_relu": "LeakyRelu alpha=negative_slope",
    "nn.elu": "Elu",
    "nn.selu": "Selu",
    "nn.gelu": "Gelu approximate",
    "nn.silu": "Silu beta",
    "nn.softsign": "Softsign",
    "nn.crelu": "nn.crelu axis",
    "cast": "Cast dtype",
    "dtypes.saturate_cast": "SaturateCast dtype",
    "clip_by_value": "clip_by_value clip_value_min clip_value_max",
    "clip_by_norm": "clip_by_norm clip_norm axes",
    "identity": "Identity",
    "convert_to_tensor": "Identity",
    "debugging.check_numerics": "Identity",
    "stop_gradient": "StopGradient",
    "zeros_like": "ZerosLike dtype",
    "ones_like": "OnesLike dtype",
    # two tensors
    "__operators__.add": "Add y",
    "math.add": "Add y",
    "math.subtract": "Subtract y",
    "math.multiply": "Multiply y",
    "math.scalar_mul": "Multiply x=y",
    "math.truediv": "math.truediv y",
    "math.divide_no_nan": "math.divide_no_nan y",
    "math.multiply_no_nan": "math.multiply_no_nan y",
    "math.squared_difference": "math.squared_difference y",
    "math.xlogy": "math.xlogy y",
    "floor_div": "FloorDivide y",
    "math.floormod": "Mod y",
    "math.pow": "Power y",
    "math.maximum": "Maximum y",
    "math.minimum": "Minimum y",
    "math.atan2": "Arctan2 x=y",
    "math.greater": "Greater y",
    "math.greater_equal": "GreaterEqual y",
    "math.less": "Less y",
    "math.less_equal": "LessEqual y",
    "math.equal": "Equal y",
    "math.not_equal": "NotEqual y",
    "math.logical_and": "LogicalAnd y",
    "math.logical_or": "LogicalOr y",
    "where": "Where x y",
    "math.add_n": "math.add_n",
    # along axes
    "math.reduce_sum": f"Sum {_REDUCED}",
    "math.reduce_mean": f"Mean {_REDUCED}",
    "math.reduce_max": f"Max {_REDUCED}",
    "math.reduce_min": f"Min {_REDUCED}",
    "math.reduce_prod": f"Prod {_REDUCED}",
    "math.reduce_std": f"Std {_REDUCED}",
    "math.reduce_variance": f"Var {_REDUCED}",
    "math.reduce_any": f"Any {_REDUCED}",
    "math.reduce_all": f"All {_REDUCED}",
    "math.reduce_logsumexp": f"Logsumexp {_REDUCED}",
    "math.reduce_euclidean_norm": f"Norm {_REDUCED}",
    "math.count_nonzero": f"CountNonzero {_REDUCED} dtype",
    "math.zero_fraction": "math.zero_fraction",
    "math.argmax": "math.argmax axis output_type",
    "math.argmin": "math.argmin axis output_type",
    "math.cumsum": "Cumsum axis exclusive reverse",
    "math.cumprod": "Cumprod axis exclusive reverse",
    "math.top_k": "TopK k sorted index_type",
    "math.l2_normalize": "math.l2_normalize axis epsilon dim",
    "norm": f"Norm ord {_REDUCED}",
    "sort": "sort axis direction",
    "argsort": "argsort axis direction stable",
    "nn.softmax": "Softmax axis",
    "nn.log_softmax": "LogSoftmax axis",
    "nn.l2_loss": "nn.l2_loss",
    "nn.softmax_cross_entropy_with_logits_v2": "nn.softmax_cross_entropy logits axis",
    "nn.sigmoid_cross_entropy_with_logits": "nn.sigmoid_cross_entropy logits",
    # shapes
    "concat": "Concatenate axis",
    "stack": "Stack axis",
    "split": "split num_or_size_splits axis num",
    "unstack": "Unstack num axis",
    "reshape": "Reshape shape=newshape",
    "keras.backend.batch_flatten": "keras.backend.batch_flatten",
    "ensure_shape": "ensure_shape shape",
    "transpose": "Transpose perm=axes",
    "expand_dims": "ExpandDims axis",
    "squeeze": "Squeeze axis",
    "tile": "Tile multiples=repeats",
    "repeat": "Repeat repeats axis",
    "reverse": "Flip axis",
    "roll": "Roll shift axis",
    "broadcast_to": "BroadcastTo shape",
    "pad": "Pad paddings=pad_width mode constant_values",
    "gather": "gather indices axis batch_dims",
    "gather_nd": "gather_nd indices batch_dims",
    "nn.embedding_lookup": "nn.embedding_lookup ids max_norm",
    "one_hot": "one_hot depth on_value off_value axis dtype",
    "slice": "slice begin size",
    "strided_slice": "strided_slice begin end strides begin_mask end_mask"
    " ellipsis_mask new_axis_mask shrink_axis_mask",
    "__operators__.getitem": "GetItem slice_spec=key",
    "shape": "shape out_type",
    "size": "size out_type",
    "rank": "rank",
    "fill": "fill value",
    "zeros": "zeros dtype",
    "ones": "ones dtype",
    "range": "range limit delta dtype",
    "eye": "eye num_columns batch_shape dtype",
    # matrices
    "linalg.matmul": "linalg.matmul b transpose_a transpose_b adjoint_a adjoint_b",
    "tensordot": "tensordot b axes",
    "linalg.band_part": "linalg.band_part num_lower num_upper",
    "linalg.diag_part": "linalg.diag_part k",
    "linalg.diag": "linalg.diag",
    "linalg.trace": "linalg.trace",
    "linalg.matrix_transpose": "linalg.matrix_transpose",
    "linalg.det": "Det",
    "linalg.inv": "linalg.inv adjoint",
    "linalg.cross": "linalg.cross b",
    # networks
    "nn.bias_add": "nn.bias_add bias data_format",
    "nn.dropout": "nn.dropout rate noise_shape",
    "nn.local_response_normalization": "nn.local_response_normalization"
    " depth_radius bias alpha beta",
    "nn.avg_pool": f"nn.avg_pool {_POOLED}",
    "nn.avg_pool1d": f"nn.avg_pool {_POOLED}",
    "nn.avg_pool2d": f"nn.avg_pool {_POOLED}",
    "nn.max_pool": f"nn.max_pool {_POOLED}",
    "nn.max_pool1d": f"nn.max_pool {_POOLED}",
    "nn.max_pool2d": f"nn.max_pool {_POOLED}",
    "nn.conv1d": f"nn.convolution filters stride=strides {_CONVOLVED}",
    "nn.conv2d": f"nn.convolution filter=filters {_CONVOLVED}",
    "nn.convolution": "nn.convolution filter=filters strides padding data_format"
    " dilation_rate=dilations",
    "nn.depthwise_conv2d": f"nn.depthwise_conv2d filter=filters {_CONVOLVED}"
    " rate=dilations",
    "nn.conv2d_transpose": f"nn.conv2d_transpose filters output_shape {_CONVOLVED}",
    "nn.space_to_depth": "SpaceToDepth block_size data_format",
    "nn.depth_to_space": "DepthToSpace block_size data_format",
    "random.normal": "random.normal mean stddev dtype",
    "random.uniform": "random.uniform minval maxval dtype",
    # images
    "image.resize": "image.resize size method preserve_aspect_ratio antialias",
    "image.resize_bilinear": "image.resize_bilinear size align_corners"
    " half_pixel_centers",
    "image.resize_nearest_neighbor": "image.resize_nearest_neighbor size"
    " align_corners half_pixel_centers",
    "image.resize_images": "image.resize_images size method align_corners"
    " preserve_aspect_ratio",
    "image.resize_with_pad": "image.resize_with_pad target_height target_width"
    " method antialias",
    "image.resize_with_crop_or_pad": "image.resize_with_crop_or_pad target_height"
    " target_width",
    "image.crop_to_bounding_box": f"image.crop_to_bounding_box {_BOX}",
    "image.pad_to_bounding_box": f"image.pad_to_bounding_box {_BOX}",
    "image.central_crop": "image.central_crop central_fraction",
    "image.flip_left_right": "image.flip_left_right",
    "image.flip_up_down": "image.flip_up_down",
    "image.rot90": "image.rot90 k",
    "image.transpose": "image.transpose",
    "image.rgb_to_grayscale": "image.rgb_to_grayscale",
    "image.grayscale_to_rgb": "image.grayscale_to_rgb",
    "image.adjust_brightness": "image.adjust_brightness delta",
    "image.adjust_contrast": "image.adjust_contrast contrast_factor",
    "image.adjust_gamma": "image.adjust_gamma gamma gain",
    "image.adjust_saturation": "image.adjust_saturation saturation_factor",
    "image.adjust_hue": "image.adjust_hue delta",
    "image.rgb_to_hsv": "image.rgb_to_hsv",
    "image.hsv_to_rgb": "image.hsv_to_rgb",
    "image.rgb_to_yuv": "image.rgb_to_yuv",
    "image.yuv_to_rgb": "image.yuv_to_rgb",
    "image.per_image_standardization": "image.per_image_standardization",
    "image.convert_image_dtype": "image.convert_image_dtype dtype saturate",
    "image.extract_patches": "image.extract_patches sizes strides rates padding",
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "nn.gelu": {"approximate": False},
    "concat": {"axis": 0},
    "split": {"axis": 0},
}
# Arguments that change no number, or none of real ones.
IGNORED = {"name", "use_cudnn_on_gpu", "validate_indices", "partition_strategy"}
IGNORED |= {"conjugate", "a_is_sparse", "b_is_sparse", "seed", "message"}
IGNORED |= {"dtype_hint", "optimize", "layout"}
# Functions whose other tensors no file of tf.keras holds, and what to write instead.
LOST = {
    "einsum": "tf.linalg.matmul or tf.tensordot",
    "meshgrid": "tf.tile",
    "__operators__.eq": "tf.equal",
    "__operators__.ne": "tf.not_equal",
}


def translation(function: str) -> Translation | None:
    """Return how a function of TensorFlow is computed, None where it is unknown.

    >>> translation("compat.v1.transpose")
    Translation(kind='Transpose', names={'perm': 'axes'}, defaults={})
    """
    name = function.removeprefix("compat.v1.")
    if name not in _FUNCTIONS:
        return None
    kind, *names = _FUNCTIONS[name].split()
    pairs = (name.partition("=") for name in names)
    renamed = {theirs: ours or theirs for theirs, _, ours in pairs}
    return Translation(kind, renamed, _DEFAULTS.get(name, {}))


def functions() -> list[str]:
    """Return the names of all functions that are supported."""
    return list(_FUNCTIONS)


def translated(
    entry: Translation, kwargs: Mapping[str, Any], required: Container[str]
) -> tuple[dict[str, Any], list[str]]:
    """Return a node's arguments in the words of the table, and those unknown there."""
    new = dict(entry.defaults)
    unknown = []
    for key, value in kwargs.items():
        if key in entry.names:
            if value is not None or entry.names[key] in required:
                new[entry.names[key]] = value
        elif key not in IGNORED and value not in (None, False, [], {}):
            unknown.append(key)
    return new, unknown


assert all(entry.split()[0] in OPERATIONS for entry in _FUNCTIONS.values())
