"""What only notebooks need: pictures with words, widgets that compute, exercises.

Here are `show`, `explore` and `compare`, which every lesson uses. Read `exercises` next
(what an exercise is), then `checks` (what all of them need) and `start_here`, the first
lesson: a folder has the name of each other one, with its exercises in `__init__` and
what only they need in modules beside it. `quiz` asks what `quiz_file` reads from
`quizzes/`. `progress_file` stores what is solved, `progress` shows it. `lab` is `make
lab`, which opens the copy that `working_copy` makes; `class_copy` and `class_table` are
for teachers. `execute` is `make notebooks`, and `overview` its table.
"""

import base64
import html
import io
from collections.abc import Callable
from typing import Any

import ipywidgets
import torch
from IPython import get_ipython
from IPython.display import display
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from course_lib.checks import is_int
from course_lib.lessons import last_cell

Draw = Callable[..., tuple[Figure, str]]

# ipywidgets gives its sliders no name that a screen reader could say, and JupyterLab
# has no advice where a restarted kernel has left controls without a model.
_SPEAKING_CONTROLS = """<script>(() => {
const cell = document.currentScript.closest(".jp-Cell");
if (!cell) return;
const look = () => {
  for (const label of cell.querySelectorAll(".widget-label")) {
    const box = label.parentElement;
    const control = box.querySelector("[role=slider], input, select");
    if (!control || !/\\w/.test(label.textContent)) continue;
    control.setAttribute("aria-label", label.textContent);
    const value = box.querySelector(".widget-readout");
    if (value) control.setAttribute("aria-valuetext", value.textContent);
  }
  for (const place of cell.querySelectorAll(".jupyter-widgets"))
    if (/^Error displaying widget/.test(place.textContent))
      place.textContent = "The kernel has restarted. To move these controls, choose " +
        "Run > Run All Above Selected Cell, then run this cell (Shift+Enter).";
};
new MutationObserver(look).observe(cell, {childList: true, subtree: true});
look();
})();</script>"""
# Nor a name to the buttons of Play, whose first one changes its picture.
_SPEAKING_BUTTONS = """<script>(() => {
const cell = document.currentScript.closest(".jp-Cell");
if (!cell) return;
const names = {play: "Play", pause: "Pause", stop: "Back to the first step"};
const look = () => {
  for (const picture of cell.querySelectorAll(".widget-play button i")) {
    const name = names[picture.className.split("fa-")[1]];
    if (!name || picture.parentElement.title === name) continue;
    picture.parentElement.title = name;
    picture.parentElement.setAttribute("aria-label", name);
  }
};
const changes = {childList: true, subtree: true, attributeFilter: ["class"]};
new MutationObserver(look).observe(cell, changes);
look();
})();</script>"""


def show(figure: Figure, *, alt: str) -> None:
    """Display a figure with its description, then close it.

    The picture has an opaque light background, so it reads in a dark theme too.

    Args:
        figure: a matplotlib figure.
        alt: what the picture shows, in a sentence or two, for those who can't see
            it. It is compared by the tests, so numbers in it are tested.

    Raises:
        ValueError: the description is empty, or the figure is none.
    """
    display(_bundle(figure, alt), raw=True)


def compare(name: str, got: Any, wanted: Any, *, within: float = 1e-6) -> None:
    """Print how far numbers are from those that were wanted.

    The largest |got - wanted| is compared with `within` times the largest |wanted|, or
    with `within` itself where that is larger. What is printed is the same on every
    machine: rounding alone prints the bound, and not the difference.

    Args:
        name: what is compared, first in the line.
        got: a tensor, or what `torch.as_tensor` takes.
        wanted: the numbers it should be, of the same shape.
        within: how far rounding may lead. 0 demands equal bits.

    Raises:
        ValueError: the shapes differ.
    """
    got, wanted = torch.as_tensor(got).detach(), torch.as_tensor(wanted).detach()
    if got.shape != wanted.shape:
        raise ValueError(
            f"compare: {name} has shape {tuple(got.shape)}; wanted "
            f"{tuple(wanted.shape)}."
        )
    got, wanted = got.cpu().double(), wanted.cpu().double()
    difference = (got - wanted).abs().max().item() if got.numel() else 0.0
    bound = within * max(1.0, wanted.abs().max().item() if got.numel() else 0.0)
    if within == 0 and difference == 0:
        words = "equal, bit for bit"
    elif difference <= bound:
        words = f"equal within {within:g}"
    else:
        words = f"different, by up to {difference:.2g}"
    print(f"{name}: {words}")


