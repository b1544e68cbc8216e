"""Coefficients that live with their layer: l1 and l2 penalties, as in Keras.

`regularize(layer, weight=L1L2(l2=1e-3))` stores the coefficients on the layer;
`penalty(model)` recomputes the sum from the weights of now. Nothing is matched by
position or by counting, so no loop variable can go stale.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import reduce
from numbers import Real
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedTensorMixin

from course_lib.activity import record_outputs, recorded_costs, records_outputs
from course_lib.computed_weights import computed_weight, hook_of
from course_lib.trees import require_module

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class L1L2:
    """The penalty l1 * sum |w| + l2 * sum w**2 of one tensor.

    With `norm="euclidean"` the second term is l2 * sqrt(sum w**2), the norm itself:
    its gradient keeps length l2 however small w is, where the squared form's fades.
    There is no factor 1/2, so the squared form's gradient is 2 * l2 * w.

    Args:
        l1: coefficient of the absolute values, finite and >= 0.
        l2: coefficient of the squares (or of the norm), finite and >= 0.
        norm: `"squared"`, Keras's meaning, or `"euclidean"`.

    Raises:
        ValueError: a coefficient is negative or not finite; an unknown norm; a call
            on a tensor that is not of a real floating-point type.

    >>> L1L2(l1=0.5, l2=0.1)(torch.tensor([3.0, -4.0]))
    tensor(6.)
    >>> L1L2(l2=0.1, norm="euclidean")(torch.tensor([3.0, -4.0]))
    tensor(0.5000)

    Source: keras.regularizers.L1L2.
    """

    l1: float = 0.0
    l2: float = 0.0
    norm: Literal["squared", "euclidean"] = field(default="squared", kw_only=True)

    def __post_init__(self) -> None:
        for name, value in (("l1", self.l1), ("l2", self.l2)):
            _require_coefficient(name, value)
            if type(value) not in (int, float):  # NumPy's print and pickle otherwise
                object.__setattr__(self, name, float(value))
        if self.norm not in ("squared", "euclidean"):
            raise ValueError(
                f"L1L2: got norm={self.norm!r}; wanted 'squared' or 'euclidean'. "
                "Keras squares."
            )

    def __call__(self, tensor: Tensor) -> Tensor:
        """Return the penalty, a scalar; of halves in float32, where the sum fits."""
        _require_real("L1L2", tensor)
        tensor = _at_least_float32(tensor)
        total = tensor.new_zeros(())
        if self.l1:
            total = total + self.l1 * tensor.abs().sum()
        if self.l2 and self.norm == "squared":
            total = total + self.l2 * tensor.square().sum()
        elif self.l2:
            total = total + self.l2 * torch.linalg.vector_norm(tensor)
        return total

    def gradient(self, tensor: Tensor, scale: float | Tensor = 1.0) -> Tensor:
        """Return scale times the derivative by `tensor`, in its dtype; 0 at kinks."""
        _require_real("L1L2", tensor)
        terms = [
            direction * (coefficient * scale)  # the numbers first: one pass, not two
            for coefficient, direction in self._directions(tensor)
        ]
        if not terms:
            return torch.zeros_like(tensor)
        return reduce(torch.add, terms).to(tensor.dtype)

    def _directions(self, tensor: Tensor) -> Iterator[tuple[float, Tensor]]:
        """Yield the gradient's terms apart, so that each is added in one pass."""
        tensor = _at_least_float32(tensor)
        if self.l1:
            yield self.l1, tensor.sign()
        if self.l2 and self.norm == "squared":
            yield 2 * self.l2, tensor
        elif self.l2:
            length = torch.linalg.vector_norm(tensor)
            yield self.l2, tensor / length.clamp(min=torch.finfo(length.dtype).tiny)


