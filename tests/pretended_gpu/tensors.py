"""The pretended device: tensors that say "cuda:0", with their numbers on the CPU.

Each operation is looked at before it runs on the numbers: other tensors must be on the
device, too, and so must a generator. `waits` counts what would make the host wait for
a GPU, by its name and place; `operations` counts what would be sent to one.
"""

import functools
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_map_only

from tests.pretended_gpu.kernels import KERNELS

aten = torch.ops.aten
CUDA = torch.device("cuda:0")
PACKAGE = str(Path(__file__).parents[2] / "course_lib")

recorder: Any = None  # see `graphs`
waits: Counter[str] = Counter()  # such as "item at training.py:12"
operations: Counter[str] = Counter()


class PretendedTensor(Tensor):
    """A tensor of the pretended device, around one on the CPU."""

    elem: Tensor

    @staticmethod
    def __new__(cls, elem: Tensor, requires_grad: bool = False) -> "PretendedTensor":
        new = Tensor._make_wrapper_subclass(
            cls,
            elem.size(),
            strides=elem.stride(),
            storage_offset=elem.storage_offset(),
            dtype=elem.dtype,
            layout=elem.layout,
            device=CUDA,
            requires_grad=requires_grad,
        )
        new.elem = elem
        return new

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        return run(function, args, kwargs or {})

    # Module.to asks for these two; without them it would take ties apart.
    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["elem"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict, *_: Any) -> "PretendedTensor":
        return PretendedTensor(inner["elem"])

    def __repr__(self, **_: Any) -> str:
        return f"{repr(self.elem)[:-1]}, device='cuda:0')"

    def new_tensor(self, data: Any, **options: Any) -> Tensor:
        """Go through torch.tensor: torch's own builds inside of C++, past all modes."""
        return torch.tensor(data, **{"dtype": self.dtype, "device": CUDA, **options})

    def __deepcopy__(self, memo: dict) -> Tensor:
        if id(self) not in memo:
            elem = self.elem.detach().clone()
            new = rebuilt(elem, self.requires_grad, isinstance(self, nn.Parameter))
            own = {k: v for k, v in vars(self).items() if k != "elem"}
            vars(new).update(own)
            memo[id(self)] = new
            if self.grad is not None:
                new.grad = self.grad.__deepcopy__(memo)
        return memo[id(self)]

    def __reduce_ex__(self, protocol: int) -> tuple:
        is_parameter = isinstance(self, nn.Parameter)
        return rebuilt, (self.elem.detach(), self.requires_grad, is_parameter)

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(
            "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to "
            "copy the tensor to host memory first."
        )

    __array__ = numpy

    def data_ptr(self) -> int:
        return self.elem.data_ptr()

    def tolist(self) -> Any:
        _wait("tolist")
        return self.elem.detach().tolist()


def rebuilt(elem: Tensor, requires_grad: bool, is_parameter: bool) -> Tensor:
    """Return what a copy or a file holds."""
    with torch.no_grad():
        new = PretendedTensor(elem)
    if is_parameter:
        return nn.Parameter(new, requires_grad)
    return new.requires_grad_(requires_grad)


