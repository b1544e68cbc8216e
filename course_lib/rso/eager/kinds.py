"""What each operation of a model does, by torch's classes and functions."""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F
from torch import fx, nn

ELEMENTWISE = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU),
    *(nn.Sigmoid, nn.Tanh, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.Softplus),
    *(nn.Softsign, nn.Mish, nn.LogSigmoid, nn.Threshold, nn.Tanhshrink),
)
POOLS = nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d
IDENTITIES = nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout
MODULES = {
    **{nn.Conv2d: "conv", nn.Linear: "linear", nn.Flatten: "flatten"},
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d), "norm"),
    **dict.fromkeys(ELEMENTWISE, "elementwise"),
    **dict.fromkeys(POOLS, "pool"),
    **dict.fromkeys(IDENTITIES, "identity"),
}
ELEMENTWISE_FUNCTIONS = {
    *(torch.relu, F.relu, torch.tanh, torch.sigmoid, F.gelu, F.silu, F.elu, F.selu),
    *(F.leaky_relu, F.hardtanh, F.softplus, torch.sign, torch.abs, torch.heaviside),
    *(F.sigmoid, F.tanh, F.mish, F.relu6, F.hardswish, F.logsigmoid, torch.square),
}
ELEMENTWISE_METHODS = {"relu", "tanh", "sigmoid", "sign", "abs", "square"}
ADDITIONS = {operator.add, operator.iadd, torch.add}
AUGMENTED = {operator.iadd, operator.isub, operator.imul, operator.itruediv}


def kind_of(node: fx.Node, module: nn.Module | None) -> str:
    """Return what a node does, "unknown" where the engines don't know it.

    module: the one that the node calls, if it calls one.
    """
    if module is not None:
        return _module_kind(module)
    if node.op not in ("call_function", "call_method"):
        return "unknown"
    if node.target in (torch.flatten, "flatten") and node.args[1:] == (1,):
        return "flatten"
    is_one = len(node.args) == len(node.all_input_nodes) == 1
    is_elementwise = node.target in ELEMENTWISE_FUNCTIONS and is_one
    if is_elementwise or node.target in ELEMENTWISE_METHODS:
        return "elementwise"
    is_sum = node.target in ADDITIONS and len(node.args) == 2 and not node.kwargs
    is_of_nodes = all(isinstance(a, fx.Node) for a in node.args)
    return "add" if is_sum and is_of_nodes else "unknown"


def _module_kind(module: nn.Module) -> str:
    kind = MODULES.get(type(module), "unknown")
    pads = getattr(module, "padding_mode", "zeros"), getattr(module, "padding", 0)
    is_unsupported = (
        (kind == "conv" and (pads[0] != "zeros" or isinstance(pads[1], str)))
        or (kind == "pool" and getattr(module, "return_indices", False))
        or (kind == "flatten" and (module.start_dim, module.end_dim) != (1, -1))
    )
    return "unknown" if is_unsupported else kind


def overwrites(node: fx.Node) -> bool:
    """Tell whether a function or method writes its result into its first argument."""
    if node.op not in ("call_function", "call_method"):
        return False
    name = getattr(node.target, "__name__", str(node.target))
    is_named = name.endswith("_") and not name.endswith("__")
    is_asked = node.kwargs.get("inplace") is True
    if node.target in ELEMENTWISE_FUNCTIONS and len(node.args) > 1:
        is_asked = is_asked or node.args[-1] is True  # as in F.relu(x, True)
    return is_named or is_asked or node.target in AUGMENTED
