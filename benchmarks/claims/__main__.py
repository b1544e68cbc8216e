"""Measure claims and write them to docs/results/claims.md."""

from __future__ import annotations

import argparse
import sys

import torch

from benchmarks.claims.core import PAGE, assemble, claims, read, section, sections


def main() -> int:
    """Measure, write after each claim, and return 1 if one does not hold."""
    known = claims()
    parser = argparse.ArgumentParser(prog="claims", description=__doc__)
    parser.add_argument("names", nargs="*", help="those alone, and not all")
    names = parser.parse_args().names or list(known)
    if unknown := set(names) - known.keys():
        parser.error(f"unknown: {', '.join(sorted(unknown))}. All: {', '.join(known)}")
    torch.set_num_threads(1)  # as in the lessons
    measured = sections(PAGE.read_text(encoding="utf-8")) if PAGE.exists() else {}
    for name in names:
        print(f"{name} ...", flush=True)
        measured[name] = section(known[name])
        PAGE.write_text(assemble(measured), encoding="utf-8")
        print(measured[name], flush=True)
    false = [name for name in names if not read(measured[name]).holds]
    if false:
        print(f"Not true over the seeds: {', '.join(false)}", file=sys.stderr)
    return int(bool(false))


if __name__ == "__main__":
    sys.exit(main())
