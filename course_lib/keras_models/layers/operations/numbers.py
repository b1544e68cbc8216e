"""What treats each number by itself, and what two tensors of numbers make together."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from course_lib.keras_models import activations
from course_lib.keras_models.layers.operations.row import Row

_NAMES = (
    *("float16", "bfloat16", "float32", "float64", "half", "float", "double", "bool"),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
)


def dtype_of(name: Any) -> torch.dtype:
    """Return torch's dtype of that name.

    Raises:
        ValueError: there is none.
    """
    if not isinstance(name, str) or name not in _NAMES:
        raise ValueError(f"dtype={name!r:.40} is not supported")
    return getattr(torch, name)


def _cast(x: Tensor, *, dtype: Any = None) -> Tensor:
    """Return the numbers in another dtype, if any; float32 is what the model has.

    So a model that was made float64 stays so.
    """
    if dtype is None:
        return x
    new = dtype_of(dtype)
    own = (torch.float32, torch.float64)
    return x if new in own and x.dtype in own else x.to(new)


def as_floats(x: Tensor) -> Tensor:
    """Return whole numbers as float32, floats unchanged."""
    return x if x.is_floating_point() else x.float()


def _saturate_cast(x: Tensor, *, dtype: Any) -> Tensor:
    new = dtype_of(dtype)
    if not new.is_floating_point and new is not torch.bool:
        x = x.clamp(torch.iinfo(new).min, torch.iinfo(new).max)
    return x.to(new)


def _like(number: float) -> Callable:
    def make(x: Tensor, *, dtype: Any = None) -> Tensor:
        return torch.full_like(x, number, dtype=dtype_of(dtype) if dtype else None)

    return make


def _full_like(x: Tensor, fill_value: Any, *, dtype: Any = None) -> Tensor:
    return _like(1)(x, dtype=dtype) * fill_value


def _tensors(function: Callable) -> Callable:
    """Let a function of two tensors take a number, of the type that both have."""

    def call(x: Any, y: Any) -> Tensor:
        tensor = x if isinstance(x, Tensor) else y
        new = torch.result_type(x, y)
        place = tensor.device
        x, y = (torch.as_tensor(value, device=place).to(new) for value in (x, y))
        return function(x, y)

    return call


maximum, minimum = _tensors(torch.maximum), _tensors(torch.minimum)


def _true_divide(x: Tensor, y: Tensor) -> Tensor:
    """Return x / y; TensorFlow divides whole numbers of 32 bits and more in float64.

    uint16 too, which is int32 here, though TensorFlow has float32 for it.
    Source: _TRUEDIV_TABLE of tensorflow v2.15.0 tensorflow/python/ops/math_ops.py.
    """
    return x.double() / y if x.dtype in (torch.int32, torch.int64) else x / y


def _divide_no_nan(x: Tensor, y: Tensor) -> Tensor:
    return torch.where(y == 0, 0, x / torch.where(y == 0, 1, y))


def _multiply_no_nan(x: Tensor, y: Tensor) -> Tensor:
    return torch.where(y == 0, 0, x * y)


def _clip(x: Tensor, x_min: Any, x_max: Any) -> Tensor:
    """Return x, cut to the range; the upper end holds if it is below the lower one."""
    return minimum(maximum(x, x_min), x_max)


def _clip_by_value(x: Tensor, clip_value_min: Any, clip_value_max: Any) -> Tensor:
    """Return x, cut to the range; the lower end holds if it is above the upper one."""
    return maximum(minimum(x, clip_value_max), clip_value_min)


def _where(condition: Tensor, x: Any, y: Any) -> Tensor:
    return torch.where(condition.bool(), x, y)


def _gelu(x: Tensor, *, approximate: bool = True) -> Tensor:
    return F.gelu(x, approximate="tanh" if approximate else "none")


def _binary_crossentropy(
    target: Tensor, output: Tensor, *, from_logits: bool = False
) -> Tensor:
    """Return the cross-entropy of each number, which is a probability or a logit."""
    if from_logits:
        return F.binary_cross_entropy_with_logits(output, target, reduction="none")
    output = output.clamp(1e-7, 1 - 1e-7)  # keras.backend.epsilon()
    return F.binary_cross_entropy(output, target, reduction="none")


def _same_words(
    words: str, columns: int, adapt: Callable = lambda function: function
) -> Iterator[Row]:
    """Yield rows of torch's functions that have one name in the first columns."""
    for word in words.split():
        names = (word.capitalize(), f"math.{word}", word.capitalize())
        yield Row(adapt(getattr(torch, word)), *names[:columns])


