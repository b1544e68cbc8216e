"""The quiz of a lesson: three to five questions, and a reply to each choice.

The questions are in `quizzes/`; `quiz_file` says how they are written.
"""

from __future__ import annotations

import functools
import html

import ipywidgets
from IPython.display import display

from course_lib.checks import is_int
from course_lib.lessons import _SPEAKING_CONTROLS, quiz_file
from course_lib.lessons.exercises import Verdict, store, to_html
from course_lib.lessons.progress_file import QUIZ
from course_lib.lessons.quiz_file import Question

# ipywidgets gives its radio buttons no common name, without which no arrow key goes
# from one to the next; it cuts their words after one line; and JupyterLab takes the
# arrow keys for itself.
_SPEAKING_RADIOS = """<style>
.course-quiz .widget-radio { width: auto; height: auto; }
.course-quiz .widget-radio-box { padding-left: 4px; }
.course-quiz .widget-radio-box label { height: auto; line-height: 1.5; }
.course-quiz .widget-radio-box label { padding-left: 1.6em; text-indent: -1.6em; }
.course-quiz .widget-radio-box input { float: none; width: 1.1em; height: 1.1em; }
.course-quiz .widget-radio-box input { margin: 0 .5em 0 0; vertical-align: -.15em; }
.course-quiz .widget-html-content { line-height: 1.5; }
.course-quiz .widget-html-content pre { line-height: 1.4; margin-bottom: .5em; }
.course-quiz .widget-html-content pre { overflow-x: auto; }
</style>
<script>(() => {
const cell = document.currentScript.closest(".jp-Cell");
if (!cell) return;
const look = () => {
  for (const box of cell.querySelectorAll(".widget-radio-box")) {
    const [words, , reply] = box.closest(".widget-vbox").children;
    const label = words.querySelector("p");
    if (!label) continue;
    const name = "quiz " + cell.dataset.quiz + label.textContent;
    for (const input of box.querySelectorAll("input")) {
      if (input.name === name) continue;
      input.name = name;
      input.dataset.lmSuppressShortcuts = "true";
      input.parentElement.prepend(input);
    }
    if (box.getAttribute("role")) continue;
    box.setAttribute("role", "radiogroup");
    box.setAttribute("aria-label", label.textContent);
    reply.setAttribute("aria-live", "polite");
    box.addEventListener("keydown", (event) => {
      const inputs = box.querySelectorAll("input");
      const ends = {Home: inputs[0], End: inputs[inputs.length - 1]};
      if (!ends[event.key]) return;
      event.preventDefault();
      ends[event.key].focus();
      ends[event.key].click();
    });
  }
};
cell.dataset.quiz = Math.random();
new MutationObserver(look).observe(cell, {childList: true, subtree: true});
look();
})();</script>"""


def quiz(name: str) -> Quiz:
    """Return the quiz of a lesson: leave it on the last line of a cell to show it.

    Args:
        name: of the lesson's module, for example "closures".

    Raises:
        ValueError: there is no such lesson, or its file of questions has a fault.
    """
    return Quiz(name, quiz_file.read(name))


class Quiz:
    """Questions with radio buttons; the reply to what is chosen stands below.

    Nothing is chosen at first, and each question can be answered again. When all are
    answered right, that is noted in the progress file, as "closures.quiz" for example.

    Args:
        name: of the lesson.
        questions: what is asked, in order.

    >>> Quiz("closures", quiz_file.read("closures")).answer(2, 3).solved
    False
    """

    def __init__(self, name: str, questions: tuple[Question, ...]) -> None:
        self.name = name
        self.questions = questions
        self.controls = [_radio_buttons(question) for question in questions]
        self._verdicts: dict[int, Verdict] = {}
        self._replies = [ipywidgets.HTML() for _ in questions]
        for place, control in enumerate(self.controls):
            control.observe(functools.partial(self._reply, place), names="index")

    def answer(self, number: int, choice: int) -> Verdict:
        """Choose from code, as a click does; return the reply.

        Args:
            number: of the question, from 1.
            choice: its place among the choices, from 1.

        Raises:
            ValueError: there is no such question, or no such choice.
        """
        if not is_int(number) or number not in range(1, len(self.questions) + 1):
            raise ValueError(
                f"Quiz.answer: got question {number!r}; wanted 1 to "
                f"{len(self.questions)}."
            )
        choices = self.questions[number - 1].choices
        if not is_int(choice) or choice not in range(1, len(choices) + 1):
            raise ValueError(
                f"Quiz.answer: got choice {choice!r} of question {number}; wanted 1 to "
                f"{len(choices)}."
            )
        self.controls[number - 1].index = choice - 1
        return self._verdicts[number - 1]

    def _reply(self, place: int, change: object) -> None:
        chosen = self.questions[place].choices[self.controls[place].index]
        self._verdicts[place] = Verdict(chosen.right, chosen.reply)
        if self._is_done():
            done = f"{chosen.reply} All are right: this quiz is done."
            stored = store(f"{self.name}.{QUIZ}")
            self._verdicts[place] = Verdict(True, done + stored)
        self._replies[place].value = self._verdicts[place]._repr_html_()

    def _is_done(self) -> bool:
        right = [verdict.solved for verdict in self._verdicts.values()]
        return len(right) == len(self.questions) and all(right)

    def _ipython_display_(self) -> None:
        display(
            {"text/html": _SPEAKING_CONTROLS + _SPEAKING_RADIOS, "text/plain": ""},
            raw=True,
        )
        parts = zip(self.questions, self.controls, self._replies, strict=True)
        rows = [
            ipywidgets.VBox([ipywidgets.HTML(_asked(number, question)), *rest])
            for number, (question, *rest) in enumerate(parts, start=1)
        ]
        box = ipywidgets.VBox(rows).add_class("course-quiz")
        view = box._repr_mimebundle_()
        view = view[0] if isinstance(view, tuple) else view
        words = f"Quiz: {len(self.questions)} questions. It asks once this cell runs."
        display({**view, "text/html": self._folded(), "text/plain": words}, raw=True)

    def _folded(self) -> str:
        """Return all questions, each choice with its reply folded below it.

        That is stored for readers without a kernel: to open a choice is to choose it.
        """
        made = []
        for number, question in enumerate(self.questions, start=1):
            made.append(_asked(number, question))
            for choice in question.choices:
                verdict = Verdict(choice.right, choice.reply)._repr_html_()
                summary = f"<summary>{to_html(choice.text)}</summary>"
                made.append(f"<details>{summary}{verdict}</details>")
        return "\n".join(['<div class="course-quiz">', *made, "</div>"])


def _radio_buttons(question: Question) -> ipywidgets.RadioButtons:
    options = [choice.text.replace("`", "") for choice in question.choices]
    return ipywidgets.RadioButtons(options=options, index=None)


def _asked(number: int, question: Question) -> str:
    more = f"<p>{to_html(question.more)}</p>" if question.more else ""
    code = f"<pre>{html.escape(question.code)}</pre>" if question.code else ""
    return f"<p><b>{number}. {to_html(question.text)}</b></p>{more}{code}"
