"""Links that lead out of the site: to files of the repository that are no pages."""

from __future__ import annotations

import posixpath
import re

from course_site import ROOT, api
from course_site.repository import Repository

# [words](target), where the target is neither an address nor a place on this page.
_LINK = re.compile(r"(?<!!)\[([^\]\[]*)\]\((?![a-z]+:|#|/)([^)\s#]+)(#[^)\s]*)?\)")
# What the site shows in another place.
MOVED = {
    "README.md": "index.md",
    **{f"course_lib/{name}": f"api/{name}.md" for name in api.MODULES},
    **{f"course_lib/{name}.py": f"api/{name}.md" for name in api.MODULES},
}


def relink(text: str, page: str, pages: set[str], repository: Repository | None) -> str:
    """Return Markdown whose links work on the site.

    A link to a page stays, and one to a public module leads to its documentation. One
    to another file of the repository leads to its web address, or becomes plain words
    where nobody has said that address. What is no file of the repository is left alone:
    it may be code, and Sphinx reports the rest.

    Args:
        text: the Markdown.
        page: its path in the repository, such as "docs/design.md".
        pages: the paths that are pages of the site.
        repository: where the other files are.
    """
    folder = posixpath.dirname(page)

    def replaced(link: re.Match[str]) -> str:
        words, target, anchor = link[1], link[2], link[3] or ""
        path = posixpath.normpath(posixpath.join(folder, target))
        if path in MOVED:
            return f"[{words}]({posixpath.relpath(MOVED[path], folder or '.')})"
        if path in pages or not _is_ours(path):
            return link[0]
        return f"[{words}]({repository.file(path)}{anchor})" if repository else words

    return _LINK.sub(replaced, text)


def _is_ours(path: str) -> bool:
    return not path.startswith("..") and (ROOT / path).exists()
