"""What can go wrong in silence in a step of training, noticed and put into words."""

import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from course_lib.device import forget_casts
from course_lib.losses import reduce
from course_lib.training.batches import Batch


def require_loss(place: str, loss: object) -> None:
    """Raise ValueError unless `loss` is a function, and not a class of losses."""
    if isinstance(loss, type) or not callable(loss):
        got = loss.__name__ if isinstance(loss, type) else repr(loss)
        raise ValueError(
            f"{place}: got loss={got}; wanted a function (outputs, labels) -> loss, "
            "for example torch.nn.CrossEntropyLoss() or losses.cross_entropy."
        )


def require_optimizer(place: str, optimizer: object) -> None:
    """Raise ValueError unless it is an optimizer, or has what a step of one needs."""
    has_all = all(hasattr(optimizer, n) for n in ("param_groups", "step", "zero_grad"))
    if not has_all:
        is_type = isinstance(optimizer, type)
        got = optimizer.__name__ if is_type else repr(optimizer)
        raise ValueError(
            f"{place}: got optimizer={got}; wanted one of torch.optim over the model's "
            "parameters, for example torch.optim.SGD(model.parameters(), lr=0.1). "
            "course_lib.rules go with course_lib.explicit.train."
        )


def scalar(place: str, loss: object, samples: int, *, name: str = "loss") -> Tensor:
    """Return a loss as a scalar: itself, or the mean of one number for each sample."""
    if not isinstance(loss, Tensor):
        raise ValueError(
            f"{place}: the {name} is of type {type(loss).__name__}; wanted a tensor. "
            ".item(), float() and NumPy cut it off from the parameters."
        )
    if not loss.is_floating_point():
        raise ValueError(
            f"{place}: the {name} is of {loss.dtype}; wanted real floating-point "
            "numbers."
        )
    if loss.numel() == 1:
        return loss.reshape(()) if loss.dim() else loss
    if loss.shape != (samples,):
        raise ValueError(
            f"{place}: the {name} has shape {tuple(loss.shape)}; wanted a scalar, or "
            f"({samples},), a number for each sample. For a loss for each sample pass "
            "lambda outputs, labels: reduce(cross_entropy(outputs, labels))."
        )
    return reduce(loss)


def call_model(place: str, model: nn.Module, batch: Batch) -> Any:
    """Return model(*inputs)."""
    forget_casts()
    try:
        return model(*batch.inputs)
    except ERRORS as error:
        explain(error, place, "the model", model=model, inputs=batch.inputs)
        raise


def call_loss(
    place: str, loss: Callable[[Any, Any], Tensor], outputs: Any, batch: Batch
) -> Tensor:
    """Return loss(outputs, targets) as a scalar; refuse pairs that are broadcast."""
    try:
        if _is_column_and_row(outputs, batch.targets):
            with _Broadcasts(place, outputs, batch.targets):
                value = loss(outputs, batch.targets)
        else:
            value = loss(outputs, batch.targets)
    except ERRORS as error:
        explain(error, place, "the loss", outputs=outputs, labels=batch.targets)
        raise
    return scalar(place, value, batch.size)


def _is_column_and_row(first: object, second: object) -> bool:
    """Tell whether one is (n, 1) and the other (n,), which broadcast to (n, n)."""
    if not isinstance(first, Tensor) or not isinstance(second, Tensor):
        return False
    if first.dim() == second.dim():
        return False
    short, long = sorted((first.shape, second.shape), key=len)
    return len(short) == 1 and long == (*short, 1) and short[0] > 1


