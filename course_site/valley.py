"""The picture of the first page: four ways down one bent valley, step by step.

Three rules of lesson 07, and the search of lesson 08, which asks for no gradient. The
paths are computed when the site is built, those of the rules by the library; a few
lines of JavaScript (docs/_static/valley.js) let them walk. Without those, one sees
where they lead.
"""

from __future__ import annotations

import html
import json
from collections.abc import Callable

import torch
from contourpy import contour_generator
from torch import Tensor

from course_lib.rules import Adam, Descent, Momentum, Rule

STEPS = 80
START = (-1.0, 0.75)
LEFT, RIGHT, LOW, HIGH = -1.7, 1.7, -0.75, 1.55  # what the picture shows
WIDTH, HEIGHT = 720, 420
Height = Callable[[Tensor], Tensor]


def banana(p: Tensor) -> Tensor:
    """Return Rosenbrock's height, 20 in place of his 100: (..., 2) -> (...)."""
    x, y = p[..., 0], p[..., 1]
    return (1 - x) ** 2 + 20 * (y - x**2) ** 2


def descend(rule: Rule, height: Height, steps: int = STEPS) -> Tensor:
    """Return the path of a rule, (steps + 1, 2)."""
    point = torch.tensor(START, dtype=torch.float64)
    state, path = rule.init(point), [point]
    for _ in range(steps):
        state, step = rule.apply(state, point, torch.func.grad(height)(point))
        point = point - step
        path.append(point)
    return torch.stack(path)


def search(height: Height, steps: int = STEPS, seed: int = 0) -> Tensor:
    """Return the path of RSO: one number a step, the best of w, w + dw and w - dw."""
    generator = torch.Generator().manual_seed(seed)
    point = torch.tensor(START, dtype=torch.float64)
    path = [point]
    for step in range(steps):
        move = torch.zeros(2, dtype=torch.float64)
        move[step % 2] = 0.1 * torch.randn((), generator=generator).item()
        tried = torch.stack([point, point + move, point - move])
        point = tried[height(tried).argmin()]
        path.append(point)
    return torch.stack(path)


def paths() -> dict[str, Tensor]:
    """Return the four paths by name."""
    return {
        "Descent": descend(Descent(0.012), banana),
        "Momentum": descend(Momentum(0.004, rho=0.9), banana),
        "Adam": descend(Adam(0.1), banana),
        "RSO": search(banana),
    }


def figure() -> str:
    """Return the picture with its controls, as HTML."""
    walked = paths()
    lines = "".join(_path(i, *way) for i, way in enumerate(walked.items()))
    heights = {n: [round(h, 3) for h in banana(p).tolist()] for n, p in walked.items()}
    points = {
        name: [[round(v, 1) for v in _place(x, y)] for x, y in path.tolist()]
        for name, path in walked.items()
    }
    data = json.dumps({"points": points, "heights": heights})
    legend = "".join(
        f'<li class="way-{i}"><span>{name}</span> <output>{heights[name][-1]:.3f}'
        "</output></li>"
        for i, name in enumerate(walked)
    )
    goal = _place(1.0, 1.0)
    return (
        '<figure class="valley">'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="valley-alt">'
        f'<title id="valley-alt">{html.escape(alt(walked))}</title>'
        f'<g class="valley-contours">{_contours()}</g>'
        f'<circle class="valley-goal" cx="{goal[0]:.1f}" cy="{goal[1]:.1f}" r="7"/>'
        f"{lines}</svg>"
        '<div class="valley-controls" hidden>'
        '<button type="button" class="valley-play">Play</button>'
        '<label for="valley-step">step</label>'
        f'<input type="range" id="valley-step" min="0" max="{STEPS}" value="{STEPS}">'
        f'<output for="valley-step">{STEPS}</output></div>'
        f'<ul class="valley-legend" aria-label="height above the lowest point">{legend}'
        "</ul>"
        "<figcaption>Four ways down one bent valley. <b>Descent</b>, <b>Momentum</b> "
        'and <b>Adam</b> follow the slope (<a href="notebooks/07_rules.html">lesson 07'
        "</a>). <b>RSO</b> knows no slope: it changes one number at a time, tries a "
        'little more and a little less, and keeps the best (<a href="'
        'notebooks/08_rso.html">lesson 08</a>). The numbers are heights; the ring is '
        "the lowest point, at 0.</figcaption>"
        f'<script type="application/json">{data}</script></figure>'
    )


def alt(walked: dict[str, Tensor]) -> str:
    """Return the picture in words."""
    ends = ", ".join(f"{n} at {banana(p[-1]):.3f}" for n, p in walked.items())
    return (
        "Contours of a valley bent like a banana, and four paths that start at its "
        f"upper left end. After {STEPS} steps their heights are: {ends}."
    )


def _place(x: float, y: float) -> tuple[float, float]:
    """Return where a point lies in the picture."""
    across = (x - LEFT) / (RIGHT - LEFT) * WIDTH
    return across, (HIGH - y) / (HIGH - LOW) * HEIGHT


def _path(place: int, name: str, path: Tensor) -> str:
    points = " ".join(
        f"{x:.1f},{y:.1f}" for x, y in (_place(*point) for point in path.tolist())
    )
    x, y = _place(*path[-1].tolist())
    return (
        f'<g class="way-{place}" data-way="{name}"><polyline points="{points}"/>'
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6"/></g>'
    )


def _contours() -> str:
    across = torch.linspace(LEFT, RIGHT, 121, dtype=torch.float64)
    up = torch.linspace(LOW, HIGH, 91, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(across, up, indexing="xy"), dim=-1)
    found = contour_generator(across.numpy(), up.numpy(), banana(grid).numpy())
    paths = []
    for level in (0.1, 0.4, 1, 2, 4, 8, 14, 24, 40, 70):
        for line in found.lines(level):
            points = " ".join(f"{x:.0f},{y:.0f}" for x, y in (_place(*p) for p in line))
            paths.append(f'<polyline points="{points}"/>')
    return "".join(paths)
