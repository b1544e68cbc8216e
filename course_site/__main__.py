"""Build the site into build/site: `python -m course_site`, or `make site`."""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import subprocess
import sys

import nbformat

from course_site import BUILD, ROOT, SOURCE, STATES, STATIC, api, results, states
from course_site.course_map import course_map
from course_site.lessons import Lesson, all_lessons
from course_site.links import relink
from course_site.pages import cleared, page
from course_site.repository import find

WHOLE = ("CONTRIBUTING.md", "CHANGELOG.md")  # pages beside docs/ and notebooks/
NEEDED = ("latex2mathml", "myst_nb", "sphinx", "sphinx_book_theme")  # extra: docs


def main() -> int:
    """Write the sources, then let Sphinx build; return its exit status."""
    parser = argparse.ArgumentParser(prog="course_site", description=__doc__)
    parser.add_argument(
        "--still",
        action="store_true",
        help="run no lesson: widgets are still pictures",
    )
    parser.add_argument(
        "--external", action="store_true", help="check the links to other sites instead"
    )
    options = parser.parse_args()
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        parser.error(
            f"{sys.executable} has no {', '.join(missing)}; make site installs them "
            "in .venv-docs, pip install -e '.[lab,docs]' here."
        )
    for folder in (SOURCE, STATIC):
        shutil.rmtree(folder, ignore_errors=True)
    lessons = all_lessons()
    write_lessons(lessons, still=options.still or options.external)
    write_pages(lessons)
    builder, place = ("linkcheck", "links") if options.external else ("html", "site")
    shutil.rmtree(BUILD / place, ignore_errors=True)
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-n"]
    command += ["-E", "-d", BUILD / "site-doctrees", "-b", builder, "-c", ROOT / "docs"]
    return subprocess.run([*command, SOURCE, BUILD / place], cwd=ROOT).returncode


def write_lessons(lessons: list[Lesson], *, still: bool) -> None:
    """Write each notebook as a page, and without outputs as a file to download."""
    (SOURCE / "notebooks").mkdir(parents=True)
    (STATIC / "lessons").mkdir(parents=True)
    known, repository = markdown_pages(), find()
    for lesson in lessons:
        path = ROOT / "notebooks" / f"{lesson.name}.ipynb"
        notebook = nbformat.read(path, as_version=4)
        nbformat.write(cleared(notebook), STATIC / "lessons" / path.name)
        if not still:
            print(f"{lesson.name}: drawing what its widgets show", flush=True)
        drawn = {} if still else states.draw(path)
        made = page(notebook, lesson, drawn, repository, STATIC)
        for cell in made.cells:
            if cell.cell_type == "markdown":
                name = f"notebooks/{path.name}"
                cell.source = relink(cell.source, name, known, repository)
        nbformat.write(made, SOURCE / "notebooks" / path.name)
        if drawn:
            pictures = STATIC / "pictures" / lesson.name
            not_shown = shutil.ignore_patterns("*.json")
            shutil.copytree(STATES / lesson.name, pictures, ignore=not_shown)


def markdown_pages() -> set[str]:
    """Return the paths in the repository that are pages of the site."""
    found = [*ROOT.glob("docs/**/*.md"), *ROOT.glob("notebooks/*.ipynb")]
    return {*WHOLE, *(str(path.relative_to(ROOT).as_posix()) for path in found)}


def write_pages(lessons: list[Lesson]) -> None:
    """Write all that is no lesson: the first page, docs/, the library."""
    from course_site import valley  # imports torch

    known, repository = markdown_pages(), find()
    not_pages = shutil.ignore_patterns("_*", "*.py", "*.md")
    shutil.copytree(ROOT / "docs", SOURCE / "docs", ignore=not_pages)
    front = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    front = front.replace("<!-- map -->", course_map(lessons))
    front = front.replace("<!-- valley -->", valley.figure())
    entries = [f"{x.number} {x.title} <notebooks/{x.name}>" for x in lessons]
    front = front.replace("<!-- lessons -->", "\n".join(entries))
    front = front.replace("<!-- results -->", "\n".join(results.order(known)))
    written = {"index.md": front, **api.pages()}
    for name in sorted(known):
        if name.endswith(".md") and name != "docs/index.md":
            text = (ROOT / name).read_text(encoding="utf-8")
            if name.startswith("docs/results/"):
                text = results.plain(text, name.rpartition("/")[2], lessons)
            written[name] = relink(text, name, known, repository)
    for name, text in written.items():
        (SOURCE / name).parent.mkdir(parents=True, exist_ok=True)
        (SOURCE / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
