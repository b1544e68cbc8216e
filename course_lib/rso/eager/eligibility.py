"""Which models the faster engines support: those that do what their classes say.

The engines know torch's own layers by their classes, and all else by the operations
that torch.fx records. A hook, a replaced method, or a class that overrides `__call__`
does more than either shows. Only "reference" supports such a model.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules import module as torch_module
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from course_lib.rso.proposals import Target

_HOOKS = {
    "_forward_pre_hooks": "forward pre-hook",
    "_forward_hooks": "forward hook",
}
_EXCLUDED = ("_parameters", "_buffers", "_modules", "training")  # from fingerprints
_TORCH = str(Path(torch.__file__).parent)


def obstacle(model: nn.Module) -> str:
    """Say why the model itself has to be run; nothing where its operations will do."""
    found = (
        _surroundings(next(model.parameters(), torch.empty(0)).device),
        *(_module_obstacle(*named) for named in model.named_modules()),
        _mixed_dtypes(model),
        _shared_memory(model),
    )
    return next(filter(None, found), "")


# What changes every module's pass


def _surroundings(device: torch.device) -> str:
    """Name what is switched on around the search and changes a pass."""
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        return "a forward hook for all modules is registered"
    is_known = torch.amp.is_autocast_available(device.type)
    if is_known and torch.is_autocast_enabled(device.type):
        return "torch.autocast is switched on"
    functions = torch.overrides._get_current_function_mode_stack()
    for mode in (*functions, *_get_current_dispatch_mode_stack()):
        if not isinstance(mode, DeviceContext):  # which changes new tensors alone
            return f"{type(mode).__name__} is switched on"
    return ""


# One module


def _module_obstacle(name: str, module: nn.Module) -> str:
    """Say what a module does that its class does not show."""
    what = _customization(module) or _tensor_of_other_type(module)
    place = repr(name) if name else "the model"
    return f"{place} ({type(module).__name__}) {what}" if what else ""


def _customization(module: nn.Module) -> str:
    if isinstance(module, torch.jit.ScriptModule):
        return "is a ScriptModule"
    if type(module).__module__.startswith("torch.ao."):
        return "is quantized"
    for attribute, what in _HOOKS.items():
        for hook in getattr(module, attribute).values():
            return f"has a {what} ({getattr(hook, '__name__', type(hook).__name__)})"
    if module._compiled_call_impl is not None or "_orig_mod" in module._modules:
        return "is compiled by torch.compile"
    is_graph = isinstance(module, fx.GraphModule)  # whose __call__ changes errors
    if type(module).__call__ is not nn.Module.__call__ and not is_graph:
        return "has a __call__ of its own"
    is_torchs = _is_torchs(module)
    owner = type(module) if is_torchs else nn.Module
    for name, value in vars(module).items():
        if callable(value) and callable(getattr(owner, name, None)):
            return f"has another {name!r} than its class"
    # a GraphModule's forward was made for it
    if is_torchs and not is_graph and not _is_written_in_torch(type(module).forward):
        return "has another 'forward' than its class"
    return ""


def _is_torchs(module: nn.Module) -> bool:
    """Tell whether torch itself has a module's class."""
    kind = type(module)
    home = sys.modules.get(kind.__module__)
    is_there = getattr(home, kind.__name__, None) is kind
    return is_there and kind.__module__.startswith("torch.")


def _is_written_in_torch(method: Callable) -> bool:
    code = getattr(method, "__code__", None)  # functools.wraps changes all but this
    return code is not None and code.co_filename.startswith(_TORCH)


def _tensor_of_other_type(module: nn.Module) -> str:
    """Name a tensor whose class may compute in its own way, or that hides a weight."""
    groups = (module._parameters, nn.Parameter), (module._buffers, Tensor)
    for group, usual in groups:
        for name, tensor in group.items():
            if tensor is not None and type(tensor) is not usual:
                return f"has {name!r} of the class {type(tensor).__name__}"
    if not isinstance(module, (nn.Linear, nn.Conv2d, nn.modules.batchnorm._BatchNorm)):
        return ""
    for name in ("weight", "bias"):  # one is a property where it is parametrized
        if isinstance(vars(module).get(name), Tensor):
            return f"has a {name!r} that is no parameter"
    return ""


