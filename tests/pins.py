"""What the lessons need and constraints.txt pins, for the tests of the set-up."""

from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]


def needed_by_lessons():
    """Return the names of what the package asks for with its extra `lab`."""
    found = map(Requirement, metadata.requires("course-lib"))
    marks = [(needed.name, needed.marker) for needed in found]
    return {n for n, mark in marks if not mark or mark.evaluate({"extra": "lab"})}


def requirements():
    """Return every line of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def pins(python, platform="linux"):
    """Return name -> version as pip on that Python and platform reads them."""
    minor = ".".join(python.split(".")[:2])
    environment = {"python_version": minor, "sys_platform": platform}
    environment |= {
        "python_full_version": f"{minor}.9",
        "os_name": "nt" if platform == "win32" else "posix",
    }
    return {
        canonicalize_name(pin.name): str(pin.specifier).removeprefix("==")
        for pin in requirements()
        if not pin.marker or pin.marker.evaluate(environment)
    }
