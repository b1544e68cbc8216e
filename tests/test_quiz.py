"""The quizzes: what is asked is true, and each choice gets the reply that it should."""

import contextlib
import copy
import io
import re

import nbformat
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pins import ROOT
from torch import nn

from course_lib import rules
from course_lib.lessons import exercises, progress_file, quiz_file, working_copy
from course_lib.lessons import quiz as quizzes
from course_lib.lessons.quiz import Quiz, quiz
from course_lib.lessons.quiz_file import Choice, Question

LESSONS = [name[3:] for name in working_copy.names()]
ASKED = {lesson: quiz_file.read(lesson) for lesson in LESSONS}
EVERY = [(lesson, asked) for lesson, each in ASKED.items() for asked in each]
CHOICES = [choice for _, asked in EVERY for choice in asked.choices]
EACH_LESSON = pytest.mark.parametrize("lesson", LESSONS)
EACH = pytest.mark.parametrize(
    ("lesson", "asked"),
    EVERY,
    ids=[f"{one}: {asked.text[:30]}" for one, asked in EVERY],
)


@pytest.fixture(autouse=True)
def path(tmp_path, monkeypatch):
    """A progress file of our own, not there yet."""
    path = tmp_path / "progress.json"
    monkeypatch.setenv("COURSE_PROGRESS", str(path))
    return path


def right(asked):
    """Return the place of the right choice, from 1."""
    return [choice.right for choice in asked.choices].index(True) + 1


# What is asked


def test_every_lesson_has_a_quiz_and_no_other_has_one():
    assert sorted(LESSONS) == quiz_file.names()


@EACH_LESSON
def test_a_quiz_is_short(lesson):
    assert 3 <= len(ASKED[lesson]) <= 5


@EACH
def test_a_question_is_one_with_several_choices(lesson, asked):
    assert asked.text.rstrip("`").endswith("?")
    assert len(asked.choices) >= 3
    for choice in asked.choices:
        assert choice.reply.endswith("."), choice
        words = re.sub("`.+?`", "", choice.text + choice.reply)
        assert not re.search("[`*]", words), choice  # only code is set
        assert not choice.text.endswith("."), choice


def test_each_reply_belongs_to_one_choice():
    replies = [choice.reply for choice in CHOICES]
    assert len(set(replies)) == len(replies)


@EACH_LESSON
def test_replies_lead_to_sections_that_are_there(lesson):
    (path,) = (ROOT / "notebooks").glob(f"[0-9][0-9]_{lesson}.ipynb")
    cells = nbformat.read(path, as_version=4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    sections = set(re.findall(r"^##+ (.+)$", text, re.MULTILINE))
    wrong = [c for asked in ASKED[lesson] for c in asked.choices if not c.right]
    named = [name for c in wrong for name in re.findall(r"See “(.+?)”\.$", c.reply)]
    assert set(named) <= sections
    assert len(named) > len(wrong) / 2
    every = "".join(c.reply for asked in ASKED[lesson] for c in asked.choices)
    assert len(named) == len(re.findall("[“”]", every)) / 2  # all end like that


def test_neither_place_nor_length_gives_the_right_choice_away():
    places = [right(asked) for _, asked in EVERY]
    for place in 1, 2, 3:
        assert 0.2 < places.count(place) / len(places) < 0.45
    for each in ASKED.values():
        assert len({right(asked) for asked in each}) >= 3
    longest = 0
    for _, asked in EVERY:
        lengths = [len(choice.text) for choice in asked.choices]
        own = lengths.pop(right(asked) - 1)
        longest += own > max(lengths)
    assert longest / len(EVERY) < 0.45


# What is true

NAMES = {"torch": torch, "nn": nn}
NAMES |= {name: getattr(rules, name) for name in ("Chain", "ClipGrad", "WeightDecay")}


@EACH
def test_code_prints_what_the_right_choice_says(lesson, asked):
    if not asked.code:
        assert " print" not in asked.text
        return
    assert "does this print" in asked.text
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(asked.code, dict(NAMES))
    assert f"`{printed.getvalue().strip()}`" == asked.choices[right(asked) - 1].text


def made(line):
    """Return what the readers of a loop with this line return."""
    source = "def make():\n    readers = []\n    for i in range(3):\n"
    source += f"        {line}\n    return [read() for read in readers]"
    exec(source, names := {"copy": copy})
    return names["make"]()


def same_as_a_penalty(kind, decay):
    """Whether three steps are those of Adam with the penalty 0.01 · squares."""
    ends = []
    for make, l2 in (torch.optim.Adam, 0.01), (kind, 0.0):
        w = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
        options = {} if l2 else {"weight_decay": decay}
        optimizer = make([w], lr=0.1, **options)
        for target in 3.0, -1.0, 2.0:
            optimizer.zero_grad()
            loss = (w - target).square().sum() * 10 + l2 * w.square().sum()
            loss.backward()
            optimizer.step()
        ends.append(w.detach())
    return torch.allclose(*ends)


def clipped(kind):
    x = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([0.3, 0.4])}
    from course_lib.explicit import setup, update

    zeros = {name: torch.zeros(2) for name in x}
    rule = rules.Chain(getattr(rules, kind)(1.0), rules.Descent(1.0))
    _, moved = update(setup(rule, zeros), zeros, x)
    return [[round(-n, 4) for n in moved[name].tolist()] for name in x]