class Device(TorchDispatchMode):
    """While it is entered, factories with device="cuda" make pretended tensors."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing compiles here, and its wrapper takes time at each call

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        return run(function, args, kwargs or {})


def run(function: Any, args: tuple, kwargs: dict) -> Any:
    """Run an operation as a GPU would take it, or refuse it as a GPU would."""
    here: list[PretendedTensor] = []
    others: list[Tensor] = []
    args_of = [_inner(part, here, others) for part in args]
    kwargs_of = {key: _inner(part, here, others) for key, part in kwargs.items()}
    target = kwargs.get("device")
    goes_here = target is not None and torch.device(target).type == "cuda"
    if function in _PINNING:
        return args[0]
    if not (here or goes_here):
        return function(*args, **kwargs)
    known = _known(function)
    operations[known.name] += 1
    if here and known.own is None:
        _require_one_device(function, others)
    _require_generator(known.name, kwargs.get("generator"))
    if known.waits is not None:
        _wait(known.waits)
    if known.is_indexing:
        _note_index(args[1])
    if kwargs_of.get("pin_memory"):
        kwargs_of["pin_memory"] = None
    if known.own is not None:
        result = known.own(function, args, args_of, kwargs_of, goes_here)
    else:
        result = known.kernel(*args_of, **kwargs_of)
    if recorder is not None and not known.is_view:
        found = result if known.own is None else _inner(result, [], [])
        _record(others, known.kernel, tuple(args_of), kwargs_of, found)
    if known.own is not None:
        return result
    if known.written is not None and here:
        return args[0] if known.written == 0 else kwargs[known.written]
    wrapped = _wrap(result)
    if known.is_pure or not here or not isinstance(result, _PARTS):
        return wrapped
    if known.views_the_first and here[0] is args[0]:
        for view in (wrapped,) if isinstance(wrapped, Tensor) else wrapped:
            torch._functionalize_unsafe_set(view, args[0])  # they share its memory
        return wrapped
    return return_and_correct_aliasing(function, args, kwargs, wrapped)


class _Known(NamedTuple):
    """What is known of an operation before it is called."""

    name: str
    kernel: Any
    own: Any  # runs it in the kernel's place
    waits: str | None
    is_indexing: bool
    is_view: bool
    views_the_first: bool  # returns views of its first argument alone
    is_pure: bool  # returns new memory alone
    written: int | str | None  # the one argument that it returns


@functools.cache
def _known(function: Any) -> _Known:
    name, kernel = function.overloadpacket.__name__, KERNELS.get(function, function)
    takes = function._schema.arguments
    returns = [r.alias_info for r in function._schema.returns]
    is_resized = torch.Tag.inplace_view in function.tags
    written: int | str | None = None
    if len(returns) == 1 and returns[0] and returns[0].is_write and not is_resized:
        if takes[0].alias_info and takes[0].alias_info.is_write:
            written = 0
        elif any(each.name == "out" and each.alias_info for each in takes):
            written = "out"
    return _Known(
        name=name,
        kernel=kernel,
        own=_OWN.get(function),
        waits=_WAITING.get(function),
        is_indexing=function in _INDEXING,
        is_view=_is_view(kernel),
        views_the_first=len(returns) == 1
        and _is_view(function)
        and not is_resized
        and takes[0].alias_info is not None
        and not any(each.alias_info for each in takes[1:]),
        is_pure=not any(returns) and not is_resized,
        written=written,
    )


def _record(
    others: list[Tensor], kernel: Any, args: tuple, kwargs: dict, found: Any
) -> None:
    """Give a call to the graph that is recorded."""
    reads_cpu = any(part.dim() > 0 for part in others)
    # Their shapes of now: some operations change a tensor's shape in place.
    call = tree_map_only(Tensor, Tensor.detach, (kernel, args, kwargs, found))
    recorder(call, not reads_cpu)


def _is_view(kernel: Any) -> bool:
    """Views are no work."""
    if not isinstance(kernel, torch._ops.OpOverload):
        return False
    returns = [r.alias_info for r in kernel._schema.returns]
    is_alias = any(info is not None and not info.is_write for info in returns)
    return is_alias or torch.Tag.inplace_view in kernel.tags


# An operation takes and gives parts, and lists and tuples of them. torch's own trees
# take four times as long over these.

_SERIES = tuple, list
_PARTS = Tensor, tuple, list
_PLAIN = frozenset({int, float, bool, type(None), torch.dtype, torch.layout})


def _inner(part: Any, here: list[PretendedTensor], others: list[Tensor]) -> Any:
    """Return what lies on the CPU; note the tensors of both devices."""
    kind = type(part)
    if kind in _PLAIN:
        return part
    if isinstance(part, PretendedTensor):
        here.append(part)
        return part.elem
    if isinstance(part, Tensor):
        others.append(part)
    elif isinstance(part, _SERIES):
        return kind([_inner(each, here, others) for each in part])
    elif kind is torch.device and part.type == "cuda":
        return torch.device("cpu")
    return part


def _wrap(part: Any) -> Any:
    if isinstance(part, Tensor):
        return part if isinstance(part, PretendedTensor) else PretendedTensor(part)
    if isinstance(part, _SERIES):
        return type(part)([_wrap(each) for each in part])
    return part


# What a GPU refuses


def _require_one_device(function: Any, others: list[Tensor]) -> None:
    """A tensor of the CPU may stand beside those of a GPU only as one number."""
    for part in others:
        if part.dim() > 0:
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two "
                f"devices, cuda:0 and cpu! ({function}, {tuple(part.shape)})"
            )


def _require_generator(name: str, generator: torch.Generator | None) -> None:
    if generator is not None and generator.device.type != "cuda":
        raise RuntimeError(
            f"Expected a 'cuda' device type for generator but found 'cpu' ({name})"
        )


def _index(
    function: Any, args: tuple, args_of: list, kwargs: dict, goes_here: bool
) -> Any:
    """An index may be on the CPU, the values that are put may not."""
    values = args[2] if len(args) > 2 else None
    if not isinstance(args[0], PretendedTensor):
        raise RuntimeError(
            "indices should be either on cpu or on the same device as the indexed "
            "tensor (cpu)"
        )
    if isinstance(values, Tensor) and not isinstance(values, PretendedTensor):
        _require_one_device(function, [values])
    found = function(*args_of, **kwargs)
    is_in_place = function.name().rpartition("::")[2].partition(".")[0].endswith("_")
    return args[0] if is_in_place else _wrap(found)


def _copy(
    function: Any, args: tuple, args_of: list, kwargs: dict, goes_here: bool
) -> Tensor:
    """Between the devices in both directions."""
    if not isinstance(args[0], PretendedTensor):
        _wait("copy to the CPU")
    function(*args_of, **kwargs)
    return args[0]


def _to(
    function: Any, args: tuple, args_of: list, kwargs: dict, goes_here: bool
) -> Tensor:
    """To a device or a dtype."""
    if not (goes_here or kwargs.get("device") is None):
        _wait("to the CPU")
        return function(*args_of, **kwargs)
    return PretendedTensor(function(*args_of, **kwargs))


_INDEXING = (
    aten.index.Tensor,
    aten._unsafe_index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
)
_PINNING = aten.pin_memory.default, aten._pin_memory.default  # memory of the CPU
_OWN = {  # these take a tensor of the CPU beside one of the device, too
    **dict.fromkeys(_INDEXING, _index),
    aten.copy_.default: _copy,
    aten._to_copy.default: _to,
}

# Waits

_WAITING = {
    aten._local_scalar_dense.default: "item",
    aten.is_nonzero.default: "bool",
    aten.nonzero.default: "nonzero",
    aten.masked_select.default: "masked_select",
    aten.equal.default: "equal",
    aten._unique2.default: "unique",
}


def _note_index(parts: Iterable[Any]) -> None:
    indices = [i for i in parts if i is not None]
    if any(i.dtype in (torch.bool, torch.uint8) for i in indices):
        _wait("index by a mask")
    elif any(not isinstance(i, PretendedTensor) for i in indices):
        _wait("index on the CPU")


def _wait(name: str) -> None:
    if recorder is not None:
        recorder((name, (), {}, None), False)
    frame = sys._getframe()
    while frame is not None and not frame.f_code.co_filename.startswith(PACKAGE):
        frame = frame.f_back
    place = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}" if frame else "?"
    waits[f"{name} at {place}"] += 1
