"""show and explore: what reaches the page, and what a moved control does.

The browser is not needed: a control's value is set as the browser would set it.
"""

import base64
import html.parser
import io
import types

import ipywidgets
import matplotlib.image
import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt

from course_lib import lessons
from course_lib.lessons import Steps, compare, explore, show


class Page:
    """What was displayed: bundles in order, and updates of the one with an id."""

    def __init__(self):
        self.bundles, self.updates = [], []

    def display(self, bundle, *, raw, display_id=None):
        assert raw
        self.bundles.append(bundle)
        return self if display_id else None

    def update(self, bundle, *, raw):
        assert raw
        self.updates.append(bundle)


@pytest.fixture
def page(monkeypatch):
    page = Page()
    monkeypatch.setattr(lessons, "display", page.display)
    return page


@pytest.fixture(autouse=True)
def no_figure_stays_open():
    plt.close("all")
    yield
    assert plt.get_fignums() == []


def figure(height=1.0):
    figure, ax = plt.subplots(figsize=(2, 1))
    ax.plot([0, height])
    return figure


def image(bundle):
    """Parse the one <img> of a bundle; return its attributes."""
    found = []
    parser = html.parser.HTMLParser()
    parser.handle_starttag = lambda tag, attributes: found.append((tag, attributes))
    parser.feed(bundle["text/html"])
    ((tag, attributes),) = found
    assert tag == "img"
    return dict(attributes)


def pixels(bundle):
    head, _, data = image(bundle)["src"].partition(",")
    assert head == "data:image/png;base64"
    return matplotlib.image.imread(io.BytesIO(base64.b64decode(data)))


# show


def test_show_displays_the_picture_with_its_words_and_closes_the_figure(page):
    show(figure(), alt="A line rises.")
    (bundle,) = page.bundles
    assert bundle["text/plain"] == "A line rises."
    assert image(bundle)["alt"] == "A line rises."
    assert image(bundle)["width"] == "180"  # 2 inches
    assert plt.get_fignums() == []


def test_show_draws_on_opaque_white_whatever_the_theme(page):
    with plt.style.context("dark_background"):
        show(figure(), alt="A line.")
    corner = pixels(page.bundles[0])[0, 0]
    np.testing.assert_array_equal(corner, [1, 1, 1, 1])


def test_the_same_figure_gives_the_same_bytes_and_another_one_others(page):
    for height in (1.0, 1.0, 2.0):
        show(figure(height), alt="A line.")
    first, again, other = (image(bundle)["src"] for bundle in page.bundles)
    assert first == again != other
    assert b"matplotlib" not in base64.b64decode(first.partition(",")[2])


def test_the_description_is_escaped(page):
    alt = 'w < 0 & "b" > 0 <script>'
    show(figure(), alt=alt)
    assert image(page.bundles[0])["alt"] == alt
    assert "<script>" not in page.bundles[0]["text/html"]


@pytest.mark.parametrize("alt", ["", "  ", None])
def test_a_figure_needs_a_description(page, alt):
    with pytest.raises(ValueError, match=r"no description; wanted alt='what one sees'"):
        show(figure(), alt=alt)
    plt.close("all")
    assert page.bundles == []


def test_the_description_can_not_be_left_out(page):
    with pytest.raises(TypeError, match="'alt'"):
        show(None)


def test_show_wants_a_figure(page):
    with pytest.raises(ValueError, match=r"show: got list; wanted a matplotlib figure"):
        show([], alt="Nothing.")


# explore


def draw(steps, rule="sgd"):
    draw.calls.append((steps, rule))
    return figure(steps), f"{steps} steps of {rule}."


@pytest.fixture(autouse=True)
def calls():
    draw.calls = []
    return draw.calls


def test_short_forms_and_widgets_become_named_controls():
    ready = ipywidgets.IntSlider(7, description="how many")
    explorer = explore(
        draw,
        step_size=(0.0, 1.0, 0.1),
        steps=(1, 9, 2),
        rule=["sgd", "adam"],
        noisy=False,
        ready=ready,
    )
    kinds = {name: type(widget) for name, widget in explorer.controls.items()}
    assert kinds == {
        "step_size": ipywidgets.FloatSlider,
        "steps": ipywidgets.IntSlider,
        "rule": ipywidgets.SelectionSlider,
        "noisy": ipywidgets.Checkbox,
        "ready": ipywidgets.IntSlider,
    }
    slider = explorer.controls["steps"]
    assert (slider.min, slider.max, slider.step) == (1, 9, 2)
    assert explorer.controls["step_size"].description == "step size"
    assert explorer.controls["ready"] is ready
    assert ready.description == "how many"
    assert not slider.continuous_update  # draws when the handle is let go
    assert explorer.values["rule"] == "sgd"
    assert explorer.values["ready"] == 7


