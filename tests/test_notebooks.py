"""What every stored lesson promises its reader; nbval compares the numbers.

Each rule is a function from a lesson to complaints. It is run on every notebook, and
on a broken cell that it must complain about.
"""

import ast
import json
import re
import sys
from pathlib import Path
from typing import NamedTuple

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_output
from nbformat.v4 import new_markdown_cell as words

FOLDER = Path(__file__).parents[1] / "notebooks"

# How often a notebook may step outside of strict comparison, and why.
EXCEPTIONS = {
    ("00_start_here", "nbval-ignore-output"): (1, "reports on this very machine"),
    ("01_closures", "raises-exception"): (2, "late binding fails, a freed graph fails"),
    ("02_regularization", "raises-exception"): (1, "tied weights of two coefficients"),
    ("03_keras_models", "raises-exception"): (1, "a Lambda is never run"),
    ("04_losses", "raises-exception"): (1, "a slice of the batch is refused"),
    ("06_explicit", "raises-exception"): (1, "a loss without parameters is refused"),
    ("07_rules", "raises-exception"): (1, "an unknown name is refused"),
    ("08_rso", "raises-exception"): (1, "the number of mistakes has no gradient"),
}
ALLOWED = {"setup", "quiz", "nbval-ignore-output", "raises-exception"}
BESIDE = {"setup", "quiz"}  # not among the cells of the lesson's own course
ALLOWED_WITH_NAME = {"exercise", "check", "solution"}


class Lesson(NamedTuple):
    name: str  # 01_closures
    cells: list
    metadata: dict

    @property
    def number(self):
        return int(self.name[:2])

    @property
    def code(self):
        return [cell for cell in self.cells if cell.cell_type == "code"]

    def outputs(self):
        """Yield (cell, output); the output of an error, too."""
        for cell in self.code:
            for output in cell.outputs:
                yield cell, output

    def tags(self):
        return [(tag, c) for c in self.cells for tag in c.metadata.get("tags", ())]


def tags_of(cell):
    return cell.metadata.get("tags", ())


def read(path):
    notebook = nbformat.read(path, as_version=4)
    return Lesson(path.stem, notebook.cells, notebook.metadata)


RULES = {}


def rule(*broken, metadata=None):
    """Register a rule, with cells of a lesson 01 that break it."""

    def register(function):
        broken_lesson = Lesson("01_broken", list(broken), metadata or {})
        RULES.setdefault(function, []).append(broken_lesson)
        return function

    return register


def code(source, *outputs, count=1, tags=(), stderr="", **metadata):
    """A code cell with outputs; an output is a bundle's data."""
    cell = new_code_cell(source, execution_count=count)
    cell.outputs = [new_output("display_data", data=data) for data in outputs]
    if stderr:
        cell.outputs.append(new_output("stream", name="stderr", text=stderr))
    cell.metadata = {**metadata, **({"tags": list(tags)} if tags else {})}
    return cell


def bundles(lesson):
    return ((cell, o.data) for cell, o in lesson.outputs() if "data" in o)


def stored_text(lesson):
    """Yield all text of the outputs, without the bytes of pictures."""
    for cell, output in lesson.outputs():
        text = json.dumps(output, ensure_ascii=False)
        yield cell, re.sub(r"base64,[A-Za-z0-9+/=]+", "", text)


# Run, in order


@rule(code("1", count=1), code("2", count=3))
def cells_were_run_in_order_in_a_fresh_kernel(lesson):
    counts = [cell.execution_count for cell in lesson.code]
    if counts != list(range(1, len(counts) + 1)):
        yield f"execution counts {counts}"


@rule(code("1 + 1"))
def what_a_cell_ends_in_is_stored(lesson):
    for cell in lesson.code:
        if isinstance(ast.parse(cell.source).body[-1], ast.Expr) and not cell.outputs:
            yield f"no output: {cell.source}"


