"""Training without gradients: RSO, with three engines that decide alike.

`proposals` draws, `minibatches` deals the data, `sweeps` holds the paper's loop and its
cached form, `incremental` the fast one, on the arithmetic of `kernels` and the graph of
`network`. `search` is the loop over cycles, layers and weights; `steps` judges one
proposal, `engines` chooses, `processes` shares the work, `checkpoints` keep it, and
`command` is what the shell calls.
"""

from course_lib.rso.modes import refresh_norm_statistics
from course_lib.rso.search import RSO, CycleReport
from course_lib.rso.steps import SearchError

__all__ = ["RSO", "CycleReport", "SearchError", "refresh_norm_statistics"]
