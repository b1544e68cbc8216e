"""Find mistakes in a step of training, and explain them."""

import contextlib
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from course_lib.device import forget_casts
from course_lib.losses import reduce
from course_lib.training.batches import Batch


def require_loss(place: str, loss: object) -> None:
    """Raise ValueError unless `loss` is a function, and not a class of losses."""
    if isinstance(loss, type) or not callable(loss):
        raise ValueError(
            f"{place}: got loss={_name(loss)}; wanted a function (outputs, labels) -> "
            "loss, for example torch.nn.CrossEntropyLoss() or losses.cross_entropy."
        )


def require_optimizer(place: str, optimizer: object) -> None:
    """Raise ValueError unless it has an optimizer's interface."""
    if not all(hasattr(optimizer, n) for n in ("param_groups", "step", "zero_grad")):
        raise ValueError(
            f"{place}: got optimizer={_name(optimizer)}; wanted one of torch.optim "
            "over the model's parameters, for example "
            "torch.optim.SGD(model.parameters(), lr=0.1). course_lib.rules go with "
            "course_lib.explicit.train."
        )


def _name(value: object) -> str:
    return value.__name__ if isinstance(value, type) else repr(value)


def scalar(place: str, loss: object, samples: int, *, name: str = "loss") -> Tensor:
    """Return a loss as a scalar: itself, or the mean of one number for each sample."""
    if not isinstance(loss, Tensor):
        wrong = (
            f"is of type {type(loss).__name__}; wanted a tensor. .item(), float() and "
            "NumPy cut it off from the parameters."
        )
    elif not loss.is_floating_point():
        wrong = f"is of {loss.dtype}; wanted real floating-point numbers."
    elif loss.numel() == 1:
        return loss.reshape(()) if loss.dim() else loss
    elif loss.shape == (samples,):
        return reduce(loss)
    else:
        wrong = (
            f"has shape {tuple(loss.shape)}; wanted a scalar, or ({samples},), a "
            "number for each sample. For a loss for each sample pass lambda outputs, "
            "labels: reduce(cross_entropy(outputs, labels))."
        )
    raise ValueError(f"{place}: the {name} {wrong}")


def call_model(place: str, model: nn.Module, batch: Batch) -> Any:
    """Return model(*inputs)."""
    forget_casts()
    with explained(place, "the model", model=model, inputs=batch.inputs):
        return model(*batch.inputs)


def call_loss(
    place: str, loss: Callable[[Any, Any], Tensor], outputs: Any, batch: Batch
) -> Tensor:
    """Return loss(outputs, targets) as a scalar; refuse pairs that are broadcast."""
    refused: contextlib.AbstractContextManager = contextlib.nullcontext()
    if _is_column_and_row(outputs, batch.targets):
        refused = _Broadcasts(place, outputs, batch.targets)
    with explained(place, "the loss", outputs=outputs, labels=batch.targets), refused:
        value = loss(outputs, batch.targets)
    return scalar(place, value, batch.size)


def _is_column_and_row(first: object, second: object) -> bool:
    """Return whether one is (n, 1) and the other (n,), which broadcast to (n, n)."""
    if not isinstance(first, Tensor) or not isinstance(second, Tensor):
        return False
    short, long = sorted((first.shape, second.shape), key=len)
    return len(short) == 1 and long == (*short, 1) and short[0] > 1


class _Broadcasts(TorchFunctionMode):
    """Refuse an operation of a loss on outputs (n, 1) and targets (n,) together.

    A loss may reshape one of them first. So every tensor computed from one of the two
    is followed, and only an operation on both shapes is refused.
    """

    def __init__(self, place: str, outputs: Tensor, targets: Tensor) -> None:
        super().__init__()
        self.place = place
        self.sides = [outputs], [targets]  # with all that is computed from either

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        arguments = (*args, *(kwargs or {}).values())
        tensors = [a for a in arguments if isinstance(a, Tensor)]
        ours, theirs = (
            [a for a in tensors if any(a is known for known in side)]
            for side in self.sides
        )
        is_product = getattr(func, "__name__", "") in _PRODUCTS
        for first, second in itertools.product(ours, theirs):
            if not is_product and _is_column_and_row(first, second):
                raise ValueError(
                    f"{self.place}: in the loss, outputs of shape {tuple(first.shape)} "
                    f"meet labels of shape {tuple(second.shape)}, and broadcasting "
                    "compares all pairs of samples. Give both one shape: labels[:, "
                    "None] in the data, or nn.Flatten(0) at the model's end."
                )
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and bool(ours) != bool(theirs):
            self.sides[0 if ours else 1].append(result)
        return result


_PRODUCTS = {"matmul", "__matmul__", "__rmatmul__", "mv", "mm", "dot", "einsum"}