# What treats each number by itself, in whatever order the axes are.
ELEMENTWISE = (
    *_same_words("exp2 log2 log10 trunc sinc deg2rad rad2deg erfinv signbit", 1),
    *_same_words("expm1 tan sinh cosh erfc", 2),
    *_same_words("exp log log1p sqrt rsqrt square reciprocal sign floor ceil", 3),
    *_same_words("sin cos tanh sigmoid erf", 3),
    Row(torch.abs, "Absolute, Abs, Fabs", "math.abs", "Abs"),
    Row(torch.neg, "Negative", "math.negative", "Neg"),
    Row(lambda x: x.sign() * x.abs() ** (1 / 3), "Cbrt"),
    Row(
        lambda x, *, decimals=0: x.round(decimals=decimals),
        "Round",
        "math.round",
        "Round",
    ),
    Row(torch.asin, "Arcsin", "math.asin"),
    Row(torch.acos, "Arccos", "math.acos"),
    Row(torch.atan, "Arctan", "math.atan"),
    Row(torch.asinh, "Arcsinh", "math.asinh"),
    Row(torch.acosh, "Arccosh", "math.acosh"),
    Row(torch.atanh, "Arctanh", "math.atanh"),
    Row(torch.lgamma, "", "math.lgamma"),
    Row(torch.digamma, "", "math.digamma"),
    Row(torch.isfinite, "Isfinite", "math.is_finite"),
    Row(torch.isnan, "Isnan", "math.is_nan"),
    Row(torch.isinf, "Isinf", "math.is_inf"),
    Row(torch.logical_not, "LogicalNot", "math.logical_not", "LogicalNot"),
    Row(_like(1), "OnesLike", "ones_like", "OnesLike"),
    Row(_like(0), "ZerosLike", "zeros_like", "ZerosLike"),
    Row(torch.detach, "StopGradient", "stop_gradient", "StopGradient"),
    Row(
        activations.linear,
        "Copy",
        "identity, convert_to_tensor, debugging.check_numerics",
        "Identity",
    ),
    Row(_cast, "Cast, ConvertToTensor", "cast", "Cast x DstT=dtype"),
    Row(_saturate_cast, "SaturateCast", "dtypes.saturate_cast"),
    Row(_full_like, "FullLike"),
    Row(
        lambda x, *, nan=0.0, posinf=None, neginf=None: x.nan_to_num(
            nan, posinf, neginf
        ),
        "NanToNum",
    ),
    Row(_clip, "Clip"),
    Row(_clip_by_value, "", "clip_by_value", "ClipByValue"),
    Row(torch.relu, "Relu", "nn.relu", "Relu"),
    Row(F.relu6, "Relu6", "nn.relu6", "Relu6"),
    Row(F.softplus, "Softplus", "math.softplus", "Softplus"),
    Row(F.softsign, "Softsign", "nn.softsign", "Softsign"),
    Row(activations.swish, "Silu", "nn.silu"),
    Row(F.logsigmoid, "LogSigmoid", "math.log_sigmoid"),
    Row(F.hardsigmoid, "HardSigmoid"),
    Row(F.hardswish, "HardSilu"),
    Row(F.hardtanh, "HardTanh"),
    Row(F.tanhshrink, "TanhShrink"),
    Row(F.selu, "Selu", "nn.selu", "Selu"),
    Row(activations.sparse_plus, "SparsePlus"),
    Row(activations.sparse_sigmoid, "SparseSigmoid"),
    Row(_gelu, "Gelu", "nn.gelu approximate:=false"),
    Row(
        lambda x, *, negative_slope=0.2: F.leaky_relu(x, negative_slope),
        "LeakyRelu",
        "nn.leaky_relu alpha=negative_slope",
        "LeakyRelu alpha=negative_slope",
    ),
    Row(lambda x, *, alpha=1.0: F.elu(x, alpha), "Elu", "nn.elu", "Elu"),
    Row(lambda x, *, alpha=1.0: F.celu(x, alpha), "Celu"),
    Row(lambda x, *, threshold=0.5: F.hardshrink(x, threshold), "HardShrink"),
    Row(lambda x, *, threshold=0.5: F.softshrink(x, threshold), "SoftShrink"),
    Row(lambda x, *, b=4: activations.squareplus(x, b), "Squareplus"),
    Row(
        lambda x, *, threshold, default: activations.threshold(x, threshold, default),
        "Threshold default_value=default",
    ),
    Row(lambda x, y: x + y, "Add", "math.add, __operators__.add", "Add, AddV2"),
    Row(lambda x, y: x - y, "Subtract", "math.subtract", "Sub"),
    Row(lambda x, y: x * y, "Multiply", "math.multiply, math.scalar_mul x=y", "Mul"),
    Row(lambda x, y: x / y, "Divide, TrueDivide"),
    Row(_tensors(_true_divide), "", "math.truediv", "RealDiv"),
    Row(_tensors(_divide_no_nan), "DivideNoNan", "math.divide_no_nan"),
    Row(_tensors(_multiply_no_nan), "", "math.multiply_no_nan"),
    Row(lambda x, y: (x - y) ** 2, "", "math.squared_difference", "SquaredDifference"),
    Row(_tensors(torch.xlogy), "", "math.xlogy"),
    Row(lambda x, y: x // y, "FloorDivide", "floor_div", "FloorDiv"),
    Row(lambda x, y: x % y, "Mod", "math.floormod", "FloorMod"),
    Row(lambda x, y: x**y, "Power", "math.pow", "Pow"),
    Row(maximum, "Maximum", "math.maximum", "Maximum"),
    Row(minimum, "Minimum", "math.minimum", "Minimum"),
    Row(lambda x, y: x > y, "Greater", "math.greater", "Greater"),
    Row(lambda x, y: x >= y, "GreaterEqual", "math.greater_equal", "GreaterEqual"),
    Row(lambda x, y: x < y, "Less", "math.less", "Less"),
    Row(lambda x, y: x <= y, "LessEqual", "math.less_equal", "LessEqual"),
    Row(lambda x, y: x == y, "Equal", "math.equal", "Equal"),
    Row(lambda x, y: x != y, "NotEqual", "math.not_equal", "NotEqual"),
    Row(_tensors(torch.logical_and), "LogicalAnd", "math.logical_and", "LogicalAnd"),
    Row(_tensors(torch.logical_or), "LogicalOr", "math.logical_or", "LogicalOr"),
    Row(_tensors(torch.logical_xor), "LogicalXor"),
    *_same_words("fmax fmin fmod heaviside hypot logaddexp logaddexp2", 1, _tensors),
    Row(_tensors(torch.atan2), "Arctan2", "math.atan2 x=y"),
    Row(_where, "Where", "where", "SelectV2"),
    Row(
        _binary_crossentropy,
        "BinaryCrossentropy",
        "nn.sigmoid_cross_entropy_with_logits logits=output from_logits:=true",
    ),
)