@rule(code("%matplotlib inline"))
@rule(code("!ls"))
@rule(code("files = !ls"))
@rule(code("torch?"))
def cells_are_plain_python(lesson):
    for cell in lesson.code:
        try:
            ast.parse(cell.source)
        except SyntaxError:
            yield f"a magic or a shell escape: {cell.source}"


@rule(code("plt.plot([1]);"))
def no_semicolon_hides_an_output(lesson):
    for cell in lesson.code:
        if re.search(r";\s*$", cell.source, re.MULTILINE):
            yield cell.source


# Easy to read


@rule(code("\n".join(["x = 1"] * 16)))
@rule(code("\n".join(["x = 1"] * 11)))
def cells_are_short(lesson):
    """Ten lines of code, fifteen with blank ones or imports."""
    for cell in lesson.code:
        is_setup = "setup" in cell.metadata.get("tags", ())
        lines = cell.source.splitlines()
        written = sum(bool(line.strip()) for line in lines)
        if len(lines) > 15 or (written > 10 and not is_setup):
            yield f"{written} lines: {cell.source}"


@rule(code("x = '" + "a" * 75 + "'"))
def lines_fit_on_a_page(lesson):
    for cell in lesson.code:
        for line in cell.source.splitlines():
            if len(line) > 80:
                yield f"{len(line)} columns: {line}"


@rule(code("1"), code("2"), code("3"))
def words_stand_between_the_cells(lesson):
    kinds = "".join(cell.cell_type[0] for cell in lesson.cells)
    if "ccc" in kinds:
        yield f"three code cells in a row, from cell {kinds.index('ccc')}"


@rule(code("1"))
@rule(*[words("a")] * 20, *[code("1")] * 41)
@rule(*[words("a")] * 20, *[code("1", tags=["quiz"])] * 2)
def a_lesson_has_a_bearable_length(lesson):
    if len(lesson.code) > 40:
        yield f"{len(lesson.code)} code cells"
    beside = {id(c) for tag, c in lesson.tags() if ":" in tag or tag in BESIDE}
    count = sum(id(cell) not in beside for cell in lesson.cells)
    if count < (12 if lesson.number == 0 else 30):
        yield f"{count} cells beside the exercises"


@rule(words("word " * 121))
@rule(*[words("word " * 101)] * 26)
def a_lesson_has_few_words(lesson):
    """120 in a cell, 2,600 in all; those of solutions and tables count too."""
    counts = [len(c.source.split()) for c in lesson.cells if c.cell_type == "markdown"]
    if sum(counts) > 2600:
        yield f"{sum(counts)} words"
    for cell in lesson.cells:
        if cell.cell_type == "markdown" and len(cell.source.split()) > 120:
            yield f"{len(cell.source.split())} words: {cell.source[:60]}"


@rule(*[words("*Guess first.* Which?")] * 9)
def there_are_few_guesses(lesson):
    count = sum(len(re.findall("guess first", c.source, re.I)) for c in lesson.cells)
    if count > 8:
        yield f"{count} guesses"


@rule(code("x = 1"))
@rule(code("def f(): ...", tags=["check:f"]))
def every_cell_shows_something(lesson):
    """Those that import, and an answer that is still to write, excepted."""
    silent = {
        id(c) for tag, c in lesson.tags() if tag.startswith(("setup", "exercise"))
    }
    for cell in lesson.code:
        if not cell.outputs and id(cell) not in silent:
            yield f"nothing to see: {cell.source}"


@rule(code("ax.plot([1])"))
@rule(code("axes[0, 1].set_title('a')"))
@rule(code("plt.plot([1])"))
def plotting_code_is_in_the_library(lesson):
    """A cell may make the axes, for a function of course_lib.plots to draw on."""
    drawn = r"\b(?:ax|axes|axis|fig|plt)\w*(?:\[[^\]]*\])?\.(?!subplots\()\w+\("
    for cell in lesson.code:
        for found in re.findall(drawn, cell.source):
            yield f"{found}...) in {cell.source}"


HEADER = """# Bind early

After this lesson you can

**Time** about 20 minutes.

**A full run** takes about {} seconds and {} GB of memory on two CPU cores (measured).
"""


