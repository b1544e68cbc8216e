"""Nodes of plain functions in a graph of layers, of Keras 3 and of tf.keras.

Read `row` (how the table says a function's names in each kind of file), `forms` (how a
call is bound to a row), `node` (the layer that calls it). Then each topic, functions
first and rows below: `numbers`, `reductions`, `shapes`, `indexing`, `creation`,
`matrices`, `windows`, `images`; and `sizes` for what follows from shapes alone.
"""

from course_lib.keras_models.layers.operations.forms import FORMS
from course_lib.keras_models.layers.operations.node import Operation

__all__ = ["FORMS", "Operation"]
