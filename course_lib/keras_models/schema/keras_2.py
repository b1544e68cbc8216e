"""Keras 2 and tf.keras: nearly Keras 3's words."""

from collections.abc import Mapping
from typing import Any

from course_lib.keras_models.schema import keras_1
from course_lib.keras_models.spec import refusal

_ALIASES = {
    "BatchNormalizationV1": "BatchNormalization",
    "BatchNormalizationV2": "BatchNormalization",
    "SyncBatchNormalization": "BatchNormalization",
    "LSTMV2": "LSTM",
    "GRUV1": "GRU",
    "GRUV2": "GRU",
    "DenseV2": "Dense",
    # keras/applications/inception_resnet_v2.py at v2.15.0 registers it so.
    "Custom>CustomScaleLayer": "CustomScaleLayer",
}
# Their get_config of tag 2.2.4 and of tf.keras leaves data_format out.
UNWRITTEN = ("SpatialDropout2D", "SpatialDropout3D")


def translate(name: str, config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return Keras 3's class name and settings for a layer of Keras 2.

    >>> translate("LeakyReLU", {"alpha": 0.1})
    ('LeakyReLU', {'negative_slope': 0.1})
    """
    if name == "Merge":
        return keras_1.merge(config)
    if name in keras_1.KERAS_1_ONLY:  # keras/legacy/layers.py, tag 2.2.4
        return keras_1.translate(name, config)
    new = dict(config)
    if name in ("TFOpLambda", "SlicingOpLambda"):
        function = new.pop("function", None)
        if isinstance(function, str) and function.isascii() and len(function) < 100:
            return f"tf.{function}", new
        raise refusal(f"a {name} has function={function!r:.60}; wanted a name.")
    if name == "TensorFlowOpLayer":
        node = new.get("node_def")
        op = node.get("op") if isinstance(node, Mapping) else None
        if isinstance(op, str) and op.isidentifier() and len(op) < 100:
            return f"tfop.{op}", new
    if name == "LeakyReLU" and "alpha" in new:
        new["negative_slope"] = new.pop("alpha")
    for key in ("activation", "recurrent_activation"):
        if key in new:
            new[key] = _activation(new[key])
    return _ALIASES.get(name, name), new


def _activation(value: Any) -> Any:
    """Return an activation; where it is a layer with its config, translated as one."""
    if not isinstance(value, Mapping):
        return value
    name, config = value.get("class_name"), value.get("config")
    if not isinstance(name, str) or not isinstance(config, Mapping):
        return value
    name, config = translate(name, config)
    return {"class_name": name, "config": config}
