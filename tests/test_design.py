"""docs/design.md draws the folders as they are."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "course_lib"
DESIGN = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")


def drawn(design):
    """Return the names of course_lib's tree, and those inside of its folders."""
    (tree,) = re.findall(r"^course_lib/\n(.*?)^```", design, re.MULTILINE | re.DOTALL)
    top, inner, folder = [], [], ""
    for line in tree.splitlines():
        names = re.findall(r"\S+(?:\.py|/)(?=\s)", line)
        if line.startswith("    "):
            inner += [f"{folder}{name}" for name in names]
        else:
            top, folder = top + names, names[-1]
    return top, inner


def layers_of(container):
    """Return the layers that lint-imports holds for a folder, from the top down."""
    contracts = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (listed,) = re.findall(
        rf'containers = \["{container}"\][^\[]*?layers = \[(.*?)\]',
        contracts,
        re.DOTALL,
    )
    return [set(layer.split(" | ")) for layer in re.findall(r'"(.+?)"', listed)]


def follows(names, layers):
    """Whether the names come in the layers' order; in a layer any order is good."""
    names, start = [name.removesuffix(".py").rstrip("/") for name in names], 0
    for layer in layers:
        if set(names[start : start + len(layer)]) != layer:
            return False
        start += len(layer)
    return start == len(names)


def is_package(path):
    return (path / "__init__.py").is_file()


def test_the_tree_has_every_module_and_folder_once():
    found = [path.name for path in PACKAGE.glob("*.py") if path.name != "__init__.py"]
    found += [f"{path.name}/" for path in PACKAGE.iterdir() if is_package(path)]
    assert sorted(drawn(DESIGN)[0]) == sorted(found)


def test_the_tree_has_every_folder_inside_of_a_folder():
    found = [path.parent for path in PACKAGE.glob("*/*/__init__.py")]
    names = [f"{path.relative_to(PACKAGE).as_posix()}/" for path in found]
    assert sorted(drawn(DESIGN)[1]) == sorted(names)


def test_the_lines_have_the_order_that_lint_imports_holds():
    top, inner = drawn(DESIGN)
    assert follows(top, layers_of("course_lib"))
    for folder in ("rso", "keras_models"):
        names = [n.removeprefix(f"{folder}/") for n in inner if n.startswith(folder)]
        assert follows(names, layers_of(f"course_lib.{folder}"))
        assert not follows(names[::-1], layers_of(f"course_lib.{folder}"))


def test_a_folder_that_is_not_drawn_is_noticed():
    top, inner = drawn(DESIGN.replace("  plots/", "  pictures/"))
    assert "plots/" not in top
    assert "rso/native/" in inner