@dataclass(frozen=True)
class Activity:
    """A penalty of a module's output, summed over each sample and then over the batch.

    Args:
        regularizer: what one output tensor costs.
        reduction: `"mean"` divides the sum by the batch size (Keras 2.15 and 3), which
            is the length of the first axis, so an LSTM needs `batch_first=True`;
            `"sum"` does not (Keras 1.0 to 2.2), so the cost grows with the batch.

    Raises:
        ValueError: not an L1L2, or an unknown reduction.

    >>> outputs = torch.tensor([[1.0, 2.0], [3.0, 4.0]])  # (batch, features)
    >>> Activity(L1L2(l1=1.0))(outputs)
    tensor(5.)
    >>> Activity(L1L2(l1=1.0), reduction="sum")(outputs)
    tensor(10.)
    """

    regularizer: L1L2
    reduction: Literal["mean", "sum"] = field(default="mean", kw_only=True)

    def __post_init__(self) -> None:
        _require_l1l2("Activity", "regularizer", self.regularizer)
        if self.reduction not in ("mean", "sum"):
            raise ValueError(
                f"Activity: got reduction={self.reduction!r}; wanted 'mean' (over the "
                "batch, as in Keras 3) or 'sum' (as in Keras 1)."
            )

    def __call__(self, output: Any) -> Tensor:
        """Return the cost of one output `(batch, ...)`, or of a tuple's first part."""
        if isinstance(output, tuple) and output:  # an LSTM's (outputs, state)
            output = output[0]
        if not isinstance(output, Tensor) or output.dim() == 0:
            raise ValueError(
                f"activity regularizer: the module returned {type(output).__name__}; "
                "wanted a tensor (batch, ...), or a tuple that begins with one."
            )
        total = self.regularizer(output)
        return total / max(1, len(output)) if self.reduction == "mean" else total


def regularize(
    module: Module,
    /,
    *,
    activity: L1L2 | Activity | None = None,
    **by_parameter: L1L2,
) -> Module:
    """Store penalty coefficients on `module` and return the same module.

    A later call adds to an earlier one and replaces the same name. The state_dict is
    unchanged; deepcopy, pickling, `.to`, tied and parametrized weights keep working.

    Args:
        module: any module.
        activity: penalty of the module's output; a plain L1L2 means its batch mean.
            Taken anew in each forward pass of the outermost module that is called;
            a module that is called twice in one pass pays twice.
        by_parameter: parameter name = coefficients. Names may be dotted, to reach
            into children: `regularize(model, **{"0.weight": L1L2(l2=1e-3)})`.

    Raises:
        ValueError: no parameter of that name, a parameter that is None or of
            integers, or something else than an L1L2. Nothing is stored then.

    >>> layer = regularize(nn.Linear(4, 2), weight=L1L2(l2=1e-3))
    >>> nn.init.ones_(layer.weight).shape
    torch.Size([2, 4])
    >>> f"{penalty(layer).item():.3f}"
    '0.008'
    """
    _require_eager("regularize", module)
    owners = []
    for name, regularizer in by_parameter.items():
        _require_l1l2("regularize", name, regularizer)
        owners.append((_owner(module, name), name.rpartition(".")[2], regularizer))
    if activity is not None:
        if not isinstance(activity, Activity):
            _require_l1l2("regularize", "activity", activity)
            activity = Activity(activity)
        record_outputs(module, activity)
    for owner, name, regularizer in owners:
        stored = owner.__dict__.get("_regularizers", {})
        owner.__dict__["_regularizers"] = {**stored, name: regularizer}
    return module


def penalty(model: nn.Module) -> Tensor:
    """Return the sum of all penalties in `model`, recomputed now, as a scalar tensor.

    Each distinct parameter counts once, however often its module is shared, nested or
    called; tied weights count once. Activity penalties are those of the last forward
    pass. 0 where nothing is regularized. Differentiable, also twice; on the device of
    the model's first parameter.

    Raises:
        ValueError: tied weights carry different coefficients; a regularized parameter
            is deleted, or has no shape yet. (One that became None costs nothing.)

    >>> model = nn.Sequential(nn.Linear(4, 2), nn.ReLU())
    >>> penalty(model)
    tensor(0.)
    """
    _require_eager("penalty", model)
    groups: dict[tuple[L1L2, torch.device], list[Tensor]] = {}
    for term in _distinct_terms(model):
        key = (term.regularizer, term.tensor.device)
        groups.setdefault(key, []).append(term.tensor)
    # A compiler fuses the plain formula, and can't see through a Function with jvp.
    total_of = _Total.forward if torch.compiler.is_compiling() else _Total.apply
    home = _device(model)
    total = torch.zeros((), device=home)
    for (regularizer, _), tensors in groups.items():
        total = total + total_of(regularizer, *tensors).to(home)
    for _, values in recorded_costs(model):
        total = total + sum(values).to(home)
    return total