def test_steps_are_a_slider_behind_a_play_button_that_moves_it(page, calls):
    steps = Steps(1, 3, seconds=0.5)
    explorer = explore(draw, steps=steps)
    assert explorer.values == {"steps": 3}  # the last step, which shows all
    assert (steps.play.min, steps.play.max, steps.play.interval) == (1, 3, 500)
    assert steps.row.children == (steps.play, steps)
    explorer._ipython_display_()
    for value in 1, 2:
        steps.play.value = value  # as the browser does
    assert [bundle["text/plain"] for bundle in page.updates] == [
        "1 steps of sgd.",
        "2 steps of sgd.",
    ]
    explorer.set(steps=3)
    assert steps.play.value == 3  # a moved slider moves the next play, too


def test_steps_begin_where_they_are_told():
    steps = Steps(1, 4, value=2)
    assert steps.value == steps.play.value == 2


@pytest.mark.parametrize(
    "steps", [(5, 1), (1, 1), (0.5, 3), (None, 3), ("a", "b"), (False, True)]
)
def test_steps_that_are_none_are_refused(steps):
    with pytest.raises(ValueError, match=r"Steps: got low=.*; wanted ints, low < high"):
        Steps(*steps)


@pytest.mark.parametrize("options", [{"value": 7}, {"value": 1.5}, {"seconds": 0}])
def test_a_start_or_a_pace_that_is_none_is_refused(options):
    with pytest.raises(ValueError, match=r"Steps: got .*; wanted"):
        Steps(1, 3, **options)


def test_a_row_with_a_play_button_is_shown_in_place_of_the_slider(page, monkeypatch):
    boxes, box = [], ipywidgets.VBox
    monkeypatch.setattr(ipywidgets, "VBox", lambda c: boxes.append(box(c)) or boxes[0])
    explore(draw, steps=Steps(1, 3), rule=["sgd", "adam"])._ipython_display_()
    row, slider = boxes[0].children
    assert [type(part) for part in row.children] == [ipywidgets.Play, Steps]
    assert isinstance(slider, ipywidgets.SelectionSlider)
    assert page.bundles[1]["text/plain"].startswith("Controls: steps, rule.")
    assert "Back to the first step" in page.bundles[0]["text/html"]


def test_the_first_view_is_controls_and_a_picture_for_readers_without_a_kernel(
    page, monkeypatch
):
    boxes, box = [], ipywidgets.VBox
    monkeypatch.setattr(ipywidgets, "VBox", lambda c: boxes.append(box(c)) or boxes[0])
    explorer = explore(draw, steps=(1, 9, 1), rule=["sgd", "adam"])
    explorer._ipython_display_()
    script, view, picture = page.bundles
    assert "aria-label" in script["text/html"]
    assert "Back to the first step" not in script["text/html"]  # there is no button
    shown = view["application/vnd.jupyter.widget-view+json"]["model_id"]
    assert shown == boxes[0].model_id
    assert list(boxes[0].children) == list(explorer.controls.values())
    assert view["text/plain"] == (
        "Controls: steps, rule. They move once the notebook runs."
    )
    assert image(picture)["alt"] == picture["text/plain"] == "5 steps of sgd."


def test_a_moved_control_draws_again_in_the_same_place(page, calls):
    explorer = explore(draw, steps=(1, 9, 1))
    explorer._ipython_display_()
    explorer.controls["steps"].value = 2  # as the browser does
    assert calls == [(5, "sgd"), (2, "sgd")]
    assert len(page.bundles) == 3
    (new,) = page.updates
    assert image(new)["alt"] == new["text/plain"] == explorer.alt == "2 steps of sgd."
    assert not np.array_equal(pixels(new), pixels(page.bundles[2]))


def test_set_moves_several_controls_for_one_picture(page, calls):
    explorer = explore(draw, steps=(1, 9, 1), rule=["sgd", "adam"])
    explorer._ipython_display_()
    assert explorer.set(steps=3, rule="adam") == "3 steps of adam."
    assert explorer.values == {"steps": 3, "rule": "adam"}
    assert calls == [(5, "sgd"), (3, "adam")]
    assert len(page.updates) == 1


def test_set_answers_before_anything_is_on_the_page(page):
    assert explore(draw, steps=(1, 9, 1)).set(steps=4) == "4 steps of sgd."
    assert page.bundles == page.updates == []


