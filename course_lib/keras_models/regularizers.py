"""What a regularizer in a file means, by the version that wrote it.

| | 0.3, 1.0.4 | 1.0.8, 1.1 | 1.2 | 2.0 - 2.1.3 | 2.1.4 - 2.3 | tf.keras | 3 |
|---|---|---|---|---|---|---|---|
| activity, over the batch | mean | sum | sum | sum | sum | mean | sum, from 3.14 mean |
| nested model, called twice | once | once | twice | twice | once | once | once |
| LSTM and GRU, W_regularizer | W | W | W and U | kernel | kernel | kernel | kernel |
| backward layer of Bidirectional | - | yes | yes | no | no, to 2.1 | yes | yes |
| activity inside TimeDistributed | yes | yes | yes | yes | yes | yes | no |
| activity in a nested model, of | out | out | - | inputs | out | out | out |
| of a frozen layer | no, yes | yes | yes | yes | yes | yes | no |

The penalty of a weight is l1 * sum |w| + l2 * sum w**2 in all of them, and a layer that
is called twice in the same model counts its weights once; `nested_count` says what 1.2
to 2.1.3 did with nested models.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from itertools import accumulate
from typing import Any, Literal

import torch
from torch import Tensor

from course_lib.keras_models.objects import class_and_config, number_in
from course_lib.keras_models.spec import Version
from course_lib.regularization.regularizers import L1L2, Activity

_NAMES = {"WeightRegularizer", "ActivityRegularizer", "L1L2Regularizer"}
_NAMES |= {"L1L2", "L1", "L2", "l1", "l2", "l1_l2"}


def parse_regularizer(value: Any) -> L1L2 | None:
    """Return the coefficients that a config holds, None where both are 0.

    Raises:
        ValueError: another regularizer, or coefficients that are none; the message
            completes a sentence.

    >>> parse_regularizer({"class_name": "L2", "config": {"l2": 0.01}})
    L1L2(l1=0.0, l2=0.01, norm='squared')
    """
    if value is None:
        return None
    name = config = None
    if isinstance(value, Mapping):
        name, config = class_and_config(value)
    if name == "Regularizer":  # the identity of 0.3 and 1.0
        return None
    if name not in _NAMES:
        raise ValueError(
            f"{name or value!r} is unknown here; L1, L2 and L1L2 are known"
        )
    # Keras's own default, 0.01, stands only in calls; a config is always complete.
    config = {key: value for key, value in config.items() if value is not None}
    l1, l2 = (number_in(config, key, default=0.0) for key in ("l1", "l2"))
    return L1L2(l1, l2) if l1 or l2 else None


def times(regularizer: L1L2, count: int) -> L1L2:
    """Return a regularizer with `count` times the coefficients."""
    return L1L2(regularizer.l1 * count, regularizer.l2 * count)


def activity(regularizer: L1L2, version: Version) -> Activity:
    """Return the penalty of a layer's output as `version` computed it.

    >>> activity(L1L2(l1=1.0), Version.parse("2.0.3")).reduction
    'sum'
    >>> for version in ("2.15", "3.13", "3.14"):
    ...     print(activity(L1L2(l1=1.0), Version.parse(version)).reduction)
    mean
    sum
    mean
    """
    # Mean: keras 1.0.6 keras/regularizers.py#L105,
    # keras v2.15.0 keras/engine/base_layer.py#L2864,
    # keras v3.14.0 keras/src/layers/layer.py#L1024.
    # Sum: keras 1.0.7 keras/regularizers.py#L109,
    # keras v3.13.2 keras/src/layers/layer.py#L972.
    old = (1, 0, 7) <= version < (2, 4) and not version.tf
    summed = old or (3, 0) <= version < (3, 14)
    return Activity(regularizer, reduction="sum" if summed else "mean")


@dataclass(frozen=True)
class InputActivity:
    """The penalty of all inputs of a layer, each as `activity` takes an output."""

    activity: Activity

    def __call__(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Return the sum."""
        return reduce(torch.add, map(self.activity, inputs))


