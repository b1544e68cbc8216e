"""Inside a lesson's kernel: a widget shows all its pictures instead of itself."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Any

import ipywidgets
from IPython.display import display

from course_lib import lessons
from course_site.explorers import Dial, plan

MIME = "application/vnd.course.states+json"


def install() -> None:
    """Make `explore` record, in this process."""
    lessons.Explorer._ipython_display_ = _record  # type: ignore[method-assign]


def _record(explorer: lessons.Explorer) -> None:
    """Draw the planned settings, return to the first one, and show all as data."""
    start = explorer.values
    states = recorded(explorer)
    explorer.set(**start)
    display({MIME: states, "text/plain": "states"}, raw=True)


def recorded(explorer: lessons.Explorer) -> dict[str, Any]:
    """Return the controls and, for each planned setting, picture and description.

    Raises:
        ValueError: a setting can't be drawn.
    """
    controls = explorer.controls
    options = {name: values_of(control) for name, control in controls.items()}
    dials = [dial(control, options[name]) for name, control in controls.items()]
    pictures = []
    for setting in plan(dials).settings:
        values = {n: options[n][i] for n, i in zip(options, setting, strict=True)}
        pictures.append(_draw(explorer, values))
    return {"dials": [asdict(d) for d in dials], "pictures": pictures}


def _draw(explorer: lessons.Explorer, values: dict[str, Any]) -> dict[str, str]:
    explorer._redraws = False  # no picture for each move
    for name, value in values.items():
        explorer.controls[name].value = value
    explorer._redraws = True
    bundle = explorer._picture()
    png = re.search(r'width="(\d+)" src="data:image/png;base64,([^"]+)"', str(bundle))
    if not png:
        raise ValueError(f"{values}: {explorer.alt}")
    return {"alt": explorer.alt, "width": png[1], "png": png[2]}


def values_of(control: ipywidgets.Widget) -> list[Any]:
    """Return the values that a control can have, in the order of its slider."""
    if isinstance(control, ipywidgets.Checkbox):
        return [False, True]
    if hasattr(control, "options"):
        return list(control._options_values)
    steps = int((control.max - control.min) / control.step + 1e-9)  # 0.3 / 0.1 < 3
    whole = isinstance(control.value, int)
    numbers = [control.min + i * control.step for i in range(steps + 1)]
    return numbers if whole else [round(number, 10) for number in numbers]


def dial(control: ipywidgets.Widget, values: list[Any]) -> Dial:
    """Return a control in words."""
    return Dial(
        label=control.description,
        values=tuple(_word(control, value) for value in values),
        start=min(range(len(values)), key=lambda i: _distance(values[i], control)),
        is_words=any(isinstance(value, str) for value in values),
    )


def _word(control: ipywidgets.Widget, value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if hasattr(control, "options"):
        return str(control._options_labels[control._options_values.index(value)])
    return f"{value:g}"


def _distance(value: Any, control: ipywidgets.Widget) -> float:
    if isinstance(value, (int, float)):
        return abs(value - control.value)
    return float(value != control.value)