def test_set_refuses_unknown_controls_and_moves_none(calls):
    explorer = explore(draw, steps=(1, 9, 1))
    message = r"Explorer\.set: got size, speed; the controls are steps\."
    with pytest.raises(ValueError, match=message):
        explorer.set(speed=1, steps=2, size=3)
    assert explorer.values == {"steps": 5}
    assert calls == []


def test_a_value_that_a_control_refuses_leaves_the_others_alive(page):
    explorer = explore(draw, steps=(1, 9, 1), rule=["sgd", "adam"])
    with pytest.raises(Exception, match="Invalid selection"):
        explorer.set(rule="newton")
    explorer._ipython_display_()
    explorer.controls["steps"].value = 2
    assert page.updates[0]["text/plain"] == "2 steps of sgd."


def fragile(divisor):
    return figure(1 / divisor), f"1 / {divisor}"


def test_an_error_while_drawing_is_shown_and_the_next_move_draws_again(page):
    explorer = explore(fragile, divisor=(0, 2, 1))
    explorer._ipython_display_()
    words = "This setting can't be drawn: ZeroDivisionError: division by zero"
    assert explorer.set(divisor=0) == words
    assert page.updates[-1]["text/plain"] == words
    assert page.updates[-1]["text/html"] == words.replace("'", "&#x27;")
    assert explorer.set(divisor=2) == "1 / 2"


def test_an_error_in_the_first_picture_leaves_the_controls_alive(page):
    explorer = explore(fragile, divisor=[0, 1])
    explorer._ipython_display_()
    assert "ZeroDivisionError" in page.bundles[2]["text/plain"]
    explorer.controls["divisor"].value = 1
    assert page.updates[0]["text/plain"] == "1 / 1"


def test_a_picture_without_words_is_named_as_the_error(page):
    explorer = explore(lambda steps: (figure(), ""), steps=(1, 3, 1))
    assert "the figure has no description" in explorer.set(steps=3)
    plt.close("all")


@pytest.mark.parametrize(
    ("controls", "message"),
    [
        ({}, r"explore: got no controls; wanted at least one, for example explore\("),
        ({"steps": None}, r"explore: steps gives no control; wanted \(low, high, st"),
        ({"steps": object()}, "explore: steps gives no control"),
        ({"steps": ipywidgets.VBox()}, r"steps gives no control; .* with a value"),
    ],
)
def test_explore_wants_controls_that_have_a_value(controls, message):
    with pytest.raises(ValueError, match=message):
        explore(draw, **controls)


# A name that is missing


@pytest.mark.parametrize(
    ("source", "hint"),
    [
        ("missing", "If a cell above makes 'missing', run it first: in the menu"),
        ("raise NameError", "If a cell above makes 'that name', run it first"),
        ("def f():\n    x += 1\n    x = 0\nf()", ""),  # no other cell can cure it
    ],
)
def test_a_missing_name_points_at_the_cells_above(capsys, source, hint):
    seen = []
    shell = types.SimpleNamespace(showtraceback=lambda *a, **k: seen.append((a, k)))
    with pytest.raises(NameError) as caught:
        exec(source, {})
    lessons._explain_missing_name(shell, *caught._excinfo, tb_offset=1)
    assert seen == [((caught._excinfo,), {"tb_offset": 1})]
    printed = capsys.readouterr().out
    assert hint in printed
    assert bool(printed) is bool(hint)


NEAR = 1 + 1e-7


@pytest.mark.parametrize(
    ("got", "wanted", "within", "words"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0, "equal, bit for bit"),
        ([1.0, NEAR], [1.0, 1.0], 1e-6, "equal within 1e-06"),
        ([1.0, 2.0], [1.0, 2.0], 1e-6, "equal within 1e-06"),
        ([1.0, NEAR], [1.0, 1.0], 0, "different, by up to 1e-07"),
        ([1000.0005], [1000.0], 1e-6, "equal within 1e-06"),
        ([1.5, 2.0], [1.0, 2.25], 1e-6, "different, by up to 0.5"),
        (3, 3.0, 0, "equal, bit for bit"),
        ([float("nan")], [1.0], 1e-6, "different, by up to nan"),
        ([], [], 0, "equal, bit for bit"),
    ],
)
def test_compare_prints_the_distance_where_rounding_does_not_explain_it(
    capsys, got, wanted, within, words
):
    got, wanted = (torch.tensor(n, dtype=torch.float64) for n in (got, wanted))
    compare("both", got.requires_grad_(), wanted, within=within)
    assert capsys.readouterr().out == f"both: {words}\n"


def test_compare_wants_one_shape():
    with pytest.raises(ValueError, match=r"compare: w has shape \(2,\); wanted \(\)"):
        compare("w", [1, 2], 3)
