"""Keras 2 and tf.keras: nearly Keras 3's words."""

from collections.abc import Mapping
from typing import Any

from course_lib.keras_models import schema_1

_ALIASES = {
    "BatchNormalizationV1": "BatchNormalization",
    "BatchNormalizationV2": "BatchNormalization",
    "SyncBatchNormalization": "BatchNormalization",
    "LSTMV2": "LSTM",
    "GRUV1": "GRU",
    "GRUV2": "GRU",
    "DenseV2": "Dense",
}
# tf.keras's nodes of plain TensorFlow functions, and Keras 3's names for them.
_FUNCTIONS = {
    "math.add": "Add",
    "__operators__.add": "Add",
    "math.subtract": "Subtract",
    "math.multiply": "Multiply",
    "math.truediv": "TrueDivide",
    "math.divide": "TrueDivide",
    "math.pow": "Power",
    "math.maximum": "Maximum",
    "math.minimum": "Minimum",
    "math.negative": "Negative",
    "math.abs": "Absolute",
    "math.exp": "Exp",
    "math.log": "Log",
    "math.sqrt": "Sqrt",
    "math.square": "Square",
    "math.tanh": "Tanh",
    "math.sigmoid": "Sigmoid",
    "nn.relu": "Relu",
    "nn.sigmoid": "Sigmoid",
    "nn.tanh": "Tanh",
    "nn.silu": "Silu",
    "__operators__.getitem": "GetItem",
}


def translate(name: str, config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return Keras 3's class name and settings for a layer of Keras 2.

    >>> translate("LeakyReLU", {"alpha": 0.1})
    ('LeakyReLU', {'negative_slope': 0.1})
    """
    if name == "Merge":
        return schema_1.merge(config)
    new = dict(config)
    if name in ("TFOpLambda", "SlicingOpLambda"):
        function = new.pop("function", None)
        kind = _FUNCTIONS.get(function) if isinstance(function, str) else None
        return (f"ops.{kind}", new) if kind else (f"{name} of {function!r:.40}", new)
    if name == "LeakyReLU" and "alpha" in new:
        new["negative_slope"] = new.pop("alpha")
    return _ALIASES.get(name, name), new
