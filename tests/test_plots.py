"""Each picture's data against numpy, on an Axes that belongs to no global state."""

from itertools import pairwise

import matplotlib.figure
import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.colors import same_color
from matplotlib.text import Annotation
from torch import nn

from course_lib import plots
from course_lib.training import Epoch, History


@pytest.fixture
def figure():
    return matplotlib.figure.Figure()


@pytest.fixture
def ax(figure):
    return figure.subplots()


@pytest.fixture(autouse=True)
def nothing_global(monkeypatch):
    """Fail where a plot opens a figure of its own, or shows one."""

    def refuse(*arguments, **options):
        raise AssertionError("a plot draws on its Axes alone")

    for name in ("show", "figure", "gca", "gcf", "subplots"):
        monkeypatch.setattr(plt, name, refuse)


def bowl(points):
    return points.square().sum(-1)


ONE_AXES = {
    "curves": lambda ax: plots.curves(ax, {"a": [1.0]}, xlabel="x", ylabel="y"),
    "curves_beside": lambda ax: plots.curves_beside(
        ax, {"a": [1.0]}, xlabel="x", ylabel="y"
    ),
    "histogram": lambda ax: plots.histogram(ax, {"a": torch.ones(3)}),
    "heatmap": lambda ax: plots.heatmap(ax, torch.eye(2)),
    "cells": lambda ax: plots.cells(ax, {"f": lambda: ax}),
    "owners": lambda ax: plots.owners(ax, ["a"], {"l2": 0}),
    "tiles": lambda ax: plots.tiles(ax, torch.ones(2, 6), (2, 3)),
    "valley": lambda ax: plots.valley(
        ax, torch.arange(3.0), torch.eye(3), {"a": (0, 1)}
    ),
    "lines": lambda ax: plots.lines(
        ax, torch.arange(2.0), {"a": torch.ones(2)}, xlabel="x", ylabel="y"
    ),
    "bars": lambda ax: plots.bars(ax, {"a": 1.0}, xlabel="x"),
    "descent": lambda ax: plots.descent(
        ax, bowl, {"a": torch.ones(2, 2)}, xlim=(-2, 2), ylim=(-1, 1)
    ),
    "arrows": lambda ax: plots.arrows(
        ax, {"a": torch.ones(2)}, before={"a": 2 * torch.ones(2)}
    ),
    "losses": lambda ax: plots.losses(ax, {"test": [2.0, 1.0]}, title="SGD"),
    "sharing": lambda ax: plots.sharing(ax, {"0.weight": torch.ones(2, 3)}),
    "entries": lambda ax: plots.entries(ax, ["a"], torch.ones(1, 1)),
    "shares": lambda ax: plots.shares(ax, {"a": 0.5}, xlabel="x"),
    "fork": lambda ax: plots.fork(ax, ["a"], ["b", "c"]),
    "spread": lambda ax: plots.spread(ax, {"a": [1.0, 2.0]}, xlabel="x"),
    "mosaic": lambda ax: plots.mosaic(ax, torch.zeros(3, 1, 2, 2)),
    "errors": lambda ax: plots.errors(
        ax, {"step": [1, 2], "real": [1.0, 2.0], "generated": [1.0, 3.0]}
    ),
    "shelves": lambda ax: plots.shelves(ax, {"a": torch.ones(3, 1, 2, 2)}),
    "turning": lambda ax: plots.turning(ax, bowl, [torch.ones(2)], reach=1.0),
    "flow": lambda ax: plots.flow(ax, {"a": ["1", "double", "2"]}),
    "cut": lambda ax: plots.cut(ax, {"a": torch.ones(3)}, at=1, ylabel="y"),
    "lengths": lambda ax: plots.lengths(ax, {"a": torch.ones(3, 2)}),
    "phases": lambda ax: plots.phases(ax, {"a": [2.0, 1.0], "b": [1.0]}),
    "visit": lambda ax: plots.visit(ax, bowl, [torch.zeros(3, 2)], [0]),
    "feeds": lambda ax: plots.feeds(ax, torch.zeros(2, 3), 0),
    "growth": lambda ax: plots.growth(ax, {"a": [1.0]}, xlabel="x", ylabel="y"),
    "fractions": lambda ax: plots.fractions(ax, {"a": [1.0]}, xlabel="x", ylabel="y"),
    "rates": lambda ax: plots.rates(ax, {"a": 1.0}, xlabel="x"),
    "gains": lambda ax: plots.gains(ax, {"a": (1, 2)}, kinds="bc", xlabel="x"),
    "channels": lambda ax: plots.channels(ax, {"a": [0]}, kinds="bcd"),
    "claims": lambda ax: plots.claims(ax, {"a": {1: 2.0}}, {1: 3.0}, ylim=(0, 4)),
    "races": lambda ax: plots.races(ax, {"a": {1: 2.0}}, xlabel="x", ylabel="y"),
    "strips": lambda ax: plots.strips(ax, {"a": ["1"]}, {}),
    "windows": lambda ax: plots.windows(ax, 4, 3, 2, {"a": (0, 1)}),
    "touched": lambda ax: plots.touched(ax, ["grad"], {"old": [("step()", ["grad"])]}),
    "swings": lambda ax: plots.swings(ax, {"a": torch.ones(3)}),
    "units": lambda ax: plots.units(ax, {"a": torch.ones(3)}),
}


@pytest.mark.parametrize("draw", ONE_AXES.values(), ids=ONE_AXES)
def test_a_plot_draws_on_its_axes_only_and_returns_it(figure, draw):
    left, right = figure.subplots(1, 2)
    untouched = len(right.get_children()), right.get_xlabel(), right.get_xlim()
    empty = len(left.get_children())
    assert draw(left) is left
    assert len(left.get_children()) > empty
    figure.draw_without_rendering()
    now = len(right.get_children()), right.get_xlabel(), right.get_xlim()
    assert now == untouched


