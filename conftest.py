"""What unit tests, doctests and notebooks share: an environment of their own.

It is set before anything reads it. Kernels and the workers of xdist inherit it; each
worker then makes its own, so that no two write to the same files.
"""

import atexit
import os
import sys
import tempfile
from pathlib import Path

_private = tempfile.TemporaryDirectory(prefix="course-", ignore_cleanup_errors=True)
atexit.register(_private.cleanup)
_folder = Path(_private.name)

os.environ.update(
    TQDM_DISABLE="1",  # a progress bar's speed differs on every run
    COURSE_PROGRESS=str(_folder / "progress.json"),  # never the learner's own
    # The user's settings would change what a notebook prints. Kernels are still found:
    # those that are installed beside this Python do not lie in any of these.
    IPYTHONDIR=str(_folder / "ipython"),
    JUPYTER_CONFIG_DIR=str(_folder / "jupyter-config"),
    JUPYTER_DATA_DIR=str(_folder / "jupyter-data"),
    JUPYTER_RUNTIME_DIR=str(_folder / "jupyter-runtime"),
    MPLCONFIGDIR=str(_folder / "matplotlib"),
)
# With a backend named here, the text of the notebooks' figures would be missing.
os.environ.pop("MPLBACKEND", None)

# With this package jsonschema, which nbval imports, compiles the grammar of each kind
# of web address: a second at every start of pytest. No notebook's schema asks for one.
sys.modules.setdefault("rfc3987_syntax", None)
pytest_plugins = ["nbval.plugin"]