class _Broadcasts(TorchFunctionMode):
    """Watch a loss for an operation on outputs (n, 1) and targets (n,) together.

    A loss may take them and reshape one first. So what is computed from either is
    followed, and only a meeting of the two shapes is refused.
    """

    def __init__(self, place: str, outputs: Tensor, targets: Tensor) -> None:
        super().__init__()
        self.place = place
        self.sides = {0: [outputs], 1: [targets]}  # held, so that no id comes again

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        tensors = [a for a in (*args, *(kwargs or {}).values()) if type(a) is not str]
        tensors = [a for a in tensors if isinstance(a, Tensor)]
        ours, theirs = (
            [a for a in tensors if any(a is known for known in self.sides[side])]
            for side in self.sides
        )
        if getattr(func, "__name__", "") not in _PRODUCTS:
            for first in ours:
                for second in theirs:
                    if _is_column_and_row(first, second):
                        self._refuse(first, second)
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and bool(ours) != bool(theirs):
            self.sides[0 if ours else 1].append(result)
        return result

    def _refuse(self, outputs: Tensor, targets: Tensor) -> None:
        raise ValueError(
            f"{self.place}: in the loss, outputs of shape {tuple(outputs.shape)} meet "
            f"labels of shape {tuple(targets.shape)}, and broadcasting compares all "
            "pairs of samples. Give both one shape: labels[:, None] in the data, or "
            "nn.Flatten(0) at the model's end."
        )


_PRODUCTS = {"matmul", "__matmul__", "__rmatmul__", "mv", "mm", "dot", "einsum"}


# Who is trained