# curves


def test_curves_count_their_steps_from_one(ax):
    plots.curves(ax, {"up": [1.0, 2.0, 4.0], "down": [3.0]}, xlabel="t", ylabel="v")
    drawn = {
        line.get_label(): (list(line.get_xdata()), list(line.get_ydata()))
        for line in ax.lines
    }
    assert drawn == {"up": ([1, 2, 3], [1.0, 2.0, 4.0]), "down": ([1], [3.0])}
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("t", "v")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["up", "down"]


def test_curves_differ_in_color_and_in_marker(ax):
    names = "abcdef"
    plots.curves(ax, {name: [0.0] for name in names}, xlabel="", ylabel="")
    assert len({line.get_color() for line in ax.lines}) == len(names)
    assert len({line.get_marker() for line in ax.lines}) == len(names)


# histogram


def test_histogram_counts_as_numpy_does_over_one_common_range(ax, device):
    generator = torch.Generator().manual_seed(0)
    small = torch.randn(7, 5, generator=generator).to(device).requires_grad_()
    large = 3 * torch.randn(200, generator=generator, dtype=torch.float64)
    plots.histogram(ax, {"small": small, "large": large}, bins=9)

    reach = large.abs().max().item()
    for patch, values in zip(ax.patches, (small, large), strict=True):
        counts, edges, _ = patch.get_data()
        expected = np.linspace(-reach, reach, 10)
        np.testing.assert_allclose(edges, expected, rtol=1e-5, atol=1e-6)
        numbers = values.detach().cpu().numpy().astype("float32").ravel()
        np.testing.assert_array_equal(counts, np.histogram(numbers, edges)[0])
        assert np.sum(counts) == values.numel()
    assert [patch.get_label() for patch in ax.patches] == ["small", "large"]
    assert (ax.get_yscale(), ax.get_xlabel()) == ("log", "weight")


def test_histogram_of_nothing_but_zeros_is_one_bar_in_the_middle(ax):
    plots.histogram(ax, {"zeros": torch.zeros(5)}, bins=3)
    assert list(ax.patches[0].get_data().values) == [0, 5, 0]


# heatmap and images


def test_heatmap_shows_the_matrix_with_zero_in_the_middle(ax, device):
    matrix = torch.tensor([[0.5, -2.0, 0.0]], device=device, requires_grad=True)
    plots.heatmap(ax, matrix)
    (image,) = ax.images
    np.testing.assert_array_equal(image.get_array(), matrix.detach().cpu())
    assert image.get_clim() == (-2.0, 2.0)
    red, blue, white = image.cmap(image.norm([2.0, -2.0, 0.0]))
    assert red[0] > red[2]
    assert blue[2] > blue[0]
    assert min(white[:3]) > 0.95
    assert (list(ax.get_xticks()), list(ax.get_yticks())) == ([], [])


@pytest.mark.parametrize(
    ("entry", "reach", "limit"), [(2.0, 0.5, 0.5), (0, None, 1e-12)]
)
def test_heatmap_takes_a_reach_and_survives_zeros(ax, entry, reach, limit):
    plots.heatmap(ax, torch.full((2, 2), float(entry)), reach=reach)
    assert ax.images[0].get_clim() == (-limit, limit)


def test_images_stand_one_on_each_axes_with_ink_dark(figure, device):
    axes = figure.subplots(1, 2)
    pixels = torch.rand(2, 1, 3, 4, device=device)
    assert plots.images(axes, pixels, ["one", "two"]) is None
    for ax, image, title in zip(axes, pixels.cpu(), ["one", "two"], strict=True):
        (drawn,) = ax.images
        np.testing.assert_array_equal(drawn.get_array(), image[0])
        assert drawn.get_clim() == (0, 1)
        assert sum(drawn.cmap(1.0)[:3]) < sum(drawn.cmap(0.0)[:3])
        assert ax.get_title() == title


def test_images_want_one_axes_and_one_title_for_each(figure):
    with pytest.raises(ValueError, match="shorter"):
        plots.images(figure.subplots(1, 2), torch.rand(2, 1, 3, 3), ["one"])


# tiles, valley, lines and bars


def test_tiles_lay_each_unit_out_as_an_image(ax, device):
    weight = torch.arange(18.0, device=device).reshape(3, 6).requires_grad_()
    plots.tiles(ax, weight, (2, 3), columns=2, reach=4)
    # Units 0 and 1 above, unit 2 below, and an empty place.
    expected = [
        [0, 1, 2, 6, 7, 8],
        [3, 4, 5, 9, 10, 11],
        [12, 13, 14, 0, 0, 0],
        [15, 16, 17, 0, 0, 0],
    ]
    (image,) = ax.images
    np.testing.assert_array_equal(image.get_array(), expected)
    assert image.get_clim() == (-4, 4)
    parts = [[line.get_xdata()[0], line.get_ydata()[0]] for line in ax.lines]
    assert parts == [[0, 1.5], [2.5, 0]]  # between the rows, between the columns


def test_valley_has_the_first_weight_across_and_the_second_up(ax):
    side = torch.linspace(-1, 3, 5)
    heights = side[:, None].expand(5, 5)  # depends on the first weight alone
    plots.valley(ax, side, heights, {"data": (2.0, 0.5), "ours": (1.0, 0.0)})
    (contours,) = ax.collections
    for line in (p.vertices for p in contours.get_paths() if len(p.vertices)):
        assert np.ptp(line[:, 0]) < 1e-6 < np.ptp(line[:, 1])
    points = {
        line.get_label(): (*line.get_xdata(), *line.get_ydata())
        for line in ax.lines
        if len(line.get_xdata()) == 1
    }
    assert points == {"data": (2.0, 0.5), "ours": (1.0, 0.0)}
    assert ax.get_aspect() == 1


