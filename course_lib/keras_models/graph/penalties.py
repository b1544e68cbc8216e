"""Give each layer its penalties, as often as its Keras version counts them."""

from torch import Tensor, nn

from course_lib.keras_models import regularizers
from course_lib.keras_models.graph.model import KerasModel
from course_lib.keras_models.graph.plan import module_name
from course_lib.keras_models.layers.base import Layer
from course_lib.keras_models.layers.wrappers import Bidirectional, TimeDistributed
from course_lib.regularization.activity import record_outputs
from course_lib.regularization.modules import regularize


def attach_penalties(
    model: KerasModel, outer: tuple[int, ...] = (), called: bool = False, runs: int = 1
) -> None:
    """Attach a model's regularizers to its layers.

    `outer` is how often the models around this one and it itself are called, `called`
    whether one of them is called by another model, `runs` how often a call runs layers.
    """
    version = model.version
    for i, (name, module) in enumerate(model._modules.items()):
        calls = sum(module_name(call.layer) == name for call in model.calls)
        path = (*outer, max(calls, 1))
        if isinstance(module, KerasModel):
            begins = i == 0 and model.keras_class == "Sequential"
            taken_over = begins and not regularizers.calls_first_model(version)
            attach_penalties(module, path, called or not taken_over, runs)
        elif isinstance(module, Layer):
            counted = outer and regularizers.counts_nested_calls(version)
            count = regularizers.nested_count(path) if counted else 1
            target = regularizers.nested_activity(version) if called else "outputs"
            _attach(module, count, target, runs)


def _attach(layer: Layer, repeat: int, target: str = "outputs", runs: int = 1) -> None:
    """Attach the penalties of a layer and of what it wraps.

    That of a weight counts `repeat` times; that of activity is taken of the `target`.
    """
    version = layer.keras_version
    by_parameter = {}
    for variable in layer.variables.values():
        parameter = getattr(layer, variable.attribute)
        counts = parameter.requires_grad or regularizers.counts_frozen(version)
        if variable.regularizer is not None and counts:
            repeated = regularizers.times(variable.regularizer, repeat)
            by_parameter[variable.attribute] = repeated
    penalty = None
    if layer.activity is not None:
        own = regularizers.times(layer.activity, runs)
        penalty = regularizers.activity(own, version)
    regularize(layer, activity=penalty if target == "outputs" else None, **by_parameter)
    if penalty and target == "inputs":
        layer.inputs_of_calls = Inputs()
        cost = regularizers.InputActivity(penalty)
        record_outputs(layer.inputs_of_calls, cost)
        layer.register_forward_pre_hook(_pass_inputs)
    inners = layer.sublayers()
    if isinstance(layer, Bidirectional) and not regularizers.counts_backward(version):
        inners = inners[:1]
    is_distributed = isinstance(layer, TimeDistributed)  # it alone runs layer.call
    for inner in inners:
        if isinstance(inner, KerasModel):
            # tf.keras asks a wrapped model for its mask, which runs it once more:
            # keras v2.15.0 keras/layers/rnn/time_distributed.py#L329
            attach_penalties(inner, runs=2 if is_distributed and version.tf else 1)
            continue
        if is_distributed and not regularizers.counts_wrapped_activity(version):
            inner.activity = None
        _attach(inner, repeat)


class Inputs(nn.Module):
    """What a layer is called with, as a module whose output can have a penalty."""

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the inputs."""
        return inputs


def _pass_inputs(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    layer.inputs_of_calls(*inputs)
