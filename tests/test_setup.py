"""The files of the set-up agree with one another."""

import os
import re
import socket
import subprocess
from importlib import metadata

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from pins import ROOT, pins, requirements

import course_lib
from course_lib.doctor import software

PYTHONS = [".".join(map(str, version)) for version in software.TESTED]
EXTRAS = ["lab", "test", "docs", "bench"]


def text(path):
    return (ROOT / path).read_text(encoding="utf-8")


def direct(python, platform):
    """Return what pyproject.toml asks for, with all extras."""
    environment = {"python_version": python, "sys_platform": platform}
    for line in metadata.requires("course-lib"):
        needed = Requirement(line)
        marked = (
            needed.marker.evaluate(environment | {"extra": extra})
            for extra in EXTRAS
            if needed.marker
        )
        if needed.name != "course-lib" and (not needed.marker or any(marked)):
            yield needed


def test_installed_package_is_this_checkouts():
    assert metadata.version("course-lib") == course_lib.__version__
    assert set(metadata.metadata("course-lib").get_all("Provides-Extra")) == set(EXTRAS)


@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
@pytest.mark.parametrize("python", PYTHONS)
def test_each_direct_requirement_is_pinned_within_its_range(python, platform):
    pinned = pins(python, platform)
    for needed in direct(python, platform):
        version = pinned[canonicalize_name(needed.name)]
        assert needed.specifier.contains(version), f"{needed} against {version}"


@pytest.mark.parametrize("python", PYTHONS)
def test_each_name_is_pinned_once(python):
    held = {"python_version": python, "python_full_version": f"{python}.9"}
    names = [
        pin.name
        for pin in requirements()
        if not pin.marker or pin.marker.evaluate(held)
    ]
    assert len(names) == len(set(names))


def test_constraints_are_exact_and_free_of_cuda():
    for pin in requirements():
        assert re.fullmatch(r"==[\w.]+", str(pin.specifier)), pin
        assert not re.match(r"nvidia|cuda|triton", pin.name), pin


def test_oldest_python_is_the_same_everywhere():
    oldest = PYTHONS[0]
    wanted = SpecifierSet(metadata.metadata("course-lib")["Requires-Python"])
    assert str(wanted) == f">={oldest}"
    assert f"sys.version_info < ({oldest.replace('.', ', ')})" in text("Makefile")
    assert f'target-version = "py{oldest.replace(".", "")}"' in text("pyproject.toml")


def test_readme_names_the_oldest_python_and_no_other_version():
    readme = text("README.md")
    assert PYTHONS[0] in re.findall(r"Python (3\.\d+)", readme)
    pinned = pins("3.11")
    for name, version in re.findall(r"([a-z][\w-]+)==([\d.]*\d)", readme):
        assert pinned[canonicalize_name(name)] == version


def test_readme_gives_the_two_commands():
    readme = text("README.md")
    assert "make lab" in readme
    assert "make test" in readme


@pytest.mark.parametrize(
    "code", re.findall(r"```python\n(.*?)```", text("README.md"), re.S)
)
def test_readmes_examples_run(code):
    exec(compile(code, "README.md", "exec"), {})


def test_the_main_uses_are_short_and_no_more_than_three():
    examples = re.findall(r"```python\n(.*?)```", text("README.md"), re.S)
    assert len(examples) == 3
    assert all(len(code.strip().splitlines()) <= 10 for code in examples)


@pytest.mark.parametrize("page", ["README.md", "docs/sources.md", "CONTRIBUTING.md"])
def test_links_to_files_lead_somewhere(page):
    links = re.findall(r"\]\((?!http|#)([^)#]+)", text(page))
    assert len(links) >= 4
    assert [link for link in links if not ((ROOT / page).parent / link).exists()] == []


def test_every_lesson_has_a_source():
    sources = text("docs/sources.md")
    lessons = {path.name for path in (ROOT / "notebooks").glob("*.ipynb")}
    cited = set(re.findall(r"\.\./notebooks/(\S+?)\)", sources))
    assert cited == {name for name in lessons if not name.startswith("00")}


def test_the_release_is_the_same_everywhere():
    citation = yaml.safe_load(text("CITATION.cff"))
    releases = re.findall(r"^## (\d\S+) - (\S+)$", text("CHANGELOG.md"), re.M)
    newest, date = releases[0]
    assert newest == citation["version"] == course_lib.__version__
    assert date == str(citation["date-released"])
    [title] = re.findall(r"^# (.+)$", text("README.md"), re.M)[:1]
    assert citation["title"] == title
    assert citation["cff-version"] == "1.2.0"
    assert citation["authors"] == [{"name": "The course authors"}]


