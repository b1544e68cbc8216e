"""Import torchvision, also with a torch that it was not built for."""

import functools
import importlib
import sys
from types import ModuleType

import torch


def import_torchvision() -> ModuleType:
    """Return torchvision, as `import torchvision` does where that works.

    pip's default torchvision for Linux is linked against CUDA, and with a torch for the
    CPU its compiled extension can't be loaded. torchvision tolerates that, but then
    registers a fake of its operator `nms`, which only the extension declares: the
    import ends in `operator torchvision::nms does not exist`. This function declares
    the missing operators, without an implementation, and imports again. Data sets,
    transforms and models need no more; `ops.nms` and `io.read_image` raise when called.

    A DataLoader worker started by `spawn` must call it for itself.

    Raises:
        ModuleNotFoundError: torchvision is not installed.
        Exception: any other error of torchvision's own import.

    >>> import_torchvision().datasets.MNIST.__name__
    'MNIST'
    """
    try:
        return _import()
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    _declare_operators()
    # The failed import removes only the package itself. Its submodules would be
    # reused, but not become attributes of the new package.
    for name in [name for name in sys.modules if name.startswith("torchvision.")]:
        del sys.modules[name]
    return _import()


def _import() -> ModuleType:
    try:
        return importlib.import_module("torchvision")
    except ModuleNotFoundError as error:
        if error.name != "torchvision":
            raise
        raise ModuleNotFoundError(
            "import_torchvision: torchvision is not installed beside torch "
            f"{torch.__version__}. Install the release made for this torch with pip, "
            "or use data that does not need it, such as load('digits').",
            name="torchvision",
        ) from error


@functools.cache  # a declaration exists as long as its fragment
def _declare_operators() -> torch.library.Library:
    fragment = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):  # the two that torchvision describes on import
        fragment.define(
            f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        )
    return fragment
