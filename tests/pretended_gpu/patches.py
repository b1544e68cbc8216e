"""torch.cuda as it answers where there is a GPU, around one test."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._dynamo.trace_rules import get_torch_obj_rule_map
from torch.utils._pytree import tree_map_only

from course_lib.rso.eager import eligibility
from tests.pretended_gpu.graphs import CUDAGraph, graph
from tests.pretended_gpu.tensors import (
    CUDA,
    Device,
    PretendedTensor,
    operations,
    rebuilt,
    waits,
)

_MEMORY = 2**36  # bytes
_PROPERTIES = SimpleNamespace(
    name="pretended", major=9, minor=0, total_memory=_MEMORY, multi_processor_count=1
)


@contextmanager
def pretended_gpu() -> Iterator[torch.device]:
    """Inside, torch.cuda.is_available() is True; the counts begin at 0."""
    get_torch_obj_rule_map()  # torch.compile knows torch.tensor by this, once made
    waits.clear()
    operations.clear()
    CUDAGraph.replays = 0
    answers = {
        "is_available": lambda: True,
        "init": lambda: None,
        "_lazy_init": lambda: None,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_name": lambda *_: _PROPERTIES.name,
        "get_device_capability": lambda *_: (9, 0),
        "get_device_properties": lambda *_: _PROPERTIES,
        "_get_device_properties": lambda *_: _PROPERTIES,
        "mem_get_info": lambda *_: (_MEMORY, _MEMORY),
        "max_memory_allocated": lambda *_: 0,
        "reset_peak_memory_stats": lambda *_: None,
        "empty_cache": lambda: None,
        "synchronize": lambda *_: None,
        "manual_seed_all": lambda _: None,
        "get_rng_state": lambda *_: torch.get_rng_state(),
        "set_rng_state": lambda state, *_: torch.set_rng_state(state),
        "default_generators": (torch.default_generator,),
        "CUDAGraph": CUDAGraph,
        "graph": graph,
    }
    made = {
        "load": _loading(torch.load),
        "tensor": _on_device(torch.tensor),
        "as_tensor": _on_device(torch.as_tensor),
    }
    with (
        mock.patch.multiple(torch.cuda, create=True, **answers),
        mock.patch.multiple(torch, **made),
        mock.patch.object(torch.backends.cudnn, "is_acceptable", return_value=False),
        mock.patch.multiple(eligibility, **_as_plain()),
        torch.serialization.safe_globals([rebuilt]),
        Device(),
    ):
        yield CUDA


def _on_device(make: Any) -> Any:
    """torch.tensor and torch.as_tensor build inside of C++, past every mode."""

    def made(data: Any, *args: Any, device: Any = None, **options: Any) -> Tensor:
        if device is None or torch.device(device).type != "cuda":
            return make(data, *args, device=device, **options)
        requires_grad = options.pop("requires_grad", False)
        tensor = make(data, *args, **options).to(CUDA)
        return tensor.requires_grad_() if requires_grad else tensor

    return made


def _loading(load: Any) -> Any:
    """A file remembers the device of its tensors; `map_location` says another."""

    def loaded(file: Any, map_location: Any = None, *args: Any, **options: Any) -> Any:
        found = load(file, "cpu", *args, **options)
        if map_location is None:
            return found
        if torch.device(map_location).type == "cuda":
            return tree_map_only(Tensor, lambda x: x.to(CUDA), found)
        return tree_map_only(PretendedTensor, lambda x: x.elem, found)

    return loaded


def _as_plain() -> dict[str, Any]:
    """RSO looks for modes and tensor classes that change a pass; ours don't."""
    modes = eligibility._get_current_dispatch_mode_stack
    foreign = eligibility._tensor_of_other_type

    def other_modes() -> list[Any]:
        return [mode for mode in modes() if not isinstance(mode, Device)]

    def other_type(module: nn.Module) -> str:
        numbers = {
            kind: {
                name: _numbers(x) if isinstance(x, PretendedTensor) else x
                for name, x in getattr(module, kind).items()
            }
            for kind in ("_parameters", "_buffers")
        }
        return foreign(SimpleNamespace(**numbers))

    return {
        "_get_current_dispatch_mode_stack": other_modes,
        "_tensor_of_other_type": other_type,
    }


def _numbers(x: PretendedTensor) -> Tensor:
    elem = x.elem.detach()
    return nn.Parameter(elem, False) if isinstance(x, nn.Parameter) else elem
