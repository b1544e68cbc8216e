"""Read the questions of a quiz, which are Markdown: one file for each lesson.

    ## What does the last line print?

    ```python
    readers = [lambda: i for i in range(3)]
    print([read() for read in readers])
    ```

    - [ ] `[0, 1, 2]`

      Nobody stored these values: the three functions share one `i`.

    - [x] `[2, 2, 2]`

      They look when they are called, and then `i` is 2.

Below the question may stand a few lines more, then one block of code. A reply stands
below its choice, indented; it says why that is right, or which mistake it is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

FOLDER = Path(__file__).with_name("quizzes")

_CHOICE = re.compile(r"- \[([ x])\] +(\S.*)")
_BULLETS = ("-", "*", "+")


@dataclass(frozen=True)
class Choice:
    """One answer, and what is said to those who choose it."""

    text: str
    reply: str
    right: bool


@dataclass(frozen=True)
class Question:
    """A question with one right choice.

    Args:
        text: the question, in one line; `backticks` set code.
        more: the lines below it, joined; may be empty.
        code: the block of code below those, without its fences; may be empty.
        choices: at least two, exactly one of them right.
    """

    text: str
    more: str
    code: str
    choices: tuple[Choice, ...]


def names() -> list[str]:
    """Return the lessons that have a quiz, such as "closures"."""
    return sorted(path.stem for path in FOLDER.glob("*.md"))


def read(name: str) -> tuple[Question, ...]:
    """Return the questions of a lesson.

    Raises:
        ValueError: there is no such lesson, or its file can't be read or has a fault.

    >>> read("closures")[0].choices[0].right
    False
    """
    if name not in names():
        raise ValueError(f"quiz: got {name!r}; wanted one of {', '.join(names())}.")
    path = FOLDER / f"{name}.md"
    try:
        text = path.read_text(encoding="utf-8-sig")  # -sig: some editors write a mark
    except (OSError, UnicodeError) as error:
        raise ValueError(
            f"quiz: {path} can't be read ({error}). Save it as text, in UTF-8."
        ) from error
    return parse(text, path.name)


def parse(text: str, file: str = "the text") -> tuple[Question, ...]:
    """Return the questions that stand in a text.

    Args:
        text: Markdown, as above.
        file: its name, for the error.

    Raises:
        ValueError: with file, line, what stands there and what was wanted.
        TypeError: it is no text.
    """
    if not isinstance(text, str):
        raise TypeError(
            f"quiz: got {type(text).__name__}; wanted the text of a quiz, a str."
        )
    page = _Page(file, [line.rstrip() for line in text.splitlines()])
    lines = page.lines
    starts = page.beginning_with("## ", 0, len(lines))
    for n in range(starts[0] if starts else len(lines)):
        if lines[n] and not lines[n].startswith("# "):
            raise page.fault(n, "a question, such as '## What is printed?'")
    if not starts:
        raise page.fault(len(lines) - 1, "a question, such as '## What is printed?'")
    return tuple(page.question(*ends) for ends in pairwise([*starts, len(lines)]))


@dataclass(frozen=True)
class _Page:
    file: str
    lines: list[str]

    def fault(self, n: int, wanted: str) -> ValueError:
        got = repr(self.lines[n]) if self.lines else "an empty file"
        line = max(n, 0) + 1
        return ValueError(
            f"quiz: {self.file}, line {line}: got {got}; wanted {wanted}."
        )

    def beginning_with(
        self, marks: str | tuple[str, ...], start: int, end: int
    ) -> list[int]:
        """Return the lines that begin so, outside of a block of code."""
        found, is_code = [], False
        for n in range(start, end):
            if self.lines[n].startswith("```"):
                is_code = not is_code
            elif not is_code and self.lines[n].startswith(marks):
                found.append(n)
        return found

    def question(self, start: int, end: int) -> Question:
        marks = self.beginning_with(_BULLETS, start, end)
        more, code = self._body(start + 1, marks[0] if marks else end)
        choices = tuple(self._choice(*ends) for ends in pairwise([*marks, end]))
        right = sum(choice.right for choice in choices)
        different = len({choice.text for choice in choices})
        if right != 1 or different < 2 or different < len(choices):
            raise self.fault(
                start,
                "one right choice, '- [x] ...', among at least two different ones; "
                f"found {right} among {different}",
            )
        return Question(self.lines[start][3:].strip(), more, code, choices)

    def _body(self, start: int, end: int) -> tuple[str, str]:
        """Return the words and the code between a question and its first choice."""
        fences = [n for n in range(start, end) if self.lines[n].startswith("```")]
        if not fences:
            return _joined(self.lines[start:end]), ""
        if len(fences) != 2 or _joined(self.lines[fences[1] + 1 : end]):
            raise self.fault(
                fences[0],
                "one block of code, which ends with ``` and is followed by the choices",
            )
        code = "\n".join(self.lines[fences[0] + 1 : fences[1]])
        return _joined(self.lines[start : fences[0]]), code

    def _choice(self, start: int, end: int) -> Choice:
        mark = _CHOICE.fullmatch(self.lines[start])
        if not mark:
            raise self.fault(
                start, "'- [x] ...' for the right choice, '- [ ] ...' for a wrong one"
            )
        for n in range(start + 1, end):
            if self.lines[n] and not self.lines[n].startswith("  "):
                raise self.fault(n, "a reply, indented by two spaces, or a choice")
        below = [line.strip() for line in self.lines[start + 1 : end]]
        text, _, reply = "\n".join([mark[2], *below]).partition("\n\n")
        if not reply.strip():
            raise self.fault(start, "an empty line and a reply below the choice")
        return Choice(" ".join(text.split()), " ".join(reply.split()), mark[1] == "x")


def _joined(lines: list[str]) -> str:
    return " ".join(" ".join(lines).split())
