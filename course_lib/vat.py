"""Virtual adversarial training: outputs that don't change along the worst direction.

For each sample we search a direction in which the model's output changes most, take a
step of length eps along it, and penalize the change. No label is needed, so unlabeled
samples can be used too.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from course_lib.checks import require_ints
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

    d is `adversarial_direction`. Only the last pass has a gradient: p and d are
    constants. The passes change nothing but the state of the random numbers: buffers
    such as running statistics, `.grad`, the open `LossCollector` and activity penalties
    stay the same. Batch norm normalizes by each pass's own batch, and dropout drops the
    same units in all passes.

    Args:
        model: any classifier, inputs -> logits `(batch, classes, ...)`.
        inputs: labeled or not, `(batch, ...)` of floats.
        eps: length of the step in the inputs' units, > 0, over all axes of a sample.
        xi: length of the trial step for the gradient, > 0. At a hundredth of the
            inputs' length the direction is the theory's; far below a thousandth it is
            lost to rounding in float32. Texts differ: the Keras notes and
            lyakaap/VAT-pytorch take 10, musyoku/vat 1, Miyato's vat_tf 1e-6.
        iterations: gradients used to find d, >= 1; each costs a pass and its backward.
        logits: model(inputs), if a pass in the same mode has computed them; saves one
            pass. Not for a model that draws random numbers, such as dropout's.

    Raises:
        ValueError: an argument out of range, logits for fewer than two classes, or
            given logits of another shape or from a model that draws random numbers; a
            ScriptModule; inference mode.

    >>> model, inputs = nn.Linear(4, 3), torch.randn(8, 4)
    >>> vat = virtual_adversarial_loss(model, inputs, eps=0.5, xi=0.1)
    >>> bool(vat > 0), vat.requires_grad
    (True, True)

    Source: Miyato et al., arXiv:1704.03976. The gradient here is that of the sum over
    the batch, and each sample's d is divided by its own length.
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
    """Return steps of length 1 along which the answers change most, as the inputs.

    Starting from a random d, `iterations` times: g = gradient by d of the summed
    KL(p || model(x + xi * d)), then d = g / |g|. For small xi this is a power iteration
    that converges to the dominant eigenvector of the KL's Hessian. Its sign is that of
    the start: close to x the KL is the same at d and at -d, farther off it is not, and
    which of them changes more is for you to compare. If the gradient is 0, so is d.
    Arguments and errors: see `virtual_adversarial_loss`.

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
    """Divide each sample by its length; first by its maximum, as tiny squares are 0."""
    flat = d.detach().flatten(start_dim=1)
    smallest = torch.finfo(d.dtype).tiny
    flat = flat / flat.abs().amax(dim=1, keepdim=True).clamp(min=smallest)
    length = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
    return (flat / length.clamp(min=smallest)).view_as(d)


class _Passes:
    """Calls of a model that don't change it, all with the same random numbers.

    Attributes:
        inputs: without a gradient.
        start: random numbers of the inputs' shape.
        target: the clean pass's logits, without a gradient.
    """

    def __init__(self, model: nn.Module, inputs: Tensor, logits: Tensor | None) -> None:
        self.model, self.inputs = model, inputs.detach()
        self.start = torch.randn_like(self.inputs)
        devices = {inputs.device, *(p.device for p in model.parameters())}
        self.states = [(g, g.get_state()) for g in _generators(devices)]
        self.refuses_randomness = logits is not None
        if logits is None:
            with torch.no_grad():
                logits = self(self.inputs)
        _check_logits(logits, inputs)
        self.target = logits.detach()

    def __call__(self, inputs: Tensor) -> Tensor:
        for generator, state in self.states:
            generator.set_state(state)
        with LossCollector(), restored_records(self.model):
            outputs = _call_on_copied_buffers(self.model, inputs)
        for generator, state in self.states if self.refuses_randomness else ():
            if not torch.equal(generator.get_state(), state):
                raise ValueError(
                    f"{_PLACE}: the model draws random numbers (dropout?), and the "
                    "given logits were computed with other ones. Leave logits "
                    "out: then the clean pass is computed again, with the same ones."
                )
        return outputs


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

_PLACE = "virtual adversarial training"


def _check_arguments(
    place: str, model: nn.Module, inputs: Tensor, xi: float, iterations: int
) -> None:
    require_module(place, model)
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError(
            f"{place}: got a ScriptModule, whose buffers can't be replaced. Pass the "
            "module that it was made from: both share their parameters."
        )
    if not isinstance(inputs, Tensor):
        raise ValueError(
            f"{place}: got inputs of type {type(inputs).__name__}; wanted one tensor "
            "(batch, ...). To perturb one of several inputs, pass a module whose "
            "forward takes that one."
        )
    if torch.is_inference_mode_enabled():
        raise ValueError(
            f"{place}: torch.inference_mode() is on, and the direction is a gradient. "
            "Leave that block, or take torch.no_grad()."
        )
    if inputs.dim() < 2 or not inputs.is_floating_point():
        raise ValueError(
            f"{place}: got inputs of {inputs.dtype} and shape {tuple(inputs.shape)}; "
            "wanted floats (batch, ...). For tokens perturb the embeddings."
        )
    _check_length(place, "xi", xi)
    require_ints(place, iterations=iterations)


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
            f"{_PLACE}: the model's output is {shape}; wanted logits (batch, classes, "
            "...) of at least two classes. One logit z for yes or no is the same as "
            "the two [0, z]."
        )
    if len(logits) != len(inputs):
        raise ValueError(
            f"{_PLACE}: there are {len(logits)} logits for {len(inputs)} inputs; "
            "wanted one row for each. Pass the logits of these inputs."
        )
    if logits.device != inputs.device:
        raise ValueError(
            f"{_PLACE}: the logits are on {logits.device}, the inputs on "
            f"{inputs.device}. Pass the logits of these inputs."
        )
