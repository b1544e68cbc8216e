"""Nodes of plain functions in a graph of layers, of Keras 3 and of tf.keras.

Read `table` (the functions and their names in each kind of file), `forms` (how a call
is bound to them), `node` (the layer that calls them); then the functions themselves:
`numbers`, `reductions`, `shapes`, `matrices`, `windows`, `images`, and `sizes` for what
follows from shapes alone.
"""

from course_lib.keras_models.layers.operations.forms import FORMS
from course_lib.keras_models.layers.operations.node import Operation

__all__ = ["FORMS", "Operation"]
