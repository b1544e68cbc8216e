"""Weights that are computed from parameters: normalized, pruned, parametrized."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

from course_lib.modes import restored_modes


@torch.enable_grad()
def computed_weight(module: nn.Module, name: str, path: str) -> Tensor | None:
    """Return a weight that is computed from parameters; None if it was removed.

    torch's spectral norms update their estimate at each call in train mode; in eval
    mode the weight is that of the last pass, and nothing changes.
    """
    norms = _spectral_norms(module, name)
    with restored_modes(norms):
        for norm in norms:
            norm.training = False
        if (hook := hook_of(module, name)) is not None:
            hook(module, ())  # else the weight is that of the last forward pass
        try:
            return getattr(module, name)
        except AttributeError as error:
            raise ValueError(
                f"penalty: {path!r} is regularized, and deleted now. If that is meant, "
                f"call register_parameter({name!r}, None) on its module."
            ) from error


def hook_of(module: nn.Module, name: str) -> Any:
    """Return the hook of prune or an old norm that computes this weight, or None."""
    for hook in module._forward_pre_hooks.values():
        if name in (getattr(hook, "name", None), getattr(hook, "_tensor_name", None)):
            return hook
    return None


def _spectral_norms(module: nn.Module, name: str) -> list[nn.Module]:
    if isinstance(hook_of(module, name), SpectralNorm):
        return [module]
    if not parametrize.is_parametrized(module, name):
        return []
    return [p for p in module.parametrizations[name] if isinstance(p, _SpectralNorm)]