def test_lines_run_over_what_is_given(ax, device):
    first = torch.tensor([1.0, 2.0], device=device, requires_grad=True)
    series = {"a": first, "b": 2 * first}
    across = torch.tensor([0.0, 0.5])
    plots.lines(ax, across, series, xlabel="w", ylabel="cost", title="Two")
    drawn = [(list(line.get_xdata()), list(line.get_ydata())) for line in ax.lines]
    assert drawn == [([0, 0.5], [1, 2]), ([0, 0.5], [2, 4])]
    assert [line.get_label() for line in ax.lines] == ["a", "b"]
    assert len({line.get_linestyle() for line in ax.lines}) == 2
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title()) == ("w", "cost", "Two")


def test_bars_begin_at_zero_with_the_first_on_top(ax):
    plots.bars(ax, {"plain": 2.0, "penalty": 3.0}, xlabel="ms")
    assert [(bar.get_x(), bar.get_width()) for bar in ax.patches] == [(0, 2), (0, 3)]
    heights = ax.transData.transform([(0, bar.get_y()) for bar in ax.patches])[:, 1]
    assert heights[0] > heights[1]
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert (names, ax.get_xlabel(), ax.get_xlim()[0]) == (["plain", "penalty"], "ms", 0)


# panels of lesson 02


def legends(axes):
    return [ax.get_legend() is not None for ax in axes]


def test_histories_stand_side_by_side_with_one_legend_and_one_label(figure):
    axes = figure.subplots(1, 2)
    runs = {
        name: History([Epoch(1, loss, 0.0, 3.0, 0.5, 0.1)])
        for name, loss in (("alone", 1.0), ("held", 2.0))
    }
    assert plots.histories(axes, runs) is None
    drawn = [[line.get_ydata()[0] for line in ax.lines] for ax in axes]
    assert drawn == [[1.0, 3.0], [2.0, 3.0]]
    assert [ax.get_title() for ax in axes] == ["alone", "held"]
    assert [ax.get_ylabel() for ax in axes] == ["loss", ""]
    assert legends(axes) == [False, True]


def test_line_panels_draw_each_series_under_its_title(figure):
    axes, across = figure.subplots(1, 2), torch.tensor([0.0, 1.0])
    panels = {name: {"w": n * across} for name, n in (("one", 1), ("two", 2))}
    assert plots.line_panels(axes, across, panels, xlabel="c", ylabel="v") is None
    assert [list(ax.lines[0].get_ydata()) for ax in axes] == [[0, 1], [0, 2]]
    labels = [(ax.get_title(), ax.get_xlabel(), ax.get_ylabel()) for ax in axes]
    assert labels == [("one", "c", "v"), ("two", "c", "")]
    assert legends(axes) == [False, True]


def test_curves_beside_have_their_legend_outside_on_the_right(ax, figure):
    plots.curves_beside(ax, {"a": [1.0, 2.0]}, xlabel="t", ylabel="v")
    figure.draw_without_rendering()
    box, inside = ax.get_legend().get_window_extent(), ax.get_window_extent()
    assert box.x0 >= inside.x1
    assert list(ax.lines[0].get_ydata()) == [1, 2]


@pytest.mark.parametrize("count", [1, 2])
def test_hidden_units_are_images_above_one_histogram(figure, count):
    axes = figure.subplots(count + 1, 1)
    weights = {f"w{n}": torch.full((2, 4), 0.1 * n) for n in range(1, count + 1)}
    assert plots.hidden_units(axes, weights, (2, 2)) is None
    *above, last = axes
    for ax, (title, weight) in zip(above, weights.items(), strict=True):
        assert ax.get_title() == title
        assert ax.images[0].get_array().max() == pytest.approx(weight.max().item())
        assert ax.images[0].get_clim() == (-0.6, 0.6)
    assert [patch.get_label() for patch in last.patches] == list(weights)
    assert legends([last]) == [count > 1]  # one needs none: its title says it


# cells


def boxes(ax):
    """The position of each text in a box."""
    return {
        text.get_text(): text.get_position()
        for text in ax.texts
        if text.get_text() and text.get_bbox_patch()
    }


def arrows(ax):
    """Each arrow, as its (start, end)."""
    return [(text.xyann, text.xy) for text in ax.texts if isinstance(text, Annotation)]


def edge_color(ax, words):
    (box,) = (text for text in ax.texts if text.get_text() == words)
    return box.get_bbox_patch().get_edgecolor()


def late_readers():
    return [lambda: i for i in range(3)]  # noqa: B023  late on purpose


def test_a_shared_cell_is_drawn_once_and_in_its_own_color(ax):
    own, (first, second, _) = "mine", late_readers()
    plots.cells(ax, {"a": first, "b": second, "c": lambda: own})
    assert list(boxes(ax)) == ["a()", "b()", "c()", "i = 2", "own = 'mine'"]
    assert not same_color(edge_color(ax, "i = 2"), edge_color(ax, "own = 'mine'"))


def test_an_arrow_leads_from_each_function_to_its_cell(ax):
    own, (first, second, _) = 1, late_readers()
    plots.cells(ax, {"a": first, "b": second, "c": lambda: own})
    at = boxes(ax)
    assert sorted(arrows(ax)) == sorted(
        [
            (at["a()"], at["i = 2"]),
            (at["b()"], at["i = 2"]),
            (at["c()"], at["own = 1"]),
        ]
    )
    assert len(set(at.values())) == 5  # no box upon another


def test_equal_names_in_two_cells_are_two_boxes(ax):
    def factory(i):
        return lambda: i

    plots.cells(ax, {"a": factory(0), "b": factory(1)})
    assert list(boxes(ax)) == ["a()", "b()", "i = 0", "i = 1"]
    assert len(arrows(ax)) == 2


def test_a_function_without_cells_stands_alone(ax):
    plots.cells(ax, {"free": late_readers})
    assert list(boxes(ax)) == ["free()"]
    assert arrows(ax) == []


