"""The course's commands: `python -m course_lib doctor | data | notebooks | bench`.

Each command imports its module only when it is called, so that `--help` is quick and
a fault in one module leaves the others usable; above all `doctor`, which looks for it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that `argv` names and return its exit status."""
    arguments = _parser().parse_args(argv)
    return arguments.run(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m course_lib")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("doctor", help="say what keeps the lessons from work")
    command.set_defaults(run=_doctor)

    command = commands.add_parser("data", help="load data sets, fetching what lacks")
    command.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    command.set_defaults(run=_data)

    command = commands.add_parser("notebooks", help="store notebooks' outputs anew")
    command.add_argument("paths", nargs="*", metavar="PATH", help="default: all")
    command.set_defaults(run=_notebooks)

    command = commands.add_parser("bench", help="measure each claim of speed")
    command.set_defaults(run=_bench)
    return parser


def _doctor(arguments: argparse.Namespace) -> int:
    from course_lib import doctor

    checks = doctor.examine()
    print(doctor.report(checks))
    return doctor.exit_status(checks)


def _data(arguments: argparse.Namespace) -> int:
    from course_lib import archives, data

    status = 0
    for name in arguments.names or data.NAMES:
        try:
            print(data.load(name))
        except (ValueError, data.DataError) as error:
            print(error, file=sys.stderr)
            status = 1
    folders = ", then ".join(str(folder) for folder in archives.homes(None))
    print(f"Files are looked for in {folders}; COURSE_DATA names another folder.")
    return status


def _notebooks(arguments: argparse.Namespace) -> int:
    from course_lib.lessons import execute

    return execute.main(arguments.paths) or 0


def _bench(arguments: argparse.Namespace) -> int:
    from course_lib import bench

    return bench.main()


if __name__ == "__main__":
    sys.exit(main())
