"""docs/teach.md and docs/mistakes.md say what the lessons and their tests say."""

import ast
import importlib
import os
import re
import shlex
import subprocess
import sys

import pytest
from pins import ROOT, needed_by_lessons

from course_lib import __main__ as commands
from course_lib.lessons import working_copy
from course_lib.lessons.exercises import lessons

sys.path.insert(0, str(ROOT / "docs"))
import make_teach

TEACH = make_teach.TEACH.read_text(encoding="utf-8")
MISTAKES = make_teach.MISTAKES.read_text(encoding="utf-8")
AGAIN = "the page is out of date: `python docs/make_teach.py` writes it anew"


def test_the_tables_are_those_of_the_lessons():
    for path in make_teach.TABLES:
        assert make_teach.filled(path) == path.read_text(encoding="utf-8"), AGAIN


def test_each_lesson_has_objectives_and_what_comes_before():
    for path in sorted(make_teach.NOTEBOOKS.glob("*.ipynb")):
        title, minutes, points, before = make_teach.header(path)
        assert 3 <= len(points) <= 5, path.name
        assert all((title, minutes, before)), path.name


def sections():
    """Return {lesson: {exercise: what stands below its heading}}."""
    found = {name: {} for name in lessons()}
    for part in MISTAKES.split("\n### ")[1:]:
        head, _, text = part.partition("\n")
        lesson, exercise = head.split(": ")
        found[lesson][exercise] = text
    return found


@pytest.mark.parametrize("lesson", lessons())
def test_each_known_mistake_is_listed(lesson):
    wrong = importlib.import_module(f"tests.wrong_answers.{lesson}").WRONG
    listed = sections()[lesson]
    assert list(listed) == lessons()[lesson], AGAIN
    for exercise, answers in wrong.items():
        text = " ".join(listed[exercise].split())
        for _, words in answers:
            assert " ".join(words.split()) in text, f"{exercise}: {words!r}: {AGAIN}"


def test_a_page_without_its_table_is_refused():
    text = TEACH.replace("<!-- table: machines -->", "")
    with pytest.raises(ValueError, match="wanted one table machines, found 0"):
        make_teach.filled(make_teach.TEACH, text)


def test_the_exercises_that_the_plans_name_exist():
    (plan,) = re.findall(r"## In 90 minutes\n(.*?)\n## In a term", TEACH, re.DOTALL)
    named = set(re.findall(r"`(\w+)`", plan)) - {"doctor"}
    known = lessons()
    assert named == {"guess", "scalers", "watch", "live"} | {
        "by_hand",
        "shrink",
        "count_once",
    }
    assert named <= {*known["closures"], *known["regularization"]}
    minutes = [int(m) for m in re.findall(r"^\| (\d+) \|", plan, re.MULTILINE)]
    assert sum(minutes) == 90


def test_the_plan_of_a_term_has_every_lesson_in_order():
    (plan,) = re.findall(r"## In a term\n(.*?)\n## ", TEACH, re.DOTALL)
    weeks = re.findall(r"^\| (\d+) \| (.+?) \|", plan, re.MULTILINE)
    assert [int(week) for week, _ in weeks] == list(range(1, 11))
    named = [n for _, lesson in weeks for n in re.findall(r"\d\d", lesson)]
    assert list(dict.fromkeys(named)) == [name[:2] for name in working_copy.names()]


def test_each_command_of_the_page_is_one_of_the_course():
    lines = re.findall(r"python -m course_lib ([^`#\n]+)", TEACH)
    assert len(lines) >= 6
    for line in lines:
        commands._parser().parse_args(shlex.split(line))


# Links and Colab


def test_the_links_name_files_that_exist():
    for place in re.findall(r"\]\((?!http)([^)#]+)", TEACH):
        assert (ROOT / "docs" / place).exists(), place
    for place in ("binder/pip", "binder/jupyter_server_config.py", "environment.yml"):
        assert f"`{place}`" in TEACH
        assert (ROOT / place).exists()


def colab():
    (cell,) = re.findall(r"```python\n(.*?)```", TEACH, re.DOTALL)
    return cell


def test_colab_gets_what_it_has_not():
    there = {"matplotlib", "numpy", "packaging", "scikit-learn", "torch", "torchvision"}
    there |= {"tqdm", "jupyterlab"}  # Colab is the server itself
    (listed,) = re.findall(r"needed = (\[.*?\])", colab())
    assert set(ast.literal_eval(listed)) == needed_by_lessons() - there


def test_elsewhere_the_cell_does_nothing(monkeypatch):
    monkeypatch.delenv("COLAB_RELEASE_TAG", raising=False)
    monkeypatch.setattr(subprocess, "run", None)
    before = os.getcwd(), list(sys.path)
    exec(colab(), {})
    assert (os.getcwd(), sys.path) == before


PIP = """
import subprocess, sys
real = subprocess.run
def run(command, **options):
    if command[1:3] == ["-m", "pip"]:
        print(*command[3:])
    else:
        real(command, **options)
subprocess.run = run
"""


@pytest.mark.skipif(os.name == "nt", reason="Colab is a Linux machine")
def test_the_cell_takes_the_library_at_that_commit(tmp_path):
    def git(*arguments):
        command = ["git", "-C", str(tmp_path / "from"), *arguments]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    package, notebooks = tmp_path / "from/course_lib", tmp_path / "from/notebooks"
    for folder in (package, notebooks):
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text("AGE = 'old'")
    git("init", "--quiet")
    who = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    git("add", ".")
    git(*who, "commit", "--quiet", "-m", "old")
    commit = git("rev-parse", "HEAD")
    (package / "__init__.py").write_text("AGE = 'new'")
    git(*who, "commit", "--quiet", "-am", "new")
    cell = colab().replace("https://github.com/OWNER/NAME", str(tmp_path / "from"))
    cell = cell.replace("/content/course", str(tmp_path / "course"))
    # A commit that is not there, then the right one; and again after a restart.
    wrong = "\n".join(f"    {line}" for line in cell.splitlines())
    wrong = f"try:\n{wrong}\nexcept subprocess.CalledProcessError: print('wrong')"
    cell = cell.replace('"COMMIT"\n', f'"{commit}"\n')
    code = f"{PIP}{wrong}\nos.chdir('/')\n{cell}\nos.chdir('/')\n{cell}\n"
    code += "import course_lib; print(course_lib.AGE, os.getcwd())"
    environment = {**os.environ, "COLAB_RELEASE_TAG": "release"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        check=True,
    )
    failed, own, missing, *again, last = done.stdout.splitlines()
    assert (failed, again) == ("wrong", [own, missing])
    assert own == f"install --quiet --no-deps --editable {tmp_path / 'course'}"
    assert missing.startswith("install --quiet h5py ")
    assert last == f"old {tmp_path / 'course' / 'notebooks'}"
