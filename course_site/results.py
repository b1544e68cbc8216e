"""The measured pages with headings that a reader understands.

The files of docs/results keep the names that lessons link to, such as
`claims.md#l2-holds-back`. On the site the heading says it in words; `slug` gives it the
name of before, so links hold.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from course_site.lessons import Lesson

# What `make bench` calls a table, by its script, and what the site calls it.
BENCHMARKS = {
    "explicit": "A step of training, beside torch.optim",
    "keras_models": "Loading and running a Keras model",
    "losses": "A step of VAT and of BEGAN",
    "regularization": "A step with a penalty",
    "rso": "The three engines of RSO",
    "rso_at_once": "RSO: many proposals at once",
    "vat": "The accuracy of VAT",
}
# Which pages come first; the others follow by name.
FIRST = ("claims", "benchmarks", "lessons")
TITLES = {"# Claims": "# What the lessons say about training"}
_NOTHING = "*Nothing here depends on a seed; the tests compare every number.*"
_EMPTY = re.compile(r"^(## .+)\n+(?=## |\Z)", re.M)
_HEADING = re.compile(r"^(#{2,3}) (\S.*)$", re.M)


def plain(text: str, name: str, lessons: Sequence[Lesson]) -> str:
    """Return a page of docs/results with plain headings.

    Args:
        text: the page.
        name: its file, such as "claims.md".
        lessons: whose titles head the sections of the claims.
    """
    words = _words(name, lessons)
    for old, new in TITLES.items():
        text = re.sub(f"^{old}$", new, text, flags=re.M)
    if name == "claims.md":
        text = _EMPTY.sub(rf"\1\n\n{_NOTHING}\n\n", text)
    return _HEADING.sub(lambda h: f"{h[1]} {words.get(h[2]) or _spoken(h)}", text)


def order(pages: set[str]) -> list[str]:
    """Return the pages of docs/results without their endings, the first ones first."""
    found = sorted(p[:-3] for p in pages if p.startswith("docs/results/"))
    first = [f"docs/results/{name}" for name in FIRST]
    return [p for p in first if p in found] + [p for p in found if p not in first]


def slug(title: str) -> str:
    """Return the anchor of a heading, as GitHub has it for the file's own heading.

    >>> slug("L2 holds back"), slug("A step with a penalty")
    ('l2-holds-back', 'regularization')
    """
    for name, words in BENCHMARKS.items():
        if words == title:
            return name
    title = re.sub(r"[^\w\- ]", "", title.strip().lower())
    return title.replace(" ", "-")


def _words(name: str, lessons: Sequence[Lesson]) -> dict[str, str]:
    if name == "claims.md":
        return {
            lesson.name.replace("_", " ", 1): f"Lesson {lesson.number}: {lesson.title}"
            for lesson in lessons
        }
    return BENCHMARKS if name == "benchmarks.md" else {}


def _spoken(heading: re.Match[str]) -> str:
    """Return a name-of-a-claim as words; other headings stay."""
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", heading[2]):
        return heading[2]
    words = heading[2].replace("-", " ")
    return words[0].upper() + words[1:]
