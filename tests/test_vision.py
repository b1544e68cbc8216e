"""import_torchvision, each time in a fresh process where warnings are errors."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from course_lib.vision import import_torchvision

REPOSITORY = Path(__file__).parents[1]

USE_TORCHVISION = """
import sys, torch
from course_lib.vision import import_torchvision
torchvision = import_torchvision()
assert import_torchvision() is torchvision is sys.modules["torchvision"]
assert torchvision.extension is sys.modules["torchvision.extension"]

from torchvision import datasets, models
from torchvision.transforms import v2
image = torch.arange(6).reshape(1, 2, 3)
assert torch.equal(v2.RandomHorizontalFlip(1.0)(image), image.flip(-1))
assert datasets.MNIST.__name__ == "MNIST"
network = models.resnet18(num_classes=10).eval()
assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
"""

# Like the real package: load the extension if it loads, then describe its nms.
FAKE_PACKAGE = """
import torch
from .extension import loaded
if not loaded:
    torch.library.register_fake("torchvision::nms")(lambda dets, scores, iou: dets)
"""
FAKE_EXTENSION = """
from pathlib import Path
import torch
try:
    torch.ops.load_library(str(Path(__file__).with_name("_C.so")))
    loaded = True
except OSError:
    loaded = False
"""
USE_FAKE = """
import gc, torch
from course_lib import vision
try:
    import torchvision
except RuntimeError:
    pass  # as a user meets it, before they call us
fake = vision.import_torchvision()
assert vision.import_torchvision() is fake and "fake" in fake.__file__
gc.collect()
operators = torch.ops.torchvision
declared = vision._declare_operators.cache_info().misses
print(fake.extension.loaded, declared, hasattr(operators, "nms"))
"""


def run(script: str, path: Path = REPOSITORY) -> str:
    """Run a script with `path` before the repository on sys.path; return its output."""
    paths = os.pathsep.join([str(path), str(REPOSITORY)])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.fixture
def fake(tmp_path) -> Path:
    package = tmp_path / "fake" / "torchvision"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(FAKE_PACKAGE)
    (package / "extension.py").write_text(FAKE_EXTENSION)
    return package


@pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is None, reason="needs torchvision"
)
def test_the_installed_torchvision_imports_and_works():
    run(USE_TORCHVISION)


def test_nothing_is_declared_where_the_extension_loads(fake):
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler, cc, to build an extension that loads")
    source = fake / "extension.c"
    source.write_text("int nothing(void) { return 0; }\n")
    library = str(fake / "_C.so")
    command = [compiler, "-shared", "-fPIC", "-o", library, str(source)]
    subprocess.run(command, check=True)
    assert run(USE_FAKE, path=fake.parent) == "True 0 False\n"


def test_operators_are_declared_and_stay_where_the_extension_fails(fake):
    (fake / "_C.so").write_bytes(b"not a library")
    assert run(USE_FAKE, path=fake.parent) == "False 1 True\n"


def test_a_missing_torchvision_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ModuleNotFoundError, match=r"not installed beside torch .*pip"):
        import_torchvision()


@pytest.mark.parametrize(
    "error",
    [RuntimeError("CUDA versions differ"), ModuleNotFoundError("no", name="PIL")],
)
def test_other_failures_of_the_import_pass_through(monkeypatch, error):
    calls = []

    def fail(name):
        calls.append(name)
        raise error

    monkeypatch.setattr("course_lib.vision.importlib.import_module", fail)
    with pytest.raises(type(error)) as caught:
        import_torchvision()
    assert caught.value is error
    assert calls == ["torchvision"]  # and no second try