def needs_closure(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether step() needs a closure, as torch's LBFGS does."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def parts_in_eval_mode(model: nn.Module) -> list[nn.Module]:
    """Return the parts in eval mode of a model in train mode: frozen on purpose."""
    if not model.training:
        return []
    return [module for module in model.modules() if not module.training]


class BufferCopies:
    """Copies of a model's buffers, such as running means, by which to undo a step.

    Each step copies into the tensors of the step before: to ask for new ones takes
    longer than to fill them.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.places: list[tuple[dict[str, Tensor | None], str]] = []
        self.buffers: list[Tensor] = []
        self.copies: list[Tensor] = []
        self._kinds: list[tuple[Any, ...]] = []

    @torch.no_grad()
    def take(self, *, unless: Tensor | None = None) -> None:
        """Copy the buffers; a lazy one has no values yet.

        Where `unless` is 1, after a failure that nobody has read, the copies stay.
        """
        found = [
            (space, name, buffer)
            for space in (module._buffers for module in self.model.modules())
            for name, buffer in space.items()
            if buffer is not None and not is_lazy(buffer)
        ]
        buffers = [buffer for _, _, buffer in found]
        kinds = [(b.shape, b.dtype, b.device, b.layout) for b in buffers]
        is_new = not kinds or kinds != self._kinds
        if is_new and unless is not None and self._kinds and unless:
            return  # of other shapes than those before the failure
        self.places = [(space, name) for space, name, _ in found]
        self.buffers, self._kinds = buffers, kinds
        if is_new:
            self.copies = [buffer.clone() for buffer in buffers]
            return
        if unless is not None:
            pairs = zip(self.copies, buffers, strict=True)
            buffers = [_kept(unless, *pair) for pair in pairs]
        torch._foreach_copy_(self.copies, buffers)

    @torch.no_grad()
    def restore(self) -> None:
        """Undo the changes of a step, even if it replaced a buffer by another.

        What can't be written, such as an expanded buffer, is left as it is.
        """
        for (space, name), buffer, values in zip(
            self.places, self.buffers, self.copies, strict=True
        ):
            space[name] = buffer
            is_own = torch.inference_mode(buffer.is_inference())
            with contextlib.suppress(RuntimeError), is_own:
                if buffer.layout is not torch.strided or not buffer.equal(values):
                    buffer.copy_(values)


def _kept(skips: Tensor, copy: Tensor, buffer: Tensor) -> Tensor:
    """Return the copy where `skips` is 1, else the buffer; as a rule without a wait."""
    if buffer.layout is not torch.strided:
        return copy if skips else buffer
    return torch.where(skips.to(buffer.device) > 0, copy, buffer)


# Explanations of torch's errors

_ERRORS = (RuntimeError, NotImplementedError, IndexError, TypeError, ValueError)


@contextlib.contextmanager
def explained(
    place: str, who: str, *, model: nn.Module | None = None, **tensors: Any
) -> Iterator[None]:
    """Raise ValueError where torch fails in this block: who, on what, with advice.

    Errors of the user's classes, and ours, which begin with the place, are left alone.
    """
    try:
        yield
    except _ERRORS as error:
        message = str(error)
        if type(error) not in _ERRORS or message.startswith(place):
            raise
        shown = " and ".join(f"{name} of {_shown(t)}" for name, t in tensors.items())
        first = (message.splitlines() or [type(error).__name__])[0].rstrip(".")
        on = f" on {shown}" if shown else ""
        advice = _advice(message, model, tensors) if shown else ""
        text = f"{place}: {who} failed{on}: {first}. {advice}".strip()
        raise ValueError(text) from error


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        kind = str(value.dtype).removeprefix("torch.")
        return f"{kind} {tuple(value.shape)} on {value.device}"
    if isinstance(value, tuple | list):
        return "(" + ", ".join(map(_shown, value)) + ")"
    return type(value).__name__


def _advice(message: str, model: nn.Module | None, tensors: dict[str, Any]) -> str:
    if isinstance(tensors.get("outputs"), tuple | list | Mapping):
        return (
            "The model returns several outputs; let the loss choose: lambda outputs, "
            "labels: loss(outputs[0], labels)."
        )
    for part, advice in _ADVICE.items():
        if part in message:
            return advice
    if model is not None and (kind := _other_kind(model, tensors["inputs"])):
        return kind
    if "labels" in tensors and ("dtype" in message or "type" in message.lower()):
        return (
            "Class numbers are int64 (.long()), the targets of a regression floats as "
            "the outputs (.float()). Convert them in the data."
        )
    if "out of bounds" in message:
        return "Labels of C classes are 0 to C - 1, and the model needs C outputs."
    return "Compare the shapes and dtypes with what is wanted there."


_ADVICE = {  # by a part of torch's message
    "more than 1 value per channel": (
        "A batch norm can't train on one sample: pass drop_last=True, or another "
        "batch_size."
    ),
    "index out of range in self": (
        "An Embedding of n rows takes whole numbers from 0 to n - 1."
    ),
    "'indices'": "An Embedding takes whole numbers: convert the inputs, .long().",
    "positional argument": (
        "All of a batch but its last part are inputs, the last the labels."
    ),
}


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
