"""The pieces of the site, without a build: pages, stand-ins of widgets, map, links.

test_site_states draws the pictures of widgets, and test_site_browser looks at what
Sphinx makes of it all.
"""

import doctest
import importlib.util
import json
import re
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from pins import ROOT

from course_site import (
    __main__,
    api,
    docstrings,
    explorers,
    links,
    pages,
    repository,
    results,
)
from course_site.course_map import assign_lanes, course_map
from course_site.docstrings import to_rst
from course_site.explorers import Dial
from course_site.lessons import Lesson, all_lessons, describe

LESSONS = all_lessons()
HERE = repository.Repository("https://github.com/somebody/odd")


def lesson(number, after=()):
    return Lesson(f"{number}_x", f"Title {number}", "Why?", 60, after)


@pytest.mark.parametrize("module", [docstrings, explorers, results])
def test_examples_in_docstrings_are_right(module):
    done = doctest.testmod(module)
    assert done.attempted
    assert not done.failed


# What the pages say of a lesson


def test_each_lesson_has_a_question_and_comes_after_earlier_ones():
    assert len(LESSONS) >= 10
    for one in LESSONS:
        assert one.question.endswith("?"), one.name
        assert one.minutes >= 10
        assert all(number < one.number for number in one.after)
        assert one.after or one.number == "00"


def test_prerequisites_are_those_that_the_header_names():
    after = {one.number: one.after for one in LESSONS}
    assert after["03"] == ("02",)
    assert after["09"] == ("08",)
    assert after["01"] == ("00",)


def test_a_header_without_minutes_is_refused():
    for cells in [], [new_markdown_cell("# Title")]:
        with pytest.raises(
            ValueError, match="01_x: the first cell has no title or no time"
        ):
            describe("01_x", new_notebook(cells=cells), {})


# Folding


def folded(*cells):
    notebook = new_notebook(cells=list(cells))
    pages.fold_answers(notebook)
    return ["hide-output" in c.metadata.get("tags", ()) for c in notebook.cells]


def shown(source="1"):
    return new_code_cell(source, outputs=[new_output("stream", text="1")])


def test_all_outputs_between_a_guess_and_the_next_words_are_folded():
    guess, words = new_markdown_cell("*Guess first.* What?"), new_markdown_cell("So.")
    assert folded(guess, shown(), shown(), words, shown()) == [0, 1, 1, 0, 0]


def test_a_guess_waits_for_the_first_cell_that_shows_something():
    guess, words = new_markdown_cell("Well. *Guess first*: a?"), new_markdown_cell("b")
    silent = new_code_cell("x = 1")
    more = new_markdown_cell("c")
    assert folded(guess, silent, words, shown(), more, shown()) == [0, 0, 0, 1, 0, 0]


@pytest.mark.parametrize("one", LESSONS, ids=lambda one: one.name)
def test_every_guess_of_a_lesson_folds_an_answer(one):
    path = ROOT / "notebooks" / f"{one.name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    guesses = [
        i
        for i, cell in enumerate(notebook.cells)
        if cell.cell_type == "markdown" and re.search("guess first", cell.source, re.I)
    ]
    pages.fold_answers(notebook)
    for start, end in zip(guesses, [*guesses[1:], len(notebook.cells)], strict=True):
        between = notebook.cells[start:end]
        assert any("hide-output" in c.metadata.get("tags", ()) for c in between), start


def test_the_file_to_download_has_no_answers():
    notebook = new_notebook(cells=[shown()])
    assert pages.cleared(notebook).cells[0].outputs == []
    assert notebook.cells[0].outputs


# Stand-ins of widgets


@pytest.mark.parametrize(
    ("count", "start", "wanted", "chosen"),
    [
        (5, 2, 9, (0, 1, 2, 3, 4)),
        (100, 7, 3, (0, 7, 99)),
        (100, 0, 3, (0, 50, 99)),
        (100, 99, 3, (0, 50, 99)),
        (4, 3, 1, (3,)),
        (2, 1, 3, (0, 1)),
    ],
)
def test_spread_has_both_ends_and_the_start(count, start, wanted, chosen):
    assert explorers.spread(count, start, wanted) == chosen


def numbers(count, start=0):
    return Dial("n", tuple(map(str, range(count))), start)


@pytest.mark.parametrize(
    ("dials", "settings"),
    [
        ([numbers(20, 5)], 9),
        ([numbers(3)], 3),
        ([numbers(10), numbers(16)], 9),
        ([Dial("cure", tuple("abcd"), 0, is_words=True), numbers(5)], 8),
        ([numbers(5)] * 3, 7),
        ([numbers(5, 2)] * 4, 9),
    ],
)
def test_a_plan_has_three_to_nine_settings_and_the_start_among_them(dials, settings):
    chosen = explorers.plan(dials)
    assert len(chosen.settings) == len(set(chosen.settings)) == settings
    assert tuple(dial.start for dial in dials) in chosen.settings


