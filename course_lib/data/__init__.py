"""Data sets as tensors, normalized, each whole on one device.

Read `sets` first: `Split`, `Dataset`, and `load`, which makes them. `archives` finds,
checks and downloads the files; a set that torchvision reads is one entry of its table.
"""

from course_lib.data.archives import DataError
from course_lib.data.sets import NAMES, Dataset, Split, available, load

__all__ = ["NAMES", "DataError", "Dataset", "Split", "available", "load"]
