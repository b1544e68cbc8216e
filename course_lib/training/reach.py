"""Which parameters of the optimizer the losses train, found in autograd's graph."""

import warnings
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from course_lib.trees import graph_nodes


def all_parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return the tensors of all the optimizer's groups."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def names_of(model: nn.Module, tensors: Iterable[Tensor]) -> list[str]:
    """Return the model's names of its parameters; the shape of any other tensor."""
    names = {id(p): repr(name) for name, p in model.named_parameters()}
    return [
        names.get(id(t), f"a tensor {tuple(t.shape)} of no part of this model")
        for t in tensors
    ]


def reached(losses: Iterable[Tensor]) -> set[int] | None:
    """Return the ids of the leaves of the losses' graph.

    None if they are unknown: a reentrant checkpoint hides its graph.
    """
    leaves = set()
    for node in graph_nodes(losses):
        if node.name() == "CheckpointFunctionBackward":
            return None
        if hasattr(node, "variable"):
            leaves.add(id(node.variable))
    return leaves


class Reach:
    """The tensors of the optimizer that no loss has reached yet, except penalties.

    A layer that is never called is unused on purpose. If one is called and no loss
    reaches its parameters, its gradient was lost on the way.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model = model
        self.missing = {id(p): p for p in all_parameters(optimizer) if p.requires_grad}
        self.steps = 0
        self.called: set[nn.Module] = set()
        self.hooks: list[RemovableHandle] = []

    def note(self, place: str, parts: dict[str, Tensor]) -> None:
        """Remove what this step's losses reach; refuse losses that train nothing."""
        if not self.missing and self.steps and parts["loss"].requires_grad:
            return
        losses = [part for name, part in parts.items() if name != "penalty"]
        if not any(loss.requires_grad for loss in losses):
            raise ValueError(
                f"{place}: the loss has no gradient, so nothing would be trained. "
                ".detach(), .item(), NumPy, argmax or no_grad() cut it off from the "
                "parameters, or all of them are frozen."
            )
        self.steps += 1
        leaves = reached(losses)
        found = [key for key in self.missing if leaves is None or key in leaves]
        if self.steps == 1 and not found:
            raise ValueError(
                f"{place}: the loss reaches no parameter of the optimizer, so nothing "
                f"would be trained. It holds {_some(self.model, self.missing)}. Make "
                "it of this model, when the model is complete: "
                "torch.optim.SGD(model.parameters(), lr=0.1)."
            )
        for key in found:
            del self.missing[key]
        if self.steps == 1:
            self.hooks = [
                module.register_forward_hook(lambda m, *_: self.called.add(m))
                for module in self.model.modules()
                if self._missing_of(module)
            ]

    def _missing_of(self, module: nn.Module) -> dict[int, Tensor]:
        own = [id(p) for p in module._parameters.values() if p is not None]
        return {key: self.missing[key] for key in own if key in self.missing}

    def warn(self) -> None:
        """Warn once, after two steps, of layers that were called but not reached."""
        if self.steps < 2:
            return
        lost = {k: t for m in self.called for k, t in self._missing_of(m).items()}
        if lost:
            warnings.warn(
                f"fit: {_some(self.model, lost)}: the layer is called, but no loss "
                "reached it, so it is not trained. Look for .detach() or no_grad() on "
                "the way, or leave it out of the optimizer.",
                stacklevel=4,
            )
        self.missing = {}
        self.close()

    def close(self) -> None:
        """Remove the hooks."""
        for hook in self.hooks:
            hook.remove()
        self.hooks = []


def _some(model: nn.Module, tensors: dict[int, Tensor]) -> str:
    names = names_of(model, tensors.values()) or ["nothing that requires a gradient"]
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