# All tensors


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return all parameters, buffers and other tensors of a model's modules."""
    found = dict(model.named_parameters())
    found.update(model.named_buffers())
    for prefix, module in model.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor):
                found[f"{prefix}.{name}" if prefix else name] = value
    return found


def _mixed_dtypes(model: nn.Module) -> str:
    dtypes = sorted({str(t.dtype) for t in _tensors(model).values() if is_inexact(t)})
    return f"it has numbers of {' and '.join(dtypes)}" if len(dtypes) > 1 else ""


def is_inexact(value: object) -> bool:
    """Tell whether a value is a tensor of floating-point or complex numbers."""
    is_tensor = isinstance(value, Tensor)
    return is_tensor and (value.is_floating_point() or value.is_complex())


def _shared_memory(model: nn.Module) -> str:
    """Name two tensors of which a change of one changes the other."""
    spans = []
    for name, tensor in _tensors(model).items():
        if tensor.numel() and tensor.layout == torch.strided:
            steps = zip(tensor.shape, tensor.stride(), strict=True)
            last = sum((length - 1) * step for length, step in steps)
            start, size = tensor.data_ptr(), tensor.element_size()
            spans.append((start, start + (last + 1) * size, name, tensor))
    spans.sort(key=lambda span: span[:3])
    for (_, end, name, one), (start, _, other, two) in pairwise(spans):
        if start < end and start and one is not two:
            return f"{name!r} and {other!r} lie in the same memory"
    return ""


# What a pass does beside its output


def side_effect(model: nn.Module, inputs: Tensor) -> str:
    """Say what a pass changes in the model; nothing where it changes nothing."""
    model(inputs.clone())  # a cache, which is set once, is set here
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    before = fingerprint(model)
    model(inputs.clone())
    for name, buffer in model.named_buffers():
        is_same = name in buffers and torch.equal(buffers[name], buffer)
        if not is_same and not buffer.isnan().any():
            return f"a pass changes the buffer {name!r}"
    is_kept = are_same(before, fingerprint(model))
    return "" if is_kept else "a pass sets attributes of a module"


# What has changed since


Forms = dict[str, tuple[nn.Parameter, Any]]


def forms_of(targets: Iterable[Target]) -> Forms:
    """Return the parameters of a search, with their shape, dtype and device."""
    return {t.name: (t.parameter, _form(t.parameter)) for t in targets}


def require_same_forms(forms: Forms, model: nn.Module) -> None:
    """Raise ValueError where a model's parameters are no longer those of `forms`."""
    present = dict(model.named_parameters(remove_duplicate=False))
    for name, (parameter, form) in forms.items():
        now, what = present.get(name), ""
        if now is not parameter:
            what = "is another parameter than when the search was made"
        elif not now.requires_grad:
            what = "was frozen after the search was made"
        elif _form(now) != form:
            what = f"has become {' '.join(map(str, _form(now)))}"
        if what:
            raise ValueError(f"RSO: {name!r} {what}. Make a new search.")


def _form(parameter: nn.Parameter) -> tuple[Any, ...]:
    return tuple(parameter.shape), parameter.dtype, parameter.device


def fingerprint(model: nn.Module) -> tuple[Any, ...]:
    """Return what a choice of engines depends on, for `are_same`.

    That is the modules, their hooks and settings, and the surroundings.
    """
    device = next(model.parameters(), torch.empty(0)).device
    entries: list[Any] = [_surroundings(device)]
    for name, module in model.named_modules():
        entries += [name, module, type(module)]
        entries.append(getattr(type(module), "forward", None))
        for key, value in vars(module).items():
            if key not in _EXCLUDED:
                entries += [key, _summary(value)]
        for group in (module._parameters, module._buffers):
            for key, tensor in group.items():
                entries += [key, tensor]
                if tensor is not None:
                    entries += [tensor.dtype, tensor.device, tensor.shape]
                    entries.append(tensor.requires_grad)
    return tuple(entries)


def _summary(value: Any) -> Any:
    """Return a setting, of a collection a tuple: it may be changed in place."""
    if isinstance(value, dict):
        return tuple(value.items())
    return tuple(value) if isinstance(value, (list, set)) else value


def are_same(one: Any, other: Any) -> bool:
    """Tell whether nothing has changed between two fingerprints."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(are_same, one, other))
    is_plain = isinstance(one, (int, float, str, torch.dtype, torch.device))
    return is_plain and one == other
