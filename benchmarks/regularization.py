"""What a penalty costs: one training step with it against one without.

50 x Linear(256, 256), batch 128. The ways take turns in random order, and each is
compared with the plain step of its own round, so that a busy machine slows both.
Exits with 1 where a bound is missed.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from _timing import Ways, complain, measure, median_ratio, parse
from torch import Tensor, nn

from course_lib.regularization import L1L2, add_penalty_gradients_, penalty, regularize

L2 = 1e-4
BOUNDS = {"`penalty(model)` in the loss": 1.35, "`add_penalty_gradients_`": 1.08}
IMPORT_BOUND = 0.1  # seconds beyond `import torch`

OPTIMIZERS = {
    "SGD": partial(torch.optim.SGD, lr=1e-6),
    "Adam": partial(torch.optim.Adam, lr=1e-6),
}


def main() -> int:
    """Measure, print one table, and return 1 where a bound is missed."""
    options = parse(__doc__, rounds=60)

    figures, missed = {}, []
    for optimizer, make in OPTIMIZERS.items():
        times = measure(steps(make), options.rounds)
        for name, seconds in times.items():
            ratio = median_ratio(seconds, times["plain step"])
            figures[optimizer, name] = 1e3 * median(seconds), ratio
            if ratio > BOUNDS.get(name, ratio):
                missed.append(f"{optimizer}: {name} costs {ratio:.3f} of a plain step")
    import_time = median(import_seconds() for _ in range(max(3, options.rounds // 6)))
    if import_time > IMPORT_BOUND:
        missed.append(f"the import takes {import_time:.3f} s beyond torch's")

    print_table(figures, import_time, options.threads)
    return complain(missed)


def steps(make_optimizer: Callable) -> Ways:
    """Return each way to take a step, on a model of its own."""
    added_to_the_loss = {
        "plain step": None,
        "`penalty(model)` in the loss": penalty,
        "`sum(l2 * (w**2).sum())` in the loss": by_loop,
        "`torch._foreach_norm` in the loss": by_foreach_norm,
    }
    ways = {
        name: step(make_optimizer, extra_loss=extra)
        for name, extra in added_to_the_loss.items()
    }
    ways["`add_penalty_gradients_`"] = step(
        make_optimizer, after_backward=add_penalty_gradients_
    )
    return ways


def step(
    make_optimizer: Callable,
    *,
    extra_loss: Callable[[nn.Module], Tensor] | None = None,
    after_backward: Callable[[nn.Module], None] | None = None,
) -> Callable[[], None]:
    model = make_model()
    optimizer = make_optimizer(model.parameters())
    x, y = torch.randn(2, 128, 256)  # (batch, features) each

    def take() -> None:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        if extra_loss:
            loss = loss + extra_loss(model)
        loss.backward()
        if after_backward:
            after_backward(model)
        optimizer.step()

    return take


def make_model() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(256, 256) for _ in range(50)))
    for layer in model:
        nn.init.orthogonal_(layer.weight)  # else signals fade to slow denormals
        regularize(layer, weight=L1L2(l2=L2))
    return model


def by_loop(model: nn.Module) -> Tensor:
    return sum(L2 * (layer.weight**2).sum() for layer in model)


def by_foreach_norm(model: nn.Module) -> Tensor:
    norms = torch._foreach_norm([layer.weight for layer in model])
    return L2 * torch.stack(norms).square().sum()


def import_seconds() -> float:
    """Return what our import takes in a fresh interpreter after torch's."""
    code = (
        "import time, torch; start = time.perf_counter(); "
        "import course_lib.regularization; print(time.perf_counter() - start)"
    )
    return float(subprocess.check_output([sys.executable, "-c", code]))


def print_table(figures: dict[tuple, tuple], import_time: float, threads: int) -> None:
    heads = [f"{name}: ms per step | ratio to plain" for name in OPTIMIZERS]
    print(f"| threads: {threads} | {' | '.join(heads)} | bound |")
    print("|---|" + "---:|" * (2 * len(OPTIMIZERS) + 1))
    for name in dict.fromkeys(name for _, name in figures):
        cells = ["{:.1f} | {:.3f}".format(*figures[o, name]) for o in OPTIMIZERS]
        print(f"| {name} | {' | '.join(cells)} | {BOUNDS.get(name, '')} |")
    milliseconds = f"{1e3 * import_time:.1f} ms"
    print(
        f"| `import course_lib.regularization` after torch: {milliseconds} | | | | "
        f"| {1e3 * IMPORT_BOUND:.0f} ms |"
    )


if __name__ == "__main__":
    sys.exit(main())
