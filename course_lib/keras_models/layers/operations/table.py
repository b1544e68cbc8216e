"""The table of all operations, by name; what a row says is described in `row`."""

from course_lib.keras_models.layers.operations import (
    creation,
    images,
    indexing,
    matrices,
    numbers,
    reductions,
    shapes,
    windows,
)
from course_lib.keras_models.layers.operations.row import Row

ELEMENTWISE = {row.name for row in numbers.ELEMENTWISE}
_ROWS = (*numbers.ELEMENTWISE, *reductions.ROWS, *shapes.ROWS, *indexing.ROWS)
_ROWS += (*creation.ROWS, *matrices.ROWS, *windows.ROWS, *images.ROWS)
ROWS: dict[str, Row] = {row.name: row for row in _ROWS}
assert len(ROWS) == len(_ROWS)
