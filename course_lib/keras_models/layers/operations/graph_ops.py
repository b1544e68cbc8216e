"""Ops of TensorFlow's graph, as nodes of tf.keras in TensorFlow 2.0 to 2.3.

A TensorFlowOpLayer holds the op's NodeDef as JSON, and the inputs that are constants.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from course_lib.keras_models.spec import Ref

_ONE = {
    "Abs": "Absolute",
    "Neg": "Negative",
    "Exp": "Exp",
    "Log": "Log",
    "Log1p": "Log1p",
    "Sqrt": "Sqrt",
    "Rsqrt": "Rsqrt",
    "Square": "Square",
    "Reciprocal": "Reciprocal",
    "Sign": "Sign",
    "Floor": "Floor",
    "Ceil": "Ceil",
    "Round": "Round",
    "Sin": "Sin",
    "Cos": "Cos",
    "Tanh": "Tanh",
    "Sigmoid": "Sigmoid",
    "Erf": "Erf",
    "Relu": "Relu",
    "Relu6": "Relu6",
    "Elu": "Elu",
    "Selu": "Selu",
    "Softplus": "Softplus",
    "Softsign": "Softsign",
    "Softmax": "Softmax",
    "LogSoftmax": "LogSoftmax",
    "Identity": "Identity",
    "StopGradient": "StopGradient",
    "ZerosLike": "ZerosLike",
    "OnesLike": "OnesLike",
    "LogicalNot": "LogicalNot",
    "Shape": "shape",
    "Size": "size",
    "Rank": "rank",
    "L2Loss": "nn.l2_loss",
}
_TWO = {
    "Add": "Add",
    "AddV2": "Add",
    "Sub": "Subtract",
    "Mul": "Multiply",
    "RealDiv": "math.truediv",
    "FloorDiv": "FloorDivide",
    "FloorMod": "Mod",
    "Pow": "Power",
    "Maximum": "Maximum",
    "Minimum": "Minimum",
    "SquaredDifference": "math.squared_difference",
    "Greater": "Greater",
    "GreaterEqual": "GreaterEqual",
    "Less": "Less",
    "LessEqual": "LessEqual",
    "Equal": "Equal",
    "NotEqual": "NotEqual",
    "LogicalAnd": "LogicalAnd",
    "LogicalOr": "LogicalOr",
}
_REDUCTIONS = ("Mean", "Sum", "Max", "Min", "Prod", "Any", "All")
_POOLED = "ksize strides padding data_format"
_MASKS = "begin_mask end_mask ellipsis_mask new_axis_mask shrink_axis_mask"
# op: "operation", its parameters in the order of the op's inputs (*parts for a row of
# them), then, after a bar, its settings: "name" or "the op's=the operation's".
_OPS: dict[str, str] = {
    **{op: f"{kind} x" for op, kind in _ONE.items()},
    **{op: f"{kind} x y" for op, kind in _TWO.items()},
    **{kind: f"{kind} x axis | keep_dims=keepdims" for kind in _REDUCTIONS},
    "AddN": "math.add_n *parts",
    "ArgMax": "math.argmax x axis",
    "AvgPool": f"nn.avg_pool x | {_POOLED}",
    "BatchMatMulV2": "linalg.matmul a b | adj_x=adjoint_a adj_y=adjoint_b",
    "BiasAdd": "nn.bias_add x bias | data_format",
    "BroadcastTo": "BroadcastTo x shape",
    "Cast": "Cast x | DstT=dtype",
    "ClipByValue": "clip_by_value x clip_value_min clip_value_max",
    "ConcatV2": "Concatenate *parts axis",
    "Conv2D": "nn.convolution x filters | strides padding data_format dilations",
    "Cumsum": "Cumsum x axis | exclusive reverse",
    "DepthToSpace": "DepthToSpace x | block_size data_format",
    "ExpandDims": "ExpandDims x axis",
    "Fill": "fill dims value",
    "GatherV2": "gather x indices axis | batch_dims",
    "LeakyRelu": "LeakyRelu x | alpha=negative_slope",
    "MatMul": "linalg.matmul a b | transpose_a transpose_b",
    "MaxPool": f"nn.max_pool x | {_POOLED}",
    "MirrorPad": "Pad x pad_width | mode",
    "OneHot": "one_hot x depth on_value off_value | axis",
    "Pack": "Stack *parts | axis",
    "Pad": "Pad x pad_width",
    "PadV2": "Pad x pad_width constant_values",
    "Range": "range start limit delta",
    "Reshape": "Reshape x newshape",
    "ResizeBilinear": "image.resize_bilinear x size | align_corners half_pixel_centers",
    "ResizeNearestNeighbor": "image.resize_nearest_neighbor x size | align_corners"
    " half_pixel_centers",
    "ReverseV2": "Flip x axis",
    "SelectV2": "Where condition x y",
    "Slice": "slice x begin size",
    "SpaceToDepth": "SpaceToDepth x | block_size data_format",
    "Split": "split axis x | num_split=num_or_size_splits",
    "SplitV": "split x num_or_size_splits axis | num_split=num",
    "Squeeze": "Squeeze x | squeeze_dims=axis",
    "StridedSlice": f"strided_slice x begin end strides | {_MASKS}",
    "Tile": "Tile x repeats",
    "Transpose": "Transpose x axes",
    "Unpack": "Unstack x | axis num",
}
_IGNORED = {"N", "Index", "SrcT", "Truncate", "out_type", "output_type", "TI"}
_IGNORED |= {
    "index_type",
    "incompatible_shape_error",
    "use_cudnn_on_gpu",
    "Taxis",
    "Tperm",
}


def names() -> list[str]:
    """Return the ops that are supported."""
    return list(_OPS)


def kind_of(op: str) -> str | None:
    """Return the operation of the table that the op is, None where it is unknown."""
    return _OPS[op].split()[0] if op in _OPS else None


def arguments(
    op: str, inputs: list[Any], attributes: Mapping[str, Any]
) -> tuple[tuple, dict[str, Any]]:
    """Return the arguments of the operation, by position and by name.

    Args:
        op: its name, which must be known.
        inputs: tensors and constants, in the op's order.
        attributes: the NodeDef's "attr".

    Raises:
        ValueError: too many or too few inputs; an attribute that is not supported.
    """
    given, _, settings = _OPS[op].partition("|")
    parameters = given.split()[1:]
    if parameters[0].startswith("*"):
        count = len(inputs) - len(parameters) + 1
        inputs = [tuple(inputs[:count]), *inputs[count:]]
        parameters[0] = parameters[0][1:]
    if len(inputs) != len(parameters):
        raise ValueError(f"{len(inputs)} inputs; wanted {len(parameters)}")
    bound = dict(zip(parameters, inputs, strict=True))
    pairs = (name.partition("=") for name in settings.split())
    renamed = {theirs: ours or theirs for theirs, _, ours in pairs}
    for name, value in attributes.items():
        if name in renamed:
            bound[renamed[name]] = value
        elif not name.startswith(("T", "_")) and name not in _IGNORED and value:
            raise ValueError(f"{name}={value!r:.60} is not supported")
    first = (bound.pop("x"),) if parameters[0] == "x" else ()
    return first, bound


def inputs_of(refs: tuple[Ref, ...], constants: Any) -> list[Any]:
    """Return the op's inputs: the constants in their places, tensors in the others.

    Raises:
        ValueError: a place that there is not.
    """
    constants = constants if isinstance(constants, Mapping) else {}
    count = len(refs) + len(constants)
    fixed = {str(place): value for place, value in constants.items()}
    if set(fixed) - set(map(str, range(count))):
        raise ValueError(f"constants at {sorted(fixed)!r:.60} of {count} inputs")
    waiting = iter(refs)
    return [fixed[str(i)] if str(i) in fixed else next(waiting) for i in range(count)]


def attributes_of(node: Any) -> dict[str, Any]:
    """Return the NodeDef's attributes as Python's values.

    Raises:
        ValueError: what is no NodeDef.
    """
    found = node.get("attr", {}) if isinstance(node, Mapping) else None
    if not isinstance(found, Mapping):
        raise ValueError(f"node_def={node!r:.60}; wanted an op with its attributes")
    return {str(name): _value(value) for name, value in found.items()}


def _value(value: Any) -> Any:
    """Read an AttrValue: {"i": "2"}, {"b": true}, {"s": base64}, {"list": ...}."""
    if not isinstance(value, Mapping) or len(value) != 1:
        return None
    kind, inner = next(iter(value.items()))
    if kind == "list":
        parts = inner.items() if isinstance(inner, Mapping) else ()
        return tuple(_value({k: one}) for k, row in parts for one in _row(row))
    if kind == "i":
        if not isinstance(inner, str | int) or len(str(inner)) > 20:
            raise ValueError(f"got {inner!r:.40} for a whole number")
        return int(inner)
    if kind == "s":
        return _text(inner)
    if kind == "type":
        name = str(inner).removeprefix("DT_").lower()
        return {"float": "float32", "half": "float16", "double": "float64"}.get(
            name, name
        )
    return inner if isinstance(inner, bool | int | float) else None


def _row(value: Any) -> list:
    return value if isinstance(value, list) else []


def _text(value: Any) -> str:
    try:
        return base64.b64decode(str(value), validate=True).decode("ascii")
    except (binascii.Error, UnicodeError) as error:
        raise ValueError(f"got {value!r:.40} for a text") from error
