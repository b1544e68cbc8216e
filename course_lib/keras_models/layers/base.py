"""The base of all layers: variables that know Keras's axis order.

A layer is made in two steps: `__init__` reads the settings, so that every problem of a
file is found before anything is built; `build` gets the shapes of the inputs, in
Keras's order, and makes the variables on the meta device, where they cost nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from course_lib.keras_models.activations import linear
from course_lib.keras_models.constraints import Constraint
from course_lib.keras_models.initializers import Initializer
from course_lib.keras_models.settings import Settings
from course_lib.keras_models.spec import Version
from course_lib.regularization.regularizers import L1L2

Shape = tuple[int, ...]
View = Callable[[Tensor], Tensor]
MaskRule = int | str | Callable[..., Tensor] | None


def as_it_is(tensor: Tensor) -> Tensor:
    """View a tensor that Keras and torch store in the same way."""
    return tensor


def kernel_view(weight: Tensor) -> Tensor:
    """View (out, in, *kernel) as Keras's (*kernel, in, out)."""
    return weight.permute(*range(2, weight.dim()), 1, 0)


def channels_to_last(tensor: Tensor) -> Tensor:
    """View (batch, channels, ...) as (batch, ..., channels)."""
    return tensor.movedim(1, -1)


def channels_to_first(tensor: Tensor) -> Tensor:
    """View (batch, ..., channels) as (batch, channels, ...)."""
    return tensor.movedim(-1, 1)


@dataclass
class Variable:
    """One array of a Keras layer, and the parameter or buffer that holds it.

    Args:
        name: Keras's name, for example `"kernel"`.
        attribute: the module's name for it, for example `"weight"`.
        view: shows the stored tensor in Keras's axis order, without a copy.
        initializer: fills that view where the file brings no array.
        regularizer: its cost.
        constraint: changes it after each step of training.
        stored: False for values of the config, which no file of weights holds.
    """

    name: str
    attribute: str
    view: View = as_it_is
    initializer: Initializer | None = None
    regularizer: L1L2 | None = None
    constraint: Constraint | None = None
    stored: bool = True
    value: np.ndarray | None = field(default=None, repr=False)


class Layer(nn.Module):
    """A Keras layer as a module.

    Its attribute `wants_first` says which order of axes it takes: False that of the
    file; True a channels-last tensor stored with its channels at axis 1, as torch's
    layers want it; None any order, since each number is treated in the same way.

    A mask tells which time steps count: (batch, steps) for (batch, steps, features).
    How a layer treats the masks of its inputs is said by class attributes, or in
    `__init__` where it depends on `settings.version`:

    | attribute | |
    |---|---|
    | passes_mask | the output is masked as the first input is |
    | makes_mask | the output has a mask of its own, from a method mask(x) |
    | ends_mask | the output has no mask; Keras 1 and 2 allow this layer under a mask |
    | uses_mask | forward takes mask=, that of the first input |
    | uses_masks | forward takes masks=, a tuple of one for each input or None |

    `mask_after` says more where these don't suffice. A layer with none of them drops
    masks in tf.keras and Keras 3; Keras 1 and 2 refuse to call it under a mask
    (`Layer.compute_mask`, keras/engine/topology.py at 1.2.2 and 2.1.0), and so do we.
    """

    wants_first: bool | None = False
    passes_mask = makes_mask = ends_mask = uses_mask = uses_masks = False
    returns_input = False  # the very tensor, when not training
    makes_floats = False  # of torch's default type, from whole numbers
    takes_masks_off = False  # its inputs have none any more in later calls
    masked_outputs = 1  # how many of the first outputs have the mask
    argument_names: tuple[str, ...] = ()  # of the tensors that a call gives by name
    call_options: tuple[str, ...] = ()  # other arguments of a call, for forward
    group_names: tuple[str, ...] = ()  # attributes of `sublayers`; Keras 3's names too

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.keras_name = settings.name
        self.keras_class = settings.spec.source
        self.keras_version = settings.version
        self.keras_trainable = settings.spec.trainable
        self.activity = settings.activity
        self.variables: dict[str, Variable] = {}

    def build(self, *shapes: Shape) -> None:
        """Make the variables for inputs of these shapes."""

    def settle(self, first: bool, ranks: tuple[int, ...]) -> None:
        """Choose the order of axes for inputs of which any is (not) channels first."""

    def mask_after(self, masked: tuple[bool, ...]) -> MaskRule:
        """Say which mask the output has, where those inputs have one.

        Returns:
            None for no mask; the number of the input whose mask it is; a function
            (*inputs, masks=...) that computes it, and can be pickled; or, in words,
            why it can't be known, which is raised where a later layer needs the mask.
        """
        return 0 if self.passes_mask and masked[0] else None

    def add(
        self,
        name: str,
        attribute: str,
        shape: Shape,
        view: View = as_it_is,
        *,
        trainable: bool = True,
        **options: Any,
    ) -> None:
        """Make one variable; `shape` is torch's, and the options are Variable's."""
        tensor = torch.empty(shape, device="meta")
        if trainable:
            self.register_parameter(attribute, nn.Parameter(tensor))
        else:
            self.register_buffer(attribute, tensor)
        self.variables[name] = Variable(name, attribute, view, **options)

    def add_if(
        self, wanted: object, name: str, attribute: str, *args: Any, **options: Any
    ):
        """Make one variable as `add` does, or leave None in its place."""
        if wanted:
            self.add(name, attribute, *args, **options)
        else:
            setattr(self, attribute, None)

    def sublayers(self) -> "list[Layer]":
        """Return the wrapped layers, in the order in which Keras lists their arrays."""
        return [getattr(self, name) for name in self.group_names]


