"""The page about GPUs is written: on the pretended one, with the smallest sizes."""

import sys
from pathlib import Path

import pytest
import torch

from course_lib.began import DIGITS
from course_lib.models import small_cnn

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch):
    """Return the script as a module."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    names = ("gpu", "rso", "explicit", "losses", "_timing", "_networks")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    import gpu

    monkeypatch.setattr(gpu.losses, "BATCH", 4)
    monkeypatch.setattr(gpu.explicit, "BATCH", 4)
    tasks = gpu.explicit.tasks
    monkeypatch.setattr(gpu.explicit, "tasks", lambda device: tasks(device)[:1])
    yield gpu
    for name in names:
        sys.modules.pop(name, None)


def tiny(gpu):
    def case(device):
        model = small_cnn(widths=(2, 2), classes=10).to(device)
        return gpu.Case("tiny", model, (1, 8, 8), 6, 3, device)

    few = {"samples": 12, "widths": (1, 1), "cycles": 1, "proposals": 4, "rounds": 1}
    return gpu.Sizes(case, **few, faces=DIGITS, whole=False)


def test_a_page_says_what_was_measured(gpu, device):
    if device.type == "cpu":
        pytest.skip("a page about a GPU")
    text = gpu.Page().of(device, tiny(gpu))
    for word in ("torch 2.", "| incremental | 1 |", "100.00%", "| recorded |", "bf16"):
        assert word in text
    for word in ("fused=True", "VAT step", "BEGAN step", "multiply-adds"):
        assert word in text
    assert "nan" not in text


def test_a_cycle_over_its_bound_is_named(gpu, device, monkeypatch):
    if device.type == "cpu":
        pytest.skip("a page about a GPU")
    monkeypatch.setattr(gpu, "BOUNDS", dict.fromkeys(gpu.BOUNDS, 0.0))
    page = gpu.Page()
    list(page._cycles(device, tiny(gpu)))
    assert [sentence.partition(":")[0] for sentence in page.missed] == [
        "one by one",
        "recorded",
    ]


@pytest.mark.filterwarnings("ignore:CUDA is not available, disabling")
def test_a_profile_names_operations(gpu):
    case = tiny(gpu).case(torch.device("cpu"))
    lines = list(gpu.profile(case))
    assert len(lines) == 3 + 8
    assert all(line.startswith("| `aten::") for line in lines[3:])


def test_without_a_gpu_nothing_that_was_measured_is_lost(
    gpu, monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "PAGE", tmp_path / "gpu.md")
    assert gpu.main() == 2
    assert "Nothing here is measured yet" in (tmp_path / "gpu.md").read_text()
    (tmp_path / "gpu.md").write_text("measured")
    assert gpu.main() == 2
    assert (tmp_path / "gpu.md").read_text() == "measured"
    assert "No GPU" in capsys.readouterr().err
