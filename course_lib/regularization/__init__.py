"""Regularizers that live with their layer: l1 and l2 penalties, as in Keras.

Read in this order: `regularizers` computes the penalty of one tensor, `modules` stores
regularizers on a model's modules and adds up its penalties; `activity` records the
penalties of outputs, and `computed_weights` finds weights that are no parameters.
"""

from course_lib.regularization.modules import (
    add_penalty_gradients_,
    penalties,
    penalty,
    regularize,
)
from course_lib.regularization.regularizers import L1L2, Activity

__all__ = [
    "L1L2",
    "Activity",
    "add_penalty_gradients_",
    "penalties",
    "penalty",
    "regularize",
]