@rule(words("No title"))
@rule(words(HEADER.format("a few", "?")))
@rule(words(HEADER.format(50, 0.5)))
@rule(words(HEADER.format(5, 1.3)))
def the_header_says_what_to_expect(lesson):
    header = lesson.cells[0].source
    for wanted in (r"^# \S", r"^After this lesson", r"^\*\*Time.*\d+ minutes"):
        if not re.search(wanted, header, re.MULTILINE):
            yield f"the header has no {wanted}"
    measured = re.search(
        r"^\*\*A full run\*\* .*?(\d+) sec.* ([\d.]+) GB", header, re.M
    )
    if not measured:
        yield "the header has no measured run"
    elif float(measured[1]) > 45 or float(measured[2]) > 1.2:
        yield f"too slow or too large: {measured[0]}"


# Tags and metadata


@rule(code("1", tags=["hide"]))
@rule(code("1", tags=["nbval-skip"]))
@rule(code("1", tags=["exercise"]))
def tags_are_those_we_know(lesson):
    for tag, cell in lesson.tags():
        kind, _, name = tag.partition(":")
        named = kind in ALLOWED_WITH_NAME and name.isidentifier()
        if tag not in ALLOWED and not named:
            yield f"{tag!r} at {cell.source}"


@rule(code("1", tags=["raises-exception"]))
def exceptions_to_strictness_are_counted_with_a_reason(lesson):
    tags = [tag for tag, _ in lesson.tags()]
    for tag in ("nbval-ignore-output", "raises-exception"):
        granted, _ = EXCEPTIONS.get((lesson.name, tag), (0, ""))
        if tags.count(tag) != granted:
            yield f"{tags.count(tag)} x {tag}; EXCEPTIONS grants {granted}"


@rule(code("1", tags=["raises-exception"]))
def an_error_on_purpose_still_happens(lesson):
    for tag, cell in lesson.tags():
        errors = [o for o in cell.get("outputs", ()) if o.output_type == "error"]
        if tag == "raises-exception" and not errors:
            yield f"no error: {cell.source}"


@rule(metadata={"widgets": {}})
@rule(code("1", collapsed=True))
def metadata_is_minimal(lesson):
    if extra := set(lesson.metadata) - {"kernelspec", "language_info"}:
        yield f"the notebook's metadata has {extra}"
    for cell in lesson.cells:
        if set(cell.metadata) - {"tags"}:
            yield f"metadata {dict(cell.metadata)} at {cell.source}"


@rule(*[words("a")] * 2)
def cell_ids_are_unique(lesson):
    ids = [cell.id for cell in lesson.cells]
    yield from {cell_id for cell_id in ids if ids.count(cell_id) > 1}


# Pictures and widgets


@rule(code("fig", {"image/png": "iVBORw"}))
@rule(code("fig", {"text/html": '<img src="a.png">'}))
@rule(code("fig", {"text/html": '<img alt=" " src="a.png">'}))
def every_picture_has_a_description(lesson):
    for cell, data in bundles(lesson):
        if any(kind.startswith("image/") for kind in data):
            yield f"a picture that did not go through show: {cell.source}"
        for image in re.findall("<img[^>]*>", data.get("text/html", "")):
            if not re.search(r'alt="\s*[^"\s]', image):
                yield f"no alt text: {cell.source}"


@rule(code("fig, ax = plt.subplots()\nax.plot([1])"))
def every_figure_is_shown(lesson):
    """A figure is shown in its own cell, or returned to explore."""
    for cell in lesson.code:
        made = len(re.findall(r"plt\.(?:subplots|figure)\(", cell.source))
        used = len(re.findall(r"\bshow\(|\breturn \w+, ", cell.source))
        if made > used:
            yield cell.source


