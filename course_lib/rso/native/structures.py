"""The structures of structures.hpp, field by field."""

import ctypes

from course_lib.compiler import NoCompiler

KINDS = (  # of operations, in the order of structures.hpp
    *("copy", "add", "max_pool", "average_pool", "stats", "conv"),
    *("taps", "spread", "fill", "loss", "arrange", "winograd", "recall"),
)
TAIL, AGAIN, ANEW = 1, 2, 4  # flags of operations
REDUCE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_double), ctypes.c_long)


class Slot(ctypes.Structure):
    """Where a value lies."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        *((name, ctypes.c_long) for name in ("row", "block", "thread")),
        ("state", ctypes.c_int),
        ("state_block", ctypes.c_long),
    )


class Operand(ctypes.Structure):
    """What an operation reads, and what it does to it before."""

    _fields_ = (
        *((name, ctypes.c_int) for name in ("slot", "norm", "picks")),
        ("floor", ctypes.c_double),
    )


class Op(ctypes.Structure):
    """One operation."""

    _fields_ = (
        *((name, ctypes.c_int) for name in ("kind", "out", "flags", "norm")),
        ("input", Operand),
        ("other", Operand),
        *((name, ctypes.c_int) for name in ("channels", "height", "width")),
        *((name, ctypes.c_int) for name in ("top", "left")),
        *((name, ctypes.c_int) for name in ("padded_height", "padded_width")),
        *((name, ctypes.c_int) for name in ("box_height", "box_width")),
        *((name, ctypes.c_int) for name in ("box_row", "box_column")),
        *((name, ctypes.c_int) for name in ("step_row", "step_column")),
        *((name, ctypes.c_int) for name in ("rows", "columns", "scratch")),
        *((name, ctypes.c_int) for name in ("groups", "inputs", "outputs")),
        *((name, ctypes.c_int) for name in ("pixels", "taps")),
        ("plane", ctypes.c_long),
        *((name, ctypes.c_void_p) for name in ("place", "tap", "weights", "bias")),
        ("recall", ctypes.c_void_p),
    )


class Norm(ctypes.Structure):
    """A batch norm, with its sums."""

    _fields_ = (
        *((name, ctypes.c_int) for name in ("channels", "pixels", "picks")),
        ("eps", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("gamma", "beta", "parts", "affine")),
    )


class Listing(ctypes.Structure):
    """All operations of a program, stage by stage."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("slots", "ops", "stages", "norms")),
        *((name, ctypes.c_int) for name in ("stage_count", "norm_count", "threads")),
        ("reduce", REDUCE),
        *((name, ctypes.c_void_p) for name in ("sums", "losses")),
    )


class State(ctypes.Structure):
    """What a mini-batch remembers: an array of each value's blocks, and the labels."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("values", "labels")),
        ("batch", ctypes.c_long),
    )


class Moves(ctypes.Structure):
    """What each row changes."""

    _fields_ = (
        *((name, ctypes.c_int) for name in ("channel", "rows", "base", "first_row")),
        *((name, ctypes.c_void_p) for name in ("starts", "weights", "changes")),
    )


class Job(ctypes.Structure):
    """What is done to a mini-batch: addresses of a Listing and of its Moves."""

    _fields_ = (("program", ctypes.c_void_p), ("rows", ctypes.c_void_p))


STRUCTURES = (Slot, Operand, Op, Norm, Listing, State, Moves, Job)  # as in the header


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