def explore(draw: Draw, **controls: Any) -> "Explorer":
    """Show a picture under controls; each move of a control computes it again.

    Args:
        draw: a plain function of the controls' values, by name, that returns
            (figure, alt). A test can call it without any widget.
        controls: name = widget, or a short form as in `ipywidgets.interact`:
            (low, high, step) or a list of values gives a slider, a bool a check box;
            `Steps(low, high)` is a slider with a play button. Arrow keys, Home and
            End move a slider; Space turns a check box and presses a button.

    Returns:
        The Explorer: leave it on the last line of a cell to show it, or move it from
        code with `.set(name=value)`.

    Raises:
        ValueError: no controls, or a short form that gives no widget.
    """
    return Explorer(draw, {name: _widget(name, c) for name, c in controls.items()})


class Steps(ipywidgets.IntSlider):
    """A slider over the steps of something that moves, with a play button before it.

    Args:
        low: the first step.
        high: the last one.
        value: where it stands at first; by default at the last step, so that the
            stored picture is the whole.
        seconds: from one step to the next, while it plays.

    Raises:
        ValueError: no whole numbers with low < high and value between, or no time.

    >>> steps = Steps(1, 3)
    >>> steps.play.value = 2  # as the button does
    >>> steps.value
    2
    """

    def __init__(
        self, low: int, high: int, *, value: int | None = None, seconds: float = 1.0
    ) -> None:
        value = high if value is None else value
        steps = low, value, high
        if not all(map(is_int, steps)) or low >= high or not low <= value <= high:
            raise ValueError(
                f"Steps: got low={low!r}, high={high!r}, value={value!r}; wanted ints, "
                "low < high, and value between, for example Steps(0, 6)."
            )
        if not (isinstance(seconds, (int, float)) and seconds > 0):
            raise ValueError(f"Steps: got seconds={seconds!r}; wanted a number > 0.")
        shared = {"min": low, "max": high, "value": value}
        super().__init__(**shared)
        interval = round(1000 * seconds)
        self.play = ipywidgets.Play(**shared, interval=interval, show_repeat=False)
        ipywidgets.link((self.play, "value"), (self, "value"))

    @property
    def row(self) -> ipywidgets.HBox:
        """The play button and the slider, side by side."""
        return ipywidgets.HBox([self.play, self])


