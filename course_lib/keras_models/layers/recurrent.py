"""SimpleRNN, LSTM and GRU, with the gates, orders and activations of every era.

The weights are stored as torch stores them: weight_ih (gates * units, features),
weight_hh (gates * units, units) and biases; the gates keep Keras's order. Where the
equations are those of torch's own kernels (tanh and sigmoid, nothing masked), these
do the work; elsewhere a loop over the time steps does.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from course_lib.keras_models.initializers import Initializer
from course_lib.keras_models.layers.base import (
    Layer,
    Shape,
    kernel_view,
    require_axes,
    weight_options,
)
from course_lib.keras_models.registry import keras_layer
from course_lib.keras_models.regularizers import recurrent_follows_kernel
from course_lib.keras_models.settings import Settings

State = tuple[Tensor, ...]


class Recurrent(Layer):
    """A layer that walks over the time steps of (batch, steps, features)."""

    uses_mask = True
    gates = 1
    states = 1
    size_key = "units"  # the setting that says how many numbers a state has
    gate_axis = -1  # along which the gates are joined
    two_biases = False  # x's, then h's, which torch's kernels and cuDNN have
    kernel_of_torch: Callable[..., Any]  # computes all steps at once

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        old = settings.version < (2, 0)  # keras 1.2.2 keras/layers/recurrent.py#L452
        self.units = settings.integer(self.size_key)
        axis = self.activation_axis(settings)
        self.activation = settings.activation(default="tanh", axis=axis)
        gate = "hard_sigmoid" if old else "sigmoid"
        self.recurrent_activation = settings.activation(
            "recurrent_activation", gate, axis
        )
        self.return_sequences = settings.flag("return_sequences", False)
        self.return_state = settings.flag("return_state", False)
        self.go_backwards = settings.flag("go_backwards", False)
        self.stateful = settings.flag("stateful", False)
        self.zero_output = settings.flag("zero_output_for_mask", False)
        self.rate = settings.rate("dropout", 0.0)
        self.recurrent_rate = settings.rate("recurrent_dropout", 0.0)
        self.use_bias = settings.flag("use_bias", True)
        self.kernel = weight_options(settings, "kernel")
        self.recurrent = weight_options(settings, "recurrent", "orthogonal")
        self.bias_options = weight_options(settings, "bias", "zeros")
        settings.only("time_major", False)
        self.joined = settings.take("consume_less", "cpu") == "gpu"
        gated = self.gates > 1 and not self.joined
        if gated and recurrent_follows_kernel(settings.version):
            self.recurrent["regularizer"] = self.kernel["regularizer"]
        settings.ignore("unroll", "implementation", "use_cudnn")
        settings.ignore("input_dim", "input_length")
        self.passes_mask = self.return_sequences
        self.memory: State | None = None  # of a stateful layer, between calls

    def activation_axis(self, settings: Settings) -> int:
        """Return the place of Keras's last axis in a state."""
        return -1

    def build(self, shape: Shape, *states: Shape) -> None:
        """Make the weights for (batch, steps, features)."""
        require_axes(shape, 3, "(batch, steps, features)")
        self.add_weights(shape[-1])

    def add_weights(self, features: int, *kernel: int) -> None:
        """Make the kernels (rows, features or units, *kernel) and the bias."""
        rows = self.gates * self.units
        size = (rows, features, *kernel)
        self.add("kernel", "weight_ih", size, kernel_view, **self.kernel)
        size = (rows, self.units, *kernel)
        self.add("recurrent_kernel", "weight_hh", size, kernel_view, **self.recurrent)
        size = (2, rows) if self.two_biases else (rows,)
        self.add_if(self.use_bias, "bias", "bias", size, **self.bias_options)

    def reset_states(self) -> None:
        """Forget what a stateful layer remembers."""
        self.memory = None

    def forward(
        self, x: Tensor, *states: Tensor, mask: Tensor | None = None
    ) -> Tensor | tuple[Tensor, ...]:
        """(batch, steps, features) -> (batch, units), or all steps, and states."""
        if mask is not None and mask.dim() != 2:
            raise ValueError(
                f"its mask has {mask.dim()} axes; wanted (batch, steps). Keras can't "
                "apply this mask either"
            )
        start = self._start(states)
        if start is None:
            start = (x.new_zeros(self.state_shape(x)),) * self.states
        start = tuple(state.to(x) for state in start)
        if self.go_backwards:
            x = x.flip(1)
            mask = None if mask is None else mask.flip(1)
        outputs, last, end = self._walk(x, start, mask)
        if self.stateful and not x.is_meta:
            self.memory = tuple(state.detach() for state in end)
        y = outputs if self.return_sequences else last
        return (y, *end) if self.return_state else y

    def _start(self, given: State) -> State | None:
        """Return the states to begin with, None for zeros.

        A stateful layer of tf.keras takes what it is given only as long as it remembers
        nothing but zeros: keras v2.15.0 keras/layers/rnn/base_rnn.py#L789.
        """
        memory = self.memory or ()
        if self.keras_version.tf and any(bool(state.any()) for state in memory):
            return memory
        return given or self.memory

    def state_shape(self, x: Tensor) -> Shape:
        """Return the shape of a state for this input."""
        return (x.shape[0], self.units)

    def _walk(
        self, x: Tensor, state: State, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, State]:
        """Return (all outputs, the last output, the last state)."""
        if x.is_meta:  # only shapes are asked for, and the steps may be many
            outputs = x.new_empty(*x.shape[:2], *state[0].shape[1:])
            return outputs, state[0], state
        drops = self.training and (self.rate or self.recurrent_rate)
        if mask is None and not drops and self._is_torchs():
            outputs, state = self._fast(x, state)
            return outputs, outputs[:, -1], state
        return self._loop(x, state, mask)

    def _is_torchs(self) -> bool:
        """Tell whether torch's kernel computes these very equations."""
        return self.activation is torch.tanh and (
            self.recurrent_activation is torch.sigmoid
        )

    def _biases(self) -> tuple[Tensor | None, Tensor | None]:
        """Return the biases of x's and of h's product."""
        return self.bias, None

    def _weights(self) -> list[Tensor]:
        """Return the flat weights that torch's kernels take."""
        zeros = self.weight_ih.new_zeros(len(self.weight_ih))
        biases = [zeros if bias is None else bias for bias in self._biases()]
        return [self.weight_ih, self.weight_hh, *biases]

    def _loop(
        self, x: Tensor, state: State, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, State]:
        if self.training and self.rate:  # one mask for all steps
            x = x * F.dropout(x.new_ones(x.shape[0], 1, *x.shape[2:]), self.rate)
        drop = torch.ones_like(state[0])
        if self.training:
            drop = F.dropout(drop, self.recurrent_rate)
        inputs = self.project(x)
        output, outputs = torch.zeros_like(state[0]), []
        for step in range(x.shape[1]):
            new = self.step(inputs[:, step], state, drop)
            shown = fresh = new[0]
            if mask is not None:
                keep = mask[:, step].view(-1, *[1] * (fresh.dim() - 1))
                shown = fresh = torch.where(keep, fresh, output)
                new = tuple(map(torch.where, (keep,) * len(new), new, state))
                if self.zero_output:
                    shown = fresh * keep
            state, output = new, fresh
            outputs.append(shown)
        return torch.stack(outputs, 1), outputs[-1], state

    def project(self, x: Tensor) -> Tensor:
        """Return x @ kernel + bias, for all steps at once."""
        return F.linear(x, self.weight_ih, self._biases()[0])

    def recur(self, h: Tensor) -> Tensor:
        """Return h @ recurrent kernel."""
        return F.linear(h, self.weight_hh)

    def step(self, inputs: Tensor, state: State, drop: Tensor) -> State:
        """Return the next state; `inputs` is x @ kernel + bias of this step."""
        raise NotImplementedError

    def _fast(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        start = [part.unsqueeze(0) for part in state]
        options = (self._weights(), True, 1, 0.0, self.training, False, True)
        given = start if self.states > 1 else start[0]
        outputs, *end = self.kernel_of_torch(x, given, *options)
        return outputs, tuple(part[0] for part in end)


@keras_layer("SimpleRNN")
class SimpleRNN(Recurrent):
    """h' = activation(x W + b + h U)."""

    kernel_of_torch = staticmethod(torch.rnn_tanh)

    def step(self, inputs: Tensor, state: State, drop: Tensor) -> State:
        """Return (h',)."""
        return (self.activation(inputs + self.recur(state[0] * drop)),)

    def _is_torchs(self) -> bool:
        return self.activation is torch.tanh


@keras_layer("LSTM")
class LSTM(Recurrent):
    """Gates i, f, c, o; c' = f c + i act(c gate), h' = o act(c')."""

    gates = 4
    states = 2
    kernel_of_torch = staticmethod(torch.lstm)

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.forget_ones = settings.flag("unit_forget_bias", True)

    def add_weights(self, features: int, *kernel: int) -> None:
        """Make the weights; the forget gate's bias begins at 1."""
        super().add_weights(features, *kernel)
        if self.forget_ones and self.use_bias:
            bias = self.variables["bias"]
            bias.initializer = partial(_begin_forget_at_1, rest=bias.initializer)

    def step(self, inputs: Tensor, state: State, drop: Tensor) -> State:
        """Return (h', c')."""
        h, c = state
        z = inputs + self.recur(h * drop)
        i, f, g, o = z.chunk(4, self.gate_axis)
        gate = self.recurrent_activation
        c = gate(f) * c + gate(i) * self.activation(g)
        return gate(o) * self.activation(c), c


def _begin_forget_at_1(bias: Tensor, rest: Initializer) -> Tensor:
    """Fill a bias of four gates; of cuDNN's two biases, the second has the ones."""
    rest(bias)
    units = bias.shape[-1] // 4
    bias[..., units : 2 * units].view(-1, units)[-1] = 1.0
    return bias


@keras_layer("CuDNNLSTM")
class CuDNNLSTM(LSTM):
    """An LSTM that Keras 2 runs by cuDNN, with biases for x's and for h's product."""

    two_biases = True

    def __init__(self, settings: Settings) -> None:
        _refuse_constraints(settings)
        super().__init__(settings)

    def _biases(self) -> tuple[Tensor | None, Tensor | None]:
        return self.bias.sum(0), None


def _refuse_constraints(settings: Settings) -> None:
    """Refuse constraints, whose axes would be those of cuDNN's layout."""
    for name in ("kernel", "recurrent", "bias"):
        settings.only(f"{name}_constraint", None)


@keras_layer("GRU")
class GRU(Recurrent):
    """Gates z, r, h; h' = z h + (1 - z) act(candidate).

    The reset gate multiplies h before the recurrent product, or after it where
    `reset_after` says so; then the product has a bias of its own, and the equations
    are torch's.
    """

    gates = 3
    kernel_of_torch = staticmethod(torch.gru)

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        # keras v3.0.5 keras/layers/rnn/gru.py#L476
        new = settings.version >= (3, 0)
        self.reset_after = self.two_biases = settings.flag("reset_after", new)

    def _biases(self) -> tuple[Tensor | None, Tensor | None]:
        if self.bias is None or not self.reset_after:
            return self.bias, None
        return self.bias[0], self.bias[1]

    def step(self, inputs: Tensor, state: State, drop: Tensor) -> State:
        """Return (h',)."""
        h = state[0]
        gate, dropped = self.recurrent_activation, h * drop
        xz, xr, xh = inputs.chunk(3, -1)
        if self.reset_after:
            product = F.linear(dropped, self.weight_hh, self._biases()[1])
            hz, hr, hh = product.chunk(3, -1)
            z, r = gate(xz + hz), gate(xr + hr)
            candidate = self.activation(xh + r * hh)
        else:
            gates, last = self.weight_hh.split((2 * self.units, self.units))
            hz, hr = F.linear(dropped, gates).chunk(2, -1)
            z, r = gate(xz + hz), gate(xr + hr)
            candidate = self.activation(xh + F.linear(r * dropped, last))
        return (z * h + (1 - z) * candidate,)

    def _is_torchs(self) -> bool:
        return self.reset_after and super()._is_torchs()

    def _weights(self) -> list[Tensor]:
        parts = [weight.chunk(3) for weight in super()._weights()]
        return [torch.cat([r, z, h]) for z, r, h in parts]  # torch's order


@keras_layer("CuDNNGRU")
class CuDNNGRU(GRU):
    """A GRU that Keras 2 runs by cuDNN: its reset gate comes after the product."""

    def __init__(self, settings: Settings) -> None:
        _refuse_constraints(settings)
        settings.left["reset_after"] = True
        super().__init__(settings)
