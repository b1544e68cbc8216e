"""The operation nodes of Keras 3: arithmetic, reductions, slices, shapes, activations.

One table holds them all: the class name in the file, and a function whose positional
arguments are those of the node and whose keywords are the settings of the node.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from course_lib.keras_models import activations
from course_lib.keras_models.layers.base import Layer
from course_lib.keras_models.settings import Settings
from course_lib.keras_models.spec import CallSpec, Ref

Axis = Any


def _axes(x: Tensor, axis: Axis) -> tuple[int, ...]:
    if axis is None:
        return tuple(range(x.dim()))
    return tuple(axis) if isinstance(axis, list | tuple) else (axis,)


def _reduced(function: Callable) -> Callable:
    def reduce(x: Tensor, *, axis: Axis = None, keepdims: bool = False) -> Tensor:
        return function(x, _axes(x, axis), keepdims)

    return reduce


def _extreme(function: Callable) -> Callable:
    def extreme(
        x: Tensor, *, axis: Axis = None, keepdims: bool = False, initial: Any = None
    ) -> Tensor:
        if initial is not None:
            raise ValueError(f"initial={initial!r} is not supported")
        return function(x, _axes(x, axis), keepdims)

    return extreme


def _product(x: Tensor, *, axis: Axis = None, keepdims: bool = False) -> Tensor:
    for place in sorted((a % x.dim() for a in _axes(x, axis)), reverse=True):
        x = x.prod(place, keepdim=keepdims)
    return x


def _at(function: Callable) -> Callable:
    def at(x: Tensor, *, axis: Axis = None, keepdims: bool = False) -> Tensor:
        return function(x, axis, keepdims)

    return at


def _average(x: Tensor, weights: Any = None, *, axis: Axis = None) -> Tensor:
    if weights is not None:
        raise ValueError("average with weights is not supported")
    return x.mean(_axes(x, axis))


def _variance(x: Tensor, *, axis: Axis = None, keepdims: bool = False) -> Tensor:
    return x.var(_axes(x, axis), correction=0, keepdim=keepdims)


def _deviation(x: Tensor, *, axis: Axis = None, keepdims: bool = False) -> Tensor:
    return _variance(x, axis=axis, keepdims=keepdims).sqrt()


def _norm(
    x: Tensor, *, ord: Any = None, axis: Axis = None, keepdims: bool = False
) -> Tensor:
    order = 2 if ord is None else ord
    return torch.linalg.vector_norm(x, order, _axes(x, axis), keepdims)


def _concatenate(parts: list[Tensor], *, axis: int = -1) -> Tensor:
    return torch.cat(parts, axis)


def _stack(parts: list[Tensor], *, axis: int = 0) -> Tensor:
    return torch.stack(parts, axis)


def _split(x: Tensor, *, indices_or_sections: Any, axis: int = 0) -> tuple[Tensor, ...]:
    if isinstance(indices_or_sections, int):
        size = x.shape[axis]
        if indices_or_sections < 1 or size % indices_or_sections:
            raise ValueError(f"{size} places don't split into {indices_or_sections}")
        return x.chunk(indices_or_sections, axis)
    return torch.tensor_split(x, tuple(indices_or_sections), axis)


def _reshape(x: Tensor, *, newshape: Any) -> Tensor:
    sizes = newshape if isinstance(newshape, list | tuple) else [newshape]
    return x.reshape([-1 if size is None else size for size in sizes])


def _transpose(x: Tensor, *, axes: Any = None) -> Tensor:
    return x.permute(*(axes or range(x.dim())[::-1]))


def _expand_dims(x: Tensor, *, axis: Axis) -> Tensor:
    for place in _axes(x, axis):
        x = x.unsqueeze(place)
    return x


def _squeeze(x: Tensor, *, axis: Axis = None) -> Tensor:
    return x.squeeze() if axis is None else x.squeeze(_axes(x, axis))


def _flip(x: Tensor, *, axis: Axis = None) -> Tensor:
    return x.flip(_axes(x, axis))


def _roll(x: Tensor, *, shift: Any, axis: Axis = None) -> Tensor:
    return torch.roll(x, shift, axis)


def _repeat(x: Tensor, *, repeats: int, axis: Axis = None) -> Tensor:
    return x.repeat_interleave(repeats, axis)


def _tile(x: Tensor, *, repeats: Any) -> Tensor:
    return torch.tile(x, tuple(_axes(x, repeats)))


def _pad(
    x: Tensor, constant_values: Any = None, *, pad_width: Any, mode: str = "constant"
) -> Tensor:
    if mode != "constant":
        raise ValueError(f"pad with mode={mode!r} is not supported")
    widths = [n for pair in reversed(pad_width) for n in pair]
    return F.pad(x, widths, value=constant_values or 0.0)


def _take(x: Tensor, indices: Any, *, axis: Axis = None) -> Tensor:
    chosen = torch.as_tensor(indices, device=x.device).long()
    if axis is None:
        x, axis = x.reshape(-1), 0
    axis %= x.dim()
    chosen = torch.where(chosen < 0, chosen + x.shape[axis], chosen)
    taken = x.index_select(axis, chosen.reshape(-1))
    return taken.reshape(*x.shape[:axis], *chosen.shape, *x.shape[axis + 1 :])


def _clip(x: Tensor, *, x_min: Any, x_max: Any) -> Tensor:
    return x.clamp(x_min, x_max)


def _cast(x: Tensor, *, dtype: Any = "float32") -> Tensor:
    kinds = {"float32": torch.float32, "float64": torch.float64, "bool": torch.bool}
    kinds |= {"int32": torch.int32, "int64": torch.int64, "uint8": torch.uint8}
    if dtype not in kinds:
        raise ValueError(f"dtype={dtype!r:.40} is not supported")
    return x.to(kinds[dtype])


def _get_item(x: Tensor, key: Any) -> Tensor:
    keys = key if isinstance(key, list | tuple) else [key]
    if any(isinstance(k, slice) and (k.step or 1) < 0 for k in keys):
        raise ValueError("a slice with a negative step is not supported")
    return x[tuple(keys)]


def _one_hot(
    x: Tensor, *, num_classes: int, axis: int = -1, sparse: bool = False
) -> Tensor:
    classes = torch.arange(num_classes, device=x.device)
    encoded = (x.unsqueeze(-1) == classes).float()
    return encoded.movedim(-1, axis)


def _normalize(
    x: Tensor, *, axis: int = -1, order: Any = 2, epsilon: Any = None
) -> Tensor:
    # Keras bounds the squared sum, torch the norm itself.
    return F.normalize(x, order, axis, (epsilon or 1e-7) ** 0.5)


def _einsum(*operands: Tensor, subscripts: str) -> Tensor:
    return torch.einsum(subscripts, *operands)


def _along(function: Callable) -> Callable:
    def along(x: Tensor, *, axis: int = -1) -> Tensor:
        return function(x, dim=axis)

    return along


def _gelu(x: Tensor, *, approximate: bool = True) -> Tensor:
    return F.gelu(x, approximate="tanh" if approximate else "none")


def _where(condition: Tensor, x: Any, y: Any) -> Tensor:
    return torch.where(condition.bool(), x, y)


def _tensors(function: Callable) -> Callable:
    """Let a function of tensors take numbers as well."""

    def call(x: Any, y: Any) -> Tensor:
        like = x if isinstance(x, Tensor) else y
        return function(
            *(v if isinstance(v, Tensor) else like.new_tensor(v) for v in (x, y))
        )

    return call


_POINTWISE: dict[str, Callable] = {
    "Absolute": torch.abs,
    "Abs": torch.abs,
    "Negative": torch.neg,
    "Exp": torch.exp,
    "Expm1": torch.expm1,
    "Log": torch.log,
    "Log1p": torch.log1p,
    "Log2": torch.log2,
    "Log10": torch.log10,
    "Sqrt": torch.sqrt,
    "Rsqrt": torch.rsqrt,
    "Square": torch.square,
    "Reciprocal": torch.reciprocal,
    "Sign": torch.sign,
    "Floor": torch.floor,
    "Ceil": torch.ceil,
    "Round": lambda x, *, decimals=0: torch.round(x, decimals=decimals),
    "Trunc": torch.trunc,
    "Sin": torch.sin,
    "Cos": torch.cos,
    "Tan": torch.tan,
    "Sinh": torch.sinh,
    "Cosh": torch.cosh,
    "Tanh": torch.tanh,
    "Arcsin": torch.asin,
    "Arccos": torch.acos,
    "Arctan": torch.atan,
    "Arcsinh": torch.asinh,
    "Arccosh": torch.acosh,
    "Arctanh": torch.atanh,
    "Erf": torch.erf,
    "IsFinite": torch.isfinite,
    "Isfinite": torch.isfinite,
    "Isnan": torch.isnan,
    "LogicalNot": torch.logical_not,
    "OnesLike": torch.ones_like,
    "ZerosLike": torch.zeros_like,
    "StopGradient": torch.detach,
    "Identity": activations.linear,
    "Relu": torch.relu,
    "Relu6": F.relu6,
    "Sigmoid": torch.sigmoid,
    "Softplus": F.softplus,
    "Softsign": F.softsign,
    "Silu": F.silu,
    "LogSigmoid": F.logsigmoid,
    "HardSigmoid": F.hardsigmoid,
    "HardSilu": F.hardswish,
    "HardTanh": F.hardtanh,
    "TanhShrink": F.tanhshrink,
    "Selu": F.selu,
    "Mish": F.mish,
    "SparsePlus": activations.sparse_plus,
    "SparseSigmoid": activations.sparse_sigmoid,
    "Gelu": _gelu,
    "LeakyRelu": lambda x, *, negative_slope=0.2: F.leaky_relu(x, negative_slope),
    "Elu": lambda x, *, alpha=1.0: F.elu(x, alpha),
    "Celu": lambda x, *, alpha=1.0: F.celu(x, alpha),
    "HardShrink": lambda x, *, threshold=0.5: F.hardshrink(x, threshold),
    "SoftShrink": lambda x, *, threshold=0.5: F.softshrink(x, threshold),
    "Squareplus": lambda x, *, b=4: activations.squareplus(x, b),
    "Clip": _clip,
    "Cast": _cast,
}
_OTHERS: dict[str, Callable] = {
    "Add": lambda x, y: x + y,
    "Subtract": lambda x, y: x - y,
    "Multiply": lambda x, y: x * y,
    "Divide": lambda x, y: x / y,
    "TrueDivide": lambda x, y: x / y,
    "FloorDivide": lambda x, y: x // y,
    "Mod": lambda x, y: x % y,
    "Power": lambda x, y: x**y,
    "Maximum": _tensors(torch.maximum),
    "Minimum": _tensors(torch.minimum),
    "Greater": lambda x, y: x > y,
    "GreaterEqual": lambda x, y: x >= y,
    "Less": lambda x, y: x < y,
    "LessEqual": lambda x, y: x <= y,
    "Equal": lambda x, y: x == y,
    "NotEqual": lambda x, y: x != y,
    "LogicalAnd": _tensors(torch.logical_and),
    "LogicalOr": _tensors(torch.logical_or),
    "LogicalXor": _tensors(torch.logical_xor),
    "Arctan2": _tensors(torch.atan2),
    "Where": _where,
    "Sum": _reduced(torch.sum),
    "Mean": _reduced(torch.mean),
    "Max": _extreme(torch.amax),
    "Min": _extreme(torch.amin),
    "Prod": _product,
    "Var": _variance,
    "Std": _deviation,
    "Amax": _reduced(torch.amax),
    "Amin": _reduced(torch.amin),
    "Any": _extreme(torch.any),
    "All": _extreme(torch.all),
    "Average": _average,
    "Logsumexp": _reduced(torch.logsumexp),
    "Argmax": _at(torch.argmax),
    "Argmin": _at(torch.argmin),
    "Norm": _norm,
    "Normalize": _normalize,
    "Cumsum": lambda x, *, axis, dtype=None: x.cumsum(axis),
    "Softmax": _along(F.softmax),
    "LogSoftmax": _along(F.log_softmax),
    "Sparsemax": _along(activations.sparsemax),
    "Glu": _along(F.glu),
    "Concatenate": _concatenate,
    "Stack": _stack,
    "Split": _split,
    "Reshape": _reshape,
    "Ravel": lambda x: x.reshape(-1),
    "Transpose": _transpose,
    "Swapaxes": lambda x, *, axis1, axis2: x.swapaxes(axis1, axis2),
    "Moveaxis": lambda x, *, source, destination: x.movedim(source, destination),
    "ExpandDims": _expand_dims,
    "Squeeze": _squeeze,
    "BroadcastTo": lambda x, *, shape: x.broadcast_to(shape),
    "Flip": _flip,
    "Roll": _roll,
    "Repeat": _repeat,
    "Tile": _tile,
    "Pad": _pad,
    "Take": _take,
    "GetItem": _get_item,
    "OneHot": _one_hot,
    "Matmul": torch.matmul,
    "Einsum": _einsum,
}
OPERATIONS = {**_POINTWISE, **_OTHERS}


class Operation(Layer):
    """One operation; each of its calls has constants of its own among the arguments."""

    passes_mask = True

    def __init__(self, settings: Settings, calls: list[CallSpec]) -> None:
        super().__init__(settings)
        kind = settings.spec.kind.removeprefix("ops.")
        self.kind = kind
        self.options = {key: _constant(v, settings) for key, v in settings.left.items()}
        settings.left = {}
        if kind == "Cast":  # elsewhere a dtype is the layer's own
            self.options["dtype"] = settings.spec.config.get("dtype", "float32")
        known = _keywords(OPERATIONS[kind])
        for key in [key for key in self.options if key not in known]:
            settings.unsupported(key, self.options.pop(key))
        self.calls = [
            (_constant(call.args, settings), _constant(call.kwargs, settings))
            for call in calls
        ]
        alone = kind in _POINTWISE or all(_is_scalar(args) for args, _ in self.calls)
        self.wants_first = None if alone and kind in (*_POINTWISE, *_BINARY) else False

    def forward(self, *inputs: Tensor, call: int = 0) -> Any:
        """Apply the function; `inputs` take the places of the tensors in the call."""
        args, kwargs = self.calls[call]
        queue = iter(inputs)
        args = _filled(args, queue, inputs[0])
        kwargs = _filled(kwargs, queue, inputs[0])
        return OPERATIONS[self.kind](*args, **kwargs, **self.options)


_BINARY = ("Add", "Subtract", "Multiply", "Divide", "TrueDivide", "Power")


def _keywords(function: Callable) -> set[str]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # a function of torch itself, which takes none here
        return set()
    return {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}


def _is_scalar(args: tuple) -> bool:
    """Tell whether one tensor meets nothing but numbers."""
    refs = [arg for arg in args if isinstance(arg, Ref)]
    rest = [arg for arg in args if not isinstance(arg, Ref)]
    return len(refs) == 1 and all(isinstance(arg, int | float) for arg in rest)


def _constant(value: Any, settings: Settings) -> Any:
    """Turn serialized slices and arrays into themselves, at every depth."""
    if isinstance(value, Ref) or not isinstance(value, Mapping | list | tuple):
        return value
    if isinstance(value, list | tuple):
        return tuple(_constant(part, settings) for part in value)
    kind, config = value.get("class_name"), value.get("config")
    if not isinstance(config, Mapping):
        config = {}
    if kind == "__slice__":
        ends = [config.get(key) for key in ("start", "stop", "step")]
        return slice(*(end if isinstance(end, int) else None for end in ends))
    if kind == "__ellipsis__":
        return Ellipsis
    if kind in ("__numpy__", "__tensor__"):
        try:
            return torch.tensor(config.get("value"))
        except (TypeError, ValueError, RuntimeError, OverflowError):
            settings.problem("holds an array that is no table of numbers")
            return None
    if kind == "DTypePolicy":
        return config.get("name")
    if kind is None:
        return {str(key): _constant(part, settings) for key, part in value.items()}
    settings.problem(f"has the argument {kind!r:.60}, which is unknown here")
    return None


def _filled(value: Any, queue: Any, like: Tensor) -> Any:
    """Put the inputs in the places of the `Ref`s, and constants on their device."""
    if isinstance(value, Ref):
        return next(queue)
    if isinstance(value, Tensor):
        floating = value.is_floating_point() and like.is_floating_point()
        return value.to(like.device, like.dtype if floating else value.dtype)
    if isinstance(value, Mapping):
        return {key: _filled(part, queue, like) for key, part in value.items()}
    if isinstance(value, tuple):
        return tuple(_filled(part, queue, like) for part in value)
    return value
