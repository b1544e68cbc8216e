"""Run every script in benchmarks/ and write their tables to one page.

A script measures one claim of speed in one process and prints a Markdown table. If a
bound is missed it says so on stderr and ends with 1, and the page says it too.
"""

import os
import platform
import subprocess
import sys
from datetime import date
from pathlib import Path

import torch

from course_lib.device import cpu_name
from course_lib.files import replacing

CHECKOUT = Path(__file__).resolve().parents[1]


def main(checkout: Path = CHECKOUT) -> int:
    """Write docs/results/benchmarks.md; return 1 if a bound is missed.

    Nothing is written if a script fails in another way.
    """
    found = (checkout / "benchmarks").glob("[!_]*.py")
    scripts = sorted(s for s in found if s.stem != "gpu")  # it writes a page of its own
    if not scripts:
        print(f"bench: no scripts in {checkout / 'benchmarks'}.", file=sys.stderr)
        return 1
    sections, missed = [], False
    for script in scripts:
        print(f"{script.stem} ...", flush=True)
        try:
            table, complaints = run(script)
        except subprocess.CalledProcessError as error:
            print(f"bench: {script} ended with {error.returncode}.", file=sys.stderr)
            print(error.stderr, file=sys.stderr)
            return 1
        missed = missed or bool(complaints)
        parts = [f"## {script.stem}", table, complaints]
        sections.append("\n\n".join(filter(None, parts)) + "\n")
    page = checkout / "docs" / "results" / "benchmarks.md"
    page.parent.mkdir(parents=True, exist_ok=True)
    with replacing(page) as stream:
        stream.write("\n".join([header(), *sections]).encode())
    print(f"Written: {page}{', with bounds that are missed' if missed else ''}")
    return int(missed)


def run(script: Path) -> tuple[str, str]:
    """Return a script's table and its sentences about missed bounds."""
    command = [sys.executable, str(script)]
    done = subprocess.run(command, capture_output=True, text=True)
    complaints = done.stderr.strip() if done.returncode == 1 else ""
    if done.returncode and not complaints.startswith("A bound is missed"):
        done.check_returncode()
    return done.stdout.strip(), complaints


def header() -> str:
    """Return the page's title, with date, machine and versions."""
    threads = torch.get_num_threads()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return (
        "# Benchmarks\n\n"
        "Written by `make bench`. All rows of a table were measured in one run.\n\n"
        f"- date: {date.today()}\n"
        f"- Python {platform.python_version()}, torch {torch.__version__}\n"
        f"- processor: {cpu_name()}, {os.cpu_count()} CPUs, {threads} threads\n"
        f"- GPU: {gpu}\n"
    )
