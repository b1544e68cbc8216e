"""The course's commands, for example `python -m course_lib doctor`.

Each command imports its module only when it is called, so that `--help` is quick, and
`doctor` works even if other modules fail.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import sys
from collections.abc import Callable, Sequence

Run = Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that `argv` names and return its exit status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv[:1] == ["rso"]:  # its options are made from tables that need torch
        from course_lib.rso.cli import command

        return command.main(argv[1:])
    parser = _parser()
    arguments, others = parser.parse_known_args(argv)
    if others and (arguments.run is not _lab or arguments.prepare):
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    arguments.others = others
    return arguments.run(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m course_lib")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Run, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text)
        command.set_defaults(run=run)
        return command

    text = "open your copy of the lessons; takes JupyterLab's options"
    command = add("lab", _lab, text)
    text = "the copy, no JupyterLab"
    command.add_argument("--prepare", action="store_true", help=text)

    command = add("reset", _reset, "begin a lesson of your copy again")
    command.add_argument("lesson", metavar="LESSON", help="for example 01")

    command = add("class", _class, "a class's progress files as a table")
    command.add_argument("paths", nargs="+", metavar="FILE", help="or a folder of them")
    command.add_argument(
        "--out", metavar="FILE", help=".csv or .md; else it is printed"
    )
    command.add_argument("--exercises", action="store_true", help="a column for each")

    command = add("export", _export, "the lessons without their solutions")
    command.add_argument("folder", metavar="FOLDER", help="a new one")

    add("doctor", _doctor, "check whether the lessons run here")

    command = add("data", _data, "load data sets, download missing ones")
    command.add_argument("names", nargs="*", metavar="NAME", help="default: all")

    command = add("keras", _keras, "show, check or save a Keras model")
    command.add_argument("model", metavar="FILE", help=".json, .keras or .h5")
    command.add_argument("--weights", metavar="FILE", help=".h5, .keras or .npz")
    command.add_argument("--keras-version", metavar="VERSION", help="for example 1.0.0")
    command.add_argument(
        "--theano-kernels",
        action=argparse.BooleanOptionalAction,
        help="the weights are (not) Theano's",
    )
    formats = ("channels_last", "channels_first")
    command.add_argument(
        "--data-format", choices=formats, help="where a file is silent"
    )
    command.add_argument("--summary", action="store_true", help="print a table")
    command.add_argument("--check", metavar="NPZ", help="compare with Keras's outputs")
    command.add_argument("--save", metavar="PT", help="write the state_dict")

    commands.add_parser("rso", help="train without gradients")  # see `main`

    command = add("notebooks", _notebooks, "run notebooks, store their outputs")
    command.add_argument("paths", nargs="*", metavar="PATH", help="default: all")

    add("bench", _bench, "measure each claim of speed")
    return parser


def _lab(arguments: argparse.Namespace) -> int:
    from course_lib.lessons import lab

    return lab.prepare() if arguments.prepare else lab.main(arguments.others)


def _reset(arguments: argparse.Namespace) -> int:
    from course_lib.lessons import lab

    return lab.reset(arguments.lesson)


def _class(arguments: argparse.Namespace) -> int:
    from course_lib.lessons import class_table

    chosen = {"exercises": arguments.exercises}
    return class_table.main(arguments.paths, arguments.out, **chosen)


def _export(arguments: argparse.Namespace) -> int:
    from course_lib.lessons import class_copy

    return class_copy.main(arguments.folder)


def _doctor(arguments: argparse.Namespace) -> int:
    from course_lib import doctor

    checks = doctor.examine()
    print(doctor.report(checks))
    return doctor.exit_status(checks)


def _data(arguments: argparse.Namespace) -> int:
    from course_lib import data
    from course_lib.data import archives

    status = 0
    for name in arguments.names or data.NAMES:
        try:
            print(data.load(name))
        except (ValueError, data.DataError) as error:
            print(error, file=sys.stderr)
            status = 1
    folders = ", then ".join(str(folder) for folder in archives.search_path(None))
    print(f"Files are searched in {folders}; COURSE_DATA names another folder.")
    return status


def _keras(arguments: argparse.Namespace) -> int:
    from course_lib.keras_models import command

    return command.run(arguments)


def _notebooks(arguments: argparse.Namespace) -> int:
    from course_lib.lessons import execute

    return execute.main(arguments.paths) or 0


def _bench(arguments: argparse.Namespace) -> int:
    from course_lib import bench

    return bench.main()


if __name__ == "__main__":
    # Else Python, at its end, looks for garbage in all that torch is: a quarter second.
    atexit.register(gc.freeze)
    sys.exit(main())
