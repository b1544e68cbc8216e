"""A model during a search: batch statistics, no gradients, nothing random."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from course_lib.data.sets import Split
from course_lib.modes import restored_modes


@contextlib.contextmanager
def search_mode(model: nn.Module) -> Iterator[None]:
    """Dropout off, batch norm with batch statistics, no gradients.

    Running statistics are removed, so that no pass changes them; modes and buffers are
    restored at the end.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    running = {m: (m.running_mean, m.running_var) for m in norms}
    with restored_modes(model.modules()), torch.no_grad(), _uncached():
        model.eval()
        try:
            for norm in norms:
                norm.running_mean = norm.running_var = None
            yield
        finally:
            for norm, (mean, var) in running.items():
                norm.running_mean, norm.running_var = mean, var


@contextlib.contextmanager
def _uncached() -> Iterator[None]:
    """Switch off the caches of torch.autocast and `parametrize.cached()`.

    They hold the weights of their first use: candidates would change nothing.
    """
    casts, computed = torch.is_autocast_cache_enabled(), parametrize._cache_enabled
    try:
        torch.set_autocast_cache_enabled(False)
        torch.clear_autocast_cache()
        parametrize._cache_enabled = 0
        yield
    finally:
        torch.set_autocast_cache_enabled(casts)
        parametrize._cache_enabled = computed
        parametrize._cache.clear()


@torch.no_grad()
def refresh_norm_statistics(
    model: nn.Module, split: Split, *, samples: int = 2000
) -> None:
    """Set each batch norm's running statistics to those of one batch.

    A search does not change them, and testing needs them. The batch is the first
    `samples` of the split, moved to the model's device: 2,000 training images in the
    authors' code. The modules' modes do not change.

    Raises:
        ValueError: samples below 2.
    """
    if samples < 2:
        raise ValueError(
            f"refresh_norm_statistics: got samples={samples}; wanted at least 2."
        )
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    weight = next(model.parameters(), split.inputs)
    inputs = split.inputs[:samples].to(weight.device, weight.dtype, copy=True)
    momenta = {norm: norm.momentum for norm in norms}
    with restored_modes(model.modules()):
        model.eval()
        try:
            for norm in norms:
                norm.train()
                norm.momentum = 1.0  # the new statistics replace the old ones
            model(inputs)
        finally:
            for norm, momentum in momenta.items():
                norm.momentum = momentum


def require_batch_statistics(model: nn.Module) -> None:
    """Raise ValueError where batch norm can't use the statistics of its batch."""
    for name, module in model.named_modules():
        is_script = isinstance(module, torch.jit.ScriptModule)
        if is_script and "BatchNorm" in module.original_name:
            raise ValueError(
                f"RSO: {name!r} is a {module.original_name} in a ScriptModule, which "
                "can't be searched with the statistics of its mini-batch. Pass the "
                "model before torch.jit."
            )


def require_repeatable(model: nn.Module, inputs: Tensor) -> None:
    """Raise ValueError where a pass draws random numbers, naming the module."""
    names = {module: name for name, module in model.named_modules()}
    drawing: list[str] = []
    before: dict[nn.Module, Tensor] = {}
    hooks = []

    def enter(module: nn.Module, inputs: object) -> None:
        before[module] = _random_state()

    def leave(module: nn.Module, inputs: object, output: object) -> None:
        if not drawing and not _random_state().equal(before[module]):
            drawing.append(names[module] or type(module).__name__)

    try:
        for module in names:
            if not isinstance(module, torch.jit.ScriptModule):  # which takes no hooks
                hooks.append(module.register_forward_pre_hook(enter))
                hooks.append(module.register_forward_hook(leave))
        first = model(inputs.clone())  # which a layer may overwrite
        again = model(inputs.clone())
    finally:
        for hook in hooks:
            hook.remove()
    if not drawing and not _are_alike(first, again):  # from a private generator
        drawing.append(type(model).__name__)
    if drawing:
        raise ValueError(
            f"RSO: {drawing[0]!r} draws random numbers in a pass, so three losses of "
            "one mini-batch can't be compared. Remove it, or make it an nn.Dropout, "
            "which is switched off."
        )


def _are_alike(first: object, again: object) -> bool:
    if not isinstance(first, Tensor) or not isinstance(again, Tensor):
        return True
    same_shape = first.shape == again.shape
    return same_shape and torch.allclose(first, again, rtol=1e-3, equal_nan=True)


def _random_state() -> Tensor:
    if torch.cuda.is_available():
        return torch.cat([torch.random.get_rng_state(), torch.cuda.get_rng_state()])
    return torch.random.get_rng_state()
