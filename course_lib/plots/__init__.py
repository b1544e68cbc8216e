"""Pictures for the lessons: each function draws on a given Axes and returns it.

Those of one lesson are in the module of its name, those of several in `common` and
`boxes`; read `common` first. Here all of them have one place: `plots.NAME(...)`.
"""

from course_lib.plots.adversaries import (
    balance,
    errors,
    mosaic,
    shelves,
    spread,
    turning,
)
from course_lib.plots.boxes import owners
from course_lib.plots.closures import cells, cells_beside
from course_lib.plots.common import (
    COLORS,
    bars,
    curves,
    descent,
    heatmap,
    images,
    lines,
    races,
    tiles,
)
from course_lib.plots.explicit import extremes, swings, touched, units
from course_lib.plots.keras_models import panels, strips, walk, windows
from course_lib.plots.losses import entries, fork, shares, sharing
from course_lib.plots.regularization import (
    curves_beside,
    hidden_units,
    histogram,
    histories,
    line_panels,
    valley,
)
from course_lib.plots.rso import feeds, fractions, growth, visit
from course_lib.plots.rso_speed import channels, claims, gains, rates, sweeps
from course_lib.plots.rules import (
    arrows,
    cut,
    descents,
    flow,
    image_rows,
    lengths,
    phases,
)
from course_lib.plots.start_here import losses

__all__ = [
    "COLORS",
    "arrows",
    "balance",
    "bars",
    "cells",
    "cells_beside",
    "channels",
    "claims",
    "curves",
    "curves_beside",
    "cut",
    "descent",
    "descents",
    "entries",
    "errors",
    "extremes",
    "feeds",
    "flow",
    "fork",
    "fractions",
    "gains",
    "growth",
    "heatmap",
    "hidden_units",
    "histogram",
    "histories",
    "image_rows",
    "images",
    "lengths",
    "line_panels",
    "lines",
    "losses",
    "mosaic",
    "owners",
    "panels",
    "phases",
    "races",
    "rates",
    "shares",
    "sharing",
    "shelves",
    "spread",
    "strips",
    "sweeps",
    "swings",
    "tiles",
    "touched",
    "turning",
    "units",
    "valley",
    "visit",
    "walk",
    "windows",
]