def picture(number):
    return {"src": f"{number}.png", "alt": f"<{number}>", "width": 9, "height": 9}


def test_a_stand_in_has_labels_and_begins_where_the_lesson_does():
    dials = [Dial("rate", ("0.1", "1", "10"), 1), Dial("name", ("a", "b"), 0, True)]
    chosen = explorers.plan(dials)
    made = explorers.figure(0, dials, chosen, [picture(i) for i in range(6)])
    ids = re.findall(r'<input type="range" id="([^"]+)"', made)
    assert re.findall(r'<label for="([^"]+)"', made) == ids
    assert re.findall(r'aria-valuetext="([^"]+)"', made) == ["1", "a"]
    assert 'class="explorer-controls"' in made
    assert '<img src="2.png" alt="&lt;2&gt;"' in made
    data = re.search(r'<script type="application/json">(.*)</script>', made)[1]
    assert [p["src"] for p in json.loads(data)] == [f"{i}.png" for i in range(6)]


def test_many_controls_share_one_slider():
    dials = [numbers(3, 1), Dial("b", ("x", "y"), 0), Dial("c", ("off", "on"), 0)]
    chosen = explorers.plan(dials)
    pictures = [picture(i) for i in range(len(chosen.settings))]
    made = explorers.figure(0, dials, chosen, pictures)
    assert made.count("<input") == 1
    assert "n 1, b x, c off" in made
    assert 'class="explorer-controls explorer-sentences"' in made
    assert '<img src="0.png"' in made


def test_a_page_has_stand_ins_still_pictures_and_files(tmp_path):
    path = ROOT / "notebooks" / "01_closures.ipynb"
    notebook = nbformat.read(path, as_version=4)
    made = pages.page(notebook, LESSONS[1], {}, HERE, tmp_path)
    text = nbformat.writes(made)
    assert "This picture stands still here" in text
    assert "data:image/png" not in text
    assert "widget-view+json" not in text
    assert "Launch on Binder" in made.cells[0].source


def test_buttons_that_need_a_kernel_are_words(tmp_path):
    path = ROOT / "notebooks" / "00_start_here.ipynb"
    notebook = nbformat.read(path, as_version=4)
    text = nbformat.writes(pages.page(notebook, LESSONS[0], {}, HERE, tmp_path))
    assert "widget-view+json" not in text
    assert "They work once this cell runs." in text


@pytest.mark.parametrize("one", LESSONS, ids=lambda one: one.name)
def test_a_quiz_is_folded_and_without_its_script(one, tmp_path):
    path = ROOT / "notebooks" / f"{one.name}.ipynb"
    made = pages.page(nbformat.read(path, as_version=4), one, {}, HERE, tmp_path)
    (cell,) = (c for c in made.cells if "quiz" in c.metadata.get("tags", ()))
    (output,) = cell.outputs
    assert "hide-input" in cell.metadata["tags"]
    assert output.data["text/html"].count("<details>") >= 9
    assert list(output.data) == ["text/html", "text/plain"]
    assert "<script" not in output.data["text/html"]


def test_a_page_has_one_title(tmp_path):
    header, code = new_markdown_cell("# A\n\nText."), new_code_cell("# a comment")
    notebook = new_notebook(cells=[header, new_markdown_cell("# B\n\n## C"), code])
    made = pages.page(notebook, lesson("01"), {}, None, tmp_path)
    words = "\n".join(c.source for c in made.cells if c.cell_type == "markdown")
    assert re.findall("^#+ .+$", words, re.M) == ["# A", "## B", "## C"]
    assert made.cells[-1].source == "# a comment"


# The map


def test_arrows_that_share_a_lane_do_not_overlap():
    few = [lesson("00"), lesson("01", ("00",)), lesson("02", ("01",))]
    few += [lesson("03", ("00",)), lesson("04", ("03",))]
    lanes = assign_lanes(few)
    assert len({lanes["00"], lanes["01"]}) == 2
    assert lanes["03"] != lanes["00"]


def test_the_map_has_a_row_for_each_lesson_and_an_arrow_for_each_prerequisite():
    made = course_map(LESSONS)
    assert made.count("<li>") == len(LESSONS)
    assert made.count("<path") == sum(len(one.after) for one in LESSONS)
    assert all(one.question.split("&")[0][:20] in made for one in LESSONS)


# The build itself, its links and the repository


def test_without_its_packages_the_build_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["course_site", "--still"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        __main__.main()
    assert "sphinx_book_theme; make site installs them" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("link", "wanted"),
    [
        ("[a](../docs/design.md)", "[a](../docs/design.md)"),
        ("[a](../README.md)", "[a](../index.md)"),
        ("[a](../course_lib/vat.py)", "[a](../api/vat.md)"),
        ("[a](../LICENSE)", "[a](https://github.com/somebody/odd/blob/main/LICENSE)"),
        ("[a](https://example.org/x)", "[a](https://example.org/x)"),
        ("f[0](*inputs)", "f[0](*inputs)"),
        ("![a](../docs/images/x.png)", "![a](../docs/images/x.png)"),
    ],
)
def test_links_lead_somewhere_on_the_site(link, wanted):
    known = {"docs/design.md"}
    assert links.relink(link, "notebooks/01_x.ipynb", known, HERE) == wanted


