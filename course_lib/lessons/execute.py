"""Re-execute notebooks and store them so that two runs give the same file.

`make notebooks` runs every notebook in a fresh kernel and writes the measured time and
memory into its header and into docs/results/lessons.md. It removes what differs from
run to run: cell ids are made from the sources, widget ids and paths of this machine go.
"""

import hashlib
import math
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from traitlets.config import Config

from course_lib.files import replacing
from course_lib.lessons import overview

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
_MEASURED = re.compile(r"^\*\*A full run\*\*.*$", re.MULTILINE)
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_PROBE = """
import sys, time
try:
    import resource
    used = [resource.getrusage(who) for who in (0, -1)]  # this process, its children
    peak = used[0].ru_maxrss
    print(sum(u.ru_utime + u.ru_stime for u in used))
    print(peak // (1024 * 1024) if sys.platform == "darwin" else peak // 1024)
except ImportError:
    print(time.process_time(), 0)
"""


class _Client(NotebookClient):
    """Stores each picture where it was drawn, also when a later cell moves a slider."""

    def _update_display_id(self, display_id: str, msg: dict) -> None:
        pass


def main(paths: Sequence[str | Path] = ()) -> int:
    """Execute and store the notebooks (all by default); return the exit status."""
    failed, measured = 0, {}
    for path in map(Path, paths or sorted(FOLDER.glob("*.ipynb"))):
        try:
            measured[path] = seconds, megabytes = store(path)
        except Exception as error:
            failed += 1
            print(f"{path.name}: not stored: {error}", file=sys.stderr)
        else:
            print(f"{path.name}: {seconds:.1f} s, {megabytes} MB")
    if measured and all(path.resolve().parent == FOLDER for path in measured):
        overview.record(measured)
    return 1 if failed else 0


def store(path: Path) -> tuple[float, int]:
    """Execute one notebook and replace its file; return (CPU seconds, peak MB).

    Raises:
        CellExecutionError: a cell raised without the tag `raises-exception`. The
            file is left as it was.
    """
    notebook = nbformat.read(path, as_version=4)
    stored = {cell.source: cell.outputs for cell in _incomparable(notebook)}
    seconds, megabytes = run(notebook, path.parent)
    for cell in _incomparable(notebook):  # of another machine, or moment, each time
        cell.outputs = stored[cell.source] or cell.outputs
    tidy(notebook, (seconds, megabytes))
    nbformat.validate(notebook)
    with replacing(path) as stream:
        stream.write(f"{nbformat.writes(notebook)}\n".encode())
    return seconds, megabytes


def _incomparable(notebook: NotebookNode) -> Iterator[NotebookNode]:
    for cell in notebook.cells:
        if "nbval-ignore-output" in cell.metadata.get("tags", ()):
            yield cell


def run(notebook: NotebookNode, folder: Path) -> tuple[float, int]:
    """Execute a notebook in place; return its kernel's CPU seconds and peak MB.

    The processor's time hardly depends on what else the machine does meanwhile.
    """
    probe = nbformat.v4.new_code_cell(_PROBE)
    notebook.cells.append(probe)
    client = _Client(
        notebook,
        timeout=300,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,  # how a stream is cut depends on the moment
        resources={"metadata": {"path": str(folder)}},
        config=Config({"KernelManager": {"transport_encryption": "auto"}}),  # as lab
    )
    try:
        with tempfile.TemporaryDirectory() as private:
            client.execute(env=_environment(private))
    finally:
        notebook.cells.remove(probe)
    seconds, megabytes = probe.outputs[0].text.split()
    return float(seconds), int(megabytes)


def _environment(private: str) -> dict[str, str]:
    """Hide what depends on this learner or this moment."""
    progress = os.path.join(private, "progress.json")  # no exercise solved yet
    return {**os.environ, "TQDM_DISABLE": "1", "COURSE_PROGRESS": progress}


def tidy(notebook: NotebookNode, measured: tuple[float, int] | None = None) -> None:
    """Make everything that is stored depend on the content alone."""
    notebook.metadata = NotebookNode(
        kernelspec={
            "display_name": "Python 3",
            "language": "python",
            "name": "python3",
        },
        language_info={"name": "python"},
    )
    if measured:
        header = notebook.cells[0]
        header.source = _MEASURED.sub(_sentence(*measured), header.source)
    for cell, name in zip(notebook.cells, _ids(notebook), strict=True):
        cell.id = name
        tags = cell.metadata.get("tags")
        cell.metadata = NotebookNode(tags=tags) if tags else NotebookNode()
        if cell.cell_type == "code":
            cell.outputs = [_stable(output) for output in cell.outputs]


def _sentence(seconds: float, megabytes: int) -> str:
    """Round up, so that a rerun rarely changes the file."""
    step = 1 if seconds < 10 else 5
    return (
        f"**A full run** takes about {math.ceil(seconds / step) * step} seconds and "
        f"{math.ceil(megabytes / 100) / 10:.1f} GB of memory on {overview.QUIET} "
        "([measured](../docs/results/lessons.md))."
    )


def _ids(notebook: NotebookNode) -> Iterator[str]:
    """Yield an id for each cell from its source; repeats are numbered."""
    seen: dict[str, int] = {}
    for cell in notebook.cells:
        text = f"{cell.cell_type}\n{cell.source}"
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        seen[digest] = seen.get(digest, 0) + 1
        yield digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"


def _stable(output: NotebookNode) -> NotebookNode:
    if output.output_type == "error":
        output.traceback = _shorten(output.traceback)
    data: dict[str, Any] = output.get("data", {})
    view = data.get("application/vnd.jupyter.widget-view+json")
    if view:
        words = data.get("text/plain", "")
        view["model_id"] = hashlib.sha256(words.encode()).hexdigest()[:32]
    return output


def _shorten(traceback: list[str]) -> list[str]:
    """Return the frames of the notebook's cells; those of libraries are counted."""
    frames = [_ANSI.sub("", frame).lstrip().startswith("File ") for frame in traceback]
    shown = [f for f, inside in zip(traceback, frames, strict=True) if not inside]
    if any(frames):
        shown.insert(-1, f"(... frames inside the libraries: {sum(frames)} ...)")
    return shown


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
