"""The kernels that torch has for a GPU alone, written out.

The forward pass of a recurrent cell returns a workspace with what its backward pass
needs; only those two know its content. The formulas are in the docstrings of
torch.nn.LSTM and torch.nn.GRU.
"""

import torch
from torch import Tensor

aten = torch.ops.aten
Some = Tensor | None


def _sum(gates: Tensor, bias: Some) -> Tensor:
    return gates if bias is None else gates + bias


def lstm(
    x: Tensor, h: Tensor, cell: Tensor, x_bias: Some = None, h_bias: Some = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (output, new cell, workspace) from both parts of the gates."""
    i, f, g, o = (_sum(x, x_bias) + _sum(h, h_bias)).chunk(4, 1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    new = f * cell + i * g
    return o * new.tanh(), new, torch.cat([i, f, g, o], 1)


def lstm_backward(
    by_output: Some,
    by_cell: Some,
    cell: Tensor,
    new: Tensor,
    workspace: Tensor,
    has_bias: bool,
) -> tuple[Tensor, Tensor, Some]:
    """Return the gradients of the gates, of the cell and of the bias."""
    i, f, g, o = workspace.chunk(4, 1)
    by_new = torch.zeros_like(new) if by_cell is None else by_cell
    by_o = torch.zeros_like(o)
    if by_output is not None:
        by_new = by_new + by_output * o * (1 - new.tanh() ** 2)
        by_o = by_output * new.tanh() * o * (1 - o)
    by_i, by_f = by_new * g * i * (1 - i), by_new * cell * f * (1 - f)
    gates = torch.cat([by_i, by_f, by_new * i * (1 - g**2), by_o], 1)
    return gates, by_new * f, gates.sum(0) if has_bias else None


def gru(
    x: Tensor, h: Tensor, before: Tensor, x_bias: Some = None, h_bias: Some = None
) -> tuple[Tensor, Tensor]:
    """Return (output, workspace) from both parts of the gates."""
    x_r, x_z, x_n = _sum(x, x_bias).chunk(3, 1)
    h_r, h_z, h_n = _sum(h, h_bias).chunk(3, 1)
    r, z = (x_r + h_r).sigmoid(), (x_z + h_z).sigmoid()
    n = (x_n + r * h_n).tanh()
    return n + z * (before - n), torch.cat([r, z, n, before, h_n], 1)


def gru_backward(
    by_output: Tensor, workspace: Tensor, has_bias: bool
) -> tuple[Tensor, Tensor, Tensor, Some, Some]:
    """Return the gradients of both parts, of the state before and of the biases."""
    r, z, n, before, h_n = workspace.chunk(5, 1)
    by_n = by_output * (1 - z) * (1 - n**2)
    by_z = by_output * (before - n) * z * (1 - z)
    by_r = by_n * h_n * r * (1 - r)
    x, h = torch.cat([by_r, by_z, by_n], 1), torch.cat([by_r, by_z, by_n * r], 1)
    biases = (x.sum(0), h.sum(0)) if has_bias else (None, None)
    return x, h, by_output * z, *biases


def _softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    return torch.softmax(x, dim, torch.float32 if half_to_float else None)


def _log_softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    return torch.log_softmax(x, dim, torch.float32 if half_to_float else None)


def _softmax_backward(
    by_output: Tensor, output: Tensor, dim: int, dtype: torch.dtype
) -> Tensor:
    found = aten._softmax_backward_data(by_output, output, dim, output.dtype)
    return found.to(dtype)


def _log_softmax_backward(
    by_output: Tensor, output: Tensor, dim: int, dtype: torch.dtype
) -> Tensor:
    found = aten._log_softmax_backward_data(by_output, output, dim, output.dtype)
    return found.to(dtype)


KERNELS = {
    aten._softmax_backward_data.default: _softmax_backward,
    aten._log_softmax_backward_data.default: _log_softmax_backward,
    aten._softmax.default: _softmax,
    aten._log_softmax.default: _log_softmax,
    aten._thnn_fused_lstm_cell.default: lstm,
    aten._thnn_fused_lstm_cell_backward_impl.default: lstm_backward,
    aten._thnn_fused_gru_cell.default: gru,
    aten._thnn_fused_gru_cell_backward.default: gru_backward,
}