def test_values_are_shortened_named_or_unset_and_never_read_as_formulas(ax, figure):
    long, formula, function = "x" * 40, r"$\no$", late_readers
    plots.cells(ax, {"f": lambda: (long, formula, function, later)})
    assert set(boxes(ax)) == {
        "f()",
        "long = 'xxxxxxxxxxxxxx...",
        r"formula = '$\\no$'",
        "function = late_readers",
        "later = <unset>",
    }
    figure.draw_without_rendering()  # would raise on a formula that can't be read
    later = None


def test_what_has_no_cells_is_refused(ax):
    with pytest.raises(TypeError, match="got the builtin 'len'"):
        plots.cells(ax, {"len": len})


def test_functions_of_a_list_are_numbered(ax):
    plots.cells(ax, late_readers()[:2], name="readers", title="late")
    assert list(boxes(ax)) == ["readers[0]()", "readers[1]()", "i = 2"]
    assert ax.get_title() == "late"


def test_no_function_is_an_empty_picture(ax):
    plots.cells(ax, [])
    assert boxes(ax) == {}


def test_lists_of_functions_stand_side_by_side_under_what_they_return(figure):
    axes = figure.subplots(1, 2)
    i = 1
    plots.cells_beside(axes, {"late": late_readers(), "own": {"a": lambda: i}})
    assert [ax.get_title() for ax in axes] == [
        "late: they return [2, 2, 2]",
        "own: they return [1]",
    ]
    assert list(boxes(axes[1])) == ["a()", "i = 1"]


# owners


def test_each_price_points_at_the_layer_that_it_is_given(ax):
    layers, prices = ["Linear", "Dropout", "Norm"], {"l2 = 1": 0, "l2 = 2": 2}
    plots.owners(ax, layers, prices, wrong=["l2 = 2"])
    at = boxes(ax)
    assert list(at) == [*layers, *prices]
    assert arrows(ax) == [(at[text], at[layers[i]]) for text, i in prices.items()]
    assert not same_color(edge_color(ax, "l2 = 1"), edge_color(ax, "l2 = 2"))


# touched, units


def test_a_square_stands_where_a_line_of_code_changed_a_place(ax):
    groups = {"old": [("step()", ["state", "grad"])], "new": [("read()", [])]}
    plots.touched(ax, ["grad", "buffers", "state"], groups)
    squares = {tuple(m.get_xydata()[0]) for m in ax.lines if m.get_marker() == "s"}
    assert squares == {(0, 1), (2, 1)}  # (column, row)
    assert len(ax.lines) == 6  # a small dot where nothing changed
    assert [t.get_text() for t in ax.get_xticklabels()] == ["grad", "buffers", "state"]
    labels = [t.get_text() for t in ax.get_yticklabels()]
    assert labels[1::2] == ["step()", "read()"]
    assert "old" in labels[0]
    assert "new" in labels[2]
    assert ax.yaxis_inverted()


def test_units_are_a_row_of_squares_for_each_name(ax):
    rows = {"on": torch.tensor([0.0, 2.0, 2.0]), "off": torch.ones(3)}
    plots.units(ax, rows)
    (mesh,) = ax.collections
    np.testing.assert_array_equal(mesh.get_array(), [[0, 2, 2], [1, 1, 1]])
    assert [t.get_text() for t in ax.get_yticklabels()] == ["on", "off"]
    assert ax.yaxis_inverted()
    white, dark, middle = mesh.cmap(mesh.norm([0.0, 2.0, 1.0]))
    assert sum(white) > sum(middle) > sum(dark)


def test_swings_are_lines_over_steps_with_room_for_the_legend(ax):
    plots.swings(ax, {"a": torch.tensor([1.0, -1.0])})
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[0, 1], [1, -1]])
    assert ax.get_ylim() == (-1.2, 2)


def test_extremes_are_the_images_of_the_smallest_and_of_the_largest(figure):
    axes = figure.subplots(1, 4)
    pixels = torch.arange(6.0).reshape(6, 1, 1, 1) / 5
    values = torch.tensor([0.5, 2.5, 1e-3, 3.0, 0.2, 1.0])
    words = plots.extremes(axes, pixels, values)
    assert words.startswith("2 images with the smallest values and 2 with the largest")
    assert words.endswith("more than 10 times as large.")
    assert [ax.get_title() for ax in axes] == ["1e-03", "0.2", "2.5", "3.0"]
    drawn = [ax.images[0].get_array().item() for ax in axes]
    np.testing.assert_allclose(drawn, [2 / 5, 4 / 5, 1 / 5, 3 / 5], atol=1e-6)


# descent, arrows, flow


def test_a_path_is_drawn_point_by_point_and_ends_in_a_star(ax):
    path = torch.tensor([[-1.0, 0.5], [0.5, -0.25], [0.0, 0.0]])
    plots.descent(ax, bowl, {"mine": path}, xlim=(-2, 2), ylim=(-1, 1))
    line, star = ax.lines
    np.testing.assert_allclose(line.get_xydata(), path)
    assert line.get_label() == "mine"
    np.testing.assert_allclose(star.get_xydata(), [[0.0, 0.0]])
    assert star.get_marker() == "*"
    assert (ax.get_xlim(), ax.get_ylim()) == ((-2, 2), (-1, 1))


def test_the_contours_lie_where_the_function_has_their_height(ax):
    plots.descent(ax, bowl, {}, xlim=(-1, 3), ylim=(-1, 1))
    (contours,) = ax.collections
    for level, path in zip(contours.levels, contours.get_paths(), strict=True):
        x, y = path.vertices.T
        np.testing.assert_allclose(x**2 + y**2, level, atol=2e-3)


@pytest.mark.parametrize("last", [1e9, float("inf"), float("nan")])
def test_a_path_that_flies_off_is_cut(ax, last):
    path = torch.tensor([[1.0, 1.0], [5.0, 1.0], [last, 1.0], [0.0, 0.0]])
    plots.descent(ax, bowl, {"mine": path}, xlim=(-2, 2), ylim=(-1, 1))
    np.testing.assert_allclose(ax.lines[0].get_xydata(), path[:2])