def still_moves_under_adam():
    w = nn.Parameter(torch.tensor([1.0]))
    adam = torch.optim.Adam([w], lr=0.1)
    for gradient in 1.0, 1.0, 0.0:
        before, w.grad = w.item(), torch.tensor([gradient])
        adam.step()
    return w.item() < before


def sizes_after(layers, deviation):
    torch.manual_seed(0)
    x = torch.randn(100, 64)
    for _ in range(layers):
        layer = nn.Linear(64, 64, bias=False)
        nn.init.normal_(layer.weight, std=deviation(layer.weight))
        x = layer(x).relu()
    return x.square().mean().sqrt().item()


TRUE = {
    ("closures", "Inside a function, a loop"): lambda: (
        made("readers.append(lambda i=i: i)") == [0, 1, 2]
        and made("j = i; readers.append(lambda: j)") == [2, 2, 2]
        and made("readers.append(copy.copy(lambda: i))") == [2, 2, 2]
    ),
    ("regularization", "A network without biases"): lambda: (
        same_as_a_penalty(torch.optim.Adam, 0.02)
        and not same_as_a_penalty(torch.optim.Adam, 0.01)
        and not same_as_a_penalty(torch.optim.AdamW, 0.02)
    ),
    ("losses", "`batch` has the shape"): lambda: (
        torch.zeros(8, 1, 6, 6)[:3].shape == (3, 1, 6, 6)
        and torch.zeros(8, 1, 6, 6)[:, :, :3].shape == (8, 1, 3, 6)
        and torch.zeros(8, 1, 6, 6)[..., :3].shape == (8, 1, 6, 3)
    ),
    ("rules", "From step 100 on"): still_moves_under_adam,
    ("rules", "Two arrays have the gradients"): lambda: (
        clipped("ClipNorm") == [[0.6, 0.8], [0.3, 0.4]]
        and clipped("ClipGrad") == [[1.0, 1.0], [0.3, 0.4]]
        and clipped("ClipGlobalNorm")[1] != [0.3, 0.4]
    ),
    ("rso", "A network has twelve layers"): lambda: (
        sizes_after(12, lambda w: (2 / w.numel()) ** 0.5) < 1e-6
        and 0.1 < sizes_after(12, lambda w: (2 / w[0].numel()) ** 0.5) < 10
    ),
}


@pytest.mark.parametrize(("lesson", "start"), TRUE, ids=lambda part: part[:25])
def test_other_right_choices_are_right(lesson, start):
    assert sum(asked.text.startswith(start) for asked in ASKED[lesson]) == 1
    assert TRUE[lesson, start]()


# Answers


@EACH_LESSON
def test_each_choice_gets_its_own_reply_and_the_right_one_is_praised(lesson):
    asked = quiz(lesson)
    for number, question in enumerate(asked.questions, start=1):
        for place, choice in enumerate(question.choices, start=1):
            verdict = asked.answer(number, place)
            assert verdict.solved is choice.right
            assert verdict.message.startswith(choice.reply)
            assert verdict.hints == ()


def test_the_quiz_is_stored_when_all_are_right_and_not_before(path):
    asked = quiz("closures")
    *most, last = enumerate(asked.questions, start=1)
    for number, question in most:
        verdict = asked.answer(number, right(question))
        assert "this quiz is done" not in verdict.message
    asked.answer(1, right(asked.questions[0]) % 4 + 1)  # somebody clicks on
    asked.answer(last[0], right(last[1]))
    assert not path.exists()
    verdict = asked.answer(1, right(asked.questions[0]))
    assert verdict.message.endswith(" All are right: this quiz is done.")
    assert progress_file.solved() == {"closures.quiz"}


def test_wrong_answers_to_all_store_nothing(path):
    asked = quiz("closures")
    for number, question in enumerate(asked.questions, start=1):
        asked.answer(number, right(question) % len(question.choices) + 1)
    assert not path.exists()


