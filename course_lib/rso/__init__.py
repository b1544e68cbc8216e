"""RSO: training without gradients, one weight at a time; three engines, same decisions.

Read `search` first: the loop over cycles, layers and weights. `proposals` draws the
changes, `minibatches` the samples that judge them, `steps` judges one proposal, and
`engines` chooses who computes its losses: `eager` in torch, `native` in C++.
`parallel` shares the work between processes, `cli` is `python -m course_lib rso`.
"""

from course_lib.rso.modes import refresh_norm_statistics
from course_lib.rso.reports import CycleReport
from course_lib.rso.search import RSO
from course_lib.rso.steps import SearchError

__all__ = ["RSO", "CycleReport", "SearchError", "refresh_norm_statistics"]