def every(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return the tensors of all the optimizer's groups."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def names_of(model: nn.Module, tensors: Iterable[Tensor]) -> list[str]:
    """Return how the model calls its parameters; the shape of any other tensor."""
    names = {id(p): repr(name) for name, p in model.named_parameters()}
    return [
        names.get(id(t), f"a tensor {tuple(t.shape)} of no part of this model")
        for t in tensors
    ]


def reached(losses: Iterable[Tensor]) -> set[int] | None:
    """Return the ids of the leaves that the losses' graph leads to.

    None if it can't be known: a checkpoint of the reentrant kind hides its graph.
    """
    nodes = [loss.grad_fn for loss in losses if loss.grad_fn is not None]
    leaves = {id(loss) for loss in losses if loss.grad_fn is None}
    seen = set(nodes)
    while nodes:
        node = nodes.pop()
        if node.name() == "CheckpointFunctionBackward":
            return None
        if hasattr(node, "variable"):
            leaves.add(id(node.variable))
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                nodes.append(following)
    return leaves


class Reach:
    """Which tensors of the optimizer no loss has reached yet, penalties aside.

    A layer that is never called is left out on purpose. One that is called, and whose
    parameters no loss reaches, has lost its gradient on the way.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model = model
        self.missing = {id(p): p for p in every(optimizer) if p.requires_grad}
        self.steps = 0
        self.called: set[nn.Module] = set()
        self.hooks: list[RemovableHandle] = []

    def note(self, place: str, parts: dict[str, Tensor]) -> None:
        """Look where this step's losses lead; refuse if they train nothing at all."""
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
        if self.steps == 1:
            self._require_one(place, found)
        for key in found:
            del self.missing[key]
        if self.steps == 1:
            self._watch()

    def _require_one(self, place: str, found: list[int]) -> None:
        if not found:
            raise ValueError(
                f"{place}: the loss reaches no parameter of the optimizer, so nothing "
                f"would be trained. It holds {_some(self.model, self.missing)}. Make "
                "it of this model, when the model is complete: "
                "torch.optim.SGD(model.parameters(), lr=0.1)."
            )

    def _watch(self) -> None:
        for module in self.model.modules():
            if self._missing_of(module):
                self.hooks.append(
                    module.register_forward_hook(lambda m, *_: self.called.add(m))
                )

    def _missing_of(self, module: nn.Module) -> dict[int, Tensor]:
        own = [id(p) for p in module._parameters.values() if p is not None]
        return {key: self.missing[key] for key in own if key in self.missing}

    def warn(self) -> None:
        """Name, once, what an epoch of at least two steps did not reach."""
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
        """Take the hooks off."""
        for hook in self.hooks:
            hook.remove()
        self.hooks = []


def _some(model: nn.Module, tensors: dict[int, Tensor]) -> str:
    names = names_of(model, tensors.values()) or ["nothing that requires a gradient"]
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def needs_closure(optimizer: torch.optim.Optimizer) -> bool:
    """Tell whether step() can't be called without a closure: torch's LBFGS."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def parts_in_eval_mode(model: nn.Module) -> list[nn.Module]:
    """Return the parts that are frozen on purpose: in eval mode, the model is not."""
    if not model.training:
        return []
    return [module for module in model.modules() if not module.training]


class Buffers:
    """A model's buffers as they are before a step, such as running means."""

    def __init__(self, model: nn.Module) -> None:
        self.found = [
            (own, name, buffer, buffer.detach().clone())
            for own in (module._buffers for module in model.modules())
            for name, buffer in own.items()
            if buffer is not None
        ]

    @torch.no_grad()
    def put_back(self) -> None:
        """Undo what a forward pass wrote, also where it put another tensor there."""
        for own, name, buffer, before in self.found:
            buffer.copy_(before)
            own[name] = buffer


# Words for errors of torch


ERRORS = (RuntimeError, NotImplementedError, IndexError, TypeError, ValueError)


def explain(
    error: Exception,
    place: str,
    who: str,
    *,
    model: nn.Module | None = None,
    **what: Any,
) -> None:
    """Say with which tensors the model or the loss failed, and what is often wrong."""
    message = str(error)
    if type(error) not in ERRORS or message.startswith(place):
        return  # somebody's own, to be caught by its name; or ours, in words already
    shown = " and ".join(f"{name} of {_shown(value)}" for name, value in what.items())
    first = (message.splitlines() or [type(error).__name__])[0].rstrip(".")
    on, advice = (f" on {shown}", _advice(message, model, what)) if what else ("", "")
    raise ValueError(f"{place}: {who} failed{on}: {first}. {advice}".strip()) from error


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        kind = str(value.dtype).removeprefix("torch.")
        return f"{kind} {tuple(value.shape)} on {value.device}"
    if isinstance(value, tuple | list):
        return "(" + ", ".join(map(_shown, value)) + ")"
    return type(value).__name__


def _advice(message: str, model: nn.Module | None, what: dict[str, Any]) -> str:
    if "more than 1 value per channel" in message:
        return (
            "A batch norm can't train on one sample: pass drop_last=True, or another "
            "batch_size."
        )
    if isinstance(what.get("outputs"), tuple | list | Mapping):
        return (
            "The model returns several outputs; let the loss choose: lambda outputs, "
            "labels: loss(outputs[0], labels)."
        )
    if "index out of range" in message:
        return "An Embedding of n rows takes whole numbers from 0 to n - 1."
    if "'indices'" in message:
        return "An Embedding takes whole numbers: convert the inputs, .long()."
    if "positional argument" in message:
        return "All of a batch but its last part are inputs, the last the labels."
    if model is not None and (kind := _other_kind(model, what["inputs"])):
        return kind
    if "labels" in what and ("dtype" in message or "type" in message.lower()):
        return (
            "Class numbers are int64 (.long()), numbers to come close to are floats "
            "as the outputs (.float()); both belong into the data."
        )
    if "out of bounds" in message:
        return "Labels of C classes are 0 to C - 1, and the model needs C outputs."
    return "Compare the shapes and dtypes with what is wanted there."


def _other_kind(model: nn.Module, inputs: Iterable[Tensor]) -> str:
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    for part in inputs if parameter is not None else ():
        if part.dtype != parameter.dtype:
            return (
                f"The parameters are {parameter.dtype}: convert the inputs, .float() "
                "as a rule (class numbers and tokens for an Embedding stay int64)."
            )
        if part.device != parameter.device:
            return (
                f"The parameters are on {parameter.device}: model.to(...) moves them."
            )
    return ""