def test_arrows_lead_from_the_origin_to_the_tips(ax):
    before = {"a": torch.tensor([3.0, -4.0]), "b": torch.tensor([0.0, 1.0])}
    after = {"a": torch.tensor([0.6, -0.8]), "b": torch.tensor([0.0, 1.0])}
    plots.arrows(ax, after, before=before, title="clipped")
    notes = [text for text in ax.texts if isinstance(text, Annotation)]
    tips = [note.xy for note in notes if note.arrow_patch]
    wanted = [before["a"], after["a"], before["b"], after["b"]]
    np.testing.assert_allclose(tips, torch.stack(wanted))
    paleness = [note.arrow_patch.get_alpha() for note in notes if note.arrow_patch]
    assert paleness == [0.3, None, 0.3, None]
    assert [note.get_text() for note in notes if note.get_text()] == ["a", "b"]
    (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
    assert left <= 0 < 3 < right
    assert low < -4 < 1 < high


def test_a_flow_reads_from_left_to_right(ax):
    plots.flow(ax, {"up": ["1", "double", "2", "add 1", "3"], "down": ["5", "-", "4"]})
    places = {text.get_text(): text.get_position() for text in ax.texts}
    up = ["1", "double", "2", "add 1", "3"]
    assert sorted(up, key=lambda text: places[text][0]) == up
    assert places["1"][1] == places["3"][1] > places["5"][1]
    arrows = [text for text in ax.texts if isinstance(text, Annotation)]
    assert len(arrows) == 3


def test_a_flow_writes_vectors_as_numbers(ax):
    plots.flow(ax, {"a": [torch.tensor([1.0, 2.5]), "add", torch.tensor([1 / 3])]})
    texts = [text.get_text() for text in ax.texts]
    assert {"[1, 2.5]", "add", "[0.333]"} <= set(texts)


def test_descents_draw_each_path_on_axes_of_its_own(figure):
    axes = figure.subplots(1, 2)
    paths = {"a": torch.ones(2, 2), "b": torch.zeros(3, 2)}
    plots.descents(axes, bowl, paths)
    assert [ax.get_title() for ax in axes] == ["a", "b"]
    assert [len(ax.lines[0].get_xdata()) for ax in axes] == [2, 3]


def test_lengths_are_those_of_the_vectors(ax):
    plots.lengths(ax, {"a": torch.tensor([[3.0, 4.0], [0.0, 1.0]])})
    np.testing.assert_allclose(ax.lines[0].get_xydata(), [[1, 5], [2, 1]])


def test_a_phase_begins_where_the_one_before_has_ended(ax):
    plots.phases(ax, {"a": [3.0, 2.0], "b": [1.0]})
    drawn = [line.get_xydata().tolist() for line in ax.lines]
    assert drawn == [[[0, 3], [1, 2]], [[2, 1]]]
    assert ax.get_yscale() == "log"


def test_a_cut_stands_before_its_step(ax):
    plots.cut(ax, {"a": torch.tensor([3.0, 2.0, 1.0])}, at=2, ylabel="length")
    steps, line = ax.lines
    assert steps.get_xydata().tolist() == [[0, 3], [1, 2], [2, 1]]
    assert line.get_xdata() == [1.5, 1.5]


def test_each_row_of_images_has_its_name_once(figure):
    axes = figure.subplots(2, 2)
    rows = {"a": torch.zeros(2, 1, 3, 3), "b": torch.ones(2, 1, 3, 3)}
    plots.image_rows(axes, rows)
    assert [[ax.get_ylabel() for ax in line] for line in axes] == [["a", ""], ["b", ""]]
    assert [line[1].images[0].get_array().mean() for line in axes] == [0, 1]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_mosaic_lays_images_out_row_by_row(ax, device, channels):
    pixels = torch.rand(3, channels, 2, 4, device=device, requires_grad=True)
    plots.mosaic(ax, pixels, columns=2, title="samples")
    (drawn,) = ax.images
    picture = np.asarray(drawn.get_array()).reshape(6, 10, channels)
    places = [(0, 0), (0, 6), (4, 0)]
    for (y, x), image in zip(places, pixels.detach().cpu().numpy(), strict=True):
        shown = picture[y : y + 2, x : x + 4].transpose(2, 0, 1)
        np.testing.assert_array_equal(shown, image)
    assert not picture[2:4].any()  # between the rows, and the columns
    assert not picture[:, 4:6].any()
    assert drawn.get_clim() == (0, 1)
    assert (list(ax.get_xticks()), ax.get_title()) == ([], "samples")


@pytest.mark.parametrize(
    ("winner", "kept", "refused"), [(0, 2, (5, -1)), (1, 5, (2, -1)), (-1, -1, (2, 5))]
)
def test_a_visit_has_a_star_on_what_it_keeps_and_crosses_on_the_rest(
    ax, device, winner, kept, refused
):
    before = torch.tensor([[0.0, 2.0], [1.0, 2.0], [-1.0, 2.0]], device=device)
    tries = torch.tensor([[1.0, 2.0], [1.0, 5.0], [1.0, -1.0]], device=device)
    plots.visit(ax, bowl, [before, tries], [1, winner], title="all")
    walk, _, star, now, earlier = (line.get_xydata().tolist() for line in ax.lines)
    assert walk == [[0, 2], [1, 2], [1, kept]]
    assert star == [[1, kept]]
    assert now == [[1, y] for y in refused]
    assert earlier == [[0, 2], [-1, 2]]
    assert [line.get_marker() for line in ax.lines[2:]] == ["*", "x", "x"]
    heights = [f"{1 + y**2:.2f}" for y in (kept, *refused)]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "the walk",
        f"kept: {heights[0]}",
        f"refused: {heights[1]} and {heights[2]}",
        "refused before",
    ]
    assert ax.get_title() == "all"


