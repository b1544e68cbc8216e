"""Run every script in benchmarks/ and collect their tables in one page.

A script measures one claim of speed beside its peers, in one process, and prints a
Markdown table. The page says on which machine and with which versions.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import date
from pathlib import Path

import torch

CHECKOUT = Path(__file__).resolve().parents[1]


def main(checkout: Path = CHECKOUT) -> int:
    """Write docs/results/benchmarks.md; return 1, and write nothing, on a failure."""
    scripts = sorted((checkout / "benchmarks").glob("[!_]*.py"))
    if not scripts:
        print(f"bench: no scripts in {checkout / 'benchmarks'}.", file=sys.stderr)
        return 1
    sections = []
    for script in scripts:
        print(f"{script.stem} ...", flush=True)
        try:
            sections.append(f"## {script.stem}\n\n{run(script)}\n")
        except subprocess.CalledProcessError as error:
            print(f"bench: {script} ended with {error.returncode}.", file=sys.stderr)
            return 1
    page = checkout / "docs" / "results" / "benchmarks.md"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join([header(), *sections]), encoding="utf-8")
    print(f"Written: {page}")
    return 0


def run(script: Path) -> str:
    """Return what a script prints; its errors go to the terminal."""
    command = [sys.executable, str(script)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip()


def header() -> str:
    """Say when, on what and with what the figures were measured."""
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


def cpu_name() -> str:
    """Return the processor's name as its maker gives it."""
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.check_output(command, text=True).strip()
    return platform.processor() or platform.machine()
