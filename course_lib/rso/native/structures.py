"""The structures and enumerations of structures.hpp, read from that file."""

import ctypes
import re
from pathlib import Path

from course_lib.compiler import NoCompiler

REDUCE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_double), ctypes.c_long)
TYPES = {
    "int": ctypes.c_int,
    "long": ctypes.c_long,
    "double": ctypes.c_double,
    "Reduce": REDUCE,
}
_source = Path(__file__).with_name("structures.hpp").read_text("utf-8")
_source = re.sub(r"/\*.*?\*/", "", _source, flags=re.DOTALL)


def _structure(name: str) -> type[ctypes.Structure]:
    """Return a structure; each of its pointers is a number."""
    (body,) = re.findall(rf"^struct {name} {{(.*?)^}};", _source, re.DOTALL | re.M)
    fields = []
    for line in body.replace("const ", "").split(";")[:-1]:
        kind, names = line.split(maxsplit=1)
        for field in map(str.strip, names.split(",")):
            of_kind = ctypes.c_void_p if "*" in field else TYPES[kind]
            fields.append((field.lstrip("*"), of_kind))
    TYPES[name] = type(name, (ctypes.Structure,), {"_fields_": fields})
    return TYPES[name]


def _names(enumeration: str) -> list[str]:
    (body,) = re.findall(rf"enum {enumeration} {{(.*?)}};", _source, re.DOTALL)
    return [name.strip() for name in body.split(",")]


def _values(enumeration: str) -> list[int]:
    return [int(name.split("=")[1]) for name in _names(enumeration)]


KINDS = [name.lower() for name in _names("Kind")]  # of operations
SCORED_ONLY, STATE_CURRENT, FROM_SCRATCH = _values("Flag")
REDUCE_FAILED, BAD_CHANGE, STUCK = _values("Failure")
_NAMES = "Slot", "Operand", "Op", "Norm", "RowChanges", "Operations", "State"
STRUCTURES = tuple(map(_structure, _NAMES))
Slot, Operand, Op, Norm, RowChanges, Operations, State = STRUCTURES


def check_sizes(library: ctypes.CDLL) -> None:
    """Compare each structure with the compiler's.

    Raises:
        NoCompiler: one differs, so the library would read other memory than we wrote.
    """
    library.structure_size.restype = ctypes.c_long
    for number, structure in enumerate(STRUCTURES):
        size = library.structure_size(number)
        if size != ctypes.sizeof(structure):
            raise NoCompiler(
                f"the compiler gives {structure.__name__} {size} bytes, Python "
                f"{ctypes.sizeof(structure)}"
            )
