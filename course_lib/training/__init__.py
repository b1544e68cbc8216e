"""The loop over batches: `fit` a model, `evaluate` it, and the History of a run.

Read in this order: `batches` makes batches of any data, `history` records each epoch
and prints as a table, `checks`, `reach` and `finite` find what goes wrong in a step,
and `loop` puts them together.
"""

from course_lib.training.history import Epoch, History, TrainingError
from course_lib.training.loop import evaluate, fit

__all__ = ["Epoch", "History", "TrainingError", "evaluate", "fit"]
