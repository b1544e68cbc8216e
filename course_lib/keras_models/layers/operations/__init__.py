"""Nodes of plain functions in a graph of layers, of Keras 3 and of tf.keras."""

from course_lib.keras_models.layers.operations.node import Operation
from course_lib.keras_models.layers.operations.table import OPERATIONS

__all__ = ["OPERATIONS", "Operation"]
