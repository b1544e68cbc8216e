"""What unit tests share: a device to run on, and no way to the network.

Torch is imported where it is needed: the process that deals tests to others runs none.
"""

import errno
import gc
import ipaddress
import os
import signal
import socket

import matplotlib
import pytest

from tests.pretended_gpu import hooks  # before torch
from tests.pretended_gpu.limits import LIMITS

matplotlib.use("Agg")  # for this process alone: notebooks keep their own backend

# A script that another process runs, with Keras; doctest would import it here.
collect_ignore_glob = ["keras_live*.py"]

# Files that take more than three seconds, the slowest first: `--quick` leaves them out.
SLOW = """
    rso_native_sweep rso_incremental doctor_cures rso_eligibility rso_steps
    keras_live rso_command browser rules rso_checkpoints mutants rules_counts
    keras_models exercises doctor began_training keras_hostile rso_on_device
    rso_processes keras_masks rso_precision rso_search gpu_benchmark execute vision
    losses site_states pretended_gpu keras_containers class plots exercise_variants
    training_checks explicit_graphs keras_registry regularization keras_operations
    binder progress data vat compiler explicit_steps rso_shared_memory site_browser
"""


def pytest_addoption(parser):
    parser.addoption("--quick", action="store_true", help="leave out slow files")


def pytest_ignore_collect(collection_path, config):
    is_slow = collection_path.name.removeprefix("test_")[:-3] in SLOW.split()
    return True if is_slow and config.getoption("--quick", False) else None


def pytest_collection_modifyitems(items):
    """Begin with what takes longest: at the end it would keep one worker alone."""
    first = {f"test_{name}.py": n for n, name in enumerate(SLOW.split())}
    for item in items:
        if item.path.suffix == ".ipynb":
            first[item.path.name] = -1
    items.sort(key=lambda item: first.get(item.path.name, len(first)))


def pytest_collection_finish():
    """Leave out of garbage collection what stays until the end.

    There pytest collects five times, which took seconds.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(params=["cpu", "cuda"])
def device(request):
    """Each device that tensors can be on; CUDA is pretended where there is none."""
    import torch

    from tests.pretended_gpu.patches import pretended_gpu

    if request.param == "cpu":
        yield torch.device("cpu")
        return
    # With its number, as a tensor says it: torch.device("cuda") is not equal to that.
    if torch.cuda.is_available():
        yield torch.device("cuda:0")
        return
    if hooks.obstacle is not None:
        pytest.skip(f"no CUDA device here, and {hooks.obstacle}")
    name = request.node.originalname
    if name in LIMITS:
        pytest.skip(f"no CUDA device here, and the pretended one: {LIMITS[name]}")
    with pretended_gpu() as found:
        yield found


@pytest.fixture
def gpu():
    """The pretended GPU, which counts its waits: a real one can't."""
    import torch

    from tests.pretended_gpu.patches import pretended_gpu

    if torch.cuda.is_available() or hooks.obstacle is not None:
        reason = hooks.obstacle or "there is one"
        pytest.skip(f"the GPU is not pretended: {reason}")
    with pretended_gpu() as found:
        yield found


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """An empty cache for data, and no COURSE_DATA."""
    from course_lib.data import archives

    monkeypatch.setattr(archives, "cache", lambda: tmp_path / "cache")
    monkeypatch.delenv("COURSE_DATA", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path):
    """An empty folder for data."""
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


@pytest.fixture
def full_disk(monkeypatch):
    """A disk on which no file can be put in its place any more."""

    def full(*paths):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)


@pytest.fixture
def ctrl_c():
    """Ctrl-C as in a terminal; a shell's background jobs, and so CI, may ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Refuse connections that leave this machine: the course runs offline."""

    def guard(name):
        original = getattr(socket.socket, name)

        def guarded(self, address, *rest):
            if self.family in (socket.AF_INET, socket.AF_INET6):
                _check_local(address[0])
            return original(self, address, *rest)

        monkeypatch.setattr(socket.socket, name, guarded)

    guard("connect")
    guard("connect_ex")
    original = socket.getaddrinfo

    def getaddrinfo(host, *rest, **options):
        _check_local(host)
        return original(host, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def _check_local(host):
    if host in (None, "", "localhost", b"localhost"):
        return
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, whose address only the network knows
        local = False
    if not local:
        # No OSError: code under test must not take it for a network that is down.
        raise AssertionError(f"a unit test wants to connect to {host!r}")