def penalties(model: nn.Module) -> dict[str, Tensor]:
    """Return each penalty by its name: {"0.weight": ..., "2.activity": ...}.

    The values are scalars that can be differentiated, and their sum is
    `penalty(model)`. A shared parameter stands under the first name that reaches it.

    >>> layer = regularize(nn.Linear(4, 2), bias=L1L2(l1=1.0))
    >>> list(penalties(nn.Sequential(layer)))
    ['0.bias']
    """
    _require_eager("penalties", model)
    parts = {
        term.name: term.regularizer(term.tensor) for term in _distinct_terms(model)
    }
    for path, values in recorded_costs(model):
        parts[_join(path, "activity")] = sum(values)
    return parts


@torch.no_grad()
def add_penalty_gradients_(model: nn.Module) -> None:
    """Add the gradient of the weight penalties to `.grad`, without a graph.

    The fast path: after `loss.backward()`, each regularized parameter's gradient
    grows by 2 * l2 * w + l1 * sign(w) in place. The numbers equal those of
    `(loss + penalty(model)).backward()`. Parameters that don't require a gradient
    are left out; a parametrized weight's gradient goes through its parametrization.

    Raises:
        ValueError: an activity regularizer, whose gradient flows through the forward
            pass and so can't be added afterwards; tied weights that disagree.

    >>> layer = regularize(nn.Linear(2, 1), weight=L1L2(l2=0.5))
    >>> add_penalty_gradients_(layer)
    >>> torch.equal(layer.weight.grad, layer.weight)
    True
    """
    _require_eager("add_penalty_gradients_", model)
    for path, module in model.named_modules():
        if records_outputs(module):
            raise ValueError(
                f"add_penalty_gradients_: {path or 'the model'!r} has an activity "
                "regularizer, whose gradient flows through the forward pass. Add "
                "penalty(model) to the loss instead."
            )
    for _, tensor, regularizer in _distinct_terms(model):
        if not tensor.requires_grad:
            continue
        if not tensor.is_leaf:  # computed from other parameters
            tensor.backward(regularizer.gradient(tensor))
            continue
        if tensor.grad is None:
            tensor.grad = torch.zeros_like(tensor)
        elif tensor.grad.is_sparse:  # an Embedding's, but a penalty reaches each row
            tensor.grad = tensor.grad.to_dense()
        for coefficient, direction in regularizer._directions(tensor):
            tensor.grad.add_(direction, alpha=coefficient)


class _Term(NamedTuple):
    """One regularized parameter: its full name, its effective value, its cost."""

    name: str
    tensor: Tensor
    regularizer: L1L2


def _distinct_terms(model: nn.Module) -> list[_Term]:
    """Collect each distinct parameter once; named_modules already skips repeats."""
    terms: dict[object, _Term] = {}
    for path, module in model.named_modules():
        for name, regularizer in module.__dict__.get("_regularizers", {}).items():
            parameter = module._parameters.get(name)  # None where it is computed
            key = (id(module), name) if parameter is None else id(parameter)
            tensor = parameter
            if parameter is None:
                tensor = computed_weight(module, name, _join(path, name))
                if tensor is None:  # a bias that was taken away
                    continue
            if isinstance(tensor, UninitializedTensorMixin):
                raise ValueError(
                    f"penalty: {_join(path, name)!r} has no shape yet. Call the model "
                    "once before."
                )
            term = _Term(_join(path, name), tensor, regularizer)
            if terms.setdefault(key, term).regularizer != regularizer:
                _refuse_disagreement(terms[key], term)
    return list(terms.values())


def _refuse_disagreement(first: _Term, second: _Term) -> None:
    raise ValueError(
        f"penalty: {first.name!r} and {second.name!r} are one tied tensor, but carry "
        f"{first.regularizer} and {second.regularizer}. Give both the same "
        "coefficients, or regularize one of them."
    )