@rule(code("explore(draw, steps=(1, 9, 1))"))
def a_lesson_has_two_widgets_with_a_picture_each(lesson):
    calls = sum(len(re.findall(r"\bexplore\(", c.source)) for c in lesson.code)
    views = [
        cell
        for cell, data in bundles(lesson)
        if "application/vnd.jupyter.widget-view+json" in data
        and not data["text/plain"].startswith(("Buttons: ", "Quiz: "))
    ]
    if lesson.number and min(calls, len(views)) < 2:
        yield f"{calls} calls of explore, {len(views)} stored views"
    for cell in views:
        if not any(
            "<img" in o.get("data", {}).get("text/html", "") for o in cell.outputs
        ):
            yield f"a widget without a stored picture: {cell.source}"


@rule(code("w", {"text/plain": "This setting can't be drawn: ValueError: no"}))
def every_widget_could_draw(lesson):
    for cell, text in stored_text(lesson):
        if "can't be drawn" in text:
            yield cell.source


# The quiz


def a_quiz(*, name="broken", stored="<details>", **tags):
    """A cell of a quiz, right but for what is named."""
    source = f'from course_lib.lessons.quiz import quiz\n\nquiz("{name}")'
    return code(source, {"text/html": stored}, **{"tags": ["quiz"], **tags})


@rule(words("## What we saw"))
@rule(a_quiz(tags=[]), words("## What we saw"))
@rule(a_quiz(), a_quiz(), words("## What we saw"))
@rule(a_quiz(name="another"), words("## What we saw"))
@rule(words("## What we saw"), a_quiz())
@rule(a_quiz(stored="<p>Quiz</p>"), words("## What we saw"))
def a_quiz_stands_before_the_summary(lesson):
    places = [i for i, c in enumerate(lesson.cells) if "quiz" in tags_of(c)]
    if len(places) != 1:
        yield f"{len(places)} cells with the tag quiz"
        return
    cell, after = lesson.cells[places[0]], lesson.cells[places[0] + 1 :]
    if not cell.source.endswith(f'\nquiz("{lesson.name[3:]}")'):
        yield f"another quiz: {cell.source}"
    if not after or not after[0].source.startswith("## What we saw"):
        yield "no summary behind the quiz"
    folded = [o.data.get("text/html", "") for o in cell.outputs if "data" in o]
    if not any("<details>" in text for text in folded):
        yield "no questions are stored for readers without a kernel"


# Nothing of one machine, one moment


@rule(code("f", {"text/plain": str(FOLDER.parent / "course_lib")}))
@rule(code("f", {"text/plain": "~/.venv/lib/python3.11/site-packages/torch"}))
@rule(code("f", {"text/plain": "/tmp/ipykernel_12/3.py"}))
@rule(code("f", {"text/plain": "<function f at 0x7f9f2bbd2a20>"}))
def nothing_of_this_machine_is_stored(lesson):
    own = [str(FOLDER.parent), str(Path.home()) + "/", sys.prefix + "/"]
    volatile = [*map(re.escape, own), "site-packages", "ipykernel_", "0x[0-9a-f]{8}"]
    for cell, text in stored_text(lesson):
        if found := re.search("|".join(volatile), text):
            yield f"{found[0]!r} in the output of {cell.source}"


@rule(code("warn()", stderr="UserWarning: no"))
def nothing_was_written_to_stderr(lesson):
    for cell, output in lesson.outputs():
        if output.get("name") == "stderr" or "Warning" in output.get("text", ""):
            yield f"{output.text} at {cell.source}"


def test_there_are_notebooks():
    assert sorted(FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize("check", RULES, ids=lambda check: check.__name__)
@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda p: p.stem)
def test_every_lesson_keeps_the_rules(path, check):
    assert list(check(read(path))) == []


@pytest.mark.parametrize("check", RULES, ids=lambda check: check.__name__)
def test_every_rule_complains_about_what_breaks_it(check):
    for broken in RULES[check]:
        assert list(check(broken)), broken


def test_a_stored_notebook_is_valid_as_nbformat_has_it():
    for path in sorted(FOLDER.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        assert (notebook.nbformat, notebook.nbformat_minor) >= (4, 5)