def test_progress_that_can_not_be_stored_is_said(path):
    path.write_text("{}")
    asked = quiz("closures")
    for number, question in enumerate(asked.questions, start=1):
        verdict = asked.answer(number, right(question))
    assert verdict.solved
    assert "(Your progress could not be stored: progress: " in verdict.message


def test_no_exercise_has_the_name_of_the_quiz():
    for names in exercises.lessons().values():
        assert progress_file.QUIZ not in names


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((0, 1), r"Quiz\.answer: got question 0; wanted 1 to 4\."),
        ((5, 1), r"got question 5; wanted 1 to 4\."),
        ((1, 0), r"got choice 0 of question 1; wanted 1 to 4\."),
        ((1.0, 1), r"got question 1\.0; wanted 1 to 4\."),
        ((1, 2.0), r"got choice 2\.0 of question 1; wanted 1 to 4\."),
        ((1, "a"), r"got choice 'a' of question 1; wanted 1 to 4\."),
    ],
)
def test_an_answer_to_nothing_is_refused(answer, message):
    with pytest.raises(ValueError, match=message):
        quiz("closures").answer(*answer)


def test_an_unknown_lesson_is_refused():
    with pytest.raises(
        ValueError, match=r"quiz: got 'closure'; wanted one of adversaries, "
    ):
        quiz("closure")


# What is shown

SMALL = Question(
    "Is `a < b`?",
    "We ask <b> this.",
    "print(1 < 2)",
    (
        Choice("`a<b>`", "No & no.", False),
        Choice("Yes", "Right <i>so</i>.", True),
        Choice("No", "Look again.", False),
    ),
)


@pytest.fixture
def shown(monkeypatch):
    """What a quiz of one question displays."""
    bundles = []
    monkeypatch.setattr(quizzes, "display", lambda b, *, raw: bundles.append(b))
    Quiz("small", (SMALL,))._ipython_display_()
    return bundles


def test_at_first_nothing_is_chosen():
    for lesson in LESSONS:
        assert [control.index for control in quiz(lesson).controls] == [None] * len(
            ASKED[lesson]
        )


def test_a_click_shows_the_reply_in_place_of_the_one_before():
    asked = Quiz("small", (SMALL,))
    (control,), (reply,) = asked.controls, asked._replies
    assert reply.value == ""
    control.index = 0  # as the browser does
    assert reply.value == "<p><b>✗ Not yet.</b> No &amp; no.</p>"
    control.index = 1
    assert reply.value.startswith("<p><b>✓ Right.</b> Right &lt;i&gt;so&lt;/i&gt;.")
    assert "No &amp; no." not in reply.value


def test_the_choices_are_words_and_the_whole_of_them():
    (control,) = Quiz("small", (SMALL,)).controls
    assert control.options == ("a<b>", "Yes", "No")  # no browser takes it for a tag


def test_the_stored_view_folds_each_reply_below_its_choice(shown):
    script, view = shown
    assert script["text/plain"] == ""
    assert "radiogroup" in script["text/html"]
    assert "The kernel has restarted." in script["text/html"]
    assert "application/vnd.jupyter.widget-view+json" in view
    assert view["text/plain"] == "Quiz: 1 questions. It asks once this cell runs."
    text = view["text/html"]
    assert "<b>1. Is <code>a &lt; b</code>?</b>" in text
    assert "<p>We ask &lt;b&gt; this.</p><pre>print(1 &lt; 2)</pre>" in text
    folded = re.findall(r"<details><summary>(.*?)</summary>(.*?)</details>", text)
    assert [choice for choice, _ in folded] == ["<code>a&lt;b&gt;</code>", "Yes", "No"]
    assert [reply.startswith("<p><b>✓") for _, reply in folded] == [False, True, False]
    assert "<details open" not in text


# The files

GOOD = """# Quiz

## What is printed?

We ask
this.

```python
print(1)

print(2)
```

- [ ] 1

  Not
  only.

- [x] both, in two
  lines

  So it is.
"""


def test_a_file_is_read():
    (asked,) = quiz_file.parse(GOOD)
    assert asked == Question(
        "What is printed?",
        "We ask this.",
        "print(1)\n\nprint(2)",
        (
            Choice("1", "Not only.", False),
            Choice("both, in two lines", "So it is.", True),
        ),
    )


