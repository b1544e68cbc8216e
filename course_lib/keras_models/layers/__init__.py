"""The layers: each reads its settings, then makes its variables for given shapes.

Read `base` first, then `core`. A module here is imported with the package, so that its
layers register; a new one needs no other line. `window` has what layers with kernels
share, `operations` the functions that stand in a graph like layers.
"""

from importlib import import_module
from pkgutil import iter_modules

for _found in iter_modules(__path__):
    import_module(f"{__name__}.{_found.name}")
