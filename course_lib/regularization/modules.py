"""Store regularizers on the modules of a model, and add up their penalties.

`regularize(layer, weight=L1L2(l2=1e-3))` stores a regularizer on the layer, by the name
of its parameter; `penalty(model)` computes the sum from the current weights.
"""

from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedTensorMixin

from course_lib.regularization.activity import (
    record_outputs,
    recorded_penalties,
    records_outputs,
)
from course_lib.regularization.computed_weights import computed_weight, hook_of
from course_lib.regularization.regularizers import (
    L1L2,
    Activity,
    require_l1l2,
    require_real,
)
from course_lib.trees import require_module

Module = TypeVar("Module", bound=nn.Module)


def regularize(
    module: Module,
    /,
    *,
    activity: L1L2 | Activity | None = None,
    **by_parameter: L1L2,
) -> Module:
    """Store regularizers on `module` and return the same module.

    A later call adds to an earlier one and replaces the same name. The state_dict is
    unchanged; deepcopy, pickling, `.to`, tied and parametrized weights keep working.

    Args:
        module: any module.
        activity: regularizer of the module's output; an L1L2 means its batch mean. The
            penalty is that of the last forward pass of the outermost module that was
            called; two calls in one pass add up.
        by_parameter: parameter name = regularizer. A dotted name reaches into children:
            `regularize(model, **{"0.weight": L1L2(l2=1e-3)})`.

    Raises:
        ValueError: no parameter of that name, a parameter that is None or of
            integers, or a value that is no L1L2. Nothing is stored then.

    >>> layer = regularize(nn.Linear(4, 2), weight=L1L2(l2=1e-3))
    >>> nn.init.ones_(layer.weight).shape
    torch.Size([2, 4])
    >>> f"{penalty(layer).item():.3f}"
    '0.008'
    """
    _require_eager("regularize", module)
    owners = []
    for name, regularizer in by_parameter.items():
        require_l1l2("regularize", name, regularizer)
        owners.append((_owner(module, name), name.rpartition(".")[2], regularizer))
    if activity is not None:
        if not isinstance(activity, Activity):
            require_l1l2("regularize", "activity", activity)
            activity = Activity(activity)
        record_outputs(module, activity)
    for owner, name, regularizer in owners:
        stored = owner.__dict__.get("_regularizers", {})
        owner.__dict__["_regularizers"] = {**stored, name: regularizer}
    return module


def penalty(model: nn.Module) -> Tensor:
    """Return the sum of all penalties in `model`, recomputed now, as a scalar tensor.

    Each distinct parameter counts once, however often its module is shared, nested or
    called; so do tied weights. Activity penalties are those of the last forward pass.
    The sum is 0 if nothing is regularized, can be differentiated twice, and lies on the
    device of the model's first parameter.

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
    home = next((p.device for p in model.parameters()), torch.device("cpu"))
    total = torch.zeros((), device=home)
    for (regularizer, _), tensors in groups.items():
        total = total + total_of(regularizer, *tensors).to(home)
    for _, values in recorded_penalties(model):
        total = total + sum(values).to(home)
    return total


def penalties(model: nn.Module) -> dict[str, Tensor]:
    """Return each penalty by its name: {"0.weight": ..., "2.activity": ...}.

    The values are scalars that can be differentiated; their sum is `penalty(model)`. A
    shared parameter has the first name that reaches it.

    >>> layer = regularize(nn.Linear(4, 2), bias=L1L2(l1=1.0))
    >>> list(penalties(nn.Sequential(layer)))
    ['0.bias']
    """
    _require_eager("penalties", model)
    parts = {name: call(tensor) for name, tensor, call in _distinct_terms(model)}
    for path, values in recorded_penalties(model):
        parts[_join(path, "activity")] = sum(values)
    return parts


@torch.no_grad()
def add_penalty_gradients_(model: nn.Module) -> None:
    """Add the gradient of the weight penalties to `.grad`, without a graph.

    The fast path, to be called after `loss.backward()`: adds 2 * l2 * w + l1 * sign(w)
    in place, with the result of `(loss + penalty(model)).backward()`. Parameters that
    don't require a gradient are skipped; the gradient of a parametrized weight goes
    through its parametrization.

    Raises:
        ValueError: there is an activity regularizer, whose gradient flows through the
            forward pass; or tied weights have different regularizers.

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
        for coefficient, direction in regularizer.directions(tensor):
            tensor.grad.add_(direction, alpha=coefficient)


class _Term(NamedTuple):
    name: str  # of the regularized parameter, from the model's root
    tensor: Tensor  # its value, computed if it is no parameter itself
    regularizer: L1L2


def _distinct_terms(model: nn.Module) -> list[_Term]:
    """Return each distinct parameter once; named_modules already skips repeats."""
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
            first = terms.setdefault(key, term)
            if first.regularizer != regularizer:
                raise ValueError(
                    f"penalty: {first.name!r} and {term.name!r} are one tied tensor, "
                    f"but have {first.regularizer} and {regularizer}. Give both the "
                    "same regularizer, or regularize one of them."
                )
    return list(terms.values())


class _Total(torch.autograd.Function):
    """The summed penalty of several tensors, with the analytic gradient.

    Autograd would record three operations for each tensor, each with its own pass over
    the numbers; this is one node with one backward pass.
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


def _require_eager(place: str, module: nn.Module) -> None:
    require_module(place, module)
    if isinstance(module, torch.jit.ScriptModule):
        raise ValueError(
            f"{place}: got a ScriptModule, which can't hold regularizers and loses "
            "those of the module that it was made from. Use that module: both share "
            "their parameters."
        )


def _owner(module: nn.Module, name: str) -> nn.Module:
    """Return the submodule that holds the parameter `name`."""
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
        found = "None" if owner is not None and tensor is None else "no parameter"
        raise ValueError(
            f"regularize: {name!r} is {found} in this {type(module).__name__}; its "
            f"parameters are: {known}."
        )
    require_real(f"regularize: {name!r}", tensor)
    return owner


def _is_constant(owner: nn.Module, name: str) -> bool:
    """Return whether it is a buffer or a plain attribute, not made of parameters."""
    attribute = owner.__dict__.get(name)  # the old weight_norm keeps its weight there
    is_plain = attribute is not None and not attribute.requires_grad
    if hook_of(owner, name) is not None:  # spectral_norm's, before a pass
        return False
    return is_plain or name in owner._buffers


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