class Explorer:
    """Controls above a picture; the picture is stored for readers without a kernel."""

    def __init__(self, draw: Draw, controls: dict[str, ipywidgets.Widget]) -> None:
        if not controls:
            raise ValueError(
                "explore: got no controls; wanted at least one, for example "
                "explore(draw, steps=(1, 10, 1))."
            )
        self.draw = draw
        self.controls = controls
        self.alt = ""
        self._handle: Any = None
        self._redraws = True
        for control in controls.values():
            control.observe(self._redraw, names="value")

    @property
    def values(self) -> dict[str, Any]:
        """The controls' values, by name."""
        return {name: control.value for name, control in self.controls.items()}

    def set(self, **values: Any) -> str:
        """Move controls from code; return the new picture's description.

        Raises:
            ValueError: an unknown control.
        """
        unknown = values.keys() - self.controls.keys()
        if unknown:
            raise ValueError(
                f"Explorer.set: got {', '.join(sorted(unknown))}; the controls are "
                f"{', '.join(self.controls)}."
            )
        self._redraws = False  # one picture for all moves
        try:
            for name, value in values.items():
                self.controls[name].value = value
        finally:
            self._redraws = True
        self._redraw()
        return self.alt

    def _redraw(self, change: object = None) -> None:
        if not self._redraws:
            return
        data = self._picture()
        if self._handle:
            self._handle.update(data, raw=True)

    def _picture(self) -> dict[str, str]:
        try:
            figure, self.alt = self.draw(**self.values)
            return _bundle(figure, self.alt)
        except Exception as error:  # shown: a callback's error is lost otherwise
            self.alt = f"This setting can't be drawn: {type(error).__name__}: {error}"
            return {"text/plain": self.alt, "text/html": html.escape(self.alt)}

    def _ipython_display_(self) -> None:
        rows = [getattr(control, "row", control) for control in self.controls.values()]
        controls = ipywidgets.VBox(rows)
        view = controls._repr_mimebundle_()
        view = view[0] if isinstance(view, tuple) else view
        names = ", ".join(self.controls)
        words = f"Controls: {names}. They move once the notebook runs."
        scripts = _SPEAKING_CONTROLS
        if any(isinstance(control, Steps) for control in self.controls.values()):
            scripts += _SPEAKING_BUTTONS
        display({"text/html": scripts, "text/plain": ""}, raw=True)
        display({**view, "text/plain": words}, raw=True)
        self._handle = display(self._picture(), raw=True, display_id=True)


def _bundle(figure: Figure, alt: str) -> dict[str, str]:
    """Return the figure as an <img> with alt text, and the text alone."""
    if not isinstance(figure, Figure):
        raise ValueError(
            f"show: got {type(figure).__name__}; wanted a matplotlib figure, the "
            "first of `figure, ax = plt.subplots()`."
        )
    if not isinstance(alt, str) or not alt.strip():
        raise ValueError(
            "show: the figure has no description; wanted alt='what one sees', for "
            "readers who can't see it."
        )
    picture = base64.b64encode(_png(figure)).decode()
    width = round(figure.get_figwidth() * 90)
    image = (
        f'<img alt="{html.escape(alt)}" width="{width}" '
        f'src="data:image/png;base64,{picture}">'
    )
    return {"text/html": image, "text/plain": alt}


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(
        stream,
        format="png",
        dpi=144,
        facecolor="white",
        bbox_inches="tight",
        metadata={"Software": None},  # the same bytes from any matplotlib version
    )
    plt.close(figure)
    return stream.getvalue()


def _widget(name: str, control: Any) -> ipywidgets.Widget:
    if not isinstance(control, ipywidgets.Widget):
        control = ipywidgets.interactive.widget_from_abbrev(control)
    if control is None or not hasattr(control, "value"):
        raise ValueError(
            f"explore: {name} gives no control; wanted (low, high, step), a list, a "
            "bool, or a widget with a value."
        )
    if isinstance(control, ipywidgets.Dropdown):  # JupyterLab takes its arrow keys
        options = {"options": control.options, "value": control.value}
        control = ipywidgets.SelectionSlider(**options)
    control.description = control.description or name.replace("_", " ")
    if hasattr(control, "continuous_update"):
        control.continuous_update = False  # draw when the handle is let go
    return control


def _explain_missing_name(
    shell: Any, kind: type, error: NameError, trace: Any, tb_offset: int | None = None
) -> None:
    shell.showtraceback((kind, error, trace), tb_offset=tb_offset)
    if kind is NameError:  # no UnboundLocalError, which no other cell can cure
        name = error.name or "that name"
        print(
            f"If a cell above makes {name!r}, run it first: in the menu, "
            "Run > Run All Above Selected Cell."
        )


if get_ipython() is not None:
    get_ipython().set_custom_exc((NameError,), _explain_missing_name)
    last_cell.watch(get_ipython())
