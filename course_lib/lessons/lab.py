"""`make lab`: the learner's copy of the lessons, then JupyterLab on it.

`ResetButtons` are in lesson 00.
"""

import functools
import html
import os
import subprocess
import sys
from collections.abc import Callable, Sequence

import ipywidgets
from IPython.display import display

from course_lib.lessons import working_copy


def prepare() -> int:
    """Bring the copy up to date and say so; return the exit status."""
    place = f"Your copy of the lessons: {working_copy.WORK}"
    return _status("lab", lambda: "\n".join([*working_copy.update(), place]))


def main(options: Sequence[str] = ()) -> int:
    """Prepare, then open lesson 00; further options are JupyterLab's."""
    if status := prepare():
        return status
    return subprocess.call(_command(options))


def reset(lesson: str) -> int:
    """Make one lesson as it was at first; return the exit status."""
    return _status("reset", lambda: working_copy.reset(lesson))


def _status(place: str, act: Callable[[], str]) -> int:
    """Print what an action says, or in a line why it failed; return the exit status."""
    try:
        print(act())
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(
            f"{place}: {working_copy.WORK} can't be written ({error}). Copy the course "
            "to a folder of your own, or move away what is in the way.",
            file=sys.stderr,
        )
        return 1
    return 0


def _command(options: Sequence[str]) -> list[str]:
    """Return the command line of JupyterLab.

    JupyterLab refuses to run as root, who is the only user of many containers.
    """
    is_root = getattr(os, "geteuid", lambda: 1)() == 0
    return [
        sys.executable,
        *("-m", "jupyterlab", "--ip=127.0.0.1"),
        f"--ServerApp.root_dir={working_copy.CHECKOUT}",
        f"--LabApp.default_url=/lab/tree/{working_copy.WORK.name}/00_start_here.ipynb",
        "--KernelManager.transport_encryption=auto",
        *(["--allow-root"] if is_root else []),
        *options,
    ]


class ResetButtons:
    """A button for each lesson, which begins it again and sets the old copy aside."""

    def __init__(self) -> None:
        self.message = ipywidgets.HTML()
        names = working_copy.names()
        self.buttons = [ipywidgets.Button(description=f"Reset {n[:2]}") for n in names]
        for button, name in zip(self.buttons, names, strict=True):
            button.tooltip = f"Begin {name} again. Your copy is kept in set_aside."
            button.on_click(functools.partial(self._reset, name))

    def _reset(self, name: str, button: ipywidgets.Button) -> None:
        try:
            again = "If its tab is open, close it without saving and open it again."
            said = f"{working_copy.reset(name)} {again}"
        except OSError as error:
            said = f"Nothing was changed: {error}"
        self.message.value = html.escape(said)

    def _ipython_display_(self) -> None:
        layout = ipywidgets.Layout(flex_flow="row wrap")
        box = ipywidgets.VBox(
            [ipywidgets.Box(self.buttons, layout=layout), self.message]
        )
        view = box._repr_mimebundle_()
        view = view[0] if isinstance(view, tuple) else view
        words = "Buttons: " + ", ".join(b.description for b in self.buttons)
        display(
            {**view, "text/plain": f"{words}. They work once this cell runs."}, raw=True
        )