def make(*arguments):
    command = ["make", "--no-print-directory", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout


unix = pytest.mark.skipif(os.name == "nt", reason="Windows has no make")


@unix
def test_help_has_a_line_for_every_command():
    [phony] = re.findall(r"^\.PHONY: (help.*)$", text("Makefile"), re.M)
    described = re.findall(r"^  make ([\w-]+) +\S", make("help"), re.M)
    assert described == phony.split()


def test_the_slow_files_exist():
    slow = re.search(r'SLOW = """(.*?)"""', text("tests/conftest.py"), re.S)[1].split()
    found = {path.stem for path in (ROOT / "tests").glob("test_*.py")}
    assert {f"test_{name}" for name in slow} <= found
    assert len(slow) == len(set(slow))


@unix
def test_lab_opens_the_copy():
    assert "python -m course_lib lab\n" in make("--dry-run", "lab")


@unix
@pytest.mark.parametrize(("torch", "count"), [("", 0), ("cpu", 1)])
def test_torch_chooses_the_index(torch, count):
    # --always-make: show the install too, though it has been done.
    commands = make("--dry-run", "--always-make", "lab", f"TORCH={torch}")
    index = "--extra-index-url https://download.pytorch.org/whl/cpu"
    assert commands.count(index) == count
    assert "-c constraints.txt" in commands


@unix
@pytest.mark.parametrize("target", ["site", "links"])
def test_the_sites_commands_install_the_docs_extra(target):
    commands = make("--dry-run", "--always-make", target)
    assert "-c constraints.txt  -e '.[lab,docs]'" in commands
    assert ".venv-docs/bin/python -m course_site" in commands


@unix
@pytest.mark.parametrize("script", [".ci/run", "binder/postBuild", "binder/start"])
def test_scripts_are_sound_shell(script):
    assert os.access(ROOT / script, os.X_OK)
    subprocess.run(["bash", "-n", ROOT / script], check=True)


def test_workflow_runs_each_system_and_each_python():
    workflow = yaml.safe_load(text(".github/workflows/test.yml"))
    triggers = workflow[True]  # YAML 1.1 reads the key `on` as true
    assert triggers.keys() == {"push", "pull_request", "schedule", "workflow_dispatch"}
    jobs = workflow["jobs"]
    matrix = jobs["pinned"]["strategy"]["matrix"]
    assert {system.split("-")[0] for system in matrix["os"]} == {"ubuntu", "macos"}
    assert jobs["windows"]["runs-on"] == "windows-latest"
    tested = matrix["python"] + [extra["python"] for extra in matrix["include"]]
    assert sorted(tested) == PYTHONS
    ranges = jobs["ranges"]["strategy"]["matrix"]["include"]
    assert [row["python"] for row in ranges] == [PYTHONS[0], PYTHONS[-1]]


def test_workflow_calls_what_there_is():
    workflow = yaml.safe_load(text(".github/workflows/test.yml"))
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert {"run": ".ci/run", "env": {"TORCH": "cpu"}} in steps
    assert all(step.keys() <= {"uses", "with", "run", "env"} for step in steps)


def test_hooks_are_local():
    config = yaml.safe_load(text(".pre-commit-config.yaml"))
    [repository] = config["repos"]
    assert repository["repo"] == "local"
    commands = [hook["entry"].split()[0] for hook in repository["hooks"]]
    assert commands == ["ruff", "ruff", "codespell", "lint-imports"]


def test_files_that_are_no_modules_are_in_the_package():
    (line,) = re.findall(r'^package-data\."\*" = (.*)$', text("pyproject.toml"), re.M)
    patterns = re.findall(r'"(.+?)"', line)
    modules = {".py", ".pyc"}
    for path in sorted((ROOT / "course_lib").rglob("[!.]*.*")):
        if path.suffix not in modules:
            package = next(p for p in path.parents if (p / "__init__.py").exists())
            inside = path.relative_to(package)
            named = [p for p in patterns if p.count("/") == len(inside.parts) - 1]
            assert any(map(inside.match, named)), inside


@pytest.mark.parametrize("address", [("192.0.2.1", 80), ("2001:db8::1", 80)])
def test_unit_tests_can_not_reach_the_network(address):
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    refused = pytest.raises(AssertionError, match="a unit test wants to connect")
    with socket.socket(family) as client, refused:
        client.connect(address)
    with pytest.raises(AssertionError, match=r"'example\.org'"):
        socket.create_connection(("example.org", 80))


def test_unit_tests_reach_this_machine():
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()
        socket.create_connection(("localhost", server.getsockname()[1])).close()


def test_progress_and_settings_are_not_the_learners():
    for name in ["COURSE_PROGRESS", "JUPYTER_CONFIG_DIR", "MPLCONFIGDIR"]:
        assert "course-" in os.environ[name]