def test_a_first_visit_has_refused_nothing_before(ax):
    plots.visit(ax, bowl, [torch.tensor([[0.0, 0], [1, 0], [-1, 0]])], [0])
    assert ax.lines[2].get_xydata().tolist() == [[0, 0]]
    assert ax.lines[4].get_xydata().tolist() == []


@pytest.mark.parametrize(
    ("shape", "filled"), [((3, 4), 4), ((3, 2, 2, 5), 20), ((3,), 1)]
)
def test_what_feeds_an_output_is_filled(ax, shape, filled):
    plots.feeds(ax, torch.zeros(shape), 1, title="w")
    colors = [same_color(patch.get_facecolor(), "white") for patch in ax.patches]
    assert len(colors) == torch.zeros(shape).numel()
    assert colors.count(False) == filled
    corners = {tuple(round(x, 3) for x in patch.get_xy()) for patch in ax.patches}
    assert len(corners) == len(colors)  # none covers another
    rows = {p.get_xy()[1] for p in ax.patches if not same_color(p.get_fc(), "white")}
    lowest = min(rows)
    above = [p for p in ax.patches if p.get_xy()[1] < lowest]
    assert len(above) == filled  # the one output before it


def test_growth_and_fractions_are_curves_on_their_own_scale(ax, figure):
    series = {"a": [0.5, 0.25], "b": [1.0, 0.5]}
    plots.growth(ax, series, xlabel="n", ylabel="y")
    assert (ax.get_yscale(), ax.get_xlabel(), ax.get_ylabel()) == ("log", "n", "y")
    other = figure.add_subplot()
    plots.fractions(other, series, xlabel="n", ylabel="y")
    assert other.get_ylim() == (0, 1)
    assert list(other.get_xticks()) == [1, 2]
    assert [line.get_ydata().tolist() for line in other.lines] == [*series.values()]


def test_a_mosaic_frames_the_images_that_are_marked(ax):
    marked = torch.tensor([False, True, False, True])
    plots.mosaic(ax, torch.rand(4, 1, 2, 2), columns=3, framed=marked)
    middles = [list(patch.get_center()) for patch in ax.patches]
    assert middles == [pytest.approx([4.5, 0.5]), pytest.approx([0.5, 4.5])]


@pytest.mark.parametrize("columns", [1, 2])  # the longest row has two
def test_shelves_have_a_row_for_each_name_and_may_be_empty(ax, device, columns):
    pixels = torch.rand(3, 1, 2, 4, device=device)
    rows = {"a": pixels[:1], "none": pixels[:0], "b": pixels[1:]}
    plots.shelves(ax, rows, columns=columns)
    picture = np.asarray(ax.images[0].get_array())
    places = [(0, 0), (8, 0), (8, 6)]
    for (y, x), image in zip(places, pixels.cpu().numpy(), strict=True):
        np.testing.assert_array_equal(picture[y : y + 2, x : x + 4], image[0])
    assert not picture[4:6].any()
    assert list(ax.get_yticks()) == [0.5, 4.5, 8.5]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "none", "b"]


def test_errors_of_both_kinds_are_drawn_over_the_steps(ax):
    history = {"step": [10, 20], "real": [0.1, 0.2], "generated": [0.3, 900.0]}
    plots.errors(ax, history)
    real, generated = ax.lines
    np.testing.assert_array_equal(real.get_xydata(), [[10, 0.1], [20, 0.2]])
    np.testing.assert_array_equal(generated.get_xydata(), [[10, 0.3], [20, 900.0]])
    assert (real.get_label(), generated.get_label()) == ("L_real", "L_gen")
    assert ax.get_yscale() == "log"


