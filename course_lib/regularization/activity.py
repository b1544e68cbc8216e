"""Record the penalties of modules' outputs during a forward pass of the model.

Two calls of a layer in one pass give two penalties; the next pass starts with none. A
layer doesn't know which model contains it, nor when a pass begins. So the outermost
module that is being called is found on the call stack, and a hook on it empties the
records at its next call.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn


class _Record:
    """The penalties of one module's outputs in one forward pass.

    Copies and pickles are empty: tensors inside a graph can't be copied or pickled.
    """

    def __init__(self) -> None:
        self.penalties: list[Tensor] = []

    def __reduce__(self) -> tuple:  # deepcopy asks it, too
        return _Record, ()


def record_outputs(module: nn.Module, regularizer: Callable[[Any], Tensor]) -> None:
    """Record regularizer(output) at each later call; replaces an earlier regularizer.

    >>> layer = nn.ReLU()
    >>> record_outputs(layer, torch.sum)
    >>> model = nn.Sequential(layer, layer)  # one layer, called twice
    >>> for _ in range(3):
    ...     outputs = model(torch.ones(2))
    >>> list(recorded_penalties(model))
    [('0', [tensor(2.), tensor(2.)])]
    """
    if not records_outputs(module):
        module.register_forward_hook(_record)
    module.__dict__.update(_activity_cost=regularizer, _activity_record=_Record())


def records_outputs(module: nn.Module) -> bool:
    """Return whether `record_outputs` was called on this module."""
    return "_activity_cost" in module.__dict__


def recorded_penalties(model: nn.Module) -> Iterator[tuple[str, list[Tensor]]]:
    """Yield (module's name, its penalties in the last pass, one for each call)."""
    for path, module in model.named_modules():
        record = module.__dict__.get("_activity_record")
        if record is not None and record.penalties:
            yield path, record.penalties


@contextlib.contextmanager
def restored_records(model: nn.Module) -> Iterator[None]:
    """Restore, after this block, the records of the last pass before it.

    >>> layer = nn.ReLU()
    >>> record_outputs(layer, torch.sum)
    >>> outputs = layer(torch.ones(2))
    >>> with restored_records(layer):
    ...     outputs = layer(torch.ones(9))
    >>> list(recorded_penalties(layer))
    [('', [tensor(2.)])]
    """
    spaces = [module.__dict__ for module in model.modules()]
    records = [s["_activity_record"] for s in spaces if "_activity_record" in s]
    before = [list(record.penalties) for record in records]
    passes = [(s, s["_activity_pass"]) for s in spaces if "_activity_pass" in s]
    try:
        yield
    finally:
        for record, penalties in zip(records, before, strict=True):
            record.penalties = penalties
        for space, filled in passes:
            space["_activity_pass"] = filled


@torch._disable_dynamo  # a compiled graph has no stack to read; `import torch` has this
def _record(module: nn.Module, args: tuple, output: Any) -> None:
    record: _Record = module.__dict__["_activity_record"]
    records = _records_of_this_pass(module)
    if record not in records:  # it may hold penalties of another model's pass
        record.penalties = []
        records.add(record)
    record.penalties.append(module.__dict__["_activity_cost"](output))


def _records_of_this_pass(module: nn.Module) -> set[_Record]:
    """Return the records filled during this call of the outermost module."""
    root = _outermost_module(module)
    if _begin_pass not in root._forward_pre_hooks.values():
        root.register_forward_pre_hook(_begin_pass)  # from its next call on
        _begin_pass(root, ())
    return root.__dict__["_activity_pass"]


def _begin_pass(module: nn.Module, args: tuple) -> None:
    """Empty all records of the pass before, also of layers not called this time."""
    for record in module.__dict__.get("_activity_pass", ()):
        record.penalties = []
    module.__dict__["_activity_pass"] = set()


def _outermost_module(module: nn.Module) -> nn.Module:
    call, outermost = nn.Module._call_impl.__code__, None
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code is call:
            outermost = frame
        frame = frame.f_back
    return module if outermost is None else outermost.f_locals["self"]
