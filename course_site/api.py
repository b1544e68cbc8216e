"""The pages of the library: one for each public module, from its docstrings."""

from __future__ import annotations

import ast
from pathlib import Path

from course_site import ROOT

# In the order of the lessons; the rest are tools that many of them use.
MODULES = {
    "closures": "What a function captured",
    "regularization": "Penalties stored with their layer",
    "keras_models": "Keras files as modules",
    "losses": "Losses with a value for each sample",
    "vat": "Virtual adversarial training",
    "began": "BEGAN",
    "explicit": "Explicit training",
    "rules": "Optimization rules as values",
    "rso": "Training without gradients",
    "training": "The loop over batches",
    "data": "Data sets as tensors",
    "models": "Small networks",
    "device": "A device and a seed",
    "plots": "Pictures on a given Axes",
    "lessons": "What the notebooks use",
}
# Used by those above; a reader who changes them opens the file.
INTERNAL = {
    "bench",
    "checks",
    "compiler",
    "doctor",
    "files",
    "loss_terms",
    "modes",
    "trees",
    "vision",
}


def pages() -> dict[str, str]:
    """Return {file: Markdown} of the API reference."""
    return {
        "api/index.md": _index(),
        **{f"api/{name}.md": _page(name, title) for name, title in MODULES.items()},
    }


def summary(name: str, root: Path = ROOT) -> str:
    """Return the first line of a module's docstring, without importing it."""
    package = root / "course_lib" / name / "__init__.py"
    file = package if package.exists() else root / "course_lib" / f"{name}.py"
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return text.split("\n")[0]


def _index() -> str:
    rows = [
        f"| [`course_lib.{name}`]({name}.md) | {summary(name)} |" for name in MODULES
    ]
    hidden = "\n".join(MODULES)
    return (
        "# The library\n\n"
        "Everything that the lessons build on, and that you can use without them: "
        "`pip install .` in the repository. The formulas are on [a page of their "
        "own](../docs/formulas.md).\n\n"
        "| module | what it holds |\n|---|---|\n" + "\n".join(rows) + "\n\n"
        f"```{{toctree}}\n:hidden:\n\n{hidden}\n```\n"
    )


def _page(name: str, title: str) -> str:
    return (
        f"# {title}\n\n"
        f"`from course_lib.{name} import ...`\n\n"
        "```{eval-rst}\n"
        f".. automodule:: course_lib.{name}\n"
        "   :members:\n"
        "```\n"
    )
