"""Named terms of a loss, passed from anywhere to the open collector.

Both names are part of `course_lib.losses`.
"""

from contextvars import ContextVar, Token

import torch
from torch import Tensor


class LossCollector:
    """The terms passed to `add_loss` during this collector's `with` block.

    Each entry to the block clears the terms. Of nested blocks the innermost gets the
    terms, so an inner one that is not read ignores those of a pass. Each thread, and
    each asyncio task, has its own. The modules themselves store nothing.

    Attributes:
        terms: {name: scalar}; terms of the same name are added up.

    >>> with LossCollector() as collector:
    ...     for _ in range(2):  # a module that is called twice
    ...         add_loss("size", torch.tensor(1.5))
    >>> collector.terms
    {'size': tensor(3.)}
    """

    def __init__(self) -> None:
        self.terms: dict[str, Tensor] = {}
        self._before: Token | None = None

    def __enter__(self) -> "LossCollector":
        if self._before is not None:
            raise ValueError(
                "LossCollector: this one is open already. Make another for the inner "
                "block, or leave the outer one first."
            )
        self.terms = {}
        self._before = _open.set(self)
        return self

    def __exit__(self, *error: object) -> None:
        _open.reset(self._before)
        self._before = None

    def total(self) -> Tensor:
        """Return the sum of all terms, on the first one's device; 0 if there are none.

        >>> LossCollector().total()
        tensor(0.)
        """
        total, *others = self.terms.values() or [torch.zeros(())]
        for term in others:
            total = total + term.to(total.device)
        return total


_open: ContextVar[LossCollector | None] = ContextVar("_open", default=None)


@torch._disable_dynamo  # a graph that is replayed would not find the open collector
def add_loss(name: str, term: Tensor) -> None:
    """Add a scalar term to the open collector; without one do nothing.

    Call it in a module's forward or anywhere else: `training.fit` opens a collector in
    each step, adds all terms to the loss and logs each by its name. In a compiled model
    it breaks the graph: `torch.compile(model, fullgraph=True)` refuses it.

    Args:
        name: of the term; later terms of the same name are added to the first.
        term: a scalar tensor, already multiplied by its coefficient.

    Raises:
        ValueError: the name is not a string or empty, or the term no scalar tensor.
    """
    if not isinstance(name, str) or not name:
        raise ValueError(
            f"add_loss: got the name {name!r}; wanted a text such as 'sparsity'. The "
            "name comes first, then the term."
        )
    if not isinstance(term, Tensor) or term.dim():
        is_shaped = hasattr(term, "shape")
        got = f"shape {tuple(term.shape)}" if is_shaped else type(term).__name__
        raise ValueError(
            f"add_loss: {name!r} is of {got}; wanted a scalar tensor. reduce(...) "
            "makes one of a loss for each sample."
        )
    collector = _open.get()
    if collector is not None:
        terms = collector.terms
        terms[name] = terms[name] + term if name in terms else term