@pytest.mark.parametrize(
    ("change", "line", "got", "wanted"),
    [
        (("# Quiz", "Quiz"), 1, "'Quiz'", "a question, such as"),
        (("## What", "# What"), 5, "'We ask'", "a question, such as"),
        (("- [ ] 1", "- [y] 1"), 14, r"'- \[y\] 1'", r"'- \[x\] ...' for the right"),
        (("- [ ] 1", "* [ ] 1"), 14, r"'\* \[ \] 1'", r"'- \[ \] ...' for a wrong"),
        (("- [ ] 1", "- 1"), 14, "'- 1'", "'- "),
        (("- [ ] 1", "- [ ]"), 14, r"'- \[ \]'", "'- "),
        (("  only.", "only."), 17, "'only.'", "a reply, indented by two spaces"),
        (("1\n\n  Not", "1\n  Not"), 14, r"'- \[ \] 1'", "an empty line and a reply"),
        (("\n  So it is.\n", ""), 19, r"'- \[x\] both.*'", "an empty line and a reply"),
        (("[x]", "[ ]"), 3, "'## What.*'", "one right choice, .* found 0 among 2"),
        (("[ ]", "[x]"), 3, "'## What.*'", "one right choice, .* found 2 among 2"),
        (("```\n", ""), 8, "'```python'", "one block of code, which ends with"),
        (("```\n", "```\nSo?\n"), 8, "'```python'", "followed by the choices"),
        (("both, in two\n  lines", "1"), 3, "'## What.*'", "found 1 among 1"),
    ],
)
def test_a_fault_in_a_file_is_named_with_its_line(change, line, got, wanted):
    assert change[0] in GOOD
    text = GOOD.replace(*change, 1)
    place = rf"^quiz: closures\.md, line {line}: got {got}; wanted .*"
    with pytest.raises(ValueError, match=place + wanted):
        quiz_file.parse(text, "closures.md")


def test_code_may_begin_like_a_question_or_a_choice():
    code = "*a, b = 1, 2\n## b\n- 1\n- [x] 2"
    rest = "- [x] `2`\n\n  It is.\n\n- [ ] `1`\n\n  No.\n"
    asked = f"## What is b?\n\n```python\n{code}\n```\n\n{rest}\n## And a?\n\n{rest}"
    first, second = quiz_file.parse(asked)
    assert first.code == code
    assert first.choices == second.choices
    with pytest.raises(ValueError, match=r"line 3: got '```python'; wanted one block"):
        quiz_file.parse(asked.replace("\n```\n", "\n"))


@pytest.mark.parametrize("text", ["", "\n\n", "# Only a title\n"])
def test_a_file_without_questions_is_refused(text):
    with pytest.raises(
        ValueError, match=r"^quiz: the text, line \d: got .*; wanted a q"
    ):
        quiz_file.parse(text)


@pytest.mark.parametrize("text", [None, b"## What?"])
def test_what_is_no_text_is_refused(text):
    kind = type(text).__name__
    with pytest.raises(TypeError, match=f"^quiz: got {kind}; wanted the text of a q"):
        quiz_file.parse(text)


def stored(monkeypatch, folder, content):
    monkeypatch.setattr(quiz_file, "FOLDER", folder)
    path = folder / "closures.md"
    path.mkdir() if content is None else path.write_bytes(content)
    return path


@pytest.mark.parametrize("content", [None, "é".encode("latin-1"), b"\xff\xfe#"])
def test_a_file_that_can_not_be_read_is_named(tmp_path, monkeypatch, content):
    path = re.escape(str(stored(monkeypatch, tmp_path, content)))
    message = rf"^quiz: {path} can't be read \(.+\)\. Save it as text, in UTF-8\.$"
    with pytest.raises(ValueError, match=message):
        quiz("closures")


def test_an_editor_may_mark_a_file_as_utf_8(tmp_path, monkeypatch):
    stored(monkeypatch, tmp_path, GOOD.encode("utf-8-sig"))
    assert quiz_file.read("closures") == quiz_file.parse(GOOD)


@given(st.text(alphabet="#-*[] x`?\n a", max_size=60))
def test_no_text_fails_in_another_way(text):
    with contextlib.suppress(ValueError):
        quiz_file.parse(text)


WORDS = st.text(alphabet="ab`é ?.", min_size=1).map(lambda s: "w" + " ".join(s.split()))


@given(
    WORDS,
    st.lists(st.tuples(WORDS, WORDS), min_size=2, unique_by=lambda pair: pair[0]),
    st.data(),
)
def test_what_is_written_is_read(text, pairs, data):
    place = data.draw(st.integers(0, len(pairs) - 1))
    lines = [f"## {text}", ""]
    for number, (choice, reply) in enumerate(pairs):
        lines += [f"- [{'x' if number == place else ' '}] {choice}", "", f"  {reply}"]
    (asked,) = quiz_file.parse("\n".join(lines))
    assert asked.text == text
    assert [(choice.text, choice.reply) for choice in asked.choices] == pairs
    assert [choice.right for choice in asked.choices].index(True) == place