@pytest.mark.parametrize("step", [1, 3])
def test_a_balance_is_drawn_up_to_a_step_with_room_for_the_rest(figure, step):
    history = {"step": [1, 2, 3], "real": [0.5, 0.25, 0.25]}
    history |= {"generated": [0.2, 0.75, 0.25], "k": [0.1, 0.0, 0.0]}
    axes = figure.subplots(1, 3)
    drawn = plots.balance(axes, torch.ones(2, 1, 2, 2), history, step, gamma=0.5)
    assert drawn is axes
    assert np.asarray(axes[0].images[0].get_array()).sum() == 8
    assert axes[0].get_title() == f"step {step}"
    lines = {line.get_label(): line for ax in axes[1:] for line in ax.lines[::2]}
    values = [0.25, 0.125, 0.125], history["generated"], history["k"]
    for name, ys in zip(("0.5 · L_real", "L_gen", "k"), values, strict=True):
        assert lines[name].get_ydata().tolist() == ys[:step]
        assert lines[name].get_xdata().tolist() == history["step"][:step]
    ends = [line.get_xydata().tolist() for ax in axes[1:] for line in ax.lines[1::2]]
    assert ends == [[[step, ys[step - 1]]] for ys in values]
    for ax, top in zip(axes[1:], (0.75, 0.1), strict=True):
        (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
        assert left < 1
        assert right > 3
        assert low < 0
        assert high > top
        assert ax.get_xscale() == "log"


def test_turning_draws_the_contours_and_an_arrow_for_each_direction(ax):
    directions = [torch.tensor([1.0, 0.0]), torch.tensor([0.6, -0.8])]
    plots.turning(ax, lambda points: points[:, 0], directions, reach=2.0)
    arrows = [text for text in ax.texts if not text.get_text()]
    assert [list(arrow.xy) for arrow in arrows] == [
        pytest.approx([1.6, 0.0]),
        pytest.approx([0.96, -1.28]),
    ]
    assert [text.get_text() for text in ax.texts if text.get_text()] == ["0", "1"]
    (contours,) = ax.collections
    for level, paths in zip(contours.levels, contours.get_paths(), strict=True):
        np.testing.assert_allclose(paths.vertices[:, 0], level, atol=1e-5)


def test_races_have_x_values_of_their_own_on_a_logarithmic_axis(ax):
    long = {10.0 * i: 0.5 for i in range(1, 41)}
    plots.races(ax, {"a": {1: 0.25, 100: 0.75}, "b": long}, xlabel="n", ylabel="y")
    first, second = ax.lines
    assert first.get_xydata().tolist() == [[1, 0.25], [100, 0.75]]
    assert second.get_xdata().tolist() == list(long)
    assert (first.get_markevery(), second.get_markevery()) == (1, 4)
    assert [line.get_label() for line in ax.lines] == ["a", "b"]
    assert first.get_color() != second.get_color()
    assert (ax.get_xscale(), ax.get_xlabel(), ax.get_ylabel()) == ("log", "n", "y")


# strips and windows


def squares_of(ax):
    """Return {(x, y): (text, face color)} of the squares on an Axes."""
    texts = {text.get_position(): text.get_text() for text in ax.texts}
    faces = {
        tuple(patch.get_xy()[:4].mean(axis=0).round(6).tolist()): patch.get_facecolor()
        for patch in ax.patches
    }
    assert set(texts) == set(faces)
    return {place: (texts[place], faces[place]) for place in texts}


def test_strips_set_texts_side_by_side_in_the_color_of_their_group(ax):
    plots.strips(ax, {"last": ["a", "A", "b"], "first": ["a"]}, {"a": 0, "b": 1})
    drawn = squares_of(ax)
    assert {place: text for place, (text, _) in drawn.items()} == {
        (0, 0): "a",
        (1, 0): "A",
        (2, 0): "b",
        (0, 1): "a",
    }
    assert same_color(drawn[0, 0][1], (plots.COLORS[0], 0.35))
    assert same_color(drawn[2, 0][1], (plots.COLORS[1], 0.35))
    assert same_color(drawn[1, 0][1], "white")
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert (list(ax.get_yticks()), labels) == ([0, 1], ["last", "first"])
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first row is on top


def test_windows_lie_where_the_kernel_looks(ax):
    plots.windows(ax, 5, 3, 2, {"same": (0, 1), "torch": (1, 1)})
    texts = {place: text for place, (text, _) in squares_of(ax).items()}
    assert [texts[x, 0] for x in range(6)] == ["1", "2", "3", "4", "5", "0"]
    assert [texts[x, 2] for x in range(-1, 6)] == ["0", "1", "2", "3", "4", "5", "0"]
    spans = [line.get_xdata() for line in ax.lines]
    found = [(round(a + 0.4), round(b - 0.4) + 1) for a, b in spans]
    assert found == [(0, 3), (2, 5), (-1, 2), (1, 4), (3, 6)]
    rows = [line.get_ydata()[0] > 2 for line in ax.lines]
    assert rows == [False, False, True, True, True]


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_windows_are_as_many_as_a_convolution_returns(ax, stride):
    padded = torch.zeros(1, 1, 2 + 7 + 1)
    wanted = nn.functional.conv1d(padded, torch.ones(1, 1, 4), stride=stride).numel()
    plots.windows(ax, 7, 4, stride, {"a": (2, 1)})
    assert len(ax.lines) == wanted
    lows = [line.get_ydata()[0] for line in ax.lines]
    assert all(one != other for one, other in pairwise(lows))


def test_rates_are_bars_with_the_peak_as_a_line(ax):
    plots.rates(ax, {"slow": 1.25, "fast": 3e4}, peak=4e4, xlabel="a second")
    assert [bar.get_width() for bar in ax.patches] == [1.25, 3e4]
    (line,) = ax.lines
    assert list(line.get_xdata()) == [4e4, 4e4]
    assert ax.get_xlim()[1] > 4e4
    assert ax.get_xlabel() == "a second"
    assert {text.get_text() for text in ax.texts} == {"1.25", "30,000", "peak"}


def test_rates_without_a_peak_draw_no_line(ax):
    plots.rates(ax, {"slow": 1.0}, xlabel="a second")
    assert not ax.lines


def test_channels_stand_in_columns_and_each_kind_has_its_look(ax):
    plots.channels(ax, {"a": [0, 1], "b": [2, 2, 2]}, kinds=("no", "one", "all"))
    drawn = {line.get_label(): line for line in ax.lines}
    places = {
        name: [tuple(point) for point in line.get_xydata() if point[0] == point[0]]
        for name, line in drawn.items()
    }
    assert places["no"] == [(0, 1.0)]
    assert places["one"] == [(0, 0.0)]
    assert places["all"] == [(1, 1.5), (1, 0.5), (1, -0.5)]
    assert len({line.get_color() for line in ax.lines}) == 3
    assert len({line.get_marker() for line in ax.lines}) == 3
    assert [text.get_text() for text in ax.get_xticklabels()] == ["a", "b"]


def test_gains_are_two_bars_a_name_side_by_side_and_none_where_there_is_no_number(ax):
    factors = {"slow": (2.0, 1.5), "fast": (float("nan"), 8.0)}
    plots.gains(ax, factors, kinds=("work", "time"), xlabel="times")
    bars = [(bar.get_y() + bar.get_height() / 2, bar.get_width()) for bar in ax.patches]
    np.testing.assert_allclose(bars, [(-0.2, 2.0), (0.2, 1.5), (1.2, 8.0)])
    assert [text.get_text() for text in ax.texts] == ["2.0", "1.5", "8.0"]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["slow", "fast"]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["work", "time"]
    assert ax.get_xlim()[1] > 8


def drawn_kinds(ax):
    """Return {column: {kind: how many channels}} of a picture of channels."""
    found = {}
    for line in ax.lines:
        for x, _ in line.get_xydata():
            if x == x:
                column = found.setdefault(int(x), {})
                column[line.get_label()] = column.get(line.get_label(), 0) + 1
    return found


def test_a_sweep_is_drawn_in_full_without_its_prefix_and_for_one_channel(figure):
    axes = figure.subplots(1, 3)
    sizes = {"a": 2, "b": 4, "c": 3, "d": 5}
    assert plots.sweeps(axes, sizes, swept="b") is axes
    everything, prefix, one = map(drawn_kinds, axes)
    assert everything == {i: {"in full": n} for i, n in enumerate(sizes.values())}
    assert prefix == {**everything, 0: {"remembered": 2}}
    assert one == {
        0: {"remembered": 2},
        1: {"remembered": 3, "moves": 1},
        2: {"moves": 3},
        3: {"in full": 5},
    }
    assert [ax.get_legend() is not None for ax in axes] == [False, False, True]
    plots.sweeps(figure.subplots(1, 3), sizes, swept="d")  # nothing is behind it


def test_claims_are_stars_over_the_runs_in_percent(ax):
    plots.claims(ax, {"run": {1: 80.0, 2: 90.0}}, {5: 98.0, 50: 99.1}, ylim=(70, 100))
    stars, run = ax.lines
    assert [tuple(point) for point in stars.get_xydata()] == [(5, 98), (50, 99.1)]
    assert (stars.get_marker(), stars.get_label()) == ("*", "claimed")
    assert [tuple(point) for point in run.get_xydata()] == [(1, 80), (2, 90)]
    assert (ax.get_xscale(), ax.get_ylim()) == ("linear", (70, 100))
    assert "%" in ax.get_ylabel()


def test_a_kind_that_no_channel_has_is_named_all_the_same(ax):
    plots.channels(ax, {"a": [0]}, kinds=("no", "one", "all"))
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == ["no", "one", "all"]


def test_a_tensor_that_is_shared_is_drawn_once_with_an_arrow_from_each_place(ax):
    tied, own = torch.ones(2, 3), torch.ones(2, 3)  # equal numbers are not sharing
    plots.sharing(ax, {"a": tied, "b": own, "c": tied})
    boxes = [text for text in ax.texts if text.get_text()]
    places, tensors = boxes[:3], boxes[3:]
    assert [box.get_text() for box in places] == ["a", "b", "c"]
    assert [box.get_text() for box in tensors] == ["2 x 3", "2 x 3"]
    edges = [box.get_bbox_patch().get_edgecolor() for box in tensors]
    assert same_color(edges[0], plots.COLORS[5])
    assert same_color(edges[1], plots.COLORS[0])
    arrows = [text for text in ax.texts if isinstance(text, Annotation)]
    ends = [(arrow.get_position()[1], arrow.xy[1]) for arrow in arrows]
    up, down = (box.get_position()[1] for box in tensors)
    first, second, third = (box.get_position()[1] for box in places)
    assert ends == [(first, up), (third, up), (second, down)]
    assert first > second > third
    assert up > down


def test_a_spread_has_a_dot_for_each_number_and_a_bar_at_the_mean(ax):
    plots.spread(ax, {"few": [1.0, 4.0], "many": [2.0, 2.0, 5.0]}, xlabel="percent")
    dots, bars = ax.lines[::2], ax.lines[1::2]
    np.testing.assert_array_equal(dots[0].get_xydata(), [[1, 0], [4, 0]])
    np.testing.assert_array_equal(dots[1].get_xydata(), [[2, 1], [2, 1], [5, 1]])
    assert [list(bar.get_xdata()) for bar in bars] == [[2.5, 2.5], [3.0, 3.0]]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["few", "many"]
    assert ax.get_ylim() == (1.5, -0.5)  # the first group on top
    assert ax.get_xlabel() == "percent"


def test_losses_of_all_runs_have_one_scale(ax):
    plots.losses(ax, {"training": [2.0, 9.0], "test": [2.5, 1.0]}, title="rate 3")
    assert ax.get_ylim() == (0, 3.2)
    assert [line.get_ydata().tolist() for line in ax.lines] == [[2.0, 9.0], [2.5, 1.0]]
    assert ax.get_title() == "rate 3"


def test_entries_that_do_not_count_are_hatched_and_have_no_part_in_the_colors(ax):
    values = torch.tensor([[1.0, 2.0], [4.0, float("nan")]])
    counts = torch.tensor([[True, True], [True, False]])
    plots.entries(ax, ["ab", "cd"], values, counts=counts, title="t")
    assert [text.get_text() for text in ax.texts] == list("abcd")
    (image,) = ax.images
    np.testing.assert_array_equal(image.get_array(), [[1, 2], [4, 0]])
    (hatched,) = ax.patches
    assert hatched.get_hatch()
    assert hatched.get_xy().min(axis=0).tolist() == [0.5, 0.5]
    assert [t.get_color() for t in ax.texts] == ["black"] * 3 + ["0.4"]
    assert ax.get_title() == "t"


def test_shares_stand_on_a_whole_axis_with_their_numbers(ax):
    plots.shares(ax, {"a": 0.25, "b": 0.7}, xlabel="found")
    assert ax.get_xlim() == (0, 1)
    assert [bar.get_width() for bar in ax.patches] == [0.25, 0.7]
    assert [text.get_text() for text in ax.texts] == ["0.2", "0.7"]


def test_a_fork_has_an_arrow_from_part_to_part_and_to_each_end(ax):
    plots.fork(ax, ["in", "middle"], ["one", "two", "three"])
    names = [text.get_text() for text in ax.texts if text.get_text()]
    assert names == ["in", "middle", "one", "two", "three"]
    arrows = [text for text in ax.texts if isinstance(text, Annotation)]
    assert len(arrows) == 1 + 3


def test_sharing_has_a_title_if_it_is_given_one(ax):
    plots.sharing(ax, {"a": torch.ones(2, 3)}, title="[layer] * 4")
    assert ax.get_title() == "[layer] * 4"
