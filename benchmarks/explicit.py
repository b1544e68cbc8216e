"""What an explicit training step costs, beside torch.optim's Adam in all its forms.

An MLP of 500k parameters and a CNN of 100k, batch 128, and the update alone of 1,000
small tensors. The ways take turns in random order, and each is compared with
torch.optim.Adam at its defaults (with its foreach form for the small tensors) in the
same round. Exits with 1 where a bound is missed.

Then the same beside the best of them, torch.optim.Adam(fused=True). `update` calls the
same kernel as that one, on copies of parameters and moments, for it changes none of its
arguments; the last row says what these copies alone take.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import torch
from _timing import Ways, compare, complain, parse
from torch import Tensor, nn

from course_lib.device import pick_device
from course_lib.explicit import (
    call,
    parameters,
    setup,
    update,
    update_,
    with_gradient,
)
from course_lib.rules import Adam

PURE, IN_PLACE = "explicit, `update`", "explicit, `update_` in place"
DEFAULT, FUSED = "`torch.optim.Adam`", "`torch.optim.Adam(fused=True)`"
COPIES = "copies of parameters and moments"
BEST = FUSED, PURE, IN_PLACE, COPIES
BOUNDS = {
    ("MLP step", PURE): 0.97,
    ("MLP step", IN_PLACE): 0.92,
    ("CNN step", PURE): 0.97,
    ("1,000 tensors", PURE): 1.05,
    ("1,000 tensors", IN_PLACE): 1.05,
}
BATCH = 128
cross_entropy = nn.functional.cross_entropy


def main() -> int:
    """Measure, print one table, and return 1 where a bound is missed."""
    options, device = parse(__doc__, rounds=200), pick_device()
    return complain(compare(tasks(device), BOUNDS, options.rounds, device))


def tasks(device: torch.device) -> list[tuple[str, Ways, dict[str, str]]]:
    """Return (name, ways, {way: the plain one}) of each comparison."""
    labels = torch.randint(10, (BATCH,)).to(device)
    large, small = (torch.randn(BATCH, 1, n, n).to(device) for n in (28, 8))
    found = [
        ("MLP step", steps(mlp, large, labels), DEFAULT),
        ("CNN step", steps(cnn, small, labels), DEFAULT),
        ("1,000 tensors", small_updates(device), "`torch.optim.Adam(foreach=True)`"),
    ]
    best = [
        (f"{name}, beside fused", {w: ways[w] for w in BEST if w in ways}, FUSED)
        for name, ways, _ in found
    ]
    return [
        (name, ways, dict.fromkeys(ways, plain)) for name, ways, plain in found + best
    ]


def mlp() -> nn.Sequential:
    """Return 784-512-180-10: 496,102 parameters."""
    first, second = nn.Linear(784, 512), nn.Linear(512, 180)
    relu = nn.ReLU()
    return nn.Sequential(nn.Flatten(), first, relu, second, relu, nn.Linear(180, 10))


def cnn() -> nn.Sequential:
    """Return a network for 8x8 images: 98,890 parameters."""
    convs = [nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    convs += [nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(
        *convs, nn.Flatten(), nn.Linear(64 * 4, 300), nn.ReLU(), nn.Linear(300, 10)
    )


def steps(make: Callable[[], nn.Module], x: Tensor, y: Tensor) -> Ways:
    """Return each way to take a whole training step, on a model of its own."""

    def model() -> nn.Module:
        torch.manual_seed(0)
        return make().to(x.device)

    ways = {
        name: implicit_step(model(), x, y, options)
        for name, options in torch_forms(x.device).items()
    }
    ways[PURE] = explicit_step(model(), x, y, in_place=False)
    ways[IN_PLACE] = explicit_step(model(), x, y, in_place=True)
    ways = with_torchopt(ways, model(), x, y)
    arrays = [p.detach() for p in model().parameters()] * 3
    ways[COPIES] = lambda: [array.clone() for array in arrays]
    return ways


def torch_forms(device: torch.device) -> dict[str, dict[str, bool]]:
    forms = {
        DEFAULT: {},
        "`torch.optim.Adam(foreach=True)`": {"foreach": True},
        FUSED: {"fused": True},
    }
    if device.type == "cuda":
        forms["`torch.optim.Adam(capturable=True)`"] = {"capturable": True}
    return forms


def implicit_step(
    model: nn.Module, x: Tensor, y: Tensor, options: dict[str, bool]
) -> Callable[[], None]:
    optimizer = torch.optim.Adam(model.parameters(), **options)

    def step() -> None:
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def explicit_step(
    model: nn.Module, x: Tensor, y: Tensor, *, in_place: bool
) -> Callable[[], None]:
    params = parameters(model)
    state = setup(Adam(), params)

    def loss(params: dict) -> Tensor:
        return cross_entropy(call(model, params, x), y)

    def step() -> None:
        nonlocal state, params
        _, grads = with_gradient(loss, params)
        if in_place:
            update_(state, params, grads)
        else:
            state, params = update(state, params, grads)

    return step


def with_torchopt(ways: Ways, model: nn.Module, x: Tensor, y: Tensor) -> Ways:
    """Add TorchOpt's functional Adam, where it is installed."""
    try:
        import torchopt
    except ImportError:
        return ways
    params = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torchopt.adam(lr=1e-3)
    state = optimizer.init(params)

    def loss(params: dict[str, Tensor]) -> Tensor:
        return cross_entropy(torch.func.functional_call(model, params, (x,)), y)

    def step() -> None:
        nonlocal state, params
        grads = torch.func.grad(loss)(params)
        updates, state = optimizer.update(grads, state, inplace=False)
        params = torchopt.apply_updates(params, updates, inplace=False)

    return {**ways, "TorchOpt": step}


def small_updates(device: torch.device) -> Ways:
    """Return each way to update 1,000 tensors of 8 numbers, gradients given."""
    params = {str(i): torch.randn(8).to(device) for i in range(1000)}
    grads = {key: torch.randn(8).to(device) for key in params}
    ways = {}
    for name, options in torch_forms(device).items():
        leaves = [nn.Parameter(tensor.clone()) for tensor in params.values()]
        for leaf, grad in zip(leaves, grads.values(), strict=True):
            leaf.grad = grad.clone()
        ways[name] = torch.optim.Adam(leaves, **options).step
    ways[PURE] = partial(update, setup(Adam(), params), params, grads)
    own = {key: tensor.clone() for key, tensor in params.items()}
    ways[IN_PLACE] = partial(update_, setup(Adam(), own), own, grads)
    return ways


if __name__ == "__main__":
    sys.exit(main())