class _Total(torch.autograd.Function):
    """The summed penalty of several tensors, with the analytic gradient.

    Autograd alone would record three operations for each tensor and pass over its
    numbers again for each; this is one node, and one pass back.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(regularizer: L1L2, *tensors: Tensor) -> Tensor:
        return torch.stack([regularizer(tensor) for tensor in tensors]).sum()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.regularizer, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        gradient = ctx.regularizer.gradient
        return None, *(gradient(tensor, grad) for tensor in ctx.saved_tensors)

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor) -> Tensor:
        gradients = map(ctx.regularizer.gradient, ctx.saved_tensors)
        return sum(map(torch.sum, map(torch.mul, gradients, tangents)))


# Checks and small helpers


def _require_coefficient(name: str, value: object) -> None:
    if not isinstance(value, Real) or isinstance(value, bool):
        raise ValueError(
            f"L1L2: got {name}={value!r}; wanted a finite float >= 0, a plain number. "
            "float(...) makes one of an array or a tensor that holds one."
        )
    number = value if isinstance(value, int) else float(value)  # of float32, too
    if not 0 <= number <= sys.float_info.max:
        raise ValueError(
            f"L1L2: got {name}={value!r}; wanted a finite float >= 0. "
            "A negative or infinite coefficient would reward large weights."
        )


def _require_l1l2(place: str, name: str, regularizer: object) -> None:
    if not isinstance(regularizer, L1L2):
        raise ValueError(
            f"{place}: got {name}={regularizer!r}; wanted an L1L2, for example "
            f"{name}=L1L2(l2=1e-3)."
        )


def _require_real(place: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise ValueError(
            f"{place}: got {type(tensor).__name__}; wanted a tensor of floating-point "
            "numbers."
        )
    if tensor.is_complex():
        raise ValueError(
            f"{place}: got a tensor of {tensor.dtype}; wanted floating-point numbers "
            "that are real. In a loss penalize torch.view_as_real(weight); .float() "
            "would drop the imaginary parts."
        )
    if not tensor.is_floating_point():
        raise ValueError(
            f"{place}: got a tensor of {tensor.dtype}; wanted floating-point numbers, "
            "since a penalty needs a gradient. Convert it with .float()."
        )


def _require_eager(place: str, module: nn.Module) -> None:
    require_module(place, module)
    if isinstance(module, torch.jit.ScriptModule):
        raise ValueError(
            f"{place}: got a ScriptModule, which can't hold coefficients and loses "
            "those of the module that it was made from. Use that module: both share "
            "their parameters."
        )


def _owner(module: nn.Module, name: str) -> nn.Module:
    """Return the submodule that holds the parameter `name`, or say what there is."""
    path, _, leaf = name.rpartition(".")
    try:
        owner = module.get_submodule(path)
        tensor = getattr(owner, leaf)
    except AttributeError:
        owner, tensor = None, None
    if owner is not None:
        _require_eager("regularize", owner)
    if not isinstance(tensor, Tensor) or _is_constant(owner, leaf):
        known = ", ".join(n for n, _ in module.named_parameters()) or "none"
        what = "None" if owner is not None and tensor is None else "no parameter"
        raise ValueError(
            f"regularize: {name!r} is {what} in this {type(module).__name__}; its "
            f"parameters are: {known}."
        )
    _require_real(f"regularize: {name!r}", tensor)
    return owner


def _is_constant(owner: nn.Module, name: str) -> bool:
    """Tell buffers and plain attributes from parameters and what they compute."""
    attribute = owner.__dict__.get(name)  # the old weight_norm keeps its weight there
    is_plain = attribute is not None and not attribute.requires_grad
    if hook_of(owner, name) is not None:  # spectral_norm's, before a pass
        return False
    return is_plain or name in owner._buffers


def _at_least_float32(tensor: Tensor) -> Tensor:
    is_half = tensor.dtype in (torch.float16, torch.bfloat16)
    return tensor.float() if is_half else tensor


def _device(model: nn.Module) -> torch.device:
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