def test_without_an_address_a_link_to_a_file_is_plain_words():
    assert links.relink("[a](LICENSE)", "CHANGELOG.md", set(), None) == "a"


def test_the_address_is_one_setting_and_a_fork_has_its_own(tmp_path, monkeypatch):
    project = tmp_path / "pyproject.toml"
    project.write_text("[project]\n")
    monkeypatch.delenv("GITHUB_REPOSITORY", raising=False)
    assert repository.find(tmp_path) is None
    monkeypatch.setenv("GITHUB_REPOSITORY", "fork/odd")
    assert repository.find(tmp_path).address == "https://github.com/fork/odd"
    project.write_text('[project.urls]\nRepository = "https://github.com/a/b"\n')
    assert repository.find(tmp_path).binder("01_x") == (
        "https://mybinder.org/v2/gh/a/b/main?urlpath=lab%2Ftree%2Fwork%2F01_x.ipynb"
    )
    assert repository.find(tmp_path).colab("01_x") == (
        "https://colab.research.google.com/github/a/b/blob/main/notebooks/01_x.ipynb"
    )


@pytest.mark.parametrize("setting", ['"https://github.com/a/b/"', "''", '"a/b" # x'])
def test_a_setting_that_is_no_address_is_refused(tmp_path, setting):
    (tmp_path / "pyproject.toml").write_text(
        f"[project.urls]\nRepository = {setting}\n"
    )
    with pytest.raises(ValueError, match=re.escape(f"Repository is {setting}; wanted")):
        repository.find(tmp_path)


# The other pages


def test_plain_headings_keep_the_anchors_that_lessons_link_to():
    for name in ("claims.md", "benchmarks.md"):
        text = (ROOT / "docs" / "results" / name).read_text(encoding="utf-8")
        made = results.plain(text, name, LESSONS)
        before = re.findall(r"^#{2,3} (\S+)$", text, re.M)
        after = {results.slug(h) for h in re.findall(r"^#{2,3} (.+)$", made, re.M)}
        assert set(before) <= after, name
        assert not re.search(r"^#{2,3} [a-z_]+(-[a-z0-9]+)*$", made, re.M), name


def test_every_formula_becomes_mathml():
    mathml = pytest.importorskip("course_site.mathml", reason="needs the docs extra")
    text = (ROOT / "docs" / "formulas.md").read_text(encoding="utf-8")
    formulas = re.findall(r"\$\$\n(.*?)\$\$", text, re.S)
    formulas += re.findall(r"(?<!\$)\$([^$]+)\$(?!\$)", text)
    assert len(formulas) > 50
    for latex in formulas:
        made = mathml.formula(latex, block=False)
        assert made.startswith('<math alttext="'), latex
        assert "\\" not in made.partition(">")[2], latex  # no command is left over


def test_every_name_beside_a_formula_exists():
    text = (ROOT / "docs" / "formulas.md").read_text(encoding="utf-8")
    names = re.findall(r"\[`([\w.]+)`\]", text)
    assert len(names) >= 8
    for name in names:
        module, _, attribute = name.partition(".")
        found = importlib.import_module(f"course_lib.{module}")
        assert not attribute or hasattr(found, attribute), name
    rules = importlib.import_module("course_lib.rules")
    for rule in re.findall(r"^(\w+)\n: ", text, re.M):
        assert hasattr(rules, rule), rule


def test_a_section_without_claims_says_so():
    made = results.plain("# Claims\n\n## 01 x\n\n## 02 x\n\nText.\n", "claims.md", [])
    assert made.count("Nothing here depends on a seed") == 1


def test_every_module_is_in_the_reference_or_internal():
    folder = ROOT / "course_lib"
    names = {p.stem for p in folder.glob("*.py")} | {
        p.parent.name for p in folder.glob("*/__init__.py")
    }
    known = api.MODULES.keys() | api.INTERNAL
    assert {name for name in names if not name.startswith("__")} == known


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("dx = eta * |g|, in place: update_", r"dx = eta \* \|g\|, in place: update\_"),
        ("Use `Adam`s and `x * 2`.", r"Use :py:obj:`Adam`\s and ``x * 2``."),
        (">>> a * b\n2", ">>> a * b\n2"),
        (">>> t\na  b\n    2", ">>> t\na  b\n    2"),  # a table, no formula
        ("It sets\n    k = a * b\nBoth", "It sets\n\n::\n\n    k = a * b\n\nBoth"),
        ("Args:\n    a: one\n        or two", "Args:\n    a: one\n        or two"),
    ],
)
def test_docstrings_are_plain_text_with_code(text, wanted):
    assert "\n".join(to_rst(text.split("\n"))) == wanted
