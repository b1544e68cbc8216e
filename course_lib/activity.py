"""Record what modules' outputs cost, in each forward pass of the model anew.

A layer that is called twice in one pass pays twice; the next pass begins at zero. But a
layer doesn't know which model it stands in, nor when a pass begins. So the outermost
module, the one that the user called, is read off the stack, and a hook there empties
the records when it is called again.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn


class _Record:
    """The costs of one module's outputs in one forward pass.

    Copies and pickles are empty: tensors inside a graph can be neither.
    """

    def __init__(self) -> None:
        self.costs: list[Tensor] = []

    def __deepcopy__(self, memo: dict) -> "_Record":
        return _Record()

    def __reduce__(self) -> tuple:
        return _Record, ()


def record_outputs(module: nn.Module, cost: Callable[[Any], Tensor]) -> None:
    """From now on record cost(output) at each call; replaces an earlier cost.

    >>> layer = nn.ReLU()
    >>> record_outputs(layer, torch.sum)
    >>> model = nn.Sequential(layer, layer)  # one layer, called twice
    >>> for _ in range(3):
    ...     outputs = model(torch.ones(2))
    >>> list(recorded_costs(model))
    [('0', [tensor(2.), tensor(2.)])]
    """
    if not records_outputs(module):
        module.register_forward_hook(_record)
    module.__dict__.update(_activity_cost=cost, _activity_record=_Record())


def records_outputs(module: nn.Module) -> bool:
    """Tell whether `record_outputs` was called on this very module."""
    return "_activity_cost" in module.__dict__


def recorded_costs(model: nn.Module) -> Iterator[tuple[str, list[Tensor]]]:
    """Yield (name, costs of the last pass, one a call) of the modules that have any."""
    for path, module in model.named_modules():
        record = module.__dict__.get("_activity_record")
        if record is not None and record.costs:
            yield path, record.costs


@contextlib.contextmanager
def records_kept(model: nn.Module) -> Iterator[None]:
    """Forget, after this block, the passes that ran in it: the last one before counts.

    >>> layer = nn.ReLU()
    >>> record_outputs(layer, torch.sum)
    >>> outputs = layer(torch.ones(2))
    >>> with records_kept(layer):
    ...     outputs = layer(torch.ones(9))
    >>> list(recorded_costs(layer))
    [('', [tensor(2.)])]
    """
    kept = []
    for module in model.modules():
        record = module.__dict__.get("_activity_record")
        filled = module.__dict__.get("_activity_pass")
        kept.append((module, record, record and list(record.costs), filled))
    try:
        yield
    finally:
        for module, record, costs, filled in kept:
            if record is not None:
                record.costs = costs
            if filled is not None:
                module.__dict__["_activity_pass"] = filled


@torch._disable_dynamo  # a compiled graph has no stack to read; `import torch` has this
def _record(module: nn.Module, args: tuple, output: Any) -> None:
    record: _Record = module.__dict__["_activity_record"]
    records = _records_of_this_pass(module)
    if record not in records:  # it may still hold what another model's pass left
        record.costs = []
        records.add(record)
    record.costs.append(module.__dict__["_activity_cost"](output))


def _records_of_this_pass(module: nn.Module) -> set[_Record]:
    """Return the records that the running call of the outermost module has filled."""
    root = _outermost_module(module)
    if _begin_pass not in root._forward_pre_hooks.values():
        root.register_forward_pre_hook(_begin_pass)  # from its next call on
        _begin_pass(root, ())
    return root.__dict__["_activity_pass"]


def _begin_pass(module: nn.Module, args: tuple) -> None:
    """Empty all records of the pass before, also of layers that this one leaves out."""
    for record in module.__dict__.get("_activity_pass", ()):
        record.costs = []
    module.__dict__["_activity_pass"] = set()


def _outermost_module(module: nn.Module) -> nn.Module:
    call, outermost = nn.Module._call_impl.__code__, None
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code is call:
            outermost = frame
        frame = frame.f_back
    return module if outermost is None else outermost.f_locals["self"]
