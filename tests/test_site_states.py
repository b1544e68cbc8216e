"""The site's pictures of widgets: each setting is drawn, and drawn once."""

import base64

import ipywidgets
import nbformat
import pytest
from matplotlib import pyplot as plt
from nbformat.v4 import new_code_cell, new_notebook, new_output

from course_lib import lessons as library
from course_site import capture, states

DRAWN = """from matplotlib import pyplot as plt
from course_lib.lessons import explore
explore(lambda rate: (plt.figure(figsize=(1, 1)), str(rate)), rate=[1, 2])"""


def draw(rate, name):
    figure, _ = plt.subplots(figsize=(1, 1))
    return figure, f"rate {rate}, {name}"


def explorer(**controls):
    return library.explore(draw, **controls)


def test_a_widget_is_recorded_at_all_planned_settings():
    rate = ipywidgets.SelectionSlider(options=[0.1, 1.0, 10.0], value=1.0)
    states = capture.recorded(explorer(rate=rate, name=["a", "b"]))
    alts = [picture["alt"] for picture in states["pictures"]]
    assert alts == [f"rate {r}, {n}" for r in (0.1, 1.0, 10.0) for n in "ab"]
    assert [dial["start"] for dial in states["dials"]] == [1, 0]
    png = base64.b64decode(states["pictures"][0]["png"])
    assert png.startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("control", "values", "words"),
    [
        (ipywidgets.IntSlider(value=3, min=1, max=7, step=2), [1, 3, 5, 7], "1 3 5 7"),
        (ipywidgets.IntSlider(value=3, min=1, max=8, step=2), [1, 3, 5, 7], "1 3 5 7"),
        (
            ipywidgets.FloatSlider(value=0.2, min=0, max=0.3, step=0.1),
            [0.0, 0.1, 0.2, 0.3],
            "0 0.1 0.2 0.3",
        ),
        (ipywidgets.Checkbox(value=True), [False, True], "off on"),
        (ipywidgets.SelectionSlider(options=["a", "b"], value="b"), ["a", "b"], "a b"),
    ],
)
def test_every_kind_of_control_has_values_and_words(control, values, words):
    assert capture.values_of(control) == values
    dial = capture.dial(control, values)
    assert dial.values == tuple(words.split())
    assert values[dial.start] == control.value


def test_a_setting_that_cannot_be_drawn_stops_the_build():
    broken = library.explore(lambda rate: 1 / 0, rate=[1, 2])
    with pytest.raises(ValueError, match=r"\{'rate': 1\}: .*ZeroDivisionError"):
        capture.recorded(broken)


def test_a_lesson_is_drawn_once_and_anew_when_its_code_changes(tmp_path):
    folder, path = tmp_path / "states", tmp_path / "01_x.ipynb"
    stored = {states.WIDGET: {}, "text/plain": "Controls: rate."}
    cell = new_code_cell(DRAWN, outputs=[new_output("display_data", stored)])
    nbformat.write(new_notebook(cells=[cell, new_code_cell("1 / 0")]), path)
    drawn = states.draw(path, folder)
    (widget,) = drawn[cell.id]
    assert [p["alt"] for p in widget["pictures"]] == ["1", "2"]
    files = [folder / p["file"] for p in widget["pictures"]]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)
    files[0].write_text("kept")
    assert states.draw(path, folder) == drawn
    assert files[0].read_text() == "kept"
    cell.source = DRAWN.replace("[1, 2]", "[2]")
    nbformat.write(new_notebook(cells=[cell]), path)
    (widget,) = states.draw(path, folder)[cell.id]
    assert [p["alt"] for p in widget["pictures"]] == ["2"]
    assert [file.exists() for file in files] == [True, False]