def accepts_mask(module: Any) -> bool:
    """Tell whether Keras 1 and 2 let a masked input reach this layer or model."""
    kinds = ("passes_mask", "makes_mask", "ends_mask", "uses_mask", "uses_masks")
    return any(getattr(module, kind) for kind in kinds)


def drops_masks_of_lists(version: Version) -> bool:
    """Tell whether the output of a layer that is called with a list has no mask.

    The list itself was asked for its mask: keras v3.3.3 keras/src/layers/layer.py#L871.
    """
    return (3, 0) <= version < (3, 4)


def place_of(axis: int, rank: int) -> int:
    """Return the place of an axis, counted from the front.

    Raises:
        ValueError: the tensor has no such axis.
    """
    if not -rank <= axis < rank:
        raise ValueError(f"axis={axis}; the input has {rank} axes")
    return axis % rank


def open_sizes(settings: Settings, key: str, *default: Any) -> tuple[int, ...]:
    """Read a list of sizes, with -1 for null in it; a default of None gives ()."""
    missing = not default and key not in settings.left
    value = settings.take(key, *default)
    if value is None and (default or missing):
        return ()
    if isinstance(value, list | tuple):
        value = [-1 if size is None else size for size in value]
    settings.left[key] = value
    return settings.list_of_integers(key)


def weight_options(
    settings: Settings, kind: str, initializer: str = "glorot_uniform"
) -> dict[str, Any]:
    """Read the initializer, regularizer and constraint of the kernel, bias or other."""
    return {
        "initializer": settings.initializer(f"{kind}_initializer", initializer),
        "regularizer": settings.regularizer(f"{kind}_regularizer"),
        "constraint": settings.constraint(f"{kind}_constraint"),
    }


class Weighted(Layer):
    """A layer with a kernel and, as the file says, a bias and an activation.

    Args:
        axis: the place of Keras's last axis in the output.
    """

    kernel_name = "kernel"  # in its settings, such as kernel_initializer

    def __init__(self, settings: Settings, axis: int = -1) -> None:
        super().__init__(settings)
        self.kernel = weight_options(settings, self.kernel_name)
        self.use_bias = settings.flag("use_bias", True)
        self.bias_options = weight_options(settings, "bias", "zeros")
        self.activation = settings.activation(axis=axis)

    def add_bias(self, *size: int) -> None:
        """Make the bias, or None."""
        self.add_if(self.use_bias, "bias", "bias", size, **self.bias_options)


def require_axes(shape: Shape, wanted: int, names: str) -> None:
    """Check how many axes an input has; `names` says which they are.

    Raises:
        ValueError: more or fewer than wanted.
    """
    if len(shape) != wanted:
        text = f"the input has {len(shape)} axes; wanted {wanted}"
        raise ValueError(f"{text}, {names}")


class Function(Layer):
    """A function of the whole input in Keras's order of axes, without variables."""

    def __init__(self, settings: Settings, function: Callable[[Tensor], Tensor]):
        super().__init__(settings)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """Return function(x)."""
        return self.function(x)


class Pointwise(Function):
    """A function of each number by itself, or one along the axes `dim`."""

    passes_mask = True

    def __init__(self, settings: Settings, function: Callable[[Tensor], Tensor]):
        super().__init__(settings, function)
        along = isinstance(function, partial) and "dim" in function.keywords
        self.wants_first = False if along else None
        self.returns_input = function is linear

    def forward(self, x: Tensor) -> Tensor:
        """Return function(x)."""
        return apply(self.function, x)


class Joining(Layer):
    """A layer of several inputs, in either order where all have as many axes."""

    def settle(self, first: bool, ranks: tuple[int, ...]) -> None:
        """Take the order of the inputs."""
        self.wants_first = first and len(set(ranks)) == 1


def apply(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return function(x); of a meta tensor only the shape, which stays as it is.

    torch itself would import its compiler to tell the same, which takes a second.
    """
    if not x.is_meta:
        return function(x)
    halves = isinstance(function, partial) and function.func is F.glu
    return function(x) if halves else x
