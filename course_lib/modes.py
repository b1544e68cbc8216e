"""Train and eval mode, of which each module has its own."""

import contextlib
from collections.abc import Iterable, Iterator

from torch import nn


@contextlib.contextmanager
def restored_modes(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Give back each module's own mode at the end: one may be in eval mode on purpose.

    `model.train()` would give one mode to all of them.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Dropout().eval())
    >>> with restored_modes(model.modules()):
    ...     _ = model.eval()
    >>> model.training, model[0].training, model[1].training
    (True, True, False)
    """
    modes = [(module, module.training) for module in modules]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
