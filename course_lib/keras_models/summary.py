"""A table of an imported model, its picture as a graph, and a check against Keras."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.axes import Axes
from torch import Tensor

from course_lib.keras_models.graph.model import KerasModel
from course_lib.keras_models.layers.base import Layer
from course_lib.keras_models.source.files import npz_arrays, open_zip
from course_lib.keras_models.spec import KerasFormatError
from course_lib.regularization.modules import penalty
from course_lib.regularization.regularizers import L1L2, Activity

_OUTPUT, _PENALTY, _ROUNDING = 1e-5, 1e-6, 1e-7
_TITLES = ("layer", "type", "shape", "parameters", "regularizer", "calls")


def summary(model: KerasModel) -> str:
    """Return a table: layer, type, output shape, parameters, regularizer, calls.

    Shapes are in Keras's order, with None where a size is open. The layers of a
    nested model are indented below it.
    """
    rows = list(_rows(model, ""))
    widths = [max(len(row[i]) for row in [_TITLES, *rows]) for i in range(6)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in [_TITLES, *rows]
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    total = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    lines.append(f"{total:,} parameters, {trained:,} of them trained")
    return "\n".join(line.rstrip() for line in lines)


def _rows(model: KerasModel, indent: str) -> Iterator[tuple[str, ...]]:
    shapes = zip(model.input_names, model.input_shapes, strict=True)
    for name, shape in shapes:
        yield indent + name, "InputLayer", str(shape), "0", "", ""
    for name, module in model._modules.items():
        calls = [call for call in model.calls if call.layer.replace(".", "_") == name]
        shape = " ".join(map(str, calls[0].shapes)) if calls else ""
        count = f"{sum(parameter.numel() for parameter in module.parameters()):,}"
        kind = module.keras_class
        if isinstance(module, Layer) and module.sublayers():
            kind = f"{kind}({module.sublayers()[0].keras_class})"
        costs = ", ".join(_costs(module))
        yield indent + name, kind, shape, count, costs, str(len(calls))
        if isinstance(module, KerasModel):
            yield from _rows(module, indent + "  ")


def _costs(module: Any) -> Iterator[str]:
    """Yield the penalties of each parameter and of the output, in words."""
    if isinstance(module, KerasModel):
        return
    for name, regularizer in module.__dict__.get("_regularizers", {}).items():
        yield f"{name}: {_words(regularizer)}"
    cost = module.__dict__.get("_activity_cost")
    if isinstance(cost, Activity):
        yield f"output: {_words(cost.regularizer)}, {cost.reduction} over the batch"
    inputs = getattr(module, "inputs_of_calls", None)
    if inputs is not None:
        cost = inputs.__dict__["_activity_cost"].activity
        yield f"inputs: {_words(cost.regularizer)}, {cost.reduction} over the batch"
    for inner in module.sublayers():
        yield from _costs(inner)


def _words(regularizer: L1L2) -> str:
    parts = (("l1", regularizer.l1), ("l2", regularizer.l2))
    return " ".join(f"{name}={value:.4g}" for name, value in parts if value)


def draw_graph(ax: Axes, model: KerasModel) -> Axes:
    """Draw each call as a box, below the calls whose outputs it takes.

    A shared layer has as many boxes as calls, in one color; so one sees that there
    is one set of weights.
    """
    places = _places(model)
    boxes = {}
    counts = Counter(call.layer for call in model.calls)
    shared = [name for name in model._modules if counts[name] > 1]
    for (name, number), (x, y) in places.items():
        color = (f"C{shared.index(name) % 10}", 0.4) if name in shared else "0.9"
        text = f"{name}\ncall {number + 1}" if name in shared else name
        box = {"boxstyle": "round", "facecolor": color, "edgecolor": "0.4"}
        style = {"ha": "center", "va": "center", "fontsize": 8, "bbox": box}
        boxes[name, number] = ax.text(x, y, text, **style).get_bbox_patch()
    for call in model.calls:
        end = call.layer, call.number
        for start in call.inputs:
            style = {"arrowstyle": "-|>", "color": "0.5"}
            style |= {"patchA": boxes[start], "patchB": boxes[end]}
            ax.annotate("", xy=places[end], xytext=places[start], arrowprops=style)
    xs, ys = zip(*places.values(), strict=True)
    ax.set(xlim=(min(xs) - 0.7, max(xs) + 0.7), ylim=(min(ys) - 0.6, max(ys) + 0.6))
    ax.set_axis_off()
    return ax


def _places(model: KerasModel) -> dict[tuple[str, int], tuple[float, float]]:
    """Return where each call stands: as deep as its longest way from an input."""
    depth = {(name, 0): 0 for name in model.input_names}
    for call in model.calls:
        depth[call.layer, call.number] = 1 + max(depth[ref] for ref in call.inputs)
    rows: dict[int, list[tuple[str, int]]] = {}
    for key, level in depth.items():
        rows.setdefault(level, []).append(key)
    return {
        key: (i - (len(row) - 1) / 2, -float(level))
        for level, row in rows.items()
        for i, key in enumerate(row)
    }


class Comparison(NamedTuple):
    """How far a model is from what Keras computed."""

    error: float  # the largest absolute difference of an output
    size: float  # the largest number in the outputs of Keras
    cost: float | None  # the relative difference of the penalty, if the file holds one
    agrees: bool  # whether all outputs and the penalty are equal but for rounding


def compare(model: KerasModel, path: str | Path) -> Comparison:
    """Compare a model with what Keras computed.

    An output agrees where |got - wanted| <= tolerance max |wanted| + 1e-7. The
    tolerance is 1e-5, or ten roundings of a coarser dtype of the file; for the penalty
    it is 1e-6. The term 1e-7 is the rounding of float32 at 1: a small output may be the
    difference of such numbers.

    Args:
        model: an imported model; it is run in the mode it has, eval after `load_keras`.
        path: an `.npz` with x0, x1, ... (inputs), y0, y1, ... (outputs) and, if it
            has one, reg_loss (the penalty).

    Raises:
        KerasFormatError: the file has too few inputs or outputs, or others.
    """
    with open_zip(Path(path)) as archive:
        arrays = {name: array.read() for name, array in npz_arrays(archive)}
    inputs, wanted = _numbered(arrays, "x"), _numbered(arrays, "y")
    if len(inputs) != len(model.input_names) or len(wanted) != len(model.output_names):
        raise KerasFormatError(
            f"check: {path} has {len(inputs)} inputs x0, x1, ... and {len(wanted)} "
            f"outputs y0, y1, ...; the model has {len(model.input_names)} and "
            f"{len(model.output_names)}."
        )
    relative = None
    with torch.no_grad():
        outputs = model(*inputs)
        if "reg_loss" in arrays:
            relative = _relative(float(penalty(model)), float(arrays["reg_loss"]))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    found = []
    for i, (output, target) in enumerate(zip(outputs, wanted, strict=True)):
        if output.shape != target.shape:
            raise KerasFormatError(
                f"check: output {i} has shape {tuple(output.shape)}; {path} has "
                f"{tuple(target.shape)}."
            )
        found.append(_difference(output, target))
    errors, sizes, agree = zip(*found, strict=True)
    agrees = all(agree) and (relative is None or relative <= _PENALTY)
    return Comparison(max(errors), max(sizes), relative, agrees)


def _relative(cost: float, known: float) -> float:
    return 0.0 if cost == known else abs(cost - known) / max(abs(known), 1e-12)


def _difference(output: Tensor, target: Tensor) -> tuple[float, float, bool]:
    """Return the error, infinite for a nan on one side, the size, and if they agree."""
    rounding = torch.finfo(target.dtype).eps if target.dtype.is_floating_point else 0.0
    target, output = target.to(output.device).double(), output.double()
    same = (output == target) | (output.isnan() & target.isnan())
    error = (output - target).abs().nan_to_num(torch.inf, torch.inf)
    error = _largest(torch.where(same, 0.0, error))
    size = _largest(target[target.isfinite()].abs())
    return error, size, error <= max(_OUTPUT, 10 * rounding) * size + _ROUNDING


def _largest(x: Tensor) -> float:
    return float(x.max()) if x.numel() else 0.0


def _numbered(arrays: dict[str, Any], letter: str) -> list[Tensor]:
    found: list[Tensor] = []
    while f"{letter}{len(found)}" in arrays:
        found.append(torch.from_numpy(arrays[f"{letter}{len(found)}"]))
    return found
