import pytest

from course_lib import bench

TABLE = "| step | ms |\n| --- | --- |\n| plain | 1 |"


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "benchmarks").mkdir()
    return tmp_path


def script(checkout, name, body):
    (checkout / "benchmarks" / name).write_text(body)


def test_tables_of_all_scripts_in_one_page(checkout):
    script(checkout, "b.py", "print('second')")
    script(checkout, "a.py", f"print({TABLE!r})")
    script(checkout, "_shared.py", "raise SystemExit(1)")  # a helper, not a benchmark
    assert bench.main(checkout) == 0
    page = (checkout / "docs" / "results" / "benchmarks.md").read_text()
    assert page.startswith("# Benchmarks\n")
    assert page.endswith(f"## a\n\n{TABLE}\n\n## b\n\nsecond\n")


def test_header_says_when_and_with_what():
    for word in ["date: 20", "Python 3.", "torch 2.", "CPUs", "threads", "GPU: "]:
        assert word in bench.header()


def test_a_missed_bound_is_on_the_page(checkout):
    body = (
        f"import sys; print({TABLE!r}); print('A bound is missed: plain', "
        "file=sys.stderr); raise SystemExit(1)"
    )
    script(checkout, "a.py", body)
    assert bench.main(checkout) == 1
    page = (checkout / "docs" / "results" / "benchmarks.md").read_text()
    assert page.endswith(f"## a\n\n{TABLE}\n\nA bound is missed: plain\n")


@pytest.mark.parametrize("status", [1, 3])
def test_a_failing_script_writes_nothing(status, checkout, capsys):
    script(checkout, "a.py", f"print({TABLE!r}); raise SystemExit({status})")
    assert bench.main(checkout) == 1
    assert f"a.py ended with {status}" in capsys.readouterr().err
    assert not (checkout / "docs").exists()


def test_no_scripts(checkout, capsys):
    assert bench.main(checkout) == 1
    assert "no scripts" in capsys.readouterr().err
