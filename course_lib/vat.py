"""Virtual adversarial training: outputs that stay the same under the worst small step.

Around each sample we look for the step of length eps that changes the model's answer
most, and charge for the change. No label is needed, so unlabeled samples teach too.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from course_lib.losses import LossCollector, kl_from_logits, reduce
from course_lib.regularization.activity import restored_records
from course_lib.trees import require_module


def virtual_adversarial_loss(
    model: nn.Module,
    inputs: Tensor,
    *,
    eps: float = 1.0,
    xi: float = 10.0,
    iterations: int = 1,
    logits: Tensor | None = None,
) -> Tensor:
    """Return mean KL(p || model(x + eps * d)) with p = model(x) fixed, a scalar.

    d is `adversarial_direction`. Only the last pass has a gradient: neither p nor d
    passes one on. The passes leave no trace but random numbers drawn: batch norm
    normalizes by each pass's own batch, its running statistics (as all buffers) stay
    as they were, dropout drops the same units in all passes, `.grad` is not touched,
    `add_loss` hears nothing, and activity penalties remain those of the pass before.

    Args:
        model: any classifier, inputs -> logits `(batch, classes, ...)`.
        inputs: labeled or not, `(batch, ...)` of floats.
        eps: length of the step in the inputs' units, > 0; each sample's length is
            taken over all its axes.
        xi: length of the trial step where the gradient is taken, > 0. At a hundredth of
            the inputs' length the direction is the theory's; far below a thousandth
            float32 rounds it away. The default, the article's, looks further ahead.
        iterations: gradients taken to find d, >= 1; each costs a pass forth and back.
        logits: model(inputs), if there has been a pass in the same mode; saves one.
            Not for models with dropout at work, where its units were dropped already.

    Raises:
        ValueError: an argument out of range, logits for fewer than two classes, or
            given logits of another shape or from a model that draws random numbers; a
            ScriptModule; inference mode.

    >>> model, inputs = nn.Linear(4, 3), torch.randn(8, 4)
    >>> vat = virtual_adversarial_loss(model, inputs, eps=0.5, xi=0.1)
    >>> bool(vat > 0), vat.requires_grad
    (True, True)

    Source: Miyato et al., arXiv:1704.03976. Its gradient is taken of the sum over the
    batch, and d is divided by its own sample's length.
    """
    _check_arguments("virtual_adversarial_loss", model, inputs, xi, iterations)
    _check_length("virtual_adversarial_loss", "eps", eps)
    passes = _Passes(model, inputs, logits)
    step = eps * _direction(passes, xi, iterations)
    return reduce(kl_from_logits(passes.target, passes(inputs + step)))


def adversarial_direction(
    model: nn.Module,
    inputs: Tensor,
    *,
    xi: float = 10.0,
    iterations: int = 1,
    logits: Tensor | None = None,
) -> Tensor:
    """Return the step of length 1 that changes each answer most, shaped as the inputs.

    Starting from a random d, `iterations` times: g = gradient by d of the summed
    KL(p || model(x + xi * d)), then d = g / |g|. For small xi this is a power
    iteration, and d goes to the dominant eigenvector of the KL's Hessian, up to sign;
    each iteration shrinks the other parts by their share of its eigenvalue. Where
    the gradient is 0, so is d. Arguments and errors are those of
    `virtual_adversarial_loss`.

    >>> model = nn.Linear(2, 2, bias=False)
    >>> _ = nn.init.eye_(model.weight)  # the classes differ along (1, -1)
    >>> d = adversarial_direction(model, torch.zeros(1, 2), xi=0.1)
    >>> d.abs()
    tensor([[0.7071, 0.7071]])
    """
    _check_arguments("adversarial_direction", model, inputs, xi, iterations)
    return _direction(_Passes(model, inputs, logits), xi, iterations)


def _direction(passes: "_Passes", xi: float, iterations: int) -> Tensor:
    d = _unit(passes.start)
    for _ in range(iterations):
        trial = (passes.inputs + xi * d).requires_grad_()
        with torch.enable_grad():
            change = kl_from_logits(passes.target, passes(trial)).sum()
        (gradient,) = torch.autograd.grad(change, trial)  # by it, not by the weights
        d = _unit(gradient)
    return d


def _unit(d: Tensor) -> Tensor:
    """Divide each sample by its length; the largest first, lest tiny squares be 0."""
    flat = d.detach().flatten(start_dim=1)
    smallest = torch.finfo(d.dtype).tiny
    flat = flat / flat.abs().amax(dim=1, keepdim=True).clamp(min=smallest)
    length = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
    return (flat / length.clamp(min=smallest)).view_as(d)


class _Passes:
    """Calls of a model that leave it as it was, all with the same random numbers.

    Attributes:
        inputs: without a gradient.
        start: one random number for each of the inputs.
        target: the clean pass's logits, without a gradient.
    """

    def __init__(self, model: nn.Module, inputs: Tensor, logits: Tensor | None) -> None:
        self.model, self.inputs = model, inputs.detach()
        self.start = torch.randn_like(self.inputs)
        devices = {inputs.device, *(p.device for p in model.parameters())}
        self.generators = list(_generators(devices))
        self.states = [generator.get_state() for generator in self.generators]
        self.refuses_randomness = logits is not None
        if logits is None:
            with torch.no_grad():
                logits = self(self.inputs)
        _check_logits(logits, inputs)
        self.target = logits.detach()

    def __call__(self, inputs: Tensor) -> Tensor:
        for generator, state in zip(self.generators, self.states, strict=True):
            generator.set_state(state)
        with LossCollector(), restored_records(self.model):
            outputs = _call_on_copied_buffers(self.model, inputs)
        if self.refuses_randomness:
            self._require_same_states()
        return outputs

    def _require_same_states(self) -> None:
        for generator, state in zip(self.generators, self.states, strict=True):
            if not torch.equal(generator.get_state(), state):
                raise ValueError(
                    "virtual adversarial training: the model draws random numbers "
                    "(dropout?), and the given logits are of other ones. Leave logits "
                    "out: then the clean pass is made anew, with those of the others."
                )


def _call_on_copied_buffers(model: nn.Module, inputs: Tensor) -> Tensor:
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    if not buffers:
        return model(inputs)
    if isinstance(model, nn.DataParallel):  # which functional_call refuses
        return _call_on_copied_buffers(model.module, inputs)
    return torch.func.functional_call(model, buffers, (inputs,))


def _generators(devices: set[torch.device]) -> Iterator[torch.Generator]:
    """Yield the generators that a model on these devices draws from."""
    yield torch.default_generator
    for device in devices:
        if device.type == "mps":
            yield torch.mps._get_default_mps_generator()
        elif device.type != "cpu":
            module = torch.get_device_module(device)
            yield module.default_generators[device.index]


# Checks


def _check_arguments(
    place: str, model: nn.Module, inputs: Tensor, xi: float, iterations: int
) -> None:
    require_module(place, model)
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError(
            f"{place}: got a ScriptModule, whose buffers can't be put aside. Pass the "
            "module that it was made from: both share their parameters."
        )
    if not isinstance(inputs, Tensor):
        raise ValueError(
            f"{place}: got inputs of type {type(inputs).__name__}; wanted one tensor "
            "(batch, ...). Of several inputs perturb one, and close over the others: a "
            "module whose forward takes that one."
        )
    if torch.is_inference_mode_enabled():
        raise ValueError(
            f"{place}: torch.inference_mode() is on, and the direction is a gradient. "
            "Leave that block, or take torch.no_grad()."
        )
    if inputs.dim() < 2 or not inputs.is_floating_point():
        raise ValueError(
            f"{place}: got inputs of {inputs.dtype} and shape {tuple(inputs.shape)}; "
            "wanted floats (batch, ...). Of words perturb the embeddings."
        )
    _check_length(place, "xi", xi)
    is_int = isinstance(iterations, int) and not isinstance(iterations, bool)
    if not is_int or iterations < 1:
        raise ValueError(f"{place}: got iterations={iterations!r}; wanted an int >= 1.")


def _check_length(place: str, name: str, value: float) -> None:
    if isinstance(value, str) or not (value > 0 and math.isfinite(value)):
        raise ValueError(
            f"{place}: got {name}={value!r}; wanted a finite number > 0, a length in "
            "the inputs' units."
        )


def _check_logits(logits: object, inputs: Tensor) -> None:
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if isinstance(shape, str) or len(shape) < 2 or shape[1] < 2:
        raise ValueError(
            f"virtual adversarial training: the model's output is {shape}; wanted "
            "logits (batch, classes, ...) of at least two classes. One logit z for "
            "yes or no is the same as the two [0, z]."
        )
    if len(logits) != len(inputs):
        raise ValueError(
            f"virtual adversarial training: there are {len(logits)} logits for "
            f"{len(inputs)} inputs; wanted one row each. Pass those of these inputs."
        )
    if logits.device != inputs.device:
        raise ValueError(
            f"virtual adversarial training: the logits are on {logits.device}, the "
            f"inputs on {inputs.device}. Pass those of these inputs."
        )