def nested_activity(version: Version) -> Literal["outputs", "inputs", "nothing"]:
    """Tell what an activity penalty is taken of, in a model that another one calls.

    1.2 computed it only where a layer is called by itself, keras 1.2.2
    keras/engine/topology.py#L581. 2.0 to 2.1.3 took it of what a layer is called with,
    keras 2.1.3 keras/engine/topology.py#L2246, and 2.1.4 of its outputs,
    keras 2.1.4 keras/engine/topology.py#L2249.
    """
    if version.tf or not (1, 2) <= version < (2, 1, 4):
        return "outputs"
    return "nothing" if version < (2, 0) else "inputs"


def calls_first_model(version: Version) -> bool:
    """Tell whether a Sequential calls a model that it begins with, or takes it over.

    keras 2.0.9 keras/models.py#L429, keras 2.1.0 keras/models.py#L464.
    """
    return version >= (2, 1) or version.tf


def counts_nested_calls(version: Version) -> bool:
    """Tell whether each call of a nested model adds its weights' penalties again.

    A model adds its layers' losses whenever it runs, keras 2.1.3
    keras/engine/topology.py#L2257; since 2.1.4 only different ones count,
    keras 2.1.4 keras/engine/topology.py#L1947.
    """
    return (1, 2) <= version < (2, 1, 4) and not version.tf


def nested_count(calls: tuple[int, ...]) -> int:
    """Return how often Keras 1.2 to 2.1.3 counted the weights of a nested layer.

    A model kept a list of losses, and each of its runs appended those of its inner
    layers, which had grown by then. Run t of a model whose inner model has k calls
    appends the inner list after its runs kt + 1 to kt + k.

    Args:
        calls: of the outermost nested model in its model, of the one inside, ..., of
            the layer itself.

    Raises:
        ValueError: so many calls that the list would have millions of entries.

    >>> nested_count((2, 1)), nested_count((2, 2, 1)), nested_count((2, 3, 1))
    (2, 18, 39)
    """
    runs = [calls[0]]
    for count in calls[1:-1]:
        runs.append(count * (runs[-1] + 1))
        if runs[-1] > 100_000:
            raise ValueError(f"nested models are called {calls} times; wanted fewer")
    lengths = [calls[-1] * run for run in range(runs[-1] + 1)]
    for count, most in zip(calls[-2:0:-1], runs[-2::-1], strict=True):
        sums = [0, *accumulate(lengths)]
        lengths = [
            sums[count * (run + 1) + 1] - sums[count + 1] for run in range(most + 1)
        ]
    return lengths[-1]


def recurrent_follows_kernel(version: Version) -> bool:
    """Tell whether an LSTM's or GRU's U carries W's regularizer.

    keras 1.2.2 keras/layers/recurrent.py#L501, and no longer
    keras 2.0.3 keras/layers/recurrent.py#L483.
    """
    return (1, 2) <= version < (2, 0)


def counts_wrapped_activity(version: Version) -> bool:
    """Tell whether TimeDistributed adds the activity penalty of what it wraps.

    In Keras 3 it goes around `__call__`: keras v3.0.5
    keras/layers/rnn/time_distributed.py#L102.
    """
    return version < (3, 0)


def counts_backward(version: Version) -> bool:
    """Tell whether Bidirectional also penalizes its backward layer.

    2.0 asked `self.layer` alone, keras 2.0.3 keras/layers/wrappers.py#L64; since 2.2
    both, keras 2.2.0 keras/layers/wrappers.py#L603.
    """
    return not (2, 0) <= version < (2, 2) or version.tf


def counts_frozen(version: Version) -> bool:
    """Tell whether the weights of a frozen layer are penalized.

    keras 0.3.3 keras/layers/containers.py#L86, keras 1.0.0
    keras/engine/training.py#L568, keras v3.15.1 keras/src/layers/layer.py#L1298.
    """
    return (1, 0) <= version < (3, 0)
